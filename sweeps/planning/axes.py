"""Further axes of a sweep: any config key with a list of values, crossed with each other and with the points."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweeps.app import sentence, typed
from sweeps.config import Config
from trainer.errors import UserError

FORBIDDEN = ("sweep", "root", "cluster", "fit", "limits", "tracking")
"""Nodes that name the sweep or say how it is run; points cannot differ in them."""


def expand(config: DictConfig) -> list[tuple[dict[str, Any], Config]]:
    """Each combination of the axes' values, with the config it makes.

    Raises
    ------
    UserError
        If an axis names no config key, lists nothing, or holds a value its key does not take.
    """
    axes: Mapping[str, Any] = OmegaConf.to_container(config.sweep.axes)  # type: ignore[assignment]
    choices = [_axis(name, values) for name, values in _flat(axes)]
    expanded = []
    for combination in itertools.product(*choices):
        values = {key: value for part in combination for key, value in part.items()}
        changed = config.copy()
        for key, value in values.items():
            try:
                if OmegaConf.select(changed, key, throw_on_missing=False) is None and not _exists(changed, key):
                    raise UserError(f"sweep.axes: {key!r} is no config key; `--cfg job` lists them all, e.g. optim.lr.")
                OmegaConf.update(changed, key, value)
            except OmegaConfBaseException as error:
                raise UserError(f"sweep.axes: {key}={value!r} is refused: {sentence(error)}") from None
        expanded.append((values, typed(changed)))
    return expanded


def combinations(axes: Mapping[str, Any]) -> int:
    """How many :func:`expand` gives."""
    return math.prod(len(values) for _, values in _flat(axes))


def _flat(axes: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``{optim: {lr: [...]}}``, as ``sweep.axes.optim.lr=[...]`` makes it, under the one name ``optim.lr``."""
    for name, values in axes.items():
        if isinstance(values, dict):
            yield from _flat(values, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", values


def _axis(name: str, values: Any) -> list[dict[str, Any]]:
    keys = [key.strip() for key in name.split(",")]
    for key in keys:
        if key.partition(".")[0] in FORBIDDEN:
            raise UserError(
                f"sweep.axes: {key!r} cannot differ between points; axes take keys of model, data, optim, schedule, "
                "trainer or device (seeds have sweep.seeds)."
            )
    if not isinstance(values, list) or not values:
        raise UserError(f"sweep.axes: {name!r} has {values!r}; give a list with at least one value.")
    rows = values if len(keys) > 1 else [[value] for value in values]
    for row in rows:
        if not isinstance(row, list) or len(row) != len(keys):
            raise UserError(
                f"sweep.axes: {name!r} names {len(keys)} keys, but {row!r} is not a list of as many values."
            )
    return [dict(zip(keys, row, strict=True)) for row in rows]


def _exists(config: DictConfig, key: str) -> bool:
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return isinstance(node, DictConfig) and leaf in node
