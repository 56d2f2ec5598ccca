"""Putting an adapter on a model, taking it off, and making it part of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import torch
from torch import Tensor, nn

from fledge.core.adapters import MERGEABLE, Adapter, AdapterConfig
from fledge.core.batch import Batch
from fledge.core.model import Output, Transformer

_BIAS_FLAGS = {"qkv": "bias", "attention_out": "out_bias", "gate_up": "mlp_bias", "down": "mlp_bias"}
_HEADS = ("value_head", "class_head")  # a base has none, or one for another purpose: trained besides


def attach(model: Transformer, config: AdapterConfig, seed: int = 0) -> Transformer:
    """Freeze `model` and give it an adapter; a value, reward or class head stays trained. Returns the model.

    Raises ValueError for settings that do not fit, and where there is an adapter already.
    """
    if problems := config.problems():
        raise ValueError("; ".join(problems))
    if not isinstance(model, Transformer):
        raise ValueError(f"adapters sit on core.model.Transformer, this is a {type(model).__name__}: leave adapter out")
    if model.adapter is not None:
        raise ValueError(f"the model has a {model.adapter.config.kind} adapter already: fold() or detach() it first")
    if far := [t for t in config.rows if t >= model.config.vocab_size]:
        raise ValueError(f"adapter.new_tokens = {far}: the embedding has rows 0 to {model.config.vocab_size - 1}")
    adapter = Adapter(model, config, seed)
    model.requires_grad_(False)
    for name in _HEADS:
        if (head := getattr(model, name)) is not None:
            head.requires_grad_(True)
    _put_on(model, adapter)
    return model


def _put_on(model: Transformer, adapter: Adapter | None) -> None:
    model.adapter = adapter
    for i, layer in enumerate(model.layers):
        layer.adapters = {} if adapter is None else dict(adapter.layers[i].items())


def detach(model: Transformer) -> Adapter:
    """Take the adapter off, unmerged, and return it; the model is its base again, and all of it is trained."""
    adapter = _adapter_of(model)
    if adapter.originals is not None:
        unmerge(model)
    _put_on(model, None)
    model.requires_grad_(True)
    return adapter


def _adapter_of(model: Transformer) -> Adapter:
    if model.adapter is None:
        raise ValueError("the model has no adapter: attach() one first")
    return model.adapter


# ------------------------------------------------------------------------------------------------------ merging


def can_merge(model: Transformer) -> bool:
    """True where the adapter can become part of the weights: its kind can, and the weights are plain numbers."""
    plain = all(type(p.data) is Tensor and p.is_floating_point() for p in model.layers.parameters())
    return model.adapter is not None and model.adapter.config.kind in MERGEABLE and plain


@torch.no_grad()
def merge(model: Transformer) -> None:
    """Make the adapter part of the weights, so that it costs nothing; unmerge() puts the base back bit for bit.

    Raises ValueError for kinds that are no change of weights, and for a quantised base.
    """
    adapter = _adapter_of(model)
    if adapter.originals is not None:
        raise ValueError("the adapter is merged already: unmerge() it first")
    if not can_merge(model):
        kind = adapter.config.kind
        why = "the base is quantised" if kind in MERGEABLE else f"a {kind} adapter is no change of weights"
        raise ValueError(f"{why}: it cannot be merged; use base and adapter together, or one of {', '.join(MERGEABLE)}")
    kept = {name: p.data for name, p in model.named_parameters() if not name.startswith("adapter.")}
    adapter.originals = (model.config, kept)
    for name in sorted({name for layer in model.layers for name in layer.adapters}):
        for layer in model.layers:
            weight, bias = layer.adapters[name].merged(getattr(layer, name), getattr(layer, f"{name}_bias"))
            getattr(layer, name).data = weight
            if bias is not None:
                setattr(layer, f"{name}_bias", nn.Parameter(bias, requires_grad=False))
    _even_out_biases(model)
    model.embedding.data = adapter.embedding(model.embedding.data)
    if model.unembedding is not None:
        model.unembedding.data = adapter.unembedding(model.unembedding.data)
    _put_on(model, None)
    model.adapter = adapter  # beside the merged weights, so that unmerge() finds it


def _even_out_biases(model: Transformer) -> None:
    """A config says for all layers, for gate_up and down together, whether there are biases: zeros where none are."""
    flags = {_BIAS_FLAGS[n] for layer in model.layers for n in _BIAS_FLAGS if getattr(layer, f"{n}_bias") is not None}
    for layer in model.layers:
        for name, flag in _BIAS_FLAGS.items():
            if flag in flags and getattr(layer, f"{name}_bias") is None:
                weight = getattr(layer, name)
                zeros = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
                setattr(layer, f"{name}_bias", nn.Parameter(zeros, requires_grad=False))
    model.config = msgspec.structs.replace(model.config, **dict.fromkeys(flags, True))


def unmerge(model: Transformer) -> None:
    """The inverse of merge(): weights, biases and config as they were, the adapter beside them."""
    adapter = _adapter_of(model)
    if adapter.originals is None:
        raise ValueError("the adapter is not merged: merge() it first")
    (model.config, kept), adapter.originals = adapter.originals, None
    for i, layer in enumerate(model.layers):
        for name in _BIAS_FLAGS:
            if f"layers.{i}.{name}_bias" not in kept:
                setattr(layer, f"{name}_bias", None)
    for name, value in kept.items():
        model.get_parameter(name).data = value
    _put_on(model, adapter)


def fold(model: Transformer) -> Transformer:
    """merge() for good: a plain model that is trained as any other. Returns the model."""
    merge(model)
    model.adapter.originals = None
    detach(model)
    return model


# ------------------------------------------------------------------------------------------------ the reference


@contextmanager
def without_adapter(model: Transformer) -> Iterator[None]:
    """The model is its base for as long as this lasts."""
    adapter = _adapter_of(model)
    if adapter.originals is not None:
        raise ValueError("the adapter is merged: unmerge() it first")
    _put_on(model, None)
    try:
        yield
    finally:
        _put_on(model, adapter)


@contextmanager
def _with_values(model: Transformer, values: dict[str, Tensor]) -> Iterator[None]:
    """The model's adapter has these numbers for as long as this lasts."""
    own = {name: model.get_parameter(name) for name in values}
    now = {name: parameter.data for name, parameter in own.items()}
    for name, parameter in own.items():
        parameter.data = values[name].to(parameter.device)
    try:
        yield
    finally:
        for name, parameter in own.items():
            parameter.data = now[name]


class Reference(nn.Module):
    """A model as it was before its adapter was trained, without a second copy of the weights.

    Without its adapter, or where that was trained before this stage and goes on, with the numbers it began with.
    """

    def __init__(self, model: Transformer, began_with: bool = False):
        """began_with: keep the adapter's present numbers."""
        super().__init__()
        self._model = [model]  # in a list, so that its parameters are not this module's own
        self._values = {n: t.clone() for n, t in trained_tensors(model).items()} if began_with else None

    @property
    def config(self):
        return self._model[0].config

    @property
    def compute_dtype(self) -> torch.dtype:
        return self._model[0].compute_dtype

    @property
    def embedding(self) -> Tensor:
        return self._model[0].embedding

    def forward(self, batch: Batch) -> Output:
        model = self._model[0]
        was = without_adapter(model) if self._values is None else _with_values(model, self._values)
        with was, torch.no_grad():
            return model(batch)


# -------------------------------------------------------------------------------------------------- checkpoints


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds of a model: everything, or beside a frozen base only what is trained."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {name: t for name, t in model.state_dict().items() if name not in frozen}


def load_trained(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """The inverse of trained_tensors(). Raises RuntimeError naming what is missing, left over or of another shape."""
    wanted = trained_tensors(model)
    if lost := sorted(wanted.keys() - tensors.keys()):
        raise RuntimeError(f"Missing key(s): {', '.join(lost)}")
    if left := sorted(tensors.keys() - wanted.keys()):
        raise RuntimeError(f"Unexpected key(s): {', '.join(left)}")
    model.load_state_dict(tensors, strict=False)
