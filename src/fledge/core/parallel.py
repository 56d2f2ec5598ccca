"""Data parallelism under `torchrun`: each rank takes its rows of the same global batch, gradients are summed."""

import os

import torch
from torch import Tensor, nn
from torch import distributed as dist


def start() -> tuple[int, int]:
    """Join the process group torchrun describes, if any; returns (rank, world size)."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return 0, 1
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))  # what "cuda" means from here on
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")  # figures go over gloo
    return dist.get_rank(), dist.get_world_size()


def place() -> tuple[int, int]:
    """(rank, world size) of this process; (0, 1) outside a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def total(value: float | Tensor) -> float | Tensor:
    """The sum of `value` over all ranks."""
    if not dist.is_initialized():
        return value
    tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(tensor)
    return tensor if isinstance(value, Tensor) else tensor.item()


def sum_gradients(model: nn.Module) -> None:
    """Replace every gradient by its sum over ranks; each rank already divided by the units of all ranks."""
    if not dist.is_initialized():
        return
    for parameter in model.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:  # a rank whose rows did not touch it still joins the sum
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
