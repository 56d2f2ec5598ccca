"""A reward model as a reward: its score of a conversation, read at the end token of the answer."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from functools import cached_property

import torch

from fledge.core.batch import Batch
from fledge.core.model import Transformer
from fledge.feedback.rules import Unit
from fledge.tasks.base import Example
from fledge.text.formats import Message
from fledge.text.template import encode_answers, fit_prompt
from fledge.text.tokenizer import Tokenizer

_BATCH_TOKENS = 8192


class ModelReward:
    """Scores answers with an opened reward model, in batches of like length.

    The score is the one that Bradley-Terry training fits (`text.pairs`, read="end"): a logit, of which only differences
    between answers to one prompt were learnt. Where prompt and answer are longer than the model's context, the oldest
    turns are left out, then the oldest tokens: the answer's end is always read. `cut` counts those answers.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, name: str = "reward model"):
        """model: of head "reward", as `stages.common.open_model(path, head="reward")` gives it.

        Raises ValueError for a model with another head.
        """
        if model.config.head != "reward":
            raise ValueError(
                f"{name} has the head {model.config.head!r}: a reward needs a model trained by `fledge reward`"
            )
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.unit: Unit = "logit"
        self.mean, self.std, self.cut = 0.0, 1.0, 0

    def calibrated(self, mean: float, std: float) -> ModelReward:
        """The same model with (score - mean) / std, from scores of answers the policy gives before training.

        No longer a logit, so not for `Piecewise`. Raises ValueError for a deviation that is not above 0.
        """
        if not std > 0:
            raise ValueError(f"std = {std}: must be above 0; it is 0 where every answer scored the same")
        other = ModelReward(self.model, self.tokenizer, self.name)
        other.mean, other.std, other.unit = mean, std, "score"
        return other

    @property
    def identity(self) -> str:
        """The weights', so that a copy elsewhere is the same reward."""
        return f"model {self._weights} {self.mean!r} {self.std!r}"

    @cached_property
    def _weights(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def __call__(self, examples: Sequence[Example], answers: Sequence[str]) -> list[float]:
        rows = self._rows(examples, answers)
        scores = torch.zeros(len(rows))
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        while order:
            longest = len(rows[order[-1]])  # long rows first: what fits in memory then, fits later
            members = order[-max(1, _BATCH_TOKENS // longest) :]
            del order[-len(members) :]
            scores[members] = self._scored([rows[i] for i in members], longest)
        return ((scores.double() - self.mean) / self.std).tolist()

    def _scored(self, rows: list[list[int]], longest: int) -> torch.Tensor:
        """[B] float32, on the CPU: the value at the last token of each row."""
        tokens = torch.full((len(rows), longest), self.tokenizer.pad)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(row)
        last = torch.tensor([len(row) - 1 for row in rows])
        weight = torch.zeros(tokens.shape).scatter_(1, last[:, None], 1.0)
        batch = Batch(tokens=tokens, targets=torch.full_like(tokens, self.tokenizer.pad), weight=weight, units=1.0)
        value = self.model(batch.to(self.model.embedding.device)).value
        return value.float().cpu()[torch.arange(len(rows)), last]

    def _rows(self, examples: Sequence[Example], answers: Sequence[str]) -> list[list[int]]:
        limit = self.model.config.context_tokens
        rows = []
        for example, tail in zip(examples, encode_answers(self.tokenizer, answers), strict=True):
            messages = [Message(m["role"], m["content"]) for m in example.prompt]
            prompt, dropped = _fitted(self.tokenizer, messages, limit - len(tail))
            row = prompt + tail
            if len(row) > limit:
                row = [self.tokenizer.bos, *row[1 - limit :]]
            self.cut += dropped > 0 or len(row) < len(prompt) + len(tail)
            rows.append(row)
        return rows


def _fitted(tokenizer: Tokenizer, messages: list[Message], room_tokens: int) -> tuple[list[int], int]:
    """Prompt tokens within the room, or else those of the last message alone; and how many turns were left out."""
    try:
        return fit_prompt(tokenizer, messages, room_tokens)
    except ValueError:  # the last message alone does not fit
        return fit_prompt(tokenizer, messages[-1:], sys.maxsize)[0], len(messages) - 1
