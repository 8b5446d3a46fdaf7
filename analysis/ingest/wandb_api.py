"""Runs from W&B's server, through its public Api."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from analysis.config import Fill, chosen
from analysis.ingest.tables import Exclusion, Tables
from analysis.ingest.wandb_cache import RunCache
from analysis.ingest.wandb_runs import LoggedRun, tables_of_logged
from trainer.errors import UserError

PAGE = 1000
"""History rows a request brings."""
PAUSES = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Seconds to wait before asking again, where the server is busy."""
BUSY = re.compile(r"\b(429|50[0234])\b|rate.?limit|too many requests|timed? ?out|temporarily", re.IGNORECASE)

T = TypeVar("T")


def read_project(
    project: str,
    group: str | None = None,
    columns: Mapping[str, str] | None = None,
    *,
    fill: Fill | str = Fill.none,
    api: Any = None,
    sleep: Callable[[float], None] = time.sleep,
    cache: Path | None = None,
    report: Callable[[str, float], None] = lambda message, share: None,
) -> Tables:
    """Read a W&B project's runs, finished or not, with their whole histories.

    A request that the server refuses as too many, or answers with a fault of its own, is made again after a pause. A
    run whose history cannot be had is listed. Runs that isoflop mirrored need no ``columns``.

    Parameters
    ----------
    project
        ``entity/project``, or the project alone for one's default entity.
    group
        Only runs of this W&B group; isoflop's group is the sweep.
    columns
        Our column -> the name in the run's config (dotted), history or summary: ``{"params": "model.n_params"}``.
    fill
        What is taken from C = 6 N D where it is missing, a :class:`~analysis.config.Fill` or its name.
    api
        A ``wandb.Api``; None makes one, which takes the login of this machine.
    cache
        The folder in which histories are kept, so that the next reading asks for new rows only; None keeps none.
    report
        Called with what is being done, and the share (0 to 1) that is.

    Raises
    ------
    UserError
        If the project cannot be read or has no such run, or N, D or L are not found in the runs.
    """
    fill = chosen(Fill, fill, "fit.fill")
    source = f"W&B project {project}" + (f", group {group}" if group else "")
    report(f"listing {project}", 0.0)
    runs = list_runs(project, group, api=api, sleep=sleep)
    kept = RunCache(cache, project)
    found: list[LoggedRun] = []
    excluded: list[Exclusion] = []
    for number, run in enumerate(runs):
        report(f"reading {run.id}", number / len(runs))
        try:
            found.append(_patiently(partial(_logged, run, kept), sleep))
        except Exception as error:
            excluded.append(Exclusion(row=run.id, reason=f"W&B does not hand it out: {_first_line(error)}"))
    return tables_of_logged(found, columns, fill=fill, source=source, excluded=excluded)


def list_runs(
    project: str, group: str | None = None, *, api: Any = None, sleep: Callable[[float], None] = time.sleep
) -> list[Any]:
    """A project's runs as W&B's client gives them, with config and summary, by rising age; each once.

    Raises
    ------
    UserError
        If the project does not exist, or may not be read.
    """
    try:
        if api is None:
            import wandb

            api = wandb.Api()
        filters = {"group": group} if group else None
        listed = _patiently(lambda: list(api.runs(project, filters=filters, lazy=False)), sleep)
    except Exception as error:  # whatever the client raises: no login, no network, no such project
        raise UserError(
            f"W&B project {project} cannot be read ({_first_line(error)}); check its name (entity/project), your login "
            "(wandb login) and the network."
        ) from error
    return list({run.id: run for run in listed}.values())


def _logged(run: Any, cache: RunCache) -> LoggedRun:
    known = cache.rows(run.id, run.created_at)
    begin = known[-1]["_step"] + 1 if known else 0
    rows = list(known)
    if (run.history_keys or {}).get("lastStep", begin) >= begin:
        # Without keys: with them, rows that lack one are left out.
        rows += run.scan_history(page_size=PAGE, min_step=begin)
        cache.keep(run.id, run.created_at, rows)
    return LoggedRun(
        run_id=run.id,
        name=run.name or run.id,
        group=getattr(run, "group", None) or "",
        job_type=getattr(run, "job_type", None) or "",
        state=run.state,
        config=run.config,
        summary=run.summary_metrics,
        rows=rows,
    )


def _patiently(ask: Callable[[], T], sleep: Callable[[float], None]) -> T:
    """The answer, asked for again as long as the server is only busy."""
    for pause in PAUSES:
        try:
            return ask()
        except Exception as error:
            if not BUSY.search(str(error)):
                raise
            sleep(pause)
    return ask()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
