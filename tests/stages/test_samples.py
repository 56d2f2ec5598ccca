"""Samples while training: what is asked, when, that nothing else notices, and that a resumed run writes the same file."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from sums import LOOP, write_rows

from fledge.core import parallel
from fledge.core.config import build
from fledge.core.log import read_jsonl
from fledge.core.train import Interrupted
from fledge.stages import common, prefer, pretrain, sft
from fledge.stages.common import open_model
from fledge.stages.samples import Samples, beginnings, questions, shown_steps, stored_texts
from fledge.text.messages import Message
from fledge.text.sources import TokenStore

STEPS = 30


def chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sentences) -> Path:
    """text.jsonl, chats.jsonl, pairs.jsonl, votes.jsonl and a base model in `base`."""
    place = tmp_path_factory.mktemp("samples")
    write_rows(place / "text.jsonl", [{"text": f"{a} {b}"} for a in sentences for b in sentences])
    asked = [
        (f"say {a[:9]} {i}", b[:12]) for i, (a, b) in enumerate(zip(sentences * 3, sentences[1:] * 4, strict=False))
    ]
    write_rows(place / "chats.jsonl", [{"messages": chat(*qa)} for qa in asked])
    write_rows(place / "pairs.jsonl", [{"prompt": q, "chosen": a, "rejected": "no " + a} for q, a in asked])
    write_rows(
        place / "votes.jsonl", [{"prompt": q, "completion": a, "label": i % 2 == 0} for i, (q, a) in enumerate(asked)]
    )
    run_pretrain(place, "base", steps=STEPS, quiet=True)
    return place


def run_pretrain(place: Path, out: str, steps: int = STEPS, quiet: bool = False, **more: Any) -> Path:
    recipe = {
        "out": str(place / out), "text": [str(place / "text.jsonl")], "vocab_size": 300,
        "model": {"size": "tiny", "layers": 1, "context_tokens": 64},
        "train": {**LOOP, "steps": steps, "batch_tokens": 256, "save_seconds": 600.0}, **more,
    }  # fmt: skip
    pretrain.run(build(pretrain.PretrainRecipe, recipe), quiet=quiet)
    return place / out


def result(run: Path) -> dict[str, bytes]:
    newest = sorted((run / "checkpoints").iterdir())[-1]
    kept = {p.name: p.read_bytes() for p in newest.iterdir() if p.name not in ("card.json", "MANIFEST.json")}
    return kept | {"metrics": (run / "metrics.jsonl").read_bytes()}


def test_which_steps_are_shown():
    assert shown_steps(100) == {1, *range(10, 101, 10)}
    assert shown_steps(2936) >= {1, 2936} and len(shown_steps(2936)) == 11
    assert shown_steps(1) == {1} and shown_steps(3) == {1, 2, 3}
    for steps in (1, 7, 33, 10**6 + 1):
        assert {1, steps} <= shown_steps(steps) <= set(range(1, steps + 1)) and len(shown_steps(steps)) <= 11


def test_pretraining_goes_on_with_held_out_beginnings_and_nothing_else_changes(folder, tmp_path):
    shutil.copy(folder / "text.jsonl", tmp_path)
    loud = run_pretrain(tmp_path, "loud", heldout_every=9)
    quiet = run_pretrain(tmp_path, "quiet", quiet=True, heldout_every=9)
    assert result(loud) == result(quiet)
    assert not (quiet / "samples.jsonl").exists()
    rows = read_jsonl(loud / "samples.jsonl")
    assert [row["step"] for row in rows] == sorted(shown_steps(STEPS))
    assert {row["steps"] for row in rows} == {STEPS}
    heldout = pretrain.heldout_texts(loud)
    for row in rows:
        assert len(row["samples"]) == 3
        for sample in row["samples"]:
            assert any(text.startswith(sample["prompt"]) for text in heldout)
            assert sample["finish"] in ("stop", "length")
    assert rows[0]["samples"] != rows[-1]["samples"], "it has learnt something"
    assert not list(loud.glob(".*.tmp"))


def test_the_last_sample_is_what_the_finished_model_writes(folder, tmp_path):
    from fledge.generate.chat import chat_engine, continue_text
    from fledge.generate.sampling import Sampling

    shutil.copy(folder / "text.jsonl", tmp_path)
    run = run_pretrain(tmp_path, "run")
    shown = read_jsonl(run / "samples.jsonl")[-1]["samples"]
    opened = open_model(run)
    engine = chat_engine(opened.model, opened.tokenizer)
    greedy = Sampling(temperature=0.0, max_tokens=40)
    told = continue_text(engine, opened.tokenizer, [s["prompt"] for s in shown], greedy)
    assert [(s["text"], s["finish"]) for s in shown] == [(a.text, a.finish) for a in told]


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto"])
def test_chat_stages_answer_prompts_of_their_data(folder, tmp_path, stage):
    make = {
        "sft": (sft.SftRecipe, sft.run, "chats"),
        "dpo": (prefer.DpoRecipe, prefer.run_dpo, "pairs"),
        "kto": (prefer.KtoRecipe, prefer.run_kto, "votes"),
    }
    kind, run, key = make[stage]
    file = {"chats": "chats.jsonl", "pairs": "pairs.jsonl", "votes": "votes.jsonl"}[key]
    for quiet in (False, True):
        recipe = {
            "out": str(tmp_path / str(quiet)), "parent": str(folder / "base"), key: [str(folder / file)],
            "train": {**LOOP, "steps": 12, "batch_tokens": 256},
        }  # fmt: skip
        run(build(kind, recipe), quiet=quiet)
    assert result(tmp_path / "False") == result(tmp_path / "True")
    rows = read_jsonl(tmp_path / "False" / "samples.jsonl")
    assert [row["step"] for row in rows] == sorted(shown_steps(12))
    asked = (folder / file).read_text()
    for sample in rows[-1]["samples"]:
        assert sample["prompt"].startswith("say ") and sample["prompt"].split()[-1] in asked
    assert len({s["prompt"] for s in rows[-1]["samples"]}) == 3


def test_a_reward_model_writes_nothing(folder, tmp_path):
    recipe = {
        "out": str(tmp_path / "rm"), "parent": str(folder / "base"), "pairs": [str(folder / "pairs.jsonl")],
        "train": {**LOOP, "steps": 5, "batch_tokens": 256},
    }  # fmt: skip
    prefer.run_reward(build(prefer.RewardRecipe, recipe))
    assert not (tmp_path / "rm" / "samples.jsonl").exists()


@pytest.mark.parametrize("stop_at", [1, 6, 14, 29])
def test_a_resumed_run_writes_the_same_file(folder, tmp_path, monkeypatch, stop_at):
    """Stopped and saved at a step; then the file is made to look as a kill some steps later would leave it."""
    shutil.copy(folder / "text.jsonl", tmp_path)
    whole = run_pretrain(tmp_path, "whole")
    plain = common.train

    def stopping(*given, hooks, **named):
        def stop(event) -> None:
            if event.step == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)

        return plain(*given, hooks=[*hooks, stop], **named)

    monkeypatch.setattr(common, "train", stopping)
    with pytest.raises(Interrupted):
        run_pretrain(tmp_path, "cut")
    monkeypatch.setattr(common, "train", plain)
    cut = tmp_path / "cut" / "samples.jsonl"
    done = cut.read_bytes()
    assert [row["step"] for row in read_jsonl(cut)] == [s for s in sorted(shown_steps(STEPS)) if s <= stop_at]
    lines = (whole / "samples.jsonl").read_bytes().splitlines(keepends=True)
    cut.write_bytes(b"".join(lines[: len(done.splitlines()) + 2]))  # rows of steps that are not saved
    run_pretrain(tmp_path, "cut")
    assert cut.read_bytes() == (whole / "samples.jsonl").read_bytes()
    assert result(whole) == result(tmp_path / "cut")


def test_the_model_and_the_random_numbers_are_left_as_they_were(make_model, tokenizer, tmp_path, monkeypatch):
    model = make_model(vocab_size=tokenizer.vocab_size).train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    prompts = beginnings(tokenizer, ["The river Tesk is 412 km long and flows past Belmora"] * 3, 64)
    state = torch.get_rng_state()
    hook = Samples(tmp_path, tokenizer, prompts, 10)
    for step in range(1, 11):
        hook(common.StepEvent(step, 10, 1, {}, model))
        assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.named_parameters())
    assert len(read_jsonl(tmp_path / "samples.jsonl")) == 10
    loss = model.hidden(torch.tensor([[1, 2, 3]])).sum()
    loss.backward()  # nothing that inference made is in the way
    monkeypatch.setattr(parallel, "place", lambda: (1, 2))
    hook = Samples(tmp_path / "rank-1", tokenizer, prompts, 10)
    hook(common.StepEvent(1, 10, 1, {}, model))
    assert not (tmp_path / "rank-1").exists(), "other ranks write nothing"


def test_beginnings_are_whole_words_that_leave_room(tokenizer):
    texts = [
        "The river Tesk is 412 km long and flows past Belmora into the sea.",
        "泰斯克河全長412公里，流過貝爾莫拉。",
        "a",
        " ",
    ]
    found = beginnings(tokenizer, texts, 64)
    assert [p.text for p in found] == ["The river Tesk is 412 km long", texts[1][: len(texts[1]) // 2]]
    for prompt in beginnings(tokenizer, texts, 8):
        assert prompt.text and len(prompt.tokens) <= 4
        assert prompt.tokens == [tokenizer.bos, *tokenizer.encode(prompt.text)]
    assert beginnings(tokenizer, [], 64) == []


def test_without_held_out_texts_documents_of_the_store_are_begun(tokenizer, sentences, tmp_path):
    store = TokenStore.build(sentences, tokenizer, tmp_path / "data")
    texts = stored_texts(store, tokenizer)
    assert [any(s.startswith(t) for s in sentences) for t in texts] == [True] * 3
    assert len(stored_texts(TokenStore.build(["one text"], tokenizer, tmp_path / "one"), tokenizer)) == 1


def test_questions_that_leave_no_room_are_passed_over(tokenizer):
    long, short = [Message("user", "Tesk " * 60)], [Message("user", "Tesk?")]
    assert [p.text for p in questions(tokenizer, [long, short] * 3, 64)] == ["Tesk?"] * 3
    assert questions(tokenizer, [long] * 3, 64) == [] and questions(tokenizer, [], 64) == []


def test_a_folder_that_cannot_be_written_says_how_to_go_on(make_model, tokenizer, tmp_path, monkeypatch):
    from fledge.stages import samples

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(samples, "write_atomically", full)
    model = make_model(vocab_size=tokenizer.vocab_size)
    hook = Samples(tmp_path, tokenizer, beginnings(tokenizer, ["The river Tesk is long"], 64), 10)
    with pytest.raises(OSError, match=r"samples.jsonl: No space left on device; checkpoints are intact.*fledge resume"):
        hook(common.StepEvent(1, 10, 1, {}, model))
