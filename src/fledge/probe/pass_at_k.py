"""What a model can do in k tries, and how far down its list the right answer stands.

Shapes: N prompts, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from fledge.core.model import Transformer
from fledge.probe.reading import float32_logits, in_float32

_BATCH_ROWS = 64


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that one of k answers is right, unbiased, where `correct` of `samples` were: 1 - C(n-c,k) / C(n,k).

    Chen et al. 2021 (Codex), equation 1. Raises ValueError where k or correct is more than the samples.
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(
            f"samples = {samples}, correct = {correct}, k = {k}: need 1 <= k <= samples and correct <= samples"
        )
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def doublings(most: int) -> list[int]:
    """1, 2, 4, ... and `most` itself."""
    return sorted({min(most, 2**i) for i in range(most.bit_length())} | {most})


def curve(correct: Sequence[int], samples: int) -> dict[int, float]:
    """Mean pass@k over questions for k = 1, 2, 4, ... samples; correct: right answers to each question."""
    return {k: sum(pass_at_k(samples, c, k) for c in correct) / len(correct) for k in doublings(samples)}


@torch.inference_mode()
def first_token_rank(
    model: Transformer, prompts: Sequence[Sequence[int]], right: Sequence[Sequence[int]]
) -> list[tuple[int, float]]:
    """(rank from 1, probability) of the likeliest of the `right` tokens as each prompt's next one."""
    model = in_float32(model)
    found: list[tuple[int, float]] = []
    for start in range(0, len(prompts), _BATCH_ROWS):
        rows = prompts[start : start + _BATCH_ROWS]
        longest = max(map(len, rows))
        tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=model.embedding.device)
        last = torch.tensor([len(row) - 1 for row in rows], device=tokens.device)
        hidden = model.hidden(tokens)[torch.arange(len(rows), device=tokens.device), last]  # [N,D]
        p = torch.softmax(float32_logits(model, hidden), -1)  # [N,V]
        for row, ids in zip(p, right[start : start + _BATCH_ROWS], strict=True):
            best = row[list(ids)].max()
            found.append((int((row > best).sum()) + 1, float(best)))
    return found
