from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import Cooldown, Decay
from trainer.recipe import ScheduleRecipe
from trainer.schedule import rate_factor


@st.composite
def schedules(draw: st.DrawFn) -> tuple[ScheduleRecipe, int]:
    steps = draw(st.integers(1, 400))
    warmup = draw(st.integers(0, steps - 1))
    schedule = ScheduleRecipe(
        decay=draw(st.sampled_from(Decay)),
        warmup_steps=warmup,
        cooldown_steps=draw(st.integers(0, steps - warmup)),
        cooldown_shape=draw(st.sampled_from(Cooldown)),
        final=draw(st.floats(0, 1)),
    )
    return schedule, steps


def factors(schedule: ScheduleRecipe, steps: int) -> list[float]:
    return [rate_factor(schedule, steps=steps, step=step) for step in range(steps)]


def make(decay: Decay, *, warmup: int = 0, cooldown: int = 0, final: float = 0.0) -> ScheduleRecipe:
    return ScheduleRecipe(
        decay=decay, warmup_steps=warmup, cooldown_steps=cooldown, cooldown_shape=Cooldown.sqrt, final=final
    )


@given(schedules())
def test_rises_to_one_once_then_never_rises(case: tuple[ScheduleRecipe, int]) -> None:
    schedule, steps = case
    values = factors(schedule, steps)
    peak = schedule.warmup_steps
    assert values[peak] == pytest.approx(1)
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert values[peak:] == sorted(values[peak:], reverse=True)


@given(schedules())
def test_no_update_is_wasted_at_a_rate_of_zero(case: tuple[ScheduleRecipe, int]) -> None:
    schedule, steps = case
    assert min(factors(schedule, steps)) > 0


@given(schedules())
def test_reaches_its_final_value_just_after_the_last_update(case: tuple[ScheduleRecipe, int]) -> None:
    schedule, steps = case
    after = rate_factor(schedule, steps=steps, step=steps)
    falls = schedule.decay is not Decay.wsd or schedule.cooldown_steps > 0
    assert after == pytest.approx(schedule.final if falls else 1, abs=1e-12)


@given(schedules())
def test_is_continuous(case: tuple[ScheduleRecipe, int]) -> None:
    schedule, steps = case
    values = [0.0, *factors(schedule, steps), rate_factor(schedule, steps=steps, step=steps)]
    warm = 1 / (schedule.warmup_steps + 1)
    length = schedule.cooldown_steps if schedule.decay is Decay.wsd else steps - schedule.warmup_steps
    fall = {"linear": 1 / max(1, length), "cosine": math.pi / 2 / max(1, length), "sqrt": math.sqrt(1 / max(1, length))}
    shape = schedule.cooldown_shape.value if schedule.decay is Decay.wsd else schedule.decay.value
    limit = max(warm, fall[shape]) + 1e-9
    assert all(abs(b - a) <= limit for a, b in itertools.pairwise(values))


def test_numbers() -> None:
    assert factors(make(Decay.linear, warmup=3), 7) == pytest.approx([0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25])
    assert factors(make(Decay.cosine, final=0.1), 4) == pytest.approx(
        [1, 0.1 + 0.45 * (1 + math.sqrt(0.5)), 0.55, 0.1 + 0.45 * (1 - math.sqrt(0.5))]
    )
    assert factors(make(Decay.wsd, warmup=1, cooldown=4), 8) == pytest.approx(
        [0.5, 1, 1, 1, 1, 0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75)]
    )


def test_a_trunk_does_not_depend_on_where_its_cooldown_starts() -> None:
    """Before the cooldown, wsd runs of different lengths have the same rates: horizons can share a trunk."""
    short, long = make(Decay.wsd, warmup=5, cooldown=10), make(Decay.wsd, warmup=5, cooldown=20)
    assert factors(short, 40)[:30] == factors(long, 80)[:30]


def test_overlapping_warmup_and_cooldown_take_the_lower_rate() -> None:
    values = factors(make(Decay.wsd, warmup=6, cooldown=8), 10)
    assert max(values) < 1 and min(values) > 0
