"""Probes of a frozen model: what can be read off its states by one matrix (Alain and Bengio 2016).

A probe answers a question about a text from one state of the model. It is fitted on some texts and tested on others, so it
can only use what the model put there. Two kinds:

    linear_probe   logistic regression on the state at the text's last token, of any layer
    query_probe    one more token after the text, whose embedding is learned, and the model's own output rows as the matrix

The second is the Q-probe of Allen-Zhu and Li 2023 (Physics of Language Models, part 3.1, section 4.2) for hundreds of texts
instead of 50,000: they learn a low-rank change of all embeddings and a new matrix, which here would only learn the training
texts by heart. One vector for each question cannot, so what it finds was there.
Shapes: N texts, T positions, D width, V vocabulary, C classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from fledge.core.model import Transformer
from fledge.probe.reading import in_float32

_FORWARD_TOKENS = 8192  # positions of one forward pass
_DECAYS = (1e-3, 1e-2, 1e-1, 1.0)  # of the regression; the best on a fifth of the training rows is taken

Rows = Sequence[Sequence[int]]
Labels = Mapping[str, tuple[Sequence[str], Sequence[str]]]


class Probed(msgspec.Struct, frozen=True):
    """How the probe of one question does."""

    accuracy: float
    "Share of the test rows."
    train_accuracy: float
    "Share of the rows it was fitted on."
    majority: float
    "Share of the test rows with the most frequent label of the train rows: what a probe gets that reads nothing."
    rows: int
    "Test rows."
    classes: int
    "Different labels among the train rows."


def last_states(model: Transformer, rows: Rows, layer: int | None = None) -> Tensor:
    """States [N,D] float32 at the last token of each row of token ids.

    layer: None is the final normed state, 0 the embedding, k the output of block k. Raises ValueError for a layer that there
    is not, and for rows that are empty or longer than the model's context.
    """
    _check(model, rows, layer)
    reader, found = in_float32(model), [torch.empty(0)] * len(rows)
    for members in _batches(rows):
        tokens, last = _padded([rows[i] for i in members], model.embedding.device)
        with torch.no_grad():
            states = reader.hidden(tokens) if layer is None else _of_layer(reader, tokens, layer)
        for i, state in zip(members, states[torch.arange(len(members)), last].float().cpu(), strict=True):
            found[i] = state
    return torch.stack(found)


def linear_probe(
    model: Transformer, train: Rows, test: Rows, labels: Labels, layer: int | None = None
) -> dict[str, Probed]:
    """A logistic regression for each question; labels[question] = (of the train rows, of the test rows).

    A test label that no train row has counts as wrong. Raises ValueError where labels and rows differ in number, and as
    `last_states` does.
    """
    _check_labels(train, test, labels)
    states = [last_states(model, rows, layer) for rows in (train, test)]
    return {name: _regressed(*states, *both) for name, both in labels.items()}


def query_probe(
    model: Transformer,
    train: Rows,
    test: Rows,
    labels: Labels,
    words: Mapping[str, int],
    *,
    query: int,
    steps: int = 30,
    lr: float = 0.05,
) -> dict[str, Probed]:
    """For each question a vector that stands for the token `query` after every row, learned so that the answer comes next.

    words: each label's token; the answer is the likeliest of the question's labels, by the model's own output rows. All
    weights of the model stay. steps: of Adam over all train rows. Raises ValueError as `linear_probe` does, and where two
    labels of a question have one token.
    """
    _check_labels(train, test, labels)
    parts = [[[*row, query] for row in rows] for rows in (train, test)]
    for rows in parts:
        _check(model, rows, None)
    reading, found = _Reading(model), {}
    for name, both in labels.items():
        classes = sorted({*both[0], *both[1]})
        tokens = [words[label] for label in classes]
        if len(set(tokens)) < len(tokens):
            twice = [label for label in classes if tokens.count(words[label]) > 1]
            raise ValueError(
                f"{name}: labels {', '.join(twice[:4])} begin with one token: write them so that they differ"
            )
        found[name] = _Query(reading, tokens, query).fitted(*parts, *(_numbers(of, classes) for of in both), steps, lr)
    return found


def _check_labels(train: Rows, test: Rows, labels: Labels) -> None:
    for name, (of_train, of_test) in labels.items():
        if (len(of_train), len(of_test)) != (len(train), len(test)) or len(train) < 5 or not len(test):
            raise ValueError(
                f"{name}: {len(of_train)} and {len(of_test)} labels of {len(train)} and {len(test)} rows: give one label for "
                "each row, at least 5 rows to fit and 1 to test"
            )


def _regressed(train: Tensor, test: Tensor, of_train: Sequence[str], of_test: Sequence[str]) -> Probed:
    """Multinomial logistic regression on standardised states [N,D]; its decay is chosen within the train rows."""
    mean, spread = train.mean(0), train.std(0).clamp_min(1e-6)
    train, test = (train - mean) / spread, (test - mean) / spread
    classes = sorted(set(of_train))
    known, asked = (_numbers(some, classes) for some in (of_train, of_test))
    apart = torch.arange(len(train)) % 5 == 4

    def held_out(decay: float) -> float:
        head = _regression(train[~apart], known[~apart], len(classes), decay)
        return _share(train[apart] @ head[:-1] + head[-1], known[apart])

    head = _regression(train, known, len(classes), max(_DECAYS, key=held_out))
    return _probed(train @ head[:-1] + head[-1], test @ head[:-1] + head[-1], known, asked)


def _regression(x: Tensor, labels: Tensor, classes: int, decay: float) -> Tensor:
    """[D+1,C]: weights and, last, offsets that minimise the cross entropy + decay/2 of the squared weights."""
    head = torch.zeros(x.shape[1] + 1, classes, requires_grad=True)
    search = torch.optim.LBFGS([head], max_iter=60, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        found = functional.cross_entropy(x @ head[:-1] + head[-1], labels) + decay / 2 * head[:-1].square().sum()
        found.backward()
        return found

    search.step(loss)
    return head.detach()


class _Reading(nn.Module):
    """The final state at the end of each row under another embedding, as a forward(), which functional_call wants."""

    def __init__(self, model: Transformer):
        super().__init__()
        self.model = in_float32(model)
        self.frozen = {name: p.detach() for name, p in self.named_parameters()}
        self.name = next(name for name, p in self.named_parameters() if p is model.embedding)

    def forward(self, tokens: Tensor, last: Tensor) -> Tensor:
        return self.model.hidden(tokens)[torch.arange(len(tokens)), last].float()

    def under(self, embedding: Tensor, tokens: Tensor, last: Tensor) -> Tensor:
        """[N,D] with `embedding` [V,D] in place of the model's."""
        return functional_call(self, {**self.frozen, self.name: embedding}, (tokens, last))


class _Query:
    """The learned embedding of one token, and the output rows of the classes."""

    def __init__(self, reading: _Reading, tokens: Sequence[int], query: int):
        self.reading, self.query = reading, torch.tensor([query], device=reading.model.embedding.device)
        self.rows = reading.model.head_weight.detach().float()[list(tokens)]  # [C,D]
        self.change = torch.zeros(1, self.rows.shape[1], device=self.rows.device, requires_grad=True)

    def scores(self, tokens: Tensor, last: Tensor) -> Tensor:
        """[N,C]"""
        own = self.reading.frozen[self.reading.name]
        return self.reading.under(own.index_add(0, self.query, self.change.to(own.dtype)), tokens, last) @ self.rows.T

    def fitted(self, train: Rows, test: Rows, known: Tensor, asked: Tensor, steps: int, lr: float) -> Probed:
        """The figures after `steps` over all train rows, the learning rate falling linearly to 0."""
        device, search = self.rows.device, torch.optim.Adam([self.change], lr=lr)
        parts = [
            (known[members].to(device), *_padded([train[i] for i in members], device)) for members in _batches(train)
        ]
        for step in range(steps):
            search.param_groups[0]["lr"] = lr * (1 - step / steps)
            search.zero_grad()
            for wanted, tokens, last in parts:
                (functional.cross_entropy(self.scores(tokens, last), wanted, reduction="sum") / len(train)).backward()
            search.step()
        return _probed(self._all_scores(train), self._all_scores(test), known, asked)

    @torch.no_grad()
    def _all_scores(self, rows: Rows) -> Tensor:
        found = torch.empty(len(rows), len(self.rows))
        for members in _batches(rows):
            found[members] = self.scores(*_padded([rows[i] for i in members], self.rows.device)).cpu()
        return found


def _check(model: Transformer, rows: Rows, layer: int | None) -> None:
    context, blocks = model.config.context_tokens, model.config.layers
    if wrong := [i for i, row in enumerate(rows) if not 1 <= len(row) <= context]:
        raise ValueError(
            f"row {wrong[0]} has {len(rows[wrong[0]])} tokens: must be 1 to {context}, the model's context"
        )
    if not model.config.causal:
        raise ValueError(
            "model.causal = False: a probe reads the state at the end of a text, which must not see what pads it"
        )
    if layer is not None and not (isinstance(model, Transformer) and 0 <= layer <= blocks):
        raise ValueError(
            f"layer = {layer}: must be 0 to {blocks} of a model of our families, or none for the final state"
        )


def _of_layer(model: Transformer, tokens: Tensor, layer: int) -> Tensor:
    """States [N,T,D] after block `layer`, 0 the embedding."""
    found: list[Tensor] = []
    hook = (
        model.layers[0].register_forward_pre_hook(lambda block, given: found.append(given[0]))
        if layer == 0
        else model.layers[layer - 1].register_forward_hook(lambda block, given, made: found.append(made))
    )
    try:
        model.hidden(tokens)
    finally:
        hook.remove()
    return found[0]


def _batches(rows: Rows) -> list[list[int]]:
    """Numbers of rows of like length, of at most _FORWARD_TOKENS positions together."""
    found: list[list[int]] = []
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
        if not found or (len(found[-1]) + 1) * len(rows[found[-1][0]]) > _FORWARD_TOKENS:
            found.append([])
        found[-1].append(i)
    return found


def _padded(rows: Rows, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens [N,T], 0 after the end (which a causal model does not see), and where each row's last token is [N]."""
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for r, row in enumerate(rows):
        tokens[r, : len(row)] = torch.tensor(row)
    return tokens.to(device), torch.tensor([len(row) - 1 for row in rows], device=device)


def _numbers(labels: Sequence[str], classes: Sequence[str]) -> Tensor:
    """The number of each label, -1 for one that is no class."""
    at = {name: i for i, name in enumerate(classes)}
    return torch.tensor([at.get(label, -1) for label in labels])


def _share(scores: Tensor, wanted: Tensor) -> float:
    return float((scores.argmax(1).cpu() == wanted).float().mean())


def _probed(train_scores: Tensor, test_scores: Tensor, known: Tensor, asked: Tensor) -> Probed:
    most = Counter(known.tolist()).most_common(1)[0][0]
    return Probed(
        accuracy=_share(test_scores, asked), train_accuracy=_share(train_scores, known),
        majority=float((asked == most).float().mean()), rows=len(asked), classes=int(known.max()) + 1,
    )  # fmt: skip
