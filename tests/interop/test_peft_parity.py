"""Adapters against `peft`: trained numbers go there and back, and both give the same logits."""

import functools
import json
import warnings
from pathlib import Path

import msgspec
import pytest
import torch
import transformers

from fledge.core.adapters import AdapterConfig
from fledge.core.adapting import attach, trained_tensors
from fledge.core.checkpoint import load_checkpoint, save_checkpoint
from fledge.core.model import ModelConfig, Transformer
from fledge.interop.merge_command import MergeOptions, merge
from fledge.interop.peft_command import PeftExportOptions, PeftImportOptions, export_adapter, import_adapter
from fledge.interop.peft_files import CONFIG, WEIGHTS, write_peft
from fledge.interop.tensor_names import slots
from fledge.stages.common import open_model as open_any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft

FAMILIES = {
    "llama": (transformers.LlamaConfig, {"tied": False}),
    "qwen2": (transformers.Qwen2Config, {"tied": True, "bias": True}),
    "qwen3": (transformers.Qwen3Config, {"tied": True, "qk_norm": True, "head_width": 16}),
}
TOKENS = torch.arange(4, 28).view(2, 12)
open_model = functools.partial(open_any, precision="float32")


def write_base(run: Path, tokenizer, **over) -> tuple[Path, Transformer]:
    """A run with a random model of two layers."""
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        width=48,
        ffn_width=80,
        layers=2,
        heads=4,
        kv_heads=2,
        context_tokens=64,
        **over,
    )
    model = Transformer(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(1.0 if "norm" in name else 0.0, 0.2, generator=generator)
    card = {"stage": "test", "parent": None, "model": msgspec.to_builtins(model.config), "recipe": {}}
    path = save_checkpoint(
        run, 0, model=model.state_dict(), optimizer={}, state={}, card=card, tokenizer=tokenizer.json
    )
    return path, model


def their_model(model: Transformer, family: str):
    """The same weights in transformers."""
    c = model.config
    shared = {
        "vocab_size": c.vocab_size, "hidden_size": c.width, "intermediate_size": c.ffn_width,
        "num_hidden_layers": c.layers, "num_attention_heads": c.heads, "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_width, "max_position_embeddings": 64, "rms_norm_eps": c.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_base}, "tie_word_embeddings": c.tied,
        "attn_implementation": "eager", "pad_token_id": 0, "num_labels": 1,
    }  # fmt: skip
    kind = transformers.AutoModelForCausalLM
    if c.head == "reward":
        kind = transformers.AutoModelForSequenceClassification
    theirs = kind.from_config(FAMILIES[family][0](**shared)).eval()
    state = model.state_dict()
    wanted = {s.theirs: state[s.ours] if s.rows is None else state[s.ours][s.rows] for s in slots(c)}
    missing, unexpected = theirs.load_state_dict(wanted, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    return theirs


def shaken(model: Transformer) -> Transformer:
    """Every trained number moved, as training does."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.empty_like(p).normal_(0.0, 0.2, generator=generator))
    return model


def save_adapter(run: Path, base: Path, model: Transformer, tokenizer) -> Path:
    """What a stage leaves behind."""
    card = {
        "stage": "test", "parent": None, "recipe": {}, "model": msgspec.to_builtins(model.config),
        "adapter": {
            "config": msgspec.to_builtins(model.adapter.config),
            "base": {"id": load_checkpoint(base).id, "path": str(base)},
        },
    }  # fmt: skip
    return save_checkpoint(
        run, 1, model=trained_tensors(model), optimizer={}, state={}, card=card, tokenizer=tokenizer.json
    )


def logits(model: Transformer) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model.hidden(TOKENS))


def take(folder: Path, base: Path, out: Path) -> Path:
    return import_adapter(PeftImportOptions(path=str(folder), base=str(base), out=str(out)))


CASES = [
    ("llama", {"kind": "lora"}),
    ("llama", {"kind": "lora", "rank": 3, "alpha": 5.0, "targets": ["q", "v", "down"], "new_tokens": [5, 9]}),
    ("qwen2", {"kind": "lora", "targets": ["k", "up"], "new_tokens": [5, 9]}),
    ("qwen3", {"kind": "lora"}),
    ("llama", {"kind": "dora"}),
    ("qwen2", {"kind": "dora", "targets": ["q", "gate", "o"]}),
    ("qwen2", {"kind": "ia3"}),
    ("qwen3", {"kind": "ia3", "targets": ["q", "o", "gate"]}),
    ("llama", {"kind": "prefix", "virtual_tokens": 5}),
    ("qwen3", {"kind": "prefix", "virtual_tokens": 3}),
    ("qwen2", {"kind": "prompt", "virtual_tokens": 4}),
]


@pytest.mark.parametrize(("family", "settings"), CASES, ids=[f"{f}-{s['kind']}-{i}" for i, (f, s) in enumerate(CASES)])
def test_an_adapter_of_ours_gives_the_same_logits_in_peft_and_comes_back(tmp_path, tokenizer, family, settings):
    base, model = write_base(tmp_path / "base", tokenizer, **FAMILIES[family][1])
    plain = logits(model)
    shaken(attach(model, AdapterConfig(**settings)))
    expected = logits(model)
    assert (expected - plain).abs().max() > 0.1
    run = save_adapter(tmp_path / "run", base, model, tokenizer)
    export_adapter(PeftExportOptions(run=str(run), out=str(tmp_path / "peft"), base_name="base"))
    theirs = peft.PeftModel.from_pretrained(their_model(open_model(base).model, family), tmp_path / "peft").eval()
    with torch.no_grad():
        found = theirs(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits[:, -TOKENS.shape[1] :]
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()

    back = take(tmp_path / "peft", base, tmp_path / "back")
    assert take(tmp_path / "peft", base, tmp_path / "back") == back
    ours, again = load_checkpoint(run).model_tensors(), load_checkpoint(back).model_tensors()
    assert ours.keys() == again.keys() and all(torch.equal(ours[n], again[n]) for n in ours)
    assert (logits(open_model(back).model) - expected).abs().max() <= 1e-4 * expected.abs().max()


THEIRS = {
    "lora": peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    "rslora": peft.LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", use_rslora=True, init_lora_weights=False),
    "pattern": peft.LoraConfig(r=2, target_modules=r".*mlp\.(gate|up)_proj", init_lora_weights=False),
    "dora": peft.LoraConfig(r=4, target_modules=["v_proj", "o_proj"], use_dora=True, init_lora_weights=False),
    "tokens": peft.LoraConfig(r=4, target_modules=["v_proj"], trainable_token_indices=[7], init_lora_weights=False),
    "ia3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "prefix": peft.PrefixTuningConfig(num_virtual_tokens=6),
    "prompt": peft.PromptTuningConfig(num_virtual_tokens=6),
}


def peft_folder(folder: Path, theirs, config: peft.PeftConfig) -> torch.Tensor:
    """Write an adapter that peft made, its numbers moved; its logits."""
    config.task_type = "SEQ_CLS" if hasattr(theirs, "score") else "CAUSAL_LM"
    torch.manual_seed(0)
    adapted = peft.get_peft_model(theirs, config).eval()
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)
    adapted.save_pretrained(str(folder))
    with torch.no_grad():
        return adapted(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits


@pytest.mark.parametrize("name", list(THEIRS))
def test_an_adapter_of_peft_gives_the_same_logits_here(tmp_path, tokenizer, name):
    base, model = write_base(tmp_path / "base", tokenizer, **FAMILIES["qwen2"][1])
    expected = peft_folder(tmp_path / "peft", their_model(model, "qwen2"), THEIRS[name])[:, -TOKENS.shape[1] :]
    path = take(tmp_path / "peft", base, tmp_path / "run")
    found = logits(open_model(path).model)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert (found - logits(model)).abs().max() > 0.01
    card = load_checkpoint(path).card
    assert card["adapter"]["base"] == card["parent"] == {"id": load_checkpoint(base).id, "path": str(base)}


def test_reward_models_take_their_score_along(tmp_path, tokenizer):
    base, _ = write_base(tmp_path / "base", tokenizer, **FAMILIES["llama"][1])
    model = open_model(base, head="reward").model
    shaken(attach(model, AdapterConfig(targets=["q", "v"])))
    run = save_adapter(tmp_path / "run", base, model, tokenizer)
    write_peft(run, tmp_path / "peft")
    scores = their_model(open_model(base, head="reward").model, "llama")
    theirs = peft.PeftModel.from_pretrained(scores, tmp_path / "peft").eval()
    with torch.no_grad():
        found = theirs(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits[:, 0]
        expected = model.hidden(TOKENS)[:, -1] @ model.value_head[0]
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    back = take(tmp_path / "peft", base, tmp_path / "back")
    opened = open_model(back, head="reward").model
    with torch.no_grad():
        assert torch.allclose(opened.hidden(TOKENS)[:, -1] @ opened.value_head[0], expected, atol=1e-4)


# ------------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def whole(tmp_path, tokenizer) -> tuple[Path, Path]:
    """(base, folder of a LoRA adapter that peft made)."""
    base, model = write_base(tmp_path / "base", tokenizer, **FAMILIES["qwen2"][1])
    peft_folder(tmp_path / "peft", their_model(model, "qwen2"), peft.LoraConfig(r=4, target_modules=["q_proj"]))
    return base, tmp_path / "peft"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern = .* is not supported"),
        ({"layers_to_transform": [0]}, "layers_to_transform = .* is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"peft_type": "LOHA"}, "peft_type = 'LOHA': known are IA3, LORA, PREFIX_TUNING, PROMPT_TUNING"),
        ({"a_field_of_tomorrow": 3}, "a_field_of_tomorrow = 3 is not supported"),
        ({"r": 8}, r"lora_A.weight' has shape \(4, 48\)"),
    ],
)
def test_what_an_adapter_here_cannot_be_is_refused_by_name(whole, tmp_path, change, message):
    base, folder = whole
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        take(folder, base, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_pickled_and_missing_weights_are_refused(whole, tmp_path):
    base, folder = whole
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"adapter_model\.bin holds its weights as a pickle"):
        take(folder, base, tmp_path / "run")
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(ValueError, match=r"has no adapter_model\.safetensors"):
        take(folder, base, tmp_path / "run")


def test_tensors_that_fit_nowhere_and_numbers_that_are_none_are_refused(whole, tmp_path):
    from safetensors.torch import load_file, save_file

    base, folder = whole
    tensors = load_file(folder / WEIGHTS)
    name = next(iter(tensors))
    for extra, message in (
        ({"base_model.model.model.layers.7.self_attn.q_proj.other": torch.zeros(2)}, "has no place in this base"),
        ({name: torch.full_like(tensors[name], torch.nan)}, "NaN or infinite"),
        ({"base_model.model.model.layers.0.mlp.gate.lora_A.weight": torch.zeros(2, 2)}, "adapts no product of ours"),
    ):
        save_file(tensors | extra, folder / WEIGHTS)
        with pytest.raises(ValueError, match=message):
            take(folder, base, tmp_path / "run")


@pytest.mark.parametrize("kind", ["houlsby", "bitfit"])
def test_kinds_that_peft_lacks_are_refused(tmp_path, tokenizer, kind):
    base, model = write_base(tmp_path / "base", tokenizer)
    run = save_adapter(tmp_path / "run", base, attach(model, AdapterConfig(kind=kind)), tokenizer)
    with pytest.raises(ValueError, match=f"holds a {kind} adapter, which peft does not have"):
        write_peft(run, tmp_path / "peft")
    with pytest.raises(ValueError, match="holds a whole model"):
        write_peft(base, tmp_path / "peft")


# ------------------------------------------------------------------------------------------------- fledge merge


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "bitfit"])
def test_merging_writes_a_plain_run(tmp_path, tokenizer, kind):
    base, model = write_base(tmp_path / "base", tokenizer, **FAMILIES["llama"][1])
    shaken(attach(model, AdapterConfig(kind=kind)))
    run = save_adapter(tmp_path / "run", base, model, tokenizer)
    path = merge(MergeOptions(run=str(run), out=str(tmp_path / "merged")))
    assert merge(MergeOptions(run=str(run), out=str(tmp_path / "merged"))) == path
    held = load_checkpoint(path)
    assert "adapter" not in held.card and held.card["parent"]["id"] == load_checkpoint(run).id
    assert not any("adapter" in name for name in held.model_tensors())
    assert (logits(open_model(path).model) - logits(model)).abs().max() <= 1e-4 * logits(model).abs().max()


def test_what_cannot_be_merged_is_refused(tmp_path, tokenizer):
    base, model = write_base(tmp_path / "base", tokenizer)
    with pytest.raises(ValueError, match="nothing to merge"):
        merge(MergeOptions(run=str(base), out=str(tmp_path / "merged")))
    run = save_adapter(tmp_path / "run", base, attach(model, AdapterConfig(kind="prefix")), tokenizer)
    with pytest.raises(ValueError, match="prefix adapter, which is no change of weights"):
        merge(MergeOptions(run=str(run), out=str(tmp_path / "merged")))
    assert not (tmp_path / "merged").exists()
