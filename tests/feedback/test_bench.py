"""MT-bench-style judging: whole conversations, both orders, points with errors, and what a judge does not answer."""

import json
from pathlib import Path

import msgspec
import pytest

from fledge.core.checkpoint import save_checkpoint
from fledge.core.config import build
from fledge.feedback.bench import JudgeOptions, converse, mean_error, read_questions, run
from fledge.generate.chat import answer, chat_engine
from fledge.generate.sampling import Sampling
from fledge.stages.common import open_model
from fledge.text.formats import Message

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Who are you?", "Say it again."]},
    {"question_id": 82, "category": "maths", "turns": ["1 + 1?", "And 2 + 2?"], "reference": ["2", "4"]},
    {"question_id": 83, "category": "maths", "turns": ["3 + 3?"]},
]


@pytest.fixture
def place(tmp_path: Path, make_model, tokenizer) -> Path:
    for name, seed in (("a", 0), ("b", 1)):
        model = make_model(seed, spread=0.2, vocab_size=tokenizer.vocab_size, context_tokens=96)
        card = {"stage": "sft", "parent": None, "model": msgspec.to_builtins(model.config)}
        save_checkpoint(
            tmp_path / name, 1, model=model.state_dict(), optimizer={}, state={}, card=card, tokenizer=tokenizer.json
        )
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
    return tmp_path


def options(place: Path, url: str, **over) -> JudgeOptions:
    given = {
        "a": str(place / "a"), "questions": str(place / "questions.jsonl"), "judge": f"{url}#m", "device": "cpu",
        "sampling": {"temperature": 0.0, "max_tokens": 8}, "concurrency": 2,
    }  # fmt: skip
    return build(JudgeOptions, given | over)


def test_later_turns_follow_the_models_own_answers(place):
    opened, sampling = open_model(place / "a", device="cpu"), Sampling(temperature=0.0, max_tokens=8)
    questions = read_questions(place / "questions.jsonl")
    found = converse(opened, questions, sampling)
    assert [len(turns) for turns in found] == [2, 2, 1]
    engine = chat_engine(opened.model, opened.tokenizer)
    said = [Message("user", "1 + 1?"), Message("assistant", found[1][0]), Message("user", "And 2 + 2?")]
    assert answer(engine, opened.tokenizer, [said], sampling)[0].text == found[1][1]


def test_points_by_category_and_turn(place, endpoint, capsys):
    def grade(text: str, number: int) -> str:
        return json.dumps({"score": 8 if "[The reference answer]" in text else 4})

    server = endpoint(grade)
    result = run(options(place, server.url))
    figures = result["points"]
    assert figures["all"]["count"] == 5 and figures["all"]["mean"] == pytest.approx((8 + 8 + 4 + 4 + 4) / 5)
    assert figures["category writing"]["mean"] == 4 and figures["category maths"]["mean"] == pytest.approx(20 / 3)
    assert figures["turn 2"]["mean"] == 6 and figures["turn 2"]["stderr"] == pytest.approx(2)
    second = next(b["messages"][1]["content"] for _, _, b in server.requests if "And 2 + 2?" in str(b))
    assert "user: 1 + 1?\nassistant: " in second and "[The reference answer]\n4\n[End]" in second
    rows = [json.loads(line) for line in (place / "a" / "judge" / "judgments.jsonl").read_text().splitlines()]
    assert [(r["question"], r["turn"], r["points"]) for r in rows] == [
        ("81", 1, 4), ("81", 2, 4), ("82", 1, 8), ("82", 2, 8), ("83", 1, 4)
    ]  # fmt: skip
    assert json.loads((place / "a" / "judge" / "judge.json").read_text()) == result
    assert "category maths" in capsys.readouterr().out


def test_a_judge_that_favours_a_place_sees_only_ties(place, endpoint):
    result = run(options(place, endpoint(lambda text, number: "[[A]]").url, b=str(place / "b")))
    assert result["wins"]["all"] == {"count": 3, "mean": 0.5, "stderr": 0.0} and result["moved"] == 3


def test_a_judge_that_reads_is_heard_in_both_orders(place, endpoint):
    first = converse(open_model(place / "a", device="cpu"), read_questions(place / "questions.jsonl"), Sampling(temperature=0.0, max_tokens=8))  # fmt: skip

    def prefer(text: str, number: int) -> str:
        one = text.split("[Assistant B]")[0]
        if "3 + 3?" in text:
            return "[[C]]"
        return "[[A]]" if any(f"assistant: {turns[0]}\n" in one for turns in first[:2]) else "[[B]]"

    result = run(options(place, endpoint(prefer).url, b=str(place / "b"), out=str(place / "out")))
    assert result["wins"]["category writing"]["mean"] == 1 and result["moved"] == 0
    assert result["wins"]["all"]["mean"] == pytest.approx(2.5 / 3)
    row = json.loads((place / "out" / "judgments.jsonl").read_text().splitlines()[0])
    assert row["verdicts"] == ["first", "first"] and row["a"] == first[0]


def test_what_the_judge_does_not_answer_is_counted_not_scored(place, endpoint):
    def grade(text: str, number: int):
        return (400, {}, "filtered") if "3 + 3?" in text else '{"score": 6}'

    result = run(options(place, endpoint(grade).url))
    assert result["unanswered"] == 1 and result["points"]["all"] == {"count": 4, "mean": 6.0, "stderr": 0.0}
    with pytest.raises(ValueError, match="answered none of 5 questions"):
        run(options(place, endpoint(lambda text, number: (400, {}, "filtered")).url))


def test_mean_and_its_error():
    assert mean_error([1.0, 3.0]) == {"count": 2, "mean": 2.0, "stderr": 1.0}
    assert mean_error([5.0])["stderr"] is None


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"turns": []}, "no list of turns"),
        ({"turns": "Who?"}, "no list of turns"),
        ({"turns": ["a"], "reference": ["b", "c"]}, "at most one for each turn"),
    ],
)
def test_rows_that_are_no_questions(tmp_path, row, told):
    (tmp_path / "q.jsonl").write_text(json.dumps({"turns": ["x"]}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=told):
        read_questions(tmp_path / "q.jsonl")


def test_wrong_settings_are_told_together(place):
    with pytest.raises(ValueError, match="limit = 0") as error:
        options(place, "ftp://x", limit=0)
    assert "http://" in str(error.value)
