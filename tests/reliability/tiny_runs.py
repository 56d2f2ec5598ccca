"""Training a model of 13 tokens in this process, with steps a test can spoil and weights it can look at."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fledge.core.batch import Batch
from fledge.core.config import TrainConfig
from fledge.core.log import read_jsonl
from fledge.core.model import ModelConfig, Transformer
from fledge.core.objectives import Objective, weighted_nll
from fledge.core.train import StepEvent, train

VOCAB, ROWS, LENGTH = 13, 4, 8


class Rows:
    """Endless random rows; those of the steps named are spoiled. The state is the number of batches given."""

    def __init__(self, spoiled: dict[int, str]):
        self.step, self.spoiled = 0, spoiled

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self.step += 1
            yield self.batch(self.step)

    def batch(self, step: int) -> Batch:
        draw = torch.Generator().manual_seed(step)
        whole = torch.randint(VOCAB, (ROWS, LENGTH + 1), generator=draw)
        weight, advantage = torch.ones(ROWS, LENGTH), None
        match self.spoiled.get(step, "").split():
            case ["weight", value]:
                weight[1, 2] = float(value)
            case ["advantage", value]:
                advantage = torch.ones(ROWS, LENGTH)
                advantage[2, 5] = float(value)
            case ["spike", times]:
                advantage = torch.full((ROWS, LENGTH), float(times))
        return Batch(
            tokens=whole[:, :-1], targets=whole[:, 1:], weight=weight, advantage=advantage,
            units=float(ROWS * LENGTH), ids=torch.arange(ROWS) + 100 * step,
        )  # fmt: skip


def weights_of(model: Transformer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


class Run:
    """Trains a model of 13 tokens and keeps the weights after each step."""

    def __init__(self, out: Path, spoiled: dict[int, str], steps: int, **over: Any):
        self.out, self.source = out, Rows(spoiled)
        shape = ModelConfig(size="tiny", layers=1, width=16, heads=2, vocab_size=VOCAB, context_tokens=LENGTH)
        self.model = Transformer(shape).initialise(0)
        self.after: dict[int, dict[str, torch.Tensor]] = {0: weights_of(self.model)}
        settings = {"steps": steps, "threads": 1, "save_seconds": 600.0, "lr": 1e-3, "warmup": 0.0, **over}
        self.config = TrainConfig(**settings)

    def go(self, stop_at: int | None = None, objective: Objective = weighted_nll) -> "Run":
        """Train to the end, or ask the run to stop (SIGTERM) after a step."""

        def keep(event: StepEvent) -> None:
            self.after[event.step] = weights_of(event.model)
            if event.step == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)

        train(self.model, self.source, objective, self.config, out=self.out, card={}, hooks=[keep])
        return self

    def changed(self, step: int) -> bool:
        before, after = self.after[step - 1], self.after[step]
        return any(not torch.equal(before[n], after[n]) for n in before)

    @property
    def rows(self) -> dict[int, dict[str, Any]]:
        return {row["step"]: row for row in read_jsonl(self.out / "metrics.jsonl")}
