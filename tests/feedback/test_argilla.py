"""Votes as Argilla's records: out, rated there, and back as votes."""

import json

import pytest
from polling import Poll

from fledge.feedback.agreement import statistics
from fledge.feedback.argilla import settings, user_of
from fledge.feedback.exports import export_rows, import_argilla, write_export
from fledge.feedback.store import Store, store_url
from fledge.text.readers import Rejects


@pytest.fixture
def poll(store) -> Poll:
    poll = Poll(store)
    ann, bo = poll.person("ann"), poll.person("bo")
    poll.pair(ann, "left", "x", "y")
    poll.pair(bo, "both_bad", "v", "w")
    draft = poll.draft("fine")
    poll.vote(ann, "thumb", draft=draft, value=-1)
    poll.vote(ann, "score", draft=draft, value=2)
    poll.vote(bo, "edit", draft=draft, text="better")
    return poll


def test_records_hold_what_was_said(poll, store):
    first, second, third = export_rows(store, "argilla").rows
    assert first["fields"] == {"prompt": [{"role": "user", "content": "Why?"}], "answer_a": "x", "answer_b": "y"}
    assert first["responses"] == {"verdict": [{"value": "a", "user_id": user_of("p_ann"), "status": "submitted"}]}
    assert second["responses"]["verdict"][0]["value"] == "both_bad"
    assert set(third["fields"]) == {"prompt", "answer_a"} and set(third["metadata"]) == {"draft_a", "model_a"}
    assert third["responses"] == {
        "verdict": [
            {"value": "down", "user_id": user_of("p_ann"), "status": "submitted"},
            {"value": "none", "user_id": user_of("p_bo"), "status": "submitted"},
        ],
        "rating": [{"value": 2, "user_id": user_of("p_ann"), "status": "submitted"}],
        "edit": [{"value": "better", "user_id": user_of("p_bo"), "status": "submitted"}],
    }
    assert len(third["votes"]) == 3


def test_records_fit_their_settings(poll, store, tmp_path):
    write_export(store, "argilla", tmp_path / "a.jsonl")
    held = json.loads((tmp_path / "a.jsonl.settings.json").read_text())
    assert held == settings()
    fields = {f["name"]: f for f in held["fields"]}
    questions = {q["name"]: q["settings"] for q in held["questions"]}
    assert any(q["required"] for q in held["questions"]), "Argilla publishes no data set without a required question"
    for line in (tmp_path / "a.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert {name for name, f in fields.items() if f["required"]} <= set(row["fields"]) <= set(fields)
        for name, responses in row["responses"].items():
            options = [o["value"] for o in questions[name].get("options", [])]
            assert all(not options or r["value"] in options for r in responses)


def test_back_into_the_same_store_is_nothing_new(poll, store, tmp_path):
    write_export(store, "argilla", tmp_path / "a.jsonl")
    before = store.last_seq()
    assert import_argilla(store, tmp_path / "a.jsonl") == 0
    assert store.last_seq() == before


def test_what_was_rated_there_comes_back_as_votes(poll, store, tmp_path):
    write_export(store, "argilla", tmp_path / "a.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    guest = "11111111-2222-3333-4444-555555555555"
    rows[0]["responses"]["verdict"] += [
        {"value": "b", "user_id": guest, "status": "submitted"},
        {"value": "a", "user_id": guest.replace("1", "9"), "status": "draft"},
    ]
    rows[2]["responses"]["verdict"][0]["value"] = "up"  # Ann thinks again
    rows[2]["responses"]["rating"].append({"value": 5, "user_id": guest, "status": "submitted"})
    rows[2]["responses"]["edit"].append({"value": "best", "user_id": guest, "status": "submitted"})
    (tmp_path / "back.json").write_text(json.dumps(rows))  # as Argilla writes them: one list
    before = store.last_seq()
    assert import_argilla(store, tmp_path / "back.json") == 4
    assert import_argilla(store, tmp_path / "back.json") == 0
    said = [(v.person_id, v.kind, v.value) for v in store.votes(before)]
    stranger = f"p_argilla_{guest}"
    assert sorted(said, key=str) == sorted(
        [("p_ann", "thumb", 1), (stranger, "edit", None), (stranger, "pair", -1), (stranger, "score", 5)], key=str
    )
    found = statistics(store)
    assert found.votes == 5 + 3, "Ann's thumb replaced her old one"
    assert next(r for r in found.raters if r.person == stranger).kind == "import"
    assert store.verify().problems == []


def test_minds_change_there_and_back_again(poll, store, tmp_path):
    """Ann's verdict on a pair: a, then b, then a; her own task keeps it, on whatever side the answers stood."""
    ann = poll.person("ann")
    poll.pair(ann, "right", "p", "q", left="b")
    before = export_rows(store, "dpo").rows

    def bring(value: str) -> int:
        rows = export_rows(store, "argilla").rows
        for row in rows:
            for response in row["responses"].get("verdict", []):
                if response["value"] in ("a", "b"):
                    response["value"] = value
        (tmp_path / "a.json").write_text(json.dumps(rows))
        return import_argilla(store, tmp_path / "a.json")

    assert [bring("b"), bring("b"), bring("a"), bring("b"), bring("a")] == [2, 0, 2, 2, 2]
    assert [row | {"votes": 0} for row in export_rows(store, "dpo").rows] == [row | {"votes": 0} for row in before]
    assert store.verify().problems == []


def test_records_from_elsewhere_are_counted(store, tmp_path):
    rows = [
        {"id": "1", "fields": {"text": "x"}, "responses": {}},
        {"id": "2", "metadata": {}, "responses": {}},
        {
            "id": "3", "metadata": {"draft_a": "d_unknown"},
            "responses": {"rating": [{"value": 3, "user_id": "u", "status": "submitted"}]},
        },
    ]  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(rows))
    rejects = Rejects()
    assert import_argilla(store, tmp_path / "a.json", rejects) == 0
    assert rejects.counts == {
        "wrong field type": 1, "record without metadata.draft_a: it was not exported from here": 1, "unknown draft": 1
    }  # fmt: skip
    assert store.people() == [], "a record that is refused leaves nothing behind"


def test_a_value_that_does_not_fit_is_counted(poll, store, tmp_path):
    write_export(store, "argilla", tmp_path / "a.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    rows[0]["responses"] = {"rating": [{"value": 3, "user_id": "u"}]}  # of two answers
    rows[1]["responses"] = {"verdict": [{"value": "c", "user_id": "u"}]}
    rows[2]["responses"] = {"rating": [{"value": 9, "user_id": "u"}]}
    rows += [rows[2] | {"responses": {"rating": [{"value": [3], "user_id": "u"}]}}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    rejects = Rejects()
    assert import_argilla(store, tmp_path / "a.json", rejects) == 0
    assert rejects.counts == {"response that does not fit its record": 4}


def test_an_empty_file_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    with Store.open(store_url(tmp_path)) as store, pytest.raises(ValueError, match="0 usable records"):
        import_argilla(store, tmp_path / "a.jsonl")
