"""Published laws L(N, D) = E + A / N^alpha + B / D^beta, each in the conventions it was fitted in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from analysis.config import LawConfig
from trainer.errors import UserError
from trainer.shape import FlopCount, ParamCount

__all__ = ["Law", "LawConfig", "Optimal", "find_law", "known_laws"]


@dataclass(frozen=True, kw_only=True)
class Optimal:
    """A compute-optimal point: C, N*, D* and the loss there, in the law's conventions."""

    flops: float
    params: float
    tokens: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class Law:
    """A law and what N, C and L mean in it; its optima are those for C = 6 N D.

    Raises
    ------
    UserError
        If an optimum is asked for so far out that floating-point numbers do not hold it.
    """

    name: str
    E: float
    A: float
    B: float
    alpha: float
    beta: float
    params: ParamCount = ParamCount.total
    flops: FlopCount = FlopCount.sixnd
    loss_unit: str = "nats/token"
    source: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse numbers with which the law has no optimum.

        Raises
        ------
        UserError
            If A, B, alpha or beta is not positive, E is negative, or C is counted otherwise than as 6 N D.
        """
        if self.flops is not FlopCount.sixnd:
            raise UserError(
                f"law.flops={self.flops.name}: a law's optima are those for C = 6 N D, so law.flops must be sixnd; "
                "fit with fit.flops=sixnd and give that law, or predict from the fit itself with path=."
            )
        for name in ("E", "A", "B", "alpha", "beta"):
            value = getattr(self, name)
            allowed = math.isfinite(value) and (value > 0 or (name == "E" and value == 0))
            if not allowed:
                raise UserError(f"law.{name}={value} must be a positive number; see conf/law/ for published laws.")

    @classmethod
    def from_config(cls, config: LawConfig) -> Law:
        """The law that a resolved group ``law/`` holds.

        Raises
        ------
        UserError
            If the config is ``law=none`` or lacks a number.
        """
        numbers = {name: getattr(config, name) for name in ("E", "A", "B", "alpha", "beta")}
        missing = [name for name, value in numbers.items() if value is None]
        if config.name is None or missing:
            raise UserError(
                f"law={config.name or 'none'} lacks {', '.join(missing) or 'a name'}; "
                f"choose one of {', '.join(known_laws())} with law=<name>, or state the numbers."
            )
        return cls(
            name=config.name,
            **{name: float(value) for name, value in numbers.items()},
            params=config.params,
            flops=config.flops,
            loss_unit=config.loss,
            source=config.source,
            note=config.note,
        )

    @property
    def a(self) -> float:
        """N* ~ C^a."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> float:
        """D* ~ C^b."""
        return self.alpha / (self.alpha + self.beta)

    def loss(self, params: float, tokens: float) -> float:
        """L(N, D)."""
        return float(self.E + self.A / params**self.alpha + self.B / tokens**self.beta)

    @property
    def _balance(self) -> float:
        """Log G (alpha + beta) of Hoffmann et al. 2022, equation 4."""
        return math.log(self.alpha * self.A) - math.log(self.beta * self.B)

    def at_flops(self, flops: float) -> Optimal:
        """N*, D* and L* at a budget of ``flops`` = 6 N D."""
        log_n = (self._balance + self.beta * math.log(flops / 6)) / (self.alpha + self.beta)
        return self._optimal(f"flops={flops:g}", log_n, math.log(flops / 6) - log_n)

    def at_params(self, params: float) -> Optimal:
        """The budget at which ``params`` is optimal, and its D*."""
        log_n = math.log(params)
        return self._optimal(f"params={params:g}", log_n, (self.alpha * log_n - self._balance) / self.beta)

    def at_tokens(self, tokens: float) -> Optimal:
        """The budget at which ``tokens`` is optimal, and its N*."""
        log_d = math.log(tokens)
        return self._optimal(f"tokens={tokens:g}", (self._balance + self.beta * log_d) / self.alpha, log_d)

    def _optimal(self, asked: str, log_n: float, log_d: float) -> Optimal:
        try:
            params, tokens = math.exp(log_n), math.exp(log_d)
            at = Optimal(flops=6 * params * tokens, params=params, tokens=tokens, loss=self.loss(params, tokens))
        except ArithmeticError:
            at = None
        if at is None or not all(0 < number < math.inf for number in astuple(at)):
            raise UserError(
                f"{asked}: the optimum of law={self.name} there, N = 1e{log_n / math.log(10):.0f} and "
                f"D = 1e{log_d / math.log(10):.0f}, lies beyond what floating-point numbers hold; ask nearer to 1e18."
            )
        return at


def find_law(name: str, folders: Sequence[Path] = ()) -> Law:
    """A law by name, from ``law/<name>.yaml`` in ``folders`` (a lab's own config folders), then in the project's own.

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
            return Law.from_config(LawConfig(**given))
    raise UserError(f"law={name} is not known; choose one of {', '.join(known_laws(folders))}.")


def _known(kind: type[StrEnum], given: object, where: str) -> str:
    if given not in kind.__members__:
        raise UserError(f"{where}={given} is not known; choose one of {', '.join(kind.__members__)}.")
    return str(given)


def known_laws(folders: Sequence[Path] = ()) -> list[str]:
    """The names that ``law=`` takes, besides ``none``."""
    names = {path.stem for folder in _law_folders(folders) for path in folder.glob("*.yaml")}
    return sorted(names - {"none"})


def _law_folders(folders: Sequence[Path]) -> list[Path]:
    import conf

    return [*(folder / "law" for folder in folders), Path(next(iter(conf.__path__))) / "law"]
