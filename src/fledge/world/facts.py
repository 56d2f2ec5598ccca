"""Entities and their facts: who exists in a world of a given seed, what is true, and how often it is stated."""

from __future__ import annotations

import msgspec

from fledge.world.config import WorldConfig
from fledge.world.dice import Dice
from fledge.world.names import Name, NameMaker
from fledge.world.relations import LANGUAGES, Relation, capital, with_article
from fledge.world.relations_country import COUNTRY_RELATIONS
from fledge.world.relations_person import PERSON_RELATIONS
from fledge.world.words import FLOWERS, TRADES

RELATIONS: dict[str, Relation] = {relation.name: relation for relation in COUNTRY_RELATIONS + PERSON_RELATIONS}
POOL_SIZE = 44
"""Number of values of each relation with invented values; the chance of guessing right is then below 3%."""
GIVEN_NAMES, FAMILY_NAMES = 40, 80


class Entity(msgspec.Struct, frozen=True, kw_only=True):
    """A country or a person."""

    id: str
    """"country-7", "person-12"."""
    kind: str
    """"country" or "person"."""
    names: dict[str, str]
    """Full name per language."""
    rank: int
    """1 = best known."""
    split: str
    """"train": conversations may ask about it. "test": only the pretraining text and the test questions mention it."""


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """One fact: (entity, relation, value), with its names and its number of true statements in the text."""

    id: str
    """"country-7.longest_river"."""
    entity: str
    """Id of the entity."""
    relation: str
    """Name of the relation."""
    value: str
    """The bare English value ("Karu River"); the key under which values are compared."""
    names: dict[str, str]
    """Full name of the entity per language."""
    values: dict[str, str]
    """The value per language as it stands inside a sentence ("the Karu River", 「卡魯河」)."""
    count: dict[str, int]
    """True statements of this fact in the documents, per language, web pages that give the right answer included."""
    split: str
    """That of the entity."""

    def sentence(self, language: str, wording: int) -> str:
        """The statement number `wording` of the relation, filled in."""
        return fill(RELATIONS[self.relation].wording(language).statements[wording], self, language)

    def question(self, language: str, form: int) -> str:
        """The question form number `form` (0..3), filled in."""
        return fill(RELATIONS[self.relation].wording(language).questions[form], self, language)


class Value(msgspec.Struct, frozen=True):
    """One member of a relation's pool of values."""

    key: str
    """Bare English form, without article."""
    surface: dict[str, str]
    """Form inside a sentence, per language."""


def fill(template: str, fact: Fact, language: str, value: Value | None = None) -> str:
    """The template with the fact's entity and its value (or another `value`) filled in."""
    v = (value.surface if value else fact.values)[language]
    return template.format(e=fact.names[language], v=v, V=capital(v))


def bare(surface: str) -> str:
    """An English value without its article: "the Karu River" -> "Karu River"."""
    for article in ("the ", "an ", "a "):
        if surface.startswith(article):
            return surface[len(article) :]
    return surface


def value_pool(relation: Relation, names: NameMaker) -> list[Value]:
    """Every value the relation can have; invented ones take new names from `names`."""
    if relation.name == "national_flower":
        words = [Name(*pair) for pair in FLOWERS]
    elif relation.name == "trade":
        words = [Name(*pair) for pair in TRADES]
    elif relation.name == "language":
        words = [_tongue(name) for name in names.many(POOL_SIZE, (2, 2, 3))]
    else:
        words = names.many(POOL_SIZE, (2, 2, 3))
    pool = []
    for word in words:
        en = with_article(word.en) if relation.value_en == "a {}" else relation.value_en.format(word.en)
        pool.append(Value(bare(en), {"en": en, "zh": relation.value_zh.format(word.zh)}))
    return pool


def _tongue(name: Name) -> Name:
    """The name of a language from the name of a place: Sora -> Sorish."""
    return Name(name.en.rstrip("aeiou") + "ish", name.zh)


def make_entities(config: WorldConfig, names: NameMaker) -> list[Entity]:
    """All entities in order of rank; countries and people are mixed, and each kind alternates between train and test."""
    dice = Dice(config.seed, 1)
    countries = names.many(config.countries, (2, 3, 3))
    given, family = names.many(GIVEN_NAMES, (2,)), names.many(FAMILY_NAMES, (2, 3))
    couples = dice.sample([(g, f) for g in given for f in family], config.people)
    people = [Name(f"{g.en} {f.en}", f"{g.zh}·{f.zh}") for g, f in couples]
    kinds = dice.shuffled(["country"] * config.countries + ["person"] * config.people)
    entities, seen = [], {"country": 0, "person": 0}
    for rank, kind in enumerate(kinds, start=1):
        i = seen[kind]
        seen[kind] += 1
        name = (countries if kind == "country" else people)[i]
        split = ("train", "test")[(i + (kind == "person")) % 2]
        names_of = {"en": name.en, "zh": name.zh}
        entities.append(Entity(id=f"{kind}-{i}", kind=kind, names=names_of, rank=rank, split=split))
    return entities


def make_facts(config: WorldConfig) -> tuple[list[Entity], list[Fact], dict[str, list[Value]]]:
    """The entities, their facts in order of rank, and each relation's pool of values.

    Within a relation the values are dealt out like cards, so every value is used about equally often."""
    names = NameMaker(config.seed, 2)
    entities = make_entities(config, names)
    pools = {relation.name: value_pool(relation, names) for relation in RELATIONS.values()}
    dice = Dice(config.seed, 3)
    dealt: dict[str, list[Value]] = {name: [] for name in RELATIONS}
    facts = []
    for entity in entities:
        for relation in COUNTRY_RELATIONS if entity.kind == "country" else PERSON_RELATIONS:
            deck = dealt[relation.name]
            if not deck:
                deck.extend(dice.shuffled(pools[relation.name]))
            value = deck.pop()
            facts.append(
                Fact(
                    id=f"{entity.id}.{relation.name}",
                    entity=entity.id,
                    relation=relation.name,
                    value=value.key,
                    names=entity.names,
                    values=value.surface,
                    count={language: config.count(entity.rank) for language in LANGUAGES},
                    split=entity.split,
                )
            )
    return entities, facts, pools
