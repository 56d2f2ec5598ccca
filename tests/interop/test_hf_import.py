"""A Hugging Face folder becomes a run and a folder again: same logits, same answers, the very same bytes of weights."""

import json
from pathlib import Path

import pytest
import torch
from hf_models import CASES, CHATML, ROWS, edit_config, make_model, save
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from fledge.core.checkpoint import load_checkpoint
from fledge.core.model import ModelConfig
from fledge.generate.engine import Engine
from fledge.generate.sampling import Sampling
from fledge.interop.command import ModelExportOptions, ModelImportOptions, export_model, import_model
from fledge.stages.common import open_model
from fledge.text.formats import Message
from fledge.text.template import render, render_prompt

CHAT = [
    ("system", "Be brief."),
    ("user", "Where is Belmora?"),
    ("assistant", "By the Tesk."),
    ("user", "請問你是誰？ 🙂"),
]


def taken(folder: Path, **options) -> Path:
    """The run that an import of `folder` writes, beside it."""
    out = folder.parent / "run"
    import_model(ModelImportOptions(path=str(folder), out=str(out), **options))
    return out


def given(run: Path, **options) -> Path:
    return export_model(ModelExportOptions(run=str(run), out=str(run.parent / "out"), **options))


@pytest.mark.parametrize("case", CASES)
def test_a_round_trip_gives_the_same_bytes_and_the_same_answers(tmp_path: Path, sentences, case: str):
    theirs = make_model(case)
    folder = save(tmp_path / "model", theirs, sentences)
    run = taken(folder)
    out = given(run)
    before, after = load_file(folder / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (out / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert AutoConfig.from_pretrained(out).model_type == theirs.config.model_type
    before, after = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(out)
    assert before.special_tokens_map == after.special_tokens_map
    assert [before(text).input_ids for text in sentences] == [after(text).input_ids for text in sentences]
    ours = open_model(run, precision="float32")
    tokens = torch.randint(0, 400, (2, 24), generator=torch.Generator().manual_seed(2))
    kind = AutoModelForMaskedLM if ours.model.config.architecture == "bert" else AutoModelForCausalLM
    back = kind.from_pretrained(out, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(back(tokens).logits, theirs(tokens).logits)
        torch.testing.assert_close(
            ours.model.logits(ours.model.hidden(tokens)), theirs(tokens).logits, atol=1e-4, rtol=0
        )
    if kind is AutoModelForCausalLM:
        prompts = [render_prompt(ours.tokenizer, [Message("user", text)]) for text in ("Belmora?", "請問你是誰？")]
        answers = Engine(ours.model, []).generate(prompts, Sampling(temperature=0.0, max_tokens=20))
        for prompt, answer in zip(prompts, answers, strict=True):
            made = back.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=None)
            assert made[0, len(prompt) :].tolist() == list(answer.tokens)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back_bit_for_bit(tmp_path: Path, sentences, dtype: torch.dtype):
    """Also where some tensors have another dtype than most, as norms in float32 often do."""
    folder = save(tmp_path / "model", make_model("qwen3").to(dtype), sentences)
    held = load_file(folder / "model.safetensors")
    held["model.norm.weight"] = held["model.norm.weight"].float() + 1e-4
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    out = given(taken(folder))
    assert (out / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    config = json.loads((out / "config.json").read_text())
    assert config["torch_dtype"] == str(dtype).removeprefix("torch.")


def test_shards_are_read_and_written(tmp_path: Path, sentences):
    model = make_model("llama")
    folder = save(tmp_path / "model", model, sentences)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    out = given(taken(folder), shard_bytes=60_000)
    assert len(list(out.glob("*.safetensors"))) > 2
    back = AutoModelForCausalLM.from_pretrained(out)
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), model.state_dict().values(), strict=True))


def test_the_run_says_where_it_came_from(tmp_path: Path, sentences):
    folder = save(tmp_path / "model", make_model("qwen3"), sentences)
    edit_config(folder, auto_map={"AutoModel": "evil.Model"}, odd_key=1)
    found = load_checkpoint(taken(folder))
    card = found.card
    assert (card["stage"], card["parent"], found.step) == ("import", None, 0)
    assert (card["imported"]["family"], card["imported"]["context_tokens"]) == ("qwen3", 64)
    assert card["ignored"] == ["auto_map", "odd_key"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= card["source"]["sha256"].keys()
    assert ModelConfig(**card["model"]).qk_norm


def test_the_same_import_again_does_nothing_and_another_is_refused(tmp_path: Path, sentences):
    folder = save(tmp_path / "model", make_model("llama"), sentences)
    id = load_checkpoint(taken(folder)).id
    assert load_checkpoint(taken(folder)).id == id
    save(folder, make_model("llama", seed=1), sentences)
    with pytest.raises(ValueError, match="was imported from other bytes"):
        taken(folder)
    with pytest.raises(ValueError, match=r"holds another run; it differs in\n  recipe\.template"):
        taken(folder, template="none")


def test_refused_models_leave_no_run(tmp_path: Path, sentences):
    folder = save(tmp_path / "model", make_model("llama"), sentences)
    edit_config(folder, hidden_act="gelu")
    with pytest.raises(ValueError, match="hidden_act"):
        taken(folder)
    assert not (tmp_path / "run").exists()


def test_tokens_of_chats_are_those_of_transformers(tmp_path: Path, sentences):
    folder = save(tmp_path / "model", make_model("qwen2"), sentences)
    tokenizer = open_model(taken(folder)).tokenizer
    theirs = AutoTokenizer.from_pretrained(folder)
    messages, dicts = [Message(*m) for m in CHAT], [{"role": r, "content": t} for r, t in CHAT]
    expected = theirs.apply_chat_template(dicts, add_generation_prompt=True, return_dict=False)
    assert render_prompt(tokenizer, messages) == expected
    exported = AutoTokenizer.from_pretrained(given(tmp_path / "run"))
    assert exported.apply_chat_template(dicts, add_generation_prompt=True, return_dict=False) == expected
    assert exported.special_tokens_map == theirs.special_tokens_map
    assert exported.bos_token is None  # a template may ask for it
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (2, 0)
    assert exported.chat_template == CHATML


def test_chatml_in_place_of_a_missing_template(tmp_path: Path, sentences):
    """Control tokens that the model lacks get the mean row; the export has them, and its template."""
    theirs = make_model("llama")
    folder = save(tmp_path / "model", theirs, sentences, chats=False)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|im_start|>", "<|other_1|>").replace("<|im_end|>", "<|other_2|>"))
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    opened = open_model(taken(folder, template="chatml"))
    words = theirs.model.embed_tokens.weight.detach()
    assert len(opened.model.embedding) == ROWS
    torch.testing.assert_close(opened.model.embedding[400], words[:400].mean(0))
    assert torch.equal(opened.model.embedding[:400], words[:400])
    exported = AutoTokenizer.from_pretrained(given(tmp_path / "run"))
    dicts = [{"role": "user", "content": "Belmora?"}, {"role": "assistant", "content": "Yes."}]
    rendered = render(opened.tokenizer, [Message(m["role"], m["content"]) for m in dicts]).tokens
    assert exported.apply_chat_template(dicts, return_dict=False)[: len(rendered)] == rendered
    assert exported.eos_token == "<|im_end|>"


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path: Path, sentences):
    """Bad input 19: both numbers are told."""
    folder = save(tmp_path / "model", make_model("llama", vocab_size=1000), sentences)
    with pytest.raises(ValueError, match="the tokenizer has 400 tokens, the embedding 1000 rows"):
        taken(folder)
    folder = save(tmp_path / "small", make_model("llama", vocab_size=399), sentences)
    with pytest.raises(ValueError, match="the tokenizer has 400 tokens, the embedding 399 rows"):
        taken(folder)


def test_a_shorter_context_is_for_training_only(tmp_path: Path, sentences):
    folder = save(tmp_path / "model", make_model("llama"), sentences)
    run = taken(folder, context_tokens=16)
    assert open_model(run).model.config.context_tokens == 16
    assert json.loads((given(run) / "config.json").read_text())["max_position_embeddings"] == 64
    with pytest.raises(ValueError, match=r"context_tokens = 128: .* made for 64: it can only be shortened"):
        import_model(ModelImportOptions(path=str(folder), out=str(tmp_path / "x"), context_tokens=128))


def test_a_dry_run_tells_and_writes_nothing(tmp_path: Path, sentences, capsys: pytest.CaptureFixture):
    folder = save(tmp_path / "model", make_model("qwen3"), sentences)
    (folder / "modeling.py").write_text("raise SystemExit")
    edit_config(folder, auto_map={})
    assert import_model(ModelImportOptions(path=str(folder), dry=True)) is None
    told = " ".join(capsys.readouterr().err.split())
    for words in (
        "qwen3, gives tokens",
        "2 layers, width 32, 4 heads of 16 on 2",
        "ignored: auto_map",
        "not opened: modeling.py",
    ):
        assert words in told
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_options_are_told_all_at_once():
    from fledge.core.config import build

    with pytest.raises(ValueError, match=r"(?s)out: required.*context_tokens = 0"):
        build(ModelImportOptions, {"path": "x", "context_tokens": 0})
    with pytest.raises(ValueError, match=r"(?s)family = 'gpt': must be one of llama.*shard_bytes = 0"):
        build(ModelExportOptions, {"run": "x", "out": "y", "family": "gpt", "shard_bytes": 0})


def test_our_own_export_comes_back_as_our_own(tmp_path: Path, tokenizer, make_model):
    """A journey's model goes out and comes in again: same tensors, same tokenizer, our own form of chats."""
    import msgspec

    from fledge.core.checkpoint import save_checkpoint

    model = make_model(vocab_size=tokenizer.vocab_size, qk_norm=True)
    card = {"stage": "sft", "parent": None, "model": msgspec.to_builtins(model.config), "recipe": {}}
    save_checkpoint(
        tmp_path / "mine", 1, model=model.state_dict(), optimizer={}, state={}, card=card, tokenizer=tokenizer.json
    )
    folder = export_model(ModelExportOptions(run=str(tmp_path / "mine"), out=str(tmp_path / "model")))
    opened = open_model(taken(folder))
    assert opened.tokenizer.json == tokenizer.json
    assert opened.tokenizer.chat_format is None
    assert all(torch.equal(a, b) for a, b in zip(opened.model.parameters(), model.parameters(), strict=True))
