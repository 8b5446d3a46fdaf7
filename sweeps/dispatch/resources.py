"""What each task asks the scheduler for, and which runs it gets. Pure: from planned runs to arrays of tasks.

Runs that need the same are packed into tasks (longest first, until ``pack_hours`` of work are together), and tasks that
ask for the same are one array.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

START_MINUTES = 2.0
"""Of every task, for Python and the corpus."""
LEAST_MINUTES = 10
"""The shortest limit worth asking for; limits are this times a power of two, so that tasks share arrays."""
PROCESS_GB = 1.5
"""Host memory of a worker without its run."""
MEMORY_MARGIN = 1.25


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """A run as the plan has it."""

    run_id: str
    devices: int
    hours: float
    """Device-hours."""
    memory_gb: float
    """Of all its devices together."""
    memory_factor: float = 1.0
    """Of the host's: more than 1 where that has run out before."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """What tasks may ask for at a site (see ``cluster/``)."""

    gpus: bool
    """Whether a device is a GPU; else it is a share of a node's cores and memory."""
    devices_per_node: int
    cpus_per_device: int
    memory_gb: float | None
    """Host memory per device; None: of CPU runs what the plan says, of GPU runs the site's default."""
    max_hours: float
    margin: float
    pack_hours: float
    per_device: int
    ceiling: int | None
    """Devices at once."""
    max_tasks: int | None
    """Tasks that one may have in the queue besides those of the sweep that are there."""
    max_array: int
    """Tasks of one array."""
    cpus: float = math.inf
    """Of the largest node."""
    node_memory_gb: float = math.inf
    """Of the largest node."""
    nodes: float = math.inf
    """Of the largest partition."""
    queued: int = 0
    """Tasks of the sweep that are in the queue."""


@dataclass(frozen=True, kw_only=True, order=True)
class Resources:
    """What one task has."""

    nodes: int
    devices: int
    """Per node."""
    at_once: int
    """Runs that share a device."""
    cpus: int
    """Per node; the same for each of its workers."""
    memory_gb: int | None
    """Host memory per node; None leaves it to the site."""
    minutes: int


@dataclass(frozen=True, kw_only=True)
class Array:
    """Tasks that ask for the same."""

    resources: Resources
    tasks: tuple[tuple[str, ...], ...]
    """Run ids of each, longest first."""
    throttle: int
    """Tasks at once."""
    work_minutes: float = 0.0
    """Planned, of its longest task, without the margin."""


def arrays(runs: Sequence[RunCost], site: Site) -> list[Array]:
    """The fewest arrays that give every run what it needs, within the site's limits."""
    pack_hours = site.pack_hours
    while True:
        made = _arrays(runs, replace(site, pack_hours=pack_hours))
        count = sum(len(array.tasks) for array in made)
        if site.max_tasks is None or count <= site.max_tasks or pack_hours > sum(run.hours for run in runs):
            return made
        pack_hours = max(2 * pack_hours, 0.01)  # fewer, longer tasks


def _arrays(runs: Sequence[RunCost], site: Site) -> list[Array]:
    groups: dict[Resources, list[RunCost]] = {}
    for run in sorted(runs, key=lambda run: -run.hours):
        groups.setdefault(_resources(run, site), []).append(run)
    tasks: dict[Resources, list[tuple[tuple[str, ...], float]]] = {}
    for need, members in sorted(groups.items()):
        packs = _packs(members, need, site)
        works = [work_minutes(pack, need, site) for pack in packs]
        limits = [limit(work, site.margin, site.max_hours) for work in works]
        if site.ceiling is not None:  # the arrays start one after another: as few as can be
            limits = [max(limits)] * len(limits)
        for pack, work, minutes in zip(packs, works, limits, strict=True):
            tasks.setdefault(replace(need, minutes=minutes), []).append((tuple(run.run_id for run in pack), work))
    made = []
    for need, members_of in sorted(tasks.items(), key=lambda item: -item[0].minutes):
        for first in range(0, len(members_of), site.max_array):
            part, planned = zip(*members_of[first : first + site.max_array], strict=True)
            wide = need.nodes * need.devices
            throttle = len(part) if site.ceiling is None else min(len(part), max(1, site.ceiling // wide))
            made.append(Array(resources=need, tasks=part, throttle=throttle, work_minutes=max(planned)))
    return made


def _resources(run: RunCost, site: Site) -> Resources:
    """What one run needs, but for its time."""
    nodes = math.ceil(run.devices / site.devices_per_node)
    devices = math.ceil(run.devices / nodes)
    at_once = site.per_device if run.devices == 1 else 1
    share = devices if site.gpus else devices * at_once
    if site.memory_gb is not None:
        memory: int | None = math.ceil(site.memory_gb * share)
    elif site.gpus:
        memory = None
    else:
        needed = (PROCESS_GB * devices + MEMORY_MARGIN * run.memory_gb / nodes) * at_once * run.memory_factor
        memory = _rounded(needed, site.node_memory_gb)
    workers = devices * at_once
    return Resources(
        nodes=nodes,
        devices=devices,
        at_once=at_once,
        cpus=workers * math.ceil(site.cpus_per_device * share / workers),
        memory_gb=memory,
        minutes=0,
    )


def _packs(runs: Sequence[RunCost], need: Resources, site: Site) -> list[list[RunCost]]:
    """Runs, longest first, in tasks of about ``pack_hours``; where several share a device, at least so many."""
    packs: list[list[RunCost]] = []
    hours = room = 0.0
    for run in runs:
        took = _wall_hours(run)
        if not packs or hours + took > room:
            packs.append([])
            hours, room = 0.0, max(site.pack_hours, took) * need.at_once
        packs[-1].append(run)
        hours += took
    return packs


def work_minutes(pack: Sequence[RunCost], need: Resources, site: Site) -> float:
    """Planned: a task's runs one after another; CPU runs truly at once, as no schedule is longer than this.

    Graham's bound: the mean load of a slot plus what the longest run sticks out.
    """
    hours, longest = sum(map(_wall_hours, pack)), max(map(_wall_hours, pack))
    slots = 1 if site.gpus else need.at_once
    return 60 * (hours / slots + longest * (1 - 1 / slots))


def limit(work_minutes: float, margin: float, max_hours: float) -> int:
    """The next limit of the ladder; a task that would need more than the site's longest requeues itself."""
    most = max(1, math.floor(max_hours * 60))
    found = LEAST_MINUTES
    while found < min(START_MINUTES + margin * work_minutes, most):
        found *= 2
    return min(found, most)


def _wall_hours(run: RunCost) -> float:
    return run.hours / run.devices


def _rounded(gigabytes: float, node: float) -> int:
    """Up to a power of two, so that tasks share arrays; but no further than what a node has, if that is enough."""
    power: int = 2 ** max(0, math.ceil(math.log2(gigabytes)))
    if power <= node:
        return power
    return max(math.ceil(gigabytes), math.floor(node))
