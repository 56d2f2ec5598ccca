"""What the tests of rollouts share: a reward, stop tokens, and a source of few prompts."""

import zlib
from collections.abc import Iterator, Sequence

from fledge.core.batch import Batch
from fledge.generate.rollout import RolloutConfig, Rollouts
from fledge.text.tokenizer import Tokenizer

LONGEST = 6
QUESTIONS = (
    "Who",
    "Where is Belmora?",
    "The river",
    "請問你是誰？",
    "How long is the Tesk",
    "Tell me",
    "Mira Kolden",
    "412",
)


def noise(numbers: Sequence[int], answers: Sequence[str]) -> list[float]:
    """A reward that is a function of the answer: 0, 0.1, ... 0.6."""
    return [zlib.crc32(a.encode()) % 7 / 10 for a in answers]


def ends(tokenizer: Tokenizer) -> list[int]:
    """Every fourth token ends an answer, so that a model that has learnt nothing ends some answers and not others."""
    return [tokenizer.end, *range(8, tokenizer.vocab_size, 4)]


def rollouts(model, tokenizer, prompts, score=noise, **over) -> Rollouts:
    named = ("reference", "progress", "identity", "stop_ids", "micro_tokens", "want_entropy")
    given = {"stop_ids": ends(tokenizer)} | {k: over.pop(k) for k in named if k in over}
    settings = {"prompts_per_update": 4, "group_size": 3, "max_tokens": LONGEST, "seed": 1}
    if "reference" not in given:
        settings["kl"] = "off"
    return Rollouts(model, tokenizer, prompts, score, RolloutConfig(**settings | over), **given)


def taken(source: Rollouts, steps: int) -> list[Batch]:
    batches = iter(source)
    return [next(batches) for _ in range(steps)]


def taken_one_by_one(source: Rollouts, steps: int) -> Iterator[Batch]:
    batches = iter(source)
    for _ in range(steps):
        yield next(batches)
