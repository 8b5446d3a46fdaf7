"""One trunk, several horizons: each point is that of a run of its own, whatever is killed on the way."""

from __future__ import annotations

import itertools
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_trainer_resume import start
from trainer_runs import make_run, rows, small_corpus, wsd

from trainer import checkpoint
from trainer.config import Cooldown, Keep
from trainer.legs import legs
from trainer.loop import train
from trainer.native.build import library
from trainer.recipe import Branch, Recipe
from trainer.runfolder import RunFolder

MANUAL = {"attention": "manual"}
KERNELS: list[Any] = [
    pytest.param(MANUAL, id="torch"),
    pytest.param(
        {"step": "native", "chunk": 2},
        id="native",
        marks=pytest.mark.skipif(library("fp32") is None, reason="no C++ compiler on this machine"),
    ),
]
BRANCHES = (Branch(steps=12, cooldown_steps=3), Branch(steps=16, cooldown_steps=5), Branch(steps=24, cooldown_steps=6))
STEPS, COOLDOWN = 40, 10


def trunk(root: Path, corpus: str, **changes: Any) -> RunFolder:
    made: dict[str, Any] = {"steps": STEPS, "branches": BRANCHES, "schedule": wsd(COOLDOWN), "kernels": MANUAL}
    return make_run(root, corpus, **(made | changes))


def measured(folder: RunFolder) -> dict[str, Any]:
    """Every point's record without what may differ between two runs of one recipe."""
    points = folder.points()
    return {
        key: {k: v for k, v in value.items() if k not in ("time", "attempt", "sweep")} for key, value in points.items()
    }


@given(data=st.data())
def test_legs_make_every_update_of_the_trunk_once_and_every_cooldown_of_its_own(data: st.DataObject) -> None:
    ends = sorted(data.draw(st.sets(st.integers(8, 400), min_size=1, max_size=6)))
    cooldowns = [max(1, round(0.3 * end)) for end in ends]
    folder = data.draw(st.integers(1, 9))
    recipe = _recipe(ends, cooldowns, seed=folder)
    made = legs(recipe)
    assert made[-1].updates == recipe.updates == sum(leg.end - leg.begin for leg in made)
    on_trunk = [step for leg in made if not leg.branch for step in range(leg.begin, leg.end)]
    assert on_trunk == list(range(ends[-1]))
    assert [leg.horizon.steps for leg in made if leg.ends_point] == ends
    for before, after in itertools.pairwise(made):
        assert after.before == before.updates
        assert after.begin == (before.begin if before.branch else before.end)


def _recipe(ends: list[int], cooldowns: list[int], *, seed: int = 0) -> Recipe:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        branches = tuple(Branch(steps=a, cooldown_steps=b) for a, b in zip(ends[:-1], cooldowns, strict=False))
        folder = make_run(Path(place), "c", steps=ends[-1], branches=branches, schedule=wsd(cooldowns[-1]), seed=seed)
        return folder.read_config().recipe


def test_without_branches_the_id_is_that_of_before() -> None:
    recipe = _recipe([40], [10])
    assert recipe.point_ids == (recipe.run_id,) and "branches" not in recipe.to_dict()
    assert [(leg.begin, leg.end, leg.branch) for leg in legs(recipe)] == [(0, 40, False)]
    several = _recipe([12, 40], [3, 10])
    assert several.run_id != recipe.run_id
    assert several.point_ids == tuple(f"{several.run_id}@{steps * several.optim.batch}" for steps in (12, 40))
    assert Recipe.from_dict(several.to_dict()) == several


@pytest.mark.parametrize("shape", Cooldown)
def test_every_point_is_that_of_a_run_of_its_own(tmp_path: Path, shape: Cooldown) -> None:
    corpus = small_corpus(tmp_path)
    folder = trunk(tmp_path, corpus, schedule=wsd(COOLDOWN, shape), log_every=1, eval_steps=(5,))
    assert train(folder, tmp_path) == "done"
    points, recipe = folder.points(), folder.read_config().recipe
    assert list(points) == list(recipe.point_ids) and folder.ended()
    assert {record["cluster_id"] for record in points.values()} == {folder.run_id}
    for horizon in recipe.horizons:
        alone = make_run(
            tmp_path, corpus, sweep="alone", steps=horizon.steps, schedule=wsd(horizon.cooldown_steps, shape),
            kernels=MANUAL, log_every=1, eval_steps=(5, horizon.steps),
        )  # fmt: skip
        train(alone, tmp_path)
        theirs = alone.points()[alone.run_id]
        same = ("loss", "tokens", "horizon", "steps", "flops_matmul", "bits_per_byte", "unique_tokens")
        assert {key: points[horizon.point_id][key] for key in same} == {key: theirs[key] for key in same}
        fork = STEPS if horizon.steps == STEPS else horizon.steps - horizon.cooldown_steps
        path = [row for row in rows(folder) if "branch" not in row and row["step"] < fork]
        path += [row for row in rows(folder) if row.get("branch") == horizon.tokens]
        told = ("step", "tokens", "train_loss", "lr", "grad_norm", "flops")
        assert [[row[key] for key in told] for row in path] == [[row[key] for key in told] for row in rows(alone)]


def test_rows_have_neither_gaps_nor_duplicates(tmp_path: Path) -> None:
    folder = trunk(tmp_path, small_corpus(tmp_path), log_every=1)
    train(folder, tmp_path)
    recipe = folder.read_config().recipe
    assert [row["update"] for row in folder.metrics()] == list(range(recipe.updates))
    assert recipe.updates == STEPS + sum(branch.cooldown_steps for branch in BRANCHES)


@pytest.mark.parametrize("kernels", KERNELS)
def test_killed_anywhere_it_ends_the_same(tmp_path: Path, whole: bool, kernels: dict[str, Any]) -> None:
    """Kills fall in the trunk and in every cooldown, between two updates or wherever it is just then."""
    corpus = small_corpus(tmp_path)
    scale, most, least = (14, 10, 100) if whole else (1, 20, 3)
    branches = tuple(Branch(steps=b.steps * scale, cooldown_steps=b.cooldown_steps * scale) for b in BRANCHES)
    made: dict[str, Any] = {"steps": STEPS * scale, "branches": branches, "schedule": wsd(COOLDOWN * scale)}
    made["kernels"] = kernels
    unbroken = trunk(tmp_path, corpus, sweep="unbroken", **made)
    train(unbroken, tmp_path)
    folder = trunk(tmp_path, corpus, sweep="killed", checkpoint_seconds=0.004, **made)
    generator = random.Random(11)
    kills = 0
    while not folder.ended():
        if kills % 3 == 2:
            child, begun = start(folder.path, tmp_path, 10**9, False), len(folder.attempts())
            while len(folder.attempts()) == begun and child.is_alive():
                time.sleep(0.001)
            time.sleep(generator.uniform(0, 0.02))
            child.kill()
        else:
            child = start(folder.path, tmp_path, generator.randint(1, most), kills % 10 == 0)
        child.join(120)
        kills += child.exitcode == -signal.SIGKILL
    assert kills >= least
    assert rows(folder) == rows(unbroken)
    assert measured(folder) == measured(unbroken)
    resumed = {attempt["resume_step"] for attempt in folder.attempts()}
    hit = [leg for leg in legs(folder.read_config().recipe) if any(leg.before < at < leg.updates for at in resumed)]
    assert not whole or len(hit) == 7


@pytest.mark.parametrize("at", [10, 13, 18, 20, 25])
def test_stopped_in_a_cooldown_it_goes_on_there(tmp_path: Path, at: int) -> None:
    corpus = small_corpus(tmp_path)
    unbroken = trunk(tmp_path, corpus, sweep="unbroken")
    train(unbroken, tmp_path)
    folder = trunk(tmp_path, corpus, sweep="stopped")
    asked = iter(range(10**6))
    assert train(folder, tmp_path, should_stop=lambda: "now" if next(asked) == at else None) == "stopped: now"
    assert not folder.ended()
    assert train(folder, tmp_path) == "done"
    assert [attempt["resume_step"] for attempt in folder.attempts()] == [0, at]
    assert rows(folder) == rows(unbroken) and measured(folder) == measured(unbroken)


def test_a_damaged_trunk_is_trained_again_and_recorded_points_stay(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path)
    unbroken = trunk(tmp_path, corpus, sweep="unbroken")
    train(unbroken, tmp_path)
    folder = trunk(tmp_path, corpus, sweep="damaged")
    asked = iter(range(10**6))
    train(folder, tmp_path, should_stop=lambda: "now" if next(asked) == 17 else None)  # in the second cooldown
    (first,) = folder.points().values()
    path = folder.checkpoints / checkpoint.TRUNK
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="is passed over: it is cut short or altered"):
        assert train(folder, tmp_path) == "done"
    assert [attempt["resume_step"] for attempt in folder.attempts()] == [0, 17, 0]
    assert "trunk.ckpt is not the state before update" in folder.attempts()[1]["why"]
    assert folder.points()[first["point_id"]] == first
    assert measured(folder) == measured(unbroken)
    assert rows(folder) == rows(unbroken)


@pytest.mark.parametrize("again", [4, 9, 12, 16])
def test_a_recorded_cooldown_whose_rows_went_with_its_trunk_gets_them_back(tmp_path: Path, again: int) -> None:
    corpus = small_corpus(tmp_path)
    unbroken = trunk(tmp_path, corpus, sweep="unbroken")
    train(unbroken, tmp_path)
    folder = trunk(tmp_path, corpus, sweep="damaged")
    for stop in (17, again):  # in the second cooldown; then on the way back there
        asked = iter(range(10**6))
        train(folder, tmp_path, should_stop=lambda asked=asked, stop=stop: "now" if next(asked) == stop else None)  # type: ignore[misc]
        (first,) = folder.points().values()
        if stop == 17:
            for path in folder.checkpoints.iterdir():
                path.unlink()
    assert train(folder, tmp_path) == "done"
    assert folder.points()[first["point_id"]] == first
    assert rows(folder) == rows(unbroken) and measured(folder) == measured(unbroken)


def test_what_stays_on_disk(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path)
    tokens = [branch.steps * 96 for branch in BRANCHES]
    for keep, left in (
        (Keep.none, set()),
        (Keep.last, {"a.ckpt", *(f"at-{count}.ckpt" for count in tokens)}),
        (Keep.all, {"a.ckpt", "trunk.ckpt", *(f"at-{count}.ckpt" for count in tokens)}),
    ):
        folder = trunk(tmp_path, corpus, sweep=keep.value, keep=keep)
        train(folder, tmp_path)
        assert {path.name for path in folder.checkpoints.iterdir()} == left


def test_a_cooldown_that_diverges_takes_only_its_own_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer import loop

    corpus = small_corpus(tmp_path)
    folder = trunk(tmp_path, corpus, log_every=1)
    plain = loop.rate_factor

    def spiked(*arguments: Any, steps: int, step: int, **more: Any) -> float:
        return 1e30 if steps == 16 and step > 10 else plain(*arguments, steps=steps, step=step, **more)

    monkeypatch.setattr(loop, "rate_factor", spiked)
    assert train(folder, tmp_path) == "done"
    assert [record["verdict"] for record in folder.points().values()] == ["done", "diverged", "done", "done"]
    unbroken = trunk(tmp_path, corpus, sweep="unbroken", log_every=1)
    monkeypatch.undo()
    train(unbroken, tmp_path)
    last = folder.read_config().recipe.point_ids[-1]
    assert measured(folder)[last] == measured(unbroken)[last]


def test_a_trunk_that_diverges_takes_the_points_still_to_come(tmp_path: Path) -> None:
    folder = trunk(tmp_path, small_corpus(tmp_path), log_every=1, lr=1e30)
    assert train(folder, tmp_path) == "diverged"
    assert {record["verdict"] for record in folder.points().values()} == {"diverged"} and folder.ended()
    assert len(folder.points()) == 4
