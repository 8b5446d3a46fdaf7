"""Sweeps of wsd runs: several points branch off one trunk; how they are planned, costed, shown and read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import LAW_TRAINER, Answer

from analysis.ingest.runs import read_runs
from sweeps.dispatch.backlog import Backlog
from sweeps.dispatch.reconcile import open_run
from sweeps.dispatch.state import PointState, State, inspect
from sweeps.paths import SweepFolder
from sweeps.planning.points import read_plan
from trainer.lock import Lock
from trainer.runfolder import final_record

Command = Callable[..., Answer]
FIXED = ["sweep=smoke", "data=unspecified", "data.sequence=96", "data.vocabulary=256", "optim.min_steps=20"]
HORIZONS = ["schedule=wsd", "sweep.design=horizons", "sweep.sizes=[5e3,1.2e4]", "sweep.horizons=[1e5,2e5,4e5,8e5]"]


@pytest.fixture
def plan(isoflop: Command, tmp_path: Path) -> Callable[..., Any]:
    """The points of a plan, as a table, and its totals."""

    def command(*overrides: str) -> tuple[pd.DataFrame, dict[str, float], Answer]:
        answer = isoflop("plan", *FIXED, f"root={tmp_path}", "format=json", *overrides)
        assert answer.code == 0, answer.err
        return pd.DataFrame(answer.json["points"]), answer.json["totals"], answer

    return command


def test_horizons_of_a_size_are_one_run_that_costs_less(plan: Callable[..., Any]) -> None:
    points, totals, _ = plan(*HORIZONS)
    assert len(points) == 8 and points["run_id"].nunique() == 2
    assert list(points["point_id"]) == [f"{run}@{t}" for run, t in zip(points["run_id"], points["tokens"], strict=True)]
    assert points.groupby("run_id")[["batch", "lr"]].nunique().eq(1).all().all()
    own = points["updates_own"] * points["batch"] / points["tokens"] * points["flops_matmul"]
    assert own.to_numpy() == pytest.approx(points["flops_spent"].to_numpy())
    assert totals["flops_matmul"] == pytest.approx(points["flops_spent"].sum())
    for _, run in points.groupby("run_id"):
        assert list(run["updates_before"]) == [0, *run["updates_own"].cumsum()[:-1]]
        steps = run["steps"].to_numpy()
        cooldowns = (0.25 * steps).round()
        assert run["updates_own"].sum() == steps[-1] + cooldowns[:-1].sum()
    same = f"optim.batch_min={points['batch'][0]}", f"optim.batch_max={points['batch'][0]}"
    apart, spent, _ = plan(*HORIZONS, "schedule.trunks=false", *same)
    assert apart["run_id"].nunique() == 8 and list(apart["tokens"]) == list(points["tokens"])
    # of four horizons a factor 2 apart with quarter cooldowns: ((1 - f) D_max + f sum D) / sum D = 0.65
    assert totals["flops_matmul"] / spent["flops_matmul"] == pytest.approx(0.65, abs=0.01)
    assert totals["device_hours"] / spent["device_hours"] == pytest.approx(0.65, abs=0.05)


def test_one_horizon_is_the_run_it_always_was(plan: Callable[..., Any]) -> None:
    together, _, _ = plan(*HORIZONS, "sweep.horizons=[2e5]")
    alone, _, _ = plan(*HORIZONS, "sweep.horizons=[2e5]", "schedule.trunks=false")
    assert together.equals(alone) and list(together["point_id"]) == list(together["run_id"])


def test_what_precedes_the_cooldowns_is_common(plan: Callable[..., Any], tmp_path: Path) -> None:
    from test_conf import composed

    from sweeps.planning.recipes import make_recipe
    from trainer.shape import Shape

    config = composed("sweep=smoke", "schedule=wsd", "optim.batch_divisor=200")
    shape = Shape(layers=1, d_model=16, heads=1, head_size=16, ffw=64, vocabulary=256, sequence=96)
    recipe = make_recipe(config, shape, [1e5, 4e5], 0, "c")
    mean = make_recipe(config, shape, [2e5], 0, "c")
    assert recipe.optim == mean.optim
    first, last = recipe.horizons
    alone = make_recipe(config, shape, [1e5], 0, "c")
    assert recipe.schedule.warmup_steps == round(0.1 * first.steps) and alone.optim.batch < recipe.optim.batch
    assert [horizon.tokens for horizon in (first, last)] == pytest.approx([1e5, 4e5], rel=0.005)


def test_budgets_of_coinciding_sizes_share_a_trunk(plan: Callable[..., Any]) -> None:
    points, _, _ = plan("schedule=wsd", "sweep.sizes=[7e3,1.2e4,2.4e4]", "sweep.tolerance=0.05")
    assert list(points["budget"]) == sorted(points["budget"]) and len(points) == 9
    assert points["run_id"].nunique() == points["params_total"].nunique() == 3
    assert (points["flops_matmul"] / points["budget"] - 1).to_numpy() == pytest.approx(
        points["budget_error"].to_numpy()
    )
    apart, _, _ = plan("schedule=wsd")  # sizes about a centre that moves
    assert apart["run_id"].nunique() == apart["params_total"].nunique() < len(apart)


def test_seeds_and_axes_have_trunks_of_their_own(plan: Callable[..., Any]) -> None:
    points, _, _ = plan(*HORIZONS, "sweep.seeds=[0,1]", "sweep.axes.optim.lr=[0.01,0.02]")
    assert len(points) == 32 and points["run_id"].nunique() == 8
    assert (points.groupby("run_id")[["seed", "axis.optim.lr"]].nunique() == 1).all().all()


def test_a_horizon_too_short_is_refused_and_the_others_go_on(plan: Callable[..., Any]) -> None:
    points, _, answer = plan(*HORIZONS, "optim.min_steps=100", "optim.batch_min=2048", "optim.batch_max=2048")
    assert "are fewer than optim.min_steps=100" in answer.err
    assert sorted(set(points["steps"])) == [round(4e5 / 2016), round(8e5 / 2016)]


def test_no_horizon_twice(isoflop: Command, tmp_path: Path) -> None:
    said = isoflop("plan", *FIXED, f"root={tmp_path}", *HORIZONS, "sweep.horizons=[1e5,100001]")
    assert said.code == 2 and "two points are the same run" in said.sentence


def test_status_and_fit_of_a_run_with_several_points(isoflop: Command, tmp_path: Path) -> None:
    sweep = [*FIXED, f"root={tmp_path}", *HORIZONS, LAW_TRAINER, "cluster.workers=2", "fit.replicates=50"]
    sweep.append("sweep.sizes=[3e3,6e3,1.2e4,2.4e4]")
    done = isoflop("run", *sweep, "fit.resample=clusters")
    assert "16 done" in done.err
    listed = isoflop("status", *sweep, "format=json").json["points"]
    assert [point["state"] for point in listed] == ["done"] * 16 and all(point["progress"] == 1 for point in listed)
    tables = read_runs(tmp_path, ["smoke"])
    assert tables.points["cluster_id"].nunique() == 4 and tables.points["run_id"].nunique() == 16
    assert list(tables.points["run_id"]) == list(tables.points["point_id"])
    losses = dict(zip(tables.points["point_id"], tables.points["loss"], strict=True))
    assert losses == {point["point_id"]: point["loss"] for point in listed}
    fitted = json.loads((tmp_path / "smoke" / "fit" / "fit.json").read_text())
    assert fitted["rows"]["used"] == 16
    assert "come from 4 trunks" not in " ".join(fitted["warnings"])
    again = isoflop("fit", *sweep)
    assert "come from 4 trunks" in again.err + again.out
    assert isoflop("submit", *sweep).out == ""
    assert "4 ended runs" in isoflop("clean", *sweep, "trainer.keep=none").err


def test_one_status_line_is_at_work_at_a_time(isoflop: Command, tmp_path: Path) -> None:
    sweep = [*FIXED, f"root={tmp_path}", *HORIZONS, "sweep.sizes=[5e3]", "trainer.command=true"]
    isoflop("submit", *sweep, "cluster.workers=1")  # a trainer that leaves nothing: the folder is what we want
    folder = SweepFolder.of(str(tmp_path), "smoke")
    (run,) = folder.runs()
    deadline = time.monotonic() + 60
    while not run.ended():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    config = run.read_config()
    (run.path / "points.jsonl").unlink()
    (run.path / "attempts.jsonl").unlink()
    open_run(run, config, retry=False)
    horizons = config.recipe.horizons
    attempt = run.start_attempt("", 0)

    def look() -> list[PointState]:
        return inspect(folder, read_plan(folder), 5, Backlog())

    said = {"tokens_per_second": 1e4, "attempt": attempt, "time": time.time()}
    first, second = horizons[0], horizons[1]
    step = second.trunk + 9
    with Lock(run.path) as lock:
        assert lock is not None
        cooled = {"step": first.steps - 1, "update": first.own - 1, "branch": first.tokens, "tokens": first.tokens}
        run.append_metrics(said | cooled | {"val_loss": 3.0})
        run.write_point(final_record(config, point_id=first.point_id, tokens=first.tokens, loss=3.0, verdict="done"))
        going = {"step": step, "update": first.own + 9, "tokens": (step + 1) * config.recipe.optim.batch}
        run.append_metrics(said | going | {"train_loss": 2.9})
        states = look()
    assert [state.state for state in states] == [State.done, *[State.running] * 3]
    assert states[1].progress == pytest.approx(10 / horizons[1].own) and states[1].loss == 2.9
    assert states[1].eta_seconds == pytest.approx((horizons[1].own - 10) * config.recipe.optim.batch / 1e4)
    assert [state.tokens_per_second for state in states[2:]] == [None, None]
    assert {state.cause for state in states[2:]} == {"after shorter ones on its trunk"}
    assert sum(state.flops for state in states) == pytest.approx(config.recipe.flops_spent)
    assert [state.state for state in look()] == [State.done, *[State.planned] * 3]
