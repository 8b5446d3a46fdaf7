"""``sweep.design=optimal``, ``suggest``, and sweeps that go batch by batch until their target is known."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analysis_designs import COST, LAW
from conftest import Answer
from sweep_runs import ISOFLOP, Command, finals, smoke, until

from analysis.config import FitConfig, Quantity
from analysis.planning.compare import compared
from analysis.planning.information import Target
from sweeps.config import Config
from sweeps.paths import SweepFolder
from sweeps.watch.sofar import target_line

FAR = ("sweep.design=optimal", "sweep.target.flops=5.76e23")
TENTH = (*FAR, "sweep.limit.flops=4.6e21")
FREE = (
    "sweep.design=optimal",
    "sweep.budgets=[]",
    "sweep.target.flops=1e14",
    "data.tokens=1e12",
    "forecast.noise=0.003",
)
SMALL = (*FREE, "sweep.limit.flops=3e11")
BATCHES = (*FREE, "sweep.limit.flops=3e12", "sweep.target.half_width=0.2", "fit.replicates=20")


@pytest.fixture
def plan(isoflop: Command, tmp_path: Path) -> Callable[..., Answer]:
    """``isoflop plan sweep=chinchilla`` with an optimal design."""

    def command(*overrides: str, form: str = "json") -> Answer:
        return isoflop("plan", "sweep=chinchilla", f"root={tmp_path}", f"format={form}", *overrides)

    return command


def _design(folder: SweepFolder) -> dict[str, Any]:
    design: dict[str, Any] = json.loads((folder.path / "design.json").read_text())
    return design


def test_a_tenth_of_the_cost_gives_the_precision_of_the_whole(plan: Callable[..., Answer], tmp_path: Path) -> None:
    targets = ("forecast=true", "forecast.targets=[5.76e23]", "forecast.replicates=200")
    whole = plan(*targets).json
    said = plan(*TENTH, *targets).json
    (batch,) = said["design"]["batches"]
    assert said["totals"]["flops_matmul"] <= 4.6e21 * 1.0001
    assert said["totals"]["flops_matmul"] == pytest.approx(batch["spent"])
    assert said["forecast"]["error"] < 1.3 * whole["forecast"]["error"], "for a tenth of its FLOPs"
    assert batch["errors"][0] == pytest.approx(said["forecast"]["error"], rel=0.05)
    assert 0.9 < batch["efficiency"] <= 1
    reserved = [point for point in batch["points"] if point["role"] == "reserved"]
    assert len({point["budget"] for point in reserved}) >= 4
    top = max(point["budget"] for point in said["points"])
    assert top in {point["budget"] for point in reserved} and top <= 4.6e21 / 3
    assert plan(*TENTH, *targets).json == said, "and the same again"
    (tmp_path / "chinchilla" / "design.json").unlink()
    again = plan(*TENTH, *targets).json
    assert [point["point_id"] for point in again["points"]] == [point["point_id"] for point in said["points"]]


def test_constraints_are_kept(plan: Callable[..., Answer]) -> None:
    some = ("sweep.allowed.tokens_per_param=[5,100]", "sweep.allowed.tokens=[2e9,1e12]", "sweep.allowed.window=30")
    found = plan(*TENTH, *some, "sweep.allowed.runs=30", "sweep.allowed.params=[1e8,3e9]").json["points"]
    assert 6 < len(found) <= 30
    for point in found:
        assert 4.9 <= point["tokens"] / point["params_total"] <= 101
        assert point["tokens"] >= 1.9e9 and 1e8 / 1.06 <= point["params_non_embedding"] <= 3e9 * 1.06
    seeds = plan(*TENTH, "sweep.seeds=[3,5]", "sweep.allowed.reserved=0", "sweep.name=other").json
    assert {point["seed"] for point in seeds["points"]} == {3, 5}
    assert seeds["totals"]["flops_matmul"] <= 4.6e21 * 1.0001


def test_hours_limit_as_well(plan: Callable[..., Answer]) -> None:
    said = plan(*FAR, "sweep.limit.device_hours=3000").json
    assert 2900 < said["totals"]["device_hours"] <= 3000
    assert said["design"]["batches"][0]["unit"] == "device-hours"


def test_points_are_pinned_and_excluded_by_hand(plan: Callable[..., Answer]) -> None:
    first = plan(*TENTH).json["points"]
    out = first[0]["point_id"]
    more = [f"sweep.excluded=[{out},{{tokens: [0, 1e9]}}]", "sweep.pinned=[{params: 5e7, tokens: 3e10}]"]
    said = plan(*TENTH, *more).json
    ids = [point["point_id"] for point in said["points"]]
    assert out not in ids and min(point["tokens"] for point in said["points"]) > 1e9
    pinned = [point for point in said["design"]["batches"][0]["points"] if point["role"] == "pinned"]
    assert [point["tokens"] for point in pinned] == [3e10]
    assert sum(
        abs(point["tokens"] / 3e10 - 1) < 0.01 and point["params_non_embedding"] < 8e7 for point in said["points"]
    )


def test_trunks_are_costed_once_and_give_more(plan: Callable[..., Answer]) -> None:
    alone = plan(*TENTH).json
    shared = plan(*TENTH, "schedule=wsd", "sweep.name=trunks", "forecast=true", "forecast.replicates=100").json
    (batch,), points = shared["design"]["batches"], shared["points"]
    assert batch["runs"] == len({point["run_id"] for point in points}) < len(points)
    assert shared["totals"]["flops_matmul"] == pytest.approx(batch["spent"], rel=0.02)
    assert batch["spent"] <= 4.6e21 < sum(point["flops_matmul"] for point in points)
    assert len(points) > len(alone["points"]), "for the same cost"
    assert sum(at["cost"] for at in shared["forecast"]["budgets"]) == pytest.approx(shared["totals"]["flops_matmul"])
    assert "refused" not in shared["forecast"]["approaches"]["envelope"], "a trunk's horizons feed Approach 1"


def test_a_mix_of_targets_and_a_loss(plan: Callable[..., Answer]) -> None:
    mix = "sweep.target.also=[{quantity: exponent, weight: 36}, {quantity: loss, params: 7e10, tokens: 1.4e12}]"
    batch = plan(*TENTH, mix).json["design"]["batches"][0]
    assert batch["targets"] == ["n_opt", "exponent", "loss"] and len(batch["errors"]) == 3


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (FAR, "sweep.limit has flops=None and device_hours=None; an optimal design needs one"),
        ((*FAR, "sweep.limit.flops=1e17"), "The cost limit of 1e+17 pays for no run: the cheapest candidate costs 5.9"),
        ((*TENTH, "sweep.allowed.tokens=[1e13,2e13]"), "leave 0 of"),
        ((*TENTH, "sweep.allowed.params=[2,1]"), "must be two numbers, the smaller one first"),
        ((*TENTH, "sweep.excluded=[7]"), "sweep.excluded holds 7"),
        ((*TENTH, "sweep.excluded=[c1e19-none]"), "'c1e19-none', with which none of the"),
        ((*TENTH, "sweep.pinned=[{params: 1e8}]"), "sweep.pinned holds"),
        ((*TENTH, "sweep.target.flops=null"), "n_opt: flops is not stated; give it flops=<number>"),
        ((*TENTH, "sweep.target.half_width=2"), "sweep.target.half_width=2 must lie between 0 and 1"),
        ((*TENTH, "sweep.target.also=[{quantity: speed}]"), "quantity is one of n_opt, exponent, loss, loss_opt"),
        ((*TENTH, "sweep.target.flops=1e80"), "the best that is possible is about sweep.target.flops="),
        ((*TENTH, "sweep.allowed.memory_gb=1e-3"), "sweep.allowed.memory_gb=0.001 holds none of the"),
        ((*TENTH, "law=hoffmann2022_approach2"), "knows N*(C) but no loss off it"),
    ],
)
def test_bad_input_is_one_sentence(
    plan: Callable[..., Answer], settings: tuple[str, ...], sentence: str, tmp_path: Path
) -> None:
    said = plan(*settings)
    assert said.code == 2 and sentence in said.sentence
    there = {path.name for path in (tmp_path / "chinchilla").glob("*.json")}
    assert there <= {"pins.json"}, "nothing is half-written"


def test_a_damaged_design_is_said(plan: Callable[..., Answer], tmp_path: Path) -> None:
    plan(*TENTH)
    (tmp_path / "chinchilla" / "design.json").write_text("{")
    said = plan(*TENTH)
    assert said.code == 2 and "design.json is damaged" in said.sentence


def test_suggest_writes_only_when_told(isoflop: Command, folder: SweepFolder) -> None:
    said = isoflop("suggest", *smoke(folder, *SMALL), "format=json")
    assert said.code == 0, said.err
    assert said.json["batch"] == 1 and said.json["reached"] is None
    assert len(said.json["suggested"]) > 6 and "nothing is written" in said.err
    assert not (folder.path / "design.json").exists()
    isoflop("suggest", *smoke(folder, *SMALL, "write=true"))
    planned = isoflop("plan", *smoke(folder, *SMALL), "format=json").json
    assert len(planned["points"]) == len(said.json["suggested"])
    table = isoflop("suggest", *smoke(folder, *SMALL))
    assert "leave room for no further point" in table.err
    fixed = isoflop("suggest", *smoke(folder))
    assert fixed.code == 2 and "sweep.design=isoflop has all its points" in fixed.sentence


def test_a_larger_limit_keeps_what_has_begun(isoflop: Command, folder: SweepFolder) -> None:
    isoflop("run", *smoke(folder, *SMALL))
    before = {run.run_id for run in folder.runs()}
    suggested = isoflop("suggest", *smoke(folder, *FREE, "sweep.limit.flops=6e11"), "format=json").json
    said = isoflop("plan", *smoke(folder, *FREE, "sweep.limit.flops=6e11"), "format=json").json
    assert suggested["facts"]["spent_before"] > 0
    assert len(suggested["suggested"]) + len(before) == len(said["points"])
    assert before < {point["run_id"] for point in said["points"]}
    assert said["totals"]["flops_matmul"] <= 6.01e11


def test_a_prior_that_the_results_contradict_is_refused(isoflop: Command, folder: SweepFolder) -> None:
    assert isoflop("run", *smoke(folder, *FREE, "sweep.limit.flops=3e12")).code == 0
    wrong = smoke(folder, *FREE, "sweep.limit.flops=6e12", "law=muennighoff2023")
    said = isoflop("plan", *wrong)
    assert said.code == 2 and "the prior law contradicts the" in said.sentence
    assert "forecast.prior=results goes on from their own law, with N* " in said.sentence
    assert isoflop("plan", *wrong, "forecast.prior=results").code == 0
    right = isoflop("plan", *smoke(folder, *FREE, "sweep.limit.flops=6e12", "law=hoffmann2022_tex"))
    assert right.code == 0


def test_a_sweep_goes_on_until_its_target_is_known(isoflop: Command, folder: SweepFolder) -> None:
    """Killed in its second batch and started again, it trains nothing twice, and no point changes."""
    process = subprocess.Popen([*ISOFLOP, "run", *smoke(folder, *BATCHES)], start_new_session=True, stderr=-3)
    design = folder.path / "design.json"
    until(lambda: (design.exists() and len(_design(folder)["batches"]) >= 2) or process.poll() is not None)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    first = _design(folder)["batches"]
    said = isoflop("run", *smoke(folder, *BATCHES))
    assert said.code == 0, said.err
    batches = _design(folder)["batches"]
    assert batches[: len(first)] == first and len(batches) >= 2
    chosen = [(p["layers"], p["d_model"], p["tokens"]) for batch in batches for p in batch["points"]]
    assert len(set(chosen)) == len(chosen) == len(folder.runs())
    assert all(len(records) == 1 for records in finals(folder).values())
    assert "as wanted; nothing more is trained" in said.err or "leave room for no further point" in said.err
    spent = sum(record["flops_matmul"] for records in finals(folder).values() for record in records)
    assert spent <= 3e12 * 1.001
    status = isoflop("status", *smoke(folder, *BATCHES))
    assert "precision so far: n_opt at 1e+14 FLOPs" in status.err and "wanted ±20.0%" in status.err
    reached = isoflop("suggest", *smoke(folder, *BATCHES), "format=json").json["reached"]
    aim = Config(fit=FitConfig(replicates=20))
    assert target_line(folder, aim) == ""  # none is stated
    aim.sweep.target.flops, aim.sweep.target.half_width, aim.sweep.limit.flops = 1e14, 0.2, 3e12
    told = target_line(folder, aim)
    assert f"{reached['value']:.4g}" in told and "wanted ±20.0%" in told and "FLOPs of at most 3e+12" in told
    assert told.endswith("as wanted") == (reached["half_width"] <= 0.2)
    truth = _n_star(1e14)
    assert reached["low"] / 1.3 < truth < reached["high"] * 1.3
    assert reached["spent_flops"] == pytest.approx(spent)
    ids = {point["run_id"] for point in isoflop("status", *smoke(folder, *BATCHES), "format=json").json["points"]}
    assert ids == {run.run_id for run in folder.runs()}
    done = isoflop("submit", *smoke(folder, *BATCHES), "format=json").json
    assert done["submitted"] == [] or "as wanted" not in said.err


def test_batches_of_trunks_leave_earlier_trunks_alone(isoflop: Command, folder: SweepFolder) -> None:
    trunks = (*BATCHES, "schedule=wsd", "sweep.target.half_width=0.002")
    first = isoflop("submit", *smoke(folder, *trunks), "format=json").json["submitted"]
    until(lambda: len(finals(folder)) == len(first))
    second = isoflop("submit", *smoke(folder, *trunks), "format=json")
    assert second.code == 0 and second.json["submitted"], second.err
    until(lambda: len(finals(folder)) == len(first) + len(second.json["submitted"]))
    assert second.json["left"] == [], "every run of the first batch is still the sweep's"


def test_submit_starts_one_batch_after_another(isoflop: Command, folder: SweepFolder) -> None:
    slow = (*FREE, "sweep.limit.flops=3e12", "sweep.target.half_width=0.01")
    first = isoflop("submit", *smoke(folder, *slow), "format=json").json["submitted"]
    until(lambda: len(finals(folder)) == len(first))
    second = isoflop("submit", *smoke(folder, *slow), "format=json")
    assert second.json["submitted"] and not set(second.json["submitted"]) & set(first)
    assert "batch 2: " in second.err and "wanted ±1.0%" in second.err
    until(lambda: len(finals(folder)) == len(first) + len(second.json["submitted"]))


def _n_star(flops: float) -> float:
    """Of the trainer's law, by what the toy shapes really cost."""
    from sweeps.planning.forecast import cost_of
    from sweeps.planning.ladder import ladder
    from trainer.config import ModelConfig
    from trainer.shape import ParamCount

    toy = ModelConfig(head_size=16, aspect=24, aspect_spread=2.1, width_step=8, max_width=256)
    shapes = ladder(toy, vocabulary=256, sequence=96)
    cost = cost_of(shapes, ParamCount.total)
    n = np.geomspace(1e5, 1e8, 20001)
    loss = 1.69337 + 406.401 / n**0.33917 + 410.7227 / (flops / cost.flops_per_token(n)) ** 0.28491
    return float(n[np.argmin(loss)])


def test_the_report_shows_points_and_what_designs_give(plan: Callable[..., Answer], tmp_path: Path) -> None:
    said = plan(*TENTH, "report=true", "forecast.replicates=100", form="table")
    assert said.code == 0 and "plan.html" in said.err
    page = (tmp_path / "chinchilla" / "plan.html").read_text()
    for text in (
        "Points in the (N, D) plane",
        "reserved to test the form",
        "N*(C) of the prior",
        "Precision against cost",
        "classic: 9 budgets, 4 to 16 sizes each",
        "optimal within 10 times the best size",
        "Prior: law hoffmann",
        "If the form of the law failed, N* at 5.76e23 FLOPs would be known to: curvature_n",
    ):
        assert text in page, text
    assert "http://" not in page.replace("http://www.w3.org", "").split("<script>")[0], "nothing is loaded"


def test_optimal_designs_beat_the_classic_one() -> None:
    target = Target(quantity=Quantity.n_opt, flops=5.76e23)
    classic, narrow, wide = compared(LAW[None], target, 0.005, COST, (6e18, 3e21))
    whole = classic.errors[2]
    assert whole == pytest.approx(0.058, abs=2e-3) and (np.diff(classic.errors) < 0).all()
    assert np.interp(0.2 * classic.flops[2], narrow.flops, narrow.errors) < whole * 1.02
    assert np.interp(0.08 * classic.flops[2], wide.flops, wide.errors) < whole
    assert (wide.errors < narrow.errors).all()
