"""`open_run`: a model in the hand, to talk with and to look into. Everything is done by the parts that the command uses.

Shapes: B texts, T positions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fledge.core.batch import Batch
from fledge.core.checkpoint import load_checkpoint, resolve, step_of
from fledge.core.config import build
from fledge.core.log import read_jsonl
from fledge.core.shown import Listing
from fledge.feedback.model_reward import ModelReward
from fledge.generate.chat import Answer, answer, chat_engine, continue_text, stream
from fledge.generate.engine import Engine
from fledge.generate.sampling import Sampling
from fledge.notebook.charts import Chart, history_chart
from fledge.notebook.views import TextView, ancestors_table, card_table, next_table
from fledge.probe.next_token import next_token
from fledge.probe.reading import Likely, check_context, pieces
from fledge.stages.common import Parent, open_model
from fledge.stages.show import TokenView, token_view
from fledge.tasks.base import Example
from fledge.text.files import RowRejected
from fledge.text.messages import Message, read_messages
from fledge.text.template import Rendered, render

_BATCH_TEXTS = 64
Conversation = str | Sequence[dict[str, str] | Message]  # one question, or messages with role and content


class Reply(str):
    """What a model wrote: text, with how it ended."""

    finish: str
    "stop: it ended by itself; length: max_tokens or the context ended it."
    dropped_turns: int
    "Oldest turns of the conversation that did not fit into the context."

    def __new__(cls, answer: Answer) -> Reply:
        made = super().__new__(cls, answer.text)
        made.finish, made.dropped_turns = answer.finish, answer.dropped_turns
        return made


class Ancestor(NamedTuple):
    """A model that another one came from."""

    stage: str
    path: str
    step: int
    id: str


class Model:
    """The model of a run. Where a method takes a list of texts or conversations it answers all of them in batches."""

    def __init__(self, opened: Parent):
        self.opened = opened

    @property
    def path(self) -> Path:
        """The checkpoint."""
        return self.opened.path

    @property
    def run(self) -> Path:
        """The folder of the run that the checkpoint is in."""
        return self.path.parent.parent

    @property
    def id(self) -> str:
        """sha256 of the checkpoint's manifest: names the exact weights."""
        return self.opened.id

    @property
    def card(self) -> dict[str, Any]:
        """What the checkpoint says of itself: stage, parent, shape, recipe, data, machine."""
        return self.opened.card

    @property
    def parameters(self) -> int:
        """How many numbers the model has."""
        return sum(p.numel() for p in self.opened.model.parameters())

    def __repr__(self) -> str:
        return f"<{self.card['stage']} model, {self.parameters:,} parameters, {self.path}>"

    def _repr_html_(self) -> str:
        return card_table(self.card, self.parameters, self.path, self.id)

    @cached_property
    def _engine(self) -> Engine:
        head = self.opened.model.config.head
        if head not in ("tokens", "tokens+value"):
            raise ValueError(
                f"{self.path} has the head {head!r}: it gives figures, not words; a model of `fledge pretrain`, `sft` or "
                "`dpo` writes"
            )
        return chat_engine(self.opened.model, self.opened.tokenizer)

    def chat(
        self, messages: Conversation | Sequence[Conversation], *, system: str | None = None, **sampling: Any
    ) -> Any:
        """The answer to a question or a conversation as a Reply (a str); a list of them for a list of either.

        sampling: temperature, top_k, top_p, max_tokens, seed, as --sampling has them. A list of messages is one
        conversation, a list of texts are several. Raises ValueError for a model that has no chat template.
        """
        several = not isinstance(messages, str) and not (len(messages) > 0 and isinstance(messages[0], dict | Message))
        asked = [_conversation(each, system) for each in (messages if several else [messages])]
        said = answer(self._engine, self.opened.tokenizer, asked, build(Sampling, sampling)) if asked else []
        replies = [Reply(each) for each in said]
        return replies if several else replies[0]

    def stream(self, messages: Conversation, *, system: str | None = None, **sampling: Any) -> Iterator[str]:
        """Pieces of an answer as they are written."""
        asked = _conversation(messages, system)
        for piece in stream(self._engine, self.opened.tokenizer, asked, build(Sampling, sampling)):
            if isinstance(piece, str):
                yield piece

    def complete(self, prompt: str | Sequence[str], **sampling: Any) -> Any:
        """How the text goes on, without the text itself, as a Reply (a str); a list of them for a list of texts.

        This is what a pretrained model does: no template, no roles.
        """
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        said = continue_text(self._engine, self.opened.tokenizer, texts, build(Sampling, sampling)) if texts else []
        replies = [Reply(each) for each in said]
        return replies[0] if isinstance(prompt, str) else replies

    def next(self, text: str, top: int = 10) -> Listing[Likely]:
        """The likeliest next tokens after a text, with their probabilities. End it with a whole word, without a space."""
        found = next_token(self.opened, text=text, top=top)
        return Listing(found.tokens, lambda: next_table(found))

    def tokens(self, text: Conversation) -> TokenView:
        """A text, or a conversation through the template, in tokens; of a conversation the trained ones are coloured."""
        tokenizer = self.opened.tokenizer
        if isinstance(text, str):
            return TextView(list(pieces(tokenizer, ids := tokenizer.encode(text))), ids)
        rendered: Rendered = render(tokenizer, _messages(text))
        return TokenView("conversation", list(token_view(tokenizer, rendered)))

    @torch.no_grad()
    def logprobs(self, text: str | Sequence[str]) -> Any:
        """How likely the model finds each token of a text, the first after <bos>: a TextView with `logp` in nats.

        A list of them for a list of texts. Raises ValueError for a text that is empty or longer than the context.
        """
        texts, tokenizer = ([text] if isinstance(text, str) else list(text)), self.opened.tokenizer
        self._engine  # noqa: B018  a model that gives no tokens is refused
        bodies = tokenizer.encode_batch(texts)
        for body in bodies:
            check_context(self.opened, [tokenizer.bos, *body[:-1]] if body else [], "the text")
        logp: dict[int, list[float]] = {}
        order = sorted(range(len(bodies)), key=lambda i: len(bodies[i]))
        for start in range(0, len(order), _BATCH_TEXTS):
            members = order[start : start + _BATCH_TEXTS]
            logp |= zip(members, self._read([bodies[i] for i in members]), strict=True)
        found = [TextView(list(pieces(tokenizer, body)), body, logp[i]) for i, body in enumerate(bodies)]
        return found[0] if isinstance(text, str) else found

    def _read(self, bodies: Sequence[Sequence[int]]) -> list[list[float]]:
        """log p of every token of each text; all are read at once."""
        tokens = torch.full((len(bodies), 1 + max(map(len, bodies))), self.opened.tokenizer.pad)  # [B,T+1]
        weight = torch.zeros(len(bodies), tokens.shape[1] - 1)
        for row, body in enumerate(bodies):
            tokens[row, : len(body) + 1] = torch.tensor([self.opened.tokenizer.bos, *body])
            weight[row, : len(body)] = 1.0
        batch = Batch(tokens=tokens[:, :-1], targets=tokens[:, 1:], weight=weight, units=1.0)
        logp = self.opened.model(batch.to(self.opened.model.embedding.device)).logp
        return [row[: len(body)].tolist() for row, body in zip(logp, bodies, strict=True)]

    def score(self, prompt: Conversation, answers: str | Sequence[str]) -> Any:
        """A reward model's logit for an answer to a prompt; a list of them for a list of answers.

        Only differences between answers to one prompt were learnt. Raises ValueError for a model that gives no reward.
        """
        said = [answers] if isinstance(answers, str) else list(answers)
        turns = [{"role": m.role, "content": m.content} for m in _conversation(prompt, None)]
        example = Example(id="", prompt=turns, answers=(), kind="", language="", meta={})
        judge = ModelReward(self.opened.model, self.opened.tokenizer, str(self.path))
        found = judge([example] * len(said), said)
        return found[0] if isinstance(answers, str) else found

    def history(self) -> dict[str, list[Any]]:
        """Every figure of RUN/metrics.jsonl as a column; None where a step has none. `pandas.DataFrame` takes it."""
        rows = read_jsonl(self.run / "metrics.jsonl")
        return {key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)}

    def plot(self, *figures: str) -> Chart:
        """The loss over tokens, or other figures of `history()` over steps, as a drawing (SVG).

        Raises ValueError for a figure that the run has not, naming those it has.
        """
        return history_chart(read_jsonl(self.run / "metrics.jsonl"), figures, self.card, self.run)

    def lineage(self) -> Listing[Ancestor]:
        """This model, its parent, and so on up to the first; where a folder is gone its id still stands."""
        found, card, step = [], self.card, step_of(self.path)
        place, weights = str(self.path), self.id
        while True:
            found.append(Ancestor(card["stage"], place, step, weights))
            if (parent := card["parent"]) is None:
                break
            place, weights = parent["path"], parent["id"]
            if not (Path(place) / "MANIFEST.json").exists():
                found.append(Ancestor("elsewhere", place, step_of(Path(place)), weights))
                break
            held = load_checkpoint(place)
            card, step = held.card, held.step
        return Listing(found, lambda: ancestors_table(found))


def _messages(turns: Sequence[dict[str, str] | Message]) -> list[Message]:
    try:
        return [t if isinstance(t, Message) else read_messages([t], "messages")[0] for t in turns]
    except RowRejected as error:
        raise ValueError(f"{error.reason}: {error.sample}; a message is {{'role': 'user', 'content': '...'}}") from None


def _conversation(asked: Conversation, system: str | None) -> list[Message]:
    messages = [Message("user", asked)] if isinstance(asked, str) else _messages(asked)
    if not messages:
        raise ValueError("the conversation is empty: give a text or at least one message")
    return messages if system is None else [Message("system", system), *messages]


def open_run(run: str | os.PathLike[str], *, device: str = "auto", precision: str = "auto") -> Model:
    """See `fledge.api.open_run`."""
    folder = resolve(run)
    head = load_checkpoint(folder).card["model"]["head"]  # a reward model stays one
    return Model(open_model(folder, head=head, device=device, precision=precision))
