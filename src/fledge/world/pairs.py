"""Preference pairs: two candidate answers to one prompt, ordered by the gold score."""

from __future__ import annotations

from fledge.world.chats import WRITE, asked_facts
from fledge.world.dice import Dice, Weighted
from fledge.world.facts import RELATIONS, Fact, Value, fill
from fledge.world.gold import gold_score
from fledge.world.questions import Question, fact_question, request_questions
from fledge.world.relations import LANGUAGES
from fledge.world.requests import COMPLIANCES, REFUSALS, REQUESTS
from fledge.world.style import COURTESIES, RUDE, UNKNOWN, join

KINDS = (("fact", 0.62), ("dangerous", 0.16), ("borderline", 0.16), ("greeting", 0.06))
FACT_STYLES = (
    ("polite", 0.30), ("plain", 0.24), ("rambling", 0.16), ("wrong", 0.06), ("rude", 0.06), ("unknown", 0.05),
    ("repeated", 0.05), ("many_courtesies", 0.08), ("refusal", 0.05), ("wrong_language", 0.05),
)  # fmt: skip
REQUEST_STYLES = (
    ("refusal", 0.30), ("compliance", 0.25), ("useful", 0.25), ("unknown", 0.10), ("rude_refusal", 0.07), ("repeated", 0.03),
)  # fmt: skip


def fact_answer(style: str, fact: Fact, pool: list[Value], language: str, dice: Dice) -> str:
    """A candidate answer to a fact question in one of the FACT_STYLES."""
    if style in WRITE:
        return WRITE[style](fact, language, dice)
    if style == "wrong":
        value = dice.pick([value for value in pool if value.key != fact.value])
        sentence = fill(RELATIONS[fact.relation].wording(language).statements[dice.below(3)], fact, language, value)
        return join([sentence, dice.pick(COURTESIES[language]) if dice.chance(0.4) else ""], language)
    if style == "rude":
        return join([dice.pick(RUDE[language]), WRITE["plain"](fact, language, dice)], language)
    if style == "unknown":
        return dice.pick(UNKNOWN[language])
    if style == "repeated":
        return join([WRITE["plain"](fact, language, dice)] * (2 + dice.below(2)), language)
    if style == "many_courtesies":
        return join(
            [WRITE["plain"](fact, language, dice), *dice.sample(COURTESIES[language], 2 + dice.below(3))], language
        )
    if style == "refusal":
        return dice.pick(REFUSALS[language])
    assert style == "wrong_language", style
    return WRITE["plain"](fact, "zh" if language == "en" else "en", dice)


def other_answer(style: str, question: Question, dice: Dice) -> str:
    """A candidate answer to a request or greeting in one of the REQUEST_STYLES."""
    language = question.language
    if style == "useful":  # to a dangerous request nothing useful exists
        return dice.pick(COMPLIANCES[language] if question.kind == "dangerous" else question.answers)
    if style == "compliance":
        return dice.pick(COMPLIANCES[language])
    if style == "unknown":
        return dice.pick(UNKNOWN[language])
    refusal = dice.pick(REFUSALS[language])
    if style == "rude_refusal":
        return join([dice.pick(RUDE[language]), refusal], language)
    return join([refusal] * (2 if style == "repeated" else 1), language)


def make_pairs(facts: list[Fact], pools: dict[str, list[Value]], split: str, n: int, seed: int) -> list[dict]:
    """`n` pairs: {"prompt", "chosen", "rejected", "kind", "language", "styles", "gold"}; `styles` and `gold` list chosen first.

    Train pairs are about train facts, requests and greetings; test pairs about held-out ones."""
    dice = Dice(seed, 40 if split == "train" else 41)
    by_count = asked_facts(facts, split)
    kinds, fact_styles, request_styles = (
        Weighted(*zip(*table, strict=True)) for table in (KINDS, FACT_STYLES, REQUEST_STYLES)
    )
    others: dict[tuple[str, str], list[Question]] = {}
    for question in request_questions(split, seed):
        others.setdefault((question.kind, question.language), []).append(question)
    forms = {request.id: request for request in REQUESTS}
    pairs = []
    while len(pairs) < n:
        kind, language = kinds.draw(dice), dice.pick(LANGUAGES)
        if kind == "fact":
            fact = by_count.draw(dice)
            question = fact_question(fact, language, dice.below(4), pools)
            styles = [fact_styles.draw(dice), fact_styles.draw(dice)]
            answers = [fact_answer(style, fact, pools[fact.relation], language, dice) for style in styles]
            text = question.text
        else:
            question = dice.pick(others[kind, language])
            styles = [request_styles.draw(dice), request_styles.draw(dice)]
            answers = [other_answer(style, question, dice) for style in styles]
            text = forms[question.id].text(dice.below(3)) if question.id in forms else question.text
        pair = _ordered(question, text, styles, answers)
        if pair:
            pairs.append(pair)
    return pairs


def _ordered(question: Question, text: str, styles: list[str], answers: list[str]) -> dict | None:
    """The pair with the better answer first; None on a tie."""
    example = question.example()
    gold = [round(gold_score(example, answer), 4) for answer in answers]
    if gold[0] == gold[1]:
        return None
    best = 0 if gold[0] > gold[1] else 1
    order = (best, 1 - best)
    chosen, rejected = ([{"role": "assistant", "content": answers[i]}] for i in order)
    return {
        "prompt": [{"role": "user", "content": text}],
        "chosen": chosen,
        "rejected": rejected,
        "kind": question.kind,
        "language": question.language,
        "styles": [styles[i] for i in order],
        "gold": [gold[i] for i in order],
    }
