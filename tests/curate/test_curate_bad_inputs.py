"""The bad inputs every reader must answer well, at full size where size is the point."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from crawl_makers import pages, read, rejects

from fledge.curate.inputs import find_splits

LARGE_BYTES = {"a.jsonl": 4 << 30}  # 1 GiB of the others

MEASURE = """
import sys
from fledge.core.runtime import peak_memory as peak
from fledge.curate.inputs import ReadSettings, find_splits
from fledge.curate.records import read_split
import fledge.curate.records, resiliparse, pyarrow.parquet
before, settings = peak(), ReadSettings()
for split in find_splits(sys.argv[1:], 1 << 30)[0]:
    for table in read_split(split, settings):
        for row in table.to_pylist():
            print(row["source"].rpartition("/")[2], row["reason"], row["text"][:20])
print("MB", (peak() - before) // 2**20)
"""


def measured(path: Path) -> tuple[list[str], int]:
    """What a fresh process read, and the megabytes by which its memory grew."""
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    *rows, last = done.stdout.splitlines()
    return rows, int(last.split()[1])


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.html", "a.warc"])
def test_a_line_of_gigabytes_takes_bounded_memory(tmp_path, name):
    """6: the file is a hole on the disk, so it costs no space."""
    path, size = tmp_path / name, LARGE_BYTES.get(name, 1 << 30)
    start = {"a.jsonl": b'{"text": "first"}\n{"text": "'}.get(name, b"first\n")
    if name == "a.warc":
        start = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: %d\r\n\r\n" % size
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
        file.seek(0, os.SEEK_END)
        file.write(b'"}\n{"text": "last"}\n' if name == "a.jsonl" else b"\nlast\n")
    rows, grown_mb = measured(path)
    assert grown_mb < 120
    too_long = "longer than can be held"
    expected = {
        "a.jsonl": ["a.jsonl:1 None first", f"a.jsonl:2 {too_long} a line over 8,388,60", "a.jsonl:3 None last"],
        "a.html": [f"a.html {too_long} a page over 8,388,60"],
    }
    if name in expected:
        assert rows == expected[name]
    else:
        assert any(f"{name}:" in row and (too_long in row or "cut short" in row) for row in rows)


def test_a_broken_line_is_named_with_its_column(tmp_path):
    """1"""
    lines = [json.dumps({"text": f"row {n}"}) for n in range(8000)]
    lines[7311] = '{"text": "never closed'
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    rows = read(tmp_path, split_bytes=10_000)
    assert rejects(rows) == [("a.jsonl:7312:10", "broken JSON line")] and len(pages(rows)) == 7999
    (tmp_path / "a.jsonl").rename(tmp_path / "a.json")
    rows = read(tmp_path)  # the same text as one JSON file cannot be read on
    assert rejects(rows) == [("a.json:7312:23", "broken JSON file")] and len(pages(rows)) == 7311


def test_other_encodings_are_detected_said_or_rejected_with_their_bytes(tmp_path):
    """2"""
    (tmp_path / "a.txt").write_bytes("Grüße aus München, schöne Tage".encode("latin-1"))
    (tmp_path / "b.txt").write_bytes("國破山河在".encode("utf-16"))
    (tmp_path / "c.txt").write_bytes(b"ab \xff\x81\x8d\x90 cd\x98\x9d")
    (tmp_path / "d.jsonl").write_bytes(
        '{"text": "Größe und Maße"}\n'.encode("latin-1") + '{"text": "Größe"}\n'.encode()
    )
    rows = read(tmp_path)
    assert pages(rows) == ["Grüße aus München, schöne Tage", "國破山河在", "Größe und Maße", "Größe"]
    assert [bool(row["repaired"]) for row in rows] == [True, False, False, True, False]
    assert rejects(rows) == [("c.txt", "encoding not known")] and "ff 81 8d 90" in rows[2]["text"]


def test_surrogates_control_characters_and_special_tokens(tmp_path):
    """3, 4, 10"""
    rows = ["nul \x00 and bell \x07", "a <|im_end|> b [END] <s>", "fine"]
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps({"text": text}) for text in rows) + '\n{"text": "\\udc00"}\n'
    )
    found = read(tmp_path)
    assert pages(found) == rows and rejects(found) == [("a.jsonl:4", "lone surrogate (half a character)")]


def test_empty_blank_and_single_pages(tmp_path):
    """5"""
    (tmp_path / "a.txt").write_bytes(b"")
    (tmp_path / "b.txt").write_bytes(b" \n\t\n")
    (tmp_path / "c.jsonl").write_bytes(b"\n\n")
    (tmp_path / "d.txt").write_bytes(b"one")
    rows = read(tmp_path)
    assert pages(rows) == ["one"]
    assert rejects(rows) == [("a.txt", "no page in the file"), ("b.txt", "blank"), ("c.jsonl", "no page in the file")]
    with pytest.raises(ValueError, match="0 usable files"):
        find_splits([str(tmp_path / "a.txt")])


def test_duplicate_keys_and_numbers_that_are_none(tmp_path):
    """7"""
    (tmp_path / "a.jsonl").write_text(
        '{"text": "a", "x": {"k": 1, "k": 2}}\n{"text": "b", "n": -Infinity}\n{"text": "c"}\n'
    )
    rows = read(tmp_path)
    assert [reason for _, reason in rejects(rows)] == ["duplicate JSON key", "NaN or Infinity is not a JSON number"]
    assert pages(rows) == ["c"]
