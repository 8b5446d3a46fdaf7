"""``isoflop predict``: compute-optimal size, tokens and loss, from a fit or a published law.

isoflop predict law=hoffmann2022_tex flops=5.76e23
isoflop predict path=runs/quickstart/fit flops=1e13
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from analysis.laws import Law
from analysis.predict import predict_fit, predict_law
from sweeps.app import run_verb, typed
from sweeps.config import Format, PredictCommand
from sweeps.render import print_json
from sweeps.render_fit import print_predictions


def _body(raw: DictConfig) -> int:
    config: PredictCommand = typed(raw)
    asked = {"flops": config.flops, "params": config.params, "tokens": config.tokens}
    if config.path is not None:
        predictions = predict_fit(Path(config.path), **asked)
    else:
        predictions = [predict_law(Law.from_config(config.law), **asked)]
    if config.format is Format.json:
        print_json([prediction.to_dict() for prediction in predictions])
    else:
        print_predictions(predictions)
    return 0


HELP = """isoflop predict law=NAME | path=FIT  flops=C | params=N | tokens=D

The compute-optimal point for one of the three: the other two, and the loss, with intervals where the fit has them."""


def main() -> None:
    """Entry point of the verb."""
    run_verb("predict", _body, HELP)


if __name__ == "__main__":
    main()
