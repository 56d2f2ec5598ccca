"""A model's folder that cannot be trusted is refused before a weight is read, with the name of what is wrong."""

import json
import random
from pathlib import Path

import pytest
import torch
from hf_models import CASES, edit_config, make_model, save
from safetensors.torch import load_file, save_file

from fledge.interop.families import read_config, remote_keys, require_fit
from fledge.interop.hf_import import find, read_weights
from fledge.interop.tensors import find_tensors, read_json

GATE = "model.layers.1.mlp.gate_proj.weight"


@pytest.fixture
def folder(tmp_path: Path, sentences) -> Path:
    return save(tmp_path / "model", make_model("llama"), sentences)


def edit_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors, add them, or take them away (None)."""
    held = load_file(folder / "model.safetensors") | changes
    save_file({k: v for k, v in held.items() if v is not None}, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_good_folder_is_read(folder: Path):
    assert find(folder).reading.family == "llama"


def test_a_missing_tensor_is_named(folder: Path):
    edit_tensors(folder, **{GATE: None})
    with pytest.raises(ValueError, match=rf"tensor '{GATE}' \(48, 32\) is missing: llama"):
        find(folder)


def test_an_extra_tensor_is_named(folder: Path):
    edit_tensors(folder, **{"model.layers.2.mlp.up_proj.weight": torch.ones(48, 32)})
    with pytest.raises(ValueError, match=r"tensor 'model\.layers\.2\.mlp\.up_proj\.weight' is not part of llama"):
        find(folder)


def test_a_wrong_shape_is_named(folder: Path):
    edit_tensors(folder, **{GATE: torch.ones(32, 48)})
    with pytest.raises(ValueError, match=rf"tensor '{GATE}' has shape \(32, 48\), config.json makes it \(48, 32\)"):
        find(folder)


def test_a_wrong_dtype_is_named(folder: Path):
    edit_tensors(folder, **{GATE: torch.ones(48, 32, dtype=torch.int8)})
    with pytest.raises(ValueError, match=f"tensor '{GATE}' is I8"):
        find(folder)


def test_a_nan_is_named(folder: Path):
    weights = load_file(folder / "model.safetensors")[GATE]
    weights[3, 4] = torch.nan
    edit_tensors(folder, **{GATE: weights})
    with pytest.raises(ValueError, match=f"tensor '{GATE}' has 1 of 1,536 values that are NaN"):
        read_weights(find(folder))


def test_a_second_copy_of_tied_weights_must_be_equal(tmp_path: Path, sentences):
    folder = save(tmp_path, make_model("llama", tie_word_embeddings=True), sentences)
    words = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    edit_tensors(folder, **{"lm_head.weight": words.clone()})
    assert torch.equal(read_weights(find(folder))["embedding"], words)
    edit_tensors(folder, **{"lm_head.weight": words + 1})
    with pytest.raises(ValueError, match=r"tensors 'lm_head\.weight' and 'model\.embed_tokens\.weight' differ"):
        read_weights(find(folder))


def test_frequencies_that_old_files_hold_are_passed_over(folder: Path):
    edit_tensors(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert find(folder).passed_over == ["model.layers.0.self_attn.rotary_emb.inv_freq"]


def test_the_first_bert_files_are_read(tmp_path: Path, sentences):
    """gamma and beta for weight and bias, heads of the next-sentence task, a second copy of the output."""
    theirs = make_model("bert", task="PreTraining")
    save(tmp_path, theirs, sentences)
    held = load_file(tmp_path / "model.safetensors")
    words = held["bert.embeddings.word_embeddings.weight"]
    held |= {"cls.predictions.decoder.weight": words.clone(), "bert.embeddings.position_ids": torch.arange(64)[None]}
    renamed = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for k, v in held.items()
    }
    assert renamed.keys() != held.keys()
    save_file(renamed, tmp_path / "model.safetensors")
    found = find(tmp_path)
    assert sorted(found.passed_over) == [
        "bert.embeddings.position_ids",
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "cls.seq_relationship.bias",
        "cls.seq_relationship.weight",
    ]
    weights = read_weights(found)
    assert torch.equal(weights["embedding_norm_bias"], held["bert.embeddings.LayerNorm.bias"])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "gpt_neox"}, "model_type = 'gpt_neox': the families read here are llama, mistral"),
        ({"model_type": ["llama"]}, r"model_type = \['llama'\]"),
        ({"architectures": ["LlamaForQuestionAnswering"]}, "architectures = .*LlamaForCausalLM and"),
        ({"architectures": ["Qwen2ForCausalLM"]}, "architectures = .*of llama"),
        ({"quantization_config": {"bits": 4}}, "quantization_config = .* its weights are quantised"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = '0.5'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu': must be silu or swish"),
        ({"hidden_size": "32"}, "hidden_size = '32': must be a whole number between 1 and"),
        ({"hidden_size": 32.0}, "hidden_size = 32.0: must be a whole number"),
        ({"hidden_size": True}, "hidden_size = True: must be a whole number"),
        ({"hidden_size": -32}, "hidden_size = -32: must be a whole number"),
        ({"hidden_size": 2**60}, "hidden_size = 1152921504606846976: must be a whole number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000: must be a whole number between 1 and 1,024"),
        ({"num_key_value_heads": 3}, "model.kv_heads = 3 does not divide model.heads = 4"),
        ({"head_dim": 7}, "model.head_width = 7 is odd"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps = '1e-6': must be a number above 0"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes': must be true or false"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            "rope_type = 'dynamic': must be default, linear",
        ),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type = 'longrope'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "factor = 0: must be a number above 0"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor = 0.0: must be a number above 0"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2, "odd": 1}},
            "odd = 1: not known for rope_type 'linear'",
        ),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        ({"rope_parameters": [1]}, r"rope_scaling = \[1\]: must be an object"),
        ({"hidden_size": None}, "hidden_size is missing"),
    ],
)
def test_a_config_that_cannot_be_held_is_refused(folder: Path, fields: dict, words: str):
    edit_config(folder, **fields)
    with pytest.raises(ValueError, match=words):
        find(folder)


@pytest.mark.parametrize(
    ("case", "fields", "words"),
    [
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping = '30.0'"),
        ("gemma3", {"use_bidirectional_attention": True}, "embedding model of that family"),
        ("gemma3", {"sliding_window": None}, "tensor|sliding_window"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types = .* must be 2 times"),
        ("qwen2", {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types = .* must be 2 times"),
        ("smollm3", {"no_rope_layers": [1, 2]}, "no_rope_layers = .* must be 2 numbers"),
        ("bert", {"is_decoder": True}, "is_decoder = True: must be false"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key'"),
        ("bert", {"hidden_act": "gelu_new"}, "hidden_act = 'gelu_new': must be gelu"),
    ],
)
def test_a_family_s_own_fields_are_checked(tmp_path: Path, sentences, case: str, fields: dict, words: str):
    raw = {**make_model(case).config.to_dict(), "architectures": None} | fields
    if words == "tensor|sliding_window":  # null is no window, but these layers need one
        raw["sliding_window"] = None
        words = "sliding_window = None: must be a number"
    with pytest.raises(ValueError, match=words):
        read_config(raw)


def test_remote_code_is_ignored_by_name(folder: Path):
    """Bad input 23: nothing of these fields is followed; the file they name would leave a mark if it ran."""
    mark = folder / "mark"
    (folder / "modeling_evil.py").write_text(f"open({str(mark)!r}, 'w').close()")
    asked = {
        "auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"},
        "trust_remote_code": True,
        "_attn_implementation_internal": "evil/kernel",
        "made_up": 1,
    }
    edit_config(folder, **asked)
    found = find(folder)
    read_weights(found)
    assert found.reading.ignored == sorted(asked)
    assert remote_keys(found.reading.ignored) == ["_attn_implementation_internal", "auto_map", "trust_remote_code"]
    assert not mark.exists()
    assert "modeling_evil.py" not in {p.name for p in found.files}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"model_type": "llama", "model_type": "bert"}', r"duplicate JSON key \(model_type\)"),
        (b'{"model_type": NaN}', "NaN or Infinity is not a JSON number"),
        (b'{"a": ' * 50_000, "Nested too deeply"),
        (b"[]", "row is not a JSON object"),
        (b"\xff", "not UTF-8 at byte 0"),
        (b"", "no JSON object"),
    ],
)
def test_a_config_that_is_no_json_is_refused_by_file(folder: Path, raw: bytes, words: str):
    (folder / "config.json").write_bytes(raw)
    with pytest.raises(ValueError, match=f"{folder}/config.json.*{words}"):
        find(folder)


def test_files_and_names_that_are_no_model_s_folder(tmp_path: Path, folder: Path):
    with pytest.raises(
        ValueError, match=r"is no folder: a model of the Hub is downloaded first, .* `hf download Qwen/Q"
    ):
        find("Qwen/Qwen3-0.6B")
    with pytest.raises(ValueError, match="is a file: name the folder"):
        find(folder / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match="fledge never opens one"):
        find(tmp_path / "pytorch_model.bin")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer\.json: write one with `transformers`"):
        find(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        find(folder)


@pytest.mark.parametrize(("tokens", "rows"), [(417, 416), (100, 416), (50257, 128256)])
def test_a_tokenizer_that_does_not_fit_the_embedding_is_refused(tokens: int, rows: int):
    with pytest.raises(ValueError, match=f"the tokenizer has {tokens} tokens, the embedding {rows} rows"):
        require_fit(tokens, rows, "place")


@pytest.mark.parametrize(("tokens", "rows"), [(416, 416), (400, 416), (151_665, 151_936), (151_665, 152_064)])
def test_padding_that_families_add_fits(tokens: int, rows: int):
    require_fit(tokens, rows, "place")


def test_a_template_may_stand_in_either_place(folder: Path):
    own = find(folder).template
    assert "<|im_start|>" in own
    (folder / "chat_template.jinja").unlink()
    assert find(folder).template is None
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**read_json(path), "chat_template": own}))
    assert find(folder).template == own
    path.write_text(
        json.dumps({"chat_template": [{"name": "tool", "template": "x"}, {"name": "default", "template": own}]})
    )
    assert find(folder).template == own
    path.write_text(json.dumps({"chat_template": 7}))
    with pytest.raises(ValueError, match="chat_template is no text"):
        find(folder)


STRANGE = (None, True, -1, 0, 1, 2**70, 1.5, "x", "", [], [1], [[]], [{}], {}, {"rope_type": []}, {"rope_theta": "x"})


@pytest.mark.parametrize("case", CASES)
def test_whatever_a_field_holds_a_config_is_read_or_refused(case: str):
    """No value of any field is an error of ours."""
    raw = {**make_model(case).config.to_dict(), "architectures": None}
    refused = 0
    for key in raw:
        for value in STRANGE:
            try:
                read_config(raw | {key: value})
            except ValueError as error:
                refused += 1
                assert "config.json" in str(error)
    assert refused > 100


@pytest.mark.parametrize("seed", range(3))
def test_a_spoiled_file_of_weights_is_read_or_refused(folder: Path, seed: int):
    """A header with a few bytes changed is no error of ours either."""
    path, rng = folder / "model.safetensors", random.Random(seed)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(header)] = rng.choice(b'0123456789",:[]{}abc\x00\xff')
        path.write_bytes(data)
        try:
            find_tensors(folder)
        except ValueError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 50


@pytest.mark.parametrize("value", ["2", [2.0], [[2]], {}, True])
def test_ids_of_control_tokens_are_numbers(folder: Path, value):
    edit_config(folder, eos_token_id=value)
    (folder / "generation_config.json").unlink()
    with pytest.raises(ValueError, match=r"eos_token_id = .*must be a token's id, or several"):
        find(folder)
