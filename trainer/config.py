"""The schemas behind the groups ``model/ data/ optim/ schedule/ tracking/ device/`` and the ``trainer`` node.

They hold what a user writes: rules. :mod:`trainer.recipe` holds what comes out of them for one run: numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from trainer.shape import Activation, Positions


class Source(StrEnum):
    """Where a corpus comes from."""

    python_source = "python_source"
    zipf_facts = "zipf_facts"
    tokens = "tokens"
    unspecified = "unspecified"


class Decay(StrEnum):
    """The learning rate after warm-up: cosine or linear to its final value, or constant with a cooldown (wsd)."""

    cosine = "cosine"
    linear = "linear"
    wsd = "wsd"


class Cooldown(StrEnum):
    """The shape of a cooldown: the factor falls as 1 - x, 1 - sqrt(x) or half a cosine."""

    linear = "linear"
    sqrt = "sqrt"
    cosine = "cosine"


class Precision(StrEnum):
    """Arithmetic of the forward and backward pass; ``auto`` is bf16 where the device has it, resolved in the plan."""

    auto = "auto"
    bf16 = "bf16"
    fp32 = "fp32"


class Parametrisation(StrEnum):
    """How starts, rates and multipliers follow from a model's size (see :mod:`trainer.scaling`)."""

    standard = "standard"
    mup = "mup"
    completep = "completep"


class RateRule(StrEnum):
    """Where batch and rate come from (see :mod:`sweeps.planning.rules`)."""

    power = "power"
    steplaw = "steplaw"
    deepseek = "deepseek"
    porian = "porian"


class DeviceKind(StrEnum):
    """What torch calls the device."""

    cpu = "cpu"
    cuda = "cuda"


class Way(StrEnum):
    """How torch computes a step (see :mod:`trainer.ways`)."""

    auto = "auto"
    eager = "eager"
    graph = "graph"
    compile = "compile"
    compile_graph = "compile_graph"

    @property
    def compiles(self) -> bool:
        """Whether torch's compiler is needed."""
        return self in (Way.compile, Way.compile_graph)

    @property
    def records(self) -> bool:
        """Whether the step is replayed as a CUDA graph."""
        return self in (Way.graph, Way.compile_graph)


class Keep(StrEnum):
    """Which checkpoints stay once a point is done."""

    none = "none"
    last = "last"
    all = "all"


class Backend(StrEnum):
    """Where a run is mirrored, beside the local files that are always written."""

    none = "none"
    wandb = "wandb"


class WandbMode(StrEnum):
    """W&B's own modes."""

    online = "online"
    offline = "offline"
    disabled = "disabled"


@dataclass(kw_only=True)
class ModelConfig:
    """Group ``model/``: the family of shapes a sweep draws its sizes from (see :mod:`sweeps.planning.ladder`)."""

    activation: Activation = Activation.gelu
    positions: Positions = Positions.rope
    tied_head: bool = True
    qk_norm: bool = False
    """RMSNorm of queries and keys, over each head."""
    head_size: int = 64
    ffw_ratio: float = 4.0
    """Feed-forward width over model width; rounded to a multiple of ``width_step``."""
    aspect: float = 64.0
    """Wanted width per layer, d_model / layers."""
    aspect_spread: float = 1.6
    """Shapes whose aspect lies further than this factor from the wanted one are not on the ladder."""
    width_step: int = 64
    """Widths are multiples of this many."""
    max_layers: int = 160
    max_width: int = 32768
    dtype: Precision = Precision.auto


@dataclass(kw_only=True)
class DataConfig:
    """Group ``data/``: the corpus and its fixed validation windows."""

    source: Source = Source.python_source
    path: str | None = None
    """data.source=tokens: the folder with ``header.json`` and the shards."""
    sequence: int = 128
    """Tokens a training sequence holds."""
    eval_windows: int = 512
    """Validation windows of ``sequence`` tokens, the same for every run of a corpus."""
    max_epochs: float = 1.0
    """How often a run may see its corpus; more tokens than that are refused."""
    vocabulary: int = 256
    """unspecified: the vocabulary the data will have. The other sources know theirs."""
    tokens: float = 0
    """unspecified, zipf_facts: training tokens the corpus holds."""
    seed: int = 0
    """zipf_facts: the seed of the generator."""
    max_file_bytes: int = 300_000
    """python_source: longer files are cut here."""


@dataclass(kw_only=True)
class OptimConfig:
    """Group ``optim/``: AdamW, with rules that set batch and learning rate from a run's size and tokens.

    With ``rule=power``: batch = 2^round(log2(tokens / batch_divisor)) clipped to [batch_min, batch_max], in tokens;
    rate = lr (width / lr_width)^lr_width_power (batch / lr_batch)^lr_batch_power. The published rules have their own
    formulas, whose rate ``lr`` multiplies and whose batch is clipped alike.
    """

    rule: RateRule = RateRule.power
    parametrisation: Parametrisation = Parametrisation.standard
    """mup, completep: rates, starts and multipliers of each tensor are those of the base shape, carried over;"""
    base_width: int = 64
    """of this width"""
    base_layers: int = 2
    """and so many layers (completep)."""
    lr: float = 0.01
    lr_width: float = 32
    lr_width_power: float = 0.0
    lr_batch: float = 2048
    lr_batch_power: float = 0.0
    batch_divisor: float = 2000
    batch_min: int = 2048
    batch_max: int = 2048
    min_steps: int = 1
    """Points with fewer updates are refused: they would be limited by optimisation, not by size or data."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.05
    clip: float = 1.0
    """Largest gradient norm; 0 switches clipping off."""
    z_loss: float = 0.0
    """Times the squared log of the softmax's sum, added to what is trained on (Chowdhery et al. 2022: 1e-4)."""
    guard: float = 0.0
    """Updates whose loss or gradient norm lies so many standard deviations above the last 128 are skipped and recorded,
    as are those that are not finite; 0 switches the guard off, 6 is usual."""


@dataclass(kw_only=True)
class ScheduleConfig:
    """Group ``schedule/``: the learning rate over a run, matched exactly to its steps."""

    decay: Decay = Decay.cosine
    warmup: float = 0.1
    """Share of the steps that warm up,"""
    warmup_max_steps: int = 200
    """but no more than this many."""
    final: float = 0.0
    """Last learning rate over the peak."""
    cooldown: float = 0.25
    """wsd: the share of the steps that cool down,"""
    cooldown_shape: Cooldown = Cooldown.sqrt
    """and how."""
    trunks: bool = True
    """wsd: points that differ in their tokens alone branch off one trunk; false trains each by itself."""


@dataclass(kw_only=True)
class TrackingConfig:
    """Group ``tracking/``: where runs are mirrored."""

    backend: Backend = Backend.none
    mode: WandbMode = WandbMode.offline
    project: str = "isoflop"
    entity: str | None = None
    every_seconds: float = 1.0
    """Rows are handed to W&B at most this often."""
    share: float = 0.01
    """Of a core: what the mirror may take from training where no core is free; it catches up at the worker's end."""


@dataclass(kw_only=True)
class DeviceConfig:
    """Group ``device/``: what a run computes on, and what that costs."""

    kind: DeviceKind = DeviceKind.cpu
    name: str = "cpu"
    flops_per_second: float = 1e11
    """Peak of one device in the precision of training."""
    utilisation: float = 0.5
    """Share of the peak that training reaches; the plan uses it until the sweep has done runs to go by."""
    memory_gb: float = 8.0
    price_per_hour: float = 0.0
    """Of one device."""
    per_run: int = 1
    """Devices that share each run's batches, which have to be divisible by it: a run then ends so much sooner. Every
    device holds the whole model."""
    together: int = 1
    """Runs of one shape and batch, whatever their seeds and rates, that a device trains as one model, at most: for
    GPUs, which small runs leave idle. Losses are those of separate runs but for the order of sums. 0: the plan chooses
    for each shape, by what one run leaves idle and by memory; 1 on a CPU."""


@dataclass(kw_only=True)
class TrainerConfig:
    """Node ``trainer``: how a run is executed. Nothing here but ``command`` changes what is measured."""

    command: str | None = None
    """An external trainer that keeps the run folder's contract, e.g. ``{python} my_trainer.py {folder}``."""
    rows: int = 200
    """About how many rows a run logs."""
    eval_at: list[float] = field(default_factory=lambda: [0.25, 0.5, 0.75, 0.85, 0.925, 1.0])
    """Shares of a run after which the validation loss is measured; 1.0 always is."""
    checkpoint_seconds: float = 10.0
    """Longest training that a kill can cost."""
    keep: Keep = Keep.last
    micro_batch: int = 0
    """Sequences per forward pass; 0 takes the whole batch at once. Smaller ones accumulate gradients."""
    threads: int = 1
    """CPU threads per run."""
    way: Way = Way.auto
    """How a step is computed. auto: on a CPU in C++ or by torch's eager operations; on a GPU eager, as one CUDA graph
    or compiled, whichever is tried out to be fastest, for each shape. By name: torch in this way, if it agrees with
    eager there; graphs need a GPU."""


def plain(value: Any) -> Any:
    """A dataclass, enum or container as what JSON and YAML know, in field order."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
