"""Stage 3 on preferences: a reward model, or the policy itself by DPO or KTO with the reference as a column."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from fledge.core.adapters import AdapterConfig
from fledge.core.batch import Batch
from fledge.core.checkpoint import sha256, write_atomically
from fledge.core.config import Settings, TrainConfig
from fledge.core.log import say
from fledge.core.model import Transformer
from fledge.core.objectives import Objective, dpo, kto, reward_pairs
from fledge.stages.common import Parent, adapted, fix_recipe, open_model, run_stage, with_steps
from fledge.stages.samples import questions
from fledge.text.formats import Pair, Thumb, read_pairs, read_thumbs
from fledge.text.pairs import PairSource, ThumbSource, answer_rows
from fledge.text.readers import Rejects, require_some
from fledge.text.sources import Sequences
from fledge.text.template import render_answers, render_pairs

_SCORED_TOKENS = 8192  # positions of one forward pass of the reference
_CPU_TOKENS = 2048  # of one forward pass on a CPU, where rows of like length save 1.3x and a GPU would idle


class PreferenceRecipe(Settings, frozen=True, kw_only=True):
    """What the stages that learn from preferences share."""

    out: str
    "Folder of this run."
    parent: str
    "Checkpoint or run to start from, usually the SFT model."
    epochs: float = 2.0
    "Times to read the data where train.steps is not set."
    encoding: str | None = None
    "Encoding of the files where it is not UTF-8."
    skip_bad: int = 0
    "Broken lines to skip in all before it is an error."
    adapter: AdapterConfig | None = None
    "Train a small adapter beside the frozen weights instead of all of them."
    train: TrainConfig = TrainConfig(lr=3e-4)
    "Settings of the loop."

    def problems(self) -> list[str]:
        found = self.train.problems() + (self.adapter.problems() if self.adapter else [])
        if not self.epochs > 0:
            found.append(f"epochs = {self.epochs}: must be above 0")
        return found


class PairRecipe(PreferenceRecipe, frozen=True, kw_only=True):
    """What the reward model and DPO share."""

    pairs: list[str]
    "Preferences: JSONL with chosen and rejected (and tie), in any of the usual shapes; also .gz."

    def problems(self) -> list[str]:
        return super().problems() + ([] if self.pairs else ["pairs: empty; name at least one file"])


class RewardRecipe(PairRecipe, frozen=True, kw_only=True):
    """Learn to score answers as the pairs rank them."""

    fresh: bool = False
    "Start from random weights of the parent's shape instead of its own: the control that shows what pretraining gave."

    def problems(self) -> list[str]:
        found = super().problems()
        if self.fresh and self.adapter:
            found.append("fresh with an adapter: random weights would stay frozen; leave one of them out")
        return found


class DpoRecipe(PairRecipe, frozen=True, kw_only=True):
    """Pull chosen answers closer and push rejected ones away, without a reward model."""

    reference: str | None = None
    "Checkpoint whose log-probs the policy is held to; None is the parent."
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    "sigmoid is DPO; ipo stops at a gap of 1/(2 beta) nats per token."
    beta: float = 0.1
    "How dearly moving away from the reference is paid."
    label_smoothing: float = 0.0
    "Share of the votes taken to be flipped."
    nll_weight: float = 0.0
    "Weight of the chosen answers' own NLL, which keeps their probability up."

    def objective(self) -> Objective:
        return dpo(
            loss=self.loss, beta=self.beta, label_smoothing=self.label_smoothing, nll_weight=self.nll_weight
        )  # fmt: skip

    def problems(self) -> list[str]:
        return super().problems() + _told(self.objective)


class KtoRecipe(PreferenceRecipe, frozen=True, kw_only=True):
    """Learn from single votes, liked or not, without pairs and without a reward model."""

    votes: list[str]
    "Votes: JSONL with prompt, completion and label, with kto_tag, or pairs (each gives two); also .gz."
    reference: str | None = None
    "Checkpoint whose log-probs the policy is held to; None is the parent."
    beta: float = 0.1
    "How dearly moving away from the reference is paid."
    desirable_weight: float | None = None
    "Weight of liked answers; None balances the two classes, the larger one keeping weight 1."
    undesirable_weight: float | None = None
    "Weight of disliked answers; None balances the two classes, the larger one keeping weight 1."

    def problems(self) -> list[str]:
        given = {"desirable_weight": self.desirable_weight, "undesirable_weight": self.undesirable_weight}
        found = super().problems() + ([] if self.votes else ["votes: empty; name at least one file"])
        return found + _told(lambda: kto(beta=self.beta, **{k: v for k, v in given.items() if v is not None}))


def _told(work: Callable[[], object]) -> list[str]:
    """What `work` refuses, as a list for problems()."""
    try:
        work()
    except ValueError as error:
        return [str(error)]
    return []


def pair_source(
    parent: Parent, pairs: Sequence[Pair], *, read: str = "answers", batch_tokens: int = 8192, seed: int = 0
) -> PairSource:
    """Pairs as batches for a model; read="answers" for DPO, "end" for a reward head."""
    limit = parent.model.config.context_tokens + (read == "answers")
    source = PairSource(
        render_pairs(parent.tokenizer, pairs), limit=limit, batch_tokens=batch_tokens, seed=seed,
        pad=parent.tokenizer.pad, read=read, margins=[p.margin for p in pairs], ties=[p.tie for p in pairs],
    )  # fmt: skip
    source.forward_tokens = _forward_tokens(parent.model)
    return source


def _forward_tokens(model: Transformer) -> int | None:
    return _CPU_TOKENS if model.embedding.device.type == "cpu" else None


def _source(recipe: PairRecipe, parent: Parent, read: str) -> tuple[PairSource, dict, list[Pair]]:
    rejects = Rejects()
    pairs = list(read_pairs(recipe.pairs, encoding=recipe.encoding, skip_bad=recipe.skip_bad, rejects=rejects))
    require_some(len(pairs), recipe.pairs, rejects, "preference pairs")
    source = pair_source(parent, pairs, read=read, batch_tokens=recipe.train.batch_tokens, seed=recipe.train.seed)
    _say_left_out("pairs", rejects, source.dropped, len(pairs), parent)
    data = {
        "pairs": source.pairs, "ties": source.ties, "dropped": source.dropped, "rejected": rejects.as_dict(),
        "sha256": source.content, "margins": any(p.margin is not None for p in pairs),
    }  # fmt: skip
    return source, data, pairs


def _say_left_out(what: str, rejects: Rejects, dropped: int, total: int, parent: Parent) -> None:
    if rejects.total:
        say(f"{what}: {rejects.summary()}")
    if dropped:
        context = parent.model.config.context_tokens
        say(f"{what}: {dropped} of {total} left out: longer than the context of {context}")


def run_reward(recipe: RewardRecipe, quiet: bool = False) -> Path:
    """Train a reward model and return its last checkpoint; continues what recipe.out already holds."""
    out = Path(recipe.out)
    parent = open_model(
        recipe.parent, head="reward", device=recipe.train.device, precision=recipe.train.precision
    )  # fmt: skip
    parent, _ = adapted(parent, recipe.adapter, recipe.train.seed)
    source, data, _ = _source(recipe, parent, "end")
    if recipe.fresh:
        parent.model.initialise(recipe.train.seed)
    fixed = fix_recipe(out, "reward", recipe)
    config = with_steps(recipe.train, recipe.epochs * source.steps_per_epoch())
    return run_stage(
        "reward", parent.model, parent.tokenizer, source, reward_pairs, config,
        out=out, recipe=fixed, parent=None if recipe.fresh else parent, data=data, shown=("loss", "accuracy"), quiet=quiet,
    )  # fmt: skip


# ---------------------------------------------------------------------------- the reference as a column of the data


@torch.no_grad()
def column_of_logp(model: Transformer, sequences: Sequences, pad: int) -> np.ndarray:
    """log p of every trained token under `model`, flat and aligned with sequences.tokens; 0 elsewhere."""
    flat = np.zeros(len(sequences.tokens), np.float32)
    offsets, device = sequences.offsets, model.embedding.device
    members = np.argsort(-np.diff(offsets), kind="stable").tolist()  # alike in length: little padding
    while members:
        longest = int(offsets[members[0] + 1] - offsets[members[0]])
        count = max(1, _SCORED_TOKENS // longest)
        group, members = members[:count], members[count:]
        batch = Batch(**answer_rows(sequences, group, pad), units=1.0)
        logp = model(batch.to(device)).logp.cpu().numpy()
        for row, member in enumerate(group):
            first, last = int(offsets[member]), int(offsets[member + 1])
            flat[first + 1 : last] = logp[row, : last - first - 1]
    return flat


def reference_logp(model: Transformer, source: PairSource) -> np.ndarray:
    """log p of every trained token of the source under `model`, flat and aligned with its tokens; 0 elsewhere."""
    return column_of_logp(model, source.sequences, source.pad)


def _open_reference(path: str | None, parent: Parent, config: TrainConfig) -> Parent:
    """The parent itself, or another checkpoint that reads the same tokens. Raises ValueError where it does not."""
    if path is None:
        return parent
    reference = open_model(path, device=config.device, precision=config.precision)
    (ours, room), (theirs, wanted) = (
        (sha256(p.tokenizer.json)[:12], p.model.config.context_tokens) for p in (reference, parent)
    )
    if ours != theirs:
        raise ValueError(
            f"reference {reference.path} has another tokenizer ({ours}) than the parent {parent.path} ({theirs}): "
            "log-probs are compared token by token; name a reference raised with the parent's tokenizer"
        )
    if room < wanted:
        raise ValueError(
            f"reference {reference.path} reads {room} tokens, the parent {parent.path} {wanted}: it cannot score all the "
            "parent learns from; name a reference with at least the parent's model.context_tokens"
        )
    return reference


def _with_reference(recipe: "DpoRecipe | KtoRecipe", parent: Parent) -> tuple[Parent, Parent]:
    """The parent with its adapter, and the reference: that same model as it was, or another checkpoint."""
    reference = _open_reference(recipe.reference, parent, recipe.train)
    child, before = adapted(parent, recipe.adapter, recipe.train.seed)
    return child, reference if before is None or reference is not parent else parent._replace(model=before)


def _reference_columns(out: Path, reference: Parent, pad: int, **kinds: Sequences) -> dict[str, np.ndarray]:
    """Each kind scored by the reference once; the columns are kept under the hash of exactly these weights and data."""
    content = " ".join(sequences.content for sequences in kinds.values())
    key = sha256(f"{reference.id} {content} {reference.model.compute_dtype}".encode())[:16]
    path = out / f"reference-{key}.safetensors"
    if not path.exists():
        columns = {name: column_of_logp(reference.model, sequences, pad) for name, sequences in kinds.items()}
        write_atomically(path, save_arrays(columns))
    return load_arrays(path.read_bytes())


# -------------------------------------------------------------------------------------------------- DPO and KTO


def run_dpo(recipe: DpoRecipe, quiet: bool = False) -> Path:
    """Train by DPO and return the last checkpoint; continues what recipe.out already holds."""
    out = Path(recipe.out)
    parent = open_model(recipe.parent, device=recipe.train.device, precision=recipe.train.precision)
    parent, reference = _with_reference(recipe, parent)
    source, data, pairs = _source(recipe, parent, "answers")
    fixed = fix_recipe(out, "dpo", recipe)
    source.ref_logp = _reference_columns(out, reference, source.pad, logp=source.sequences)["logp"]
    config = with_steps(recipe.train, recipe.epochs * source.steps_per_epoch())
    asked = questions(parent.tokenizer, [p.prompt for p in pairs], parent.model.config.context_tokens)
    return run_stage(
        "dpo", parent.model, parent.tokenizer, source, recipe.objective(), config,
        out=out, recipe=fixed, parent=parent, data=data | {"reference": reference.id}, shown=("loss", "accuracy"),
        prompts=asked, quiet=quiet,
    )  # fmt: skip


def thumb_source(
    parent: Parent, votes: Sequence[Thumb], *, batch_tokens: int = 8192, micro_tokens: int = 16384, seed: int = 0
) -> ThumbSource:
    """Votes as batches for a model, whose reference point is measured with that model."""
    model = parent.model

    @torch.no_grad()
    def score(batch: Batch) -> torch.Tensor:
        device = model.embedding.device
        return torch.cat([model(micro.to(device)).logp.cpu() for micro in batch.split(micro_tokens)])

    source = ThumbSource(
        render_answers(parent.tokenizer, [(v.prompt, v.answer) for v in votes]), [v.liked for v in votes],
        limit=model.config.context_tokens + 1, batch_tokens=batch_tokens, seed=seed, pad=parent.tokenizer.pad, score=score,
    )  # fmt: skip
    source.forward_tokens = _forward_tokens(model)
    return source


def class_weights(
    liked: int, disliked: int, desirable: float | None = None, undesirable: float | None = None
) -> tuple[float, float]:
    """(desirable, undesirable) weights; what is None is chosen so that both classes weigh the same in all.

    desirable * liked / (undesirable * disliked) = 1, the lower end of the range [1, 4/3] that Ethayarajh et al. 2024
    (section 4.2) recommend; where both are None the larger class keeps weight 1. Raises ValueError where there is only
    one class to balance: with likes alone KTO is SFT with a bound, with dislikes alone it only unlearns, and either is
    to be asked for.
    """
    if desirable is not None and undesirable is not None:
        return desirable, undesirable
    if not (liked and disliked):
        what = "liked: add disliked ones, train on them with `fledge sft`" if liked else "disliked: add liked ones"
        raise ValueError(
            f"all {liked + disliked} votes are {what}, or set both desirable_weight and undesirable_weight to train on "
            "one kind all the same; there are no two classes to balance"
        )
    if undesirable is not None:
        return undesirable * disliked / liked, undesirable
    if desirable is None:
        desirable = max(1.0, disliked / liked)
    return desirable, desirable * liked / disliked


def run_kto(recipe: KtoRecipe, quiet: bool = False) -> Path:
    """Train by KTO and return the last checkpoint; continues what recipe.out already holds."""
    out, config = Path(recipe.out), recipe.train
    parent = open_model(recipe.parent, device=config.device, precision=config.precision)
    parent, reference = _with_reference(recipe, parent)
    rejects = Rejects()
    votes = list(read_thumbs(recipe.votes, encoding=recipe.encoding, skip_bad=recipe.skip_bad, rejects=rejects))
    require_some(len(votes), recipe.votes, rejects, "votes")
    source = thumb_source(
        parent, votes, batch_tokens=config.batch_tokens, micro_tokens=config.micro_tokens, seed=config.seed
    )
    _say_left_out("votes", rejects, source.dropped, len(votes), parent)
    liked = int(source.liked.sum())
    disliked = source.votes - liked
    weights = class_weights(liked, disliked, recipe.desirable_weight, recipe.undesirable_weight)
    balance = f"balance {weights[0] * liked / (weights[1] * disliked):.2f}, 1 to 1.33 is advised" if disliked else ""
    say(f"votes: {liked} liked with weight {weights[0]:.4g}, {disliked} disliked with {weights[1]:.4g}; {balance}")
    fixed = fix_recipe(out, "kto", recipe)
    columns = _reference_columns(out, reference, source.pad, logp=source.sequences, mismatched=source.mismatched)
    source.set_reference(columns["logp"], columns["mismatched"])
    config = with_steps(config, recipe.epochs * source.steps_per_epoch())
    objective = kto(beta=recipe.beta, desirable_weight=weights[0], undesirable_weight=weights[1])
    data = {
        "votes": source.votes, "liked": liked, "desirable_weight": weights[0], "undesirable_weight": weights[1],
        "dropped": source.dropped, "rejected": rejects.as_dict(), "sha256": source.content, "reference": reference.id,
    }  # fmt: skip
    asked = questions(parent.tokenizer, [v.prompt for v in votes], parent.model.config.context_tokens)
    return run_stage(
        "kto", parent.model, parent.tokenizer, source, objective, config,
        out=out, recipe=fixed, parent=parent, data=data, shown=("loss", "accuracy", "kl"),
        prompts=asked, quiet=quiet,
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
