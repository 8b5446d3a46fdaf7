"""The schemas behind node ``fit`` and group ``law/``; nothing heavy is imported, so that ``--help`` stays quick."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, TypeVar

from trainer.errors import UserError
from trainer.shape import FlopCount, ParamCount

Choice = TypeVar("Choice", bound=StrEnum)


def chosen(kind: type[Choice], given: Choice | str, name: str) -> Choice:
    """``given`` as a member of ``kind``: one already, or its value or name as a plain string.

    Raises
    ------
    UserError
        Naming the argument ``name`` and its choices, if it is neither.
    """
    if isinstance(given, str):
        for one in kind:
            if given in (one.value, one.name):
                return one
    raise UserError(f"{name}={given} is not known; choose one of {', '.join(one.name for one in kind)}.")


class Resample(StrEnum):
    """What the bootstrap draws, with replacement unless it says otherwise."""

    budgets = "budgets"
    """Points within their budget."""
    cases = "cases"
    """Any points."""
    sizes = "sizes"
    """Model sizes, each with all its points."""
    seeds = "seeds"
    """Seeds, each with all its points."""
    clusters = "clusters"
    """Clusters of points, e.g. the horizons of one trunk."""
    bayesian = "bayesian"
    """Dirichlet weights on the points (Rubin 1981); none is ever left out."""
    residuals = "residuals"
    """Approach 3's residuals, laid on its fitted losses."""
    subsample = "subsample"
    """80 % of the points without replacement, as Hoffmann et al. 2022; too narrow, for comparison only."""


class Objective(StrEnum):
    """Approach 3: what is summed over rows, of the residual in log loss."""

    huber = "huber"
    """Hoffmann's, square up to ``delta``."""
    lad = "lad"
    """Least absolute deviations: the limit of small ``delta``."""
    squared = "squared"


class Form(StrEnum):
    """Approach 3: which of the five parameters are free."""

    free = "free"
    tied = "tied"
    """alpha = beta (Muennighoff et al. 2023; Gadre et al. 2024)."""
    fixed_E = "fixed_E"  # noqa: N815
    """The irreducible loss is ``fit.E``."""


class Valley(StrEnum):
    """Approach 2: the line through a budget's losses in log N, whose minimum is its N*."""

    parabola = "parabola"
    cubic = "cubic"
    akima = "akima"
    """Akima's interpolation through the mean loss of each size."""
    surface = "surface"
    """Approach 3's surface along the budget."""


class Quantity(StrEnum):
    """What a design is to pin; logarithms but for the exponent, so that errors are relative."""

    n_opt = "n_opt"
    """N* at some C; D* has the same error, times the exponent of N in the cost of a token."""
    exponent = "exponent"
    """a in N* ~ C^a."""
    loss = "loss"
    """L(N, D)."""
    loss_opt = "loss_opt"
    """L* at some C."""


class Fill(StrEnum):
    """Which missing number is taken from C = 6 N D."""

    none = "none"
    params = "params"
    tokens = "tokens"


@dataclass(kw_only=True)
class FitConfig:
    """Node ``fit``: how the three approaches and their intervals are computed."""

    params: ParamCount = ParamCount.total
    """The N convention that stands first; every convention the rows carry is fitted besides."""
    flops: str = "auto"
    """The C convention that stands first: matmul, logged, sixnd (or 6nd), chinchilla; auto takes the one that most rows
    have, of equals the first of these, and rows without it are left out."""
    fill: Fill = Fill.none
    """Take a missing N or D from C = 6 N D; with ``none`` such rows are left out."""
    epochs: float | None = 4.0
    """Rows that see their data more often than this are left out of the law, as repeated tokens do not count as fresh
    ones (Muennighoff et al. 2023); null keeps them."""
    level: float = 0.95
    """Of the intervals."""
    replicates: int = 1000
    resample: Resample = Resample.budgets
    seed: int = 0
    """Of the bootstrap."""
    compare: bool = False
    """Besides, intervals of a under every other way to resample."""
    objective: Objective = Objective.huber
    delta: float = 1e-3
    """Approach 3: where the Huber loss turns from square to linear, in log loss."""
    form: Form = Form.free
    E: float | None = None
    """Approach 3, form=fixed_E: the irreducible loss."""
    starts: int = 12
    """Approach 3: points of the grid that Newton's method starts from."""
    profile: bool = False
    """Approach 3: profile-likelihood intervals besides."""
    tail: float = 0.85
    """Approach 1: only rows at this share of a run's schedule, or later, count."""
    undecayed: bool = False
    """Approach 1: count runs whose learning rate never decayed as well."""
    valley: Valley = Valley.parabola
    window: float | None = None
    """Approach 2: only sizes within this factor of a budget's best one; null uses all."""
    unbias: bool = False
    """Approach 2: remove the valley's bias, as Approach 3's surface gives it."""
    budget_gap: float = 0.1
    """Points whose achieved FLOPs differ by more than this share belong to different budgets."""
    origins: int = 4
    """Backtest: at how many budgets, at most, the data are cut in turn; the last leaves only the largest out."""

    def __post_init__(self) -> None:
        """Take plain strings for choices.

        Raises
        ------
        UserError
            If one is not among them.
        """
        for name, kind in CHOICES.items():
            setattr(self, name, chosen(kind, getattr(self, name), f"fit.{name}"))

    def check(self) -> None:
        """Refuse settings out of range.

        Raises
        ------
        UserError
            Naming the setting, its value and what is allowed.
        """
        rules = (
            ("level", 0 < self.level < 1, "between 0 and 1, e.g. 0.95"),
            ("replicates", self.replicates >= 0, "0 or more, e.g. 1000"),
            ("delta", self.delta > 0, "above 0, e.g. 1e-3"),
            ("starts", 1 <= self.starts <= 576, "from 1 to 576, e.g. 12"),
            ("tail", 0 <= self.tail < 1, "from 0 to below 1, e.g. 0.85"),
            ("window", self.window is None or self.window > 1, "above 1, or null"),
            ("budget_gap", self.budget_gap > 0, "above 0, e.g. 0.1"),
            ("seed", self.seed >= 0, "0 or more"),
            ("epochs", self.epochs is None or self.epochs > 0, "above 0, or null"),
            ("origins", self.origins >= 1, "1 or more, e.g. 4"),
        )
        for name, good, allowed in rules:
            if not good:
                raise UserError(f"fit.{name}={getattr(self, name)} is out of range; give a number {allowed}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, of which ``FitConfig(**values)`` makes the same settings; as fit.json has them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value.value if isinstance(value, StrEnum) else value for name, value in values.items()}


CHOICES: dict[str, type[StrEnum]] = {
    "params": ParamCount,
    "fill": Fill,
    "resample": Resample,
    "objective": Objective,
    "form": Form,
    "valley": Valley,
}
"""Fields of :class:`FitConfig` that are one of a few, which plain strings may name."""


@dataclass(kw_only=True)
class LawConfig:
    """Group ``law/``: a published law in one of two forms, with what N and C mean in it; all null for none.

    A surface, L(N, D) = E + A / N^alpha + B / D^beta; or a frontier alone, N*(C) or D*(C) as a power law and, where it
    is known, L*(C) = E + loss_coefficient / C^loss_exponent.
    """

    name: str | None = None
    E: float | None = None
    A: float | None = None
    B: float | None = None
    alpha: float | None = None
    beta: float | None = None
    n_coefficient: float | None = None
    """Frontier: N*(C) = n_coefficient C^n_exponent, C in FLOPs."""
    n_exponent: float | None = None
    d_coefficient: float | None = None
    """Frontier, instead: D*(C) = d_coefficient C^d_exponent."""
    d_exponent: float | None = None
    loss_coefficient: float | None = None
    loss_exponent: float | None = None
    params: ParamCount = ParamCount.total
    flops: FlopCount = FlopCount.sixnd
    """How C is counted: sixnd is 6 N D with the law's own N."""
    cost_coefficient: float = 6.0
    """C = cost_coefficient N^cost_exponent D, which ties N, D and C; a fit writes its own as ``cost`` in fit.json."""
    cost_exponent: float = 1.0
    flops_low: float | None = None
    """The smallest and the largest C of what the law was fitted to, where the source says so."""
    flops_high: float | None = None
    loss: str = "nats/token"
    """Unit of the loss, and whose tokens."""
    source: str = ""
    """With the equation or table."""
    note: str = ""
