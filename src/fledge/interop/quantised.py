"""The frozen base of an adapter in 8 bits a weight, by torchao: a quarter of the memory of float32, for training beside it.

Weights only, each row of a block's matrices with a scale of its own; products are computed in the activations' dtype
(Dettmers et al. 2023, "QLoRA", section 3, with 8 bits in place of 4). Embeddings, norms and adapters stay as they are.
"""

import torch
from torch import nn

from fledge.core.model import Transformer

PROJECTIONS = ("qkv", "attention_out", "gate_up", "down")


def require_bits(bits: int) -> None:
    """Raise ValueError where this platform cannot hold a base of so many bits, saying what is missing."""
    if bits == 4:
        raise ValueError(
            "base_bits = 4: torchao's 4-bit products need a CUDA device and the package mslk, and are not built in here; "
            "take 8"
        )
    if bits != 8:
        raise ValueError(f"base_bits = {bits}: must be 8, or leave it out")
    try:
        import torchao  # noqa: F401 - an optional package
    except ImportError:
        raise ValueError("base_bits = 8: needs the package torchao: `pip install fledge[quantised]`") from None


def quantise(model: Transformer, bits: int = 8) -> Transformer:
    """Put the blocks' matrices of a model whose adapter is attached into `bits` bits, in place; returns the model.

    Raises ValueError for a model without an adapter (what is rounded cannot be trained), for DoRA, which needs the lengths
    of whole rows at every step, and where the platform cannot.
    """
    require_bits(bits)
    if not isinstance(model, Transformer) or model.adapter is None:
        raise ValueError(
            f"base_bits = {bits}: only the frozen base of an adapter can be quantised; set --adapter as well"
        )
    if model.adapter.config.kind == "dora":
        raise ValueError(f"base_bits = {bits}: dora needs the base's own weights at every step; take lora")
    from torchao.quantization import Int8Tensor, Int8WeightOnlyConfig, quantize_

    Int8Tensor.implements(torch.ops.aten.to.dtype)(_to)  # which it lacks, and inference_mode asks for
    for layer in model.layers:
        for name in PROJECTIONS:
            weight = getattr(layer, name)
            with torch.device("meta"):
                product = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            product.weight = nn.Parameter(weight.detach(), requires_grad=False)
            quantize_(product, Int8WeightOnlyConfig(set_inductor_config=False))
            setattr(layer, name, nn.Parameter(product.weight.detach(), requires_grad=False))
    model.bits = bits
    return model


def _to(func, types, args, kwargs):
    """tensor.to(dtype) of a quantised tensor: the dtype its products are computed in."""
    tensor, dtype = args[:2]
    return tensor if tensor.dtype == dtype else torch.ops.aten._to_copy.default(tensor, dtype=dtype)


def weight_bytes(model: nn.Module) -> int:
    """Bytes that the parameters take, those inside quantised ones counted as they are stored."""
    total = 0
    for parameter in model.parameters():
        data = parameter.data
        inner = [data] if type(data) is torch.Tensor else [getattr(data, name) for name in data.__tensor_flatten__()[0]]
        total += sum(t.numel() * t.element_size() for t in inner)
    return total
