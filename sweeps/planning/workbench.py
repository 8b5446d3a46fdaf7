"""What a batch of an optimal design is chosen with, and the runs that chosen points make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sweeps.config import Config
from sweeps.paths import SweepFolder
from sweeps.planning.axes import combinations
from sweeps.planning.candidates import flops_limit
from sweeps.planning.chosen import Chosen
from sweeps.planning.cost import Experience
from sweeps.planning.ladder import ladder
from sweeps.planning.trunks import Runs, grouped
from trainer.corpus import CorpusFacts
from trainer.shape import Shape


@dataclass(frozen=True, kw_only=True, eq=False)
class Workbench:
    """What a batch is chosen with."""

    config: Config
    folder: SweepFolder
    corpus: CorpusFacts
    experience: Experience
    shapes: Sequence[Shape]
    tell: Callable[[str, float], None] = lambda message, share: None
    """Hears what is done, and the share of it."""

    @classmethod
    def of(cls, config: Config, folder: SweepFolder, corpus: CorpusFacts, experience: Experience) -> Workbench:
        """For one combination of the sweep's axes."""
        shapes = ladder(config.model, vocabulary=corpus.vocabulary, sequence=config.data.sequence)
        return cls(config=config, folder=folder, corpus=corpus, experience=experience, shapes=shapes)

    @property
    def by_hours(self) -> bool:
        """Whether the limit is one of device-hours."""
        return self.config.sweep.limit.device_hours is not None

    @property
    def combinations(self) -> int:
        """Of the sweep's axes: the design is trained so often."""
        return combinations(self.config.sweep.axes)

    @property
    def limit(self) -> float:
        """Of all batches under one combination of the sweep's axes, in its own unit."""
        hours = self.config.sweep.limit.device_hours
        most = flops_limit(self.config)
        return hours / self.combinations if hours is not None else most


def runs_of(bench: Workbench, chosen: Chosen) -> Runs:
    """The run that gives each chosen point, by target and seed."""
    runs: Runs = {}
    for batch in chosen.targets(bench.shapes):
        runs |= grouped(bench.config, batch, bench.corpus.id)[0]
    return runs
