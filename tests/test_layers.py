"""Imports point one way: each layer knows of those before it, and of no other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[1]
LAYERS = ["conf", "trainer", "analysis", "sweeps.planning", "sweeps.dispatch", "sweeps.watch", "sweeps.render"]
EVERYWHERE = {"sweeps.config", "sweeps.paths", "sweeps.app", "sweeps.help", "sweeps.terminal"}
"""What every part of ``sweeps`` uses; none of them imports another part."""
NOT_YET = {("sweeps.render", "sweeps.watch.overview")}


def imported(path: Path) -> set[str]:
    """Modules of the project that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{name.name}" for name in node.names} if node.module == "sweeps" else {node.module}
    return {name for name in found if name and name.split(".")[0] in {"trainer", "analysis", "sweeps", "conf"}}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_those_before_it(layer: str) -> None:
    allowed = LAYERS[: LAYERS.index(layer) + 1]
    for path in (HOUSE / layer.replace(".", "/")).rglob("*.py"):
        for name in imported(path) - (EVERYWHERE if layer.startswith("sweeps") else set()):
            assert any(name == one or name.startswith(f"{one}.") for one in allowed), f"{path.name} imports {name}"


def test_what_all_of_sweeps_uses_imports_no_part_of_it() -> None:
    for name in EVERYWHERE:
        path = HOUSE / f"{name.replace('.', '/')}.py"
        assert {one for one in imported(path) if one.startswith("sweeps.")} <= EVERYWHERE
