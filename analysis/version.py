"""Which versions made a result."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def version_of(package: str) -> str | None:
    """The installed version; None in a checkout that is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
