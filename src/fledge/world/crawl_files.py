"""Writes the pages of a crawl as a crawl comes: WARC of HTML, WET, JSON lines; the labels in a file beside the folder.

WARC 1.1 is ISO 28500:2017; every record is a gzip member of its own, as in Common Crawl's files.
"""

from __future__ import annotations

import gzip
import hashlib
import html
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from fledge.core.durable import write_atomically
from fledge.world.crawl import crawl_page, crawl_pages
from fledge.world.dice import Dice
from fledge.world.junk import BOILERPLATE
from fledge.world.rubbish import mojibake
from fledge.world.world import World

WARCS = ("crawl-00000.warc.gz", "crawl-00001.warc.gz")
WET, LINES = "crawl-00002.warc.wet.gz", "crawl-00003.jsonl"
FILES = (*WARCS, WET, LINES)
TRUTH, REPORT = ".truth.jsonl", ".report.json"
DATE = "2026-11-21T00:00:00Z"

BROKEN_LINES = (
    b'{"id": "broken-0", "text": "this line ends in the mid',
    b'{"id": "broken-1", "text": "one", "text": "two"}',
    b'{"id": "broken-2", "text": "a lone surrogate \\ud800 here"}',
    b'{"id": "broken-3", "text": "not UTF-8: \xff\xfe\xfa"}',
    b'{"id": "broken-4", "text": 17}',
    b'{"id": "broken-5", "text": "a number that is none", "score": NaN}',
    b'{"id": "broken-6", "text": "   "}',
    b"[1, 2, 3]",
)
"""Each is to be rejected, counted and named; none may stop the reading."""

HTML = """<!DOCTYPE html>
<html lang="{language}"><head>{meta}<title>{title}</title><style>nav a {{ color: #345; }}</style>
<script>var page = {number}; function track() {{ return page < 3 && "<p>no text</p>"; }}</script></head>
<body><div class="logo"><a href="/">{site}</a></div>
<nav class="menu"><ul>{menu}</ul></nav>
{body}
<aside class="sidebar"><a href="/{number}/next">{more}</a></aside>
<footer><p>{foot}</p></footer><script>track();</script></body></html>
"""


def record(kind: str, url: str, content_type: str, block: bytes, headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """One WARC record as a gzip member without time of day, so the same page is the same bytes."""
    name = hashlib.sha256(kind.encode() + url.encode() + block).hexdigest()
    urn = f"<urn:uuid:{name[:8]}-{name[8:12]}-4{name[13:16]}-8{name[17:20]}-{name[20:32]}>"
    fields = [("WARC-Type", kind), ("WARC-Date", DATE), ("WARC-Record-ID", urn), ("WARC-Target-URI", url), *headers,
              ("Content-Type", content_type), ("Content-Length", str(len(block)))]  # fmt: skip
    head = "WARC/1.1\r\n" + "".join(f"{key}: {value}\r\n" for key, value in fields if value)
    return gzip.compress(head.encode() + b"\r\n" + block + b"\r\n\r\n", mtime=0)


def response(url: str, content_type: str, body: bytes, status: str = "200 OK") -> bytes:
    """A response record: HTTP header and body."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return record("response", url, "application/http; msgtype=response", head.encode() + body)


def html_page(one: dict, number: int, dice: Dice) -> tuple[bytes, str]:
    """(the page's text in a site's template, in its encoding; the Content-Type of its HTTP header)."""
    language, encoding = one["language"], one["encoding"]
    text = mojibake(one["text"]) if encoding == "mojibake" else one["text"]
    blocks = [html.escape(block).replace("\n", "<br>\n") for block in text.split("\n\n") if block.strip()]
    paragraphs = "\n".join(f"<p>{block}</p>" for block in blocks)
    frame = dice.pick(("article", 'main id="content"', 'div class="post-body"'))
    menu, foot, more = dice.sample(BOILERPLATE[language], 4), *dice.sample(BOILERPLATE[language], 2)
    codec = {"utf-8": "utf-8", "mojibake": "utf-8", "big5": "big5", "undeclared": "big5"}[encoding]
    declared = "" if encoding == "undeclared" else codec
    in_header = dice.chance(0.5)
    page = HTML.format(
        language=language, number=number, site=f"{one['url'].split('/')[2]}", foot=foot, more=more, title=f"{number}",
        meta=f'<meta charset="{declared}">' if declared and not in_header else "",
        menu="".join(f'<li><a href="/{i}">{entry}</a></li>' for i, entry in enumerate(menu)),
        body=f"<{frame}>\n{paragraphs}\n</{frame.split()[0]}>",
    )  # fmt: skip
    content_type = f"text/html; charset={declared}" if declared and in_header else "text/html"
    return page.encode(codec, errors="xmlcharrefreplace"), content_type


def warc(pages: list[dict], dice: Dice) -> Iterator[bytes]:
    """A crawl's records: an information record, the pages as HTML, now and then a request, an image or a lost page."""
    yield record("warcinfo", "", "application/warc-fields", b"software: fledge world --crawl\r\nformat: WARC 1.1\r\n")
    for number, one in enumerate(pages):
        if number % 40 == 0:
            yield record("request", one["url"], "application/http; msgtype=request", b"GET / HTTP/1.1\r\n\r\n")
        if number % 200 == 7:
            yield response(one["url"] + ".png", "image/png", b"\x89PNG\r\n\x1a\n" + bytes(64))
        body, content_type = html_page(one, number, dice)
        yield response(one["url"], content_type, body)


def wet(pages: list[dict]) -> Iterator[bytes]:
    """Conversion records: the text alone."""
    yield record("warcinfo", "", "application/warc-fields", b"software: fledge world --crawl\r\nformat: WARC 1.1\r\n")
    for one in pages:
        text = mojibake(one["text"]) if one["encoding"] == "mojibake" else one["text"]
        yield record("conversion", one["url"], "text/plain", text.encode())


def lines(pages: list[dict]) -> Iterator[bytes]:
    """One JSON object per page, with a broken line after every 1/8 of them."""
    step = max(1, len(pages) // len(BROKEN_LINES))
    broken = iter(BROKEN_LINES)
    for number, one in enumerate(pages):
        text = mojibake(one["text"]) if one["encoding"] == "mojibake" else one["text"]
        yield msgspec.json.encode({"id": one["id"], "url": one["url"], "text": text}) + b"\n"
        if number % step == step - 1:
            yield next(broken, b"") + b"\n"
    yield from (line + b"\n" for line in broken)


def shares(pages: list[dict]) -> dict[str, list[dict]]:
    """Which file each page is in: 55% HTML, 20% WET, 25% JSON lines. Only HTML comes in Big5."""
    files: dict[str, list[dict]] = {name: [] for name in FILES}
    for number, one in enumerate(pages):
        place = number % 20
        only_html = one["encoding"] in ("big5", "undeclared")
        name = WARCS[number // 20 % 2] if place < 11 or only_html else WET if place < 15 else LINES
        files[name].append(one)
    return files


def truth_rows(files: dict[str, list[dict]]) -> Iterator[dict[str, Any]]:
    """The hidden labels: one row per page and per broken line; the page's right text where its encoding was damaged."""
    for name, pages in files.items():
        for one in pages:
            row = {key: value for key, value in one.items() if key not in ("text", "form")}
            row["language"] = "en" if one["language"] == "en" else "zh-Hans" if one["kind"] == "twin" else "zh-Hant"
            yield row | {"file": name, "text": None if one["encoding"] in ("utf-8", "big5") else one["text"]}
    for line in BROKEN_LINES:
        row = crawl_page("", "", "junk", kind="broken_line")
        del row["form"]
        yield row | {"id": None, "url": None, "file": LINES, "text": line.decode("latin-1")}


def write_crawl(world: World, out: Path, junk_share: float = 0.4, pages: int | None = None) -> dict[str, Any]:
    """Writes OUT/crawl-*.{warc.gz,warc.wet.gz,jsonl}, and beside the folder OUT.truth.jsonl and then OUT.report.json.

    Returns the report. Raises ValueError if the folder holds anything else, since a crawl is read folder by folder."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    strangers = sorted(path.name for path in out.iterdir() if path.name not in FILES)
    if strangers:
        raise ValueError(
            f"{out} holds {strangers[0]!r}, which is no part of a crawl and would be read as pages: "
            "give an empty folder, or a new one"
        )
    everything = crawl_pages(world, junk_share, pages)
    files, dice = shares(everything), Dice(world.config.seed, 61)
    makers: dict[str, Callable[[list[dict]], Iterator[bytes]]] = {WET: wet, LINES: lines}
    sha256 = {}
    for name, some in files.items():
        data = b"".join(makers[name](some) if name in makers else warc(some, dice))
        write_atomically(out / name, data)
        sha256[name] = hashlib.sha256(data).hexdigest()
    truth = b"".join(msgspec.json.encode(row) + b"\n" for row in truth_rows(files))
    write_atomically(out.with_name(out.name + TRUTH), truth)
    report = {
        "config": world.config,
        "junk_share": junk_share,
        "pages": {name: len(some) for name, some in files.items()},
        "kinds": dict(sorted(Counter(f"{p['kind']}.{p['language']}" for p in everything).items())),
        "encodings": dict(sorted(Counter(p["encoding"] for p in everything).items())),
        "personal": sum(bool(p["personal"]) for p in everything),
        "broken_lines": len(BROKEN_LINES),
        "sha256": sha256,
    }
    write_atomically(out.with_name(out.name + REPORT), msgspec.json.format(msgspec.json.encode(report), indent=1))
    return msgspec.to_builtins(report)
