"""Training a run under a lock that another process holds: that of the worker which started this one.

The worker hands on what the ledger says of its attempts, and its lock's token, in one variable of the environment.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trainer.lock import BEAT_SECONDS, held_by

VARIABLE = "ISOFLOP_LENT"


@dataclass(frozen=True, kw_only=True)
class Lent:
    """What a worker lends to the processes that it starts."""

    token: str
    """Of its lock."""
    job: str
    """The name under which attempts are recorded."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What every attempt's first line says besides."""

    def environment(self) -> dict[str, str]:
        """For the processes."""
        return {VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Lent | None:
        """What this process was lent; None where nobody did."""
        return cls(**json.loads(environ[VARIABLE])) if environ.get(VARIABLE) else None

    def watch(self, folder: Path) -> Callable[[], bool]:
        """What says whether the worker is gone, or has lost the lock: nothing more must then be written.

        Asked of the disk at most twice per heartbeat.
        """
        lost, again = False, 0.0

        def was_lost() -> bool:
            nonlocal lost, again
            if not lost and time.monotonic() >= again:
                lost, again = not held_by(folder, self.token), time.monotonic() + BEAT_SECONDS / 2
            return lost

        return was_lost
