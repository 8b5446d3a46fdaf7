"""Values as YAML text: a sweep writes a thousand configs, and PyYAML takes a millisecond for each."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import yaml

PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_.@/+-]*")
"""Texts that need no quotes: beginning with a letter, they could only be one of ``WORDS``."""
WORDS = frozenset({"y", "n", "yes", "no", "true", "false", "on", "off", "null"})
QUOTED = re.compile(r"[ -~]*")
"""Texts whose JSON is YAML too."""


class _NotSimple(Exception):
    """What is left to PyYAML."""


def yaml_text(value: Any) -> str:
    """``value`` as YAML in the order given; mappings of scalars, lists of them, and mappings are written here."""
    try:
        return "".join(_mapping(value, ""))
    except _NotSimple:
        return str(yaml.dump(value, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False))


def _mapping(value: Any, indent: str) -> Iterator[str]:
    if not isinstance(value, dict) or not value:
        raise _NotSimple
    for key, item in value.items():
        name = f"{indent}{_text(key)}:"
        if isinstance(item, dict) and item:
            yield f"{name}\n"
            yield from _mapping(item, indent + "  ")
        elif isinstance(item, dict):
            yield f"{name} {{}}\n"
        elif isinstance(item, list):
            yield f"{name} [{', '.join(map(_scalar, item))}]\n"
        else:
            yield f"{name} {_scalar(item)}\n"


def _scalar(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        text = repr(value)
        return text if "." in text else text.replace("e", ".0e")  # YAML takes 1e-05 for a text
    return _text(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not QUOTED.fullmatch(value):
        raise _NotSimple
    return value if PLAIN.fullmatch(value) and value.lower() not in WORDS else json.dumps(value)
