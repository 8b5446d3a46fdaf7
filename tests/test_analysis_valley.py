"""The lines laid through a budget's losses, and the polynomials behind two of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.interpolate import Akima1DInterpolator

from analysis.config import Valley
from analysis.fitting.polynomials import polynomials
from analysis.fitting.valley import Sizes

SEEDS = st.integers(0, 2**32 - 1)
SIZES = np.log([1e8, 1.7e8, 2.5e8, 4e8, 7e8, 1.1e9, 1.6e9])


def _one(log_n: np.ndarray, loss: np.ndarray) -> Sizes:
    return Sizes.of(log_n, loss, np.ones((1, len(log_n))))


@settings(max_examples=50)
@given(seed=SEEDS, degree=st.integers(1, 3), columns=st.integers(5, 30))
def test_polynomials_are_weighted_least_squares(seed: int, degree: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    x = np.linspace(-1, 1, columns) + 0.3 / columns * rng.uniform(-1, 1, columns)
    y, weights = rng.standard_normal((4, columns)), rng.exponential(size=(4, columns))
    found = polynomials(x, y, weights, degree)
    for row, known, weight in zip(found, y, weights, strict=True):
        assert row[::-1] == pytest.approx(np.polyfit(x, known, degree, w=np.sqrt(weight)), rel=1e-7, abs=1e-7)


def test_a_replicate_without_enough_columns_harms_no_other() -> None:
    x = np.linspace(-1, 1, 6)
    y = np.stack([1 + 2 * x + 3 * x**2] * 3)
    weights = np.ones((3, 6))
    weights[0, 1:], weights[1] = 0, 0
    y[1] = np.nan  # the mean of nothing
    found = polynomials(x, y, weights, 2)
    assert not np.isfinite(found[1]).any()
    assert found[2] == pytest.approx([1, 2, 3])


@pytest.mark.parametrize("skew", [-0.08, -1e-9, 0.0, 0.05])
def test_the_bottom_of_a_cubic_is_its_closed_form(skew: float) -> None:
    """One with a known minimum at 3e8 and another stationary point, a maximum, elsewhere."""
    x = SIZES - np.log(3e8)
    sizes = _one(SIZES, 3 + 0.1 * x**2 + skew * x**3)
    (log_n,), (loss,) = sizes.minima(Valley.cubic, 5)
    assert np.exp(log_n) == pytest.approx(3e8, rel=1e-9)
    assert loss == pytest.approx(3)
    assert sizes.line(Valley.cubic)(SIZES) == pytest.approx(sizes.loss[0])


def test_a_cubic_follows_the_side_a_parabola_does_not() -> None:
    x = SIZES - np.log(3e8)
    sizes = _one(SIZES, 3 + 0.1 * x**2 + 0.03 * x**3)
    parabola = float(sizes.minima(Valley.parabola, 4)[0][0])
    assert abs(parabola - np.log(3e8)) > 0.05


def test_a_curve_without_a_bottom_has_none() -> None:
    x = SIZES - SIZES.mean()
    for shape, loss in (
        (Valley.parabola, 3 - 0.1 * x**2),
        (Valley.parabola, 3 + 0.1 * x),
        (Valley.parabola, np.full_like(x, 3.0)),
        (Valley.cubic, 3 + 0.1 * x + 0.1 * x**3),
        (Valley.cubic, np.full_like(x, 3.0)),
    ):
        assert np.isnan(_one(SIZES, loss).minima(shape, 4)[0]).all(), shape


@settings(max_examples=60)
@given(seed=SEEDS, count=st.integers(4, 12))
def test_the_bottom_of_akimas_line_is_exact(seed: int, count: int) -> None:
    """Never above the line anywhere on a dense grid, on the line itself, and stationary unless at an end."""
    rng = np.random.default_rng(seed)
    log_n = np.cumsum(rng.uniform(0.1, 1, count))
    sizes = _one(log_n, 3 + rng.uniform(0, 0.3, count))
    (at,), (lowest,) = sizes.minima(Valley.akima, 4)
    line = Akima1DInterpolator(log_n, sizes.loss[0])
    assert lowest <= line(np.linspace(log_n[0], log_n[-1], 5001)).min() + 1e-12
    assert lowest == pytest.approx(float(line(at)), abs=1e-12)
    assume(log_n[0] < at < log_n[-1])
    assert float(line.derivative()(at)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("shape", [Valley.parabola, Valley.cubic, Valley.akima])
def test_replicates_at_once_are_replicates_one_by_one(shape: Valley) -> None:
    """With their own weights, some 0 or not whole, and their own losses."""
    rng = np.random.default_rng(4)
    log_n = np.repeat(SIZES, 2)
    loss = 3 + 0.1 * (log_n - np.log(4e8)) ** 2 + 0.002 * rng.standard_normal((40, 14))
    weights = rng.exponential(size=(40, 14)) * (rng.random((40, 14)) < 0.4)
    at, lowest = Sizes.of(log_n, loss, weights).minima(shape, 4)
    for i in range(40):
        drawn = weights[i] > 0
        alone = Sizes.of(log_n[drawn], loss[i][drawn], weights[i : i + 1, drawn]).minima(shape, 4)
        assert at[i] == pytest.approx(alone[0][0], abs=1e-8, nan_ok=True)
        assert lowest[i] == pytest.approx(alone[1][0], abs=1e-8, nan_ok=True)
    few = (np.add.reduceat(weights, np.arange(0, 14, 2), axis=1) > 0).sum(axis=1) < 4
    assert few.any() and np.isnan(at[few]).all() and np.isfinite(lowest[~few]).all()


def test_the_rows_of_one_size_are_averaged_and_rounding_makes_no_new_size() -> None:
    params = np.array([1e8, 1e8 * (1 + 1e-9), 2e8, 4e8, 8e8])
    sizes = Sizes.of(np.log(params), np.array([3.2, 3.4, 3.1, 3.0, 3.3]), np.array([[1.0, 3.0, 1, 1, 1]]))
    assert np.exp(sizes.log_n) == pytest.approx([1e8, 2e8, 4e8, 8e8])
    assert sizes.loss[0] == pytest.approx([3.35, 3.1, 3.0, 3.3])
    assert sizes.weight[0] == pytest.approx([4, 1, 1, 1])
