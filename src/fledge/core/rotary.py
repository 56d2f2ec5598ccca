"""Rotary positions (Su et al. 2021, section 3.4.2) and the ways families stretch them to longer contexts.

Letters: E head width, S positions.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from fledge.core.shape import ModelConfig, RopeScaling


def rotary_table(c: ModelConfig, rows: int, kind: Literal["global", "local", "none"]) -> tuple[Tensor, Tensor]:
    """cos and sin [S,E/2] float32 for S = rows positions of a resolved model's layers of this kind (c.positions)."""
    half = c.head_width // 2
    if kind == "none":
        return torch.ones(rows, half), torch.zeros(rows, half)  # a turn by nothing: exact
    base = c.local_rope_base if kind == "local" else c.rope_base
    frequency = base ** -(torch.arange(half, dtype=torch.float64) / half)
    magnitude = 1.0
    if kind == "global" and c.rope_scaling.kind != "none":
        frequency, magnitude = _stretched(frequency, base, c.rope_scaling)
    angle = torch.arange(rows, dtype=torch.float64)[:, None] * frequency
    return (angle.cos() * magnitude).float(), (angle.sin() * magnitude).float()


def _stretched(frequency: Tensor, base: float, s: RopeScaling) -> tuple[Tensor, float]:
    """(frequencies [E/2], factor on cosines and sines)."""
    slow = frequency / s.factor
    if s.kind == "linear":  # Chen et al. 2023, "Extending Context Window via Positional Interpolation", eq. 4
        return slow, 1.0
    if s.kind == "llama3":  # Llama 3.1's own: between `low` and `high` turns over the old context, in proportion
        turns = s.original_context * frequency / (2 * math.pi)
        keep = ((turns - s.low) / (s.high - s.low)).clamp(0, 1)
        return slow + (frequency - slow) * keep, 1.0
    magnitude = s.magnitude  # Peng et al. 2023, "YaRN", definition 2 and eq. 15
    if magnitude is None:
        magnitude = 0.1 * math.log(s.factor) + 1.0 if s.factor > 1 else 1.0
    half = len(frequency)

    def place(turns: float) -> float:
        """Which dimension turns so often over the old context."""
        return half * math.log(s.original_context / (turns * 2 * math.pi)) / math.log(base)

    first, last = place(s.beta_fast), place(s.beta_slow)
    if s.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * half - 1)
    if first == last:
        last += 0.001
    keep = 1 - ((torch.arange(half, dtype=torch.float64) - first) / (last - first)).clamp(0, 1)
    return slow + (frequency - slow) * keep, magnitude
