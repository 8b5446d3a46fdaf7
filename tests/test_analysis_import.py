from __future__ import annotations

import subprocess
import sys

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
    assert sorted(analysis.__all__) == analysis.__all__
    assert set(analysis.__all__) == set(analysis._HOMES)
