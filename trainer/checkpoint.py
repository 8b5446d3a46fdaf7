"""Checkpoints: two slots, each written whole; the newest valid one is loaded, whatever happened to the other.

A run with branches has more: ``trunk.ckpt``, to which it returns after a cooldown, and each cooldown's end.

A file is one line of JSON (run id, step, length and SHA-256 of the rest), then what ``torch.save`` wrote. Loading
never unpickles objects (``weights_only``).
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.config import Keep
from trainer.files import write_whole
from trainer.recipe import SCHEMA

SLOTS = ("a.ckpt", "b.ckpt")
TRUNK = "trunk.ckpt"


def branch_end(tokens: int | str) -> str:
    """The file of a run's state at the end of the branch that ends after so many tokens."""
    return f"at-{tokens}.ckpt"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A run's state after ``step`` updates, those of branches counted."""

    slot: str
    step: int
    state: Mapping[str, Any]


def save(folder: Path, run_id: str, *, step: int, state: Mapping[str, Any], newest: str | None) -> str:
    """Write the state after ``step`` updates over the slot that is not ``newest``; returns the slot's name.

    Raises
    ------
    MachineFault
        If the disk is full or read-only; both slots are then as they were.
    """
    slot = SLOTS[1] if newest == SLOTS[0] else SLOTS[0]
    write(folder / slot, run_id, step=step, state=state)
    return slot


def write(path: Path, run_id: str, *, step: int, state: Mapping[str, Any]) -> None:
    """Write the state after ``step`` updates to one file, whole.

    Raises
    ------
    MachineFault
        If the disk is full or read-only; what was there is then as it was.
    """
    body = io.BytesIO()
    torch.save(dict(state), body)
    data = body.getvalue()
    header = {"schema": SCHEMA, "run_id": run_id, "step": step, "bytes": len(data)}
    header["sha256"] = hashlib.sha256(data).hexdigest()
    write_whole(path, json.dumps(header).encode() + b"\n" + data)


def newest(folder: Path, run_id: str) -> Checkpoint | None:
    """The valid checkpoint of the highest step of the two slots; None where there is none."""
    return next(valid(folder, run_id), None)


def valid(folder: Path, run_id: str, names: Sequence[str] = SLOTS) -> Iterator[Checkpoint]:
    """The valid checkpoints among the files ``names``, by falling step.

    One that is cut short, altered, or another run's is passed over with a warning.
    """
    for slot, header, data in sorted(_readable(folder, run_id, names), key=lambda found: -int(found[1]["step"])):
        try:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:
            _pass_over(folder / slot, f"torch cannot load it ({str(error).splitlines()[0]})")
            continue
        yield Checkpoint(slot=slot, step=header["step"], state=state)


def free(folder: Path, run_id: str, keep: Keep) -> None:
    """Remove what the policy does not keep once all points are done.

    That is everything; all but the newest of each point; or nothing.
    """
    if keep is Keep.all:
        return
    found = newest(folder, run_id) if keep is Keep.last else None
    for slot in (*SLOTS, TRUNK):
        if found is None or slot != found.slot:
            (folder / slot).unlink(missing_ok=True)
    if keep is Keep.none:
        for path in folder.glob(branch_end("*")):
            path.unlink(missing_ok=True)
    for rest in folder.glob(".*.tmp"):
        rest.unlink(missing_ok=True)


def _readable(folder: Path, run_id: str, names: Sequence[str]) -> list[tuple[str, dict[str, Any], bytes]]:
    """Files whose bytes are what their header promises."""
    found = []
    for slot in names:
        path = folder / slot
        try:
            first, _, data = path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            continue
        header = _header(first)
        if header is None:
            _pass_over(path, "its header is damaged")
        elif header["run_id"] != run_id:
            _pass_over(path, f"it belongs to run {header['run_id']}")
        elif header["schema"] > SCHEMA:
            _pass_over(path, "a newer isoflop wrote it")
        elif len(data) != header["bytes"] or hashlib.sha256(data).hexdigest() != header["sha256"]:
            _pass_over(path, "it is cut short or altered")
        else:
            found.append((slot, header, data))
    return found


def _header(line: bytes) -> dict[str, Any] | None:
    try:
        header = json.loads(line)
    except ValueError:
        return None
    kinds = {"schema": int, "run_id": str, "step": int, "bytes": int, "sha256": str}
    if not isinstance(header, dict) or not all(isinstance(header.get(key), kind) for key, kind in kinds.items()):
        return None
    return header


def _pass_over(path: Path, why: str) -> None:
    warnings.warn(f"checkpoint {path} is passed over: {why}.", stacklevel=4)
