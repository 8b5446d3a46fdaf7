"""``isoflop sample``: text from a point's checkpoint, printed as it is drawn.

isoflop sample sweep=quickstart point=c3e12-n48k prompt="def main(" tokens=300 temperature=0.8
"""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from sweeps.app import run_verb, typed
from sweeps.config import SampleCommand
from sweeps.export import planned_points
from sweeps.paths import SweepFolder
from sweeps.terminal import say
from trainer.errors import UserError


def _body(raw: DictConfig) -> int:
    config: SampleCommand = typed(raw)
    folder = SweepFolder.of(config.root, config.sweep.name)
    chosen = planned_points(folder, config.point)
    if len(chosen) > 1:
        some = ", ".join(point_id for _, point_id in chosen[:4])
        raise UserError(f"point={config.point} fits {len(chosen)} points; name one, such as {some}.")
    for name in ("tokens", "samples"):
        if getattr(config, name) < 1:
            raise UserError(f"{name}={getattr(config, name)} must be 1 or more; set {name}=<value> so.")
    ((run_id, point_id),) = chosen
    run = folder.run(run_id)
    if not run.config_path.exists():
        raise UserError(f"point={point_id} has not been trained yet; start it with `isoflop submit`.")

    from trainer.corpus import corpus_header
    from trainer.sample import Decoder, Drawing, generate, texts  # imports torch
    from trainer.text.vocabulary import vocabulary_of
    from trainer.weights import read_weights

    weights = read_weights(run, point_id)
    if weights is None:
        raise UserError(f"point={point_id} has no checkpoint; train it with trainer.keep=last.")
    header, shards = corpus_header(folder.root, weights.config.recipe.data.corpus)
    vocabulary = vocabulary_of(header, shards)
    if vocabulary is None:
        raise UserError(
            f"the corpus {weights.config.recipe.data.corpus} does not say how its tokens are text; add tokenizer to "
            "its header.json (`pydoc trainer.shards` has the format)."
        )
    prompt = vocabulary.prompt(config.prompt) or [vocabulary.end_of_text or 0]
    say(f"{point_id} after {weights.tokens:,} tokens")
    for number in range(config.samples):
        how = Drawing(temperature=config.temperature, top_k=config.top_k, top_p=config.top_p, seed=config.seed + number)
        decoder = Decoder(weights.config.recipe.model, weights.flat, weights.config.recipe.scaling)
        drawn = generate(decoder, prompt, how, tokens=config.tokens, end=vocabulary.end_of_text)
        sys.stdout.write(config.prompt)
        for text in texts(drawn, vocabulary):
            sys.stdout.write(text)
            sys.stdout.flush()
        sys.stdout.write("\n")
        if number + 1 < config.samples:
            say("---")
    return 0


HELP = """isoflop sample [sweep=NAME] point=ID or its beginning [prompt=TEXT] [tokens=N] [temperature=T] [top_k=K]

Text that a point's newest checkpoint goes on with, printed as it is drawn."""


def main() -> None:
    """Entry point of the verb."""
    run_verb("sample", _body, HELP)


if __name__ == "__main__":
    main()
