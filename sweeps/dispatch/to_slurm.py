"""Hand missing points to SLURM: from the plan to arrays with their resources, limits, order and snapshot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sweeps.config import Config
from sweeps.dispatch.backlog import Backlog
from sweeps.dispatch.jobs import SLURM, Task
from sweeps.dispatch.resources import Array, RunCost, Site, arrays
from sweeps.dispatch.sbatch import submit_arrays
from sweeps.dispatch.site import check_arrays, find_site
from sweeps.dispatch.snapshot import take
from sweeps.paths import SweepFolder
from sweeps.planning.points import PlannedPoint, run_hours
from trainer.runfolder import OOM, RunFolder

UNMEASURED = 4.0
"""How far a plan may be off before anything has been measured."""


@dataclass(frozen=True, kw_only=True)
class Dispatch:
    """A submission whose checks have passed; nothing is written or submitted before :meth:`start`."""

    config: Config
    folder: SweepFolder
    costs: dict[str, RunCost]
    site: Site
    first: Sequence[Array]
    """The canary's."""
    free: int | None
    """Devices that the ceiling leaves; None without one."""
    before: Sequence[str]
    """Ids of the arrays whose devices count against the ceiling."""

    @classmethod
    def prepare(
        cls, config: Config, folder: SweepFolder, missing: Sequence[PlannedPoint], backlog: Backlog, *, canary: bool
    ) -> Dispatch:
        """Check everything that can be checked before anything is written.

        Parameters
        ----------
        canary
            The cheapest run goes first, if the config says so.

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
            site = replace(site, max_tasks=site.max_tasks - len(queued), queued=len(queued))
        hours = run_hours(missing)
        costs = {
            run: RunCost(
                run_id=run,
                devices=point.devices,
                hours=hours[run],
                memory_gb=point.memory_gb * point.run.runtime.together,
                memory_factor=2.0 ** _times_out_of_memory(folder.run(run)),
            )
            for run, point in {point.run.run_id: point for point in missing}.items()
        }
        first: list[Array] = []
        rest = dict(costs)
        if canary and config.cluster.canary and len(costs) > 1:
            cheapest = min(costs.values(), key=lambda run: run.hours)
            first = arrays([rest.pop(cheapest.run_id)], site)
            # Nothing of the sweep has been measured: ask for plenty, which the canary's speed then lowers.
            most = None if site.max_tasks is None else site.max_tasks - 1
            site = replace(site, max_tasks=most, queued=site.queued + 1, margin=site.margin * UNMEASURED)
        for part in (first, arrays(list(rest.values()), site)):
            check_arrays(part, site)
        used = 0
        for path, living in Counter(task.job for task in queued).items():
            job = backlog.jobs[path]
            used += min(living, job.throttle) * job.resources["nodes"] * job.resources["devices"]
        return cls(
            config=config,
            folder=folder,
            costs=costs,
            site=site,
            first=first,
            free=None if site.ceiling is None else site.ceiling - used,
            before=list(dict.fromkeys(filter(None, (_array_id(task, backlog) for task in queued)))),
        )

    def start(self, runs: Sequence[str]) -> list[Path]:
        """Submit the runs, those that nobody else has claimed meanwhile."""
        ours = set(runs)
        first = [array for array in self.first if ours.issuperset(*array.tasks)]
        ahead = {run for array in first for task in array.tasks for run in task}
        costs = [self.costs[run] for run in runs if run not in ahead]
        if not costs and not first:
            return []
        return self._submit(first, arrays(costs, self.site))

    def _submit(self, first: list[Array], rest: list[Array]) -> list[Path]:
        every, waits = throttled([*first, *rest], self.free, self.before)
        if first:
            waits = [waits[0], *(",".join(filter(None, ["afterok:{0}", wait])) for wait in waits[1:])]
        return submit_arrays(self.config, self.folder, every, take(self.folder), waits, canary=bool(first))


def _array_id(task: Task, backlog: Backlog) -> str | None:
    """SLURM's id of a task's array; from the queue where its submitter did not live to write it down."""
    known = backlog.jobs[task.job].job_id
    return known if known is not None or task.seen is None else task.seen.id.partition("_")[0]


def _times_out_of_memory(run: RunFolder) -> int:
    return sum(OOM in str(attempt.get("why", "")) for attempt in run.attempts())


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
