"""Values as files: YAML and JSON that read back as what was written, and the ends of files of lines."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from trainer.files import append_line, json_text, read_lines, write_whole
from trainer.yamltext import yaml_text

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)
LOADERS = {yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)}


@given(VALUES)
@example({"rate": 1e-05, "large": 1e300, "whole": 2.0, "commit": "1234567", "hex": "12e34", "list": [1e-7, "no", ""]})
@example({word: word for word in ("yes", "No", "ON", "null", "Null", "~", "y", "2024-01-02", "a: b", "a #b", "- a")})
@example({"run_id": "c1e10-n25k-d37k-0a1b2c3d4e", "at": "a@1.5B", "empty": {}, "none": [], "deep": {"a": {"b": [1]}}})
def test_yaml_reads_back_as_what_was_written(value: Any) -> None:
    text = yaml_text(value)
    for loader in LOADERS:
        found = yaml.load(text, Loader=loader)
        assert found == value
        assert json.dumps(found) == json.dumps(value), "in its order, and 1 is not 1.0"


@pytest.mark.parametrize("infinite", [float("inf"), float("-inf")])
def test_what_has_no_simple_form_is_left_to_the_library(infinite: float) -> None:
    assert yaml.safe_load(yaml_text({"a": infinite})) == {"a": infinite}


@given(VALUES.filter(lambda value: "Infinity" not in json.dumps(value)), st.integers(0, 3) | st.none())
def test_json_reads_back_whatever_is_indented(value: Any, levels: int | None) -> None:
    assert json.loads(json_text(value, levels)) == value


def test_files_are_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "run" / "whole", "x")
        append_line(tmp_path / "run" / "lines", {})
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "run", *(tmp_path / "run").iterdir())}
    assert modes == {"run": 0o750, "whole": 0o640, "lines": 0o640}, "the group reads"


def test_json_has_a_line_for_each_row() -> None:
    rows = [{"a": 1, "b": [1, 2]}, {"a": 2, "b": []}]
    assert json_text({"rows": rows, "none": []}, 2) == (
        '{\n  "rows": [\n    {"a": 1, "b": [1, 2]},\n    {"a": 2, "b": []}\n  ],\n  "none": []\n}\n'
    )


@given(st.lists(st.dictionaries(st.text(max_size=3), st.integers(), max_size=3), max_size=20), st.integers(1, 200))
def test_the_end_of_a_file_of_lines(tmp_path_factory: pytest.TempPathFactory, rows: list[Any], size: int) -> None:
    path = tmp_path_factory.mktemp("lines") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    end = read_lines(path, last_bytes=size)
    assert end == rows[len(rows) - len(end) :]
    assert len(json.dumps(end)) <= size + 2 * len(end) + 2
    if path.stat().st_size <= size:
        assert end == rows
