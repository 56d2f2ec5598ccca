"""Files that are whole or not there: fsync, rename, and locks that die with their process. No torch in here."""

import fcntl
import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec


def canonical_json(value: Any) -> bytes:
    """Sorted keys, no spaces: equal values give equal bytes."""
    return msgspec.json.encode(value, order="deterministic") + b"\n"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_durably(path: Path, data: bytes) -> None:
    """Write and fsync one file."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def fsync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace one file so that readers see the old or the new bytes, never a mixture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_durably(temporary, data)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold the run folder for this process; a second writer is refused by name. The lock dies with its process."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = open(run / "lock", "a+")
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write to {run}: {error.strerror}; choose another --out or make it writable"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"{run} is being written by another process ({file.read().strip() or 'unknown'}): "
                "wait for it, stop it, or choose another --out"
            ) from None
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process is at work in this folder, then keep others out. Killed, it lets go."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
