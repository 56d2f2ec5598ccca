"""One Transformer of the Llama/Qwen3 family for every stage.

Shapes: B rows, T positions, D width, H query heads, K key/value heads, E head width, F feed-forward width, V vocabulary,
N weighted positions.
"""

import math
from typing import Literal, NamedTuple

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from fledge.core.batch import Batch
from fledge.core.kernels import (
    SHORT_TOKENS,
    attention,
    geglu,
    rms_norm,
    rotate_heads,
    select_logp,
    short_attention_serves,
    swiglu,
)
from fledge.core.rotary import rotary_table
from fledge.core.shape import SIZES, Head, ModelConfig, RopeScaling, Shape

__all__ = [
    "SIZES",
    "Block",
    "Head",
    "ModelConfig",
    "Output",
    "Projections",
    "RopeScaling",
    "Shape",
    "Transformer",
    "weighted_logp",
]


class Output(NamedTuple):
    """What an objective sees; positions of weight 0 hold 0."""

    logp: Tensor  # [B,T] float32  log p(target), nats
    entropy: Tensor | None  # [B,T] float32  nats; None unless the batch asks for it
    value: Tensor | None  # [B,T] float32  value or reward head
    classes: Tensor | None = None  # [B,T,C] float32  class head


def weighted_logp(x: Tensor, head: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """log p(target) [B,T] float32, and the entropy where the batch wants it, of states [B,T,D] under a head [V,D].

    Only weighted positions are scored; the others hold 0.
    """
    shape, flat = batch.tokens.shape, x.flatten(0, 1)
    where = batch.weight.flatten().nonzero().squeeze(1)  # [N]
    want_entropy = batch.want_entropy
    if len(where) == len(flat):
        logp, entropy = select_logp(flat, head, batch.targets.flatten(), want_entropy)
        return logp.view(shape), None if entropy is None else entropy.view(shape)
    picked, spread = select_logp(flat[where], head, batch.targets.flatten()[where], want_entropy)
    blank = torch.zeros(len(flat), device=x.device)
    logp = blank.index_copy(0, where, picked).view(shape)
    return logp, None if spread is None else blank.index_copy(0, where, spread).view(shape)


class Projections(nn.Module):
    """What blocks share: linear products by name, each with the adapter that may take its place."""

    def __init__(self):
        super().__init__()
        self.adapters: dict[str, nn.Module] = {}

    def linear(self, name: str, x: Tensor) -> Tensor:
        """x [..,in] through the projection of that name (weight [out,in]; its bias is called name_bias) -> [..,out].

        Where `adapters` has one of that name, it is called as adapter(x, weight, bias) instead.
        """
        weight, bias = getattr(self, name).to(x.dtype), getattr(self, f"{name}_bias")
        bias = None if bias is None else bias.to(x.dtype)
        if name in self.adapters:
            return self.adapters[name](x, weight, bias)
        return functional.linear(x, weight, bias)

    def merged(self, name: str) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a projection, those of an adapter that is a change of weights (`plain`) merged in."""
        weight, bias = getattr(self, name), getattr(self, f"{name}_bias")
        return self.adapters[name].merged(weight, bias) if name in self.adapters else (weight, bias)


class Block(Projections):
    """Attention and a gated feed-forward with fused qkv and gate-up projections; norms before them, after them, or both."""

    def __init__(self, c: ModelConfig, layer: int):
        """c: resolved; layer: its number from 0."""
        super().__init__()
        self.heads, self.kv_heads, self.eps = c.heads, c.kv_heads, c.norm_eps
        self.scale = (c.query_scalar or c.head_width) ** -0.5
        self.positions, self.windowed = c.positions(layer), c.windowed(layer)
        self.qk_norm_whole, self.gains_from_one, self.gelu = c.qk_norm_whole, c.gains_from_one, c.activation != "silu"
        fused, inner = (c.heads + 2 * c.kv_heads) * c.head_width, c.heads * c.head_width

        def norm(there: bool, width: int = c.width) -> nn.Parameter | None:
            return nn.Parameter(torch.full((width,), 0.0 if c.gains_from_one else 1.0)) if there else None

        def bias(there: bool, width: int) -> nn.Parameter | None:
            return nn.Parameter(torch.zeros(width)) if there else None

        self.attention_norm = norm(c.norms != "post")
        self.qkv = nn.Parameter(torch.empty(fused, c.width))  # rows: queries, keys, values
        self.qkv_bias = bias(c.bias, fused)
        self.q_norm = norm(c.qk_norm, inner if c.qk_norm_whole else c.head_width)
        self.k_norm = norm(c.qk_norm, c.kv_heads * c.head_width if c.qk_norm_whole else c.head_width)
        self.attention_out = nn.Parameter(torch.empty(c.width, inner))
        self.attention_out_bias = bias(c.out_bias, c.width)
        self.attention_post_norm = norm(c.norms != "pre")
        self.ffn_norm = norm(c.norms != "post")
        self.gate_up = nn.Parameter(torch.empty(2 * c.ffn_width, c.width))  # rows: gate, up
        self.gate_up_bias = bias(c.mlp_bias, 2 * c.ffn_width)
        self.down = nn.Parameter(torch.empty(c.width, c.ffn_width))
        self.down_bias = bias(c.mlp_bias, c.width)
        self.ffn_post_norm = norm(c.norms != "pre")

    def norm(self, x: Tensor, gain: Tensor | None) -> Tensor:
        """RMSNorm of x [..,D]; x itself where this block has no such norm."""
        if gain is None:
            return x
        return rms_norm(x, gain + 1.0 if self.gains_from_one else gain, self.eps)

    def norm_heads(self, qkv: Tensor) -> Tensor:
        """qkv [B,T,(H+2K)E] with queries and keys normed, each head by itself or all of them together."""
        heads = self.heads + 2 * self.kv_heads
        split = qkv.view(*qkv.shape[:2], heads, -1)
        parts = split[:, :, : self.heads], split[:, :, self.heads : self.heads + self.kv_heads]
        if self.qk_norm_whole:
            q, k = (
                self.norm(part.flatten(2), gain).unflatten(2, part.shape[2:])
                for part, gain in zip(parts, (self.q_norm, self.k_norm), strict=True)
            )
        else:
            q, k = self.norm(parts[0], self.q_norm), self.norm(parts[1], self.k_norm)
        return torch.cat((q, k, split[:, :, self.heads + self.kv_heads :]), 2).flatten(2)

    def project(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """x [B,T,D] -> q [B,H,T,E] scaled (by 1/sqrt(E) unless the config says otherwise), k and v [B,K,T,E], q and k rotated."""
        qkv = self.linear("qkv", self.norm(x, self.attention_norm))  # [B,T,(H+2K)E]
        if self.q_norm is not None:
            qkv = self.norm_heads(qkv)
        return rotate_heads(qkv, *rotary, self.heads, self.kv_heads, self.scale)

    def plain_parts(self) -> tuple[Tensor | None, ...]:
        """attention_norm, qkv, qkv_bias, q_norm, k_norm, attention_out, ffn_norm, gate_up, down of a plain block, merged."""
        qkv, bias = self.merged("qkv")
        out, gate_up, down = (self.merged(name)[0] for name in ("attention_out", "gate_up", "down"))
        return self.attention_norm, qkv, bias, self.q_norm, self.k_norm, out, self.ffn_norm, gate_up, down

    def finish(self, x: Tensor, y: Tensor) -> Tensor:
        """Residual [B,T,D] plus attention result [B,H,T,E], then the feed-forward."""
        y = y.transpose(1, 2).flatten(2)
        x = x + self.norm(self.linear("attention_out", y), self.attention_post_norm)
        gate_up = self.linear("gate_up", self.norm(x, self.ffn_norm))
        inner = geglu(gate_up) if self.gelu else swiglu(gate_up)
        return x + self.norm(self.linear("down", inner), self.ffn_post_norm)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, doc: Tensor | None, causal: bool
    ) -> Tensor:
        q, k, v = self.project(x, rotary)
        if "prefix" in self.adapters:
            k, v = self.adapters["prefix"](k, v)
        return self.finish(x, attention(q, k, v, mask=mask, doc=doc, causal=causal))


class Transformer(nn.Module):
    """forward(Batch) -> Output. Weights are float32; `compute_dtype` is the dtype of activations and products."""

    def __init__(self, config: Shape):
        """config: a ModelConfig; a bare Shape makes a causal token model. Raises ValueError for one that cannot work."""
        super().__init__()
        if not isinstance(config, ModelConfig):
            config = ModelConfig(**msgspec.structs.asdict(config))
        if problems := config.problems():
            raise ValueError("; ".join(problems))
        self.config = c = config.resolved()
        if c.vocab_size is None:
            raise ValueError("model.vocab_size is not set: pass config.resolved(vocab_size=len(tokenizer))")
        if c.architecture != "decoder":
            raise ValueError(f"model.architecture = {c.architecture!r}: core/encoder.py's build_model builds it")
        self.compute_dtype = torch.float32
        self.embedding = nn.Parameter(torch.empty(c.vocab_size, c.width))
        self.layers = nn.ModuleList(Block(c, layer) for layer in range(c.layers))
        self.norm = nn.Parameter(torch.full((c.width,), 0.0 if c.gains_from_one else 1.0))
        self.unembedding = (
            None if c.tied or c.head in ("reward", "class") else nn.Parameter(torch.empty(c.vocab_size, c.width))
        )
        self.value_head = nn.Parameter(torch.zeros(1, c.width)) if c.head in ("tokens+value", "reward") else None
        self.class_head = nn.Parameter(torch.empty(c.classes, c.width)) if c.head == "class" else None
        self.adapter: nn.Module | None = None  # see core/adapting.py
        self.bits: int | None = None  # of a quantised base's weights, see interop/quantised.py
        self._rotary: dict = {}
        self._masks: dict = {}

    def initialise(self, seed: int) -> "Transformer":
        """Normal(0, 0.02), residual outputs scaled by 1/sqrt(2L) (Radford et al. 2019, section 2.3); same seed, same bytes."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1 or name == "value_head":  # gains start at 1, biases and the scalar head at 0
                gain = name.endswith("norm") and not self.config.gains_from_one
                torch.nn.init.constant_(parameter, 1.0 if gain else 0.0)
                continue
            std = 0.02 / math.sqrt(2 * self.config.layers) if name.endswith(("attention_out", "down")) else 0.02
            with torch.no_grad():
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))
        return self

    @property
    def head_weight(self) -> Tensor:
        """[V,D] rows that turn a hidden state into logits."""
        if self.unembedding is None:
            return self.embedding_weight
        return self.unembedding if self.adapter is None else self.adapter.unembedding(self.unembedding)

    @property
    def embedding_weight(self) -> Tensor:
        """[V,D] embedding, an adapter's new rows in their places."""
        return self.embedding if self.adapter is None else self.adapter.embedding(self.embedding)

    def rotary(
        self, length: int, device: torch.device, kind: Literal["global", "local", "none"] = "global"
    ) -> tuple[Tensor, Tensor]:
        """cos and sin tables [length, E/2] float32 of a kind of layer, kept for the longest length asked for."""
        key = device, kind
        if key not in self._rotary or self._rotary[key][0].shape[0] < length:
            rows = max(length, self.config.context_tokens)
            with torch.inference_mode(False):  # generation may ask first, training must be able to use them after
                cos, sin = rotary_table(self.config, rows, kind)
                self._rotary[key] = cos.to(device), sin.to(device)
        cos, sin = self._rotary[key]
        return cos[:length], sin[:length]

    def rotaries(self, length: int, device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
        """rotary() for each kind of layer there is."""
        return {kind: self.rotary(length, device, kind) for kind in {layer.positions for layer in self.layers}}

    def mask(self, tokens: Tensor, doc: Tensor | None, dtype: torch.dtype, window: int | None = None) -> Tensor | None:
        """Additive mask [1 or B,1,T,T]: not later positions (if causal), not other documents, not those before the window.

        None where none is needed.
        """
        length, device = tokens.shape[1], tokens.device
        if window is not None and window >= length:
            window = None
        if window is None and (
            short_attention_serves(tokens, dtype) or (doc is None and (device.type != "cpu" or length > SHORT_TOKENS))
        ):
            return None
        key = (length, dtype, device)
        mask = self._masks.get((key, window))
        if mask is None:
            hidden = torch.zeros(length, length, dtype=dtype, device=device)
            if self.config.causal:
                hidden.masked_fill_(torch.ones_like(hidden, dtype=torch.bool).triu_(1), -torch.inf)
            if window is not None:
                hidden.masked_fill_(torch.ones_like(hidden, dtype=torch.bool).tril_(-window), -torch.inf)
            mask = hidden[None, None]
            # those of the last length only; another thread may be asking for another length
            self._masks = {k: m for k, m in self._masks.items() if k[0] == key} | {(key, window): mask}
        if doc is None:
            return mask
        return mask.masked_fill(doc[:, None, :, None] != doc[:, None, None, :], -torch.inf)

    def masks(self, tokens: Tensor, doc: Tensor | None, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """mask() of layers that see everything, and of windowed ones."""
        full, window = self.mask(tokens, doc, dtype), self.config.window
        return full, full if window is None else self.mask(tokens, doc, dtype, window)

    def embed(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """tokens [..] -> [..,D] of dtype."""
        x = functional.embedding(tokens, self.embedding_weight).to(dtype)
        return x * self.config.width**0.5 if self.config.embedding_scale else x

    def final_norm(self, x: Tensor) -> Tensor:
        """The norm before the head: [..,D] -> [..,D]."""
        gain = self.norm + 1.0 if self.config.gains_from_one else self.norm
        return rms_norm(x, gain, self.config.norm_eps)

    def hidden(self, tokens: Tensor, doc: Tensor | None = None) -> Tensor:
        """Final normed states [B,T,D] in compute_dtype of tokens [B,T]."""
        if self.adapter is not None and self.adapter.virtual:
            return self.adapter.hidden(self, tokens, doc)
        dtype = self.compute_dtype
        rotary = self.rotaries(tokens.shape[1], tokens.device)
        masks = self.masks(tokens, doc, dtype)
        if doc is not None:
            doc = doc.int().contiguous()  # the compiled kernels read 32-bit numbers
        x = self.embed(tokens, dtype)
        for layer in self.layers:
            x = layer(x, rotary[layer.positions], masks[layer.windowed], doc, self.config.causal)
        return self.final_norm(x)

    @property
    def plain(self) -> bool:
        """True where a layer is pre-norm attention and SwiGLU, at most with an adapter that merged() can put into its
        weights: what the fast decoding steps know.
        """
        c = self.config
        return (
            c.norms == "pre" and c.activation == "silu" and not (c.qk_norm and c.qk_norm_whole)
            and not (c.out_bias or c.mlp_bias or c.gains_from_one or c.embedding_scale) and c.query_scalar is None
            and (self.adapter is None or self.adapter.plain) and self.bits is None
        )  # fmt: skip

    def logits(self, hidden: Tensor) -> Tensor:
        """[..,D] -> [..,V] float32."""
        return functional.linear(hidden, self.head_weight.to(hidden.dtype)).float()

    def forward(self, batch: Batch) -> Output:
        """Log-probs at weighted positions only; the scalar and class heads where the config has them."""
        x = self.hidden(batch.tokens, batch.doc)
        value = classes = None
        if self.value_head is not None:
            value = functional.linear(x.float(), self.value_head).squeeze(-1)  # [B,T] float32: compared closely
        if self.class_head is not None:
            classes = functional.linear(x.float(), self.class_head)
        if self.config.head in ("reward", "class"):
            return Output(torch.zeros(batch.tokens.shape, device=x.device), None, value, classes)
        return Output(*weighted_logp(x, self.head_weight, batch), value, classes)
