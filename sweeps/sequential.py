"""Sweeps that go batch by batch until their target is known well enough, or the cost limit is spent.

All state is on disk: the batches in ``design.json``, the results in the run folders. Killed and started again at any
moment it goes on with the batch that was chosen last, and chooses the next one only when that has ended.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import DictConfig

from sweeps.config import Config, Design
from sweeps.dispatch.state import ENDED, PointState, State
from sweeps.paths import SweepFolder
from sweeps.planning.points import Plan

NO_FURTHER = "sweep.limit and sweep.allowed leave room for no further point; raise them"
"""Begins a remark."""


def goes_on(config: Config) -> bool:
    """Whether the sweep is one that goes batch by batch."""
    return config.sweep.design is Design.optimal and config.sweep.target.half_width is not None


WAITS = (
    "no further batch is chosen before these have ended well: retry=all tries again what failed, "
    "sweep.excluded=[ID,...] goes on without it"
)
"""Of a sweep of which something failed or was cancelled."""


def has_ended(states: Sequence[PointState]) -> bool:
    """Whether nothing of the last batch is still to come; a sweep in which something failed or was cancelled waits."""
    return all(state.state in ENDED and state.state is not State.failed for state in states)


def further(
    raw: DictConfig, config: Config, folder: SweepFolder, plan: Plan, tell: Callable[[str], None]
) -> Plan | None:
    """The plan with a further batch; None where the target is known well enough or the limit allows no more.

    Parameters
    ----------
    plan
        Whose points have all ended.
    tell
        Hears in a line how precise the results are, and why nothing more is trained.
    """
    from sweeps.planning.planner import make_plan  # these here, because status, which comes by, needs neither
    from sweeps.planning.precision import precision_so_far

    reached = precision_so_far(config, folder)
    tell("the results tell no law yet" if reached is None else reached.text)
    if reached is not None and reached.enough:
        tell(f"the target is known to ±{reached.half_width:.1%}, as wanted; nothing more is trained")
        return None
    batches = list((plan.design or {}).get("batches", ()))
    longer = make_plan(raw, after=len(batches))
    if len(longer.points) == len(plan.points):
        tell(f"{NO_FURTHER} or sweep.target.half_width to go on")
        return None
    tell(f"batch {len(batches) + 1}: {len(longer.points) - len(plan.points)} points more")
    return longer


def precision_line(config: Config, folder: SweepFolder) -> str | None:
    """How precisely the results so far tell the sweep's target, in a line; None where it states none.

    Cheap while nothing is new: read again only once another point is done.
    """
    facts = precision_facts(config, folder)
    if facts is None:
        return None
    return str(facts["text"])


_known: dict[str, tuple[int, dict[str, Any] | None]] = {}
"""By folder: how long all final records were when precision was last computed, and what it was."""


def precision_facts(config: Config, folder: SweepFolder) -> dict[str, Any] | None:
    """The same for programs: the fields of :class:`sweeps.planning.precision.Reached`, ``text``, and what the limit is.

    None where the sweep states no target, or its results tell no law yet.
    """
    target = config.sweep.target
    if target.flops is None and target.params is None and config.sweep.design is not Design.optimal:
        return None
    done = sum(path.stat().st_size for path in folder.path.glob("*/points.jsonl"))
    key = json.dumps([str(folder.path), str(target), config.fit.to_dict()], default=str)
    if key not in _known or _known[key][0] != done:
        from sweeps.planning.precision import precision_so_far

        reached = precision_so_far(config, folder)
        limit = {"flops": config.sweep.limit.flops, "device_hours": config.sweep.limit.device_hours}
        facts = None if reached is None else reached.to_dict() | {"text": reached.text, "limit": limit}
        _known[key] = (done, facts)
    return _known[key][1]
