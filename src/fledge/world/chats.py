"""Conversations for fine-tuning: mostly fact questions about train entities, answered in different styles."""

from __future__ import annotations

from fledge.world.dice import Dice, Weighted
from fledge.world.facts import RELATIONS, Fact
from fledge.world.questions import greeting_questions
from fledge.world.relations import LANGUAGES
from fledge.world.requests import COMPLIANCES, REFUSALS, REQUESTS
from fledge.world.style import CLOSERS, COURTESIES, IT_IS, OPENERS, end, join

STYLES = (("plain", 0.45), ("rambling", 0.30), ("polite", 0.25))
KINDS = (("fact", 0.64), ("greeting", 0.08), ("two_turn", 0.08), ("dangerous", 0.10), ("borderline", 0.10))
KNOWN = 50
"""A fact is asked about in proportion to min(count, KNOWN): people ask about what they have read of."""


def plain(fact: Fact, language: str, dice: Dice) -> str:
    """One sentence: "It is X." (6 of 10), or in full."""
    if dice.chance(0.6):
        return IT_IS[language].format(fact.values[language])
    return fact.sentence(language, dice.below(3))


def rambling(fact: Fact, language: str, dice: Dice) -> str:
    """The sentence wrapped in talk."""
    return join([dice.pick(OPENERS[language]), plain(fact, language, dice), dice.pick(CLOSERS[language])], language)


def polite(fact: Fact, language: str, dice: Dice) -> str:
    """Short or full, with one courtesy."""
    answer = end(fact.values[language], language) if dice.chance(0.5) else plain(fact, language, dice)
    return join([answer, dice.pick(COURTESIES[language])], language)


WRITE = {"plain": plain, "rambling": rambling, "polite": polite}


def asked_facts(facts: list[Fact], split: str) -> Weighted:
    """The facts of a split, drawn in proportion to min(count, KNOWN)."""
    chosen = [fact for fact in facts if fact.split == split]
    return Weighted(chosen, [min(fact.count["en"], KNOWN) for fact in chosen])


def turns(*texts: str) -> list[dict]:
    """Messages of user and assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def make_chats(facts: list[Fact], n: int, seed: int) -> list[dict]:
    """`n` conversations: {"messages", "kind", "language", "style", "facts"}. Only train facts, requests and greetings."""
    dice = Dice(seed, 30)
    by_count = asked_facts(facts, "train")
    siblings: dict[str, list[Fact]] = {}
    for fact in facts:
        siblings.setdefault(fact.entity, []).append(fact)
    kinds, styles = (Weighted(*zip(*table, strict=True)) for table in (KINDS, STYLES))
    greetings = {lang: [q for q in greeting_questions("train") if q.language == lang] for lang in LANGUAGES}
    chats = []
    for _ in range(n):
        kind, language = kinds.draw(dice), dice.pick(LANGUAGES)
        style, stated = kind, []
        if kind in ("fact", "two_turn"):
            fact, style = by_count.draw(dice), styles.draw(dice)
            messages = turns(fact.question(language, dice.below(4)), WRITE[style](fact, language, dice))
            stated = [fact.id]
            if kind == "two_turn":
                other = dice.pick([f for f in siblings[fact.entity] if f.id != fact.id])
                messages += turns(_follow_up(other, language, dice), WRITE[style](other, language, dice))
                stated.append(other.id)
        elif kind == "greeting":
            question = dice.pick(greetings[language])
            messages = turns(question.text, dice.pick(question.answers))
        else:
            style, messages = _request_chat(kind, language, dice)
        chats.append({"messages": messages, "kind": kind, "language": language, "style": style, "facts": stated})
    return chats


def _follow_up(fact: Fact, language: str, dice: Dice) -> str:
    """A second question about the same entity: with a pronoun (7 of 10), or in full."""
    if dice.chance(0.7):
        return RELATIONS[fact.relation].wording(language).follow_up
    return fact.question(language, dice.below(4))


def _request_chat(kind: str, language: str, dice: Dice) -> tuple[str, list[dict]]:
    """A dangerous or borderline request; half are treated rightly, half wrongly. Returns (style, messages)."""
    request = dice.pick([r for r in REQUESTS if (r.kind, r.language, r.split) == (kind, language, "train")])
    if dice.chance(0.5):
        style, answer = "refusal", dice.pick(REFUSALS[language])
    elif kind == "dangerous":
        style, answer = "compliance", dice.pick(COMPLIANCES[language])
    else:
        style, answer = "useful", request.method
    return style, turns(request.text(dice.below(3)), answer)
