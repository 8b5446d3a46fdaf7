"""What a sweep has measured so far, as the tables that a fit reads."""

from __future__ import annotations

from dataclasses import replace

from analysis.ingest.runs import read_runs
from analysis.ingest.tables import Exclusion, Tables
from sweeps.paths import SweepFolder
from sweeps.planning.points import read_plan
from sweeps.planning.probe import flag_edges


def sweep_tables(folder: SweepFolder, validation: str | None) -> Tables:
    """The sweep's points and curves; runs that have left the config are listed as left out.

    Raises
    ------
    UserError
        If the sweep has no plan, or no run, or none that measured the validation set.
    """
    planned = {row["point_id"] for row in read_plan(folder)["points"]}
    tables = read_runs(folder.root, [folder.name], validation)
    kept = tables.points["point_id"].isin(planned)
    left = tuple(
        Exclusion(row=point, reason="its point has left the sweep's config")
        for point in tables.points.loc[~kept, "point_id"]
    )
    kept_tables = replace(
        tables,
        points=tables.points[kept],
        curves=tables.curves[tables.curves["run_id"].isin(tables.points.loc[kept, "run_id"])],
        excluded=tables.excluded + left,
    )
    return flag_edges(kept_tables)
