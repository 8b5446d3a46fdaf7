"""``isoflop predict``: what a published law, or a fit of one's own, says about a budget, a size or a point.

isoflop predict law=hoffmann2022_tex flops=5.76e23
isoflop predict path=runs/quickstart/fit flops=1e13
isoflop predict path=runs/quickstart/fit law=besiroglu2024 flops=1e13
isoflop predict law=muennighoff2023 flops=1e22 unique_tokens=1e11
isoflop predict law=besiroglu2024 models=true
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from analysis.laws.forms import Law
from analysis.laws.law import law_from_config
from analysis.predict import law_of_fit, predict_fit, predict_law, predict_models
from analysis.predict.question import Question
from sweeps.app import run_verb, typed
from sweeps.config import Format, PredictCommand
from sweeps.render.predict import models_json, print_meaning, print_models, print_predictions
from sweeps.terminal import print_json
from trainer.errors import UserError


def _body(raw: DictConfig) -> int:
    config: PredictCommand = typed(raw)
    asked: Any = {field.name: getattr(config, field.name) for field in fields(Question)}
    path = None if config.path is None else Path(config.path)
    published = [] if path and config.law.name is None else [law_from_config(config.law)]
    if config.models:
        return _models(config, [*([law_of_fit(path)] if path else []), *published], asked)
    predictions = predict_fit(path, **asked) if path else []
    predictions += [predict_law(law, **asked) for law in published]
    if config.format is Format.json:
        print_json([prediction.to_dict() for prediction in predictions])
    else:
        print_predictions(predictions)
    return 0


def _models(config: PredictCommand, laws: Sequence[Law], asked: dict[str, float | None]) -> int:
    stated = [f"{name}={value:g}" for name, value in asked.items() if value is not None]
    if stated:
        raise UserError(
            f"predict got models=true and {' '.join(stated)}; models=true asks about published models alone."
        )
    if config.format is Format.json:
        print_json([row for law in laws for row in models_json(law, predict_models(law))])
    else:
        for law in laws:
            print_models(law, predict_models(law))
        print_meaning()
    return 0


HELP = """isoflop predict law=NAME | path=FIT | both  flops=C | params=N | tokens=D

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
