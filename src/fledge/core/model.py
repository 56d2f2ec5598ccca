"""One Transformer of the Llama/Qwen3 family for every stage.

Shapes: B rows, T positions, D width, H query heads, K key/value heads, E head width, F feed-forward width, V vocabulary,
N weighted positions.
"""

import math
from typing import Literal, NamedTuple, Self

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from fledge.core.batch import Batch
from fledge.core.config import Settings
from fledge.core.kernels import (
    SHORT_TOKENS,
    attention,
    rms_norm,
    rotate_heads,
    select_logp,
    short_attention_serves,
    swiglu,
)

Head = Literal["tokens", "tokens+value", "reward", "class"]

# The one dial. layers, width, heads; the rest is derived. Parameters with a 2,048 vocabulary (tied below 0.5B).
SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (3, 64, 4),  # 0.3M: tests
    "pocket": (4, 128, 4),  # 1M: two cores, minutes
    "mini": (6, 192, 6),  # 3M
    "small": (8, 320, 5),  # 10M
    "base": (12, 768, 12),  # 86M + vocabulary: about 125M with 50k tokens
    "medium": (24, 1024, 16),  # 350M
    "large": (28, 1536, 16),  # 0.9B
}


class Shape(Settings, frozen=True, kw_only=True):
    """Shape of the model: `size` sets everything, each field overrides; None means derived from `size`."""

    size: str = "pocket"
    "One of tiny, pocket, mini, small, base, medium, large."
    vocab_size: int | None = None
    "Rows of the embedding, in tokens; None takes the tokenizer's."
    layers: int | None = None
    "Transformer blocks."
    width: int | None = None
    "Hidden width D."
    heads: int | None = None
    "Query heads H; must divide width."
    kv_heads: int | None = None
    "Key/value heads K of grouped-query attention; must divide heads; None takes heads."
    ffn_width: int | None = None
    "Feed-forward width F; None takes 8/3 width rounded up to 32."
    context_tokens: int = 128
    "Longest sequence trained or served, in tokens."
    qk_norm: bool = False
    "RMSNorm on queries and keys per head (Qwen3)."
    bias: bool = False
    "Biases on the query, key and value projections (Qwen2)."
    tied: bool | None = None
    "Output head shares the embedding; None ties below width 1536."

    def problems(self) -> list[str]:
        """Every rule this shape breaks, in words; empty when it can be built."""
        found = []
        if self.size not in SIZES:
            found.append(f"model.size = {self.size!r}: must be one of {', '.join(SIZES)}")
        shape = ("layers", "width", "heads", "kv_heads", "ffn_width")
        given = {n: getattr(self, n) for n in (*shape, "context_tokens", "vocab_size")}
        low = {n: v for n, v in given.items() if v is not None and v < 1}
        found += [f"model.{name} = {value}: must be at least 1" for name, value in low.items()]
        if self.size not in SIZES or low.keys() & set(shape):
            return found
        c = self.resolved()
        if c.width % c.heads:
            found.append(f"model.heads = {c.heads} does not divide model.width = {c.width}: set heads to a divisor")
        elif (c.width // c.heads) % 2:
            found.append(f"head width {c.width // c.heads} is odd: rotary positions need an even width / heads")
        if c.heads % c.kv_heads:
            found.append(f"model.kv_heads = {c.kv_heads} does not divide model.heads = {c.heads}: set it to a divisor")
        return found

    def resolved(self, vocab_size: int | None = None) -> Self:
        """The same shape with every None filled in (vocab_size from the tokenizer where given)."""
        layers, width, heads = SIZES[self.size]
        width = self.width or width
        heads = self.heads or heads
        return msgspec.structs.replace(
            self,
            vocab_size=self.vocab_size or vocab_size,
            layers=self.layers or layers,
            width=width,
            heads=heads,
            kv_heads=self.kv_heads or heads,
            ffn_width=self.ffn_width or math.ceil(8 * width / 3 / 32) * 32,
            tied=width < 1536 if self.tied is None else self.tied,
        )

    def parameter_count(self, vocab_size: int | None = None) -> int:
        """Parameters of a token model of this shape, without a scalar or class head."""
        c = self.resolved(vocab_size)
        head_width = c.width // c.heads
        qkv = (c.heads + 2 * c.kv_heads) * head_width
        block = qkv * (c.width + c.bias) + c.width * c.width + 3 * c.width * c.ffn_width + 2 * c.width
        block += 2 * head_width * c.qk_norm
        return c.layers * block + c.vocab_size * c.width * (1 if c.tied else 2) + c.width

    def flops_per_token(self) -> float:
        """Training FLOPs per token: 6 x matmul weights + 6 L T D for causal attention (Kaplan et al. 2020, table 1)."""
        c = self.resolved()
        matmul = c.parameter_count() - c.width * (2 * c.layers + 1)
        matmul -= 0 if c.tied else c.vocab_size * c.width  # the embedding look-up multiplies nothing
        return 6.0 * matmul + 6.0 * c.layers * c.context_tokens * c.width


class ModelConfig(Shape, frozen=True, kw_only=True):
    """A shape and what it is used for; each stage sets these itself."""

    rope_base: float = 10000.0
    "Base of the rotary position frequencies."
    norm_eps: float = 1e-6
    "Added under the root of RMSNorm."
    causal: bool = True
    "False lets every position see all others (BERT)."
    head: Head = "tokens"
    "What the model gives: next-token log-probs, those plus a value per token, one reward, or classes."
    classes: int = 2
    "Number of classes of the class head."

    def problems(self) -> list[str]:
        """Every rule this model breaks, in words; empty when it can be built."""
        found = super().problems()
        if not self.rope_base > 0:
            found.append(f"model.rope_base = {self.rope_base}: must be above 0; 1e4 is usual")
        if not self.norm_eps >= 0:
            found.append(f"model.norm_eps = {self.norm_eps}: must be at least 0; 1e-6 is usual")
        return found if self.classes >= 1 else [*found, f"model.classes = {self.classes}: must be at least 1"]


class Output(NamedTuple):
    """What an objective sees; positions of weight 0 hold 0."""

    logp: Tensor  # [B,T] float32  log p(target), nats
    entropy: Tensor | None  # [B,T] float32  nats; None unless the batch asks for it
    value: Tensor | None  # [B,T] float32  value or reward head
    classes: Tensor | None = None  # [B,T,C] float32  class head


class Block(nn.Module):
    """Pre-norm attention and SwiGLU feed-forward with fused qkv and gate-up projections."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.heads, self.kv_heads, self.eps = c.heads, c.kv_heads, c.norm_eps
        head_width = c.width // c.heads
        fused = (c.heads + 2 * c.kv_heads) * head_width
        self.attention_norm = nn.Parameter(torch.ones(c.width))
        self.qkv = nn.Parameter(torch.empty(fused, c.width))  # rows: queries, keys, values
        self.qkv_bias = nn.Parameter(torch.zeros(fused)) if c.bias else None
        self.q_norm = nn.Parameter(torch.ones(head_width)) if c.qk_norm else None
        self.k_norm = nn.Parameter(torch.ones(head_width)) if c.qk_norm else None
        self.attention_out = nn.Parameter(torch.empty(c.width, c.width))
        self.ffn_norm = nn.Parameter(torch.ones(c.width))
        self.gate_up = nn.Parameter(torch.empty(2 * c.ffn_width, c.width))  # rows: gate, up
        self.down = nn.Parameter(torch.empty(c.width, c.ffn_width))

    def project(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """x [B,T,D] -> q [B,H,T,E] scaled by 1/sqrt(E), k and v [B,K,T,E], q and k rotated."""
        normed = rms_norm(x, self.attention_norm, self.eps)
        bias = None if self.qkv_bias is None else self.qkv_bias.to(x.dtype)
        qkv = functional.linear(normed, self.qkv.to(x.dtype), bias)  # [B,T,(H+2K)E]
        if self.q_norm is not None:
            split = qkv.view(*qkv.shape[:2], self.heads + 2 * self.kv_heads, -1)
            q = rms_norm(split[:, :, : self.heads], self.q_norm, self.eps)
            k = rms_norm(split[:, :, self.heads : self.heads + self.kv_heads], self.k_norm, self.eps)
            qkv = torch.cat((q, k, split[:, :, self.heads + self.kv_heads :]), 2).flatten(2)
        scale = (qkv.shape[-1] // (self.heads + 2 * self.kv_heads)) ** -0.5
        return rotate_heads(qkv, *rotary, self.heads, self.kv_heads, scale)

    def finish(self, x: Tensor, y: Tensor) -> Tensor:
        """Residual [B,T,D] plus attention result [B,H,T,E], then the feed-forward."""
        y = y.transpose(1, 2).flatten(2)
        x = x + functional.linear(y, self.attention_out.to(x.dtype))
        inner = swiglu(functional.linear(rms_norm(x, self.ffn_norm, self.eps), self.gate_up.to(x.dtype)))
        return x + functional.linear(inner, self.down.to(x.dtype))

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, doc: Tensor | None, causal: bool
    ) -> Tensor:
        q, k, v = self.project(x, rotary)
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
        self.compute_dtype = torch.float32
        self.embedding = nn.Parameter(torch.empty(c.vocab_size, c.width))
        self.layers = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.norm = nn.Parameter(torch.ones(c.width))
        self.unembedding = (
            None if c.tied or c.head in ("reward", "class") else nn.Parameter(torch.empty(c.vocab_size, c.width))
        )
        self.value_head = nn.Parameter(torch.zeros(1, c.width)) if c.head in ("tokens+value", "reward") else None
        self.class_head = nn.Parameter(torch.empty(c.classes, c.width)) if c.head == "class" else None
        self._rotary: dict = {}
        self._masks: dict = {}

    def initialise(self, seed: int) -> "Transformer":
        """Normal(0, 0.02), residual outputs scaled by 1/sqrt(2L) (Radford et al. 2019, section 2.3); same seed, same bytes."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1 or name == "value_head":  # gains start at 1, biases and the scalar head at 0
                torch.nn.init.constant_(parameter, 1.0 if name.endswith("norm") else 0.0)
                continue
            std = 0.02 / math.sqrt(2 * self.config.layers) if name.endswith(("attention_out", "down")) else 0.02
            with torch.no_grad():
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))
        return self

    @property
    def head_weight(self) -> Tensor:
        """[V,D] rows that turn a hidden state into logits."""
        return self.embedding if self.unembedding is None else self.unembedding

    def rotary(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin tables [length, E/2] float32, kept for the longest length asked for."""
        key = device
        if key not in self._rotary or self._rotary[key][0].shape[0] < length:
            half = self.config.width // self.config.heads // 2
            rows = max(length, self.config.context_tokens)
            with torch.inference_mode(False):  # generation may ask first, training must be able to use them after
                frequency = self.config.rope_base ** -(torch.arange(half, dtype=torch.float64) / half)
                angle = torch.arange(rows, dtype=torch.float64)[:, None] * frequency
                self._rotary[key] = (angle.cos().float().to(device), angle.sin().float().to(device))
        cos, sin = self._rotary[key]
        return cos[:length], sin[:length]

    def mask(self, tokens: Tensor, doc: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Additive mask [1 or B,1,T,T]: not later positions (if causal), not other documents; None where none is needed."""
        length, device = tokens.shape[1], tokens.device
        if short_attention_serves(tokens, dtype) or (doc is None and (device.type != "cpu" or length > SHORT_TOKENS)):
            return None
        key = (length, dtype, device)
        mask = self._masks.get(key)
        if mask is None:
            hidden = torch.zeros(length, length, dtype=dtype, device=device)
            if self.config.causal:
                hidden.masked_fill_(torch.ones_like(hidden, dtype=torch.bool).triu_(1), -torch.inf)
            mask = hidden[None, None]
            self._masks = {key: mask}  # the last one only; another thread may be asking for another length
        if doc is None:
            return mask
        return mask.masked_fill(doc[:, None, :, None] != doc[:, None, None, :], -torch.inf)

    def hidden(self, tokens: Tensor, doc: Tensor | None = None) -> Tensor:
        """Final normed states [B,T,D] in compute_dtype of tokens [B,T]."""
        dtype = self.compute_dtype
        rotary = self.rotary(tokens.shape[1], tokens.device)
        mask = self.mask(tokens, doc, dtype)
        if doc is not None:
            doc = doc.int().contiguous()  # the compiled kernels read 32-bit numbers
        x = functional.embedding(tokens, self.embedding).to(dtype)
        for layer in self.layers:
            x = layer(x, rotary, mask, doc, self.config.causal)
        return rms_norm(x, self.norm, self.config.norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..,D] -> [..,V] float32."""
        return functional.linear(hidden, self.head_weight.to(hidden.dtype)).float()

    def forward(self, batch: Batch) -> Output:
        """Log-probs at weighted positions only; the scalar and class heads where the config has them."""
        x = self.hidden(batch.tokens, batch.doc)
        shape = batch.tokens.shape
        value = classes = entropy = None
        if self.value_head is not None:
            value = functional.linear(x.float(), self.value_head).squeeze(
                -1
            )  # [B,T] float32: scores are compared closely
        if self.class_head is not None:
            classes = functional.linear(x.float(), self.class_head)
        logp = torch.zeros(batch.tokens.numel(), device=x.device)
        if self.config.head in ("reward", "class"):
            return Output(logp.view(shape), None, value, classes)
        flat = x.flatten(0, 1)
        where = batch.weight.flatten().nonzero().squeeze(1)  # [N]
        want_entropy = batch.want_entropy
        if len(where) == len(flat):
            logp, entropy = select_logp(flat, self.head_weight, batch.targets.flatten(), want_entropy)
        else:
            picked, spread = select_logp(flat[where], self.head_weight, batch.targets.flatten()[where], want_entropy)
            logp = logp.index_copy(0, where, picked)
            if spread is not None:
                entropy = torch.zeros_like(logp).index_copy(0, where, spread)
        return Output(logp.view(shape), None if entropy is None else entropy.view(shape), value, classes)
