"""kill -9 at random moments, resume after each: the same bytes as a run nobody disturbed."""

import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support import ENVIRONMENT, FLEDGE, Trainers, assert_same_run, loop, pretrain_recipe

from fledge.core.checkpoint import list_checkpoints, load_checkpoint
from fledge.core.log import MetricsLog, read_jsonl

STEPS, KILLS, REAL_KILLS = 300, 25, 3


def _step_seconds(run: Path) -> float:
    return read_jsonl(run / "speed.jsonl")[-1]["seconds"] / read_jsonl(run / "metrics.jsonl")[-1]["step"]


def _newest(run: Path) -> int:
    found = list_checkpoints(run)
    return int(found[-1].name[5:]) if found else 0


def _kill_resume_process(folder: Path, target: int, after_seconds: float) -> int:
    """SIGKILL a real `python -m fledge resume run` once it has saved a checkpoint at `target` or later."""
    before = _newest(folder / "run")
    with open(folder / "said.txt", "wb") as said:
        process = subprocess.Popen([*FLEDGE, "resume", "run"], cwd=folder, env=ENVIRONMENT, stderr=said, stdout=said)
        while _newest(folder / "run") < max(target, before + 1) and process.poll() is None:
            time.sleep(5e-4)
        time.sleep(after_seconds)
        process.kill()
    assert process.wait() == -signal.SIGKILL, (folder / "said.txt").read_text()
    return _newest(folder / "run")


def test_25_kills_of_a_pretraining_run_leave_no_trace(trainers: Trainers, place: Path, text: Path):
    recipe = pretrain_recipe(text, STEPS)
    whole, killed = place / "whole", place / "killed"
    trainers.run("stage", whole, verb="pretrain", recipe=recipe)
    pause = min(0.05, 20 * _step_seconds(whole / "run"))  # longer than the time between two saves, well inside the run
    chance = random.Random(20261121)
    deaths = []

    # two before the first step: while the tokenizer is learned, the text encoded, the checkpoint read
    for _ in range(2):
        ended = trainers.kill(
            "stage", killed, verb="pretrain", recipe=recipe, step=0, after_seconds=chance.uniform(0.002, 0.03)
        )
        deaths.append(ended.step)
    width = (STEPS - 40) / (KILLS - 2)
    for i in range(KILLS - 2):
        target, delay = round((i + chance.random()) * width) + 1, chance.uniform(0, pause)
        if i in (4, 12, 20):
            deaths.append(_kill_resume_process(killed, target, delay))
        if _newest(killed / "run"):
            job = {"job": "resume", "run": "run"}
        else:
            job = {"job": "stage", "verb": "pretrain", "recipe": recipe}
        deaths.append(trainers.kill(**job, folder=killed, step=target, after_seconds=delay).step)
    assert len(deaths) == KILLS + REAL_KILLS
    assert not (killed / "run" / "done.json").exists()
    trainers.run("resume", killed, run="run")

    print(f"{len(deaths)} kills at steps {deaths}")
    assert_same_run(whole / "run", killed / "run")
    rows = read_jsonl(killed / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert max(deaths) - min(deaths) > STEPS / 2, "the kills fell all over the run"
    # what the dead left behind is gone, and the log of the clock still reads
    assert [p.name for p in (killed / "run" / "checkpoints").iterdir() if p.name.startswith(".")] == []
    assert {row["step"] for row in read_jsonl(killed / "run" / "speed.jsonl")} == set(range(1, STEPS + 1))


def test_10_kills_of_a_dpo_run_leave_no_trace(trainers: Trainers, place: Path, grown: Path):
    recipe = {
        "out": "run", "parent": str(grown / "sft"), "pairs": [str(grown / "pairs.jsonl")],
        "train": loop(60, save_seconds=0.03),
    }  # fmt: skip
    whole, killed = place / "whole", place / "killed"
    trainers.run("stage", whole, verb="dpo", recipe=recipe)
    chance, deaths = random.Random(5), []
    for target in (0, 1, 7, 13, 19, 25, 31, 37, 43, 49):
        delay = chance.uniform(0, 5 * _step_seconds(whole / "run"))
        ended = trainers.kill("stage", killed, verb="dpo", recipe=recipe, step=target, after_seconds=delay)
        deaths.append(ended.step)
    assert len(deaths) == 10 and max(deaths) > 40
    trainers.run("resume", killed, run="run")
    print(f"{len(deaths)} kills at steps {deaths}")
    assert_same_run(whole / "run", killed / "run")


@pytest.mark.parametrize("again", [False, True], ids=["new step", "same step again"])
def test_a_kill_at_every_call_of_a_save_leaves_a_whole_checkpoint(trainers: Trainers, place: Path, again: bool):
    """Before each open, fsync, rename and removal of one save: the newest checkpoint verifies and is the old or the new."""
    held = place / "held"
    for step in (1, 2, 3) if again else (1, 2):
        trainers.run("save", held, run="run", step=step)
    seen = []
    for at in range(1000):
        folder = place / f"at-{at}"
        shutil.copytree(held, folder)
        ended = trainers.wait(trainers.start("save_killed", folder, run="run", step=3, at=at))
        if ended.code == 3:
            break
        assert ended.code == 128 + signal.SIGKILL, ended.said
        seen.append(load_checkpoint(folder / "run").step)
        trainers.run("save", folder, run="run", step=3)
        assert load_checkpoint(folder / "run").step == 3
        assert [load_checkpoint(c).step for c in list_checkpoints(folder / "run")] == [2, 3]
        shutil.rmtree(folder)
    print(f"killed at {len(seen)} calls of one save; newest afterwards: {seen}")
    assert len(seen) >= 20
    assert set(seen) == {2, 3}


@pytest.mark.parametrize("torn", [b'{"step":3,"sec', b'{"step":3,"seconds":0.5}', b""])
def test_a_torn_last_line_does_not_spoil_the_lines_after_it(place: Path, torn: bytes):
    """A write cut by a crash or a full disk: the figures of the clock go on after the last whole line."""
    whole = b'{"step":1,"seconds":0.1}\n{"step":2,"seconds":0.2}\n'
    for held, steps in ((whole, [1, 2, 9]), (b"", [9])):
        (place / "speed.jsonl").write_bytes(held + torn)
        log = MetricsLog(place, 0)
        log.write({"step": 9}, {"step": 9, "seconds": 0.9})
        log.close()
        assert [row["step"] for row in read_jsonl(place / "speed.jsonl")] == steps


def test_a_run_killed_after_its_last_checkpoint_is_finished_by_resume(trainers: Trainers, place: Path, text: Path):
    """Between the last rename and done.json: resume writes what is missing and trains nothing."""
    trainers.run("stage", place, verb="pretrain", recipe=pretrain_recipe(text, 3))
    held = {p: p.read_bytes() for p in (place / "run").rglob("*.json*") if p.is_file()}
    (place / "run" / "done.json").unlink()
    trainers.run("resume", place, run="run")
    assert {p: p.read_bytes() for p in held} == held
