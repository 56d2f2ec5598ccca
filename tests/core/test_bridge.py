"""All stages are one idea: the gradients of different methods meet where theory says, through the real model and loop."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from fledge.core.batch import Batch
from fledge.core.model import Output, Transformer
from fledge.core.objectives import dpo, kto, reward_pairs, weighted_nll
from fledge.core.train import _accumulate

V, ROWS, LENGTH = 300, 8, 12
EVERYTHING = 10**9  # micro_tokens: the whole batch at once


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_batch(**columns) -> Batch:
    tokens = torch.randint(V, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(1))
    weight = (numbers(ROWS, LENGTH, seed=2) > -0.3).float()
    weight[:, : LENGTH // 3] = 0.0  # a prompt
    doc = (torch.arange(LENGTH) // 7).int().expand(ROWS, -1)
    return Batch(
        **{"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weight": weight, "doc": doc, "units": 24.0, **columns}
    )


@pytest.fixture
def model(make_model) -> Transformer:
    return make_model(spread=0.1, kv_heads=2, qk_norm=True, head="tokens+value")


def gradient_of(model, objective, batch: Batch, micro_tokens: int = EVERYTHING) -> tuple[Tensor, dict[str, float]]:
    """The loop's gradient, all parameters in one row, and its figures."""
    model.zero_grad()
    figures = _accumulate(model, objective, batch, batch.units, micro_tokens)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), figures


def assert_same(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    assert b.norm() > 1e-3, "a gradient of zero agrees with anything"
    assert ((a - b).norm() / b.norm()).item() <= tolerance


def scored(model, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model(batch).logp


# ---------------------------------------------------------------------------------------- methods meet


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_dpo_at_its_reference_is_weighted_nll_with_credit_half_beta(path, model, beta):
    batch = make_batch(units=ROWS / 2, rows_per_unit=2)
    pairs = dataclasses.replace(batch, ref_logp=scored(model, batch))
    credit = torch.full((ROWS, LENGTH), beta / 2)
    credit[1::2] *= -1
    found, figures = gradient_of(model, dpo(beta=beta), pairs)
    expected, _ = gradient_of(model, weighted_nll, dataclasses.replace(batch, advantage=credit))
    assert_same(found, expected)
    assert figures["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_dpo_away_from_its_reference_is_weighted_nll_with_a_bounded_credit(path, model):
    """Off the reference the credit is beta * sigmoid(-gap), pair by pair (Rafailov et al. 2023, section 4)."""
    batch, beta = make_batch(units=ROWS / 2, rows_per_unit=2), 0.5
    logp = scored(model, batch)
    pairs = dataclasses.replace(batch, ref_logp=logp + 0.4 * numbers(ROWS, LENGTH, seed=9))
    shift = ((logp - pairs.ref_logp) * batch.weight).sum(1)
    credit = beta * torch.sigmoid(-beta * (shift[0::2] - shift[1::2]))  # [P]
    credit = torch.stack([credit, -credit], 1).flatten()[:, None].expand(-1, LENGTH)
    found, _ = gradient_of(model, dpo(beta=beta), pairs)
    expected, _ = gradient_of(model, weighted_nll, dataclasses.replace(batch, advantage=credit.contiguous()))
    assert_same(found, expected)


def test_kto_at_its_reference_is_weighted_nll_with_credit_a_quarter_of_beta(path, model):
    """r = z0 = 0, where the sigmoid has slope 1/4: +beta/4 of its weight on a liked answer, -beta/4 on a disliked one."""
    batch, beta = make_batch(units=float(ROWS)), 0.5
    liked = torch.arange(ROWS) % 3 == 0
    votes = dataclasses.replace(batch, ref_logp=scored(model, batch), liked=liked, kto_kl=torch.zeros(ROWS))
    credit = torch.where(liked, 1.5 * beta / 4, -0.5 * beta / 4)[:, None].expand(-1, LENGTH).contiguous()
    found, figures = gradient_of(model, kto(beta=beta, desirable_weight=1.5, undesirable_weight=0.5), votes)
    expected, _ = gradient_of(model, weighted_nll, dataclasses.replace(batch, advantage=credit))
    assert_same(found, expected)
    assert figures["loss"] == pytest.approx((3 * 1.5 + 5 * 0.5) / 2 / ROWS, abs=1e-6)


def clipped_surrogate(output: Output, batch: Batch, epsilon: float = 0.2) -> tuple[Tensor, dict[str, Tensor]]:
    """Schulman et al. 2017, eq. 7, as a sum."""
    ratio = (output.logp - batch.old_logp).exp()
    gain = torch.minimum(ratio * batch.advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * batch.advantage)
    return -(gain * batch.weight).sum(), {}


def test_the_clipped_surrogate_at_the_sampling_policy_is_weighted_nll(path, model):
    batch = make_batch(advantage=numbers(ROWS, LENGTH, seed=3))
    found, _ = gradient_of(model, clipped_surrogate, dataclasses.replace(batch, old_logp=scored(model, batch)))
    expected, _ = gradient_of(model, weighted_nll, batch)
    assert_same(found, expected)


def test_the_clipped_surrogate_stops_where_the_policy_has_moved_enough(model):
    """The bridge holds at the sampling policy only: once every token is clipped there is no gradient left."""
    batch = make_batch(advantage=torch.ones(ROWS, LENGTH))
    moved = dataclasses.replace(batch, old_logp=scored(model, batch) - 0.5)  # ratio e^0.5 > 1.2
    assert not gradient_of(model, clipped_surrogate, moved)[0].any()


def test_sft_is_pretraining_with_another_weight_and_reinforce_imitation_with_credit_one(path, model):
    batch = make_batch()
    imitate, _ = gradient_of(model, weighted_nll, batch)
    credit_one, _ = gradient_of(model, weighted_nll, dataclasses.replace(batch, advantage=torch.ones(ROWS, LENGTH)))
    assert torch.equal(imitate, credit_one)
    everything, _ = gradient_of(model, weighted_nll, dataclasses.replace(batch, weight=torch.ones(ROWS, LENGTH)))
    answers = dataclasses.replace(batch, weight=torch.ones(ROWS, LENGTH), advantage=batch.weight)
    as_credit, _ = gradient_of(model, weighted_nll, answers)
    assert_same(as_credit, imitate)
    assert (everything - imitate).norm() > 0.1 * imitate.norm()


# ----------------------------------------------------------------------------------- any division, one gradient


def cases() -> dict:
    reference = -numbers(ROWS, LENGTH, seed=4).abs()
    end = torch.zeros(ROWS, LENGTH)
    end[torch.arange(ROWS), torch.arange(ROWS) + 2] = 1.0
    return {
        "pretrain": (weighted_nll, make_batch(weight=torch.ones(ROWS, LENGTH), units=float(ROWS * LENGTH))),
        "sft": (weighted_nll, make_batch()),
        "reinforce": (weighted_nll, make_batch(advantage=numbers(ROWS, LENGTH, seed=3))),
        "dpo": (
            dpo(beta=0.4, label_smoothing=0.1, nll_weight=0.2),
            make_batch(ref_logp=reference, units=ROWS / 2, rows_per_unit=2),
        ),
        "reward": (
            reward_pairs,
            make_batch(weight=end, units=ROWS / 2, rows_per_unit=2, margin=torch.rand(ROWS // 2).repeat_interleave(2)),
        ),
        "ipo with ties": (
            dpo(loss="ipo", beta=0.4),
            make_batch(
                ref_logp=reference,
                units=ROWS / 2,
                rows_per_unit=2,
                win=torch.tensor([1.0, 0.5, 0.5, 1.0]).repeat_interleave(2),
            ),
        ),
        "kto": (
            kto(beta=0.4, undesirable_weight=1.5),
            make_batch(
                ref_logp=reference, units=float(ROWS), liked=torch.arange(ROWS) % 3 > 0, kto_kl=torch.full((ROWS,), 0.3)
            ),
        ),
    }


@pytest.mark.parametrize("micro_tokens", [1, 2 * LENGTH, 3 * LENGTH + 5, ROWS * LENGTH - 1, ROWS * LENGTH])
@pytest.mark.parametrize("name", list(cases()))
def test_any_micro_batch_size_gives_the_same_gradient_and_figures(make_model, name, micro_tokens):
    model = make_model(spread=0.1, head="tokens+value")
    objective, batch = cases()[name]
    whole, figures = gradient_of(model, objective, batch)
    split, split_figures = gradient_of(model, objective, batch, micro_tokens)
    assert_same(split, whole)
    assert split_figures == pytest.approx(figures, rel=1e-5)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", list(cases()))
def test_any_number_of_ranks_gives_the_same_gradient(make_model, name, world):
    """What the all-reduce adds up: each rank's rows divided by the units of all ranks."""
    model = make_model(spread=0.1, head="tokens+value")
    objective, batch = cases()[name]
    whole, _ = gradient_of(model, objective, batch)
    shards = [batch.shard(rank, world) for rank in range(world)]
    units = sum(shard.units for shard in shards)
    model.zero_grad()
    for shard in shards:
        _accumulate(model, objective, shard, units, 2 * LENGTH)
    assert_same(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), whole)


def test_a_token_is_worth_the_same_in_a_full_row_and_in_a_short_one(model):
    """Dividing micro-batch by micro-batch would favour short rows (the gradient-accumulation bug of 2024)."""
    weight = torch.zeros(ROWS, LENGTH)
    weight[0], weight[1:, -1] = 1.0, 1.0
    batch = make_batch(weight=weight, units=float(weight.sum()), doc=None)
    whole, _ = gradient_of(model, weighted_nll, batch)
    parts = [gradient_of(model, weighted_nll, batch.rows(row, row + 1))[0] for row in range(ROWS)]
    assert_same(sum(parts), whole)
    naive = sum(
        gradient_of(model, weighted_nll, dataclasses.replace(part, units=float(part.weight.sum())))[0]
        for part in (batch.rows(row, row + 1) for row in range(ROWS))
    )
    assert (naive / ROWS - whole).norm() > 0.1 * whole.norm()


def test_generating_does_not_spoil_training(path, make_model):
    """Rollouts come before the gradient in reinforcement learning: tables made while sampling must serve training."""
    from fledge.generate.engine import Engine
    from fledge.generate.sampling import Sampling

    sampled, fresh = make_model(spread=0.1), make_model(spread=0.1)
    Engine(sampled, stop_ids=[0]).generate([[1, 2, 3], [4] * LENGTH], Sampling(max_tokens=5))
    for batch in (make_batch(), make_batch(doc=None)):
        after, _ = gradient_of(sampled, weighted_nll, batch)
        assert torch.equal(after, gradient_of(fresh, weighted_nll, batch)[0])
