"""Scores of continuations are those of reading each by itself, however rows are shared, cut and batched."""

import random

import numpy as np
import pytest
import torch

from fledge.core import native
from fledge.core.adapters import AdapterConfig
from fledge.core.adapting import attach
from fledge.generate import native_scoring, scoring
from fledge.generate.native_decoder import NativeDecoder
from fledge.generate.scoring import Asked, OneDNNProducts, score


def alone(model, request: Asked) -> tuple[float, bool]:
    """The slow twin: one row, the whole distribution."""
    ids = [*request.context, *request.continuation][-(model.config.context_tokens + 1) :]
    with torch.inference_mode():
        logits = model.logits(model.hidden(torch.tensor([ids[:-1]])))[0]
    n = len(request.continuation)
    targets = torch.tensor(ids[-n:])
    logp = torch.log_softmax(logits.double(), -1)[-n:].gather(1, targets[:, None]).sum()
    return float(logp), bool((logits[-n:].argmax(-1) == targets).all())


def requests(seed: int = 0) -> list[Asked]:
    """Several options to a context, options that begin alike, one token, lone ones, long ones; shuffled."""
    draw = random.Random(seed)

    def ids(n: int) -> list[int]:
        return [draw.randrange(300) for _ in range(n)]

    found = []
    for _ in range(6):
        context, stem = ids(draw.randrange(1, 30)), ids(3)
        found += [Asked(context, ids(draw.randrange(1, 9))) for _ in range(4)]
        found += [
            Asked(context, stem),
            Asked(context, [*stem, 7]),
            Asked(context, [*stem, 8]),
            Asked(context, stem[:1]),
        ]
        found += [Asked(context, [*stem, 9, 10]), Asked(ids(draw.randrange(1, 60)), ids(5))]
    found += [Asked(ids(90), ids(4)), Asked(ids(2), ids(64))]  # one loses its beginning, one is as long as can be
    draw.shuffle(found)
    return found


@pytest.fixture
def native_path() -> None:
    """For tests of the compiled loop itself."""
    if native.library("decode") is None:
        pytest.skip("no C++ compiler here: only torch operations score")


SHAPES = {
    "plain": {},
    "qkv biases and norms": {"bias": True, "qk_norm": True, "kv_heads": 1},
    "window": {"window": 8},
    "norms after, a layer without positions": {"norms": "post", "no_rope_layers": (1,), "tied": True},
    "window in one layer, rotary of its own": {"window": 6, "window_layers": (0,), "local_rope_base": 100.0},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch_tokens", [40, 8192])
def test_as_reading_each_by_itself(make_model, path, shape, batch_tokens):
    model = make_model(0, spread=0.2, **SHAPES[shape])
    asked = requests()
    found = score(model, asked, batch_tokens=batch_tokens)
    for request, (logp, greedy) in zip(asked, found, strict=True):
        wanted, likeliest = alone(model, request)
        assert logp == pytest.approx(wanted, abs=1e-4)
        assert greedy == likeliest


def test_greedy_continuations_are_told(make_model):
    model = make_model(0, spread=0.2)
    context, written = [5, 6, 7], []
    for _ in range(4):
        with torch.inference_mode():
            written.append(int(model.logits(model.hidden(torch.tensor([[*context, *written]])))[0, -1].argmax()))
    other = (written[2] + 1) % 300
    options = [written, written[:2], [*written[:2], other], [other]]
    assert [s.greedy for s in score(model, [Asked(context, o) for o in options])] == [True, True, False, False]


def test_torch_operations_beside_compiled_kernels(make_model):
    model, asked = make_model(0, spread=0.2), requests()
    for (logp, greedy), (wanted, likeliest) in zip(score(model, asked, native=False), score(model, asked), strict=True):
        assert logp == pytest.approx(wanted, abs=1e-4)
        assert greedy == likeliest


@pytest.fixture
def rows_read(monkeypatch, native_path) -> list[np.ndarray]:
    """What the compiled loop reads: rows [R,4] of each call."""
    read, whole = [], NativeDecoder.score
    monkeypatch.setattr(NativeDecoder, "score", lambda self, rows, *rest: read.append(rows) or whole(self, rows, *rest))
    return read


def test_a_common_beginning_is_read_once(make_model, rows_read):
    model, examples, question = make_model(0, spread=0.2), list(range(20)), [50, 51, 52]
    asked = [Asked([*examples, *question], [n, n + 1]) for n in range(5)]
    asked += [Asked([*examples, 60 + n], [7]) for n in range(4)] + [Asked(examples, [1, 2, 3])]
    found = score(model, asked)
    assert sum(map(len, rows_read)) == 20 + (3 + 5) + 4 + 2
    for request, (logp, _) in zip(asked, found, strict=True):
        assert logp == pytest.approx(alone(model, request)[0], abs=1e-4)


def test_neither_threads_nor_calls_nor_other_requests_change_a_byte(make_model, monkeypatch, rows_read):
    model, asked = make_model(0, spread=0.2), requests()
    whole = score(model, asked)
    assert [score(model, [request])[0] for request in asked] == whole
    monkeypatch.setattr(native_scoring, "_CALL_ROWS", 50)
    monkeypatch.setattr(native_scoring, "_PIECE_ROWS", 10)
    rows_read.clear()
    torch.set_num_threads(3)
    assert score(model, asked) == whole
    assert len(rows_read) > 2 and {int(slot) for rows in rows_read for slot in rows[:, 0]} == {0, 1, 2}


def test_bfloat16_is_near(make_model, native_path):
    model, asked = make_model(0, spread=0.2), requests()
    exact = [logp for logp, _ in score(model, asked)]
    model.compute_dtype = torch.bfloat16
    for compiled in (None, False):
        found = [logp for logp, _ in score(model, asked, native=compiled)]
        assert found != exact and found == pytest.approx(exact, rel=0.02, abs=0.1)


def test_products_of_the_other_library():
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(size, generator=generator) for size in ((2, 9, 24), (40, 24), (40,)))
    cases = [(x, weight), (x, weight, bias), (x.transpose(0, 1), weight, None), (x.bfloat16(), weight.bfloat16())]
    with torch.inference_mode():
        wanted = [torch.nn.functional.linear(*case) for case in cases]
        with OneDNNProducts():
            found = [torch.nn.functional.linear(*case) for case in cases]
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b)


def test_a_shared_context_is_read_once_by_torch_operations(make_model, monkeypatch):
    model, read = make_model(0, spread=0.2), []
    embed = model.embed
    monkeypatch.setattr(model, "embed", lambda tokens, dtype: read.append(tokens.numel()) or embed(tokens, dtype))
    context = list(range(40))
    asked = [Asked(context, [i, i + 1]) for i in range(10)] + [Asked(context, [3, i]) for i in range(10)]
    score(model, asked, native=False)
    assert sum(read) == 40 + 10  # ten different first tokens, whatever is predicted after them


def test_long_lists_of_options_are_cut_into_rows(make_model, monkeypatch):
    monkeypatch.setattr(scoring, "_PACKED_TOKENS", 24)
    model = make_model(0, spread=0.2)
    asked = [Asked([1, 2, 3], [i, 2 * i, 5, i]) for i in range(40)]
    for request, (logp, _) in zip(asked, score(model, asked, native=False), strict=True):
        assert logp == pytest.approx(alone(model, request)[0], abs=1e-4)


@pytest.mark.parametrize("kind", ["prefix", "lora"])
def test_behind_an_adapter(make_model, path, kind):
    model = attach(make_model(0, spread=0.2), AdapterConfig(kind=kind))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.adapter.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0.0, 0.1, generator=generator))
    asked = [Asked([4, 5, 6], [i, i + 1, i + 2]) for i in range(5)]
    for request, (logp, greedy) in zip(asked, score(model, asked), strict=True):
        wanted = alone(model, request)
        assert logp == pytest.approx(wanted[0], abs=1e-4) and greedy == wanted[1]


def test_what_cannot_be_scored(make_model):
    model = make_model(0)
    assert score(model, []) == [] and score(model, [Asked([1], [])]) == [(0.0, True)]
    with pytest.raises(ValueError, match="request 1 has no context"):
        score(model, [Asked([1], [2]), Asked([], [2])])
    with pytest.raises(ValueError, match="request 0 has token 2 or 300: the vocabulary is 0 to 299"):
        score(model, [Asked([1], [2, 300])])
    with pytest.raises(ValueError, match="continuation of 65 tokens, the model's context is 64"):
        score(model, [Asked([1], [2] * 65)])
    with pytest.raises(ValueError, match="causal = False"):
        score(make_model(0, causal=False), [Asked([1], [2])])
