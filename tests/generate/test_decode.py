"""The compiled decoding loop against its torch twin: the same tokens, the same distribution, whatever shares the batch."""

import pytest
import torch
from torch import Tensor

from fledge.core import native
from fledge.core.model import RopeScaling, Transformer
from fledge.core.optim import Optimizer
from fledge.generate import native_decoder, torch_decoder
from fledge.generate.engine import Engine, Samples
from fledge.generate.native_decoder import NativeBatch, NativeDecoder, Packed
from fledge.generate.sampling import Sampling
from fledge.generate.torch_decoder import TorchBatch, TorchDecoder

V = 300
GREEDY = Sampling(temperature=0.0, max_tokens=12)
FREE = Sampling(temperature=1.0, max_tokens=14, seed=3)
STOPS = list(range(0, V, 9))  # often enough that answers end at different times

pytestmark = pytest.mark.skipif(
    native.library("decode") is None, reason="no C++ compiler here: only the torch path exists"
)


def prompts(*lengths: int, vocab: int = V) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(vocab, (n,), generator=generator).tolist() for n in lengths]


def many(count: int, longest: int = 30, vocab: int = V) -> list[list[int]]:
    return prompts(*(1 + 7 * i % longest for i in range(count)), vocab=vocab)


def same(a: Samples, b: Samples) -> None:
    """Equal but for the rounding of logp."""
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.lengths, b.lengths) and torch.equal(a.stopped, b.stopped)
    assert torch.allclose(a.logp, b.logp, atol=1e-4)


def same_bytes(a: Samples, b: Samples) -> None:
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ------------------------------------------------------------------------------------------------- against the twin

SHAPES = {
    "tiny": {},
    "grouped": {"kv_heads": 2, "qk_norm": True},
    "one key head": {"kv_heads": 1, "bias": True, "tied": False},
    "three queries a key": {"width": 96, "heads": 6, "kv_heads": 2, "bias": True, "qk_norm": True, "norm_eps": 0.1},
    "five queries a key": {"width": 40, "heads": 5, "kv_heads": 1},
    "odd sizes": {"width": 42, "heads": 3, "ffn_width": 51, "vocab_size": 307, "norm_eps": 1e-3, "rope_base": 100.0},
    "wide heads": {"width": 160, "heads": 2, "ffn_width": 33, "tied": False},
    "value head": {"head": "tokens+value"},
    "heads of their own width": {"width": 40, "heads": 4, "kv_heads": 2, "head_width": 24, "qk_norm": True},
    "narrow heads": {"width": 70, "heads": 4, "head_width": 6, "bias": True},
    "stretched positions": {"rope_scaling": RopeScaling(kind="llama3", factor=8.0, original_context=16)},
}


@pytest.mark.parametrize("count", [1, 5, 33])
@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_answers_are_those_of_the_twin(make_model, shape, count):
    model, asked = make_model(spread=0.15, **SHAPES[shape]), many(count)
    fast, slow = (Engine(model, STOPS, native=n).sample(asked, GREEDY) for n in (True, False))
    same(fast, slow)
    assert count < 33 or (fast.stopped.any() and len(fast.lengths.unique()) > 2)


@pytest.mark.parametrize("native_", [True, False], ids=["native", "torch"])
@pytest.mark.parametrize("slots", [1, 3, 40])
def test_slots_that_are_taken_over_change_no_answer(make_model, slots, native_):
    """Prompts with several answers each, more answers than slots: each as if it were alone."""
    model, asked = make_model(spread=0.15, kv_heads=2), many(13)
    engine = Engine(model, STOPS, native=native_)
    found = engine.sample(asked, FREE, samples=3, slots=slots)
    assert len(found.lengths.unique()) > 4
    for row in (0, 1, 7, 20, 38):
        alone = engine.sample([asked[row // 3]], FREE, streams=[row])
        assert alone.tokens[0].tolist() == found.tokens[row, : found.lengths[row]].tolist()
        assert torch.allclose(alone.logp[0], found.logp[row, : found.lengths[row]], atol=1e-4)
    repeated = [p for p in asked for _ in range(3)]
    same(found, engine.sample(repeated, FREE, slots=128))


def test_sampled_answers_are_those_of_the_twin(make_model):
    model, asked = make_model(spread=0.1), many(9)
    for sampling in (FREE, Sampling(temperature=0.8, top_k=20, top_p=0.9, max_tokens=14)):
        same(*(Engine(model, STOPS, native=n).sample(asked, sampling, samples=2) for n in (True, False)))


def test_a_run_that_rarely_looks_who_has_stopped_says_the_same(make_model, monkeypatch):
    """As on CUDA: slots stay empty for some steps, and nothing is written for them."""
    model, asked = make_model(spread=0.15), many(13)
    engine = Engine(model, STOPS, native=False)
    expected = engine.sample(asked, FREE, samples=2, slots=5)
    monkeypatch.setitem(torch_decoder._LOOK_STEPS, "cpu", 8)
    same(expected, engine.sample(asked, FREE, samples=2, slots=5))


def test_prompts_longer_than_a_step_takes_rows(make_model):
    """Read in several pieces, the pieces of one prompt among the answers of others, then shared by its samples."""
    model = make_model(spread=0.15, context_tokens=400)
    asked = prompts(300, 1, 129, 64, 65, 2)
    assert max(map(len, asked)) > 2 * native_decoder._CHUNK_ROWS
    sampling = Sampling(temperature=1.0, max_tokens=20)
    fast, slow = (Engine(model, STOPS, native=n).sample(asked, sampling, samples=3, slots=4) for n in (True, False))
    same(fast, slow)
    answers = Engine(model, STOPS, native=True).generate(asked, sampling, samples=3)
    assert [c.tokens for c in answers] == [t[:n].tolist() for t, n in zip(fast.tokens, fast.lengths, strict=True)]


def rounded(model: Transformer, make_model, **shape) -> Transformer:
    """The model with every weight that the compiled loop keeps in bfloat16 rounded to it."""
    other = make_model(spread=0.1, **shape)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.ndim == 2:
                parameter.copy_(parameter.bfloat16())
    return other


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_logits_are_near_those_of_a_float32_twin_with_rounded_weights(make_model, shape):
    model = make_model(spread=0.1, **SHAPES[shape])
    twin = rounded(model, make_model, **SHAPES[shape])
    asked = many(7)
    fast = NativeBatch(NativeDecoder(model, Packed(), torch.bfloat16, 7, 64), asked)
    slow = TorchBatch(TorchDecoder(twin, torch.float32, 7, 64), asked)
    for step in range(6):
        error = (fast.logits - slow.logits).abs().max() / slow.logits.abs().max()
        assert error < 2e-2, (step, error)
        if step == 3:
            kept = torch.tensor([0, 2, 5, 6])
            fast.keep(kept), slow.keep(kept)
        token = slow.logits.argmax(-1)[kept] if step == 3 else slow.logits.argmax(-1)
        fast.step(token), slow.step(token)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_batch_slots_and_threads_change_no_byte(make_model, dtype, monkeypatch):
    model, asked = make_model(spread=0.1, kv_heads=2), many(21)
    engine = Engine(model, STOPS, dtype=dtype, native=True)
    found = engine.sample(asked, FREE, samples=2)
    same_bytes(found, engine.sample(asked, FREE, samples=2))
    same_bytes(found, engine.sample(asked, FREE, samples=2, slots=5))
    torch.set_num_threads(3)
    same_bytes(found, engine.sample(asked, FREE, samples=2))  # three teams of one thread
    monkeypatch.setattr(native_decoder, "_SHARED_WEIGHTS", 0)
    same_bytes(found, engine.sample(asked, FREE, samples=2, slots=5))  # one team of three threads
    one = engine.sample(asked[:1], FREE)
    assert torch.equal(one.logp[0], found.logp[0, : one.lengths[0]])
    logits = NativeBatch(NativeDecoder(model, Packed(), dtype, 21, 64), asked).logits
    torch.set_num_threads(1)
    assert torch.equal(logits, NativeBatch(NativeDecoder(model, Packed(), dtype, 21, 64), asked).logits)


def test_the_model_s_precision_is_taken_and_torch_on_a_cpu_stays_float32(make_model):
    model = make_model(spread=0.1)
    assert Engine(model, []).dtype == torch.float32
    model.compute_dtype = torch.bfloat16
    assert Engine(model, []).dtype == Engine(model, [], native=True).dtype == torch.bfloat16
    assert Engine(model, [], native=False).dtype == torch.float32
    assert Engine(model, [], dtype=torch.bfloat16, native=False).dtype == torch.bfloat16
    full = Engine(model, [], dtype=torch.float32).sample(many(4), FREE)
    half = Engine(model, []).sample(many(4), FREE)
    assert not torch.equal(full.logp, half.logp) and torch.allclose(full.logp[:, 0], half.logp[:, 0], atol=0.2)


# --------------------------------------------------------------------------------------------------- weights, paths


def adamw(model: Transformer) -> None:
    step(model, "adamw")


def muon(model: Transformer) -> None:
    step(model, "muon")


def step(model: Transformer, kind: str) -> None:
    optimizer = Optimizer(model, kind=kind, lr=0.05)
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    optimizer.step(0.05)
    optimizer.zero_grad()


def reload(model: Transformer) -> None:
    model.load_state_dict({n: p.flip(0).clone() for n, p in model.state_dict().items()})


def write_data(model: Transformer) -> None:
    for layer in model.layers:
        layer.down.data.mul_(-1)


def one_number(model: Transformer) -> None:
    model.layers[1].gate_up.data[-1, -1] += 30.0


def replace_storage(model: Transformer) -> None:
    for layer in model.layers:
        layer.attention_out.data = layer.attention_out.data.flip(0).clone()


CHANGES = [adamw, muon, reload, write_data, one_number, replace_storage]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_changed_weights_are_seen_at_once(make_model, change):
    model, asked = make_model(spread=0.15), many(6)
    engine = Engine(model, STOPS, native=True)
    before = engine.sample(asked, GREEDY)
    change(model)
    after = engine.sample(asked, GREEDY)
    assert before.logp.shape != after.logp.shape or not torch.allclose(before.logp, after.logp, atol=1e-3)
    same_bytes(after, Engine(model, STOPS, native=True).sample(asked, GREEDY))
    same(after, Engine(model, STOPS, native=False).sample(asked, GREEDY))


def test_unchanged_weights_are_not_packed_again(make_model):
    model, packed = make_model(spread=0.15), Packed()
    weight = model.layers[0].qkv
    first = packed.get("qkv", weight, torch.float32)
    assert packed.get("qkv", weight, torch.float32) is first
    weight.data[0, 0] += 1
    assert packed.get("qkv", weight, torch.float32) is not first


def test_without_the_compiled_loop_torch_serves(make_model, monkeypatch):
    model, asked = make_model(spread=0.15), many(6)
    fast = Engine(model, STOPS)
    assert fast.native
    expected = fast.sample(asked, GREEDY)
    monkeypatch.setenv("FLEDGE_NATIVE", "0")
    native.library.cache_clear()
    try:
        assert not fast.native
        same(expected, fast.sample(asked, GREEDY))
        with pytest.raises(ValueError, match="native = True"):
            Engine(model, STOPS, native=True)
    finally:
        monkeypatch.undo()
        native.library.cache_clear()


def test_a_model_the_loop_cannot_read_is_decoded_by_torch(make_model):
    model = make_model(spread=0.15).bfloat16()
    assert not Engine(model, STOPS).native


# ---------------------------------------------------------------------------------------------------- the interface


@pytest.mark.parametrize("native_", [True, False], ids=["native", "torch"])
def test_samples_are_laid_out_as_promised(make_model, native_):
    model, asked = make_model(spread=0.15), [*prompts(60, 5, 63)]
    engine = Engine(model, STOPS, native=native_)
    found = engine.sample(asked, Sampling(temperature=1.0, max_tokens=20), samples=4)
    rows, longest = found.tokens.shape
    assert (rows, longest) == (12, int(found.lengths.max())) and found.logp.shape == found.tokens.shape
    assert found.tokens.dtype == found.lengths.dtype == torch.int64
    assert found.logp.dtype == torch.float32 and found.stopped.dtype == torch.bool
    beyond = torch.arange(longest) >= found.lengths[:, None]
    assert (found.tokens[beyond] == -1).all() and (found.logp[beyond] == 0).all()
    assert (found.tokens[~beyond] >= 0).all() and (found.logp[~beyond] < 0).all()
    last = found.tokens.gather(1, found.lengths[:, None] - 1).squeeze(1)
    assert torch.equal(found.stopped, torch.isin(last, torch.tensor(STOPS)))
    limits = torch.tensor([4, 20, 1]).repeat_interleave(4)  # the context of 64 leaves that much room
    assert (found.lengths <= limits).all() and (found.lengths == limits)[~found.stopped].all()
    assert found.stopped.any() and not found.stopped.all()
    for row in range(rows):
        assert not torch.isin(found.tokens[row, : found.lengths[row] - 1], torch.tensor(STOPS)).any()
    (found.logp * torch.ones(1, requires_grad=True)).sum().backward()  # training may use them


@pytest.mark.parametrize("native_", [True, False], ids=["native", "torch"])
def test_every_answer_has_its_own_room_whoever_had_the_slot_before(make_model, native_):
    """No end tokens: the lengths are the limits, and slots come free one by one."""
    asked = prompts(5, 60, 61, 60, 6, 63, 7, 8)
    found = Engine(make_model(spread=0.15), [], native=native_).sample(asked, FREE, slots=4)
    assert found.lengths.tolist() == [min(14, 64 - len(p)) for p in asked] and not found.stopped.any()
    assert torch.equal((found.tokens >= 0).sum(1), found.lengths)


def test_rules_go_through_sample_too(make_model):
    model, asked = make_model(spread=0.15), many(5)

    def no_stops(logits: Tensor, made: Tensor) -> Tensor:
        return logits.index_fill(1, torch.tensor(STOPS), -torch.inf)

    found = Engine(model, STOPS).sample(asked, FREE, samples=2, rules=[no_stops], slots=3)
    assert (found.lengths == 14).all() and not found.stopped.any()
    plain = Engine(model, STOPS).sample(asked, FREE, samples=2, rules=[lambda logits, made: logits])
    same(plain, Engine(model, STOPS).sample(asked, FREE, samples=2))


def test_what_cannot_be_asked_for_is_told(make_model):
    engine = Engine(make_model(), STOPS)
    with pytest.raises(ValueError, match="samples = 0"):
        engine.sample(many(2), FREE, samples=0)
    with pytest.raises(ValueError, match="streams has 3 numbers for 4 answers"):
        engine.sample(many(2), FREE, samples=2, streams=[1, 2, 3])
    with pytest.raises(ValueError, match=r"prompt 1 has token 3 or 300: the vocabulary is 0 to 299"):
        engine.sample([[1], [3, 300]], FREE)
    nothing = engine.sample([], FREE)
    assert nothing.tokens.shape == (0, 0) and len(nothing.lengths) == 0
