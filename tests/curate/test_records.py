"""Every kind of file to pages and counted rejects, with ids and places that do not depend on how the input was cut."""

import gzip
import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crawl_makers import gzipped, html_page, pages, read, rejects, response, warc_record

from fledge.curate.inputs import ReadSettings, find_splits
from fledge.curate.pages import BATCH_BYTES, BATCH_PAGES, parted
from fledge.curate.records import READ, REPAIRED, read_split


def test_each_kind_of_file_gives_its_texts(tmp_path):
    (tmp_path / "a.warc.gz").write_bytes(gzipped([response(html_page(1), "http://a/1")]))
    (tmp_path / "b.wet").write_bytes(warc_record("網頁".encode(), "http://a/2", "conversion", "text/plain"))
    (tmp_path / "c.html").write_bytes(html_page(3))
    (tmp_path / "d.jsonl").write_text('{"text": "four"}\n{"html": "<p>five</p><script>x</script>"}\n')
    (tmp_path / "e.json").write_text('[{"text": "six"},\n {"text": "seven"}]')
    pq.write_table(pa.table({"text": ["eight"], "n": [1]}), tmp_path / "f.parquet")
    for name, new in (("g.arrow", pa.ipc.new_file), ("h.ipc", pa.ipc.new_stream)):
        table = pa.table({"text": [name]})
        with new(tmp_path / name, table.schema) as writer:
            writer.write_table(table)
    (tmp_path / "i.txt").write_text("nine\n")
    (tmp_path / "j.rst.gz").write_bytes(gzip.compress(b"ten"))
    rows = read(tmp_path)
    assert rejects(rows) == []
    assert [(row["source"], row["url"]) for row in rows] == [
        ("a.warc.gz:1", "http://a/1"), ("b.wet:1", "http://a/2"), ("c.html", None), ("d.jsonl:1", None),
        ("d.jsonl:2", None), ("e.json:1", None), ("e.json:2", None), ("f.parquet:1", None), ("g.arrow:1", None),
        ("h.ipc:1", None), ("i.txt", None), ("j.rst.gz", None),
    ]  # fmt: skip
    texts = pages(rows)
    assert texts[0].startswith("Page 1\n\nword") and texts[0].endswith("你好。") and texts[2].startswith("Page 3")
    assert texts[1] == "網頁" and texts[3:] == [
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "g.arrow",
        "h.ipc",
        "nine\n",
        "ten",
    ]


def test_id_is_of_the_source_unless_the_row_has_one(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "a", "id": "own", "url": "http://x", "language": "en"}\n{"text": "b", "id": 7, "url": 3}\n{"text": "c", "id": true}\n'
    )
    rows = read(tmp_path)
    assert [row["id"] for row in rows[:2]] == ["own", "7"]
    assert rows[2]["id"] == hashlib.sha256(f"{tmp_path}/a.jsonl:3".encode()).hexdigest()[:16]
    assert [(row["url"], row["language"]) for row in rows] == [("http://x", "en"), (None, ""), (None, "")]


def test_rows_without_usable_text_are_counted_by_reason(tmp_path):
    rows = ['{"text": 5}', '{"body": "x", "n": null}', '{"text": " \\n"}', "[1]", '{"text": "a", "text": "b"}', '{"text": NaN}',
            '{"text": "\\ud800"}', '{"text": "x"', '{"html": "<script>1</script>"}', '{"text": null, "html": "<p>ok</p>"}']  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    found = read(tmp_path)
    assert rejects(found) == [
        ("a.jsonl:1", "`text` is not a string"), ("a.jsonl:2", "no `text` field"), ("a.jsonl:3", "blank"),
        ("a.jsonl:4", "row is not a JSON object"), ("a.jsonl:5", "duplicate JSON key"),
        ("a.jsonl:6", "NaN or Infinity is not a JSON number"), ("a.jsonl:7", "lone surrogate (half a character)"),
        ("a.jsonl:8:13", "broken JSON line"), ("a.jsonl:9", "no main text"),
    ]  # fmt: skip
    assert found[1]["text"] == "keys seen: body, n (null)" and pages(found) == ["ok"]
    (tmp_path / "a.jsonl").write_text('{"body": "kept", "text": "not asked for"}')
    assert pages(read(tmp_path, text_field="body")) == ["kept"]


def test_batches_are_bounded_in_rows_and_bytes(tmp_path):
    with (tmp_path / "a.jsonl").open("w") as file:
        for number in range(2500):
            file.write(json.dumps({"text": f"page {number}"}) + "\n")
        for _ in range(5):
            file.write(json.dumps({"text": "漢" * 1_000_000}, ensure_ascii=False) + "\n")
    (split,), _ = find_splits([str(tmp_path)], 1 << 30)
    tables = list(read_split(split, ReadSettings()))
    assert [len(table) for table in tables] == [1024, 1024, 454, 2, 1]
    assert all(len(table) <= BATCH_PAGES and table["text"].nbytes <= BATCH_BYTES + (1 << 20) for table in tables)
    stays, rejected = parted(tables[0])
    assert len(stays) == 1024 and len(rejected) == 0 and stays.schema.names == [*READ.names[:5], REPAIRED]


def test_http_responses_that_are_no_pages_are_counted(tmp_path):
    records = [
        warc_record(b"software: x", kind="warcinfo", media_type="application/warc-fields"),
        warc_record(b"GET / HTTP/1.1\r\n\r\n", kind="request", media_type="application/http; msgtype=request"),
        response(html_page(1)),
        response(b"%PDF", media_type="application/pdf"),
        warc_record(b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\n\r\n<p>gone</p>"),
        warc_record(b"HTTP/1.1 200 OK\r\n\r\n", kind="revisit"),
        warc_record(b"no HTTP at all"),
        response(gzip.compress(html_page(2)), more="Content-Encoding: gzip\r\n"),
        response(b"6\r\n<p>abc\r\n4\r\ndef.\r\n0\r\n\r\n", more="Transfer-Encoding: chunked\r\n"),
        response(b"not gzip", more="Content-Encoding: gzip\r\n"),
        response("纯文本".encode("gbk"), media_type="text/plain; charset=gbk"),
        response(b"<html><meta charset=big5><p>" + "國破山河在".encode("big5"), media_type="text/html"),
        response("<p>déjà vu, très bientôt</p>".encode(), media_type="text/html; charset=iso-8859-1"),
        response(b"<p>who knows", media_type=""),
    ]
    (tmp_path / "a.warc").write_bytes(b"".join(records))
    found = read(tmp_path)
    assert rejects(found) == [
        ("a.warc:4", "not a web page or text"), ("a.warc:5", "HTTP status is not 2xx"),
        ("a.warc:6", "WARC record without a page"), ("a.warc:7", "HTTP response damaged"),
        ("a.warc:10", "HTTP response damaged"),
    ]  # fmt: skip
    assert [row["value"] for row in found if row["source"] == "a.warc:5"] == [404]
    texts = pages(found)
    assert texts[1].startswith("Page 2") and texts[2:] == [
        "abcdef.",
        "纯文本",
        "國破山河在",
        "déjà vu, très bientôt",
        "who knows",
    ]
    assert [row["repaired"] for row in found if row["reason"] is None][-2:] == ["utf-8 stated as cp1252", None]


def test_plain_text_above_the_limit_is_cut_at_blank_lines(tmp_path):
    paragraph = "國破山河在。" * 20 + "\n\n"
    (tmp_path / "a.txt").write_text(paragraph * 10)
    rows = read(tmp_path, longest_bytes=1024)
    assert "".join(pages(rows)) == paragraph * 10 and rows[1]["source"] == "a.txt:5"
    assert all(len(row["text"].encode()) <= 1024 for row in rows)
    assert [row["source"] for row in read(tmp_path)] == ["a.txt"]


def test_all_text_of_a_page_on_request(tmp_path):
    (tmp_path / "a.html").write_bytes(b"<nav>menu</nav><p>body</p>")
    assert (pages(read(tmp_path)), pages(read(tmp_path, main_text=False))) == (["body"], ["menu\n\nbody"])


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a.html"])
def test_the_encoding_that_is_named_is_the_only_one_tried(tmp_path, name):
    text = "déjà vu €"
    data = {"a.jsonl": json.dumps({"text": text}, ensure_ascii=False), "a.html": f"<p>{text}"}.get(name, text)
    data = json.dumps([{"text": text}], ensure_ascii=False) if name == "a.json" else data
    for encoding in ("iso-8859-15", "utf-16", "utf-16-be", "utf-8-sig"):
        (tmp_path / name).write_bytes(data.encode(encoding))
        rows = read(tmp_path, encoding=encoding)
        assert (pages(rows), rows[0]["repaired"]) == ([text], None), encoding
    (tmp_path / name).write_bytes(data.encode("latin-1", "replace"))
    assert len(rejects(read(tmp_path, encoding="utf-8"))) == 1


def test_schema_is_the_same_with_and_without_repairs(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "dÃ©jÃ\xa0 vu"}) + "\n")
    (row,) = read(tmp_path)
    assert (row["text"], row["repaired"]) == ("déjà vu", "utf-8 read as windows-1252")
    (split,), _ = find_splits([str(tmp_path)])
    assert next(read_split(split, ReadSettings())).schema == READ
