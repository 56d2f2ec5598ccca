"""P2: next-token prediction is classification, and its loss can reach the entropy of the source but not pass it.

The source is a Markov chain of order 2 over 16 symbols whose entropy rate is known exactly. Text from it is endless and
fresh, so the validation loss can only come down to that rate; a lower one would mean that the model had seen the answers.
What counting the last symbol, or none, achieves is the control. Shannon 1948 (section 7) gives the bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fledge.core.config import Settings, TrainConfig
from fledge.core.log import read_jsonl
from fledge.core.model import Shape, Transformer
from fledge.generate.scoring import Asked, score
from fledge.labs.bench import Bench
from fledge.labs.verdict import Findings, Number, at_least, at_most, between, difference
from fledge.probe.reading import float32_logits
from fledge.stages import pretrain
from fledge.stages.common import open_model
from fledge.stages.panels import Line, Panel, panel_chart
from fledge.text.tokenizer import SPECIALS, Tokenizer

SYMBOLS = "abcdefghijklmnop"


class Setup(Settings, frozen=True, kw_only=True):
    """A source, and a model that is trained on what it says."""

    tokens: int = 2_000_000
    "Symbols to train on, each seen once."
    alpha: float = 0.3
    "Dirichlet parameter of the chain's rows: smaller is more predictable."
    size: str = "tiny"
    "Model size."
    lr: float = 4e-3
    "Peak learning rate."
    batch_tokens: int = 1024
    "Symbols of an optimiser step."
    document: int = 1000
    "Symbols of a document."
    validation: int = 200
    "Documents the loss is measured on; none of them is trained on."


SCALES = {
    "pocket": Setup(),
    "gpu": Setup(tokens=100_000_000, size="pocket", validation=2000),
    "tiny": Setup(tokens=60_000, validation=4),
}


class Chain:
    """A Markov chain of order 2: what comes next depends on the last two symbols."""

    def __init__(self, alpha: float, seed: int):
        self.dice = np.random.default_rng([seed, 2])
        states = len(SYMBOLS)
        self.rows = self.dice.dirichlet([alpha] * states, size=(states, states))  # [a, b, c]: p(c | a, b)
        pairs = np.full((states, states), 1 / states**2)
        for _ in range(2000):  # stationary distribution of pairs of neighbours
            pairs = np.einsum("ab,abc->bc", pairs, self.rows)
        self.pairs = pairs

    def entropies(self) -> list[float]:
        """Nats per symbol for whoever knows none, one or both of the last symbols; the last is the entropy rate."""

        def entropy(p: np.ndarray) -> np.ndarray:
            return -(p * np.log(np.maximum(p, 1e-300))).sum(-1)

        single = self.pairs.sum(0)
        after_one = np.einsum("ab,abc->bc", self.pairs, self.rows) / single[:, None]
        return [
            float(entropy(single)),
            float((single * entropy(after_one)).sum()),
            float((self.pairs * entropy(self.rows)).sum()),
        ]

    def texts(self, count: int, length: int) -> list[str]:
        """`count` texts, all walked at once."""
        cumulated, walks = self.rows.cumsum(-1), np.empty((length, count), dtype=np.int64)
        start = self.dice.choice(self.pairs.size, size=count, p=self.pairs.ravel() / self.pairs.sum())
        walks[0], walks[1] = np.divmod(start, len(SYMBOLS))
        for t in range(2, length):
            drawn = self.dice.random((count, 1))
            row = cumulated[walks[t - 2], walks[t - 1]]
            walks[t] = np.minimum((row < drawn).sum(-1), len(SYMBOLS) - 1)
        letters = np.array(list(SYMBOLS))
        return ["".join(walk) for walk in letters[walks.T]]


def measure(setup: Setup, bench: Bench) -> dict[str, Any]:
    """Train once; the loss before and after, against what the source allows."""
    chain = Chain(setup.alpha, bench.seed)
    validation = chain.texts(setup.validation, setup.document)
    documents = math.ceil(setup.tokens / setup.document)
    text = bench.write("text", [{"text": t} for t in chain.texts(documents, setup.document)])
    recipe = pretrain.PretrainRecipe(
        out=bench.out("model"), text=[text], tokens=setup.tokens, vocab_size=256 + len(SPECIALS),
        model=Shape(size=setup.size, context_tokens=128),
        train=TrainConfig(lr=setup.lr, optimizer="muon", batch_tokens=setup.batch_tokens, seed=bench.seed),
    )  # fmt: skip
    trained = pretrain.run(recipe, quiet=True)
    opened = open_model(trained, precision="float32")
    start = Transformer(opened.model.config).initialise(bench.seed).eval()
    rows = read_jsonl(Path(recipe.out) / "metrics.jsonl")
    return {
        "entropies": chain.entropies(),
        "loss": loss_of(opened.model, opened.tokenizer, validation),
        "loss_start": loss_of(start, opened.tokenizer, validation[:1]),
        "vocabulary": opened.tokenizer.vocab_size,
        **exactness(start, opened.tokenizer.encode(validation[0])[:64]),
        "curve": [[row["tokens"] * row["step"], row["loss"]] for row in rows if row["step"] % 10 == 0],
    }


def loss_of(model: Transformer, tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    """Nats per symbol from the third of each piece of 100 on: the first two have no whole context for any model."""
    pieces = [tokenizer.encode(text[i : i + 100]) for text in texts for i in range(0, len(text), 100)]
    scored = score(model, [Asked(piece[:2], piece[2:]) for piece in pieces])
    return -sum(s.logp for s in scored) / sum(len(piece) - 2 for piece in pieces)


def exactness(model: Transformer, tokens: Sequence[int]) -> dict[str, float]:
    """The gradient at the logits against p less one-hot, and the sum of losses against the log of the product."""
    row = torch.tensor([list(tokens)])
    logits = float32_logits(model, model.hidden(row))[0, :-1].detach().double().requires_grad_()
    targets = row[0, 1:]
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    losses.sum().backward()
    p = logits.detach().softmax(-1)
    wanted = p - torch.nn.functional.one_hot(targets, p.shape[-1])
    product = p.gather(1, targets[:, None]).prod()
    return {
        "gradient_gap": float((logits.grad - wanted).abs().max()),
        "sequence_gap": abs(float(losses.detach().sum() + product.log())),
    }


def judge(setup: Setup, seeds: Sequence[dict[str, Any]]) -> Findings:
    """The loss must come within 0.03 nats of the entropy rate and stay above it but for noise."""
    none, one, rate = (
        Number(label=label, by_seed=[s["entropies"][i] for s in seeds], unit="nats")
        for i, label in enumerate(("knowing no symbol", "knowing the last symbol", "entropy rate of the source"))
    )
    loss = Number(label="the model, on text it never saw", by_seed=[s["loss"] for s in seeds], unit="nats")
    above = difference("the model above the entropy rate", loss, rate, "nats")
    start = Number(label="loss at the start, less ln V", unit="nats",
                   by_seed=[s["loss_start"] - math.log(s["vocabulary"]) for s in seeds])  # fmt: skip
    gap = Number(label="gradient less (p − one-hot), largest", by_seed=[s["gradient_gap"] for s in seeds])
    product = Number(label="sum of losses less −log of the product", by_seed=[s["sequence_gap"] for s in seeds])
    noise = 3 / math.sqrt(setup.validation * setup.document)  # three deviations of a mean of so many log-probabilities
    return Findings(
        numbers=[loss, rate, above, one, none, start],
        checks=[
            at_most("the loss comes down to the entropy rate, within 0.03 nats", above, 0.03),
            at_least("and does not pass it, but for noise", above, -noise),
            at_least("knowing only the last symbol is worse by 0.1 nats", difference("", one, loss, "nats"), 0.1),
            between("the loss starts at ln V", start, -0.1, 0.1, core=False),
            at_most("the gradient at the logits is p less one-hot", gap, 1e-6, core=False),
            at_most("losses add up to the sequence's", product, 1e-5, core=False),
        ],
        said=(
            f"The model ends {above.mean:.3f} nats above the entropy of its source ({rate.mean:.3f} nats a symbol), where "
            f"counting single symbols ends at {none.mean:.3f} and pairs at {one.mean:.3f}. Predicting the next token is "
            "choosing one of V classes, and text gives the labels: nobody annotated anything."
        ),
    )


def draw(setup: Setup, seeds: Sequence[dict[str, Any]]) -> str:
    """Loss over symbols read, and the three levels of what can be known."""
    rates = [sum(s["entropies"][i] for s in seeds) / len(seeds) for i in range(3)]
    curves = [[tuple(point) for point in s["curve"]] for s in seeds]
    end = max(x for curve in curves for x, _ in curve)
    lines = [Line(f"model, seed {i}", curve, "sft") for i, curve in enumerate(curves)]
    labels = (("no symbol known", "control"), ("last symbol known", "base"), ("entropy rate", "aligned"))
    lines += [
        Line(label, [(0.0, rate), (end, rate)], colour, dash=(0, (4, 2)))
        for (label, colour), rate in zip(labels, rates, strict=True)
    ]
    return panel_chart(
        "P2", [Panel("loss on fresh text, nats per symbol", lines)], "Loss falls to the entropy rate of the source",
        over="symbols read", direct=True,
    )  # fmt: skip
