"""Weighted sums, and Llama 2's piecewise reward against the formula written out."""

import math
import random
from statistics import fmean, pstdev

import pytest

from fledge.feedback.mixtures import LOGIT_LIMIT, Piecewise, Weighted, is_safety, whiten
from fledge.tasks.base import Example, user


class Fixed:
    """Scores by answer."""

    def __init__(self, table: dict[str, float], unit: str = "logit", name: str = "fixed"):
        self.table, self.unit, self.name, self.identity = table, unit, name, f"{name} {sorted(table.items())}"

    def __call__(self, examples, answers):
        return [self.table[answer] for answer in answers]


def example(kind: str = "fact", **meta) -> Example:
    return Example(id="e", prompt=user("q"), answers=(), kind=kind, language="en", meta=meta)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_a_weighted_sum():
    a, b = Fixed({"x": 1.0, "y": 3.0}, name="a"), Fixed({"x": 10.0, "y": -2.0}, name="b")
    mixed = Weighted([(0.5, a), (-2.0, b)])
    assert mixed([example()] * 2, ["x", "y"]) == [0.5 - 20.0, 1.5 + 4.0]
    assert mixed.name == "0.5*a + -2*b"
    assert mixed.identity != Weighted([(0.5, a), (2.0, b)]).identity
    assert Weighted([(0.0, a), (1.0, b)])([example()], ["x"]) == [10.0]
    assert mixed([], []) == []


@pytest.mark.parametrize("parts", [[], [(math.nan, Fixed({}))], [(math.inf, Fixed({}))]])
def test_impossible_weights(parts):
    with pytest.raises(ValueError, match="each weight must be a finite number, one at least"):
        Weighted(parts)


def test_piecewise_is_the_formula_of_llama_2():
    dice = random.Random(0)
    names = [str(i) for i in range(200)]
    help_, safe = ({n: dice.gauss(0, 3) for n in names} for _ in range(2))
    examples = [example("dangerous" if i % 4 == 0 else "fact") for i in range(200)]
    expected = []
    for e, n in zip(examples, names, strict=True):
        r_s, r_h = sigmoid(safe[n]), sigmoid(help_[n])
        r_c = r_s if e.kind == "dangerous" or r_s < 0.15 else r_h
        expected.append(min(10, max(-10, math.log(r_c / (1 - r_c)))))
    reward = Piecewise(Fixed(help_), Fixed(safe))
    assert reward.logits(examples, names) == pytest.approx(expected)
    got = reward(examples, names)
    mean, std = fmean(expected), pstdev(expected)
    assert got == pytest.approx([(x - mean) / std for x in expected])
    assert fmean(got) == pytest.approx(0, abs=1e-9) and pstdev(got) == pytest.approx(1)
    both = {(e.kind, safe[n] < math.log(0.15 / 0.85)) for e, n in zip(examples, names, strict=True)}
    assert len(both) == 4, "every branch was taken"


def test_probabilities_give_the_same_as_their_logits():
    logits = {"a": -3.0, "b": 0.5, "c": 2.0}
    other = {"a": 1.0, "b": -2.5, "c": 0.1}
    as_logits = Piecewise(Fixed(other), Fixed(logits))
    as_probabilities = Piecewise(
        Fixed({k: sigmoid(v) for k, v in other.items()}, "score"),
        Fixed({k: sigmoid(v) for k, v in logits.items()}, "score"),
    )
    rows = [example()] * 3, ["a", "b", "c"]
    assert as_probabilities(*rows) == pytest.approx(as_logits(*rows))


def test_certainty_does_not_overflow():
    rows = [example()] * 4, ["a", "b", "c", "d"]
    extreme = Fixed({"a": 1e300, "b": -1e300, "c": 40.0, "d": 0.0})
    assert Piecewise(extreme, Fixed(dict.fromkeys("abcd", 1e4))).logits(*rows) == [
        LOGIT_LIMIT,
        -LOGIT_LIMIT,
        LOGIT_LIMIT,
        0,
    ]
    sure = Fixed({"a": 1.0, "b": 0.0, "c": 1 - 1e-16, "d": 1e-320}, "score")
    found = Piecewise(sure, Fixed(dict.fromkeys("abcd", 1.0), "score")).logits(*rows)
    assert found == [LOGIT_LIMIT, -LOGIT_LIMIT, LOGIT_LIMIT, -LOGIT_LIMIT]


def test_a_part_that_is_no_probability_is_told():
    points = Fixed({"a": 4.0}, "score", "points")
    with pytest.raises(ValueError, match=r"reward points gave 4.0 .*the answer 'a'.*probability between 0 and 1"):
        Piecewise(Fixed({"a": 0.0}), points)([example()], ["a"])


def test_fixed_statistics_do_not_look_at_the_batch():
    reward = Piecewise(Fixed({"a": 1.0, "b": 3.0}), Fixed({"a": 5.0, "b": 5.0}), statistics=(1.0, 2.0))
    assert reward([example()] * 2, ["a", "b"]) == [0.0, 1.0]
    assert reward([example()], ["b"]) == [1.0]
    assert reward.identity != Piecewise(reward.helpful, reward.safe).identity


def test_equal_scores_whiten_to_zero():
    assert whiten([2.0, 2.0]) == [0.0, 0.0] and whiten([]) == []
    assert whiten([1.0, 3.0]) == [-1.0, 1.0]


def test_which_prompts_are_about_safety():
    assert is_safety(example("dangerous")) and is_safety(example(is_safety=True))
    assert not is_safety(example("borderline")) and not is_safety(example(is_safety=False)) and not is_safety(example())
    told = Piecewise(Fixed({"a": 1.0}), Fixed({"a": 2.0}), lambda e: e.meta["mine"])
    assert told.logits([example(mine=True), example(mine=False)], ["a", "a"]) == [2.0, 1.0]


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.1, math.nan])
def test_impossible_thresholds(threshold: float):
    with pytest.raises(ValueError, match="must be a probability between 0 and 1"):
        Piecewise(Fixed({}), Fixed({}), threshold=threshold)


@pytest.mark.parametrize("statistics", [(0.0, 0.0), (0.0, -1.0), (math.nan, 1.0), (0.0, math.inf)])
def test_impossible_statistics(statistics):
    with pytest.raises(ValueError, match="a standard deviation above 0"):
        Piecewise(Fixed({}), Fixed({}), statistics=statistics)
