"""Claim S2: a small adapter teaches a pretrained model nearly as well as training all of it, and it forgets less.

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
from fledge.core.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint, write_atomically
from fledge.core.config import Settings
from fledge.core.log import read_jsonl, say
from fledge.core.model import SIZES, Transformer
from fledge.labs import experiment
from fledge.labs.experiment import seeds_problems, verdict_of
from fledge.stages import curation, evaluate, material, pretrain, sft
from fledge.stages.common import Parent, open_model
from fledge.stages.journey import JourneyRecipe
from fledge.tasks.world_tasks import WorldFacts
from fledge.world import World, WorldConfig

ARMS = ("full", "lora", "dora", "houlsby", "prefix", "prompt", "bitfit", "ia3")
# Optimiser and learning rate of each arm: the most facts on the world of seed 0 alone, by steps of about 1.4 times each
# other around the best. There, (facts, bits per byte forgotten) at each:
# full, AdamW: 1e-4 (.15, .06), 1.4e-4 (.47, .08), 2e-4 (.61, .11), 2.8e-4 (.64, .15), 4e-4 (.60, .20); with Muon at best
#   5e-4 (.62, .17)
# LoRA, Muon: 1e-3 (.41, .03), 1.2e-3 (.60, .05), 1.4e-3 (.58, .08), 1.7e-3 (.67, .10), 2e-3 (.63, .13); with AdamW at
#   best 2e-3 (.58, .30), for many steps in the same few directions take it far in them
# Prefix, prompt, BitFit and IA3 have no matrices, which alone Muon takes.
_TUNED = {
    "full": ("adamw", 2.8e-4), "lora": ("muon", 1.7e-3), "dora": ("muon", 1.7e-3), "houlsby": ("muon", 3e-3),
    "prefix": ("adamw", 5e-2), "prompt": ("adamw", 5e-2), "bitfit": ("adamw", 1e-2), "ia3": ("adamw", 7e-3),
}  # fmt: skip
_STUDENT = {2: 6.314, 3: 2.920, 4: 2.353, 5: 2.132}  # 90% intervals from so many seeds


class AdaptersOptions(Settings, frozen=True, kw_only=True):
    """Every kind of adapter and full training from one base model: facts, numbers trained, forgetting and time."""

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
    chats: int = 256
    "Conversations to learn from; claim S2 is about few."
    draws: int = 3
    "Sets of so many conversations, none in two, on which full training and LoRA are compared; the others read the first."
    epochs: float = 20.0
    "Times to read them."
    batch_tokens: int = 1024
    "Positions per optimiser step."
    random: bool = True
    "Also LoRA on random weights, the control that shows what pretraining gave."
    all_chats: bool = True
    "Also full training and LoRA on all conversations of seed 0, as a journey reads them: where the claim ends."
    lr_times: float = 1.0
    "Factor on every arm's learning rate."
    lr_spread: tuple[float, ...] = (0.7, 1.4)
    "Further factors at which full training and LoRA are measured, for larger steps answer more and forget more."
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
        for name in ("epochs", "lr_times", "chats", "batch_tokens"):
            if not getattr(self, name) > 0:
                found.append(f"{name} = {getattr(self, name)}: must be above 0")
        found += [f"lr_spread: {factor} must be above 0 and not 1" for factor in self.lr_spread if not 0 < factor != 1]
        found += seeds_problems(self.seeds)
        if self.draws < 1:
            found.append(f"draws = {self.draws}: must be at least 1")
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


def few(options: AdaptersOptions, folder: Path, recipe: sft.SftRecipe, draw: int = 0) -> sft.SftRecipe:
    """The recipe with a few conversations alone: the first ones, which are in no order, or the draw-th as many."""
    path = folder / ("chats.jsonl" if draw == 0 else f"chats-{draw}.jsonl")
    lines = Path(recipe.chats[0]).read_bytes().splitlines(keepends=True)
    if len(lines) < options.chats * options.draws:
        raise ValueError(f"{options.draws} draws of {options.chats} chats: this world has {len(lines)} conversations")
    write_atomically(path, b"".join(lines[draw * options.chats :][: options.chats]))
    train = msgspec.structs.replace(recipe.train, batch_tokens=options.batch_tokens)
    return msgspec.structs.replace(recipe, chats=[str(path)], epochs=options.epochs, train=train)


def random_base(folder: Path, base: Parent, seed: int) -> str:
    """A run with the base's tokenizer and shape and weights as they are drawn."""
    if not list_checkpoints(folder):
        model = Transformer(base.model.config).initialise(seed)
        card = {name: base.card[name] for name in ("stage", "model", "fledge")}
        save_checkpoint(
            folder, 0, model=model.state_dict(), optimizer={}, state={},
            card=card | {"parent": None, "recipe": {}, "data": {}}, tokenizer=base.tokenizer.json,
        )  # fmt: skip
    return str(folder)


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


def _teach(options: AdaptersOptions, out: Path, arm: str, recipe: sft.SftRecipe, times: float = 1.0) -> Path:
    """Train an arm into OUT with its own optimiser and learning rate; returns the checkpoint."""
    optimizer, lr = _TUNED[arm]
    train = msgspec.structs.replace(recipe.train, optimizer=optimizer, lr=lr * options.lr_times * times)
    return sft.run(msgspec.structs.replace(recipe, out=str(out), train=train, adapter=options.adapter(arm)), quiet=True)


def _one_arm(
    options: AdaptersOptions,
    out: Path,
    arm: str,
    recipe: sft.SftRecipe,
    world: World,
    texts: Sequence[str],
    times: float,
) -> dict[str, Any]:
    path = _teach(options, out, arm, recipe, times)
    held = load_checkpoint(path)
    opened = open_model(path)
    clock = [row["seconds"] for row in read_jsonl(out / "speed.jsonl")]
    found = measure(opened, world, texts) | {
        "trained": sum(t.numel() for t in held.model_tensors().values()),
        "parameters": sum(t.numel() for t in load_checkpoint(recipe.parent).model_tensors().values()),
        "seconds": clock[-1] + sum(a for a, b in zip(clock, clock[1:], strict=False) if b < a),  # resumed: from 0 again
        "file_bytes": len(held.files["model.safetensors"]),
        "lr": held.card["recipe"]["train"]["lr"],
    }
    return found | ({"merge_gap": merge_gap(path, texts)} if arm in MERGEABLE else {})


def one_seed(options: AdaptersOptions, folder: Path, seed: int) -> dict[str, Any]:
    """One repetition in `folder`, as plain JSON."""
    say(f"seed {seed}: a base model to start from")
    world, whole = raise_base(options, folder, seed)
    base, recipe = open_model(whole.parent), few(options, folder, whole)
    texts = pretrain.heldout_texts(folder / "base")
    result: dict[str, Any] = {"seed": seed, "base": measure(base, world, texts), "arms": {}}

    def run_arm(out: Path, arm: str, of: sft.SftRecipe, times: float = 1.0) -> dict[str, Any]:
        found = _one_arm(options, out, arm, of, world, texts, times)
        found["forgotten"] = found["bits_per_byte"] - result["base"]["bits_per_byte"]
        share = found["trained"] / found["parameters"]
        say(
            f"seed {seed}: {out.name}: {found['facts']:.1%} of facts, {share:.2%} of the parameters trained, "
            f"{found['forgotten']:+.3f} bits per byte, {found['seconds']:.0f} s"
        )
        return found

    for arm in options.arms:
        result["arms"][arm] = run_arm(folder / arm, arm, recipe)
    result["draws"] = {arm: [result["arms"][arm]] for arm in ("full", "lora")}
    for draw in range(1, options.draws):
        drawn = few(options, folder, whole, draw)
        for arm, found in result["draws"].items():
            found.append(run_arm(folder / f"{arm}-draw-{draw}", arm, drawn))
    result["spread"] = {
        arm: {f"{times:g}": run_arm(folder / f"{arm}-{times:g}", arm, recipe, times) for times in options.lr_spread}
        for arm in ("full", "lora")
    }
    if options.random:
        start = random_base(folder / "random", base, seed)
        path = _teach(options, folder / "lora-random", "lora", msgspec.structs.replace(recipe, parent=start))
        result["random"] = measure(open_model(path), world, texts)
        say(f"seed {seed}: lora on random weights: {result['random']['facts']:.1%} of facts")
    if options.all_chats and seed == 0:
        result["all_chats"] = {arm: run_arm(folder / f"all-{arm}", arm, whole) for arm in ("full", "lora")}
    return result


MEASURES = ("facts", "answered", "bits_per_byte", "forgotten", "trained", "parameters", "seconds", "file_bytes")


def interval(found: Sequence[float]) -> dict[str, float | None]:
    """Mean over seeds and its 90% interval by Student's t; none from one seed or more than five."""
    mean, factor = float(np.mean(found)), _STUDENT.get(len(found))
    half = None if factor is None else factor * float(np.std(found, ddof=1)) / len(found) ** 0.5
    return {"mean": mean, "low": None if half is None else mean - half, "high": None if half is None else mean + half}


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, LoRA less full training with intervals, and the checks of the claim."""
    arms = {
        arm: {key: float(np.mean([r["arms"][arm][key] for r in results])) for key in MEASURES}
        for arm in results[0]["arms"]
    }
    lora = arms["lora"]

    def over_draws(result: dict[str, Any], arm: str, key: str) -> float:
        return float(np.mean([found[key] for found in result["draws"][arm]]))

    less = {
        key: interval([over_draws(r, "lora", key) - over_draws(r, "full", key) for r in results])
        for key in ("facts", "forgotten")
    }
    gaps = [found["merge_gap"] for r in results for found in r["arms"].values() if "merge_gap" in found]
    checks = {
        "full training answers more held-out facts than the base model": arms["full"]["facts"]
        > float(np.mean([r["base"]["facts"] for r in results])),
        "LoRA answers within 5 points of full training": less["facts"]["mean"] >= -0.05,
        "LoRA trains at most 5% of the parameters": lora["trained"] <= 0.05 * lora["parameters"],
        "LoRA forgets less of the pretraining text than full training": less["forgotten"]["mean"] < 0,
        "merged adapters give the same logits, to 1e-5 of the largest": max(gaps) <= 1e-5,
    }
    if controls := [r["random"]["facts"] for r in results if "random" in r]:
        checks["LoRA on random weights answers at most 10% of the facts"] = float(np.mean(controls)) <= 0.1
    return {"arms": arms, "lora_less_full": less, "checks": checks, "verdict": verdict_of(checks)}


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
    for name, words in (("facts", "of facts"), ("forgotten", "bits per byte forgotten")):
        found = total["lora_less_full"][name]
        spread = "" if found["low"] is None else f" (90% interval {found['low']:+.3f} to {found['high']:+.3f})"
        console.print(f"LoRA less full training, {words}: {found['mean']:+.3f}{spread}")
