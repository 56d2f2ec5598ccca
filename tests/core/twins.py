"""What the tests against transformers' models share: tokens, weights away from where they start, relative errors."""

import torch
from torch import Tensor

from fledge.core.batch import Batch

V = 300  # vocabulary


def random_tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(3, V, (rows, length), generator=torch.Generator().manual_seed(seed))


def shake(model: torch.nn.Module, spread: float = 0.25) -> torch.nn.Module:
    """Redraw every weight, gains around where they start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            start = parameter if parameter.ndim == 1 else torch.zeros_like(parameter)
            parameter.copy_(start + torch.empty_like(parameter).normal_(0.0, spread, generator=generator))
    return model.eval()


def batch_of(tokens: Tensor, targets: Tensor | None = None, **columns) -> Batch:
    targets = tokens.roll(-1, 1) if targets is None else targets
    weight = torch.ones(tokens.shape)
    return Batch(tokens=tokens, targets=targets, weight=weight, units=float(weight.sum()), **columns)


def error(found: Tensor, expected: Tensor) -> float:
    return (found - expected).abs().max().item() / expected.abs().max().item()
