"""A real sweep under kill -9 of anything: nothing lost, nothing twice, the losses the same to the bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from sweeps.dispatch.jobs import live_jobs
from sweeps.paths import SweepFolder
from trainer.lock import holder
from trainer.runfolder import RunFolder

RUN = [sys.executable, "-m", "sweeps.cli", "run", "sweep=smoke"]
SMALL = [
    "sweep.budgets=[8e10]",
    "sweep.sizes=3",
    "trainer.checkpoint_seconds=0.2",
    "limits.lost_attempts=1000",
    "fit.replicates=20",
]
VOLATILE = ("time", "attempt", "tokens_per_second", "mfu")


def measured(run: RunFolder) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The final record and the curve, without what clocks and attempts put there."""
    (record,) = [json.loads(line) for line in (run.path / "points.jsonl").read_text().splitlines()]
    return steady(record), [steady(row) for row in run.metrics()]


def steady(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in VOLATILE}


def training(sweep: SweepFolder) -> bool:
    """Whether some run that lives has logged a row."""
    return any(holder(run.path) is not None and (run.path / "metrics.jsonl").exists() for run in sweep.runs())


def test_kill_anything_at_any_time(tmp_path: Path, whole: bool) -> None:
    calm, stormy = (SweepFolder.of(str(tmp_path / name), "smoke") for name in ("calm", "stormy"))
    subprocess.run([*RUN, f"root={calm.root}", *SMALL], check=True, capture_output=True, timeout=300)
    fate = random.Random(1)
    for strike in range(60 if whole else 4):
        command = subprocess.Popen(
            [*RUN, f"root={stormy.root}", *SMALL], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while command.poll() is None and not training(stormy):
            time.sleep(0.02)
        time.sleep(fate.uniform(0, 1))
        workers = [who.pid for job in live_jobs(stormy) if (who := holder(job)) is not None]
        for pid in ([*workers, command.pid], [command.pid], workers, workers[:1])[strike % 4]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(fate.uniform(0, 0.5))
        command.kill()
        command.wait()
    subprocess.run([*RUN, f"root={stormy.root}", *SMALL], check=True, capture_output=True, timeout=300)
    assert [run.run_id for run in stormy.runs()] == [run.run_id for run in calm.runs()]
    assert sum(len(run.attempts()) for run in stormy.runs()) > len(calm.runs()), "the storm hit nothing"
    for disturbed, undisturbed in zip(stormy.runs(), calm.runs(), strict=True):
        assert measured(disturbed) == measured(undisturbed)
