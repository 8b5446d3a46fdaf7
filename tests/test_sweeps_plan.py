"""Recipes, axes and plans: what a config turns into, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import Answer
from hypothesis import given
from hypothesis import strategies as st

from sweeps.config import Config
from sweeps.planning.cost import total_flops
from sweeps.planning.recipes import precision
from sweeps.planning.rules import batch_tokens, learning_rate
from trainer.config import DeviceKind, OptimConfig, Precision
from trainer.recipe import Recipe

Command = Callable[..., Answer]

TOY = OptimConfig(lr_width_power=-0.75, lr_batch_power=0.5, batch_min=512, batch_max=2048)


@pytest.fixture
def plan(isoflop: Command, tmp_path: Path) -> Callable[..., Answer]:
    """``isoflop plan`` of the smoke sweep without data, in a root of its own."""

    def command(*overrides: str, form: str = "json", sweep: str = "smoke") -> Answer:
        fixed = [f"sweep={sweep}", f"root={tmp_path}", f"format={form}", "data=unspecified", "data.sequence=96"]
        return isoflop("plan", *fixed, "data.vocabulary=256", *overrides)

    return command


@given(st.floats(1e4, 1e12), st.sampled_from([96, 128, 1024]))
def test_batches_are_whole_sequences_within_bounds(tokens: float, sequence: int) -> None:
    batch = batch_tokens(TOY, tokens, sequence)
    assert batch % sequence == 0
    assert batch >= sequence
    assert batch <= max(2048, sequence) * 1.5


def test_the_rules_give_the_rates_they_state() -> None:
    assert learning_rate(TOY, 32, 2048) == pytest.approx(0.010)
    assert learning_rate(TOY, 64, 512) == pytest.approx(0.010 * 2**-0.75 * 0.5)
    assert batch_tokens(TOY, 2e6, 128) == 1024
    assert batch_tokens(TOY, 2e5, 128) == 512
    assert batch_tokens(TOY, 2e9, 128) == 2048


def test_auto_precision_is_made_definite() -> None:
    assert precision(Precision.auto, DeviceKind.cuda) is Precision.bf16
    assert precision(Precision.auto, DeviceKind.cpu) in (Precision.bf16, Precision.fp32)
    assert precision(Precision.fp32, DeviceKind.cuda) is Precision.fp32


def test_a_plan_is_printed_and_written(plan: Callable[..., Answer], tmp_path: Path) -> None:
    said = plan()
    assert said.code == 0
    written = json.loads((tmp_path / "smoke" / "plan.json").read_text())
    assert said.json == written
    assert len(written["points"]) == 12
    assert list(pd.read_csv(tmp_path / "smoke" / "plan.csv")["point_id"]) == [p["point_id"] for p in written["points"]]
    for point in written["points"]:
        assert abs(point["flops_matmul"] / point["budget"] - 1) <= 0.01
        assert point["flops_matmul"] / point["budget"] - 1 == pytest.approx(point["budget_error"])
        assert point["tokens"] == point["steps"] * point["batch"]
        assert point["hours"] > 0
        assert point["memory_gb"] > 0
    assert written["totals"]["points"] == 12
    assert not list((tmp_path / "smoke").glob("c*")), "a plan makes no run folder"


def test_the_table_can_be_piped(plan: Callable[..., Answer]) -> None:
    said = plan(form="table")
    assert "12 points" in said.out
    assert all(word in said.out for word in ("N non-emb", "steps", "c1e10-n3.1k"))
    assert "written" in said.err


def test_chinchilla_is_planned_with_predicted_losses(isoflop: Command, tmp_path: Path) -> None:
    points = isoflop("plan", "sweep=chinchilla", f"root={tmp_path}", "format=json").json["points"]
    assert sorted({p["budget"] for p in points}) == [6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21]
    for budget in {p["budget"] for p in points}:
        losses = [p["predicted_loss"] for p in points if p["budget"] == budget]
        assert 2 <= losses.index(min(losses)) <= 6, "the law's optimum lies inside each budget's sizes"
    assert max(p["devices"] for p in points) > 1


def test_the_same_config_gives_the_same_ids(plan: Callable[..., Answer]) -> None:
    assert plan().json == plan("cluster.workers=7", "trainer.checkpoint_seconds=1", "tracking=wandb").json
    before, after = plan().json["points"], plan("optim.weight_decay=0.1").json["points"]
    assert not {p["point_id"] for p in before} & {p["point_id"] for p in after}


def test_ids_tell_what_they_name(plan: Callable[..., Answer]) -> None:
    first = plan().json["points"][0]
    prefix, digest = first["point_id"].rsplit("-", 1)
    assert prefix == "c1e10-n3.1k-d163k"
    assert len(digest) == 10


def test_seeds_and_axes_cross_the_points(plan: Callable[..., Answer]) -> None:
    points = plan("sweep.seeds=[0,1]", "sweep.axes={optim.lr: [0.01, 0.02, 0.04]}", "sweep.budgets=[1e10]").json[
        "points"
    ]
    assert len(points) == 4 * 2 * 3
    assert len({p["point_id"] for p in points}) == len(points)
    assert {p["axis.optim.lr"] for p in points} == {0.01, 0.02, 0.04}
    dotted = plan("sweep.seeds=[0,1]", "sweep.axes.optim.lr=[0.01,0.02,0.04]", "sweep.budgets=[1e10]").json["points"]
    assert dotted == points


def test_zipped_axes_move_together(plan: Callable[..., Answer], tmp_path: Path) -> None:
    lab = tmp_path / "lab" / "sweep"
    lab.mkdir(parents=True)
    (lab / "zipped.yaml").write_text(
        "# @package _global_\ndefaults:\n  - smoke\n  - _self_\n"
        'sweep:\n  name: zipped\n  axes: {"optim.lr, optim.beta2": [[0.01, 0.9], [0.02, 0.99]]}\n'
    )
    points = plan("--config-dir", str(lab.parent), sweep="zipped").json["points"]
    assert {(p["axis.optim.lr"], p["axis.optim.beta2"]) for p in points} == {(0.01, 0.9), (0.02, 0.99)}
    assert len(points) == 24


def test_a_point_with_too_few_updates_is_refused_by_name(plan: Callable[..., Answer]) -> None:
    said = plan("optim.min_steps=100")
    assert said.code == 0
    assert len(said.json["refused"]) == 1
    assert "77 updates are fewer than optim.min_steps=100" in said.err


def test_a_point_off_its_budget_is_refused_by_name(plan: Callable[..., Answer]) -> None:
    said = plan("sweep.tolerance=0.003")
    assert {r["reason"].split(",")[0] for r in said.json["refused"]} <= {
        "whole batches miss the budget by -0.3%",
        "whole batches miss the budget by +0.5%",
    }
    assert said.json["refused"]
    assert all(abs(p["budget_error"]) <= 0.003 for p in said.json["points"])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["nonsense=1"], "Could not override 'nonsense'"),
        (["optim.nonsense=1"], "Could not override 'optim.nonsense'"),
        (["optim=nonsense"], "Could not find 'optim/nonsense'"),
        (["sweep.budgets=[many]"], "sweep.budgets"),
        (["sweep.budgets=[0]"], "sweep.budgets holds 0.0; every entry must be a positive number"),
        (["sweep.budgets=[-1e12]"], "sweep.budgets holds -1000000000000.0"),
        (["sweep.budgets=[nan]"], "sweep.budgets holds nan"),
        (["sweep.budgets=[]"], "sweep.budgets=[] must list at least one"),
        (["sweep.sizes=[1]"], "no shape that is not already taken lies near 1 non-embedding"),
        (["sweep.seeds=[]"], "sweep.seeds=[] must list different whole numbers"),
        (["sweep.seeds=[1,1]"], "sweep.seeds=[1, 1] must list different"),
        (["sweep.name=../x"], "sweep.name='../x' must be letters"),
        (["sweep.axes={optim.nonsense: [1]}"], "sweep.axes: 'optim.nonsense' is no config key"),
        (["sweep.axes={sweep.seeds: [1]}"], "sweep.axes: 'sweep.seeds' cannot differ between points"),
        (["sweep.axes={optim.lr: 3}"], "sweep.axes: 'optim.lr' has 3; give a list"),
        (["sweep.axes={optim.lr: [high]}"], "sweep.axes: optim.lr='high' is refused"),
        (["sweep.axes.trainer.micro_batch=[1,2]"], "two points are the same run, c1e10-n3.1k"),
        (["data.tokens=1e5"], "data.max_epochs=1; lower sweep.budgets"),
        (["optim.lr=0"], "optim.lr=0.0 must be a positive number"),
        (["optim.lr=nan"], "optim.lr=nan must be a positive number"),
        (["optim.beta2=1"], "optim.beta2=1.0 must be in [0, 1)"),
        (["schedule.warmup=1"], "schedule.warmup=1.0 must be in [0, 1)"),
        (["trainer.eval_at=[0.5,2]"], "trainer.eval_at=[0.5, 2.0] must be shares in (0, 1]"),
        (["optim.min_steps=1000000"], "no point is left of 12; the first was refused"),
        (["optim.batch_min=8", "optim.batch_max=64"], "optim.batch_max=64 is less than one sequence, data.sequence=96"),
        (["optim.lr=inf"], "optim.lr=inf must be a positive number"),
        (["optim.lr_width_power=nan"], "optim.lr_width_power=nan must be a finite number"),
        (["optim.lr_width_power=1e6"], "the rules give a width of"),
        (["sweep.spacing=1e308"], "sweep.spacing=1e+308 must be above 1 and at most 100"),
        (["sweep.sizes=100000"], "sweep.sizes=100000 must be 1 to 100"),
        (["sweep.centre.exponent=1e5"], "sweep.centre.exponent=100000.0 must be a number such as 0.5"),
        (["schedule.warmup_max_steps=-1"], "schedule.warmup_max_steps=-1 must be 0 or more"),
        (["sweep.seeds=[99999999999999999999]"], "must list different whole numbers"),
        (["model.max_width=1000000000"], "model.max_width=1000000000 is more than 1024 times"),
        (["cluster.timeout_hours=nan"], "cluster.timeout_hours=nan must be a positive number"),
        (["limits.lost_attempts=0"], "limits.lost_attempts=0 must be 1 or more"),
        (["root="], "root is empty"),
        (["-m"], "-m/--multirun is not supported: list values in sweep.axes"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(plan: Callable[..., Answer], overrides: list[str], sentence: str) -> None:
    said = plan(*overrides)
    assert said.code == 2
    assert sentence in said.sentence
    assert said.out == ""


def test_a_plan_by_a_newer_isoflop_is_refused(plan: Callable[..., Answer], isoflop: Command, tmp_path: Path) -> None:
    plan()
    path = tmp_path / "smoke" / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    said = isoflop("status", "sweep=smoke", f"root={tmp_path}")
    assert said.code == 2
    assert "schema=99 was written by a newer isoflop" in said.sentence


@pytest.mark.parametrize("text", ["[]", "{", '{"schema":1,"points":[{}]}', '{"schema":1}'])
def test_a_damaged_plan_is_named(plan: Callable[..., Answer], isoflop: Command, tmp_path: Path, text: str) -> None:
    plan()
    (tmp_path / "smoke" / "plan.json").write_text(text)
    said = isoflop("status", "sweep=smoke", f"root={tmp_path}")
    assert said.code == 2
    assert "plan.json is damaged; run `isoflop plan` to write it again" in said.sentence
    assert plan().code == 0


def test_a_newer_plan_is_not_overwritten(plan: Callable[..., Answer], tmp_path: Path) -> None:
    plan()
    path = tmp_path / "smoke" / "plan.json"
    newer = json.dumps(json.loads(path.read_text()) | {"schema": 99})
    path.write_text(newer)
    assert plan().code == 2
    assert path.read_text() == newer


def test_a_root_that_is_a_file_is_refused(isoflop: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for verb in ("plan", "submit", "status", "cancel", "clean", "run", "fit"):
        said = isoflop(verb, "sweep=smoke", f"root={tmp_path / 'file'}")
        assert said.code == 2
        assert "is a file; give the folder where sweeps live" in said.sentence


def test_a_sweep_without_plan_says_what_to_run(isoflop: Command, tmp_path: Path) -> None:
    said = isoflop("status", "sweep=smoke", f"root={tmp_path}")
    assert said.code == 2
    assert "has no plan under root=" in said.sentence


def test_a_root_that_cannot_be_written_is_a_machine_fault(isoflop: Command, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.symlink_to("/proc")  # where nobody can make a folder, root included
    said = isoflop("plan", "sweep=chinchilla", f"root={blocked}")
    assert said.code == 1
    assert "cannot write" in said.sentence


def test_corpora_are_made_once_and_pinned(isoflop: Command, tmp_path: Path) -> None:
    arguments = ("plan", "sweep=smoke", f"root={tmp_path}", "format=json")
    first = isoflop(*arguments).json
    pins = json.loads((tmp_path / "smoke" / "pins.json").read_text())["pins"]
    (corpus,) = [value for key, value in pins.items() if key.startswith("zipf_facts-")]
    made = (tmp_path / "corpora" / corpus / "header.json").stat().st_mtime_ns
    assert isoflop(*arguments).json == first
    assert (tmp_path / "corpora" / corpus / "header.json").stat().st_mtime_ns == made
    isoflop("plan", "sweep=smoke", f"root={tmp_path}", "sweep.name=other")
    assert len(list((tmp_path / "corpora").iterdir())) == 1, "another sweep with the same data shares the corpus"


def test_auto_keeps_its_meaning_on_another_machine(
    plan: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = plan().json
    for other in (True, False):
        monkeypatch.setattr("sweeps.planning.recipes._cpu_multiplies_bf16", lambda answer=other: answer)
        assert plan().json == first


def test_a_share_of_0_85_lies_in_the_last_15_percent() -> None:
    from test_conf import composed

    from sweeps.planning.recipes import make_recipe, make_runtime
    from trainer.shape import Shape

    config = composed("sweep=smoke")
    shape = Shape(layers=1, d_model=16, heads=1, head_size=16, ffw=64, vocabulary=256, sequence=96)
    for tokens in range(50_000, 60_000, 480):
        recipe = make_recipe(config, shape, [tokens], 0, "corpus")
        steps = make_runtime(config, recipe).eval_steps
        assert sum(step / recipe.steps >= 0.85 for step in steps) == 3


def test_evaluation_counts_towards_the_cost(plan: Callable[..., Answer]) -> None:
    few, many = plan("data.eval_windows=1").json["totals"], plan("data.eval_windows=640").json["totals"]
    assert many["device_hours"] > few["device_hours"]
    assert many["flops_matmul"] == few["flops_matmul"]


def test_recipes_survive_json(plan: Callable[..., Answer], tmp_path: Path) -> None:
    from test_conf import composed

    from sweeps.planning.recipes import make_recipe, make_runtime
    from trainer.runfolder import RunConfig
    from trainer.shape import Shape

    config: Config = composed("sweep=smoke")
    shape = Shape(layers=2, d_model=48, heads=3, head_size=16, ffw=192, vocabulary=256, sequence=128)
    recipe = make_recipe(config, shape, [1e6], 0, "corpus")
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    run = RunConfig(sweep="smoke", recipe=recipe, runtime=make_runtime(config, recipe))
    assert run.runtime.eval_steps[-1] == recipe.steps
    assert total_flops(run) > recipe.flops()
    assert math.isclose(recipe.flops(), shape.flops(recipe.tokens))
