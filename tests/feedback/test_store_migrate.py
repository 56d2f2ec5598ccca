"""Moving and copying a store: every row, in both directions, or nothing."""

from pathlib import Path

import pytest
from sqlalchemy import text
from voters import Voters, draft, prompt

from fledge.feedback.migrating import migrate
from fledge.feedback.store import Store, store_url


def fill(store: Store) -> Voters:
    """Everything a store can hold: each kind of vote, an edit of an edit, blanked texts, an export."""
    voters = Voters(store)
    edit = voters.new("edit", draft=voters.hers, text="Edited.")
    store.put_vote(voters.ann, edit)
    store.put_vote(voters.ann, voters.new("edit", draft=store.vote(edit.id).edit_draft_id, text="Edited twice. 貝"))
    up = voters.thumb(1, comment="fine 🙂", reasons=["clear"])
    store.put_votes([(voters.ann, v) for v in (up, voters.pair("both_bad"), voters.new("score", draft="d_a", value=3))])
    store.put_vote(voters.ann, voters.new("retract", vote=up.id))
    store.put_vote(voters.bo, voters.thumb(-1, draft=voters.his, comment="gone"))
    for n in range(30):  # more rows than a page of the test
        id = store.put_draft(draft(voters.ann, f"answer {n}", prompt=prompt(f"question {n}"), logp=-n / 7))
        store.put_vote(voters.ann, voters.thumb(draft=id))
    store.forget(voters.bo)
    store.put_export(
        "e" * 64, format="kto", spec={}, rows=1, dropped={}, first_seq=1, last_seq=3, path="x", votes=[[up.id]]
    )
    return voters


@pytest.mark.parametrize("way", ["sqlite to postgresql", "postgresql to sqlite", "sqlite to sqlite"])
def test_every_row_arrives_and_the_chain_goes_on(place: Path, request: pytest.FixtureRequest, way: str, monkeypatch):
    monkeypatch.setattr("fledge.feedback.migrating._PAGE", 7)
    urls = [
        store_url(place / name) if kind == "sqlite" else request.getfixturevalue("postgres_url")
        for kind, name in zip(way.split(" to "), "ab", strict=True)
    ]
    with Store.open(urls[0]) as source, Store.open(urls[1]) as target:
        voters = fill(source)
        moved = migrate(source, target)
        assert moved.counts == source.counts() == target.counts() and moved.last_seq == source.last_seq()
        assert list(source.votes()) == list(target.votes()) and source.exports() == target.exports()
        assert source.drafts(["d_hers", "d_a"]) == target.drafts(["d_hers", "d_a"])
        assert target.verify() == source.verify() == (source.last_seq(), [])
        voters.store = target
        target.put_vote(voters.ann, voters.thumb(-1))
        assert target.last_seq() == moved.last_seq + 1 and target.verify().problems == []
        with pytest.raises(ValueError, match="is not empty"):
            migrate(source, target)


def test_a_damaged_store_is_not_moved(place: Path):
    with Store.open(store_url(place / "a")) as source, Store.open(store_url(place / "b")) as target:
        fill(source)
        with source.transaction() as transaction:
            transaction.connection.execute(text("UPDATE vote SET value = 0 WHERE seq = 5"))
        with pytest.raises(ValueError, match="damaged, nothing was copied: vote 5"):
            migrate(source, target)
        assert not any(count for name, count in target.counts().items() if name != "head")


def test_what_does_not_arrive_whole_is_not_kept(place: Path, monkeypatch: pytest.MonkeyPatch):
    import fledge.feedback.migrating as migrating

    copy = migrating._copy

    def lossy(source, target, table):
        copy(source, target, table)
        if table.name == "vote":
            target.execute(text("UPDATE vote SET dwell_ms = 1 WHERE seq = 1"))

    monkeypatch.setattr(migrating, "_copy", lossy)
    with Store.open(store_url(place / "a")) as source, Store.open(store_url(place / "b")) as target:
        fill(source)
        with pytest.raises(ValueError, match="differs in vote: nothing was kept"):
            migrate(source, target)
        assert target.counts()["vote"] == 0 and target.verify() == (0, [])


def test_a_backup_is_one_moment_while_votes_go_on(place: Path):
    with Store.open(store_url(place)) as store, Store.open(store_url(place), read_only=True) as reader:
        voters = fill(store)
        at = store.last_seq()
        with store.transaction():
            store.put_vote(voters.ann, voters.thumb(-1))
            reader.backup(place / "copy" / "votes.sqlite3")
        with Store.open(store_url("", str(place / "copy" / "votes.sqlite3")), read_only=True) as copy:
            assert copy.verify() == (at, [])
        with pytest.raises(ValueError, match="exists: name a new file"):
            store.backup(place / "copy" / "votes.sqlite3")
    assert [p.name for p in (place / "copy").iterdir()] == ["votes.sqlite3"]


def test_postgresql_points_to_its_own_tools(postgres_url: str, place: Path):
    with Store.open(postgres_url) as store, pytest.raises(ValueError, match="pg_dump"):
        store.backup(place / "copy")
