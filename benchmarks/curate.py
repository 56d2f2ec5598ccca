"""Near-duplicates and heuristic rules against datatrove: CPU seconds on the same pages, in turns, in one process.

Pages of about 4,300 bytes: PEPs, gsm8k's questions joined, Tang poems joined (Traditional); of half of each a copy
is planted with 1, 2, 5 or 10% of its words (Chinese: characters) edited. Three ways take turns: ours; datatrove with its word tokeniser swapped for a plain
one (the tokenisation of ours); datatrove as shipped (spaCy, for Chinese spaCy with jieba). Ratios are of CPU seconds of a
turn, texts in memory before and decisions in memory after; medians over the rounds with the extremes.
Near-duplicates: all stages, from texts to which pages stay. Rules: FineWeb's order (Gopher repetition, Gopher quality, C4 without
its rule of terminal punctuation, FineWeb), a page that one rejects goes no further. Decisions are compared filter by filter, with
the same tokeniser and bounds, on these pages, whole PEPs, plays and poems in lines, and junk.

    python benchmarks/curate.py [--rounds 3] [--pages 1000] [--shared ../shared/data] [--only duplicates|rules] [--json FILE]
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from datatrove_peer import (
    FILTERS,
    ROOT,
    PlainTokenizer,
    Words,
    as_shipped,
    forget_words,
    judge,
    near_duplicates,
    signatures,
)
from planted import table
from planted_pages import cut

from fledge.curate.duplicates import find_duplicates
from fledge.curate.minhash import FINEWEB, DuplicateSettings, fingerprints
from fledge.curate.pages import BATCH_BYTES, BATCH_PAGES, PAGE, REASON, parted
from fledge.curate.recipes import load_recipe_of
from fledge.curate.rules import kernel_of
from fledge.world.copies import edited, jaccard, vocabulary
from fledge.world.crawl import EDITS, JUNK
from fledge.world.dice import Dice

PAGE_BYTES = 4300
REAL = 0.5
OURS, PLAIN, SHIPPED = "ours", "datatrove, plain tokeniser", "datatrove as shipped"
LANGUAGE = {"en": "en", "zh": "zh-Hant"}


def pages_of(shared: Path, language: str, count: int) -> list[dict[str, Any]]:
    """`count` pages (fewer, where there are fewer) and copies of half of them: {text, kind, of: number of the original}."""
    dice = Dice(0, 80)
    if language == "en":
        peps = [t for path in sorted((shared / "peps").glob("*.rst")) for t in cut(path.read_text("utf-8"), PAGE_BYTES)]
        rows = [json.loads(line) for line in (shared / "gsm8k" / "train.jsonl").read_text("utf-8").splitlines()]
        sums = "\n\n".join(row["question"] for row in rows)
        texts = dice.shuffled(peps)[: count // 2] + dice.shuffled(list(cut(sums, PAGE_BYTES)))[: count - count // 2]
    else:
        poems = [json.loads(line) for line in (shared / "tang_poems.jsonl").read_text("utf-8").splitlines()]
        joined = "\n\n".join(f"{poem['title']}\n{poem['text'].replace(chr(10), '')}" for poem in poems)
        texts = list(cut(joined, PAGE_BYTES // 3))
    texts = dice.shuffled(texts)[:count]
    words = vocabulary(texts, language)
    pages = [{"text": text, "kind": "base", "of": None} for text in texts]
    for number in range(len(texts) // 2):
        kind = list(EDITS)[number % len(EDITS)]
        pages.append({"text": edited(texts[number], language, EDITS[kind], words, dice), "kind": kind, "of": number})
    return pages


def harder(shared: Path, language: str) -> list[str]:
    """Texts on which rules have more to say than on pages of prose: junk of every kind, verse in lines, code and tables."""
    dice = Dice(0, 81)
    texts = [make(language, dice) for make in JUNK.values() for _ in range(30)]
    if language == "en":
        texts += list(cut((shared / "tinyshakespeare.txt").read_text("utf-8"), 1500))[:300]
        return texts + [path.read_text("utf-8") for path in sorted((shared / "peps").glob("*.rst"))[::4]]
    poems = [json.loads(line) for line in (shared / "tang_poems.jsonl").read_text("utf-8").splitlines()]
    return texts + [f"{poem['title']}\n{poem['author']}\n\n{poem['text']}" for poem in poems[::20]]


def batches(texts: Sequence[str], language: str) -> list[pa.Table]:
    """Tables of pages.PAGE as the pipeline makes them: at most BATCH_PAGES pages and about BATCH_BYTES of text."""
    tables, some, size = [], [], 0
    for number, text in enumerate(texts):
        some.append((text, f"{number:016x}", f"memory:{number}", None, LANGUAGE[language]))
        size += len(text.encode())
        if len(some) == BATCH_PAGES or size >= BATCH_BYTES or number == len(texts) - 1:
            columns = [
                pa.array(column, field.type) for column, field in zip(zip(*some, strict=True), PAGE, strict=True)
            ]
            tables.append(pa.table(columns, schema=PAGE))
            some, size = [], 0
    return tables


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """(CPU seconds of all threads, what the work gives)."""
    gc.collect()
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def in_turns(ways: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """(seconds of every round by way, last results by way)."""
    seconds: dict[str, list[float]] = defaultdict(list)
    results = {}
    for _ in range(rounds):
        for name, work in ways.items():
            took, results[name] = cpu_seconds(work)
            seconds[name].append(took)
    return seconds, results


def ratio(seconds: dict[str, list[float]], slow: str, fast: str = OURS) -> str:
    """How many times as long `slow` took, round by round: median (least..most)."""
    ratios = sorted(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))
    return f"{statistics.median(ratios):.1f} ({ratios[0]:.1f}..{ratios[-1]:.1f})"


# --- near-duplicates -------------------------------------------------------------------------------------------------


def our_duplicates(tables: Sequence[pa.Table], settings: DuplicateSettings) -> tuple[list[int], list[int]]:
    """(number of the page that stays for each page, numbers of the pages kept), through the files the pipeline writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys-00000.parquet"
        with pq.ParquetWriter(path, fingerprints(tables[0].slice(0, 0), settings).schema) as writer:
            for pages in tables:
                writer.write_table(fingerprints(pages, settings))
        decided = pa.concat_tables(list(find_duplicates([path], settings, Path(folder) / "scratch")))
    stays = [number if of is None else int(of, 16) for number, of in enumerate(decided["of"].to_pylist())]
    return stays, [number for number, keep in enumerate(decided["keep"].to_pylist()) if keep]


def peer_duplicates(texts: Sequence[str], words: Words) -> tuple[list[int], list[int]]:
    """The same from datatrove: (cluster of each page, numbers of the pages kept)."""
    with tempfile.TemporaryDirectory() as folder:
        cluster, kept = near_duplicates(texts, words, Path(folder))
    return [int(c) if c >= 0 else -1 - number for number, c in enumerate(cluster)], kept


def our_signatures(tables: Sequence[pa.Table], settings: DuplicateSettings) -> None:
    for pages in tables:
        fingerprints(pages, settings)


def peer_signatures(texts: Sequence[str], words: Words) -> None:
    with tempfile.TemporaryDirectory() as folder:
        signatures(texts, words, Path(folder))


def found(pages: Sequence[dict], cluster: Sequence[int], kept: Sequence[int]) -> dict[str, float]:
    """Recall by kind of copy, and the share of removed pages with a real near-duplicate in their cluster."""
    recall: dict[str, list[bool]] = defaultdict(list)
    members: dict[int, list[int]] = defaultdict(list)
    for number, page in enumerate(pages):
        members[cluster[number]].append(number)
        if page["of"] is not None:
            recall[page["kind"]].append(cluster[number] == cluster[page["of"]])
    removed = sorted(set(range(len(pages))) - set(kept))
    real = sum(
        any(jaccard(pages[n]["text"], pages[m]["text"]) >= REAL for m in members[cluster[n]] if m != n) for n in removed
    )
    return {kind: statistics.mean(some) for kind, some in sorted(recall.items())} | {
        "precision": real / max(1, len(removed)), "removed": len(removed)}  # fmt: skip


def duplicates(shared: Path, count: int, rounds: int) -> dict[str, Any]:
    """Times and recall of every way, by language."""
    report: dict[str, Any] = {}
    for language in ("en", "zh"):
        pages = pages_of(shared, language, count)
        texts, plain, shipped = [page["text"] for page in pages], PlainTokenizer(), as_shipped(language)
        tables, ours, parity = batches(texts, language), DuplicateSettings(), FINEWEB
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        ways = {
            OURS: lambda t=tables, s=ours: our_duplicates(t, s),
            "ours, 14 bands of 8 as FineWeb": lambda t=tables, s=parity: our_duplicates(t, s),
            PLAIN: lambda t=texts, w=plain: peer_duplicates(t, w),
            SHIPPED: lambda t=texts, w=shipped: peer_duplicates(t, w),
        }
        our_duplicates(tables[:1], ours)  # tables of characters are made once per process
        seconds, results = in_turns(ways, rounds)
        first = {
            OURS: lambda t=tables, s=ours: our_signatures(t, s),
            "ours, 14 bands of 8 as FineWeb": lambda t=tables, s=parity: our_signatures(t, s),
            PLAIN: lambda t=texts, w=plain: peer_signatures(t, w),
            SHIPPED: lambda t=texts, w=shipped: peer_signatures(t, w),
        }
        signing, _ = in_turns(first, rounds)
        report[language] = {
            "pages": len(pages), "megabytes": megabytes,
            "ways": {name: {"seconds": seconds[name], "signatures": signing[name], "found": found(pages, *results[name])}
                     for name in ways},
            "ratios": {name: (ratio(seconds, name), ratio(signing, name)) for name in ways},
        }  # fmt: skip
    return report


def show_duplicates(report: dict[str, Any]) -> None:
    print(
        "\n### Near-duplicates\n\nratio: CPU seconds over ours, whole work and signatures alone, median (least..most)"
    )
    kinds = sorted(EDITS)
    table("| pages | way | MB/s | ratio | ratio of signatures | recall at 1 / 2 / 5 / 10% edits | removed rightly |",
          ((f"{one['pages']} {language}, {one['megabytes'] * 1e3 / one['pages']:.1f} kB each", name,
            f"{one['megabytes'] / statistics.median(way['seconds']):.2f}", *one["ratios"][name],
            " / ".join(f"{way['found'][kind]:.3f}" for kind in kinds),
            f"{way['found']['precision']:.3f} of {way['found']['removed']}")
           for language, one in report.items() for name, way in one["ways"].items()))  # fmt: skip


# --- rules -----------------------------------------------------------------------------------------------------------


def our_rules(tables: Sequence[pa.Table], kernels: Sequence[Callable[[pa.Table], pa.Table]]) -> list[list[str]]:
    """Ids of the pages that each step rejects."""
    rejected: list[list[str]] = [[] for _ in kernels]
    for pages in tables:
        for number, kernel in enumerate(kernels):
            pages, out = parted(kernel(pages))
            rejected[number] += out["id"].to_pylist()
    return rejected


def differences(texts: Sequence[str], recipe: Any, language: str) -> dict[str, Any]:
    """Step -> pages judged alike, and (our reason, datatrove's reason) -> pages for the others."""
    report, tables = {}, batches(texts, language)
    # datatrove counts a line's words by spaces, so its rule is off for Chinese, and here ours with it
    same = {"zh": msgspec.structs.replace(recipe.c4["zh"], words_per_line=0)}
    recipe = msgspec.structs.replace(recipe, c4={**recipe.c4, **same})
    for step, make in FILTERS.items():
        kernel, peer = kernel_of(recipe, step), make(recipe, language, PlainTokenizer())
        ours = [reason for pages in tables for reason in kernel(pages)[REASON].to_pylist()]
        forget_words()
        theirs = [None if one is None else one[1] for one in judge([peer], texts)]
        unlike = Counter((a or "kept", b or "kept") for a, b in zip(ours, theirs, strict=True) if bool(a) != bool(b))
        report[step] = {"pages": len(texts), "rejected": sum(map(bool, ours)), "theirs": sum(map(bool, theirs)),
                        "unlike": [[*reasons, n] for reasons, n in unlike.most_common()]}  # fmt: skip
    return report


def rules(shared: Path, count: int, rounds: int) -> dict[str, Any]:
    """Times and decisions, by language."""
    report: dict[str, Any] = {}
    recipe = load_recipe_of("fineweb")
    for language in ("en", "zh"):
        texts = [page["text"] for page in pages_of(shared, language, count)]
        tables = batches(texts, language)
        kernels = [kernel_of(recipe, step) for step in FILTERS]
        chains = {
            name: [make(recipe, language, words) for make in FILTERS.values()]
            for name, words in ((PLAIN, PlainTokenizer()), (SHIPPED, as_shipped(language)))
        }
        ways = {
            OURS: lambda t=tables, k=kernels: our_rules(t, k),
            PLAIN: lambda t=texts, c=chains[PLAIN]: (forget_words(), judge(c, t))[1],
            SHIPPED: lambda t=texts, c=chains[SHIPPED]: (forget_words(), judge(c, t))[1],
        }
        our_rules(tables[:1], kernels)
        seconds, results = in_turns(ways, rounds)
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        report[language] = {
            "pages": len(texts), "megabytes": megabytes, "seconds": seconds,
            "kept": {OURS: len(texts) - sum(map(len, results[OURS])),
                     **{name: sum(one is None for one in results[name]) for name in (PLAIN, SHIPPED)}},
            "ratios": {name: ratio(seconds, name) for name in ways},
            "decisions": differences(texts + harder(shared, language), recipe, language),
        }  # fmt: skip
    return report


def show_rules(report: dict[str, Any]) -> None:
    print("\n### Heuristic rules\n")
    table("| pages | way | MB/s | ratio | pages kept |",
          ((f"{one['pages']} {language}", name, f"{one['megabytes'] / statistics.median(times):.2f}",
            one["ratios"][name], one["kept"][name])
           for language, one in report.items() for name, times in one["seconds"].items()))  # fmt: skip
    table("| step | language | rejected by ours | by datatrove, plain tokeniser | judged alike | unlike: ours / datatrove |",
          ((step, language, d["rejected"], d["theirs"], f"{1 - sum(n for *_, n in d['unlike']) / d['pages']:.4f}",
            "; ".join(f"{a} / {b}: {n}" for a, b, n in d["unlike"]) or "none")
           for language, one in report.items() for step, d in one["decisions"].items()))  # fmt: skip


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--pages", type=int, default=1000)
    options.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "data")
    options.add_argument("--only", choices=("duplicates", "rules"))
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    pa.set_cpu_count(1)
    report: dict[str, Any] = {}
    if given.only != "rules":
        report["duplicates"] = duplicates(given.shared, given.pages, given.rounds)
        show_duplicates(report["duplicates"])
    if given.only != "duplicates":
        report["rules"] = rules(given.shared, given.pages, given.rounds)
        show_rules(report["rules"])
    if given.json:
        given.json.write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
