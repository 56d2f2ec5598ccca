"""What a model can do, in figures: bits per byte, answering, exactness, refusals, and wins over another model."""

import math
import random
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

from fledge.core.batch import Batch
from fledge.generate.chat import Answer, answer, chat_engine, continue_text
from fledge.generate.sampling import Sampling
from fledge.stages.common import Parent
from fledge.tasks.base import Example
from fledge.text.formats import Message

GREEDY = Sampling(temperature=0.0, max_tokens=80)
SAMPLED = Sampling(temperature=0.7, max_tokens=80)
_BOOTSTRAP = 1000


@torch.no_grad()
def bits_per_byte(opened: Parent, texts: Sequence[str]) -> float | None:
    """Bits the model needs per UTF-8 byte of `texts` (lower is better; comparable across tokenizers).

    Each text is read in windows of the model's context, every token but <bos> predicted once, the end included.
    None where no text was held out.
    """
    if not texts:
        return None
    tokenizer, length = opened.tokenizer, opened.model.config.context_tokens
    windows = []
    for body in tokenizer.encode_batch(texts):
        ids = [tokenizer.bos, *body, tokenizer.eos]
        windows += [ids[start : start + length + 1] for start in range(0, len(ids) - 1, length)]
    windows.sort(key=len)
    nats, device = 0.0, opened.model.embedding.device
    for start in range(0, len(windows), 64):
        rows = windows[start : start + 64]
        tokens = torch.full((len(rows), len(rows[-1])), tokenizer.pad)
        weight = torch.zeros(len(rows), len(rows[-1]) - 1)
        for r, ids in enumerate(rows):
            tokens[r, : len(ids)] = torch.tensor(ids)
            weight[r, : len(ids) - 1] = 1.0
        batch = Batch(tokens=tokens[:, :-1], targets=tokens[:, 1:], weight=weight, units=1.0).to(device)
        nats -= float((opened.model(batch).logp * batch.weight).double().sum())
    return nats / math.log(2) / max(1, sum(len(t.encode("utf-8")) for t in texts))


def messages_of(example: Example) -> list[Message]:
    return [Message(m["role"], m["content"]) for m in example.prompt]


def ask(opened: Parent, examples: Sequence[Example], sampling: Sampling = GREEDY) -> list[Answer]:
    """The model's answer to each example, through the chat template."""
    engine = chat_engine(opened.model, opened.tokenizer)
    return answer(engine, opened.tokenizer, [messages_of(e) for e in examples], sampling)


def continue_questions(opened: Parent, examples: Sequence[Example], seed: int) -> list[Answer]:
    """What a base model writes after each question, as plain text at temperature 1: the question, then a new line."""
    engine = chat_engine(opened.model, opened.tokenizer)
    sampling = Sampling(temperature=1.0, max_tokens=40, seed=seed)
    return continue_text(engine, opened.tokenizer, [e.prompt[-1]["content"] for e in examples], sampling)


def rate(flags: Iterable[bool | float]) -> float | None:
    """Mean; None when there is nothing to average."""
    values = [float(f) for f in flags]
    return sum(values) / len(values) if values else None


def by_count(examples: Sequence[Example], scores: dict[str, Sequence[float]]) -> list[dict[str, float]]:
    """Mean score of each model by how often the text states the fact: buckets 1, 2-3, 4-7, ... ."""
    buckets: dict[int, list[int]] = {}
    for i, example in enumerate(examples):
        buckets.setdefault(int(math.log2(max(1, example.meta["count"]))), []).append(i)
    return [
        {"low": 2**b, "high": 2 ** (b + 1) - 1, "questions": len(members)}
        | {name: rate(values[i] for i in members) for name, values in scores.items()}
        for b, members in sorted(buckets.items())
    ]


def win_rate(
    score: Callable[[Example, str], float],
    examples: Sequence[Example],
    new: Sequence[Answer],
    old: Sequence[Answer],
    seed: int,
) -> tuple[float, list[float]]:
    """Share of comparisons `new` wins, ties as half, with a bootstrap 90% interval over examples."""
    points = np.array(
        [0.5 + 0.5 * np.sign(score(e, a.text) - score(e, b.text)) for e, a, b in zip(examples, new, old, strict=True)]
    )
    generator = np.random.Generator(np.random.PCG64(seed))
    means = points[generator.integers(0, len(points), (_BOOTSTRAP, len(points)))].mean(1)
    return float(points.mean()), [float(x) for x in np.quantile(means, [0.05, 0.95])]


def sample_of(items: Sequence, count: int, seed: int) -> list:
    """At most `count` items, chosen by seed, in their order."""
    if len(items) <= count:
        return list(items)
    chosen = sorted(random.Random(seed).sample(range(len(items)), count))
    return [items[i] for i in chosen]
