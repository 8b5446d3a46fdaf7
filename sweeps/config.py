"""The schema of the command's configuration, and its registration with Hydra."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Any

from hydra.core.config_store import ConfigStore

from analysis.config import FitConfig, LawConfig, Quantity
from trainer.config import (
    DataConfig,
    DeviceConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    TrackingConfig,
    TrainerConfig,
)
from trainer.text.config import PrepareConfig


class Design(StrEnum):
    """How a sweep makes its points (see :mod:`sweeps.planning.design`)."""

    isoflop = "isoflop"
    horizons = "horizons"
    grid = "grid"
    points = "points"
    optimal = "optimal"


class Format(StrEnum):
    """How a command prints its result."""

    table = "table"
    json = "json"


class Retry(StrEnum):
    """Which failed points ``submit`` and ``run`` try again."""

    none = "none"
    oom = "oom"
    timeout = "timeout"
    all = "all"


class Executor(StrEnum):
    """Where workers run."""

    local = "local"
    slurm = "slurm"


class FitSource(StrEnum):
    """What ``fit`` reads."""

    runs = "runs"
    csv = "csv"
    """A table of points or curves: CSV, JSON lines or parquet."""
    wandb = "wandb"
    """A project on the server, or offline runs on disk."""


class SyncSource(StrEnum):
    """What ``sync`` hands in, as ``from=`` names it."""

    offline = "offline"
    """The runs of a sweep that ask for a mirror, and are not whole in W&B."""
    runs = "runs"
    """Every run of a sweep, whether it was ever mirrored or not."""


@dataclass(kw_only=True)
class CentreConfig:
    """Where a budget's sizes are centred: on a law's optimum, or at n_opt (C / at)^exponent (non-embedding)."""

    law: str | None = None
    n_opt: float | None = None
    at: float | None = None
    exponent: float = 0.5


@dataclass(kw_only=True)
class TargetConfig:
    """What an optimal design is to pin: N* or L* at some C (matmul count), the exponent a, or L(N, D); or a mix."""

    quantity: Quantity = Quantity.n_opt
    flops: float | None = None
    """n_opt, loss_opt: C."""
    params: float | None = None
    """loss: N, as ``fit.params`` counts it."""
    tokens: float | None = None
    """loss: D."""
    weight: float = 1.0
    """In a mix: what a variance counts; those of N* and L* are relative, that of the exponent is not."""
    also: list[Any] = field(default_factory=list)
    """Further targets, each a quantity with its numbers: ``sweep.target.also=[{quantity: exponent, weight: 36}]``."""
    half_width: float | None = None
    """Go batch by batch until the fit's interval of the target (``fit.level``) reaches no further than this to either
    side, as a share of it; null designs once, for the whole limit."""


@dataclass(kw_only=True)
class CostConfig:
    """What an optimal design may cost; one of the two."""

    flops: float | None = None
    """Training FLOPs of the sweep, matmul count."""
    device_hours: float | None = None


@dataclass(kw_only=True)
class AllowedConfig:
    """What an optimal design may ask for; ranges are [least, most], empty for any."""

    window: float | None = 10.0
    """Sizes within this factor of the compute-optimal one, either way: further off, the form is trusted blindly."""
    params: list[float] = field(default_factory=list)
    """Non-embedding parameters."""
    tokens: list[float] = field(default_factory=list)
    tokens_per_param: list[float] = field(default_factory=list)
    """Of total parameters."""
    memory_gb: float | None = None
    """Of one run, as the plan says."""
    runs: int | None = None
    """Of the sweep, at most."""
    reserved: int = 5
    """Budgets with a run near the compute-optimal size that is there to test the form, the highest one at most a third
    of the limit; 0 for none."""


@dataclass(kw_only=True)
class SweepConfig:
    """Group ``sweep/``: the points."""

    name: str = ""
    """Names the sweep's folder under root."""
    design: Design = Design.isoflop
    budgets: list[float] = field(default_factory=list)
    """isoflop: training FLOPs, matmul count."""
    sizes: Any = 6
    """isoflop: how many sizes a budget gets. Any design: a list of non-embedding parameter counts."""
    spacing: float = 2.0
    """isoflop: the factor between neighbouring sizes."""
    centre: CentreConfig = field(default_factory=CentreConfig)
    horizons: list[float] = field(default_factory=list)
    """horizons: training tokens, each crossed with every size."""
    tokens_per_param: list[float] = field(default_factory=list)
    """grid: tokens per parameter (total), each crossed with every size."""
    points: str | None = None
    """points: a CSV with columns params (non-embedding) and tokens, or layers, d_model and tokens."""
    target: TargetConfig = field(default_factory=TargetConfig)
    """optimal: what is to be known."""
    limit: CostConfig = field(default_factory=CostConfig)
    """optimal: what the sweep may cost, all batches and all values of its axes together."""
    allowed: AllowedConfig = field(default_factory=AllowedConfig)
    """optimal: by which runs. Budgets, horizons and sizes, where they are listed, say which there are to choose from;
    seeds, how often a point may be trained."""
    pinned: list[Any] = field(default_factory=list)
    """optimal: points it must have, each {params: non-embedding, tokens: D}, wherever they lie."""
    excluded: list[Any] = field(default_factory=list)
    """optimal: points it must not have: the beginning of an id, or {params: [least, most], tokens: [least, most]}."""
    seeds: list[int] = field(default_factory=lambda: [0])
    axes: dict[str, Any] = field(default_factory=dict)
    """Config key -> list of values, crossed with the points; ``"a, b": [[1, 2], [3, 4]]`` moves two keys together."""
    tolerance: float = 0.01
    """A point whose achieved FLOPs miss its budget by more than this share is refused."""


@dataclass(kw_only=True)
class ClusterConfig:
    """Group ``cluster/``: where and how workers run."""

    executor: Executor = Executor.local
    workers: int = 0
    """local: workers at once; 0 takes one per CPU core."""
    timeout_hours: float = 24.0 * 7
    """local: a worker is stopped after this long."""
    partition: str | None = None
    """slurm: this and the next four as sbatch takes them."""
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    gpu_type: str | None = None
    """slurm: where a site wants the kind of GPU named, e.g. h100."""
    devices_per_node: int = 0
    """slurm: a run on more devices takes several nodes; 0 takes what the partition's nodes have."""
    cpus_per_device: int = 0
    """slurm: 0 takes trainer.threads."""
    memory_gb: float | None = None
    """slurm: host memory per device; null: of CPU runs what the plan says, of GPU runs the site's default."""
    max_hours: float | None = None
    """slurm: the longest time limit to ask for; longer runs checkpoint, requeue themselves and go on. null: the
    partition's, but no more than a day."""
    margin: float = 1.5
    """slurm: time limits are planned hours times this, and ten minutes at least."""
    pack_hours: float = 0.25
    """slurm: small runs are put into one task until so much work is together; 0 gives each run a task."""
    per_device: int = 1
    """slurm: runs of a task that share its device."""
    mps: bool = True
    """Runs that share a GPU (per_device, or more workers than GPUs) do so through NVIDIA's multi-process service, where
    nvidia-cuda-mps-control is on PATH: at once instead of in turns."""
    max_gpus: int | None = None
    """slurm: devices at once."""
    max_submit: int | None = None
    """slurm: tasks that the site lets one queue; runs are packed so that they fit."""
    canary: bool = False
    """slurm: the cheapest point first, the rest once it has succeeded, with time limits from its speed."""
    signal_seconds: int = 120
    """slurm: so long before the time limit a task checkpoints."""
    setup: list[str] = field(default_factory=list)
    """slurm: lines of shell before the worker starts."""
    modules: list[str] = field(default_factory=list)
    """slurm: modules loaded after them."""
    container: str | None = None
    """slurm: a command that runs what follows it in a container, e.g. ``apptainer exec --nv image.sif``."""
    python: str | None = None
    """slurm: the interpreter on the nodes; null takes this one."""
    check_root: bool = True
    """slurm: refuse a root that only this machine can see."""
    sbatch: dict[str, Any] = field(default_factory=dict)
    """slurm: anything else sbatch takes, e.g. ``cluster.sbatch.nice=100``; null leaves an option of ours out."""


@dataclass(kw_only=True)
class LimitsConfig:
    """``submit`` stops above these unless ``confirm=true``; null means no limit."""

    device_hours: float | None = None
    price: float | None = None
    lost_attempts: int = 5
    """A point whose attempts vanish this often in a row without progress counts as failed."""


@dataclass(kw_only=True)
class ForecastConfig:
    """Node ``forecast``: what precision is foretold from; ``forecast=true`` is short for ``forecast.on=true``."""

    on: bool = False
    """plan: simulate the sweep, and print and write the intervals to expect."""
    targets: list[float] = field(default_factory=list)
    """Training FLOPs at which N*, D* and L* are foretold; empty: the plan's largest budget, 10 and 100 times that."""
    prior: str | None = None
    """A folder that ``fit`` wrote, whose law and its uncertainty are taken for true; ``results``: a fit of what the
    sweep has measured; null: ``law=``, else the law or the N*(C) of ``sweep.centre``."""
    noise: float | None = None
    """Standard deviation of log loss between runs of one point; null: that of repeated seeds among the results in the
    root, else of their residuals about their law, else 0.005."""
    replicates: int = 1000
    """Simulated sweeps."""
    seed: int = 0
    """Of the simulation."""


@dataclass(kw_only=True)
class Config:
    """Everything the sweep verbs read."""

    root: str = "runs"
    sweep: SweepConfig = field(default_factory=SweepConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    law: LawConfig = field(default_factory=LawConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    forecast: ForecastConfig = field(default_factory=ForecastConfig)
    out: str | None = None
    """Where fit, run and export write; null: <root>/<sweep>/fit or .../export, or fits/<file name> for a CSV."""
    format: Format = Format.table
    validation: str | None = None
    """fit, run: the validation set whose loss is fitted, where the corpus has several; null: its first."""
    confirm: bool = False
    """submit, run: go on above the limits."""
    retry: Retry = Retry.none
    """submit, run: try failed points again: those out of memory, those out of time, or all."""
    cancel_left: bool = False
    """submit: also cancel what waits or runs of points that have left the sweep."""
    point: str | None = None
    """status, cancel, train, export, sample: one point, by id or the beginning of one."""
    watch: bool = False
    """status: refresh until every point has ended."""
    report: bool = False
    """plan: write plan.html with pictures of the points and of what they tell; implies forecast=true."""
    write: bool = False
    """suggest: add the points to the sweep."""


@dataclass(kw_only=True)
class FitCommand(Config):
    """What ``fit`` reads besides."""

    source: FitSource = FitSource.runs
    path: str | None = None
    """csv: the file (.csv, .jsonl, .parquet). wandb: a folder of offline runs, or a .wandb file."""
    curves: str | None = None
    """csv: a second file with the loss curves of the points' runs (run_id, tokens, loss), which Approach 1 needs."""
    project: str | None = None
    """wandb: entity/name of a project on the server."""
    group: str | None = None
    """wandb: only runs of this group."""
    where: str | None = None
    """A pandas query; rows that fail it are left out and listed."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our column -> the file's column, or the run's key."""
    group_by: list[str] = field(default_factory=list)
    """Columns: one fit per group of their values."""


@dataclass(kw_only=True)
class SyncCommand(Config):
    """What ``sync`` reads besides."""

    source: SyncSource = SyncSource.offline
    """``from=offline`` or ``from=runs``."""
    path: str | None = None
    """Offline runs that were copied here, instead: a folder of .wandb files, or one."""


@dataclass(kw_only=True)
class BoardCommand(Config):
    """What ``board`` reads besides."""

    host: str = "127.0.0.1"
    """The address it listens on; others than this machine reach it on 0.0.0.0."""
    port: int = 8060
    """0 takes any that is free."""


@dataclass(kw_only=True)
class SampleCommand(Config):
    """What ``sample`` reads besides."""

    prompt: str = ""
    """The text to go on from; empty begins a new document."""
    tokens: int = 200
    """How many to draw, at most: the end of a text ends a sample."""
    temperature: float = 1.0
    """0 always takes the likeliest token."""
    top_k: int = 0
    """Only so many of the likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Only the likeliest tokens whose probabilities together reach this."""
    seed: int = 0
    """The same one gives the same text."""
    samples: int = 1


@dataclass(kw_only=True)
class PredictCommand:
    """What ``predict`` reads."""

    law: LawConfig = field(default_factory=LawConfig)
    path: str | None = None
    """A folder that ``fit`` wrote, or its fit.json; with law besides, both answer."""
    flops: float | None = None
    params: float | None = None
    tokens: float | None = None
    unique_tokens: float | None = None
    """How many distinct tokens there are; the rest of the tokens repeat them."""
    inference_tokens: float | None = None
    """How many tokens the model will serve after training."""
    tokens_per_param: float | None = None
    """D / N of a point at flops."""
    models: bool = False
    """Published models beside the law, instead."""
    format: Format = Format.table


@dataclass(kw_only=True)
class DataPrepareCommand(PrepareConfig):
    """What ``data prepare`` reads."""

    format: Format = Format.table


@dataclass(kw_only=True)
class DataCheckCommand:
    """What ``data check`` reads."""

    path: str | None = None
    """A folder with header.json."""


@cache
def register() -> None:
    """Make the schemas known to Hydra, one named ``schema`` in each group."""
    store = ConfigStore.instance()
    for name, node in (
        ("sweep_schema", Config),
        ("fit_schema", FitCommand),
        ("predict_schema", PredictCommand),
        ("sync_schema", SyncCommand),
        ("board_schema", BoardCommand),
        ("sample_schema", SampleCommand),
        ("data_prepare_schema", DataPrepareCommand),
        ("data_check_schema", DataCheckCommand),
    ):
        store.store(name=name, node=node)
    for group, schema in (
        ("sweep", SweepConfig),
        ("model", ModelConfig),
        ("data", DataConfig),
        ("optim", OptimConfig),
        ("schedule", ScheduleConfig),
        ("cluster", ClusterConfig),
        ("tracking", TrackingConfig),
        ("device", DeviceConfig),
        ("law", LawConfig),
    ):
        store.store(group=group, name="schema", node=schema)
