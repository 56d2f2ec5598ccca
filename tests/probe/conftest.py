"""Fixtures of the probes: a model and the one it was raised from, whose distributions differ by nats."""

from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
import torch

from fledge.core.checkpoint import save_checkpoint
from fledge.core.model import Transformer
from fledge.text.tokenizer import Tokenizer


class Held(NamedTuple):
    """What the probes need of an opened model."""

    model: Transformer
    tokenizer: Tokenizer
    path: Path


@pytest.fixture(scope="session")
def base(make_model, tokenizer) -> Held:
    model = make_model(0, spread=0.15, vocab_size=tokenizer.vocab_size, context_tokens=48)
    return Held(model, tokenizer, Path("runs/base"))


@pytest.fixture
def base_run(base: Held, tmp_path: Path) -> Path:
    """The base as a run on disk, for commands."""
    card = {"stage": "pretrain", "parent": None, "model": msgspec.to_builtins(base.model.config)}
    weights, tokens = base.model.state_dict(), base.tokenizer.json
    save_checkpoint(tmp_path / "base", 1, model=weights, optimizer={}, state={}, card=card, tokenizer=tokens)
    return tmp_path / "base"


@pytest.fixture(scope="session")
def aligned(make_model, tokenizer) -> Held:
    """The base moved a little: most of its choices stay, some change."""
    model = make_model(0, spread=0.15, vocab_size=tokenizer.vocab_size, context_tokens=48)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0.0, 0.04, generator=generator))
    return Held(model, tokenizer, Path("runs/aligned"))
