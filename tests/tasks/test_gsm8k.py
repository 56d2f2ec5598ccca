"""Grade-school maths: the final number, however it is written, and files that hold other things."""

import gzip
import json
from decimal import Decimal
from pathlib import Path

import pytest

from fledge.tasks.gsm8k import Gsm8k, final_number

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "gsm8k"


def write(path: Path, rows: list[dict]) -> Path:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def rows(count: int, first: int = 0) -> list[dict]:
    return [{"question": f"{i} and 1?", "answer": f"{i}+1={i + 1}\n#### {i + 1}"} for i in range(first, first + count)]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 18", "18"), ("9*2=18\n#### 1,200", "1200"), ("#### -3", "-3"), ("#### $4.50 in all of 7", "4.50"),
        ("so she has 5 apples and 7 pears.", "7"), ("It is $1,200.00.", "1200.00"), ("9-3", "3"), ("x = -3", "-3"),
        ("(5)-3", "3"), (".5", ".5"), ("", None), ("none", None), ("3 and #### none", None), ("#### 1\n#### 2", "2"),
        ("1,000,000 people", "1000000"), ("18.", "18"),
    ],
)  # fmt: skip
def test_final_number(text: str, number: str | None):
    assert final_number(text) == (None if number is None else Decimal(number))


def test_one_file_is_split_by_hash(tmp_path: Path):
    task = Gsm8k(write(tmp_path / "a.jsonl.gz", rows(300)))
    train, test = task.examples("train"), task.examples("test")
    assert 15 <= len(test) <= 50 and len(train) + len(test) == 300
    assert not {e.id for e in train} & {e.id for e in test}
    more = Gsm8k(write(tmp_path / "b.jsonl", rows(400)))
    assert {e.id for e in test} <= {e.id for e in more.examples("test")}, "a longer file keeps the split"
    for example in train:
        assert task.score(example, example.meta["worked"]) == task.score(example, f"{example.answers[0]}.00") == 1.0
        assert task.score(example, str(int(example.answers[0]) + 1)) == task.score(example, "") == 0.0


def test_two_files_are_the_two_splits(tmp_path: Path):
    task = Gsm8k(write(tmp_path / "a.jsonl", rows(12)), write(tmp_path / "b.jsonl", rows(5, 100)))
    assert [len(task.examples(split)) for split in ("train", "test")] == [12, 5]


def test_bad_rows_are_counted_and_none_left_is_an_error(tmp_path: Path):
    bad = [
        {"question": "a?"},
        {"question": "b?", "answer": "7"},
        {"question": " ", "answer": "#### 1"},
        {"question": "c", "answer": 7},
    ]
    task = Gsm8k(write(tmp_path / "a.jsonl", rows(3) + bad + rows(1)))
    assert len(task.examples("train")) == 3 and task.examples("test") == []
    assert task.rejects.counts == {
        "no `question` and `answer`": 1, "no number after ####": 1, "empty question": 1, "wrong field type": 1,
        "the same question again": 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"0 usable questions with a final answer in .*b.jsonl"):
        Gsm8k(write(tmp_path / "b.jsonl", bad))


@pytest.mark.skipif(not REAL.exists(), reason="../shared/data/gsm8k is not here")
def test_the_real_files_score_their_own_answers():
    task = Gsm8k(REAL / "train.jsonl", REAL / "test.jsonl")
    assert [len(task.examples(split)) for split in ("train", "test")] == [7473, 1319]
    assert task.rejects.total == 0
    for example in task.examples("test"):
        assert task.score(example, example.meta["worked"]) == 1.0
        unmarked = example.meta["worked"].replace("####", "The answer is")
        assert task.score(example, unmarked) == 1.0
