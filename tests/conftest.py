"""Fixtures that every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", action="store_true", help="run fault schedules and property tests in full length")


@pytest.fixture(scope="session")
def whole(request: pytest.FixtureRequest) -> bool:
    """Whether the long schedules were asked for."""
    return bool(request.config.getoption("--whole"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Public data sets that lie beside the checkout on some machines."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no public data sets at {folder.name}/ beside the checkout")
    return folder
