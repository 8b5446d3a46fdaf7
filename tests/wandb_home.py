"""W&B's client set up for a test: its own files away from the user's, silent, and no login but the stand-in's."""

from __future__ import annotations

from pathlib import Path

import pytest
from wandb_stand_in import KEY


def at_home(patch: pytest.MonkeyPatch, folder: Path, url: str | None = None) -> None:
    """Point W&B's client at ``folder``, and at a server where there is one."""
    import wandb

    wandb.teardown()  # it reads its settings once per process
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        patch.setenv(name, str(folder / "wandb_home"))
    patch.setenv("WANDB_SILENT", "true")
    patch.setenv("WANDB_ERROR_REPORTING", "false")
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    patch.setenv("NETRC", str(folder / "no-netrc"))
    patch.setenv("WANDB_API_KEY", KEY)
    patch.setenv("WANDB_BASE_URL", url or "http://127.0.0.1:9")  # the discard port: nobody answers
