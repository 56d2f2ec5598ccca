"""Pure objectives: (Output, Batch) -> (loss SUM, metric sums). The loop divides both once, by the units of all ranks.

Shapes: B rows, T positions, P = B/2 pairs (rows 2i = chosen, 2i+1 = rejected).
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fledge.core.batch import Batch
from fledge.core.model import Output

Metrics = dict[str, Tensor]  # sums, in the batch's units
Objective = Callable[[Output, Batch], tuple[Tensor, Metrics]]


def weighted_nll(output: Output, batch: Batch) -> tuple[Tensor, Metrics]:
    """Next-token prediction in all its uses: -sum(weight * advantage * log p(target)).

    Pretraining has weight 1 everywhere, SFT weight 1 on the assistant's tokens, REINFORCE a signed advantage
    (Williams 1992, eq. 4): one formula, three stages.
    """
    credit = batch.weight if batch.advantage is None else batch.weight * batch.advantage
    loss = -(output.logp * credit).sum()
    return loss, {"nll": -(output.logp.detach() * batch.weight).sum()}


def _sequence_sums(values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """[B,T] per-token values -> weighted sums over the sequence of (chosen [P], rejected [P])."""
    sums = (values * weight).sum(1)
    return sums[0::2], sums[1::2]


def _votes(batch: Batch, like: Tensor) -> Tensor:
    """[P] share of the votes for the chosen answer: 1, or 0.5 for a tie."""
    return torch.ones_like(like) if batch.win is None else batch.win[0::2].to(like.dtype)


def _ranked_right(gap: Tensor, votes: Tensor) -> Tensor:
    """How many pairs have the chosen answer ahead, summed; a tie counts half, as in a match, wherever it stands.

    Half and not left out: metrics are divided by the number of pairs, ties among them.
    """
    ahead = (gap.detach() > 0).to(votes.dtype)
    return (votes * ahead + (1 - votes) * (1 - ahead)).sum()


def reward_pairs(output: Output, batch: Batch) -> tuple[Tensor, Metrics]:
    """Bradley-Terry on two answers: -log sigmoid(r_chosen - r_rejected - margin).

    The reward is the scalar head at the weighted position, the answer's end token (Ouyang et al. 2022, eq. 1;
    margin: Touvron et al. 2023, eq. 2). A tie is half a vote each way (Nakano et al. 2021, section 3.2: a soft label of
    50%): -(log sigmoid(gap) + log sigmoid(-gap)) / 2, least at equal rewards. Its margin is ignored: equal answers
    have none.
    """
    if output.value is None:
        raise ValueError("reward_pairs needs a scalar head: set model.head = 'reward' (this model has none)")
    chosen, rejected = _sequence_sums(output.value, batch.weight)  # [P]
    gap = chosen - rejected
    votes = _votes(batch, gap)
    wanted = gap if batch.margin is None else gap - batch.margin[0::2] * (votes == 1)
    loss = -(votes * F.logsigmoid(wanted) + (1 - votes) * F.logsigmoid(-wanted)).sum()
    return loss, {"accuracy": _ranked_right(gap, votes), "reward_gap": gap.detach().sum()}


def dpo(
    *,
    loss: Literal["sigmoid", "ipo"] = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    nll_weight: float = 0.0,
) -> Objective:
    """Direct preference optimisation, with the reference as a column of the batch.

    loss: "sigmoid" is -log sigmoid(beta * h) (Rafailov et al. 2023, eq. 7), h the chosen answer's log pi/pi_ref less the
    rejected one's, summed over tokens. "ipo" is (h - 1/(2 beta))^2 (Azar et al. 2023, eq. 17), which stops at that gap
    instead of pulling for ever; there h is taken per token, the mean over each answer, as in the paper's experiments
    (its authors to TRL, which does the same): the sum would tie the gap asked for to the answers' lengths.
    beta: how dearly moving away from the reference is paid. label_smoothing: share of votes taken to be flipped
    (conservative DPO, Mitchell 2023). nll_weight: adds the chosen answer's mean NLL per token (Pang et al. 2024, eq. 1),
    which keeps its probability from falling while the gap grows.

    A vote that may be wrong counts both ways, w l(h) + (1 - w) l(-h): w = 1 - label_smoothing, and 0.5 for a tie. This is
    the expected loss under flipped labels, for IPO too, where it is (h - (2w - 1)/(2 beta))^2 and a constant. A tie's NLL
    is the mean of both answers'.
    """
    if problems := _dpo_problems(loss, beta, label_smoothing, nll_weight):
        raise ValueError("; ".join(problems))

    def one_way(h: Tensor) -> Tensor:
        return (h - 1 / (2 * beta)).square() if loss == "ipo" else -F.logsigmoid(beta * h)

    def objective(output: Output, batch: Batch) -> tuple[Tensor, Metrics]:
        if batch.ref_logp is None:
            raise ValueError("dpo needs batch.ref_logp: score the pairs with the reference model first")
        chosen, rejected = _sequence_sums(output.logp - batch.ref_logp, batch.weight)  # [P] log pi/pi_ref
        lengths = batch.weight.sum(1)  # [B]
        h = chosen / lengths[0::2] - rejected / lengths[1::2] if loss == "ipo" else chosen - rejected
        votes = _votes(batch, h)
        sure = votes + label_smoothing * (1 - 2 * votes)
        total = (sure * one_way(h) + (1 - sure) * one_way(-h)).sum()
        if nll_weight:
            nll = -(output.logp * batch.weight).sum(1) / lengths
            total = total + nll_weight * (votes * nll[0::2] + (1 - votes) * nll[1::2]).sum()
        gap = beta * (chosen - rejected).detach()
        metrics = {
            "accuracy": _ranked_right(gap, votes),
            "reward_gap": gap.sum(),
            "chosen_shift": chosen.detach().sum(),
            "rejected_shift": rejected.detach().sum(),
        }
        return total, metrics

    return objective


def _dpo_problems(loss: str, beta: float, label_smoothing: float, nll_weight: float) -> list[str]:
    problems = []
    if loss not in ("sigmoid", "ipo"):
        problems.append(f"loss = {loss!r}: must be sigmoid or ipo")
    if not beta > 0:
        problems.append(f"beta = {beta}: must be > 0; 0.1 is usual")
    if not 0 <= label_smoothing < 0.5:
        problems.append(f"label_smoothing = {label_smoothing}: must be in [0, 0.5); 0 turns it off")
    if not nll_weight >= 0:
        problems.append(f"nll_weight = {nll_weight}: must be >= 0; 0 turns it off")
    return problems


def kto(*, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> Objective:
    """Kahneman-Tversky optimisation on single votes (Ethayarajh et al. 2024, eq. 8), reference as a column of the batch.

    With r = log pi(y|x)/pi_ref(y|x) over the answer: desirable_weight * (1 - sigmoid(beta (r - z0))) for a liked answer,
    undesirable_weight * (1 - sigmoid(beta (z0 - r))) for a disliked one. z0 = batch.kto_kl is the step's KL from the
    reference, at least 0 and without gradient (section 4.1); the source measures it on the whole step, so that every
    micro-batch sees the same. At the reference r = z0 = 0 and each row costs half its weight.
    """
    values = {"beta": beta, "desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight}
    if problems := [
        f"{name} = {value}: must be finite and > 0" for name, value in values.items() if not 0 < value < math.inf
    ]:
        raise ValueError("; ".join(problems))

    def objective(output: Output, batch: Batch) -> tuple[Tensor, Metrics]:
        missing = [n for n in ("ref_logp", "liked", "kto_kl") if getattr(batch, n) is None]
        if missing:
            raise ValueError(
                f"kto needs batch.{', batch.'.join(missing)}: take batches from ThumbSource, which sets them"
            )
        r = ((output.logp - batch.ref_logp) * batch.weight).sum(1)  # [B] log pi/pi_ref
        sign = torch.where(batch.liked, 1.0, -1.0).to(r.dtype)
        weight = torch.where(batch.liked, desirable_weight, undesirable_weight).to(r.dtype)
        above = sign * (r - batch.kto_kl.detach())  # [B] how far on the side it should be
        loss = (weight * torch.sigmoid(-beta * above)).sum()  # 1 - sigmoid(x), without its rounding near 1
        reward = beta * r.detach()
        metrics = {  # the mean reward of liked rows is liked_reward / liked
            "accuracy": (above.detach() > 0).to(r.dtype).sum(),
            "liked": batch.liked.to(r.dtype).sum(),
            "liked_reward": (reward * batch.liked).sum(),
            "disliked_reward": (reward * ~batch.liked).sum(),
            "kl": batch.kto_kl.detach().sum(),
        }
        return loss, metrics

    return objective


def classify(output: Output, batch: Batch) -> tuple[Tensor, Metrics]:
    """Cross-entropy of a class head at the weighted position of each row (BERT, Devlin et al. 2019, section 4.1)."""
    if output.classes is None or batch.label is None:
        raise ValueError("classify needs a class head and batch.label: set model.head = 'class' and model.classes")
    where = batch.weight.argmax(1)  # [B] the row's weighted position
    logits = output.classes[torch.arange(len(where), device=where.device), where]  # [B,C]
    loss = F.cross_entropy(logits, batch.label, reduction="sum")
    return loss, {"accuracy": (logits.detach().argmax(1) == batch.label).float().sum()}
