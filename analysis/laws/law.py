"""The registry: laws by name, from the files of ``conf/law`` and of a lab's own config folders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from analysis.config import LawConfig
from analysis.fitting.values import Cost, PowerLaw
from analysis.laws.forms import FrontierLaw, Law, Optimal, SurfaceLaw, positive
from trainer.errors import UserError
from trainer.shape import FlopCount, ParamCount

__all__ = ["FrontierLaw", "Law", "LawConfig", "Optimal", "SurfaceLaw", "find_law", "known_laws", "law_from_config"]

SURFACE = ("E", "A", "B", "alpha", "beta")
FRONTIERS = (("n_coefficient", "n_exponent"), ("d_coefficient", "d_exponent"))
OTHERS = ("loss_coefficient", "loss_exponent", "cost_coefficient", "cost_exponent", "flops_low", "flops_high")
NUMBERS = (*SURFACE, *FRONTIERS[0], *FRONTIERS[1], *OTHERS)


def law_from_config(config: LawConfig) -> Law:
    """The law that a resolved group ``law/`` holds.

    Raises
    ------
    UserError
        If the config is ``law=none``, lacks a number, mixes the two forms, or gives no optimum.
    """
    numbers: dict[str, Any] = {name: _number(config, name) for name in NUMBERS}
    stated = [name for pair in FRONTIERS for name in pair if numbers[name] is not None]
    missing = [name for name in SURFACE if numbers[name] is None]
    if config.name is None or (missing and not stated):
        raise UserError(
            f"law={config.name or 'none'} lacks {', '.join(missing) or 'a name'}; "
            f"choose one of {', '.join(known_laws())} with law=<name>, or state the numbers."
        )
    surface = [name for name in SURFACE[1:] if numbers[name] is not None]
    if stated and (surface or tuple(stated) not in FRONTIERS):
        raise UserError(
            f"law={config.name} states {', '.join(surface + stated)}; give a surface (E, A, B, alpha, beta), or a "
            "frontier (n_coefficient and n_exponent, or d_coefficient and d_exponent)."
        )
    ends = (numbers["flops_low"], numbers["flops_high"])
    common: dict[str, Any] = {
        "name": config.name,
        "params": config.params,
        "flops": config.flops,
        "cost": Cost(coefficient=numbers["cost_coefficient"], exponent=numbers["cost_exponent"]),
        "flops_range": None if None in ends else ends,
        "loss_unit": config.loss,
        "source": config.source,
        "note": config.note,
    }
    if not stated:
        return SurfaceLaw(**common, **{name: numbers[name] for name in SURFACE})
    parts = {name: numbers[name] for name in ("loss_coefficient", "loss_exponent")}
    return FrontierLaw(**common, **parts, E=numbers["E"] or 0.0, n_opt=_n_opt(numbers, common["cost"]))


def find_law(name: str, folders: Sequence[Path] = ()) -> Law:
    """A law by name, from ``law/<name>.yaml`` in ``folders``, then in the project's own.

    Parameters
    ----------
    name
        One of :func:`known_laws`, e.g. ``besiroglu2024``.
    folders
        A lab's own config folders, as ``--config-dir`` takes them; the first that has the law counts.

    Returns
    -------
    SurfaceLaw or FrontierLaw
        In the conventions it was published in: N as its ``params`` and C as its ``flops`` say, L in its ``loss_unit``.

    Raises
    ------
    UserError
        If there is none of that name (the sentence lists those there are), or its file holds what no law has.
    """
    for folder in _law_folders(folders):
        path = folder / f"{name}.yaml"
        if name not in ("none", "schema") and path.is_file():
            raw: dict[str, Any] = yaml.safe_load(path.read_text())
            known = {field.name for field in fields(LawConfig)}
            given = {key: value for key, value in raw.items() if key in known}
            for key, kind in (("params", ParamCount), ("flops", FlopCount)):
                if key in given:
                    given[key] = kind[_known(kind, given[key], f"{path}: {key}")]  # by name, as Hydra reads it
            return law_from_config(LawConfig(**given))
    raise UserError(f"law={name} is not known; choose one of {', '.join(known_laws(folders))}.")


def known_laws(folders: Sequence[Path] = ()) -> list[str]:
    """The names that ``law=`` and :func:`find_law` take, besides ``none``.

    Parameters
    ----------
    folders
        A lab's own config folders, whose laws are listed with the project's.

    Returns
    -------
    The names, sorted.
    """
    names = {path.stem for folder in _law_folders(folders) for path in folder.glob("*.yaml")}
    return sorted(names - {"none"})


def _n_opt(numbers: Mapping[str, Any], cost: Cost) -> PowerLaw:
    """N*(C), from D*(C) where that is stated: with C = k N^g D, N* = (C / (k D*))^(1/g)."""
    name = "d_coefficient" if numbers["n_coefficient"] is None else "n_coefficient"
    for one in (name, "cost_coefficient", "cost_exponent"):
        positive(one, numbers[one])
    level, exponent = math.log(numbers[name]), numbers[name[0] + "_exponent"]
    if name == "n_coefficient":
        return PowerLaw(log_coefficient=level, exponent=exponent)
    return PowerLaw(
        log_coefficient=-(level + math.log(cost.coefficient)) / cost.exponent, exponent=(1 - exponent) / cost.exponent
    )


def _number(config: LawConfig, name: str) -> float | None:
    """As a float: YAML takes 1e9 for text, Hydra for a number."""
    value = getattr(config, name)
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        raise UserError(f"law.{name}={value} of law={config.name} is not a number; correct it.") from None


def _known(kind: type[StrEnum], given: object, where: str) -> str:
    if given not in kind.__members__:
        raise UserError(f"{where}={given} is not known; choose one of {', '.join(kind.__members__)}.")
    return str(given)


def _law_folders(folders: Sequence[Path]) -> list[Path]:
    import conf

    return [*(folder / "law" for folder in folders), Path(next(iter(conf.__path__))) / "law"]
