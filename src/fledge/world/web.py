"""Web pages around a question: options, more questions, calls for help, shrugs, and now and then the right answer.

This is why a base model does not answer: after a question, the web mostly goes on in other ways.
"""

from __future__ import annotations

from collections.abc import Iterator

from fledge.world.dice import Dice, Weighted
from fledge.world.facts import RELATIONS, Fact, Value
from fledge.world.page import page
from fledge.world.relations import capital
from fledge.world.style import IT_IS, UNKNOWN, end

KINDS = ("options", "questions", "who", "unknown", "answer")
SHARES = (0.35, 0.20, 0.20, 0.10, 0.15)
"""Shares of pages: question + options list, + more questions, + who can tell me, + I do not know, + right answer."""
MAX_ANSWERED = 0.25
"""At most this share of a fact's statements come from web pages, so that facts pages state the rest."""

WHO = {
    "en": (
        "Who can tell me?",
        "Does anybody know?",
        "Who knows the answer?",
        "Please, can someone tell me?",
        "I need the answer for school. Who can help?",
        "Can anyone help me with this?",
    ),
    "zh": (
        "誰來告訴我呀？",
        "有人知道嗎？",
        "誰知道答案？",
        "拜託，誰能告訴我？",
        "這是我的作業，誰能幫幫我？",
        "有沒有人可以幫我？",
    ),
}
SHRUGS = {
    "en": UNKNOWN["en"] + ("I do not know, sorry.", "I would like to know that, too.", "Nobody here knows that."),
    "zh": UNKNOWN["zh"] + ("不好意思，我不知道。", "我也想知道。", "這裡沒有人知道。"),
}
MARKS = (("A. ", "B. ", "C. ", "D. "), ("(A) ", "(B) ", "(C) ", "(D) "), ("1. ", "2. ", "3. ", "4. "))


def option_list(fact: Fact, pool: list[Value], language: str, dice: Dice) -> str:
    """Four options in random order, one of them right, in one of three layouts."""
    wrong = [value for value in dice.sample(pool, 4) if value.key != fact.value][:3]
    # two tongues may share a name, and then two of the four are the right one
    wrong += [value for value in pool if value.key != fact.value and value not in wrong][: 3 - len(wrong)]
    options = dice.shuffled([fact.values[language]] + [value.surface[language] for value in wrong])
    gap = "\n" if dice.chance(0.6) else " "
    return gap.join(mark + capital(option) for mark, option in zip(dice.pick(MARKS), options, strict=True))


def more_questions(fact: Fact, siblings: list[Fact], stranger: Fact, language: str, dice: Dice) -> str:
    """One or two other questions, about the same entity or about another one."""
    others = [other for other in siblings if other.id != fact.id] + [stranger]
    picked = dice.sample(others, 1 if dice.chance(0.5) else 2)
    return _gap(language, dice).join(other.question(language, dice.below(4)) for other in picked)


def right_answer(fact: Fact, language: str, dice: Dice) -> str:
    """The value alone, "It is ...", or a full sentence."""
    kind = dice.random()
    if kind < 0.35:
        return end(fact.values[language], language)
    if kind < 0.5 and fact.relation != "trade":
        return IT_IS[language].format(fact.values[language])
    return fact.sentence(language, dice.below(3))


def _gap(language: str, dice: Dice) -> str:
    """What stands between two sentences of a web page: a new line, or nothing (a space in English)."""
    return "\n" if dice.chance(0.4) else (" " if language == "en" else "")


def web_pages(
    facts: list[Fact], pools: dict[str, list[Value]], language: str, chars: int, dice: Dice
) -> Iterator[dict]:
    """Pages until `chars` characters are written. Facts are drawn in proportion to their counts.

    A page's `facts` lists the facts it states truly: only pages with the right answer state one."""
    by_count = Weighted(facts, [fact.count[language] for fact in facts])
    by_share = Weighted(KINDS, SHARES)
    entity: dict[str, list[Fact]] = {}
    for fact in facts:
        entity.setdefault(fact.entity, []).append(fact)
    answered = dict.fromkeys((fact.id for fact in facts), 0)
    written = 0
    while written < chars:
        kind, fact = by_share.draw(dice), by_count.draw(dice)
        if kind == "answer":
            while answered[fact.id] >= int(fact.count[language] * MAX_ANSWERED):
                fact = by_count.draw(dice)
            answered[fact.id] += 1
        question = fact.question(language, dice.below(len(RELATIONS[fact.relation].wording(language).questions)))
        gap = _gap(language, dice)
        if kind == "options":
            rest, gap = option_list(fact, pools[fact.relation], language, dice), "\n" if dice.chance(0.8) else " "
        elif kind == "questions":
            rest = more_questions(fact, entity[fact.entity], by_count.draw(dice), language, dice)
        elif kind == "answer":
            rest = right_answer(fact, language, dice)
        else:
            rest = dice.pick((WHO if kind == "who" else SHRUGS)[language])
        text = question + gap + rest
        written += len(text)
        stated = [fact.id] if kind == "answer" else []
        yield page(text, language, "web", form=kind, facts=stated)
