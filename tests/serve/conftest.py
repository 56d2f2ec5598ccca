"""A real server with tiny models, in a thread of the test process.

    def test_something(served):
        answer = served.client().get("/api/me").json()        # as the owner
        served.client("rater").post("/api/votes", json=...)   # as one of two raters: "rater", "other"
        page.goto(f"{served.url}/?token={served.tokens['owner']}")

`served` is shared by a module. `serve(run, port=0, ...)` starts another with options of its own; `journey` is a folder
with tiny models base, sft and aligned to copy and serve.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from browsing import browser, visit  # noqa: F401
from live_server import CONTEXT_TOKENS, OWNER_TOKEN, QUESTIONS, RATERS, Served

from fledge.core.checkpoint import load_checkpoint, save_checkpoint
from fledge.feedback.store import Store
from fledge.generate.live import Live
from fledge.generate.sampling import Sampling
from fledge.serve.command import ChatOptions, serving_in_thread


@pytest.fixture(scope="session")
def journey(tmp_path_factory: pytest.TempPathFactory, make_model: Callable, tokenizer) -> Path:
    """A folder with runs base, sft and aligned, each the child of the one before; their answers are noise."""
    folder, parent = tmp_path_factory.mktemp("journey"), None
    for seed, (name, stage) in enumerate((("base", "pretrain"), ("sft", "sft"), ("aligned", "dpo"))):
        model = make_model(seed, 0.08, vocab_size=tokenizer.vocab_size, context_tokens=CONTEXT_TOKENS)
        card = {"stage": stage, "parent": parent, "model": msgspec.to_builtins(model.config), "recipe": {}}
        path = save_checkpoint(
            folder / name, 1, model=model.state_dict(), optimizer={}, state={}, card=card, tokenizer=tokenizer.json
        )
        recipe = {"stage": stage, "recipe": {"out": str(folder / name), "train": {"steps": 3}}}
        (folder / name / "recipe.json").write_text(json.dumps(recipe))
        rows = "".join(json.dumps({"step": step, "loss": 5.0 / step}) + "\n" for step in (1, 2, 3))
        (folder / name / "metrics.jsonl").write_text(rows)
        parent = {"id": load_checkpoint(path).id, "path": str(path)}
    return folder


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractContextManager[Served]]:
    """serve(run, **options): a context manager that starts a server and yields a Served."""

    @contextmanager
    def serving(run: Path, **options: Any) -> Iterator[Served]:
        chosen = {"run": str(run), "port": 0, "token": OWNER_TOKEN, "open": False, **options}
        with serving_in_thread(ChatOptions(**chosen)) as (url, service):
            with Store.open(service.url) as store:
                for name, secret in RATERS.items():
                    store.put_person("person", name, "rater", secret, id=f"p_{name}")
            served = Served(url, service, run, {"owner": OWNER_TOKEN, **RATERS})
            try:
                yield served
            finally:
                for client in served.clients:
                    client.close()

    return serving


@pytest.fixture(scope="module")
def served(
    serve: Callable[..., AbstractContextManager[Served]], journey: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A server of the journey's aligned model, compared with its sft model, with prompts and gold questions to rate."""
    folder = tmp_path_factory.mktemp("served")
    run, prompts, gold = folder / "mine", folder / "prompts.jsonl", folder / "gold.jsonl"
    shutil.copytree(journey, run)
    prompts.write_text("".join(json.dumps({"prompt": question}) + "\n" for question in QUESTIONS))
    gold.write_text(json.dumps({"prompt": "What is 1 + 1?", "good": "2", "bad": "11"}) + "\n")
    options = {"compare": [str(run / "sft")], "prompts": str(prompts), "gold": str(gold), "per_person": 16}
    with serve(run, **options, sampling=Sampling(max_tokens=24)) as served:
        yield served


@pytest.fixture
def slow_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model writes one token per call of the engine, about 200 a second, and so long answers are long in time."""
    go = Live.go

    def slowly(self: Live, steps: int, seconds: float = float("inf")) -> list:
        time.sleep(0.005)
        return go(self, 1, seconds)

    monkeypatch.setattr(Live, "go", slowly)
