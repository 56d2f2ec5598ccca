"""Damaged, cut and hostile files: what is whole is read, every loss is one counted reject, and nothing raises."""

import gzip
import io
import json
import random
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crawl_makers import gzipped, html_page, pages, read, rejects, response
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fledge.curate.packing import Break, gzip_members
from fledge.curate.warc import Gap, Record, warc_records

RECORDS = [response(html_page(number), f"http://a/{number}") for number in range(8)]
TEXTS = [f"Page {number}" for number in range(8)]


def titles(rows):
    return [text.split("\n")[0] for text in pages(rows)]


# --- WARC ---


def test_a_cut_crawl_gives_the_records_before_and_one_reject(tmp_path):
    for name, data in (
        ("a.warc", b"".join(RECORDS)),
        ("a.warc.gz", gzipped(RECORDS)),
        ("b.warc.gz", gzip.compress(b"".join(RECORDS))),
    ):
        for folder in tmp_path.iterdir():
            folder.unlink()
        (tmp_path / name).write_bytes(data[: len(data) * 2 // 3])
        rows = read(tmp_path)
        assert titles(rows) == TEXTS[: len(rows) - 1] and 3 <= len(rows) <= 7
        assert [reason for _, reason in rejects(rows)] in (["record cut short"], ["header of a record without an end"])


def test_reading_goes_on_after_each_kind_of_damage(tmp_path):
    good = b"".join(RECORDS[:2])
    last = RECORDS[2]
    for damaged, reason in (
        (last.replace(b"WARC/1.0", b"XARC/1.0"), "no WARC record"),
        (last.replace(b"Content-Length: ", b"Content-Length: x"), "record without a length"),
        (last.replace(b"Content-Length: ", b"Content-Length: 9"), "record cut short"),
        (last.replace(b"Content-Length: 3", b"Content-Length: 2"), "record of another length than it states"),
        (last.replace(b"Content-Length: ", b"Content-Length: 99999999"), "record of another length than it states"),
        (last.replace(b"Content-Length: ", b"Content-Length: -"), "record without a length"),
        (last[:200], "record of another length than it states"),
        (b"WARC/1.0\r\n" + b"x" * 70_000, "header of a record without an end"),
        (random.Random(0).randbytes(5000), "no WARC record"),
    ):
        (tmp_path / "a.warc").write_bytes(good + damaged + b"\r\n" + b"".join(RECORDS[3:]))
        rows = read(tmp_path)
        assert titles(rows) == TEXTS[:2] + TEXTS[3:], reason
        assert [why for _, why in rejects(rows)] == [reason]


def test_damaged_gzip_members_are_skipped_one_by_one(tmp_path):
    members = [gzip.compress(record, mtime=0) for record in RECORDS]
    flipped = bytearray(members[3])
    flipped[len(flipped) // 2] ^= 0xFF
    wrong_sum = bytearray(members[5])
    wrong_sum[-6] ^= 1
    (tmp_path / "a.warc.gz").write_bytes(
        b"".join([*members[:3], flipped, members[4], wrong_sum, b"junk", *members[6:]])
    )
    rows = read(tmp_path)
    assert titles(rows) == [TEXTS[number] for number in (0, 1, 2, 4, 6, 7)]
    assert len(rejects(rows)) == 2  # the junk touches the member with the wrong checksum


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), packed=st.booleans())
def test_one_flipped_byte_costs_one_record_at_most(tmp_path, seed, packed):
    rng = random.Random(seed)
    members = [gzip.compress(record, mtime=0) if packed else record for record in RECORDS]
    hit = rng.randrange(len(members))
    member = bytearray(members[hit])
    member[rng.randrange(len(member))] ^= rng.randrange(1, 256)
    path = tmp_path / ("a.warc.gz" if packed else "a.warc")
    for other in tmp_path.iterdir():
        other.unlink()
    path.write_bytes(b"".join([*members[:hit], member, *members[hit + 1 :]]))
    rows = read(tmp_path)
    others = [title for title in TEXTS if title != TEXTS[hit]]
    assert [title for title in titles(rows) if title in others] == others
    # the damaged one is a reject, or a page whose own bytes changed, or (a header's case, a date) is as before
    assert len(rows) >= len(RECORDS) or hit_is_bookkeeping(bytes(member), packed)


def hit_is_bookkeeping(member: bytes, packed: bool) -> bool:
    """Whether the flip made the record one that holds no page ("request" has the length of "response" less one)."""
    return not packed and not any(kind in member for kind in (b"WARC-Type: response", b"WARC-type: response"))


chunks_of = st.lists(
    st.one_of(st.binary(max_size=40), st.sampled_from([*RECORDS[:2], b"WARC/1.0\r\n", b"\r\n\r\n", *Break])),
    max_size=12,
)


@given(chunks=chunks_of)
def test_any_bytes_are_records_and_gaps(chunks):
    found = list(warc_records(chunks, 4096))
    assert all(isinstance(item, Record | Gap) for item in found)
    held = sum(len(chunk.strip(b"\r\n")) for chunk in chunks if isinstance(chunk, bytes))
    told = sum(item.bytes if isinstance(item, Gap) else len(item.head) + item.length for item in found)
    assert told >= held - 4 * len(chunks) * (1 + len(found))  # all but line ends between records


@given(chunk_bytes=st.integers(1, 3000))
def test_records_are_the_same_however_the_bytes_come(chunk_bytes):
    data = b"".join(RECORDS[:3]) + b"junk" + RECORDS[3]
    chunks = [data[start : start + chunk_bytes] for start in range(0, len(data), chunk_bytes)]
    assert list(warc_records(chunks, 1 << 20)) == list(warc_records([data], 1 << 20))


def test_records_too_long_to_hold_are_passed_over(tmp_path):
    (tmp_path / "a.warc").write_bytes(RECORDS[0] + response(b"<p>" + b"x" * 50_000) + RECORDS[1])
    rows = read(tmp_path, longest_bytes=10_000)
    assert titles(rows) == TEXTS[:2] and rejects(rows) == [("a.warc:2", "longer than can be held")]
    bomb = response(gzip.compress(b"<p>" + b"x" * 50_000), more="Content-Encoding: gzip\r\n")
    (tmp_path / "a.warc").write_bytes(bomb + RECORDS[1])
    rows = read(tmp_path, longest_bytes=10_000)
    assert (titles(rows), rejects(rows)) == (TEXTS[1:2], [("a.warc:1", "web page too long")])


@given(data=st.binary(max_size=300), cut=st.integers(0, 400))
def test_gzip_members_of_anything_end(data, cut):
    packed = (gzip.compress(data, mtime=0) * 2)[: max(1, cut)] + data
    out = list(gzip_members(io.BytesIO(packed)))
    assert all(isinstance(chunk, bytes | Break) for chunk in out)


def test_a_large_member_is_the_same_in_pieces():
    data = random.Random(0).randbytes(3 << 20) + bytes(5 << 20)
    out = list(gzip_members(io.BytesIO(gzip.compress(data, 1) + bytes(10) + gzip.compress(b"end"))))
    assert b"".join(out) == data + b"end" and max(map(len, out)) <= 1 << 20


# --- rows ---


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst"])
def test_half_an_archive_keeps_the_rows_before(tmp_path, ending):
    rng = random.Random(0)
    lines = "".join(json.dumps({"text": f"{n} {rng.getrandbits(2000):x}"}) + "\n" for n in range(300)).encode()
    data = gzip.compress(lines) if ending == ".jsonl.gz" else pytest.importorskip("zstandard").compress(lines)
    (tmp_path / f"a{ending}").write_bytes(data[: len(data) // 2])
    rows = read(tmp_path)
    texts = pages(rows)
    if ending == ".jsonl.gz":
        assert len(texts) > 100
    assert [text.split()[0] for text in texts] == [str(n) for n in range(len(texts))]
    assert rejects(rows)[-1] == (f"a{ending}", "damaged file")
    assert rows[-1]["text"].startswith(f"after {len(rows) - 1} records: ") or not texts


def test_truncated_and_damaged_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    rng = random.Random(0)
    texts = [f"{n} {rng.getrandbits(400):x}" for n in range(30)]
    pq.write_table(
        pa.table({"text": texts}),
        path,
        row_group_size=10,
        compression="none",
        use_dictionary=False,
        write_page_checksum=True,
    )
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert rejects(read(path)) == [("a.parquet", "damaged file")]
    at = data.index(texts[15].encode())
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    rows = read(path)
    assert pages(rows) == texts[:10] + texts[20:] and rejects(rows) == [("a.parquet:11", "damaged row group")]
    assert "10 rows" in rows[10]["text"]


def test_arrow_that_is_not_sound_does_not_crash(tmp_path):
    table = pa.table({"text": ["one", "two", "three"]})
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    offsets = b"".join(n.to_bytes(4, "little") for n in (0, 3, 6, 11))
    assert sink.getvalue().count(offsets) == 1
    bad = b"".join((n % (1 << 32)).to_bytes(4, "little") for n in (0, 900_000_000, 6, 11))
    (tmp_path / "a.arrow").write_bytes(sink.getvalue().replace(offsets, bad))
    assert rejects(read(tmp_path)) == [("a.arrow:1", "damaged record batch")]
    (tmp_path / "a.arrow").write_bytes(sink.getvalue().replace(b"onetwothree", b"one\xff\xfe\xfdthree"))
    rows = read(tmp_path)
    assert pages(rows) == ["one", "three"] and rejects(rows) == [("a.arrow:2", "encoding not known")]


# --- archives ---


def tar_of(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                member.type, member.linkname = content.encode(), "/etc/passwd"
                archive.addfile(member)
    return path


def test_members_are_read_and_hostile_ones_refused(tmp_path):
    parquet = io.BytesIO()
    pq.write_table(pa.table({"text": ["in parquet"]}), parquet)
    good = [("in/a.jsonl", b'{"text": "one"}\n{"text": 2}\n'), ("b.html", b"<p>two"), ("c.parquet", parquet.getvalue()),
            ("d.txt.gz", gzip.compress(b"three")), ("e.warc.gz", gzipped(RECORDS[:1]))]  # fmt: skip
    bad = [("../x.txt", b"out"), ("/abs.txt", b"out"), ("a/../../y.txt", b"out"), ("z.exe", b"x"), ("t.tar", b"x")]
    special = [
        ("link.txt", tarfile.SYMTYPE.decode()),
        ("hard.txt", tarfile.LNKTYPE.decode()),
        ("dev.txt", tarfile.CHRTYPE.decode()),
        ("p.txt", tarfile.FIFOTYPE.decode()),
    ]
    tar_of(tmp_path / "a.tar.gz", [*good[:2], *bad, *special, *good[2:]], "w:gz")
    rows = read(tmp_path)
    assert titles(rows) == ["one", "two", "in parquet", "three", "Page 0"]
    assert rows[0]["source"] == "a.tar.gz!in/a.jsonl:1"
    outside, link, device = "member outside the archive", "link in an archive", "device in an archive"
    assert rejects(rows) == [
        ("a.tar.gz!in/a.jsonl:2", "`text` is not a string"), ("a.tar.gz!../x.txt", outside), ("a.tar.gz!/abs.txt", outside),
        ("a.tar.gz!a/../../y.txt", outside), ("a.tar.gz!z.exe", "unsupported file type"),
        ("a.tar.gz!t.tar", "archive inside an archive"), ("a.tar.gz!link.txt", link), ("a.tar.gz!hard.txt", link),
        ("a.tar.gz!dev.txt", device), ("a.tar.gz!p.txt", device),
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz"]  # nothing was unpacked to the disk


def test_zip_members_are_read_and_hostile_ones_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", "one")
        archive.writestr("../b.txt", "out")
        archive.writestr("C:\\c.txt", "out")
        archive.writestr("bomb.txt", b"a" * (40 << 20))
        link = zipfile.ZipInfo("link.txt")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("rare.txt", "x", zipfile.ZIP_BZIP2)
        archive.writestr("d.jsonl", '{"text": "two"}')
    rows = read(tmp_path)
    assert pages(rows) == ["one", "two"]
    assert dict(rejects(rows)) == {
        "a.zip!../b.txt": "member outside the archive",
        "a.zip!C:\\c.txt": "member outside the archive",
        "a.zip!bomb.txt": "archive unpacks beyond its cap",
        "a.zip!link.txt": "link in an archive",
        "a.zip!rare.txt": "member packed by a rare method",
    }


def test_a_damaged_member_costs_itself(tmp_path):
    for number in range(3):
        with zipfile.ZipFile(tmp_path / "a.zip", "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{number}.txt", f"text {number} " * 50)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.index(b"1.txt") + 12] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(data)
    rows = read(tmp_path)
    assert [text[:6] for text in pages(rows)] == ["text 0", "text 2"]
    assert rejects(rows) == [("a.zip!1.txt", "damaged file")]


def test_half_a_tar_and_one_without_its_end_are_told(tmp_path):
    path = tar_of(tmp_path / "a.tar", [(f"{n}.txt", f"text {n}".encode() * 200) for n in range(4)])
    data = path.read_bytes()
    size = 512 + 1536
    for cut, count in ((size * 2 + 700, 2), (size * 2 + 100, 2), (size * 4, 4)):
        path.write_bytes(data[:cut])
        rows = read(path)
        assert len(pages(rows)) == count and rejects(rows)[-1][1] == "damaged file", cut
    damaged = bytearray(data)
    damaged[size * 2 + 148] ^= 1  # the checksum of the third header: tarfile would end there in silence
    path.write_bytes(damaged)
    assert len(pages(read(path))) == 2 and len(rejects(read(path))) == 1


def test_a_tar_header_of_a_gigabyte_is_not_read_into_memory(tmp_path):
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 1 << 30
    (tmp_path / "a.tar").write_bytes(member.tobuf() + bytes(4096))
    rows = read(tmp_path)
    assert rejects(rows) == [("a.tar", "damaged file")] and "a header of 1,073,741,824 bytes" in rows[0]["text"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.html.gz", "a.txt.gz", "a.warc.gz", "a.tar.gz"])
def test_gzip_bombs_stop_at_the_cap(tmp_path, name):
    path = tmp_path / name
    if name == "a.tar.gz":
        tar_of(path, [("a.txt", bytes(30 << 20))], "w:gz")
    else:
        path.write_bytes(gzip.compress((b'{"text": "x"}\n' if "jsonl" in name else b"") + bytes(30 << 20)))
    rows = read(path, ratio=100)
    assert "archive unpacks beyond its cap" in {reason for _, reason in rejects(rows)} or pages(rows) == []
    assert len(rejects(rows)) >= 1
    small = gzip.compress(b'{"text": "word word word"}\n' * 2000)
    (tmp_path / "b.jsonl.gz").write_bytes(small)
    assert len(pages(read(tmp_path / "b.jsonl.gz", archive_bytes=10_000))) == 0
    assert len(pages(read(tmp_path / "b.jsonl.gz"))) == 2000
