"""Small real parts that tests share: one thread, a bilingual tokenizer, models of size "tiny", both kernel paths."""

import shutil
from collections.abc import Callable, Iterator

import fledge  # noqa: F401 - before torch, whose idle threads would spin and take the core from each other

# isort: split
import pytest
import torch
from chat_server import endpoint  # noqa: F401 - fixture
from hypothesis import settings
from postgres import postgres_socket, postgres_url  # noqa: F401 - fixtures
from sentences import SENTENCES

from fledge.core import native
from fledge.core.model import ModelConfig, Transformer
from fledge.text.tokenizer import Tokenizer

settings.register_profile("fledge", deadline=None)
settings.load_profile("fledge")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """One CPU thread in every test, whatever an earlier test or the loop has set."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """About 500 tokens learnt from the sentences above."""
    return Tokenizer.train(SENTENCES * 3, 500)


@pytest.fixture(scope="session")
def sentences() -> tuple[str, ...]:
    return SENTENCES


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Transformer]:
    """make_model(seed=0, spread=None, **config): a tiny model; `spread` redraws every weight with that deviation.

    A freshly initialised model is almost uniform whatever it reads; a spread of 0.2 makes its logits differ by nats.
    """

    def make(seed: int = 0, spread: float | None = None, **config) -> Transformer:
        model = Transformer(ModelConfig(**{"size": "tiny", "vocab_size": 300, "context_tokens": 64, **config}))
        model.initialise(seed)
        if spread is not None:
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.copy_(torch.empty_like(parameter).normal_(0.0, spread, generator=generator))
                    if parameter.ndim == 1:
                        parameter.add_(1.0)
        return model.eval()

    return make


@pytest.fixture(params=["native", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Runs a test on the compiled kernels and again on the torch operations that stand in for them."""
    if request.param == "native" and not (shutil.which("g++") or shutil.which("c++")):
        pytest.skip("no C++ compiler here: only the torch path exists")
    monkeypatch.setenv("FLEDGE_NATIVE", "1" if request.param == "native" else "0")
    _forget_library()
    assert (native.library() is not None) == (request.param == "native")
    yield request.param
    monkeypatch.undo()
    _forget_library()


def _forget_library() -> None:
    native.library.cache_clear()
    native.kernel.cache_clear()
