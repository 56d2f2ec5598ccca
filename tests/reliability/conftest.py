"""Fixtures of the reliability tests: a folder in memory, forked trainers, tiny data, one small family of models."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import Trainers, loop, pretrain_recipe, write_chats, write_pairs, write_texts

_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="session")
def memory() -> Iterator[Path]:
    """A folder on a file system in memory: hundreds of fsyncs do not wait for a busy disk. Power loss is not tested here."""
    parent = _MEMORY if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 1 << 28 else None
    with tempfile.TemporaryDirectory(prefix="fledge-test-", dir=parent) as folder:
        yield Path(folder)


@pytest.fixture
def place(memory: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A fresh folder of this test."""
    folder = Path(tempfile.mkdtemp(prefix=request.node.name[:40].replace("/", "_") + "-", dir=memory))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def trainers() -> Iterator[Trainers]:
    server = Trainers()
    yield server
    server.close()


@pytest.fixture(scope="session")
def text(memory: Path) -> Path:
    return write_texts(memory / "text.jsonl")


@pytest.fixture(scope="session")
def grown(memory: Path, trainers: Trainers, text: Path) -> Path:
    """A folder with a base model, an SFT model raised from it, and chats.jsonl and pairs.jsonl."""
    folder = memory / "grown"
    folder.mkdir()
    chats, pairs = write_chats(folder / "chats.jsonl"), write_pairs(folder / "pairs.jsonl")
    assert chats.exists() and pairs.exists()
    trainers.run("stage", folder, verb="pretrain", recipe=pretrain_recipe(text, 60, "base", save_seconds=60))
    recipe = {"out": "sft", "parent": str(folder / "base"), "chats": [str(chats)], "train": loop(30, save_seconds=60)}
    trainers.run("stage", folder, verb="sft", recipe=recipe)
    return folder
