"""Hand missing points to SLURM: from the plan to arrays with their resources, limits, order and snapshot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sweeps.config import Config
from sweeps.dispatch.backlog import Backlog
from sweeps.dispatch.jobs import SLURM
from sweeps.dispatch.resources import Array, RunCost, Site, arrays
from sweeps.dispatch.sbatch import submit_arrays
from sweeps.dispatch.site import check_arrays, find_site
from sweeps.dispatch.snapshot import take
from sweeps.paths import SweepFolder
from sweeps.planning.points import PlannedPoint, run_hours

UNMEASURED = 4.0
"""How far a plan may be off before anything has been measured."""


@dataclass(frozen=True, kw_only=True)
class Dispatch:
    """A submission whose checks have passed; nothing is written or submitted before :meth:`start`."""

    config: Config
    folder: SweepFolder
    costs: dict[str, RunCost]
    site: Site
    free: int | None
    """Devices that the ceiling leaves; None without one."""
    before: Sequence[str]
    """Ids of the arrays whose devices count against the ceiling."""

    @classmethod
    def prepare(
        cls, config: Config, folder: SweepFolder, missing: Sequence[PlannedPoint], backlog: Backlog
    ) -> Dispatch:
        """Check everything that can be checked before anything is written.

        Raises
        ------
        UserError
            If the site would refuse the tasks, or never start them.
        MachineFault
            If SLURM does not answer.
        """
        queued = [task for task in backlog.living if backlog.jobs[task.job].executor == SLURM]
        site = find_site(config, folder.root)
        if site.max_tasks is not None:
            site = replace(site, max_tasks=site.max_tasks - len(queued))
        hours = run_hours(missing)
        costs = {
            run: RunCost(
                run_id=run,
                devices=point.devices,
                hours=hours[run],
                memory_gb=point.memory_gb * config.device.together,
            )
            for run, point in {point.run.run_id: point for point in missing}.items()
        }
        check_arrays(arrays(list(costs.values()), site), site)
        used = 0
        for path, living in Counter(task.job for task in queued).items():
            job = backlog.jobs[path]
            used += min(living, job.throttle) * job.resources["nodes"] * job.resources["devices"]
        return cls(
            config=config,
            folder=folder,
            costs=costs,
            site=site,
            free=None if site.ceiling is None else site.ceiling - used,
            before=[job.job_id for path in {task.job for task in queued} if (job := backlog.jobs[path]).job_id],
        )

    def start(self, runs: Sequence[str], *, canary: bool) -> list[Path]:
        """Submit the runs; with ``canary`` the cheapest goes first, if the config says so."""
        costs = [self.costs[run] for run in runs]
        first: list[Array] = []
        if canary and self.config.cluster.canary and len(costs) > 1:
            cheapest = min(costs, key=lambda run: run.hours)
            costs.remove(cheapest)
            first = arrays([cheapest], self.site)
        if not costs:
            return []
        # Nothing of the sweep has been measured: ask for plenty, which the canary's speed then lowers.
        site = replace(self.site, margin=self.site.margin * UNMEASURED) if first else self.site
        return self._submit(first, arrays(costs, site))

    def _submit(self, first: list[Array], rest: list[Array]) -> list[Path]:
        every, waits = throttled([*first, *rest], self.free, self.before)
        if first:
            waits = [waits[0], *(",".join(filter(None, ["afterok:{0}", wait])) for wait in waits[1:])]
        return submit_arrays(self.config, self.folder, every, take(self.folder), waits, canary=bool(first))


def throttled(made: Sequence[Array], free: int | None, before: Sequence[str]) -> tuple[list[Array], list[str]]:
    """Arrays, and what each waits for, so that no more than the ceiling's devices are ever in use.

    The first one starts at once on what is ``free``; every other after those before it have ended.
    """
    if free is None:
        return list(made), [""] * len(made)
    limited, waits = [], []
    for number, array in enumerate(made):
        wide = array.resources.nodes * array.resources.devices
        earlier = [*before, *(f"{{{earlier}}}" for earlier in range(number))]
        if number == 0 and free >= wide:
            array, earlier = replace(array, throttle=min(array.throttle, free // wide)), []
        limited.append(array)
        waits.append(f"afterany:{':'.join(earlier)}" if earlier else "")
    return limited, waits
