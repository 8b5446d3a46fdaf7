"""Columns of text in parquet and arrow files, block by block: a row group of the one, a batch of the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from trainer.errors import UserError


def block_sizes(path: str, kind: str) -> list[int]:
    """About how many bytes of the file each block takes."""
    with _readable(path, kind):
        if kind == "parquet":
            import pyarrow.parquet as pq

            with pq.ParquetFile(path) as file:
                return [file.metadata.row_group(each).total_byte_size for each in range(file.num_row_groups)]
        return [batch.nbytes for batch in _batches(path)]


def column(path: str, kind: str, name: str, start: int, stop: int | None) -> Iterator[str | bytes | None]:
    """The texts of a column in the blocks from ``start`` to ``stop``, as bytes where one of their neighbours is not
    UTF-8, which the file's type promises; None where a row has none.

    Raises
    ------
    UserError
        If the file is damaged, or has no such column of texts.
    """
    with _readable(path, kind):
        for table in _parquet(path, name, start, stop) if kind == "parquet" else _arrow(path, name, start, stop):
            texts = table.column(name)
            try:
                found = texts.to_pylist()
            except UnicodeDecodeError:
                found = _bytes(texts)
            yield from found


def _parquet(path: str, name: str, start: int, stop: int | None) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, memory_map=True) as file:
        _check(path, name, file.schema_arrow)
        groups = list(range(start, file.num_row_groups if stop is None else stop))
        yield from file.iter_batches(batch_size=1024, row_groups=groups, columns=[name])


def _arrow(path: str, name: str, start: int, stop: int | None) -> Iterator[Any]:
    for batch in islice(_batches(path), start, stop):
        _check(path, name, batch.schema)
        yield batch


def _batches(path: str) -> Iterator[Any]:
    """Of a stream, which is what ``datasets`` writes, or of a file with a footer."""
    import pyarrow as pa

    with pa.memory_map(path) as source:
        try:
            reader = pa.ipc.open_stream(source)
        except pa.ArrowInvalid:
            source.seek(0)
            file = pa.ipc.open_file(source)
            yield from (file.get_batch(each) for each in range(file.num_record_batches))
        else:
            yield from reader


def _bytes(texts: Any) -> list[bytes | None]:
    import pyarrow as pa

    found: list[bytes | None] = texts.cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
    return found


def _check(path: str, name: str, schema: Any) -> None:
    import pyarrow as pa

    if name not in schema.names:
        raise UserError(f"field={name}: {path} has no such column; choose one of {', '.join(schema.names)}.")
    kind = schema.field(name).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise UserError(f"field={name}: that column of {path} holds {kind}, no texts; choose another column.")


@contextmanager
def _readable(path: str, kind: str) -> Iterator[None]:
    """Turn what pyarrow says of a damaged file into one sentence."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"{path} is no sound {kind} file ({said}); replace it or leave it out.") from error
