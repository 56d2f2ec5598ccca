"""kill -9 at random moments of reinforcement runs, resume after each: the same bytes as runs nobody disturbed."""

import json
import random
from pathlib import Path

import pytest
from support import Trainers, assert_same_run, loop, words, write_rows

from fledge.core.checkpoint import list_checkpoints
from fledge.core.log import read_jsonl

STEPS, KILLS = 160, 20


@pytest.fixture
def questions(place: Path) -> Path:
    chance, known = random.Random(4), words(1)
    return write_rows(place / "prompts.jsonl", [{"prompt": " ".join(chance.choices(known, k=2))} for _ in range(40)])


def recipe(grown: Path, questions: Path, steps: int, method: str, batch_tokens: int = 4096, **over) -> dict:
    return {
        "out": "run", "parent": str(grown / "sft"), "method": method, "prompts": [str(questions)],
        "reward": ["length:4", "0.1*regex:.*a.*"], "prompts_per_update": 2, "group_size": 3, "max_tokens": 6,
        "train": loop(steps, save_seconds=0.02, batch_tokens=batch_tokens), **over,
    }  # fmt: skip


def seconds_a_step(run: Path) -> float:
    return read_jsonl(run / "speed.jsonl")[-1]["seconds"] / len(read_jsonl(run / "metrics.jsonl"))


def looks(run: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in [*sorted((run / "looks").iterdir()), run / "flags.json"]}


def disturb(
    trainers: Trainers, place: Path, made: dict, steps: int, kills: int, seed: int
) -> tuple[list[int], list[int]]:
    """(step at each death, step inside its rollout of the checkpoint left then) of a run that then equals `whole`."""
    whole, killed = place / "whole", place / "killed"
    trainers.run("stage", whole, verb="reinforce", recipe=made)
    pause = 4 * seconds_a_step(whole / "run")
    chance, deaths, inner = random.Random(seed), [], []
    width = (steps - 30) / (kills - 1)
    for i in range(kills):
        target, delay = (round((i - 1 + chance.random()) * width) + 1, chance.uniform(0, pause)) if i else (0, 0.01)
        job = {"job": "resume", "run": "run"}
        if not list_checkpoints(killed / "run"):
            job = {"job": "stage", "verb": "reinforce", "recipe": made}
        deaths.append(trainers.kill(**job, folder=killed, step=target, after_seconds=delay).step)
        if left := list_checkpoints(killed / "run"):
            inner.append(json.loads((left[-1] / "state.json").read_bytes())["source"]["inner"])
    assert not (killed / "run" / "done.json").exists()
    trainers.run("resume", killed, run="run")
    print(f"{len(deaths)} kills at steps {deaths}; checkpoints left at steps {inner} of a rollout")
    assert_same_run(whole / "run", killed / "run")
    assert looks(whole / "run") == looks(killed / "run")
    rows = read_jsonl(killed / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, steps + 1)) and sum(
        row["grad_norm"] > 0 for row in rows
    ) > steps / 2
    assert len(deaths) == kills and max(deaths) - min(deaths) > steps / 2, "the kills fell all over the run"
    return deaths, inner


def test_20_kills_of_a_grpo_run_leave_no_trace(trainers: Trainers, place: Path, grown: Path, questions: Path):
    made = recipe(grown, questions, STEPS, "grpo", resample=1, kl="loss", kl_coefficient=0.05, kl_target=2.0)
    disturb(trainers, place, made, STEPS, KILLS, 20261122)


def test_6_kills_inside_the_epochs_of_a_ppo_run_leave_no_trace(
    trainers: Trainers, place: Path, grown: Path, questions: Path
):
    """4 epochs of 2 steps on each rollout: its answers and old log-probs are part of what is saved."""
    made = recipe(grown, questions, 120, "ppo", batch_tokens=96, kl="reward", kl_coefficient=0.05)
    _, inner = disturb(trainers, place, made, 120, 6, 9)
    rollouts = json.loads((list_checkpoints(place / "whole/run")[-1] / "card.json").read_bytes())["data"]["rollouts"]
    assert rollouts["epochs"] == 4 and rollouts["minibatches"] == 2
    assert sum(step > 0 for step in inner) >= 2, "the middle of a rollout was resumed"
