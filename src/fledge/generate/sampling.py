"""Turning logits into tokens.

Shapes: B rows, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fledge.core.config import Settings


class Sampling(Settings, frozen=True, kw_only=True):
    """How tokens are drawn."""

    temperature: float = 0.7
    "Divides the logits; 0 takes the most likely token (greedy)."
    top_k: int | None = None
    "Keep only the k most likely tokens."
    top_p: float | None = None
    "Keep the smallest set of tokens whose probability reaches p (Holtzman et al. 2020, section 3.1)."
    max_tokens: int = 64
    "Longest answer in tokens."
    seed: int = 0
    "Row i of a call draws from a stream of (seed, i), whatever else is in its batch."

    def problems(self) -> list[str]:
        """Every rule these settings break, in words."""
        found = []
        if not 0 <= self.temperature <= 100:
            found.append(f"temperature = {self.temperature}: must be between 0 (greedy) and 100")
        if self.top_k is not None and self.top_k < 1:
            found.append(f"top_k = {self.top_k}: must be at least 1; none turns it off")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            found.append(f"top_p = {self.top_p}: must be in (0, 1]; none turns it off")
        if self.max_tokens < 1:
            found.append(f"max_tokens = {self.max_tokens}: must be at least 1")
        if self.seed < 0:
            found.append(f"seed = {self.seed}: must be at least 0")
        return found


_ODD = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd
_WORD = 2**64 - 1


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014, figure 15, as in Vigna's splitmix64.c): each bit moves all others."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(seed: int, streams: Sequence[int], count: int) -> Tensor:
    """[B,count] float32 in [0,1): number n of row i is a hash of (seed, streams[i], n), whatever else is drawn.

    Each stream is a SplitMix64 sequence that starts at a mixed state of its own. A numpy generator per row would cost
    30 us a row.
    """
    chosen = np.array([stream & _WORD for stream in streams], np.uint64)
    start = _mix(np.array([seed & _WORD], np.uint64) + np.uint64(_ODD))
    start = _mix(start + chosen)  # [B], all different
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_ODD)
    bits = _mix(start[:, None] + steps) >> np.uint64(40)  # 24 bits: what a float32 below 1 holds exactly
    return torch.from_numpy(bits.astype(np.float32) * np.float32(2**-24))


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution really sampled from: [B,V] float32, temperature, then top-k, then top-p, renormalised."""
    if sampling.temperature < 1e-3:
        logits = logits - logits.amax(-1, keepdim=True)  # a tiny temperature must not overflow to inf - inf
    probs = torch.softmax(logits if sampling.temperature == 1 else logits / sampling.temperature, -1)
    if sampling.top_k is None and sampling.top_p is None:
        return probs
    if sampling.top_k is not None and sampling.top_k < probs.shape[-1]:
        smallest = probs.topk(sampling.top_k, -1).values[:, -1:]
        probs = probs.masked_fill(probs < smallest, 0.0)
    if sampling.top_p is not None and sampling.top_p < 1:
        ranked, where = probs.sort(-1, descending=True)
        before = ranked.cumsum(-1) - ranked  # mass above each token
        ranked = ranked.masked_fill(before >= sampling.top_p * ranked.sum(-1, keepdim=True), 0.0)
        probs = torch.zeros_like(probs).scatter_(-1, where, ranked)
    return probs / probs.sum(-1, keepdim=True)


def draw(logits: Tensor, sampling: Sampling, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """(token [B], its logp [B] under the distribution really sampled from) by inverse CDF: one uniform [B] per row.

    Greedy (temperature 0) reports the logp under temperature 1. torch.multinomial would draw V exponentials per row,
    11x slower at 32 x 4096 on a CPU.
    """
    if sampling.temperature == 0:
        token = logits.argmax(-1, keepdim=True)
        return token.squeeze(-1), torch.log_softmax(logits, -1).gather(-1, token).squeeze(-1)
    probs = probabilities(logits, sampling)
    cdf = probs.cumsum(-1)
    token = torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True)
    token = token.clamp_(max=probs.shape[-1] - 1)  # NaN is past everything
    chosen = probs.gather(-1, token)
    likeliest, where = probs.max(-1, keepdim=True)
    wrong = chosen <= 0  # a parallel sum need not rise evenly: on CUDA its rounding can point at a token without mass
    token, chosen = torch.where(wrong, where, token), torch.where(wrong, likeliest, chosen)
    return token.squeeze(-1), chosen.squeeze(-1).log()
