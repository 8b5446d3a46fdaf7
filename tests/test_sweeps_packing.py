"""How many runs of one shape the plan puts together on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Answer
from trainer_runs import make_run, rows, small_corpus, small_shape

from sweeps.dispatch.execute import ShouldStop
from sweeps.dispatch.worker import Worker
from sweeps.planning.cost import Experience, Ran, step_memory
from sweeps.planning.packing import KERNEL_SECONDS, LAYER_KERNELS, MOST, filling, packing_text, runs_together
from trainer.config import DeviceConfig, DeviceKind, Precision
from trainer.runfolder import RunConfig

H100 = DeviceConfig(
    kind=DeviceKind.cuda, name="h100", flops_per_second=989e12, utilisation=0.4, memory_gb=80, together=0
)
PLAN = ["sweep=smoke", "device=h100", "format=json"]


def never() -> str | None:
    return None


@pytest.fixture
def runs(tmp_path: Path) -> list[RunConfig]:
    """Three seeds of one shape and one of another."""
    corpus = small_corpus(tmp_path)
    common = {"device": DeviceKind.cuda, "dtype": Precision.bf16}
    folders = [make_run(tmp_path, corpus, seed=seed, **common) for seed in range(3)]
    other = make_run(tmp_path, corpus, shape=small_shape(d_model=32, heads=4), **common)
    return [folder.read_config() for folder in (*folders, other)]


def test_all_runs_of_a_shape_that_leave_the_device_idle_are_put_together(runs: list[RunConfig]) -> None:
    assert list(runs_together(runs, H100, Experience()).values()) == [3, 3, 3, 1]
    many = [replace(runs[0], recipe=replace(runs[0].recipe, seed=seed)) for seed in range(100)]
    assert set(runs_together(many, H100, Experience()).values()) == {MOST}


def test_no_more_than_fit(runs: list[RunConfig]) -> None:
    one = step_memory(runs[0].recipe, 6, runs[0].runtime, native=False)
    tight = replace(H100, memory_gb=2.5 * one / 1e9)
    assert runs_together(runs, tight, Experience())[runs[0].run_id] == 2
    assert runs_together(runs, replace(H100, memory_gb=0.5 * one / 1e9), Experience())[runs[0].run_id] == 1


def test_no_more_than_the_device_has_idle(runs: list[RunConfig]) -> None:
    recipe = runs[0].recipe
    step, launching = recipe.model.flops(recipe.optim.batch), 2 * LAYER_KERNELS * KERNEL_SECONDS
    assert filling(recipe, H100, Experience()) == pytest.approx(989e12 * 0.4 * launching / step)
    slow = replace(H100, flops_per_second=step / launching, utilisation=1.0)  # launched as fast as it computes
    assert filling(recipe, slow, Experience()) == pytest.approx(1)
    assert set(runs_together(runs, slow, Experience()).values()) == {1}


def test_what_runs_reached_counts_for_more(runs: list[RunConfig]) -> None:
    stated = 989e12 * 0.4
    ran = Experience([Ran(recipe=runs[0].recipe, own=True, flops_per_second=stated / 2.5)])
    assert runs_together(runs, H100, ran)[runs[0].run_id] == 2


def test_what_is_stated_is_kept_and_cpus_and_wide_runs_stay_alone(runs: list[RunConfig]) -> None:
    assert set(runs_together(runs, replace(H100, together=7), Experience()).values()) == {7}
    assert set(runs_together(runs, DeviceConfig(together=0), Experience()).values()) == {1}
    assert set(runs_together(runs, replace(H100, per_run=2), Experience()).values()) == {1}
    external = [replace(run, recipe=replace(run.recipe, command="mine {folder}")) for run in runs]
    assert set(runs_together(external, H100, Experience()).values()) == {1}


def test_the_choice_in_a_line() -> None:
    assert packing_text({"a": 1, "b": 1}) is None and packing_text({}) is None
    assert packing_text({"a": 2, "b": 2, "c": 1}) == (
        "runs of one shape as one model on a device: up to 2 for 2, 1 alone (device.together)"
    )


def test_the_plan_says_what_it_chose(isoflop: Callable[..., Answer], tmp_path: Path) -> None:
    common = [*PLAN, f"root={tmp_path}", "sweep.seeds=[0,1,2]"]
    for option, wanted in (("device.together=0", {3, 6, 9}), ("device.together=2", {2}), ("device.together=1", {1})):
        answer = isoflop("plan", *common, option)
        assert answer.code == 0, answer.err
        assert {point["together"] for point in answer.json["points"]} == wanted
    table = isoflop("plan", *common, "format=table", "device.together=0").out
    assert "runs of one shape as one model on a device: up to 9 for" in table.replace("\n", " ")
    answer = isoflop("plan", *common, "device.together=-1")
    assert answer.code == 2 and "device.together=-1 must be 0 or more" in answer.sentence


def test_a_worker_takes_as_many_as_the_configs_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = small_corpus(tmp_path)
    folders = [make_run(tmp_path, corpus, seed=seed, steps=4, together=2) for seed in range(3)]
    worker = Worker(tmp_path / "s", [folder.run_id for folder in folders], "job", 5, together=0)
    stop: ShouldStop = never
    assert worker.go(stop) == 0
    attempts = [attempt for folder in folders for attempt in folder.attempts()]
    assert [attempt.get("together", 1) for attempt in attempts] == [2, 2, 1]
    assert all(rows(folder) for folder in folders)
