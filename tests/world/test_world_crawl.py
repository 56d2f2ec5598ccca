"""The world as a crawl: same bytes, labels that say what the text shows, files other tools can read."""

import ipaddress
import re
from collections import Counter
from io import BytesIO

import msgspec
import pytest
from fastwarc.warc import ArchiveIterator

from fledge.cli import main
from fledge.world import World, WorldConfig
from fledge.world.copies import HAN, edited, jaccard, recased, shingles, simplified
from fledge.world.crawl import EDITS, KINDS, crawl_pages
from fledge.world.crawl_files import BROKEN_LINES, FILES, LINES, WARCS, WET, write_crawl
from fledge.world.dice import Dice
from fledge.world.rubbish import LOREM, card, identity, ip, microwave, mojibake


@pytest.fixture(scope="module")
def world():
    return World(WorldConfig.quick())


@pytest.fixture(scope="module")
def pages(world):
    return crawl_pages(world, junk_share=0.5, pages=12_000)


@pytest.fixture(scope="module")
def crawl(world, tmp_path_factory):
    """(folder, report) of a crawl of 3,000 pages."""
    folder = tmp_path_factory.mktemp("crawl") / "crawl"
    return folder, write_crawl(world, folder, pages=3000)


def test_same_seed_same_bytes(world, crawl, tmp_path):
    folder, report = crawl
    again = write_crawl(world, tmp_path / "again", pages=3000)
    assert again["sha256"] == report["sha256"]
    assert (tmp_path / "again.truth.jsonl").read_bytes() == folder.with_name("crawl.truth.jsonl").read_bytes()
    other = write_crawl(World(WorldConfig.quick(seed=2)), tmp_path / "other", pages=3000)
    assert not set(other["sha256"].values()) & set(report["sha256"].values())


def test_the_shares_of_junk_are_those_asked_for(pages):
    junk = [one for one in pages if one["source"] == "junk"]
    assert len(pages) == 12_000 and len(junk) == 6000
    zh = Counter(one["kind"] for one in junk if one["language"] == "zh")
    assert sum(zh.values()) == 3000
    assert {kind: zh[kind] / 3000 for kind in KINDS} == pytest.approx(KINDS, abs=0.02)
    assert sum(KINDS.values()) == pytest.approx(1.0)
    assert all((one["quality"] == "good") == (one["source"] != "junk") for one in pages)


def test_without_a_limit_every_fact_is_stated_as_often_as_in_the_world(world):
    stated = {language: Counter() for language in ("en", "zh")}
    for one in crawl_pages(world, junk_share=0.1):
        stated[one["language"]].update(one["facts"])
    for fact in world.facts:
        assert {language: stated[language][fact.id] for language in stated} == fact.count


def test_copies_name_their_original_and_how_alike_they_are(pages):
    by_id = {one["id"]: one for one in pages}
    copies = [one for one in pages if one["of"]]
    assert {one["kind"] for one in copies} == {"exact", "recased", "wrapped", "twin", *EDITS}
    for one in copies[::7]:
        original = by_id[one["of"]]
        assert original["quality"] == "good" and original["source"] == "grammar" and not original["personal"]
        assert one["dup_cluster"] == original["dup_cluster"] == original["id"]
        assert one["jaccard"] == pytest.approx(jaccard(original["text"], one["text"]), abs=1e-4)
        assert (one["text"] == original["text"]) == (one["kind"] == "exact")
    near = [one["jaccard"] for one in copies if one["kind"] == "edit10"]
    assert max(near) < 0.9 and sum(value < 0.5 for value in near) > 0.6 * len(near)


def test_an_edit_touches_the_share_of_the_words_it_says():
    words = [f"w{i}" for i in range(1000)]
    for share in EDITS.values():
        changed = edited(" ".join(words), "en", share, ["new"], Dice(0, 0)).split()
        gone, new = set(words) - set(changed), changed.count("new")
        # a dropped word is gone, an added one new, a replaced one both
        assert max(len(gone), new) <= round(1000 * share) <= len(gone) + new
    text = "春眠不覺曉，處處聞啼鳥。"
    assert edited(text, "zh", 0.001, ["水"], Dice(0, 0)) != text  # at least one place
    assert shingles(recased("One word, Two words", "en")) == shingles("One word, Two words")
    assert simplified("處處聞啼鳥") == "处处闻啼鸟" and jaccard("處處聞啼鳥", "处处闻啼鸟") == 1.0


def test_numbers_pass_the_checks_of_real_ones():
    dice, kinds = Dice(3, 0), Counter()
    for _ in range(300):
        luhn = [int(d) for d in re.sub(r"\D", "", card(dice))]
        assert len(luhn) == 16 and sum(sum(divmod(d * (2 - i % 2), 10)) for i, d in enumerate(luhn)) % 10 == 0
        assert ipaddress.ip_address(ip(dice)).is_global
        number = identity(dice)
        kinds[len(number)] += 1
        if len(number) == 18:
            weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
            total = sum(int(d) * w for d, w in zip(number, weights, strict=False))
            assert number[17] == "10X98765432"[total % 11]
        elif len(number) == 10:
            values = [int(d) for d in str("ABCDEFGH".index(number[0]) + 10) + number[1:]]
            assert sum(v * w for v, w in zip(values, (1, 9, 8, 7, 6, 5, 4, 3, 2, 1, 1), strict=True)) % 10 == 0
    assert set(kinds) == {18, 10, 11} and min(kinds.values()) > 60


def test_mojibake_is_reversible():
    for text in ("漢字與符號。", "café “quoted”", "好嗎？" * 50):
        spoilt = mojibake(text)
        assert spoilt != text and not HAN.search(spoilt)
        back = b"".join(c.encode("latin-1") if ord(c) < 256 else c.encode("cp1252") for c in spoilt)
        assert back.decode() == text
    assert mojibake("plain") == "plain"


def test_microwave_pages_are_one_sound():
    dice = Dice(0, 0)
    for _ in range(40):
        assert set(microwave("en", dice).upper()) <= set("M BEP\n") and set(microwave("zh", dice)) <= set("嗯 BEP\n")


def records(path):
    data = path.read_bytes()
    for record in ArchiveIterator(BytesIO(data), parse_http=True):
        yield record, record.reader.read()


def test_every_page_is_in_a_file_that_other_tools_read(crawl):
    folder, report = crawl
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    truth = [msgspec.json.decode(line) for line in folder.with_name("crawl.truth.jsonl").read_bytes().splitlines()]
    urls = {name: {row["url"]: row for row in truth if row["file"] == name and row["url"]} for name in FILES}
    for name in WARCS:
        found, other = {}, Counter()
        for record, body in records(folder / name):
            if record.headers["WARC-Type"] == "response" and "html" in record.http_content_type:
                found[record.headers["WARC-Target-URI"]] = record, body
            else:
                other[record.headers["WARC-Type"]] += 1
        assert set(found) == set(urls[name]) and other["warcinfo"] == 1
        for url, (record, body) in found.items():
            declared = record.http_charset or (re.search(rb'charset="(.+?)"', body) or [b"", b""])[1].decode()
            assert declared == {"big5": "big5", "undeclared": ""}.get(urls[name][url]["encoding"], "utf-8")
            assert "</html>" in body.decode("big5" if "big" in declared or not declared else "utf-8")
    texts = {
        r.headers["WARC-Target-URI"]: body
        for r, body in records(folder / WET)
        if r.headers["WARC-Type"] == "conversion"
    }
    assert set(texts) == set(urls[WET])
    good, broken = [], 0
    for line in (folder / LINES).read_bytes().splitlines():
        try:
            row = msgspec.json.decode(line, type=dict[str, str], strict=True)
            good.append(row["url"])
        except (msgspec.DecodeError, KeyError, UnicodeDecodeError):
            broken += 1
    assert set(urls[LINES]) <= set(good) and len(BROKEN_LINES) - 3 <= broken <= len(BROKEN_LINES)
    assert sum(row["kind"] == "broken_line" for row in truth) == len(BROKEN_LINES) == report["broken_lines"]


def test_personal_data_of_the_labels_is_in_the_text(pages):
    with_data = [one for one in pages if one["personal"]]
    assert len(with_data) > 100
    assert {kind for one in with_data for kind, _ in one["personal"]} == {"email", "phone", "ip", "id", "card"}
    assert all(value in one["text"] for one in with_data for _, value in one["personal"])


def test_lorem_stands_before_a_real_page(pages):
    assert all(one["text"].startswith(LOREM) for one in pages if one["kind"] == "lorem")


def test_refusals(world, tmp_path):
    (tmp_path / "documents.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"documents\.jsonl.*empty folder"):
        write_crawl(world, tmp_path)
    with pytest.raises(ValueError, match="junk_share = 1"):
        crawl_pages(world, junk_share=1)
    with pytest.raises(ValueError, match="pages = 10"):
        crawl_pages(world, junk_share=0.9, pages=10)


def test_the_command_says_what_it_wrote(tmp_path, capsys):
    assert main(["world", "--crawl", "--quick", "--out", str(tmp_path / "crawl")]) == 0
    said = capsys.readouterr().out
    assert "microwave" in said and "crawl.truth.jsonl" in said
    assert main(["world", "--crawl", "--junk", "1.5", "--out", str(tmp_path / "other")]) != 0
    assert "junk = 1.5" in capsys.readouterr().err
