"""What a law or a fit answers: optima, points of one's own, few unique tokens, use after training, published models."""

from analysis.predict.by_fit import law_of_fit, predict_fit
from analysis.predict.by_law import NO_INTERVAL, predict_law, predict_models
from analysis.predict.prediction import Prediction
from analysis.predict.question import Question

__all__ = ["NO_INTERVAL", "Prediction", "Question", "law_of_fit", "predict_fit", "predict_law", "predict_models"]
