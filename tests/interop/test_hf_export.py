"""Our own models open in `transformers`: same logits, same answers, same rendering of a chat."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from fledge.core.batch import Batch
from fledge.core.checkpoint import save_checkpoint
from fledge.core.model import ModelConfig, Transformer
from fledge.generate.engine import Engine
from fledge.generate.sampling import Sampling
from fledge.interop.hf_export import export
from fledge.text.formats import Message
from fledge.text.template import render, render_prompt
from fledge.text.tokenizer import Tokenizer

CHATS = (
    [("user", "Where is Belmora?"), ("assistant", "By the river Tesk.")],
    [("system", "Be brief."), ("user", "請問你是誰？ 🙂"), ("assistant", "我是\n模型。"), ("user", " again  ")],
    [("user", "")],
)


@pytest.fixture
def own(tmp_path: Path, tokenizer: Tokenizer, make_model: Callable[..., Transformer]) -> Callable[..., Transformer]:
    """own(**config) writes a run of ours to tmp_path/run and returns its model."""

    def make(**config) -> Transformer:
        model = make_model(spread=0.2, vocab_size=tokenizer.vocab_size, **config)
        save(tmp_path / "run", model, tokenizer)
        return model

    return make


def save(run: Path, model: Transformer, tokenizer: Tokenizer, **card) -> None:
    card = {"stage": "sft", "parent": None, "model": msgspec.to_builtins(model.config), "recipe": {}, **card}
    save_checkpoint(run, 1, model=model.state_dict(), optimizer={}, state={}, card=card, tokenizer=tokenizer.json)


def assert_same_logits(ours: Transformer, folder: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.randint(0, ours.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = ours.logits(ours.hidden(tokens))
        assert expected.std() > 0.5  # so that 1e-4 says something
        torch.testing.assert_close(theirs(tokens).logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({}, "llama"),
        ({"kv_heads": 2, "tied": False, "rope_base": 5e5, "norm_eps": 1e-5}, "llama"),
        ({"bias": True}, "qwen2"),
        ({"qk_norm": True, "kv_heads": 1}, "qwen3"),
        ({"qk_norm": True, "bias": True}, "qwen3"),  # with a bias of the output that is zero
        ({"head": "tokens+value"}, "llama"),
    ],
)
def test_own_models_give_the_same_logits_in_transformers(tmp_path: Path, own, config: dict, family: str):
    model = own(**config)
    written = export(tmp_path / "run", tmp_path / "out")
    assert written.family == family
    assert written.left_out == (["value_head"] if "head" in config else [])
    assert_same_logits(model, tmp_path / "out")


def test_greedy_answers_are_the_same_tokens(tmp_path: Path, own, tokenizer: Tokenizer):
    model = own(kv_heads=2)  # room for the prompt and the answer: 64 tokens
    export(tmp_path / "run", tmp_path / "out")
    prompt = render_prompt(tokenizer, [Message("user", "Where is Belmora?")])
    answer = Engine(model, []).generate([prompt], Sampling(temperature=0.0, max_tokens=24))[0].tokens
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    made = theirs.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None)[
        0, len(prompt) :
    ].tolist()
    assert len(set(answer)) > 3
    assert made == list(answer)


def test_a_chat_is_rendered_as_we_render_it(tmp_path: Path, own, tokenizer: Tokenizer):
    own()
    export(tmp_path / "run", tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    for chat in CHATS:
        messages = [Message(role, text) for role, text in chat]
        dicts = [{"role": role, "content": text} for role, text in chat]
        assert theirs.apply_chat_template(dicts, return_dict=False) == render(tokenizer, messages).tokens
        prompt = theirs.apply_chat_template(dicts, add_generation_prompt=True, return_dict=False)
        assert prompt == render_prompt(tokenizer, messages)


def test_text_is_encoded_alike_and_control_tokens_keep_their_ids(tmp_path: Path, own, tokenizer: Tokenizer, sentences):
    own()
    export(tmp_path / "run", tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in (*sentences, " two  spaces\n\n\ttab ", "0123 !!"):
        assert theirs(text).input_ids == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text)) == text
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, theirs.mask_token_id) == (
        tokenizer.bos,
        tokenizer.end,
        tokenizer.pad,
        tokenizer.mask,
    )
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == sorted([tokenizer.eos, tokenizer.end])


def test_a_reward_model_scores_alike_in_transformers(tmp_path: Path, own, tokenizer: Tokenizer):
    """The last token that is no padding carries the score, there as here."""
    model = own(head="reward")
    export(tmp_path / "run", tmp_path / "out")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    rng = random.Random(3)
    rows = [[rng.randrange(8, tokenizer.vocab_size) for _ in range(length)] for length in (12, 7)]
    tokens = torch.tensor([row + [tokenizer.pad] * (12 - len(row)) for row in rows])
    with torch.no_grad():
        batch = Batch(tokens=tokens, targets=tokens, weight=torch.zeros(2, 12), units=1.0)
        values = model(batch).value
        scores = theirs(tokens, attention_mask=(tokens != tokenizer.pad).long()).logits[:, 0]
    expected = torch.stack([values[i, len(row) - 1] for i, row in enumerate(rows)])
    assert (expected[0] - expected[1]).abs() > 0.05
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)


def test_shards_and_a_smaller_dtype_open_too(tmp_path: Path, own):
    model = own(tied=False)
    export(tmp_path / "run", tmp_path / "out", dtype="bfloat16", shard_bytes=100_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.dtype == torch.bfloat16
    assert torch.equal(theirs.model.embed_tokens.weight, model.embedding.bfloat16())


def test_a_weight_too_large_for_the_dtype_is_named(tmp_path: Path, tokenizer: Tokenizer, make_model):
    model = make_model(vocab_size=tokenizer.vocab_size)
    with torch.no_grad():
        model.layers[1].down[0, 0] = 1e6
    save(tmp_path / "run", model, tokenizer)
    with pytest.raises(ValueError, match=r"layers\.1\.down.*finite float16"):
        export(tmp_path / "run", tmp_path / "out", dtype="float16")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]  # nothing half written


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, own):
    own()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="holds something: name a new folder"):
        export(tmp_path / "run", tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_filled(tmp_path: Path, own):
    own()
    (tmp_path / "out").mkdir()
    assert export(tmp_path / "run", tmp_path / "out").tensors == len(load_file(tmp_path / "out" / "model.safetensors"))


def test_a_family_that_cannot_hold_the_model_is_refused(tmp_path: Path, own):
    own(qk_norm=True)
    with pytest.raises(ValueError, match="family = 'llama': it cannot hold this model; those that can: qwen3"):
        export(tmp_path / "run", tmp_path / "out", family="llama")


def test_a_model_that_no_family_holds_is_refused(tmp_path: Path, own):
    own(causal=False)
    with pytest.raises(ValueError, match=r"no family of Hugging Face .* trained with causal = false"):
        export(tmp_path / "run", tmp_path / "out")


def test_an_adapter_is_merged_first(tmp_path: Path, tokenizer: Tokenizer, make_model):
    save(tmp_path / "run", make_model(vocab_size=tokenizer.vocab_size), tokenizer, adapter={"kind": "lora"})
    with pytest.raises(ValueError, match="holds an adapter, not a whole model: `fledge merge` it"):
        export(tmp_path / "run", tmp_path / "out")


def test_the_plainest_family_that_fits_is_taken():
    from fledge.interop.hf_config import fitting

    assert fitting(ModelConfig(size="tiny", vocab_size=9))[:2] == ["llama", "mistral"]
    assert fitting(ModelConfig(size="tiny", vocab_size=9, window=8))[0] == "mistral"
    assert fitting(ModelConfig(size="tiny", vocab_size=9, window=8, window_layers=(1,), bias=True)) == ["qwen2"]
