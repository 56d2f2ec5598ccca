"""S2: which examples come first, what is a trap, what is a copy, how far weights moved, and the lab at tiny."""

import json

import pytest

from fledge.core.config import build
from fledge.core.model import Shape, Transformer
from fledge.labs import s02_initialisation as s02
from fledge.labs.bench import Bench
from fledge.labs.verdict import REPRODUCED, verdict


def test_the_first_examples_are_mountains_and_their_countries_stay_traps(world):
    taught = s02.examples(world, 300, 0)
    first = {t.fact.entity for t in taught[:4]}
    assert len({t[1:] for t in taught}) == 300 == len(taught) and len(first) == 4
    assert {t.fact.relation for t in taught[:4]} == {"highest_mountain"} and {t.language for t in taught[:4]} == {"en"}
    assert all(t.fact.split == "train" for t in taught) and not first & {t.fact.entity for t in taught[4:]}
    assert s02.examples(world, 16, 0) == taught[:16]
    asked = s02.questions(world, taught, s02.SCALES["tiny"], 0)
    assert {e.meta["fact"].split(".")[0] for e in asked["trap"]} <= first
    assert not {e.meta["relation"] for e in asked["trap"]} & {"highest_mountain"}
    assert {e.meta["relation"] for e in asked["same"]} == {"highest_mountain"}
    learned = {t.fact.entity for t in taught}
    assert not {e.meta["fact"].split(".")[0] for e in asked["same"] + asked["all"]} & learned


def test_a_copy_is_a_wrong_value_of_an_example(world):
    taught = s02.examples(world, 4, 0)
    example = s02.questions(world, taught, s02.SCALES["tiny"], 0)["same"][0]
    own, other = taught[0].fact.values, example.meta["value"]
    assert s02.copied(example, taught[0].answer, taught) and s02.copied(example, own["zh"], taught)
    assert not s02.copied(example, other, taught) and not s02.copied(example, "I do not know.", taught)
    assert not s02.copied(example, taught[0].answer, taught[1:])


def test_distance_is_relative_to_the_start():
    config = Shape(size="tiny", layers=1, context_tokens=16).resolved(60)
    start, moved = (Transformer(config).initialise(0) for _ in range(2))
    assert s02.distance(moved, start) == 0
    for p in moved.parameters():
        p.data.mul_(1.25)
    assert s02.distance(moved, start) == pytest.approx(0.25, rel=1e-4)


def test_few_examples_are_read_more_often():
    setup = s02.Setup(epochs=6.0, least_reads=24.0)
    assert [setup.reads(n) for n in (1, 32, 64, 128, 1024)] == [24, 24, 12, 6, 6]
    with pytest.raises(ValueError, match="adapters_at = 5: must be one of examples"):
        build(s02.Setup, {"adapters_at": 5})
    with pytest.raises(ValueError, match="must rise"):
        build(s02.Setup, {"examples": [4, 1, 256]})


def test_the_lab_runs(little_journey, tmp_path):
    setup, bench = s02.SCALES["tiny"], Bench(tmp_path, little_journey, 0, "tiny")
    told = json.loads(json.dumps(s02.measure(setup, bench)))
    assert [arm["examples"] for arm in told["scratch"]] == [1, 8] == [arm["examples"] for arm in told["base"]]
    assert [a["steps"] for a in told["base"]] == [a["steps"] for a in told["scratch"]]
    assert told["lora"]["lora-1"]["merge_gap"] < 1e-4 and 0 < told["lora"]["lora-1"]["trained"] < 1
    found = s02.judge(setup, [told, told])
    assert len(found.numbers) <= 8 and [c.core for c in found.checks] == [True] * 4 + [False] * 4
    assert s02.draw(setup, [told, told]).startswith("<svg")


def seed(base=0.1, scratch=0.95, known=0.7, lora=0.68):
    def arms(copied, right):
        kinds = {"same": {"copied": copied, "right": 0.0}, "trap": {"copied": copied, "right": 0.0},
                 "all": {"copied": 0.0, "right": right}}  # fmt: skip
        return [kinds | {"bits_per_byte": 0.5} for _ in s02.Setup().examples]

    adapter = {"all": {"right": lora}, "bits_per_byte": 0.4, "trained": 0.048, "merge_gap": 1e-6}
    return {"base": arms(base, known), "scratch": arms(scratch, 0.02), "lora": {"lora-1": adapter, "lora-8": adapter},
            "asked": {"same": 40, "trap": 48, "all": 300}, "bits_per_byte": 0.3}  # fmt: skip


def test_the_verdict():
    assert verdict(s02.judge(s02.Setup(), [seed()]).checks) == REPRODUCED
    for wrong in ({"base": 0.31}, {"scratch": 0.79}, {"known": 0.59}, {"lora": 0.6}):
        assert sum(not c.held for c in s02.judge(s02.Setup(), [seed(**wrong)]).checks) == 1, wrong
