"""Hand-fused steps of the Transformer for training; each has a plain twin in tests/core/test_kernels.py.

Shapes: B rows, T positions, D width, H query heads, K key/value heads, E head width, F feed-forward width,
N selected positions, V vocabulary. Why by hand: on a CPU a small model is bound by memory passes, and autograd's
own versions of these steps write every intermediate.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

_LOGITS_BYTES = 256 << 20  # probabilities kept for backward; a larger vocabulary recomputes them chunk by chunk
_CHUNK_ROWS = 256  # logits of one chunk stay in cache (256 x 4096 float32 = 4 MiB)
_FAINT = 1e-30  # float32 probabilities below this have lost digits
_SHORT_TOKENS = 512  # up to here plain bf16 matrix products beat CPU flash attention (2.2x at 256), beyond memory is T^2


class _SelectLogp(Function):
    """log softmax(h W^T)[target] for N positions, never holding more than one chunk of float32 logits."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, want_entropy: bool):  # [N,D] [V,D] [N]
        rows, vocab = hidden.shape[0], weight.shape[0]
        head = weight.to(hidden.dtype)
        logp = torch.empty(rows, dtype=torch.float32, device=hidden.device)
        entropy = torch.zeros(rows if want_entropy else 0, dtype=torch.float32, device=hidden.device)
        needed = hidden.requires_grad or weight.requires_grad
        keep = needed and rows * vocab * hidden.element_size() <= _LOGITS_BYTES
        probs = torch.empty(rows, vocab, dtype=hidden.dtype, device=hidden.device) if keep else None
        for start in range(0, rows, _CHUNK_ROWS):
            part = slice(start, start + _CHUNK_ROWS)
            logits = hidden[part] @ head.t()  # [n,V]
            target = targets[part, None]
            prob = torch.softmax(logits, 1, dtype=torch.float32)
            chosen = prob.gather(1, target).squeeze(1)
            logp[part] = chosen.log()
            if (faint := (chosen < _FAINT).nonzero().squeeze(1)).numel():  # its float32 probability underflows
                exact = torch.log_softmax(logits[faint].double(), 1).gather(1, target[faint])
                logp[part][faint] = exact.squeeze(1).float()
            if want_entropy:
                entropy[part] = torch.special.entr(prob).sum(1)
            if keep:
                probs[part] = prob
        ctx.save_for_backward(hidden, weight, targets, probs)
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    def backward(ctx, grad: Tensor, _):  # [N]
        hidden, weight, targets, probs = ctx.saved_tensors
        head = weight.to(hidden.dtype)
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.zeros_like(weight)
        chunk = hidden.shape[0] if probs is not None else _CHUNK_ROWS
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            prob = probs if probs is not None else torch.softmax(hidden[part] @ head.t(), 1, dtype=torch.float32)
            scale = grad[part, None].to(prob.dtype)
            d_logits = prob.mul_(-scale)  # grad * (onehot - p); the kept buffer is not needed again
            d_logits.scatter_add_(1, targets[part, None], scale)
            d_logits = d_logits.to(hidden.dtype)
            torch.mm(d_logits, head, out=d_hidden[part])
            d_weight += d_logits.t() @ hidden[part]
        return d_hidden, d_weight, None, None


def select_logp(
    hidden: Tensor, weight: Tensor, targets: Tensor, want_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """log p(target) [N] float32 (and the entropy in nats [N], no gradient) of hidden [N,D] under the head [V,D]."""
    logp, entropy = _SelectLogp.apply(hidden, weight, targets, want_entropy)
    return logp, entropy if want_entropy else None


class _RotateHeads(Function):
    """Fused qkv [B,T,(H+2K)E] -> rotated q [B,H,T,E], rotated k [B,K,T,E], v [B,K,T,E], each contiguous."""

    @staticmethod
    def forward(ctx, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int):
        batch, length, width = qkv.shape
        x = qkv.view(batch, length, heads + 2 * kv_heads, -1).transpose(1, 2)  # [B,H+2K,T,E]
        rotated = heads + kv_heads
        half = x.shape[-1] // 2
        out = torch.empty(batch, rotated, length, 2 * half, dtype=qkv.dtype, device=qkv.device)
        a, b = x[:, :rotated, :, :half], x[:, :rotated, :, half:]
        torch.mul(a, cos, out=out[..., :half]).addcmul_(b, sin, value=-1)
        torch.mul(b, cos, out=out[..., half:]).addcmul_(a, sin)
        ctx.save_for_backward(cos, sin)
        ctx.heads, ctx.kv_heads = heads, kv_heads
        return out[:, :heads], out[:, heads:], x[:, rotated:].contiguous()

    @staticmethod
    def backward(ctx, dq: Tensor, dk: Tensor, dv: Tensor):
        cos, sin = ctx.saved_tensors
        batch, heads, length, width = dq.shape
        half, rotated = width // 2, heads + ctx.kv_heads
        out = torch.empty(batch, length, rotated + ctx.kv_heads, width, dtype=dq.dtype, device=dq.device)
        view = out.transpose(1, 2)  # [B,H+2K,T,E]
        for first, last, grad in ((0, heads, dq), (heads, rotated, dk)):
            a, b = grad[..., :half], grad[..., half:]
            torch.mul(a, cos, out=view[:, first:last, :, :half]).addcmul_(b, sin)
            torch.mul(b, cos, out=view[:, first:last, :, half:]).addcmul_(a, sin, value=-1)
        view[:, rotated:] = dv
        return out.view(batch, length, -1), None, None, None, None


def rotate_heads(
    qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Split a fused projection into heads and apply rotary positions (Su et al. 2021, eq. 34; half-split layout)."""
    return _RotateHeads.apply(qkv, cos, sin, heads, kv_heads)


class _SwiGLU(Function):
    """silu(gate) * up of a fused [.., 2F] projection; backward writes both halves of one buffer."""

    @staticmethod
    def forward(ctx, gate_up: Tensor):
        gate, up = gate_up.chunk(2, -1)
        active = F.silu(gate)
        ctx.save_for_backward(gate_up, active)
        return active * up

    @staticmethod
    def backward(ctx, grad: Tensor):
        gate_up, active = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        out = torch.empty_like(gate_up)
        d_gate, d_up = out.chunk(2, -1)
        torch.mul(grad, active, out=d_up)
        d_gate.copy_(torch.ops.aten.silu_backward(grad * up, gate))
        return out


def swiglu(gate_up: Tensor) -> Tensor:
    """SwiGLU (Shazeer 2020, eq. 6) of a fused projection [..,2F] -> [..,F]."""
    return _SwiGLU.apply(gate_up)


class _RMSNorm(Function):
    """x / rms(x) * gain with float32 statistics; keeps 1/rms, so backward is three passes."""

    @staticmethod
    def forward(ctx, x: Tensor, gain: Tensor, eps: float):
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # [..,1] float32
        normed = x * scale.to(x.dtype)
        ctx.save_for_backward(normed, gain, scale)
        return normed * gain.to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        normed, gain, scale = ctx.saved_tensors
        width = normed.shape[-1]
        product = grad * normed
        d_gain = product.view(-1, width).sum(0, dtype=torch.float32)
        mean = (product @ gain.to(product.dtype)).div_(width)[..., None]  # [..,1]
        d_x = (grad * gain.to(grad.dtype)).addcmul_(normed, mean, value=-1).mul_(scale.to(grad.dtype))
        return d_x, d_gain, None


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """RMSNorm (Zhang and Sennrich 2019, eq. 4) over the last dimension."""
    return _RMSNorm.apply(x, gain, eps)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """softmax(q k^T + mask) v -> [B,H,T,E]; q [B,H,T,E] already scaled by 1/sqrt(E), k and v [B,K,S,E].

    mask is additive, broadcast to [B,1,T,S]; without one, `causal` hides later positions.
    """
    group = q.shape[1] // k.shape[1]
    if q.device.type == "cpu" and k.shape[2] <= _SHORT_TOKENS and mask is not None:
        if group > 1:
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = (q @ k.transpose(-1, -2)).add_(mask)  # [B,H,T,S]
        return torch.softmax(scores, -1) @ v
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=1.0, enable_gqa=group > 1
    )
