"""One point as a folder that ``AutoModelForCausalLM.from_pretrained`` takes; it appears whole.

::

    <out>/<point id>/
        config.json  generation_config.json  model.safetensors
        tokenizer.json  tokenizer_config.json    where the corpus says how its tokens are text
        isoflop.json                             where it comes from
        README.md                                the same for people
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trainer.corpus import corpus_header
from trainer.errors import UserError
from trainer.export.counterpart import check_counterpart, their_config, their_tensors, tied_there
from trainer.export.tokenizer import tokenizer_files
from trainer.files import disk_faults, write_json, write_whole
from trainer.recipe import SCHEMA
from trainer.runfolder import RunFolder
from trainer.weights import PointWeights

MANIFEST = "isoflop.json"


def export(weights: PointWeights, run: RunFolder, root: Path, out: Path) -> tuple[Path, bool]:
    """Write a point's folder under ``out``.

    Returns
    -------
    tuple[Path, bool]
        The folder, and whether it was there already, of the same state.

    Raises
    ------
    UserError
        If the layout has no counterpart, the package safetensors is missing, or something else is in the place.
    MachineFault
        If the disk is full or read-only; what was there stays.
    """
    shape = weights.config.recipe.model
    check_counterpart(shape)
    save = _library()
    place = out / weights.point_id
    facts = provenance(weights, run)
    if place.exists():
        known = _manifest(place)
        if known == facts:
            return place, True
    header, shards = corpus_header(root, weights.config.recipe.data.corpus)
    files = tokenizer_files(header, shards, shape.sequence)
    ours = weights.tensors()
    making = out / f".{weights.point_id}.{secrets.token_hex(4)}"
    with disk_faults(place):
        making.mkdir(parents=True)
        try:
            tensors = {name: tensor.contiguous() for name, tensor in their_tensors(shape, ours).items()}
            save(tensors, making / "model.safetensors", metadata={"format": "pt"})
            end = header.end_of_text
            tied = tied_there(shape, ours)
            write_json(making / "config.json", their_config(shape, end_of_text=end, tied=tied))
            write_json(making / "generation_config.json", {"do_sample": True, "eos_token_id": end})
            for name, content in files.items():
                write_whole(making / name, content)
            write_json(making / MANIFEST, facts)
            write_whole(making / "README.md", card(facts))
            _put(making, place)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return place, False


def provenance(weights: PointWeights, run: RunFolder) -> dict[str, Any]:
    """Where a point comes from."""
    config = weights.config
    recipe, shape = config.recipe, config.recipe.model
    record = run.points().get(weights.point_id, {})
    done = record.get("tokens") == weights.tokens
    return {
        "schema": SCHEMA,
        "isoflop": importlib.metadata.version("isoflop"),
        "sweep": config.sweep,
        "run_id": config.run_id,
        "point_id": weights.point_id,
        "verdict": record.get("verdict") if done else "unfinished",
        "loss": record.get("loss") if done else None,
        "bits_per_byte": record.get("bits_per_byte") if done else None,
        "validation_sets": record.get("validation_sets", {}) if done else {},
        "tokens": weights.tokens,
        "flops_matmul": shape.flops(weights.tokens),
        "params_total": shape.params_total,
        "params_non_embedding": shape.params_non_embedding,
        "corpus": recipe.data.corpus,
        "recipe": recipe.to_dict(),
    }


def card(facts: Mapping[str, Any]) -> str:
    """The model card: facts alone."""
    shape = facts["recipe"]["model"]
    rows = {
        "Parameters": f"{facts['params_total']:,} ({facts['params_non_embedding']:,} without embedding and head)",
        "Layers, width, heads": f"{shape['layers']}, {shape['d_model']}, {shape['heads']}",
        "Context": f"{shape['sequence']} tokens of a vocabulary of {shape['vocabulary']}",
        "Training tokens": f"{facts['tokens']:,} of the corpus {facts['corpus']}",
        "Training FLOPs": f"{facts['flops_matmul']:.4g} (every matrix product counted)",
        "State": facts["verdict"],
    }
    if facts["loss"] is not None:
        rows["Validation loss"] = f"{facts['loss']:.4f} nats per token"
        if facts["bits_per_byte"] is not None and math.isfinite(facts["bits_per_byte"]):
            rows["Bits per byte"] = f"{facts['bits_per_byte']:.4f}"
    lines = "".join(f"| {name} | {value} |\n" for name, value in rows.items())
    return (
        f"# {facts['point_id']}\n\n"
        f"A point of the scaling-law sweep `{facts['sweep']}`, trained and exported by isoflop {facts['isoflop']}; the "
        f"whole recipe is in `{MANIFEST}`.\n\n| | |\n|---|---|\n{lines}"
    )


def _manifest(place: Path) -> Any:
    """What is in the place, if it is an export."""
    try:
        return json.loads((place / MANIFEST).read_text())
    except (OSError, ValueError):
        raise UserError(f"{place} is there and is no export of isoflop; choose another out=, or move it.") from None


def _put(making: Path, place: Path) -> None:
    """Rename to the place; an earlier state's folder goes when the new one is whole."""
    for path in making.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    old = making.with_name(f"{making.name}.old")
    if place.exists():
        place.rename(old)
    making.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def _library() -> Any:
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise UserError(
            "the package safetensors is not installed; install it with `pip install 'isoflop[hf]'`."
        ) from None

    def save(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str]) -> None:
        apart = {name: tensor.detach().clone() for name, tensor in tensors.items()}  # shared memory is refused
        save_file(apart, path, metadata=dict(metadata))

    return save
