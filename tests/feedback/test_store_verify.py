"""`verify` finds what a hand or a disk did to a store, and says which row."""

import re
from pathlib import Path

import pytest
from sqlalchemy import text
from voters import Voters, draft, prompt

from fledge.feedback import verifying
from fledge.feedback.store import Store, store_url


@pytest.fixture
def filled(voters: Voters) -> Voters:
    for value in (1, -1, 1):
        voters.store.put_vote(voters.ann, voters.thumb(value, comment="words"))
    voters.store.put_vote(voters.ann, voters.pair())
    voters.store.put_vote(voters.ann, voters.new("edit", draft=voters.hers, text="Edited."))
    assert voters.store.verify() == (5, [])
    return voters


def meddle(store: Store, *statements: str) -> list[str]:
    """Change the store behind its back (foreign keys off, as an editor of the file would); the problems then found."""
    with store.database.write() as transaction:
        if not store.database.is_sqlite:
            transaction.connection.execute(text("SET LOCAL session_replication_role = replica"))
        else:
            transaction.connection.execute(text("PRAGMA defer_foreign_keys = ON"))
            transaction.connection.execute(text("PRAGMA ignore_check_constraints = ON"))
        for statement in statements:
            transaction.connection.execute(text(statement))
        try:
            return store.verify().problems
        finally:
            transaction.connection.rollback()


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE vote SET value = 1 WHERE seq = 2", "vote 2 .*: was changed after it was stored"),
        ("UPDATE vote SET server_ms = server_ms + 1 WHERE seq = 5", "vote 5 .*: was changed"),
        ("UPDATE vote SET comment = 'wordz' WHERE seq = 1", "vote 1 .*: its comment was changed"),
        ("UPDATE vote SET comment = '' WHERE seq = 1", "vote 1 .*: its comment was changed"),
        ("DELETE FROM vote WHERE seq = 4", "votes 4 to 4 are missing"),
        ("DELETE FROM vote WHERE seq = 5", "the chain ends at vote 4, but 5 were stored"),
        ("UPDATE vote SET seq = seq + 1 WHERE seq = 5", "votes 5 to 5 are missing"),
        ("UPDATE draft SET text = 'Belmorra.' WHERE id = 'd_hers'", "draft d_hers: its text changed"),
        ("UPDATE draft SET tokens_json = '[1,2]' WHERE id = 'd_a'", "draft d_a: its tokens changed"),
        ("UPDATE draft SET seed = 8 WHERE id = 'd_a'", "vote 4 .*: what it judges was changed"),
        ("UPDATE draft SET text = '', tokens_json = '[]', blanked_ms = 1 WHERE id = 'd_a'", "nobody asked for it"),
        ("DELETE FROM draft WHERE id = 'd_hers'", "vote 1 .*: what it judges is missing"),
        ("DELETE FROM task", "vote.task_id: 1 rows name a task that is not there"),
        ("UPDATE prompt SET messages_json = '[]'", "prompt .*: its messages are not those of its id"),
        ("UPDATE decoding SET json = '{}'", "decoding .*: its settings are not those of its id"),
        ("UPDATE conversation SET blanked_ms = 1 WHERE id = 'c_ann'", "conversation c_ann: said to be blanked"),
        ("DELETE FROM checkpoint", "draft.checkpoint_id: 4 rows name a checkpoint that is not there"),
        (f"UPDATE head SET sha256 = '{'0' * 64}'", "vote 5 is not the one that was stored last"),
    ],
)
def test_a_change_a_removal_or_a_blanking_nobody_asked_for_is_found(filled: Voters, statement: str, says: str):
    problems = meddle(filled.store, statement)
    assert any(re.search(says, p) for p in problems), problems
    assert filled.store.verify() == (5, [])


def test_swapped_rows_are_found(filled: Voters):
    swap = [f"UPDATE vote SET seq = {to} WHERE seq = {of}" for of, to in ((1, 100), (3, 1), (100, 3))]
    problems = meddle(filled.store, *swap)
    assert len([p for p in problems if "was changed" in p]) == 2 and any("does not follow" in p for p in problems)


def test_a_row_written_anew_with_a_fitting_digest_breaks_the_chain_after_it(filled: Voters):
    from fledge.feedback.chain import row_sha256
    from fledge.feedback.schema import vote

    with filled.store.database.read() as connection:
        row = dict(connection.execute(vote.select().where(vote.c.seq == 2)).mappings().one())
    sha = row_sha256(row | {"value": 1})
    problems = meddle(filled.store, f"UPDATE vote SET value = 1, sha256 = '{sha}' WHERE seq = 2")
    assert len(problems) == 1 and "does not follow vote 2" in problems[0]


def test_pages_of_any_size_find_the_same(filled: Voters, monkeypatch: pytest.MonkeyPatch):
    statement = "UPDATE draft SET seed = 8 WHERE id = 'd_hers'"
    whole = meddle(filled.store, statement)
    monkeypatch.setattr(verifying, "_PAGE", 2)
    assert meddle(filled.store, statement) == whole and len(whole) == 4


@pytest.mark.parametrize("word", [b"Zebrafinch-text", b"Zebrafinch-comment", b"Zebrafinch-prompt"])
def test_one_changed_byte_of_the_file_is_found(place: Path, word: bytes):
    url = store_url(place)
    with Store.open(url) as store:
        voters = Voters(store)
        id = store.put_draft(draft(voters.ann, "Zebrafinch-text", prompt=prompt("Zebrafinch-prompt")))
        store.put_vote(voters.ann, voters.thumb(draft=id, comment="Zebrafinch-comment"))
    path = place / "votes.sqlite3"
    whole = path.read_bytes()
    at = whole.index(word) + 3
    path.write_bytes(whole[:at] + b"R" + whole[at + 1 :])
    with Store.open(url, read_only=True) as store:
        problems = store.verify().problems
    assert len(problems) == 1 and word.decode().split("-")[1].replace("text", "its text") in problems[0]


def test_a_torn_page_is_found(place: Path):
    url = store_url(place)
    with Store.open(url) as store:
        voters = Voters(store)
        store.put_votes([(voters.ann, voters.thumb(1 - 2 * (n % 2))) for n in range(300)])
    path = place / "votes.sqlite3"
    whole = path.read_bytes()
    at = whole.rindex(b"draft:d_hers:thumb") & ~4095
    path.write_bytes(whole[:at] + b"\0" * 8 + whole[at + 8 :])
    with Store.open(url, read_only=True) as store:
        problems = store.verify().problems
    assert any("malformed" in p or "integrity_check" in p for p in problems), problems
