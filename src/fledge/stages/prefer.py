"""Stage 3 on pairs: a reward model (Bradley-Terry), or the policy itself by DPO with the reference as a column."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from fledge.core.checkpoint import sha256, write_atomically
from fledge.core.config import Settings, TrainConfig
from fledge.core.log import say
from fledge.core.model import Transformer
from fledge.core.objectives import dpo, reward_pairs
from fledge.stages.common import Parent, fix_recipe, open_model, run_stage, with_steps
from fledge.text.formats import Pair, read_pairs
from fledge.text.readers import Rejects, require_some
from fledge.text.sources import PairSource
from fledge.text.template import render_pairs


class PairRecipe(Settings, frozen=True, kw_only=True):
    """What the reward model and DPO share."""

    out: str
    "Folder of this run."
    parent: str
    "Checkpoint or run to start from, usually the SFT model."
    pairs: list[str]
    "Preferences: JSONL with chosen and rejected, in any of the usual shapes; also .gz."
    epochs: float = 2.0
    "Times to read the pairs where train.steps is not set."
    encoding: str | None = None
    "Encoding of the files where it is not UTF-8."
    skip_bad: int = 0
    "Broken lines to skip in all before it is an error."
    train: TrainConfig = TrainConfig(lr=3e-4)
    "Settings of the loop."

    def problems(self) -> list[str]:
        found = self.train.problems()
        if not self.epochs > 0:
            found.append(f"epochs = {self.epochs}: must be above 0")
        if not self.pairs:
            found.append("pairs: empty; name at least one file")
        return found


class RewardRecipe(PairRecipe, frozen=True, kw_only=True):
    """Learn to score answers as the pairs rank them."""


class DpoRecipe(PairRecipe, frozen=True, kw_only=True):
    """Pull chosen answers closer and push rejected ones away, without a reward model."""

    beta: float = 0.1
    "How dearly moving away from the reference is paid."
    label_smoothing: float = 0.0
    "Share of the votes taken to be flipped."
    nll_weight: float = 0.0
    "Weight of the chosen answers' own NLL, which keeps their probability up."

    def problems(self) -> list[str]:
        found = super().problems()
        try:
            dpo(beta=self.beta, label_smoothing=self.label_smoothing, nll_weight=self.nll_weight)
        except ValueError as error:
            found.append(str(error))
        return found


def pair_source(
    parent: Parent, pairs: Sequence[Pair], *, read: str = "answers", batch_tokens: int = 8192, seed: int = 0
) -> PairSource:
    """Pairs as batches for a model; read="answers" for DPO, "end" for a reward head."""
    limit = parent.model.config.context_tokens + (read == "answers")
    return PairSource(
        render_pairs(parent.tokenizer, pairs), limit=limit, batch_tokens=batch_tokens, seed=seed,
        pad=parent.tokenizer.pad, read=read, margins=[p.margin for p in pairs],
    )  # fmt: skip


def _source(recipe: PairRecipe, parent: Parent, read: str) -> tuple[PairSource, dict]:
    rejects = Rejects()
    pairs = list(read_pairs(recipe.pairs, encoding=recipe.encoding, skip_bad=recipe.skip_bad, rejects=rejects))
    require_some(len(pairs), recipe.pairs, rejects, "preference pairs")
    source = pair_source(parent, pairs, read=read, batch_tokens=recipe.train.batch_tokens, seed=recipe.train.seed)
    if rejects.total:
        say(f"pairs: {rejects.summary()}")
    if source.dropped:
        say(
            f"pairs: {source.dropped} of {len(pairs)} left out: longer than the context of {parent.model.config.context_tokens}"
        )
    data = {
        "pairs": source.pairs, "dropped": source.dropped, "rejected": rejects.as_dict(),
        "sha256": source.content, "margins": any(p.margin is not None for p in pairs),
    }  # fmt: skip
    return source, data


def run_reward(recipe: RewardRecipe, quiet: bool = False) -> Path:
    """Train a reward model and return its last checkpoint; continues what recipe.out already holds."""
    out = Path(recipe.out)
    parent = open_model(recipe.parent, head="reward")
    fixed = fix_recipe(out, "reward", recipe)
    source, data = _source(recipe, parent, "end")
    config = with_steps(recipe.train, recipe.epochs * source.steps_per_epoch())
    return run_stage(
        "reward", parent.model, parent.tokenizer, source, reward_pairs, config,
        out=out, recipe=fixed, parent=parent, data=data, shown=("loss", "accuracy"), quiet=quiet,
    )  # fmt: skip


@torch.no_grad()
def reference_logp(model: Transformer, source: PairSource) -> np.ndarray:
    """log p of every trained token of the source under `model`, flat and aligned with its tokens; 0 elsewhere."""
    flat = np.zeros(len(source.sequences.tokens), np.float32)
    offsets = source.sequences.offsets
    device = model.embedding.device
    for start in range(0, source.pairs, source.pairs_per_step):
        members = range(start, min(start + source.pairs_per_step, source.pairs))
        batch = source.batch(list(members))
        logp = model(batch.to(device)).logp.cpu().numpy()
        for row, sequence in enumerate(range(2 * members.start, 2 * members.stop)):
            first, last = offsets[sequence], offsets[sequence + 1]
            flat[first + 1 : last] = logp[row, : last - first - 1]
    return flat


def _attach_reference(out: Path, parent: Parent, source: PairSource) -> None:
    """Score the pairs with the parent once; the column is kept under the hash of exactly these weights and data."""
    key = sha256(f"{parent.id} {source.content} {parent.model.compute_dtype}".encode())[:16]
    path = out / f"reference-{key}.safetensors"
    if not path.exists():
        write_atomically(path, save_arrays({"logp": reference_logp(parent.model, source)}))
    source.ref_logp = load_arrays(path.read_bytes())["logp"]


def run_dpo(recipe: DpoRecipe, quiet: bool = False) -> Path:
    """Train by DPO and return the last checkpoint; continues what recipe.out already holds."""
    out = Path(recipe.out)
    parent = open_model(recipe.parent, device=recipe.train.device, precision=recipe.train.precision)
    fixed = fix_recipe(out, "dpo", recipe)
    source, data = _source(recipe, parent, "answers")
    _attach_reference(out, parent, source)
    config = with_steps(recipe.train, recipe.epochs * source.steps_per_epoch())
    objective = dpo(beta=recipe.beta, label_smoothing=recipe.label_smoothing, nll_weight=recipe.nll_weight)
    return run_stage(
        "dpo", parent.model, parent.tokenizer, source, objective, config,
        out=out, recipe=fixed, parent=parent, data=data | {"reference": parent.id}, shown=("loss", "accuracy"), quiet=quiet,
    )  # fmt: skip


@torch.no_grad()
def score_pairs(reward: Parent, pairs: Sequence[Pair]) -> np.ndarray:
    """Rewards [P,2] of (chosen, rejected) under a reward model."""
    source = pair_source(reward, pairs, read="end")
    model, scores = reward.model, []
    for start in range(0, source.pairs, source.pairs_per_step):
        batch = source.batch(range(start, min(start + source.pairs_per_step, source.pairs)))
        value = (model(batch.to(model.embedding.device)).value.cpu() * batch.weight).sum(1)
        scores.append(value.view(-1, 2).numpy())
    return np.concatenate(scores)
