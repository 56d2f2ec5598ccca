"""Power sampling against enumeration: of a real model with few tokens, and what must hold exactly."""

from collections import Counter

import numpy as np
import pytest
import torch

from fledge.core.config import build
from fledge.generate.engine import Engine
from fledge.generate.power import EngineWriter, PowerSampling, power_sample

V, END = 5, 4


@pytest.fixture(scope="module")
def writer(make_model) -> EngineWriter:
    return EngineWriter(Engine(make_model(0, spread=0.5, vocab_size=V, context_tokens=16), [END]))


def enumerated(writer: EngineWriter, prompt: list[int], length: int) -> dict[tuple[int, ...], float]:
    """Every answer of at most `length` tokens with its probability, one forward pass each."""
    found, open_ = {}, [((), 0.0)]
    while open_:
        text, logp = open_.pop()
        with torch.no_grad():
            row = writer.engine.model.logits(writer.engine.model.hidden(torch.tensor([[*prompt, *text]]))[0, -1:])[0]
        for token, lp in enumerate(torch.log_softmax(row.double(), -1).tolist()):
            longer = (*text, token)
            if token == END or len(longer) == length:
                found[longer] = float(np.exp(logp + lp))
            else:
                open_.append((longer, logp + lp))
    return found


@pytest.mark.parametrize(("alpha", "blocks"), [(1.0, 1), (2.0, 3)])
def test_chains_end_in_the_power_distribution(writer, alpha, blocks):
    prompt, chains = [0, 1], 1500
    p = enumerated(writer, prompt, 3)
    assert sum(p.values()) == pytest.approx(1, abs=1e-4)
    whole = sum(v**alpha for v in p.values())
    how = PowerSampling(alpha=alpha, temperature=1.0, steps=8, blocks=blocks, max_tokens=3, seed=5)
    drawn = power_sample(writer, [prompt] * chains, how)
    counts = Counter(tuple(d.tokens) for d in drawn)
    off = 0.5 * sum(abs(v**alpha / whole - counts[text] / chains) for text, v in p.items())
    noise = 0.5 * sum(np.sqrt(2 / np.pi * (v**alpha / whole) / chains) for v in p.values())
    assert off < 1.5 * noise and all(d.stopped == (d.tokens[-1] == END) for d in drawn)
    assert all(abs(d.logp - np.log(p[tuple(d.tokens)])) < 1e-3 for d in drawn[:50])


def test_climbing_never_goes_down_and_no_steps_are_the_proposal(writer):
    start = power_sample(writer, [[0, 1]] * 40, PowerSampling(steps=0, blocks=1, max_tokens=6))
    end = power_sample(writer, [[0, 1]] * 40, PowerSampling(steps=6, blocks=1, max_tokens=6, climb=True))
    assert all(after.logp >= before.logp - 1e-5 for before, after in zip(start, end, strict=True))
    assert all(d.taken == 0 and d.written == len(d.tokens) for d in start)


def test_rules_of_the_settings_and_of_the_room(writer):
    for given, message in (({"alpha": 0.5}, "at least 1"), ({"blocks": 40}, "between 1 and max_tokens")):
        with pytest.raises(ValueError, match=message):
            build(PowerSampling, given)
    with pytest.raises(ValueError, match="leaves 14 of the model's"):
        power_sample(writer, [[0, 1]], PowerSampling(max_tokens=15))
    assert power_sample(writer, [], PowerSampling()) == []
