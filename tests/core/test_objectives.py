"""Every objective against finite differences in float64, and against its formula by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fledge.core.batch import Batch
from fledge.core.model import Output
from fledge.core.objectives import classify, dpo, reward_pairs, weighted_nll

B, T = 6, 5


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batch(**columns) -> Batch:
    weight = (numbers(B, T, seed=1) > 0).double() * numbers(B, T, seed=2).abs()
    weight[:, -1] = 1.0  # every row counts somewhere
    zeros = torch.zeros(B, T, dtype=torch.long)
    return Batch(**{"tokens": zeros, "targets": zeros, "weight": weight, "units": float(B), **columns})


def output(logp: Tensor | None = None, value: Tensor | None = None, classes: Tensor | None = None) -> Output:
    return Output(torch.zeros(B, T, dtype=torch.float64) if logp is None else logp, None, value, classes)


LOGP = -numbers(B, T, seed=3).abs()
REFERENCE = LOGP + 0.3 * numbers(B, T, seed=4)
MARGIN = numbers(B // 2, seed=5).abs().repeat_interleave(2)
ONE_PLACE = torch.nn.functional.one_hot(torch.tensor([4, 1, 2, 0, 3, 3]), T).double()  # a reward is read in one place
CASES: dict[str, tuple[Callable[[Tensor], Output], Tensor, Callable, Batch]] = {
    "imitate": (lambda x: output(logp=x), LOGP, weighted_nll, batch()),
    "advantage": (lambda x: output(logp=x), LOGP, weighted_nll, batch(advantage=numbers(B, T, seed=6))),
    "reward": (lambda x: output(value=x), numbers(B, T, seed=7), reward_pairs, batch(weight=ONE_PLACE)),
    "reward with margin": (
        lambda x: output(value=x), numbers(B, T, seed=7), reward_pairs, batch(weight=ONE_PLACE, margin=MARGIN)
    ),
    "dpo": (lambda x: output(logp=x), LOGP, dpo(beta=0.7), batch(ref_logp=REFERENCE)),
    "dpo smoothed": (lambda x: output(logp=x), LOGP, dpo(beta=0.7, label_smoothing=0.2), batch(ref_logp=REFERENCE)),
    "dpo with nll": (lambda x: output(logp=x), LOGP, dpo(beta=0.7, nll_weight=0.4), batch(ref_logp=REFERENCE)),
    "classify": (
        lambda x: output(classes=x), numbers(B, T, 3, seed=8), classify,
        batch(weight=ONE_PLACE, label=torch.tensor([0, 2, 1, 1, 0, 2])),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_gradient_equals_finite_differences(name):
    wrap, start, objective, data = CASES[name]
    x = start.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: objective(wrap(x), data)[0], (x,), eps=1e-6, atol=1e-7)
    (gradient,) = torch.autograd.grad(objective(wrap(x), data)[0], x)
    assert gradient.abs().max() > 0.01
    counted = data.weight > 0
    assert not gradient[~counted].any()  # a token of weight 0 has no say


@pytest.mark.parametrize("name", CASES)
def test_losses_are_sums_so_that_units_add_up(name):
    """Pair by pair or all at once: the same sum of losses and of every metric."""
    wrap, start, objective, data = CASES[name]
    loss, metrics = objective(wrap(start), data)
    parts = [objective(wrap(start[i : i + 2]), data.rows(i, i + 2)) for i in range(0, B, 2)]
    assert loss.item() == pytest.approx(sum(part.item() for part, _ in parts), rel=1e-12)
    for key, value in metrics.items():
        assert not value.requires_grad
        assert value.item() == pytest.approx(sum(part[key].item() for _, part in parts), rel=1e-9)


def test_weighted_nll_by_hand():
    data = batch(
        weight=torch.tensor([[0.0, 1.0], [2.0, 1.0]]), tokens=torch.zeros(2, 2).long(), targets=torch.zeros(2, 2).long()
    )
    logp = torch.tensor([[-9.0, -1.0], [-2.0, -3.0]], requires_grad=True)
    loss, metrics = weighted_nll(Output(logp, None, None), data)
    assert loss.item() == metrics["nll"].item() == 1 + 4 + 3
    credit = torch.tensor([[5.0, -1.0], [1.0, 0.5]])
    pushed = batch(weight=data.weight, advantage=credit, tokens=data.tokens, targets=data.targets)
    loss, metrics = weighted_nll(Output(logp, None, None), pushed)
    assert loss.item() == -1 + 4 + 1.5 and metrics["nll"].item() == 8
    assert torch.autograd.grad(loss, logp)[0].tolist() == [[0.0, 1.0], [-2.0, -0.5]]


# -------------------------------------------------------------------------------------------------------------- dpo


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
def test_dpo_at_its_reference_is_exactly_ln_2_per_pair(beta, smoothing):
    data = batch(ref_logp=LOGP)
    loss, metrics = dpo(beta=beta, label_smoothing=smoothing)(output(logp=LOGP), data)
    assert loss.item() == B / 2 * math.log(2)
    assert metrics["accuracy"].item() == metrics["reward_gap"].item() == 0.0


def test_dpo_by_hand():
    ones = torch.ones(2, 2, dtype=torch.float64)
    data = batch(weight=ones, ref_logp=torch.tensor([[-1.0, -1.0], [-2.0, -1.0]]).double())
    logp = torch.tensor([[-0.5, -1.0], [-2.5, -1.5]]).double()  # chosen up 0.5 nats, rejected down 1.0
    gap = 0.2 * 1.5
    down, up = math.log1p(math.exp(-gap)), math.log1p(math.exp(gap))
    loss, metrics = dpo(beta=0.2)(Output(logp, None, None), data)
    assert loss.item() == pytest.approx(down, rel=1e-12)
    assert {k: v.item() for k, v in metrics.items()} == pytest.approx(
        {"accuracy": 1.0, "reward_gap": gap, "chosen_shift": 0.5, "rejected_shift": -1.0}
    )
    assert dpo(beta=0.2, label_smoothing=0.1)(Output(logp, None, None), data)[0].item() == pytest.approx(
        0.9 * down + 0.1 * up, rel=1e-12
    )
    assert dpo(beta=0.2, nll_weight=2.0)(Output(logp, None, None), data)[0].item() == pytest.approx(
        down + 2.0 * (1.5 / 2), rel=1e-12  # the chosen answer's mean NLL per token
    )  # fmt: skip


def test_smoothing_pulls_a_gap_that_is_too_sure_back():
    """Conservative DPO has its minimum at sigmoid(gap) = 1 - smoothing; plain DPO pulls on for ever."""
    sure = LOGP.clone()
    sure[0::2] += 10.0
    gradient = {}
    for smoothing in (0.0, 0.1):
        x = sure.clone().requires_grad_()
        dpo(beta=1.0, label_smoothing=smoothing)(output(logp=x), batch(ref_logp=LOGP))[0].backward()
        gradient[smoothing] = x.grad[0, -1].item()
    assert gradient[0.0] < 0 < gradient[0.1]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"beta": 0.0}, "beta"),
        ({"beta": float("nan")}, "beta"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"nll_weight": -1.0}, "nll_weight"),
        ({"nll_weight": float("nan")}, "nll_weight"),
    ],
)
def test_dpo_refuses_settings_that_cannot_work(settings, named):
    with pytest.raises(ValueError, match=named):
        dpo(**settings)


def test_dpo_tells_all_broken_settings_at_once():
    with pytest.raises(ValueError, match=r"beta = -1.*label_smoothing = 2.*nll_weight = -3"):
        dpo(beta=-1, label_smoothing=2, nll_weight=-3)


# ------------------------------------------------------------------------------------------ reward model, classes


def test_reward_pairs_by_hand_and_a_margin_asks_for_more():
    weight = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double()
    value = torch.tensor([[7.0, 2.0], [0.5, 9.0]]).double()  # read: chosen 2.0, rejected 0.5
    loss, metrics = reward_pairs(output(value=value), batch(weight=weight))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1.5)), rel=1e-12)
    assert (metrics["accuracy"].item(), metrics["reward_gap"].item()) == (1.0, 1.5)
    wanted = batch(weight=weight, margin=torch.tensor([2.0, 2.0]).double())
    assert reward_pairs(output(value=value), wanted)[0].item() == pytest.approx(math.log1p(math.exp(0.5)), rel=1e-12)


def test_classify_by_hand():
    weight = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double()
    classes = torch.tensor([[[9.0, 0.0], [0.0, 1.0]], [[0.0, 2.0], [9.0, 0.0]]]).double()
    loss, metrics = classify(output(classes=classes), batch(weight=weight, label=torch.tensor([1, 0])))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1)) + math.log1p(math.exp(2)), rel=1e-12)
    assert metrics["accuracy"].item() == 1.0


@pytest.mark.parametrize(
    ("objective", "message"),
    [(reward_pairs, "model.head = 'reward'"), (dpo(), "ref_logp"), (classify, "model.head = 'class'")],
)
def test_a_missing_column_or_head_is_named(objective, message):
    with pytest.raises(ValueError, match=message):
        objective(output(logp=LOGP), batch())
