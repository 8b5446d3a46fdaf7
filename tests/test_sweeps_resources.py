"""From planned runs to arrays: everything once, enough of everything, within every limit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.dispatch.resources import START_MINUTES, Array, Resources, RunCost, Site, arrays, work_minutes
from sweeps.dispatch.to_slurm import throttled

SITE = Site(
    gpus=True,
    devices_per_node=8,
    cpus_per_device=12,
    memory_gb=None,
    max_hours=24,
    margin=1.5,
    pack_hours=0.25,
    per_device=1,
    ceiling=None,
    max_tasks=None,
    max_array=1000,
)

runs = st.lists(
    st.builds(
        RunCost,
        run_id=st.uuids().map(str),
        devices=st.sampled_from([1, 1, 1, 2, 8, 24]),
        hours=st.floats(1e-4, 500),
        memory_gb=st.floats(0.01, 500),
    ),
    min_size=1,
    max_size=60,
    unique_by=lambda run: run.run_id,
)
sites = st.builds(
    Site,
    gpus=st.booleans(),
    devices_per_node=st.sampled_from([1, 4, 8]),
    cpus_per_device=st.integers(1, 16),
    memory_gb=st.none() | st.floats(1, 200),
    max_hours=st.floats(0.02, 72),
    margin=st.floats(1, 3),
    pack_hours=st.sampled_from([0, 0.25, 4]),
    per_device=st.integers(1, 4),
    ceiling=st.none() | st.integers(24, 200),
    max_tasks=st.none() | st.integers(40, 100),
    max_array=st.integers(3, 1000),
)


def run(name: str, hours: float, devices: int = 1, memory_gb: float = 1.0) -> RunCost:
    return RunCost(run_id=name, devices=devices, hours=hours, memory_gb=memory_gb)


@given(runs, sites)
def test_every_run_once_with_what_it_needs(costs: list[RunCost], site: Site) -> None:
    made = arrays(costs, site)
    known = {cost.run_id: cost for cost in costs}
    placed = [name for array in made for task in array.tasks for name in task]
    assert sorted(placed) == sorted(known)
    for array in made:
        need = array.resources
        assert 0 < len(array.tasks) <= site.max_array
        assert 1 <= array.throttle <= len(array.tasks)
        assert 1 <= need.minutes <= max(1, site.max_hours * 60)
        if site.ceiling is not None:
            assert array.throttle * need.nodes * need.devices <= site.ceiling
        for task in array.tasks:
            members = [known[name] for name in task]
            assert all(need.nodes * need.devices >= member.devices for member in members)
            assert need.devices <= site.devices_per_node
            assert need.cpus % (need.devices * need.at_once) == 0, "the same for every worker"
            if not site.gpus and site.memory_gb is None:
                assert need.memory_gb is not None
                assert all(need.memory_gb >= need.at_once * m.memory_gb / need.nodes for m in members)
            enough = START_MINUTES + site.margin * work_minutes(members, need, site) <= need.minutes
            assert enough or need.minutes == max(1, int(site.max_hours * 60)), "longer ones requeue themselves"


@given(st.lists(st.floats(0.001, 3), min_size=1, max_size=30), st.integers(1, 5))
def test_no_schedule_of_a_task_outlasts_its_limit(hours: list[float], at_once: int) -> None:
    """Workers that take the next run when they are free, whatever the order."""
    site = replace(SITE, gpus=False, per_device=at_once, margin=1.0)
    costs = [run(str(number), length) for number, length in enumerate(hours)]
    need = arrays(costs, site)[0].resources
    free = [0.0] * at_once
    for length in hours:
        free[free.index(min(free))] += length
    assert max(free) * 60 <= START_MINUTES + site.margin * work_minutes(costs, need, site)


def test_small_runs_share_tasks_and_equal_tasks_share_an_array() -> None:
    costs = [run(f"r{number}", 0.1) for number in range(10)] + [run("long", 3.0)]
    packed = arrays(costs, SITE)
    assert [len(task) for array in packed for task in array.tasks] == [1, 2, 2, 2, 2, 2]
    apart = arrays(costs, replace(SITE, pack_hours=0))
    assert sorted(len(array.tasks) for array in apart) == [1, 10]
    assert [array.resources.minutes for array in apart] == [320, 20], "3 h and 6 min, with the margin, on the ladder"


def test_several_runs_share_a_device() -> None:
    (array,) = arrays([run(f"r{number}", 1.0) for number in range(8)], replace(SITE, per_device=4))
    assert array.tasks == (("r0", "r1", "r2", "r3"), ("r4", "r5", "r6", "r7"))
    assert array.resources.at_once == 4
    assert array.resources.devices == 1


@pytest.mark.parametrize(("devices", "nodes", "per_node"), [(1, 1, 1), (8, 1, 8), (9, 2, 5), (16, 2, 8)])
def test_large_runs_take_nodes(devices: int, nodes: int, per_node: int) -> None:
    (array,) = arrays([run("large", 160.0, devices)], SITE)
    assert (array.resources.nodes, array.resources.devices) == (nodes, per_node)
    assert array.resources.cpus == 12 * per_node


def test_hours_of_many_devices_pass_together() -> None:
    (array,) = arrays([run("large", 16.0, 16)], SITE)
    assert array.resources.minutes == 160, "an hour, half as much again, and the ladder"


def test_a_run_beyond_the_longest_limit_gets_the_longest() -> None:
    (array,) = arrays([run("week", 168.0)], SITE)
    assert array.resources.minutes == 24 * 60


def test_a_limit_on_tasks_packs_more() -> None:
    costs = [run(f"r{number}", 1.0) for number in range(100)]
    assert sum(len(array.tasks) for array in arrays(costs, replace(SITE, max_tasks=30))) <= 30


def test_arrays_are_split_where_the_site_says() -> None:
    made = arrays([run(f"r{number}", 1.0) for number in range(25)], replace(SITE, max_array=10))
    assert [len(array.tasks) for array in made] == [10, 10, 5]


def array(devices: int, tasks: int, throttle: int) -> Array:
    need = Resources(nodes=1, devices=devices, at_once=1, cpus=1, memory_gb=None, minutes=10)
    return Array(resources=need, tasks=tuple((str(number),) for number in range(tasks)), throttle=throttle)


def test_arrays_under_a_ceiling_wait_for_those_before() -> None:
    made, waits = throttled([array(1, 100, 64), array(8, 10, 8)], 24, ["7"])
    assert [one.throttle for one in made] == [24, 8]
    assert waits == ["", "afterany:7:{0}"]
    _, waits = throttled([array(8, 10, 8)], 4, ["7", "9"])
    assert waits == ["afterany:7:9"]
    made, waits = throttled([array(8, 10, 10)], None, ["7"])
    assert (made[0].throttle, waits) == (10, [""])


def test_memory_is_rounded_up_but_not_beyond_a_node_that_is_enough() -> None:
    site = replace(SITE, gpus=False, devices_per_node=1, node_memory_gb=187.0)
    asked = {gb: arrays([run("a", 1, memory_gb=gb)], site)[0].resources.memory_gb for gb in (10, 103, 148, 200)}
    assert asked == {10: 16, 103: 187, 148: 187, 200: 252}, "the last is refused by what it truly needs"
    (twice,) = arrays([replace(run("a", 1, memory_gb=10), memory_factor=2)], site)
    assert twice.resources.memory_gb == 32
