"""One database: its connections, and write transactions one at a time over all threads and processes.

SQLite before 3.51.3 may damage its write-ahead log when two connections write or checkpoint at the same moment, so
every write transaction, and opening and closing, holds an flock on a file beside the database.
"""

from __future__ import annotations

import fcntl
import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import (
    Connection,
    Engine,
    QueuePool,
    bindparam,
    create_engine,
    event,
    insert,
    inspect,
    make_url,
    select,
    update,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from fledge.feedback.chain import START
from fledge.feedback.prepared import Prepared
from fledge.feedback.schema import FORMAT, head, metadata

MOUNTS = Path("/proc/mounts")
_NETWORK = re.compile(
    r"nfs\d?|cifs|smb\w*|9p|afs|ceph|lustre|gpfs|beegfs|ocfs2|gfs2?|glusterfs|(fuse\.)?(sshfs|\w*s3fs|gcsfuse|rclone"
    r"|glusterfs|ceph|ceph-fuse|lustre|davfs2?|gvfsd-fuse|goofys|juicefs)"
)
_LOCK_SECONDS = 30.0  # far longer than any write transaction: a holder that does not let go is stopped or hung
_LOG_PAGES = 4000  # 16 MB: folding the log in takes 10 to 30 ms, so not at every 30th COMMIT of a busy hour
_POSTGRES_KEY = 0x666C65646765  # of the advisory lock: "fledge"


def store_url(run: Path | str, store: str | None = None) -> str:
    """The URL of a run's votes: RUN/votes.sqlite3, or what --store names (postgresql://... or a path)."""
    if store is None:
        return f"sqlite:///{(Path(run) / 'votes.sqlite3').absolute()}"
    return store if "://" in store else f"sqlite:///{Path(store).absolute()}"


def refuse_network(path: Path) -> None:
    """Raise ValueError when `path` lies on a network file system, where SQLite's locks cannot be trusted.

    Without /proc/mounts (not Linux) nothing is known and nothing is refused.
    """
    if not MOUNTS.exists():
        return
    place, found = path.resolve(), (0, "", "")
    for line in MOUNTS.read_text(errors="surrogateescape").splitlines():
        _, point, kind = line.split(" ")[:3]
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point)
        if place.is_relative_to(point) and len(point) >= found[0]:  # of equals the later is mounted over the earlier
            found = (len(point), point, kind)
    if _NETWORK.fullmatch(found[2]):
        raise ValueError(
            f"{path} lies on {found[1]}, a network file system ({found[2]}): SQLite can lose votes there. "
            "Keep the run on a local disk, or give --store postgresql://..."
        )


class Transaction:
    """A write transaction: its connection, and the end of the chain as this transaction has moved it."""

    def __init__(self, connection: Connection):
        self.connection = connection
        self.people: set[str] = set()  # known to exist and not disabled
        self.fold = False  # blanked texts must leave the write-ahead log too
        self._head: tuple[int, str] | None = None
        self._moved = False

    def end_of_chain(self) -> tuple[int, str]:
        """(seq, sha256) of the newest vote."""
        if self._head is None:
            self._head = _HEAD.first(self.connection, {})
        return self._head

    def advance(self, seq: int, sha256: str) -> None:
        self._head, self._moved = (seq, sha256), True

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """What fails inside leaves nothing behind; the rest of the transaction goes on."""
        before = self._head
        try:
            self._say("SAVEPOINT piece")
            yield
            self._say("RELEASE SAVEPOINT piece")
        except BaseException:
            self._say("ROLLBACK TO SAVEPOINT piece")
            self._head = before
            raise

    def _say(self, words: str) -> None:
        self.connection.connection.driver_connection.execute(words)

    def finish(self) -> None:
        """Write down the chain's end, so that rows missing from it are noticed."""
        if self._moved:
            _MOVE.run(self.connection, {"new_seq": self._head[0], "new_sha256": self._head[1]})


_HEAD = Prepared(select(head.c.seq, head.c.sha256).where(head.c.id == 1))
_MOVE = Prepared(update(head).where(head.c.id == 1).values(seq=bindparam("new_seq"), sha256=bindparam("new_sha256")))


class Database:
    """An open store of votes. Threads may share it; with `read_only` they read side by side, otherwise one by one."""

    def __init__(self, url: str, read_only: bool = False):
        self.read_only = read_only
        self.path: Path | None = None
        self._turn = threading.RLock()
        self._open: Transaction | None = None  # of the thread that holds _turn
        self._reading = threading.local()  # .connection of the read this thread is in
        self._lock_file = None
        scheme, _, rest = url.partition("://")
        if scheme == "sqlite":
            self.path = Path(rest[1:])
            self.name = str(self.path)
            self._engine = self._open_sqlite()
        elif scheme.partition("+")[0] in ("postgresql", "postgres"):
            self._engine = self._open_postgres(rest)
        else:
            raise ValueError(f"store = {url!r}: must be a path, sqlite:///PATH or postgresql://USER@HOST/NAME")
        try:
            self._prepare()
        except DBAPIError as error:
            self._engine.dispose()
            raise ValueError(f"cannot open the votes at {self.name}: {str(error.orig).strip()}") from None
        except BaseException:
            self._engine.dispose()
            raise

    @property
    def is_sqlite(self) -> bool:
        return self.path is not None

    def _open_sqlite(self) -> Engine:
        refuse_network(self.path.parent)
        if self.read_only:
            if not self.path.exists():
                raise ValueError(f"{self.path}: no votes yet; `fledge chat` or `fledge rate` makes the first")
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock_file = open(self.path.with_suffix(".lock"), "a")
        mode = "ro" if self.read_only else "rwc"

        def connect() -> sqlite3.Connection:
            uri = f"file:{quote(str(self.path.absolute()))}?mode={mode}"
            connection = sqlite3.connect(uri, uri=True, timeout=5, isolation_level=None, check_same_thread=False)
            if not self.read_only:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
            for setting in (
                "synchronous = FULL",
                "foreign_keys = ON",
                "trusted_schema = OFF",
                "busy_timeout = 5000",
                "secure_delete = ON",
            ):
                connection.execute(f"PRAGMA {setting}")
            return connection

        size = {"pool_size": 8} if self.read_only else {"pool_size": 1, "max_overflow": 0}
        engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool, **size)
        begin = "BEGIN" if self.read_only else "BEGIN IMMEDIATE"
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
        return engine

    def _open_postgres(self, rest: str) -> Engine:
        try:
            url = make_url(f"postgresql+psycopg://{rest}")
            self.name = url.set(drivername="postgresql").render_as_string(hide_password=True)
            size = {"pool_size": 8} if self.read_only else {"pool_size": 1, "max_overflow": 0}
            engine = create_engine(
                url, pool_pre_ping=True, isolation_level="REPEATABLE READ" if self.read_only else "READ COMMITTED",
                connect_args={"connect_timeout": 10}, **size,
            )  # fmt: skip
        except (ArgumentError, NoSuchModuleError) as error:
            raise ValueError(f"store: {error}; write postgresql://USER@HOST/NAME") from None
        except ImportError:
            raise ValueError("PostgreSQL needs its driver: pip install 'psycopg[binary]'") from None
        if self.read_only:
            return engine.execution_options(postgresql_readonly=True)

        @event.listens_for(engine, "connect")
        def durable(connection, _record) -> None:
            """A vote is acknowledged only when it is on disk, whatever the server's default."""
            with connection.cursor() as cursor:
                cursor.execute("SHOW synchronous_commit")
                if cursor.fetchone()[0] == "off":
                    cursor.execute("SET synchronous_commit = on")
            connection.commit()

        return engine

    def _prepare(self) -> None:
        """Make the tables of a new store, and refuse one of another format."""
        if self.read_only:
            with self.read() as connection:
                if not inspect(connection).has_table("head"):
                    raise ValueError(f"{self.name}: no votes yet; `fledge chat` or `fledge rate` makes the first")
                self._check_format(connection)
            return
        with self.write() as transaction:
            connection = transaction.connection
            if not inspect(connection).has_table("head"):
                metadata.create_all(connection)
                connection.execute(insert(head).values(id=1, format=FORMAT, seq=0, sha256=START))
            self._check_format(connection)

    def _check_format(self, connection: Connection) -> None:
        found = connection.execute(select(head.c.format)).scalar_one()
        if found != FORMAT:
            raise ValueError(
                f"{self.name} has format {found}; this version reads {FORMAT}: use the version that wrote it"
            )

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one moment; inside another read or a write of this thread it is that one's."""
        with nullcontext() if self.read_only else self._turn:
            inside = self._open.connection if self._open is not None else getattr(self._reading, "connection", None)
            if inside is not None:
                yield inside
                return
            with self._engine.connect() as self._reading.connection:
                try:
                    yield self._reading.connection
                finally:
                    self._reading.connection = None

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """Everything inside is committed together, or nothing is. Inside another of this thread it joins that one."""
        if self.read_only:
            raise ValueError(f"{self.name} was opened read-only")
        with self._turn:
            if self._open is not None:
                yield self._open
                return
            with self._locked():
                with self._engine.begin() as connection:
                    if not self.is_sqlite:
                        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_POSTGRES_KEY})")
                    self._open = transaction = Transaction(connection)
                    try:
                        yield transaction
                        transaction.finish()
                    finally:
                        self._open = None
                if transaction.fold and self.is_sqlite:
                    self._fold()

    def _fold(self) -> None:
        """Move the write-ahead log into the database file and empty it, as far as readers let it."""
        connection = self._engine.raw_connection()
        try:
            connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").close()
        finally:
            connection.close()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the file lock that keeps writers of other processes out; the kernel drops it when a process dies."""
        if self._lock_file is None:
            yield
            return
        end = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise TimeoutError(
                        f"{self._lock_file.name} has been held by another process for {_LOCK_SECONDS:.0f} s: "
                        "it is stopped or hangs; end it and try again"
                    ) from None
                time.sleep(0.0005)
        try:
            yield
        finally:
            fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    def close(self) -> None:
        """The last connection of SQLite to close folds its log into the database file, which is writing."""
        with self._turn, self._locked():
            self._engine.dispose()
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None

    def backup(self, path: Path) -> None:
        """Copy a SQLite database as of this moment, while others write; the copy appears whole or not at all."""
        if not self.is_sqlite:
            raise ValueError(
                "backup copies SQLite; for PostgreSQL use pg_dump, or `fledge votes migrate RUN --to FILE`"
            )
        if path.exists():
            raise ValueError(f"{path} exists: name a new file")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        source = sqlite3.connect(f"file:{quote(str(self.path.absolute()))}?mode=ro", uri=True, timeout=5)
        target = sqlite3.connect(temporary)
        try:
            source.backup(target)  # in one step: one read transaction, so one moment
            target.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
            target.close()
            descriptor = os.open(temporary, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
            os.replace(temporary, path)
        finally:
            source.close()
            target.close()
            temporary.unlink(missing_ok=True)
