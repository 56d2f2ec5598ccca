"""A GGUF file holds our model: read back number by number, by `transformers`, and by llama.cpp where it is installed."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from gguf import GGMLQuantizationType as Quantization
from gguf import GGUFReader, TokenType, dequantize
from hf_models import byte_level
from hf_models import make_model as make_theirs
from tokenizers import decoders, models, pre_tokenizers, trainers

from fledge.core.checkpoint import save_checkpoint
from fledge.core.model import RopeScaling, Transformer
from fledge.interop.command import ModelExportOptions, ModelImportOptions, export_model, import_model
from fledge.interop.gguf_export import ExportedGGUF, export_gguf
from fledge.interop.gguf_tokenizer import read_vocabulary
from fledge.interop.tensor_names import slots
from fledge.text.chat_format import ChatFormat
from fledge.text.formats import Message
from fledge.text.template import render_prompt
from fledge.text.tokenizer import Tokenizer

CASES = {
    "llama": ({}, "llama"),
    "llama, grouped, untied": ({"kv_heads": 2, "tied": False, "rope_base": 5e5, "norm_eps": 1e-5}, "llama"),
    "llama, all biases": ({"bias": True, "out_bias": True, "mlp_bias": True}, "llama"),
    "llama, llama3 rope": (
        {"rope_scaling": RopeScaling(kind="llama3", factor=8.0, original_context=16), "rope_base": 5e5},
        "llama",
    ),
    "llama, linear rope": ({"rope_scaling": RopeScaling(kind="linear", factor=2.0)}, "llama"),
    "llama, yarn": ({"rope_scaling": RopeScaling(kind="yarn", factor=4.0, original_context=16)}, "llama"),
    "qwen2": ({"bias": True, "kv_heads": 2}, "qwen2"),
    "qwen3": ({"qk_norm": True, "kv_heads": 2, "head_width": 32}, "qwen3"),
    "llama, value head": ({"head": "tokens+value"}, "llama"),
}
Own = Callable[..., Transformer]


@pytest.fixture
def own(tmp_path: Path, tokenizer: Tokenizer, make_model: Callable[..., Transformer]) -> Own:
    """own(**config) writes a run of ours to tmp_path/run and returns its model."""

    def make(**config) -> Transformer:
        model = make_model(spread=0.2, vocab_size=tokenizer.vocab_size, **config)
        save(tmp_path / "run", model, tokenizer)
        return model

    return make


def save(run: Path, model: Transformer, tokenizer: Tokenizer, **card) -> None:
    card = {"stage": "sft", "parent": None, "model": msgspec.to_builtins(model.config), "recipe": {}, **card}
    save_checkpoint(run, 1, model=model.state_dict(), optimizer={}, state={}, card=card, tokenizer=tokenizer.json)


def fields(path: Path) -> dict:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


def their_tensors(model: Transformer) -> dict[str, np.ndarray]:
    """By Hugging Face name; what a llama.cpp file is made from, by its own names, is checked against these."""
    ours = model.state_dict()
    return {s.theirs: (ours[s.ours] if s.rows is None else ours[s.ours][s.rows]).numpy() for s in slots(model.config)}


def as_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows in llama.cpp's order of pairs back to ours, one head at a time."""
    return np.concatenate([np.concatenate((head[0::2], head[1::2])) for head in np.split(rows, heads)])


def names_of(theirs: str) -> str:
    """llama.cpp's name, written out by hand."""
    for old, new in (
        ("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output"),
        ("model.layers", "blk"), ("self_attn.o_proj", "attn_output"), ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"), ("self_attn.v_proj", "attn_v"), ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"), ("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"), ("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"),
    ):  # fmt: skip
        theirs = theirs.replace(old, new)
    return theirs


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "q8_0"])
@pytest.mark.parametrize("case", CASES)
def test_every_number_is_read_back(tmp_path: Path, own: Own, case: str, dtype: str):
    config, architecture = CASES[case]
    model = own(**config)
    written = export_gguf(tmp_path / "run", tmp_path / "out", dtype=dtype)
    assert (written.architecture, written.dtype, written.file) == (architecture, dtype, tmp_path / "out" / "model.gguf")
    assert written.left_out == (["value_head"] if "value" in case else [])
    found = {t.name: t for t in GGUFReader(written.file).tensors}
    found.pop("rope_freqs.weight", None)
    expected = {names_of(name): (name, data) for name, data in their_tensors(model).items()}
    assert found.keys() == expected.keys()
    for name, (theirs, data) in expected.items():
        kept = found[name]
        values = dequantize(kept.data, kept.tensor_type).reshape(data.shape)
        if architecture == "llama" and (".q_proj" in theirs or ".k_proj" in theirs):
            values = as_halves(values, model.config.heads if ".q_proj" in theirs else model.config.kv_heads)
        if data.ndim == 1 or dtype == "float32":
            assert kept.tensor_type == Quantization.F32
            assert np.array_equal(values, data)
        elif dtype == "q8_0":
            assert kept.tensor_type == Quantization.Q8_0
            scale = np.abs(data.reshape(-1, 32)).max(1) / 127
            assert np.all(
                np.abs(values - data).reshape(-1, 32).max(1) <= scale * 0.57
            )  # half a step, and the float16 of the scale
        else:
            exact = torch.from_numpy(data).to(getattr(torch, dtype)).float().numpy()
            assert np.array_equal(values, exact)


@pytest.mark.parametrize("case", ["llama", "llama, grouped, untied", "qwen2", "qwen3"])
def test_transformers_opens_it_with_the_same_logits(tmp_path: Path, own: Own, case: str):
    config = CASES[case][0] | ({"head_width": 128} if case == "qwen3" else {})  # it reads no other there
    model = own(**config)
    export_gguf(tmp_path / "run", tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", gguf_file="model.gguf", dtype=torch.float32
    ).eval()
    tokens = torch.randint(0, model.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.logits(model.hidden(tokens))
        assert expected.std() > 0.5  # so that 1e-4 says something
        torch.testing.assert_close(theirs(tokens).logits, expected, atol=1e-4, rtol=0)


def test_the_fields_say_the_model(tmp_path: Path, own: Own):
    own(**CASES["llama, yarn"][0], kv_heads=2, rope_base=5e5, norm_eps=1e-5)
    held = fields(export_gguf(tmp_path / "run", tmp_path / "out").file)
    of = {k.removeprefix("llama."): v for k, v in held.items() if k.startswith("llama.")}
    assert held["general.architecture"] == "llama"
    assert {k: of[k] for k in ("attention.head_count", "attention.head_count_kv", "context_length", "vocab_size")} == {
        "attention.head_count": 4, "attention.head_count_kv": 2, "context_length": 64, "vocab_size": 500,
    }  # fmt: skip
    assert of["rope.freq_base"] == 5e5
    assert of["attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert (of["rope.scaling.type"], of["rope.scaling.factor"]) == ("yarn", 4.0)
    assert of["rope.scaling.original_context_length"] == 16


def test_the_tokenizer_and_the_chat_template_are_inside(tmp_path: Path, own: Own, tokenizer: Tokenizer):
    own()
    written = export_gguf(tmp_path / "run", tmp_path / "out")
    held = {k.removeprefix("tokenizer."): v for k, v in fields(written.file).items() if k.startswith("tokenizer.")}
    plain = json.loads(tokenizer.json)
    assert held["ggml.model"] == "gpt2"
    assert held["ggml.pre"] == "smollm"
    assert {w: i for i, w in enumerate(held["ggml.tokens"])} == tokenizer.slow.get_vocab(with_added_tokens=True)
    assert [m.split(" ") for m in held["ggml.merges"]] == [list(m) for m in plain["model"]["merges"]]
    control = [i for i, kind in enumerate(held["ggml.token_type"]) if kind == TokenType.CONTROL]
    assert control == sorted(tokenizer.special_ids)
    ids = {k: held[f"ggml.{k}_token_id"] for k in ("bos", "eos", "eot")}
    assert ids == {"bos": tokenizer.bos, "eos": tokenizer.eos, "eot": tokenizer.end}
    assert held["ggml.padding_token_id"] == tokenizer.pad
    assert held["ggml.add_bos_token"] is True
    assert held["chat_template"] == tokenizer.format.template
    assert ["as our tokenizer does" in note for note in written.notes] == [True]


def test_an_imported_qwen_keeps_its_family_dtype_template_and_padding(tmp_path: Path, sentences):
    theirs = make_theirs("qwen3", tie_word_embeddings=True, head_dim=128).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "hf")
    byte_level(sentences).save_pretrained(tmp_path / "hf")
    import_model(ModelImportOptions(path=str(tmp_path / "hf"), out=str(tmp_path / "run")))
    written = export_gguf(tmp_path / "run", tmp_path / "out")
    assert (written.architecture, written.dtype, written.notes) == ("qwen3", "bfloat16", [])
    held, count = fields(written.file), byte_level(sentences).vocab_size
    assert held["tokenizer.ggml.pre"] == "gpt-2"
    assert held["tokenizer.ggml.tokens"][count:] == [f"[PAD{i}]" for i in range(count, 416)]
    assert set(held["tokenizer.ggml.token_type"][count:]) == {TokenType.UNUSED}
    assert "<|im_start|>" in held["tokenizer.chat_template"]
    assert held["tokenizer.ggml.tokens"][held["tokenizer.ggml.eot_token_id"]] == "<|im_end|>"
    assert held["tokenizer.ggml.add_bos_token"] is False
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", gguf_file="model.gguf", dtype=torch.float32
    )
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.float()), name


def foreign(slow: tokenizers.Tokenizer) -> Tokenizer:
    """A tokenizer as an import opens it, without chats."""
    return Tokenizer(slow.to_str().encode(), ChatFormat(pad=1, bos=1, eos=2, end=2, name="none"))


def sentencepiece(sentences) -> tokenizers.Tokenizer:
    slow = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    slow.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    slow.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))],
                                  show_progress=False)  # fmt: skip
    slow.train_from_iterator([w for s in sentences for w in s.replace(" ", "▁").split("▁")], trainer)
    held = json.loads(slow.to_str())  # as converted files have them: bytes are ordinary words
    held["added_tokens"] = held["added_tokens"][:3]
    return tokenizers.Tokenizer.from_str(json.dumps(held))


def test_sentencepiece_scores_order_the_merges(sentences):
    slow = sentencepiece(sentences)
    tokenizer = foreign(slow)
    found = read_vocabulary(tokenizer, 512)
    assert (found.model, found.space_prefix, found.add_bos) == ("llama", True, False)
    assert found.types[:4] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE]
    assert found.types[3:259] == [TokenType.BYTE] * 256
    merges = json.loads(slow.to_str())["model"]["merges"]
    made = [found.scores[found.tokens.index("".join(merge))] for merge in merges]
    assert made == sorted(made, reverse=True)
    assert len(set(made)) == len({"".join(merge) for merge in merges}) > 50


@pytest.mark.parametrize(
    ("pattern", "whole_words", "name"),
    [
        (r"\p{N}", False, "qwen2"),
        (r"\p{N}{1,3}", True, "llama-bpe"),
        (r"\p{N}{1,3}", False, "dbrx"),
    ],
)
def test_known_rules_of_cutting_are_named(sentences, pattern: str, whole_words: bool, name: str):
    rule = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + pattern
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )  # fmt: skip
    assert read_vocabulary(foreign(cut_by(rule, sentences, whole_words)), 300).pre == name


def cut_by(rule: str, sentences, whole_words: bool = False) -> tokenizers.Tokenizer:
    slow = tokenizers.Tokenizer(models.BPE(ignore_merges=whole_words))
    slow.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(rule), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    slow.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<u>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    slow.train_from_iterator(sentences, trainer)
    return slow


def test_an_unknown_rule_of_cutting_is_refused(sentences):
    with pytest.raises(ValueError, match=r"llama.cpp has no such rule .* it would cut text otherwise.*--to hf"):
        read_vocabulary(foreign(cut_by(r"\p{L}{1,2}|.", sentences)), 300)


def test_the_same_checkpoint_gives_the_same_bytes_and_a_file_is_never_replaced(tmp_path: Path, own: Own):
    own()
    first = export_gguf(tmp_path / "run", tmp_path / "a.gguf", dtype="q8_0").file
    second = export_gguf(tmp_path / "run", tmp_path / "b.gguf", dtype="q8_0").file
    assert first.read_bytes() == second.read_bytes()
    with pytest.raises(ValueError, match=r"a\.gguf exists: name another --out"):
        export_gguf(tmp_path / "run", tmp_path / "a.gguf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "b.gguf", "run"]


def test_a_weight_too_large_for_the_dtype_is_named_and_nothing_is_left(
    tmp_path: Path, tokenizer: Tokenizer, make_model
):
    model = make_model(vocab_size=tokenizer.vocab_size)
    with torch.no_grad():
        model.layers[1].down[0, 0] = 1e6
    save(tmp_path / "run", model, tokenizer)
    with pytest.raises(ValueError, match=r"layers\.1\.down.*blk\.1\.ffn_down.*finite F16.*float32"):
        export_gguf(tmp_path / "run", tmp_path / "a.gguf", dtype="float16")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_rows_that_q8_0_cannot_hold_stay_float16_and_it_is_said(tmp_path: Path, own: Own):
    own(ffn_width=72)
    written = export_gguf(tmp_path / "run", tmp_path / "a.gguf", dtype="q8_0")
    odd = {t.name for t in GGUFReader(written.file).tensors if t.tensor_type == Quantization.F16}
    assert odd == {f"blk.{i}.ffn_down.weight" for i in range(3)}
    assert sum("rows of 72" in note for note in written.notes) == 3


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"window": 8}, r"model\.window = 8: llama\.cpp's .* see everything before"),
        ({"head": "reward"}, r"model\.head = 'reward'"),
        ({"norms": "post"}, "no architecture of llama.cpp that is written here"),
        ({"qk_norm": True, "bias": True}, "no architecture of llama.cpp that is written here"),
        ({"rope_scaling": RopeScaling(kind="yarn", factor=4.0, beta_fast=16.0)}, "only YaRN with the paper's numbers"),
    ],
)
def test_a_model_that_llama_cpp_would_compute_otherwise_is_refused(tmp_path: Path, own: Own, config: dict, error: str):
    own(**config)
    with pytest.raises(ValueError, match=error):
        export_gguf(tmp_path / "run", tmp_path / "a.gguf")


def test_an_adapter_is_merged_first(tmp_path: Path, tokenizer: Tokenizer, make_model):
    save(tmp_path / "run", make_model(vocab_size=tokenizer.vocab_size), tokenizer, adapter={"kind": "lora"})
    with pytest.raises(ValueError, match="holds an adapter, not a whole model: `fledge merge` it"):
        export_gguf(tmp_path / "run", tmp_path / "a.gguf")


def test_the_command_says_what_was_written(tmp_path: Path, own: Own, capsys):
    own(head="tokens+value")
    options = ModelExportOptions(run=str(tmp_path / "run"), out=str(tmp_path / "out"), to="gguf", dtype="q8_0")
    assert options.problems() == []
    assert export_model(options) == tmp_path / "out" / "model.gguf"
    said = "".join(capsys.readouterr())
    assert "llama" in said and "q8_0" in said and "value_head" in said
    assert ModelExportOptions(run="r", out="o", dtype="q8_0").problems() != []
    assert ModelExportOptions(run="r", out="o", to="gguf", family="llama").problems() != []


# -------------------------------------------------------------------------------------------------- llama.cpp itself


@pytest.fixture
def serve() -> Iterator[Callable[[ExportedGGUF], "object"]]:
    """serve(written) -> llama.cpp's server on the file, in exact arithmetic."""
    llama = pytest.importorskip("xllamacpp", reason="llama.cpp is checked where xllamacpp is installed")

    def start(written: ExportedGGUF):
        params = llama.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(written.file), 64, 1, False
        params.n_gpu_layers, params.cpuparams.n_threads, params.special = 0, 1, True
        params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        return llama.Server(params)

    yield start


@pytest.mark.parametrize("case", [case for case in CASES if "value" not in case])
def test_llama_cpp_gives_the_same_log_probs(tmp_path: Path, own: Own, tokenizer: Tokenizer, serve, case: str):
    model = own(**CASES[case][0])
    server = serve(export_gguf(tmp_path / "run", tmp_path / "a.gguf"))
    prompt = render_prompt(tokenizer, [Message("user", "Where is Belmora?")])
    compared = 0
    for length in range(4, len(prompt) + 1):
        with torch.no_grad():
            expected = model.logits(model.hidden(torch.tensor([prompt[:length]])))[0, -1].log_softmax(-1)
        asked = {"prompt": prompt[:length], "n_predict": 1, "temperature": 0.0, "n_probs": tokenizer.vocab_size}
        answer = server.handle_completions(asked)
        answer = answer if isinstance(answer, dict) else json.loads(answer)
        if not (content := (answer["choices"][0].get("logprobs") or {"content": []})["content"]):
            continue  # half a character is not shown
        got = {entry["id"]: entry["logprob"] for entry in content[0]["top_logprobs"]}
        ids = [i for i in got if expected[i] > -15]
        torch.testing.assert_close(torch.tensor([got[i] for i in ids]), expected[ids], atol=1e-4, rtol=0)
        compared += 1
    assert compared > 3
