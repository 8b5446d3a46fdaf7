"""Points, or whole loss curves, from a CSV, JSONL or parquet file whose columns may have any names."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd

from analysis.config import Fill
from analysis.ingest.frames import flat, read_frame
from analysis.ingest.tables import Exclusion, Tables
from trainer.errors import UserError

KINDS = ".csv, .jsonl (either may be packed: .gz) or .parquet"


def read_file(
    path: Path | str,
    columns: Mapping[str, str] | None = None,
    *,
    fill: Fill | str = Fill.none,
    curves: Path | str | None = None,
) -> Tables:
    """Read a file of points, or of curves: CSV, JSONL or parquet, as its suffix says.

    A file that has ``run_id`` and ``step`` (or ``progress``), with several rows to a run, holds curves: the last row of
    each run is its point. Nested values of JSONL and parquet have dotted names (``model.params``). Lines of JSONL that
    are no objects are listed as left out.

    Parameters
    ----------
    columns
        Our column -> the file's, for those of other names: ``{"loss": "val", "params_non_embedding": "n"}``.
    fill
        What is taken from C = 6 N D where it is missing, a :class:`~analysis.config.Fill` or its name; its column may
        then be absent.
    curves
        A second such file with the loss curves of the points' runs, as :func:`~analysis.ingest.frames.read_frame` takes
        them: ``path`` then holds points alone. ``columns`` names the columns of both.

    Raises
    ------
    UserError
        If a file cannot be read or is of another kind, parameters, tokens or loss are not found in it, or ``fill`` is
        unknown.
    """
    raw, excluded = _read("path", Path(path))
    steps = None
    if curves is not None:
        steps, torn = _read("curves", Path(curves))
        excluded += [Exclusion(row=f"{curves}, {out.row}", reason=out.reason) for out in torn]
    tables = read_frame(raw, steps, columns, fill=fill, source=str(path))
    return replace(tables, excluded=(*excluded, *tables.excluded))


def _read(name: str, path: Path) -> tuple[pd.DataFrame, list[Exclusion]]:
    """The file as a data frame, and the lines that are none; ``name`` is the argument that named it."""
    row = {"path": "one row per point", "curves": "one row per logged loss"}[name]
    if path.is_dir():
        raise UserError(
            f"{name}={path} is a folder, not a file; name a {KINDS} file, or use source=runs for run folders."
        )
    packed = path.suffix.lower() == ".gz"
    kind = (Path(path.stem) if packed else path).suffix.lower()
    if kind not in (".csv", ".jsonl", ".parquet") or (packed and kind == ".parquet"):
        raise UserError(f"{name}={path} is of no kind that is read here; give a {KINDS} file.")
    try:
        data = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
        if not data.strip():
            raise UserError(f"{name}={path} is empty; give a file with {row}.")
        if kind == ".jsonl":
            return _jsonl(data, f"{name}={path}")
        frame = _csv(data, f"{name}={path}") if kind == ".csv" else _parquet(data)
    except FileNotFoundError:
        raise UserError(f"{name}={path} does not exist; name a {KINDS} file with {row}.") from None
    except (OSError, EOFError, zlib.error, ValueError, NotImplementedError) as error:
        # pandas' parser errors, pyarrow's and undecodable bytes are ValueErrors
        reason = " ".join(str(error).split())[:200]
        what = {".csv": "CSV", ".jsonl": "lines of JSON", ".parquet": "parquet"}[kind]
        raise UserError(f"{name}={path} cannot be read as {what} ({reason}); give a sound {KINDS} file.") from None
    if frame.empty:
        raise UserError(f"{name}={path} has a header but no rows; give a file with {row}.")
    return frame, []


def _csv(data: bytes, where: str) -> pd.DataFrame:
    if b"\0" in data[:4096]:
        raise ValueError("it holds binary data")
    raw = pd.read_csv(io.BytesIO(data), encoding="utf-8-sig")
    header = pd.read_csv(io.BytesIO(data), encoding="utf-8-sig", header=None, nrows=1, dtype=str).iloc[0].dropna()
    names = header.str.strip()
    if names.duplicated().any():  # pandas would rename the second
        raise UserError(f"{where} has two columns named {names[names.duplicated()].iloc[0]}; rename one.")
    named = len(names) > 1  # else it may be another separator, told below
    if named and not isinstance(raw.index, pd.RangeIndex):  # pandas takes what is before the last columns for an index
        if raw.iloc[:, -1].notna().any() or raw.index.nlevels > 1:
            raise UserError(f"{where} has rows of more cells than its header has names; name every column.")
        raw = pd.read_csv(io.BytesIO(data), encoding="utf-8-sig", index_col=False, usecols=range(raw.shape[1]))
    for separator in ";\t|":
        if raw.shape[1] == 1 and separator in str(raw.columns[0]):
            raise UserError(f"{where} separates its columns with {separator!r}; write it with commas.")
    return raw


def _jsonl(data: bytes, where: str) -> tuple[pd.DataFrame, list[Exclusion]]:
    rows, torn = [], []
    for number, line in enumerate(data.decode("utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            rows.append(flat(record))
        else:
            torn.append(Exclusion(row=f"line {number}", reason="it is no JSON object"))
    if not rows:
        raise UserError(f"{where} holds no JSON object; write one object per line.")
    return pd.DataFrame(rows), torn


def _parquet(data: bytes) -> pd.DataFrame:
    from pyarrow import BufferReader, parquet

    table = parquet.read_table(BufferReader(data))
    while any(str(field.type).startswith("struct") for field in table.schema):
        table = table.flatten()
    frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)  # else a column may hide as pandas' index
    return frame
