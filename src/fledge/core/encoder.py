"""BERT (Devlin et al. 2019) behind the same forward(Batch) -> Output, and the choice between it and the decoder.

Shapes: B rows, T positions, D width, F feed-forward width, V vocabulary, C classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fledge.core.batch import Batch
from fledge.core.kernels import attention, rotate_heads, short_attention_serves
from fledge.core.model import Output, Projections, Shape, Transformer, weighted_logp
from fledge.core.rotary import rotary_table
from fledge.core.shape import ModelConfig


def build_model(config: Shape) -> "Transformer | Encoder":
    """The model of this config, its weights not yet set. Raises ValueError for one that cannot work."""
    bert = isinstance(config, ModelConfig) and config.architecture == "bert"
    return Encoder(config) if bert else Transformer(config)


class EncoderBlock(Projections):
    """Attention and a GELU feed-forward with biases, each followed by LayerNorm over the sum with what it read."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.heads, self.eps, self.scale = c.heads, c.norm_eps, c.head_width**-0.5
        inner = c.heads * c.head_width

        def linear(rows: int, depth: int) -> tuple[nn.Parameter, nn.Parameter]:
            return nn.Parameter(torch.empty(rows, depth)), nn.Parameter(torch.zeros(rows))

        def norm() -> tuple[nn.Parameter, nn.Parameter]:
            return nn.Parameter(torch.ones(c.width)), nn.Parameter(torch.zeros(c.width))

        self.qkv, self.qkv_bias = linear(3 * inner, c.width)  # rows: queries, keys, values
        self.attention_out, self.attention_out_bias = linear(c.width, inner)
        self.attention_post_norm, self.attention_post_norm_bias = norm()
        self.up, self.up_bias = linear(c.ffn_width, c.width)
        self.down, self.down_bias = linear(c.width, c.ffn_width)
        self.ffn_post_norm, self.ffn_post_norm_bias = norm()

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor], mask: Tensor | None, doc: Tensor | None) -> Tensor:
        """x [B,T,D] -> [B,T,D]; table: rotary tables that turn nothing, for the fused split into heads."""
        q, k, v = rotate_heads(self.linear("qkv", x), *table, self.heads, self.heads, self.scale)
        y = attention(q, k, v, mask=mask, doc=doc, causal=False).transpose(1, 2).flatten(2)
        y = x + self.linear("attention_out", y)
        x = layer_norm(y, self.attention_post_norm, self.attention_post_norm_bias, self.eps)
        y = x + self.linear("down", functional.gelu(self.linear("up", x)))
        return layer_norm(y, self.ffn_post_norm, self.ffn_post_norm_bias, self.eps)


class Encoder(Projections):
    """forward(Batch) -> Output with a masked-token head or a class head; no dropout.

    A document's positions count from its first token, so packed documents score as they do alone. All token types are 0
    unless hidden() is told others.
    """

    def __init__(self, config: ModelConfig):
        """config: architecture "bert". Raises ValueError for one that cannot work."""
        super().__init__()
        if problems := config.problems():
            raise ValueError("; ".join(problems))
        self.config = c = config.resolved()
        if c.vocab_size is None:
            raise ValueError("model.vocab_size is not set: pass config.resolved(vocab_size=len(tokenizer))")
        self.compute_dtype = torch.float32
        self.embedding = nn.Parameter(torch.empty(c.vocab_size, c.width))
        self.position_embedding = nn.Parameter(torch.empty(c.context_tokens, c.width))
        self.type_embedding = nn.Parameter(torch.empty(c.token_types, c.width))
        self.embedding_norm = nn.Parameter(torch.ones(c.width))
        self.embedding_norm_bias = nn.Parameter(torch.zeros(c.width))
        self.layers = nn.ModuleList(EncoderBlock(c) for _ in range(c.layers))
        self.unembedding = None
        if c.head == "class":
            self.pooler = nn.Parameter(torch.empty(c.width, c.width))
            self.pooler_bias = nn.Parameter(torch.zeros(c.width))
            self.class_head = nn.Parameter(torch.empty(c.classes, c.width))
            self.class_head_bias = nn.Parameter(torch.zeros(c.classes))
        else:
            self.transform = nn.Parameter(torch.empty(c.width, c.width))
            self.transform_bias = nn.Parameter(torch.zeros(c.width))
            self.transform_norm = nn.Parameter(torch.ones(c.width))
            self.transform_norm_bias = nn.Parameter(torch.zeros(c.width))
            self.logit_bias = nn.Parameter(torch.zeros(c.vocab_size))
            if not c.tied:
                self.unembedding = nn.Parameter(torch.empty(c.vocab_size, c.width))
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def initialise(self, seed: int) -> "Encoder":
        """Normal(0, 0.02), gains 1, biases 0 (Devlin et al. 2019, appendix A.2); same seed, same bytes."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.ndim == 1:
                    parameter.fill_(1.0 if name.endswith("norm") else 0.0)
                else:
                    parameter.copy_(torch.empty(parameter.shape).normal_(0.0, 0.02, generator=generator))
        return self

    @property
    def head_weight(self) -> Tensor:
        """[V,D] rows that turn a transformed state into logits, less their bias."""
        return self.embedding if self.unembedding is None else self.unembedding

    def hidden(self, tokens: Tensor, doc: Tensor | None = None, types: Tensor | None = None) -> Tensor:
        """Last states [B,T,D] in compute_dtype of tokens [B,T]; types [B,T] int64, None for all 0.

        Raises ValueError for a row longer than the learned positions.
        """
        c, (rows, length), device = self.config, tokens.shape, tokens.device
        if length > c.context_tokens:
            raise ValueError(
                f"row of {length} tokens: this encoder has learned {c.context_tokens} positions; cut the text"
            )
        place = torch.arange(length, device=device).expand(rows, length)
        if doc is not None:
            doc = doc.int().contiguous()
            first = torch.ones_like(doc, dtype=torch.bool)
            first[:, 1:] = doc[:, 1:] != doc[:, :-1]
            place = place - (place * first).cummax(1).values
        x = functional.embedding(tokens, self.embedding)
        x = x + functional.embedding(torch.zeros_like(tokens) if types is None else types, self.type_embedding)
        x = x + functional.embedding(place, self.position_embedding)
        x = layer_norm(x, self.embedding_norm, self.embedding_norm_bias, c.norm_eps).to(self.compute_dtype)
        mask = None
        if doc is not None and not short_attention_serves(tokens, x.dtype):
            apart = doc[:, None, :, None] != doc[:, None, None, :]
            mask = torch.zeros(apart.shape, dtype=x.dtype, device=device).masked_fill_(apart, -torch.inf)
        if device not in self._tables:
            with torch.inference_mode(False):
                self._tables[device] = tuple(t.to(device) for t in rotary_table(c, c.context_tokens, "none"))
        table = tuple(t[:length] for t in self._tables[device])
        for layer in self.layers:
            x = layer(x, table, mask, doc)
        return x

    def transformed(self, hidden: Tensor) -> Tensor:
        """What the masked-token head multiplies: [..,D] -> [..,D]."""
        x = functional.gelu(self.linear("transform", hidden))
        return layer_norm(x, self.transform_norm, self.transform_norm_bias, self.config.norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..,D] -> [..,V] float32."""
        x = self.transformed(hidden)
        return functional.linear(x, self.head_weight.to(x.dtype)).float() + self.logit_bias.float()

    def pooled_classes(self, hidden: Tensor) -> Tensor:
        """[..,D] -> [..,C] float32: the class head of every state; BERT's own classifier reads the first of a row."""
        pooled = torch.tanh(self.linear("pooler", hidden.float()))
        return functional.linear(pooled, self.class_head, self.class_head_bias)

    def forward(self, batch: Batch) -> Output:
        """Log-probs at weighted positions only; or classes at every position, where position 0 is BERT's classifier."""
        x = self.hidden(batch.tokens, batch.doc)
        if self.config.head == "class":
            return Output(torch.zeros(batch.tokens.shape, device=x.device), None, None, self.pooled_classes(x))
        x = self.transformed(x)  # with a 1 beside it, the biases are one more column of the head
        x = functional.pad(x, (0, 1), value=1.0)
        head = torch.cat((self.head_weight, self.logit_bias[:, None]), 1)
        return Output(*weighted_logp(x, head, batch), None)


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm (Ba et al. 2016, eq. 4) over the last dimension."""
    return functional.layer_norm(x, x.shape[-1:], gain.to(x.dtype), bias.to(x.dtype), eps)
