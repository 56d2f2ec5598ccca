"""Names and rows: where each tensor of a Hugging Face model lies in ours. One table serves import and export.

Fused projections are rows of ours: queries, keys, values in `qkv`, gate and up in `gate_up`.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import torch

from fledge.core.encoder import build_model
from fledge.core.model import ModelConfig


class Slot(NamedTuple):
    """A tensor of theirs and the rows of ours that it is."""

    theirs: str
    ours: str
    shape: tuple[int, ...]
    rows: slice | None = None  # None: the whole tensor


_WORDS = {"decoder": "model.embed_tokens.weight", "bert": "bert.embeddings.word_embeddings.weight"}

# Norms of a layer: ours -> theirs, by where a family puts them.
_NORMS = {
    "pre": {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"},
    "post": {"attention_post_norm": "post_attention_layernorm", "ffn_post_norm": "post_feedforward_layernorm"},
    "sandwich": {
        "attention_norm": "input_layernorm",
        "attention_post_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "ffn_post_norm": "post_feedforward_layernorm",
    },
}


# Buffers and heads that files of these families may hold beside the model, and that nothing here computes with.
UNUSED = re.compile(
    r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq|bert\.embeddings\.position_ids|cls\.seq_relationship\.(weight|bias)"
)
_POOLER = re.compile(r"bert\.pooler\.dense\.(weight|bias)")


def slots(config: ModelConfig) -> list[Slot]:
    """Every tensor of the model in the order of its layers, with shapes; a value head beside tokens is not among them."""
    c = config.resolved()
    with torch.device("meta"):  # shapes without memory
        ours = {name: tuple(p.shape) for name, p in build_model(c).named_parameters()}
    found = []
    for theirs, name, rows in _bert_names(c) if c.architecture == "bert" else _decoder_names(c):
        if name in ours:
            shape = ours[name] if rows is None else (rows.stop - rows.start, *ours[name][1:])
            found.append(Slot(theirs, name, shape, rows))
    left = ours.keys() - {slot.ours for slot in found} - {"value_head"}
    assert not left, f"no name for {min(left)}"
    return found


def copies(config: ModelConfig) -> dict[str, str]:
    """Names that a file may hold a second time, where both must be equal: copy -> original."""
    if config.architecture == "bert":
        found = {"cls.predictions.decoder.bias": "cls.predictions.bias"}
        return found | ({"cls.predictions.decoder.weight": _WORDS["bert"]} if config.tied else {})
    return {"lm_head.weight": _WORDS["decoder"]} if config.tied else {}


def passed_over(config: ModelConfig, name: str) -> bool:
    """Whether a tensor of a file may be left out: it belongs to no model of ours."""
    pooled = config.architecture == "bert" and config.head == "tokens" and _POOLER.fullmatch(name)
    return bool(pooled or UNUSED.fullmatch(name))


def current_name(name: str) -> str:
    """The name of today for a tensor of the first BERT files."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _decoder_names(c: ModelConfig) -> Iterator[tuple[str, str, slice | None]]:
    """(theirs, ours, rows) of everything a decoder may have; those that `c` lacks are left out by the caller."""
    q, k = c.heads * c.head_width, c.kv_heads * c.head_width
    fused = {"q_proj": slice(0, q), "k_proj": slice(q, q + k), "v_proj": slice(q + k, q + 2 * k)}
    gated = {"gate_proj": slice(0, c.ffn_width), "up_proj": slice(c.ffn_width, 2 * c.ffn_width)}
    yield _WORDS["decoder"], "embedding", None
    for i in range(c.layers):
        theirs, ours = f"model.layers.{i}", f"layers.{i}"
        for ending, of in (("weight", ""), ("bias", "_bias")):
            for part, rows in fused.items():
                yield f"{theirs}.self_attn.{part}.{ending}", f"{ours}.qkv{of}", rows
            yield f"{theirs}.self_attn.o_proj.{ending}", f"{ours}.attention_out{of}", None
            for part, rows in gated.items():
                yield f"{theirs}.mlp.{part}.{ending}", f"{ours}.gate_up{of}", rows
            yield f"{theirs}.mlp.down_proj.{ending}", f"{ours}.down{of}", None
        for name in ("q_norm", "k_norm"):
            yield f"{theirs}.self_attn.{name}.weight", f"{ours}.{name}", None
        for name, norm in _NORMS[c.norms].items():
            yield f"{theirs}.{norm}.weight", f"{ours}.{name}", None
    yield "model.norm.weight", "norm", None
    yield "lm_head.weight", "unembedding", None
    if c.head in ("reward", "class"):
        yield "score.weight", "value_head" if c.head == "reward" else "class_head", None


def _both(theirs: str, ours: str, rows: slice | None = None) -> Iterator[tuple[str, str, slice | None]]:
    """Weight and bias of a linear map or a LayerNorm."""
    yield f"{theirs}.weight", ours, rows
    yield f"{theirs}.bias", f"{ours}_bias", rows


def _bert_names(c: ModelConfig) -> Iterator[tuple[str, str, slice | None]]:
    """(theirs, ours, rows) of everything an encoder may have."""
    inner = c.heads * c.head_width
    yield _WORDS["bert"], "embedding", None
    yield "bert.embeddings.position_embeddings.weight", "position_embedding", None
    yield "bert.embeddings.token_type_embeddings.weight", "type_embedding", None
    yield from _both("bert.embeddings.LayerNorm", "embedding_norm")
    for i in range(c.layers):
        theirs, ours = f"bert.encoder.layer.{i}", f"layers.{i}"
        for n, part in enumerate(("query", "key", "value")):
            yield from _both(f"{theirs}.attention.self.{part}", f"{ours}.qkv", slice(n * inner, (n + 1) * inner))
        yield from _both(f"{theirs}.attention.output.dense", f"{ours}.attention_out")
        yield from _both(f"{theirs}.attention.output.LayerNorm", f"{ours}.attention_post_norm")
        yield from _both(f"{theirs}.intermediate.dense", f"{ours}.up")
        yield from _both(f"{theirs}.output.dense", f"{ours}.down")
        yield from _both(f"{theirs}.output.LayerNorm", f"{ours}.ffn_post_norm")
    yield from _both("cls.predictions.transform.dense", "transform")
    yield from _both("cls.predictions.transform.LayerNorm", "transform_norm")
    yield "cls.predictions.bias", "logit_bias", None
    yield "cls.predictions.decoder.weight", "unembedding", None
    yield from _both("bert.pooler.dense", "pooler")
    yield from _both("classifier", "class_head")
