"""Adapters: a few trained numbers beside frozen weights. Seven kinds, one interface.

Each linear product of a block may have a module in `layer.adapters` that takes its place: forward(x, weight, bias).
Prefix keys and values sit there under "prefix"; a prompt and new embedding rows belong to the whole model.
core/adapting.py puts them on a model and takes them off.
Shapes: B rows, T positions, I inputs and O outputs of a product, r rank, n virtual tokens, D width, K key/value heads,
E head width, V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fledge.core.config import Settings
from fledge.core.model import Transformer
from fledge.core.shape import ModelConfig

Kind = Literal["lora", "dora", "ia3", "houlsby", "bitfit", "prefix", "prompt"]
PARTS = {  # fused product -> its parts, in the order of the rows
    "qkv": ("q", "k", "v"),
    "attention_out": ("o",),
    "gate_up": ("gate", "up"),
    "down": ("down",),
}
_ALL = tuple(part for parts in PARTS.values() for part in parts)
_USUAL = {  # where each kind sits if not told otherwise
    "lora": _ALL,
    "dora": _ALL,
    "bitfit": _ALL,
    "ia3": ("k", "v", "down"),  # Liu et al. 2022, section 3.3
    "houlsby": ("o", "down"),  # after attention and after the feed-forward: Houlsby et al. 2019, figure 2
    "prefix": (),
    "prompt": (),
}
MERGEABLE = ("lora", "dora", "ia3", "bitfit")


class AdapterConfig(Settings, frozen=True, kw_only=True):
    """A few trained numbers beside the frozen weights of a model."""

    kind: Kind = "lora"
    "lora, dora, ia3, houlsby, bitfit, prefix or prompt; --adapter lora means --adapter.kind lora."
    rank: int = 8
    "Rank of lora and dora, bottleneck width of houlsby."
    alpha: float | None = None
    "lora and dora add alpha / rank times their product; None takes 2 x rank."
    targets: list[str] = []
    "Products adapted, of q, k, v, o, gate, up, down; empty takes the kind's usual ones."
    virtual_tokens: int = 16
    "Learned positions in front of the text, for prefix and prompt."
    new_tokens: list[int] | None = None
    "Tokens whose embeddings are trained besides; none: control tokens that the parent has never seen; []: no token."
    base_bits: int | None = None
    "8: hold the frozen weights in 8 bits while training (needs torchao); none: as they are."

    def problems(self) -> list[str]:
        found = []
        for name in ("rank", "virtual_tokens"):
            if getattr(self, name) < 1:
                found.append(f"adapter.{name} = {getattr(self, name)}: must be at least 1")
        if self.alpha is not None and not self.alpha > 0:
            found.append(f"adapter.alpha = {self.alpha}: must be above 0; 2 x rank is usual")
        if unknown := [t for t in self.targets if t not in _ALL]:
            found.append(f"adapter.targets = {unknown}: must be of {', '.join(_ALL)}")
        elif len(set(self.targets)) < len(self.targets):
            found.append(f"adapter.targets = {self.targets}: name each once")
        elif self.targets and not _USUAL[self.kind]:
            found.append(f"adapter.targets = {self.targets}: {self.kind} adapts no products; leave it out")
        elif self.kind == "houlsby" and (wrong := set(self.targets) - set(_USUAL["houlsby"])):
            found.append(f"adapter.targets = {sorted(wrong)}: houlsby sits after o and down only")
        if len({*self.rows}) < len(self.rows) or any(t < 0 for t in self.rows):
            found.append(f"adapter.new_tokens = {self.new_tokens}: must be ids of the vocabulary, each once")
        if self.base_bits not in (None, 4, 8):  # 4: see interop/quantised.py
            found.append(f"adapter.base_bits = {self.base_bits}: must be 8, or leave it out")
        if self.base_bits is not None and self.kind == "dora":
            found.append(f"adapter.base_bits = {self.base_bits}: dora needs the weights as they are; take lora")
        return found

    @property
    def rows(self) -> list[int]:
        """Tokens whose embeddings are trained besides, where that is decided."""
        return self.new_tokens or []

    @property
    def scale(self) -> float:
        """Factor of the low-rank product."""
        return (2.0 * self.rank if self.alpha is None else self.alpha) / self.rank

    @property
    def parts(self) -> tuple[str, ...]:
        """The products this adapter sits on."""
        return tuple(p for p in _ALL if p in self.targets) if self.targets else _USUAL[self.kind]


class Product(NamedTuple):
    """One fused product of a block: which rows of its output belong to which adapted part."""

    rows: dict[str, slice]  # of the adapted parts only
    inputs: int
    outputs: int


def row_sizes(c: ModelConfig) -> dict[str, int]:
    """Outputs of every part."""
    queries, keys = c.heads * c.head_width, c.kv_heads * c.head_width
    return {
        "q": queries, "k": keys, "v": keys, "o": c.width, "gate": c.ffn_width, "up": c.ffn_width, "down": c.width,
    }  # fmt: skip


def products(c: ModelConfig, parts: Sequence[str]) -> dict[str, Product]:
    """The products that these parts belong to, by the name of their weight."""
    sizes = row_sizes(c)
    inputs = {"qkv": c.width, "attention_out": sizes["q"], "gate_up": c.width, "down": c.ffn_width}
    found = {}
    for name, members in PARTS.items():
        rows, at = {}, 0
        for part in members:
            if part in parts:
                rows[part] = slice(at, at + sizes[part])
            at += sizes[part]
        if rows:
            found[name] = Product(rows, inputs[name], at)
    return found


def _small(shape: tuple[int, ...], inputs: int, generator: torch.Generator) -> nn.Parameter:
    """Uniform in +-1/sqrt(inputs), as peft and torch.nn.Linear begin."""
    bound = 1 / math.sqrt(inputs)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=generator))


class LowRank(nn.Module):
    """LoRA, y = W x + s B A x (Hu et al. 2021, eq. 3).

    DoRA scales the rows of W + s B A to learned lengths (Liu et al. 2024, eq. 5).
    """

    def __init__(self, product: Product, weight: Tensor, config: AdapterConfig, generator: torch.Generator):
        super().__init__()
        self.product, self.scale = product, config.scale
        self.a = nn.ParameterDict(
            {p: _small((config.rank, product.inputs), product.inputs, generator) for p in product.rows}
        )
        sizes = {p: rows.stop - rows.start for p, rows in product.rows.items()}
        self.b = nn.ParameterDict({p: nn.Parameter(torch.zeros(size, config.rank)) for p, size in sizes.items()})
        self.magnitude = None
        if config.kind == "dora":
            lengths = torch.linalg.vector_norm(weight.detach().float(), dim=1).cpu()
            self.magnitude = nn.ParameterDict({p: nn.Parameter(lengths[r].clone()) for p, r in product.rows.items()})

    def _stretch(self, part: str, weight: Tensor) -> Tensor:
        """m / |W + s B A| of each row [O]; the length is a constant to the gradient (Liu et al. 2024, section 4.3)."""
        with torch.no_grad():
            whole = weight[self.product.rows[part]].float() + self.scale * (self.b[part] @ self.a[part])
            length = torch.linalg.vector_norm(whole, dim=1)
        return self.magnitude[part] / length

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = functional.linear(x, weight.to(x.dtype), bias if self.magnitude is None else None)
        into = torch.cat([self.a[part] for part in self.product.rows])  # [P r,I]
        low = functional.linear(x, into.to(x.dtype)).chunk(len(self.a), -1)  # P x [..,r]
        pieces, at = [], 0
        for (part, rows), inner in zip(self.product.rows.items(), low, strict=True):
            if rows.start > at:
                pieces.append(y[..., at : rows.start])
            own = y[..., rows] + functional.linear(inner, (self.scale * self.b[part]).to(x.dtype))
            pieces.append(own if self.magnitude is None else own * self._stretch(part, weight).to(x.dtype))
            at = rows.stop
        if at < self.product.outputs:
            pieces.append(y[..., at:])
        y = pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1)
        return y if self.magnitude is None or bias is None else y + bias

    @torch.no_grad()
    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight [O,I] and bias [O] that do the same alone."""
        whole = weight.detach().clone()
        for part, rows in self.product.rows.items():
            whole[rows] += (self.scale * (self.b[part] @ self.a[part])).to(weight.dtype)
            if self.magnitude is not None:
                whole[rows] *= self._stretch(part, weight)[:, None].to(weight.dtype)
        return whole, bias


class Scaling(nn.Module):
    """IA3: learned factors on the outputs of a product, of `down` on its inputs (Liu et al. 2022, section 3.3)."""

    def __init__(self, product: Product, weight: Tensor, config: AdapterConfig, generator: torch.Generator):
        super().__init__()
        self.product, self.on_inputs = product, "down" in product.rows
        sizes = {p: product.inputs if self.on_inputs else r.stop - r.start for p, r in product.rows.items()}
        self.factor = nn.ParameterDict({p: nn.Parameter(torch.ones(size)) for p, size in sizes.items()})

    def _factors(self) -> Tensor:
        if self.on_inputs:
            return self.factor["down"]
        whole = torch.ones(self.product.outputs, device=next(iter(self.factor.values())).device)
        for part, rows in self.product.rows.items():
            whole[rows] = self.factor[part]
        return whole

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        factors = self._factors().to(x.dtype)
        if self.on_inputs:
            return functional.linear(x * factors, weight.to(x.dtype), bias)
        return functional.linear(x, weight.to(x.dtype), bias) * factors

    @torch.no_grad()
    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight [O,I] and bias [O] that do the same alone."""
        factors = self._factors().detach().to(weight.dtype)
        if self.on_inputs:
            return weight.detach() * factors, bias
        return weight.detach() * factors[:, None], None if bias is None else bias.detach() * factors


class Offset(nn.Module):
    """BitFit: only biases are trained (Ben Zaken et al. 2022, section 3); where the model has none they begin at 0."""

    def __init__(self, product: Product, weight: Tensor, config: AdapterConfig, generator: torch.Generator):
        super().__init__()
        self.product = product
        sizes = {p: r.stop - r.start for p, r in product.rows.items()}
        self.bias = nn.ParameterDict({p: nn.Parameter(torch.zeros(size)) for p, size in sizes.items()})

    def whole(self) -> Tensor:
        """[O], 0 where a part is not adapted."""
        whole = torch.zeros(self.product.outputs, device=next(iter(self.bias.values())).device)
        for part, rows in self.product.rows.items():
            whole[rows] = self.bias[part]
        return whole

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        own = self.whole()
        return functional.linear(x, weight.to(x.dtype), (own if bias is None else own + bias).to(x.dtype))

    @torch.no_grad()
    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight [O,I] and bias [O] that do the same alone."""
        own = self.whole().detach()
        return weight.detach(), own if bias is None else bias.detach() + own


class Bottleneck(nn.Module):
    """Houlsby adapter after a product: y + U gelu(W y) (Houlsby et al. 2019, figure 2)."""

    def __init__(self, product: Product, weight: Tensor, config: AdapterConfig, generator: torch.Generator):
        super().__init__()
        width = product.outputs
        self.into = _small((config.rank, width), width, generator)
        self.into_bias = nn.Parameter(torch.zeros(config.rank))
        self.back = nn.Parameter(torch.zeros(width, config.rank))
        self.back_bias = nn.Parameter(torch.zeros(width))

    def after(self, y: Tensor) -> Tensor:
        """What follows the product y [..,O]."""
        inner = functional.gelu(functional.linear(y, self.into.to(y.dtype), self.into_bias.to(y.dtype)))
        return y + functional.linear(inner, self.back.to(y.dtype), self.back_bias.to(y.dtype))

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.after(functional.linear(x, weight.to(x.dtype), bias))


class Prefix(nn.Module):
    """Keys and values of a layer that every position sees (Li and Liang 2021, section 4.2); keys are not rotated."""

    def __init__(self, keys: Tensor, values: Tensor):
        """keys, values [K,n,E] to begin with."""
        super().__init__()
        self.keys, self.values = nn.Parameter(keys.clone()), nn.Parameter(values.clone())

    def forward(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k, v [B,K,T,E] -> [B,K,n+T,E]."""
        own = (t.to(k.dtype).expand(len(k), -1, -1, -1) for t in (self.keys, self.values))
        return tuple(torch.cat(pair, 2) for pair in zip(own, (k, v), strict=True))


_MODULES = {"lora": LowRank, "dora": LowRank, "ia3": Scaling, "bitfit": Offset, "houlsby": Bottleneck}


class Adapter(nn.Module):
    """All that is trained beside a frozen model, as `model.adapter`."""

    def __init__(self, model: Transformer, config: AdapterConfig, seed: int):
        """Starts as no change; prefix and prompt start as the text of n random tokens (Lester et al. 2021, section 3)."""
        super().__init__()
        generator, c = torch.Generator().manual_seed(seed), model.config
        device = model.embedding.device
        self.config, self.prompt, self.embedding_rows, self.unembedding_rows = config, None, None, None
        self.originals: tuple[ModelConfig, dict[str, Tensor]] | None = None  # while merged: the base, see adapting.py
        found = [{} for _ in range(c.layers)]
        if config.kind in _MODULES:
            for name, product in products(c, config.parts).items():
                for i, layer in enumerate(model.layers):
                    found[i][name] = _MODULES[config.kind](product, getattr(layer, name), config, generator)
        if self.virtual:
            tokens = torch.randint(c.vocab_size, (1, self.virtual), generator=generator).to(device)
            x, caches = read(model, tokens)
            if config.kind == "prompt":
                self.prompt = nn.Parameter(x[0].float())  # [n,D]
            else:
                found = [{"prefix": Prefix(k[0].float(), v[0].float())} for k, v in caches]
        self.layers = nn.ModuleList(nn.ModuleDict(modules) for modules in found)
        self.register_buffer("_new", torch.tensor(config.rows, dtype=torch.long), persistent=False)
        if config.rows:
            self.embedding_rows = nn.Parameter(model.embedding.detach()[config.rows].clone())
            if model.unembedding is not None:
                self.unembedding_rows = nn.Parameter(model.unembedding.detach()[config.rows].clone())
        self.to(device)

    @property
    def virtual(self) -> int:
        """Learned positions n in front of the text; 0 for kinds without."""
        return self.config.virtual_tokens if self.config.kind in ("prefix", "prompt") else 0

    @property
    def plain(self) -> bool:
        """True where the adapter is a change of weights alone, no bias and no position of its own."""
        return self.config.kind in ("lora", "dora", "ia3")

    def embedding(self, table: Tensor) -> Tensor:
        """[V,D] with the rows of new tokens as they are trained."""
        return table if self.embedding_rows is None else table.index_copy(0, self._new, self.embedding_rows)

    def unembedding(self, table: Tensor) -> Tensor:
        """[V,D], as embedding()."""
        return table if self.unembedding_rows is None else table.index_copy(0, self._new, self.unembedding_rows)

    def layout(
        self, model: Transformer, length: int, doc: Tensor | None, dtype: torch.dtype
    ) -> tuple[dict[str, tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
        """Rotary tables by kind of layer, and masks [1 or B,1,R,n+T] for layers that see everything and windowed ones.

        Text begins at position n in every document and sees the virtual positions, which see only each other. The rows R
        are all n + T of a prompt, whose positions pass through the layers, and the T of the text behind a prefix.
        """
        n, device, c = self.virtual, model.embedding.device, model.config
        doc = (
            torch.zeros(1, length, dtype=torch.long, device=device) if doc is None else doc.long() + 1
        )  # padding is -1
        begins = functional.pad(doc[:, 1:] != doc[:, :-1], (1, 0), value=True)
        text = torch.arange(length, device=device).expand(len(doc), -1)
        text = n + text - (text * begins).cummax(1).values
        own = torch.arange(n, device=device)
        at = torch.cat((own.expand(len(doc), -1), text), 1)  # [1 or B,n+T] positions
        doc = functional.pad(doc, (n, 0), value=-1)
        seen = (doc[:, :, None] == doc[:, None, :]) | (doc == -1)[:, None, :]
        if c.causal:
            seen &= torch.ones_like(seen[0]).tril()
        near = seen if c.window is None else seen & (at[:, :, None] - at[:, None, :] < c.window)
        rows = slice(0 if self.prompt is not None else n, None)
        masks = tuple(
            torch.zeros(s.shape, dtype=dtype, device=device).masked_fill_(~s, -torch.inf)[:, None, rows]
            for s in (seen, near)
        )
        place = at[0, rows] if len(at) == 1 else at[:, None, rows]  # two dimensions take the compiled path
        tables = model.rotaries(n + length, device)
        return {kind: (cos[place], sin[place]) for kind, (cos, sin) in tables.items()}, masks

    def lead(self, model: Transformer, x: Tensor, doc: Tensor | None) -> tuple:
        """Embedded text [B,T,D] as the layers take it: behind a prompt [B,n+T,D]; rotary tables and masks of layout()."""
        rotary, masks = self.layout(model, x.shape[1], doc, x.dtype)
        if self.prompt is not None:
            x = torch.cat((self.prompt.to(x.dtype).expand(len(x), -1, -1), x), 1)
        return x, rotary, masks

    def hidden(self, model: Transformer, tokens: Tensor, doc: Tensor | None) -> Tensor:
        """Transformer.hidden() behind the virtual positions: [B,T,D] of tokens [B,T]."""
        x, rotary, masks = self.lead(model, model.embed(tokens, model.compute_dtype), doc)
        for layer in model.layers:
            x = layer(x, rotary[layer.positions], masks[layer.windowed], None, model.config.causal)
        return model.final_norm(x[:, -tokens.shape[1] :])


@torch.no_grad()
def read(model: Transformer, tokens: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Embeddings [B,T,D] of tokens [B,T], and what every layer keeps of them: rotated keys and values [B,K,T,E]."""
    dtype, kept = torch.float32, []
    rotary, masks = model.rotaries(tokens.shape[1], tokens.device), model.masks(tokens, None, dtype)
    x = embedded = model.embed(tokens, dtype)
    for layer in model.layers:
        kept.append(layer.project(x, rotary[layer.positions])[1:])
        x = layer(x, rotary[layer.positions], masks[layer.windowed], None, model.config.causal)
    return embedded, kept
