"""What an optimal design keeps to over its life: limits, constraints, hands, other commands, and what failed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Answer
from sweep_runs import Command, smoke
from test_sweeps_optimal import BATCHES, FREE, SMALL, TENTH

from analysis.config import FitConfig, Quantity
from analysis.planning.information import Target
from sweeps.config import Config
from sweeps.paths import SweepFolder
from sweeps.planning.aims import recounted
from sweeps.planning.chosen import Chosen, read_chosen, write_chosen
from sweeps.planning.ladder import ladder
from sweeps.planning.precision import precision_so_far
from sweeps.sequential import precision_facts
from trainer.config import ModelConfig
from trainer.shape import ParamCount

FAILS = """
import subprocess, sys
from pathlib import Path
import yaml
folder, width = Path(sys.argv[1]), int(sys.argv[2])
recipe = yaml.safe_load((folder / "config.yaml").read_text())["recipe"]
if recipe["model"]["d_model"] == width:
    sys.exit(3)
sys.exit(subprocess.call([sys.executable, "-m", "trainer.examples.law_trainer", str(folder)]))
"""
"""A trainer that answers from a law, but fails for one width."""


@pytest.fixture
def plan(isoflop: Command, tmp_path: Path) -> Callable[..., Answer]:
    """``isoflop plan sweep=chinchilla`` with an optimal design of a tenth of its cost."""

    def command(*overrides: str, form: str = "json") -> Answer:
        return isoflop("plan", "sweep=chinchilla", f"root={tmp_path}", f"format={form}", *TENTH, *overrides)

    return command


def _design(folder: Path) -> dict[str, Any]:
    design: dict[str, Any] = json.loads((folder / "design.json").read_text())
    return design


def test_the_limit_pays_for_all_values_of_the_axes(
    isoflop: Command, plan: Callable[..., Answer], tmp_path: Path
) -> None:
    axes = "sweep.axes.optim.lr=[1e-4,2e-4]"
    said = plan(axes).json
    (batch,) = said["design"]["batches"]
    assert said["totals"]["flops_matmul"] == pytest.approx(batch["spent"]) and batch["spent"] <= 4.6e21
    assert batch["runs"] == len(said["points"]) == 2 * len(batch["points"])
    before = (tmp_path / "chinchilla" / "design.json").read_text()
    assert plan(axes).json == said
    assert (tmp_path / "chinchilla" / "design.json").read_text() == before, "one design is all the axes'"
    more = isoflop("suggest", "sweep=chinchilla", f"root={tmp_path}", *TENTH, axes)
    assert "leave room for no further point" in more.err, "and suggest knows it"


def test_constraints_count_as_they_say(plan: Callable[..., Answer]) -> None:
    listed = ("sweep.sizes=[1e8,2e8,4e8,8e8,1.6e9,3.2e9]", "sweep.allowed.params=[1e8,9e8]")
    found = plan(*listed).json["points"]
    assert found and all(1e8 <= point["params_non_embedding"] <= 9e8 for point in found)
    centre = ("law=none", "sweep.centre={law: null, n_opt: 1e9, at: 1e21}", "sweep.target.flops=1e22")
    found = plan(*centre, "sweep.allowed.tokens_per_param=[20,80]", "sweep.name=ratio").json["points"]
    assert found and all(20 <= point["tokens"] / point["params_total"] <= 80 for point in found), "of all parameters"
    shared = ("device.per_run=4", "sweep.allowed.memory_gb=200", "sweep.name=shared")
    found = plan(*shared).json["points"]
    assert found and max(point["memory_gb"] for point in found) <= 200, "of all of a run's devices"


def test_what_is_pinned_is_trained_or_refused(isoflop: Command, folder: SweepFolder) -> None:
    short = "sweep.pinned=[{params: 3e4, tokens: 3e4}]"
    said = isoflop("plan", *smoke(folder, *SMALL, short, "optim.min_steps=100"))
    assert said.code == 2 and "sweep.pinned: params=30000, tokens=30000 cannot be trained:" in said.sentence
    assert "updates are fewer than optim.min_steps=100" in said.sentence
    long = isoflop("plan", *smoke(folder, *SMALL, short, "data.tokens=1e4", "data.max_epochs=2"))
    assert long.code == 2 and "tokens, and data.max_epochs=2 gives 2e+04" in long.sentence
    assert not (folder.path / "design.json").exists()


def test_any_of_a_points_ids_excludes_it(plan: Callable[..., Answer]) -> None:
    seeds = ("sweep.seeds=[3,5]", "sweep.name=seeds")
    second = next(point for point in plan(*seeds).json["points"] if point["seed"] == 5)
    said = plan(*seeds, f"sweep.excluded=[{second['point_id']}]").json["points"]
    assert not any(p["layers"] == second["layers"] and p["d_model"] == second["d_model"] and
                   p["tokens"] == second["tokens"] for p in said)  # fmt: skip
    trunks = ("schedule=wsd", "sweep.name=trunks")
    horizon = next(point for point in plan(*trunks).json["points"] if "@" in point["point_id"])
    named = plan(*trunks, f"sweep.excluded=['{horizon['point_id']}']")
    assert named.code == 2 and "A point of a trunk is named by its numbers" in named.sentence
    size, tokens = horizon["params_non_embedding"], horizon["tokens"]
    ranges = f"{{params: [{size},{size}], tokens: [{0.99 * tokens},{1.01 * tokens}]}}"
    said = plan(*trunks, f"sweep.excluded=[{ranges}]").json["points"]
    near = [p for p in said if p["params_non_embedding"] == size and abs(p["tokens"] / tokens - 1) < 0.01]
    assert said and not near


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("sweep.allowed.window=-1", "sweep.allowed.window=-1.0 must be above 1, a factor either way, or null"),
        ("sweep.allowed.runs=0", "sweep.allowed.runs=0 must be null or 1 or more"),
        ("sweep.allowed.memory_gb=0", "sweep.allowed.memory_gb=0.0 must be null or a positive number"),
        ("sweep.allowed.reserved=-1", "sweep.allowed.reserved=-1 must be 0 or more"),
        ("sweep.target.flops=0", "sweep.target.flops=0.0 must be null or a positive number"),
        ("forecast.seed=-1", "forecast.seed=-1 must be 0 or more"),
        ("fit.level=1.5", "fit.level=1.5 is out of range"),
        ("fit.seed=-1", "fit.seed=-1 is out of range"),
        ("sweep.excluded=[{params: []}]", "without sweep.excluded there would be"),
        ("sweep.excluded=['']", "sweep.excluded holds ''; give the beginning of a point's id"),
        ("device.memory_gb=1", "device.memory_gb=1 holds none of the"),
    ],
)
def test_numbers_out_of_range_are_one_sentence(plan: Callable[..., Answer], setting: str, sentence: str) -> None:
    """Before anything is trained: a level that no fit takes would else be told after the last batch."""
    sizes = () if "window" not in setting else ("sweep.sizes=[1e8,2e8,4e8,8e8,1.6e9]",)
    said = plan(setting, *sizes, "forecast=true", "forecast.replicates=100")
    assert said.code == 2 and sentence in said.sentence


def test_runs_are_limited_over_all_batches(isoflop: Command, folder: SweepFolder) -> None:
    few = (*BATCHES, "sweep.target.half_width=0.002", "sweep.allowed.runs=20")
    said = isoflop("run", *smoke(folder, *few))
    assert said.code == 0 and "sweep.limit and sweep.allowed leave room for no further point" in said.err
    design = _design(folder.path)["batches"]
    assert len(design) > 1 and len(folder.runs()) == sum(batch["runs"] for batch in design) <= 20
    for limit in ("1e10", "3e12"):  # below what has been spent, and enough for nothing more
        again = isoflop("plan", *smoke(folder, *few, f"sweep.limit.flops={limit}", "sweep.allowed.window=9"),
                        "format=json")  # fmt: skip
        assert again.code == 0, again.err
        assert {point["run_id"] for point in again.json["points"]} == {run.run_id for run in folder.runs()}


def test_a_sweep_goes_on_without_what_fails(isoflop: Command, folder: SweepFolder) -> None:
    script = folder.root / "fails.py"
    script.write_text(FAILS)
    sweep = smoke(
        folder, *BATCHES, "sweep.target.half_width=0.01", f'trainer.command="{{python}} {script} {{folder}} 24"'
    )
    sweep += ["sweep.limit.flops=6e11"]
    stopped = isoflop("run", *sweep)
    assert stopped.code == 1 and "sweep.excluded=[ID,...] goes on without it" in stopped.err
    assert len(_design(folder.path)["batches"]) == 1
    said = isoflop("submit", *sweep)
    assert said.code == 0 and "retry=all tries again what failed" in said.err
    states = isoflop("status", *sweep, "format=json").json["points"]
    failed = [point for point in states if point["state"] == "failed"]
    size = failed[0]["params_non_embedding"]
    assert failed
    out = f"sweep.excluded=[{failed[0]['point_id']},{{params: [{0.5 * size},{1.9 * size}]}}]"
    isoflop("run", *sweep, out)
    kept = {point.place for batch in read_chosen(folder).batches for point in batch.points}  # type: ignore[union-attr]
    assert all(width != 24 or layers > 1 for layers, width, _ in kept) and len(kept) > len(states)
    points = isoflop("status", *sweep, out, "format=json").json["points"]
    assert failed[0]["point_id"] not in {point["point_id"] for point in points}


def test_what_was_spent_is_spent_whatever_became_of_the_design(isoflop: Command, folder: SweepFolder) -> None:
    sweep = smoke(folder, *FREE, "sweep.limit.flops=6e11", "sweep.target.half_width=0.01")
    assert isoflop("run", *sweep).code == 0
    runs = {run.run_id for run in folder.runs()}
    assert isoflop("plan", *sweep, "optim.lr=0.02").code == 0, "another recipe, of which nothing is done"
    back = isoflop("plan", *sweep, "format=json").json
    assert {point["run_id"] for point in back["points"]} == runs, "and back: all that was trained counts"
    (folder.path / "design.json").unlink(missing_ok=True)
    lost = isoflop("run", *sweep)
    assert lost.code == 0 and {run.run_id for run in folder.runs()} == runs
    more = isoflop("suggest", *sweep, "sweep.limit.flops=1.2e12", "format=json").json
    assert more["facts"]["spent_before"] == pytest.approx(6e11, rel=0.02) and more["suggested"]


def test_trunks_of_a_lost_design_stay_apart(isoflop: Command, folder: SweepFolder) -> None:
    sweep = smoke(folder, *FREE, "sweep.limit.flops=6e11", "sweep.target.half_width=0.01", "schedule=wsd")
    assert isoflop("run", *sweep).code == 0
    runs = {run.run_id for run in folder.runs()}
    (folder.path / "design.json").unlink()
    again = isoflop("plan", *sweep, "format=json").json
    assert {point["run_id"] for point in again["points"]} == runs


def test_what_another_command_chose_meanwhile_stays(folder: SweepFolder) -> None:
    folder.path.mkdir()
    mine = Chosen(key="mine", batches=())
    assert write_chosen(folder, mine, None) is mine
    theirs = replace(mine, key="theirs")
    assert write_chosen(folder, theirs, read_chosen(folder)) is theirs
    late = write_chosen(folder, replace(mine, key="late"), mine)
    assert late.key == "theirs" and _design(folder.path)["key"] == "theirs"


def test_a_target_is_counted_as_the_fit_counts() -> None:
    shapes = ladder(ModelConfig(head_size=16, aspect=24, width_step=8, max_width=256), vocabulary=256, sequence=96)
    shape = shapes[len(shapes) // 2]
    aims = [Target(quantity=Quantity.loss, params=shape.params_total, tokens=1e9), Target(quantity=Quantity.exponent)]
    found = recounted(aims, shapes, ParamCount.total, ParamCount.non_embedding)
    assert found[0].params == pytest.approx(shape.params_non_embedding) and found[1] is aims[1]
    assert recounted(aims, shapes, ParamCount.total, ParamCount.total) is aims


def test_precision_is_the_farther_side_and_never_stale(isoflop: Command, folder: SweepFolder) -> None:
    assert isoflop("run", *smoke(folder, *FREE, "sweep.limit.flops=1e12", "schedule=wsd")).code == 0
    config = Config(fit=FitConfig())
    config.sweep.target.flops = 1e14
    reached = precision_so_far(config, folder)
    assert reached is not None
    sides = max(reached.high / reached.value - 1, 1 - reached.low / reached.value)
    assert reached.half_width == pytest.approx(sides) and f"±{sides:.1%} at 95%" in reached.text
    tied = precision_so_far(Config(fit=FitConfig(form="tied"), sweep=config.sweep), folder)  # type: ignore[arg-type]
    assert tied is not None and math.log(tied.high / tied.low) < math.log(reached.high / reached.low)
    config.sweep.target.quantity, config.sweep.target.params, config.sweep.target.tokens = Quantity.loss, 1e5, 1e8
    assert "loss at 100k parameters and 100M tokens: " in str(precision_facts(config, folder)["text"])  # type: ignore[index]
    trunk = next(run for run in folder.runs() if len(run.points()) > 1)
    lines = (trunk.path / "points.jsonl").read_text().splitlines(keepends=True)
    (trunk.path / "points.jsonl").write_text("".join(lines[:1]))
    fewer = precision_facts(config, folder)
    assert fewer is not None and fewer["points"] == reached.points - len(lines) + 1, "each horizon is a point"


def test_designs_are_compared_under_the_fits_form(plan: Callable[..., Answer], tmp_path: Path) -> None:
    settings = ("report=true", "fit.form=tied", "forecast.replicates=100")
    said = plan(*settings).json["forecast"]
    page = (tmp_path / "chinchilla" / "plan.html").read_text()
    assert f"n_opt at 5.76e23 FLOPs known to ±{said['error']:.1%}" in page and np.isfinite(said["error"])
