"""Noisy pages of facts, and a rephraser made of rules that knows the language of the world but none of its facts.

A noisy page is a page of facts in which sentences changed places, letters were mistyped and a site's phrases stand
between the lines. The rephraser finds statements by the wordings of the relations, mends mistyped words that are no
names, and writes what it found in one of the four styles of WRAP (Maini et al. 2024, section 3.1). What it cannot read
it leaves as it is. Names, mistyped ones too, are copied as they stand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

from fledge.curate.rephrase import Passage, Rephrased, Style
from fledge.labs.cloze import QUESTION
from fledge.world.answers import sentences
from fledge.world.dice import Dice
from fledge.world.facts import RELATIONS
from fledge.world.junk import BOILERPLATE
from fledge.world.relations import capital
from fledge.world.style import end, join
from fledge.world.words import FLOWERS, TRADES

TYPOS = {"en": 0.05, "zh": 0.01}
"""Share of words of four letters and more (Chinese: of characters) that are mistyped."""
LINES = (3, 4)  # phrases between the lines: so many, and up to so many more
_ARTICLE = re.compile(r"^(?:The|An|A) ")
_WORD = re.compile(r"[A-Za-z]+")
_CHOSEN = 3  # wordings that "easy" takes from the shortest, "hard" from the longest


# --- noise ----------------------------------------------------------------------------------------------------------


def mistyped(text: str, language: str, dice: Dice) -> str:
    """Some words with two letters exchanged, one missing or one twice; in Chinese a character missing or twice."""
    if language == "zh":
        return "".join(c * (2 * dice.below(2)) if c.isalpha() and dice.chance(TYPOS["zh"]) else c for c in text)

    def spoil(found: re.Match[str]) -> str:
        word = found.group()
        if len(word) < 4 or not dice.chance(TYPOS["en"]):
            return word
        i = 1 + dice.below(len(word) - 2)
        way = dice.below(3)
        if way == 0:
            return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
        return word[:i] + word[i + 1 :] if way == 1 else word[:i] + word[i] + word[i:]

    return _WORD.sub(spoil, text)


def noisy(text: str, language: str, dice: Dice) -> str:
    """A page of facts as a careless site would show it."""
    told = [mistyped(s, language, dice) for s in dice.shuffled(sentences(text))]
    phrases = [dice.pick(BOILERPLATE[language]) for _ in range(LINES[0] + dice.below(LINES[1] + 1))]
    return "\n".join(dice.shuffled(told + phrases))


# --- the rephraser --------------------------------------------------------------------------------------------------


class Statement(NamedTuple):
    """What a sentence says."""

    relation: str
    entity: str
    value: str  # as inside a sentence: "the Karu River"
    wording: int


@cache
def _patterns(language: str) -> list[tuple[re.Pattern[str], str, int]]:
    """(pattern with groups e and v, relation, wording), most literal text first, so that the closest one is found."""
    found = []
    for name, relation in RELATIONS.items():
        for number, wording in enumerate(relation.wording(language).statements):
            literal = re.escape(wording)
            for slot, group in (("e", "(?P<e>.+?)"), ("v", "(?P<v>.+?)"), ("V", "(?P<v>.+?)")):
                literal = literal.replace(re.escape(f"{{{slot}}}"), group, 1).replace(
                    re.escape(f"{{{slot}}}"), f"(?P={group[3]})"
                )
            found.append((len(re.sub(r"\{.\}", "", wording)), re.compile(literal), name, number))
    return [rest for _, *rest in sorted(found, key=lambda row: (-row[0], row[2], row[3]))]


@cache
def _vocabulary() -> dict[str, str | None]:
    """Mistyped English word -> the word of the wordings it can only be; None where it could be several."""
    words = {
        w
        for r in RELATIONS.values()
        for s in r.wording("en").statements
        for w in _WORD.findall(re.sub(r"\{.\}", "", s))
    }
    others = {word for pair in (*FLOWERS, *TRADES) for word in _WORD.findall(pair[0])}  # right as they stand
    near: dict[str, str | None] = {}
    for word in sorted(words):
        for i in range(len(word)):
            for form in (
                word[:i] + word[i + 1 :],
                word[:i] + word[i] + word[i:],
                word[:i] + word[i : i + 2][::-1] + word[i + 2 :],
            ):
                near[form] = word if near.get(form, word) == word else None
    return {form: word for form, word in near.items() if form not in words | others and len(form) >= 3}


def mended(sentence: str) -> str:
    """The English sentence with mistyped words of the wordings put right."""
    near = _vocabulary()
    return _WORD.sub(lambda found: near.get(found.group()) or found.group(), sentence)


def read_statement(sentence: str, language: str) -> Statement | None:
    """What the sentence says, if it has one of the wordings."""
    for pattern, relation, wording in _patterns(language):
        if found := pattern.fullmatch(sentence):
            value = found["v"]
            if language == "en" and (article := _ARTICLE.match(value)):
                value = value[0].lower() + value[1:] if article else value
            return Statement(relation, found["e"], value, wording)
    return None


def _filled(template: str, said: Statement) -> str:
    return template.format(e=said.entity, v=said.value, V=capital(said.value))


def _worded(said: Statement, language: str, style: Style, dice: Dice) -> str:
    """The statement in another wording: any, one of the shortest, one of the longest; or as question and answer."""
    wording = RELATIONS[said.relation].wording(language)
    if style == "qa":
        question = dice.pick(wording.questions).format(e=said.entity)
        return f"{QUESTION[language].format(question)}{' ' * (language == 'en')}{end(said.value, language)}"
    others = [s for number, s in enumerate(wording.statements) if number != said.wording]
    if style != "wiki":
        others = sorted(others, key=len, reverse=style == "hard")[:_CHOSEN]
    return _filled(dice.pick(others), said)


class RuleRephraser:
    """A `Rephraser` of one style; equal passages in equal order give equal texts."""

    def __init__(self, style: Style, seed: int):
        self.style, self.dice = style, Dice(seed, 90 + ("wiki", "qa", "easy", "hard").index(style))
        self.read = self.unread = 0  # sentences

    def __call__(self, asked: Sequence[Passage]) -> list[Rephrased]:
        return [Rephrased(self.rephrase(passage.text, passage.language.split("-")[0])) for passage in asked]

    def rephrase(self, text: str, language: str) -> str:
        """Statements grouped by whom they are about, in the order in which those come up."""
        groups: dict[str, list[str]] = {}
        for sentence in self._content(text, language):
            said = read_statement(sentence, language)
            self.read, self.unread = self.read + (said is not None), self.unread + (said is None)
            if said is not None:
                groups.setdefault(said.entity, []).append(_worded(said, language, self.style, self.dice))
            elif self.style != "qa":  # what it does not understand it cannot ask about
                groups.setdefault("", []).append(sentence)
        told = [sentence for group in groups.values() for sentence in group]
        return join(told, language) if self.style in ("wiki", "hard") else "\n".join(told)

    def _content(self, text: str, language: str) -> Iterator[str]:
        """Sentences that are no phrase of a site, mended."""
        phrases = set(BOILERPLATE[language])
        for line in text.split("\n"):
            if line not in phrases:
                for sentence in sentences(line):
                    yield mended(sentence) if language == "en" else sentence
