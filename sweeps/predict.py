"""``isoflop predict``: what a published law, or a fit of one's own, says about a budget, a size or a point.

isoflop predict law=hoffmann2022_tex flops=5.76e23
isoflop predict path=runs/quickstart/fit flops=1e13
isoflop predict law=muennighoff2023 flops=1e22 unique_tokens=1e11
isoflop predict law=besiroglu2024 models=true
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from analysis.laws.law import law_from_config
from analysis.predict import predict_fit, predict_law, predict_models
from analysis.stored_law import law_of_fit
from sweeps.app import run_verb, typed
from sweeps.config import Format, PredictCommand
from sweeps.render import print_json
from sweeps.render_predict import models_json, print_models, print_predictions
from trainer.errors import UserError

NUMBERS = ("flops", "params", "tokens", "unique_tokens", "inference_tokens", "tokens_per_param")


def _body(raw: DictConfig) -> int:
    config: PredictCommand = typed(raw)
    asked = {name: getattr(config, name) for name in NUMBERS}
    path = None if config.path is None else Path(config.path)
    if config.models:
        return _models(config, path, asked)
    if path is not None:
        predictions = predict_fit(path, **asked)
    else:
        predictions = [predict_law(law_from_config(config.law), **asked)]
    if config.format is Format.json:
        print_json([prediction.to_dict() for prediction in predictions])
    else:
        print_predictions(predictions)
    return 0


def _models(config: PredictCommand, path: Path | None, asked: dict[str, float | None]) -> int:
    stated = [f"{name}={value:g}" for name, value in asked.items() if value is not None]
    if stated:
        raise UserError(
            f"predict got models=true and {' '.join(stated)}; models=true asks about published models alone."
        )
    law = law_from_config(config.law) if path is None else law_of_fit(path)
    distances = predict_models(law)
    if config.format is Format.json:
        print_json(models_json(distances))
    else:
        print_models(law, distances)
    return 0


HELP = """isoflop predict law=NAME | path=FIT  flops=C | params=N | tokens=D

The compute-optimal point for one of the three: the other two, and the loss, with intervals where the fit has them.

params=N tokens=D, or flops=C tokens_per_param=M: a point of your own, its loss and how far from optimal it lies.
flops=C unique_tokens=U: the best point when only U distinct tokens exist; with a point, what repeating them gives.
flops=C inference_tokens=D: the cheapest model, D tokens of use included, as good as the optimal one at C.
models=true: published models beside the law."""


def main() -> None:
    """Entry point of the verb."""
    run_verb("predict", _body, HELP)


if __name__ == "__main__":
    main()
