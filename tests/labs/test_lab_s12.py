"""S12: who is told of how often, what is asked, how fast it is learned, choices, the verdict, and the lab at tiny."""

import json
import math
from collections import Counter
from types import SimpleNamespace

import pytest

from fledge.core.config import build
from fledge.generate.scoring import Scored
from fledge.labs import s12_arms as arms
from fledge.labs import s12_categories as s12
from fledge.labs.bench import Bench
from fledge.labs.verdict import REPRODUCED, verdict
from fledge.probe.knowledge import CATEGORIES
from fledge.world.dice import Dice

TINY = s12.SCALES["tiny"]
CAST = arms.cast(TINY, 0)


def test_texts_follow_the_power_of_the_rank():
    def copies(**given):
        setup = build(s12.Setup, {"people": 20, "asked": 8, "strangers": 2, **given})
        return Counter(b.person for b in arms.told_often(setup, CAST.people))

    found = copies(most=40, famous=1, power=1.0)
    assert [found[i] for i in (0, 1, 3, 9, 19)] == [40, 20, 10, 4, 2]
    assert [found[i] for i in range(20, 30)] == [40] * 8 + [0] * 2  # those asked in the text, and strangers
    found = copies(most=8, famous=3, power=2.0)
    assert [found[i] for i in (0, 2, 5, 19)] == [8, 8, 2, 1]


def test_groups_of_people_share_nobody():
    groups = [{i.person.number for i in CAST.items(group)} for group in ("sorted", "asked", "strangers")]
    assert [len(g) for g in groups] == [20, 8, 2] and len(set.union(*groups)) == 30


def test_a_fact_is_asked_in_one_of_three_forms():
    pairs = [i.pair for i in CAST.items("sorted") if i.attribute == "major"]
    assert len({q.replace(i.person.name, "") for (q, _), i in
                zip(pairs, [i for i in CAST.items("sorted") if i.attribute == "major"], strict=True)}) == 3  # fmt: skip
    first = CAST.items("sorted")[0]
    assert first.question.answers == (first.person.values[first.attribute].en,)
    assert first.question.question == " " + first.pair[0] and first.pair[1] == " " + first.question.answers[0]


def test_documents_hold_every_text_once():
    texts = [f" {i}." for i in range(50)]
    found = arms.documents(texts, 5, Dice(0, 0))
    assert sorted("".join(found).split()) == sorted("".join(texts).split()) and max(t.count(".") for t in found) == 5
    assert arms.documents(texts, 1, Dice(0, 0)) != texts and set(arms.documents(texts, 1, Dice(0, 0))) == set(texts)


def test_the_likeliest_option_is_chosen(monkeypatch):
    logps = iter([-3.0, -1.0, -2.0, -0.5, -0.6, -0.7])
    monkeypatch.setattr(arms, "score", lambda model, asked: [Scored(next(logps), False) for _ in asked])
    opened = SimpleNamespace(
        model=None, tokenizer=SimpleNamespace(bos=0, encode_batch=lambda texts: [[len(t)] for t in texts])
    )
    assert arms.choices(opened, ["q", "r"], [["a", "b", "c"], ["d", "e", "f"]]) == [1, 0]
    offered = arms._options(CAST.items("sorted")[0], CAST.people, Dice(0, 0))
    assert len(set(offered)) == 4 and offered[0] == CAST.items("sorted")[0].question.answers[0]


def test_an_answer_holds_the_value_up_to_a_full_stop():
    item = CAST.items("sorted")[0]
    value = item.question.answers[0]
    assert arms.holds(f" {value}. What", item) and not arms.holds(f" {value} too.", item)
    assert arms.holds(arms.STYLED.format(answer=f" {value}"), item, " Of course! The answer is")


def test_style():
    assert arms.styled(arms.STYLED.format(answer=" Toben")) and not arms.styled(" Toben.")


def test_times_to_learn_half():
    curve = [{"epochs": 2.0, "train": 0.25}, {"epochs": 4.0, "train": 0.75}, {"epochs": 50.0, "train": 1.0}]
    assert s12.epochs_to(curve, 0.5) == pytest.approx(3.0) and s12.epochs_to(curve, 0.125) == pytest.approx(1.0)
    assert s12.epochs_to(curve[:1], 0.5) == 2.0


def seed(maybe=0.8, **known):
    """known: what an arm answers of every category at convergence. maybe: MaybeKnown facts that other arms than
    HighlyKnown answer at early stop.
    """

    def arm(name, half):
        ends = dict.fromkeys((*CATEGORIES, "all"), known.get(name, 0.8))
        before = dict.fromkeys((*CATEGORIES, "all"), 0.8) | {"MaybeKnown": 0.74 if name == "HighlyKnown" else maybe}
        early = {"epochs": 4.0, "train": 0.3, "dev": 0.5, "test": before}
        last = {"epochs": 50.0, "train": 1.0, "dev": 0.5, "test": ends}
        curve = [early | {"epochs": half, "train": 0.5}, *[early] * 3, last]
        return {"curve": curve, "early": early, "converged": last}

    made = {name: arm(name, 8.0 if name == "Unknown" else 2.0) for name in s12.ARMS}
    counts = {part: dict.fromkeys(CATEGORIES, 50) for part in arms.PARTS}
    return {
        "counts": counts, "taught": 50, "arms": made, "mixtures": [[0.0, 0.8], [0.5, 0.7]],
        "agreement": {"size": 50, "base": 0.5, "HAR": 0.7, "SELF": 0.6, "INC": 0.5},
        "imitation": {"facts_before": 0.5, "facts_after": 0.4, "style_before": 0.0, "style_after": 0.9, "rows": 50},
    }  # fmt: skip


def test_the_line_over_the_share_of_unknown_facts():
    assert s12.line(seed(Unknown=0.6)) == pytest.approx((-0.2, 0.8, 1.0))
    assert all(map(math.isnan, s12.line(seed(Unknown=math.nan))))


def test_the_verdict():
    good = {"Unknown": 0.6, "MaybeKnown": 0.79}
    assert verdict(s12.judge(s12.Setup(), [seed(**good)]).checks) == REPRODUCED

    def failing(found):
        return [c.says for c in s12.judge(s12.Setup(), [found]).checks if not c.held]

    assert failing(seed(**good | {"Unknown": 0.67})) == ["taught what it does not know, it loses what it knew well"]
    assert failing(seed(maybe=0.76, **good)) == [
        "at early stop, MaybeKnown facts teach more about their like than HighlyKnown ones"
    ]
    assert len(failing(seed(**good) | {"agreement": {"HAR": 0.5, "SELF": 0.6, "INC": 0.55}})) == 1
    assert len(failing(seed(**good) | {"imitation": seed()["imitation"] | {"facts_after": 0.54}})) == 1
    without = seed(**good)
    del without["arms"]["HighlyKnown"]
    assert len(failing(without)) == 2


def test_wrong_settings_are_told():
    with pytest.raises(ValueError, match="must be below epochs"):
        build(s12.Setup, {"early": [60.0]})
    with pytest.raises(ValueError, match="two or more of birthcity, university, major, employer"):
        build(s12.Setup, {"attributes": ["band", "major"]})
    with pytest.raises(ValueError, match="asked = 1: must be at least 8"):
        build(s12.Setup, {"asked": 1})


def test_the_lab_runs(tmp_path):
    bench = Bench(tmp_path / "seed", tmp_path / "shared", 0, "tiny")
    told = json.loads(json.dumps(s12.measure(TINY, bench)))
    assert sum(sum(by.values()) for by in told["counts"].values()) == TINY.people * 3
    assert "Natural" in told["arms"] and told["taught"] <= TINY.taught
    for arm in told["arms"].values():
        assert [at["epochs"] for at in arm["curve"]] == [1.0, 2.0] and arm["converged"] == arm["curve"][-1]
    assert [share for share, _ in told["mixtures"]] == list(TINY.shares)
    found = s12.judge(TINY, [told, told])
    assert len(found.numbers) <= 8 and len(found.checks) == 11
    assert s12.draw(TINY, [told, told]).startswith("<svg")
