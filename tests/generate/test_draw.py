"""Drawing: compiled and in torch, tokens come as often as they should, from numbers that are even and independent."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fledge.core import native
from fledge.generate.native_decoder import draw_rows
from fledge.generate.sampling import Sampling, draw, probabilities, uniforms

compiled = pytest.mark.skipif(
    native.library("decode") is None, reason="no C++ compiler here: only the torch path exists"
)
DRAWS = [pytest.param(draw_rows, id="native", marks=compiled), pytest.param(draw, id="torch")]


CHOICES = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.6),
    Sampling(temperature=1.7, top_k=5),
    Sampling(temperature=0.9, top_p=0.7),
    Sampling(temperature=1.3, top_k=20, top_p=0.8),
    Sampling(temperature=2.0, top_k=10_000, top_p=1.0),
    Sampling(temperature=1.0, top_k=1),
    Sampling(temperature=1.0, top_p=1e-6),
]


@pytest.mark.parametrize("drawing", DRAWS)
@pytest.mark.parametrize("sampling", CHOICES, ids=str)
def test_tokens_come_as_often_as_they_should(sampling, drawing):
    """20,000 draws from one row of 61 tokens: chi-square under its 0.9999 quantile, and the logp is that of the distribution."""
    count, vocab = 20_000, 61
    logits = 2.0 * torch.randn(1, vocab, generator=torch.Generator().manual_seed(2))
    wanted = probabilities(logits, sampling)[0].double()
    token, logp = drawing(logits.repeat(count, 1), sampling, uniforms(7, range(count), 1)[:, 0])
    assert torch.allclose(logp.double(), wanted[token].log(), atol=1e-5)
    seen = torch.bincount(token, minlength=vocab).double()
    assert not seen[wanted == 0].any()
    expected = wanted[wanted > 0] * count
    seen = seen[wanted > 0]
    rare = expected < 5  # too few for the chi-square distribution: counted together
    if rare.any():
        expected = torch.cat((expected[~rare], expected[rare].sum()[None]))
        seen = torch.cat((seen[~rare], seen[rare].sum()[None]))
    freedom = len(expected) - 1
    assert (seen - expected).square().div(expected).sum() <= freedom + 3.72 * math.sqrt(2 * freedom) + 10


@pytest.mark.parametrize("drawing", DRAWS)
@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24, 1.0], ids=["first", "last", "beyond"])
def test_the_ends_of_the_distribution_are_tokens_that_have_probability(uniform, drawing):
    """The largest uniform takes the last such token, however the sums were rounded; the smallest takes the first."""
    logits = torch.randn(3000, 400, generator=torch.Generator().manual_seed(2))
    logits[:, :40] = logits[:, 390:] = -torch.inf
    for sampling in (Sampling(temperature=1.0), Sampling(temperature=1.0, top_k=30)):
        has = probabilities(logits, sampling) > 0
        token, logp = drawing(logits, sampling, torch.full((3000,), uniform))
        assert has.gather(1, token[:, None]).all() and logp.isfinite().all()
        first = has.int().argmax(1)
        assert torch.equal(token, first) if uniform == 0 else uniform == 1 or (token > first).all()


@pytest.mark.parametrize("drawing", DRAWS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_diverged_model_gets_tokens_of_the_vocabulary_and_no_finite_logp(temperature, drawing):
    token, logp = drawing(torch.full((5, 37), torch.nan), Sampling(temperature=temperature), torch.full((5,), 0.5))
    assert (0 <= token).all() and (token < 37).all() and not logp.isfinite().any()


@compiled
@pytest.mark.parametrize("sampling", CHOICES, ids=str)
@pytest.mark.parametrize("vocab", [3, 16, 1000, 4099])
def test_both_draw_the_same_token_from_the_same_number(sampling, vocab):
    generator = torch.Generator().manual_seed(3)
    logits = 3.0 * torch.randn(500, vocab, generator=generator)
    logits[:100, ::3] = -torch.inf
    uniform = uniforms(1, range(500), 1)[:, 0]
    (a, a_logp), (b, b_logp) = (f(logits, sampling, uniform) for f in (draw_rows, draw))
    assert (a == b).float().mean() > 0.995  # a number on the border of two tokens may fall either way
    assert torch.allclose(a_logp[a == b], b_logp[a == b], atol=2e-4)


@compiled
def test_ties_with_the_last_token_kept_are_handled_alike():
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]]).repeat(400, 1)
    uniform = uniforms(1, range(400), 1)[:, 0]
    token, _ = draw_rows(logits, Sampling(temperature=1.0, top_k=2), uniform)
    assert set(token.tolist()) == {1, 2, 3}  # as in probabilities(): equals of the k-th stay
    token, logp = draw_rows(logits, Sampling(temperature=1.0, top_p=0.5), uniform)
    assert set(token.tolist()) == {1, 2} and logp.exp().tolist() == pytest.approx([0.5] * 400)


@compiled
def test_the_greedy_token_is_the_first_of_equals_with_its_plain_logp():
    logits = torch.randn(30, 200, generator=torch.Generator().manual_seed(1))
    logits[:, 77] = logits[:, 150] = 9.0
    token, logp = draw_rows(logits, Sampling(temperature=0.0), torch.zeros(30))
    assert token.tolist() == [77] * 30
    assert torch.allclose(logp, torch.log_softmax(logits, -1)[:, 77], atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- numbers


def test_streams_are_even_and_independent():
    """Chi-square of 256 bins over steps and over streams; neighbours in either direction do not go together."""
    table = uniforms(11, range(400), 400)
    assert table.dtype == torch.float32 and 0 <= table.min() and table.max() < 1
    for view in (table, uniforms(11, [0], 160_000), uniforms(11, range(160_000), 1)):
        counts = torch.bincount((view.flatten() * 256).long(), minlength=256).double()
        expected = view.numel() / 256
        assert (counts - expected).square().sum() / expected < 255 + 4.5 * math.sqrt(2 * 255)

    def together(a: Tensor, b: Tensor) -> float:
        return float(np.corrcoef(a.flatten(), b.flatten())[0, 1]) * math.sqrt(a.numel())

    assert abs(together(table[1:], table[:-1])) < 4.5 and abs(together(table[:, 1:], table[:, :-1])) < 4.5
    assert abs(together(table, uniforms(12, range(400), 400))) < 4.5  # the next seed
    assert abs(together(table[1:, :-1], table[:-1, 1:])) < 4.5
    assert not torch.equal(uniforms(1, [2], 5), uniforms(2, [1], 5))
    assert len(table.unique()) > 0.99 * table.numel() - 2 * table.numel() ** 2 / 2**25


def test_streams_stay_what_they_are():
    """Recorded: the same seed says the same on every machine and in every version."""
    expected = [[0.6049, 0.6641], [0.5254, 0.1279]]
    assert uniforms(5, [0, 3], 2).tolist() == [pytest.approx(row, abs=1e-4) for row in expected]
    assert torch.equal(uniforms(5, [2**64 - 1, 0], 3)[0], uniforms(5, [-1], 3)[0])
