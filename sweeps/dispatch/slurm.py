"""SLURM's commands: the only place that runs them, each with a time-out, and what they answer as values.

Nothing here is trusted to answer: a queue that cannot be read is a stale :class:`View` with the reason, never an
exception. One ``squeue`` and at most one ``sacct`` serve any number of jobs, at most every ``POLL_SECONDS``.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from trainer.errors import MachineFault

POLL_SECONDS = 30.0
"""squeue and sacct are asked at most this often by one process."""
ASK_SECONDS = 20.0
"""How long a question may take."""
SUBMIT_SECONDS = 60.0
"""How long sbatch may take: longer than SLURM's own patience with a controller that does not answer."""
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"})
"""States of a task that will run, once it is let."""
LIVE = WAITING | {"CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"}
"""States of a task that runs or will."""
INHERITED = re.compile(r"(SLURM|SBATCH|SRUN|SALLOC|SLURMD|SQUEUE|SINFO|SCANCEL|SACCT|SCONTROL)_")
KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS")
"""Of the submitter's SLURM variables, those that say which SLURM is meant."""
SILENCE = re.compile(
    r"contact slurm|timed out|connection|socket|communication|slurmdbd|slurm_load|zero bytes|(message|header) length",
    re.IGNORECASE,
)
"""Of what a command complains when SLURM did not answer, or its answer was lost."""
ID_CHUNK = 500
"""Task ids in one command line."""


class Refused(Exception):
    """SLURM said no, and why."""


class Silent(Exception):
    """SLURM did not answer; what was asked for may have happened."""


@dataclass(frozen=True)
class Seen:
    """A task as SLURM's queue or accounting has it."""

    id: str
    """``<array>_<task>``."""
    state: str
    reason: str = ""
    node: str = ""

    @property
    def lives(self) -> bool:
        """Whether it runs or will."""
        return self.state in LIVE

    @property
    def started(self) -> bool:
        """Whether it has left the queue's waiting part."""
        return self.state not in WAITING

    @property
    def held(self) -> bool:
        """Whether it waits for somebody to release it."""
        return not self.started and "held" in self.reason.lower()


@dataclass(frozen=True)
class View:
    """The queue at one moment, with what has just left it."""

    tasks: Mapping[tuple[str, int], Seen] = field(default_factory=dict)
    """By the job's name and the task's number."""
    taken: float = 0.0
    stale: str | None = None
    """Why SLURM could not be asked."""


NOBODY = View(taken=float("inf"))
"""The view of those who have no job there."""


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """An environment without the SLURM variables of a job that one submits from: sbatch would hand them on."""
    return {name: value for name, value in inherited.items() if name in KEPT or not INHERITED.match(name)}


def ask(*command: str, seconds: float = ASK_SECONDS) -> str:
    """What one of SLURM's commands prints.

    Raises
    ------
    Refused
        If it says no.
    Silent
        If it is not there, or does not answer in time, or cannot reach SLURM.
    """
    try:
        said = subprocess.run(
            command,
            env=environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except OSError as error:
        raise Silent(f"{command[0]} cannot be run: {error.strerror or error}") from error
    except subprocess.TimeoutExpired:
        raise Silent(f"{command[0]} did not answer in {seconds:g} s") from None
    if said.returncode == 0:
        return said.stdout
    lines = [line.strip() for line in said.stderr.splitlines() if line.strip() and not line.startswith("Try ")]
    why = lines[-1].removeprefix(f"{command[0]}: ").removeprefix("error: ") if lines else "no reason given"
    if SILENCE.search(why):
        raise Silent(f"{command[0]}: {why}")
    raise Refused(why)


class Scheduler:
    """SLURM's queue as one process sees it: what it has just read counts for ``POLL_SECONDS``."""

    def __init__(self) -> None:
        self._view: View | None = None
        self._names: frozenset[str] = frozenset()
        self._ends: tuple[float, Mapping[tuple[str, int], Seen]] | None = None

    def look(self, names: Iterable[str]) -> View:
        """The tasks of the jobs with these names: those in the queue, and those that left it within minutes."""
        wanted = frozenset(names)
        if self._view is None or time.time() - self._view.taken >= POLL_SECONDS:
            self._view, self._names = self._read(wanted), wanted
        return self._view

    def ends(self, jobs: Mapping[str, str]) -> Mapping[tuple[str, int], Seen]:
        """What accounting knows of jobs (name -> id) that the queue has forgotten; nothing without accounting."""
        if self._ends is None or time.time() - self._ends[0] >= POLL_SECONDS:
            self._ends = (time.time(), _accounts(jobs))
        return self._ends[1]

    def forget(self) -> None:
        """Read anew at the next look: the queue was changed by ourselves."""
        self._view = None

    def _read(self, names: frozenset[str]) -> View:
        began = time.time()
        command = ["squeue", "--noheader", "--array", "--states=all", f"--name={','.join(sorted(names))}"]
        try:
            said = ask(*command, "--format=%i|%j|%T|%N|%r")
        except (Refused, Silent) as error:
            tasks = self._view.tasks if self._view is not None else {}
            return View(tasks=tasks, taken=began, stale=str(error))
        return View(tasks=parse_queue(said), taken=began)


def parse_queue(text: str) -> dict[tuple[str, int], Seen]:
    """The lines of ``squeue --array --format=%i|%j|%T|%N|%r``; of a task listed twice, the one that lives counts."""
    found: dict[tuple[str, int], Seen] = {}
    for line in text.splitlines():
        parts = line.strip().split("|", 4)
        if len(parts) < 5:
            continue
        task, name, state, node, reason = parts
        key = (name, task_number(task))
        if key[1] >= 0 and not (key in found and found[key].lives):
            found[key] = Seen(task, state, reason, node)
    return found


def task_number(task: str) -> int:
    """``12_3`` -> 3; -1 for what is no task of an array."""
    number = task.partition("_")[2]
    return int(number) if number.isdigit() else -1


def _accounts(jobs: Mapping[str, str]) -> dict[tuple[str, int], Seen]:
    command = ["sacct", "-X", "-n", "-P", "--format=JobID,JobName,State,NodeList,Reason", "-j", ",".join(jobs.values())]
    try:
        said = ask(*command)
    except (Refused, Silent):
        return {}
    found = {}
    for line in said.splitlines():
        parts = line.split("|")
        # by name: a controller that lost its state gives an id out again
        if len(parts) == 5 and parts[1] in jobs and task_number(parts[0]) >= 0:
            state = parts[2].split(" ")[0]  # "CANCELLED by 1000"
            found[(parts[1], task_number(parts[0]))] = Seen(parts[0], state, parts[4], parts[3])
    return found


def submit(script: str) -> str:
    """Hand a script to sbatch; returns the job's id."""
    said = ask("sbatch", "--parsable", script, seconds=SUBMIT_SECONDS)
    number = said.strip().partition(";")[0]
    if not number.isdigit():
        raise Silent(f"sbatch answered {said.strip()[:80]!r}, which is no job id")
    return number


def cancel(ids: Sequence[str]) -> None:
    """Take tasks or jobs out of the queue; those that have left it are passed over."""
    _in_chunks(["scancel"], ids)


def release(ids: Sequence[str]) -> list[str]:
    """Let held tasks start; returns why some may not."""
    return _in_chunks(["scontrol", "release"], ids)


def requeue(task: str) -> None:
    """End a task and put it back into the queue."""
    ask("scontrol", "requeue", task)


def shorten(job: str, minutes: int) -> None:
    """Lower the time limit of a job that waits; to raise one takes an administrator."""
    ask("scontrol", "update", f"jobid={job}", f"timelimit={minutes}")


def _in_chunks(command: Sequence[str], ids: Sequence[str]) -> list[str]:
    refused = []
    for first in range(0, len(ids), ID_CHUNK):
        try:
            ask(*command, *ids[first : first + ID_CHUNK])
        except Refused as error:
            refused.append(str(error))
        except Silent as error:
            raise MachineFault(f"{error}; try again when SLURM answers.") from None
    return refused
