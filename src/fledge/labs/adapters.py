"""Claim S2: a small adapter teaches a pretrained model nearly as well as training all of it, and costs it less of what it knew.

One base model of the embedded world, the same conversations, every kind of adapter and full training beside each other:
held-out facts answered, numbers trained, bits per byte of pretraining text lost, time (Hu et al. 2021, table 2).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from fledge.core.adapters import MERGEABLE, AdapterConfig
from fledge.core.adapting import attach, load_trained, merge
from fledge.core.checkpoint import load_checkpoint
from fledge.core.config import Settings
from fledge.core.log import read_jsonl, say
from fledge.core.model import SIZES
from fledge.labs import experiment
from fledge.labs.experiment import seeds_problems, verdict_of
from fledge.stages import curation, evaluate, material, pretrain, sft
from fledge.stages.common import Parent, open_model
from fledge.stages.journey import JourneyRecipe
from fledge.tasks.world_tasks import WorldFacts
from fledge.world import World, WorldConfig

ARMS = ("full", "lora", "dora", "houlsby", "prefix", "prompt", "bitfit", "ia3")
# Full training takes the journey's. LoRA tuned here on the quick world of seed 0 from 1e-3 to 4e-3 (larger ones answer no
# more and forget more); the others are set by the same measure: the fewer the numbers, the larger the steps.
_LR = {
    "full": 4e-4, "lora": 1e-3, "dora": 1e-3, "houlsby": 2e-3, "prefix": 5e-3, "prompt": 2e-2, "bitfit": 3e-3, "ia3": 1e-2,
}  # fmt: skip


class AdaptersOptions(Settings, frozen=True, kw_only=True):
    """Every kind of adapter and full training from one base model: facts, numbers trained, forgetting and time in one chart."""

    out: str
    "Folder of the experiment; what is done is kept and the rest continues."
    arms: tuple[str, ...] = ARMS
    "What is compared: full, and kinds of adapters."
    rank: int = 8
    "Rank of lora and dora, bottleneck width of houlsby."
    targets: tuple[str, ...] = ("q", "k", "v", "o", "down")
    "Products that lora and dora adapt."
    virtual_tokens: int = 16
    "Positions of prefix and prompt."
    epochs: float = 6.0
    "Times to read the conversations."
    lr_times: float = 1.0
    "Factor on every arm's learning rate."
    size: str = "pocket"
    "Model size."
    tokens: int | None = None
    "Tokens to pretrain on; none takes the journey's."
    quick: bool = False
    "A smaller world and less pretraining."
    seeds: int = 3
    "Repetitions, each with its own world, base model and order."

    def problems(self) -> list[str]:
        found = [f"arms: {arm!r} is not one of {', '.join(ARMS)}" for arm in self.arms if arm not in ARMS]
        if not {"full", "lora"} <= set(self.arms):
            found.append("arms: must hold full and lora, which the checks compare")
        if self.size not in SIZES:
            found.append(f"size = {self.size!r}: must be one of {', '.join(SIZES)}")
        for name in ("epochs", "lr_times"):
            if not getattr(self, name) > 0:
                found.append(f"{name} = {getattr(self, name)}: must be above 0")
        found += seeds_problems(self.seeds)
        return found + [p for arm in ("lora", "prefix") for p in (self.adapter(arm) or AdapterConfig()).problems()]

    def adapter(self, arm: str) -> AdapterConfig | None:
        """The settings of an arm; None for full training."""
        if arm == "full":
            return None
        targets = list(self.targets) if arm in ("lora", "dora") else []
        return AdapterConfig(kind=arm, rank=self.rank, targets=targets, virtual_tokens=self.virtual_tokens)


def raise_base(options: AdaptersOptions, folder: Path, seed: int) -> tuple[World, sft.SftRecipe]:
    """The world of a seed with its base model, pretrained as a journey does, and the journey's recipe for SFT."""
    journey = JourneyRecipe(out=str(folder), quick=options.quick, seed=seed, size=options.size)
    curation.prepare(journey, folder)
    plan = material.prepare(journey, folder, options.tokens)
    pretrain.run(plan.pretrain, quiet=True)
    return World(WorldConfig.quick(seed) if options.quick else WorldConfig(seed=seed)), plan.sft


def measure(opened: Parent, world: World, texts: Sequence[str]) -> dict[str, Any]:
    """Held-out facts that the pretraining text states often, and bits per byte of held-out pretraining text."""
    facts = WorldFacts(world)
    asked = [e for e in facts.examples("test") if e.meta["count"] >= material.WELL_READ]
    answers = evaluate.ask(opened, asked)
    return {
        "facts": evaluate.rate(facts.score(e, a.text) for e, a in zip(asked, answers, strict=True)),
        "answered": evaluate.rate(facts.answers_straight(e, a.text) for e, a in zip(asked, answers, strict=True)),
        "bits_per_byte": evaluate.bits_per_byte(opened, texts),
        "asked": len(asked),
    }


@torch.no_grad()
def merge_gap(path: Path, texts: Sequence[str]) -> float:
    """Largest difference of a logit between an adapter merged and beside its base, relative to the largest logit."""
    found = load_checkpoint(path)
    base = open_model(found.card["adapter"]["base"]["path"], device="cpu", precision="float32")
    model = attach(base.model, msgspec.convert(found.card["adapter"]["config"], AdapterConfig))
    load_trained(model, found.model_tensors())
    length = model.config.context_tokens
    rows = [ids[:length] for ids in base.tokenizer.encode_batch(list(texts)) if len(ids) >= length][:8]
    tokens = torch.tensor(rows or [list(range(length))])
    beside = model.logits(model.hidden(tokens))
    merge(model)
    return float((model.logits(model.hidden(tokens)) - beside).abs().max() / beside.abs().max())


def _one_arm(
    options: AdaptersOptions, folder: Path, arm: str, recipe: sft.SftRecipe, world: World, texts: Sequence[str]
) -> dict[str, Any]:
    train = msgspec.structs.replace(recipe.train, lr=_LR[arm] * options.lr_times)
    taught = msgspec.structs.replace(
        recipe, out=str(folder / arm), train=train, epochs=options.epochs, adapter=options.adapter(arm)
    )
    path = sft.run(taught, quiet=True)
    tensors = load_checkpoint(path).model_tensors()
    opened = open_model(path)
    clock = [row["seconds"] for row in read_jsonl(folder / arm / "speed.jsonl")]
    whole = opened.model.config.parameter_count()
    found = measure(opened, world, texts) | {
        "trained": sum(t.numel() for t in tensors.values()),
        "parameters": whole,
        "seconds": clock[-1] + sum(a for a, b in zip(clock, clock[1:], strict=False) if b < a),  # resumed: from 0 again
        "file_bytes": len(load_checkpoint(path).files["model.safetensors"]),
        "lr": train.lr,
    }
    return found | ({"merge_gap": merge_gap(path, texts)} if arm in MERGEABLE else {})


def one_seed(options: AdaptersOptions, folder: Path, seed: int) -> dict[str, Any]:
    """One repetition in `folder`, as plain JSON."""
    say(f"seed {seed}: a base model to start from")
    world, recipe = raise_base(options, folder, seed)
    base = open_model(recipe.parent)
    texts = pretrain.heldout_texts(folder / "base")
    result: dict[str, Any] = {"seed": seed, "base": measure(base, world, texts), "arms": {}}
    for arm in options.arms:
        result["arms"][arm] = found = _one_arm(options, folder, arm, recipe, world, texts)
        found["forgotten"] = found["bits_per_byte"] - result["base"]["bits_per_byte"]
        share = found["trained"] / found["parameters"]
        say(
            f"seed {seed}: {arm}: {found['facts']:.1%} of facts, {share:.2%} of the parameters trained, "
            f"{found['forgotten']:+.3f} bits per byte, {found['seconds']:.0f} s"
        )
    return result


MEASURES = ("facts", "answered", "bits_per_byte", "forgotten", "trained", "parameters", "seconds", "file_bytes")


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and the checks of the claim."""
    arms = {
        arm: {key: float(np.mean([r["arms"][arm][key] for r in results])) for key in MEASURES}
        for arm in results[0]["arms"]
    }
    full, lora = arms["full"], arms["lora"]
    gaps = [found["merge_gap"] for r in results for found in r["arms"].values() if "merge_gap" in found]
    checks = {
        "full training answers more held-out facts than the base model": full["facts"]
        > float(np.mean([r["base"]["facts"] for r in results])),
        "LoRA is within 5 points of full training": full["facts"] - lora["facts"] <= 0.05,
        "with at most 5% of the parameters trained": lora["trained"] <= 0.05 * lora["parameters"],
        "and forgets less of the pretraining text": lora["forgotten"] < full["forgotten"],
        "merged adapters give the same logits, to 1e-5 of the largest": max(gaps) <= 1e-5,
    }
    return {"arms": arms, "checks": checks, "verdict": verdict_of(checks)}


def run(options: AdaptersOptions) -> dict[str, Any]:
    """Every seed, then the summary, the page and the verdict; returns what result.json holds."""
    from fledge.labs.adapters_page import adapters_page

    return experiment.run("adapters", options, one_seed, summary, adapters_page, _show)


def _show(console: Any, total: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("arm", "facts", "answered", "trained", "of all", "bits per byte lost", "seconds", box=None)
    for name, arm in total["arms"].items():
        table.add_row(
            name, f"{arm['facts']:.1%}", f"{arm['answered']:.1%}", f"{arm['trained']:,.0f}",
            f"{arm['trained'] / arm['parameters']:.2%}", f"{arm['forgotten']:+.3f}", f"{arm['seconds']:.0f}",
        )  # fmt: skip
    console.print(table)
