"""What of an optimal design has begun, and so stays, whatever settings the rest is chosen by."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from sweeps.planning.candidates import is_excluded
from sweeps.planning.chosen import Batch, Chosen, ChosenPoint, settings_key
from sweeps.planning.recipes import make_recipe
from sweeps.planning.trunks import horizon_of, shares_trunks
from sweeps.planning.workbench import Workbench, runs_of
from trainer.errors import UserError
from trainer.recipe import Horizon, Recipe
from trainer.runfolder import DONE


def known(bench: Workbench, found: Chosen | None) -> Chosen:
    """What has been chosen by the present settings, or was by others and has begun."""
    key = settings_key(bench.config)
    return found if found is not None and found.key == key else Chosen(key=key, batches=begun(bench, found))


def begun(bench: Workbench, there: Chosen | None) -> tuple[Batch, ...]:
    """Of what was chosen by other settings, the points of runs that have begun: they stay, each in its batch.

    So do all other runs of the sweep by the present recipe, of which ``there`` knows nothing: a design may be lost, or
    have given way to that of another recipe, and what has been spent is spent. But for those that are excluded by hand
    and not done, so that a sweep can go on without a point that fails.
    """
    out, known_runs = [], set()
    shapes = {(shape.layers, shape.d_model) for shape in bench.shapes}
    for batch in there.batches if there is not None else ():
        points = [point for point in batch.points if (point.layers, point.d_model) in shapes]
        seen: dict[tuple[int, int, float], list[int]] = {}
        alone = Chosen(key="", batches=[Batch(points=points, facts={})])
        wide = replace(bench.config.sweep, seeds=sorted({seed for point in points for seed in point.seeds}) or [0])
        for (target, seed), (recipe, _) in runs_of(
            replace(bench, config=replace(bench.config, sweep=wide)), alone
        ).items():
            known_runs.add(recipe.run_id)
            if _stays(bench, recipe, horizon_of(recipe, target)):
                seen.setdefault((target.shape.layers, target.shape.d_model, target.tokens), []).append(seed)
        kept = [replace(point, seeds=tuple(seen[point.place])) for point in points if point.place in seen]
        if kept:
            out.append(Batch(points=kept, facts={"kept": len(kept)}))
    return (*out, *_others(bench, known_runs))


def _stays(bench: Workbench, recipe: Recipe, horizon: Horizon) -> bool:
    """Whether a point has begun, and is done or at least not excluded by hand."""
    folder = bench.folder.run(recipe.run_id)
    if not folder.config_path.exists():
        return False
    record = folder.points().get(horizon.point_id)
    done = record is not None and record["verdict"] == DONE
    return done or not is_excluded(bench.config, recipe, horizon.tokens, [horizon.point_id])


def _others(bench: Workbench, known_runs: Collection[str]) -> list[Batch]:
    """The runs on disk, but for those known, that the present config would make: in a batch, trunks each in its own."""
    batches: list[list[ChosenPoint]] = []
    for run in bench.folder.runs(without=known_runs):
        try:
            config = run.read_config()
        except UserError:  # damaged: submit's to refuse
            continue
        recipe, shape = config.recipe, config.recipe.model
        if shape not in bench.shapes or recipe.seed not in bench.config.sweep.seeds:
            continue
        tokens = [horizon.tokens for horizon in recipe.horizons]
        if make_recipe(bench.config, shape, tokens, recipe.seed, bench.corpus.id).run_id != recipe.run_id:
            continue
        points = [
            ChosenPoint(
                layers=shape.layers,
                d_model=shape.d_model,
                tokens=horizon.tokens,
                budget=config.budget_of(horizon.point_id),
                seeds=(recipe.seed,),
                role="planned",
            )
            for horizon in recipe.horizons
            if _stays(bench, recipe, horizon)
        ]
        if points and (shares_trunks(bench.config) or not batches):
            batches.append(points)
        elif points:
            batches[-1] += points
    return [Batch(points=points, facts={"kept": len(points)}) for points in batches]
