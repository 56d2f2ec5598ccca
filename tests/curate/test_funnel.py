"""The funnel counts every page once, adds up over shards, and prints where pages went."""

import msgspec
import pyarrow as pa
import pytest

from fledge.core.durable import canonical_json
from fledge.curate.funnel import SAMPLES, Amount, Funnel, Sizes, Tally, merged
from fledge.curate.pages import PAGE, judged, parted
from fledge.curate.shards import write_manifest
from fledge.curate.showing import open_funnel, show, summary_line

STEPS = ["read", "language", "words"]


def pages(count: int, language: str = "en", text: str = "four words in all") -> pa.Table:
    rows = [{"text": text, "id": f"{language}{i}", "source": f"crawl:{i}", "language": language} for i in range(count)]
    return pa.Table.from_pylist(rows, PAGE)


def counted(english: int, chinese: int, short: int) -> Funnel:
    """A tally of so many pages, of which the first `short` English ones are dropped at the last step."""
    tally = Tally(STEPS)
    table = pa.concat_tables([pages(english), pages(chinese, "zh-Hant", "四個漢字")])
    unknown = table.set_column(4, "language", pa.array([""] * len(table)))
    tally.keep("read", unknown, Sizes.of(unknown))
    tally.keep("language", table, Sizes.of(table))
    reason = ["words below 5"] * short + [None] * (len(table) - short)
    stays, gone = parted(judged(table, pa.array(reason, pa.string()), [4.0] * short + [None] * (len(table) - short)))
    tally.keep("words", stays, Sizes.of(stays))
    tally.drop("words", gone, Sizes.of(gone))
    tally.count("pii_email", 2)
    return tally.funnel()


def test_counts_by_step_rule_and_language():
    funnel = counted(english=9, chinese=4, short=7)
    funnel.check()
    assert funnel.came() == Amount(13, 9 * 17 + 4 * 4, 9 * 4 + 4 * 4)
    assert funnel.after("words") == Amount(6, 2 * 17 + 4 * 4, 2 * 4 + 4 * 4)
    assert funnel.after("words", "zh-Hant") == Amount(4, 16, 16)
    assert funnel.lost("words", "en") == Amount(7, 7 * 17, 28) and funnel.lost("words", "zh-Hant") == Amount()
    assert funnel.languages() == ["en", "zh-Hant"]
    assert [sample.id for sample in funnel.samples] == [f"en{i}" for i in range(SAMPLES)]
    assert funnel.samples[0].value == 4.0 and funnel.samples[0].text == "four words in all"


def test_shards_add_up_whatever_their_order_and_survive_json():
    one, other = counted(9, 4, 7), counted(3, 0, 1)
    both = merged([one, other], STEPS)
    both.check()
    assert both.came().pages == 16 and both.lost("words").pages == 8 and both.counted == {"pii_email": 4}
    swapped = merged([other, one], STEPS)
    assert (both.kept, both.dropped) == (swapped.kept, swapped.dropped)
    assert msgspec.json.decode(canonical_json(both), type=Funnel) == both


@pytest.mark.parametrize("lost", [0, 1])
def test_a_page_counted_nowhere_is_found(lost):
    funnel = counted(9, 4, 7)
    kept = [msgspec.structs.replace(k, amount=k.amount - Amount(pages=lost)) for k in funnel.kept if k.step == "words"]
    other = msgspec.structs.replace(funnel, kept=[k for k in funnel.kept if k.step != "words"] + kept)
    if lost:
        with pytest.raises(AssertionError, match="words: 13 pages came, 4 stay, 7 were dropped"):
            other.check()
    else:
        other.check()


def test_it_prints_what_stays_and_what_was_dropped(tmp_path, capsys):
    facts = {
        "funnel": counted(9, 4, 7),
        "duplicates": {"clusters": {"2": 9}, "largest_cluster": {"id": "ab", "pages": 2}, "not_compared": 1},
        "limit": {"column": "quality", "value": 0.25},
        "skipped": [{"source": "a.png", "reason": "unsupported file type"}],
    }
    write_manifest(tmp_path, [], facts=facts)
    show(tmp_path)
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert ["words", "6", "50", "24", "46.2%", "46.2%", "7"] in rows
    assert ["found", "9", "4"] in rows and ["words", "2", "4"] in rows
    assert "words below 5" in printed and "crawl:0: four words in all" in printed
    for note in (
        "pii_email 2",
        "limit: quality 0.25",
        "files not read: 1 unsupported file type",
        "9 of 2; the largest has 2",
    ):
        assert note in printed
    assert "6 of 13 pages stay" in summary_line(tmp_path)


def test_a_folder_without_a_funnel_says_what_to_name(tmp_path):
    with pytest.raises(ValueError, match="name the --out of `fledge curate`"):
        open_funnel(tmp_path)


def test_text_of_pages_cannot_write_markup_or_move_the_cursor(tmp_path, capsys):
    tally = Tally(["read", "language"])
    table = judged(pages(1, text="[red]x\x1b[2J"), pa.array(["broken"]))
    tally.drop("read", table, Sizes.of(table))
    write_manifest(tmp_path, [], facts={"funnel": tally.funnel()})
    show(tmp_path)
    printed = capsys.readouterr().out
    assert "[red]x\\x1b[2J" in printed and "\x1b[2J" not in printed
