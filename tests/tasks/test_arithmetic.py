"""Sums: right questions, honest splits, exact scores, a potential that leads to the answer."""

import pytest

from fledge.tasks.arithmetic import TEST_QUESTIONS, TRAIN_QUESTIONS, Arithmetic


def twins(questions: list[str]) -> set[str]:
    """Questions with the operands in order, so that 85+47 and 47+85 are one."""
    out = set()
    for question in questions:
        sign = next(c for c in "+-*" if c in question)
        a, b = map(int, question.rstrip("=").split(sign))
        out.add(f"{max(a, b)}{sign}{min(a, b)}")
    return out


@pytest.mark.parametrize(("digits", "operations"), [(1, "+"), (1, "+-*"), (2, "+"), (2, "+-*"), (3, "-"), (4, "*")])
def test_every_question_is_right_and_no_sum_is_in_both_splits(digits: int, operations: str):
    task = Arithmetic(digits, operations)
    splits = {split: task.examples(split) for split in ("train", "test")}
    assert splits == {split: Arithmetic(digits, operations).examples(split) for split in splits}
    for examples in splits.values():
        assert len({e.id for e in examples}) == len(examples)
        for example in examples:
            question = example.prompt[-1]["content"]
            left = question.rstrip("=")
            assert example.answers == (str(eval(left)),) and int(example.answers[0]) >= 0
            assert all(len(n) == digits for n in left.replace("-", "+").replace("*", "+").split("+"))
            assert task.score(example, example.answers[0]) == task.score(example, f" {example.answers[0]}\n") == 1.0
            assert task.score(example, "") == task.score(example, example.answers[0] + "0") == 0.0
    asked = {split: twins([e.id for e in examples]) for split, examples in splits.items()}
    assert not asked["train"] & asked["test"]
    assert {e.kind for e in splits["train"]} == {{"+": "add", "-": "subtract", "*": "multiply"}[o] for o in operations}


def test_sizes_of_the_splits():
    two = Arithmetic()
    assert len(two.examples("test")) == TEST_QUESTIONS and len(two.examples("train")) == 90 * 90 - 501
    assert len(Arithmetic(4).examples("train")) == TRAIN_QUESTIONS
    few = Arithmetic(1)
    assert len(few.examples("test")) == 16 and len(few.examples("train")) >= 64


def test_another_seed_is_another_split():
    assert Arithmetic(seed=1).examples("test") != Arithmetic().examples("test")


def test_progress_counts_right_digits_from_the_left():
    task = Arithmetic()
    example = next(e for e in task.examples("test") if len(e.answers[0]) == 3)
    right = example.answers[0]
    other = str((int(right[1]) + 1) % 10)
    partials = ["", right[0], right[:2], right, right + "0", right[0] + other, other * 3 if other != right[0] else "x"]
    expected = [0, 1 / 3, 2 / 3, 1, 0, 1 / 3, 0]
    assert [task.progress(example, p) for p in partials] == pytest.approx(expected)


def test_the_lesson_holds_no_test_question_and_is_wrong_as_often_as_asked():
    task = Arithmetic()
    train = {e.id: e for e in task.examples("train")}
    texts = list(task.texts(300))
    assert texts == list(task.texts(300))
    for line in "\n".join(texts).splitlines():
        question, answer = line.split("=")
        assert train[question + "="].answers == (answer,)
    for wrong in (0.0, 0.5, 1.0):
        chats = list(task.chats(1000, wrong))
        right = [task.score(train[q["content"]], a["content"]) for q, a in chats]
        assert all([m["role"] for m in chat] == ["user", "assistant"] for chat in chats)
        assert sum(right) / 1000 == pytest.approx(1 - wrong, abs=0.05 if wrong == 0.5 else 0)


@pytest.mark.parametrize("digits", [0, 5, -1])
def test_impossible_digits(digits: int):
    with pytest.raises(ValueError, match=f"digits = {digits}: must be between 1 and 4"):
        Arithmetic(digits)


@pytest.mark.parametrize("operations", ["", "/", "++", "+x"])
def test_impossible_operations(operations: str):
    with pytest.raises(ValueError, match="one or more of"):
        Arithmetic(2, operations)


def test_an_unknown_split():
    with pytest.raises(ValueError, match="'dev': must be 'train' or 'test'"):
        Arithmetic().examples("dev")
