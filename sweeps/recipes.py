"""From a wanted point to a recipe: the rules of optim/ and schedule/ become numbers. Pure."""

from __future__ import annotations

import math
from pathlib import Path

from sweeps.config import Config
from sweeps.cost import step_memory
from sweeps.design import Target
from trainer.config import DeviceKind, OptimConfig, Precision, ScheduleConfig
from trainer.errors import UserError
from trainer.recipe import DataRecipe, OptimRecipe, Recipe, ScheduleRecipe
from trainer.runfolder import Runtime


def make_recipe(config: Config, target: Target, seed: int, corpus: str) -> Recipe:
    """The recipe of one point: whole batches nearest to the wanted tokens."""
    sequence, tokens = target.shape.sequence, target.tokens
    batch = batch_tokens(config.optim, tokens, sequence)
    steps = max(1, round(tokens / batch))
    optim = config.optim
    return Recipe(
        model=target.shape,
        data=DataRecipe(corpus=corpus, eval_windows=config.data.eval_windows),
        optim=OptimRecipe(
            lr=learning_rate(optim, target.shape.d_model, batch),
            batch=batch,
            beta1=optim.beta1,
            beta2=optim.beta2,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            clip=optim.clip,
        ),
        schedule=_schedule(config.schedule, steps),
        steps=steps,
        seed=seed,
        dtype=precision(config.model.dtype, config.device.kind),
        command=config.trainer.command,
    )


def batch_tokens(optim: OptimConfig, tokens: float, sequence: int) -> int:
    """The batch rule, in tokens: a power of two near tokens / divisor, clipped, in whole sequences."""
    power: float = 2.0 ** round(math.log2(tokens / optim.batch_divisor))
    clipped = min(max(power, optim.batch_min), optim.batch_max)
    return max(1, round(clipped / sequence)) * sequence


def learning_rate(optim: OptimConfig, d_model: int, batch: int) -> float:
    """The rate rule: lr (width / lr_width)^lr_width_power (batch / lr_batch)^lr_batch_power."""
    width, size = d_model / optim.lr_width, batch / optim.lr_batch
    return float(optim.lr * width**optim.lr_width_power * size**optim.lr_batch_power)


def precision(wanted: Precision, device: DeviceKind) -> Precision:
    """``auto`` made definite: bf16 on GPUs and on CPUs that multiply it, else fp32."""
    if wanted is not Precision.auto:
        return wanted
    return Precision.bf16 if device is DeviceKind.cuda or _cpu_multiplies_bf16() else Precision.fp32


def make_runtime(config: Config, recipe: Recipe) -> Runtime:
    """How the run is executed."""
    trainer = config.trainer
    steps = {max(1, round(share * recipe.steps)) for share in trainer.eval_at} | {recipe.steps}
    return Runtime(
        device=config.device.kind,
        threads=trainer.threads,
        micro_batch=trainer.micro_batch or micro_batch(config, recipe),
        eval_steps=tuple(sorted(steps)),
        log_every=max(1, recipe.steps // trainer.rows),
        checkpoint_seconds=trainer.checkpoint_seconds,
        keep=trainer.keep,
        tracking=config.tracking,
    )


def micro_batch(config: Config, recipe: Recipe) -> int:
    """Most sequences per forward pass that fit the device's memory: the batch, or it halved until it fits; 0 for all."""
    sequences = recipe.sequences
    while sequences > 1 and step_memory(recipe, sequences, config.device.kind) > config.device.memory_gb * 1e9:
        sequences = -(-sequences // 2)
    return 0 if sequences == recipe.sequences else sequences


def check_rules(config: Config) -> None:
    """Refuse numbers no run can be made of, before any is.

    Raises
    ------
    UserError
        Naming the field, its value and what it takes.
    """
    for field, value, allowed, good in (
        *((f"optim.{name}", getattr(config.optim, name), "a positive number", getattr(config.optim, name) > 0)
          for name in ("lr", "lr_width", "lr_batch", "batch_divisor", "batch_min", "eps")),
        *((f"optim.{name}", getattr(config.optim, name), "in [0, 1)", 0 <= getattr(config.optim, name) < 1)
          for name in ("beta1", "beta2")),
        *((f"optim.{name}", getattr(config.optim, name), "0 or more", getattr(config.optim, name) >= 0)
          for name in ("weight_decay", "clip")),
        ("optim.batch_max", config.optim.batch_max, "batch_min or more", config.optim.batch_max >= config.optim.batch_min),
        ("schedule.warmup", config.schedule.warmup, "in [0, 1)", 0 <= config.schedule.warmup < 1),
        ("schedule.cooldown", config.schedule.cooldown, "in (0, 1]", 0 < config.schedule.cooldown <= 1),
        ("schedule.final", config.schedule.final, "in [0, 1]", 0 <= config.schedule.final <= 1),
        ("data.sequence", config.data.sequence, "1 or more", config.data.sequence >= 1),
        ("data.eval_windows", config.data.eval_windows, "1 or more", config.data.eval_windows >= 1),
        ("data.max_epochs", config.data.max_epochs, "a positive number", config.data.max_epochs > 0),
        ("trainer.rows", config.trainer.rows, "1 or more", config.trainer.rows >= 1),
        ("trainer.threads", config.trainer.threads, "1 or more", config.trainer.threads >= 1),
        ("trainer.micro_batch", config.trainer.micro_batch, "0 or more", config.trainer.micro_batch >= 0),
        ("trainer.eval_at", config.trainer.eval_at, "shares in (0, 1]", all(0 < s <= 1 for s in config.trainer.eval_at)),
        ("device.flops_per_second", config.device.flops_per_second, "a positive number",
         config.device.flops_per_second > 0),
        ("device.utilisation", config.device.utilisation, "in (0, 1]", 0 < config.device.utilisation <= 1),
    ):  # fmt: skip
        if not good or value != value:
            raise UserError(f"{field}={value} must be {allowed}; set {field}=<value> so.")


def _schedule(schedule: ScheduleConfig, steps: int) -> ScheduleRecipe:
    warmup = min(round(schedule.warmup * steps), schedule.warmup_max_steps)
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
