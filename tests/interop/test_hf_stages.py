"""An imported model goes through the stages and leaves again: `transformers` opens what each of them made."""

import json
from pathlib import Path

import pytest
import torch
from hf_models import make_model, save
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from fledge.core.config import TrainConfig, build
from fledge.core.log import read_jsonl
from fledge.core.objectives import weighted_nll
from fledge.generate.engine import Engine
from fledge.generate.sampling import Sampling
from fledge.interop.command import ModelExportOptions, ModelImportOptions, export_model, import_model
from fledge.interop.merge_command import MergeOptions, merge
from fledge.stages import prefer, pretrain, reinforce, sft
from fledge.stages.common import open_model, run_stage
from fledge.text.formats import Message
from fledge.text.sources import DocumentSource, MaskedSource, TokenStore
from fledge.text.template import render_prompt

LOOP = {"threads": 1, "precision": "float32", "lr": 3e-3, "batch_tokens": 256, "steps": 8}
SUMS = [(f"{a}+{b}=", str(a + b)) for a in range(1, 5) for b in range(1, 4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the data files and the run `qwen`, imported from a Qwen3 of two layers in bfloat16."""
    from sentences import SENTENCES

    folder = tmp_path_factory.mktemp("stages")
    rows = {
        "chats": [{"prompt": q, "completion": a} for q, a in SUMS],
        "pairs": [{"prompt": q, "chosen": a, "rejected": "no"} for q, a in SUMS],
        "prompts": [{"prompt": q, "answer": a} for q, a in SUMS],
    }
    for name, held in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    theirs = make_model("qwen3", max_position_embeddings=256).to(torch.bfloat16)
    save(folder / "model", theirs, SENTENCES * 3)
    import_model(ModelImportOptions(path=str(folder / "model"), out=str(folder / "qwen"), context_tokens=48))
    return folder


def trained(folder: Path, stage: str, out: str, parent: str = "qwen", **over) -> Path:
    kind, run, data = {
        "sft": (sft.SftRecipe, sft.run, "chats"),
        "dpo": (prefer.DpoRecipe, prefer.run_dpo, "pairs"),
        "reward": (prefer.RewardRecipe, prefer.run_reward, "pairs"),
        "grpo": (reinforce.ReinforceRecipe, reinforce.run, "prompts"),
    }[stage]
    given = {
        "out": str(folder / out),
        "parent": str(folder / parent),
        data: [str(folder / f"{data}.jsonl")],
        "train": LOOP,
    }
    if stage == "grpo":
        given |= {"reward": ["exact"], "prompts_per_update": 4, "group_size": 4, "max_tokens": 4}
    run(build(kind, given | over), quiet=True)
    return folder / out


def assert_leaves(run: Path, out: Path) -> None:
    """The export is a Qwen3 with its own context and dtype, and answers a chat with the tokens that we answer."""
    export_model(ModelExportOptions(run=str(run), out=str(out)))
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["max_position_embeddings"], config["torch_dtype"]) == (
        "qwen3",
        256,
        "bfloat16",
    )
    exact = out.with_name(f"{out.name}-exact")
    export_model(ModelExportOptions(run=str(run), out=str(exact), dtype="float32"))
    ours, theirs = open_model(run, precision="float32"), AutoModelForCausalLM.from_pretrained(exact).eval()
    prompt = render_prompt(ours.tokenizer, [Message("user", "2+3=")])
    named = AutoTokenizer.from_pretrained(exact)
    dicts = [{"role": "user", "content": "2+3="}]
    assert named.apply_chat_template(dicts, add_generation_prompt=True, return_dict=False) == prompt
    answer = Engine(ours.model, []).generate([prompt], Sampling(temperature=0.0, max_tokens=12))[0].tokens
    made = theirs.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert made[0, len(prompt) :].tolist() == list(answer)


def test_sft_then_dpo_then_grpo_then_out(folder: Path):
    taught = trained(folder, "sft", "sft")
    rows = read_jsonl(taught / "metrics.jsonl")
    assert rows[-1]["loss"] < rows[0]["loss"]
    trained(folder, "dpo", "dpo", "sft")
    trained(folder, "grpo", "grpo", "dpo")
    for stage in ("sft", "dpo", "grpo"):
        assert_leaves(folder / stage, folder / f"{stage}-out")


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    from sentences import SENTENCES

    (folder / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in SENTENCES * 20))
    return str(folder / "text.jsonl")


def test_pretraining_goes_on_and_leaves(folder: Path, text: str):
    given = {"out": str(folder / "more"), "parent": str(folder / "qwen"), "text": [text], "train": LOOP}
    pretrain.run(build(pretrain.PretrainRecipe, given), quiet=True)
    rows = read_jsonl(folder / "more" / "metrics.jsonl")
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.1
    assert_leaves(folder / "more", folder / "more-out")


def test_an_encoder_learns_from_hidden_tokens_only(folder: Path, text: str):
    """BERT sees the next token, so stages that predict it refuse BERT; with hidden tokens it learns, and leaves."""
    from sentences import SENTENCES

    theirs = make_model("bert")
    save(folder / "bert-model", theirs, SENTENCES * 3)
    import_model(ModelImportOptions(path=str(folder / "bert-model"), out=str(folder / "bert")))
    given = {"out": str(folder / "wrong"), "parent": str(folder / "bert"), "text": [text], "train": LOOP}
    with pytest.raises(ValueError, match="pretrain: an encoder such as BERT sees the tokens it would have to predict"):
        pretrain.run(build(pretrain.PretrainRecipe, given), quiet=True)
    opened, config = open_model(folder / "bert", precision="float32"), build(TrainConfig, LOOP | {"steps": 40})
    documents = DocumentSource(TokenStore.open(folder / "wrong" / "data", opened.tokenizer), rows=8, length=32, seed=0)
    source = MaskedSource(documents, mask=opened.tokenizer.mask, vocab_size=opened.tokenizer.vocab_size, seed=0)
    opened.model.train()
    run_stage(
        "masked", opened.model, opened.tokenizer, source, weighted_nll, config, out=folder / "bert-on",
        recipe={"recipe": {"out": "bert-on"}}, parent=opened, data={}, quiet=True,
    )  # fmt: skip
    losses = [row["loss"] for row in read_jsonl(folder / "bert-on" / "metrics.jsonl")]
    assert sum(losses[-10:]) < sum(losses[:10]) - 0.5  # each step hides other tokens, and BERT has dropout
    export_model(ModelExportOptions(run=str(folder / "bert-on"), out=str(folder / "bert-out")))
    back = AutoModelForMaskedLM.from_pretrained(folder / "bert-out").eval()
    ours = open_model(folder / "bert-on", precision="float32").model
    tokens = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert (back(tokens).logits - theirs(tokens).logits).abs().max() > 0.01
        torch.testing.assert_close(ours.logits(ours.hidden(tokens)), back(tokens).logits, atol=1e-4, rtol=0)


def test_an_adapter_is_merged_then_leaves(folder: Path):
    trained(folder, "sft", "lora", adapter={"kind": "lora"})
    with pytest.raises(ValueError, match="holds an adapter, not a whole model"):
        export_model(ModelExportOptions(run=str(folder / "lora"), out=str(folder / "no")))
    merge(MergeOptions(run=str(folder / "lora"), out=str(folder / "merged")))
    assert_leaves(folder / "merged", folder / "merged-out")


def test_a_reward_model_leaves_as_a_classifier(folder: Path):
    run = trained(folder, "reward", "reward")
    export_model(ModelExportOptions(run=str(run), out=str(folder / "reward-out"), dtype="float32"))
    theirs = AutoModelForSequenceClassification.from_pretrained(folder / "reward-out").eval()
    ours = open_model(run, head="reward", precision="float32").model
    tokens = torch.arange(5, 25)[None]
    with torch.no_grad():
        score = ours.hidden(tokens)[0, -1] @ ours.value_head[0]
        assert score.abs() > 1e-3
        torch.testing.assert_close(theirs(tokens).logits[0, 0], score, atol=1e-4, rtol=0)
