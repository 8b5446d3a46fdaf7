"""SLURM's commands for fast tests: one script under all their names, its queue a JSON file beside it.

``Fake`` installs them on PATH. Nothing starts: tests say what becomes of tasks.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

COMMANDS = ("sbatch", "squeue", "sacct", "scancel", "scontrol", "sinfo", "srun")


class Fake:
    """The fake's folder, and what tests want to know and to change."""

    def __init__(self, folder: Path, monkeypatch: Any) -> None:
        self.folder = folder
        folder.mkdir()
        for name in COMMANDS:
            program = folder / name
            program.write_text(f'#!/bin/sh\nexec {sys.executable} -S {__file__} {name} "$@"\n')
            program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        monkeypatch.setenv("FAKE_SLURM", str(folder))
        self.write(
            {"next": 100, "jobs": {}, "fail": {}, "sacct": [], "sinfo": ["main*|1-00:00:00|64|256000|gpu:8|here|4"]}
        )

    def read(self) -> dict[str, Any]:
        """The whole state."""
        state: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        return state

    def write(self, state: dict[str, Any]) -> None:
        """Replace the whole state."""
        (self.folder / "state.json").write_text(json.dumps(state))

    def change(self, **fields: Any) -> None:
        """Replace a part of the state: ``fail={"sbatch": "error"}``, ``sinfo=[...]``, ``sacct=[...]``."""
        self.write(self.read() | fields)

    def task(self, number: str, state: str, reason: str = "None", node: str = "n1") -> None:
        """What becomes of a task ``<array>_<index>``; state "" makes SLURM forget it."""
        now = self.read()
        array, _, index = number.partition("_")
        tasks = now["jobs"][array]["tasks"]
        tasks[index] = [state, reason, node]
        if not state:
            del tasks[index]
        self.write(now)

    def all_tasks(self) -> dict[str, list[str]]:
        """``<array>_<index>`` -> state, reason, node."""
        jobs = self.read()["jobs"]
        return {f"{array}_{index}": task for array, job in jobs.items() for index, task in job["tasks"].items()}

    def calls(self, name: str) -> list[str]:
        """How a command was called, each time."""
        log = self.folder / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line.partition(" ")[2] for line in lines if line.partition(" ")[0] == name]

    def forget_calls(self) -> None:
        """Begin to count anew."""
        (self.folder / "calls").unlink(missing_ok=True)

    def environment(self) -> dict[str, str]:
        """What the last command that was called found in its environment."""
        found: dict[str, str] = json.loads((self.folder / "environ").read_text())
        return found

    def scripts(self) -> list[str]:
        """What sbatch was given, in order."""
        return [Path(call.split()[-1]).read_text() for call in self.calls("sbatch")]


def main() -> None:
    """One of SLURM's commands."""
    name, *words = sys.argv[1:]
    folder = Path(os.environ["FAKE_SLURM"])
    with (folder / "calls").open("a") as log:
        log.write(" ".join([name, *words]) + "\n")
    (folder / "environ").write_text(json.dumps(dict(os.environ)))
    state = json.loads((folder / "state.json").read_text())
    error = state["fail"].get(name)
    if isinstance(error, list):  # one for each call
        error = error.pop(0) if error else None
        (folder / "state.json").write_text(json.dumps(state))
    if error:
        sys.exit(f"{name}: error: {error}")
    answer = ANSWERS[name](state, words)
    (folder / "state.json").write_text(json.dumps(state))
    sys.stdout.write(answer)


def _sbatch(state: dict[str, Any], words: list[str]) -> str:
    script = Path(words[-1]).read_text()
    count = re.search(r"--array=0-(\d+)", script)
    name = re.search(r"--job-name=(\S+)", script)
    assert count and name
    number = str(state["next"])
    state["next"] += 1
    tasks = {str(index): ["PENDING", "Priority", ""] for index in range(int(count[1]) + 1)}
    state["jobs"][number] = {"name": name[1], "tasks": tasks}
    return f"{number}\n"


def _squeue(state: dict[str, Any], words: list[str]) -> str:
    names = next(word for word in words if word.startswith("--name=")).partition("=")[2].split(",")
    return "".join(
        f"{number}_{index}|{job['name']}|{task[0]}|{task[2]}|{task[1]}\n"
        for number, job in state["jobs"].items()
        for index, task in job["tasks"].items()
        if job["name"] in names
    )


def _scancel(state: dict[str, Any], words: list[str]) -> str:
    for word in words:
        array, _, index = word.partition("_")
        for found, task in state["jobs"][array]["tasks"].items():
            if index in ("", found):
                task[:2] = ["CANCELLED", "None"]
    return ""


def _scontrol(state: dict[str, Any], words: list[str]) -> str:
    if words[:2] == ["show", "config"]:
        return "MaxArraySize            = 1001\n"
    for word in words[1:]:
        array, _, index = word.partition("_")
        if array in state["jobs"]:
            state["jobs"][array]["tasks"][index][:2] = ["PENDING", "None"]
    return ""


ANSWERS = {
    "sbatch": _sbatch,
    "squeue": _squeue,
    "scancel": _scancel,
    "scontrol": _scontrol,
    "sacct": lambda state, words: "".join(f"{line}\n" for line in state["sacct"]),
    "sinfo": lambda state, words: "".join(f"{line}\n" for line in state["sinfo"]),
    "srun": lambda state, words: "",
}

if __name__ == "__main__":
    main()
