"""What the tests of reinforcement share: recipes and prompts about sums of one digit."""

import json
from pathlib import Path

from fledge.core.config import build
from fledge.core.log import read_jsonl
from fledge.stages import reinforce
from fledge.stages.reinforce import ReinforceRecipe

LOOP = {"threads": 1, "precision": "float32"}
SEVEN = "def seven(example, answer):\n    return '7' in answer\n"


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def asked(path: Path, count: int = 24, **extra) -> str:
    return write_rows(
        path,
        [{"prompt": f"{i % 9 + 1}+{i // 9 + 1}=", "answer": str(i % 9 + i // 9 + 2), **extra} for i in range(count)],
    )


def recipe(out: Path | str, parent: str, **over) -> ReinforceRecipe:
    train = {**LOOP, "steps": 6, "lr": 3e-3, "schedule": "constant", "batch_tokens": 65536} | over.pop("train", {})
    given = {
        "out": str(out), "parent": parent, "prompts_per_update": 4, "group_size": 4, "max_tokens": 4, "train": train
    }  # fmt: skip
    if "prompts" not in over:
        given["task"] = "arithmetic:1"
    return build(ReinforceRecipe, given | over)


def go(out: Path | str, parent: str, quiet: bool = True, **over) -> list[dict]:
    reinforce.run(recipe(out, parent, **over), quiet=quiet)
    return read_jsonl(Path(out) / "metrics.jsonl")
