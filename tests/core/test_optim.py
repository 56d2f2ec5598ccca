"""The schedule's shape, and that an optimiser continues from its saved state as if it had never stopped."""

import copy
import math

import pytest
import torch
from safetensors.torch import load, save

from fledge.core.model import ModelConfig, Transformer
from fledge.core.optim import Optimizer, schedule_factor

KINDS = ["adamw", "muon"]


def small() -> Transformer:
    config = ModelConfig(size="tiny", layers=1, width=32, heads=2, vocab_size=40, bias=True, tied=False)
    return Transformer(config).initialise(0)


def step(model: Transformer, optimizer: Optimizer, number: int, lr: float = 1e-2) -> None:
    """One step with gradients that depend on the step's number and on the weights."""
    generator = torch.Generator().manual_seed(number)
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.grad = noise + 0.3 * parameter.detach()
    optimizer.step(lr)
    optimizer.zero_grad()
    assert all(p.grad is None for p in trained)


# --------------------------------------------------------------------------------------------------------- schedule


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_warms_up_in_a_line_then_never_rises(kind):
    rise = [schedule_factor(p / 1000, kind, 0.1, 0.2) for p in range(1, 100)]
    assert rise == pytest.approx([p / 100 for p in range(1, 100)])
    assert schedule_factor(0.1, kind, 0.1, 0.2) == pytest.approx(1.0)
    fall = [schedule_factor(p / 1000, kind, 0.1, 0.2) for p in range(100, 1001)]
    assert fall == sorted(fall, reverse=True)
    assert fall[-1] == pytest.approx(1.0 if kind == "constant" else 0.2)
    assert max(abs(a - b) for a, b in zip(rise + fall, (rise + fall)[1:], strict=False)) < 0.0101  # no jump


def test_the_decays_have_their_known_values():
    for kind, quarter, half in (("cosine", 0.5 + 0.5 * math.cos(math.pi / 4), 0.5), ("linear", 0.75, 0.5)):
        assert schedule_factor(0.25, kind, 0.0, 0.0) == pytest.approx(quarter)
        assert schedule_factor(0.5, kind, 0.0, 0.0) == pytest.approx(half)
        assert schedule_factor(0.5, kind, 0.0, 0.5) == pytest.approx(0.75)
        assert schedule_factor(1.0, kind, 0.0, 0.0) == pytest.approx(0.0)


def test_no_warm_up_starts_at_the_peak_and_a_rate_is_never_zero_in_it():
    assert schedule_factor(0.0, "cosine", 0.0, 0.1) == 1.0
    assert schedule_factor(0.0, "cosine", 0.5, 0.1) > 0


# -------------------------------------------------------------------------------------------------------- optimiser


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_equals_uninterrupted_bit_for_bit(kind):
    model = small()
    optimizer = Optimizer(model, kind=kind)
    for number in range(4):
        step(model, optimizer, number)
    stopped = copy.deepcopy(model)
    state = load(save({k: v.contiguous() for k, v in optimizer.tensors().items()}))  # through the checkpoint's format
    for number in range(4, 9):
        step(model, optimizer, number, lr=5e-3)

    resumed = Optimizer(stopped, kind=kind)
    resumed.load_tensors(state)
    for number in range(4, 9):
        step(stopped, resumed, number, lr=5e-3)
    for name, value in model.state_dict().items():
        assert torch.equal(stopped.state_dict()[name], value), name
    assert optimizer.tensors().keys() == resumed.tensors().keys()
    assert all(torch.equal(resumed.tensors()[k], v) for k, v in optimizer.tensors().items())


@pytest.mark.parametrize("kind", KINDS)
def test_without_its_state_the_same_steps_end_elsewhere(kind):
    """Otherwise the test above would pass with an optimiser that keeps nothing."""
    model = small()
    optimizer = Optimizer(model, kind=kind)
    step(model, optimizer, 0)
    forgetful = copy.deepcopy(model)
    step(model, optimizer, 1)
    step(forgetful, Optimizer(forgetful, kind=kind), 1)
    assert not torch.equal(model.layers[0].qkv, forgetful.layers[0].qkv)
    assert not torch.equal(model.embedding, forgetful.embedding)


def test_state_is_named_after_the_parameters():
    model = small()
    names = {n for n, _ in model.named_parameters()}
    for kind in KINDS:
        optimizer = Optimizer(model, kind=kind)
        assert optimizer.tensors() == {}
        step(model, optimizer, 0)
        found = optimizer.tensors()
        assert {key.rpartition("/")[0] for key in found} == names
    assert found["layers.0.qkv/momentum_buffer"].shape == model.layers[0].qkv.shape
    assert "embedding/exp_avg" in found and "layers.0.qkv/exp_avg" not in found
    for other in ("embedding", "unembedding", "norm", "layers.0.qkv_bias"):
        assert f"{other}/momentum_buffer" not in found  # Muon is for the blocks' matrices


def test_state_of_another_model_is_refused():
    with pytest.raises(ValueError, match=r"'layers.7.qkv/exp_avg' belongs to no parameter"):
        Optimizer(small()).load_tensors({"layers.7.qkv/exp_avg": torch.zeros(1)})


@pytest.mark.parametrize("kind", KINDS)
def test_only_matrices_decay(kind):
    model = small()
    before = copy.deepcopy(model.state_dict())
    optimizer = Optimizer(model, kind=kind, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.1)
    for name, value in model.named_parameters():
        expected = before[name] * (1 - 0.1 * 0.5) if value.ndim == 2 else before[name]
        assert torch.allclose(value, expected, rtol=1e-6), name


@pytest.mark.parametrize("kind", KINDS)
def test_one_learning_rate_moves_matrices_alike_under_both(kind):
    """Muon's step is scaled to AdamW's size, about 0.2 to 1 of lr per weight in the first step."""
    model = small()
    before = model.layers[0].gate_up.detach().clone()
    step(model, Optimizer(model, kind=kind, weight_decay=0.0), 0, lr=1e-2)
    moved = (model.layers[0].gate_up - before).square().mean().sqrt().item()
    assert 0.15e-2 < moved < 1.05e-2


def test_the_learning_rate_of_the_step_counts():
    moved = []
    for lr in (0.0, 1e-3, 2e-3):
        model = small()
        before = model.embedding.detach().clone()
        step(model, Optimizer(model, lr=1.0), 0, lr=lr)
        moved.append((model.embedding - before).norm().item())
    assert moved[0] == 0.0 and moved[2] == pytest.approx(2 * moved[1], rel=1e-2)


def test_frozen_parameters_are_left_alone():
    model = small()
    model.embedding.requires_grad_(False)
    before = model.embedding.clone()
    optimizer = Optimizer(model)
    step(model, optimizer, 0)
    assert torch.equal(model.embedding, before) and "embedding/exp_avg" not in optimizer.tensors()
