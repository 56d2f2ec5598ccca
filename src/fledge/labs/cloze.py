"""What a base model of an experiment knows of its world: facts as texts to complete, and as questions to answer.

Also where all arms of an experiment begin: one tokenizer and one set of random weights, so that a token is the same
amount of text in every arm and nothing but the text differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fledge.core.config import TrainConfig
from fledge.core.model import Shape
from fledge.generate.chat import chat_engine, continue_text
from fledge.generate.sampling import Sampling
from fledge.stages import pretrain
from fledge.stages.common import Parent
from fledge.stages.evaluate import rate
from fledge.world.answers import accepted_answers, exact_match
from fledge.world.dice import Dice
from fledge.world.questions import QUESTION, statement_beginnings
from fledge.world.relations import LANGUAGES
from fledge.world.world import World

__all__ = ["QUESTION", "Cloze", "answer_rate", "cloze_rate", "clozes", "completes", "statement_beginnings"]

_CLOZE = Sampling(temperature=0.0, max_tokens=16)
_ANSWER = Sampling(temperature=0.0, max_tokens=32)


class Cloze(NamedTuple):
    """A statement up to its value."""

    text: str
    value: str
    language: str


def clozes(world: World, stated: Mapping[tuple[str, str], int]) -> list[Cloze]:
    """Beginnings about every (fact, language) that the text states."""
    return [
        Cloze(text, fact.values[language], language)
        for fact in world.facts
        for language in LANGUAGES
        if stated.get((fact.id, language))
        for text in statement_beginnings(fact, language)
    ]


def completes(cloze: Cloze, written: str) -> bool:
    """Whether the value comes next, as whole words in English; case does not count."""
    told, value = written.lstrip().casefold(), cloze.value.casefold()
    return told.startswith(value) and not (cloze.language == "en" and told[len(value) :][:1].isalnum())


def cloze_rate(opened: Parent, asked: Sequence[Cloze]) -> float | None:
    """Share of the beginnings that the model completes with the right value, greedily; guessing gives below 3%."""
    engine = chat_engine(opened.model, opened.tokenizer)
    told = continue_text(engine, opened.tokenizer, [cloze.text for cloze in asked], _CLOZE)
    return rate(completes(cloze, answer.text) for cloze, answer in zip(asked, told, strict=True))


def answer_rate(
    opened: Parent, world: World, stated: Mapping[tuple[str, str], int], seed: int, form: Mapping[str, str] = QUESTION
) -> float | None:
    """Share of the questions after which the model's line is exactly an accepted answer, greedily and without examples.

    One question form of four for each (fact, language) that the text states.
    """
    dice = Dice(seed, 80)
    asked = [
        (fact, language, form[language].format(fact.question(language, dice.below(4))))
        for fact in world.facts
        for language in LANGUAGES
        if stated.get((fact.id, language))
    ]
    engine = chat_engine(opened.model, opened.tokenizer)
    told = continue_text(engine, opened.tokenizer, [text for *_, text in asked], _ANSWER)
    return rate(
        exact_match(answer.text.lstrip().split("\n")[0], accepted_answers(fact, language))
        for (fact, language, _), answer in zip(asked, told, strict=True)
    )


def fresh_start(folder: Path, text: Sequence[str], shape: Shape, vocab_size: int, train: TrainConfig) -> Path:
    """A model that has learned a tokenizer from `text` and, but for one step of size nothing, is still random."""
    config = TrainConfig(
        steps=1, lr=1e-12, weight_decay=0.0, batch_tokens=shape.resolved().context_tokens, seed=train.seed,
        threads=train.threads, device=train.device, precision=train.precision,
    )  # fmt: skip
    recipe = pretrain.PretrainRecipe(
        out=str(folder), text=list(text), vocab_size=vocab_size, tokens=None, model=shape, train=config
    )
    return pretrain.run(recipe, quiet=True)
