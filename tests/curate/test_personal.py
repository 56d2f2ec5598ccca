"""Personal data: what is masked, what looks like it and stays, and that nothing else of a page changes."""

import time
from pathlib import Path

import pyarrow as pa
import pytest

from fledge.curate.pages import PAGE, parted
from fledge.curate.personal import KINDS, PersonalSettings, luhn, mask, personal_kernel

PEPS = Path(__file__).resolve().parents[3] / "shared" / "data" / "peps"
COLUMNS = ["pii_email", "pii_ip", "pii_id", "pii_card", "pii_phone"]

FOUND = {
    "email": [
        "anna.lee+news@mail.example-host.co.uk", "a@b.io", "x_1@sub.domain.com.tw", "guido [at] python [dot] org",
        "mei(at)host.cn",
    ],
    "ip": ["74.125.224.84", "8.8.4.132", "2001:4860:4001:801::1011", "2a00:1450:4009:80b:0:0:0:200e"],
    "id": [
        "11010519491231002X", "110105 19491231 002X", "440524198001010013", "A123456789", "F131104093", "123-45-6789",
    ],
    "card": [
        "4111111111111111", "4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005", "3782 822463 10005",
        "30569309025904", "6011111111111117", "3530111333300000", "6222021234567890128", "4222222222222",
    ],
    "phone": [
        "+44 20 7946 0958", "+44 (0)20 7946 0958", "+33 1 23 45 67 89", "+1 (415) 555-2671", "+14155552671",
        "(415) 555-2671", "415-555-2671", "415.555.2671", "1-415-555-2671", "+86 138 0013 8000", "13800138000",
        "138-0013-8000", "86 13912345678", "008613912345678", "010-62345678", "(021) 62345678", "0912-345-678",
        "0912345678", "02-2345-6789", "(04) 2345-6789", "+886 2 2345 6789", "+852 2345 6789",
    ],
}  # fmt: skip
UNTOUCHED = [
    "2024-05-17 12:30:45", "17-05-2024", "20240517123045", "05/17/2024", "1999-2003", "UTC+0800", "+0100", "+1000",
    "$1,299.00", "€ 13.812.345,67", "15000000000 people", "+10 000 000", "3.14159265358979323846", "0.13812345678",
    "1.2.3.4", "3.36.10.0", "version 10.200.3.4", "v93.184.216.34", "Chrome/109.0.200.1", ">= 1.200.4.5", "§ 4.120.3.1",
    "10.0.0.1", "192.168.0.12", "127.0.0.1", "169.254.1.1", "224.0.0.251", "203.0.113.0", "256.1.200.1", "1.2.200.4.5",
    "package-1.200.3.4.tar.gz", "2001:db8::1", "fe80::1", "::1", "12:30:45", "std::vector", "2024:05:17",
    "978-0-13-110362-7", "ISBN 0-306-40615-2", "9780131103627", "0201-89683-4",
    "4111111111111112", "1700000000000", "4611686018427387904", "20170224204758", "1234567890123456",
    "110105194912310021", "110105194913310021", "A123456788", "000-12-3456", "666-12-3456", "900-12-3456",
    "123-45-67890", "x@y", "@decorator", "A@B.T", "A@B.transpose()", "icon@2x.png", "git@github.com:python/cpython",
    "look at python.org", "https://example.org/p/13812345678?id=13912345678", "deadbeef13812345678", "555-2671",
    "1 234 567 890", "1-2-3-4-5-6-7-8", "2**64 == 18446744073709551616", "0x13812345678", "<email> <phone> <ip>",
]  # fmt: skip


def table(texts: list[str]) -> pa.Table:
    ids = [str(i) for i in range(len(texts))]
    return pa.table([texts, ids, ids, [None] * len(texts), [""] * len(texts)], schema=PAGE)


def texts_of(texts: list[str], settings: PersonalSettings | None = None) -> list[str]:
    return personal_kernel(settings or PersonalSettings())(table(texts))["text"].to_pylist()


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in FOUND.items() for value in values])
def test_found_alone_and_in_sentences(kind: str, value: str):
    frames = ["{}", "Write or call {}, please.", "請聯絡{}。", "({})", "a\n{}\nb", "see {}."]
    out = personal_kernel(PersonalSettings())(table([frame.format(value) for frame in frames]))
    assert out["text"].to_pylist() == [frame.format(f"<{kind}>") for frame in frames]
    assert {name: out[name].to_pylist() for name in COLUMNS} == {
        name: [int(name == f"pii_{kind}")] * len(frames) for name in COLUMNS
    }


@pytest.mark.parametrize("text", UNTOUCHED)
def test_untouched(text: str):
    frames = [text, f"It says {text} here.", f"這是 {text}，對。"]
    assert texts_of(frames) == frames


def test_named_numbers_are_phones():
    assert texts_of(["Tel: 020 7946 0958", "电话：62345678", "Phone number: 555 2671", "the phone 2012 2013"]) == [
        "Tel: <phone>", "电话：<phone>", "Phone number: <phone>", "the phone 2012 2013",
    ]  # fmt: skip


def test_name_at_host_in_angle_brackets():
    assert texts_of(["Barry <barry at python.org>", "we met at python.org"]) == [
        "Barry <<email>>",
        "we met at python.org",
    ]


def test_all_of_a_page_are_counted():
    text = "a@b.com, c@d.org; 13800138000/13900139000 4111111111111111 from 74.125.224.84 by 11010519491231002X"
    out = personal_kernel(PersonalSettings())(table(["nothing", text]))
    assert out["text"][1].as_py() == "<email>, <email>; <phone>/13900139000 <card> from <ip> by <id>"
    assert [out[name].to_pylist() for name in COLUMNS] == [[0, 2], [0, 1], [0, 1], [0, 1], [0, 1]]
    assert all(out[name].type == pa.int32() for name in COLUMNS)


def test_masking_twice_changes_nothing():
    texts = [value for values in FOUND.values() for value in values]
    once = texts_of(texts)
    assert texts_of(once) == once


def test_kernel_keeps_every_page_and_column():
    pages = table(["a@b.com", "", "plain", "\x00 13800138000 🙂"])
    out = personal_kernel(PersonalSettings())(pages)
    assert out.column_names == [*PAGE.names, *COLUMNS, "reason", "value"]
    assert out.schema.field("text").type == PAGE.field("text").type
    assert out["text"].to_pylist() == ["<email>", "", "plain", "\x00 <phone> 🙂"]
    assert out.drop_columns(["text", *COLUMNS, "reason", "value"]) == pages.drop_columns(["text"])
    assert len(parted(out)[1]) == 0


def test_kernel_of_no_pages_and_of_chunks():
    kernel = personal_kernel(PersonalSettings())
    assert kernel(table([])).column_names[-7:] == [*COLUMNS, "reason", "value"]
    pages = pa.concat_tables([table(["x"]), table([]), table(["a@b.com", "y"])])
    assert kernel(pages)["text"].to_pylist() == ["x", "<email>", "y"]


def test_a_kind_can_be_left_alone_and_its_mask_chosen():
    out = personal_kernel(PersonalSettings(phone=None, email="[mail]"))(table(["a@b.com 13800138000"]))
    assert out["text"].to_pylist() == ["[mail] 13800138000"]
    assert "pii_phone" not in out.column_names


@pytest.mark.parametrize(("digits", "good"), [("79927398713", True), ("79927398710", False), ("0", True), ("18", True)])
def test_luhn(digits: str, good: bool):
    assert luhn(digits) is good


def test_every_wrong_digit_fails_the_checks():
    for kind, number in (("card", "4111111111111111"), ("id", "A123456789"), ("id", "11010519491231002X")):
        wrong = [number[:-1] + digit for digit in "0123456789" if digit != number[-1]]
        assert texts_of(wrong) == wrong, kind


@pytest.mark.parametrize("piece", ["a", "a.", "a@", "1-", "0", "1 ", "+1 2", "(", "2001:", "<a at ", "Tel: 1 1 ", "1."])
def test_long_runs_take_linear_time(piece: str):
    text = (piece * 200_000)[:200_000]
    start = time.process_time()
    for kind in KINDS:
        mask(text, kind, "<x>")
    assert time.process_time() - start < 5


@pytest.mark.skipif(not PEPS.exists(), reason=f"no {PEPS}")
def test_technical_documents_lose_nothing_but_addresses():
    texts = [path.read_text(encoding="utf-8") for path in sorted(PEPS.glob("*.rst"))[::5]]
    out = personal_kernel(PersonalSettings())(table(texts))
    assert sum(out["pii_email"].to_pylist()) > 100
    assert [sum(out[name].to_pylist()) for name in COLUMNS[2:]] == [0, 0, 0]
    found = [
        old for text in texts for pattern in KINDS[1].patterns for old in pattern.finditer(text) if KINDS[1].holds(old)
    ]
    assert {old[0] for old in found} == {"74.125.224.84", "2001:4860:4001:801::1011"}  # of google.com, in PEP 3144
    assert sum(out["pii_ip"].to_pylist()) == len(found) == 2
