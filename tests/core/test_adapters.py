"""Adapters on the model: what they compute, what they leave alone, merging, decoding, packed documents."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fledge.core.adapters import MERGEABLE, AdapterConfig
from fledge.core.adapting import (
    Reference,
    attach,
    can_merge,
    detach,
    fold,
    load_trained,
    merge,
    trained_tensors,
    unmerge,
    without_adapter,
)
from fledge.core.batch import Batch
from fledge.core.model import Transformer
from fledge.core.optim import Optimizer
from fledge.generate.engine import Engine
from fledge.generate.live import Live
from fledge.generate.sampling import Sampling

KINDS = ("lora", "dora", "ia3", "houlsby", "bitfit", "prefix", "prompt")
SHAPES = {
    "llama": {"kv_heads": 2},
    "qwen": {"kv_heads": 2, "bias": True, "qk_norm": True, "tied": False},
    "windowed": {"window": 6, "norms": "post", "no_rope_layers": (1,)},
    "gemma": {
        "norms": "sandwich", "embedding_scale": True, "gains_from_one": True, "activation": "gelu_tanh",
        "window": 5, "window_layers": (0,), "local_rope_base": 100.0,
    },
}  # fmt: skip
TOKENS = torch.randint(300, (3, 17), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def made(make_model):
    def build(shape: str = "llama", **over) -> Transformer:
        return make_model(spread=0.2, layers=2, width=48, ffn_width=80, **SHAPES[shape], **over)

    return build


def shaken(model: Transformer, by: float = 0.1) -> Transformer:
    """Every trained number moved, as training does."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.empty_like(p).normal_(0.0, by, generator=generator))
    return model


def logits(model: Transformer, tokens: Tensor = TOKENS) -> Tensor:
    with torch.no_grad():
        return model.logits(model.hidden(tokens))


def close(a: Tensor, b: Tensor, within: float = 1e-5) -> bool:
    return bool((a - b).abs().max() <= within * b.abs().max())


# ------------------------------------------------------------------------------------------ what they compute


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_changes_nothing_but_virtual_tokens_do(made, kind):
    model = made()
    before = logits(model)
    attach(model, AdapterConfig(kind=kind, virtual_tokens=4))
    assert torch.equal(logits(model), before) == (kind not in ("prefix", "prompt"))
    assert not torch.equal(logits(shaken(model)), before)
    with without_adapter(model):
        assert torch.equal(logits(model), before)
    detach(model)
    assert torch.equal(logits(model), before) and model.adapter is None


def plain_product(kind: str, part: str, x: Tensor, weight: Tensor, module) -> Tensor:
    """What the papers write, for one part."""
    if kind in ("lora", "dora"):
        whole = weight + 2.0 * module.b[part] @ module.a[part]  # alpha / rank = 2
        if kind == "dora":
            whole = module.magnitude[part][:, None] * whole / whole.norm(dim=1, keepdim=True)
        return x @ whole.T
    if kind == "ia3":
        return (x * module.factor[part]) @ weight.T if part == "down" else (x @ weight.T) * module.factor[part]
    if kind == "bitfit":
        return x @ weight.T + module.bias[part]
    y = x @ weight.T
    return y + functional.gelu(y @ module.into.T + module.into_bias) @ module.back.T + module.back_bias


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "bitfit", "houlsby"])
def test_products_are_those_of_the_papers(made, kind):
    model = shaken(attach(made(), AdapterConfig(kind=kind, rank=3)))
    layer, sizes = model.layers[1], {"q": 48, "k": 24, "v": 24, "gate": 80, "up": 80}
    for name, parts in {"qkv": "q k v", "attention_out": "o", "gate_up": "gate up", "down": "down"}.items():
        x = torch.randn(2, 5, getattr(layer, name).shape[1], generator=torch.Generator().manual_seed(2))
        found, at = layer.linear(name, x), 0
        module = layer.adapters.get(name)
        for part in parts.split():
            rows = slice(at, at + sizes.get(part, 48))
            at = rows.stop
            weight = getattr(layer, name)[rows]
            adapted = module is not None and (kind == "houlsby" or part in module.product.rows)
            expected = plain_product(kind, part, x, weight, module) if adapted else x @ weight.T
            assert close(found[..., rows], expected), (name, part)


def test_only_the_parts_asked_for_are_adapted(made):
    model = shaken(attach(made(), AdapterConfig(targets=["v", "up"])))
    assert {n for layer in model.layers for n in layer.adapters} == {"qkv", "gate_up"}
    x = torch.randn(1, 4, 48)
    layer = model.layers[0]
    found, plain = layer.linear("qkv", x), functional.linear(x, layer.qkv)
    assert close(found[..., :72], plain[..., :72], 1e-6) and not close(found[..., 72:], plain[..., 72:])


def test_a_prompt_is_tokens_in_front_and_a_prefix_is_what_layers_keep_of_them(made):
    """A fresh prompt or prefix is that of random tokens: the same as reading those tokens first."""
    for shape in ("llama", "windowed", "gemma"):
        for kind in ("prompt", "prefix"):
            model = made(shape)
            ids = torch.randint(300, (1, 4), generator=torch.Generator().manual_seed(7))
            expected = logits(model, torch.cat((ids.expand(3, -1), TOKENS), 1))[:, 4:]
            attach(model, AdapterConfig(kind=kind, virtual_tokens=4), seed=7)
            assert close(logits(model), expected), (shape, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_each_see_the_adapter_as_if_alone(path, made, kind):
    model = shaken(attach(made(), AdapterConfig(kind=kind, virtual_tokens=3)))
    doc = torch.tensor([[0] * 6 + [1] * 8 + [-1] * 3], dtype=torch.int32)
    with torch.no_grad():
        packed = model.hidden(TOKENS[:1], doc)
        alone = torch.cat((model.hidden(TOKENS[:1, :6]), model.hidden(TOKENS[:1, 6:14])), 1)
    assert close(packed[:, :14], alone)


# ---------------------------------------------------------------------------------------- what is trained and kept


def batch() -> Batch:
    weight = torch.ones(TOKENS.shape)
    return Batch(tokens=TOKENS, targets=TOKENS.roll(-1, 1), weight=weight, units=float(weight.sum()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_moves_the_adapter_and_nothing_else(made, kind, optimizer):
    model = attach(made(), AdapterConfig(kind=kind, virtual_tokens=3, new_tokens=[5, 9]))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    loop = Optimizer(model, kind=optimizer, lr=1e-2)
    for _ in range(2):  # a low-rank product's A moves once B has left 0
        (-model(batch()).logp.sum() / 51).backward()
        loop.step(1e-2)
        loop.zero_grad()
    moved = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == {n for n in before if n.startswith("adapter.")} == trained_tensors(model).keys()
    assert loop.tensors().keys() >= {f"{n}/exp_avg" for n in moved if optimizer == "adamw"}


def test_what_a_checkpoint_holds_goes_back_and_misfits_are_named(made):
    model = shaken(attach(made(), AdapterConfig()))
    held, other = trained_tensors(model), attach(made(), AdapterConfig(), seed=3)
    load_trained(other, held)
    assert torch.equal(logits(other), logits(model))
    name = min(held)
    with pytest.raises(RuntimeError, match="Missing key"):
        load_trained(other, {n: t for n, t in held.items() if n != name})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        load_trained(other, held | {"adapter.more": held[name]})
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_trained(other, held | {name: held[name][:1]})


def test_new_rows_are_read_and_written_with(made):
    for shape in ("llama", "qwen"):  # tied and not
        model = made(shape)
        before = logits(model)
        attach(model, AdapterConfig(targets=["q"], new_tokens=[5, 9]))
        assert torch.equal(logits(model), before)
        shaken(model)
        tied = model.unembedding is None
        names = {n for n in trained_tensors(model) if n.endswith("_rows")}
        assert names == {"adapter.embedding_rows"} | (set() if tied else {"adapter.unembedding_rows"})
        twin = made(shape)
        with torch.no_grad():
            twin.embedding[[5, 9]] = model.adapter.embedding_rows
            if not tied:
                twin.unembedding[[5, 9]] = model.adapter.unembedding_rows
        attach(twin, AdapterConfig(targets=["q"]))
        load_trained(twin, {n: t for n, t in trained_tensors(model).items() if not n.endswith("_rows")})
        tokens = torch.tensor([[5, 8, 9, 5]])
        assert close(logits(model, tokens), logits(twin, tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_references_are_the_model_as_it_began(made, kind):
    model = made()
    base = copy.deepcopy(model)
    attach(model, AdapterConfig(kind=kind, virtual_tokens=3))
    off = Reference(model)
    shaken(model)
    began, expected = Reference(model, began_with=True), model(batch()).logp.detach()
    shaken(model)
    now = model(batch()).logp.detach()
    assert torch.equal(off(batch()).logp, base(batch()).logp) and torch.equal(began(batch()).logp, expected)
    assert torch.equal(model(batch()).logp, now) and not torch.equal(now, expected)
    assert not off(batch()).logp.requires_grad and not list(off.parameters())


# ------------------------------------------------------------------------------------------------------ merging


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("kind", MERGEABLE)
def test_merged_weights_do_the_same_and_unmerging_restores_every_bit(made, shape, kind):
    model = made(shape)
    base, config = {n: t.clone() for n, t in model.state_dict().items()}, model.config
    shaken(attach(model, AdapterConfig(kind=kind, new_tokens=[3])))
    expected = logits(model)
    merge(model)
    assert close(logits(model), expected)
    with pytest.raises(ValueError, match="merged already"):
        merge(model)
    unmerge(model)
    assert torch.equal(logits(model), expected) and model.config == config
    merge(model)
    assert detach(model).config.kind == kind
    assert model.state_dict().keys() == base.keys()
    assert all(torch.equal(t, base[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("kind", MERGEABLE)
def test_a_folded_model_is_a_plain_one_of_its_config(made, kind):
    model = shaken(attach(made(), AdapterConfig(kind=kind, targets=["v", "down"] if kind == "bitfit" else [])))
    expected = logits(model)
    fold(model)
    assert model.adapter is None and all(p.requires_grad for p in model.parameters())
    again = Transformer(model.config)
    again.load_state_dict(model.state_dict())
    assert close(logits(again), expected)


@pytest.mark.parametrize("kind", ["houlsby", "prefix", "prompt"])
def test_kinds_that_are_no_change_of_weights_are_not_merged(made, kind):
    model = attach(made(), AdapterConfig(kind=kind))
    assert not can_merge(model)
    with pytest.raises(ValueError, match=f"a {kind} adapter is no change of weights"):
        merge(model)


# ----------------------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("shape", ["llama", "qwen", "windowed", "gemma"])
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_is_the_models_own_choice(made, shape, kind):
    model = shaken(attach(made(shape), AdapterConfig(kind=kind, virtual_tokens=3, new_tokens=[5])), by=0.05)
    prompts = [TOKENS[0, :5].tolist(), TOKENS[1, :11].tolist(), TOKENS[2, :2].tolist()]
    for native in (None, False):
        engine = Engine(model, stop_ids=[299], dtype=torch.float32, native=native)
        for prompt, done in zip(
            prompts, engine.generate(prompts, Sampling(temperature=0.0, max_tokens=12)), strict=True
        ):
            whole = torch.log_softmax(logits(model, torch.tensor([prompt + done.tokens]))[0, len(prompt) - 1 : -1], -1)
            written = whole[torch.arange(len(done.tokens)), done.tokens]
            assert (whole.max(1).values - written).max() <= 1e-4
            assert (written - torch.tensor(done.logp)).abs().max() <= 1e-4
    assert Engine(model, [299], dtype=torch.float32).native == (shape in ("llama", "qwen") and kind in MERGEABLE[:3])


def test_decoding_sees_every_step_of_training(made):
    model = attach(made(), AdapterConfig())
    engine, sampling = Engine(model, stop_ids=[299], dtype=torch.float32), Sampling(temperature=0.0, max_tokens=8)
    before = engine.generate([[3, 4]], sampling)[0]
    shaken(model)
    after = engine.generate([[3, 4]], sampling)[0]
    assert before.logp != after.logp
    assert after.logp == Engine(model, [299], dtype=torch.float32).generate([[3, 4]], sampling)[0].logp


@pytest.mark.parametrize("kind", ["lora", "houlsby", "prefix", "prompt"])
def test_answers_that_join_later_are_the_same(made, kind):
    model = shaken(attach(made(), AdapterConfig(kind=kind, virtual_tokens=3)))
    engine, sampling = Engine(model, [299], dtype=torch.float32), Sampling(temperature=0.0, max_tokens=10)
    prompts = [TOKENS[0, :4].tolist(), TOKENS[1, :9].tolist()]
    alone = [engine.generate([p], sampling)[0].tokens for p in prompts]
    live, found = Live(engine, 2), {0: [], 1: []}
    live.add(0, prompts[0], sampling)
    for turn in range(30):
        if turn == 3:
            live.add(1, prompts[1], sampling)
        for written in live.go(1):
            found[written.key] += written.tokens
    assert [found[0], found[1]] == alone


# ------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "adapter.rank = 0: must be at least 1"),
        ({"alpha": 0.0}, "adapter.alpha = 0.0: must be above 0"),
        ({"targets": ["query"]}, r"adapter.targets = \['query'\]: must be of q, k"),
        ({"targets": ["q", "q"]}, "name each once"),
        ({"kind": "prefix", "targets": ["q"]}, "prefix adapts no products"),
        ({"kind": "houlsby", "targets": ["q", "o"]}, "houlsby sits after o and down only"),
        ({"new_tokens": [-1]}, "must be ids of the vocabulary"),
        ({"new_tokens": [300]}, "the embedding has rows 0 to 299"),
    ],
)
def test_settings_that_cannot_be_are_refused(made, settings, message):
    with pytest.raises(ValueError, match=message):
        attach(made(), AdapterConfig(**settings))


def test_what_is_out_of_turn_is_refused(made):
    model = made()
    for wrong in (detach, merge, unmerge):
        with pytest.raises(ValueError, match="has no adapter"):
            wrong(model)
    attach(model, AdapterConfig())
    with pytest.raises(ValueError, match="has a lora adapter already"):
        attach(model, AdapterConfig())
    with pytest.raises(ValueError, match="not merged"):
        unmerge(model)
    with pytest.raises(ValueError, match="this is a Linear"):
        attach(torch.nn.Linear(2, 2), AdapterConfig())
