"""Pretraining on several texts at a ratio: the recipe's weights and caps as a source of batches, and in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fledge.core.config import TrainConfig, parse_count
from fledge.stages.common import rows_of, with_steps
from fledge.text.mixing import Forecast, MixedSource, Part, forecast, seed_of
from fledge.text.sources import DocumentSource, TokenStore

if TYPE_CHECKING:
    from fledge.stages.pretrain import PretrainRecipe


class Mixture(NamedTuple):
    """What a weighted recipe trains on."""

    source: MixedSource
    config: TrainConfig  # with its steps
    card: dict[str, Any]  # what the checkpoint says about each text
    said: str  # for people: what each text will give, and when its cap is reached


class Share(NamedTuple):
    """One text's entry of a recipe's weights; a cap that is None sets none."""

    weight: float
    most_epochs: float | None = None
    most_tokens: int | None = None


def parse_share(entry: float | str) -> Share:
    """3, "3:4x" (at most four times through the text) or "3:2M" (at most two million tokens of it)."""
    text, colon, cap = str(entry).partition(":")
    try:
        weight = float(text)
        epochs = float(cap[:-1]) if cap.endswith("x") else None
        share = Share(weight, epochs, parse_count(cap) if colon and epochs is None else None)
    except ValueError:
        share = Share(0.0)
    if not 0 < share.weight < math.inf or not 0 < (share.most_epochs or 1.0) < math.inf or share.most_epochs == 0:
        raise ValueError(
            f"weights: {entry!r} must be a finite number above 0, alone or with its most after a colon, such as 3, 3:4x "
            "(times through the text) or 3:2M (tokens); leave a text out instead of weighing it 0"
        )
    return share


def mixture_problems(recipe: PretrainRecipe) -> list[str]:
    """Every rule that the weights break, in words."""
    texts, found = len(recipe.text), []
    if recipe.weights and len(recipe.weights) != texts:
        found.append(f"weights = {recipe.weights}: must be one per text, and there are {texts}")
    for entry in recipe.weights:
        try:
            parse_share(entry)
        except ValueError as error:
            found.append(str(error))
    return found


def shares(weights: Sequence[float | str]) -> list[float]:
    """The weights as shares of 1."""
    found = [parse_share(entry).weight for entry in weights]
    return [weight / sum(found) for weight in found]


def mix(recipe: PretrainRecipe, stores: Sequence[TokenStore], length: int) -> Mixture:
    """The texts at their weights. Raises ValueError where the caps leave less than the recipe trains on."""
    rows = rows_of(recipe.train, length)
    parts = []
    for number, (store, entry) in enumerate(zip(stores, recipe.weights, strict=True)):
        source, share = (
            DocumentSource(store, rows=rows, length=length, seed=seed_of(recipe.train.seed, number)),
            parse_share(entry),
        )
        parts.append(Part(source, share.weight, _cap(recipe.text[number], share, source)))
    source = MixedSource(parts, rows=rows, mask_repeats=recipe.mask_repeats)
    config = _with_steps(recipe, parts, rows, length)
    plan = forecast([part.weight for part in parts], [part.most_rows for part in parts], config.steps * rows)
    card = [
        {
            "text": path, "weight": part.weight, "most_rows": part.most_rows, "documents": len(store),
            "tokens": len(store.tokens), "bytes": store.bytes, "sha256": store.content,
        }
        for path, part, store in zip(recipe.text, parts, stores, strict=True)
    ]  # fmt: skip
    return Mixture(source, config, {"sources": card}, _in_words(recipe, parts, plan, rows, length))


def _cap(text: str, share: Share, source: DocumentSource) -> int | None:
    """Most rows of a text; None without a cap."""
    if share.most_epochs is not None:
        most = int(share.most_epochs * source.rows_per_epoch)
    elif share.most_tokens is not None:
        most = share.most_tokens // source.length
    else:
        return None
    if most < 1:
        raise ValueError(f"{text}: its cap holds no row of {source.length} tokens: raise it, or leave the text out")
    return most


def _with_steps(recipe: PretrainRecipe, parts: Sequence[Part], rows: int, length: int) -> TrainConfig:
    """The recipe's steps; without any and without tokens as many tokens as the texts hold, or their caps if fewer."""
    caps = [part.most_rows for part in parts]
    most = None if None in caps else sum(caps)  # rows
    if recipe.train.steps is None and recipe.tokens is None:
        held = sum(len(part.source.store.tokens) for part in parts) / length
        return with_steps(recipe.train, (held if most is None else min(held, most)) / rows)
    config = with_steps(recipe.train, (parse_count(recipe.tokens) or 0) / (rows * length))
    if most is not None and (config.steps - 1) * rows >= most:
        raise ValueError(
            f"{config.steps} steps of {rows} rows need {config.steps * rows * length:,} tokens, the caps of the texts "
            f"leave {most * length:,}: train on fewer, or raise the caps in --weights"
        )
    return config


def _in_words(recipe: PretrainRecipe, parts: Sequence[Part], plan: Forecast, rows: int, length: int) -> str:
    lines = ["mixture:"]
    each = zip(recipe.text, parts, shares(recipe.weights), plan.rows, plan.capped_at, strict=True)
    for number, (path, part, share, given, capped) in enumerate(each):
        epochs = given / part.source.rows_per_epoch
        line = f"  {number}: {path}, {share:.0%} of the tokens, in all {given * length:,} ({epochs:.2g} epochs)"
        if capped is not None:
            line += f"; reaches its cap about step {-(-capped // rows)}, then its share goes to the others"
        lines.append(line)
    return "\n".join(lines)
