"""Rules on the logits while a model writes: the three with which a base model answers without any training.

Hewitt et al. 2024, "Instruction following without instruction tuning", section 5.2: the next-token distribution is the
product of the base's and of what three rules give, which in logits is a sum. `Engine.generate(..., rules=[...])` takes
rules in order; any function (logits [B,V], tokens made so far [B,n], -1 = none) -> logits [B,V] is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from fledge.text.tokenizer import Tokenizer

__all__ = ["EndBoost", "TokenBias", "UniquenessPenalty", "starting_tokens", "three_rules"]


class EndBoost:
    """Makes an end likelier the longer the answer is: `most` * n / length on the end tokens after n tokens.

    From `length` on it stays at `most`; the paper's own code lets it fall back to 0 there (most 15, length 250).
    """

    def __init__(self, end_ids: Sequence[int], most: float = 15.0, length: int = 250):
        """most: nats. length: tokens. Raises ValueError for no end token or a length below 1."""
        if not end_ids or length < 1:
            raise ValueError(
                f"end_ids = {list(end_ids)}, length = {length}: give an end token and a length of at least 1"
            )
        self.end_ids, self.most, self.length = sorted(set(end_ids)), most, length

    def __call__(self, logits: Tensor, made: Tensor) -> Tensor:
        logits = logits.clone()
        logits[:, self.end_ids] += self.most * min(1.0, made.shape[1] / self.length)
        return logits


class TokenBias:
    """Adds a fixed number of nats to some tokens at every step; negative numbers make them rarer."""

    def __init__(self, biases: Mapping[int, float]):
        """biases: nats by token id."""
        self.biases = dict(biases)

    def __call__(self, logits: Tensor, made: Tensor) -> Tensor:
        logits = logits.clone()
        logits[:, list(self.biases)] += torch.tensor(
            list(self.biases.values()), dtype=logits.dtype, device=logits.device
        )
        return logits


class UniquenessPenalty:
    """Adds `nats` to every token that the answer holds already, however often.

    Those of the prompt are free; the paper's own code begins its set with the user's words.
    """

    def __init__(self, nats: float = -1.5):
        self.nats = nats

    def __call__(self, logits: Tensor, made: Tensor) -> Tensor:
        used = torch.zeros_like(logits, dtype=torch.bool)
        if made.shape[1]:
            rows = torch.arange(len(made), device=made.device)[:, None].expand_as(made)
            used[rows[made >= 0], made[made >= 0]] = True
        return torch.where(used, logits + self.nats, logits)


def starting_tokens(tokenizer: Tokenizer, words: Iterable[str]) -> list[int]:
    """Ids that begin one of these words, with and without a space before it: the tokens by which it is told apart.

    A word that is several tokens is known by its first. Raises ValueError for an empty word.
    """
    found: set[int] = set()
    for word in words:
        if not word:
            raise ValueError("words holds an empty one: a rule needs a token to act on; leave it out")
        for text in (word, " " + word):
            ids = tokenizer.encode(text)
            first = next((i for i in ids if tokenizer.token_text(i).strip(" ")), ids[0])  # not the space alone
            found.add(first)
    return sorted(found)


def three_rules(
    tokenizer: Tokenizer,
    end_ids: Sequence[int],
    biases: Mapping[str, float],
    *,
    most: float = 15.0,
    length: int = 250,
    repeated: float = -1.5,
) -> dict[str, EndBoost | TokenBias | UniquenessPenalty]:
    """The three by name (end, bias, unique), for this tokenizer; biases: nats by word, as `starting_tokens` finds it.

    Where two words begin with the same token, the first one's number holds.
    """
    by_token: dict[int, float] = {}
    for word, nats in biases.items():
        for token in starting_tokens(tokenizer, [word]):
            by_token.setdefault(token, nats)
    return {"end": EndBoost(end_ids, most, length), "bias": TokenBias(by_token), "unique": UniquenessPenalty(repeated)}
