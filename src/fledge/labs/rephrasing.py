"""Claim P4: rephrased text teaches the same with a fraction of the tokens, and real text beside it keeps the real style.

WRAP (Maini et al. 2024, "Rephrasing the Web"): pretraining on C4 and its rephrasings 1:1 is about three times as fast, and
rephrasings alone do worse on noisy web text. Here the web is pages of facts under a site's phrases, with typos and in
the wrong order, and the rephraser is made of rules (`labs.noisy`), so it can add no knowledge of its own; what it writes
goes through the checks of `fledge rephrase` all the same. Arms train on the same number of tokens from the same weights
with the same tokenizer; each token budget is a run of its own, with a learning rate that ends where the budget does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from fledge.core.checkpoint import write_atomically
from fledge.core.config import Settings, TrainConfig, count_problems, parse_count
from fledge.core.log import say
from fledge.core.model import SIZES, Shape
from fledge.curate.rephrase import STYLES, Passage, Style, passages
from fledge.curate.rephrase_checks import check_all
from fledge.labs import experiment
from fledge.labs.cloze import answer_rate, cloze_rate, clozes, fresh_start
from fledge.labs.experiment import seeds_problems, verdict_of
from fledge.labs.noisy import RuleRephraser, noisy
from fledge.labs.sieve import not_among
from fledge.stages import pretrain
from fledge.stages.common import open_model
from fledge.stages.evaluate import bits_per_byte
from fledge.world import World, WorldConfig
from fledge.world.dice import Dice

ARMS = {
    "raw": ("raw",),
    "repeated": ("part",),
    "wiki": ("wiki",),
    "qa": ("qa",),
    "mixed": ("raw", "wiki"),
    "three": ("raw", "raw", "wiki", "qa"),
}
"""Arm -> its texts, each with the same weight; "mixed" and "three" are half real, the rest in one style or in two."""
FRACTIONS = (0.25, 0.5, 1.0)
MEASURES = ("cloze", "answers", "clean_bits", "noisy_bits")
CONTEXT_TOKENS, VOCABULARY, PASSAGE_TOKENS = 128, 2048, 300
_HELD_OUT_EVERY = 20
_REPEATED = 4  # "repeated" knows one page in so many
_ONLY_CHECKED = 1000  # passages of the styles that nothing is trained on
_LANGUAGE = {"en": "en", "zh": "zh-Hant"}


class RephrasingSettings(Settings, frozen=True, kw_only=True):
    """The numbers of the experiment; see the options of the command for what it is."""

    pages: int | None = None
    "Most pages of facts to use; none takes all of the quick world, about 12,000."
    tokens: int | str = "2M"
    "Largest token budget; a quarter and a half of it are run too."
    size: str = "pocket"
    "Size of the models."
    lr: float = 4e-3
    "Peak learning rate of every arm."

    def problems(self) -> list[str]:
        """Every rule these settings break, in words."""
        found = count_problems(self.tokens)
        if self.pages is not None and self.pages < 100:
            found.append(f"pages = {self.pages}: must be at least 100, or none for all")
        if self.size not in SIZES:
            found.append(f"size = {self.size!r}: must be one of {', '.join(SIZES)}")
        if not 0 < self.lr < 10:
            found.append(f"lr = {self.lr}: must be above 0 and below 10; 4e-3 is usual")
        return found


class RephrasingOptions(RephrasingSettings, frozen=True, kw_only=True):
    """Raw, rephrased and mixed text at equal tokens: facts learned, and bits on clean and on noisy text."""

    out: str
    "Folder of the experiment; what is done is kept and the rest continues."
    seeds: int = 3
    "Repetitions, each with its own world, noise, start and order."

    def problems(self) -> list[str]:
        return super().problems() + seeds_problems(self.seeds)


class Material(NamedTuple):
    """What a seed gives."""

    texts: dict[str, list[str]]  # raw, part (one page in four of raw), wiki, qa
    clean: list[str]  # pages held out, before the noise
    noisy: list[str]  # the same with noise
    stated: dict[tuple[str, str], int]  # (fact, language) -> statements in raw
    rephrased: dict[str, Any]  # by style: how many passages were written, kept, and why others were not


def material(world: World, most: int | None, seed: int) -> Material:
    """Noisy pages of the world's facts and their rephrasings, checked."""
    pages = [page for page in world.documents() if page["source"] == "facts"][:most]
    dice = Dice(seed, 84)
    shown = [noisy(page["text"], page["language"], dice) for page in pages]
    train = [i for i in range(len(pages)) if i % _HELD_OUT_EVERY]
    raw = [shown[i] for i in train]
    texts = {"raw": raw, "part": raw[::_REPEATED]}
    told = {}
    for style in STYLES:
        trained = any(style in arm for arm in ARMS.values())
        some = [i for i in train if trained or i < _ONLY_CHECKED]
        asked = [p for i in some for p in cut(f"{i}", _LANGUAGE[pages[i]["language"]], shown[i], style)]
        kept, told[style] = rephrased(asked, style, seed)
        if trained:
            texts[style] = kept
    apart = range(0, len(pages), _HELD_OUT_EVERY)
    clean = not_among([pages[i]["text"] for i in apart], [text for known in texts.values() for text in known])
    stated = Counter((fact, pages[i]["language"]) for i in train for fact in pages[i]["facts"])
    return Material(texts, clean, [shown[i] for i in apart], dict(stated), told)


def cut(id: str, language: str, text: str, style: Style) -> list[Passage]:
    """The passages of a page, as `fledge rephrase` cuts them."""
    return list(passages(id, f"page {id}", language, text, style, PASSAGE_TOKENS))


def rephrased(asked: Sequence[Passage], style: Style, seed: int) -> tuple[list[str], dict[str, Any]]:
    """(texts that pass the checks, what happened)."""
    rephraser = RuleRephraser(style, seed)
    found = check_all(asked, rephraser(asked), style)
    sentences = max(1, rephraser.read + rephraser.unread)
    reasons = Counter(one.reason for one in found if one.reason)
    told = {
        "passages": len(asked),
        "kept": len(found) - reasons.total(),
        "rejected": dict(sorted(reasons.items())),
        "sentences_read": rephraser.read / sentences,
        "example": {"passage": asked[0].text, "written": found[0].text},
    }
    return [one.text for one in found if one.reason is None], told


# --- one seed -------------------------------------------------------------------------------------------------------


def one_seed(options: RephrasingOptions, folder: Path, seed: int) -> dict[str, Any]:
    """One repetition in `folder`, as plain JSON."""
    say(f"seed {seed}: noisy pages and their rephrasings")
    world = World(WorldConfig.quick(seed))
    found = material(world, options.pages, seed)
    files = {name: _written(folder / f"{name}.jsonl", texts) for name, texts in found.texts.items()}
    train = TrainConfig(lr=options.lr, optimizer="muon", seed=seed)
    shape = Shape(size=options.size, context_tokens=CONTEXT_TOKENS)
    start = fresh_start(folder / "start", [files[n] for n in ("raw", "wiki", "qa")], shape, VOCABULARY, train)
    asked = clozes(world, found.stated)
    result: dict[str, Any] = {"seed": seed, "rephrased": found.rephrased, "arms": {}}
    for arm, names in ARMS.items():
        curve = []
        for fraction in FRACTIONS:
            tokens = round(fraction * (parse_count(options.tokens) or 0))
            recipe = pretrain.PretrainRecipe(
                out=str(folder / f"{arm}-{tokens}"), parent=str(start), tokens=tokens, train=train, mask_repeats=None,
                **_mixture([files[name] for name in names]),
            )  # fmt: skip
            opened = open_model(pretrain.run(recipe, quiet=True))
            curve.append({
                "tokens": tokens, "epochs": tokens / opened.card["data"]["tokens"],
                "cloze": cloze_rate(opened, asked), "answers": answer_rate(opened, world, found.stated, seed),
                "clean_bits": bits_per_byte(opened, found.clean), "noisy_bits": bits_per_byte(opened, found.noisy),
            })  # fmt: skip
        result["arms"][arm] = curve
        end = curve[-1]
        say(f"seed {seed}: {arm}: {end['cloze']:.1%} completed, {end['answers']:.1%} answered, "
            f"{end['clean_bits']:.3f} bits per byte clean, {end['noisy_bits']:.3f} noisy")  # fmt: skip
    return result


def _written(path: Path, texts: Sequence[str]) -> str:
    write_atomically(path, b"".join(msgspec.json.encode({"text": text}) + b"\n" for text in texts))
    return str(path)


def _mixture(files: Sequence[str]) -> dict[str, Any]:
    """The recipe's texts and weights: a file named twice weighs twice; one alone is no mixture."""
    counts = Counter(files)
    return {"text": list(counts), "weights": [float(n) for n in counts.values()] if len(counts) > 1 else []}


# --- all seeds ------------------------------------------------------------------------------------------------------


def tokens_to_reach(curve: Sequence[Mapping[str, float]], key: str, level: float, over: str = "tokens") -> float | None:
    """Tokens (or whatever `over` names) at which a rising curve first reaches `level`, straight lines between its points
    and from nothing; None where it never does."""
    before = (0.0, 0.0)
    for row in curve:
        here = (row[over], row[key])
        if here[1] >= level:
            share = (level - before[1]) / (here[1] - before[1]) if here[1] > before[1] else 1.0
            return before[0] + share * (here[0] - before[0])
        before = here
    return None


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds by arm and budget, how soon each arm knows what raw knows at the end, and the checks."""
    arms = {
        arm: [
            {key: float(np.mean([r["arms"][arm][i][key] for r in results])) for key in ("tokens", "epochs", *MEASURES)}
            for i in range(len(FRACTIONS))
        ]
        for arm in ARMS
    }
    shares = {arm: [_share(r["arms"], arm) for r in results] for arm in ARMS if arm != "raw"}
    end = {arm: curve[-1] for arm, curve in arms.items()}
    mixed = shares["mixed"]
    checks = {
        "mixed completes as many facts as raw with half of the tokens, on every seed": all(
            s is not None and s <= 0.5 for s in mixed
        ),
        "rephrased text alone is worse on noisy pages than mixed": min(
            end["wiki"]["noisy_bits"], end["qa"]["noisy_bits"]
        )
        > end["mixed"]["noisy_bits"],
        "questions and answers make the best answers": end["qa"]["answers"]
        > max(arm["answers"] for name, arm in end.items() if name != "qa"),
    }
    return {"arms": arms, "shares": shares, "checks": checks, "verdict": verdict_of(checks)}


def _share(arms: dict[str, Any], arm: str) -> float | None:
    """Tokens after which `arm` completes as many facts as raw does at the end, as a share of raw's;
    None where it never does, or raw completes none."""
    end = arms["raw"][-1]
    if not end["cloze"]:
        return None
    reached = tokens_to_reach(arms[arm], "cloze", end["cloze"])
    return None if reached is None else reached / end["tokens"]


def run(options: RephrasingOptions) -> dict[str, Any]:
    """Every seed, then the summary, the page and the verdict; returns what result.json holds."""
    from fledge.labs.rephrasing_page import rephrasing_page

    return experiment.run("rephrasing", options, one_seed, summary, rephrasing_page, _show)


def _show(console: Any, total: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(
        "text",
        "epochs",
        "facts completed",
        "questions answered",
        "bits, clean",
        "bits, noisy",
        "raw's facts after",
        box=None,
    )
    for arm, curve in total["arms"].items():
        end = curve[-1]
        reached = [f"{s:.0%}" if s is not None else "never" for s in total["shares"].get(arm, [])]
        table.add_row(
            arm, f"{end['epochs']:.1f}", f"{end['cloze']:.1%}", f"{end['answers']:.1%}", f"{end['clean_bits']:.3f}",
            f"{end['noisy_bits']:.3f}", ", ".join(reached),
        )  # fmt: skip
    console.print(table)
