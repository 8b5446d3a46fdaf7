"""One training run, from wherever its folder stands to its final record.

A run is a function of its recipe: batch i depends on (seed, i) alone, and a checkpoint holds everything else, the
half-summed log window included. So a run that was killed any number of times writes the rows, and ends at the loss, of
one that was not, bit by bit (same processor, threads and torch).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer import checkpoint
from trainer.batches import eval_windows, train_batch
from trainer.config import DeviceKind, Keep, Precision
from trainer.corpus import Corpus, open_corpus
from trainer.engine import choose_kernels, open_engine, usable
from trainer.errors import MachineFault, UserError
from trainer.lock import LockLost
from trainer.runfolder import DIVERGED, DONE, RunConfig, RunFolder, final_record
from trainer.schedule import rate_factor
from trainer.tracking import Tracker, open_tracker, summary_of

EVAL_TOKENS = 4096
"""Tokens per forward pass of an evaluation, whatever the batch, so that its sum does not depend on how one trains."""
HIGH_ROWS = 5
"""A run has diverged when this many rows in a row, after warm-up, lie above ln(V) + 1: a nat worse than guessing."""
STOPPED = "stopped: "
"""What :func:`train` returns for a run that was asked to stop is this plus the reason."""


def train(
    folder: RunFolder, corpora_root: Path, *, job: str = "", should_stop: Callable[[], str | None] = lambda: None
) -> str:
    """Train the run of a folder to its end and return its verdict; ``stopped: <reason>`` if asked to stop first.

    The caller holds the folder's lock. A run that has its final record is left untouched. Verdicts: ``done``;
    ``diverged``, where the loss or gradient is not finite, or stays a nat above ln(vocabulary).

    Parameters
    ----------
    corpora_root
        The root under which :func:`trainer.corpus.open_corpus` finds the corpus.
    job
        The scheduler's name for this job, for the record.
    should_stop
        Asked before every update; a reason makes the run save its state and return.

    Raises
    ------
    UserError
        If the folder's config is damaged, its corpus is not there or does not fit, or its device is not there.
    MachineFault
        If the disk is full or read-only; the newest checkpoint is then still whole.
    """
    config = folder.read_config()
    known = folder.points().get(config.run_id)
    if known is not None:
        return str(known["verdict"])
    device = _device(config)
    corpus = _corpus(config, corpora_root)
    config = _tuned(folder, config, device)
    run = _Run(folder, config, corpus, device)
    attempt = folder.start_attempt(job, run.step)
    tracker = open_tracker(folder.path, config, attempt=attempt, job=job)
    try:
        outcome = run.go(attempt, tracker, should_stop)
    except LockLost:
        tracker.finish(False)
        raise
    except BaseException as error:
        with suppress(MachineFault):  # the disk that failed the run may fail this line too
            folder.end_attempt(attempt, f"exception: {_last_line(error)}")
        tracker.finish(False)
        raise
    folder.end_attempt(attempt, run.why or outcome)
    tracker.finish(not outcome.startswith(STOPPED))
    if not outcome.startswith(STOPPED):
        checkpoint.free(folder.checkpoints, config.run_id, config.runtime.keep)
    return outcome


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


class _Run:
    """A run's state and the operations on it; ``step`` updates have been made."""

    def __init__(self, folder: RunFolder, config: RunConfig, corpus: Corpus, device: torch.device) -> None:
        recipe = config.recipe
        self.folder, self.config, self.recipe, self.corpus, self.device = folder, config, recipe, corpus, device
        self.why = ""
        self.engine = open_engine(config, device)
        self.optimizer = self.engine.optimizer
        self.step = 0
        self.window = _Window(loss_sum=torch.zeros((), dtype=torch.float64, device=device))
        self._windows: dict[str, Tensor] = {}
        self._slot: str | None = None
        self._saved_at = time.monotonic()
        self._restore()
        self._clock = time.perf_counter()
        self._clock_step = self.step

    def go(self, attempt: int, tracker: Tracker, should_stop: Callable[[], str | None]) -> str:
        """Train to the end, to divergence, or until asked to stop."""
        runtime, recipe = self.config.runtime, self.recipe
        evals = {*runtime.eval_steps, recipe.steps}
        while self.step < recipe.steps:
            reason = should_stop()
            if reason:
                self._save()
                return STOPPED + reason
            lr = recipe.optim.lr * rate_factor(recipe.schedule, steps=recipe.steps, step=self.step)
            norm = self._update(lr)
            evaluated = self.step in evals
            if evaluated or self.step % runtime.log_every == 0:
                row = self._row(lr, norm, evaluated=evaluated)
                self.folder.append_metrics(row | {"attempt": attempt, "time": time.time()})
                tracker.log(row)
                self.why = self._divergence(row)
                if self.why:
                    return self._conclude(DIVERGED, None, attempt, tracker)
            if time.monotonic() - self._saved_at >= runtime.checkpoint_seconds and self.step < recipe.steps:
                self._save()
        if runtime.keep is not Keep.none:
            self._save()
        return self._conclude(DONE, self.window.val_loss, attempt, tracker)

    def _update(self, lr: float) -> Tensor:
        """One update over the batch of this step; returns the gradient's norm."""
        recipe = self.recipe
        batch = self._tensor(
            train_batch(
                self.corpus,
                seed=recipe.seed,
                index=self.step,
                sequences=recipe.sequences,
                sequence=recipe.model.sequence,
            )
        )
        self.window.loss_sum += self.engine.gradient(batch)
        self.window.updates += 1
        self.step += 1
        return self.optimizer.update(lr, tokens=recipe.optim.batch)

    def _row(self, lr: float, norm: Tensor, *, evaluated: bool) -> dict[str, Any]:
        """The row of the update just made; closes the log window."""
        batch, window = self.recipe.optim.batch, self.window
        row: dict[str, Any] = {
            "step": self.step - 1,
            "tokens": self.step * batch,
            "flops": self.recipe.model.flops(self.step * batch),
            "train_loss": float(window.loss_sum) / (window.updates * batch),
            "lr": lr,
            "grad_norm": float(norm),
            "tokens_per_second": (self.step - self._clock_step) * batch / (time.perf_counter() - self._clock),
        }
        high = row["train_loss"] > self._guessing + 1 and self.step > self.recipe.schedule.warmup_steps
        window.high_rows = window.high_rows + 1 if high else 0
        window.loss_sum.zero_()
        window.updates = 0
        if evaluated:
            window.set_losses = self._validation_losses()
            row |= validation_keys(window.set_losses)
            window.val_loss = row["val_loss"]
        self._clock, self._clock_step = time.perf_counter(), self.step
        return row

    @property
    def _guessing(self) -> float:
        """The loss of a uniform guess, nats per token."""
        return math.log(self.recipe.model.vocabulary)

    def _divergence(self, row: dict[str, Any]) -> str:
        """Why the run counts as diverged after this row; empty where it does not."""
        for name in ("train_loss", "grad_norm", *validation_keys(self.window.set_losses)):
            if not math.isfinite(row.get(name, 0.0)):
                return f"{DIVERGED}: {name} is {row[name]} at step {row['step']}"
        if self.window.high_rows >= HIGH_ROWS:
            return f"{DIVERGED}: train_loss stayed above ln(vocabulary) + 1 up to step {row['step']}"
        if self.step == self.recipe.steps and row["val_loss"] > self._guessing + 1:
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

    def _conclude(self, verdict: str, loss: float | None, attempt: int, tracker: Tracker) -> str:
        """Write the final record: from here on the run is over, whatever happens to this process."""
        tokens = self.step * self.recipe.optim.batch
        sets = {} if loss is None else set_losses(self.corpus, self.window.set_losses)
        record = final_record(
            self.config,
            point_id=self.config.run_id,
            tokens=tokens,
            loss=loss,
            verdict=verdict,
            bits_per_byte=None if loss is None else loss / math.log(2) / self.corpus.sets[0].bytes_per_token,
            validation_sets=sets,
            unique_tokens=min(tokens, self.corpus.train_tokens),
            attempt=attempt,
        )
        self.folder.write_point(record)
        tracker.summary(summary_of(record))
        return verdict

    def _save(self) -> None:
        """Write a checkpoint over the older slot; the time it takes counts neither as training nor to the interval."""
        began = time.perf_counter()
        state = {"optimizer": self.optimizer.state_dict(), "window": vars(self.window)}
        folder, run_id = self.folder.checkpoints, self.config.run_id
        self._slot = checkpoint.save(folder, run_id, step=self.step, state=state, newest=self._slot)
        self._clock += time.perf_counter() - began
        self._saved_at = time.monotonic()

    def _restore(self) -> None:
        found = checkpoint.newest(self.folder.checkpoints, self.config.run_id)
        if found is None:
            return
        self._slot, self.step = found.slot, found.step
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
    if config.runtime.device is DeviceKind.cuda:
        if not torch.cuda.is_available():
            raise UserError(
                "device.kind=cuda, but torch sees no CUDA device here; run where there is one, or choose device=cpu."
            )
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    return torch.device(config.runtime.device.value)


def _corpus(config: RunConfig, root: Path) -> Corpus:
    corpus = open_corpus(root, config.recipe.data.corpus)
    if corpus.vocabulary > config.recipe.model.vocabulary:
        raise UserError(
            f"model.vocabulary={config.recipe.model.vocabulary} is less than the {corpus.vocabulary} tokens of corpus "
            f"{corpus.id}; plan the sweep again with that corpus."
        )
    corpus.check_windows(sequence=config.recipe.model.sequence, eval_windows=config.recipe.data.eval_windows)
    return corpus


def _tuned(folder: RunFolder, config: RunConfig, device: torch.device) -> RunConfig:
    """The config with its kernels chosen: at the first attempt by trying, later as written."""
    if usable(config.kernels, config.recipe, str(folder.config_path)):
        return config
    config = replace(config, kernels=choose_kernels(config, device))
    folder.write_config(config)
    return config


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
