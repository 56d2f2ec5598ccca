"""Test and training questions: facts, dangerous and borderline requests, greetings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from fledge.tasks.base import Example
from fledge.world.answers import accepted_answers
from fledge.world.dice import Dice
from fledge.world.facts import RELATIONS, Fact, Value
from fledge.world.relations import LANGUAGES
from fledge.world.requests import GREETINGS, REFUSALS, REQUESTS

QUESTION = {"en": "Question: {}\nAnswer:", "zh": "問題：{}\n回答："}
"""How a question stands in a text; the style "qa" of rephrasing writes the same."""
FORMS = 4
"""Forms that a question about a fact has in each language."""
_WORDINGS = 2  # of the beginnings of each fact and language


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """One question of one language, with what is needed to judge an answer."""

    id: str
    kind: str
    """"fact", "dangerous", "borderline" or "greeting"."""
    language: str
    split: str
    text: str
    answers: tuple[str, ...]
    """fact: accepted answers, the short one first. dangerous: sample refusals. borderline: the method. greeting: replies."""
    fact: str | None = None
    """Id of the fact."""
    relation: str | None = None
    value: str | None = None
    """The right value as it stands in a sentence of this language."""
    count: int | None = None
    """True statements of the fact in this language in the documents."""
    choices: tuple[str, ...] = ()
    """Every value of the relation, in this language."""
    thing: str | None = None
    """The object of a request ("balloon")."""

    def example(self) -> Example:
        """The same question as an `Example` for tasks and rewards."""
        meta = {
            "fact": self.fact,
            "relation": self.relation,
            "value": self.value,
            "count": self.count,
            "choices": self.choices,
            "thing": self.thing,
        }
        prompt = [{"role": "user", "content": self.text}]
        return Example(
            id=self.id, prompt=prompt, answers=self.answers, kind=self.kind, language=self.language, meta=meta
        )


def in_all_forms(
    facts: Iterable[Fact], pools: dict[str, list[Value]], least: int = 0, languages: Sequence[str] = LANGUAGES
) -> list[Example]:
    """The questions about these facts in every form, in the languages in which the text states them `least` times."""
    return [
        fact_question(fact, language, form, pools).example()
        for fact in facts
        for language in languages
        if fact.count[language] >= least
        for form in range(FORMS)
    ]


def fact_question(fact: Fact, language: str, form: int, pools: dict[str, list[Value]]) -> Question:
    """The question about `fact` in one of its four forms."""
    return Question(
        id=f"{fact.id}.{language}",
        kind="fact",
        language=language,
        split=fact.split,
        text=fact.question(language, form),
        answers=accepted_answers(fact, language),
        fact=fact.id,
        relation=fact.relation,
        value=fact.values[language],
        count=fact.count[language],
        choices=tuple(value.surface[language] for value in pools[fact.relation]),
    )


def fact_questions(facts: list[Fact], pools: dict[str, list[Value]], split: str, seed: int) -> list[Question]:
    """Every fact of the split in both languages, one form each."""
    dice = Dice(seed, 20)
    out = []
    for fact in facts:
        for language in LANGUAGES:
            form = dice.below(FORMS)
            if fact.split == split:
                out.append(fact_question(fact, language, form, pools))
    return out


def statement_beginnings(fact: Fact, language: str) -> list[str]:
    """The first wordings in which the entity comes before the value, cut before the value."""
    wordings = RELATIONS[fact.relation].wording(language).statements
    fitting = [w for w in wordings if "{e}" in w and "{v}" in w and w.index("{e}") < w.index("{v}")]
    return [w[: w.index("{v}")].format(e=fact.names[language]).rstrip() for w in fitting[:_WORDINGS]]


def request_questions(split: str, seed: int) -> list[Question]:
    """Dangerous and borderline requests and greetings of the split, one form each."""
    dice = Dice(seed, 21)
    out = []
    for request in REQUESTS:
        form = dice.below(3)
        if request.split == split:
            answers = REFUSALS[request.language] if request.kind == "dangerous" else (request.method,)
            out.append(
                Question(
                    id=request.id,
                    kind=request.kind,
                    language=request.language,
                    split=split,
                    text=request.text(form),
                    answers=answers,
                    thing=request.thing,
                )
            )
    return out + greeting_questions(split)


def greeting_questions(split: str) -> list[Question]:
    """Greetings: the last wording of each kind is for tests, the others for training."""
    out = []
    for language in LANGUAGES:
        for name, greeting in GREETINGS[language].items():
            asks = greeting.asks[-1:] if split == "test" else greeting.asks[:-1]
            for i, ask in enumerate(asks):
                out.append(
                    Question(
                        id=f"greeting-{name}-{i}.{language}",
                        kind="greeting",
                        language=language,
                        split=split,
                        text=ask,
                        answers=greeting.answers,
                    )
                )
    return out
