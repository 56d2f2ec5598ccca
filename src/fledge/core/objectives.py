"""Pure objectives: (Output, Batch) -> (loss SUM, metric sums). The loop divides both once, by the units of all ranks.

Shapes: B rows, T positions, P = B/2 pairs (rows 2i = chosen, 2i+1 = rejected).
"""

from collections.abc import Callable

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


def reward_pairs(output: Output, batch: Batch) -> tuple[Tensor, Metrics]:
    """Bradley-Terry on two answers: -log sigmoid(r_chosen - r_rejected - margin).

    The reward is the scalar head at the weighted position, the answer's end token (Ouyang et al. 2022, eq. 1;
    margin: Touvron et al. 2023, eq. 2).
    """
    if output.value is None:
        raise ValueError("reward_pairs needs a scalar head: set model.head = 'reward' (this model has none)")
    chosen, rejected = _sequence_sums(output.value, batch.weight)  # [P]
    gap = chosen - rejected
    loss = -F.logsigmoid(gap if batch.margin is None else gap - batch.margin[0::2]).sum()
    return loss, {"accuracy": (gap.detach() > 0).float().sum(), "reward_gap": gap.detach().sum()}


def dpo(*, beta: float = 0.1, label_smoothing: float = 0.0, nll_weight: float = 0.0) -> Objective:
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7), with the reference as a column of the batch.

    beta: how dearly moving away from the reference is paid. label_smoothing: share of votes taken to be flipped
    (conservative DPO, Mitchell 2023). nll_weight: adds the chosen answer's mean NLL per token (Pang et al. 2024, eq. 1),
    which keeps its probability from falling while the gap grows.
    """
    problems = []
    if not beta > 0:
        problems.append(f"beta = {beta}: must be > 0; 0.1 is usual")
    if not 0 <= label_smoothing < 0.5:
        problems.append(f"label_smoothing = {label_smoothing}: must be in [0, 0.5); 0 turns it off")
    if not nll_weight >= 0:
        problems.append(f"nll_weight = {nll_weight}: must be >= 0; 0 turns it off")
    if problems:
        raise ValueError("; ".join(problems))

    def objective(output: Output, batch: Batch) -> tuple[Tensor, Metrics]:
        if batch.ref_logp is None:
            raise ValueError("dpo needs batch.ref_logp: score the pairs with the reference model first")
        chosen, rejected = _sequence_sums(output.logp - batch.ref_logp, batch.weight)  # [P] log pi/pi_ref
        gap = beta * (chosen - rejected)
        loss = -((1 - label_smoothing) * F.logsigmoid(gap) + label_smoothing * F.logsigmoid(-gap)).sum()
        if nll_weight:
            lengths = batch.weight.sum(1)[0::2]  # [P]
            nll = -_sequence_sums(output.logp, batch.weight)[0] / lengths
            loss = loss + nll_weight * nll.sum()
        metrics = {
            "accuracy": (gap.detach() > 0).float().sum(),
            "reward_gap": gap.detach().sum(),
            "chosen_shift": chosen.detach().sum(),
            "rejected_shift": rejected.detach().sum(),
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
