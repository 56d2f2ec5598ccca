"""Pretraining on several texts at a ratio: the recipe's weights and caps as a source of batches, and in words."""

from __future__ import annotations

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


def mixture_problems(recipe: PretrainRecipe) -> list[str]:
    """Every rule that weights and caps break, in words."""
    texts, found = len(recipe.text), []
    caps = {"max_epochs": recipe.max_epochs, "max_tokens": recipe.max_tokens}
    if recipe.weights and len(recipe.weights) != texts:
        found.append(f"weights = {recipe.weights}: must be one number per text, and there are {texts}")
    for weight in recipe.weights:
        if not 0 < weight < float("inf"):
            found.append(f"weights: {weight} must be a finite number above 0; leave a text out instead")
    for name, given in caps.items():
        if given and not recipe.weights:
            found.append(f"{name}: needs weights, one per text, such as --weights 1 for each")
        elif given and len(given) not in (1, texts):
            found.append(f"{name} = {given}: must be one number for all or one per text, and there are {texts}")
    for epochs in recipe.max_epochs:
        if epochs is not None and not 0 < epochs < float("inf"):
            found.append(f"max_epochs: {epochs} must be a finite number above 0; none sets no cap")
    for count in recipe.max_tokens:
        try:
            parse_count(count)
        except ValueError as error:
            found.append(f"max_{error}")
    return found


def shares(weights: Sequence[float]) -> list[float]:
    """The weights as shares of 1."""
    return [weight / sum(weights) for weight in weights]


def mix(recipe: PretrainRecipe, stores: Sequence[TokenStore], length: int) -> Mixture:
    """The texts at their weights. Raises ValueError where the caps leave less than the recipe trains on."""
    rows = rows_of(recipe.train, length)
    parts = []
    for number, (store, weight) in enumerate(zip(stores, recipe.weights, strict=True)):
        source = DocumentSource(store, rows=rows, length=length, seed=seed_of(recipe.train.seed, number))
        parts.append(Part(source, weight, _cap(recipe, number, source)))
    source = MixedSource(parts, rows=rows, mask_repeats=recipe.mask_repeats)
    config = _with_steps(recipe, parts, rows, length)
    plan = forecast(recipe.weights, [part.most_rows for part in parts], config.steps * rows)
    card = [
        {
            "text": path, "weight": part.weight, "most_rows": part.most_rows, "documents": len(store),
            "tokens": len(store.tokens), "bytes": store.bytes, "sha256": store.content,
        }
        for path, part, store in zip(recipe.text, parts, stores, strict=True)
    ]  # fmt: skip
    return Mixture(source, config, {"sources": card}, _in_words(recipe, parts, plan, rows, length))


def _cap(recipe: PretrainRecipe, number: int, source: DocumentSource) -> int | None:
    """Most rows of text `number`, of both its caps the lower one."""
    epochs, count = (
        given[number if len(given) > 1 else 0] if given else None for given in (recipe.max_epochs, recipe.max_tokens)
    )
    caps = [] if epochs is None else [int(epochs * source.rows_per_epoch)]
    caps += [] if count is None else [parse_count(count) // source.length]
    if caps and min(caps) < 1:
        raise ValueError(
            f"{recipe.text[number]}: its cap (max_epochs {epochs}, max_tokens {count}) holds no row of "
            f"{source.length} tokens: raise it, or leave the text out"
        )
    return min(caps, default=None)


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
            f"leave {most * length:,}: train on fewer, or raise max_epochs or max_tokens"
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
