"""What ``isoflop VERB --help`` prints: the groups, and every value with what it is now and what it means.

The meanings are the docstrings under the fields of the schemas, so there is no second text to keep true.
"""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, get_type_hints

LEFT = 38
"""Columns for key=value; a longer one has its meaning on the next line."""
WIDEST = 140


def help_text(config_name: str, overrides: Sequence[str], config_dirs: Sequence[str], intro: str) -> str:
    """The page of a verb, with the values that ``overrides`` give.

    Parameters
    ----------
    config_dirs
        Folders given with ``--config-dir``.
    """
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_module(config_module="conf", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        search = [f"file://{folder}" for folder in config_dirs]
        given = [*overrides, *([f"hydra.searchpath=[{','.join(search)}]"] if search else [])]
        config = compose(config_name, overrides=given)
        groups = {
            name: loader.get_group_options(name, config_name=config_name, overrides=given)
            for name in loader.list_groups("")
            if name in config
        }
    width = min(shutil.get_terminal_size((100, 24)).columns, WIDEST)
    lines = [intro.strip(), *(["", "Groups, chosen with group=option:", ""] if groups else [])]
    for name, options in groups.items():
        lines += _row(name, ", ".join(option for option in options if option != "schema"), width)
    lines += ["", "Values, as these options give them; set with key=value:"]
    lines += _node(config, "", width)
    lines += ["", "Hydra's own flags: --cfg job, --config-dir DIR, --info, --resolve, --package."]
    return "\n".join(lines) + "\n"


def _node(config: Any, prefix: str, width: int) -> Iterator[str]:
    """Lines of a node of the config: its own values, then the nodes below it."""
    from omegaconf import OmegaConf

    kind: Any = OmegaConf.get_type(config)
    meanings, hints = _meanings(kind), get_type_hints(kind)
    nodes = [field.name for field in fields(kind) if is_dataclass(hints[field.name])]
    yield ""
    if prefix:
        what = re.sub(r"^(Group|Node) \S+ ", "", _first_paragraph(kind))
        yield from textwrap.wrap(f"{prefix.rstrip('.')}: {what[0].upper()}{what[1:]}", width)
    plain: Any = OmegaConf.to_container(config, resolve=False, throw_on_missing=False, enum_to_str=True)
    for name, value in plain.items():
        if name not in nodes:
            meaning, choice = meanings.get(name, ""), hints[name]
            if inspect.isclass(choice) and issubclass(choice, Enum):
                told = meaning or _first_paragraph(choice)
                meaning = f"{told} One of {', '.join(one.name for one in choice)}."
            yield from _row(f"{prefix}{name}={_shown(value)}", meaning, width)
    for name in nodes:
        yield from _node(config[name], f"{prefix}{name}.", width)


def _row(left: str, meaning: str, width: int) -> list[str]:
    indent = " " * (LEFT + 2)
    right = textwrap.wrap(meaning, width - len(indent))
    if not right or len(left) > LEFT:
        return [f"  {left}", *(indent + line for line in right)]
    return [f"  {left:<{LEFT}}{right[0]}", *(indent + line for line in right[1:])]


def _shown(value: Any) -> str:
    """As one would write it on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(_shown, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_shown(item)}' for key, item in value.items())}}}"
    return f"{value:g}".replace("e+", "e") if isinstance(value, float) else str(value)


def _first_paragraph(kind: type) -> str:
    return _plain((inspect.getdoc(kind) or "").partition("\n\n")[0])


def _plain(text: str) -> str:
    """Without reStructuredText's marks, on one line."""
    return " ".join(re.sub(r":\w+:`([^`]*)`", r"\1", text).replace("``", "").split())


@cache
def _meanings(kind: type) -> dict[str, str]:
    """Field -> the docstring under it, inherited ones included."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if not is_dataclass(one):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            if not isinstance(field, ast.AnnAssign) or not isinstance(text, ast.Expr):
                continue
            if isinstance(text.value, ast.Constant) and isinstance(field.target, ast.Name):
                found[field.target.id] = _plain(str(text.value.value))
    return found
