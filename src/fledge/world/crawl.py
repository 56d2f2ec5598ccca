"""The world as a small crawl: its good pages among far more junk than the plain world has, with hidden labels.

Junk kinds are in `KINDS`; a copy's `of` names the page it was made from, and `jaccard` says how alike the two are (exact,
five tokens per shingle). Copies are made of grammar pages only, so none changes how often a fact is stated. Some good
pages carry personal data or arrive in a damaged encoding. Same seed, same pages.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

from fledge.world.copies import edited, jaccard, recased, simplified, vocabulary, wrapped
from fledge.world.dice import Dice, Weighted
from fledge.world.facts import Fact, Value
from fledge.world.junk import boilerplate, noise, spam, wrong_fact
from fledge.world.page import page
from fledge.world.relations import LANGUAGES
from fledge.world.rubbish import LOREM, calls, gibberish, menu, microwave, mojibake, numbers, personal
from fledge.world.style import join
from fledge.world.world import World

JUNK: dict[str, Callable[[str, Dice], str]] = {
    "boilerplate": boilerplate,
    "spam": spam,
    "calls": calls,
    "noise": noise,
    "microwave": microwave,
    "menu": menu,
    "numbers": numbers,
    "gibberish": gibberish,
}
"""Kinds of junk that need nothing but a language and dice."""

EDITS = {"edit01": 0.01, "edit02": 0.02, "edit05": 0.05, "edit10": 0.10}
"""Near copies: the share of the words (Chinese: characters) that were dropped, replaced or added."""

KINDS = {
    "boilerplate": 0.17,
    "spam": 0.10,
    "calls": 0.05,
    "noise": 0.05,
    "microwave": 0.04,
    "menu": 0.04,
    "numbers": 0.03,
    "gibberish": 0.03,
    "lorem": 0.03,
    "wrong": 0.06,
    "exact": 0.08,
    "recased": 0.04,
    "edit01": 0.05,
    "edit02": 0.05,
    "edit05": 0.05,
    "edit10": 0.05,
    "wrapped": 0.05,
    "twin": 0.03,
}
"""Shares of the junk pages. A twin is a Traditional page in Simplified characters; there are none in English."""

PERSONAL_SHARE = 0.03  # of the good pages: personal data added
MOJIBAKE_SHARE = 0.01  # of the good pages: UTF-8 read as cp1252 and saved again
UNDECLARED_SHARE = 0.01  # of the good Chinese pages: Big5 without saying so
LONG = {"facts": (0.2, 3, 6), "web": (0.1, 3, 6), "grammar": (0.6, 3, 9)}
"""Source -> (share of its documents that become part of a longer page, least and most documents of such a page)."""


def crawl_page(text: str, language: str, source: str, *, kind: str = "good", **labels) -> dict:
    """A page of `fledge.world.page` and: kind (finer than quality), of (the page it is a copy of), jaccard, encoding
    ("utf-8", "big5", "undeclared", "mojibake"), personal (pairs of kind and string)."""
    if kind in ("exact", "recased"):
        quality = "exact_copy"
    elif kind in EDITS or kind in ("wrapped", "twin"):
        quality = "near_copy"
    else:
        quality = kind
    return page(text, language, source, quality=quality, facts=labels.pop("facts", None)) | {
        "kind": kind, "of": None, "jaccard": None, "encoding": "utf-8", "personal": [],
    } | labels  # fmt: skip


def good_pages(world: World, dice: Dice) -> list[dict]:
    """The world's pages without its junk, some of them several documents long; shuffled."""
    heap: dict[tuple[str, str], list[dict]] = defaultdict(list)
    pages = []
    for document in world.documents():
        source, language = document["source"], document["language"]
        if source == "junk":
            continue
        if dice.chance(LONG[source][0]):
            heap[source, language].append(document)
        else:
            pages.append(crawl_page(document["text"], language, source, facts=document["facts"]))
    for (source, language), documents in heap.items():
        while documents:
            count = LONG[source][1] + dice.below(LONG[source][2] - LONG[source][1] + 1)
            some, documents = documents[:count], documents[count:]
            facts = [fact for document in some for fact in document["facts"]]
            pages.append(crawl_page("\n\n".join(d["text"] for d in some), language, source, facts=facts))
    return dice.shuffled(pages)


def copy_of(original: dict, kind: str, words: list[str], dice: Dice) -> dict:
    """A copy of a good page, of any kind in KINDS from "exact" on."""
    text, language = original["text"], original["language"]
    if kind in EDITS:
        text = edited(text, language, EDITS[kind], words, dice)
    elif kind == "recased":
        text = recased(text, language)
    elif kind == "wrapped":
        text = wrapped(text, language, dice)
    elif kind == "twin":
        text = simplified(text)
    alike = 1.0 if kind in ("exact", "recased", "twin") else round(jaccard(original["text"], text), 4)
    return crawl_page(text, language, "junk", kind=kind, of=original, jaccard=alike)


def junk_of(
    language: str, count: int, originals: list[dict], facts: list[Fact], pools: dict[str, list[Value]], dice: Dice
) -> Iterator[dict]:
    """`count` junk pages of one language, kinds in the shares of KINDS; copies of `originals`."""
    kinds = [kind for kind in KINDS if not (kind == "twin" and language == "en")]
    draw = Weighted(kinds, [KINDS[kind] for kind in kinds])
    words = vocabulary([original["text"] for original in originals], language)
    known = [fact for fact in facts if fact.count[language] >= 20] or facts[:1]
    for _ in range(count):
        kind = draw.draw(dice)
        if kind in JUNK:
            yield crawl_page(JUNK[kind](language, dice), language, "junk", kind=kind)
        elif kind == "lorem":
            yield crawl_page(f"{LOREM}\n{dice.pick(originals)['text']}", language, "junk", kind=kind)
        elif kind == "wrong":
            some = [dice.pick(known) for _ in range(1 + dice.below(3))]
            text = join([wrong_fact(fact, pools[fact.relation], language, dice) for fact in some], language)
            yield crawl_page(text, language, "junk", kind=kind)
        else:
            yield copy_of(dice.pick(originals), kind, words, dice)


def damaged(pages: list[dict], dice: Dice) -> None:
    """Gives some of the pages personal data or a damaged encoding, in place."""
    for one in pages:
        if dice.chance(PERSONAL_SHARE):
            sentences, one["personal"] = personal(one["language"], dice)
            one["text"] = join([one["text"], *sentences], one["language"])
        elif dice.chance(MOJIBAKE_SHARE) and mojibake(one["text"]) != one["text"]:
            one["encoding"] = "mojibake"
        elif one["language"] == "zh":
            one["encoding"] = "undeclared" if dice.chance(UNDECLARED_SHARE) else "big5" if dice.chance(0.1) else "utf-8"


def crawl_pages(world: World, junk_share: float = 0.4, pages: int | None = None) -> list[dict]:
    """All pages of the crawl, shuffled and numbered: `id`, `url` and, for copies, `of` and `dup_cluster` are filled in.

    `junk_share` is the junk's share of the pages. `pages` cuts the good pages so that about so many pages come out, junk
    included; None takes the whole world (then every fact's count is exact)."""
    if not 0 <= junk_share < 1:
        raise ValueError(f"junk_share = {junk_share}: must be at least 0 and less than 1")
    dice = Dice(world.config.seed, 60)
    good = good_pages(world, dice)
    if pages is not None:
        good = good[: round(pages * (1 - junk_share))]
    total = round(len(good) * junk_share / (1 - junk_share))
    junk: list[dict] = []
    for number, language in enumerate(LANGUAGES):
        originals = [one for one in good if one["source"] == "grammar" and one["language"] == language]
        count = total * (number + 1) // len(LANGUAGES) - total * number // len(LANGUAGES)
        if count and not originals:
            raise ValueError(
                f"pages = {pages}: no {language} page left to make copies of; ask for more pages, or for no junk"
            )
        junk += junk_of(language, count, originals, world.facts, world.pools, dice)
    copied = {id(one["of"]) for one in junk if one["of"]}
    damaged([one for one in good if id(one) not in copied], dice)
    everything = dice.shuffled(good + junk)
    for number, one in enumerate(everything):
        one["id"] = f"page-{number:06d}"
        one["url"] = f"https://{dice.pick(('news', 'blog', 'forum', 'wiki', 'shop'))}{number % 97}.example/{number}"
    for one in junk:
        if one["of"]:
            one["dup_cluster"] = one["of"]["dup_cluster"] = one["of"]["id"]
            one["of"] = one["of"]["id"]
    return everything
