"""The model against Hugging Face's with the same weights, and what each switch of its shape does."""

import math

import pytest
import torch
import transformers
from torch import Tensor

from fledge.core.batch import Batch
from fledge.core.model import SIZES, ModelConfig, Transformer
from fledge.core.objectives import weighted_nll

V = 300


def batch_of(tokens: Tensor, targets: Tensor | None = None, weight: Tensor | None = None, **columns) -> Batch:
    targets = tokens.roll(-1, 1) if targets is None else targets
    weight = torch.ones(tokens.shape) if weight is None else weight
    return Batch(tokens=tokens, targets=targets, weight=weight, units=float(weight.sum()), **columns)


def random_tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(V, (rows, length), generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------ the same as Hugging Face

FAMILIES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {}),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {"bias": True}),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, {"qk_norm": True}),
}


def hugging_face_twin(family: str, *, tied: bool, kv_heads: int) -> tuple[torch.nn.Module, ModelConfig]:
    """A random Hugging Face model and our config of the same shape."""
    config_kind, model_kind, ours = FAMILIES[family]
    theirs = config_kind(
        vocab_size=V, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=kv_heads, head_dim=12, max_position_embeddings=64, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0}, tie_word_embeddings=tied,
        attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = model_kind(theirs).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # gains and biases start at 1 and 0: they must count too
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
    config = ModelConfig(
        vocab_size=V, width=48, ffn_width=80, layers=2, heads=4, kv_heads=kv_heads, context_tokens=64,
        norm_eps=1e-5, rope_base=500.0, tied=tied, **ours,
    )  # fmt: skip
    return model, config


def copied_weights(model: torch.nn.Module, config: ModelConfig) -> dict[str, Tensor]:
    """Hugging Face's tensors under our names: queries, keys, values and gate, up are stacked."""
    source = model.state_dict()
    found = {"embedding": source["model.embed_tokens.weight"], "norm": source["model.norm.weight"]}
    if not config.tied:
        found["unembedding"] = source["lm_head.weight"]
    for layer in range(config.layers):
        theirs, ours = f"model.layers.{layer}", f"layers.{layer}"
        found[f"{ours}.qkv"] = torch.cat([source[f"{theirs}.self_attn.{p}_proj.weight"] for p in "qkv"])
        if config.bias:
            found[f"{ours}.qkv_bias"] = torch.cat([source[f"{theirs}.self_attn.{p}_proj.bias"] for p in "qkv"])
        if config.qk_norm:
            found |= {f"{ours}.{p}_norm": source[f"{theirs}.self_attn.{p}_norm.weight"] for p in "qk"}
        found[f"{ours}.attention_out"] = source[f"{theirs}.self_attn.o_proj.weight"]
        found[f"{ours}.gate_up"] = torch.cat([source[f"{theirs}.mlp.{p}_proj.weight"] for p in ("gate", "up")])
        found[f"{ours}.down"] = source[f"{theirs}.mlp.down_proj.weight"]
        found[f"{ours}.attention_norm"] = source[f"{theirs}.input_layernorm.weight"]
        found[f"{ours}.ffn_norm"] = source[f"{theirs}.post_attention_layernorm.weight"]
    return found


@pytest.mark.parametrize(
    ("family", "tied", "kv_heads"),
    [("llama", False, 4), ("llama", True, 2), ("qwen2", False, 2), ("qwen3", True, 1), ("qwen3", False, 4)],
)
def test_logits_and_gradients_equal_hugging_face(path, family, tied, kv_heads):
    theirs, config = hugging_face_twin(family, tied=tied, kv_heads=kv_heads)
    ours = Transformer(config)
    ours.load_state_dict(copied_weights(theirs, config))  # strict: nothing left out, nothing left over
    tokens = random_tokens(3, 17)
    expected = theirs(tokens).logits
    scale = expected.abs().max().item()
    assert (ours.logits(ours.hidden(tokens)) - expected).abs().max().item() <= 1e-4 * scale

    targets = random_tokens(3, 17, seed=1)
    nll = torch.nn.functional.cross_entropy(expected.flatten(0, 1), targets.flatten(), reduction="sum")
    nll.backward()
    loss, _ = weighted_nll(ours(batch_of(tokens, targets)), batch_of(tokens, targets))
    loss.backward()
    assert loss.item() == pytest.approx(nll.item(), rel=1e-5)
    queries = theirs.model.layers[0].self_attn.q_proj.weight.grad
    for found, wanted in (
        (ours.embedding.grad, theirs.model.embed_tokens.weight.grad),
        (ours.layers[0].qkv.grad[: len(queries)], queries),
    ):
        assert (found - wanted).abs().max().item() <= 1e-4 * wanted.abs().max().item()


# ------------------------------------------------------------------------------------------- who sees which position


def test_causal_sees_nothing_of_the_future_and_bidirectional_does(path, make_model):
    tokens = random_tokens(1, 12)
    changed = tokens.clone()
    changed[0, 8] = (tokens[0, 8] + 1) % V
    for causal in (True, False):
        model = make_model(spread=0.15, causal=causal)
        with torch.no_grad():
            moved = (model.hidden(tokens) - model.hidden(changed)).abs().amax(-1)[0]  # [T]
        assert (moved[8:] > 1e-4).all()
        assert (moved[:8] == 0).all() if causal else (moved[:8] > 1e-4).all()


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both-ways"])
def test_packed_documents_score_the_same_as_alone(path, make_model, causal):
    model = make_model(spread=0.15, causal=causal)
    pieces = [random_tokens(1, n, seed=n) for n in (7, 11, 5)]
    doc = torch.cat([torch.full((1, p.shape[1]), i) for i, p in enumerate(pieces)], 1).int()
    with torch.no_grad():
        packed = model(batch_of(torch.cat(pieces, 1), torch.cat([p.roll(-1, 1) for p in pieces], 1), doc=doc)).logp
        alone = torch.cat([model(batch_of(p)).logp for p in pieces], 1)
        blind = model(batch_of(torch.cat(pieces, 1), torch.cat([p.roll(-1, 1) for p in pieces], 1))).logp
    assert torch.allclose(packed, alone, atol=2e-4, rtol=1e-4)
    assert (packed - blind).abs().max() > 0.1  # without the column they do see each other


def test_documents_may_be_numbered_in_any_integer_type(path, make_model):
    model, tokens = make_model(spread=0.15), random_tokens(2, 10)
    doc = torch.tensor([[0] * 4 + [1] * 6, [5] * 9 + [-1]])
    with torch.no_grad():
        narrow, wide = (model(batch_of(tokens, doc=doc.to(kind))).logp for kind in (torch.int32, torch.int64))
    assert torch.equal(narrow, wide)


def test_rows_longer_than_the_short_attention_agree_with_it(path, make_model, monkeypatch):
    """Flash attention beyond SHORT_TOKENS, with documents and without."""
    model, tokens = make_model(spread=0.15), random_tokens(1, 24)
    doc = torch.tensor([[0] * 10 + [1] * 14]).int()
    with torch.no_grad():
        short = [model(batch_of(tokens, doc=d)).logp for d in (None, doc)]
        monkeypatch.setattr("fledge.core.kernels.SHORT_TOKENS", 16)
        monkeypatch.setattr("fledge.core.model.SHORT_TOKENS", 16)
        model._masks.clear()
        long = [model(batch_of(tokens, doc=d)).logp for d in (None, doc)]
    for a, b in zip(short, long, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


# ------------------------------------------------------------------------------------------------ outputs and heads


def test_only_weighted_positions_are_scored_and_the_rest_is_zero(path, make_model):
    model, tokens = make_model(spread=0.15), random_tokens(3, 9)
    weight = torch.zeros(3, 9)
    weight[0, 2], weight[2, 5:] = 1.0, 0.5
    with torch.no_grad():
        full = model(batch_of(tokens, want_entropy=True))
        some = model(batch_of(tokens, weight=weight, want_entropy=True))
    for part, whole in ((some.logp, full.logp), (some.entropy, full.entropy)):
        assert torch.allclose(part, whole * (weight > 0), atol=1e-5)
    expected = torch.log_softmax(model.logits(model.hidden(tokens)), -1)
    assert torch.allclose(full.logp, expected.gather(2, tokens.roll(-1, 1)[..., None])[..., 0], atol=1e-4)
    assert torch.allclose(full.entropy, -(expected.exp() * expected).sum(-1), atol=1e-4)
    assert model(batch_of(tokens)).entropy is None


def test_value_reward_and_class_heads(path, make_model):
    tokens = random_tokens(2, 6)
    both = make_model(spread=0.15, head="tokens+value")
    output = both(batch_of(tokens))
    assert output.value.shape == (2, 6) and output.logp.abs().min() > 0
    assert torch.allclose(output.value, both.hidden(tokens) @ both.value_head[0], atol=1e-5)

    reward = make_model(spread=0.15, head="reward", tied=False)
    output = reward(batch_of(tokens))
    assert output.value.shape == (2, 6) and not output.logp.any() and reward.unembedding is None
    assert reward.value_head.shape == (1, 64)

    classes = make_model(spread=0.15, head="class", classes=5, causal=False)
    output = classes(batch_of(tokens))
    assert output.classes.shape == (2, 6, 5) and output.value is None
    assert torch.allclose(output.classes, classes.hidden(tokens) @ classes.class_head.t(), atol=1e-5)


def test_a_new_reward_head_starts_at_zero():
    model = Transformer(ModelConfig(size="tiny", vocab_size=V, head="reward")).initialise(3)
    assert not model(batch_of(random_tokens(2, 5))).value.any()


def test_bfloat16_agrees_with_float32_to_its_precision(path, make_model):
    model, tokens = make_model(spread=0.1), random_tokens(4, 16)
    with torch.no_grad():
        exact = model(batch_of(tokens)).logp
        model.compute_dtype = torch.bfloat16
        rough = model(batch_of(tokens)).logp
    assert rough.dtype == torch.float32
    error = (rough - exact).abs().max().item()
    assert 0 < error < 0.05 * exact.abs().max().item()


# ----------------------------------------------------------------------------------------------- starting, counting


@pytest.mark.parametrize("tied", [True, False])
def test_loss_at_the_start_is_that_of_a_blind_guess(path, tied):
    model = Transformer(ModelConfig(size="tiny", vocab_size=V, tied=tied)).initialise(0)
    batch = batch_of(random_tokens(8, 32), random_tokens(8, 32, seed=1))
    loss, _ = weighted_nll(model(batch), batch)
    assert loss.item() / batch.units == pytest.approx(math.log(V), abs=0.1)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    config = ModelConfig(size="tiny", vocab_size=V, tied=False, head="tokens+value", bias=True)
    first, again, other = (Transformer(config).initialise(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding"], other["embedding"])


def test_weights_start_with_the_deviations_of_gpt_2(make_model):
    """0.02, and what is added to the residual stream scaled down by the root of the number of additions."""
    model = make_model(tied=False, width=128, layers=8)
    block = model.layers[3]
    for weights in (model.embedding, model.unembedding, block.qkv, block.gate_up):
        assert weights.std().item() == pytest.approx(0.02, rel=0.05) and abs(weights.mean().item()) < 1e-3
    for weights in (block.attention_out, block.down):
        assert weights.std().item() == pytest.approx(0.02 / 4, rel=0.05)


def test_initialise_forgets_everything_a_model_had_learnt(make_model):
    """The control "SFT from scratch" starts so: gains and biases of the parent would leak into it."""
    shape = {"bias": True, "qk_norm": True, "head": "tokens+value"}
    learnt, new = make_model(spread=0.3, **shape).initialise(7), make_model(**shape).initialise(7)
    for name, tensor in new.state_dict().items():
        assert torch.equal(learnt.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"tied": False},
        {"bias": True, "kv_heads": 2},
        {"qk_norm": True, "kv_heads": 1, "ffn_width": 100, "layers": 2},
        {"head": "tokens+value"},
    ],
    ids=str,
)
def test_parameter_count_is_the_real_count_without_scalar_heads(shape):
    model = Transformer(ModelConfig(size="tiny", vocab_size=V, **shape))
    real = sum(p.numel() for name, p in model.named_parameters() if name not in ("value_head", "class_head"))
    assert model.config.parameter_count() == real


def test_every_size_can_be_built_and_they_grow():
    counts = []
    for size in SIZES:
        assert ModelConfig(size=size).problems() == []
        counts.append(ModelConfig(size=size).parameter_count(2048))
    assert counts == sorted(counts)
    assert 0.5e6 < ModelConfig(size="pocket").parameter_count(2048) < 2e6
    assert 110e6 < ModelConfig(size="base").parameter_count(50_000) < 140e6


# --------------------------------------------------------------------------------------------------------- problems


def test_problems_name_every_broken_rule_at_once():
    found = "\n".join(ModelConfig(width=100, heads=3, kv_heads=2, context_tokens=0, classes=-1).problems())
    for part in ("context_tokens = 0", "classes = -1", "heads = 3", "width = 100", "kv_heads = 2"):
        assert part in found
    assert "odd" in ModelConfig(width=12, heads=4).problems()[0]
    assert "one of tiny, pocket" in ModelConfig(size="huge").problems()[0]


@pytest.mark.parametrize("field", ["layers", "width", "heads", "kv_heads", "ffn_width", "vocab_size", "context_tokens"])
def test_zero_is_an_error_not_the_default(field):
    assert [field in line for line in ModelConfig(**{field: 0}).problems()] == [True]


@pytest.mark.parametrize(("field", "value"), [("rope_base", 0.0), ("rope_base", -1.0), ("norm_eps", -1e-6)])
def test_numbers_that_would_train_on_nan_are_refused(field, value):
    assert [field in line for line in ModelConfig(**{field: value}).problems()] == [True]


def test_a_shape_that_cannot_work_is_not_built():
    with pytest.raises(ValueError, match="does not divide"):
        Transformer(ModelConfig(size="tiny", vocab_size=V, heads=3))
    with pytest.raises(ValueError, match="vocab_size is not set"):
        Transformer(ModelConfig(size="tiny"))
