"""Hand-fused steps of the Transformer; each takes compiled loops (native.py) where they are, else torch operations.

Shapes: B rows, T positions, D width, H query heads, K key/value heads, E head width, F feed-forward width,
N selected positions, V vocabulary. Why by hand: on a CPU a small model is bound by memory passes, and autograd's own
versions of these steps write every intermediate. tests/core/test_kernels.py holds each path against plain autograd.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from fledge.core.native import integer, pointer, real, usable

SHORT_TOKENS = 512  # up to here plain bf16 products beat CPU flash attention (2.2x at 256); beyond, memory is T^2
_KEPT_BYTES = 256 << 20  # probabilities kept for backward; a larger vocabulary recomputes them chunk by chunk
_CHUNK_ROWS = 256  # logits of one chunk stay in cache (256 x 4096 float32 = 4 MiB)
_FAINT = 1e-30  # float32 probabilities below this have lost digits


def _choose(logits: Tensor, targets: Tensor, logp: Tensor, entropy: Tensor | None) -> Tensor:
    """Fill logp (and entropy) of one chunk; returns its probabilities, in place of the logits where it can."""
    if native := usable("choose", logits, targets):
        rows, vocab = logits.shape
        native(pointer(logits), pointer(targets), pointer(logp), pointer(entropy), integer(rows), integer(vocab))
        return logits
    prob = torch.softmax(logits, 1, dtype=torch.float32)
    chosen = prob.gather(1, targets[:, None]).squeeze(1)
    logp.copy_(chosen.log())
    if (faint := (chosen < _FAINT).nonzero().squeeze(1)).numel():  # their float32 probability underflows
        exact = torch.log_softmax(logits[faint].double(), 1).gather(1, targets[faint, None])
        logp[faint] = exact.squeeze(1).float()
    if entropy is not None:
        entropy.copy_(torch.special.entr(prob).sum(1))
    return prob


def _choose_back(
    prob: Tensor, targets: Tensor, grad: Tensor, spread: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """grad * (onehot - p) over the probabilities, in place.

    spread: (gradient of the entropy, entropy), both [N]: adds grad_H * -p (log p + H).
    """
    extra = (None, None) if spread is None else spread
    if native := usable("choose_back", prob, targets, grad, *(spread or ())):
        pointers = [pointer(t) for t in (prob, targets, grad, *extra)]
        native(*pointers, integer(prob.shape[0]), integer(prob.shape[1]))
        torch.autograd.graph.increment_version(prob)  # a second backward through it is refused, not wrong
        return prob
    scale = grad[:, None].to(prob.dtype)
    if spread is not None:
        of_entropy, entropy = (t[:, None] for t in spread)
        exact = prob.float()
        bend = torch.special.entr(exact).sub_(entropy * exact).mul_(of_entropy).to(prob.dtype)
        return prob.mul_(-scale).add_(bend).scatter_add_(1, targets[:, None], scale)
    return prob.mul_(-scale).scatter_add_(1, targets[:, None], scale)


class _SelectLogp(Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, want_entropy: bool):  # [N,D] [V,D] [N]
        rows, vocab = hidden.shape[0], weight.shape[0]
        head = weight.to(hidden.dtype).t()
        logp = torch.empty(rows, dtype=torch.float32, device=hidden.device)
        entropy = torch.empty_like(logp) if want_entropy else None
        needed = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        keep = needed and rows * vocab * hidden.element_size() <= _KEPT_BYTES
        kept = torch.empty(rows, vocab, dtype=hidden.dtype, device=hidden.device) if keep else None
        for start in range(0, rows, _CHUNK_ROWS):
            part = slice(start, start + _CHUNK_ROWS)
            logits = torch.mm(hidden[part], head, out=kept[part]) if keep else hidden[part] @ head
            spread = None if entropy is None else entropy[part]
            prob = _choose(logits, targets[part], logp[part], spread)
            if keep and prob is not logits:
                logits.copy_(prob)
        ctx.save_for_backward(hidden, weight, targets, kept, entropy)
        ctx.set_materialize_grads(False)
        return logp, entropy

    @staticmethod
    def backward(ctx, grad: Tensor | None, of_entropy: Tensor | None):  # [N]
        hidden, weight, targets, kept, entropy = ctx.saved_tensors
        if grad is None and of_entropy is None:
            return None, None, None, None
        head = weight.to(hidden.dtype)
        grad = torch.zeros_like(entropy) if grad is None else grad.contiguous()
        spread = None if of_entropy is None else torch.stack((of_entropy, entropy))  # [2,N]
        if kept is not None:
            both = None if spread is None else tuple(spread)
            d_logits = _choose_back(kept, targets, grad, both)  # the kept buffer is not needed again
            return d_logits @ head, (d_logits.t() @ hidden).to(weight.dtype), None, None
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for start in range(0, hidden.shape[0], _CHUNK_ROWS):
            part = slice(start, start + _CHUNK_ROWS)
            prob = torch.softmax(hidden[part] @ head.t(), 1)
            both = None if spread is None else tuple(spread[:, part])
            d_logits = _choose_back(prob, targets[part], grad[part], both)
            torch.mm(d_logits, head, out=d_hidden[part])
            d_weight += d_logits.t() @ hidden[part]
        return d_hidden, d_weight, None, None


def select_logp(
    hidden: Tensor, weight: Tensor, targets: Tensor, want_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """log p(target) [N] float32 (and the entropy in nats [N]) of hidden [N,D] under the head [V,D]."""
    return _SelectLogp.apply(hidden.contiguous(), weight, targets.contiguous(), want_entropy)


class _RotateHeads(Function):
    @staticmethod
    def forward(ctx, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, scale: float):
        batch, length, width = qkv.shape
        ctx.save_for_backward(cos, sin)
        ctx.shape = batch, length, heads, kv_heads, width // (heads + 2 * kv_heads), scale
        size = ctx.shape[4]
        q = torch.empty(batch, heads, length, size, dtype=qkv.dtype, device=qkv.device)
        k, v = (torch.empty(batch, kv_heads, length, size, dtype=qkv.dtype, device=qkv.device) for _ in range(2))
        if not _rotate("rotate", qkv, cos, sin, q, k, v, ctx.shape):
            x = qkv.view(batch, length, heads + 2 * kv_heads, size).transpose(1, 2)  # [B,H+2K,T,E]
            _turn(x[:, :heads], cos, sin, q).mul_(scale)
            _turn(x[:, heads : heads + kv_heads], cos, sin, k)
            v.copy_(x[:, heads + kv_heads :])
        return q, k, v

    @staticmethod
    def backward(ctx, dq: Tensor, dk: Tensor, dv: Tensor):
        cos, sin = ctx.saved_tensors
        batch, length, heads, kv_heads, size, scale = ctx.shape
        out = torch.empty(batch, length, (heads + 2 * kv_heads) * size, dtype=dq.dtype, device=dq.device)
        if not _rotate("rotate_back", out, cos, sin, dq.contiguous(), dk.contiguous(), dv.contiguous(), ctx.shape):
            x = out.view(batch, length, heads + 2 * kv_heads, size).transpose(1, 2)
            _turn(dq, cos, -sin, x[:, :heads]).mul_(scale)
            _turn(dk, cos, -sin, x[:, heads : heads + kv_heads])
            x[:, heads + kv_heads :] = dv
        return out, None, None, None, None, None


def _rotate(name: str, qkv: Tensor, cos: Tensor, sin: Tensor, q: Tensor, k: Tensor, v: Tensor, shape: tuple) -> bool:
    native = usable(name, qkv, q, k, v, cos, sin) if cos.ndim == 2 else None
    if native is None:
        return False
    batch, length, heads, kv_heads, size, scale = shape
    pointers = [pointer(t) for t in (qkv, cos, sin, q, k, v)]
    native(*pointers, integer(batch), integer(length), heads, kv_heads, size, real(scale))
    return True


def _turn(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> Tensor:
    """Rotate the halves of x [..,E] by the angles [T or B,1,T, E/2] into out."""
    half = x.shape[-1] // 2
    a, b = x[..., :half].float(), x[..., half:].float()
    out[..., :half] = a * cos - b * sin
    out[..., half:] = b * cos + a * sin
    return out


def rotate_heads(
    qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Fused qkv [B,T,(H+2K)E] -> q [B,H,T,E] rotated and times `scale`, k [B,K,T,E] rotated, v [B,K,T,E].

    Rotary positions of Su et al. 2021, eq. 34, in the half-split layout; cos and sin are float32 [T,E/2], or
    [B,1,1,E/2] where every row has its own position.
    """
    return _RotateHeads.apply(qkv, cos, sin, heads, kv_heads, scale)


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx, gate_up: Tensor):
        ctx.save_for_backward(gate_up)
        size = gate_up.shape[-1] // 2
        if native := usable("swiglu", gate_up):
            out = torch.empty(*gate_up.shape[:-1], size, dtype=gate_up.dtype)
            native(pointer(gate_up), pointer(out), integer(gate_up.numel() // (2 * size)), size)
            return out
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx, grad: Tensor):
        (gate_up,) = ctx.saved_tensors
        out, size = torch.empty_like(gate_up), gate_up.shape[-1] // 2
        if native := usable("swiglu_back", gate_up, grad):
            native(pointer(gate_up), pointer(grad), pointer(out), integer(gate_up.numel() // (2 * size)), size)
            return out
        gate, up = gate_up.chunk(2, -1)
        d_gate, d_up = out.chunk(2, -1)
        d_up.copy_(F.silu(gate) * grad)
        d_gate.copy_(torch.ops.aten.silu_backward(grad * up, gate))
        return out


def swiglu(gate_up: Tensor) -> Tensor:
    """SwiGLU (Shazeer 2020, eq. 6) of a fused projection [..,2F] -> [..,F]."""
    return _SwiGLU.apply(gate_up)


def geglu(gate_up: Tensor) -> Tensor:
    """GEGLU (Shazeer 2020, eq. 5) with the tanh form of GELU, as Gemma has it: [..,2F] -> [..,F]."""
    gate, up = gate_up.chunk(2, -1)
    return F.gelu(gate, approximate="tanh") * up


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx, x: Tensor, gain: Tensor, eps: float):
        width = x.shape[-1]
        if native := usable("rms", x, gain):
            out, scale = torch.empty_like(x), torch.empty(*x.shape[:-1], 1)
            native(
                pointer(x), pointer(gain), pointer(out), pointer(scale), integer(x.numel() // width), width, real(eps)
            )
        else:
            scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
            scale = scale.square_().div_(width).add_(eps).rsqrt_()  # [..,1] float32
            out = (x * scale * gain).to(x.dtype)
        ctx.save_for_backward(x, gain, scale)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, gain, scale = ctx.saved_tensors
        width = x.shape[-1]
        if native := usable("rms_back", x, gain, scale, grad):
            d_x, d_gain = torch.empty_like(x), torch.zeros_like(gain)
            pointers = [pointer(t) for t in (x, gain, scale, grad, d_x, d_gain)]
            native(*pointers, integer(x.numel() // width), width)
            return d_x, d_gain, None
        normed, grad = x * scale, grad.float()
        d_gain = (grad * normed).view(-1, width).sum(0)
        grad = grad * gain
        mean = (grad * normed).mean(-1, keepdim=True)
        return ((grad - normed * mean) * scale).to(x.dtype), d_gain, None


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """RMSNorm (Zhang and Sennrich 2019, eq. 4) over the last dimension, float32 inside."""
    return _RMSNorm.apply(x, gain, eps)


class _ShortAttention(Function):
    """Attention as two batched products with the softmax in place between them."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, doc: Tensor | None, causal: bool):
        scores = q @ k.transpose(-1, -2)  # [B,H,T,T]
        batch, heads, length, _ = scores.shape
        native = usable("softmax", scores, *([] if doc is None else [doc]))
        native(pointer(scores), pointer(doc), integer(batch), heads, integer(length), int(causal))
        ctx.save_for_backward(q, k, v, scores)
        ctx.causal = causal
        return scores @ v

    @staticmethod
    def backward(ctx, grad: Tensor):
        q, k, v, probs = ctx.saved_tensors
        d_scores = grad @ v.transpose(-1, -2)
        rows, length = probs.numel() // probs.shape[-1], probs.shape[-1]
        native = usable("softmax_back", probs, d_scores)
        native(pointer(probs), pointer(d_scores), integer(rows), integer(length), int(ctx.causal))
        return d_scores @ k, d_scores.transpose(-1, -2) @ q, probs.transpose(-1, -2) @ grad, None, None


def short_attention_serves(tokens: Tensor, dtype: torch.dtype) -> bool:
    """True where attention() needs no mask: short rows on a CPU with compiled kernels."""
    probe = torch.empty(0, dtype=dtype)
    return tokens.device.type == "cpu" and tokens.shape[1] <= SHORT_TOKENS and usable("softmax", probe) is not None


def attention(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, doc: Tensor | None, causal: bool) -> Tensor:
    """softmax(q k^T) v -> [B,H,T,E]; q [B,H,T,E] already scaled, k and v [B,K,S,E].

    Which positions are seen: those of an additive mask [1 or B,1,T,S] if given; else not later ones if `causal` and
    only those of the same document if doc [B,T] is given (the compiled path).
    """
    group = q.shape[1] // k.shape[1]
    if (
        mask is None
        and (doc is not None or (q.device.type == "cpu" and k.shape[2] <= SHORT_TOKENS))
        and usable("softmax", q)
    ):
        if group > 1:
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        return _ShortAttention.apply(q, k, v, doc, causal)
    if q.device.type == "cpu" and k.shape[2] <= SHORT_TOKENS and mask is not None:
        if group > 1:
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        return torch.softmax((q @ k.transpose(-1, -2)).add_(mask), -1) @ v
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=1.0, enable_gqa=group > 1
    )
