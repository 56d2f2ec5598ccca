"""Every family's arithmetic against transformers' own model with random weights, tensors mapped by hand.

The settings are chosen so that each switch matters: contexts longer than windows, gains and biases away from 1 and 0.
"""

import math

import msgspec
import pytest
import torch
import transformers
from torch import Tensor
from twins import V, batch_of, error, random_tokens, shake

from fledge.core.model import ModelConfig, RopeScaling, Transformer
from fledge.core.native import library
from fledge.core.objectives import weighted_nll
from fledge.generate.engine import Engine
from fledge.generate.live import Live
from fledge.generate.native_decoder import NativeBatch, NativeDecoder, Packed, serves
from fledge.generate.sampling import Sampling
from fledge.generate.torch_decoder import TorchBatch, TorchDecoder

LAYERS, LENGTH = 4, 40
COMMON = {
    "vocab_size": V, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "attn_implementation": "eager",
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
OURS = {
    "vocab_size": V, "width": 48, "ffn_width": 80, "layers": LAYERS, "heads": 4, "kv_heads": 2, "context_tokens": 128,
    "norm_eps": 1e-5, "rope_base": 500.0,
}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 500.0}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32}
SLIDING = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]

# name: (transformers' family, its settings, ours, whether the compiled loop decodes it)
FAMILIES: dict[str, tuple[str, dict, dict, bool]] = {
    "llama-3": (
        "Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": False, "head_dim": 12},
        {"tied": False, "rope_scaling": RopeScaling(kind="llama3", factor=8.0, original_context=32)}, True,
    ),
    "llama-linear": (
        "Llama", {"rope_parameters": {**PLAIN, "rope_type": "linear", "factor": 4.0}, "tie_word_embeddings": True},
        {"tied": True, "rope_scaling": RopeScaling(kind="linear", factor=4.0)}, True,
    ),
    "llama-all-biases": (
        "Llama", {"rope_parameters": PLAIN, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
        {"tied": False, "bias": True, "out_bias": True, "mlp_bias": True}, False,
    ),
    "mistral": (
        "Mistral", {"rope_parameters": PLAIN, "sliding_window": 6, "tie_word_embeddings": False},
        {"tied": False, "window": 6}, False,
    ),
    "qwen2": ("Qwen2", {"rope_parameters": PLAIN, "tie_word_embeddings": True}, {"tied": True, "bias": True}, True),
    "qwen2-sliding": (
        "Qwen2",
        {"rope_parameters": PLAIN, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
        {"tied": False, "bias": True, "window": 5, "window_layers": (2, 3)}, False,
    ),
    "qwen3": (
        "Qwen3", {"rope_parameters": PLAIN, "head_dim": 20, "tie_word_embeddings": True},
        {"tied": True, "qk_norm": True, "head_width": 20}, True,
    ),
    "qwen3-yarn": (
        "Qwen3", {"rope_parameters": YARN, "head_dim": 8, "tie_word_embeddings": False},
        {
            "tied": False, "qk_norm": True, "head_width": 8,
            "rope_scaling": RopeScaling(kind="yarn", factor=4.0, original_context=32),
        }, True,
    ),
    "llama-yarn-by-hand": (
        "Llama",
        {
            "rope_parameters": {
                **YARN, "factor": 2.0, "attention_factor": 1.3, "beta_fast": 6.0, "beta_slow": 2.0, "truncate": False,
            },
            "head_dim": 20,
        },
        {
            "tied": False, "head_width": 20,
            "rope_scaling": RopeScaling(
                kind="yarn", factor=2.0, original_context=32, magnitude=1.3, beta_fast=6.0, beta_slow=2.0, truncate=False
            ),
        }, True,
    ),
    "olmo2": (
        "Olmo2", {"rope_parameters": PLAIN, "tie_word_embeddings": False},
        {"tied": False, "norms": "post", "qk_norm": True, "qk_norm_whole": True}, False,
    ),
    "smollm3": (
        "SmolLM3", {"rope_parameters": PLAIN, "no_rope_layer_interval": 2, "tie_word_embeddings": True},
        {"tied": True, "no_rope_layers": (1, 3)}, False,
    ),
    "smollm3-sliding": (
        "SmolLM3",
        {
            "rope_parameters": PLAIN, "no_rope_layers": [1, 1, 0, 1], "use_sliding_window": True, "sliding_window": 7,
            "tie_word_embeddings": False,
        },
        {"tied": False, "no_rope_layers": (2,), "window": 7, "window_layers": (2,)}, False,
    ),
    "gemma3_text": (
        "Gemma3",
        {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 500.0, "factor": 8.0},
            },
            "layer_types": SLIDING, "sliding_window": 6, "query_pre_attn_scalar": 24, "head_dim": 20,
            "tie_word_embeddings": True,
        },
        {
            "tied": True, "norms": "sandwich", "qk_norm": True, "head_width": 20, "query_scalar": 24.0, "window": 6,
            "window_layers": (1, 3), "local_rope_base": 100.0, "activation": "gelu_tanh", "embedding_scale": True,
            "gains_from_one": True, "rope_scaling": RopeScaling(kind="linear", factor=8.0),
        }, False,
    ),
}  # fmt: skip
KINDS = {
    "Gemma3": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
    **{
        name: (getattr(transformers, f"{name}Config"), getattr(transformers, f"{name}ForCausalLM"))
        for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Olmo2", "SmolLM3")
    },
}
NORMS = {  # ours: theirs, by where the norms are
    "pre": {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"},
    "post": {"attention_post_norm": "post_attention_layernorm", "ffn_post_norm": "post_feedforward_layernorm"},
    "sandwich": {
        "attention_norm": "input_layernorm", "attention_post_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm", "ffn_post_norm": "post_feedforward_layernorm",
    },
}  # fmt: skip


def mapped(source: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """transformers' tensors under our names."""
    found = {"embedding": source["model.embed_tokens.weight"], "norm": source["model.norm.weight"]}
    if not config.tied:
        found["unembedding"] = source["lm_head.weight"]
    for i in range(config.layers):
        theirs, ours = f"model.layers.{i}", f"layers.{i}"
        for kind, there in (("weight", True), ("bias", config.bias)):
            if there:
                name = f"{ours}.qkv" if kind == "weight" else f"{ours}.qkv_bias"
                found[name] = torch.cat([source[f"{theirs}.self_attn.{p}_proj.{kind}"] for p in "qkv"])
        for kind, suffix, there in (("weight", "", True), ("bias", "_bias", config.mlp_bias)):
            if there:
                both = [source[f"{theirs}.mlp.{p}_proj.{kind}"] for p in ("gate", "up")]
                found[f"{ours}.gate_up{suffix}"] = torch.cat(both)
                found[f"{ours}.down{suffix}"] = source[f"{theirs}.mlp.down_proj.{kind}"]
        found[f"{ours}.attention_out"] = source[f"{theirs}.self_attn.o_proj.weight"]
        if config.out_bias:
            found[f"{ours}.attention_out_bias"] = source[f"{theirs}.self_attn.o_proj.bias"]
        if config.qk_norm:
            found |= {f"{ours}.{p}_norm": source[f"{theirs}.self_attn.{p}_norm.weight"] for p in "qk"}
        found |= {f"{ours}.{mine}": source[f"{theirs}.{name}.weight"] for mine, name in NORMS[config.norms].items()}
    return found


def twins(name: str) -> tuple[torch.nn.Module, Transformer]:
    """transformers' model of a family and ours with its weights."""
    family, settings, ours, _ = FAMILIES[name]
    config_kind, model_kind = KINDS[family]
    theirs = shake(model_kind(config_kind(**COMMON, **settings)))
    config = ModelConfig(**OURS, **ours)
    model = Transformer(config)
    source = theirs.state_dict()
    weights = mapped(source, config)
    model.load_state_dict(weights)  # strict: nothing left out, nothing left over
    used = sum(t.numel() for t in weights.values())
    assert used == sum(t.numel() for n, t in source.items() if n != "lm_head.weight" or not config.tied)
    return theirs, model.eval()


# --------------------------------------------------------------------------------------------------------- decoders


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_and_gradients_equal_transformers(path, name):
    theirs, ours = twins(name)
    tokens, targets = random_tokens(2, LENGTH), random_tokens(2, LENGTH, seed=1)
    expected = theirs(tokens).logits
    assert error(ours.logits(ours.hidden(tokens)), expected) <= 1e-4
    torch.nn.functional.cross_entropy(expected.flatten(0, 1), targets.flatten(), reduction="sum").backward()
    loss, _ = weighted_nll(ours(batch_of(tokens, targets)), batch_of(tokens, targets))
    loss.backward()
    wanted = mapped({n: p.grad for n, p in theirs.named_parameters(remove_duplicate=False)}, ours.config)
    for parameter, tensor in ours.named_parameters():
        assert error(tensor.grad, wanted[parameter]) <= 1e-3, parameter


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_parameters_are_counted_and_bfloat16_agrees_to_its_precision(path, name):
    _, ours = twins(name)
    assert ours.config.parameter_count() == sum(p.numel() for p in ours.parameters())
    tokens = random_tokens(1, 12)
    exact = ours.hidden(tokens)
    ours.compute_dtype = torch.bfloat16
    rough = ours.hidden(tokens)
    assert rough.dtype == torch.bfloat16 and (rough - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_cached_decoding_equals_the_full_forward(name):
    """Prompts of different lengths read at once, then 30 tokens fed one by one, past every window."""
    _, ours = twins(name)
    rows = random_tokens(3, 3 + 30)
    lengths = (3, 1, 2)
    full = ours.logits(ours.hidden(rows))
    decoder = TorchDecoder(ours, torch.float32, 3, 33)
    batch = TorchBatch(decoder, [rows[i, :n].tolist() for i, n in enumerate(lengths)])
    for step in range(30):
        place = torch.tensor(lengths) - 1 + step
        assert error(batch.logits, full[torch.arange(3), place]) <= 1e-4, step
        batch.step(rows[torch.arange(3), place + 1])


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_rows_that_leave_the_batch_take_nothing_with_them(name):
    """A batch that shrinks: windows and caches of the rows that stay are still theirs."""
    _, ours = twins(name)
    rows = random_tokens(3, 24)
    full = ours.logits(ours.hidden(rows))
    batch = TorchBatch(TorchDecoder(ours, torch.float32, 3, 24), rows[:, :9].tolist())
    batch.step(rows[:, 9])
    batch.keep(torch.tensor([0, 2]))
    for place in range(10, 23):
        batch.step(rows[[0, 2], place])
        assert error(batch.logits, full[[0, 2], place]) <= 1e-4


def test_an_idle_slot_far_beyond_the_others_spoils_nobody(make_model):
    """A long answer ends while a short one goes on; then two long ones take both slots: each as if it were alone."""
    engine = Engine(make_model(spread=0.15, window=4, context_tokens=64), [], native=False)
    asked = [random_tokens(1, n, seed=n)[0].tolist() for n in (50, 3, 55, 40)]
    sampling = [Sampling(temperature=0.0, max_tokens=n) for n in (3, 9, 8, 8)]
    live, written = Live(engine, 2), {key: [] for key in range(4)}
    for keys in ((0, 1), (2, 3)):
        for key in keys:
            live.add(key, asked[key], sampling[key])
            for found in live.go(1):  # read one by one: together, the shorter would be padded over what is left there
                written[found.key] += found.tokens
        while live.busy:
            for found in live.go(1):
                written[found.key] += found.tokens
    assert list(written.values()) == [engine.generate([p], s)[0].tokens for p, s in zip(asked, sampling, strict=True)]


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_the_compiled_loop_serves_what_it_can_and_nothing_else(name):
    _, ours = twins(name)
    can = FAMILIES[name][3] and library("decode") is not None
    assert serves(ours, torch.float32) == can
    if can:
        tokens = random_tokens(2, 20)
        full = ours.logits(ours.hidden(tokens))
        batch = NativeBatch(NativeDecoder(ours, Packed(), torch.float32, 2, 20), [row[:5].tolist() for row in tokens])
        for place in range(4, 19):
            assert error(batch.logits, full[:, place]) <= 1e-4
            batch.step(tokens[:, place + 1])
    else:
        with pytest.raises(ValueError, match="native = True"):
            Engine(ours, [2], native=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_engine_writes_what_transformers_generates(name):
    """Greedy answers of 20 tokens, through whichever decoder the engine chooses."""
    theirs, ours = twins(name)
    prompts = [[5, 17, 120, 9, 33, 250, 8], [40, 41]]
    found = Engine(ours, []).generate(prompts, Sampling(temperature=0.0, max_tokens=20))
    for prompt, answer in zip(prompts, found, strict=True):
        expected = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            max_new_tokens=20, min_new_tokens=20, eos_token_id=None, pad_token_id=0, use_cache=False,
        )  # fmt: skip
        assert answer.tokens == expected[0, len(prompt) :].tolist()


# ------------------------------------------------------------------------------------------------------ what is seen


def test_a_window_hides_what_lies_before_it(path, make_model):
    """One layer: a position hears of the last 4 tokens, its own included, and of nothing before."""
    model, tokens = make_model(spread=0.15, layers=1, window=4), random_tokens(1, 12)
    changed = tokens.clone()
    changed[0, 3] += 1
    with torch.no_grad():
        moved = (model.hidden(tokens) - model.hidden(changed)).abs().amax(-1)[0]
    assert moved.gt(1e-5).tolist() == [False] * 3 + [True] * 4 + [False] * 5


@pytest.mark.parametrize("short", [True, False], ids=["short", "flash"])
def test_packed_documents_with_a_window_score_as_alone(path, make_model, monkeypatch, short):
    if not short:
        monkeypatch.setattr("fledge.core.kernels.SHORT_TOKENS", 4)
        monkeypatch.setattr("fledge.core.model.SHORT_TOKENS", 4)
    model = make_model(spread=0.15, window=4, window_layers=(0, 2), no_rope_layers=(1,))
    pieces = [random_tokens(1, n, seed=n) for n in (7, 11, 5)]
    doc = torch.cat([torch.full((1, p.shape[1]), i) for i, p in enumerate(pieces)], 1)
    with torch.no_grad():
        packed = model.hidden(torch.cat(pieces, 1), doc)
        alone = torch.cat([model.hidden(p) for p in pieces], 1)
    assert error(packed, alone) <= 1e-4


def test_a_window_as_long_as_the_row_changes_nothing(path, make_model):
    tokens = random_tokens(2, 12)
    with torch.no_grad():
        free, wide = (make_model(spread=0.15, window=w).hidden(tokens) for w in (None, 12))
    assert torch.equal(free, wide)
    assert serves(make_model(window=64), torch.float32) == serves(make_model(), torch.float32)


def test_a_projection_may_be_taken_over(make_model):
    """What adapters sit on: each of the four products of a block, with its weight and its bias."""
    model, tokens = make_model(spread=0.15, bias=True), random_tokens(1, 8)
    seen = {}

    class Twice(torch.nn.Module):
        def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            seen[tuple(weight.shape)] = x.shape[-1], bias is not None
            return torch.nn.functional.linear(x, 2 * weight, bias)

    with torch.no_grad():
        for name in ("qkv", "attention_out", "gate_up", "down"):
            double = make_model(spread=0.15, bias=True)
            getattr(double.layers[1], name).mul_(2)
            model.layers[1].adapters = {name: Twice()}
            assert torch.equal(model.hidden(tokens), double.hidden(tokens))
    wide = model.config.ffn_width
    assert seen == {
        (192, 64): (64, True),
        (64, 64): (64, False),
        (2 * wide, 64): (64, False),
        (64, wide): (wide, False),
    }


# ------------------------------------------------------------------------------------------------- settings, storage


@pytest.mark.parametrize("name", FAMILIES)
def test_a_config_survives_its_card(name):
    config = ModelConfig(**OURS, **FAMILIES[name][2]).resolved()
    held = msgspec.json.decode(msgspec.json.encode(msgspec.to_builtins(config)))
    assert msgspec.convert(held, ModelConfig) == config


def test_cards_from_before_these_fields_open_as_what_they_were():
    config = ModelConfig(size="tiny", vocab_size=V).resolved()
    old = {f: getattr(config, f) for f in ("size", "vocab_size", "layers", "width", "heads", "kv_heads", "ffn_width",
                                           "context_tokens", "rope_base", "norm_eps", "tied", "causal", "head")}  # fmt: skip
    assert msgspec.convert(old, ModelConfig).resolved() == config


def test_new_weights_are_a_blind_guess_in_every_family():
    """initialise() knows where gains start; the loss is that of a guess among V tokens."""
    for name, (_, _, ours, _) in FAMILIES.items():
        model = Transformer(ModelConfig(**OURS, **ours)).initialise(0)
        batch = batch_of(random_tokens(4, 16))
        with torch.no_grad():
            loss = weighted_nll(model(batch), batch)[0].item() / batch.units
        assert loss == pytest.approx(math.log(V), abs=0.25), name
