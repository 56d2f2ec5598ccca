"""What the models of P9 know before any question is asked: by heart, off the bare name, and from place to place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fledge.generate.scoring import Asked, score
from fledge.probe.linear import query_probe
from fledge.stages.common import Parent
from fledge.stages.evaluate import rate
from fledge.world.biographies import TELLINGS, Biography, People

if TYPE_CHECKING:
    from fledge.labs.p09_extraction import Setup


def by_heart(opened: Parent, told: Sequence[Biography], attributes: Sequence[str]) -> dict[str, float]:
    """Share of the values whose first token is the base model's likeliest, in texts that it has read, one of each person.

    Texts that come to the name last are left out: their values stand before anything tells whose they are.
    """
    texts = {b.person: b for b in told if b.name_place < min(b.places.values())}
    places = [(a, b.text[: b.places[a]], b.text[b.places[a] :]) for b in texts.values() for a in attributes]
    heads, tails = (opened.tokenizer.encode_batch([place[part] for place in places]) for part in (1, 2))
    scored = score(opened.model, [Asked([opened.tokenizer.bos, *a], b[:1]) for a, b in zip(heads, tails, strict=True)])
    return {a: rate(s.greedy for s, (kind, *_) in zip(scored, places, strict=True) if kind == a) for a in attributes}


def _probe(
    setup: Setup, opened: Parent, people: People, texts: Sequence[str], attributes: Sequence[str]
) -> dict[str, float]:
    """query_probe of one text of each of `probed` people, the taught half of them to fit on."""
    tokenizer, half = opened.tokenizer, len(texts) // 2
    rows = [[tokenizer.bos, *ids] for ids in tokenizer.encode_batch(texts)]
    some = [*people.all[: len(people.all) // 2][:half], *people.all[len(people.all) // 2 :][:half]]
    values = {a: [p.values[a].en for p in some] for a in attributes}
    words = {v: tokenizer.encode(f" {v}")[0] for column in values.values() for v in column}
    labels = {a: (column[:half], column[half:]) for a, column in values.items()}
    found = query_probe(
        opened.model, rows[:half], rows[half:], labels, words, query=tokenizer.eos, steps=setup.probe_steps
    )
    return {a: told.accuracy for a, told in found.items()}


def name_probe(setup: Setup, opened: Parent, people: People) -> dict[str, float]:
    """The Q-probe: what can be read off a person's name alone, of people that the probe was not fitted on."""
    return _probe(setup, opened, people, [f" {p.name}" for p in people.all], people.attributes)


def place_probe(setup: Setup, opened: Parent, people: People) -> list[dict[str, float]]:
    """The P-probe: before the value of each attribute, in order, what can be read of those that are still to come."""
    half, size = len(people.all) // 2, min(setup.probed, len(people.all) // 2)
    told = [people.biography(p, TELLINGS["single"]) for p in (*people.all[:size], *people.all[half:][:size])]
    return [
        _probe(setup, opened, people, [b.text[: b.places[a]] for b in told], people.attributes[place:])
        for place, a in enumerate(people.attributes)
    ]
