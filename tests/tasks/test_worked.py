"""Sums worked out by columns: the work, slips that are carried on, the score and how far an answer came."""

import pytest

from fledge.tasks.arithmetic import Arithmetic
from fledge.tasks.base import Example, user
from fledge.tasks.worked import WorkedSums, worked


def sum_of(text: str, answer: str) -> Example:
    return Example(id=text, prompt=user(text), answers=(answer,), kind="add", language="en")


def test_columns_from_the_right_with_their_carries():
    assert worked(sum_of("47+85=", "132")) == "7+5=12;4+8+1=13;132"
    assert worked(sum_of("360+127=", "487")) == "0+7=7;6+2=8;3+1=4;487"
    assert worked(sum_of("9+1=", "10")) == "9+1=10;10"


@pytest.mark.parametrize(
    ("column", "off", "said"),
    [(0, 1, "7+5=13;4+8+1=13;133"), (0, -1, "7+5=11;4+8+1=13;131"), (1, 1, "7+5=12;4+8+1=14;142")],
)
def test_a_slip_is_carried_on(column, off, said):
    assert worked(sum_of("47+85=", "132"), column, off) == said


def test_a_slip_can_lose_a_carry_and_nothing_is_below_zero():
    assert worked(sum_of("55+45=", "100"), 0, -1) == "5+5=9;5+4=9;99"
    assert worked(sum_of("10+20=", "30"), 0, -1) == "0+0=1;1+2=3;31"


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_work_is_right_and_every_slip_wrong(digits):
    task = WorkedSums(digits)
    for example in task.examples("train")[:400]:
        assert task.score(example, worked(example)) == task.score(example, f" {example.answers[0]} ") == 1.0
        for column in range(digits):
            assert not task.score(example, worked(example, column, 1)) and not task.score(
                example, worked(example, column, -1)
            )
    assert [e.id for e in task.examples("test")] == [e.id for e in Arithmetic(digits).examples("test")]


def test_only_what_stands_after_the_last_mark_counts():
    task, example = WorkedSums(2), sum_of("47+85=", "132")
    assert task.score(example, "1+1=3;132") == 1.0
    assert task.score(example, "7+5=12;132;") == task.score(example, "132;7") == task.score(example, "") == 0.0


def test_progress_is_the_share_of_right_parts_from_the_left():
    task, example = WorkedSums(2), sum_of("47+85=", "132")
    written = [
        "",
        "7+5=1",
        "7+5=12",
        "7+5=12;4+8+1=13",
        "7+5=12;4+8+1=13;132",
        "7+5=12;4+8=12;132",
        "7+5=12;4+8+1=13;132;",
    ]
    assert [task.progress(example, text) for text in written] == pytest.approx([0, 0, 1 / 3, 2 / 3, 1, 1 / 3, 0])


def test_lessons_hold_the_share_of_wrong_answers_and_no_test_sum():
    task = WorkedSums(2)
    held_out = {e.id for e in task.examples("test")}
    chats = list(task.chats(1000, 0.3))
    by_id = {e.id: e for e in task.examples("train")}
    right = [task.score(by_id[c[0]["content"]], c[1]["content"]) for c in chats]
    assert 0.65 < sum(right) / len(right) < 0.75 and not held_out & {c[0]["content"] for c in chats}
    assert sum(task.score(by_id[c[0]["content"]], c[1]["content"]) for c in task.chats(50)) == 50
    lines = [line for page in task.texts(20) for line in page.splitlines()]
    assert len(lines) == 140 and all(
        task.score(by_id[q + "="], rest) for q, _, rest in (li.partition("=") for li in lines)
    )
