"""What tests of whole sweeps share: the smoke sweep with the trainer that answers from a law, and its folder."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import LAW_TRAINER, Answer

from sweeps.paths import SweepFolder
from trainer.lock import process_birth
from trainer.runfolder import RunFolder

Command = Callable[..., Answer]
ISOFLOP = [sys.executable, "-m", "sweeps.cli"]
FIXED = ["fit.replicates=50", "cluster.workers=2"]
ON_SLURM = ["cluster=slurm", "cluster.pack_hours=0", "sweep.budgets=[1e10]"]
UNSPECIFIED = ["data=unspecified", "data.sequence=96", "data.vocabulary=256"]


def smoke(folder: SweepFolder, *overrides: str) -> list[str]:
    """The smoke sweep with the law's trainer."""
    return ["sweep=smoke", f"root={folder.root}", *UNSPECIFIED, LAW_TRAINER, *FIXED, *overrides]


def gated(folder: SweepFolder) -> tuple[str, Path]:
    """A trainer that waits until the path exists before it answers, as an override, and the path."""
    script, gate = folder.root / "gated.sh", folder.root / "gate"
    script.write_text(
        f'while [ ! -e {gate} ]; do sleep 0.05; done; exec {sys.executable} -m trainer.examples.law_trainer "$1"\n'
    )
    return f'trainer.command="sh {script} {{folder}}"', gate


def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def states(isoflop: Command, folder: SweepFolder, *overrides: str) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = isoflop("status", *smoke(folder, *overrides), "format=json").json["points"]
    return points


def ranks_of(folder: RunFolder) -> dict[str, int]:
    """The living ranks of a run, and their numbers."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().decode().split("\0")
            names = dict(pair.split("=", 1) for pair in (place / "environ").read_bytes().decode().split("\0") if pair)
        except (OSError, ValueError):
            continue
        if str(folder.path) in words and "RANK" in names and process_birth(int(place.name)):
            found[names["RANK"]] = int(place.name)
    return found


def finals(folder: SweepFolder) -> dict[str, list[dict[str, Any]]]:
    """Every final record on disk, by run."""
    return {
        run.run_id: [json.loads(line) for line in (run.path / "points.jsonl").read_text().splitlines()]
        for run in folder.runs()
        if (run.path / "points.jsonl").exists()
    }


def submit(isoflop: Command, folder: SweepFolder, *overrides: str) -> dict[str, Any]:
    said = isoflop("submit", *smoke(folder, *ON_SLURM, *overrides), "format=json")
    assert said.code == 0, said.err
    answer: dict[str, Any] = said.json
    return answer


def shown(isoflop: Command, folder: SweepFolder, *overrides: str) -> dict[str, tuple[str, str | None]]:
    """State and cause by run."""
    return {p["run_id"]: (p["state"], p["cause"]) for p in states(isoflop, folder, *ON_SLURM, *overrides)}
