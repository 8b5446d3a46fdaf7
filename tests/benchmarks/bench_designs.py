"""Designs and forecasts: the worked example, forms that fail, real data, speed.

    python tests/benchmarks/bench_designs.py [data folder] [sweeps, default 1000] [example|forms|real|speed ...]

The example is Epoch's law with noise 0.005 in log loss and N* at 5.76e23 FLOPs as the target, against a Chinchilla-like
sweep of 5.1e22 FLOPs. Errors are those of log N*. Without a data folder the real sets are skipped. Set
OMP_NUM_THREADS=1; all of it takes about half an hour.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from analysis_designs import (
    COST,
    FAR,
    LAW,
    N_OPT,
    NOISE,
    Losses,
    bent,
    classic,
    formed,
    grid,
    joined,
    laws_about,
    repeated,
    trunks,
    undertuned,
)

from analysis.config import Objective, Quantity, Resample
from analysis.fitting.bootstrap import resample
from analysis.fitting.isoflop import group_budgets
from analysis.fitting.optimum import fit_cost, optimum
from analysis.fitting.parametric import fit_parametric, refit_parametric
from analysis.fitting.unshrunk import unshrunk
from analysis.fitting.values import Cost, Floats, ParametricFit, Rows, loss_of_laws
from analysis.planning.candidates import Candidates
from analysis.planning.extensions import errors_if_bent, interval_if_bent
from analysis.planning.forecast import forecast
from analysis.planning.information import Target, huber_factor, standard_errors
from analysis.planning.lackoffit import lack_of_fit
from analysis.planning.optimal import Constraints, optimal_design
from trainer.errors import UserError

TOTAL = 5.106e22
LEVEL = 0.9
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
BOOTSTRAPS = 200
MANY = 8000
"""Simulated sweeps whose refits tell a standard error within 1 %: without resamples they cost little."""
Points = tuple[Floats, Floats]


def rows_of(params: Floats, tokens: Floats, flops: Floats, loss: Floats) -> Rows:
    names = tuple(map(str, range(len(loss))))
    return Rows(
        params=params,
        tokens=tokens,
        flops=flops,
        loss=loss,
        budget=group_budgets(flops),
        point_id=names,
        run_id=names,
        cluster_id=names,
        seed=np.full(len(loss), np.nan),
    )


def designs() -> Iterator[tuple[str, float, Points, float, int]]:
    """Name, share of the classic sweep's FLOPs, points, efficiency, reserved."""
    yield "classic", 1.0, classic()[:2], np.nan, 0
    ladder = trunks(reach=100.0)
    cases = [(f"{w:g}x", grid(w), Constraints(window=w), s) for w, s in ((10.0, 0.2), (30.0, 0.08), (100.0, 0.1))]
    cases += [(f"{w:g}x, bare", grid(w), Constraints(window=w, reserved=0), s) for w, s in ((10.0, 0.2), (30.0, 0.08))]
    cases += [("none", grid(300.0, sizes=41), Constraints(window=None), 0.1)]
    cases += [("none, bare", grid(300.0, sizes=41), Constraints(window=None, reserved=0), 0.1)]
    for w, s in ((10.0, 0.2), (30.0, 0.08)):
        cases += [(f"{w:g}x, 3 seeds", grid(w), Constraints(window=w, replicates=3), s)]
        cases += [(f"{w:g}x, WSD", ladder, Constraints(window=w), s)]
        cases += [(f"{w:g}x, WSD, 3 seeds", ladder, Constraints(window=w, replicates=3), s)]
    for name, those, constraints, share in cases:
        design = optimal_design(those, LAW[None], N_OPT, NOISE, COST, share * TOTAL, constraints)
        at = np.repeat(design.indices, design.counts)
        yield name, share, (those.params[at], those.tokens[at]), design.efficiency, len(design.reserved)


def simulated(
    points: Points, log_loss: Floats, objective: Objective, sweeps: int, seed: int = 0
) -> tuple[Floats, Floats, Floats]:
    """Refits of simulated sweeps: theta, errors of log N* against Epoch's law, and the noise."""
    noise = NOISE * np.random.default_rng(seed).standard_normal((sweeps, len(points[0])))
    start = fit_parametric(*points, np.exp(log_loss), objective=objective)
    assert isinstance(start, ParametricFit)
    theta, good = refit_parametric(*points, np.exp(log_loss), np.ones_like(noise), start, shift=noise)
    assert good.mean() > 0.99
    return theta, np.log(optimum(theta, COST, FAR)[0]), noise


def covered(
    points: Points, log_loss: Floats, theta: Floats, noise: Floats, objective: Objective, truth: float
) -> float:
    """How often the bootstrap's nominal interval of N* holds the truth, over the simulated sweeps."""
    rows = rows_of(*points, 6 * points[0] * points[1], np.exp(log_loss))
    weights = resample(rows, Resample.budgets, BOOTSTRAPS, 0).weights
    hits = 0
    for near, error in zip(_fits(points, log_loss, theta, noise, objective), noise, strict=True):
        many, good = refit_parametric(*points, np.exp(log_loss + error), weights, near)
        many = unshrunk(*points, np.exp(log_loss + error), weights, many[good], near)
        low, high = np.quantile(np.log(optimum(many, COST, FAR)[0]), TAILS)
        hits += low <= truth <= high
    return hits / len(theta)


def example(sweeps: int) -> None:
    truth = float(np.log(optimum(LAW, COST, FAR)[0]))
    print(f"\nThe worked example: errors of log N*, refits of {MANY} simulated sweeps;")
    print(f"cover: of nominal {LEVEL:.0%} intervals, {BOOTSTRAPS} resamples of each of {sweeps} sweeps")
    print("window             FLOPs runs resv  effic | linear  refits    bias  cover | huber: linear  refits  cover")
    for name, share, points, efficiency, reserved in designs():
        log_loss = formed(*points)
        linear = standard_errors(*points, LAW[None], N_OPT, NOISE, COST)[0]
        cells = []
        for objective in (Objective.squared, Objective.huber):
            theta, _, noise = simulated(points, log_loss, objective, sweeps)
            found = simulated(points, log_loss, objective, MANY, seed=1)[1]
            cells.append((found.std(), found.mean() - truth, covered(points, log_loss, theta, noise, objective, truth)))
        (least, bias, cover), (robust, _, other) = cells
        print(
            f"{name:18s} {share:5.0%} {len(points[0]):4d} {reserved:4d} {efficiency:6.3f} | {linear:.4f}  {least:.4f} "
            f"{bias:+.4f} {cover:6.1%} |        {linear * huber_factor(1e-3, NOISE):.4f}  {robust:.4f} {other:6.1%}",
            flush=True,
        )


def forms(sweeps: int) -> None:
    """What happens where the form does not hold: bias of log N* in standard errors, coverage, the warning."""
    losses: dict[str, Losses] = {
        "of the form": formed,
        "alpha + .02 log N": bent(0.01, 0.0),
        "alpha + .04 log N": bent(0.02, 0.0),
        "beta - .04 log D": bent(0.0, -0.02),
        "beta - .08 log D": bent(0.0, -0.04),
        "interaction": joined,
        "repeated data": repeated,
        "undertuned": undertuned,
    }
    print("\nForms that fail: coverage of nominal 90 % intervals (refits' own spread), and how often the warning fires")
    for name, share, points, _, _ in designs():
        if "WSD" in name or "seeds" in name or name.startswith("none"):
            continue
        bent_to = errors_if_bent(*points, LAW, N_OPT[0], NOISE, COST)
        said = ", ".join(f"{key} {value:.3f}" for key, value in bent_to.items())
        print(f"{name}, {share:.0%}: error of log N* if a coefficient is left free: {said}")
        for form, loss in losses.items():
            truth = _lowest(loss)
            theta, found, noise = simulated(points, loss(*points), Objective.huber, sweeps)
            half = 1.645 * found.std()
            fired = _warned(points, loss(*points), theta, noise)
            inside = np.abs(found - truth) <= half
            wide = _inside_if_bent(points, loss(*points), theta, noise, truth)
            print(
                f"    {form:18s} bias {found.mean() - truth:+.3f} ({(found.mean() - truth) / found.std():+5.1f} sd)  "
                f"covered {inside.mean():6.1%}  warned {fired.mean():6.1%}  either {(inside | fired).mean():6.1%}  "
                f"if it may bend {wide.mean():6.1%}, or warned {(wide | fired).mean():6.1%}",
                flush=True,
            )


def _lowest(loss: Losses) -> float:
    """Log N* of a surface; repeated data and tuning are no part of the law sought, so Epoch's stands for those."""
    if loss in (repeated, undertuned):
        return float(np.log(optimum(LAW, COST, FAR)[0]))
    log_n = np.linspace(22, 29, 70_001)
    return float(log_n[np.argmin(loss(np.exp(log_n), FAR / 6 / np.exp(log_n)))])


def _inside_if_bent(points: Points, log_loss: Floats, theta: Floats, noise: Floats, truth: float) -> Floats:
    """Whether the interval of a law that may bend holds the truth."""
    out = []
    for fit in _fits(points, log_loss, theta, noise):
        low, high = interval_if_bent(*points, fit, N_OPT[0], COST, LEVEL)
        out.append(low <= truth <= high)
    return np.array(out)


def _fits(
    points: Points, log_loss: Floats, theta: Floats, noise: Floats, objective: Objective = Objective.huber
) -> Iterator[ParametricFit]:
    start = fit_parametric(*points, np.exp(log_loss), objective=objective)
    assert isinstance(start, ParametricFit)
    for law, error in zip(theta, noise, strict=True):
        names = dict(zip(("log_A", "log_B", "log_E", "alpha", "beta"), map(float, law), strict=True))
        left = log_loss + error - np.log(loss_of_laws(law, *map(np.log, points)))
        yield replace(start, residuals=left, **names)


def _warned(points: Points, log_loss: Floats, theta: Floats, noise: Floats) -> Floats:
    fits = zip(_fits(points, log_loss, theta, noise), noise, strict=True)
    return np.array([lack_of_fit(*points, np.exp(log_loss + error), fit).fails for fit, error in fits])


def real_sets(folder: Path) -> Iterator[tuple[str, Floats, Floats, Floats, Floats]]:
    epoch = pd.read_csv(folder / "chinchilla_fig4_left_epoch.csv")
    yield "Epoch's 240 rows", *_columns(epoch[epoch["epoch_fit_sample"] == 1])
    porian = pd.read_csv(folder / "porian_isoflop_points.csv")
    porian = porian[(porian["dataset"] == "rw") & (porian["param_count"] == "standard") & (porian["warmup"] == "short")]
    yield "Porian, tuned", *_columns(porian[porian["hparams"] == "tuned"])
    yield "Porian, base", *_columns(porian[(porian["hparams"] == "base") & (porian["decay"] == "kaplan")])
    gadre = pd.read_csv(folder / "gadre_models.csv")
    yield "Gadre, C4", *_columns(gadre[(gadre["train_dataset"] == "c4_original") & (gadre["eval_data"] == "c4_val")])
    olmo = pd.read_csv(folder / "olmo_ladder_curves.csv").sort_values("step").groupby("run").tail(1)
    yield "OLMo ladder", *_columns(olmo.assign(loss=olmo["loss_c4_en"]))


def _columns(table: pd.DataFrame) -> tuple[Floats, Floats, Floats, Floats]:
    flops = table["flops"] if "flops" in table else 6.0 * table["params"] * table["tokens"]
    columns = (table["params"], table["tokens"], flops, table["loss"])
    n, d, c, loss = (each.to_numpy(dtype=float, copy=True) for each in columns)
    return n, d, c, loss


def real(folder: Path, subsets: int = 200) -> None:
    """A fifth of the FLOPs of what was really trained: chosen at once by Epoch's law, or in batches by what was seen.

    Each choice is judged by two intervals: where the fit lies if the form holds (drawn points), and if it may bend in
    any one way (:func:`interval_if_bent`); random subsets of the same FLOPs by the same two. The one that counts is
    marked: the second where the fit of the chosen points warns that the form fails. Widths over random's are held
    against the least that any subset of these FLOPs could have, by the continuous design for the full data's law.
    """
    print("\nReal data: at most 20 % of the FLOPs; N* and L* at the largest C; nominal 90 % intervals")
    print("set              choice, window      rows chosen | N*: full, interval | L*: full, interval | over random's")
    score: dict[tuple[str, float | None], list[tuple[bool, bool, float, float]]] = {}
    for name, n, d, c, loss in real_sets(folder):
        cost, far = fit_cost(n, d, c), float(c.max())
        full = fit_parametric(n, d, loss)
        assert isinstance(full, ParametricFit)
        goal = [float(x) for x in optimum(full.array(), cost, far)]
        drawn = _random_subsets(c, subsets)
        typical = _random_widths(n, d, c, loss, cost, far, drawn)
        least, everything = _least_widths(n, d, c, full, cost, far, drawn)
        print(
            f"{name:16s} widths over random's, by the full law: any fifth N* {least[0]:.2f} L* {least[1]:.2f} or "
            f"more, all rows N* {everything[0]:.2f} L* {everything[1]:.2f}; "
            f"its form: {lack_of_fit(n, d, loss, full).where or 'holds'}"
        )
        for how, window in (("at once", 10.0), ("at once", None), ("batches", 10.0), ("batches", None)):
            label = f"{name:16s} {how:8s} {window or 'none':>4}"
            try:
                chosen = _chosen(n, d, c, loss, cost, far, how, window)
            except UserError as error:
                print(f"{label}   | {error}")
                continue
            verdict = _verdict(n, d, loss, chosen)
            for kind, typically in zip(("if it holds", "if it bends"), typical, strict=True):
                counts = (kind == "if it bends") == bool(verdict)
                ends = _ends(n, d, c, loss, chosen, cost, far, kind)
                start = f"{label} {kind}{'*' if counts else ' '} {len(n):4d} {len(chosen):5d}"
                if ends is None:
                    print(f"{start} | no interval: the points support no law, or few resamples do")
                    continue
                inside = [low <= value <= high for value, (low, high) in zip((goal[0], goal[2]), ends, strict=True)]
                told = [
                    f"{value:9.4g} {low:.4g}-{high:.4g} {'in ' if there else 'OUT'}"
                    for value, (low, high), there in zip((goal[0], goal[2]), ends, inside, strict=True)
                ]
                ratio = [np.log(high / low) / width for (low, high), width in zip(ends, typically, strict=True)]
                print(f"{start} | {told[0]} | {told[1]} | N* {ratio[0]:.2f} L* {ratio[1]:.2f}", flush=True)
                if counts:
                    score.setdefault((how, window), []).append((inside[0], inside[1], ratio[0], ratio[1]))
            print(f"{label} the fit of the chosen points: {verdict or 'no warning'}", flush=True)
    for (how, window), each in score.items():
        sizes, losses, *ratios = zip(*each, strict=True)
        print(
            f"{how:8s} {window or 'none':>4}, of {len(each)} sets: N* inside {sum(sizes)}, L* inside {sum(losses)}; "
            f"at most half of random's width: N* {sum(r <= 0.5 for r in ratios[0])}, "
            f"L* {sum(r <= 0.5 for r in ratios[1])}"
        )


def _random_subsets(c: Floats, subsets: int) -> list[np.ndarray]:
    """Rows of random points within a fifth of the FLOPs, whatever still fits."""
    rng, out = np.random.default_rng(0), []
    for _ in range(subsets):
        kept, spent = [], 0.0
        for i in rng.permutation(len(c)):
            if spent + c[i] <= 0.2 * c.sum():
                kept.append(i)
                spent += c[i]
        out.append(np.array(kept))
    return out


def _least_widths(
    n: Floats, d: Floats, c: Floats, full: ParametricFit, cost: Cost, far: float, drawn: list[np.ndarray]
) -> tuple[list[float], list[float]]:
    """Standard errors of N* and L* over the random subsets' median: a bound for any fifth, and those of all rows.

    Equal noise, linearised; the bound is certified, so no choice within a fifth of the FLOPs has a lower one.
    """
    those, law = Candidates(params=n, tokens=d, flops=c, price=c), full.array()[None]
    noise = float(np.sqrt(np.sum(full.residuals**2) / (len(n) - 5)))
    least, everything = [], []
    for quantity in (Quantity.n_opt, Quantity.loss_opt):
        target = (Target(quantity=quantity, flops=far),)
        typical = np.median([standard_errors(n[at], d[at], law, target, noise, cost)[0] for at in drawn])
        free = Constraints(window=None, reserved=0)
        best = optimal_design(those, law, target, noise, cost, 0.2 * c.sum(), free)
        least.append(float(np.sqrt(best.bound) / typical))
        everything.append(float(standard_errors(n, d, law, target, noise, cost)[0] / typical))
    return least, everything


def _chosen(
    n: Floats, d: Floats, c: Floats, loss: Floats, cost: Cost, far: float, how: str, window: float | None
) -> np.ndarray:
    """Rows of a fifth of the FLOPs; in batches the law and the noise are those of what was chosen before."""
    those, total = Candidates(params=n, tokens=d, flops=c, price=c), float(c.sum())
    limits = Constraints(window=window)
    if how == "at once":
        aims = _both(n, d, LAW[None], cost, far)
        return optimal_design(those, LAW[None], aims, NOISE, cost, 0.2 * total, limits).indices
    chosen = _cheapest(c, 0.02)
    for share in (0.05, 0.1, 0.2):
        pinned = np.zeros(len(n), dtype=np.int64)
        pinned[chosen] = 1
        laws, noise = _prior(n, d, loss, chosen)
        try:
            aims = _both(n, d, laws, cost, far)
            chosen = optimal_design(those, laws, aims, noise, cost, share * total, limits, pinned=pinned).indices
        except UserError:
            if share == 0.2:
                raise
    return chosen


def _both(n: Floats, d: Floats, laws: Floats, cost: Cost, far: float) -> tuple[Target, Target]:
    """N* and L*, weighted so that what all the rows leave open of each counts alike."""
    size, loss = (Target(quantity=quantity, flops=far) for quantity in (Quantity.n_opt, Quantity.loss_opt))
    errors = standard_errors(n, d, laws[:: max(1, len(laws) // 16)], (size, loss), 1.0, cost)
    return size, replace(loss, weight=float((errors[0] / errors[1]) ** 2))


def _verdict(n: Floats, d: Floats, loss: Floats, at: np.ndarray) -> str:
    """How the form fails, by the fit of the chosen points; empty where it does not warn."""
    fit = fit_parametric(n[at], d[at], loss[at])
    assert isinstance(fit, ParametricFit)
    return lack_of_fit(n[at], d[at], loss[at], fit).where


def _random_widths(
    n: Floats, d: Floats, c: Floats, loss: Floats, cost: Cost, far: float, drawn: list[np.ndarray]
) -> list[list[float]]:
    """Median log widths of both kinds of intervals of N* and L* from random points; infinite where they tell none."""
    widths = []
    for kept in drawn:
        each = []
        for kind in ("if it holds", "if it bends"):
            found = _ends(n, d, c, loss, kept, cost, far, kind)
            each.append([np.inf, np.inf] if found is None else [np.log(high / low) for low, high in found])
        widths.append(each)
    return [[float(x) for x in row] for row in np.median(widths, axis=0)]


def _cheapest(flops: Floats, share: float) -> np.ndarray:
    """Rows of the cheapest points within a share of all FLOPs, no fewer than eight."""
    order = np.argsort(flops, kind="stable")
    return order[: max(8, int(np.searchsorted(np.cumsum(flops[order]), share * flops.sum())))]


def _prior(n: Floats, d: Floats, loss: Floats, seen: np.ndarray) -> tuple[Floats, float]:
    """Laws and noise from the points seen, misfit counted as noise; Epoch's law and 1 % where these tell none."""
    fit = fit_parametric(n[seen], d[seen], loss[seen])
    if not isinstance(fit, ParametricFit) or fit.certificate.unidentified:
        return LAW[None], 0.01
    weights = np.random.default_rng(0).multinomial(len(seen), np.full(len(seen), 1 / len(seen)), 60).astype(float)
    theta, good = refit_parametric(n[seen], d[seen], loss[seen], weights, fit)
    noise = float(np.sqrt(np.sum(fit.residuals**2) / max(1, len(seen) - 5)))
    return (theta[good] if good.mean() > 0.5 else fit.array()[None]), noise


def _ends(
    n: Floats, d: Floats, c: Floats, loss: Floats, at: np.ndarray, cost: Cost, far: float, kind: str
) -> list[tuple[float, float]] | None:
    """The intervals of N* and L* at ``far`` from the rows ``at``."""
    fit = fit_parametric(n[at], d[at], loss[at])
    if not isinstance(fit, ParametricFit):
        return None
    if kind == "if it bends":
        told = [
            interval_if_bent(n[at], d[at], fit, Target(quantity=quantity, flops=far), cost, LEVEL)
            for quantity in (Quantity.n_opt, Quantity.loss_opt)
        ]
        return [(float(np.exp(low)), float(np.exp(min(high, 300)))) for low, high in told]
    rows = rows_of(n[at], d[at], c[at], loss[at])
    weights = resample(rows, Resample.cases, BOOTSTRAPS, 0).weights
    theta, good = refit_parametric(n[at], d[at], loss[at], weights, fit)
    theta = unshrunk(n[at], d[at], loss[at], weights, theta, fit)
    if good.sum() < BOOTSTRAPS / 2:
        return None
    sizes, _, losses = optimum(theta[good], cost, far)
    return [(float(low), float(high)) for low, high in (np.quantile(sizes, TAILS), np.quantile(losses, TAILS))]


def speed() -> None:
    print("\nSpeed")
    those = grid(10.0, 100, 50)
    for count in (1, 16):
        begin = time.perf_counter()
        design = optimal_design(those, laws_about(count), N_OPT, NOISE, COST, 0.2 * TOTAL, Constraints())
        spent = time.perf_counter() - begin
        print(f"{design.counts.sum()} of {len(those)} candidates, {count} laws: {spent:.2f} s, {design.efficiency:.3f}")
    params, tokens, flops = classic()
    begin = time.perf_counter()
    rows = (params, tokens, flops, group_budgets(flops))
    forecast(*rows, laws_about(64), noise=NOISE, targets=(1e21, FAR), cost=COST)
    print(f"forecast of {len(params)} points, 1000 sweeps: {time.perf_counter() - begin:.2f} s")


def main() -> None:
    words = sys.argv[1:]
    folders = [Path(word) for word in words if Path(word).is_dir()]
    sweeps = next((int(word) for word in words if word.isdigit()), 1000)
    every = ("speed", "example", "forms", "real")
    parts = [word for word in words if word in every] or list(every)
    for part in parts:
        if part == "real" and folders:
            real(folders[0])
        elif part != "real":
            {"example": lambda: example(sweeps), "forms": lambda: forms(sweeps), "speed": speed}[part]()


if __name__ == "__main__":
    main()
