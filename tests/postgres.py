"""A real PostgreSQL for tests: a cluster of Debian's binaries in a temporary folder, reached over its unix socket."""

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_SETTINGS = {
    "listen_addresses": "",  # the socket only: no port to fight over
    "fsync": "off",  # what is tested dies by kill -9, which loses no page of the operating system's
    "max_connections": "60",
    "shared_buffers": "16MB",
    "autovacuum": "off",
}


def binaries() -> Path | None:
    """The newest installed version's folder, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3].partition(".")[0]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


def _account() -> dict[str, object]:
    """PostgreSQL refuses to run as root: then it runs as `postgres`."""
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam("postgres")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": [], "cwd": "/"}


@contextmanager
def cluster() -> Iterator[str]:
    """Start a server and give the folder of its socket; skips the test where PostgreSQL is not installed."""
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    try:
        account = _account()
    except KeyError:
        pytest.skip("running as root without a user `postgres` to run PostgreSQL as")
    folder = Path(tempfile.mkdtemp(prefix="fledge-pg-", dir="/tmp"))
    if account:
        shutil.chown(folder, account["user"], account["group"])
    data, log = folder / "data", folder / "log"

    def call(*words: object) -> None:
        done = subprocess.run([str(w) for w in words], capture_output=True, text=True, **account)
        if done.returncode:
            said = log.read_text() if log.exists() else ""
            raise RuntimeError(f"{words[0]} failed: {done.stdout} {done.stderr} {said}")

    try:
        call(
            programs / "initdb",
            "-D",
            data,
            "-U",
            "postgres",
            "--auth=trust",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
        )
        with open(data / "postgresql.conf", "a") as settings:
            settings.writelines(f"{name} = '{value}'\n" for name, value in _SETTINGS.items())
            settings.write(f"unix_socket_directories = '{folder}'\n")
        call(programs / "pg_ctl", "-D", data, "-l", log, "-w", "-t", "60", "start")
        try:
            yield str(folder)
        finally:
            call(programs / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_socket() -> Iterator[str]:
    with cluster() as socket:
        yield socket


@pytest.fixture
def postgres_url(postgres_socket: str) -> Iterator[str]:
    """The URL of an empty database of its own, for `Store.open`."""
    import psycopg

    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(host=postgres_socket, user="postgres", dbname="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield f"postgresql://postgres@/{name}?host={postgres_socket}"
    with psycopg.connect(host=postgres_socket, user="postgres", dbname="postgres", autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
