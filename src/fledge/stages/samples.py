"""What a run writes while it learns: the same prompts answered now and then, kept in RUN/samples.jsonl for people.

Greedy, so no random number is drawn; nothing here reaches the weights or metrics.jsonl.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from fledge.core import parallel
from fledge.core.checkpoint import canonical_json, write_atomically
from fledge.core.log import read_jsonl
from fledge.core.train import StepEvent
from fledge.generate.chat import chat_engine
from fledge.generate.sampling import Sampling
from fledge.text.messages import Message
from fledge.text.sources import TokenStore
from fledge.text.template import render_prompt
from fledge.text.tokenizer import Tokenizer

_PROMPTS = 3
_TIMES = 10
_MAX_TOKENS = 40
_BEGINNING_CHARACTERS = 32
_TRIED = 50  # conversations looked at for one that leaves room for an answer


class Prompt(NamedTuple):
    """What is asked again and again."""

    text: str  # as people read it
    tokens: list[int]


def shown_steps(steps: int) -> set[int]:
    """The first step, and ten evenly spaced ones of which the last is the run's last."""
    return {1} | {-(-steps * k // _TIMES) for k in range(1, _TIMES + 1)}


def _thirds(items: Sequence) -> Iterator[range]:
    """Places of the items in three parts, so that what is shown is not all from the beginning."""
    for k in range(_PROMPTS):
        yield range(k * len(items) // _PROMPTS, (k + 1) * len(items) // _PROMPTS)


def beginnings(tokenizer: Tokenizer, texts: Sequence[str], context_tokens: int) -> list[Prompt]:
    """The first words of three of the texts, for a model to go on with."""
    prompts = []
    for places in _thirds(texts):
        for text in (texts[i].strip() for i in islice(places, _TRIED)):
            start = text[: min(_BEGINNING_CHARACTERS, len(text) // 2)]
            start = start.rsplit(" ", 1)[0]  # whole words, where spaces tell them apart
            while len(tokens := [tokenizer.bos, *tokenizer.encode(start)]) > context_tokens // 2:
                start = start[: len(start) // 2]
            if start:
                prompts.append(Prompt(start, tokens))
                break
    return prompts


def stored_texts(store: TokenStore, tokenizer: Tokenizer) -> list[str]:
    """Three of the documents trained on, at most 64 tokens of each: what to begin with where nothing was held out."""
    chosen = (places[0] for places in _thirds(range(len(store))) if len(places))
    spans = ((int(store.offsets[i]), int(store.offsets[i + 1])) for i in chosen)
    return [tokenizer.decode(store.tokens[a : min(b, a + 64)].tolist()).rstrip("\ufffd") for a, b in spans]


def questions(
    tokenizer: Tokenizer, conversations: Sequence[Sequence[Message]], context_tokens: int
) -> list[Prompt]:  # fmt: skip
    """Three of the conversations, each ending with a user message, that leave room for an answer."""
    prompts = []
    for places in _thirds(conversations):
        for messages in (conversations[i] for i in islice(places, _TRIED)):
            tokens = render_prompt(tokenizer, messages)
            if len(tokens) <= context_tokens - min(_MAX_TOKENS, context_tokens // 2):
                prompts.append(Prompt(messages[-1].content, tokens))
                break
    return prompts


class Samples:
    """A hook of the loop that answers the prompts at `shown_steps`, on the first rank only.

    A resumed run drops the rows of steps it does again; done again they are the same bytes.
    """

    def __init__(self, out: Path, tokenizer: Tokenizer, prompts: Iterable[Prompt], steps: int):
        self.path, self.tokenizer, self.prompts = out / "samples.jsonl", tokenizer, list(prompts)
        self.at = shown_steps(steps)

    def __call__(self, event: StepEvent) -> None:
        if event.step not in self.at or parallel.place()[0] != 0:
            return
        model, training = event.model, event.model.training
        model.eval()
        try:
            # a new engine each time, so that its copy of the weights does not stay in memory while the model trains
            engine = chat_engine(model, self.tokenizer)
            sampling = Sampling(temperature=0.0, max_tokens=_MAX_TOKENS)
            answers = engine.generate([p.tokens for p in self.prompts], sampling)
        finally:
            model.train(training)
        shown = [
            {"prompt": p.text, "text": self.tokenizer.decode(a.tokens), "finish": a.finish}
            for p, a in zip(self.prompts, answers, strict=True)
        ]
        rows = [row for row in read_jsonl(self.path) if row["step"] < event.step]
        rows.append({"step": event.step, "steps": event.steps, "samples": shown})
        try:
            write_atomically(self.path, b"".join(map(canonical_json, rows)))
        except OSError as error:
            raise OSError(
                error.errno,
                f"could not write {self.path}: {error.strerror}; checkpoints are intact. Free space or make the folder "
                f"writable, then `fledge resume {self.path.parent}`",
            ) from error
