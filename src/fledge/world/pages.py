"""All documents of a world: pages of facts, web pages, plain sentences and junk, in one shuffled stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from fledge.world.config import WorldConfig
from fledge.world.dice import Dice
from fledge.world.facts import RELATIONS, Fact, Value
from fledge.world.grammar import SENTENCE
from fledge.world.junk import junk_pages
from fledge.world.page import page
from fledge.world.relations import LANGUAGES
from fledge.world.requests import plain_knowledge
from fledge.world.style import join
from fledge.world.web import web_pages


def fact_pages(facts: list[Fact], stated: Counter, language: str, dice: Dice) -> Iterator[dict]:
    """Pages of two to four sentences on one entity, until each fact is stated `count` times less `stated`."""
    entity: dict[str, list[Fact]] = {}
    for fact in facts:
        entity.setdefault(fact.entity, []).append(fact)
    for group in entity.values():
        left = {fact.id: fact.count[language] - stated[fact.id] for fact in group}
        sentences = {fact.id: all_sentences(fact, language) for fact in group}
        while any(left.values()):
            # the facts with most statements to go come first; ties in random order
            order = sorted(dice.shuffled(list(left)), key=left.__getitem__, reverse=True)
            open_facts = [id for id in order if left[id]]
            chosen = dice.shuffled(open_facts[: 2 + dice.below(len(group) - 1)])
            for id in chosen:
                left[id] -= 1
            yield page(join([dice.pick(sentences[id]) for id in chosen], language), language, "facts", facts=chosen)


def all_sentences(fact: Fact, language: str) -> list[str]:
    """Every wording of the fact."""
    return [fact.sentence(language, i) for i in range(len(RELATIONS[fact.relation].wording(language).statements))]


def grammar_pages(language: str, chars: int, dice: Dice) -> Iterator[dict]:
    """Pages of three to six plain sentences; about one sentence in five says what a thing is or how it is done."""
    sentence, knowledge, written = SENTENCE[language], plain_knowledge(language), 0
    while written < chars:
        text = join(
            [dice.pick(knowledge) if dice.chance(0.2) else sentence(dice) for _ in range(3 + dice.below(4))], language
        )
        written += len(text)
        yield page(text, language, "grammar")


def make_documents(config: WorldConfig, facts: list[Fact], pools: dict[str, list[Value]]) -> list[dict]:
    """Every document, in an order that depends on the seed only."""
    documents: list[dict] = []
    facts_share = 1 - config.web_share - config.grammar_share - config.junk_share
    for number, language in enumerate(LANGUAGES):
        dice = Dice(config.seed, 10 + number)
        # mean length of a statement x number of statements: the facts pages, before web answers take a few over
        expected = 0.0
        for fact in facts:
            sentences = all_sentences(fact, language)
            expected += fact.count[language] * (sum(map(len, sentences)) / len(sentences) + (language == "en"))
        per_share = 0.965 * expected / facts_share
        web = list(web_pages(facts, pools, language, round(per_share * config.web_share), dice))
        stated = Counter(id for row in web for id in row["facts"])
        grammar = list(grammar_pages(language, round(per_share * config.grammar_share), dice))
        documents += web
        documents += fact_pages(facts, stated, language, dice)
        documents += grammar
        documents += junk_pages(facts, pools, grammar, language, round(per_share * config.junk_share), dice)
    return Dice(config.seed, 12).shuffled(documents)
