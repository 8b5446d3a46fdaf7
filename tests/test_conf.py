"""Every config composes, and every file says what it is."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

import conf
from sweeps.config import Config, register

CONF = Path(conf.__file__).parent
GROUPS = ("model", "data", "optim", "schedule", "sweep", "cluster", "tracking", "law", "device")


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(*overrides: str) -> Config:
    register()
    with initialize_config_module("conf", version_base="1.3"):
        config = OmegaConf.to_object(compose("config", overrides=list(overrides)))
    assert isinstance(config, Config)
    return config


def test_the_groups_are_the_folders() -> None:
    assert sorted(GROUPS) == sorted(
        path.name for path in CONF.iterdir() if path.is_dir() and path.name != "__pycache__"
    )


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_of_a_group_composes(group: str) -> None:
    assert options(group)
    for option in options(group):
        path = ["data.path=/tokens"] if option == "tokens" else []
        composed(f"{group}={option}", *path)


@pytest.mark.parametrize(("sweep", "cluster"), list(itertools.product(options("sweep"), options("cluster"))))
def test_every_sweep_composes_with_every_cluster(sweep: str, cluster: str) -> None:
    config = composed(f"sweep={sweep}", f"cluster={cluster}")
    assert config.sweep.name == sweep


@pytest.mark.parametrize("sweep", options("sweep"))
def test_a_sweep_file_begins_with_the_command_that_runs_it(sweep: str) -> None:
    package, command = (CONF / "sweep" / f"{sweep}.yaml").read_text().splitlines()[:2]
    assert package == "# @package _global_"  # Hydra wants this one first
    assert command in (f"# isoflop run sweep={sweep}", f"# isoflop plan sweep={sweep}")


@pytest.mark.parametrize("path", sorted(CONF.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_file_is_checked_by_a_schema(path: Path) -> None:
    text = path.read_text()
    assert "schema" in text or path.parent.name == "sweep"


def test_a_sweep_on_the_command_line_can_change_anything() -> None:
    config = composed("sweep=smoke", "sweep.budgets=[1e10]", "sweep.seeds=[0,1]", "optim.lr=0.5", "schedule=wsd")
    assert config.sweep.budgets == [1e10]
    assert config.sweep.seeds == [0, 1]
    assert config.optim.lr == 0.5
    assert config.schedule.decay == "wsd"
