"""One training run, from wherever its folder stands to its final record.

A run is a function of its recipe: batch i depends on (seed, i) alone, and a checkpoint holds everything else, the
half-summed log window included. So a run that was killed any number of times writes the rows, and ends at the loss, of
one that was not, bit by bit (same processor, threads and torch).

A run with several horizons goes through the legs of :mod:`trainer.legs`: before a cooldown that is not the last it puts
its state aside as ``trunk.ckpt``, and takes it up again once the cooldown's point is recorded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer import checkpoint
from trainer.batches import eval_windows, train_batch, window_starts
from trainer.checkpoint import SLOTS, TRUNK
from trainer.config import DeviceKind, Keep, Precision
from trainer.corpus import Corpus, open_corpus
from trainer.engine import DeviceMemory, Engine, choose_kernels, open_engine, prepare_device, usable
from trainer.errors import MachineFault, UserError
from trainer.guard import MOST_IN_A_ROW, Guard
from trainer.legs import Leg, legs
from trainer.limits import limits
from trainer.lock import LockLost
from trainer.memory import EVAL_TOKENS
from trainer.model import flops_of, slots
from trainer.resident import resident
from trainer.runfolder import DIVERGED, DONE, EXCEPTION, STOPPED, RunConfig, RunFolder, final_record, finite_or_none
from trainer.schedule import rate_factor

HIGH_ROWS = 5
"""A run has diverged when this many rows in a row, after warm-up, lie above ln(V) + 1: a nat worse than guessing."""


def train(
    folder: RunFolder,
    corpora_root: Path,
    *,
    job: str = "",
    should_stop: Callable[[], str | None] = lambda: None,
    open_engine: Callable[[RunConfig, torch.device], Engine] = open_engine,
    choose: Callable[[RunConfig, torch.device], dict[str, Any]] | None = None,
    devices: int = 1,
) -> str:
    """Train the run of a folder to its end and return its verdict; ``stopped: <reason>`` if asked to stop first.

    The caller holds the folder's lock. A run whose points have their final records is left untouched. Verdicts:
    ``done``; ``diverged``, where the loss or gradient is not finite, or stays a nat above ln(vocabulary). Of several
    points that of the last one is returned.

    Parameters
    ----------
    corpora_root
        The root under which :func:`trainer.corpus.open_corpus` finds the corpus.
    job
        The scheduler's name for this job, for the record.
    should_stop
        Asked before every update; a reason makes the run save its state and return.
    open_engine
        What makes the engine that computes; :mod:`trainer.distributed` has one over several devices,
        :mod:`trainer.together` one for several runs.
    choose
        What chooses the kernels at the first attempt, unless that is left to the engine's usual way.
    devices
        How many the engine computes on.

    Raises
    ------
    UserError
        If the folder's config is damaged, its corpus is not there or does not fit, or its device is not there.
    MachineFault
        If the disk is full or read-only; the newest checkpoint is then still whole.
    """
    config = folder.read_config()
    last = config.recipe.point_ids[-1]
    if folder.ended():
        return str(folder.points()[last]["verdict"])
    device = _device(config)
    corpus = _corpus(config, corpora_root)
    if not usable(config.kernels, config.recipe, str(folder.config_path)):
        config = replace(config, kernels=(choose or choose_kernels)(config, device))
        folder.write_config(config)
    memory = DeviceMemory(device)
    while True:
        run = _Run(folder, config, corpus, device, open_engine(config, device), devices)
        attempt = folder.start_attempt(job, run.updates)
        try:
            outcome = run.go(attempt, should_stop)
        except LockLost:
            raise
        except BaseException as error:
            with suppress(MachineFault):  # the disk that failed the run may fail this line too
                folder.end_attempt(attempt, f"{EXCEPTION}{last_line(error)}")
            if isinstance(error, _TrunkLost):
                continue
            raise
        break
    folder.end_attempt(attempt, run.why or outcome, peak_bytes=memory.peak() - run.corpus_bytes)
    if not outcome.startswith(STOPPED):
        checkpoint.free(folder.checkpoints, config.run_id, config.runtime.keep)
    return outcome


class _TrunkLost(Exception):
    """The state that a trunk was to be taken up from cannot be read; what is left of the run starts over."""


@dataclass(kw_only=True)
class _Window:
    """What has been summed since the last row, and how the last rows went; part of every checkpoint."""

    loss_sum: Tensor
    updates: int = 0
    high_rows: int = 0
    val_loss: float | None = None
    """Of the corpus's first validation set."""
    set_losses: dict[str, float] = field(default_factory=dict)
    """The last ones, by validation set."""
    evaluated: list[tuple[int, float]] = field(default_factory=list)
    """(updates along the path, ``val_loss``), so far."""
    guard: dict[str, Any] = field(default_factory=dict)
    """A :class:`trainer.guard.Guard`, as a dictionary,"""
    skipped: list[dict[str, Any]] = field(default_factory=list)
    """and the updates it has skipped since the last row."""


class _Run:
    """A run's state and the operations on it; ``step`` updates lie on the path that leads here."""

    def __init__(
        self,
        folder: RunFolder,
        config: RunConfig,
        corpus: Corpus,
        device: torch.device,
        engine: Engine,
        devices: int = 1,
    ) -> None:
        recipe = config.recipe
        self.folder, self.config, self.recipe, self.corpus, self.device = folder, config, recipe, corpus, device
        self.why = ""
        self.engine, self._devices = engine, devices
        self.optimizer = self.engine.optimizer
        self._resident = resident(corpus, device)
        self.legs, self.at = legs(recipe), 0
        """The run's legs, and the one that the next update is in."""
        self.step = self.tokens = 0
        self.window = _Window(loss_sum=torch.zeros((), dtype=torch.float64, device=device))
        self._windows: dict[str, Tensor] = {}
        self._slot: str | None = None
        self._saved_at = time.monotonic()
        self._restore()
        self._clock, self._clock_step = time.perf_counter(), self.step

    @property
    def corpus_bytes(self) -> int:
        """That the corpus takes of a GPU, where there is room: no run needs it there."""
        return 0 if self._resident is None else self._resident.bytes

    @property
    def updates(self) -> int:
        """All that the run has made, those of cooldowns counted."""
        leg = self.legs[self.at]
        return leg.before + self.step - leg.begin

    def go(self, attempt: int, should_stop: Callable[[], str | None]) -> str:
        """Train to the end, to divergence, or until asked to stop."""
        verdict = DONE
        while True:
            leg = self.legs[self.at]
            if leg.branch and self.step == leg.begin:
                self._write(TRUNK)
            outcome = self._train(leg, attempt, should_stop)
            if outcome.startswith(STOPPED):
                return outcome
            self._conclude(leg, outcome, attempt)
            if leg.branch:
                self._take_up_trunk(leg)
            elif outcome == DIVERGED:
                return outcome
            verdict = outcome
            if leg is self.legs[-1]:
                return verdict
            self.at += 1

    def _train(self, leg: Leg, attempt: int, should_stop: Callable[[], str | None]) -> str:
        """The rest of a leg, to its end, to divergence, or until asked to stop."""
        runtime, recipe, horizon = self.config.runtime, self.recipe, leg.horizon
        self._clock, self._clock_step = time.perf_counter(), self.step
        evals = {*runtime.eval_steps, *(leg.updates for leg in self.legs if leg.ends_point)}
        while self.step < leg.end:
            reason = should_stop()
            if reason:
                self._save()
                return STOPPED + reason
            factor = rate_factor(recipe.schedule, steps=horizon.steps, cooldown=horizon.cooldown_steps, step=self.step)
            lr = recipe.optim.lr * factor
            norm = self._update(lr)
            evaluated = self.updates in evals
            if evaluated or self.step % runtime.log_every == 0:
                row = self._row(leg, lr, norm, evaluated=evaluated)
                self.folder.append_metrics(row | {"attempt": attempt, "time": time.time()})
                why = self._divergence(leg, row)
                if why:
                    self.why = why
                    return DIVERGED
            if time.monotonic() - self._saved_at >= runtime.checkpoint_seconds and self.step < leg.end:
                self._save()
        if leg.ends_point and runtime.keep is not Keep.none:
            if leg.branch:
                self._write(checkpoint.branch_end(horizon.tokens))
            else:
                self._save()
        return DONE

    def _update(self, lr: float) -> Tensor:
        """One update over the batch of this step; returns the gradient's norm."""
        recipe = self.recipe
        sequence = recipe.model.sequence
        which = {"seed": recipe.seed, "index": self.step, "sequences": recipe.sequences, "sequence": sequence}
        if self._resident is None:
            batch = self._tensor(train_batch(self.corpus, **which))
        else:
            batch = self._resident.gather(window_starts(self.corpus, **which), sequence + 1)
        self.tokens += batch[:, 1:].numel()
        loss = self.engine.gradient(batch)
        self.step += 1
        if recipe.optim.guard:
            norm = self.optimizer.norm(tokens=recipe.optim.batch)
            if self._skips(float(loss) / recipe.optim.batch, float(norm)):
                return norm
        self.window.loss_sum += loss
        self.window.updates += 1
        return self.optimizer.update(lr, tokens=recipe.optim.batch)

    def _skips(self, loss: float, norm: float) -> bool:
        """Whether the guard skips the update just prepared, which it then notes for the next row."""
        guard = Guard(**self.window.guard)
        reason = guard.judge(self.recipe.optim.guard, loss, norm)
        self.window.guard = vars(guard)
        if reason is not None:
            noted = {"step": self.step - 1, "loss": finite_or_none(loss), "grad_norm": finite_or_none(norm)}
            self.window.skipped.append(noted | {"reason": reason})
        return reason is not None

    def _row(self, leg: Leg, lr: float, norm: Tensor, *, evaluated: bool) -> dict[str, Any]:
        """The row of the update just made; closes the log window."""
        batch, window = self.recipe.optim.batch, self.window
        row: dict[str, Any] = {
            "step": self.step - 1,
            "tokens": self.step * batch,
            "flops": self.recipe.model.flops(self.step * batch),
            "train_loss": float(window.loss_sum) / (window.updates * batch) if window.updates else None,
            "lr": lr,
            "grad_norm": float(norm),
            "tokens_per_second": (self.step - self._clock_step) * batch / (time.perf_counter() - self._clock),
        }
        if self.config.runtime.peak_flops:
            reached = self.recipe.model.flops(row["tokens_per_second"])
            row["mfu"] = reached / (self._devices * self.config.runtime.peak_flops)
        if len(self.legs) > 1:
            row["update"] = self.updates - 1
        if leg.branch:
            row["branch"] = leg.horizon.tokens
        if window.skipped:
            row["skipped"], window.skipped = window.skipped, []
        high = (row["train_loss"] or 0.0) > self._guessing + 1 and self.step > self.recipe.schedule.warmup_steps
        window.high_rows = window.high_rows + 1 if high else 0
        window.loss_sum.zero_()
        window.updates = 0
        if evaluated:
            window.set_losses = self._validation_losses()
            row |= validation_keys(window.set_losses)
            window.val_loss = row["val_loss"]
            window.evaluated.append((self.step, row["val_loss"]))
        self._clock, self._clock_step = time.perf_counter(), self.step
        return row

    @property
    def _guessing(self) -> float:
        """The loss of a uniform guess, nats per token."""
        return math.log(self.recipe.model.vocabulary)

    def _divergence(self, leg: Leg, row: dict[str, Any]) -> str:
        """Why the run counts as diverged after this row; empty where it does not."""
        if self.window.guard.get("in_a_row", 0) >= MOST_IN_A_ROW:
            return f"{DIVERGED}: the guard skipped {self.window.guard['in_a_row']} updates up to step {row['step']}"
        guarded = self.recipe.optim.guard and "skipped" in row  # the norm may be that of an update not made
        names = ("train_loss", *validation_keys(self.window.set_losses), *(() if guarded else ("grad_norm",)))
        for name in names:
            value = row.get(name)
            if value is not None and not math.isfinite(value):
                return f"{DIVERGED}: {name} is {row[name]} at step {row['step']}"
        if self.window.high_rows >= HIGH_ROWS:
            return f"{DIVERGED}: train_loss stayed above ln(vocabulary) + 1 up to step {row['step']}"
        if leg.ends_point and self.step == leg.end and row["val_loss"] > self._guessing + 1:
            return f"{DIVERGED}: the final val_loss is above ln(vocabulary) + 1"
        return ""

    def _validation_losses(self) -> dict[str, float]:
        """Mean cross-entropy over the fixed windows of each validation set, nats per token."""
        shape = self.recipe.model
        if not self._windows:
            count = self.recipe.data.eval_windows
            chosen = eval_windows(self.corpus, windows=count, sequence=shape.sequence)
            self._windows = {name: self._tensor(windows) for name, windows in chosen.items()}
        losses = {}
        for name, windows in self._windows.items():
            total = torch.zeros((), dtype=torch.float64, device=self.device)
            for chunk in torch.split(windows, max(1, EVAL_TOKENS // shape.sequence)):
                total += self.engine.loss(chunk)
            losses[name] = float(total) / (len(windows) * shape.sequence)
        return losses

    def _conclude(self, leg: Leg, verdict: str, attempt: int) -> None:
        """Write the final records of the points that a leg decides: that it ends with, or that its divergence takes.

        From here on they are over, whatever happens to this process.
        """
        if verdict == DIVERGED and not leg.branch:
            decided = self.recipe.horizons[self.recipe.horizons.index(leg.horizon) :]
        else:
            decided = (leg.horizon,) if leg.ends_point else ()
        if verdict == DONE and decided:
            self._check_achieved(leg)
        loss = self.window.val_loss if verdict == DONE else None
        known = self.folder.points()
        for horizon in decided:
            if horizon.point_id in known:
                continue
            record = final_record(
                self.config,
                point_id=horizon.point_id,
                tokens=self.tokens,
                loss=loss,
                verdict=verdict,
                bits_per_byte=None if loss is None else loss / math.log(2) / self.corpus.sets[0].bytes_per_token,
                validation_sets={} if loss is None else set_losses(self.corpus, self.window.set_losses),
                unique_tokens=min(self.tokens, self.corpus.train_tokens),
                flags=[] if loss is None else limits(horizon, self.window.evaluated, self.window.guard),
                attempt=attempt,
            )
            self.folder.write_point(record)

    def _check_achieved(self, leg: Leg) -> None:
        """Tokens as they were fed and FLOPs as the products of the tensors cost them, against the plan's.

        Raises
        ------
        RuntimeError
            If they are not those that were planned.
        """
        planned, shape = leg.horizon.tokens, self.recipe.model
        if self.tokens != planned:
            raise RuntimeError(f"{self.tokens} tokens were trained where the plan has {planned}")
        counted = flops_of(slots(shape, self.recipe.scaling), shape) * self.tokens
        if not math.isclose(counted, shape.flops(planned), rel_tol=1e-12):
            raise RuntimeError(f"{counted:.6g} FLOPs were spent where the plan has {shape.flops(planned):.6g}")

    def _save(self) -> None:
        """Write a checkpoint over the older slot; the time it takes counts neither as training nor to the interval."""
        began = time.perf_counter()
        folder, run_id = self.folder.checkpoints, self.config.run_id
        self._slot = checkpoint.save(folder, run_id, step=self.updates, state=self._state(), newest=self._slot)
        self._clock += time.perf_counter() - began
        self._saved_at = time.monotonic()

    def _write(self, name: str) -> None:
        """Write the state to a file of its own."""
        began = time.perf_counter()
        path = self.folder.checkpoints / name
        checkpoint.write(path, self.config.run_id, step=self.updates, state=self._state())
        self._clock += time.perf_counter() - began

    def _state(self) -> dict[str, Any]:
        optimizer, window = self.optimizer.state_dict(), vars(self.window)
        return {"optimizer": optimizer, "window": window, "leg": self.at, "tokens": self.tokens}

    def _take_up_trunk(self, leg: Leg) -> None:
        """After a cooldown: back to where it began."""
        found = next(checkpoint.valid(self.folder.checkpoints, self.config.run_id, [TRUNK]), None)
        if found is None or found.step != leg.before:
            raise _TrunkLost(f"{self.folder.checkpoints / TRUNK} is not the state before update {leg.before}")
        self._load(found)

    def _restore(self) -> None:
        """The newest state that does not lie in a cooldown that is over."""
        names = [*SLOTS, TRUNK] if len(self.legs) > 1 else SLOTS
        over = self._over()
        for found in checkpoint.valid(self.folder.checkpoints, self.config.run_id, names):
            leg = self.legs[found.state.get("leg", 0)]
            if found.slot == TRUNK or leg not in over:
                self._slot = None if found.slot == TRUNK else found.slot
                self._load(found)
                break
        while self.legs[self.at] in over:
            self.at += 1  # so that the attempt says where it really goes on, and voids no row of the cooldown

    def _over(self) -> list[Leg]:
        """The cooldowns that are recorded and have their rows, which those have not that were before a new start."""
        points = self.folder.points()
        branches = [leg for leg in self.legs if leg.branch and leg.horizon.point_id in points]
        logged = {row.get("update") for row in self.folder.metrics()} if branches else set()
        diverged = [leg for leg in branches if points[leg.horizon.point_id]["verdict"] != DONE]
        return [leg for leg in branches if leg in diverged or leg.updates - 1 in logged]

    def _load(self, found: checkpoint.Checkpoint) -> None:
        """Take up a state."""
        self.at = found.state.get("leg", 0)
        leg = self.legs[self.at]
        self.step, self.tokens = (
            found.step - leg.before + leg.begin,
            found.state.get("tokens", found.step * self.recipe.optim.batch),
        )
        self.optimizer.load_state_dict(found.state["optimizer"])
        self.window = _Window(**found.state["window"])
        self.window.loss_sum = self.window.loss_sum.to(self.device)

    def _tensor(self, tokens: Any) -> Tensor:
        tensor = torch.from_numpy(tokens)
        return tensor if self.device.type == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)


def validation_keys(losses: Mapping[str, float]) -> dict[str, float]:
    """A row's losses, by key: ``val_loss`` of the first validation set, ``val_loss_<name>`` of each further one."""
    return {f"val_loss_{name}" if number else "val_loss": loss for number, (name, loss) in enumerate(losses.items())}


def set_losses(corpus: Corpus, losses: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """What a final record says of each validation set."""
    sets = {held_out.name: held_out for held_out in corpus.sets if held_out.name in losses}
    return {
        name: {"loss": losses[name], "bits_per_byte": losses[name] / math.log(2) / held_out.bytes_per_token}
        for name, held_out in sets.items()
    }


def _device(config: RunConfig) -> torch.device:
    """The device of a run, set up so that its results repeat."""
    if config.recipe.dtype is Precision.auto:
        raise UserError(
            "model.dtype=auto is not resolved to bf16 or fp32 in this run's config; submit the sweep again."
        )
    torch.set_num_threads(config.runtime.threads)
    if config.runtime.device is DeviceKind.cuda and not torch.cuda.is_available():
        raise MachineFault(  # not the run's fault: another node may have one
            "device.kind=cuda, but torch sees no CUDA device here; run where there is one, or choose device=cpu."
        )
    return prepare_device(config.runtime.device)


def _corpus(config: RunConfig, root: Path) -> Corpus:
    corpus = open_corpus(root, config.recipe.data.corpus)
    if corpus.vocabulary > config.recipe.model.vocabulary:
        raise UserError(
            f"model.vocabulary={config.recipe.model.vocabulary} is less than the {corpus.vocabulary} tokens of corpus "
            f"{corpus.id}; plan the sweep again with that corpus."
        )
    corpus.check_windows(sequence=config.recipe.model.sequence, eval_windows=config.recipe.data.eval_windows)
    return corpus


def last_line(error: BaseException) -> str:
    """The last line of what an error says, after its kind."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
