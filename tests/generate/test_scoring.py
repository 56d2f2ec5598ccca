"""Scores of continuations are those of reading each by itself, however rows are shared, cut and batched."""

import random

import pytest
import torch

from fledge.core.adapters import AdapterConfig
from fledge.core.adapting import attach
from fledge.generate import scoring
from fledge.generate.scoring import Asked, score


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


SHAPES = {
    "plain": {},
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


def test_a_shared_context_is_read_once(make_model, monkeypatch):
    model, read = make_model(0, spread=0.2), []
    embed = model.embed
    monkeypatch.setattr(model, "embed", lambda tokens, dtype: read.append(tokens.numel()) or embed(tokens, dtype))
    context = list(range(40))
    score(model, [Asked(context, [i, i + 1]) for i in range(10)] + [Asked(context, [3, i]) for i in range(10)])
    assert sum(read) == 40 + 10  # ten different first tokens, whatever is predicted after them


def test_long_lists_of_options_are_cut_into_rows(make_model, monkeypatch):
    monkeypatch.setattr(scoring, "_PACKED_TOKENS", 24)
    model = make_model(0, spread=0.2)
    asked = [Asked([1, 2, 3], [i, 2 * i, 5, i]) for i in range(40)]
    for request, (logp, _) in zip(asked, score(model, asked), strict=True):
        assert logp == pytest.approx(alone(model, request)[0], abs=1e-4)


@pytest.mark.parametrize("kind", ["prefix", "lora"])
def test_behind_an_adapter(make_model, kind):
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
    with pytest.raises(ValueError, match="continuation of 65 tokens, the model's context is 64"):
        score(model, [Asked([1], [2] * 65)])
    with pytest.raises(ValueError, match="causal = False"):
        score(make_model(0, causal=False), [Asked([1], [2])])
