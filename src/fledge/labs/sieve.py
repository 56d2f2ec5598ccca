"""A crawl of the embedded world through curation step by step, with what its hidden labels say of every step.

The labels are in `world.crawl`: what kind of page each is, and of which page it is a copy. No step sees them.
"""

from __future__ import annotations

import urllib.parse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fledge.curate.calibration import roc_area
from fledge.curate.duplicates import find_duplicates
from fledge.curate.languages import language_kernel
from fledge.curate.minhash import DuplicateSettings, fingerprints
from fledge.curate.ngrams import identities
from fledge.curate.pages import BATCH_PAGES, PAGE, Kernel, parted
from fledge.curate.quality import QualityModel
from fledge.curate.quality_training import TrainSettings, train_quality
from fledge.curate.recipes import Recipe
from fledge.curate.rules import kernels_of
from fledge.labs.bland import bland_pages
from fledge.world.copies import jaccard
from fledge.world.crawl import crawl_pages, good_pages
from fledge.world.dice import Dice
from fledge.world.world import World

COPIES = ("exact", "recased", "edit01", "edit02", "edit05", "edit10", "wrapped", "twin")
UNTELLABLE = (*COPIES, "wrong")  # kinds of junk whose pages read like good ones
_UNSEEN = 4  # one host in so many trains no classifier


class Corpus(NamedTuple):
    """What a seed gives."""

    pages: list[dict]  # of the crawl, with their labels
    table: pa.Table  # the same as curation reads them
    validation: list[str]  # good pages of the same world that the crawl lacks
    validation_source: list[str]  # of each: "facts", "web" or "grammar"
    trusted: list[str]  # more of them: what a classifier takes for good
    stated: dict[tuple[str, str], int]  # (fact, language) -> statements in the crawl's good pages


def corpus(world: World, pages: int, junk: float, bland: float, validation: int, trusted: int) -> Corpus:
    """A crawl of `pages` pages, `junk` of which are junk, a share `bland` of that of kinds no rule can see.

    Raises ValueError where the world is too small for that and as many good pages to measure on and to trust.
    """
    good = good_pages(world, Dice(world.config.seed, 60))  # as crawl_pages draws them
    extra = round(pages * junk * bland)
    used = round((pages - extra) * (1 - (pages * junk - extra) / (pages - extra)))
    shortage = ValueError(
        f"pages = {pages}, {1 - junk:.0%} of them good, {validation} more to measure on and {trusted} for the classifier: "
        f"the world has {len(good)} good pages, some of them with the same words; ask for fewer pages"
    )
    if len(good) < used + validation + trusted:
        raise shortage
    found = crawl_pages(world, (pages * junk - extra) / (pages - extra), pages - extra)
    dice = Dice(world.config.seed, 81)
    for number, page in enumerate(bland_pages(good[used:], extra, dice)):
        found.append(page | {"id": f"bland-{number:06d}", "url": f"https://forum{number % 97}.example/{number}"})
    found = dice.shuffled(found)
    stated = Counter((fact, page["language"]) for page in found if page["kind"] == "good" for fact in page["facts"])
    rest = not_among([page["text"] for page in good[used:]], [page["text"] for page in found])
    measured_on = rest[:validation]
    trusted_texts = not_among(rest[validation:], measured_on)[:trusted]
    if len(trusted_texts) < trusted:
        raise shortage
    source = {page["text"]: page["source"] for page in good[used:]}
    told = [source[text] for text in measured_on]
    return Corpus(found, page_table(found), measured_on, told, trusted_texts, dict(stated))


def not_among(texts: Sequence[str], others: Sequence[str]) -> list[str]:
    """The texts whose words are those of none of the others."""
    new = ~np.isin(identities(texts), identities(others))
    return [text for text, ok in zip(texts, new, strict=True) if ok]


def page_table(pages: Sequence[dict]) -> pa.Table:
    """The pages as curation reads them; the language is for curation to find."""
    rows = [(p["text"], p["id"], p["url"], p["url"], "") for p in pages]
    return pa.table([list(column) for column in zip(*rows, strict=True)], schema=PAGE)


# --- the steps ------------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """What one step kept and rejected."""

    name: str
    kept: pa.Table
    rejected: pa.Table  # with reason and value


def apply(name: str, kernel: Kernel, pages: pa.Table) -> Step:
    """One kernel over all pages, in batches."""
    batches = [parted(kernel(pages.slice(start, BATCH_PAGES))) for start in range(0, len(pages), BATCH_PAGES)]
    kept, rejected = (pa.concat_tables(side, promote_options="default") for side in zip(*batches, strict=True))
    return Step(name, kept, rejected)


def heuristics(pages: pa.Table, recipe: Recipe) -> list[Step]:
    """Language and every rule of the recipe."""
    steps: list[Step] = []
    for name, kernel in [("language", language_kernel(["en", "zh"], recipe.language.least_score)), *kernels_of(recipe)]:
        steps.append(apply(name, kernel, steps[-1].kept if steps else pages))
    return steps


def decided(pages: pa.Table, settings: DuplicateSettings, scratch: Path) -> pa.Table:
    """keep, reason, of, value and cluster of each page (see curate.duplicates)."""
    scratch.mkdir(parents=True, exist_ok=True)
    keys = scratch / "keys.parquet"
    parts = [fingerprints(pages.slice(s, BATCH_PAGES), settings) for s in range(0, len(pages), BATCH_PAGES)]
    pq.write_table(pa.concat_tables(parts), keys)
    return find_duplicates([keys], settings, scratch).table(0)


def without_duplicates(pages: pa.Table, settings: DuplicateSettings, scratch: Path) -> tuple[Step, pa.Table]:
    """The step, and its decisions in the order of `pages`."""
    found = decided(pages, settings, scratch)
    away = np.flatnonzero(~found["keep"].to_numpy(zero_copy_only=False))
    rejected = pages.take(pa.array(away)).append_column("reason", found["reason"].take(pa.array(away)))
    return Step("duplicates", pages.filter(found["keep"]), rejected), found


def classifier(good: Sequence[str], crawl: pa.Table, pages: int) -> QualityModel:
    """A classifier of texts like `good` against the crawl's own pages, without those of the hosts kept unseen."""
    rows = [{"id": f"{n}", "url": None, "text": text} for n, text in enumerate(good)]
    unseen = pa.array([is_unseen(url) for url in crawl["url"].to_pylist()])
    ordinary = crawl.filter(pa.compute.invert(unseen))
    table = page_table(rows).set_column(2, "source", pa.array(["good"] * len(rows)))
    return train_quality([table], [ordinary], TrainSettings(pages=pages)).model


def is_unseen(url: str) -> bool:
    """Whether the page's host is one that no classifier learns from."""
    host = urllib.parse.urlsplit(url).hostname or ""
    return int("".join(c for c in host if c.isdigit()) or 0) % _UNSEEN == 0


def best(pages: pa.Table, model: QualityModel, share: float) -> Step:
    """The `share` of the pages that the classifier likes best; ties by order."""
    score = model.score(pages["text"].to_pylist(), pages["language"].to_pylist())
    order = np.argsort(-np.nan_to_num(score, nan=-1.0), kind="stable")
    stays = np.zeros(len(score), bool)
    stays[order[: round(share * len(score))]] = True
    rejected = pages.filter(pa.array(~stays)).append_column("reason", pa.array(["quality"] * int((~stays).sum())))
    return Step("classifier", pages.filter(pa.array(stays)), rejected)


def random_part(pages: pa.Table, size_bytes: int, seed: int) -> pa.Table:
    """Random pages of about `size_bytes` of text."""
    order = np.random.default_rng(seed).permutation(len(pages))
    sizes = np.array([len(text.encode()) for text in pages["text"].to_pylist()])
    count = int(np.searchsorted(np.cumsum(sizes[order]), size_bytes)) + 1
    return pages.take(pa.array(np.sort(order[:count])))


# --- what the labels say --------------------------------------------------------------------------------------------


def size_bytes(pages: pa.Table) -> int:
    """UTF-8 bytes of text."""
    return sum(len(text.encode()) for text in pages["text"].to_pylist())


def judged_step(step: Step, kind_of: dict[str, str]) -> dict[str, Any]:
    """Removed pages of a step by kind; precision: removed ones that are junk; recall: junk that is removed."""
    away, stays = (Counter(kind_of[i] for i in side["id"].to_pylist()) for side in (step.rejected, step.kept))
    junk_away, junk = away.total() - away["good"], away.total() + stays.total() - away["good"] - stays["good"]
    rules: dict[str, list[int]] = {}
    for id, reason in zip(step.rejected["id"].to_pylist(), step.rejected["reason"].to_pylist(), strict=True):
        counts = rules.setdefault(reason, [0, 0])
        counts[0] += 1
        counts[1] += kind_of[id] != "good"
    return {
        "step": step.name,
        "pages": len(step.kept),
        "bytes": size_bytes(step.kept),
        "good": stays["good"],
        "removed": away.total(),
        "precision": junk_away / away.total() if away.total() else None,
        "recall": junk_away / junk if junk else None,
        "good_lost": away["good"] / max(1, away["good"] + stays["good"]),
        "removed_by_kind": {kind: [away[kind], away[kind] + stays[kind]] for kind in sorted({*away, *stays})},
        "rules": [
            {"rule": rule, "removed": n, "precision": junk / n}
            for rule, (n, junk) in sorted(rules.items(), key=lambda item: (-item[1][0], item[0]))
        ],
    }


def judged_duplicates(pages: pa.Table, found: pa.Table, labels: dict[str, dict]) -> dict[str, Any]:
    """Precision: removed pages whose stand-in is really of their cluster, or as alike as a near copy (Jaccard >= 0.5).
    Recall: pages beyond the first of each planted cluster that went."""
    ids, of = pages["id"].to_pylist(), found["of"].to_pylist()
    keep = found["keep"].to_pylist()
    text = dict(zip(ids, pages["text"].to_pylist(), strict=True))
    planted = similar = removed = 0
    for id, stand_in in zip(ids, of, strict=True):
        if stand_in is None:
            continue
        removed += 1
        same = labels[id]["dup_cluster"] is not None and labels[id]["dup_cluster"] == labels[stand_in]["dup_cluster"]
        planted += same
        similar += same or jaccard(text[id], text[stand_in]) >= 0.5
    here = Counter(c for id in ids if (c := labels[id]["dup_cluster"]) is not None)
    left = Counter(c for id, k in zip(ids, keep, strict=True) if k and (c := labels[id]["dup_cluster"]) is not None)
    surplus = here.total() - len(here)
    return {
        "planted": planted / removed if removed else None,
        "similar": similar / removed if removed else None,
        "recall": (surplus - (left.total() - len(left))) / surplus if surplus else None,
    }


def pair_recall(pages: Sequence[dict], settings: DuplicateSettings, scratch: Path) -> dict[str, Any]:
    """How many planted pairs are found, by how alike the two pages are; each page takes part in one pair only."""
    by_id = {page["id"]: page for page in pages}
    first = {page["of"]: page for page in reversed(pages) if page["of"]}
    pairs = [(by_id[of], copy) for of, copy in sorted(first.items())]
    found = decided(page_table([page for pair in pairs for page in pair]), settings, scratch)
    reason = found["reason"].to_pylist()[1::2]
    of = found["of"].to_pylist()[1::2]
    met = [r is not None and o == one["id"] for r, o, (one, _) in zip(reason, of, pairs, strict=True)]
    alike = np.array([copy["jaccard"] for _, copy in pairs])
    hit = np.array(met)
    bands = {"at least 0.8": alike >= 0.8, "0.5 to 0.8": (alike >= 0.5) & (alike < 0.8), "below 0.5": alike < 0.5}
    return {
        name: {"pairs": int(where.sum()), "found": float(hit[where].mean()) if where.any() else None}
        for name, where in bands.items()
    }


def areas(model: QualityModel, pages: pa.Table, kind_of: dict[str, str]) -> dict[str, float]:
    """ROC areas on the pages of unseen hosts: good ones against junk whose text can show it, and against all junk."""
    rows = [i for i, url in enumerate(pages["url"].to_pylist()) if is_unseen(url)]
    asked = apply("language", language_kernel([], None), pages.take(pa.array(rows))).kept
    score = np.nan_to_num(model.score(asked["text"].to_pylist(), asked["language"].to_pylist()), nan=0.0)
    kinds = np.array([kind_of[id] for id in asked["id"].to_pylist()], object)
    telling = ~np.isin(kinds, UNTELLABLE)
    return {
        "tellable": roc_area(score[telling], kinds[telling] == "good"),
        "all": roc_area(score, kinds == "good"),
        "pages": len(rows),
    }
