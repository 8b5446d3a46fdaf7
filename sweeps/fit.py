"""``isoflop fit``: the three approaches, from run folders or from anybody's CSV.

isoflop fit sweep=quickstart
isoflop fit source=csv path=points.csv columns.params=n columns.loss=val where="decay == 'cosine'"
isoflop fit source=csv path=many.csv group_by=dataset,recipe
isoflop fit source=csv path=points.csv curves=curves.csv
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from analysis.fit import fit_tables
from analysis.fitting.values import Refused
from analysis.ingest.clean import keep_where, split
from analysis.ingest.files import read_file
from analysis.ingest.tables import Tables
from analysis.ingest.wandb_api import read_project
from analysis.ingest.wandb_files import read_offline
from analysis.laws.law import law_from_config
from analysis.report.document import write_report
from analysis.report.figures import write_figures
from analysis.report.latex import write_latex
from analysis.result import FitResult
from analysis.store import exponents_table, write_fit
from sweeps.app import complain, run_verb, typed
from sweeps.config import Config, FitCommand, FitSource, Format
from sweeps.fit_wandb import log_fit
from sweeps.paths import SweepFolder
from sweeps.planning.probe import best_rates
from sweeps.render.fit import fit_json, print_fit, print_rates, print_summary
from sweeps.terminal import progress_line, say
from sweeps.watch.measured import sweep_tables
from trainer.errors import UserError
from trainer.files import write_whole
from trainer.tracking import is_tracked

LONGEST_NAME = 120  # of a group's folder: file systems end at 255 bytes


def fit_sweep(config: Config, folder: SweepFolder) -> None:
    """Fit the planned points of a sweep, write the fit's folder, and print what it says."""
    reading = {"source": "runs", "root": config.root, "sweep": folder.name}
    reading |= {} if config.validation is None else {"validation": config.validation}
    out = Path(config.out) if config.out else folder.fit
    tables = sweep_tables(folder, config.validation)
    try:
        fit_and_show(config, tables, out, title=folder.name, reading=reading)
    except UserError as error:
        if not best_rates(tables.points):
            raise
        say(f"no fit: {error}")  # of a sweep over rates nobody expects one


def fit_and_show(
    config: Config,
    tables: Tables,
    out: Path,
    *,
    title: str,
    reading: Mapping[str, Any],
    where: str | None = None,
    group_by: Sequence[str] = (),
) -> bool:
    """Fit every group, write a folder for each, and print the results.

    Parameters
    ----------
    reading
        The settings by which ``tables`` were read, for the record.

    Returns
    -------
    bool
        Whether any approach was fitted to any group.

    Raises
    ------
    UserError
        If no group could be fitted; where some could, the others are reported.
    """
    _check_writable(out)
    laws = () if config.law.name is None else (law_from_config(config.law),)
    if config.format is Format.table and (best := best_rates(tables.points)):
        print_rates(best)
    groups = list(split(keep_where(tables, where), group_by))
    fits: list[tuple[Path, FitResult]] = []
    refused: list[tuple[str, str]] = []
    with progress_line() as report:
        for number, (group, part) in enumerate(groups):
            name = ", ".join(group.values())
            report(f"fitting {name or title}", number / len(groups))
            try:
                result = replace(fit_tables(part, config.fit, group), reading=reading)
            except UserError as error:
                refused.append((name, str(error)))
                continue
            place = out / _free_name(group, {path.name for path, _ in fits}) if group else out
            write_fit(result, place)
            write_latex(result, place)
            figures = write_figures(result, part.curves, place, laws)
            report(f"writing {place.name}", (number + 0.9) / len(groups))
            write_report(result, part.curves, place / "report.html", laws, title=name or title)
            fits.append((place, result))
            if not group:
                say_files(place, figures)
    if not fits:
        raise UserError(refused[0][1])
    if config.format is Format.json:
        fit_json([result for _, result in fits], grouped=bool(group_by))
    elif not group_by:
        print_fit(fits[0][1])
        print_paths(out)
    else:
        write_summary(out, fits)
        print_summary([result for _, result in fits])
        say(f"written: {out / 'summary.csv'}, and a folder with report.html for each of {len(fits)} groups")
    for name, reason in refused:
        say(f"not fitted: {name}: {reason}")
    if is_tracked(config.tracking):
        with progress_line() as report:
            for number, (place, result) in enumerate(fits):
                named = ", ".join(result.group.values()) or title
                report(f"logging the fit of {named} to W&B", number / len(fits))
                log_fit(place, named, title, config.tracking)
    return any(not isinstance(found, Refused) for _, fit in fits for found in fit.primary.approaches.values())


def _check_writable(out: Path) -> None:
    """Before an hour of fitting: whether its results can be written."""
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(f"out={out} cannot be written to ({error.strerror}); choose another folder.") from None


def write_summary(out: Path, fits: Sequence[tuple[Path, FitResult]]) -> None:
    """``summary.csv``: every group's exponents."""
    import pandas as pd

    tables = []
    for place, result in fits:
        table = exponents_table(result)
        for position, (column, value) in enumerate(result.group.items()):
            table.insert(position, column, value)
        tables.append(table.assign(rows=len(result.primary.rows), folder=place.name))
    write_whole(out / "summary.csv", pd.concat(tables).to_csv(index=False))


def folder_name(group: Mapping[str, str]) -> str:
    """A group's values as one folder name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(group.values())).strip(".")[:LONGEST_NAME] or "_"


def _free_name(group: Mapping[str, str], taken: set[str]) -> str:
    name, number, taken = folder_name(group), 1, {name.lower() for name in taken}
    while name.lower() in taken:
        number += 1
        name = f"{folder_name(group)}_{number}"
    return name


def print_paths(out: Path) -> None:
    """Where the report and figures lie, last on stdout."""
    for path in (out / "report.html", out / "figures", out / "fit.json"):
        print(path)  # noqa: T201


def say_files(place: Path, figures: Sequence[Path]) -> None:
    """How much was written."""
    say(f"written: {place} ({len(figures)} figure files)")


def _source(config: FitCommand) -> tuple[Tables, str, Path]:
    """The rows, what they are called, and where their fit goes by default."""
    if config.source is FitSource.runs:
        folder = SweepFolder.of(config.root, config.sweep.name)
        return sweep_tables(folder, config.validation), folder.name, folder.fit
    if config.validation is not None:
        raise UserError(
            f"validation={config.validation} goes with source=runs; of source={config.source.value} name the column, "
            f"e.g. columns.loss=val_loss_{config.validation}."
        )
    path, fill = Path(config.path or ""), config.fit.fill
    if config.curves is not None and config.source is not FitSource.csv:
        raise UserError(f"curves={config.curves} goes with source=csv; source=wandb reads a run's own curves.")
    if config.source is FitSource.wandb and config.path is None:
        if not config.project:
            raise UserError("project is empty; source=wandb needs project=<entity>/<name>, or path=<offline runs>.")
        name = config.group or config.project.rpartition("/")[2]
        with progress_line() as report:
            tables = read_project(
                config.project, config.group, config.columns, fill=fill, cache=wandb_cache(), report=report
            )
        return tables, name, Path("fits") / name
    if config.path is None:
        raise UserError("path is empty; source=csv needs path=<file with one row per point>.")
    read = read_offline([path], config.columns, fill=fill) if config.source is FitSource.wandb else None
    curves = None if config.curves is None else Path(config.curves)
    return read or read_file(path, config.columns, fill=fill, curves=curves), path.stem, Path("fits") / path.stem


def wandb_cache() -> Path:
    """Where histories read from W&B are kept for the next time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isoflop" / "wandb"


def _reading(config: FitCommand) -> dict[str, Any]:
    """The settings that :func:`_source` goes by, as far as they are used."""
    runs = config.source is FitSource.runs
    names = ("root", "validation") if runs else ("path", "curves", "project", "group", "columns")
    said = {"source": config.source.value} | {name: getattr(config, name) for name in names}
    said |= {"sweep": config.sweep.name if runs else None, "where": config.where}
    return {name: value for name, value in said.items() if value}


def _body(raw: DictConfig) -> int:
    config: FitCommand = typed(raw)
    tables, title, out = _source(config)
    fitted = fit_and_show(
        config,
        tables,
        Path(config.out) if config.out else out,
        title=title,
        reading=_reading(config),
        where=config.where,
        group_by=config.group_by,
    )
    return 0 if fitted else complain("no approach could be fitted; the reasons stand above and in the report.", 2)


HELP = """isoflop fit [sweep=NAME] [out=DIR] [key=value ...]
isoflop fit source=csv path=FILE [curves=FILE] [columns.OURS=THEIRS] [where=QUERY] [group_by=COLUMNS] [out=DIR]

Fit the three Chinchilla approaches with bootstrap intervals; write fit.json, tables, figures and report.html.
curves=FILE holds the loss curves of the points' runs, for Approach 1.
validation=NAME fits the loss of one of several validation sets.
law=NAME draws a published law beside the own fit. fit.* holds the knobs (delta, replicates, level, ...)."""


def main() -> None:
    """Entry point of the verb."""
    run_verb("fit", _body, HELP)


if __name__ == "__main__":
    main()
