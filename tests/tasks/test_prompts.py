"""The user's own prompts: many shapes in, one Example out, nothing lost without a count."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from fledge.tasks.prompts import PromptFile, exact


def write(path: Path, rows: list) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def only(tmp_path: Path, row: dict):
    (example,) = PromptFile(write(tmp_path / "p.jsonl", [row])).examples("train")
    return example


@pytest.mark.parametrize(
    ("row", "answers"),
    [
        ({"prompt": "1+1"}, ()),
        ({"prompt": "1+1", "answer": "2"}, ("2",)),
        ({"prompt": "1+1", "answer": 2}, ("2",)),
        ({"prompt": "1+1", "answer": None}, ()),
        ({"prompt": "1+1", "answers": ["2", "two", "2"]}, ("2", "two")),
        ({"prompt": "1+1", "ground_truth": "2"}, ("2",)),
        (
            {"prompt": [{"role": "user", "content": "1+1"}], "reward_model": {"style": "rule", "ground_truth": "2"}},
            ("2",),
        ),
        ({"prompt": "1+1", "reward_model": {"style": "model", "ground_truth": None}}, ()),
    ],
)
def test_answers_of_every_shape(tmp_path: Path, row: dict, answers: tuple):
    example = only(tmp_path, row)
    assert example.prompt == [{"role": "user", "content": "1+1"}]
    assert example.answers == answers and example.meta == {} and example.language == "en"


def test_other_columns_go_to_meta_and_conversations_keep_their_turns(tmp_path: Path):
    turns = [
        {"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好。"}, {"role": "user", "content": "再見"}
    ]  # fmt: skip
    example = only(tmp_path, {"prompt": turns, "system": "簡短", "is_safety": True, "data_source": "mine", "level": 3})
    assert example.prompt == [{"role": "system", "content": "簡短"}, *turns]
    assert example.meta == {"is_safety": True, "data_source": "mine", "level": 3} and example.language == "zh"


def test_parquet_with_all_its_columns(tmp_path: Path):
    rows = [{"prompt": f"q{i}", "reward_model": {"ground_truth": str(i)}, "topic": "t"} for i in range(3)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    examples = PromptFile(tmp_path / "p.parquet").examples("train")
    assert [(e.answers, e.meta) for e in examples] == [((str(i),), {"topic": "t"}) for i in range(3)]


def test_bad_rows_are_counted(tmp_path: Path):
    bad = [
        {"text": "no prompt"}, {"prompt": ""}, {"prompt": 7}, {"prompt": "a", "answer": ""}, {"prompt": "a", "answer": True},
        {"prompt": "a", "answers": [["x"]]}, {"prompt": "a", "reward_model": "x"}, {"prompt": "good"},
        {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    ]  # fmt: skip
    task = PromptFile(write(tmp_path / "p.jsonl", [{"prompt": "good"}, *bad]))
    assert [e.prompt[0]["content"] for e in task.examples("train")] == ["good"]
    assert task.rejects.total == len(bad)
    assert task.rejects.counts["the same prompt and answers again"] == 1
    assert task.rejects.counts["prompt does not end with a user message"] == 1
    assert task.rejects.counts["an answer is neither text nor a number"] == 2


def test_no_prompts_is_an_error_with_the_reasons(tmp_path: Path):
    with pytest.raises(ValueError, match=r"0 usable prompts in .*p.jsonl: 1 dropped:\n.*no `prompt` field"):
        PromptFile([write(tmp_path / "p.jsonl", [{"text": "x"}])])
    with pytest.raises(ValueError, match="the files are empty"):
        PromptFile(write(tmp_path / "e.jsonl", []))


def test_broken_lines_follow_skip_bad(tmp_path: Path):
    path = write(tmp_path / "p.jsonl", [{"prompt": "a"}, "{torn", {"prompt": "b"}])
    with pytest.raises(ValueError, match="1 broken line"):
        PromptFile(path)
    task = PromptFile(path, skip_bad=1)
    assert len(task.examples("train")) == 2 and task.rejects.total == 1


@pytest.mark.parametrize("count", [1, 9, 10, 11, 500])
def test_the_held_out_share(tmp_path: Path, count: int):
    rows = [{"prompt": f"question {i}"} for i in range(count)]
    task = PromptFile(write(tmp_path / "p.jsonl", rows))
    train, test = task.examples("train"), task.examples("test")
    assert len(train) + len(test) == count and not {e.id for e in train} & {e.id for e in test}
    assert len(test) == 0 if count < 10 else 1 <= len(test) <= count * 0.2
    again = PromptFile(write(tmp_path / "q.jsonl", rows[::-1]))
    assert {e.id for e in again.examples("test")} == {e.id for e in test}, "the order of the rows does not matter"


def test_some_row_is_held_out_where_no_hash_says_so(tmp_path: Path):
    for start in range(200):
        rows = [{"prompt": f"p{start}-{i}"} for i in range(10)]
        task = PromptFile(write(tmp_path / "p.jsonl", rows))
        assert 1 <= len(task.examples("test")) < 10
        if all(int(e.id, 16) % 10 for split in ("train", "test") for e in task.examples(split)):
            return
    pytest.fail("no such file among 200")


def test_score(tmp_path: Path):
    example = only(tmp_path, {"prompt": "1+1", "answers": ["2", " two "]})
    assert [exact(example, a) for a in ("2", " 2\n", "two", "3", "")] == [1, 1, 1, 0, 0]
    task = PromptFile(write(tmp_path / "q.jsonl", [{"prompt": "say something"}]))
    with pytest.raises(ValueError, match=r"no answer to compare with.*--reward"):
        task.score(task.examples("train")[0], "something")
