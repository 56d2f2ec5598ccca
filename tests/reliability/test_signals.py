"""SIGTERM and Ctrl-C: saved within 10 s, a documented exit code, and `resume` ends in the same bytes."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support import ENVIRONMENT, FLEDGE, Trainers, assert_same_run, command_line, pretrain_recipe

from fledge.core.checkpoint import list_checkpoints, load_checkpoint
from fledge.core.log import read_jsonl

SAVE_SECONDS_AT_MOST = 10.0


@pytest.fixture(scope="module")
def whole(memory: Path, trainers: Trainers, text: Path) -> Path:
    """The uninterrupted run; its only checkpoint by the clock is the last."""
    trainers.run("stage", memory / "signals", verb="pretrain", recipe=_recipe(text))
    return memory / "signals" / "run"


def _recipe(text: Path) -> dict:
    return pretrain_recipe(text, 300, save_seconds=600.0)


def _wait_for_steps(run: Path, process: subprocess.Popen, steps: int) -> None:
    while len(read_jsonl(run / "metrics.jsonl")) < steps:
        assert process.poll() is None, process.stderr.read()
        time.sleep(2e-3)


@pytest.mark.parametrize(("number", "code", "steps"), [(signal.SIGTERM, 143, 60), (signal.SIGINT, 130, 1)])
def test_a_signal_saves_exits_with_its_code_and_resume_completes(
    trainers: Trainers, whole: Path, place: Path, text: Path, number: int, code: int, steps: int
):
    process = subprocess.Popen(
        command_line("pretrain", _recipe(text)), cwd=place, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    _wait_for_steps(place / "run", process, steps)
    start = time.monotonic()
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    seconds = time.monotonic() - start
    assert process.returncode == code, said
    assert seconds < SAVE_SECONDS_AT_MOST
    step = load_checkpoint(place / "run").step
    assert steps <= step < 300
    print(f"{signal.Signals(number).name} at step {step}: saved and gone in {seconds:.2f} s")
    assert f"stopped at step {step} of 300, saved in run" in said
    assert "continue with `fledge resume run`" in said
    assert "Traceback" not in said
    assert len(read_jsonl(place / "run" / "metrics.jsonl")) == step, "every step done is in the log"
    trainers.run("resume", place, run="run")
    assert_same_run(whole, place / "run")


def test_a_second_signal_in_a_long_step_quits_at_once_without_harm(trainers: Trainers, place: Path, text: Path):
    """Steps of seconds: the first signal waits for the end of the step, the second does not."""
    recipe = pretrain_recipe(text, 3, batch_tokens=131072, micro_tokens=4096, save_seconds=0.001)
    trainers.run("stage", place / "whole", verb="pretrain", recipe=recipe)
    folder = place / "twice"
    child = trainers.start("command", folder, arguments=command_line("pretrain", recipe)[len(FLEDGE) :])
    assert trainers.send(child, signal.SIGINT, step=1, after_seconds=0.3)
    time.sleep(0.1)
    start = time.monotonic()
    assert trainers.send(child, signal.SIGINT)
    ended = trainers.wait(child)
    assert ended.code == 130 and time.monotonic() - start < 1.0, ended.said
    assert ended.step < 3 and not (folder / "run" / "done.json").exists()
    assert load_checkpoint(folder / "run").step == ended.step, "the checkpoint of the last whole step"
    trainers.run("resume", folder, run="run")
    assert_same_run(place / "whole" / "run", folder / "run")


@pytest.mark.parametrize(("first", "second"), [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM)])
def test_a_second_signal_in_the_middle_of_a_save_leaves_the_checkpoint_before(
    trainers: Trainers, whole: Path, place: Path, text: Path, first: int, second: int
):
    trainers.kill("stage", place, verb="pretrain", recipe=_recipe(text), step=50, after_seconds=0)
    assert not list_checkpoints(place / "run")
    one = trainers.start("stage", place, verb="pretrain", recipe=_recipe(text))
    assert trainers.send(one, signal.SIGTERM, step=80)
    trainers.wait(one)
    held = load_checkpoint(place / "run")
    child = trainers.start("slow_saves", place, run="run", seconds=0.5)
    assert trainers.send(child, first, step=held.step + 5)
    while not (place / "saving").exists():
        time.sleep(1e-3)
    start = time.monotonic()
    assert trainers.send(child, second)
    ended = trainers.wait(child)
    assert ended.code == 128 + second and time.monotonic() - start < 1.5, ended.said  # the save would take three
    assert load_checkpoint(place / "run").id == held.id
    trainers.run("resume", place, run="run")
    assert_same_run(whole, place / "run")
    assert [p.name for p in (place / "run" / "checkpoints").iterdir() if p.name.startswith(".")] == []


def test_a_signal_in_the_last_step_finishes_the_run_and_still_stops(trainers: Trainers, place: Path, text: Path):
    """Whoever runs stages one after another must not go on after Ctrl-C."""
    recipe = pretrain_recipe(text, 2, batch_tokens=131072, micro_tokens=4096)
    child = trainers.start("command", place, arguments=command_line("pretrain", recipe)[len(FLEDGE) :])
    assert trainers.send(child, signal.SIGINT, step=1, after_seconds=0.2)
    ended = trainers.wait(child)
    assert ended.code == 130, ended.said
    assert re.search(r"stopped after the last of 2 steps, saved in run", ended.said)
    assert (place / "run" / "done.json").exists() and load_checkpoint(place / "run").step == 2
    assert "nothing to do" in trainers.run("resume", place, run="run").said


def test_ctrl_c_before_the_first_step_says_how_to_go_on(trainers: Trainers, whole: Path, place: Path, text: Path):
    """While the tokenizer is learned: nothing is saved yet, nothing is lost, resume starts again."""
    arguments = command_line("pretrain", _recipe(text))[len(FLEDGE) :]
    child = trainers.start("slow_tokenizer", place, arguments=arguments, seconds=30.0)
    while not (place / "learning").exists():
        time.sleep(1e-3)
    assert trainers.send(child, signal.SIGINT)
    ended = trainers.wait(child)
    assert ended.code == 130 and "fledge resume" in ended.said and "Traceback" not in ended.said, ended.said
    trainers.run("resume", place, run="run")
    assert_same_run(whole, place / "run")


def test_the_handlers_of_whoever_calls_train_come_back(whole: Path, trainers: Trainers, place: Path, text: Path):
    from fledge.core.train import _interrupts

    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with _interrupts() as seen:
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [signal.SIGTERM]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
