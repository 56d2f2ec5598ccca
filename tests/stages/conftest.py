"""Fixtures of the tests of reinforcement: a model that answers sums, and a file with a reward."""

from pathlib import Path

import pytest
from sums import LOOP, SEVEN, write_rows

from fledge.core.config import build
from fledge.stages import pretrain, sft
from fledge.tasks.catalog import open_lesson


@pytest.fixture(scope="session")
def parent(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of one layer that answers sums of one digit, mostly wrong."""
    folder, lesson = tmp_path_factory.mktemp("parent"), open_lesson("arithmetic:1")
    text = write_rows(folder / "text.jsonl", [{"text": t} for t in lesson.texts(60)])
    chats = write_rows(folder / "chats.jsonl", [{"messages": c} for c in lesson.chats(400)])
    model = {"size": "tiny", "layers": 1, "context_tokens": 48}
    base = {
        "out": str(folder / "base"), "text": [text], "vocab_size": 280, "model": model,
        "train": {**LOOP, "steps": 3, "batch_tokens": 256},
    }  # fmt: skip
    pretrain.run(build(pretrain.PretrainRecipe, base), quiet=True)
    taught = {
        "out": str(folder / "sft"), "parent": base["out"], "chats": [chats],
        "train": {**LOOP, "steps": 100, "lr": 3e-3, "batch_tokens": 512},
    }  # fmt: skip
    sft.run(build(sft.SftRecipe, taught), quiet=True)
    return taught["out"]


@pytest.fixture
def rules(tmp_path) -> Path:
    path = tmp_path / "my rules.py"
    path.write_text(SEVEN)
    return path
