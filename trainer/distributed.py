"""One run on several devices or nodes: every rank takes its share of each batch.

    torchrun --nproc-per-node 4 -m trainer.distributed RUN_FOLDER

or by a sweep's worker, which holds the run's lock and lends it (:mod:`trainer.under`), where the plan has
``device.per_run``. Rank 0 trains as it would alone (:func:`trainer.loop.train`), and alone has the optimiser's
state, evaluates and writes. For a gradient it sends parameters and batch to the others, which keep nothing between two
steps; the gradients come back in one sum over the flat buffer. So resuming, trunks and stopping are those of a run on
one device, and the losses differ from its by the order of a sum. Traffic is that of the usual all-reduce: the gradient
one way, the parameters the other.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from trainer import engine as engines
from trainer.config import DeviceKind
from trainer.engine import Engine
from trainer.errors import MachineFault, UserError
from trainer.lock import Lock, LockLost
from trainer.loop import last_line, train
from trainer.recipe import check_split
from trainer.runfolder import FAILED, RunConfig, RunFolder
from trainer.under import Lent

STOP, REOPEN = 0, -1
"""What rank 0 sends in place of a number of sequences."""


class RanksLost(Exception):
    """Another rank is gone."""


class LeadingEngine:
    """Rank 0's: hands out each batch and sums up what comes back."""

    def __init__(self, own: Engine, device: torch.device) -> None:
        self._own, self._device = own, device
        self.optimizer = own.optimizer  # the others' update nothing

    def gradient(self, windows: Tensor) -> Tensor:
        """As :class:`trainer.engine.Engine` says, over all ranks."""
        _header(len(windows), self._device)
        return _shared_gradient(self._own, windows)

    def loss(self, windows: Tensor) -> Tensor:
        """Rank 0's alone, so that evaluations are those of a run on one device, to the bit."""
        return self._own.loss(windows)


def follow(config: RunConfig, device: torch.device) -> None:
    """Every other rank: compute what rank 0 asks for until it stops."""
    recipe, own = config.recipe, None
    while (count := _header(None, device)) != STOP:
        if count == REOPEN:
            kernels: list[Any] = [None]
            dist.broadcast_object_list(kernels, src=0, device=device)
            own = engines.open_engine(replace(config, kernels=kernels[0]), device)
            continue
        assert own is not None
        windows = torch.empty(count, recipe.model.sequence + 1, dtype=torch.int64, device=device)
        _shared_gradient(own, windows)


def _shared_gradient(own: Engine, windows: Tensor) -> Tensor:
    """The same on every rank: parameters and windows from rank 0, the share's gradient, the sum to rank 0."""
    with _together():
        dist.broadcast(own.optimizer.params.detach().view(torch.uint8), src=0)
        dist.broadcast(windows, src=0)
    share = torch.tensor_split(windows, dist.get_world_size())[dist.get_rank()]
    loss = own.gradient(share).to(windows.device, torch.float64)
    with _together():
        dist.reduce(own.optimizer.gradient, dst=0)
        dist.reduce(loss, dst=0)
    return loss


def _header(count: int | None, device: torch.device) -> int:
    """Sent by rank 0, received by the others, who give None."""
    number = torch.tensor([STOP if count is None else count], device=device)
    with _together():
        dist.broadcast(number, src=0)
        return int(number)


@contextmanager
def _together() -> Iterator[None]:
    """Operations of all ranks: they fail where another rank is gone."""
    try:
        yield
    except RuntimeError as error:
        raise RanksLost(last_line(error)) from error


def _lead(folder: RunFolder, device: torch.device, asked: Callable[[], str | None], lent: Lent | None) -> str:
    """Train as one device would, with the others' help; they are released unless one of them is the trouble."""
    open_alone = engines.open_engine

    def open_engine(config: RunConfig, device: torch.device) -> Engine:
        _header(REOPEN, device)
        dist.broadcast_object_list([dict(config.kernels)], src=0, device=device)
        return LeadingEngine(open_alone(config, device), device)

    def go(job: str, was_lost: Callable[[], bool]) -> str:
        def check() -> None:
            if was_lost():
                raise LockLost

        def reason() -> str | None:
            check()
            return "cancelled" if folder.cancel_path.exists() else asked()

        folder.check_owner = check
        root = folder.path.parent.parent
        size = dist.get_world_size()
        choose = partial(engines.choose_kernels, devices=size)
        return train(folder, root, job=job, should_stop=reason, open_engine=open_engine, choose=choose, devices=size)

    try:
        if lent is not None:
            verdict = go(lent.job, lent.watch(folder.path))
        else:
            with Lock(folder.path, job="distributed") as lock:
                if lock is None:
                    raise UserError(f"{folder.path} is being trained by somebody else; wait, or cancel it first.")
                verdict = go("distributed", lock.was_lost)
    except (UserError, MachineFault, LockLost):
        _header(STOP, device)
        raise
    _header(STOP, device)
    return verdict


def main() -> int:
    """One rank, in the environment that torchrun, or ``sweeps.dispatch.ranks``, sets; returns its exit code."""
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda received, frame: signals.append(received))
    try:
        verdict = _work(Path(sys.argv[1]).absolute(), lambda: f"signal {signals[0]}" if signals else None)
    except RanksLost:  # that one says why
        traceback.print_exc()
        return 1
    except LockLost:
        return 1
    except (UserError, MachineFault) as error:
        sys.stderr.write(f"isoflop: {error}\n")
        return 2 if isinstance(error, UserError) else 1
    except Exception as error:
        traceback.print_exc()
        sys.stderr.write(f"isoflop: {last_line(error)}\n")
        return 1
    return int(verdict.startswith(FAILED))


def _work(path: Path, asked: Callable[[], str | None]) -> str:
    """What one rank does; returns the verdict of rank 0."""
    lent, verdict = Lent.of(os.environ), ""
    folder = RunFolder(path, lent.facts if lent is not None else {"devices": int(os.environ["WORLD_SIZE"])})
    config = folder.read_config()
    check_split(config.recipe, int(os.environ["WORLD_SIZE"]))
    gpu = config.runtime.device is DeviceKind.cuda
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.set_num_threads(config.runtime.threads)
    device = engines.prepare_device(config.runtime.device)
    with _together():
        dist.init_process_group("nccl" if gpu else "gloo")
    if dist.get_rank():
        follow(config, device)
    else:
        verdict = _lead(folder, device, asked, lent)
    dist.destroy_process_group()
    return verdict


if __name__ == "__main__":
    sys.exit(main())
