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
from sweeps.planning.cost import Experience, Ran, expects_native, step_memory
from trainer.config import DeviceConfig, DeviceKind, Precision
from trainer.files import append_line, write_json
from trainer.loop import train
from trainer.memory import EVAL_TOKENS, HostMemory, native_bytes, peak_bytes
from trainer.native.build import library
from trainer.probe import main as probe_command
from trainer.probe import probe
from trainer.recipe import Recipe
from trainer.runfolder import RunFolder, Runtime
from trainer.shape import Activation

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


@pytest.fixture(scope="module")
def runtime(root: Path, corpus: str) -> Runtime:
    return make_run(root, corpus, sweep="recipe").read_config().runtime


def sized(recipe: Recipe, **shape: Any) -> Recipe:
    return replace(recipe, model=replace(recipe.model, **shape))


def test_without_a_finished_run_the_devices_own_numbers_count(recipe: Recipe, runtime: Runtime) -> None:
    assert Experience().flops_per_second(recipe, CPU) == 5e10
    assert Experience().memory(recipe, 4, runtime) == step_memory(
        recipe, 4, runtime, native=expects_native(recipe, runtime)
    )


def test_the_run_most_alike_tells_and_the_sweeps_own_before_all(recipe: Recipe, runtime: Runtime) -> None:
    ran = [
        Ran(recipe=sized(recipe, d_model=4), own=False, flops_per_second=1e9, memory_ratio=0.5),
        Ran(recipe=sized(recipe, d_model=32), own=False, flops_per_second=2e9, memory_ratio=0.7, native=True),
        Ran(recipe=sized(recipe, d_model=32, sequence=512), own=False, flops_per_second=3e9),
    ]
    new = sized(recipe, d_model=30)
    assert Experience(ran).flops_per_second(new, CPU) == 2e9
    assert Experience(ran).flops_per_second(sized(recipe, d_model=30, sequence=400), CPU) == 3e9
    assert Experience(ran).memory(new, 4, runtime) == 0.7 * step_memory(new, 4, runtime, native=True)
    assert Experience(ran).memory(new, 4, runtime, native=False) == 0.5 * step_memory(new, 4, runtime, native=False)
    own = Ran(recipe=sized(recipe, d_model=4), own=True, flops_per_second=5e9)
    assert Experience([*ran, own]).flops_per_second(new, CPU) == 5e9
    assert Experience([*ran, own]).memory(new, 4, runtime) == 0.7 * step_memory(new, 4, runtime, native=True)


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
    runtime = folder.read_config().runtime
    assert found.memory_ratio == attempt["peak_bytes"] / step_memory(found.recipe, 6, runtime, native=False)
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


@pytest.mark.parametrize(
    ("dtype", "step", "sequences", "changes"),
    [
        (Precision.bf16, "manual", 64, {}),
        (Precision.fp32, "sdpa", 64, {"activation": Activation.swiglu, "tied_head": False, "qk_norm": True}),
        pytest.param(Precision.fp32, "sdpa", 32, {"vocabulary": 4096}, marks=pytest.mark.whole),
        (Precision.bf16, "native", 16, {"d_model": 256, "head_size": 64, "ffw": 1024}),
        (Precision.fp32, "native", 16, {"d_model": 256, "head_size": 64, "ffw": 1024}),
    ],
)
def test_the_models_hold(
    root: Path, corpus: str, dtype: Precision, step: str, sequences: int, changes: dict[str, Any]
) -> None:
    """Within a quarter; within 15 % where they were fitted, but other versions of torch and libc have other ideas."""
    if step == "native" and library(dtype) is None:
        pytest.skip(f"no C++ step in {dtype} here")
    values: dict[str, Any] = {"layers": 4, "d_model": 128, "heads": 4, "head_size": 32, "ffw": 512, "sequence": 128}
    shape = small_shape(**(values | changes))
    kernels = {"step": "native", "chunk": 4} if step == "native" else {"step": "torch", "attention": step}
    sweep = f"{dtype}{step}{shape.vocabulary}"
    folder = make_run(root, corpus, sweep=sweep, shape=shape, sequences=sequences, steps=2, dtype=dtype,
                      kernels=kernels, eval_steps=(2,))  # fmt: skip
    train_apart(folder, root)
    (attempt,) = folder.attempts()
    native = native_bytes(shape, dtype, 1)
    modelled = native if step == "native" else peak_bytes(shape, sequences, dtype, DeviceKind.cpu)
    assert modelled / 1.25 < attempt["peak_bytes"] < modelled * 1.25


def test_evaluations_of_a_large_vocabulary_need_more_than_a_small_batch() -> None:
    shape = small_shape(vocabulary=50_000)
    assert peak_bytes(shape, 1, Precision.bf16, DeviceKind.cuda) > 10 * EVAL_TOKENS * shape.vocabulary


def test_on_a_gpu_scores_are_not_kept_and_activations_lose_nothing() -> None:
    shape = small_shape(layers=12, d_model=768, heads=12, head_size=64, ffw=3072, sequence=1024)
    gpu, cpu = (peak_bytes(shape, 8, Precision.bf16, device) for device in (DeviceKind.cuda, DeviceKind.cpu))
    tokens, params = 8 * 1024, shape.params_total
    by_hand = 18 * params + tokens * (12 * (2 * 18 * 768 + 8 + 48) + 4 * 768 + 4 * 3072)
    assert gpu == pytest.approx(by_hand, rel=0.01)
    assert cpu > gpu + 2 * tokens * 12 * 12 * 1024


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
