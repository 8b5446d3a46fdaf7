"""``isoflop run``: plan, submit, wait, fit, report. Interrupted at any moment and started again, it continues.

isoflop run sweep=quickstart
isoflop run sweep=ours sweep.design=optimal sweep.target={flops:1e24,half_width:0.05} sweep.limit.flops=1e21
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from omegaconf import DictConfig

from sweeps.app import INTERRUPTED, again, complain, run_verb, typed
from sweeps.config import Config, Executor
from sweeps.dispatch.backlog import read_backlog
from sweeps.dispatch.jobs import last_words, live_jobs, log_path, request_stop
from sweeps.dispatch.reconcile import queued_here, submit, workers_wanted
from sweeps.dispatch.slurm import Scheduler
from sweeps.dispatch.state import ENDED, PointState, State, inspect
from sweeps.fit import fit_sweep
from sweeps.paths import SweepFolder
from sweeps.planning.planner import make_plan
from sweeps.planning.points import Plan
from sweeps.render.live import live_overview
from sweeps.render.plan import say_refused
from sweeps.render.status import say_untold, show_submission
from sweeps.sequential import WAITS, further, goes_on, has_ended
from sweeps.terminal import say
from trainer.errors import MachineFault, UserError
from trainer.mirror import tell_rest
from trainer.tracking import is_tracked

REFRESH_SECONDS = 1.0
FRUITLESS_SUBMISSIONS = 3
"""Workers that leave this often in a row without touching a run will not do better the next time."""
STOP_SECONDS = 120.0
"""How long workers may take to checkpoint after Ctrl-C."""
PATIENCE_SECONDS = 3600.0
"""How long SLURM may not answer before the wait is given up; its jobs go on."""
RETRY_SECONDS = 10.0


def wait(config: Config, plan: Plan, folder: SweepFolder, scheduler: Scheduler) -> list[PointState]:
    """Watch a submitted sweep until every point has ended, replacing workers that were lost.

    Raises
    ------
    MachineFault
        If workers leave again and again without training anything.
    """
    fruitless, touched = 0, -1
    silent_since: float | None = None
    with live_overview(folder, config) as show:
        while True:
            backlog = read_backlog(folder, scheduler)
            states = inspect(folder, plan.to_dict(), config.limits.lost_attempts, backlog)
            show(states)
            open_points = [state for state in states if state.state not in ENDED]
            if all(state.taken_back for state in open_points):
                return states
            missing = sum(state.state is State.planned and not state.taken_back for state in open_points)
            queued = len(queued_here(open_points, backlog))
            if backlog.stale is None and workers_wanted(config, backlog, missing, queued):
                attempts = sum(state.attempts for state in states)
                fruitless, touched = (0, attempts) if attempts != touched else (fruitless + 1, touched)
                if fruitless >= FRUITLESS_SUBMISSIONS:
                    raise MachineFault(_why_workers_leave(folder))
                try:
                    submit(config, plan, scheduler, reopen=False)
                    silent_since = None
                except MachineFault as fault:
                    silent_since = _outlast(fault, config, silent_since)
                    fruitless -= 1  # no worker has left
            time.sleep(REFRESH_SECONDS)


def _outlast(fault: MachineFault, config: Config, since: float | None) -> float:
    """Wait a little where SLURM does not answer; returns since when it does not.

    Raises
    ------
    MachineFault
        If it has not for long, or the machine is this one.
    """
    if since is None:
        since = time.monotonic()
        if config.cluster.executor is Executor.slurm:
            say(f"{fault} This goes on when it can.")
    if config.cluster.executor is not Executor.slurm or time.monotonic() - since > PATIENCE_SECONDS:
        raise fault
    time.sleep(RETRY_SECONDS)
    return since


def stop_workers(folder: SweepFolder) -> None:
    """Ask the sweep's workers to checkpoint and leave, and wait until they have."""
    jobs = live_jobs(folder)
    for path in jobs:
        request_stop(path)
    deadline = time.monotonic() + STOP_SECONDS
    while live_jobs(folder) and time.monotonic() < deadline:
        time.sleep(0.2)


def _why_workers_leave(folder: SweepFolder) -> str:
    newest_first = sorted((path.parent for path in folder.jobs.glob("*/job.json")), reverse=True)
    # the newest may have had no time to say anything yet
    told = next((job for job in newest_first if last_words(job) is not None), newest_first[0])
    said = last_words(told) or "it printed nothing"
    return f"workers leave without training; the last one said: {said} (log: {log_path(told)})"


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends the wait as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _body(raw: DictConfig) -> int:
    config: Config = typed(raw)
    plan = make_plan(raw)
    say_refused(plan)
    folder, scheduler = SweepFolder.of(config.root, plan.sweep), Scheduler()
    try:
        with _terminated_as_interrupted():
            while True:
                show_submission(submit(config, plan, scheduler), None)  # stdout is for the fit
                states = wait(config, plan, folder, scheduler)
                longer = further(raw, config, folder, plan, say) if goes_on(config) and has_ended(states) else None
                if longer is None:
                    break
                plan = longer
    except KeyboardInterrupt:
        if config.cluster.executor is Executor.slurm:
            return complain(f"interrupted; SLURM's jobs go on (`{again('cancel')}` ends them)", INTERRUPTED)
        say("stopping: workers write a checkpoint and leave (Ctrl-C again to leave them to it)")
        stop_workers(folder)
        return complain(f"interrupted; `{again('run')}` continues where it stopped", INTERRUPTED)
    code = report_failures(states)
    if goes_on(config) and not has_ended(states):
        say(WAITS)
    if is_tracked(config.tracking):
        tell_rest(folder.path)
        say_untold(folder, states)
    try:
        fit_sweep(config, folder)
    except UserError as error:
        if not code:
            raise
        say(f"no fit: {error}")  # because of the failures above
    return code


def report_failures(states: Sequence[PointState]) -> int:
    """Say what failed and why; returns the exit code it makes."""
    failed = [state for state in states if state.state is State.failed]
    for cause, names in by_cause(failed).items():
        say(f"failed: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {cause}")
    diverged = [state.point_id for state in states if state.state is State.diverged]
    if diverged:
        say(f"diverged, and left out of the fit: {', '.join(diverged)}")
    cancelled = [state.point_id for state in states if state.state is State.planned]
    if cancelled:
        say(f"{len(cancelled)} points were cancelled and have no result; `{again('submit')}` takes them up again")
    return 1 if failed or cancelled else 0


def by_cause(failed: Sequence[PointState]) -> dict[str | None, list[str]]:
    """Point ids by what they failed of."""
    found: dict[str | None, list[str]] = {}
    for state in failed:
        found.setdefault(state.cause, []).append(state.point_id)
    return found


HELP = """isoflop run [sweep=NAME] [key=value ...]

Plan a sweep, train what is missing, wait with a progress table, fit the three approaches and write the report.
Started again after any interruption it continues. With sweep.design=optimal and sweep.target.half_width it goes batch
by batch, until the target's interval is as narrow or sweep.limit is spent."""


def main() -> None:
    """Entry point of the verb."""
    run_verb("config", _body, HELP)


if __name__ == "__main__":
    main()
