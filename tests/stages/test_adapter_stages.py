"""Stages that train an adapter: what a checkpoint holds, how it opens, what the reference is, resuming bit for bit."""

import os
import signal
from pathlib import Path

import httpx
import msgspec
import pytest
import torch
import transformers
from sums import LOOP, asked, write_rows

from fledge.cli import TABLE, parse
from fledge.core.adapters import MERGEABLE, AdapterConfig
from fledge.core.checkpoint import list_checkpoints, load_checkpoint
from fledge.core.config import build
from fledge.core.log import read_jsonl
from fledge.core.train import Interrupted
from fledge.feedback.collecting import collect
from fledge.feedback.raters import UNIT
from fledge.feedback.simulated import Simulated
from fledge.feedback.store import Store, store_url
from fledge.generate.chat import answer, chat_engine
from fledge.generate.sampling import Sampling
from fledge.interop.merge_command import MergeOptions, merge
from fledge.interop.verbs import ExportOptions, give
from fledge.resume import ResumeOptions, resume
from fledge.serve.command import ChatOptions, serving_in_thread
from fledge.stages import improve, prefer, reinforce, sft
from fledge.stages.common import open_model
from fledge.stages.improve import ImproveRecipe
from fledge.tasks.catalog import open_task
from fledge.text.formats import Message

KINDS = ("lora", "dora", "ia3", "houlsby", "bitfit", "prefix", "prompt")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    sums = [(f"{a}+{b}=", str(a + b)) for a in range(1, 7) for b in range(1, 4)]
    wrong = [{"prompt": q, "chosen": a, "rejected": "no"} for q, a in sums]
    votes = [{"prompt": q, "completion": t, "label": t == a} for q, a in sums for t in (a, "no")]
    return {
        "chats": write_rows(folder / "chats.jsonl", [{"prompt": q, "completion": a} for q, a in sums]),
        "pairs": write_rows(folder / "pairs.jsonl", wrong),
        "votes": write_rows(folder / "votes.jsonl", votes),
        "prompts": asked(folder / "prompts.jsonl"),
    }


STAGES = {
    "sft": (sft.SftRecipe, sft.run, "chats", {}),
    "reward": (prefer.RewardRecipe, prefer.run_reward, "pairs", {}),
    "dpo": (prefer.DpoRecipe, prefer.run_dpo, "pairs", {}),
    "kto": (prefer.KtoRecipe, prefer.run_kto, "votes", {}),
    "reinforce": (
        reinforce.ReinforceRecipe, reinforce.run, "prompts",
        {"reward": ["exact"], "prompts_per_update": 4, "group_size": 4, "max_tokens": 4, "kl": "measure"},
    ),
}  # fmt: skip


def go(stage: str, out: Path, parent: str, files: dict[str, str], adapter="lora", steps: int = 4, **over) -> Path:
    kind, run, data, more = STAGES[stage]
    train = {**LOOP, "steps": steps, "lr": 1e-2, "batch_tokens": 128, **over.pop("train", {})}
    if stage == "reinforce":
        train |= {"batch_tokens": 65536, "schedule": "constant"}
    given = {"out": str(out), "parent": parent, data: [files[data]], "train": train, "adapter": adapter}
    return run(build(kind, given | more | over), quiet=True)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model.hidden(torch.arange(4, 24)[None]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_holds_only_the_adapter_and_opens_on_its_base(tmp_path, parent, files, kind):
    path = go("sft", tmp_path / "run", parent, files, adapter=kind, steps=8, train={"batch_tokens": 1024, "lr": 5e-3})
    found, base = load_checkpoint(path), open_model(parent)
    names = found.model_tensors().keys()
    assert names and all(name.startswith("adapter.") for name in names)
    assert found.card["adapter"] == {
        "config": msgspec.to_builtins(AdapterConfig(kind=kind, new_tokens=[])),  # the parent knows its control tokens
        "base": {"id": base.id, "path": str(base.path)},
    }
    opened = open_model(path)
    assert (opened.model.adapter is None) == (kind in MERGEABLE)
    assert opened.id == found.id and opened.tokenizer.json == base.tokenizer.json
    assert (logits(opened.model) - logits(base.model)).abs().max() > 1e-3
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1]["loss"] < rows[0]["loss"]
    asked_again = [[Message("user", "1+1=")], [Message("user", "3+1=")]]
    answers = answer(chat_engine(opened.model, opened.tokenizer), opened.tokenizer, asked_again, Sampling(max_tokens=4))
    assert len(answers) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_resuming_gives_the_same_bytes(tmp_path, parent, files, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    go("sft", Path("run"), parent, files, adapter=kind, steps=6)
    monkeypatch.chdir(tmp_path / "cut")
    stop_at(monkeypatch, 3)
    with pytest.raises(Interrupted):
        go("sft", Path("run"), parent, files, adapter=kind, steps=6)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path / "cut")
    resume(ResumeOptions(run="run"))
    whole, cut = (list_checkpoints(tmp_path / name / "run")[-1] for name in ("whole", "cut"))
    for name in ("model.safetensors", "optimizer.safetensors", "card.json"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The loop is asked to stop after this step."""
    from fledge.core import train

    write = train.MetricsLog.write

    def stopping(self, row, speed):
        write(self, row, speed)
        if row["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train.MetricsLog, "write", stopping)


@pytest.mark.parametrize("stage", ["reward", "dpo", "kto", "reinforce"])
@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_stages_of_preference_hold_to_the_model_without_its_adapter(tmp_path, parent, files, stage, kind):
    path = go(stage, tmp_path / stage, parent, files, adapter={"kind": kind, "virtual_tokens": 4})
    tensors = load_checkpoint(path).model_tensors()
    trained = {n.split(".")[0] for n in tensors}
    assert trained == ({"adapter", "value_head"} if stage == "reward" else {"adapter"})
    head = "reward" if stage == "reward" else "tokens"
    opened = open_model(path, head=head)
    if stage == "reward":
        assert torch.equal(opened.model.value_head, tensors["value_head"]) and tensors["value_head"].abs().max() > 0
    rows = read_jsonl(tmp_path / stage / "metrics.jsonl")
    if stage == "dpo" and kind == "lora":
        assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-3)  # at the reference: ln 2
    if stage == "dpo" and kind == "prefix":  # begins as another model than the reference
        assert abs(rows[0]["loss"] - 0.6931) > 1e-3
    if stage == "reinforce":
        assert (abs(rows[0]["kl"]) < 1e-4) == (kind == "lora") and rows[-1]["kl"] != 0


def test_value_baselines_train_the_value_head_beside_the_adapter(tmp_path, parent, files):
    path = go("reinforce", tmp_path / "a2c", parent, files, method="a2c")
    assert "value_head" in load_checkpoint(path).model_tensors()
    opened = open_model(path)
    assert opened.model.config.head == "tokens" and opened.model.adapter is None


def test_a_merged_parent_carries_a_new_adapter_and_full_training(tmp_path, parent, files):
    first = go("sft", tmp_path / "first", parent, files)
    second = go("dpo", tmp_path / "second", str(first), files)
    card = load_checkpoint(second).card
    assert card["adapter"]["base"] == card["parent"] == {"id": open_model(first).id, "path": str(first)}
    full = go("sft", tmp_path / "full", str(second), files, adapter=None, steps=1)
    held = load_checkpoint(full)
    assert "adapter" not in held.card and "layers.0.qkv" in held.model_tensors()
    moved = (logits(open_model(full).model) - logits(open_model(second).model)).abs().max()
    assert 0 < moved < 5  # one step away


@pytest.mark.parametrize("kind", ["prefix", "prompt", "houlsby"])
def test_an_adapter_that_cannot_be_merged_is_trained_on(tmp_path, parent, files, kind):
    first = go("sft", tmp_path / "first", parent, files, adapter=kind)
    with pytest.raises(ValueError, match=f"train it further with --adapter {kind}, or start from its base"):
        go("sft", tmp_path / "no", str(first), files, adapter=None)
    with pytest.raises(ValueError, match="rank: 8 there, 4 now"):
        go("sft", tmp_path / "no", str(first), files, adapter={"kind": kind, "rank": 4})
    second = go("dpo", tmp_path / "second", str(first), files, adapter=kind)
    card = load_checkpoint(second).card
    assert card["adapter"]["base"] == load_checkpoint(first).card["adapter"]["base"]
    assert card["parent"]["path"] == str(first)
    rows = read_jsonl(tmp_path / "second" / "metrics.jsonl")
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-3)  # the reference is the adapter as it began
    opened = open_model(second)
    assert (logits(opened.model) - logits(open_model(first).model)).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_clipped_methods_take_several_steps_per_rollout_beside_the_frozen_weights(tmp_path, parent, files, method):
    over = {"method": method, "epochs": 2, "clip": [0.2, 0.2], "kl": "reward"}
    path = go("reinforce", tmp_path / method, parent, files, **over)
    names = load_checkpoint(path).model_tensors().keys()
    assert ("value_head" in names) == (method == "ppo") and "layers.0.qkv" not in names
    rows = read_jsonl(tmp_path / method / "metrics.jsonl")
    assert abs(rows[0]["kl"]) < 1e-4 and rows[-1]["kl"] != 0


def improved(run: Path, **over):
    """One round of `fledge improve` on votes of somebody who has a taste in answers."""
    gold = type("Taste", (), {"score": staticmethod(lambda example, answer: sum(map(ord, answer)) % 17 / 17)})()
    with Store.open(store_url(run)) as store:
        examples, rater = open_task("arithmetic:1").examples("train")[:30], Simulated(gold, 0.0, scales=UNIT)
        collect(store, open_model(run), rater, examples, ("pair", "thumb"), 60, 1, Sampling(max_tokens=4))
    learning = {"reward": {"epochs": 1.0, "batch_tokens": 512}, "batch_tokens": 512, "questions": 20, "answers": 1}
    return improve.run(build(ImproveRecipe, {"run": str(run), "min_rows": 5, **learning, **over}), quiet=True)


def test_a_round_of_improvement_trains_adapters_in_every_stage_and_the_judge(tmp_path, parent, files):
    lora, houlsby = tmp_path / "lora", tmp_path / "houlsby"
    go("sft", lora, parent, files)
    result = improved(lora, adapter="lora")
    assert result["old"]["id"] == load_checkpoint(lora).id
    for name in ("dpo", "kto", "judge-1"):
        assert load_checkpoint(lora / "rounds" / "001" / name).card["adapter"]["config"]["kind"] == "lora", name
    go("sft", houlsby, parent, files, adapter="houlsby")
    with pytest.raises(ValueError, match="train it further with --adapter houlsby"):
        improved(houlsby)
    assert not list((houlsby / "rounds").glob("*/*"))
    improved(houlsby, adapter="houlsby")
    first, last = (load_checkpoint(p).card["adapter"] for p in (houlsby, houlsby / "rounds" / "001" / "kto"))
    assert first["base"] == last["base"]


@pytest.mark.parametrize("kind", ["lora", "prompt"])
def test_an_adapters_run_is_chatted_with(tmp_path, parent, files, kind):
    path = go("sft", tmp_path / "run", parent, files, adapter=kind)
    options = ChatOptions(run=str(tmp_path / "run"), port=0, token="a" * 32, open=False)
    with serving_in_thread(options) as (url, _):
        headers = {"Authorization": "Bearer " + "a" * 32}
        asked_of = {
            "model": "run",
            "max_tokens": 4,
            "temperature": 0,
            "messages": [{"role": "user", "content": "1+1="}],
        }
        with httpx.Client(base_url=url, headers=headers) as client:
            told = client.post("/v1/chat/completions", json=asked_of)
            assert told.status_code == 200, told.text
    opened = open_model(path)
    (alone,) = answer(
        chat_engine(opened.model, opened.tokenizer), opened.tokenizer, [[Message("user", "1+1=")]],
        Sampling(temperature=0.0, max_tokens=4),
    )  # fmt: skip
    assert told.json()["choices"][0]["message"]["content"] == alone.text


def test_exports_of_an_adapter_say_what_to_do_and_its_merge_is_exported(tmp_path, parent, files):
    go("sft", tmp_path / "run", parent, files)
    with pytest.raises(ValueError, match="holds an adapter, not a whole model: `fledge merge` it"):
        give(ExportOptions(run=str(tmp_path / "run"), to="hf", out=str(tmp_path / "hf")))
    merge(MergeOptions(run=str(tmp_path / "run"), out=str(tmp_path / "merged")))
    give(ExportOptions(run=str(tmp_path / "merged"), to="hf", out=str(tmp_path / "hf")))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    tokens = torch.arange(4, 24)[None]
    with torch.no_grad():
        found = theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    expected = logits(open_model(tmp_path / "run", precision="float32").model)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_rows_of_new_tokens_are_trained_alone(tmp_path, parent, files):
    base = open_model(parent)
    ids = [base.tokenizer.end, base.tokenizer.user]
    path = go("sft", tmp_path / "run", parent, files, adapter={"kind": "lora", "new_tokens": ids})
    opened = open_model(path)
    changed = (opened.model.embedding != base.model.embedding).any(1).nonzero()[:, 0].tolist()
    assert changed == sorted(ids)


def test_control_tokens_that_a_base_has_never_seen_are_trained_unless_told_otherwise(tmp_path, parent, files):
    base = str(Path(parent).parent / "base")
    tokenizer = open_model(base).tokenizer
    unseen = sorted([tokenizer.system, tokenizer.user, tokenizer.assistant, tokenizer.end])
    first = load_checkpoint(go("sft", tmp_path / "first", base, files))
    assert first.card["adapter"]["config"]["new_tokens"] == unseen
    assert first.model_tensors()["adapter.embedding_rows"].shape == (4, 64)
    none = load_checkpoint(go("sft", tmp_path / "none", base, files, adapter={"new_tokens": []}))
    assert "adapter.embedding_rows" not in none.model_tensors()
    kept = go("sft", tmp_path / "prefix", base, files, adapter="prefix")
    again = load_checkpoint(go("sft", tmp_path / "again", str(kept), files, adapter="prefix"))
    assert again.card["adapter"]["config"]["new_tokens"] == unseen


def test_a_base_that_is_gone_or_another_is_named_and_a_moved_one_is_found(tmp_path, parent, files):
    base = go("sft", tmp_path / "a" / "base", parent, files, adapter=None, steps=1)
    path = go("sft", tmp_path / "a" / "child", str(base), files)
    expected = logits(open_model(path).model)
    os.rename(tmp_path / "a", tmp_path / "b")
    moved = tmp_path / "b" / "child"
    assert torch.equal(logits(open_model(moved).model), expected)
    other = go("sft", tmp_path / "other", parent, files, adapter=None, steps=1, train={"seed": 5, "lr": 3e-3})
    os.rename(tmp_path / "b" / "base", tmp_path / "gone")
    with pytest.raises(ValueError, match=r"is an adapter on .*base.*which is gone.*put the\s+base back"):
        open_model(moved)
    os.rename(other.parent.parent, tmp_path / "b" / "base")
    with pytest.raises(ValueError, match="there are now"):
        open_model(moved)


def test_the_command_takes_a_kind_alone_or_with_its_settings():
    def made(*flags: str):
        return parse(TABLE["sft"], sft.SftRecipe, ["--out", "o", "--parent", "p", "--chats", "c", *flags]).adapter

    assert made() is None and made("--adapter", "none") is None
    assert made("--adapter", "dora") == AdapterConfig(kind="dora")
    assert made("--adapter", "lora", "--adapter.rank", "4") == AdapterConfig(rank=4)
    assert made("--adapter.targets", "q", "--adapter", "ia3") == AdapterConfig(kind="ia3", targets=["q"])
    with pytest.raises(ValueError, match=r"adapter.kind = 'lorra'.*"):
        made("--adapter", "lorra")
    with pytest.raises(ValueError, match=r"adapter.rank = 0: must be at least 1"):
        made("--adapter.rank", "0")


def test_an_adapter_on_random_weights_is_refused(parent, files, tmp_path):
    with pytest.raises(ValueError, match="random weights would stay frozen"):
        go("sft", tmp_path / "run", parent, files, fresh=True)
