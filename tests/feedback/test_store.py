"""The store on SQLite and on PostgreSQL: people, answers, conversations, exports, and delete-me."""

import hashlib
from pathlib import Path

import pytest
from voters import DECODING, WEIGHTS, Voters, draft, prompt

from fledge.core.checkpoint import canonical_json
from fledge.feedback.chain import canonical
from fledge.feedback.store import Conflict, Invalid, Store, Unknown, store_url
from fledge.text.messages import Message


def test_canonical_text_is_that_of_checkpoints():
    value = {"b": [1.5, None, "貝"], "a": {"z": True, "c": -0.1}}
    assert canonical(value).encode() + b"\n" == canonical_json(value)


def test_a_draft_comes_back_as_it_was_given(voters: Voters):
    messages = (Message("system", "Be brief."), Message("user", "NUL \0 and 貝 and \u2028"))
    given = draft(
        voters.ann, "line\r\n貝爾 🙂", prompt=messages, tokens=[0, 70000], logp=-0.1, seed=2**63 - 1, took_ms=12
    )
    found = voters.store.draft(voters.store.put_draft(given))
    assert (found.text, found.tokens, found.messages, found.logp) == (given.text, [0, 70000], messages, -0.1)
    assert (found.seed, found.stream, found.took_ms, found.finish, found.source) == (2**63 - 1, 0, 12, "stop", "page")
    assert found.text_sha256 == hashlib.sha256(given.text.encode()).hexdigest()
    assert found.checkpoint_id == WEIGHTS and voters.store.decoding(found.decoding_id) == DECODING
    told = canonical_json([{"role": m.role, "content": m.content} for m in messages]).rstrip(b"\n")
    assert found.prompt_id == hashlib.sha256(told).hexdigest()


def test_equal_prompts_and_settings_are_stored_once(voters: Voters):
    before = voters.store.counts()
    for stream in range(3):
        voters.store.put_draft(draft(voters.bo, f"answer {stream}", stream=stream))
    after = voters.store.counts()
    assert after["draft"] == before["draft"] + 3
    assert (after["prompt"], after["decoding"]) == (before["prompt"], before["decoding"])


def test_the_same_draft_task_and_checkpoint_again_are_one(voters: Voters):
    store, before = voters.store, voters.store.counts()
    assert store.put_draft(draft(voters.ann, conversation=voters.talk, id="d_hers")) == "d_hers"
    assert store.put_task(voters.ann, "d_a", "d_b", "b", "random", id="t_ann") == "t_ann"
    store.put_checkpoint(WEIGHTS, "sft", 120, "moved/elsewhere", None, "t" * 64, "k" * 64, {})
    assert store.counts() == before
    with pytest.raises(Conflict, match="d_hers was stored before with other content"):
        store.put_draft(draft(voters.ann, "Another answer.", conversation=voters.talk, id="d_hers"))
    with pytest.raises(Conflict, match="t_ann was stored before"):
        store.put_task(voters.ann, "d_a", "d_b", "a", "random", id="t_ann")


def test_what_a_model_writes_is_stored_even_with_a_nul(voters: Voters):
    id = voters.store.put_draft(draft(voters.ann, "a\0b", tokens=[5, 0, 6]))
    assert voters.store.draft(id).text == "a␀b" and voters.store.draft(id).tokens == [5, 0, 6]


@pytest.mark.parametrize(
    ("over", "kind", "says"),
    [
        ({"prompt": ()}, Invalid, "at least one message"),
        ({"prompt": (Message("user", "half \ud800 pair"),)}, Invalid, "prompt"),
        ({"text": "\udfff"}, Invalid, "half a surrogate pair at 0"),
        ({"text": "a\0b", "origin": "human"}, Invalid, "NUL character at 1"),
        ({"text": "x" * (256 * 1024 + 1)}, Invalid, "at most 262,144"),
        ({"tokens": [1, True]}, Invalid, "token = True"),
        ({"tokens": [-1]}, Invalid, "token = -1"),
        ({"logp": float("nan")}, Invalid, "finite"),
        ({"seed": 2**63}, Invalid, "seed = 9223372036854775808"),
        ({"origin": "alien"}, Invalid, "must be one of model, human, import"),
        ({"id": "d 1"}, Invalid, "letters, digits"),
        ({"checkpoint": "f" * 64}, Unknown, "checkpoint 'ffff"),
        ({"person": "p_nobody"}, Unknown, "person 'p_nobody': not known"),
        ({"parent": "d_none"}, Unknown, "draft 'd_none': not known"),
        ({"conversation": "c_none"}, Unknown, "conversation 'c_none': not known"),
        ({"conversation": "c_bo"}, Unknown, "conversation 'c_bo': not known"),
    ],
)
def test_a_draft_with_bad_values_is_refused_and_leaves_nothing(voters: Voters, over: dict, kind: type, says: str):
    before = voters.store.counts()
    with pytest.raises(kind, match=says):
        voters.store.put_draft(draft(**{"person": voters.ann, "prompt": prompt("new"), **over}))
    assert voters.store.counts() == before


def test_a_task_holds_two_drafts_of_one_prompt(voters: Voters):
    store = voters.store
    found = store.task(voters.task)
    assert (found.left_draft, found.right_draft) == ("d_b", "d_a")
    for bad, kind, says in (
        (("d_a", "d_a"), Invalid, "needs two drafts"),
        (("d_a", "d_his"), Invalid, "different prompts"),
        (("d_a", "d_none"), Unknown, "draft 'd_none': not known"),
    ):
        with pytest.raises(kind, match=says):
            store.put_task(voters.ann, *bad, "a", "random")
    with pytest.raises(Invalid, match="left = 'left'"):
        store.put_task(voters.ann, "d_a", "d_b", "left", "random")
    with pytest.raises(Invalid, match="expected = 'same'"):
        store.put_task(voters.ann, "d_a", "d_b", "a", "gold", "same")
    assert [t.id for t in store.open_tasks(voters.ann)] == [voters.task] and store.open_tasks(voters.bo) == []
    store.put_vote(voters.ann, voters.pair())
    assert store.open_tasks(voters.ann) == []


def test_people_are_known_by_their_secret_until_disabled(voters: Voters):
    store = voters.store
    assert store.person_of_secret("a" * 40).name == "Ann" and store.person_of_secret("b" * 40).id == "p_bo"
    assert store.person_of_secret("c" * 40) is None and store.person_of_secret("\ud800") is None
    assert store.person_of_secret("") is None
    store.disable_person(voters.ann)
    assert store.person_of_secret("a" * 40) is None
    with pytest.raises(Invalid, match="disabled"):
        store.put_vote(voters.ann, voters.thumb())
    store.put_person("person", "Ann", "rater", id=voters.ann)
    assert store.person(voters.ann).disabled_ms is not None
    store.put_person("person", "Ann B.", "rater", secret="d" * 40, id=voters.ann)
    assert store.person_of_secret("d" * 40).name == "Ann B." and store.person_of_secret("a" * 40) is None
    with pytest.raises(Conflict, match="belongs to another person"):
        store.put_person("person", "Cy", "rater", secret="d" * 40)
    with pytest.raises(Conflict, match="is a person with role rater"):
        store.put_person("judge", "Ann", "service", id=voters.ann)
    for bad in ({"kind": "alien"}, {"role": "admin"}, {"name": "  "}, {"name": "a\0"}):
        with pytest.raises(Invalid):
            store.put_person(**{"kind": "person", "name": "Cy", "role": "rater", **bad})
    with pytest.raises(Unknown, match="p_none"):
        store.disable_person("p_none")


def test_a_conversation_is_seen_by_its_person_only(voters: Voters):
    store = voters.store
    edit = voters.new("edit", draft=voters.hers, text="Belmora, on the Tesk.")
    second = store.put_draft(draft(voters.ann, "Two.", conversation=voters.talk, stream=5))
    task = store.put_task(voters.ann, voters.hers, second, "a", "compare")
    votes = [voters.thumb(), edit, voters.pair(task=task)]
    store.put_votes([(voters.ann, v) for v in votes] + [(voters.bo, voters.thumb(draft=voters.his))])
    found = store.conversation(voters.ann, voters.talk)
    assert [d.id for d in found.drafts][:2] == [voters.hers, second] and found.drafts[2].text == "Belmora, on the Tesk."
    assert [t.id for t in found.tasks] == [task] and [v.id for v in found.votes] == [v.id for v in votes]
    assert store.conversation(voters.bo, voters.talk) is None and store.conversation(voters.ann, "c_none") is None
    assert [c.id for c in store.conversations(voters.ann)] == [voters.talk]
    store.put_conversation(voters.ann, "Cities", id=voters.talk)
    assert store.conversation(voters.ann, voters.talk).title == "Cities"
    with pytest.raises(Unknown, match="conversation 'c_ann': not known"):
        store.put_conversation(voters.bo, "mine now", id=voters.talk)


def test_forgetting_blanks_texts_and_keeps_the_chain_whole(voters: Voters):
    store, ann = voters.store, voters.ann
    shared = store.put_draft(draft(voters.bo, "His answer to her first prompt."))
    private = store.put_draft(draft(ann, "Secret.", prompt=prompt("My name is Ann"), conversation=voters.talk))
    said = [
        voters.thumb(comment="so good"),
        voters.new("edit", draft=private, text="Edited."),
        voters.pair(comment="x"),
    ]
    store.put_votes([(ann, v) for v in said] + [(voters.bo, voters.thumb(draft=voters.his, comment="his"))])
    before = [(v.seq, v.sha256) for v in store.votes()]
    counts = store.forget(ann)
    assert counts == {"prompts": 1, "edits": 1, "drafts": 4, "conversations": 1, "comments": 2}
    assert [(v.seq, v.sha256) for v in store.votes(upto_seq=4)] == before
    assert [v.kind for v in store.votes(after_seq=4)] == ["forget"]
    assert store.verify().problems == []
    for id in (voters.hers, private, voters.a):
        found = store.draft(id)
        assert found.text == "" and found.tokens == [] and found.blanked_ms
    assert store.draft(private).messages == () and store.draft(private).prompt_blanked_ms
    assert store.draft(shared).text and store.draft(shared).messages == prompt()  # his, and the prompt he shares
    assert [v.comment for v in store.votes()] == ["", "", "", "his", ""]
    assert [v.value for v in store.current_votes()] == [1, None, -1, 1]  # what was said stays said
    assert store.conversations(ann) == [] and store.conversation(ann, voters.talk) is None
    assert store.put_vote(ann, said[0]).new is False  # a late retry is still the same vote
    assert set(store.forget(ann).values()) == {0} and store.verify().problems == []
    with pytest.raises(Unknown, match="p_none"):
        store.forget("p_none")
    asked_again = store.put_draft(draft(voters.bo, prompt=prompt("My name is Ann")))
    assert store.draft(asked_again).messages == prompt("My name is Ann") and store.verify().problems == []


def test_forgotten_texts_are_nowhere_in_the_file(place: Path):
    store, word = Store.open(store_url(place)), "Xylophonquartz"
    voters = Voters(store)
    id = store.put_draft(draft(voters.ann, word, prompt=prompt(f"say {word}"), conversation=voters.talk))
    store.put_vote(voters.ann, voters.thumb(draft=id, comment=word))
    store.put_conversation(voters.ann, word, id=voters.talk)
    store.forget(voters.ann)
    for path in place.iterdir():
        assert word.encode() not in path.read_bytes(), path
    store.close()


def test_an_export_leads_from_each_row_to_its_votes(voters: Voters):
    store, votes = voters.store, [voters.thumb(), voters.pair()]
    store.put_votes([(voters.ann, v) for v in votes])
    given = dict(
        format="kto", spec={"split": None}, rows=2, dropped={"same text": 3}, first_seq=1, last_seq=2, path="k.jsonl"
    )
    rows = [[votes[0].id], [votes[1].id, votes[0].id]]
    for _ in range(2):
        store.put_export("e" * 64, votes=rows, **given)
    (found,) = store.exports()
    assert (found.id, found.format, found.rows, found.last_seq) == ("e" * 64, "kto", 2, 2)
    assert found.dropped_json == '{"same text":3}' and list(map(sorted, store.export_votes(found.id))) == list(
        map(sorted, rows)
    )
    with pytest.raises(Unknown, match="vote 'no-vote'"):
        store.put_export("f" * 64, votes=[["no-vote"]], **given)
    assert len(store.exports()) == 1


def test_a_failed_transaction_leaves_nothing(voters: Voters):
    before = voters.store.counts()
    with pytest.raises(RuntimeError), voters.store.transaction():
        voters.store.put_vote(voters.ann, voters.thumb())
        voters.store.put_draft(draft(voters.ann, "gone"))
        raise RuntimeError("power")
    assert voters.store.counts() == before and voters.store.last_seq() == 0


def test_readers_read_only_and_see_what_is_committed(voters: Voters, address: str):
    with Store.open(address, read_only=True) as reader:
        voters.store.put_vote(voters.ann, voters.thumb())
        assert reader.last_seq() == 1 and reader.draft(voters.hers).text == "Belmora."
        with voters.store.transaction():
            voters.store.put_vote(voters.ann, voters.pair())
            assert reader.last_seq() == 1 and voters.store.last_seq() == 2
        assert reader.last_seq() == 2
        with pytest.raises(ValueError, match="opened read-only"):
            reader.put_vote(voters.ann, voters.thumb(-1))
        with reader.database.read() as connection, pytest.raises(Exception, match=r"read-?only"):
            connection.exec_driver_sql("DELETE FROM vote")
    assert voters.store.last_seq() == 2
