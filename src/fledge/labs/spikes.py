"""Part of claim P3: one batch that is half r/microwavegang makes the loss spike, and a filter prevents it (exploratory).

OLMo 2 (OLMo et al. 2024, section 3.1) found its spikes where long n-grams repeat, such as pages of thousands of m. Here
two batches of a run with AdamW, twice the usual learning rate, no clipping and no skipping of bad steps are made of
ordinary rows and of such rows, half and half. They are left alone, kept out by the page filter, or read with weight 0
on what repeats (`mask_repeats`).
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from fledge.core.batch import Batch
from fledge.core.config import Settings, TrainConfig
from fledge.core.log import read_jsonl, say
from fledge.core.objectives import weighted_nll
from fledge.core.train import StepEvent
from fledge.curate.recipes import Recipe
from fledge.labs.sieve import heuristics, page_table
from fledge.stages.common import Parent, fix_recipe, open_model, run_stage
from fledge.stages.evaluate import bits_per_byte
from fledge.text.periodic import LEAST_REPEATS
from fledge.text.sources import DocumentSource, TokenStore, packed_batch
from fledge.text.tokenizer import Tokenizer
from fledge.world.dice import Dice
from fledge.world.rubbish import microwave

ARMS = ("left alone", "page filter", "mask")
_AFTER = 10  # steps after a bad batch in which the loss is looked at
_BEFORE = 64  # steps whose median gradient norm is the usual one
_LOOK_EVERY = 25
_NOISE_PAGES = 60
_LOOK_TEXTS = 100


class SpikeRecipe(Settings, frozen=True, kw_only=True):
    """One arm of the spikes; written beside its run."""

    out: str
    "Folder of this run."
    arm: str
    "What is done about the noise."
    at: tuple[int, ...]
    "Steps whose batch is half noise."
    train: TrainConfig
    "Settings of the loop."


class NoisySource:
    """A DocumentSource whose batches number `at` (from 1) are half rows of noise."""

    def __init__(self, clean: DocumentSource, noise: np.ndarray, at: Sequence[int], mask_repeats: int | None):
        """noise: tokens [N,T+1], N at least half a batch or 0, which leaves every batch alone."""
        self.clean, self.noise, self.at, self.mask_repeats = clean, noise, tuple(at), mask_repeats
        self.given = 0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            tokens, document, ids = self.clean.take(self.clean.rows)
            self.given += 1
            half = self.clean.rows // 2
            if self.given in self.at and len(self.noise):
                first = (self.at.index(self.given) * half) % max(1, len(self.noise) - half + 1)
                tokens, document = tokens.copy(), document.copy()
                tokens[:half] = self.noise[first : first + half]
                document[:half] = document.max() + 1 + np.arange(half)[:, None]
            yield packed_batch(tokens, document, ids, mask_repeats=self.mask_repeats)

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given, "clean": self.clean.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given = state["given"]
        self.clean.load_state_dict(state["clean"])


def noise_pages(seed: int) -> list[str]:
    """Pages as from r/microwavegang, in both languages."""
    dice = Dice(seed, 83)
    return [microwave(("en", "zh")[number % 2], dice) for number in range(_NOISE_PAGES)]


def noise_rows(texts: Sequence[str], tokenizer: Tokenizer, length: int, seed: int) -> np.ndarray:
    """The pages end to end, cut into rows and shuffled: int64 [N, length + 1]."""
    stream = [t for body in tokenizer.encode_batch(list(texts)) for t in (tokenizer.bos, *body, tokenizer.eos)]
    rows = len(stream) // (length + 1)
    cut = np.array(stream[: rows * (length + 1)], np.int64).reshape(rows, length + 1)
    return cut[np.random.default_rng(seed).permutation(rows)]


def share_masked(noise: np.ndarray) -> float:
    """Share of the noise that the mask takes out of the loss; what repeats at odd intervals is not periodic."""
    one_page = np.zeros_like(noise)
    return 1 - float(packed_batch(noise, one_page, np.arange(len(noise)), mask_repeats=LEAST_REPEATS).weight.mean())


def run(
    folder: Path, start: Path, texts: Sequence[str], validation: Sequence[str], recipe: Recipe, train: TrainConfig
) -> dict[str, Any]:
    """Every arm from `start`; `train` says steps, batch and usual learning rate. Needs 20 steps or more.

    Returns by arm the gradient norm of each bad step relative to the usual one, how far the loss on `validation` rises
    in the 10 steps after it (nats per token), and the curve of that loss.
    """
    out = folder / "spikes"
    at = tuple(train.steps * k // 5 for k in (2, 4))
    noise = noise_pages(train.seed)
    pages = page_table([{"text": t, "id": f"{n}", "url": None} for n, t in enumerate(noise)])
    kept = heuristics(pages.set_column(2, "source", pa.array(["noise"] * len(noise))), recipe)[-1].kept
    survivors = kept["text"].to_pylist()
    arms = {}
    for arm in ARMS:
        found = _one_arm(out / arm.replace(" ", "-"), arm, start, texts, survivors if arm == "page filter" else noise,
                         validation[:_LOOK_TEXTS], at, harsh(train))  # fmt: skip
        arms[arm] = found
        say(
            f"seed {train.seed}: spikes, {arm}: gradient x {max(found['norm_ratio']):.1f}, loss {max(found['bump']):+.3f}"
        )
    opened = open_model(start)
    rows = noise_rows(noise, opened.tokenizer, opened.model.config.context_tokens, train.seed)
    return {
        "arms": arms, "at": list(at), "noise_pages": len(noise), "pages_after_filter": len(survivors),
        "noise_masked": share_masked(rows),
    }  # fmt: skip


def harsh(train: TrainConfig) -> TrainConfig:
    """AdamW at twice the learning rate, without the guards against bad steps."""
    return msgspec.structs.replace(train, optimizer="adamw", lr=2 * train.lr, clip=math.inf, spike_sigma=None)


def _one_arm(
    out: Path, arm: str, start: Path, texts: Sequence[str], noise: Sequence[str], validation: Sequence[str],
    at: tuple[int, ...], train: TrainConfig,
) -> dict[str, Any]:  # fmt: skip
    fixed = fix_recipe(out, "spikes", SpikeRecipe(out=str(out), arm=arm, at=at, train=train))
    parent = open_model(start)
    tokenizer, length = parent.tokenizer, parent.model.config.context_tokens
    if not (out / "data" / "store.json").exists():
        TokenStore.build(texts, tokenizer, out / "data")
    clean = DocumentSource(
        TokenStore.open(out / "data", tokenizer), rows=train.batch_tokens // length, length=length, seed=train.seed
    )
    rows = noise_rows(noise, tokenizer, length, train.seed)
    source = NoisySource(clean, rows, at, LEAST_REPEATS if arm == "mask" else None)
    looks = out / "looks.jsonl"
    run_stage(
        "spikes", parent.model, tokenizer, source, weighted_nll, train, out=out, recipe=fixed, parent=parent,
        data={"noise_rows": len(rows)}, hooks=[_looker(looks, parent, validation, at)], quiet=True,
    )  # fmt: skip
    return _measured(read_jsonl(out / "metrics.jsonl"), read_jsonl(looks), at)


def _looker(path: Path, parent: Parent, validation: Sequence[str], at: tuple[int, ...]):
    """A hook that writes the loss on `validation`, in nats per token, around the bad batches and now and then."""
    encoded = parent.tokenizer.encode_batch(list(validation))
    per_token = math.log(2) * sum(len(t.encode()) for t in validation) / sum(len(body) + 1 for body in encoded)

    def look(event: StepEvent) -> None:
        if event.step % _LOOK_EVERY == 0 or any(-1 <= event.step - bad <= _AFTER for bad in at):
            bits = bits_per_byte(parent._replace(model=event.model), validation)
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": event.step, "loss": bits * per_token}) + "\n")

    return look


def _measured(metrics: Sequence[dict], looks: Sequence[dict], at: Sequence[int]) -> dict[str, Any]:
    norm = {row["step"]: row["grad_norm"] for row in metrics}
    loss = {row["step"]: row["loss"] for row in looks}  # of a step that was done twice the last
    usual = {bad: statistics.median(norm[s] for s in norm if bad - _BEFORE <= s < bad) for bad in at}
    return {
        "norm_ratio": [norm[bad] / usual[bad] for bad in at],
        "bump": [max(_after(loss, bad)) - loss[bad - 1] for bad in at],
        "curve": [{"step": step, "loss": loss[step]} for step in sorted(loss)],
    }


def _after(loss: dict[int, float], bad: int) -> list[float]:
    return [loss[step] for step in range(bad, bad + _AFTER + 1) if step in loss]


def excess(arm: dict[str, Any], without: dict[str, Any], at: Sequence[int]) -> list[float]:
    """By how much more than in the run `without` the noise the loss rises after each bad step: the loss of one run goes
    up and down by itself, but up to the first bad step the two are the same run."""
    one, other = ({row["step"]: row["loss"] for row in found["curve"]} for found in (arm, without))
    apart = {step: one[step] - other[step] for step in one}
    return [max(_after(apart, bad)) - apart[bad - 1] for bad in at]


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What held, over seeds and bad batches; exploratory, so no part of the claim's verdict."""
    ratio = {arm: [x for r in results for x in r["arms"][arm]["norm_ratio"]] for arm in ARMS}
    bump = {arm: [x for r in results for x in r["arms"][arm]["bump"]] for arm in ARMS}
    more = {arm: [x for r in results for x in excess(r["arms"][arm], r["arms"][ARMS[1]], r["at"])] for arm in ARMS}
    alone, _, mask = ARMS
    checks = {
        "a bad batch has at least 3 times the usual gradient norm, every time": min(ratio[alone]) >= 3.0,
        "and the loss on clean text rises by 0.05 nats per token more than without it": float(np.mean(more[alone]))
        >= 0.05,
        "the rules keep every page of the noise out": all(not r["pages_after_filter"] for r in results),
        "with the mask neither happens": max(ratio[mask]) < 3.0 and float(np.mean(more[mask])) < 0.05,
    }
    said = (
        f"Left alone, a bad batch has {min(ratio[alone]):.1f} to {max(ratio[alone]):.1f} times the usual gradient norm, and "
        f"the loss on clean text rises by {np.mean(more[alone]):.3f} nats per token more than without the noise; masked, "
        f"{max(ratio[mask]):.1f} times at most and {np.mean(more[mask]):+.3f}; the mask takes "
        f"{np.mean([r['noise_masked'] for r in results]):.0%} of the noise out, for the rest repeats at odd intervals"
    )
    return {"norm_ratio": ratio, "bump": bump, "excess": more, "said": said, "checks": checks}
