"""What a model is made of: the shape a recipe chooses, and everything else that the families we import differ in.

Letters: D width, H query heads, K key/value heads, E head width, F feed-forward width, V vocabulary, L layers, T positions.
"""

import math
from typing import Literal, Self

import msgspec

from fledge.core.config import Settings

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
        return found + self._misfits(self.resolved())

    def _misfits(self, c: Self) -> list[str]:
        """Rules between the numbers of `c`, which is this shape resolved."""
        found = []
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
        return ModelConfig(**msgspec.structs.asdict(self)).parameter_count(vocab_size)

    def flops_per_token(self) -> float:
        """Training FLOPs per token: 6 x matmul weights + 6 L T D for causal attention (Kaplan et al. 2020, table 1)."""
        return ModelConfig(**msgspec.structs.asdict(self)).flops_per_token()


class RopeScaling(Settings, frozen=True, kw_only=True):
    """How rotary frequencies are stretched to contexts longer than those first trained (core/rotary.py)."""

    kind: Literal["none", "linear", "llama3", "yarn"] = "none"
    "none; linear: every position divided by the factor; llama3 and yarn: slow frequencies only."
    factor: float = 1.0
    "How many times longer the context gets."
    original_context: int = 8192
    "Context before stretching, in tokens (llama3, yarn)."
    low: float = 1.0
    "llama3: frequencies of fewer turns than this over the original context are divided by the factor."
    high: float = 4.0
    "llama3: frequencies of more turns than this stay."
    beta_slow: float = 1.0
    "yarn: as low."
    beta_fast: float = 32.0
    "yarn: as high."
    magnitude: float | None = None
    "yarn: factor on the cosines and sines; None takes 0.1 ln(factor) + 1."
    truncate: bool = True
    "yarn: bounds of the ramp are whole dimensions."

    def problems(self) -> list[str]:
        """Every rule these numbers break, in words."""
        name, found = "model.rope_scaling", []
        if not 0 < self.factor < math.inf:
            found.append(f"{name}.factor = {self.factor}: must be above 0")
        if self.original_context < 1:
            found.append(f"{name}.original_context = {self.original_context}: must be at least 1")
        if not 0 < self.low < self.high:
            found.append(f"{name}.low = {self.low}, high = {self.high}: must be above 0 and low below high")
        if not 0 < self.beta_slow < self.beta_fast:
            found.append(f"{name}.beta_slow = {self.beta_slow}, beta_fast = {self.beta_fast}: must be above 0 and rise")
        if self.magnitude is not None and not 0 < self.magnitude < math.inf:
            found.append(f"{name}.magnitude = {self.magnitude}: must be above 0, or None")
        return found


class ModelConfig(Shape, frozen=True, kw_only=True):
    """A shape, what it is used for (each stage sets these itself), and what imported families need.

    Every default is our own model: nothing here can be set in a recipe.
    """

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
    architecture: Literal["decoder", "bert"] = "decoder"
    "decoder: Transformer of core/model.py; bert: Encoder of core/encoder.py."
    token_types: int = 2
    "Rows of the token-type embedding (bert)."
    head_width: int | None = None
    "Width E of a head; None takes width / heads (Qwen3 and Gemma 3 name their own)."
    norms: Literal["pre", "post", "sandwich"] = "pre"
    "RMSNorm before attention and feed-forward, after them (OLMo 2), or both (Gemma 3)."
    qk_norm_whole: bool = False
    "The norm of qk_norm runs over all heads together (OLMo 2)."
    out_bias: bool = False
    "Bias on the attention's output projection (Llama's attention_bias sets this and bias)."
    mlp_bias: bool = False
    "Biases on the feed-forward's projections."
    activation: Literal["silu", "gelu_tanh"] = "silu"
    "What the gate of the feed-forward passes through; gelu_tanh is Gemma's. bert takes the exact GELU, without a gate."
    rope_scaling: RopeScaling = RopeScaling()
    "Stretching of the rotary frequencies."
    no_rope_layers: tuple[int, ...] = ()
    "Layers, counted from 0, without positions (SmolLM3)."
    window: int | None = None
    "Positions seen, its own included (Mistral's sliding window); None is all before."
    window_layers: tuple[int, ...] | None = None
    "Layers, counted from 0, that the window holds for; None is every layer."
    local_rope_base: float | None = None
    "Base of the rotary frequencies of windowed layers, which take no rope_scaling (Gemma 3); None treats all layers alike."
    query_scalar: float | None = None
    "Queries are divided by the root of this (Gemma's query_pre_attn_scalar); None takes the head width."
    embedding_scale: bool = False
    "Embeddings are multiplied by the root of the width (Gemma)."
    gains_from_one: bool = False
    "Gains of norms are stored less 1 (Gemma)."
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    "Dtype an export stores; the weights here are float32 whatever it is."

    def problems(self) -> list[str]:
        """Every rule this model breaks, in words; empty when it can be built."""
        found = super().problems()
        if not self.rope_base > 0:
            found.append(f"model.rope_base = {self.rope_base}: must be above 0; 1e4 is usual")
        if not self.norm_eps >= 0:
            found.append(f"model.norm_eps = {self.norm_eps}: must be at least 0; 1e-6 is usual")
        for name in ("classes", "head_width", "window", "token_types"):
            value = getattr(self, name)
            if value is not None and value < 1:
                found.append(f"model.{name} = {value}: must be at least 1")
        for name in ("local_rope_base", "query_scalar"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                found.append(f"model.{name} = {value}: must be above 0, or None")
        if self.window is not None and not self.causal:
            found.append(f"model.window = {self.window} with causal = False: a window is of positions before; set None")
        if self.qk_norm_whole and not self.qk_norm:
            found.append("model.qk_norm_whole = True without qk_norm: set both")
        if self.architecture == "bert" and (self.causal or self.head not in ("tokens", "class")):
            found.append(f"model.architecture = 'bert' with causal = {self.causal}, head = {self.head!r}: must be False, "
                         "and tokens or class")  # fmt: skip
        return found + self.rope_scaling.problems()

    def _misfits(self, c: Self) -> list[str]:
        found = super()._misfits(c)
        if self.head_width is not None:  # then heads need not divide the width
            found = [line for line in found if "model.kv_heads" in line]
            if c.head_width % 2:
                found.append(f"model.head_width = {c.head_width} is odd: rotary positions need an even one")
        for name in ("no_rope_layers", "window_layers"):
            far = [i for i in getattr(c, name) or () if not 0 <= i < c.layers]
            if far:
                found.append(f"model.{name} has {far}: layers are counted from 0 to {c.layers - 1}")
        return found

    def resolved(self, vocab_size: int | None = None) -> Self:
        """The same model with every None that is derived filled in (vocab_size from the tokenizer where given)."""
        c = super().resolved(vocab_size)
        return msgspec.structs.replace(c, head_width=c.head_width or c.width // c.heads)

    def windowed(self, layer: int) -> bool:
        """True where this layer sees only the window."""
        return self.window is not None and (self.window_layers is None or layer in self.window_layers)

    def positions(self, layer: int) -> Literal["global", "local", "none"]:
        """Which rotary table this layer takes: that of rope_base, of local_rope_base, or none."""
        if layer in self.no_rope_layers:
            return "none"
        return "local" if self.local_rope_base is not None and self.windowed(layer) else "global"

    def parameter_count(self, vocab_size: int | None = None) -> int:
        """Parameters of a token model of this shape, without a scalar or class head."""
        c = self.resolved(vocab_size)
        inner, qkv = c.heads * c.head_width, (c.heads + 2 * c.kv_heads) * c.head_width
        if c.architecture == "bert":
            block = (
                (qkv + 4) * c.width + qkv + c.width * (inner + 1) + 2 * c.width * c.ffn_width + c.ffn_width + c.width
            )
            rows = c.vocab_size * (1 if c.tied else 2) + c.context_tokens + c.token_types
            return c.layers * block + rows * c.width + 2 * c.width + c.width * (c.width + 3) + c.vocab_size
        block = qkv * (c.width + c.bias) + c.width * (inner + c.out_bias) + 3 * c.width * c.ffn_width
        block += (2 * c.ffn_width + c.width) * c.mlp_bias + (4 if c.norms == "sandwich" else 2) * c.width
        if c.qk_norm:
            block += (c.heads + c.kv_heads if c.qk_norm_whole else 2) * c.head_width
        return c.layers * block + c.vocab_size * c.width * (1 if c.tied else 2) + c.width

    def flops_per_token(self) -> float:
        """Training FLOPs per token: 6 x matmul weights + 6 L T D for causal attention (Kaplan et al. 2020, table 1)."""
        c = self.resolved()
        matmul = c.parameter_count() - c.width * (2 * c.layers + 1)
        matmul -= 0 if c.tied else c.vocab_size * c.width  # the embedding look-up multiplies nothing
        return 6.0 * matmul + 6.0 * c.layers * c.context_tokens * c.heads * c.head_width
