from __future__ import annotations

import ast
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import analysis


def _modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_no_part_of_analysis_imports_torch_or_wandb() -> None:
    loaded = _modules_after(f"from analysis import {', '.join(analysis.__all__)}")
    assert "analysis.fitting.parametric" in loaded
    assert not {"torch", "wandb", "hydra", "sweeps"} & loaded


def test_the_schemas_load_nothing_heavy() -> None:
    loaded = _modules_after("import analysis; from analysis.config import FitConfig, LawConfig")
    assert not {"numpy", "pandas", "scipy", "matplotlib"} & loaded


def test_the_package_exports_what_it_lists() -> None:
    for name in analysis.__all__:
        assert getattr(analysis, name).__name__ == name


def test_type_checkers_see_what_is_imported() -> None:
    source = ast.parse(Path(analysis.__file__).read_text())
    (checked,) = [node for node in source.body if isinstance(node, ast.If)]
    seen = {one.name: node.module for node in checked.body if isinstance(node, ast.ImportFrom) for one in node.names}
    assert seen == analysis._HOMES


def test_what_public_functions_take_and_return_is_public() -> None:
    """Every class of this project that a public function names in its signature."""
    missing = set()
    for name in analysis.__all__:
        public = getattr(analysis, name)
        if public.__module__.startswith(("analysis.", "trainer.")):
            hints = {} if isinstance(public, type) else typing.get_type_hints(public)
            missing |= {one.__name__ for hint in hints.values() for one in _classes(hint)} - set(analysis.__all__)
    assert missing == {"Numbers"}  # the keywords of Question, for type checkers alone


def _classes(hint: object) -> Iterator[type]:
    if isinstance(hint, type) and hint.__module__.startswith(("analysis.", "trainer.")):
        yield hint
    for part in typing.get_args(hint):
        yield from _classes(part)


def test_completion_lists_the_names() -> None:
    assert dir(analysis) == analysis.__all__
