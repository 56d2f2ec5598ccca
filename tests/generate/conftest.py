"""Fixtures of the tests of rollouts: prompts, a model whose distributions differ by nats, and a reference near it."""

import pytest
import torch
from rolling import QUESTIONS

from fledge.core.model import Transformer
from fledge.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def asked(tokenizer: Tokenizer) -> list[list[int]]:
    """Prompts of several lengths."""
    return [
        [tokenizer.bos, tokenizer.user, *tokenizer.encode(q), tokenizer.end, tokenizer.assistant] for q in QUESTIONS
    ]


@pytest.fixture(scope="module")
def make(make_model, tokenizer):
    """make(seed, **config): a model of the tokenizer's vocabulary whose distributions differ by nats."""
    return lambda seed=0, **config: make_model(seed, spread=0.15, vocab_size=tokenizer.vocab_size, **config)


@pytest.fixture
def model(make) -> Transformer:
    return make()


@pytest.fixture
def reference(make) -> Transformer:
    """The model moved: an answer's KL is a few nats."""
    other = make()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(torch.empty_like(p).normal_(0, 0.03, generator=generator))
    return other.requires_grad_(False)
