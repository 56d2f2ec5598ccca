"""Fixtures of the experiments' tests: a model that answers some sums, and a tiny journey through the quick world."""

import json
from pathlib import Path

import pytest

from fledge.core.config import build
from fledge.labs.bench import Bench
from fledge.stages import pretrain, sft
from fledge.stages.common import fix_recipe
from fledge.stages.journey import JourneyRecipe
from fledge.tasks.catalog import open_lesson
from fledge.tasks.world_tasks import WorldGold
from fledge.world import World, WorldConfig

LOOP = {"threads": 1, "precision": "float32"}
WORLD_SEED = 3  # not the default, so that the seed must be found in the journey's recipe


def raise_sft(folder: Path, texts: list[str], chats: list[list[dict]], vocab: int, context: int, steps: int) -> str:
    """A base model of a few steps and an SFT model of `steps`; one layer."""
    for name, rows in (("text", [{"text": t} for t in texts]), ("chats", [{"messages": c} for c in chats])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    base = {
        "out": str(folder / "base"), "text": [str(folder / "text.jsonl")], "vocab_size": vocab,
        "model": {"size": "tiny", "layers": 1, "context_tokens": context},
        "train": {**LOOP, "steps": 3, "batch_tokens": 256},
    }  # fmt: skip
    pretrain.run(build(pretrain.PretrainRecipe, base), quiet=True)
    taught = {
        "out": str(folder / "sft"), "parent": base["out"], "chats": [str(folder / "chats.jsonl")],
        "train": {**LOOP, "steps": steps, "lr": 5e-3, "batch_tokens": 512},
    }  # fmt: skip
    sft.run(build(sft.SftRecipe, taught), quiet=True)
    return taught["out"]


@pytest.fixture(scope="session")
def adder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An SFT model that answers sums of one digit, mostly wrong."""
    lesson = open_lesson("arithmetic:1")
    return raise_sft(tmp_path_factory.mktemp("adder"), [*lesson.texts(60)], [*lesson.chats(400)], 280, 48, 100)


@pytest.fixture(scope="session")
def world() -> World:
    return World(WorldConfig.quick(WORLD_SEED))


@pytest.fixture(scope="session")
def gold(world: World) -> WorldGold:
    return WorldGold(world)


@pytest.fixture(scope="session")
def raised(tmp_path_factory: pytest.TempPathFactory, world: World) -> str:
    """An SFT model in the folder of a journey through the quick world; it says little, but in the world's words."""
    journey = tmp_path_factory.mktemp("worlds") / "journey"
    fix_recipe(journey, "journey", JourneyRecipe(out=str(journey), quick=True, seed=WORLD_SEED))
    chats = [chat["messages"] for chat in world.chats()]
    texts = [message["content"] for chat in chats for message in chat]
    return raise_sft(journey, texts, chats, 700, 80, 120)


@pytest.fixture(scope="session")
def little_journey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shared models that holds the tiny journey of seed 0: Bench(folder, little_journey, 0, "tiny").journey()

    finds base, sft, control, reward and aligned there. The SFT model ends its answers and knows next to nothing.
    """
    shared = tmp_path_factory.mktemp("shared")
    Bench(shared / "unused", shared, 0, "tiny").journey()
    return shared
