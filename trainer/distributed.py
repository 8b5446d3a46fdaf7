"""One run on several devices or nodes: every rank takes its share of each batch.

    torchrun --nproc-per-node 4 -m trainer.distributed RUN_FOLDER

Rank 0 trains as it would alone (:func:`trainer.loop.train`), holds the folder's lock, and alone has the optimiser's
state, evaluates and writes. For a gradient it sends parameters and batch to the others, which keep nothing between two
steps; the gradients come back in one sum over the flat buffer. So resuming, trunks and stopping are those of a run on
one device, and the losses differ from its by the order of a sum. Traffic is that of the usual all-reduce: the gradient
one way, the parameters the other.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
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
from trainer.loop import train
from trainer.runfolder import FAILED, RunConfig, RunFolder

STOP, REOPEN = 0, -1
"""What rank 0 sends in place of a number of sequences."""


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


def check_split(config: RunConfig, ranks: int) -> None:
    """Refuse a batch that cannot be split.

    Raises
    ------
    UserError
        If the batch's sequences are no multiple of ``ranks``.
    """
    sequences = config.recipe.sequences
    if sequences % ranks:
        raise UserError(
            f"optim.batch={config.recipe.optim.batch} is {sequences} sequences, which cannot be split over {ranks} "
            "devices evenly; start a number of processes that divides it, or plan with another batch."
        )


def _shared_gradient(own: Engine, windows: Tensor) -> Tensor:
    """The same on every rank: parameters and windows from rank 0, the share's gradient, the sum to rank 0."""
    dist.broadcast(own.optimizer.params.detach().view(torch.uint8), src=0)
    dist.broadcast(windows, src=0)
    share = torch.tensor_split(windows, dist.get_world_size())[dist.get_rank()]
    loss = own.gradient(share).to(windows.device, torch.float64)
    dist.reduce(own.optimizer.gradient, dst=0)
    dist.reduce(loss, dst=0)
    return loss


def _header(count: int | None, device: torch.device) -> int:
    """Sent by rank 0, received by the others, who give None."""
    number = torch.tensor([STOP if count is None else count], device=device)
    dist.broadcast(number, src=0)
    return int(number)


def _lead(folder: RunFolder, device: torch.device, asked: Callable[[], str | None]) -> str:
    """Train as one device would, with the others' help; they are released however it ends."""
    open_alone = engines.open_engine

    def open_engine(config: RunConfig, device: torch.device) -> Engine:
        _header(REOPEN, device)
        dist.broadcast_object_list([dict(config.kernels)], src=0, device=device)
        return LeadingEngine(open_alone(config, device), device)

    try:
        with Lock(folder.path, job="distributed") as lock:
            if lock is None:
                raise UserError(f"{folder.path} is being trained by somebody else; wait, or cancel it first.")

            def reason() -> str | None:
                if lock.was_lost():
                    raise LockLost
                return "cancelled" if folder.cancel_path.exists() else asked()

            root = folder.path.parent.parent
            return train(folder, root, job="distributed", should_stop=reason, open_engine=open_engine)
    finally:
        _header(STOP, device)


def main() -> int:
    """One rank, in the environment that torchrun, or ``sweeps.dispatch.ranks`` under srun, sets."""
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda received, frame: signals.append(received))
    try:
        folder = RunFolder(Path(sys.argv[1]).absolute())
        config = folder.read_config()
        check_split(config, int(os.environ["WORLD_SIZE"]))
        gpu = config.runtime.device is DeviceKind.cuda
        if gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.set_num_threads(config.runtime.threads)
        device = torch.device(config.runtime.device.value)
        dist.init_process_group("nccl" if gpu else "gloo")
        if dist.get_rank():
            follow(config, device)
            verdict = ""
        else:
            verdict = _lead(folder, device, lambda: f"signal {signals[0]}" if signals else None)
        dist.destroy_process_group()
    except (UserError, MachineFault) as error:
        sys.stderr.write(f"isoflop: {error}\n")
        return 2 if isinstance(error, UserError) else 1
    return int(verdict.startswith(FAILED))


if __name__ == "__main__":
    sys.exit(main())
