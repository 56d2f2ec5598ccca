"""From scored answers to the credit of each token.

Shapes: P prompts, G answers each, R = P G answers, n tokens of the longest answer, T positions of a row in a batch.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fledge.core.policy import Baseline, baselined, gae, returns_to_go, whiten
from fledge.generate.engine import Samples
from fledge.text.tokenizer import Tokenizer

Shaping = Literal["end", "steps", "potential"]
Progress = Callable[[int, str], float]  # (prompt number, answer so far) -> how far it got, in [0,1]


class Rollout(NamedTuple):
    """Scored answers to P prompts, G in a row to each."""

    prompts: list[int]  # [P] numbers of the prompts
    samples: Samples  # tokens [R,n] and what goes with them
    answers: list[str]  # [R]
    rewards: Tensor  # [R] float32, as scored, penalty for being cut off included
    silent: float  # share of prompts, of all that were tried, whose answers all scored the same


def silent(rewards: Tensor, group: int) -> Tensor:
    """[P] whether all answers of a group scored the same; nobody's with groups of one."""
    groups = rewards.view(-1, group)
    return (groups == groups[:, :1]).all(1) if group > 1 else torch.zeros(len(groups), dtype=torch.bool)


def credit(
    rollout: Rollout,
    alive: Tensor,
    *,
    group: int,
    baseline: Baseline,
    lam: float,
    shaped: Tensor | None,
    paid: Tensor | None,
    values: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """(advantage [R,n], return of the value head [R,n] or None).

    alive [R,n]: 1 on an answer's tokens. shaped [R,n]: rewards on the way. paid [R,n]: price of the KL per token.
    values [R,n]: what the value head expected before each token, for baseline = "value".
    """
    per_token = torch.zeros_like(alive)
    per_token.scatter_(1, rollout.samples.lengths.cpu()[:, None] - 1, rollout.rewards[:, None])
    if shaped is not None:
        per_token = per_token + shaped
    if paid is not None:
        per_token = per_token - paid
    if baseline == "value":
        advantage, returns = gae(per_token, values, alive, lam)
        return whiten(advantage, alive), returns
    if shaped is None:  # one number per answer
        scores = per_token.sum(1, keepdim=True).expand_as(alive)
    else:
        scores = returns_to_go(per_token)
    return baselined(scores, alive, baseline, group), None


def shaped_rewards(
    rollout: Rollout, group: int, shaping: Shaping, progress: Progress, tokenizer: Tokenizer
) -> Tensor:
    """Progress made by each token, [R,n]; with potential-based shaping all of it is paid back at the end.

    Ng et al. 1999, section 3: F = gamma Phi(s') - Phi(s) with Phi = 0 after the end leaves the best policy as it is.
    Paying steps without paying back does not, and can be exploited.
    """
    rows, lengths = rollout.samples.tokens.tolist(), rollout.samples.lengths.tolist()
    potential = torch.zeros(len(rows), max(lengths) + 1)  # before the first token, after each token
    for r, (row, size) in enumerate(zip(rows, lengths, strict=True)):
        number = rollout.prompts[r // group]
        steps = [progress(number, tokenizer.decode(row[: t + 1])) for t in range(size)]
        potential[r, 1 : size + 1] = torch.tensor(steps)
        potential[r, size + 1 :] = potential[r, size]
        if shaping == "potential":
            potential[r, size:] = 0.0
    return potential[:, 1:] - potential[:, :-1]


class Place:
    """Where the n tokens of each answer stand in its row of T positions."""

    def __init__(self, starts: Tensor, lengths: Tensor, positions: int):
        longest = int(lengths.max())
        self.alive = (torch.arange(longest) < lengths[:, None]).float()  # [R,n]
        self.at = (starts[:, None] + torch.arange(longest)).clamp_(max=positions - 1)  # [R,n]
        self.positions = positions

    def write(self, values: Tensor) -> Tensor:
        """[R,n] -> [R,T], 0 elsewhere."""
        out = torch.zeros(len(values), self.positions)
        return out.scatter_add_(1, self.at, values * self.alive)

    def read(self, values: Tensor) -> Tensor:
        """[R,T] -> [R,n], 0 after an answer's end."""
        return values.gather(1, self.at) * self.alive


def joined(a: Rollout, b: Rollout, chosen: Tensor, group: int) -> Rollout:
    """Groups `chosen` out of those of a, then b."""
    rows = (chosen[:, None] * group + torch.arange(group)).flatten()
    longest = int(torch.cat((a.samples.lengths, b.samples.lengths))[rows].max())  # of the answers that are kept

    def both(x: Tensor, y: Tensor, fill: float) -> Tensor:
        if x.ndim == 2:  # a negative pad cuts
            x, y = (torch.nn.functional.pad(t, (0, longest - t.shape[1]), value=fill) for t in (x, y))
        return torch.cat((x, y))[rows.to(x.device)]

    fills = {"tokens": -1, "logp": 0.0, "lengths": 0, "stopped": 0}
    samples = Samples(*(both(x, y, fills[n]) for n, x, y in zip(Samples._fields, a.samples, b.samples, strict=True)))
    answers = a.answers + b.answers
    prompts = a.prompts + b.prompts
    return Rollout(
        [prompts[i] for i in chosen.tolist()], samples, [answers[i] for i in rows.tolist()],
        torch.cat((a.rewards, b.rewards))[rows], 0.0,
    )  # fmt: skip
