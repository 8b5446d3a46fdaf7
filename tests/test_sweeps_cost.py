"""What finished runs tell the next plan of time and memory, and what is refused before time is spent."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Answer
from trainer_runs import make_run, small_corpus, small_shape

from sweeps.dispatch.launch import gpus_here
from sweeps.paths import SweepFolder
from sweeps.planning.cost import Experience, Ran, step_memory
from trainer.config import DeviceConfig, DeviceKind, Precision
from trainer.files import append_line, write_json
from trainer.loop import train
from trainer.memory import HostMemory, peak_bytes
from trainer.probe import main as probe_command
from trainer.probe import probe
from trainer.recipe import Recipe
from trainer.runfolder import RunFolder

CPU = DeviceConfig(flops_per_second=1e11, utilisation=0.5)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cost")


@pytest.fixture(scope="module")
def corpus(root: Path) -> str:
    return small_corpus(root)


@pytest.fixture(scope="module")
def recipe(root: Path, corpus: str) -> Recipe:
    return make_run(root, corpus, sweep="recipe").read_config().recipe


def sized(recipe: Recipe, **shape: Any) -> Recipe:
    return replace(recipe, model=replace(recipe.model, **shape))


def test_without_a_finished_run_the_devices_own_numbers_count(recipe: Recipe) -> None:
    assert Experience().flops_per_second(recipe, CPU) == 5e10
    assert Experience().memory(recipe, 4, DeviceKind.cpu) == step_memory(recipe, 4, DeviceKind.cpu)


def test_the_run_most_alike_tells_and_the_sweeps_own_before_all(recipe: Recipe) -> None:
    ran = [
        Ran(recipe=sized(recipe, d_model=4), own=False, flops_per_second=1e9, memory_ratio=0.5),
        Ran(recipe=sized(recipe, d_model=32), own=False, flops_per_second=2e9, memory_ratio=0.7),
        Ran(recipe=sized(recipe, d_model=32, sequence=512), own=False, flops_per_second=3e9),
    ]
    new = sized(recipe, d_model=30)
    assert Experience(ran).flops_per_second(new, CPU) == 2e9
    assert Experience(ran).flops_per_second(sized(recipe, d_model=30, sequence=400), CPU) == 3e9
    assert Experience(ran).memory(new, 4, DeviceKind.cpu) == 0.7 * step_memory(new, 4, DeviceKind.cpu)
    own = Ran(recipe=sized(recipe, d_model=4), own=True, flops_per_second=5e9)
    assert Experience([*ran, own]).flops_per_second(new, CPU) == 5e9
    assert Experience([*ran, own]).memory(new, 4, DeviceKind.cpu) == 0.7 * step_memory(new, 4, DeviceKind.cpu)


def train_apart(folder: RunFolder, root: Path) -> None:
    """In a process of its own: in one that has trained before, memory that it kept would hide what a run needs."""
    code = (
        "import sys; from pathlib import Path; from trainer.loop import train; from trainer.runfolder import RunFolder;"
        "train(RunFolder(Path(sys.argv[1])), Path(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", code, str(folder.path), str(root)], check=True, timeout=120)


def planned(root: Path, sweep: str) -> SweepFolder:
    folder = SweepFolder(root, sweep)
    write_json(folder.plan_path, {"schema": 1})
    return folder


def test_finished_runs_of_every_sweep_of_the_root_count(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path)
    folder = make_run(tmp_path, corpus, sweep="earlier", kernels={"attention": "manual"})
    planned(tmp_path, "earlier")
    unfinished = make_run(tmp_path, corpus, sweep="earlier", seed=1)
    train_apart(folder, tmp_path)
    append_line(unfinished.path / "attempts.jsonl", {"attempt": 0, "start": 1.0, "end": 2.0})
    (found,) = Experience.of(planned(tmp_path, "later"), CPU).ran
    (attempt,) = folder.attempts()
    assert not found.own and found.recipe == folder.read_config().recipe
    assert found.flops_per_second and math.isfinite(found.flops_per_second) and found.flops_per_second > 0
    assert attempt["peak_bytes"] > 0 and found.memory_ratio
    assert found.memory_ratio == attempt["peak_bytes"] / step_memory(found.recipe, 6, DeviceKind.cpu)
    (again,) = Experience.of(SweepFolder(tmp_path, "earlier"), CPU).ran
    assert again.own
    assert not Experience.of(planned(tmp_path, "later"), DeviceConfig(kind=DeviceKind.cuda, name="h100")).ran


def test_a_gpu_run_tells_about_gpus_of_its_name_only(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path)
    folder = make_run(
        tmp_path, corpus, sweep="earlier", device=DeviceKind.cuda, kernels={"processor": "NVIDIA H100 80GB HBM3"}
    )
    planned(tmp_path, "earlier")
    append_line(folder.path / "attempts.jsonl", {"attempt": 0, "start": 1.0, "end": 2.0})
    point = {"schema": 1, "run_id": folder.run_id, "point_id": folder.run_id, "verdict": "done"}
    folder.write_point(point | {"loss": 1.0, "tokens": 10**9, "horizon": 10**9})
    later = planned(tmp_path, "later")
    assert len(Experience.of(later, DeviceConfig(kind=DeviceKind.cuda, name="h100")).ran) == 1
    assert not Experience.of(later, DeviceConfig(kind=DeviceKind.cuda, name="a100")).ran


def test_memory_is_measured_above_what_was_there() -> None:
    memory = HostMemory()
    held = torch.ones(30_000_000)
    assert 110e6 < memory.peak() < 200e6
    del held
    assert 0 <= HostMemory().peak() < 20e6


def test_memory_where_the_system_does_not_tell_is_that_of_the_process(tmp_path: Path) -> None:
    memory = HostMemory(order=tmp_path / "no" / "such" / "file")
    assert memory.peak() >= 0


def test_the_model_holds_for_a_step_of_torch(root: Path, corpus: str) -> None:
    """Within a factor of 1.5 on CPUs, where torch's allocator and libraries have their own ideas."""
    shape = small_shape(layers=4, d_model=128, heads=4, head_size=32, ffw=512, sequence=128)
    folder = make_run(root, corpus, sweep="model", shape=shape, sequences=128, steps=2, dtype=Precision.bf16,
                      kernels={"attention": "manual"}, eval_steps=(2,))  # fmt: skip
    train_apart(folder, root)
    (attempt,) = folder.attempts()
    modelled = peak_bytes(shape, 128, scores_kept=True)
    assert modelled / 1.5 < attempt["peak_bytes"] < modelled * 1.5


def test_rows_tell_the_share_of_the_peak(root: Path, corpus: str) -> None:
    folder = make_run(root, corpus, sweep="mfu", peak_flops=1e11)
    train(folder, root)
    model = folder.read_config().recipe.model
    for row in folder.metrics():
        assert row["mfu"] == pytest.approx(model.flops(row["tokens_per_second"]) / 1e11)


def test_the_probe_says_what_is_wrong_in_one_sentence(
    root: Path, corpus: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(root, corpus, sweep="probe", kernels={})
    assert probe_command([str(folder.path), "0.05"]) == 0
    assert json.loads(capsys.readouterr().out)["flops_per_second"] > 0
    assert probe_command([str(root)]) == 2
    assert (
        capsys.readouterr().err
        == f"isoflop: {root}/config.yaml is missing, so {root} is no run folder; run `isoflop submit`.\n"
    )
    for wrong in ([], [str(folder.path), "soon"]):
        with pytest.raises(SystemExit) as left:
            probe_command(wrong)
        assert left.value.code == 2


def test_a_probe_measures_without_a_trace(root: Path, corpus: str) -> None:
    folder = make_run(root, corpus, sweep="probed")
    before = sorted(folder.path.rglob("*"))
    found = probe(folder.read_config(), torch.device("cpu"), seconds=0.1)
    assert found.tokens_per_second > 0 and found.peak_bytes >= 0 and found.kernels["step"] in ("native", "torch")
    assert found.flops_per_second == folder.read_config().recipe.model.flops(found.tokens_per_second)
    assert sorted(folder.path.rglob("*")) == before


def test_a_gpu_asked_for_where_none_is_is_refused_before_any_time_is_spent(
    isoflop: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if gpus_here():
        pytest.skip("this machine has a GPU")
    answer = isoflop("submit", "sweep=smoke", f"root={tmp_path}", "device=h100")
    assert answer.code == 2
    assert "device.kind=cuda (device=h100), but this machine has no GPU" in answer.sentence
    assert not list(tmp_path.glob("smoke/*/config.yaml"))


@pytest.mark.parametrize(("name", "found"), [("nvidia0", 1), ("kfd", math.inf), ("nvidiactl", 0), ("null", 0)])
def test_gpus_are_seen_by_their_device_files(
    tmp_path: Path, name: str, found: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / name).touch()
    assert gpus_here(tmp_path) == found
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not gpus_here(tmp_path)


def test_fp16_is_refused(isoflop: Callable[..., Answer], tmp_path: Path) -> None:
    answer = isoflop("plan", "sweep=smoke", f"root={tmp_path}", "model.dtype=fp16")
    assert answer.code == 2
    assert "model.dtype=fp16" in answer.sentence and "expected one of [auto, bf16, fp32]" in answer.sentence
