"""Rules, tasks and the user's function as rewards; what cannot be scored is told with its prompt and answer."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from fledge.feedback.rewards import TaskReward, UserReward, checked, contains, exact, length, pattern
from fledge.feedback.rules import Rule
from fledge.tasks.arithmetic import Arithmetic
from fledge.tasks.base import Example, user


def example(*answers: str, prompt: str = "say it", id: str = "e1") -> Example:
    return Example(id=id, prompt=user(prompt), answers=answers, kind="prompt", language="en")


def scores(reward, answers: list[str], *accepted: str) -> list[float]:
    return reward([example(*accepted)] * len(answers), answers)


def test_a_task_is_its_own_reward():
    task = Arithmetic()
    examples = task.examples("test")[:20]
    answers = [e.answers[0] if i % 3 else "7" for i, e in enumerate(examples)]
    reward = TaskReward(task)
    assert reward(examples, answers) == [task.score(e, a) for e, a in zip(examples, answers, strict=True)]
    assert reward.name == "task" and set(reward(examples, answers)) == {0.0, 1.0}


def test_exact():
    assert scores(exact(), ["2", " two\n", "3", ""], "2", "two") == [1, 1, 0, 0]
    with pytest.raises(ValueError, match="no answer to compare with"):
        scores(exact(), ["2"])


def test_pattern_matches_the_whole_answer():
    assert scores(pattern(r"\d+"), ["12", "12 ", "x12", "", "１"]) == [1, 0, 0, 0, 1]
    assert scores(pattern("a.b"), ["a b", "a\nb"]) == [1, 0]
    with pytest.raises(ValueError, match=r"regex:\(: not a regular expression"):
        pattern("(")


def test_length_falls_in_a_line():
    assert scores(length(10), ["", "x" * 10, "x" * 15, "x" * 20, "x" * 99]) == [1, 1, 0.5, 0, 0]
    assert scores(length(4), ["中文字四", "中文字四五"]) == [1, 0.75]
    with pytest.raises(ValueError, match="at least 1 character"):
        length(0)


def test_contains():
    assert scores(contains("because"), ["just because.", "Because", ""]) == [1, 0, 0]
    with pytest.raises(ValueError, match="needs a text"):
        contains("")


# ---- the user's function


def write(tmp_path: Path, body: str, name: str = "rules.py") -> Path:
    path = tmp_path / name
    path.write_text(body, "utf-8")
    return path


def test_a_user_function_has_the_signature_of_a_task(tmp_path: Path):
    path = write(
        tmp_path,
        "from dataclasses import dataclass\n@dataclass\nclass Seen:\n    n: int\n"
        "def mine(example, answer):\n    return Seen(len(answer)).n + len(example.answers)\n",
    )
    reward = UserReward(path, "mine")
    assert scores(reward, ["", "abc"], "x", "y") == [2.0, 5.0]
    assert reward.name == f"{path}:mine"


def test_bools_and_numpy_numbers_are_numbers(tmp_path: Path):
    path = write(
        tmp_path, "import numpy\ndef f(e, a):\n    return numpy.float32(0.5) if a else True\ndef g(e, a): return 3"
    )
    assert scores(UserReward(path, "f"), ["a", ""]) == [0.5, 1.0]
    assert [type(s) for s in scores(UserReward(path, "g"), ["a"])] == [float]


def test_an_edited_file_is_read_again_and_is_another_reward(tmp_path: Path):
    path = write(tmp_path, "def f(e, a): return 1\n")
    first = UserReward(path, "f")
    write(tmp_path, "def f(e, a): return 22\n")
    second = UserReward(path, "f")
    assert scores(first, ["a"]) == [1] and scores(second, ["a"]) == [22]
    assert first.identity != second.identity == UserReward(path, "f").identity


def test_two_files_of_one_name_do_not_meet(tmp_path: Path):
    rewards = []
    for folder, value in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        rewards.append(UserReward(write(tmp_path / folder, f"V = {value}\ndef f(e, a): return V\n"), "f"))
    assert [scores(reward, ["a"]) for reward in rewards] == [[1], [2]]


def test_an_error_in_the_function_is_told_with_prompt_answer_and_line(tmp_path: Path):
    path = write(tmp_path, "def inner(a):\n    return 1 / len(a)\n\ndef f(e, a):\n    return inner(a)\n")
    reward = UserReward(path, "f")
    assert scores(reward, ["ab"]) == [0.5]
    with pytest.raises(ValueError) as told:
        scores(reward, ["ab", ""])
    said = str(told.value)
    for part in (
        "'say it'",
        "e1",
        "the answer ''",
        "ZeroDivisionError: division by zero",
        "line 2 of",
        "return 1 / len(a)",
    ):
        assert part in said, said
    assert isinstance(told.value.__cause__, ZeroDivisionError)


def test_long_texts_are_shortened_in_errors(tmp_path: Path):
    reward = UserReward(write(tmp_path, "def f(e, a): raise KeyError('x')"), "f")
    with pytest.raises(ValueError) as told:
        reward([example(prompt="p" * 5000)], ["a" * 5000])
    assert len(str(told.value)) < 1500 and "ppp..." in str(told.value) and "aaa..." in str(told.value)


@pytest.mark.parametrize(
    ("value", "given"),
    [("None", "None"), ("'1'", "str"), ("[1]", "list"), ("float('nan')", "nan"), ("float('-inf')", "-inf")],
)
def test_what_is_no_finite_number(tmp_path: Path, value: str, given: str):
    reward = UserReward(write(tmp_path, f"def f(e, a): return {value}"), "f")
    with pytest.raises(
        ValueError, match=f"gave {re.escape(given)} for the prompt 'say it' .* the answer 'hm': it must be a finite"
    ):
        scores(reward, ["hm"])


def test_files_that_cannot_be_used(tmp_path: Path):
    with pytest.raises(ValueError, match="does not exist; write it as"):
        UserReward(tmp_path / "none.py", "f")
    path = write(tmp_path, "x = 3\n")
    with pytest.raises(ValueError, match="has no 'f'; define `def f\\(example, answer\\)`"):
        UserReward(path, "f")
    with pytest.raises(ValueError, match="has a int, not a function, 'x'"):
        UserReward(path, "x")
    with pytest.raises(ValueError, match=r"cannot be loaded: SyntaxError.*line 2"):
        UserReward(write(tmp_path, "x = 1\ndef f(:\n"), "f")
    with pytest.raises(ValueError, match=r"cannot be loaded: ModuleNotFoundError.*line 2 of .*import not_there_at_all"):
        UserReward(write(tmp_path, "x = 1\nimport not_there_at_all\n"), "f")


# ---- the check the rollouts use


class Given:
    name, identity, unit = "given", "given", "score"

    def __init__(self, result):
        self.result = result

    def __call__(self, examples, answers):
        return self.result


def test_checked_lets_good_scores_through():
    reward = checked(Given(np.array([1.0, 0.5], np.float32)))
    found = reward([example()] * 2, ["a", "b"])
    assert found == [1.0, 0.5] and {type(s) for s in found} == {float}
    assert checked(reward) is reward and (reward.name, reward.identity, reward.unit) == ("given", "given", "score")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None, "1"])
def test_checked_names_the_answer_that_has_no_score(bad):
    examples = [example(prompt="first"), example(prompt="second", id="e2")]
    with pytest.raises(ValueError, match=r"reward given gave .* for the prompt 'second' \(id e2\) and the answer 'b'"):
        checked(Given([1.0, bad]))(examples, ["a", "b"])


def test_checked_counts():
    with pytest.raises(ValueError, match="reward given gave 1 scores for 2 answers"):
        checked(Given([1.0]))([example()] * 2, ["a", "b"])
    with pytest.raises(ValueError, match="2 examples and 1 answers"):
        checked(Given([1.0]))([example()] * 2, ["a"])
    assert checked(Given([]))([], []) == []


def test_a_rule_needs_as_many_answers_as_examples():
    with pytest.raises(ValueError):
        Rule("r", lambda e, a: 1.0)([example()] * 2, ["a"])
