"""Pages as Arrow tables, and what a kernel is: a pure function from a table of pages to the same pages, judged.

A page is one row: text, id, source ("path" or "path:record"), url (null where there is none) and language ("" before
it is identified). Kernels add columns (scores, counts) and say of every page whether it stays: `reason` is null for
those that do, and `value` is the figure that broke the rule, where there is one. No engine type enters a kernel, so it
runs alike in a loop, a process pool, Daft or Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BATCH_PAGES = 1024
BATCH_BYTES = 8 << 20  # of text; a batch holds at least one page

REASON, VALUE = "reason", "value"
PAGE = pa.schema(
    [
        ("text", pa.large_string()),
        ("id", pa.string()),
        ("source", pa.string()),
        ("url", pa.string()),
        ("language", pa.string()),
    ]
)

Kernel = Callable[[pa.Table], pa.Table]
T = TypeVar("T")


def judged(pages: pa.Table, reason: pa.Array, value: pa.Array | np.ndarray | None = None) -> pa.Table:
    """`pages` with the columns reason (string, null = keep) and value (float64, null where there is none)."""
    if value is None:
        value = pa.nulls(len(pages), pa.float64())
    return pages.append_column(REASON, pa.array(reason, pa.string())).append_column(
        VALUE, pa.array(value, pa.float64())
    )


def kept_all(pages: pa.Table) -> pa.Table:
    """Every page stays."""
    return judged(pages, pa.nulls(len(pages), pa.string()))


def parted(pages: pa.Table) -> tuple[pa.Table, pa.Table]:
    """(the pages that stay, without reason and value; the rejected ones with both)."""
    stays = pc.is_null(pages[REASON])
    return pages.filter(stays).drop_columns([REASON, VALUE]), pages.filter(pc.invert(stays))


def for_language(settings: Mapping[str, T], language: str) -> T | None:
    """The entry for exactly this language ("zh-Hant"), else for its family ("zh"), else for all ("*"), else None."""
    for key in (language, language.split("-")[0], "*"):
        if key in settings:
            return settings[key]
    return None
