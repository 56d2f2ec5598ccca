"""Votes as Chatbot Arena writes them: out, in again, and what others' files hold."""

import json

import pytest
from polling import Poll

from fledge.feedback.agreement import statistics
from fledge.feedback.exports import export_rows, import_arena, write_export
from fledge.feedback.leaderboard import leaderboard
from fledge.feedback.store import Store, store_url
from fledge.text.formats import read_pairs
from fledge.text.readers import Rejects


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def battle(winner: str = "model_a", prompt: str = "Hi", answers: tuple[str, str] = ("yes", "no"), **over) -> dict:
    talks = [[turn("user", prompt), turn("assistant", text)] for text in answers]
    return {
        "question_id": "q1", "model_a": "koala-13b", "model_b": "vicuna-7b", "winner": winner, "judge": "arena_user_7",
        "conversation_a": talks[0], "conversation_b": talks[1], "turn": 1, "anony": True, "language": "English",
        "tstamp": 1682351591.1322,
    } | over  # fmt: skip


def write(path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


@pytest.fixture
def two_models(store) -> Poll:
    """Four pair votes over answers of two models."""
    poll = Poll(store)
    ann, old, new = poll.person("ann"), poll.model("old"), poll.model("new")
    for n, choice in enumerate(("left", "right", "same", "both_bad")):
        a, b = poll.draft(f"a{n}", f"問題 {n}", checkpoint=old), poll.draft(f"b{n}", f"問題 {n}", checkpoint=new)
        poll.vote(ann, "pair", task=poll.task(ann, a, b, "ab"[n % 2], "compare"), choice=choice)
    return poll


def test_round_trip(two_models, store, tmp_path):
    path = tmp_path / "arena.jsonl"
    assert write_export(store, "arena", path).rows == 4
    with Store.open(store_url(tmp_path / "other")) as other:
        person = other.put_person("import", "arena", "service")
        assert import_arena(other, path, person) == 4
        out, back = export_rows(store, "arena").rows, export_rows(other, "arena").rows
        for one, two in zip(out, back, strict=True):
            hidden = {"votes", "judge", "language"}
            assert {k: v for k, v in one.items() if k not in hidden} == {
                k: v for k, v in two.items() if k not in hidden
            }
        assert [row["winner"] for row in back] == ["model_a", "model_a", "tie", "tie (bothbad)"]
        ours, theirs = leaderboard(store), leaderboard(other)
        assert [p.name for p in ours] == [p.name for p in theirs]
        assert [p.strength for p in ours] == pytest.approx([p.strength for p in theirs])
        assert statistics(other).bias == statistics(store).bias or statistics(other).bias.left == 2
        assert import_arena(other, path, person) == 0, "again is harmless"
        assert other.verify().problems == []


def test_our_reader_takes_the_file_as_pairs(two_models, store, tmp_path):
    write_export(store, "arena", tmp_path / "arena.jsonl")
    pairs = list(read_pairs(tmp_path / "arena.jsonl"))
    assert [(p.chosen, p.rejected, p.tie) for p in pairs] == [
        ("a0", "b0", False), ("a1", "b1", False), ("a2", "b2", True), ("a3", "b3", True),
    ]  # fmt: skip


def test_rows_that_are_no_votes_are_counted(store, tmp_path):
    person = store.put_person("import", "arena", "service")
    follow = [turn("user", "Hi"), turn("assistant", "one"), turn("user", "and?"), turn("assistant", "x")]
    other = [turn("user", "Hi"), turn("assistant", "two"), turn("user", "and?"), turn("assistant", "y")]
    rows = [
        battle(), battle("draw"), battle(conversation_a=follow, conversation_b=other), battle(model_a=None),
        battle(answers=("", "no")), battle("model_b", tstamp=None), {"prompt": "Hi"},
    ]  # fmt: skip
    rejects = Rejects()
    assert import_arena(store, write(tmp_path / "rows.jsonl", rows), person, rejects) == 2
    assert rejects.counts == {
        "winner is not model_a, model_b, tie or tie (bothbad)": 1,
        "the two conversations differ before the last answer": 1,
        "no model_a: not an arena vote": 2,
        "empty message": 1,
    }
    first, second = export_rows(store, "arena").rows
    assert first["tstamp"] == 1682351591.132 and second["winner"] == "model_b"
    assert {place.name for place in leaderboard(store)} == {"koala-13b", "vicuna-7b"}


def test_a_file_without_votes_is_an_error(store, tmp_path):
    person = store.put_person("import", "arena", "service")
    with pytest.raises(ValueError, match="0 usable arena votes"):
        import_arena(store, write(tmp_path / "rows.jsonl", [{"text": "x"}]), person)
