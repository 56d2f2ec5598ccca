"""Stores of votes for tests: the same tests on SQLite and on PostgreSQL."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from voters import Voters

from fledge.feedback.store import Store, store_url

_MEMORY = Path("/dev/shm")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder in memory, so that an fsync per vote does not wait for a busy disk. Power loss is not tested here."""
    with tempfile.TemporaryDirectory(prefix="fledge-votes-", dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, place: Path) -> str:
    """URL of an empty store, of each kind."""
    return store_url(place) if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
def store(address: str) -> Iterator[Store]:
    with Store.open(address) as opened:
        yield opened


@pytest.fixture
def voters(store: Store) -> Voters:
    """Two people, drafts and tasks to vote on."""
    return Voters(store)
