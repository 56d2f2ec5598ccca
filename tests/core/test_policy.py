"""The policy-gradient objective and the estimators behind its columns, against their formulas."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from fledge.core.batch import Batch
from fledge.core.model import ModelConfig, Output, Transformer
from fledge.core.objectives import weighted_nll
from fledge.core.policy import baselined, gae, kl_estimate, policy_gradient, returns_to_go, whiten
from fledge.generate.engine import Engine
from fledge.generate.sampling import Sampling


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def batch_of(logp: Tensor, advantage: Tensor, **columns) -> Batch:
    ids = torch.zeros(logp.shape, dtype=torch.long)
    return Batch(tokens=ids, targets=ids, weight=torch.ones(logp.shape), units=1.0, advantage=advantage, **columns)


def loss_of(objective, logp: Tensor, batch: Batch, value: Tensor | None = None, entropy: Tensor | None = None):
    return objective(Output(logp, entropy, value), batch)


# ------------------------------------------------------------------------------------------------------- the loss


def test_on_policy_the_ratio_is_1_and_the_gradient_is_that_of_weighted_nll():
    logp, advantage = draw(3, 5).requires_grad_(), draw(3, 5, seed=1)
    for clip in (None, (0.2, 0.2), (0.2, 0.3, 3.0)):
        for old in (None, logp.detach()):
            batch = batch_of(logp, advantage, old_logp=old)
            loss, _ = loss_of(policy_gradient(clip=clip), logp, batch)
            assert loss.item() == pytest.approx(-advantage.sum().item(), abs=1e-5)
            (ours,) = torch.autograd.grad(loss, logp)
            (nll,) = torch.autograd.grad(weighted_nll(Output(logp, None, None), batch)[0], logp)
            assert torch.allclose(ours, nll, atol=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "clip", "expected", "moves"),
    [
        (1.1, 1.0, (0.2, 0.2), -1.1, True),
        (1.5, 1.0, (0.2, 0.2), -1.2, False),
        (1.5, 1.0, (0.2, 0.6), -1.5, True),
        (0.5, 1.0, (0.2, 0.2), -0.5, True),  # a good answer that became unlikely is still pulled back
        (0.5, -1.0, (0.2, 0.2), 0.8, False),
        (1.5, -1.0, (0.2, 0.2), 1.5, True),
        (5.0, -1.0, (0.2, 0.2), 5.0, True),
        (5.0, -1.0, (0.2, 0.2, 3.0), 3.0, False),
        (5.0, 1.0, (0.2, 0.2, 3.0), -1.2, False),
        (5.0, 1.0, None, -5.0, True),
    ],
)
def test_clipping_follows_equation_7_of_ppo_and_the_dual_clip(ratio, advantage, clip, expected, moves):
    logp = torch.tensor([[math.log(ratio)]], requires_grad=True)
    batch = batch_of(logp, torch.tensor([[advantage]]), old_logp=torch.zeros(1, 1))
    loss, metrics = loss_of(policy_gradient(clip=clip), logp, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, logp)
    assert bool(gradient.abs() > 0) == moves
    assert metrics["ratio"].item() == pytest.approx(ratio, rel=1e-5)


def test_weights_choose_the_divisor():
    logp = draw(2, 3).requires_grad_()
    batch = batch_of(logp, torch.ones(2, 3))
    weight = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    per_row = Batch(**{f: getattr(batch, f) for f in ("tokens", "targets", "advantage")}, weight=weight / weight.sum(1, keepdim=True), units=2.0)
    loss, _ = loss_of(policy_gradient(), logp, per_row)
    (gradient,) = torch.autograd.grad(loss, logp)
    assert torch.allclose(gradient, -torch.tensor([[0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]]))


def test_value_loss_entropy_bonus_and_kl_term():
    logp, zero = torch.full((1, 2), -1.0, requires_grad=True), torch.zeros(1, 2)
    value = torch.tensor([[1.0, 3.0]], requires_grad=True)
    columns = {"returns": torch.tensor([[2.0, 2.0]]), "old_value": torch.tensor([[0.0, 2.9]])}
    loss, _ = loss_of(policy_gradient(value_weight=0.5), logp, batch_of(logp, zero, **columns), value)
    assert loss.item() == pytest.approx(0.5 * 0.5 * (1 + 1))
    loss, metrics = loss_of(policy_gradient(value_weight=0.5, value_clip=0.2), logp, batch_of(logp, zero, **columns), value)
    assert loss.item() == pytest.approx(0.5 * 0.5 * (1.8**2 + 1.0))  # the first moved 1 from 0: held at 0.2
    assert metrics["value_loss"].item() == pytest.approx(0.5 * (1.8**2 + 1.0))

    entropy = torch.tensor([[0.5, 1.5]], requires_grad=True)
    loss, _ = loss_of(policy_gradient(entropy_weight=0.1), logp, batch_of(logp, zero), entropy=entropy)
    assert loss.item() == pytest.approx(-0.1 * 2.0)
    assert torch.autograd.grad(loss, entropy)[0].tolist() == [[pytest.approx(-0.1)] * 2]

    batch = batch_of(logp, zero, ref_logp=torch.tensor([[-1.0, -2.0]]), kl_weight=0.3)
    loss, _ = loss_of(policy_gradient(), logp, batch)
    assert loss.item() == pytest.approx(0.3 * (0.0 + math.exp(-1) - 1 + 1), rel=1e-5)
    assert torch.autograd.grad(loss, logp)[0][0, 1].item() == pytest.approx(0.3 * (1 - math.exp(-1)), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "columns", "says"),
    [
        ({"value_weight": 0.1}, {}, "value head and batch.returns"),
        ({"entropy_weight": 0.1}, {}, "want_entropy"),
        ({}, {"kl_weight": 0.1}, "batch.ref_logp"),
    ],
)
def test_a_missing_column_is_named(settings, columns, says):
    logp = torch.zeros(1, 1)
    with pytest.raises(ValueError, match=says):
        loss_of(policy_gradient(**settings), logp, batch_of(logp, logp, **columns))
    with pytest.raises(ValueError, match="advantage"):
        loss_of(policy_gradient(), logp, Batch(tokens=logp.long(), targets=logp.long(), weight=logp + 1, units=1.0))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"clip": (0.2,)}, r"clip = \[0.2\]"),
        ({"clip": (1.2, 0.2)}, "0 < low < 1"),
        ({"clip": (0.2, 0.2, 1.1)}, "dual clip"),
        ({"entropy_weight": -1.0}, "entropy_weight"),
        ({"value_weight": float("nan")}, "value_weight"),
        ({"value_clip": 0.0}, "value_clip"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        policy_gradient(**settings)


# -------------------------------------------------------------------------------------------------- KL estimators


def test_kl_estimators_have_the_right_mean_sign_and_gradient():
    """Over all tokens of a small vocabulary: k1 and k3 average to the exact KL, k3 is never negative."""
    policy, reference = (torch.log_softmax(draw(1, 6, seed=s), -1)[0] for s in (1, 2))
    exact = (policy.exp() * (policy - reference)).sum().item()
    means = {k: (policy.exp() * kl_estimate(policy, reference, k)).sum().item() for k in ("k1", "k2", "k3")}
    assert means["k1"] == pytest.approx(exact, rel=1e-5) and means["k3"] == pytest.approx(exact, rel=1e-5)
    assert means["k2"] == pytest.approx((policy.exp() * (policy - reference) ** 2).sum().item() / 2, rel=1e-5)
    assert bool((kl_estimate(policy, reference, "k3") >= 0).all()) and bool((kl_estimate(policy, reference, "k1") < 0).any())
    same = kl_estimate(policy, policy, "k3")
    assert same.abs().max() == 0


# ------------------------------------------------------------------------------------------------------ advantages


def test_gae_is_return_minus_value_at_lambda_1_and_the_td_error_at_lambda_0():
    rewards = torch.tensor([[0.0, 0.0, 1.0], [0.0, 2.0, 0.0]])
    alive = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    values = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 9.0]])  # the last is padding and must not leak
    advantage, returns = gae(rewards, values, alive, lam=1.0)
    assert torch.allclose(advantage, torch.tensor([[0.9, 0.8, 0.7], [1.6, 1.5, 0.0]]))
    assert torch.allclose(returns, torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 0.0]]))
    advantage, _ = gae(rewards, values, alive, lam=0.0)
    assert torch.allclose(advantage, torch.tensor([[0.1, 0.1, 0.7], [0.1, 1.5, 0.0]]))
    advantage, _ = gae(rewards, values, alive, lam=0.5, gamma=0.9)
    delta = torch.tensor([0.9 * 0.2 - 0.1, 0.9 * 0.3 - 0.2, 1 - 0.3])
    assert advantage[0, 0].item() == pytest.approx((delta[0] + 0.45 * delta[1] + 0.45**2 * delta[2]).item())


def test_returns_to_go_sums_what_comes_after():
    assert returns_to_go(torch.tensor([[1.0, 2.0, 4.0]])).tolist() == [[7.0, 6.0, 4.0]]


def test_baselines_compare_with_what_they_say():
    scores = torch.tensor([[1.0], [0.0], [0.0], [1.0], [1.0], [1.0]])  # 2 prompts, 3 answers each
    alive = torch.ones(6, 1)
    assert torch.equal(baselined(scores, alive, "none", 3), scores)
    assert torch.allclose(baselined(scores, alive, "mean", 3), scores - 4 / 6)
    group = torch.tensor([[2 / 3], [-1 / 3], [-1 / 3], [0.0], [0.0], [0.0]])
    assert torch.allclose(baselined(scores, alive, "group", 3), group)
    std = torch.tensor([1.0, 0.0, 0.0]).std().item()
    assert torch.allclose(baselined(scores, alive, "group-std", 3), group / (std + 1e-4))
    alone = torch.tensor([[1.0], [-0.5], [-0.5], [0.0], [0.0], [0.0]])  # own score less the mean of the other two
    assert torch.allclose(baselined(scores, alive, "leave-one-out", 3), alone)


@pytest.mark.parametrize("baseline", ["group", "group-std", "leave-one-out"])
@pytest.mark.parametrize("score", [0.1, 1 / 3, -7.7])
def test_a_group_of_equal_scores_carries_exactly_no_signal(baseline, score):
    """0.1 * 3 / 3 is not 0.1 in float32: rounding must not make a gradient out of nothing."""
    scores = torch.full((6, 4), score)
    assert baselined(scores, torch.ones(6, 4), baseline, 3).abs().max() == 0


def test_whitening_ignores_padding():
    alive = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    values = draw(2, 3) * alive + 100 * (1 - alive)
    out = whiten(values, alive)
    inside = out[alive > 0]
    assert inside.mean().item() == pytest.approx(0, abs=1e-6) and inside.std().item() == pytest.approx(1, abs=1e-4)
    assert out[0, 2] == 0


# ------------------------------------------------------------------------------- REINFORCE is the gradient of E[R]


def test_reinforce_points_along_the_exact_gradient_of_the_expected_reward():
    """All answers of at most 3 tokens over a vocabulary of 3 (2 ends an answer) against 40,000 sampled ones."""
    config = ModelConfig(size="tiny", layers=1, width=16, heads=2, vocab_size=3, context_tokens=8)
    model = Transformer(config).initialise(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(12)
    end, prompt, longest = 2, [0, 1], 3

    def reward(answer: tuple[int, ...]) -> float:
        return 1.0 * (answer.count(1) == 1) + 0.3 * len(answer) * (answer[-1] == end)

    answers = [
        a for n in range(1, longest + 1) for a in itertools.product(range(3), repeat=n)
        if end not in a[:-1] and (a[-1] == end or n == longest)
    ]  # fmt: skip

    def batch(rows: list[tuple[int, ...]], advantage: list[float], units: float) -> Batch:
        tokens, weight, credit = torch.zeros(len(rows), 5, dtype=torch.long), torch.zeros(len(rows), 4), torch.zeros(len(rows), 4)
        for r, a in enumerate(rows):
            tokens[r, : 2 + len(a)] = torch.tensor([*prompt, *a])
            weight[r, 1 : 1 + len(a)] = 1.0
            credit[r, 1 : 1 + len(a)] = advantage[r]
        return Batch(tokens=tokens[:, :-1], targets=tokens[:, 1:], weight=weight, advantage=credit, units=units)

    def gradient(loss: Tensor) -> Tensor:
        model.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    every = batch(answers, [1.0] * len(answers), 1.0)
    chance = (model(every).logp * every.weight).sum(1).exp()
    assert chance.sum().item() == pytest.approx(1.0, abs=1e-5)
    exact = gradient(-(chance * torch.tensor([reward(a) for a in answers])).sum())

    samples = Engine(model, [end]).sample([prompt], Sampling(temperature=1.0, max_tokens=longest, seed=5), samples=40_000)
    drawn = [tuple(row[:n]) for row, n in zip(samples.tokens.tolist(), samples.lengths.tolist(), strict=True)]
    assert set(drawn) <= set(answers)
    rewards = torch.tensor([reward(a) for a in drawn])
    rows = batch(drawn, (rewards - rewards.mean()).tolist(), float(len(drawn)))
    sampled = gradient(policy_gradient()(model(rows), rows)[0] / rows.units)
    cosine = torch.nn.functional.cosine_similarity(sampled, exact, dim=0).item()
    assert cosine > 0.99 and sampled.norm().item() == pytest.approx(exact.norm().item(), rel=0.1)
