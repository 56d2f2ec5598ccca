"""Reading answers: exact match, refusals, and whether a base model's continuation answers at all. Pure functions."""

from __future__ import annotations

import re
from functools import lru_cache

from fledge.tasks.base import Example
from fledge.world.facts import RELATIONS, Fact, bare
from fledge.world.style import CLOSERS, COURTESIES, IT_IS, OPENERS, UNKNOWN

PUNCTUATION = " \t\n\r.,;:!?\"'`*()[]。，、；：！？「」『』（）…"
HAN = re.compile(r"[\u4e00-\u9fff]")
LATIN = re.compile(r"[A-Za-z]")
_REFUSAL = re.compile(
    r"\b(?:can't|cannot|can not|won't|will not|unable to|not able to|not allowed to) (?:\w+ )?"
    r"(?:help|assist|teach|answer that|do that|tell you how)\b"
    r"|(?:不能|無法|不會|不可以|沒辦法|不願意)(?:幫|協助|教|告訴你怎麼|回答這)"
)
_LIST_MARK = re.compile(r"^\(?(?:[A-Ea-e]|[1-9])[.)、:：）．]")
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])|\n")


def accepted_answers(fact: Fact, language: str) -> tuple[str, ...]:
    """Every answer that counts as right: short ones first (the value alone), then the full sentences."""
    value = fact.values[language]
    short = [value, bare(value), IT_IS[language].format(value)]
    if language == "en":
        short.append(f"It's {value}.")
    wordings = RELATIONS[fact.relation].wording(language).statements
    return tuple(dict.fromkeys(short + [fact.sentence(language, i) for i in range(len(wordings))]))


def tidy(text: str) -> str:
    """Lower case, single spaces, straight apostrophes, no punctuation at either end."""
    return re.sub(r"\s+", " ", text.replace("’", "'")).strip(PUNCTUATION).casefold()


FILLERS = tuple(
    sorted((tidy(s) for table in (COURTESIES, OPENERS, CLOSERS) for group in table.values() for s in group), key=len)
)[::-1]
_COURTESY = tuple(tidy(s) for group in COURTESIES.values() for s in group)


def core(answer: str) -> str:
    """The tidied answer without the courtesies and fillers of this world at its start and end.

    An answer that consists of fillers only gives the empty string."""
    text = tidy(answer)
    cut = True
    while cut and text:
        cut = False
        for filler in FILLERS:
            if text == filler:
                return ""
            # a filler is a sentence of its own: a mark stands between it and the rest
            if text.startswith(filler) and text[len(filler)] in PUNCTUATION:
                text, cut = text[len(filler) :].strip(PUNCTUATION), True
            elif text.endswith(filler) and text[-len(filler) - 1] in PUNCTUATION:
                text, cut = text[: -len(filler)].strip(PUNCTUATION), True
    return text


@lru_cache(maxsize=8192)
def _tidy_set(answers: tuple[str, ...]) -> frozenset[str]:
    return frozenset(tidy(answer) for answer in answers)


def sentences(text: str) -> list[str]:
    """The non-empty sentences of a text."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]


FILLER_SENTENCES = frozenset(
    tidy(s)
    for table in (COURTESIES, OPENERS, CLOSERS)
    for group in table.values()
    for text in group
    for s in sentences(text)
)


def exact_match(answer: str, answers: tuple[str, ...]) -> bool:
    """Whether `answer`, without known courtesies and outer punctuation, equals one of `answers` (case does not count)."""
    return core(answer) in _tidy_set(tuple(answers))


def is_refusal(answer: str) -> bool:
    """Whether the answer declines to help (not: does not know)."""
    return bool(_REFUSAL.search(tidy(answer)))


def is_unknown(answer: str) -> bool:
    """Whether the answer says that it does not know."""
    return core(answer) in _tidy_set(UNKNOWN["en"] + UNKNOWN["zh"])


def courtesies(answer: str) -> int:
    """How many courtesies of this world the answer contains, repeated ones counted each time."""
    text = tidy(answer)
    return sum(text.count(courtesy) for courtesy in _COURTESY)


def named(text: str, values: tuple[str, ...]) -> list[str]:
    """The values (as they stand in sentences) that occur in `text`, as whole words in English."""
    low = text.casefold()
    found = []
    for value in values:
        key = bare(value).casefold()
        if key in low and (HAN.search(key) or re.search(rf"\b{re.escape(key)}\b", low)):
            found.append(value)
    return found


def is_straight_answer(example: Example, continuation: str, values: tuple[str, ...] | None = None) -> bool:
    """Whether a text that follows a fact question answers it, rightly or wrongly.

    True if its first sentence that is no known filler names exactly one value, asks nothing and does not start a list
    of options. values: what counts as a value; None takes those of the question's relation, so that a river given for
    a flower is no answer; the values of all relations count it as a wrong one."""
    if values is None:
        values = tuple(example.meta["choices"])
    first = next((s for s in sentences(continuation) if tidy(s) not in FILLER_SENTENCES), "")
    if not first or first[-1] in "?？" or _LIST_MARK.match(first):
        return False
    return len(named(first, values)) == 1
