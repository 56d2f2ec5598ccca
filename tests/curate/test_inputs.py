"""Finding files and cutting them: deterministic, every line once, every problem of the user's in one list."""

import json
import os
import sys

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crawl_makers import pages, read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fledge.core.config import build
from fledge.curate.inputs import Piece, ReadSettings, Skipped, Split, find_splits, open_piece, same_input
from fledge.curate.records import read_split
from fledge.curate.shards import write_manifest, write_shard


def pieces(*paths, split_bytes=1 << 20, **chosen) -> list[Piece]:
    return [
        piece
        for split in find_splits([str(p) for p in paths], split_bytes, ReadSettings(**chosen))[0]
        for piece in split.pieces
    ]


def test_folder_is_listed_in_order_with_strangers_named(tmp_path):
    for name in ("b/z.md", "b/A.HTML", "a.warc.wet.gz", "c.ndjson", "t.tgz", "d.feather", "b/photo.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    splits, skipped = find_splits([str(tmp_path)])
    found = [(p.name.removeprefix(f"{tmp_path}/"), p.kind, p.packing) for split in splits for p in split.pieces]
    assert found == [
        ("a.warc.wet.gz", ".warc", ".gz"), ("b/A.HTML", ".html", ""), ("b/z.md", ".text", ""),
        ("c.ndjson", ".jsonl", ""), ("d.feather", ".arrow", ""), ("t.tgz", ".tar", ".gz"),
    ]  # fmt: skip
    assert skipped == [
        Skipped(f"{tmp_path}/b/photo.jpg", "unsupported file type"),
        Skipped(f"{tmp_path}/loop", "linked folder, not followed"),
    ]
    assert find_splits([str(tmp_path), f"{tmp_path}/b/z.md"])[0] == splits  # named twice, read once


def test_small_files_share_a_split_and_splits_are_json(tmp_path):
    for number in range(10):
        (tmp_path / f"{number}.txt").write_text("x" * 30)
    splits, _ = find_splits([str(tmp_path)], 100)
    assert [len(split.pieces) for split in splits] == [3, 3, 3, 1]
    assert [(split.number, split.bytes) for split in splits] == [(0, 90), (1, 90), (2, 90), (3, 30)]
    assert msgspec.json.decode(msgspec.json.encode(splits), type=list[Split]) == splits


lines = st.lists(st.text(alphabet="a你\r{", max_size=12), max_size=30)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=lines, ended=st.booleans(), split_bytes=st.integers(1, 80), chunk_bytes=st.sampled_from([1, 5, 1 << 20]))
def test_byte_ranges_hold_every_line_once_at_any_size(tmp_path, lines, ended, split_bytes, chunk_bytes):
    path = tmp_path / "a.jsonl"
    data = "\n".join(lines).encode() + b"\n" * (ended or not lines)
    path.write_bytes(data)
    if not data:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fledge.curate.inputs.CHUNK_BYTES", chunk_bytes)
        found = pieces(path, split_bytes=split_bytes)
    ends = [len(data) if piece.end < 0 else piece.end for piece in found]
    assert [piece.start for piece in found] == [0, *ends[:-1]] and ends[-1] == len(data)
    assert all(data[piece.start - 1 : piece.start] in (b"", b"\n") for piece in found)
    assert [piece.first_line for piece in found] == [data[: piece.start].count(b"\n") + 1 for piece in found]
    assert all(end - piece.start >= split_bytes for piece, end in zip(found[:-1], ends, strict=False))


@pytest.mark.parametrize("split_bytes", [1, 64, 1000, 1 << 20])
def test_pages_of_a_cut_file_are_those_of_the_whole(tmp_path, split_bytes):
    rows = [{"text": f"第 {n} 頁 " + "word " * (n % 7)} for n in range(60)]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps(r, ensure_ascii=False) + "\n" * (1 + n % 3) for n, r in enumerate(rows))
    )
    found = read(tmp_path, split_bytes=split_bytes)
    assert [row["text"] for row in found] == [row["text"] for row in rows]
    whole = read(tmp_path)
    assert [(row["source"], row["id"]) for row in found] == [(row["source"], row["id"]) for row in whole]
    assert whole[1]["source"] == "a.jsonl:2" and whole[3]["source"] == "a.jsonl:7"  # blank lines are lines


def test_parquet_is_cut_into_row_groups_with_numbers_of_the_whole_file(tmp_path):
    texts = [os.urandom(40).hex() for _ in range(100)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=7)
    size = (tmp_path / "a.parquet").stat().st_size
    found = pieces(tmp_path, split_bytes=2000)
    assert len(found) > 3 and abs(sum(piece.bytes for piece in found) - size) < len(found)
    assert [piece.start for piece in found[1:]] == [piece.end for piece in found[:-1]]
    rows = read(tmp_path, split_bytes=2000)
    assert [row["text"] for row in rows] == texts
    assert [row["source"] for row in rows] == [f"a.parquet:{number}" for number in range(1, 101)]


def test_other_encodings_and_packed_files_are_not_cut(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"text": "上"}\n'.encode("utf-16") * 100)
    assert len(pieces(tmp_path, split_bytes=10)) == 1
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' * 100)
    assert len(pieces(tmp_path, split_bytes=10, encoding="gb18030")) == 1
    assert len(pieces(tmp_path, split_bytes=10)) == 100


def test_every_problem_is_told_at_once(tmp_path):
    (tmp_path / "a.exe").write_bytes(b"x")
    with pytest.raises(ValueError) as error:
        find_splits([f"{tmp_path}/gone", f"{tmp_path}/a.exe", "nosuch://x/y"], 0, ReadSettings(encoding="utf-9"))
    message = str(error.value)
    for part in ("gone: no such file", "a.exe: unsupported", "nosuch://x/y", "'utf-9'", "split_bytes = 0"):
        assert part in message
    assert message.startswith("5 problems")
    with pytest.raises(ValueError, match="longest_bytes"):
        build(ReadSettings, {"longest_bytes": 3})


def test_nothing_usable_says_what_was_seen(tmp_path):
    with pytest.raises(ValueError, match=r"0 usable files.*there are none"):
        find_splits([str(tmp_path)])
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "b.txt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"0 usable files.*a\.jpg: unsupported file type"):
        find_splits([str(tmp_path)])


def test_missing_package_of_a_protocol_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ValueError, match=r"s3://bucket/crawl: needs a package.*s3fs"):
        find_splits(["s3://bucket/crawl"])


def test_missing_zstandard_is_told_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl.zst").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ValueError, match="pip install zstandard"):
        find_splits([str(tmp_path)])


@pytest.fixture
def memory_folder():
    fsspec = pytest.importorskip("fsspec")
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe(
        {"/crawl/b.jsonl": b'{"text": "one"}\n{"text": "two"}\n' * 20, "/crawl/a.txt": b"three", "/crawl/x.png": b"x"}
    )
    yield filesystem
    filesystem.rm("/crawl", recursive=True)


def test_remote_folders_are_read_like_local_ones(memory_folder):
    splits, skipped = find_splits(["memory://crawl"], 100)
    assert [skip.source for skip in skipped] == ["memory:///crawl/x.png"]
    assert len(splits) == 7
    rows = read("memory://crawl", split_bytes=100)
    assert pages(rows) == ["three"] + ["one", "two"] * 20
    assert rows[1]["source"].endswith("crawl/b.jsonl:1")
    memory_folder.pipe({"/crawl/b.jsonl": b"other"})
    assert "has changed" in same_input(splits[1].pieces[0])
    with pytest.raises(ValueError, match="memory://nothing: no such file"):
        find_splits(["memory://nothing"])


def test_a_file_gone_or_changed_since_it_was_listed_is_the_users_to_mend(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("hello")
    splits, _ = find_splits([str(path)])
    assert same_input(splits[0].pieces[0]) is None
    path.write_text("hello again")
    with pytest.raises(ValueError, match=r"a\.txt has changed.*5 bytes then, 11 now"):
        list(read_split(splits[0], ReadSettings()))
    path.unlink()
    with pytest.raises(ValueError, match="is gone"):
        list(read_split(splits[0], ReadSettings()))


def test_of_curated_text_only_the_pages_kept_are_read(tmp_path):
    clean, records = tmp_path / "clean", {}
    for part, text in (("data", "kept"), ("rejected", "dropped")):
        records[part] = [write_shard(clean / part / "part-00000.parquet", [pa.table({"text": [text]})], folder=clean)]
    write_manifest(clean, records["data"], rejected=records["rejected"], facts={})
    for folder in (clean, tmp_path):
        assert pages(read(folder)) == ["kept"]
    shard = clean / "data" / "part-00000.parquet"
    shard.write_bytes((clean / "rejected" / "part-00000.parquet").read_bytes())
    with pytest.raises(ValueError, match=r"data/part-00000\.parquet is not the shard that was written"):
        read(clean)
    shard.unlink()
    with pytest.raises(ValueError, match=r"data/part-00000\.parquet is missing"):
        read(clean)


def test_open_piece_is_seekable(tmp_path, memory_folder):
    (tmp_path / "a.txt").write_bytes(b"abc")
    for piece in (*pieces(tmp_path), *pieces("memory://crawl/a.txt")):
        with open_piece(piece) as file:
            file.seek(1)
            assert file.read(1) in (b"b", b"h")
