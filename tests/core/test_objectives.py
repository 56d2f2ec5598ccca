"""Every objective against finite differences in float64, and against its formula by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fledge.core.batch import Batch
from fledge.core.model import Output
from fledge.core.objectives import classify, dpo, kto, reward_pairs, weighted_nll

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
TIES = torch.tensor([1.0, 0.5, 1.0]).double().repeat_interleave(2)
VOTES = {
    "ref_logp": REFERENCE, "liked": torch.tensor([True, False, False, True, True, False]),
    "kto_kl": torch.full((B,), 0.2).double(),
}  # fmt: skip
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
    "reward with ties": (
        lambda x: output(value=x), numbers(B, T, seed=7), reward_pairs, batch(weight=ONE_PLACE, margin=MARGIN, win=TIES)
    ),
    "dpo with ties": (
        lambda x: output(logp=x), LOGP, dpo(beta=0.7, label_smoothing=0.1, nll_weight=0.4), batch(ref_logp=REFERENCE, win=TIES)
    ),
    "ipo": (lambda x: output(logp=x), LOGP, dpo(loss="ipo", beta=0.7), batch(ref_logp=REFERENCE)),
    "ipo with ties": (
        lambda x: output(logp=x), LOGP, dpo(loss="ipo", beta=0.7, label_smoothing=0.1), batch(ref_logp=REFERENCE, win=TIES)
    ),
    "kto": (lambda x: output(logp=x), LOGP, kto(beta=0.9, desirable_weight=1.5), batch(**VOTES)),
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


def two_rows(chosen: float, rejected: float, **columns) -> tuple[Output, Batch]:
    """A pair of two-token answers whose summed log pi/pi_ref are the given ones."""
    logp = torch.tensor([[chosen - 1.0, 0.0], [0.0, rejected - 1.0]]).double()
    reference = torch.tensor([[-1.0, 0.0], [0.0, -1.0]]).double()
    return Output(logp, None, None), batch(weight=torch.ones(2, 2).double(), ref_logp=reference, **columns)


def test_a_tie_is_half_a_vote_each_way():
    """The mean of the pair's loss and of the swapped pair's, least where both answers stand alike."""
    half = {"win": torch.tensor([0.5, 0.5]).double()}
    for objective in (dpo(beta=0.3), dpo(beta=0.3, label_smoothing=0.2, nll_weight=0.1), dpo(loss="ipo", beta=0.3)):
        tie, there, back = (
            objective(*two_rows(*shifts, **columns))[0].item()
            for shifts, columns in (((2.0, -1.0), half), ((2.0, -1.0), {}), ((-1.0, 2.0), {}))
        )
        assert tie == pytest.approx((there + back) / 2, rel=1e-12)
        assert objective(*two_rows(0.5, 0.5, **half))[0].item() < tie
    assert dpo(beta=0.3)(*two_rows(0.5, 0.5, **half))[0].item() == pytest.approx(math.log(2), rel=1e-15)


def test_a_tie_counts_half_in_the_accuracy_wherever_it_stands():
    for shifts in ((2.0, -1.0), (-1.0, 2.0), (0.0, 0.0)):
        _, metrics = dpo()(*two_rows(*shifts, win=torch.tensor([0.5, 0.5]).double()))
        assert metrics["accuracy"].item() == 0.5
    assert dpo()(*two_rows(2.0, -1.0))[1]["accuracy"].item() == 1.0


def test_ipo_by_hand_and_where_it_stops():
    """(h - 1/(2 beta))^2 with h per token: here (2.0 / 2) - (-1.0 / 2) = 1.5."""
    ipo = dpo(loss="ipo", beta=0.25)
    assert ipo(*two_rows(2.0, -1.0))[0].item() == pytest.approx((1.5 - 2.0) ** 2, rel=1e-12)
    assert ipo(*two_rows(4.0, 0.0))[0].item() == 0.0  # the gap asked for
    smoothed = dpo(loss="ipo", beta=0.25, label_smoothing=0.1)
    assert smoothed(*two_rows(2.0, -1.0))[0].item() == pytest.approx(0.9 * 0.5**2 + 0.1 * 3.5**2, rel=1e-12)
    # flipped labels move the least to (2w - 1)/(2 beta) = 0.8 * 2
    losses = [smoothed(*two_rows(2 * h, 0.0))[0].item() for h in (1.5, 1.6, 1.7)]
    assert losses[1] < min(losses[0], losses[2])
    assert losses[1] == pytest.approx(2.0**2 - 1.6**2, rel=1e-12)  # the constant: (1/(2 beta))^2 (1 - (2w - 1)^2)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"loss": "hinge"}, "loss = 'hinge': must be sigmoid or ipo"),
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


# -------------------------------------------------------------------------------------------------------------- kto


@pytest.mark.parametrize("beta", [0.1, 3.0])
def test_kto_at_its_reference_is_half_of_each_weight(beta):
    """r = z0 = 0: 1 - sigmoid(0) = 1/2 for every row."""
    data = batch(**VOTES | {"ref_logp": LOGP, "kto_kl": torch.zeros(B).double()})
    loss, metrics = kto(beta=beta, desirable_weight=1.25, undesirable_weight=3.0)(output(logp=LOGP), data)
    assert loss.item() == 3 * 1.25 / 2 + 3 * 3.0 / 2
    assert {k: v.item() for k, v in metrics.items()} == {
        "accuracy": 0.0, "liked": 3.0, "liked_reward": 0.0, "disliked_reward": 0.0, "kl": 0.0
    }  # fmt: skip


def test_kto_by_hand():
    liked, disliked = 2.0, -1.0
    output, data = two_rows(liked, disliked, liked=torch.tensor([True, False]), kto_kl=torch.full((2,), 0.7, dtype=torch.float64))

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    wanted = 1.5 * (1 - sigmoid(0.3 * (liked - 0.7))) + 2.0 * (1 - sigmoid(0.3 * (0.7 - disliked)))
    loss, metrics = kto(beta=0.3, desirable_weight=1.5, undesirable_weight=2.0)(output, data)
    assert loss.item() == pytest.approx(wanted, rel=1e-12)
    assert {k: v.item() for k, v in metrics.items()} == pytest.approx(
        {"accuracy": 2.0, "liked": 1.0, "liked_reward": 0.6, "disliked_reward": -0.3, "kl": 1.4}
    )


def test_no_gradient_goes_through_the_reference_point():
    kl = torch.full((B,), 0.2, dtype=torch.float64, requires_grad=True)
    x = LOGP.clone().requires_grad_()
    loss, _ = kto()(output(logp=x), batch(**VOTES | {"kto_kl": kl}))
    loss.backward()
    assert kl.grad is None and x.grad.abs().max() > 0


@pytest.mark.parametrize("column", ["ref_logp", "liked", "kto_kl"])
def test_kto_names_a_missing_column(column):
    with pytest.raises(ValueError, match=rf"kto needs batch\.{column}: take batches from ThumbSource"):
        kto()(output(logp=LOGP), batch(**VOTES | {column: None}))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["beta", "desirable_weight", "undesirable_weight"])
def test_kto_refuses_settings_that_cannot_work(name, value):
    with pytest.raises(ValueError, match=f"^{name} = {value}: must be finite and > 0$"):
        kto(**{name: value})


# ------------------------------------------------------------------------------------------ reward model, classes


def test_a_tie_of_rewards_is_half_a_vote_each_way_and_its_margin_is_ignored():
    """Soft-label Bradley-Terry: -(log sigmoid(gap) + log sigmoid(-gap)) / 2."""
    weight = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double()
    value = torch.tensor([[7.0, 2.0], [0.5, 9.0]]).double()  # read: 2.0 and 0.5
    tie = torch.tensor([0.5, 0.5]).double()
    wanted = (math.log1p(math.exp(-1.5)) + math.log1p(math.exp(1.5))) / 2
    for margin in (None, torch.tensor([2.0, 2.0]).double()):
        loss, metrics = reward_pairs(output(value=value), batch(weight=weight, win=tie, margin=margin))
        assert loss.item() == pytest.approx(wanted, rel=1e-12)
        assert metrics["accuracy"].item() == 0.5


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
