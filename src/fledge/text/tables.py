"""Rows of Parquet and Arrow files, a few at a time."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fledge.text.files import Row
from fledge.text.paths import file_type, shown_path

if TYPE_CHECKING:
    import pyarrow

BATCH_ROWS = 256
ARROW_TYPES = (".arrow", ".feather", ".ipc")
TABLE_TYPES = (".parquet", *ARROW_TYPES)
_FEATHER_1 = b"FEA1"


def table_rows(
    path: Path, columns: frozenset[str], unpack: Callable[[Path], Iterable[bytes]]
) -> Iterator[tuple[str, Row]]:
    """("path:ROW", row) of a .parquet or .arrow file (either layout of Arrow's: file or stream), also packed.

    A row holds those of `columns` that the file has, all where it has none. `unpack` gives the bytes of a packed file.
    Raises ValueError where the file is not whole.
    """
    import pyarrow

    kind, packing = file_type(path.name)
    name, number = shown_path(path), 0
    batches = _parquet_batches if kind == ".parquet" else _arrow_batches
    with tempfile.TemporaryFile() if packing else path.open("rb") as file:
        if packing:  # the index of such a file is at its end, so it cannot be unpacked on the way
            for chunk in unpack(path):
                file.write(chunk)
            file.flush()
            file.seek(0)
        try:
            for batch in batches(file, columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{name}:{number}", row
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            what = "parquet" if kind == ".parquet" else "Arrow"
            why = " ".join(str(error).split())
            raise ValueError(
                f"{name}: not a whole {what} file, after {number:,} good rows ({why}). "
                "It is cut short, damaged or of another type: copy or download it again."
            ) from error


def _parquet_batches(file: BinaryIO, columns: frozenset[str]) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow.parquet

    parquet = pyarrow.parquet.ParquetFile(file)
    wanted = [column for column in parquet.schema_arrow.names if column in columns]
    yield from parquet.iter_batches(BATCH_ROWS, columns=wanted or None)


def _arrow_batches(file: BinaryIO, columns: frozenset[str]) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow
    import pyarrow.ipc

    magic = file.read(6)
    file.seek(0)
    if magic[:4] == _FEATHER_1:
        raise pyarrow.ArrowInvalid("it is Feather version 1; write it again with a newer version, or as .parquet")
    if not magic:
        raise pyarrow.ArrowInvalid("it is empty")
    # mapped: a batch may be as large as the file, and is read where it is wanted
    data = pyarrow.BufferReader(pyarrow.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    if magic == b"ARROW1":
        reader = pyarrow.ipc.open_file(data)
        batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
    else:
        batches = iter(pyarrow.ipc.open_stream(data))
    for batch in batches:
        wanted = [column for column in batch.schema.names if column in columns]
        batch = batch.select(wanted or batch.schema.names)
        batch.validate(full=True)  # offsets that lead out of the buffers would crash the process
        for start in range(0, len(batch), BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)
