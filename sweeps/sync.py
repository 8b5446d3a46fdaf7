"""``isoflop sync``: bring to W&B what it does not have of a sweep. Safe to repeat, also while the sweep runs.

isoflop sync sweep=quickstart
isoflop sync sweep=quickstart from=runs tracking=wandb tracking.project=study
isoflop sync path=copied/wandb tracking=wandb tracking.entity=lab
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from analysis.ingest.wandb_files import logged_runs
from analysis.ingest.wandb_runs import LoggedRun, final_records, is_mirror, mirrored_config
from sweeps.app import complain, run_verb, typed
from sweeps.config import SyncCommand, SyncSource
from sweeps.paths import SweepFolder
from sweeps.sync_fits import hand_in_fits, lacking, offline_fits, runs_there
from sweeps.terminal import progress_line, say
from trainer.config import Backend, TrackingConfig, WandbMode
from trainer.errors import UserError
from trainer.lock import Lock
from trainer.runfolder import RunFolder
from trainer.story import has_ended, mark_whole, story_of
from trainer.tracking import Story, WandbRun, is_tracked, summary_of, tags

LEFT_OUT = 5
"""So many reasons are printed."""


@dataclass(frozen=True, kw_only=True)
class Handout:
    """A run to hand in, and where."""

    story: Story
    target: TrackingConfig
    folder: RunFolder | None = None
    """None where only W&B's own files are at hand."""


@dataclass
class Outcome:
    """What a sync did."""

    handed_in: int = 0
    rows: int = 0
    there: int = 0
    """Runs that W&B had already, as far as they have come."""
    left: list[str] | None = None
    """Why runs were left out, a sentence each."""


def handouts(config: SyncCommand) -> tuple[list[Handout], list[str]]:
    """The runs to hand in, and why others are not.

    Raises
    ------
    UserError
        If there is no such sweep or path, or nothing in it.
    """
    if config.path is not None:
        return _from_files(config)
    folder = SweepFolder.of(config.root, config.sweep.name)
    runs = folder.runs()
    if not runs:
        raise UserError(f"{folder.path} holds no run; name a sweep that was submitted, or path=<offline runs>.")
    found, left = [], []
    for run in runs:
        try:
            stored = run.read_config()
            if config.source is SyncSource.offline and not is_tracked(stored.runtime.tracking):
                left.append(f"{run.run_id} does not ask for a mirror; from=runs hands it in all the same")
            elif run.attempts():
                target = _target(config, stored.runtime.tracking)
                found.append(Handout(story=story_of(run, stored), target=target, folder=run))
        except UserError as error:
            left.append(str(error))
    return found, left


def _target(config: SyncCommand, own: TrackingConfig) -> TrackingConfig:
    """Where a run goes: as the command says, else as its own config does."""
    chosen = config.tracking if config.tracking.backend is Backend.wandb else own
    return replace(chosen, backend=Backend.wandb, mode=WandbMode.online)


def _from_files(config: SyncCommand) -> tuple[list[Handout], list[str]]:
    runs, excluded = logged_runs([Path(config.path or "")])
    found, left = [], [f"{out.row}: {out.reason}" for out in excluded]
    for run in runs:
        if run.job_type == "fit":
            continue  # see sweeps.sync_fits
        if not is_mirror(run):
            left.append(f"{run.run_id} is no run of isoflop's; `wandb sync` takes it")
            continue
        try:
            found.append(Handout(story=_story_of_logged(run), target=_target(config, TrackingConfig())))
        except UserError as error:
            left.append(f"{run.run_id}: {error}")
    return found, left


def _story_of_logged(run: LoggedRun) -> Story:
    """A mirrored run as its files have it; its rows up to the first that is missing."""
    config = mirrored_config(run)
    by_step = {row.get("_step"): row for row in run.rows}
    rows: list[Mapping[str, Any]] = []
    while (row := by_step.get(len(rows))) is not None:
        rows.append({key: value for key, value in row.items() if key not in ("_step", "_runtime")})
    points = final_records(run.summary, run.run_id)
    return Story(
        run_id=run.run_id,
        sweep=run.group,
        tags=tags(config),
        config={key: value for key, value in run.config.items() if key != "_wandb"},
        rows=rows,
        summary=summary_of(points) if has_ended(config, points) else {},
    )


def missing(found: Sequence[Handout]) -> Iterator[tuple[Handout, bool]]:
    """Each run, and whether W&B lacks any of it: asked of the server, one list per project.

    Raises
    ------
    UserError
        If the server cannot be reached, or refuses.
    """
    projects = dict.fromkeys((one.target.entity, one.target.project, one.story.sweep) for one in found)
    known: dict[tuple[str | None, str, str], dict[str, Any]] = {}
    for where in projects:
        known[where] = {run.id: run for run in runs_there(*where)}
    for one in found:
        run = known[one.target.entity, one.target.project, one.story.sweep].get(one.story.run_id)
        yield one, run is None or not _is_whole(run, one.story)


def _is_whole(run: Any, story: Story) -> bool:
    told = run.summary_metrics or {}
    same = all(told.get(name) == story.summary[name] for name in ("points", "verdict") if story.summary)
    return int(run.history_line_count or 0) >= len(story.rows) and same


def hand_in(one: Handout) -> int | None:
    """Bring W&B up to a run's present state; how many rows that took, None where a mirror is at it.

    Raises
    ------
    Exception
        Whatever W&B's client raises.
    """
    with ExitStack() as stack:
        if one.folder is not None:
            place = one.folder.path / "wandb"
            place.mkdir(exist_ok=True)
            if stack.enter_context(Lock(place)) is None:
                return None
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        run = WandbRun(scratch, one.story, one.target, final=bool(one.story.summary))
        had = run.handed_over
        run.hand_over(one.story.rows)
        run.finish(one.story.summary)
        if one.folder is not None and one.story.summary:
            mark_whole(one.folder, one.target.mode.value)
        return len(one.story.rows) - had


def sync(found: Sequence[Handout], left: Sequence[str]) -> Outcome:
    """Hand in all that W&B lacks, with progress."""
    outcome = Outcome(left=list(left))
    assert outcome.left is not None
    with progress_line() as report:
        report("asking W&B what it has", 0.0)
        for number, (one, lacks) in enumerate(missing(found)):
            report(f"handing in {one.story.run_id}", number / len(found))
            if not lacks:
                outcome.there += 1
                continue
            try:
                rows = hand_in(one)
            except Exception as error:
                why = (str(error).strip().splitlines() or [""])[0]
                outcome.left.append(f"{one.story.run_id}: W&B does not take it ({type(error).__name__}: {why})")
                continue
            if rows is None:
                outcome.left.append(f"{one.story.run_id} is being told by its worker's mirror")
            else:
                outcome.handed_in += 1
                outcome.rows += rows
    return outcome


def _body(raw: DictConfig) -> int:
    config: SyncCommand = typed(raw)
    os.environ["WANDB_SILENT"] = "true"
    place = config.path or config.out or SweepFolder.of(config.root, config.sweep.name).fit
    fits = offline_fits(Path(place), config.tracking)
    found, left = handouts(config)
    outcome = sync(found, left)
    print(  # noqa: T201
        f"{outcome.handed_in} runs handed in ({outcome.rows} rows), {outcome.there} were there already"
    )
    reasons = outcome.left or []
    if fits:
        with progress_line() as report:
            taken, refused_fits = hand_in_fits(lacking(fits), lambda what: report(what, 1.0))
        print(f"{taken} fits handed in, {len(fits) - taken - len(refused_fits)} were there already")  # noqa: T201
        reasons += refused_fits
    for reason in reasons[:LEFT_OUT]:
        say(f"left out: {reason}")
    if len(reasons) > LEFT_OUT:
        say(f"left out: {len(reasons) - LEFT_OUT} more")
    refused = [reason for reason in reasons if "W&B does not take it" in reason]
    return complain(f"{len(refused)} of them W&B did not take; the same command tries again", 1) if refused else 0


HELP = """isoflop sync [sweep=NAME] [from=offline|runs] [path=FILES] [tracking=wandb tracking.project=NAME]

Hand in to W&B what it does not have: runs mirrored offline, or online while W&B was away, every attempt of a run as
one run; and fits that were logged offline. from=runs takes every run of the sweep, mirrored or not, so that a lost
project can be made again. path=FILES takes .wandb files that were copied here. Safe to repeat, also while runs go."""


def main() -> None:
    """Entry point of the verb."""
    run_verb("sync", _body, HELP)


if __name__ == "__main__":
    main()
