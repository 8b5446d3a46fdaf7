"""Published rules for batch and rate, and what a sweep over rates says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import LAW_TRAINER

from analysis.ingest.tables import Tables, complete_points
from sweeps.planning.probe import RATE, RATE_AT_EDGE, best_rates, flag_edges
from sweeps.planning.rules import batch_for, rate_for
from trainer.config import OptimConfig, RateRule
from trainer.shape import Shape

SHAPE = Shape(layers=24, d_model=2048, heads=16, head_size=128, ffw=8192, vocabulary=32_000, sequence=2048)


def optim(rule: RateRule, **changes: Any) -> OptimConfig:
    return OptimConfig(rule=rule, **({"lr": 1.0, "batch_min": 1, "batch_max": 10**9} | changes))


def test_step_law() -> None:
    rule, n, d = optim(RateRule.steplaw), SHAPE.params_non_embedding, 1e11
    batch = batch_for(rule, SHAPE, d)
    assert batch % 2048 == 0 and batch == pytest.approx(0.58 * d**0.571, abs=1024)
    assert rate_for(rule, SHAPE, d, batch) == pytest.approx(1.79 * n**-0.713 * d**0.307, rel=1e-9)
    assert rate_for(optim(RateRule.steplaw, lr=0.5), SHAPE, d, batch) == pytest.approx(
        0.5 * rate_for(rule, SHAPE, d, batch)
    )


def test_deepseek() -> None:
    rule, d = optim(RateRule.deepseek), 1e11
    c = (72 * 24 * 2048**2 + 12 * 24 * 2048 * 2048) * d
    assert batch_for(rule, SHAPE, d) == pytest.approx(0.2920 * c**0.3271, abs=1024)
    assert rate_for(rule, SHAPE, d, 1) == pytest.approx(0.3118 * c**-0.1250, rel=1e-9)
    # their 7B model: about 4.2e-4 at 2T tokens and a batch of 2304 sequences of 4096
    seven = Shape(layers=30, d_model=4096, heads=32, head_size=128, ffw=16384, vocabulary=102_400, sequence=4096)
    assert rate_for(rule, seven, 2e12, 1) == pytest.approx(4.2e-4, rel=0.3)
    assert batch_for(rule, seven, 2e12) == pytest.approx(2304 * 4096, rel=0.3)


def test_porian() -> None:
    rule = optim(RateRule.porian)
    n = SHAPE.params_non_embedding + SHAPE.d_model * SHAPE.vocabulary
    assert batch_for(rule, SHAPE, 1e11) == pytest.approx(0.7576 * n**0.703, abs=1024)
    assert rate_for(rule, SHAPE, 1e11, 1) == pytest.approx(3.7 * n**-0.36, rel=1e-9)
    assert rate_for(rule, SHAPE, 1e9, 1) == rate_for(rule, SHAPE, 1e11, 1), "by size alone"
    untied = replace(SHAPE, tied_head=not SHAPE.tied_head)
    assert batch_for(rule, untied, 1e11) == batch_for(rule, SHAPE, 1e11), "the head counts once, tied or not"
    sequences = 0.00037 * n**0.703  # as others print it, of 2048 tokens
    assert batch_for(rule, SHAPE, 1e11) == pytest.approx(2048 * sequences, rel=0.005)


def test_batches_stay_within_bounds() -> None:
    for rule in (RateRule.steplaw, RateRule.deepseek, RateRule.porian):
        assert batch_for(optim(rule, batch_max=65536), SHAPE, 1e12) == 65536
        assert batch_for(optim(rule, batch_min=2**22), SHAPE, 1e6) == 2**22


def points(losses: dict[tuple[float, float], float], verdict: str = "done", **more: Any) -> pd.DataFrame:
    """One row per (N, rate)."""
    rows = [
        {"point_id": f"{n}-{rate}", "run_id": f"{n}-{rate}", "params_total": n, "tokens": 1e6, RATE: rate, "loss": loss,
         "verdict": "diverged" if loss != loss else verdict, "flags": "few_steps", **more}
        for (n, rate), loss in losses.items()
    ]  # fmt: skip
    return complete_points(pd.DataFrame(rows))


def test_the_best_rate_of_each_size_and_edges() -> None:
    table = points({
        (1e4, 0.01): 3.0, (1e4, 0.02): 2.8, (1e4, 0.04): 3.0,
        (1e5, 0.01): 2.5, (1e5, 0.02): 2.6, (1e5, 0.04): float("nan"),
        (1e6, 0.01): 2.2, (1e6, 0.02): 2.1,
    })  # fmt: skip
    small, large = best_rates(table)
    assert small.rate == pytest.approx(0.02) and small.loss == 2.8 and not small.edge
    assert large.edge and large.rate == 0.01
    flagged = flag_edges(Tables(source="s", points=table, curves=pd.DataFrame())).points
    assert [RATE_AT_EDGE in flags for flags in flagged["flags"]] == [False] * 3 + [True] * 3 + [False] * 2
    assert flagged["flags"].iloc[3] == f"few_steps;{RATE_AT_EDGE}"


def test_the_optimum_lies_between_rates_and_a_diverged_one_is_no_edge() -> None:
    nan = float("nan")
    (best,) = best_rates(points({(1e4, 0.01): 3.0, (1e4, 0.02): 2.8, (1e4, 0.04): 2.9, (1e4, 0.08): nan}))
    assert 0.02 < best.rate < 0.04
    (best,) = best_rates(points({(1e4, 0.01): 3.0, (1e4, 0.02): 2.8, (1e4, 0.04): nan}))
    assert best.rate == 0.02 and not best.edge


def test_no_axis_no_table() -> None:
    assert best_rates(points({(1e4, 0.01): 3.0}).drop(columns=RATE)) == []


def test_lr_probe_prints_its_table_and_flagged_points_can_be_left_out(isoflop: Any, tmp_path: Path) -> None:
    fixed = ["data=unspecified", "data.sequence=96", "data.vocabulary=256", LAW_TRAINER, "cluster.workers=2"]
    sweep = ["sweep=lr_probe", f"root={tmp_path}", "sweep.axes.optim.lr=[0.01,0.02,0.04]", "optim.min_steps=1", *fixed]
    said = isoflop("run", *sweep, "fit.replicates=20")
    assert "Best learning rate of each size" in said.out
    assert said.code == 0, said.err
    left = isoflop("fit", *sweep, "fit.replicates=20", "where=\"flags == ''\"")
    assert "rate_at_edge" not in left.err
