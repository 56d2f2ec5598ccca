"""kill -9 of a round of improvement, at every border between its stages and at random: the same bytes as undisturbed."""

import random
import shutil
import signal
import time
import uuid
from pathlib import Path

import pytest
from support import Trainers, words

from fledge.core.checkpoint import read_serving
from fledge.core.log import read_jsonl
from fledge.feedback.records import NewDraft, NewVote
from fledge.feedback.store import Store, store_url
from fledge.text.messages import Message

BORDERS = (
    "recipe.json", "plan.json", "data/sft.jsonl", "data/pairs.jsonl", "data.json", "sft/recipe.json", "sft/done.json",
    "dpo/done.json", "kto/done.json", "judge-1/done.json", "judge-4/done.json", "answers.jsonl",
)  # fmt: skip
RANDOM = 6
CLOCKS = {"speed.jsonl", "lock"}
RECIPE = {
    "run": "run", "questions": 40, "answers": 2, "min_rows": 10, "batch_tokens": 256, "sft": {"epochs": 1.0},
    "dpo": {"epochs": 1.0}, "reward": {"epochs": 1.0, "batch_tokens": 256},
}  # fmt: skip


def vote(run: Path, questions: list[str], count: int, seed: int) -> None:
    """`count` choices, thumbs, scores and edits by somebody who likes the letter a, on answers of two words."""
    chance, known = random.Random(seed), words(1)
    with Store.open(store_url(run)) as store, store.transaction():
        person = store.put_person("simulated", "likes a", "service", id="p_likes_a")

        def draft() -> tuple[str, str]:
            text = " ".join(chance.choices(known, k=2))
            new = NewDraft(prompt=prompt, text=text, tokens=[1], finish="stop", person=person)
            return store.put_draft(new), text

        for number in range(count):
            prompt = (Message("user", questions[number % len(questions)]),)
            (one, first), (other, second) = draft(), draft()
            task = store.put_task(person, one, other, "a", "random")
            votes = {
                "thumb": {"draft": one, "value": 1 if "a" in first else -1},
                "score": {"draft": other, "value": min(5, 2 * second.count("a"))},
                "edit": {"draft": one, "text": f"{first} a"},
                "pair": {"task": task, "choice": "left" if first.count("a") > second.count("a") else "right"},
            }
            for kind, value in votes.items():
                store.put_vote(person, NewVote(id=str(uuid.UUID(int=chance.getrandbits(128))), kind=kind, **value))


@pytest.fixture(scope="module")
def voted(memory: Path, grown: Path) -> Path:
    """An SFT model with 60 votes of each kind about half of its questions."""
    folder = memory / "voted"
    shutil.copytree(grown / "sft", folder / "run")
    chats = read_jsonl(grown / "chats.jsonl")
    vote(folder / "run", [c["messages"][0]["content"] for c in chats[:30]], 60, 1)
    return folder


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file of a round that must not depend on how it got there."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name not in CLOCKS)
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def killed_at(trainers: Trainers, folder: Path, border: Path, later_seconds: float = 0.0) -> int:
    """Start or continue the round and SIGKILL it as soon as `border` is there; returns the exit code."""
    pid = trainers.start("stage", folder, verb="improve", recipe=RECIPE)
    stop = time.monotonic() + 60
    while not border.exists() and time.monotonic() < stop:
        time.sleep(2e-4)
    assert border.exists(), f"{border} never came: {trainers.wait(pid).said}"
    trainers.send(pid, signal.SIGKILL, after_seconds=later_seconds)
    return trainers.wait(pid).code


def test_kills_at_every_border_and_at_random_leave_no_trace(trainers: Trainers, place: Path, voted: Path):
    whole, killed = place / "whole", place / "killed"
    for folder in (whole, killed):
        shutil.copytree(voted, folder)
    begun = time.monotonic()
    trainers.run("stage", whole, verb="improve", recipe=RECIPE)
    seconds = time.monotonic() - begun

    round_of = killed / "run" / "rounds" / "001"
    codes = [killed_at(trainers, killed, round_of / border) for border in BORDERS]
    assert not (round_of / "result.json").exists()
    chance = random.Random(7)
    for _ in range(RANDOM):  # from the beginning again: these fall where they fall
        other = Path(shutil.copytree(voted, place / f"random-{_}"))
        pid = trainers.start("stage", other, verb="improve", recipe=RECIPE)
        trainers.send(pid, signal.SIGKILL, after_seconds=chance.uniform(0.05, 0.9) * seconds)
        codes.append(trainers.wait(pid).code)
        trainers.run("stage", other, verb="improve", recipe=RECIPE)
        assert bytes_of(other / "run" / "rounds" / "001") == bytes_of(whole / "run" / "rounds" / "001")
        shutil.rmtree(other)
    trainers.run("resume", killed, run="run/rounds/001")

    print(f"{codes.count(128 + signal.SIGKILL)} of {len(codes)} killed while at work")
    assert codes[: len(BORDERS)].count(128 + signal.SIGKILL) == len(BORDERS)
    one, other = (bytes_of(folder / "run" / "rounds" / "001") for folder in (whole, killed))
    samples = {name for name in {*one, *other} if name.endswith("samples.jsonl")}  # only told when somebody looks on
    assert {k: v for k, v in one.items() if k not in samples} == {k: v for k, v in other.items() if k not in samples}
    assert read_serving(whole / "run") == read_serving(killed / "run")


def test_votes_given_while_a_killed_round_waits_belong_to_the_next(trainers: Trainers, place: Path, voted: Path):
    folder = Path(shutil.copytree(voted, place / "work"))
    killed_at(trainers, folder, folder / "run/rounds/001/plan.json")
    vote(folder / "run", ["one", "two", "three"], 10, 2)
    trainers.run("stage", folder, verb="improve", recipe=RECIPE)
    whole = Path(shutil.copytree(voted, place / "whole"))
    trainers.run("stage", whole, verb="improve", recipe=RECIPE)
    assert bytes_of(folder / "run/rounds/001") == bytes_of(whole / "run/rounds/001")
