"""Where a sweep's files lie, and what is pinned in it.

::

    <root>/corpora/<corpus id>/    shared by the root's sweeps
    <root>/<sweep>/plan.json       the last plan; plan.csv beside it
    <root>/<sweep>/design.json     what an optimal design has chosen
    <root>/<sweep>/pins.json        the corpus that each data config got, and what auto meant
    <root>/<sweep>/jobs/<job>/     one per submitted job
    <root>/<sweep>/<run id>/       one per run
    <root>/<sweep>/fit/            what fit wrote
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import UserError
from trainer.files import write_json
from trainer.recipe import SCHEMA, check_schema
from trainer.runfolder import RunFolder


@dataclass(frozen=True)
class SweepFolder:
    """The folder of one sweep under a root."""

    root: Path
    name: str

    @classmethod
    def of(cls, root: str, name: str) -> SweepFolder:
        """The folder of ``sweep.name`` under ``root``.

        Raises
        ------
        UserError
            If the name is no plain folder name.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or name == "corpora":
            raise UserError(
                f"sweep.name={name!r} must be letters, digits, '.', '_' and '-' (and not 'corpora'); "
                "choose a sweep= or set sweep.name=<name>."
            )
        if not root:
            raise UserError("root is empty; give the folder where sweeps live, e.g. root=./runs.")
        if Path(root).exists() and not Path(root).is_dir():
            raise UserError(f"root={root} is a file; give the folder where sweeps live, e.g. root=./runs.")
        return cls(Path(root).absolute(), name)

    @property
    def path(self) -> Path:
        """``<root>/<sweep>``."""
        return self.root / self.name

    @property
    def plan_path(self) -> Path:
        """``plan.json``."""
        return self.path / "plan.json"

    @property
    def jobs(self) -> Path:
        """The folder of jobs."""
        return self.path / "jobs"

    @property
    def fit(self) -> Path:
        """Where fit writes unless told otherwise."""
        return self.path / "fit"

    def run(self, run_id: str) -> RunFolder:
        """The folder of one run."""
        return RunFolder(self.path / run_id)

    def runs(self, without: Container[str] = ()) -> list[RunFolder]:
        """Every run folder there is, whether or not the sweep's config still has it, but for those in ``without``."""
        names = sorted(entry.name for entry in os.scandir(self.path)) if self.path.is_dir() else []
        runs = (RunFolder(self.path / name) for name in names if name not in without)
        return [run for run in runs if run.config_path.exists()]

    def read_pins(self) -> dict[str, str]:
        """What later plans of the sweep must find as it was: corpus ids by data settings, the meaning of ``auto``."""
        path = self.path / "pins.json"
        try:
            raw = json.loads(path.read_text())
            pins: dict[str, str] = raw["pins"]
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path} is damaged; restore it, or choose another root=.") from None
        check_schema(raw.get("schema"), str(path))
        return pins

    def write_pins(self, pins: Mapping[str, str]) -> None:
        """Write all pins, whole."""
        write_json(self.path / "pins.json", {"schema": SCHEMA, "pins": dict(pins)})
