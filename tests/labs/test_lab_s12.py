"""S12: who is told of how often, what a fact's question is, how fast it is learned, the verdict, and the lab at tiny."""

import json
import math
from collections import Counter

import pytest

from fledge.core.config import build
from fledge.labs import s12_categories as s12
from fledge.labs.bench import Bench
from fledge.labs.verdict import REPRODUCED, verdict
from fledge.probe.knowledge import CATEGORIES
from fledge.world.biographies import People

PEOPLE = People(20, 0, s12.Setup().attributes)


def test_texts_follow_zipf():
    counts = Counter(b.person for b in s12.told_often(PEOPLE, 40))
    assert [counts[i] for i in (0, 1, 3, 9, 19)] == [40, 20, 10, 4, 2]
    assert set(Counter(b.person for b in s12.told_often(PEOPLE, 5)).values()) == {5, 2, 1}
    assert len({b.text for b in s12.told_often(PEOPLE, 5) if b.person == 0}) == 5


def test_a_fact_is_asked_in_words_of_the_text():
    person = PEOPLE.all[0]
    asked = s12.beginning(s12.Item(person, "birthcity"))
    assert asked.question == f" {person.name} was born in" and asked.answers == (person.values["birthcity"].en,)
    pairs = s12.Item(person, "major").pairs()
    assert len(pairs) == 3 and {a for _, a in pairs} == {f" {person.values['major'].en}"}


def test_times_to_learn_half():
    curve = [{"epochs": 2.0, "train": 0.25}, {"epochs": 4.0, "train": 0.75}, {"epochs": 50.0, "train": 1.0}]
    assert s12.epochs_to(curve, 0.5) == pytest.approx(3.0) and s12.epochs_to(curve, 0.125) == pytest.approx(1.0)
    assert s12.epochs_to(curve[:1], 0.5) == 2.0


def seed(**known):
    """known: what an arm answers of HighlyKnown and MaybeKnown facts at convergence."""

    def arm(name, half):
        ends = {c: known.get(name, 0.8) for c in CATEGORIES}
        early = {"epochs": 4.0, "train": 0.3, "dev": 0.5, "test": dict.fromkeys(CATEGORIES, 0.8), "all": 0.5}
        last = {"epochs": 50.0, "train": 1.0, "dev": 0.5, "test": ends, "all": 0.5}
        return {
            "curve": [early | {"epochs": half, "train": 0.5}, *[early] * 3, last],
            "early": early,
            "converged": last,
        }

    arms = {name: arm(name, 8.0 if name == "Unknown" else 2.0) for name in s12.ARMS}
    counts = {part: dict.fromkeys(CATEGORIES, 50) for part in ("train", "dev", "test")}
    return {"counts": counts, "taught": 50, "arms": arms}


def test_the_verdict():
    good = {"Unknown": 0.6, "HighlyKnown": 0.75, "MaybeKnown": 0.79}
    assert verdict(s12.judge(s12.Setup(), [seed(**good)]).checks) == REPRODUCED
    for wrong in ({"Unknown": 0.7}, {"HighlyKnown": 0.78}):
        assert sum(not c.held for c in s12.judge(s12.Setup(), [seed(**good | wrong)]).checks) == 1, wrong
    without = seed(**good)
    del without["arms"]["HighlyKnown"]
    checks = s12.judge(s12.Setup(), [without]).checks
    assert [c.held for c in checks] == [True, True, False, False, True] and math.isnan(checks[2].value)


def test_wrong_settings_are_told():
    with pytest.raises(ValueError, match="must be below epochs"):
        build(s12.Setup, {"early": [60.0]})
    with pytest.raises(ValueError, match="must be of birthcity, major, employer"):
        build(s12.Setup, {"attributes": ["band"]})


def test_the_lab_runs(tmp_path):
    setup, bench = s12.SCALES["tiny"], Bench(tmp_path / "seed", tmp_path / "shared", 0, "tiny")
    told = json.loads(json.dumps(s12.measure(setup, bench)))
    assert sum(sum(by.values()) for by in told["counts"].values()) == setup.people * 3
    assert "Natural" in told["arms"] and told["taught"] <= setup.taught
    for arm in told["arms"].values():
        assert [at["epochs"] for at in arm["curve"]] == [1.0, 2.0] and arm["converged"] == arm["curve"][-1]
    found = s12.judge(setup, [told, told])
    assert len(found.numbers) <= 8 and [c.core for c in found.checks] == [True] * 3 + [False] * 2
    assert s12.draw(setup, [told, told]).startswith("<svg")


def test_documents_hold_every_text_once():
    texts = [f" {i}." for i in range(50)]
    found = s12.documents(texts, 5, 0)
    assert sorted("".join(found).split()) == sorted("".join(texts).split()) and max(t.count(".") for t in found) == 5
    assert s12.documents(texts, 1, 0) != texts and set(s12.documents(texts, 1, 0)) == set(texts)
