"""One point in full: its state, every attempt, the end of its log, and where they lie."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.markup import escape

from sweeps.config import Format
from sweeps.dispatch.jobs import log_path
from sweeps.dispatch.state import PointState
from sweeps.paths import SweepFolder
from sweeps.render.status import status_table
from sweeps.terminal import print_json, seconds, stdout, table
from trainer.runfolder import RunFolder

LOG_LINES = 20


def show_point(folder: SweepFolder, state: PointState, form: Format) -> None:
    """The point on stdout."""
    run = folder.run(state.run_id)
    attempts, log = run.attempts(), find_log(folder, run)
    if form is Format.json:
        where = {"folder": str(run.path), "log": str(log) if log else None, "log_tail": tail(log)}
        print_json({"sweep": folder.name, "points": [state.to_dict() | {"ledger": attempts} | where]})
        return
    shown = table("attempt", "<started", "took", "from step", "<where", "<ended", title=f"attempts of {state.run_id}")
    for attempt in attempts:
        shown.add_row(*map(escape, _cells(attempt)))
    lines = [f"folder: {run.path}", f"log: {log or 'none yet'}", *(f"  {line}" for line in tail(log))]
    stdout().print(Group(status_table(folder, [state]), shown, *map(escape, lines)), soft_wrap=True)


def find_log(folder: SweepFolder, run: RunFolder) -> Path | None:
    """What the run's last attempt printed: an external trainer's own log, else its worker's."""
    own = run.path / "trainer.log"
    if own.exists():
        return own
    attempts = run.attempts()
    job, _, index = str(attempts[-1].get("job", "") if attempts else "").partition("/")
    return log_path(folder.jobs / job, int(index) if index.isdigit() else None) if job else None


def tail(log: Path | None) -> list[str]:
    """The last lines of a log."""
    if log is None:
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 200 * LOG_LINES))
        return file.read().decode(errors="replace").splitlines()[-LOG_LINES:]


def _cells(attempt: Mapping[str, Any]) -> list[str]:
    end = attempt.get("end")
    place = " ".join(str(attempt[key]) for key in ("slurm", "node") if attempt.get(key)) or str(attempt.get("host"))
    changed = f"; environment changed: {', '.join(attempt['changed'])}" if attempt.get("changed") else ""
    return [
        str(attempt["attempt"]),
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(attempt["start"])),
        seconds(end - attempt["start"]) if isinstance(end, int | float) else "–",
        str(attempt.get("resume_step")),
        place,
        str(attempt.get("why", "no word yet")) + changed,
    ]
