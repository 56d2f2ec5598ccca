"""Opening a store: network file systems, readers of nothing, other formats, two processes that write."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import text
from voters import Voters

import fledge
from fledge.feedback import database
from fledge.feedback.store import Store, store_url

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(fledge.__file__).parents[1]), str(Path(__file__).parent)])}  # fmt: skip

_WRITE = """
import sys
from voters import vote_id
from fledge.feedback.store import NewVote, Store
first, count, together = map(int, sys.argv[2:])
with Store.open(sys.argv[1]) as store:
    for n in range(first, first + count, together):
        votes = [NewVote(id=vote_id(m), kind="thumb", draft="d_a", value=1 - 2 * (m % 2)) for m in range(n, n + together)]
        for stored in store.put_votes([("p_ann", v) for v in votes]):
            print(stored.seq, flush=True)
"""


def test_two_processes_write_at_once(store: Store, voters: Voters, address: str):
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITE, address, str(first), "60", str(together)],
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        for first, together in ((10_000, 1), (20_000, 3))
    ]
    for _ in range(20):
        store.put_vote(voters.bo, voters.thumb(draft=voters.a))
    seqs = [int(line) for job in jobs for line in job.communicate(timeout=60)[0].split()]
    assert [job.returncode for job in jobs] == [0, 0] and len(seqs) == 120
    assert store.verify() == (140, []) and len({v.id for v in store.votes()}) == 140
    assert {v.seq for v in store.votes() if v.person_id == voters.ann} == set(seqs)


@pytest.mark.parametrize(
    ("mounts", "kind"),
    [
        ("{here} nfs4", "nfs4"),
        ("{here} cifs", "cifs"),
        ("{here} fuse.sshfs", "fuse.sshfs"),
        ("{here} 9p", "9p"),
        ("{here} ext4\nserver:/x {here} nfs", "nfs"),  # mounted over
        ("{here} nfs\n/dev/sda {here} ext4", None),
        ("{parent} nfs\n/dev/sda {here} ext4", None),
        ("{here}-other nfs\n/dev/sda / ext4", None),
        ("{here} overlay", None),
    ],
)
def test_network_file_systems_are_refused(place: Path, monkeypatch: pytest.MonkeyPatch, mounts: str, kind: str | None):
    here = place / "my runs"
    here.mkdir()
    escaped = str(here).replace(" ", "\\040")
    lines = "".join(f"{line} rw 0 0\n" for line in mounts.format(here=escaped, parent=place).split("\n"))
    table = place / "mounts"
    table.write_text(
        "/dev/root / ext4 rw 0 0\n" + "".join(x if x.count(" ") > 4 else f"dev {x}" for x in lines.splitlines(True))
    )
    monkeypatch.setattr(database, "MOUNTS", table)
    if kind is None:
        Store.open(store_url(here)).close()
        return
    with pytest.raises(ValueError, match=f"network file system \\({kind}\\).*--store postgresql://"):
        Store.open(store_url(here))
    assert not list(here.iterdir())


def test_readers_of_nothing_and_wrong_addresses_are_told(place: Path):
    with pytest.raises(ValueError, match="no votes yet"):
        Store.open(store_url(place), read_only=True)
    assert not list(place.iterdir())
    with pytest.raises(ValueError, match="must be a path, sqlite:///PATH or postgresql://"):
        Store.open("mysql://root@localhost/votes")
    (place / "votes.sqlite3").write_bytes(b"not a database" * 100)
    with pytest.raises(ValueError, match=r"votes.sqlite3: file is not a database"):
        Store.open(store_url(place))
    with pytest.raises(
        ValueError, match=r"postgresql://ann:\*\*\*@.*cannot|cannot open the votes at postgresql://ann:\*\*\*@"
    ):
        Store.open(f"postgresql://ann:secret@/none?host={place}")


def test_a_store_of_another_format_is_refused(store: Store, address: str):
    with store.transaction() as transaction:
        transaction.connection.execute(text("UPDATE head SET format = 7"))
    with pytest.raises(ValueError, match="has format 7; this version reads 1"):
        Store.open(address)


def test_odd_folder_names_are_paths(place: Path):
    folder = place / "a run? #1 100% é"
    with Store.open(store_url(folder)) as store:
        Voters(store)
    assert sorted(p.name for p in folder.iterdir()) == ["votes.lock", "votes.sqlite3"]
    with Store.open(store_url(folder), read_only=True) as store:
        assert len(store.people()) == 2


def test_a_writer_waits_for_the_lock_and_then_says_so(place: Path, monkeypatch: pytest.MonkeyPatch):
    with Store.open(store_url(place)) as store, Store.open(store_url(place)) as other:
        voters, held, done = Voters(store), threading.Event(), threading.Event()

        def hold() -> None:
            with other.transaction():
                held.set()
                done.wait(20)

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait(20)
        monkeypatch.setattr(database, "_LOCK_SECONDS", 0.05)
        with pytest.raises(TimeoutError, match=r"votes\.lock has been held by another process"):
            store.put_vote(voters.ann, voters.thumb())
        monkeypatch.setattr(database, "_LOCK_SECONDS", 20.0)
        threading.Timer(0.1, done.set).start()
        start = time.monotonic()
        assert store.put_vote(voters.ann, voters.thumb()).seq == 1 and time.monotonic() - start > 0.05
        holder.join()


def test_sqlite_is_set_to_keep_what_it_acknowledges(place: Path):
    with Store.open(store_url(place)) as store, store.transaction() as transaction:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "trusted_schema", "secure_delete")
        found = [transaction.connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]
        strict = transaction.connection.exec_driver_sql("SELECT count(*) FROM pragma_table_list WHERE strict").scalar()
    assert found == ["wal", 2, 1, 5000, 0, 1] and strict == 11


@pytest.mark.parametrize(
    "change",
    [
        "value = 6", "both_bad = 1", "kind = 'alien'", "value = NULL", "draft_id = NULL",
        "comment = hex(randomblob(2100))", "kind = 'retract', value = NULL", "person_id = 'p_none'",
    ],
)  # fmt: skip
def test_the_tables_themselves_refuse_bad_rows(place: Path, change: str):
    from sqlalchemy.exc import IntegrityError

    with Store.open(store_url(place)) as store:
        voters = Voters(store)
        store.put_vote(voters.ann, voters.thumb())
        with pytest.raises(IntegrityError), store.transaction() as transaction:
            transaction.connection.execute(text(f"UPDATE vote SET {change}"))
