"""What a design chooses from, and what a choice costs.

Every point has a price of its own. Points may share besides: the horizons of a WSD trunk are cooldowns that branch off
one run at a constant learning rate, so of the horizons chosen only the trunk to the farthest is paid. A further
replicate of a point is a further seed, and so needs a trunk of its own: the r-th trunk of a group reaches to the
farthest of its points that have r replicates or more.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from analysis.fitting.values import Floats, Ints


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """Points that could be trained; arrays of one length."""

    params: Floats
    """N."""
    tokens: Floats
    """D."""
    flops: Floats
    """C."""
    price: Floats
    """What the point itself costs, in the unit of the limit: FLOPs, device-hours; of a WSD horizon its cooldown."""
    trunk: Floats | None = None
    """What the part shared with the group costs, up to where the point branches off; None where nothing is shared."""
    group: Ints | None = None
    """Points of one number share; None where none do."""

    def __len__(self) -> int:
        return len(self.params)

    @cached_property
    def shared(self) -> Floats:
        """(n,): :attr:`trunk`, or zeros."""
        return np.zeros(len(self)) if self.trunk is None else self.trunk

    @cached_property
    def groups(self) -> Ints:
        """(n,): numbers of the groups from 0 on; a point that shares with none is its own."""
        if self.group is None:
            return np.arange(len(self))
        return np.asarray(np.unique(self.group, return_inverse=True)[1], dtype=np.int64)

    @property
    def alone(self) -> Floats:
        """(n,): what each point costs by itself."""
        return self.price + self.shared

    def take(self, index: Ints) -> Candidates:
        """Some of them."""
        return Candidates(
            params=self.params[index],
            tokens=self.tokens[index],
            flops=self.flops[index],
            price=self.price[index],
            trunk=None if self.trunk is None else self.trunk[index],
            group=None if self.group is None else self.group[index],
        )

    def levels(self, counts: Ints) -> Floats:
        """(groups, most replicates): how far the r-th trunk of each group is paid."""
        most = int(counts.max(initial=0))
        out = np.zeros((int(self.groups.max(initial=-1)) + 1, most))
        for r in range(most):
            here = np.flatnonzero(counts > r)
            np.maximum.at(out[:, r], self.groups[here], self.shared[here])
        return out

    def total(self, counts: Ints) -> float:
        """What a design of ``counts`` (n,) replicates costs."""
        return float(self.price @ counts + self.levels(counts).sum())

    def runs(self, counts: Ints) -> int:
        """How many runs it takes: one for each trunk."""
        most = int(counts.max(initial=0))
        return sum(len(np.unique(self.groups[counts > r])) for r in range(most))


def wsd(params: Floats, tokens: Floats, flops: Floats, price: Floats, cooldown: float = 0.25) -> Candidates:
    """Candidates whose points of one size are horizons of one trunk.

    Parameters
    ----------
    params, tokens, flops
        (n,).
    price
        (n,): what a run to ``tokens`` costs, trunk and cooldown together.
    cooldown
        The last share of each horizon, which it does not share.
    """
    return Candidates(
        params=params,
        tokens=tokens,
        flops=flops,
        price=cooldown * price,
        trunk=(1 - cooldown) * price,
        group=np.asarray(np.unique(params, return_inverse=True)[1], dtype=np.int64),
    )
