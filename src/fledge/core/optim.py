"""Optimisers as torch ships them, one named state for checkpoints, and the schedule as a function of progress."""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

Schedule = Literal["cosine", "linear", "constant"]
_EMBEDDINGS = (
    "embedding", "unembedding", "value_head", "class_head",
    "adapter.prompt", "adapter.embedding_rows", "adapter.unembedding_rows",
)  # fmt: skip


def schedule_factor(progress: float, kind: Schedule, warmup: float, floor: float) -> float:
    """Learning-rate factor at `progress` in [0,1]: linear warm-up over `warmup`, then decay down to `floor`."""
    if progress < warmup:
        return max(progress, 1e-3 * warmup) / warmup
    if kind == "constant":
        return 1.0
    done = (progress - warmup) / max(1e-9, 1.0 - warmup)
    shape = 0.5 + 0.5 * math.cos(math.pi * done) if kind == "cosine" else 1.0 - done
    return floor + (1.0 - floor) * shape


class Optimizer:
    """AdamW for all parameters, or Muon for the blocks' matrices and AdamW for the rest, behind one step().

    Muon (Jordan et al. 2024) takes a learning rate scaled to match AdamW's update size (Liu et al. 2025, section 2.2),
    so one `lr` serves both.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        kind: Literal["adamw", "muon"] = "adamw",
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.1,
    ):
        self.names = {p: n for n, p in model.named_parameters() if p.requires_grad}
        matrices = [p for p, n in self.names.items() if p.ndim == 2 and n not in _EMBEDDINGS]
        others = [p for p in self.names if not any(p is m for m in matrices)]
        self.parts: list[torch.optim.Optimizer] = []
        if kind == "muon" and matrices:  # an adapter may have none
            self.parts.append(
                torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            )
            groups = self._groups(others, weight_decay)
        else:
            groups = self._groups(matrices + others, weight_decay)
        self.parts.append(torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True))

    def _groups(self, parameters: Iterable[Tensor], weight_decay: float) -> list[dict]:
        decayed = [p for p in parameters if p.ndim == 2]
        plain = [p for p in parameters if p.ndim != 2]  # gains and biases are not decayed
        groups = ({"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0})
        return [g for g in groups if g["params"]]

    def step(self, lr: float) -> None:
        """Apply the gradients with learning rate `lr`."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """State by parameter name, e.g. "layers.0.qkv/exp_avg"; empty before the first step."""
        found = {}
        for part in self.parts:
            for parameter, state in part.state.items():
                for key, value in state.items():
                    found[f"{self.names[parameter]}/{key}"] = value
        return found

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of tensors(). Raises ValueError for state of a parameter this model does not have."""
        by_name = {name: p for p, name in self.names.items()}
        owner = {id(p): part for part in self.parts for g in part.param_groups for p in g["params"]}
        for key, value in tensors.items():
            name, _, field = key.rpartition("/")
            if name not in by_name:
                raise ValueError(f"optimiser state {key!r} belongs to no parameter of this model: wrong checkpoint?")
            parameter = by_name[name]
            device = value.device if field == "step" and parameter.device.type == "cpu" else parameter.device
            owner[id(parameter)].state[parameter][field] = value.to(device)
