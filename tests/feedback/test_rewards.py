"""Rewards as the command line writes them, and every mistake told at once."""

from pathlib import Path

import pytest

from fledge.feedback.rewards import Piecewise, Weighted, checked, parse_rewards
from fledge.feedback.rules import Rule
from fledge.tasks.base import Example, user
from fledge.tasks.gsm8k import final_number

EXAMPLE = Example(id="e", prompt=user("6*7?"), answers=("42",), kind="prompt", language="en")


class Numbers:
    """A task whose score is the number in the answer."""

    def examples(self, split: str) -> list[Example]:
        return [EXAMPLE]

    def score(self, example: Example, answer: str) -> float:
        return float(final_number(answer) or 0)


def opened(folder: str) -> Rule:
    """Stands for a reward model: its score is the length of the answer."""
    reward = Rule(f"model {Path(folder).name}", lambda e, a: float(len(a)))
    reward.unit = "logit"
    return reward


def score(entries: list[str], answer: str, task=None) -> float:
    return checked(parse_rewards(entries, opened, task))([EXAMPLE], [answer])[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rm").mkdir()
    (tmp_path / "rules.py").write_text("def f(example, answer):\n    return 5 * (answer == example.answers[0])\n")
    return tmp_path


def test_every_form(folder: Path):
    for entry, answer, expected in (
        ("task", "7", 7.0),
        ("exact", "42", 1.0),
        ("regex:\\d{2}", "41", 1.0),
        ("regex:a:b", "a:b", 1.0),
        ("length:2", "123", 0.5),
        ("contains:4", "42", 1.0),
        ("contains: a#b*c", "2*contains:a#b*c a#b*c", 1.0),
        (f"{folder}/rules.py:f", "42", 5.0),
        (f"{folder}/rm", "abc", 3.0),
        (f"{folder}/rm/", "abc", 3.0),
        (" exact ", "42", 1.0),
        ("0.5*exact", "42", 0.5),
        ("-2*length:5", "a", -2.0),
        (" 1e-1 * exact", "42", 0.1),
        (".5*regex:.*", "x", 0.5),
    ):
        assert score([entry], answer, Numbers()) == pytest.approx(expected), entry


def test_relative_paths(folder: Path, monkeypatch):
    monkeypatch.chdir(folder)
    assert score(["rules.py:f", "rm"], "42") == 5.0 + 2.0


def test_one_reward_is_itself_and_several_are_a_sum(folder: Path):
    assert isinstance(parse_rewards(["exact"], opened, None), Rule)
    both = parse_rewards(["exact", "0.5*length:10", "3*task"], opened, Numbers())
    assert isinstance(both, Weighted) and both.name == "1*exact + 0.5*length:10 + 3*task"
    assert both([EXAMPLE], ["42"]) == [1.0 + 0.5 + 126.0]
    assert parse_rewards(["2*exact"], opened, None).name == "2*exact"


def test_a_judge_is_named_by_url_and_model():
    judge = parse_rewards(["judge:http://localhost:1/v1#org/model-7b"], opened, None)
    assert (judge.config.url, judge.config.model) == ("http://localhost:1/v1", "org/model-7b")


def test_piecewise(folder: Path):
    (folder / "safe").mkdir()
    reward = parse_rewards([f"piecewise({folder}/rm,{folder}/safe)"], opened, None)
    assert isinstance(reward, Piecewise) and reward.name == "piecewise(model rm,model safe)"
    assert reward.logits([EXAMPLE], ["abc"]) == [3.0]
    assert score(["2*piecewise(exact,regex:(4,?2|x))"], "42") == 0.0, "one answer whitens to 0"
    part = parse_rewards(["piecewise(exact, length:5)"], opened, None)
    assert (part.helpful.name, part.safe.name) == ("exact", "length:5")


def test_every_mistake_is_told_at_once(folder: Path):
    entries = [
        "task", "exactt", "regex:(", "length:x", "length:0", "contains:", f"{folder}/rules.py:g", f"{folder}/none.py:f",
        f"{folder}/none", "judge:localhost#m", "judge:http://localhost/v1", "piecewise(exact)", "piecewise(exact,zzz)",
        "0*exact", "1e999*exact", "", "rules.py", "exact",
    ]  # fmt: skip
    with pytest.raises(ValueError) as told:
        parse_rewards(entries, opened, None)
    first, *lines = str(told.value).split("\n  ")
    assert first == f"{len(entries) - 1} rewards cannot be used:"
    for entry, line in zip(entries, lines, strict=False):
        assert line.startswith(repr(entry)), line
    said = dict(zip(entries, lines, strict=False))
    for entry, part in {
        "task": "give --task", "exactt": "did you mean exact?", "regex:(": "not a regular expression", "length:x": "length:200",
        f"{folder}/rules.py:g": "has no 'g'", f"{folder}/none": "no such folder", "judge:localhost#m": "http://",
        "judge:http://localhost/v1": "must begin with http", "piecewise(exact)": "has 1 parts", "0*exact": "weight 0.0",
    }.items():  # fmt: skip
        assert part in said[entry], said[entry]


def test_a_folder_that_is_no_reward_model_is_one_of_the_mistakes(folder: Path):
    def broken(path: str):
        raise ValueError(f"{path} holds no checkpoint")

    with pytest.raises(ValueError, match=r"1 reward cannot be used:\n.*holds no checkpoint"):
        parse_rewards([f"0.5*{folder}/rm"], broken, None)


def test_no_reward_at_all():
    with pytest.raises(ValueError, match="no reward given: name at least one of task, exact"):
        parse_rewards([], opened, None)
