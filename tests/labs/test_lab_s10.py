"""S10, rules and examples instead of training: the whole lab at tiny, and its judge on answers written by hand."""

import json

import pytest

from fledge.generate.chat import Answer
from fledge.generate.rules import TokenBias
from fledge.labs import s10_rules
from fledge.labs.bench import Bench


@pytest.fixture(scope="module")
def told(little_journey, tmp_path_factory) -> dict:
    bench = Bench(tmp_path_factory.mktemp("S10"), little_journey, 0, "tiny")
    return json.loads(json.dumps(s10_rules.measure(s10_rules.SCALES["tiny"], bench)))


def test_every_arm_is_judged(told):
    assert {
        "SFT",
        "base",
        "three rules",
        *s10_rules.ABLATIONS.values(),
        "random 0",
        "0 examples",
        "1 example",
        "3 examples, wrong",
    } <= set(told["arms"])
    for name, arm in told["arms"].items():
        assert 0 <= arm["right"] <= arm["answers"] <= arm["stopped"] <= 1 and 0 <= arm["wins"] <= 1, name
    found = s10_rules.judge(s10_rules.SCALES["tiny"], [told, told])
    assert len(found.numbers) <= 8 and sum(check.core for check in found.checks) == 4
    assert s10_rules.draw(s10_rules.SCALES["tiny"], [told, told]).startswith("<svg")


def test_points_are_for_straight_answers_that_end(world):
    asked = next(e for e in s10_rules.questions(world, "test", s10_rules.SCALES["tiny"], 0) if e.language == "en")
    right, other = asked.meta["value"], next(v for v in asked.meta["choices"] if v != asked.meta["value"])

    def judged(text: str, finish: str = "stop") -> int:
        return s10_rules.points(asked, Answer(text, finish, 0))

    assert judged(f"It is {right}.") == 2 and judged(f"It is {other}.") == 1
    assert judged(f"It is {right}.\n\nWho can tell me?") == 1  # more than was asked for
    assert judged(f"It is {right}.", "length") == judged("Who can tell me?") == judged(f"(A) {right}\n(B) {right}") == 0


def test_two_answers_that_are_none_are_no_win():
    assert s10_rules.won([0, 1, 2, 2, 0], [0, 1, 2, 1, 2]) == pytest.approx((0 + 0.5 + 0.5 + 1 + 0) / 5)


def test_examples_are_of_training_facts_and_wrong_ones_are_wrong(world):
    right, wrong = (s10_rules.examples_before(world, "zh", 3, truth, 0) for truth in (True, False))
    assert right.count("\n\n") == wrong.count("\n\n") == 3 and right != wrong
    assert [line for line in right.split("\n") if "？" in line] == [line for line in wrong.split("\n") if "？" in line]
    train = {f.sentence("zh", 0) for f in world.facts if f.split == "train"}
    assert all(pair.split("\n")[1] in train for pair in right.strip().split("\n\n"))
    assert not any(pair.split("\n")[1] in train for pair in wrong.strip().split("\n\n"))


def test_a_random_rule_has_the_same_numbers_and_no_end():
    bias = TokenBias({5: -6.0, 6: -6.0, 7: 1.0})
    found = s10_rules.random_bias(bias, 12, [0, 1, 2], 3)
    assert sorted(found.biases.values()) == [-6.0, -6.0, 1.0] and not set(found.biases) & {0, 1, 2}
