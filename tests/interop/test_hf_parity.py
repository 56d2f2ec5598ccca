"""Every family, every field: logits of the model read here equal those of `transformers` within 1e-4 in float32."""

from pathlib import Path

import msgspec
import pytest
import torch
import transformers
from hf_models import CASES, ROWS, TOKENS, edit_config, make_model, save

from fledge.core.encoder import build_model
from fledge.core.model import RopeScaling
from fledge.interop.families import FAMILIES, read_config
from fledge.interop.hf_config import fitting, write_config
from fledge.interop.hf_import import find, read_weights
from fledge.interop.tensors import read_json


def read(folder: Path) -> torch.nn.Module:
    """The model of a folder, as an import fills it."""
    found = find(folder)
    model = build_model(found.reading.model)
    model.load_state_dict(read_weights(found))
    return model.eval()


def assert_same_logits(ours: torch.nn.Module, theirs: torch.nn.Module, length: int = 40) -> None:
    tokens = torch.randint(0, TOKENS, (2, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert expected.std() > 0.3  # so that 1e-4 says something
        torch.testing.assert_close(ours.logits(ours.hidden(tokens)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(tmp_path: Path, sentences, case: str):
    theirs = make_model(case)
    assert_same_logits(read(save(tmp_path, theirs, sentences)), theirs)


FELT = ("rope_parameters", "sliding_window", "no_rope_layers", "query_pre_attn_scalar")


@pytest.mark.parametrize("case", [name for name, (_, fields) in CASES.items() if any(map(fields.get, FELT))])
def test_positions_and_windows_are_felt(tmp_path: Path, sentences, case: str):
    """The parity above would mean nothing for a field that so small a model does not feel."""
    found = find(save(tmp_path, make_model(case), sentences))
    plain = {"rope_scaling": RopeScaling(), "window": None, "no_rope_layers": (), "query_scalar": None}
    tokens = torch.randint(0, TOKENS, (2, 40), generator=torch.Generator().manual_seed(1))
    outputs = []
    for config in (found.reading.model, msgspec.structs.replace(found.reading.model, **plain)):
        model = build_model(config)
        model.load_state_dict(read_weights(found))
        with torch.no_grad():
            outputs.append(model.logits(model.hidden(tokens)))
    assert (outputs[0] - outputs[1]).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_are_read_exactly(tmp_path: Path, sentences, dtype: torch.dtype):
    ours = read(save(tmp_path, make_model("qwen3").to(dtype), sentences))
    assert ours.config.dtype == str(dtype).removeprefix("torch.")
    assert_same_logits(ours, transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval())


@pytest.mark.parametrize("older", ["rope_theta", "rope_scaling"])
def test_older_files_say_the_same(tmp_path: Path, sentences, older: str):
    """rope_theta beside rope_scaling, with "type" for "rope_type", as files written before transformers 5 have them."""
    theirs = make_model("llama, linear rope" if older == "rope_scaling" else "llama")
    save(tmp_path, theirs, sentences)
    scaling = {"type": "linear", "factor": 2.0} if older == "rope_scaling" else None
    edit_config(tmp_path, rope_parameters=None, rope_theta=1e4, rope_scaling=scaling)
    assert "rope_parameters" not in read_json(tmp_path / "config.json")
    assert_same_logits(read(tmp_path), theirs)


def test_an_older_gemma_file_says_the_same(tmp_path: Path, sentences):
    theirs = make_model("gemma3, scaled rope", layer_types=["sliding_attention", "full_attention"])
    save(tmp_path, theirs, sentences)
    edit_config(
        tmp_path,
        rope_parameters=None,
        layer_types=None,
        sliding_window_pattern=2,
        rope_theta=1e6,
        rope_local_base_freq=1e4,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    )
    assert_same_logits(read(tmp_path), theirs)


def test_bert_classifier_and_token_types(tmp_path: Path, sentences):
    theirs = make_model("bert", task="SequenceClassification", num_labels=3)
    ours = read(save(tmp_path, theirs, sentences))
    tokens = torch.randint(0, TOKENS, (2, 12), generator=torch.Generator().manual_seed(1))
    types = torch.tensor([[0] * 5 + [1] * 7]).expand(2, -1)
    with torch.no_grad():
        expected = theirs(tokens, token_type_ids=types).logits
        scores = ours.pooled_classes(ours.hidden(tokens, types=types))[:, 0]
    assert expected.std() > 0.1
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ["llama", "qwen2", "qwen3", "mistral", "smollm3", "olmo2"])
@pytest.mark.parametrize("labels", [1, 3])
def test_classifiers_and_reward_models(tmp_path: Path, sentences, case: str, labels: int):
    theirs = make_model(case, task="SequenceClassification", num_labels=labels)
    ours = read(save(tmp_path, theirs, sentences))
    assert ours.config.head == ("reward" if labels == 1 else "class")
    tokens = torch.randint(1, TOKENS, (2, 12), generator=torch.Generator().manual_seed(1))
    head = ours.value_head if labels == 1 else ours.class_head
    with torch.no_grad():
        scores = ours.hidden(tokens)[:, -1] @ head.T
        torch.testing.assert_close(scores, theirs(tokens).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_a_config_says_what_was_read_from_it(case: str):
    """read(write(read(file))) is read(file), and `transformers` reads ours as it reads its own."""
    config = make_model(case).config
    raw = {**config.to_dict(), "architectures": None}
    reading = read_config(raw)
    assert reading.family == config.model_type
    assert reading.family in fitting(reading.model)
    written = write_config(reading.family, reading.model)
    again = read_config(written)
    assert again.ignored == []
    assert fitting(again.model) == fitting(reading.model)


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_transformers(family: str):
    """A file that leaves a field out means what `transformers` means by it."""
    kind = type(transformers.AutoConfig.for_model(family))
    sizes = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 32,
        "intermediate_size": 32,
        "vocab_size": 99,
    }
    full = {k: v for k, v in kind(**sizes).to_dict().items() if k != "architectures"}
    sparse = {"model_type": family, **sizes}
    assert read_config(sparse).model == read_config(full).model


def test_only_the_allow_list_is_read():
    """Every field that `transformers` writes for these families is known here, so none is passed over by mistake."""
    for case in CASES:
        assert read_config({**make_model(case).config.to_dict(), "architectures": None}).ignored == []


def test_padding_rows_are_kept(tmp_path: Path, sentences):
    found = find(save(tmp_path, make_model("llama"), sentences))
    assert read_weights(found)["embedding"].shape == (ROWS, 32)
