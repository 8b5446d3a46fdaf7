"""From a wanted point to a recipe: the rules of optim/ and schedule/ become numbers. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from sweeps.config import Config
from sweeps.planning.cost import NONE_YET, Experience, sequences_of
from sweeps.planning.rules import batch_for, rate_for
from trainer.config import DeviceKind, OptimConfig, Parametrisation, Precision, ScheduleConfig
from trainer.errors import UserError
from trainer.legs import legs
from trainer.recipe import Branch, DataRecipe, OptimRecipe, Recipe, Scaling, ScheduleRecipe
from trainer.runfolder import Runtime
from trainer.shape import Shape


def make_recipe(config: Config, shape: Shape, wanted: Sequence[float], seed: int, corpus: str) -> Recipe:
    """The recipe of one run: whole batches nearest to the wanted tokens, of which there may be several.

    Points of one trunk share what precedes their cooldowns: batch and rate are those that the rules give the geometric
    mean of their tokens, the warm-up is the shortest one's.
    """
    mean = math.exp(sum(map(math.log, wanted)) / len(wanted)) if len(wanted) > 1 else wanted[0]
    batch = batch_for(config.optim, shape, mean)
    horizons = sorted({steps_of(tokens, batch) for tokens in wanted})
    optim = config.optim
    schedules = [_schedule(config.schedule, steps, horizons[0]) for steps in horizons]
    return Recipe(
        model=shape,
        data=DataRecipe(corpus=corpus, eval_windows=config.data.eval_windows),
        optim=OptimRecipe(
            lr=rate_for(optim, shape, mean, batch),
            batch=batch,
            beta1=optim.beta1,
            beta2=optim.beta2,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            clip=optim.clip,
            z_loss=optim.z_loss,
            guard=optim.guard,
        ),
        schedule=schedules[-1],
        steps=horizons[-1],
        branches=tuple(
            Branch(steps=steps, cooldown_steps=schedule.cooldown_steps)
            for steps, schedule in zip(horizons[:-1], schedules, strict=False)
        ),
        seed=seed,
        scaling=_scaling(optim),
        dtype=precision(config.model.dtype, config.device.kind),
        command=config.trainer.command,
    )


def _scaling(optim: OptimConfig) -> Scaling | None:
    rule = optim.parametrisation
    if rule is Parametrisation.standard:
        return None
    return Scaling(rule=rule, width=optim.base_width, layers=optim.base_layers)


def steps_of(tokens: float, batch: int) -> int:
    """The whole batches nearest to the wanted tokens."""
    return max(1, round(tokens / batch))


def precision(wanted: Precision, device: DeviceKind) -> Precision:
    """``auto`` made definite: bf16 on GPUs and on CPUs that multiply it, else fp32."""
    if wanted is not Precision.auto:
        return wanted
    return Precision.bf16 if device is DeviceKind.cuda or _cpu_multiplies_bf16() else Precision.fp32


def make_runtime(config: Config, recipe: Recipe, experience: Experience = NONE_YET) -> Runtime:
    """How the run is executed."""
    trainer = config.trainer
    # Rounded up, so that a share of 0.85 lies within the last 15 %, which Approach 1 reads.
    steps = {
        leg.before + at - leg.begin
        for leg in legs(recipe)
        for at in {math.ceil(share * leg.horizon.steps - 1e-9) for share in (*trainer.eval_at, 1.0)}
        if leg.begin < at <= leg.end
    }
    runtime = Runtime(
        device=config.device.kind,
        threads=trainer.threads,
        micro_batch=trainer.micro_batch,
        eval_steps=tuple(sorted(steps)),
        log_every=max(1, recipe.updates // trainer.rows),
        checkpoint_seconds=trainer.checkpoint_seconds,
        keep=trainer.keep,
        tracking=config.tracking,
        peak_flops=config.device.flops_per_second,
        way=trainer.way,
    )
    return (
        runtime
        if trainer.micro_batch
        else replace(runtime, micro_batch=micro_batch(config, recipe, runtime, experience))
    )


def micro_batch(config: Config, recipe: Recipe, runtime: Runtime, experience: Experience) -> int:
    """Most sequences per forward pass of torch that a device holds: its share halved until it fits; 0 for all of it."""
    share = sequences_of(recipe, config.device.per_run)
    sequences, room = share, config.device.memory_gb * 1e9
    while sequences > 1 and experience.memory(recipe, sequences, runtime, native=False) > room:
        sequences = -(-sequences // 2)
    return 0 if sequences == share else sequences


POSITIVE = ("a positive number", lambda value: 0 < value < math.inf)
NOT_NEGATIVE = ("0 or more", lambda value: 0 <= value < math.inf)
FINITE = ("a finite number", math.isfinite)
ONE_OR_MORE = ("1 or more", lambda value: value >= 1)
NULL_OR_ONE = ("null or 1 or more", lambda value: value is None or value >= 1)
NULL_OR_POSITIVE = ("null or a positive number", lambda value: value is None or 0 < value < math.inf)
FACTOR = ("above 1, a factor either way, or null for any", lambda value: value is None or 1 < value < math.inf)
SHARE = ("in (0, 1]", lambda value: 0 < value <= 1)
BELOW_ONE = ("in [0, 1)", lambda value: 0 <= value < 1)

RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("optim.lr", "optim.lr_width", "optim.lr_batch", "optim.batch_divisor", "optim.eps"), POSITIVE),
    **dict.fromkeys(("optim.batch_min", "optim.batch_max", "optim.base_width", "optim.base_layers"), ONE_OR_MORE),
    **dict.fromkeys(("optim.weight_decay", "optim.clip", "trainer.micro_batch"), NOT_NEGATIVE),
    **dict.fromkeys(("optim.z_loss", "optim.guard", "device.together"), NOT_NEGATIVE),
    **dict.fromkeys(("cluster.workers", "schedule.warmup_max_steps", "cluster.cpus_per_device"), NOT_NEGATIVE),
    **dict.fromkeys(("cluster.pack_hours", "cluster.signal_seconds", "cluster.devices_per_node"), NOT_NEGATIVE),
    **dict.fromkeys(("cluster.per_device", "cluster.margin", "device.per_run"), ONE_OR_MORE),
    **dict.fromkeys(("cluster.max_gpus", "cluster.max_submit", "sweep.allowed.runs"), NULL_OR_ONE),
    **dict.fromkeys(("cluster.memory_gb", "cluster.max_hours", "sweep.allowed.memory_gb"), NULL_OR_POSITIVE),
    **dict.fromkeys(("sweep.target.flops", "sweep.target.params", "sweep.target.tokens"), NULL_OR_POSITIVE),
    **dict.fromkeys(("sweep.allowed.reserved", "forecast.seed"), NOT_NEGATIVE),
    "sweep.allowed.window": FACTOR,
    **dict.fromkeys(("optim.lr_width_power", "optim.lr_batch_power"), FINITE),
    **dict.fromkeys(("optim.beta1", "optim.beta2", "schedule.warmup"), BELOW_ONE),
    **dict.fromkeys(("schedule.cooldown", "device.utilisation", "tracking.share"), SHARE),
    "schedule.final": ("in [0, 1]", lambda value: 0 <= value <= 1),
    **dict.fromkeys(("data.sequence", "data.eval_windows", "trainer.rows", "trainer.threads"), ONE_OR_MORE),
    "limits.lost_attempts": ONE_OR_MORE,
    **dict.fromkeys(
        ("data.max_epochs", "device.flops_per_second", "device.memory_gb", "cluster.timeout_hours"), POSITIVE
    ),
    **dict.fromkeys(("trainer.checkpoint_seconds", "sweep.tolerance", "device.price_per_hour"), NOT_NEGATIVE),
    "trainer.eval_at": ("shares in (0, 1]", lambda values: all(0 < value <= 1 for value in values)),
}
"""What a key takes; NaN passes none of these."""


def check_rules(config: Config) -> None:
    """Refuse numbers no run can be made of, before any is.

    Raises
    ------
    UserError
        Naming the field, its value and what it takes.
    """
    for key, (allowed, good) in RULES.items():
        value = attrgetter(key)(config)
        if not good(value):
            raise UserError(f"{key}={value} must be {allowed}; set {key}=<value> so.")
    config.fit.check()
    if config.device.per_run > 1 and config.device.together > 1:
        raise UserError(
            f"device.per_run={config.device.per_run} spreads a run over devices, device.together="
            f"{config.device.together} puts runs on one; set one of them to 1."
        )
    if config.optim.batch_max < config.data.sequence:
        raise UserError(
            f"optim.batch_max={config.optim.batch_max} is less than one sequence, data.sequence="
            f"{config.data.sequence} tokens; raise it, or shorten the sequence."
        )
    if config.trainer.way.records and config.device.kind is not DeviceKind.cuda:
        raise UserError(
            f"trainer.way={config.trainer.way} records CUDA graphs, which device.kind={config.device.kind} has not; "
            "choose device.kind=cuda, or trainer.way=auto, eager or compile."
        )
    if config.optim.batch_max < config.optim.batch_min:
        raise UserError(
            f"optim.batch_max={config.optim.batch_max} is below optim.batch_min={config.optim.batch_min}; raise it."
        )


def _schedule(schedule: ScheduleConfig, steps: int, shortest: int) -> ScheduleRecipe:
    warmup = min(round(schedule.warmup * shortest), schedule.warmup_max_steps)
    return ScheduleRecipe(
        decay=schedule.decay,
        warmup_steps=warmup,
        cooldown_steps=min(max(1, round(schedule.cooldown * steps)), steps - warmup),
        cooldown_shape=schedule.cooldown_shape,
        final=schedule.final,
    )


def _cpu_multiplies_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
