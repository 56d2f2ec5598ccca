"""Votes as training data: which vote makes which row, what is left out and why, and the same bytes each time."""

import hashlib
import json

import pytest
from polling import Poll

from fledge.feedback.exports import FORMATS, export_rows, is_test, write_export
from fledge.feedback.migrating import migrate
from fledge.feedback.store import NewDraft, Store, store_url
from fledge.text.formats import read_chats, read_pairs, read_thumbs
from fledge.text.messages import Message
from fledge.text.readers import Rejects

ASKED = [{"role": "user", "content": "Why?"}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.fixture
def poll(store) -> Poll:
    return Poll(store)


@pytest.fixture
def ann(poll) -> str:
    return poll.person("ann")


def full(poll: Poll) -> None:
    """Votes of every kind by three people on 40 prompts in two languages, ties, cut-offs and changes of mind."""
    people, model = [poll.person(name) for name in ("ann", "bo", "cy")], poll.model("sft")
    for n in range(40):
        person, prompt = people[n % 3], f"問題 {n}?" if n % 2 else f"question {n}?"
        choice = ("left", "right", "same", "both_bad")[n % 4]
        poll.pair(person, choice, f"a\t{n}", f"b {n}", prompt, "ab"[n % 3 % 2], ("stop", "length")[:: 1 - 2 * (n % 2)])
        poll.thumb(person, 1 if n % 3 else -1, f"c \U0001f642{n}", prompt, checkpoint=model)
        for step in range(3):
            poll.score(people[step], (n + 2 * step) % 6, f"d{n}{step}", prompt, checkpoint=model)
            poll.score(people[0], (n * step) % 6, f"e{n}{step}", prompt)
        edit = poll.edit(person, f"better\n{n}", f"f{n}", prompt)
        if n % 5 == 0:
            poll.vote(person, "retract", vote=edit)


# ------------------------------------------------------------------------------------------------------------ same bytes


@pytest.fixture(scope="module")
def history(tmp_path_factory) -> str:
    """A store with a few hundred votes."""
    folder = tmp_path_factory.mktemp("history")
    with Store.open(store_url(folder)) as store:
        with store.transaction():
            full(Poll(store))
    return store_url(folder)


def test_exports_are_the_same_bytes_again_and_on_the_other_store(history, postgres_url):
    with Store.open(history, read_only=True) as source:
        first = {form: export_rows(source, form).data() for form in FORMATS}
        again = {form: export_rows(source, form).data() for form in FORMATS}
    assert first == again
    with Store.open(history, read_only=True) as source, Store.open(postgres_url) as target:
        migrate(source, target)
        assert {form: export_rows(target, form).data() for form in FORMATS} == first
    assert all(len(data) > 500 for data in first.values())


def test_the_same_votes_given_anew_are_the_same_bytes(poll, store, history):
    with store.transaction():
        full(poll)
    with Store.open(history, read_only=True) as source:
        for form in FORMATS:
            assert export_rows(store, form).data() == export_rows(source, form).data(), form


@pytest.mark.parametrize("form", FORMATS)
def test_every_row_names_its_votes(history, form):
    with Store.open(history, read_only=True) as store:
        found, votes = export_rows(store, form), {v.id: v for v in store.current_votes()}
        assert found.rows and [row["votes"] for row in found.rows] == found.votes
        for ids in found.votes:
            assert ids and set(ids) <= set(votes)
        if form not in ("prompts", "argilla"):
            last = [max(votes[id].seq for id in ids) for ids in found.votes]
            assert last == sorted(last), "in the order of the votes"
        if form == "kto":  # nothing vanishes without being counted
            single = [v for v in votes.values() if v.kind in ("thumb", "score")]
            used = {id for ids in found.votes for id in ids if votes[id].kind != "pair"}
            assert len(used) + sum(found.dropped.values()) == len(single)


@pytest.mark.parametrize(
    ("form", "reader"), [("dpo", read_pairs), ("pairs", read_pairs), ("kto", read_thumbs), ("sft", read_chats)]
)
def test_our_own_stages_read_every_row(history, tmp_path, form, reader):
    with Store.open(history, read_only=True) as store:
        written = write_export(store, form, tmp_path / f"{form}.jsonl")
    rejects = Rejects()
    items = list(reader([tmp_path / f"{form}.jsonl"], rejects=rejects))
    assert (len(items), rejects.total) == (written.rows, 0)
    if form == "pairs":
        assert 0 < sum(pair.tie for pair in items) < len(items)


def test_prompts_are_read_as_a_task(history, tmp_path):
    from fledge.tasks.prompts import PromptFile

    with Store.open(history, read_only=True) as store:
        written = write_export(store, "prompts", tmp_path / "prompts.jsonl")
    task = PromptFile(tmp_path / "prompts.jsonl")
    assert len(task.examples("train")) + len(task.examples("test")) == written.rows == 40


def test_a_slice_and_the_rest_are_the_whole(history):
    with Store.open(history, read_only=True) as store:
        for form in ("dpo", "pairs", "kto", "sft", "arena"):
            middle = store.last_seq() // 2
            early, late = export_rows(store, form, upto_seq=middle), export_rows(store, form, after_seq=middle)
            rows = export_rows(store, form).rows
            assert late.rows == rows[len(rows) - len(late.rows) :], form
            assert (early.first_seq, early.last_seq, late.first_seq) == (1, middle, middle + 1)
            halves = [export_rows(store, form, split=split).rows for split in ("train", "test")]
            assert sorted(map(str, halves[0] + halves[1])) == sorted(map(str, rows)) and all(halves), form


def test_one_prompt_in_eight_is_for_tests():
    ids = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(4000)]
    assert sum(map(is_test, ids)) / len(ids) == pytest.approx(1 / 8, abs=0.02)


# ----------------------------------------------------------------------------------------------------------- preferences


def test_the_chosen_answer_is_the_one_that_was_taken_whatever_its_side(poll, store, ann):
    ids = [poll.pair(ann, choice, "x", "y", left=left) for choice in ("left", "right") for left in "ab"]
    found = export_rows(store, "dpo")
    assert [row["chosen"][0]["content"] for row in found.rows] == ["x", "y", "y", "x"]
    assert found.rows[0] == {"prompt": ASKED, "chosen": said("x"), "rejected": said("y"), "votes": [ids[0]]}
    assert found.dropped == {}


def test_ties_are_counted_by_dpo_and_kept_for_bradley_terry(poll, store, ann):
    for choice in ("left", "same", "both_bad"):
        poll.pair(ann, choice)
    assert (len(export_rows(store, "dpo").rows), export_rows(store, "dpo").dropped) == (1, {"tie": 2})
    found = export_rows(store, "pairs")
    assert [row.get("tie", False) for row in found.rows] == [False, True, True] and found.dropped == {}


def test_what_cannot_be_learnt_from_is_dropped_with_its_reason(poll, store, ann):
    poll.pair(ann, "left", "same", "same")
    poll.pair(ann, "left", "  ", "x")
    poll.pair(ann, "left", finish=("length", "stop"))
    poll.pair(ann, "left", finish=("stopped", "stop"))
    kept = poll.pair(ann, "left", finish=("stop", "length"))
    found = export_rows(store, "dpo")
    assert found.votes == [[kept]]
    assert found.dropped == {"cut-off answer chosen": 2, "empty answer": 1, "same text": 1}
    assert export_rows(store, "pairs").dropped == found.dropped


def test_scores_of_one_person_on_one_prompt_make_pairs(poll, store, ann):
    bo = poll.person("bo")
    low, high = poll.score(ann, 1, "low"), poll.score(ann, 5, "high")
    poll.score(ann, 4, "near")  # 3 above low, 1 below high
    poll.score(bo, 0, "another's")
    poll.score(ann, 0, "elsewhere", "Another question?")
    found = export_rows(store, "dpo")
    taken = [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in found.rows]
    assert taken == [("high", "low"), ("near", "low")]
    assert found.votes[0] == [low, high]
    later = export_rows(store, "dpo", after_seq=2)
    assert later.rows == found.rows[1:], "a pair is new when its later score is"


def test_a_change_of_mind_and_a_withdrawal_count(poll, store, ann):
    a, b = poll.draft("x"), poll.draft("y")
    task = poll.task(ann, a, b)
    poll.vote(ann, "pair", task=task, choice="left")
    seq = store.last_seq()
    changed = poll.vote(ann, "pair", task=task, choice="right")
    assert export_rows(store, "dpo").rows[0]["chosen"] == said("y")
    assert export_rows(store, "dpo", upto_seq=seq).rows[0]["chosen"] == said("x")
    poll.vote(ann, "retract", vote=changed)
    assert export_rows(store, "dpo").rows == []


# ------------------------------------------------------------------------------------------------------- single answers


def test_kto_takes_thumbs_scores_and_both_bad(poll, store, ann):
    up, down = poll.thumb(ann, 1, "up"), poll.thumb(ann, -1, "down", finish="length")
    scores = [poll.score(ann, n, f"s{n}") for n in range(6)]
    bad = poll.pair(ann, "both_bad", "one", "two")
    poll.pair(ann, "same")
    poll.thumb(ann, 1, "cut", finish="length")
    found = export_rows(store, "kto")
    labels = {row["completion"][0]["content"]: (row["label"], row["votes"]) for row in found.rows}
    assert labels == {
        "up": (True, [up]), "down": (False, [down]), "s0": (False, [scores[0]]), "s1": (False, [scores[1]]),
        "s4": (True, [scores[4]]), "s5": (True, [scores[5]]), "one": (False, [bad]), "two": (False, [bad]),
    }  # fmt: skip
    assert found.dropped == {"middling score": 2, "cut-off answer liked": 1}
    assert found.rows[0] == {"prompt": ASKED, "completion": said("up"), "label": True, "votes": [up]}


def test_sft_takes_edits_and_fives(poll, store, ann):
    edit = poll.edit(ann, "better", "worse", finish="length")
    five = poll.score(ann, 5, "best")
    poll.score(ann, 4, "good")
    poll.edit(ann, "as it was", "as it was")
    poll.score(ann, 5, "cut off", finish="length")
    found = export_rows(store, "sft")
    assert [row["messages"][-1]["content"] for row in found.rows] == ["better", "best"]
    assert found.votes == [[edit], [five]]
    assert found.rows[0]["messages"] == [*ASKED, *said("better")]
    assert found.dropped == {"edit changed nothing": 1, "cut-off answer liked": 1}


def test_a_conversation_is_kept_whole(poll, store, ann):
    talk = (Message("system", "Be brief."), Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    store.put_draft(NewDraft(prompt=talk, text="d", tokens=[1], finish="stop", person=ann, id="d_talk"))
    poll.vote(ann, "edit", draft="d_talk", text="e")
    row = export_rows(store, "sft").rows[-1]
    assert [m["role"] for m in row["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert row["messages"][-1]["content"] == "e"


def test_prompts_that_went_worst_come_first(poll, store, ann):
    for text, values in (("fine", (1, 1, 1)), ("awful", (-1, -1, -1)), ("split", (1, -1))):
        for value in values:
            poll.thumb(ann, value, prompt=text)
    poll.pair(ann, "both_bad", prompt="poor")
    poll.edit(ann, "better", prompt="poor")
    found = export_rows(store, "prompts")
    assert [(r["prompt"][0]["content"], r["up"], r["down"]) for r in found.rows] == [
        ("awful", 0, 3), ("poor", 0, 2), ("split", 1, 1), ("fine", 3, 0),
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- people


def test_only_the_people_asked_for(poll, store, ann):
    bo = poll.person("bo")
    poll.thumb(ann, 1, "hers")
    poll.thumb(bo, 1, "his")
    found = export_rows(store, "kto", people=[bo])
    assert [row["completion"][0]["content"] for row in found.rows] == ["his"] and found.dropped == {}
    with pytest.raises(ValueError, match="people: no p_nobody; `fledge votes RUN` lists"):
        export_rows(store, "kto", people=["p_nobody"])


def test_texts_that_were_forgotten_are_gone(poll, store, ann):
    bo = poll.person("bo")
    poll.thumb(bo, 1, "his", prompt="His question")
    poll.vote(ann, "thumb", draft=poll.draft("hers", "Her question", person=ann), value=1)
    store.forget(ann)
    found = export_rows(store, "kto")
    assert [row["completion"][0]["content"] for row in found.rows] == ["his"]
    assert found.dropped == {"text forgotten on request": 1}
    for form in FORMATS:
        assert b"hers" not in export_rows(store, form).data() and b"Her question" not in export_rows(store, form).data()


# ----------------------------------------------------------------------------------------------------------------- files


def test_the_file_tells_what_it_was_made_of_and_the_store_knows_it(poll, store, ann, tmp_path):
    vote = poll.thumb(ann, 1)
    poll.score(ann, 2)
    path = tmp_path / "deep" / "kto.jsonl"
    written = write_export(store, "kto", path)
    assert written.id == hashlib.sha256(path.read_bytes()).hexdigest()
    beside = json.loads((tmp_path / "deep" / "kto.jsonl.export.json").read_text())
    assert beside["id"] == written.id and beside["votes"] == 1 and beside["dropped"] == {"middling score": 1}
    assert (beside["first_seq"], beside["last_seq"], beside["rows"]) == (1, 2, 1)
    (known,) = store.exports()
    assert (known.id, known.format, known.rows, known.last_seq) == (written.id, "kto", 1, 2)
    assert json.loads(known.spec_json) == {"after_seq": 0, "people": None, "split": None, "upto_seq": 2}
    assert store.export_votes(written.id) == [[vote]]
    assert write_export(store, "kto", path) == written and len(store.exports()) == 1
    assert sorted(p.name for p in path.parent.iterdir()) == ["kto.jsonl", "kto.jsonl.export.json"]


def test_a_store_opened_to_read_is_not_written(poll, store, ann, address, tmp_path):
    poll.thumb(ann, 1)
    with Store.open(address, read_only=True) as reading:
        assert write_export(reading, "kto", tmp_path / "kto.jsonl").rows == 1
    assert store.exports() == []


def test_no_votes_make_an_empty_file(store, tmp_path):
    written = write_export(store, "dpo", tmp_path / "dpo.jsonl")
    assert (tmp_path / "dpo.jsonl").read_bytes() == b"" and written.rows == 0


@pytest.mark.parametrize("over", [{"format": "csv"}, {"format": "kto", "split": "dev"}])
def test_unknown_formats_and_splits_are_named(store, over):
    with pytest.raises(ValueError, match=r"must be one of dpo|must be train or test"):
        export_rows(store, **over)
