"""What a model knows, and how surely: the four categories of SliCK (Gekhman et al. 2024, section 3, table 1).

A question is put to a base model in several prompts, each with other worked examples of the same relation before it; each
prompt is answered greedily once and by sampling several times. P(T=0) and P(T>0) are the shares of right answers:

    HighlyKnown   P(T=0) = 1            MaybeKnown   0 < P(T=0) < 1
    WeaklyKnown   P(T=0) = 0 < P(T>0)   Unknown      both 0

A single prompt would call much HighlyKnown that is MaybeKnown. Categories belong to a checkpoint: another one has others.
The paper leaves top-k and top-p of its samples open; here neither cuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from fledge.core.config import Settings
from fledge.generate.chat import chat_engine, continue_text
from fledge.generate.sampling import Sampling
from fledge.probe.reading import Opened
from fledge.world.answers import tidy
from fledge.world.dice import Dice

Category = Literal["HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown"]
CATEGORIES: tuple[Category, ...] = ("HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown")
FORM = "Q: {question}\nA: {answer}\n"


class Question(NamedTuple):
    """A question with every answer that is right; the first is the one shown where it serves as an example."""

    question: str
    answers: tuple[str, ...]
    relation: str = ""


class Known(NamedTuple):
    """How a question was answered."""

    greedy: float  # P(T=0): share of prompts with a right greedy answer
    sampled: float  # P(T>0): share of right samples over all prompts
    category: Category


class Asking(Settings, frozen=True, kw_only=True):
    """How questions are put; the defaults are the paper's."""

    prompts: int = 10
    "Prompts for each question, each with other worked examples."
    shots: int = 4
    "Worked examples in a prompt, of the same relation."
    samples: int = 16
    "Sampled answers to each prompt."
    temperature: float = 0.5
    "Temperature of the samples."
    form: str = FORM
    "How a question and its answer stand in a prompt; what follows {answer} there ends an answer."
    max_tokens: int = 16
    "Longest answer in tokens."
    seed: int = 0
    "Seed of the choice of examples and of the samples."

    def problems(self) -> list[str]:
        low = [n for n in ("prompts", "samples", "max_tokens") if getattr(self, n) < 1]
        found = [f"{name} = {getattr(self, name)}: must be at least 1" for name in low]
        found += [f"shots = {self.shots}: must be 0 or more"] * (self.shots < 0)
        found += [f"temperature = {self.temperature}: must be above 0"] * (not self.temperature > 0)
        if (
            "{question}" not in self.form
            or not self.form.split("{answer}")[-1].strip(" ")
            or "{answer}" not in self.form
        ):
            found.append(f"form = {self.form!r}: must hold {{question}} and {{answer}}, and something after the answer")
        return found


def category_of(greedy: float, sampled: float) -> Category:
    """Table 1 of the paper, from P(T=0) and P(T>0)."""
    if greedy == 1:
        return "HighlyKnown"
    if greedy > 0:
        return "MaybeKnown"
    return "WeaklyKnown" if sampled > 0 else "Unknown"


def is_right(text: str, answers: Sequence[str]) -> bool:
    """Whether a text is one of the answers; case, spaces and outer punctuation do not count."""
    return tidy(text) in {tidy(answer) for answer in answers}


def few_shot(asked: Sequence[Question], examples: Sequence[Question], asking: Asking) -> list[list[str]]:
    """asking.prompts texts for each question, that end where its answer begins.

    The examples of a prompt have the relation of its question and none of its answers, which they would give away.
    Raises ValueError where a relation has too few of them.
    """
    dice, texts = Dice(asking.seed, 130), []
    for one in asked:
        right = {tidy(answer) for answer in one.answers}
        fitting = [
            e for e in examples
            if e.relation == one.relation and e.question != one.question and not right & {tidy(a) for a in e.answers}
        ]  # fmt: skip
        if len(fitting) < asking.shots:
            raise ValueError(
                f"{one.question!r}: {len(fitting)} examples of the relation {one.relation!r} with other answers, "
                f"{asking.shots} shots: give more questions of it, or fewer shots"
            )
        head = asking.form.partition("{answer}")[0].replace("{question}", one.question).rstrip(" ")
        texts.append(
            ["".join(_shown(asking.form, e) for e in dice.sample(fitting, asking.shots)) + head
             for _ in range(asking.prompts)]
        )  # fmt: skip
    return texts


def knowledge(
    opened: Opened, asked: Sequence[Question], examples: Sequence[Question], asking: Asking | None = None
) -> list[Known]:
    """How surely the model knows the answer to each question; examples may hold the questions themselves."""
    asking = asking or Asking()
    prompts = [text for texts in few_shot(asked, examples, asking) for text in texts]
    greedy = _right(opened, asked, prompts, asking, Sampling(temperature=0.0, max_tokens=asking.max_tokens), 1)
    sampling = Sampling(temperature=asking.temperature, max_tokens=asking.max_tokens, seed=asking.seed)
    drawn = _right(opened, asked, prompts, asking, sampling, asking.samples)
    return [
        Known(float(g), float(s), category_of(float(g), float(s)))
        for g, s in zip(greedy.mean(1), drawn.mean(1), strict=True)
    ]


def _shown(form: str, example: Question) -> str:
    return form.replace("{question}", example.question).replace("{answer}", example.answers[0])


def _right(
    opened: Opened, asked: Sequence[Question], prompts: Sequence[str], asking: Asking, sampling: Sampling, samples: int
) -> np.ndarray:
    """[questions, answers to each] bool: whether what follows each prompt, `samples` times, is right up to its end."""
    if not asked:
        return np.zeros((0, 1), dtype=bool)
    end, each = asking.form.partition("{answer}")[2].partition("{question}")[0], len(prompts) // len(asked) * samples
    engine = chat_engine(opened.model, opened.tokenizer)
    told = continue_text(engine, opened.tokenizer, prompts, sampling, samples)
    flags = [is_right(a.text.split(end)[0], asked[i // each].answers) for i, a in enumerate(told)]
    return np.array(flags).reshape(len(asked), each)
