"""What SLURM starts: ``python -m sweeps.task JOB_FOLDER``, once per worker of a task."""

from __future__ import annotations

import signal
import sys
from pathlib import Path


def main() -> None:
    """Catch signals, which must not kill while modules are imported; then live."""
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda received, frame: signals.append(received))
    from sweeps.dispatch.life import live

    sys.exit(live(Path(sys.argv[1]), signals))


if __name__ == "__main__":
    main()
