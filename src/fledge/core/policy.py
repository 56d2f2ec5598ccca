"""The policy-gradient objective and the estimators behind its columns. Like every objective: pure, and a SUM.

One formula serves REINFORCE, actor-critic, PPO, GRPO and RLOO; they differ in how the source made `advantage`, `weight`
and `units`, not here. Shapes: B rows, T positions; R answers, n tokens of the longest answer, P prompts, G answers each.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fledge.core.batch import Batch
from fledge.core.model import Output
from fledge.core.objectives import Metrics, Objective

_FAR = 20.0  # nats between the policy and the one that sampled, beyond which the ratio is held
KlEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(logp: Tensor, ref_logp: Tensor, kind: KlEstimator = "k3") -> Tensor:
    """Per-token estimate of KL(policy || reference) from tokens the policy drew (Schulman 2020, "Approximating KL").

    k1 = log pi/ref: unbiased, may be negative. k2 = k1^2 / 2: biased, low variance. k3 = ref/pi - 1 - log ref/pi: unbiased
    and never negative (GRPO, Shao et al. 2024, eq. 4).
    """
    gap = ref_logp - logp
    if kind == "k1":
        return -gap
    if kind == "k2":
        return gap.square() / 2
    return torch.expm1(gap) - gap


def policy_gradient(
    *,
    clip: Sequence[float] | None = None,
    entropy_weight: float = 0.0,
    value_weight: float = 0.0,
    value_clip: float | None = None,
    kl_estimator: KlEstimator = "k3",
) -> Objective:
    """-sum weight * min(ratio A, clip(ratio) A), and on request a value loss, an entropy bonus and a KL term.

    clip: (low, high) bounds ratio = pi/pi_old to [1 - low, 1 + high] (PPO, Schulman et al. 2017, eq. 7; different bounds:
    DAPO, Yu et al. 2025, eq. 10); a third number c bounds the loss of a bad answer at c |A| (dual clip, Ye et al. 2020,
    eq. 5). None leaves the ratio free. Without batch.old_logp the step is on-policy: the ratio is 1 and the gradient is
    that of weighted_nll with the same advantages.
    value_weight: weight of (V - return)^2 / 2; value_clip keeps V within this of what it was at sampling (PPO2).
    batch.kl_weight: price of the KL estimate, set by the source where KL is part of the loss. Raises ValueError.
    """
    _check(clip, entropy_weight, value_weight, value_clip)

    def objective(output: Output, batch: Batch) -> tuple[Tensor, Metrics]:
        if batch.advantage is None:
            raise ValueError("policy_gradient needs batch.advantage: a source of scored answers gives it")
        weight, logp = batch.weight, output.logp
        gap = logp - (logp.detach() if batch.old_logp is None else batch.old_logp)
        ratio = torch.exp(gap.clamp(-_FAR, _FAR))  # no credit of 0 may meet a ratio of infinity
        gain = ratio * batch.advantage  # [B,T]
        metrics: Metrics = {}
        if clip is not None:
            bounded = ratio.clamp(1 - clip[0], 1 + clip[1]) * batch.advantage
            metrics["clipped"] = ((bounded < gain).float() * weight).sum()
            gain = torch.minimum(gain, bounded)
            if len(clip) == 3:
                floor = clip[2] * batch.advantage
                gain = torch.where(batch.advantage < 0, torch.maximum(gain, floor), gain)
        if batch.old_logp is not None:
            metrics["ratio"] = (ratio.detach() * weight).sum()
        loss = -(gain * weight).sum()
        if value_weight:
            values = _value_loss(output, batch, value_clip)
            loss = loss + value_weight * values
            metrics["value_loss"] = values.detach()
        if entropy_weight:
            if output.entropy is None:
                raise ValueError("an entropy bonus needs batch.want_entropy = True")
            loss = loss - entropy_weight * (output.entropy * weight).sum()
        if batch.kl_weight:
            if batch.ref_logp is None:
                raise ValueError("a KL term in the loss needs batch.ref_logp: score the answers with the reference")
            loss = loss + batch.kl_weight * (kl_estimate(logp, batch.ref_logp, kl_estimator) * weight).sum()
        return loss, metrics

    return objective


def _check(clip: Sequence[float] | None, entropy_weight: float, value_weight: float, value_clip: float | None) -> None:
    problems = []
    if clip is not None:
        if len(clip) not in (2, 3) or not (0 < clip[0] < 1 and clip[1] > 0):
            problems.append(f"clip = {list(clip)}: must be [low, high] with 0 < low < 1 and high > 0; 0.2, 0.2 is usual")
        elif len(clip) == 3 and not clip[2] > 1 + clip[1]:
            problems.append(f"clip = {list(clip)}: the dual clip (third number) must be above 1 + high; 3 is usual")
    if not entropy_weight >= 0:
        problems.append(f"entropy_weight = {entropy_weight}: must be >= 0; 0 turns it off")
    if not value_weight >= 0:
        problems.append(f"value_weight = {value_weight}: must be >= 0; 0 turns it off")
    if value_clip is not None and not value_clip > 0:
        problems.append(f"value_clip = {value_clip}: must be above 0, or none to turn it off")
    if problems:
        raise ValueError("; ".join(problems))


def _value_loss(output: Output, batch: Batch, value_clip: float | None) -> Tensor:
    if output.value is None or batch.returns is None:
        raise ValueError("a value loss needs a value head and batch.returns: set model.head = 'tokens+value'")
    error = (output.value - batch.returns).square()
    if value_clip is not None and batch.old_value is not None:
        near = batch.old_value + (output.value - batch.old_value).clamp(-value_clip, value_clip)
        error = torch.maximum(error, (near - batch.returns).square())
    return 0.5 * (error * batch.weight).sum()


# --------------------------------------------------------------------------- from rewards to credit, all on [R,n]


def returns_to_go(rewards: Tensor) -> Tensor:
    """Sum of the rewards from each token on: [R,n] -> [R,n] (no discount: answers are short)."""
    return rewards.flip(1).cumsum(1).flip(1)


def gae(rewards: Tensor, values: Tensor, alive: Tensor, lam: float, gamma: float = 1.0) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16): (advantage, return of the value head), [R,n].

    rewards, values, alive: [R,n]; alive is 1 on an answer's tokens; after its end the value is 0. lam = 1 gives
    return - value (actor-critic with whole returns).
    """
    advantage = torch.zeros_like(rewards)
    later = torch.zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        following = values[:, t + 1] * alive[:, t + 1] if t + 1 < rewards.shape[1] else 0.0
        later = (rewards[:, t] + gamma * following - values[:, t] + gamma * lam * later) * alive[:, t]
        advantage[:, t] = later
    return advantage, (advantage + values) * alive


def whiten(values: Tensor, alive: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over the tokens of all answers; padding counts for nothing."""
    count = alive.sum()
    mean = (values * alive).sum() / count
    variance = ((values - mean).square() * alive).sum() / count.sub(1).clamp(min=1)
    return (values - mean) * (variance + 1e-8).rsqrt() * alive


Baseline = Literal["none", "mean", "value", "group", "group-std", "leave-one-out"]
_FLAT = 1e-4  # added to the deviation of a group (GRPO as trl has it)


def baselined(scores: Tensor, alive: Tensor, baseline: Baseline, group: int) -> Tensor:
    """Credit of each token from what its answer earned from there on: [R,n] returns to go -> [R,n] advantages.

    mean: of all answers at that position (Williams 1992, section 4). group: of the prompt's own answers (Dr. GRPO, Liu et
    al. 2025, eq. 3); group-std divides by their deviation (GRPO, Shao et al. 2024, section 4.1.2); leave-one-out: of the
    prompt's other answers (RLOO, Kool et al. 2019; Ahmadian et al. 2024, eq. 7). An ended answer earns 0 from there on;
    where the reward is one number per answer, the caller repeats it over all n positions.
    """
    if baseline == "none":
        return scores * alive
    if baseline == "mean":
        return (scores - scores.mean(0, keepdim=True)) * alive
    by_prompt = scores.view(-1, group, scores.shape[1])  # [P,G,n]
    centred = by_prompt - by_prompt.mean(1, keepdim=True)
    if baseline == "leave-one-out":
        centred = centred * (group / (group - 1))
    elif baseline == "group-std":
        centred = centred / (by_prompt.std(1, keepdim=True) + _FLAT)
    equal = (by_prompt == by_prompt[:, :1]).all(1, keepdim=True)  # rounding must not make a signal out of none
    return centred.masked_fill(equal, 0.0).view_as(scores) * alive
