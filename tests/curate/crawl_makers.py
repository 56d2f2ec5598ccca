"""Small crawls made byte by byte, and what reading them gives."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fledge.curate.inputs import ReadSettings, find_splits
from fledge.curate.records import READ, read_split


def read(*paths: Path | str, split_bytes: int = 1 << 20, **settings: Any) -> list[dict[str, Any]]:
    """Every row of every split, `source` without the folder of the first path."""
    chosen, rows = ReadSettings(**settings), []
    for split in find_splits([str(path) for path in paths], split_bytes, chosen)[0]:
        for table in read_split(split, chosen):
            assert table.schema == READ
            table.validate(full=True)
            rows += table.to_pylist()
    base = Path(str(paths[0]))
    folder = f"{base if base.is_dir() else base.parent}/"
    return [{**row, "source": row["source"].removeprefix(folder)} for row in rows]


def pages(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [row["text"] for row in rows if row["reason"] is None]


def rejects(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["source"], row["reason"]) for row in rows if row["reason"] is not None]


def warc_record(
    block: bytes, url: str = "http://a/", kind: str = "response", media_type: str = "application/http; msgtype=response"
) -> bytes:
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nContent-Type: {media_type}\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(block) + block + b"\r\n\r\n"


def response(
    body: bytes, url: str = "http://a/", media_type: str = "text/html; charset=utf-8", more: str = ""
) -> bytes:
    return warc_record(f"HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\n{more}\r\n".encode() + body, url)


def html_page(number: int) -> bytes:
    words = " ".join(f"word{number * index % 97}" for index in range(40))
    return f"<html><body><h1>Page {number}</h1><p>{words} 你好。</p></body></html>".encode()


def gzipped(records: Sequence[bytes]) -> bytes:
    """One member per record, as crawlers write it."""
    return b"".join(gzip.compress(record, mtime=0) for record in records)
