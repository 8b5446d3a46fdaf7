"""Histories of W&B runs, kept on disk: W&B only ever adds rows to one, so a second reading asks for what is new."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.errors import MachineFault
from trainer.files import write_whole

SCHEMA = 1


class RunCache:
    """A folder with one file per run of a project; without a folder, nothing is kept.

    A run that was deleted and made again has another time of creation, and is read anew.
    """

    def __init__(self, folder: Path | None, project: str) -> None:
        self._folder = None if folder is None else folder / re.sub(r"[^A-Za-z0-9._-]+", "_", project)

    def rows(self, run_id: str, created: str) -> list[dict[str, Any]]:
        """What is kept of a run's history; nothing where that is damaged, or another run's."""
        if self._folder is None:
            return []
        with suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(self._file(run_id).read_text())
            rows: list[dict[str, Any]] = kept["rows"]
            if (kept["schema"], kept["created"]) == (SCHEMA, created) and all(
                isinstance(r["_step"], int) for r in rows
            ):
                return rows
        return []

    def keep(self, run_id: str, created: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep a run's history; a disk that does not take it costs the next reading time, and nothing else."""
        if self._folder is None or not all("_step" in row for row in rows):
            return
        text = json.dumps({"schema": SCHEMA, "created": created, "rows": list(map(dict, rows))})
        with suppress(MachineFault):
            write_whole(self._file(run_id), text)

    def _file(self, run_id: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{re.sub(r'[^A-Za-z0-9._@-]+', '_', run_id)}.json"
