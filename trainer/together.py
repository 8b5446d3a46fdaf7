"""Runs of one shape (:mod:`trainer.alike`) that one device trains as one model.

Each run is trained by a thread of its own as it would be alone (:func:`trainer.loop.train`): folder, data, rate, guard,
checkpoints, verdict and resuming are its own. Only for gradients do they meet: who asks for one waits until all have
asked, and the last computes them as those of one stacked model. A run that ends leaves the others to themselves. Losses
are those of separate runs but for the order of sums.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trainer.adamw import FlatAdamW
from trainer.config import Precision, Way
from trainer.engine import Engine, choose_attention, free_memory, try_batches, usual
from trainer.kernels import Attention
from trainer.model import Transformer, groups, initial_params, slots
from trainer.runfolder import RunConfig
from trainer.stacked import StackedTransformer
from trainer.ways import Choice, Guarded, Recorded, Step, candidates, choose_way, compiled


class Together:
    """Where the runs meet; each has a number from 0."""

    def __init__(self, runs: int) -> None:
        self._turn = threading.Condition()
        self._runs, self._living = runs, set(range(runs))
        self._stack: _Stack | None = None
        self._asked: dict[int, Tensor] = {}
        self._answers: dict[int, Tensor | BaseException] = {}

    def choose_kernels(self, config: RunConfig, device: torch.device) -> dict[str, Any]:
        """One choice for all."""
        with self._turn:
            if self._stack is None:
                self._stack = _Stack(config, device, self._runs)
            return dict(self._stack.kernels)

    def open_engine(self, number: int) -> Callable[[RunConfig, torch.device], Engine]:
        """What makes a run's engine."""

        def open_engine(config: RunConfig, device: torch.device) -> Engine:
            with self._turn:
                if self._stack is None:
                    self._stack = _Stack(config, device, self._runs)
                return _Member(self, self._stack, number, config, device)

        return open_engine

    def gradient(self, number: int, windows: Tensor) -> Tensor:
        """The loss of a run's batch; the gradient is left in its row of the stack."""
        with self._turn:
            self._asked[number] = windows
            while number not in self._answers:
                if self._asked.keys() >= self._living:
                    self._compute()
                else:
                    self._turn.wait()
            answer = self._answers.pop(number)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def leave(self, number: int) -> None:
        """A run that has ended is waited for no longer."""
        with self._turn:
            self._living.discard(number)
            self._turn.notify_all()

    def _compute(self) -> None:
        """Answer all that have asked; what fails, fails for all of them."""
        assert self._stack is not None
        numbers = sorted(self._asked)
        try:
            losses = self._stack.gradient(numbers, torch.stack([self._asked[number] for number in numbers]))
            self._answers.update(zip(numbers, losses, strict=True))
        except Exception as error:
            self._answers.update(dict.fromkeys(numbers, error))
        self._asked.clear()
        self._turn.notify_all()


class _Stack:
    """The parameters and gradients of all runs, a row each."""

    def __init__(self, config: RunConfig, device: torch.device, runs: int) -> None:
        recipe = config.recipe
        size = runs, recipe.model.params_total
        dtype = torch.bfloat16 if recipe.dtype is Precision.bf16 else torch.float32
        self.kernels = dict(config.kernels) or choose_attention(config, device)
        self.master = torch.zeros(size, device=device)
        self.gradients = torch.zeros(size, device=device)
        self.params = self.master if dtype is torch.float32 else torch.zeros(size, dtype=dtype, device=device)
        self._recipe, self._micro_batch = recipe, config.runtime.micro_batch or recipe.sequences
        self._sizes = [slot.params for slot in slots(recipe.model, recipe.scaling)]
        if not config.kernels and candidates(config.runtime.way, device):
            choice = self._choose_way(config)
            self.kernels |= {"way": choice.way.value, "tried": choice.tried}
        self._step: tuple[list[int], Step] | None = None

    def gradient(self, numbers: list[int], windows: Tensor) -> Tensor:
        """(n,) the losses of windows (n, B, T + 1) of these runs; their gradients are left in their rows."""
        if self._step is None or self._step[0] != numbers:
            self._step = None  # a graph holds memory that the next one needs
            way = Way(self.kernels.get("way", Way.eager))
            step = self.step(Way.eager, numbers)
            self._step = numbers, step if way is Way.eager else Guarded(self.step(way, numbers), step, way)
        return self._step[1](windows)

    def step(self, way: Way, numbers: list[int] | None = None) -> Step:
        """What computes the gradients of these runs, or all, in a way."""
        chosen = range(len(self.params)) if numbers is None else numbers
        every = len(chosen) == len(self.params)
        rows = torch.tensor(chosen, device=self.params.device)
        params = self.params if every else self.params[rows]
        gradients = self.gradients if every else torch.zeros_like(self.gradients[: len(chosen)])
        model = self._model(params, plain=way.compiles)
        losses_of: Step = compiled(model.losses) if way.compiles else model.losses

        def step(windows: Tensor) -> Tensor:
            if not every:
                torch.index_select(self.params, 0, rows, out=params)
            total = torch.zeros(len(windows), dtype=torch.float64, device=windows.device)
            for part, chunk in enumerate(torch.split(windows, self._micro_batch, 1)):
                losses = losses_of(chunk)
                own = model.gradient(losses.sum())
                for place, gradient in zip(torch.split(gradients, self._sizes, 1), own, strict=True):
                    if part == 0:
                        place.copy_(gradient.flatten(1))
                    else:
                        place.add_(gradient.flatten(1))
                total += losses.detach()
            if not every:
                for number, gradient in zip(chosen, gradients, strict=True):
                    self.gradients[number].copy_(gradient)
            return total

        return Recorded(step) if way.records else step

    def _choose_way(self, config: RunConfig) -> Choice:
        """Try the ways on the stack itself, every member at the first one's start."""
        recipe, device = config.recipe, self.params.device
        start = initial_params(recipe.model, recipe.seed, recipe.scaling).to(device)
        self.params.copy_(start.expand_as(self.params))
        size = (len(self.master), recipe.sequences, recipe.model.sequence + 1)
        batches = try_batches(size, recipe.model.vocabulary, device)
        wanted, dtype = config.runtime.way, recipe.dtype
        choice = choose_way(wanted, self.step, batches, self.gradients, self._sizes, dtype, recipe.updates)
        free_memory(device)
        return choice

    def _model(self, params: Tensor, *, plain: bool = False) -> StackedTransformer:
        recipe, attention = self._recipe, Attention(self.kernels.get("attention", usual(self._recipe.dtype)))
        return StackedTransformer(recipe.model, params, attention, recipe.scaling, recipe.optim.z_loss, plain=plain)


class _Member:
    """One run's engine."""

    def __init__(self, together: Together, stack: _Stack, number: int, config: RunConfig, device: torch.device) -> None:
        recipe = config.recipe
        stack.master[number] = initial_params(recipe.model, recipe.seed, recipe.scaling).to(device)
        self._together, self._number = together, number
        self.optimizer = FlatAdamW(
            stack.master[number],
            recipe.optim,
            groups=groups(slots(recipe.model, recipe.scaling)),
            dtype=stack.params.dtype,
            rows=(stack.gradients[number], stack.params[number]),
        )
        attention = Attention(stack.kernels["attention"])
        self._alone = Transformer(recipe.model, self.optimizer.params, attention, recipe.scaling)

    def gradient(self, windows: Tensor) -> Tensor:
        """As :class:`trainer.engine.Engine` says, with all runs that are trained together."""
        return self._together.gradient(self._number, windows)

    def loss(self, windows: Tensor) -> Tensor:
        """The run's own model alone, so that evaluations are those of a separate run."""
        with torch.no_grad():
            return self._alone.loss(windows)
