"""Files of every kind and every bad input: a row is counted and dropped, a file that cannot be trusted is an error."""

import codecs
import gzip
import json
import os
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fledge.text import files
from fledge.text.readers import Document, Rejects, read_documents, read_rows, require_some

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"real data absent: {SHARED}")
TEXT = "Grüße, 你好, привет 🙂\n"


def texts(*paths: Path, **settings: object) -> list[str]:
    return [document.text for document in read_documents(paths, **settings)]


def rows_of(path: Path, rejects: Rejects | None = None, skip_bad: int | None = None) -> list[tuple[str, dict]]:
    rejects = Rejects() if rejects is None else rejects
    return list(read_rows(path, encoding=None, skip_bad=skip_bad, rejects=rejects, columns=frozenset({"text", "n"})))


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def write_parquet(path: Path, columns: dict[str, list]) -> Path:
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(__import__("pyarrow").table(columns), path, row_group_size=2)
    return path


# --- finding files ---


def test_folder_is_read_in_path_order_and_strangers_are_counted(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("c.txt", "a.md", "b/z.rst", "b/A.TXT"):
        write(tmp_path / name, name)
    write(tmp_path / "b" / "model.bin", b"\x00")
    rejects = Rejects()
    assert texts(tmp_path, rejects=rejects) == ["a.md", "b/A.TXT", "b/z.rst", "c.txt"]
    assert rejects.counts == {"unsupported file type": 1}
    assert list(rejects.as_dict()["by_file"]) == [f"{tmp_path}/b/model.bin"]


def test_links_and_pipes_cannot_hang_or_loop(tmp_path):
    write(tmp_path / "a.txt", "a")
    (tmp_path / "self").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "good.txt").symlink_to(tmp_path / "a.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    rejects = Rejects()
    assert texts(tmp_path, rejects=rejects) == ["a", "a"]
    assert sorted(rejects.counts.values()) == [1, 2]


def test_a_file_name_that_is_not_utf8_still_has_a_writable_source(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "wb") as file:
        file.write(b"x")
    (document,) = read_documents(tmp_path)
    assert document.source.encode().endswith(b"/caf\\xe9.txt")


def test_one_path_may_be_given_bare(tmp_path):
    write(tmp_path / "a.txt", "a")
    assert [d.text for d in read_documents(str(tmp_path / "a.txt"))] == ["a"]


def test_errors_of_the_call_come_at_the_call(tmp_path):
    write(tmp_path / "a.pdf", "a")
    write(tmp_path / "a.txt", "a")
    with pytest.raises(ValueError, match=r"a\.pdf: unsupported file type; accepted are \.txt \.md .*\.parquet"):
        read_documents([tmp_path / "a.pdf"])
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt: no such file or folder"):
        read_documents([tmp_path / "nowhere.txt"])
    with pytest.raises(ValueError, match="no path given"):
        read_documents([])
    with pytest.raises(ValueError, match=r"(?s)skip_bad is -1.*encoding 'utf-99'.*a\.pdf"):
        read_documents([tmp_path / "a.pdf"], skip_bad=-1, encoding="utf-99")
    for encoding in ("hex", "rot13", "utf\0"):
        with pytest.raises(ValueError, match=r"encoding .* is not known"):
            read_documents([tmp_path / "a.txt"], encoding=encoding)
    with pytest.raises(ValueError, match="skip_bad is True"):
        read_documents([tmp_path / "a.txt"], skip_bad=True)


# --- packed files ---


def packed_zst(data: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor().compress(data)


@pytest.mark.parametrize("kind", ["txt", "jsonl", "json", "parquet"])
@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_every_kind_in_every_packing(tmp_path, kind, packing):
    plain = tmp_path / f"a.{kind}"
    if kind == "parquet":
        write_parquet(plain, {"text": [TEXT], "n": [1]})
    else:
        row = json.dumps({"text": TEXT, "n": 1})
        write(plain, {"txt": TEXT, "jsonl": row, "json": f"[{row}]"}[kind])
    data = plain.read_bytes()
    pack = {"": bytes, ".gz": gzip.compress, ".zst": packed_zst}[packing]
    target = write(tmp_path / f"b.{kind}{packing}", pack(data))
    line = "" if kind == "txt" else ":1"
    assert list(read_documents(target)) == [Document(TEXT, f"{target}{line}")]


def test_archives_of_several_members(tmp_path):
    data = gzip.compress(b"one ") + gzip.compress(b"two")
    assert texts(write(tmp_path / "a.txt.gz", data)) == ["one two"]
    data = packed_zst(b"one ") + packed_zst(b"two")
    assert texts(write(tmp_path / "a.txt.zst", data)) == ["one two"]


@pytest.mark.parametrize("pack", [gzip.compress, packed_zst])
@pytest.mark.parametrize("damage", [lambda d: d[:-9], lambda d: d[: len(d) // 2], lambda d: b"nonsense" * 9])
def test_damaged_archives_are_named(tmp_path, pack, damage):
    packing = ".gz" if pack is gzip.compress else ".zst"
    path = write(tmp_path / f"a.txt{packing}", damage(pack(os.urandom(5000))))
    with pytest.raises(
        ValueError, match=rf"a\.txt{packing}: the {packing} data is cut short or damaged.*copy or download"
    ):
        texts(path, encoding="latin-1")


def test_zst_without_the_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ValueError, match=r"a\.txt\.zst: reading \.zst needs the package zstandard"):
        texts(write(tmp_path / "a.txt.zst", b"x"))


# --- encodings ---


def test_utf8_with_and_without_mark(tmp_path):
    assert texts(write(tmp_path / "a.txt", codecs.BOM_UTF8 + TEXT.encode())) == [TEXT]
    assert rows_of(write(tmp_path / "a.jsonl", codecs.BOM_UTF8 + b'{"n": 1}'))[0][1] == {"n": 1}
    assert rows_of(write(tmp_path / "a.json", codecs.BOM_UTF8 + b'[{"n": 1}]'))[0][1] == {"n": 1}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le", "gb18030", "utf-8"])
def test_another_encoding_on_request_across_chunk_borders(tmp_path, monkeypatch, encoding):
    monkeypatch.setattr(files, "CHUNK_BYTES", 3)
    assert texts(write(tmp_path / "a.txt", (TEXT * 3).encode(encoding)), encoding=encoding) == [TEXT * 3]


@pytest.mark.parametrize(
    ("data", "place", "guess"),
    [
        ("hello".encode("utf-16"), "byte 0 .bytes ff fe 68 00", "byte order mark of utf-16"),
        ("hello".encode("utf-32"), "byte 0 .bytes ff fe 00 00", "byte order mark of utf-32"),
        (b"a plain caf\xe9 in the square", "byte 11 .bytes e9 20 69 6e", "looks like latin-1"),
        (b"a \x93quoted\x94 word in a sentence", "byte 2 .bytes 93 71 75 6f", "looks like windows-1252"),
        ("你好世界".encode("gb18030"), "byte 0 ", "perhaps gb18030"),
        ("cut 你".encode()[:-1], "byte 4 .bytes e4 bd: unexpected end of data", "ends inside a character"),
        (b"\xed\xa0\x80 surrogate", "byte 0 .bytes ed a0 80 20", "Pass the right"),
    ],
)
def test_bytes_that_are_not_utf8_are_shown_with_a_guess(tmp_path, data, place, guess):
    with pytest.raises(ValueError, match=rf"a\.txt: not UTF-8 at {place}.*text must be UTF-8.*{guess}.*--encoding"):
        texts(write(tmp_path / "a.txt", data))


def test_the_byte_offset_counts_over_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK_BYTES", 4)
    data = "你好".encode() * 3
    with pytest.raises(ValueError, match=f"at byte {len(data) + 1} "):
        texts(write(tmp_path / "a.jsonl", data + b"x\xffy"))


def test_a_wrong_request_is_refused_too(tmp_path):
    with pytest.raises(ValueError, match=r"cannot be read as utf-16: .*utf-16-le"):
        texts(write(tmp_path / "a.txt", b"no mark here"), encoding="utf-16")
    with pytest.raises(ValueError, match=r"not ascii at byte 2 \(bytes c3 bc"):
        texts(write(tmp_path / "b.txt", TEXT), encoding="ascii")


def test_nul_and_control_characters_are_kept(tmp_path):
    odd = "a\x00b\x1b[31m\x7f\u202e\r\nc\x0b"
    assert texts(write(tmp_path / "a.txt", odd)) == [odd]
    assert texts(write(tmp_path / "a.jsonl", json.dumps({"text": odd}))) == [odd]


# --- JSON lines ---


def test_a_broken_line_is_named_after_counting_all(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "one"}\n{"text": "t\n\n{"text": "three"}\n{"text": four}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:2:10: Unterminated string") as error:
        texts(path)
    assert f"2 broken line(s) in {path}, 0 allowed" in str(error.value)
    assert "`--skip-bad 2`" in str(error.value)
    rejects = Rejects()
    assert texts(path, skip_bad=2, rejects=rejects) == ["one", "three"]
    assert rejects.counts == {"broken JSON line": 2}
    places = [sample["source"] for sample in rejects.as_dict()["samples"]["broken JSON line"]]
    assert places == [f"{path}:2:10", f"{path}:5:10"]


def test_the_budget_of_broken_lines_spans_files(tmp_path):
    for name in "abc":
        write(tmp_path / f"{name}.jsonl", '{"text": "x"}\n{')
    assert texts(tmp_path, skip_bad=3) == ["x"] * 3
    with pytest.raises(ValueError, match=r"c\.jsonl:2:2: .*\n1 broken line.*2 allowed.*`--skip-bad 3`"):
        texts(tmp_path, skip_bad=2)


@pytest.mark.parametrize(
    ("line", "reason", "sample"),
    [
        (r'{"text": "\ud800"}', "lone surrogate (half a character)", r"\ud800"),
        (r'{"\udfff": 1}', "lone surrogate (half a character)", r"\udfff"),
        ('{"text": "a", "text": "b"}', "duplicate JSON key", "text"),
        ('{"text": "a", "x": [{"y": 1, "y": 1}]}', "duplicate JSON key", "y"),
        ('{"text": "a", "x": NaN}', "NaN or Infinity is not a JSON number", "NaN"),
        ('{"text": "a", "x": [-Infinity]}', "NaN or Infinity is not a JSON number", "-Infinity"),
        ('{"text": "a", "x": 1e999}', "number too large", "1e999"),
        ('{"text": "a", "x": %s}' % ("9" * 5000), "number too large", "99"),
        ("[1, 2]", "row is not a JSON object", "[1, 2]"),
        ('{"text": ["a"]}', "`text` is not a string", "text is list"),
        ('{"text": null, "title": 1}', "no `text` field", "keys seen: text (null), title"),
        ("{}", "no `text` field", "keys seen: none"),
        ('{"text": " \\n\\t"}', "blank", ""),
        ('{"text": %s}' % ("[" * 900 + "]" * 900), "`text` is not a string", "text is list"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_rows_that_cannot_be_used_are_counted(tmp_path, line, reason, sample, kind):
    good = r'{"text": "good \ud83d\ude00"}'
    data = f"{good}\n{line}\n{good}\n" if kind == "jsonl" else f"[{good},\n{line},\n{good}]"
    path, rejects = write(tmp_path / f"a.{kind}", data), Rejects()
    assert texts(path, rejects=rejects) == ["good 😀"] * 2
    assert rejects.counts == {reason: 1}
    (kept,) = rejects.as_dict()["samples"][reason]
    assert kept["source"] == f"{path}:2"
    assert kept["sample"].startswith(sample)


def test_nesting_without_end_is_a_broken_line(tmp_path):
    path = write(tmp_path / "a.jsonl", "[" * 100_000)
    with pytest.raises(ValueError, match=r"a\.jsonl:1:1: Nested too deeply"):
        texts(path)
    with pytest.raises(ValueError, match=r"a\.json:1:2: Nested too deeply"):
        texts(write(tmp_path / "a.json", "[" * 100_000))


def test_line_ends_and_blank_lines(tmp_path):
    path = write(tmp_path / "a.jsonl", '\r\n{"n": 1}\r\n\n  \n{"n": 2}')
    assert rows_of(path) == [(f"{path}:2", {"n": 1}), (f"{path}:5", {"n": 2})]


@given(st.lists(st.binary(max_size=12).filter(lambda line: b"\n" not in line)), st.integers(1, 7))
def test_lines_are_those_of_split_at_any_chunk_size(parts, size):
    data = b"\n".join(parts)
    chunks = [data[at : at + size] for at in range(0, len(data), size)]
    found = list(files.lines(chunks))
    assert b"".join(line for _, line in found) == data
    assert [number for number, _ in found] == list(range(1, len(data.splitlines(keepends=True)) + 1)) or b"\r" in data
    assert all(line.count(b"\n") == (line[-1:] == b"\n") for _, line in found)


# --- very long lines ---


def test_a_line_over_the_limit_is_dropped_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 100_000)
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'{"text": "one"}\n{"text": "')
        for _ in range(60):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"text": "three"}')
    rejects = Rejects()
    tracemalloc.start()
    try:
        assert texts(path, rejects=rejects) == ["one", "three"]
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rejects.counts == {"line longer than 64 MiB": 1}
    assert rejects.as_dict()["samples"]["line longer than 64 MiB"][0]["source"] == f"{path}:2"
    assert peak_bytes < 12_000_000


def test_long_plain_text_is_cut_at_blank_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 40)
    text = "one one one\none\n\ntwo two two\n \r\nthree three three three\n\nfour\n"
    path = write(tmp_path / "a.txt", text)
    found = list(read_documents(path))
    assert [d.text for d in found] == ["one one one\none\n\ntwo two two\n \r\n", "three three three three\n\nfour\n"]
    assert [d.source for d in found] == [f"{path}:1", f"{path}:6"]


def test_long_paragraphs_are_cut_at_line_ends_and_long_lines_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 10)
    path = write(tmp_path / "a.txt", "aaaa\nbbbb\ncccc\n" + "x" * 11 + "\ndd")
    rejects = Rejects()
    assert [(d.text, d.source) for d in read_documents(path, rejects=rejects)] == [
        ("aaaa\nbbbb\n", f"{path}:1"),
        ("cccc\ndd", f"{path}:3"),
    ]
    assert rejects.as_dict()["by_file"] == {str(path): {"line longer than 64 MiB": 1}}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet="ab \n", max_size=80).map(lambda t: "\n".join(line[:10] for line in t.split("\n"))))
def test_pieces_of_plain_text_join_to_the_whole(tmp_path, text):
    path = write(tmp_path / "a.txt", text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "MAX_LINE_BYTES", 12)
        from fledge.text.readers import _text_pieces

        pieces = list(_text_pieces("a.txt", [path.read_bytes()], Rejects()))
    assert "".join(piece for _, piece in pieces) == text
    assert all(len(piece) <= 12 for _, piece in pieces)


# --- .json files ---


@pytest.mark.parametrize("chunk_bytes", [1, 7, 1000])
def test_json_arrays_objects_and_lines_at_any_chunk_size(tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr(files, "CHUNK_BYTES", chunk_bytes)
    rows = [{"text": 'a "] }, \\ 你', "n": [{"x": 1.5e3}, 12345]}, {"text": "b"}, {"n": 3}]
    path = tmp_path / "a.json"
    for data in (json.dumps(rows), json.dumps(rows, indent=2, ensure_ascii=False), "\n".join(map(json.dumps, rows))):
        assert [row for _, row in rows_of(write(path, data))] == rows
    assert [row for _, row in rows_of(write(path, json.dumps(rows[0], indent=1)))] == rows[:1]
    assert [rows_of(write(path, data)) for data in ("[]", " [ ] ", "", "\n")] == [[]] * 4


def test_json_sources_are_lines_even_for_numbers_at_a_border(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK_BYTES", 2)
    rejects = Rejects()
    path = write(tmp_path / "a.json", '[\n  {"n": 1},\n  12345,\n  true, {"n":\n 2}, {"n": 3}\n]')
    assert rows_of(path, rejects) == [(f"{path}:2", {"n": 1}), (f"{path}:4", {"n": 2}), (f"{path}:5", {"n": 3})]
    samples = rejects.as_dict()["samples"]["row is not a JSON object"]
    assert samples == [{"source": f"{path}:3", "sample": "12345"}, {"source": f"{path}:4", "sample": "True"}]


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ('[{"n": 1},\n {"n": }]', "2:8: Expecting value"),
        ('[{"n": 1}\n {"n": 2}]', "2:2: the next row or the closing ]"),
        ('[{"n": 1},]', "1:11: Expecting value"),
        ('[{"n": 1}, {"n": "cut', "1:18: Unterminated string"),
        ('[{"n": 1}', "1:10: the next row or the closing ]"),
        ("[", "1:2: Expecting value"),
        ('[{"n": 1}] {"n": 2}', "1:12: text after the closing ]"),
        ("hello", "1:1: Expecting value"),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [2, 1000])
def test_broken_json_arrays_are_placed_and_never_skipped(tmp_path, monkeypatch, data, place, chunk_bytes):
    monkeypatch.setattr(files, "CHUNK_BYTES", chunk_bytes)
    with pytest.raises(ValueError, match=rf"a\.json:{place}") as error:
        rows_of(write(tmp_path / "a.json", data), skip_bad=9)
    assert "one row per line as .jsonl" in str(error.value)


def test_a_json_row_over_the_limit_stops_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(files, "CHUNK_BYTES", 100)
    path = write(tmp_path / "a.json", '[{"n": "' + "x" * 100_000)
    with pytest.raises(ValueError, match=r"a\.json:1:8: .*in the row that starts at line 1"):
        rows_of(path)


# --- parquet ---


def test_parquet_rows_are_numbered_and_only_asked_columns_read(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"text": ["a", None, "c"], "id": [1, 2, 3]})
    rejects = Rejects()
    assert list(read_documents(path, rejects=rejects)) == [Document("a", f"{path}:1"), Document("c", f"{path}:3")]
    assert rejects.counts == {"no `text` field": 1}


def test_parquet_without_the_column_names_those_it_has(tmp_path):
    path, rejects = write_parquet(tmp_path / "a.parquet", {"body": ["a"], "id": [1]}), Rejects()
    assert texts(path, rejects=rejects) == []
    assert rejects.as_dict()["samples"]["no `text` field"][0]["sample"] == "keys seen: body, id"


def test_damaged_parquet_is_named(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"text": [os.urandom(500).hex() for _ in range(20)]})
    data = path.read_bytes()
    for damaged in (data[: len(data) // 2], data[:-1], b"", b"text", data[:400] + bytes(4000) + data[4400:]):
        with pytest.raises(ValueError, match=r"a\.parquet: not a whole parquet file.*copy or download it again"):
            texts(write(path, damaged))


# --- rejects and empty results ---


def test_rejects_keep_five_samples_safe_to_print():
    rejects = Rejects()
    assert rejects.summary() == "nothing dropped"
    for number in range(7):
        rejects.add(f"dir:9/a.jsonl:{number}:3", "blank", "\x1b[2J\u202e你\ud800" + "x" * 1000)
    rejects.add("b.txt", "unsupported file type")
    assert rejects.total == 8
    assert rejects.counts == {"blank": 7, "unsupported file type": 1}
    facts = rejects.as_dict()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["by_file"] == {"dir:9/a.jsonl": {"blank": 7}, "b.txt": {"unsupported file type": 1}}
    assert len(facts["samples"]["blank"]) == 5
    sample = facts["samples"]["blank"][0]["sample"]
    assert sample.startswith("\\x1b[2J\\u202e你\\ud800xxx")
    assert len(sample) < 200
    assert "8 dropped:\n  7 blank (first at dir:9/a.jsonl:0:3: " in rejects.summary()


@pytest.mark.parametrize("data", ["", "\n \n", '{"text": " "}\n'])
def test_nothing_usable_says_so(tmp_path, data):
    path, rejects = write(tmp_path / "a.jsonl", data), Rejects()
    found = texts(path, rejects=rejects)
    with pytest.raises(ValueError, match=r"^0 usable documents in .*a\.jsonl: ") as error:
        require_some(len(found), path, rejects, "documents")
    assert ("1 blank" if "text" in data else "the files are empty") in str(error.value)
    require_some(1, path, rejects, "documents")


# --- real files ---


@needs_shared
def test_real_text():
    rejects = Rejects()
    peps = list(read_documents(SHARED / "peps", rejects=rejects))
    assert (len(peps), rejects.total) == (737, 0)
    on_disk = sorted(path for path in (SHARED / "peps").iterdir())
    assert [d.source for d in peps] == [str(path) for path in on_disk]
    assert peps[0].text == on_disk[0].read_bytes().decode()
    poems = list(read_documents(SHARED / "tang_poems.jsonl", rejects=rejects))
    assert (len(poems), rejects.total) == (12_000, 0)
    assert poems[11_999].source.endswith("tang_poems.jsonl:12000")
    (plays,) = read_documents(SHARED / "tinyshakespeare.txt")
    assert plays.text.startswith("First Citizen:")
