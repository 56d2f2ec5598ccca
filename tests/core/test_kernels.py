"""Each fused step, compiled and in torch, against plain autograd in float64 on the same inputs."""

import math

import pytest
import torch
from torch import Tensor

from fledge.core import kernels, native
from fledge.core.kernels import attention, rms_norm, rotate_heads, select_logp, swiglu

DTYPES = {"float32": (torch.float32, 1e-5), "bfloat16": (torch.bfloat16, 2e-2)}


@pytest.fixture(params=list(DTYPES))
def precision(request: pytest.FixtureRequest) -> tuple[torch.dtype, float]:
    """(dtype of the inputs, largest relative error allowed)."""
    return DTYPES[request.param]


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).to(dtype).requires_grad_()


def exact(*tensors: Tensor) -> list[Tensor]:
    """The same numbers in float64, as fresh leaves."""
    return [t.detach().double().requires_grad_() for t in tensors]


def gradients(outputs: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Gradients of sum(output * c) with a fixed c that differs from element to element and has both signs."""
    total = 0.0
    for seed, output in enumerate(outputs):
        generator = torch.Generator().manual_seed(100 + seed)
        total = total + (output * torch.randn(output.shape, generator=generator).to(output.dtype)).sum()
    return list(torch.autograd.grad(total, inputs))


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Largest difference at most `tolerance` of the largest expected value, tensor by tensor."""
    for number, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.shape == b.shape
        error = (a.double() - b).abs().max().item() / b.abs().max().item()
        assert error <= tolerance, f"tensor {number}: relative error {error:.2e} > {tolerance:.0e}"


# ---------------------------------------------------------------------------------------------------- select_logp


def plain_logp(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logp = torch.log_softmax(hidden @ weight.t(), 1)
    return logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(1)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "recomputed"])
def test_select_logp_agrees_with_autograd_across_chunks(path, precision, kept, monkeypatch):
    dtype, tolerance = precision
    if not kept:
        monkeypatch.setattr(kernels, "_KEPT_BYTES", 0)
    rows, width, vocab = 2 * kernels._CHUNK_ROWS + 37, 24, 101
    hidden, weight = draw(rows, width, dtype=dtype), draw(vocab, width, seed=1, scale=0.4)
    targets = torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(2))
    logp, entropy = select_logp(hidden, weight, targets, want_entropy=True)
    assert logp.dtype == entropy.dtype == torch.float32

    exact_hidden, exact_weight = exact(hidden, weight.to(dtype))
    expected, expected_entropy = plain_logp(exact_hidden, exact_weight, targets)
    assert_close([logp, entropy], [expected, expected_entropy], tolerance)
    assert_close(gradients([logp], [hidden, weight]), gradients([expected], [exact_hidden, exact_weight]), tolerance)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "recomputed"])
@pytest.mark.parametrize("used", ["entropy", "both"])
def test_the_entropys_gradient_agrees_with_autograd(path, precision, kept, used, monkeypatch):
    dtype, tolerance = precision
    if not kept:
        monkeypatch.setattr(kernels, "_KEPT_BYTES", 0)
    rows = kernels._CHUNK_ROWS + 5
    hidden, weight = draw(rows, 24, dtype=dtype), draw(31, 24, seed=1, scale=0.4)
    targets = torch.randint(31, (rows,), generator=torch.Generator().manual_seed(2))
    logp, entropy = select_logp(hidden, weight, targets, want_entropy=True)
    exact_hidden, exact_weight = exact(hidden, weight.to(dtype))
    expected, expected_entropy = plain_logp(exact_hidden, exact_weight, targets)
    per_row = torch.linspace(-1, 2, rows)
    ours, theirs = per_row * entropy, per_row * expected_entropy
    if used == "both":
        ours, theirs = ours + logp, theirs + expected
    assert_close(gradients([ours], [hidden, weight]), gradients([theirs], [exact_hidden, exact_weight]), tolerance)


def test_a_large_vocabulary_keeps_no_probabilities(path, monkeypatch):
    monkeypatch.setattr(kernels, "_KEPT_BYTES", 40 * 50 * 4 - 1)
    logp, _ = select_logp(draw(40, 8), draw(50, 8, seed=1), torch.zeros(40, dtype=torch.long))
    saved = [t for t in logp.grad_fn.saved_tensors if t is not None]
    assert all(t.shape != (40, 50) for t in saved)


def test_an_underflowing_probability_keeps_its_exact_logp(path, precision):
    dtype, _ = precision
    hidden = torch.tensor([[200.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    logp, entropy = select_logp(hidden, torch.eye(3), torch.tensor([1, 2]), want_entropy=True)
    assert logp.tolist() == pytest.approx([-200.0, -math.log(3)], rel=1e-6)  # exp(-200) is 0 in float32
    assert entropy.tolist() == pytest.approx([0.0, math.log(3)], abs=1e-5)
    (gradient,) = torch.autograd.grad(logp[0], hidden)
    assert gradient[0].tolist() == pytest.approx([-1.0, 1.0, 0.0], abs=1e-6)


def test_entropy_is_not_computed_unless_asked_for(path):
    assert select_logp(draw(3, 4), draw(5, 4), torch.tensor([0, 1, 2]))[1] is None


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "recomputed"])
def test_a_second_backward_is_right_or_refused(path, kept, monkeypatch):
    """The kept probabilities turn into the gradient in place: a second pass must not read them as probabilities."""
    if not kept:
        monkeypatch.setattr(kernels, "_KEPT_BYTES", 0)
    hidden, weight = draw(6, 8), draw(11, 8, seed=1)
    logp, _ = select_logp(hidden, weight, torch.arange(6))
    first = torch.autograd.grad(logp.sum(), [hidden, weight], retain_graph=True)
    if kept:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(logp.sum(), [hidden, weight])
    else:
        second = torch.autograd.grad(logp.sum(), [hidden, weight])
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# ----------------------------------------------------------------------------------------------------- other steps


def plain_rotate(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, scale: float) -> tuple[Tensor, ...]:
    batch, length, width = qkv.shape
    x = qkv.view(batch, length, heads + 2 * kv_heads, width // (heads + 2 * kv_heads)).transpose(1, 2)
    q, k, v = x.split([heads, kv_heads, kv_heads], 1)

    def turn(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    return turn(q) * scale, turn(k), v


def angles(positions: Tensor, half: int) -> tuple[Tensor, Tensor]:
    angle = positions[..., None] * 10.0 ** -torch.arange(half)
    return angle.cos(), angle.sin()


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1)])
def test_rotate_heads_agrees_with_autograd(path, precision, heads, kv_heads):
    dtype, tolerance = precision
    qkv = draw(2, 7, (heads + 2 * kv_heads) * 6, dtype=dtype)
    cos, sin = angles(torch.arange(7), 3)
    found = rotate_heads(qkv, cos, sin, heads, kv_heads, 0.4)
    (exact_qkv,) = exact(qkv)
    expected = plain_rotate(exact_qkv, cos.double(), sin.double(), heads, kv_heads, 0.4)
    assert all(t.is_contiguous() for t in found)
    assert_close(list(found), list(expected), tolerance)
    assert_close(gradients(list(found), [qkv]), gradients(list(expected), [exact_qkv]), tolerance)


def test_rotate_heads_takes_a_position_per_row(path):
    """A decode step: one token per row, each at its own position."""
    qkv = draw(3, 1, 4 * 6)
    cos, sin = angles(torch.tensor([5, 0, 2])[:, None, None], 3)  # [B,1,1,E/2]
    found = rotate_heads(qkv, cos, sin, 2, 1, 1.0)
    for row, position in enumerate([5, 0, 2]):
        alone = rotate_heads(qkv[row : row + 1], *angles(torch.tensor([position]), 3), 2, 1, 1.0)
        assert_close([t[row : row + 1] for t in found], list(alone), 1e-6)


def test_swiglu_agrees_with_autograd_far_out_too(path, precision):
    dtype, tolerance = precision
    gate_up = draw(5, 3, 34, dtype=dtype, scale=3.0)
    with torch.no_grad():
        gate_up[0, 0, :6] = torch.tensor([-200.0, -90.0, -20.0, 20.0, 90.0, 200.0])
        gate_up[0, 0, 17:] = 0.01  # their gradient does not drown the others
    (exact_gate_up,) = exact(gate_up)
    gate, up = exact_gate_up.chunk(2, -1)
    found, expected = swiglu(gate_up), torch.nn.functional.silu(gate) * up
    assert_close([found], [expected], tolerance)
    assert_close(gradients([found], [gate_up]), gradients([expected], [exact_gate_up]), tolerance)


def test_rms_norm_agrees_with_autograd(path, precision):
    dtype, tolerance = precision
    x, gain = draw(4, 9, 20, dtype=dtype), draw(20, seed=1)
    with torch.no_grad():
        x[0, 0] = 1e-4  # here eps decides
    exact_x, exact_gain = exact(x, gain)
    found = rms_norm(x, gain, 1e-6)
    expected = exact_x * (exact_x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * exact_gain
    assert found.dtype == dtype
    assert_close([found], [expected], tolerance)
    others = x.detach().double().abs().amax(-1) > 1e-3  # the tiny row's gradient is 1e4 times larger: look at it apart
    (d_x, d_gain), (exact_d_x, exact_d_gain) = (
        gradients([found], [x, gain]), gradients([expected], [exact_x, exact_gain])
    )  # fmt: skip
    pairs = [(d_x[others], exact_d_x[others]), (d_x[~others], exact_d_x[~others]), (d_gain, exact_d_gain)]
    assert_close([a for a, _ in pairs], [b for _, b in pairs], tolerance)


def test_rms_norm_takes_slices_of_a_fused_projection(path):
    fused, gain = draw(2, 5, 6, 8), draw(8, seed=1)
    found = rms_norm(fused[:, :, :4], gain, 1e-6)  # not contiguous
    expected = rms_norm(fused[:, :, :4].contiguous(), gain, 1e-6)
    assert_close([found], [expected], 1e-6)


# ------------------------------------------------------------------------------------------------------- attention


def plain_attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    return torch.softmax((q @ k.transpose(-1, -2)).masked_fill(~seen, -torch.inf), -1) @ v


def seen_by(batch: int, length: int, causal: bool, doc: Tensor | None) -> Tensor:
    seen = torch.ones(batch, 1, length, length, dtype=torch.bool)
    if causal:
        seen = seen.tril()
    if doc is not None:
        seen = seen & (doc[:, None, :, None] == doc[:, None, None, :])
    return seen


def documents(batch: int, length: int) -> Tensor:
    """Runs of documents with padding (-1) at the end."""
    doc = (torch.arange(length) // 5 + torch.arange(batch)[:, None]).int()
    doc[:, -3:] = -1
    return doc


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both-ways"])
@pytest.mark.parametrize("packed", [True, False], ids=["documents", "one-document"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_agrees_with_autograd(path, precision, causal, packed, kv_heads):
    dtype, tolerance = precision
    batch, length = 2, 19
    q, k, v = (draw(batch, n, length, 8, dtype=dtype, seed=s) for s, n in enumerate((4, kv_heads, kv_heads)))
    doc = documents(batch, length) if packed else None
    seen = seen_by(batch, length, causal, doc)
    mask = None if path == "native" else torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -torch.inf)
    found = attention(q, k, v, mask=mask, doc=doc, causal=causal)
    wide = exact(q, k, v)
    expected = plain_attention(*wide, seen)
    assert_close([found], [expected], tolerance)
    assert_close(gradients([found], [q, k, v]), gradients([expected], wide), tolerance)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both-ways"])
@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no-mask"])
def test_long_rows_go_to_flash_attention_and_agree(path, causal, masked):
    length = kernels.SHORT_TOKENS + 9
    q, k, v = draw(1, 2, length, 8), draw(1, 1, length, 8, seed=1), draw(1, 1, length, 8, seed=2)
    seen = seen_by(1, length, causal, documents(1, length) if masked else None)
    mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf) if masked else None
    found = attention(q, k, v, mask=mask, doc=None, causal=causal)
    wide = exact(q, k, v)
    expected = plain_attention(*wide, seen)
    assert_close([found], [expected], 1e-5)
    assert_close(gradients([found], [q, k, v]), gradients([expected], wide), 1e-5)


def test_large_scores_do_not_overflow(path):
    q, k, v = draw(1, 1, 6, 4, scale=40.0), draw(1, 1, 6, 4, seed=1, scale=40.0), draw(1, 1, 6, 4, seed=2)
    seen = seen_by(1, 6, True, None)
    mask = None if path == "native" else torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
    found = attention(q, k, v, mask=mask, doc=None, causal=True)
    assert_close([found], [plain_attention(*exact(q, k, v), seen)], 1e-4)


# ------------------------------------------------------------------------------------- not a number stays visible


def test_nan_in_gives_nan_out_never_a_number(path, precision):
    dtype, _ = precision
    with torch.no_grad():
        hidden = draw(3, 4, dtype=dtype)
        hidden[1, 2] = torch.nan
        logp, entropy = select_logp(hidden, draw(5, 4, seed=1), torch.tensor([0, 1, 2]), want_entropy=True)
        for row in (logp, entropy):
            assert row.isnan().tolist() == [False, True, False]

        x = draw(3, 4, dtype=dtype)
        x[1, 2] = torch.nan
        assert rms_norm(x, torch.ones(4), 1e-6).isnan().any(1).tolist() == [False, True, False]
        assert swiglu(x).isnan().tolist() == [[False, False], [True, False], [False, False]]

        qkv = draw(1, 3, 12, dtype=dtype)
        qkv[0, 1] = torch.nan
        for part in rotate_heads(qkv, *angles(torch.arange(3), 2), 1, 1, 1.0):
            assert part[0, 0].isnan().all(-1).tolist() == [False, True, False]


@pytest.mark.parametrize("poisoned", ["q", "k", "v"])
def test_nan_reaches_every_position_that_sees_it(path, precision, poisoned):
    dtype, _ = precision
    parts = {name: draw(1, 2, 6, 4, dtype=dtype, seed=seed).detach() for seed, name in enumerate("qkv")}
    parts[poisoned][0, 0, 3, 1] = torch.nan
    seen = seen_by(1, 6, True, None)
    mask = None if path == "native" else torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -torch.inf)
    found = attention(**parts, mask=mask, doc=None, causal=True)
    assert found[0, 0, 3].isnan().any()
    if poisoned != "q":
        assert found[0, 0, 3:].isnan().any(-1).all()
    assert not found[0, 1].isnan().any()  # the other head


def test_nan_gradients_are_not_swallowed(path, precision):
    dtype, _ = precision
    for step, inputs in (
        (lambda x: swiglu(x), [draw(2, 4, dtype=dtype)]),
        (lambda x, g: rms_norm(x, g, 1e-6), [draw(2, 4, dtype=dtype), draw(4)]),
        (lambda h, w: select_logp(h, w, torch.tensor([0, 1]))[0], [draw(2, 4, dtype=dtype), draw(3, 4)]),
    ):
        output = step(*inputs)
        for gradient in torch.autograd.grad(output, inputs, torch.full_like(output, torch.nan)):
            assert gradient.isnan().all()


# ---------------------------------------------------------------------------------------------- which path, threads


def test_two_threads_give_what_one_gives(path):
    x, gain = draw(37, 16), draw(16, seed=1)
    alone = gradients([rms_norm(x, gain, 1e-6)], [x, gain])
    torch.set_num_threads(2)
    together = gradients([rms_norm(x, gain, 1e-6)], [x, gain])
    assert_close(together, [g.double() for g in alone], 1e-6)


def test_compiled_kernels_serve_only_what_they_were_written_for(path):
    there = path == "native"
    flat = torch.zeros(4, 4)
    assert (native.usable("rms", flat) is not None) == there
    assert (native.usable("rms", flat.bfloat16()) is not None) == there
    assert native.usable("rms", flat.t()[:2]) is None  # not contiguous
    assert native.usable("rms", flat.double()) is None
    assert native.usable("rms", flat.to("meta")) is None
