"""Claim P3: rules, then duplicates, then a quality model; each step of curation makes the same number of tokens worth more.

DCLM (Li et al. 2024, section 4 and figure 4) keeps about 20% of its pool after rules, 13% after duplicates, 1.4% after the
classifier, and gets the best model at equal compute. Here the crawl is small and its junk is labelled, so that every
step has a precision and a recall, and two controls say what the gain is due to: a random part of the raw crawl as large
as what the whole pipeline keeps, and a classifier whose idea of good is wrong. All arms begin with the same weights and
tokenizer and train on the same number of tokens; clean text is read again where it ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from fledge.core.checkpoint import write_atomically
from fledge.core.config import Settings, TrainConfig, count_problems
from fledge.core.log import say
from fledge.core.model import SIZES, Shape
from fledge.curate.recipes import Recipe, load_recipe_of
from fledge.labs import experiment, spikes
from fledge.labs.cloze import cloze_rate, clozes, fresh_start
from fledge.labs.experiment import seeds_problems, verdict_of
from fledge.labs.sieve import (
    Corpus,
    areas,
    best,
    classifier,
    corpus,
    heuristics,
    judged_duplicates,
    judged_step,
    not_among,
    pair_recall,
    random_part,
    size_bytes,
    without_duplicates,
)
from fledge.stages import pretrain
from fledge.stages.common import open_model
from fledge.stages.evaluate import bits_per_byte
from fledge.world import World, WorldConfig
from fledge.world.crawl import JUNK
from fledge.world.dice import Dice
from fledge.world.relations import LANGUAGES

ARMS = ("raw", "rules", "duplicates", "classifier", "random", "wrong")
"""Raw, then each step on top of the one before; a random part of raw; a classifier that takes boilerplate for good."""
MEASURES = ("bits_per_byte", "cloze", "pages", "tokens")
CONTEXT_TOKENS, VOCABULARY = 128, 2048
TRUSTED_PAGES, VALIDATION_PAGES = 4000, 600
SPIKE_STEPS, SPIKE_TOKENS = 500, 2048


class FiltersSettings(Settings, frozen=True, kw_only=True):
    """The numbers of the experiment; see the options of the command for what it is."""

    pages: int = 20_000
    "Pages of the crawl."
    junk: float = 0.5
    "Share of them that are junk."
    bland: float = 0.4
    "Share of the junk that no rule of form can see: forum talk, and texts with their words in another order."
    recipe: str = "world"
    "Rules: a shipped recipe or a TOML file."
    keep_top: float = 0.75
    "Share of the pages that the classifiers keep."
    tokens: int | str = "2M"
    "Tokens each arm trains on."
    size: str = "pocket"
    "Size of the models."
    lr: float = 4e-3
    "Peak learning rate of every arm."
    spike_lr: float = 3e-3
    "Usual learning rate of the part on spikes, which takes twice as much."
    spikes: bool = True
    "Also train on batches with half a page of noise, filtered, masked and not."

    def problems(self) -> list[str]:
        """Every rule these settings break, in words."""
        found = count_problems(self.tokens)
        for name in ("junk", "bland", "keep_top"):
            if not 0 < getattr(self, name) < 1:
                found.append(f"{name} = {getattr(self, name)}: must be a share between 0 and 1")
        if self.pages < 200:
            found.append(f"pages = {self.pages}: must be at least 200")
        if self.size not in SIZES:
            found.append(f"size = {self.size!r}: must be one of {', '.join(SIZES)}")
        if not 0 < self.lr < 10:
            found.append(f"lr = {self.lr}: must be above 0 and below 10; 4e-3 is usual")
        return found


class FiltersOptions(FiltersSettings, frozen=True, kw_only=True):
    """Clean against raw text at equal tokens, step by step, with the funnel, two controls and what a bad batch does."""

    out: str
    "Folder of the experiment; what is done is kept and the rest continues."
    seeds: int = 3
    "Repetitions, each with its own world, crawl, start and order."

    def problems(self) -> list[str]:
        return super().problems() + seeds_problems(self.seeds)


def lab_world(seed: int) -> World:
    """The quick world with more plain sentences: a crawl's copies are made of those only, and would outnumber them."""
    return World(msgspec.structs.replace(WorldConfig.quick(seed), grammar_share=0.35, web_share=0.2))


# --- one seed -------------------------------------------------------------------------------------------------------


def curated(
    options: FiltersOptions, found: Corpus, recipe: Recipe, scratch: Path, seed: int
) -> tuple[dict[str, pa.Table], dict[str, Any]]:
    """(the pages of every arm, what the labels say of every step)."""
    labels = {page["id"]: page for page in found.pages}
    kinds = {id: page["kind"] for id, page in labels.items()}
    steps = heuristics(found.table, recipe)
    ruled = steps[-1].kept
    step, decisions = without_duplicates(ruled, recipe.duplicates, scratch)
    good = classifier(found.trusted, found.table, options.pages)
    wrong = classifier(boilerplate_pages(found, seed), found.table, options.pages)
    chosen, mistaken = (best(step.kept, model, options.keep_top) for model in (good, wrong))
    arms = {
        "raw": found.table, "rules": ruled, "duplicates": step.kept, "classifier": chosen.kept,
        "random": random_part(found.table, size_bytes(chosen.kept), seed), "wrong": mistaken.kept,
    }  # fmt: skip
    told = {
        "raw": {
            "pages": len(found.table),
            "bytes": size_bytes(found.table),
            "good": list(kinds.values()).count("good"),
        },
        "steps": [judged_step(s, kinds) for s in (*steps, step, chosen)],
        "wrong": judged_step(mistaken, kinds),
        "duplicates": judged_duplicates(ruled, decisions, labels),
        "pairs": pair_recall(found.pages, recipe.duplicates, scratch),
        "roc_area": areas(good, found.table, kinds),
        "roc_area_wrong": areas(wrong, found.table, kinds),
    }
    return arms, told


def boilerplate_pages(found: Corpus, seed: int) -> list[str]:
    """What the wrong classifier takes for good; none of it is in the crawl, word for word."""
    dice = Dice(seed, 82)
    texts = [JUNK["boilerplate"](LANGUAGES[number % 2], dice) for number in range(TRUSTED_PAGES)]
    return not_among(list(dict.fromkeys(texts)), [page["text"] for page in found.pages])


def write_texts(path: Path, texts: Sequence[str]) -> Path:
    """The texts as JSON lines."""
    write_atomically(path, b"".join(msgspec.json.encode({"text": text}) + b"\n" for text in texts))
    return path


def one_seed(options: FiltersOptions, folder: Path, seed: int) -> dict[str, Any]:
    """One repetition in `folder`, as plain JSON."""
    say(f"seed {seed}: a crawl of {options.pages} pages")
    world = lab_world(seed)
    found = corpus(world, options.pages, options.junk, options.bland, *_apart(options))
    rules = load_recipe_of(options.recipe)
    arms, told = curated(options, found, rules, folder / "scratch", seed)
    raw = write_texts(folder / "raw.jsonl", found.table["text"].to_pylist())
    train = TrainConfig(lr=options.lr, optimizer="muon", seed=seed)
    shape = Shape(size=options.size, context_tokens=CONTEXT_TOKENS)
    start = fresh_start(folder / "start", [str(raw)], shape, VOCABULARY, train)
    asked, pairs = clozes(world, found.stated), list(zip(found.validation, found.validation_source, strict=True))
    result: dict[str, Any] = {"seed": seed, "curation": told, "arms": {}}
    for name in ARMS:
        texts = write_texts(folder / f"{name}.jsonl", arms[name]["text"].to_pylist())
        recipe = pretrain.PretrainRecipe(
            out=str(folder / name),
            parent=str(start),
            text=[str(texts)],
            tokens=options.tokens,
            train=train,
            mask_repeats=None,
        )
        opened = open_model(pretrain.run(recipe, quiet=True))
        result["arms"][name] = measured = {
            "bits_per_byte": bits_per_byte(opened, found.validation),
            "by_source": {
                source: bits_per_byte(opened, [t for t, s in pairs if s == source])
                for source in sorted({s for _, s in pairs})
            },
            "cloze": cloze_rate(opened, asked),
            "pages": len(arms[name]),
            "tokens": opened.card["data"]["tokens"],
        }
        say(f"seed {seed}: {name}: {measured['bits_per_byte']:.3f} bits per byte, {measured['cloze']:.1%} of facts")
    if options.spikes:
        harsh = TrainConfig(steps=SPIKE_STEPS, batch_tokens=SPIKE_TOKENS, lr=options.spike_lr, seed=seed)
        texts = arms["classifier"]["text"].to_pylist()
        result["spikes"] = spikes.run(folder, start, texts, found.validation, rules, harsh)
    return result


def _apart(options: FiltersOptions) -> tuple[int, int]:
    """Pages to measure on and to trust; fewer where the crawl is small."""
    return min(VALIDATION_PAGES, options.pages // 10), min(TRUSTED_PAGES, options.pages // 2)


# --- all seeds ------------------------------------------------------------------------------------------------------


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and the checks of the claim."""
    arms = {name: {key: float(np.mean([r["arms"][name][key] for r in results])) for key in MEASURES} for name in ARMS}
    bits = {name: arm["bits_per_byte"] for name, arm in arms.items()}
    ladder = [bits[name] for name in ("raw", "rules", "duplicates", "classifier")]
    pairs = [r["curation"]["pairs"] for r in results]
    areas = [r["curation"]["roc_area"]["tellable"] for r in results]
    checks = {
        "every step lowers bits per byte: raw, rules, duplicates, classifier": all(
            a > b for a, b in zip(ladder, ladder[1:], strict=False)
        ),
        "by 0.05 bits together, on every seed": min(_gap(r, "raw", "classifier") for r in results) >= 0.05,
        "a random part of raw is as bad as raw, within 0.05 bits": abs(bits["random"] - bits["raw"]) <= 0.05,
        "a classifier of boilerplate is worse than none": bits["wrong"] > bits["duplicates"],
        "MinHash finds 90% of planted pairs with Jaccard of at least 0.8": _pair_mean(pairs, "at least 0.8") >= 0.9,
        "and at most 5% of those below 0.5": _pair_mean(pairs, "below 0.5") <= 0.05,
        "the classifier's ROC area on unseen hosts is at least 0.9, copies and false facts apart": min(areas) >= 0.9,
    }
    told = {"arms": arms, "checks": checks}
    if "spikes" in results[0]:
        told["spikes"] = spikes.summary([r["spikes"] for r in results])
    return told | {"verdict": verdict_of(checks)}


def _gap(result: dict[str, Any], worse: str, better: str) -> float:
    return result["arms"][worse]["bits_per_byte"] - result["arms"][better]["bits_per_byte"]


def _pair_mean(pairs: Sequence[dict[str, Any]], band: str) -> float:
    return float(np.mean([p[band]["found"] for p in pairs if p[band]["found"] is not None]))


def run(options: FiltersOptions) -> dict[str, Any]:
    """Every seed, then the summary, the page and the verdict; returns what result.json holds."""
    from fledge.labs.filters_page import filters_page

    def refuse() -> None:
        load_recipe_of(options.recipe)
        corpus(lab_world(0), options.pages, options.junk, options.bland, *_apart(options))

    return experiment.run("filters", options, one_seed, summary, filters_page, _show, refuse=refuse)


def _show(console: Any, total: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("text", "pages", "tokens", "bits per byte", "facts completed", "bits by seed", box=None)
    for name, arm in total["arms"].items():
        by_seed = ", ".join(f"{r['arms'][name]['bits_per_byte']:.3f}" for r in total["seeds"])
        figures = (
            f"{arm['pages']:,.0f}",
            f"{arm['tokens']:,.0f}",
            f"{arm['bits_per_byte']:.3f}",
            f"{arm['cloze']:.1%}",
        )
        table.add_row(name, *figures, by_seed)
    console.print(table)
    if told := total.get("spikes"):
        console.print(told["said"])
