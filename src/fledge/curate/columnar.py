"""Rows of Parquet and Arrow files, a few at a time; a damaged part is one reject and its neighbours still count."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from fledge.curate.encoding import UNKNOWN
from fledge.curate.packing import CAP_SLACK_BYTES, OVER_CAP
from fledge.text.files import Row, RowRejected

READ_ROWS = 64
DAMAGED_GROUP, DAMAGED_BATCH = "damaged row group", "damaged record batch"
_TROUBLE = (pa.ArrowException, OSError, ValueError, OverflowError, NotImplementedError)


def table_rows(
    kind: str, file: BinaryIO, columns: Sequence[str], ratio: int, start: int = 0, end: int = -1
) -> Iterator[tuple[int, Row | RowRejected]]:
    """(row number from 1, row) of the row groups from `start` to `end` (-1: all) of a Parquet file, or of an Arrow one.

    A row holds those of `columns` that the file has. Raises pyarrow.ArrowException, OSError without a number or
    ValueError where the file as a whole cannot be read.
    """
    if kind == ".parquet":
        return _parquet_rows(file, columns, ratio, start, end)
    magic = file.read(6)
    file.seek(0)
    return _arrow_file_rows(file, columns) if magic == b"ARROW1" else _arrow_stream_rows(file, columns)


def _parquet_rows(
    file: BinaryIO, columns: Sequence[str], ratio: int, start: int, end: int
) -> Iterator[tuple[int, Row | RowRejected]]:
    size = file.seek(0, io.SEEK_END)
    parquet = pa.parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True)
    metadata, names = parquet.metadata, parquet.schema_arrow.names
    wanted = [name for name in columns if names.count(name) == 1]
    number = 1
    for group in range(metadata.num_row_groups if end < 0 else end):
        first, number = number, number + metadata.row_group(group).num_rows
        if group < start:
            continue
        # no more is asked of the metadata of a group: pyarrow 25 ends the process where that of a column is damaged
        unpacked_bytes = metadata.row_group(group).total_byte_size
        if unpacked_bytes > ratio * size + CAP_SLACK_BYTES:
            yield first, RowRejected(OVER_CAP, f"{unpacked_bytes:,} bytes from a file of {size:,}")
            continue
        reached = first
        try:
            for batch in parquet.iter_batches(READ_ROWS, row_groups=[group], columns=wanted or None, use_threads=False):
                yield from enumerate(_rows(batch), reached)
                reached += len(batch)
        except _TROUBLE as error:
            yield reached, _damaged(DAMAGED_GROUP, error, number - reached)


def _arrow_file_rows(file: BinaryIO, columns: Sequence[str]) -> Iterator[tuple[int, Row | RowRejected]]:
    reader, number = pa.ipc.open_file(file), 1
    for index in range(reader.num_record_batches):
        try:
            rows = _batch_rows(reader.get_batch(index), columns)
        except _TROUBLE as error:
            yield number, _damaged(DAMAGED_BATCH, error)
        else:
            for row in rows:
                yield number, row
                number += 1


def _arrow_stream_rows(file: BinaryIO, columns: Sequence[str]) -> Iterator[tuple[int, Row | RowRejected]]:
    number = 1
    for batch in pa.ipc.open_stream(file):
        for row in _batch_rows(batch, columns):
            yield number, row
            number += 1


def _batch_rows(batch: pa.RecordBatch, columns: Sequence[str]) -> Iterator[Row | RowRejected]:
    """The rows of a batch from outside. Raises pyarrow.ArrowInvalid at once where its buffers are not sound."""
    names = batch.schema.names
    wanted = [name for name in columns if names.count(name) == 1]
    batch = batch.select(wanted or names)
    for column in batch.columns:
        _as_bytes(column).validate(full=True)  # offsets that lead out of the buffers would crash the process
    return (row for start in range(0, len(batch), READ_ROWS) for row in _rows(batch.slice(start, READ_ROWS)))


def _as_bytes(column: pa.Array) -> pa.Array:
    """A column of strings without the promise that they are UTF-8, which is kept or broken by each."""
    if pa.types.is_string(column.type):
        return column.view(pa.binary())
    return column.view(pa.large_binary()) if pa.types.is_large_string(column.type) else column


def _rows(batch: pa.RecordBatch) -> Iterator[Row | RowRejected]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for index in range(len(batch)):
            try:
                yield batch.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield RowRejected(UNKNOWN, str(error))


def _damaged(reason: str, error: Exception, lost: int = 0) -> RowRejected:
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    return RowRejected(reason, " ".join(f"{lost:,} rows: {error}".split()) if lost else " ".join(str(error).split()))
