"""Votes on SQLite and PostgreSQL: once each, in order, refused with the reason."""

import random
import threading

import msgspec
import pytest
from voters import Voters, draft, vote_id

from fledge.feedback.chain import START, row_sha256
from fledge.feedback.store import Conflict, Invalid, NewVote, Store, Stored, Unknown


def test_the_same_vote_ten_times_out_of_order_with_other_clocks_is_one_row(voters: Voters):
    votes = [voters.thumb(comment="good"), voters.pair("same"), voters.new("score", draft=voters.a, value=4)]
    votes.append(voters.new("edit", draft=voters.hers, text="Belmora!", reasons=["too_long"]))
    chance, sent = random.Random(3), [v for v in votes for _ in range(10)]
    chance.shuffle(sent)
    stored = []
    for number, vote in enumerate(sent):
        skewed = msgspec.structs.replace(vote, client_ms=chance.randint(-(10**12), 10**14), dwell_ms=number)
        stored.append(voters.store.put_vote(voters.ann, skewed, server_ms=10**12 - number))
    assert sum(s.new for s in stored) == 4 and voters.store.last_seq() == 4
    assert {s.id: s.seq for s in stored} == {v.id: v.seq for v in voters.store.votes()}
    assert [s.seq for s in stored if s.new] == [1, 2, 3, 4]  # the store's order, whatever the clocks say
    assert voters.store.verify().problems == []


@pytest.mark.parametrize(
    "change", [{"value": -1}, {"comment": "other"}, {"reasons": ["wrong"]}, {"draft": "d_a"}, {"kind": "score"}]
)
def test_the_same_id_with_other_content_is_a_conflict(voters: Voters, change: dict):
    first = voters.thumb(comment="good")
    voters.store.put_vote(voters.ann, first)
    with pytest.raises(Conflict, match="stored before with other content"):
        voters.store.put_vote(voters.ann, msgspec.structs.replace(first, **change))
    with pytest.raises(Conflict):
        voters.store.put_vote(voters.bo, msgspec.structs.replace(first, draft="d_a"))
    assert voters.store.last_seq() == 1 and voters.store.vote(first.id).comment == "good"


def test_an_edit_with_other_text_is_a_conflict(voters: Voters):
    first = voters.new("edit", draft=voters.hers, text="One.")
    voters.store.put_vote(voters.ann, first)
    with pytest.raises(Conflict):
        voters.store.put_vote(voters.ann, msgspec.structs.replace(first, text="Two."))


@pytest.mark.parametrize(("choice", "value", "both_bad"), [("left", -1, False), ("right", 1, False), ("same", 0, False), ("both_bad", 0, True)])  # fmt: skip
def test_sides_become_drafts(voters: Voters, choice: str, value: int, both_bad: bool):
    voters.store.put_vote(voters.ann, voters.pair(choice))  # draft_b stands on the left
    (vote,) = voters.store.votes()
    assert (vote.value, vote.both_bad, vote.subject, vote.task_id) == (value, both_bad, "task:t_ann", "t_ann")
    assert vote.draft_id is None and vote.prev_sha256 == START


def test_a_change_of_mind_is_a_new_row_that_supersedes(voters: Voters):
    store, up, down = voters.store, voters.thumb(1), voters.thumb(-1)
    store.put_vote(voters.ann, up)
    store.put_vote(voters.ann, voters.new("score", draft=voters.hers, value=5))  # another subject
    store.put_vote(voters.ann, down)
    assert [v.supersedes for v in store.votes()] == [None, None, up.id]
    assert voters.said() == [(voters.ann, "score", 5), (voters.ann, "thumb", -1)]
    assert [v.value for v in store.current_votes(upto_seq=2)] == [1, 5]  # as it stood then
    assert [v.value for v in store.current_votes(after_seq=2)] == [-1]


def test_a_withdrawn_vote_no_longer_counts_and_may_be_given_again(voters: Voters):
    store, first, second = voters.store, voters.thumb(1), voters.thumb(-1)
    for vote in (first, second):
        store.put_vote(voters.ann, vote)
    with pytest.raises(Invalid, match="replaced or withdrawn before"):
        store.put_vote(voters.ann, voters.new("retract", vote=first.id))
    back = voters.new("retract", vote=second.id)
    assert store.put_vote(voters.ann, back).new and not store.put_vote(voters.ann, back).new
    assert voters.said() == []  # the first does not come back
    with pytest.raises(Invalid, match="nothing to withdraw"):
        store.put_vote(voters.ann, voters.new("retract", vote=second.id))
    with pytest.raises(Invalid, match="a retract: it cannot be withdrawn"):
        store.put_vote(voters.ann, voters.new("retract", vote=back.id))
    store.put_vote(voters.ann, voters.thumb(1))
    assert voters.said() == [(voters.ann, "thumb", 1)]
    assert [v.kind for v in store.votes()] == ["thumb", "thumb", "retract", "thumb"] and not store.verify().problems


BAD = [
    ({"kind": "score", "draft": "d_hers", "value": 6}, "value = 6: must be a whole number from 0 to 5"),
    ({"kind": "score", "draft": "d_hers", "value": -1}, "value = -1"),
    ({"kind": "score", "draft": "d_hers", "value": 2.5}, "value = 2.5"),
    ({"kind": "score", "draft": "d_hers", "value": True}, "value = True"),
    ({"kind": "score", "draft": "d_hers", "value": "5"}, "value = '5'"),
    ({"kind": "score", "draft": "d_hers"}, "a score needs value"),
    ({"kind": "thumb", "draft": "d_hers", "value": 0}, "a thumb is 1"),
    ({"kind": "thumb", "draft": "d_hers", "value": True}, "value = True: a thumb is 1"),
    ({"kind": "thumb", "value": 1}, "a thumb needs draft"),
    ({"kind": "thumb", "draft": "d_hers", "value": 1, "text": "x"}, "a thumb has no text"),
    ({"kind": "thumb", "draft": "d_hers", "value": 1, "task": "t_ann"}, "is not one of the two of task t_ann"),
    ({"kind": "thumb", "draft": "d_his", "value": 1, "task": "t_ann"}, "draft 'd_his': not known"),
    ({"kind": "pair", "task": "t_ann"}, "a pair needs choice"),
    ({"kind": "pair", "task": "t_ann", "choice": "middle"}, "choice = 'middle'"),
    ({"kind": "pair", "task": "t_ann", "choice": "both_bad", "value": 1}, "a pair has no value"),
    ({"kind": "pair", "task": "t_ann", "choice": "left", "draft": "d_his"}, "a pair has no draft"),
    ({"kind": "pair", "task": "t_none", "choice": "left"}, "task 't_none': not known"),
    ({"kind": "edit", "draft": "d_hers", "text": " \n"}, "not blank"),
    ({"kind": "edit", "draft": "d_hers", "text": "a\0"}, "NUL character at 1"),
    ({"kind": "edit", "draft": "d_hers", "text": "x" * (256 * 1024 + 1)}, "at most 262,144"),
    ({"kind": "edit", "draft": "d_hers", "text": "x", "value": 1}, "an? edit has no value"),
    ({"kind": "retract", "vote": vote_id(1)}, "not known"),
    ({"kind": "retract"}, "a retract needs vote"),
    ({"kind": "forget", "draft": "d_hers"}, "kind = 'forget'"),
    ({"kind": "thumb", "draft": "d_hers", "value": 1, "comment": "a\0b"}, "NUL character at 1, which PostgreSQL"),
    ({"kind": "thumb", "draft": "d_hers", "value": 1, "comment": "\ud83d"}, "half a surrogate pair at 0"),
    ({"kind": "thumb", "draft": "d_hers", "value": 1, "comment": "波" * 1366}, "4,098 bytes: at most 4,096"),
    ({"kind": "thumb", "draft": "d_hers", "value": 1, "reasons": ["Free text!"]}, "must be a key such as too_long"),
    ({"kind": "thumb", "draft": "d_hers", "value": 1, "reasons": ["a", "a"]}, "each may be given once"),
    ({"kind": "thumb", "draft": "d_hers", "value": 1, "reasons": [f"r{n}" for n in range(17)]}, "at most 16"),
    ({"kind": "thumb", "draft": "d_hers", "value": 1, "dwell_ms": -1}, "dwell_ms = -1"),
    ({"kind": "thumb", "draft": "d_hers", "value": 1, "client_ms": 2**60}, "client_ms"),
    ({"kind": "thumb", "draft": "d_hers", "value": 1, "id": "1"}, "must be a UUID"),
    ({"kind": "thumb", "draft": "d_hers", "value": 1, "id": vote_id(1).upper().replace("0", "A")}, "in lower case"),
]


@pytest.mark.parametrize(("fields", "says"), BAD, ids=[says for _, says in BAD])
def test_bad_values_are_refused_with_the_reason_and_nothing_is_stored(voters: Voters, fields: dict, says: str):
    before = voters.store.counts()
    with pytest.raises((Invalid, Unknown), match=says):
        voters.store.put_vote(voters.ann, voters.new(**fields))
    assert voters.store.counts() == before


def test_someone_elses_and_unknown_ids_are_answered_alike(voters: Voters):
    """A draft of another's conversation, another's task, another's vote: the same words as for ids that do not exist."""
    store = voters.store
    store.put_vote(voters.ann, mine := voters.thumb())

    def words(known: str, unknown: str, **fields: str) -> None:
        said = []
        for id in (known, unknown):
            with pytest.raises(Unknown) as error:
                store.put_vote(voters.bo, voters.new(**{k: (id if v == "?" else v) for k, v in fields.items()}))
            said.append(str(error.value).replace(id, "ID"))
        assert said[0] == said[1]

    words(voters.hers, "d_none", kind="thumb", draft="?", value=1)
    words(voters.task, "t_none", kind="pair", task="?", choice="left")
    words(mine.id, vote_id(5), kind="retract", vote="?")
    with pytest.raises(Unknown, match="person 'p_none'"):
        store.put_vote("p_none", voters.thumb())


def test_who_may_judge_a_draft(voters: Voters):
    """Its own person, anybody with a task that holds it, and, outside conversations, everyone."""
    store = voters.store
    store.put_vote(voters.bo, voters.thumb(draft=voters.a))  # in no conversation
    with pytest.raises(Unknown):
        store.put_vote(voters.bo, voters.thumb(draft=voters.hers))
    second = store.put_draft(msgspec.structs.replace(_again(voters), conversation=voters.talk))
    task = store.put_task(voters.bo, voters.hers, second, "a", "random")
    store.put_vote(voters.bo, voters.thumb(draft=voters.hers, task=task))
    store.put_vote(voters.bo, voters.new("edit", draft=second, text="Better."))
    assert [d.text for d in store.conversation(voters.ann, voters.talk).drafts] == [
        "Belmora.",
        "Again.",
    ]  # not his edit
    assert not store.verify().problems


def _again(voters: Voters):
    return draft(voters.ann, "Again.", stream=9)


def test_a_bad_vote_hinders_no_other_in_its_group(voters: Voters):
    good = [voters.thumb(), voters.pair(), voters.new("score", draft=voters.a, value=0)]
    bad = voters.new("score", draft=voters.a, value=6)
    results = voters.store.put_votes([(voters.ann, v) for v in (good[0], bad, good[1], good[0], good[2])])
    assert isinstance(results[1], Invalid) and results[3] == Stored(1, good[0].id, False)
    assert [r.seq for r in results if isinstance(r, Stored) and r.new] == [1, 2, 3]
    assert voters.store.verify() == (3, [])


def test_each_row_holds_the_digest_of_the_one_before(voters: Voters):
    for value in (1, -1, 1):
        voters.store.put_vote(voters.ann, voters.thumb(value, comment="c", client_ms=5, dwell_ms=7))
    rows = list(voters.store.votes())
    assert [r.prev_sha256 for r in rows] == [START, rows[0].sha256, rows[1].sha256]
    for row in rows:
        fields = msgspec.structs.asdict(row) | {"both_bad": int(row.both_bad)}
        assert row_sha256(fields) == row.sha256
        assert row_sha256(fields | {"comment": "blanked"}) == row.sha256
        assert row_sha256(fields | {"value": 0}) != row.sha256


def test_threads_share_a_store(voters: Voters):
    votes = [[voters.thumb(1 - 2 * (n % 2), draft=voters.a) for n in range(25)] for _ in range(4)]

    def send(mine: list[NewVote]) -> None:
        for vote in mine:
            voters.store.put_vote(voters.bo, vote)
            voters.store.last_seq()

    threads = [threading.Thread(target=send, args=(mine,)) for mine in votes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert voters.store.verify() == (100, []) and len(voters.said()) == 1


def test_votes_are_read_in_pages(voters: Voters, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fledge.feedback.store._PAGE", 3)
    sent = [voters.thumb(1 - 2 * (n % 2)) for n in range(7)]
    voters.store.put_votes([(voters.ann, v) for v in sent])
    assert [v.id for v in voters.store.votes()] == [v.id for v in sent]
    assert [v.id for v in voters.store.votes(2, 6)] == [v.id for v in sent[2:6]]
    reading = voters.store.votes()
    next(reading)
    voters.store.put_vote(voters.ann, voters.thumb(1))  # stored while somebody reads: not part of what they began
    assert len(list(reading)) == 6


def test_two_stores_write_one_chain(voters: Voters, address: str):
    with Store.open(address) as other:
        for number in range(10):
            (other if number % 2 else voters.store).put_vote(voters.ann, voters.thumb(1 - 2 * (number % 2)))
    assert voters.store.verify() == (10, [])
