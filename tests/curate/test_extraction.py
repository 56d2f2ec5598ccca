"""HTML to main text, and bytes to text without silent loss."""

import time

import pytest

from fledge.curate.encoding import decoded, proper
from fledge.curate.extraction import main_text
from fledge.text.files import RowRejected

HANS = "国破山河在，城春草木深。感时花溅泪，恨别鸟惊心。"
HANT = "國破山河在，城春草木深。感時花濺淚，恨別鳥驚心。"
FRENCH = "Déjà vu à l’été : « ça coûte 10 € » — voilà."


def as_1252(text: str) -> str:
    """UTF-8 read as windows-1252, as browsers do it: the five bytes it leaves free stay as they are."""
    return "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in text.encode())


def read(data: bytes, stated: str | None = None, web: bool = False) -> tuple[str, str | None]:
    return proper(*decoded(data, stated, web=web))


def test_main_text_keeps_paragraphs_and_drops_the_frame():
    html = """<html><head><title>T</title><style>p {}</style><script>var a = "scripted"</script></head><body>
      <nav><a href="/">Home</a> <a href="/about">About</a></nav>
      <div id="content"><h1>Head</h1><p>First  one,\n with a <a href="x">link</a>.</p><p>第二段。</p><ol><li>item</ol></div>
      <footer><p>Copyright</p></footer></body></html>"""
    assert main_text(html) == "Head\n\nFirst one, with a link.\n\n第二段。\n\n  1. item"
    everything = main_text(html, main=False)
    assert (
        "Home" in everything and "Copyright" in everything and "scripted" not in everything and "p {}" not in everything
    )


@pytest.mark.parametrize("html", ["", "<html></html>", "<script>x</script>", "<nav>menu</nav>", "   "])
def test_page_without_text_is_rejected(html):
    with pytest.raises(RowRejected) as error:
        main_text(html)
    assert error.value.reason == "no main text"


def test_pages_made_to_stop_a_crawl_end_soon():
    for unit in ("<div>", "<DIV class=a>", "<article>", "<b><i><p>", "<table><tr><td>", "<ul class=main><code>"):
        start = time.process_time()
        try:
            main_text(unit * 100_000 + "deep")
        except RowRejected as error:
            assert error.reason in ("web page nested too deeply", "no main text")
        assert time.process_time() - start < 5  # 100,000 nested <div> would take 80 s


@pytest.mark.parametrize(
    "html",
    [
        "<div>" * 500 + "x" + "</div>" * 500,
        "<div>x</div>" * 3000,  # many, but not deep
        "<p>x<br><a name=y>" * 3000,  # never closed, as in old pages
        "<svg>" + "<path d='M0 0'/>" * 3000 + "</svg><p>x",
        "<script>" + "for(i=0;i<n;i++)a[i]<b&&c>d;" * 3000 + "</script><p>x",
    ],
)
def test_large_pages_are_not_taken_for_deep_ones(html):
    assert "x" in main_text(html)


def test_nul_is_left_out_of_web_pages_as_browsers_do():
    assert main_text("<p>a\x00b</p>") == "ab"


@pytest.mark.parametrize("name", ["utf-8", "gb18030", "big5", "shift_jis", "euc-kr", "windows-1251", "windows-1252"])
def test_stated_charset_is_taken(name):
    text = {"gb18030": HANS, "big5": HANT, "shift_jis": "これは日本語のテキストです。", "euc-kr": "안녕하세요 세계 여러분",
            "windows-1251": "Привет, как дела?"}.get(name, FRENCH)  # fmt: skip
    data = text.encode(name)
    assert read(data, name) == (text, None)
    page = f'<html><meta charset="{name}"><p>'.encode() + data
    assert read(page, None, web=True)[0].endswith(text)
    if name != "utf-8":
        assert read(data) == (text, f"read as {'cp1252' if name == 'windows-1252' else read(data)[1][8:]}")


def test_wrongly_stated_charset_is_repaired_and_named():
    assert read(HANS.encode(), "iso-8859-1") == (HANS, "utf-8 stated as cp1252")
    assert read(HANT.encode("big5"), "utf-8") == (HANT, "read as big5")
    assert read(HANS.encode("gbk"), "big5") == (HANS, "gb18030 stated as big5")
    assert read(HANS.encode(), "gbk") == (HANS, "utf-8 stated as gbk")
    assert read(HANS.encode(), "hex") == (HANS, None)  # not a charset at all


def test_byte_order_marks_and_utf16_without_one():
    for name in ("utf-8-sig", "utf-16", "utf-32"):
        assert read(HANS.encode(name), "latin-1") == (HANS, None)
    assert read("plain words".encode("utf-16-le")) == ("plain words", "read as utf-16-le")


def test_a_page_cut_by_the_crawler_loses_half_a_character_and_says_so():
    assert read(HANS.encode()[:-1]) == (HANS[:-1], "cut inside its last character")
    assert read("caf\xe9".encode("latin-1"))[0] == "café"  # not a cut: that byte is a letter


@pytest.mark.parametrize("text", [FRENCH, HANS, HANT, "naïve “quotes” — and 10 £"])
def test_utf8_read_as_windows_1252_is_undone(text):
    assert proper(as_1252(text)) == (text, "utf-8 read as windows-1252")
    assert proper(as_1252(as_1252(text))) == (text, "utf-8 read as windows-1252")
    mixed = f"漢字 is right here\n{as_1252(text)}\nand café here"
    assert proper(mixed)[0] == f"漢字 is right here\n{text}\nand café here"


def test_other_charsets_read_as_windows_1252_are_undone():
    assert proper(HANS.encode("gbk").decode("latin-1")) == (HANS, "gb18030 read as windows-1252")
    assert proper(HANT.encode("big5").decode("latin-1")) == (HANT, "big5 read as windows-1252")
    assert proper("你好世界欢迎你们".encode().decode("gb18030")) == ("你好世界欢迎你们", "utf-8 read as gb18030")


@pytest.mark.parametrize(
    "text",
    [
        FRENCH,
        HANS,
        HANT,
        "LIBERTÉ… ÉGALITÉ™",
        "Größe Ä… ÜÖß",
        "こんにちは、世界。",
        "Привет",
        "emoji 🙂 and café",
        "a\x00b é",
        "½ Â",
    ],
)
def test_good_text_is_left_as_it_is(text):
    assert proper(text) == (text, None)


def test_lost_text_is_rejected_with_the_place():
    for data, stated, reason in (
        (HANS.encode("gbk").decode("utf-8", "replace").encode(), None, "replacement characters"),
        (("锟斤拷" * 5 + HANS).encode(), None, "replacement characters"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4, None, "encoding not known"),
        (b"\x7fELF\x01\x02\x03\x04 program" * 9, None, "not text"),
        (b"\xef\xbb\xbf\xff\xfe\xff" + bytes(range(128, 256)), None, "encoding not known"),
    ):
        with pytest.raises(RowRejected) as error:
            read(data, stated)
        assert error.value.reason == reason
    with pytest.raises(RowRejected) as error:
        decoded(b"good until \xff\x81\x8d\x90 here\x98\x9d")
    assert "byte 11" in error.value.sample and "ff 81 8d 90" in error.value.sample


def test_garbled_text_that_cannot_be_undone_is_rejected():
    text = as_1252("crème brûlée, déjà vu, naïve, où êtes-vous") + " ü" * 3
    with pytest.raises(RowRejected) as error:
        proper(text)
    assert error.value.reason == "garbled encoding"
