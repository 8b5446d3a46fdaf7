"""NVIDIA's multi-process service around workers that share a GPU, with a stand-in for its control program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Answer
from fake_slurm import Fake
from trainer_runs import REPOSITORY

from sweeps.dispatch import launch, worker
from sweeps.dispatch.jobs import Job, open_jobs, write_job
from sweeps.dispatch.mps import CONTROL, LOGS, PIPES, shared_gpus
from sweeps.paths import SweepFolder

STAND_IN = """#!{python}
import json, os, pathlib, sys
said = "" if "-d" in sys.argv else sys.stdin.read().strip()
pipe = pathlib.Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
running = pipe / "control.pid"
names = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY", "CUDA_VISIBLE_DEVICES")
with open({calls!r}, "a") as calls:
    calls.write(json.dumps([*sys.argv[1:], said, {{name: os.environ.get(name) for name in names}}]) + "\\n")
if {broken!r} and "-d" in sys.argv:
    sys.exit("An instance of this daemon cannot be started")
if "-d" in sys.argv:
    running.write_text("1")
elif not running.exists():
    sys.exit("Cannot find MPS control daemon process")
elif said == "quit":
    running.unlink()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for name in (PIPES, LOGS, "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / f"isoflop-mps-{os.getuid()}-local"


def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, broken: bool = False) -> Callable[[], list[list[str]]]:
    """The stand-in on PATH; returns what reads the commands that it was given."""
    calls, program = tmp_path / "calls", tmp_path / "bin" / CONTROL
    program.parent.mkdir()
    program.write_text(STAND_IN.format(python=sys.executable, calls=str(calls), broken=broken))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return lambda: [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []


def test_it_runs_while_it_is_wanted_in_folders_of_its_own(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = control(tmp_path, monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with shared_gpus(True) as why:
        assert why is None
        assert os.environ[PIPES] == str(place / "pipe") and (place / "pipe").is_dir()
        assert os.environ[LOGS] == str(place / "log") and (place / "log").is_dir()
        assert (place / "pipe").stat().st_mode & 0o777 == 0o700
    assert PIPES not in os.environ and LOGS not in os.environ and not place.exists()
    folders = {PIPES: str(place / "pipe"), LOGS: str(place / "log"), "CUDA_VISIBLE_DEVICES": None}
    assert calls() == [["get_server_list", folders], ["-d", "", folders], ["quit", folders]]


def test_the_first_starts_it_and_the_last_ends_it_however_the_others_end(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = control(tmp_path, monkeypatch)
    code = (
        "import sys; from sweeps.dispatch.mps import shared_gpus\n"
        "with shared_gpus(True):\n    print('in', flush=True); sys.stdin.readline()"
    )
    others = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for other in others:
        assert other.stdout and other.stdout.readline() == "in\n"
    with shared_gpus(True):
        others[0].kill()
        others[0].wait()
        others[1].communicate("leave\n", timeout=60)
        assert others[1].returncode == 0
        assert [call[-2] for call in calls()].count("quit") == 0
    assert [call[0] for call in calls()].count("-d") == 1
    assert [call[-2] for call in calls()].count("quit") == 1 and not place.exists()


def test_without_the_program_or_where_it_fails_runs_go_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with shared_gpus(True) as why:
        assert why == "there is no nvidia-cuda-mps-control on PATH" and PIPES not in os.environ
    control(tmp_path, monkeypatch, broken=True)
    with shared_gpus(True) as why:
        assert why == "nvidia-cuda-mps-control fails (An instance of this daemon cannot be started)"
        assert PIPES not in os.environ
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0] == (
        "isoflop: runs share a GPU without NVIDIA's multi-process service, in turns: there is no "
        "nvidia-cuda-mps-control on PATH"
    )


def test_one_that_is_there_already_is_used(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = control(tmp_path, monkeypatch)
    monkeypatch.setenv(PIPES, "/run/site-mps")
    with shared_gpus(True) as why:
        assert why is None and os.environ[PIPES] == "/run/site-mps"
    with shared_gpus(False):
        pass
    assert calls() == []


def test_what_an_error_leaves_is_ended_too(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = control(tmp_path, monkeypatch)
    with pytest.raises(KeyboardInterrupt), shared_gpus(True):
        raise KeyboardInterrupt
    assert calls()[-1][-2] == "quit" and PIPES not in os.environ


@pytest.mark.parametrize(("gpus", "given"), [(1, ("0",)), (2, ("0", "1")), (8, ("0", "1", "2"))])
def test_workers_share_the_gpus_that_there_are(
    gpus: int, given: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(launch, "gpus_here", lambda: gpus)
    assert launch._gpus(3, 1) == given


@pytest.mark.parametrize(
    ("options", "wanted"),
    [(["cluster.per_device=2"], True), ([], False), (["cluster.per_device=2", "cluster.mps=false"], False)],
)
def test_jobs_on_slurm_say_whether_their_workers_share_a_gpu(
    options: list[str], wanted: bool, fake: Fake, tmp_path: Path, isoflop: Callable[..., Answer]
) -> None:
    root = tmp_path / "shared"
    common = [f"root={root}", "cluster=slurm", "cluster.check_root=false", "device=h100", "model.dtype=bf16"]
    answer = isoflop("submit", "sweep=smoke", *common, *options)
    assert answer.code == 0, answer.err
    jobs = open_jobs(SweepFolder.of(str(root), "smoke"))
    assert jobs and {job.mps for job in jobs.values()} == {wanted}


def test_a_worker_of_a_job_that_shares_trains_within_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That it enters; no GPU is at hand to go on with."""

    class Entered(Exception):
        pass

    def shared(wanted: bool) -> None:
        assert wanted and os.environ["CUDA_VISIBLE_DEVICES"] == "0"
        raise Entered

    monkeypatch.setattr(worker, "shared_gpus", shared)
    monkeypatch.setattr(worker.signal, "signal", lambda number, handler: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    path = tmp_path / "sweep" / "jobs" / "one"
    path.mkdir(parents=True)
    job = Job(tasks=(("run",),), device="cuda", gpus=("0",), lost_attempts=1, host="", submitted=0.0, slots=2, mps=True)
    write_job(path, job)
    with pytest.raises(Entered):
        worker.work(str(path))
