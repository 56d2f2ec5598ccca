"""The journey that several labs start from, and its miniature, which only shows that what comes after it runs."""

from __future__ import annotations

from pathlib import Path

import msgspec

from fledge.core.durable import write_atomically
from fledge.core.log import read_jsonl
from fledge.stages import journey, material, pretrain, sft
from fledge.stages.common import fix_recipe
from fledge.stages.prefer import run_dpo, run_reward

_DOCUMENTS_EVERY = 10  # one page in so many is enough text for the miniature
_STEPS = {"base": (100, 1e-2), "sft": (200, 5e-3), "control": (20, 4e-3), "reward": (20, 1e-3), "aligned": (10, 3e-4)}


def recipe_of(scale: str, seed: int) -> journey.JourneyRecipe:
    """Quick at `pocket` and `full`, whole at `gpu`, tiny and uncurated at `tiny`."""
    if scale == "tiny":
        return journey.JourneyRecipe(out="", quick=True, seed=seed, size="tiny", tokens=150_000, rules="off")
    return journey.JourneyRecipe(out="", quick=scale != "gpu", seed=seed)


def raise_miniature(recipe: journey.JourneyRecipe) -> Path:
    """The stages of a journey in a few steps each and without its scores: seconds; returns the folder.

    The SFT model ends its answers and speaks in the world's words, but knows next to nothing.
    """
    out = Path(recipe.out)
    fix_recipe(out, "journey", recipe)
    plan = material.prepare(recipe, out, int(recipe.tokens or 0))
    some = out / "world" / "some.jsonl"
    rows = read_jsonl(out / "world" / "documents.jsonl")[::_DOCUMENTS_EVERY]
    write_atomically(some, b"".join(msgspec.json.encode({"text": row["text"]}) + b"\n" for row in rows))
    base = msgspec.structs.replace(plan.pretrain, text=[str(some)], vocab_size=800)
    stages = {"base": (base, pretrain.run), "sft": (plan.sft, sft.run), "control": (plan.control, sft.run),
              "reward": (plan.reward, run_reward), "aligned": (plan.dpo, run_dpo)}  # fmt: skip
    for name, (stage, run) in stages.items():
        steps, lr = _STEPS[name]
        train = msgspec.structs.replace(stage.train, steps=steps, lr=lr, batch_tokens=1024, threads=1)
        run(msgspec.structs.replace(stage, train=train), quiet=True)
    return out
