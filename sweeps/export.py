"""``isoflop export``: points as folders that Hugging Face's libraries read.

isoflop export sweep=ours
isoflop export sweep=ours point=c3e18-n40M out=ladder/
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from sweeps.app import run_verb, typed
from sweeps.config import Config
from sweeps.paths import SweepFolder
from sweeps.planning.points import read_plan
from sweeps.terminal import progress_line, say
from trainer.errors import UserError


def planned_points(folder: SweepFolder, point: str | None) -> list[tuple[str, str]]:
    """(run id, point id) of the planned points whose id begins so; one that is another's beginning counts alone.

    Raises
    ------
    UserError
        If there is none.
    """
    rows = [(row["run_id"], row["point_id"]) for row in read_plan(folder)["points"]]
    chosen = [row for row in rows if row[1] == point] or [row for row in rows if row[1].startswith(point or "")]
    if not chosen:
        raise UserError(f"point={point} begins no point's id in this sweep's plan; `isoflop status` lists them.")
    return chosen


def _body(raw: DictConfig) -> int:
    config: Config = typed(raw)
    folder = SweepFolder.of(config.root, config.sweep.name)
    chosen = planned_points(folder, config.point)
    out = Path(config.out).expanduser() if config.out else folder.path / "export"
    begun = [(run_id, point_id) for run_id, point_id in chosen if folder.run(run_id).config_path.exists()]

    from trainer.export.folder import export  # imports torch
    from trainer.weights import read_weights

    places, absent = [], len(chosen) - len(begun)
    with progress_line() as report:
        for number, (run_id, point_id) in enumerate(begun):
            report(f"exporting {point_id}", number / len(begun))
            run = folder.run(run_id)
            weights = read_weights(run, point_id)
            if weights is None:
                absent += 1
                continue
            place, found = export(weights, run, folder.root, out)
            places.append(place)
            say(f"{'found' if found else 'written'}: {place}")
    if not places:
        raise UserError(
            f"point={config.point}: none of {len(chosen)} points has a checkpoint; train them first, with "
            "trainer.keep=last."
        )
    for place in places:
        print(place)  # noqa: T201
    if absent:
        say(f"{absent} of {len(chosen)} points have no checkpoint and were left out")
    return 0


HELP = """isoflop export [sweep=NAME] [point=ID or its beginning] [out=FOLDER]

The newest checkpoint of each point as a folder <out>/<point id> for transformers' AutoModelForCausalLM and
AutoTokenizer: fp32, safetensors. Layouts as model=llama; others are refused by name. A folder of the same
state is left as it is."""


def main() -> None:
    """Entry point of the verb."""
    run_verb("config", _body, HELP)


if __name__ == "__main__":
    main()
