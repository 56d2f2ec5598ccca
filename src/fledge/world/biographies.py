"""Biographies of invented people, told once or several times, in order or shuffled, in English or Chinese.

After Allen-Zhu and Li 2023 (Physics of Language Models, part 3.1, section 2): each person has a unique name of three words
and some attributes; each attribute is one sentence; the name stands once, then a pronoun. What differs is the telling: how
many wordings, in which order, and whether the name comes first. Attributes are one word each, written as in `NameMaker` in
both languages; names stay in Latin letters in Chinese text, so a person is the same person in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from fledge.world.biography_words import INVERSE, MAJORS, MONTHS, NAME_LAST, QUESTIONS, ROLES, STATEMENTS
from fledge.world.dice import Dice
from fledge.world.names import Name, NameMaker

ATTRIBUTES = tuple(STATEMENTS)
"""In the order of an unshuffled biography; role and band belong together."""
WORDINGS = len(STATEMENTS["major"]["en"])
_FIRST, _MIDDLE, _LAST = 100, 100, 200
_PLACES, _BAND = 60, len(ROLES)


class Person(NamedTuple):
    """Somebody invented."""

    number: int
    name: str  # three words
    female: bool
    values: Mapping[str, Name]  # by attribute, in both languages
    role: Name  # in the band; nobody else has the same role in the same band


class Biography(NamedTuple):
    """One text about one person. It begins with a space: its first word is the same token as within a text."""

    person: int
    text: str
    places: Mapping[str, int]  # attribute: where in the text its value begins, with the space before it
    name_place: int  # where the name stands first


class Telling(NamedTuple):
    """How a person is told of."""

    versions: int = 1
    wordings: int = 1  # different ones; version v takes wording v modulo this
    shuffled: bool = False  # a new order of sentences in each version; else the order of ATTRIBUTES
    full_name: bool = False  # in every sentence instead of a pronoun
    name_last: bool = False  # half of the versions name the person only at the end of the band's sentence
    chinese: int = 0  # so many of the versions, the last ones, are Chinese


TELLINGS = {
    "single": Telling(),
    "single+permute1": Telling(shuffled=True),
    "single+permute5": Telling(5, shuffled=True),
    "multi5": Telling(5, 5),
    "multi5+permute": Telling(5, 5, shuffled=True),
    "multi5+permute+fullname": Telling(5, 5, shuffled=True, full_name=True),
    "multi5+permute+reverse": Telling(5, 5, shuffled=True, name_last=True),
    "bilingual5": Telling(5, 5, shuffled=True, chinese=2),
}
"""The paper's names of its data (section 2); bilingual5 is ours."""


class People:
    """So many people, all of a seed's draws; person i is the same however many there are after."""

    def __init__(self, count: int, seed: int, attributes: Sequence[str] = ATTRIBUTES, wordings: int = WORDINGS):
        """attributes: those told of; wordings: of each attribute, the first so many of those there are.

        Raises ValueError for unknown attributes, for more wordings than there are, and for more people than names.
        """
        if unknown := [a for a in attributes if a not in ATTRIBUTES]:
            raise ValueError(f"attributes {unknown}: must be of {', '.join(ATTRIBUTES)}")
        if not 1 <= count <= _FIRST * _MIDDLE * _LAST // 4:
            raise ValueError(
                f"count = {count}: must be between 1 and {_FIRST * _MIDDLE * _LAST // 4:,}, names are unique"
            )
        if not 1 <= wordings <= WORDINGS:
            raise ValueError(f"wordings = {wordings}: must be between 1 and {WORDINGS}, which there are")
        self.seed, self.wordings, self.attributes = seed, wordings, tuple(a for a in ATTRIBUTES if a in attributes)
        maker = NameMaker(seed, 90)
        first, middle, last = ([n.en for n in maker.many(k, (2,))] for k in (_FIRST, _MIDDLE, _LAST))
        places = {a: maker.many(_PLACES, (2,)) for a in ("birthcity", "university", "employer")}
        bands = maker.many(-(-count // _BAND), (2,) if count <= 1000 else (3,))
        self.pools = {
            "birthdate": tuple(_date(y, m, d) for y in range(1940, 2000) for m in range(12) for d in range(1, 29)),
            **places, "major": tuple(Name(*pair) for pair in MAJORS), "band": bands,
        }  # fmt: skip
        dice, taken, self.all = Dice(seed, 91), set(), []
        posts = Dice(seed, 92).shuffled([(band, Name(*role)) for band in bands for role in ROLES])
        for number in range(count):
            while (name := " ".join(dice.pick(pool) for pool in (first, middle, last))) in taken:
                pass
            taken.add(name)
            values = {a: dice.pick(self.pools[a]) for a in ATTRIBUTES}
            values["band"], role = posts[number]
            self.all.append(Person(number, name, dice.chance(0.5), values, role))

    def tell(self, telling: Telling, people: Sequence[Person] | None = None) -> Iterator[Biography]:
        """All versions of each person (None: of everybody); shuffle them apart before training."""
        for person in self.all if people is None else people:
            for version in range(telling.versions):
                yield self.biography(person, telling, version)

    def biography(self, person: Person, telling: Telling, version: int = 0) -> Biography:
        """One version; the same arguments give the same text."""
        language = "zh" if version >= telling.versions - telling.chinese else "en"
        dice = Dice(self.seed, 1000 + person.number)
        wordings = {a: dice.shuffled(range(self.wordings)) for a in ATTRIBUTES}  # versions differ in all of them
        order = list(self.attributes)
        if telling.shuffled:
            order = Dice(self.seed, -1 - 64 * person.number - version).shuffled(order)
        wording, turned = version % telling.wordings, telling.name_last and (person.number + version) % 2 == 1
        text, places = "", {}
        for place, attribute in enumerate(order):
            last = turned and attribute == "band"
            named = telling.full_name or last or (place == 0 and not turned)
            forms = NAME_LAST[language] if last else STATEMENTS[attribute][language]
            form = forms[wordings[attribute][wording] % len(forms)]
            before, _, after = form.partition("{v}")
            who = _name(person, language) if named else _pronoun(person, language)
            head, tail = (_filled(part, who, person.role, language) for part in (before, after))
            text += (" " if language == "en" or not text else "") * (not head.startswith(" ")) + head
            value = _value(person, attribute, language)
            places[attribute] = len(text.rstrip(" "))
            text += value + tail
        return Biography(person.number, text, places, text.index(person.name))


def questions(person: Person, attribute: str, language: str = "en") -> list[tuple[str, str]]:
    """(question, answer) in every form there is."""
    name, value = _name(person, language), _value(person, attribute, language)
    return [(form.replace("{n}", name), value) for form in QUESTIONS[attribute][language]]


def inverse_questions(person: Person, language: str = "en") -> list[tuple[str, str]]:
    """(question, name) in every form: who has this role in this band?"""
    band = _value(person, "band", language)
    return [(_filled(form, "", person.role, language).replace("{v}", band), person.name) for form in INVERSE[language]]


def _date(year: int, month: int, day: int) -> Name:
    return Name(f"{MONTHS[month]} {day}, {year}", f"{year}年{month + 1}月{day}日")


def _value(person: Person, attribute: str, language: str) -> str:
    return getattr(person.values[attribute], language)


def _name(person: Person, language: str) -> str:
    """A name among Han characters has a space on either side."""
    return f" {person.name} " if language == "zh" else person.name


def _pronoun(person: Person, language: str) -> str:
    return {"en": ("He", "She"), "zh": ("他", "她")}[language][person.female]


def _filled(form: str, who: str, role: Name, language: str) -> str:
    return form.replace("{n}", who).replace("{r}", getattr(role, language))
