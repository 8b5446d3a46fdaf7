"""A fit as a run in W&B (``job_type=fit``), so that a project's history shows how the law moved as points came in.

The fit's folder has been written before. A process of its own logs it, so that whatever W&B does costs the fit
nothing but a warning: ``python -m sweeps.fit_wandb`` takes the folder, the title and the tracking on standard input.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.store import EXCLUSIONS, EXPONENTS, FIT, POINTS, REPLICATES
from sweeps.planning.planner import provenance
from sweeps.terminal import say
from trainer.config import TrackingConfig, plain
from trainer.tracking import LEAN

SECONDS = 180.0
"""How long W&B may take for a fit."""
REPORT = "report.html"
TABLE_ROWS = 5000
"""W&B's tables hold 10,000 rows at most; the artifact has them all."""


def log_fit(place: Path, title: str, group: str, tracking: TrackingConfig) -> bool:
    """Log the fit of a folder; whether W&B took it. Where it did not, that is said, and nothing else is changed."""
    request = {"place": str(place), "title": title, "group": group, "tracking": plain(tracking)}
    request["git_commit"] = provenance().get("git")
    command = [sys.executable, "-m", "sweeps.fit_wandb"]
    try:
        done = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, timeout=SECONDS, check=False
        )
        why = (done.stderr.strip().splitlines() or ["it said nothing"])[-1] if done.returncode else ""
    except subprocess.TimeoutExpired:
        why = f"it has not answered for {SECONDS:g} s"
    except OSError as error:
        why = str(error.strerror)
    if why:
        say(f"W&B did not take the fit ({why}); it stands in {place} all the same, and fitting again logs it")
    return not why


def fit_values(fit: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a fit.json that a chart over fits shows: ``<approach>/<number>``, with ``_low`` and ``_high``."""
    values: dict[str, Any] = {"points": fit["rows"]["used"], "left_out": len(fit["rows"]["excluded"])}
    for name, approach in fit["approaches"].items():
        for key in ("a", "b", "E", "A", "B", "alpha", "beta"):
            number = approach.get(key)
            if isinstance(number, dict):
                ends = {f"{name}/{key}": "value", f"{name}/{key}_low": "low", f"{name}/{key}_high": "high"}
                values |= {label: number[end] for label, end in ends.items() if number.get(end) is not None}
    return values


def _log(request: dict[str, Any]) -> None:
    import wandb

    place, tracking = Path(request["place"]), request["tracking"]
    fit = json.loads((place / FIT).read_text())
    known = wandb.Settings.model_fields
    run = wandb.init(
        project=tracking["project"],
        entity=tracking["entity"],
        mode=tracking["mode"],
        dir=str(place),
        name=f"fit {request['title']} ({fit['rows']['used']} points)",
        group=request["group"],
        job_type="fit",
        tags=["fit"],
        config={
            "source": fit["source"],
            "reading": fit.get("reading") or {},
            "conventions": fit["conventions"],
            "interval": fit["interval"],
            "git_commit": request["git_commit"],
        },
        settings=wandb.Settings(**{name: value for name, value in LEAN.items() if name in known}),
    )
    values = fit_values(fit)
    run.log(values)
    media: dict[str, Any] = {}
    for name in (EXPONENTS, POINTS, EXCLUSIONS):
        table = pd.read_csv(place / name, nrows=TABLE_ROWS, dtype=object)
        media[Path(name).stem] = wandb.Table(dataframe=table.where(table.notna(), None))
    for figure in sorted((place / "figures").glob("*.png")):
        media[f"figures/{figure.stem}"] = wandb.Image(str(figure))
    if (place / REPORT).is_file():
        media["report"] = wandb.Html((place / REPORT).open(), inject=False)
    run.log(media)
    artifact = wandb.Artifact(f"fit-{request['group']}", type="fit", metadata=values)
    for name in (FIT, POINTS, EXPONENTS, EXCLUSIONS, REPLICATES, REPORT):
        if (place / name).is_file():
            artifact.add_file(str(place / name))
    run.log_artifact(artifact)
    run.summary.update(values | {"warnings": len(fit.get("warnings") or ())})
    run.finish()


def main() -> None:
    """Log the fit that standard input names; a failure is one line on stderr."""
    os.environ["WANDB_SILENT"] = "true"
    try:
        _log(json.load(sys.stdin))
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        sys.stderr.write(f"{type(error).__name__}: {lines[0]}\n")
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    main()
