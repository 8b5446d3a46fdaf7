"""An external trainer in fifty lines: it "trains" by asking Hoffmann's law, so a sweep of hundreds takes seconds.

    isoflop run sweep=chinchilla trainer.command="{python} -m trainer.examples.law_trainer {folder}"

A real one (Megatron, torchtitan, ...) reads the same ``config.yaml``, appends the same rows and ends with the same
record. Nothing here imports isoflop, to show that nothing has to.
"""

import json
import os
import random
import sys
import time
from pathlib import Path

import yaml

folder = Path(sys.argv[1])
config = yaml.load((folder / "config.yaml").read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
recipe, params, attempt = config["recipe"], config["params"], int(os.environ.get("ISOFLOP_ATTEMPT", 0))
noise = random.Random(f"{config['run_id']}").gauss(0.0, 0.003)


def loss(tokens: float) -> float:
    """Hoffmann et al. 2022, equation 10, with their Approach 3; times e^noise, the same for all of a run's rows."""
    return float((1.69337 + 406.401 / params["total"] ** 0.33917 + 410.7227 / tokens**0.28491) * 2.718281828**noise)


with (folder / "metrics.jsonl").open("a") as metrics:
    for after in (at for at in config["runtime"]["eval_steps"] if at <= recipe["steps"]):
        share, tokens = after / recipe["steps"], after * recipe["optim"]["batch"]
        row = {"step": after - 1, "tokens": tokens, "flops": config["flops"]["matmul"] * share, "attempt": attempt}
        metrics.write(json.dumps(row | {"val_loss": loss(tokens), "time": time.time()}) + "\n")

for point_id in config["points"]:  # one, unless a trunk has several, whose ids end in @ and their tokens
    tokens = int(point_id.partition("@")[2] or config["tokens"])
    share = tokens / config["tokens"]
    final = {key: config[key] for key in ("schema", "run_id", "sweep")} | {
        "point_id": point_id,
        "cluster_id": config["run_id"],
        "seed": recipe["seed"],
        "corpus": recipe["data"]["corpus"],
        **{f"params_{name}": params[name] for name in ("total", "non_embedding")},
        **{f"flops_{name}": flops * share for name, flops in config["flops"].items()},
        "tokens": tokens,
        "horizon": tokens,
        "loss": loss(tokens),
        "loss_unit": "nats/token",
        "verdict": "done",
        "attempt": attempt,
    }
    with (folder / "points.jsonl").open("a") as points:
        points.write(json.dumps(final) + "\n")
