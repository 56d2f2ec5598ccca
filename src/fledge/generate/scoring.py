"""How likely a model finds given continuations of given contexts: many at once, by length, shared contexts read once.

Shapes: B rows, T positions, D width, N scored tokens, V vocabulary.
"""

import platform
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fledge.core.kernels import attention
from fledge.core.model import Transformer
from fledge.generate.native_decoder import serves
from fledge.generate.native_scoring import score_native

# Positions of one forward pass. On a CPU more only leaves its caches: 512 took a quarter less time than 8192 (8.6 million
# parameters, rows of 290 tokens, one thread).
_BATCH_TOKENS = {"cpu": 512, "cuda": 16384}
_BATCH_SCORES = 1 << 22  # entries of an attention mask of one forward pass
_CHUNK_ROWS = 256  # logits of one chunk
_PACKED_TOKENS = 512  # longest row of a context with its branches, unless the context alone is half of it


class OneDNNProducts(TorchFunctionMode):
    """functional.linear of float32 tensors on the CPU by oneDNN, without gradients.

    torch itself takes MKL, whose kernel for processors of AMD reaches 118 GFLOP/s of a Zen 5 core, oneDNN 250 (512 rows,
    512 to 2816 wide).
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is functional.linear and not kwargs and all(map(self._plain, args)):
            x, weight, bias = (*args, None)[:3]
            return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _plain(x: Tensor | None) -> bool:
        return x is None or (type(x) in (Tensor, torch.nn.Parameter) and x.dtype == torch.float32 and x.is_cpu)


def fast_products(model: Transformer) -> OneDNNProducts | nullcontext:
    """The context to score in by torch operations: OneDNNProducts where that is the faster library."""
    there = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()
    wanted = there and model.embedding.device.type == "cpu" and model.compute_dtype == torch.float32
    return OneDNNProducts() if wanted else nullcontext()


class Asked(NamedTuple):
    """One continuation to be scored."""

    context: Sequence[int]
    continuation: Sequence[int]


class Scored(NamedTuple):
    """What the model thinks of it."""

    logp: float  # nats, of all its tokens
    greedy: bool  # whether each of its tokens is the likeliest


@dataclass
class _Row:
    """One row of a forward pass: a context and, side by side, what may follow it."""

    context: tuple[int, ...]
    branches: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def size(self) -> int:
        return len(self.context) + sum(map(len, self.branches))


class _Place(NamedTuple):
    """Where the tokens of one request are predicted: the context's last position, then its branch's first ones."""

    row: _Row
    start: int  # of its branch in the row
    targets: Sequence[int]

    def positions(self) -> list[int]:
        return [len(self.row.context) - 1, *range(self.start, self.start + len(self.targets) - 1)]


def fit(asked: Asked, context_tokens: int, number: int) -> Asked:
    """The request as the model can read it: the oldest tokens of a context that is too long are left out.

    Raises ValueError where the context is empty, or the continuation alone is too long.
    """
    context, continuation = asked
    if not len(context):
        raise ValueError(f"request {number} has no context: begin it with the tokenizer's bos")
    if len(continuation) > context_tokens:
        raise ValueError(
            f"request {number} has a continuation of {len(continuation)} tokens, the model's context is "
            f"{context_tokens}: score long texts in windows (loglikelihood_rolling)"
        )
    room = context_tokens + 1 - len(continuation)  # the last token is only predicted, never read
    return Asked(context[-room:], continuation)


@torch.inference_mode()
def score(
    model: Transformer, requests: Sequence[Asked], *, batch_tokens: int | None = None, native: bool | None = None
) -> list[Scored]:
    """log p of each continuation and whether greedy decoding would write it, in the order of the requests.

    native None: the compiled loop where it serves (native_decoder.serves), which reads the common beginning of any
    requests once; False: torch operations. There, requests with the same context are read in one row, where each
    continuation sees the context and itself (a tree mask), so the context costs once. Either way continuations that
    differ in their last token only cost one. Raises ValueError as `fit` does, for a token that is not in the vocabulary,
    and for a model that is not causal or has no token head.
    """
    config = model.config
    if not config.causal or config.head not in ("tokens", "tokens+value"):
        raise ValueError(
            f"model.causal = {config.causal}, model.head = {config.head!r}: continuations are scored by a causal model "
            "of tokens"
        )
    for n, request in enumerate(requests):
        for part in filter(len, request):
            if min(part) < 0 or max(part) >= config.vocab_size:
                raise ValueError(
                    f"request {n} has token {min(part)} or {max(part)}: the vocabulary is 0 to {config.vocab_size - 1}"
                )
    asked = [fit(request, config.context_tokens, n) for n, request in enumerate(requests)]
    if native is not False and serves(model, model.compute_dtype):
        return [Scored(float(p), bool(g)) for p, g in zip(*score_native(model, asked), strict=True)]
    batch_tokens = batch_tokens or _BATCH_TOKENS.get(model.embedding.device.type, 512)
    shared = model.adapter is None or not model.adapter.virtual  # virtual positions have masks of their own
    places = _plan(asked, shared)
    rows: dict[int, list[int]] = defaultdict(list)  # requests of each row
    for n, place in enumerate(places):
        if place is not None:
            rows[id(place.row)].append(n)
    by_row = {id(place.row): place.row for place in places if place is not None}
    logp, greedy = np.zeros(len(asked)), np.ones(len(asked), dtype=bool)
    for batch in _batches(list(by_row.values()), batch_tokens):
        members = [(r, n) for r, row in enumerate(batch) for n in rows[id(row)]]
        with fast_products(model):
            found, likeliest = _score_rows(model, batch, [(r, places[n]) for r, n in members])
        whose = np.repeat([n for _, n in members], [len(places[n].targets) for _, n in members])
        np.add.at(logp, whose, found)
        np.logical_and.at(greedy, whose, likeliest)
    return [Scored(float(p), bool(g)) for p, g in zip(logp, greedy, strict=True)]


def _plan(asked: Sequence[Asked], shared: bool) -> list[_Place | None]:
    """Where each request is scored; None for an empty continuation. Not `shared`: a row has one branch at most."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for n, request in enumerate(asked):
        if len(request.continuation):
            groups[tuple(request.context)].append(n)
    places: list[_Place | None] = [None] * len(asked)
    for context, members in groups.items():
        inner = {n: tuple(asked[n].continuation[:-1]) for n in members}  # what is read; the last token is predicted
        holder: dict[tuple[int, ...], tuple[_Row, int]] = {}
        longest_room = max(_PACKED_TOKENS, 2 * len(context)) if shared else 0
        row, after = _Row(context), None
        for branch in sorted(set(inner.values()), reverse=True):  # what continues a branch comes before it
            if after is not None and after[: len(branch)] == branch:
                holder[branch] = holder[after]
            else:
                if row.branches and row.size + len(branch) > longest_room:
                    row = _Row(context)
                holder[branch] = row, row.size
                row.branches.append(branch)
            after = branch
        for n in members:
            places[n] = _Place(*holder[inner[n]], asked[n].continuation)
    return places


def _batches(rows: list[_Row], batch_tokens: int) -> Iterator[list[_Row]]:
    """Rows of like length together, longest first; those with several branches, which need a mask, apart."""
    for several in (False, True):
        batch: list[_Row] = []
        for row in sorted((r for r in rows if (len(r.branches) > 1) is several), key=lambda r: -r.size):
            longest = batch[0].size if batch else row.size
            grown = len(batch) + 1
            if batch and (grown * longest > batch_tokens or (several and grown * longest**2 > _BATCH_SCORES)):
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch


def _score_rows(model: Transformer, rows: list[_Row], members: list[tuple[int, _Place]]) -> tuple[np.ndarray, ...]:
    """log p [N] float64 and whether it is the likeliest [N] of every target token of `members`, in order."""
    longest, device = rows[0].size, model.embedding.device
    tokens = np.zeros((len(rows), longest), dtype=np.int64)
    for r, row in enumerate(rows):
        ids = [*row.context, *(t for branch in row.branches for t in branch)]
        tokens[r, : len(ids)] = ids
    where = np.array([r * longest + p for r, place in members for p in place.positions()])
    targets = torch.tensor([t for _, place in members for t in place.targets], device=device)
    hidden = _hidden(model, torch.from_numpy(tokens).to(device), rows, torch.from_numpy(where).to(device))
    logp, greedy = [], []
    for start in range(0, len(targets), _CHUNK_ROWS):
        part = slice(start, start + _CHUNK_ROWS)
        logits = model.logits(hidden[part])  # [rows,V] float32
        chosen = logits.gather(1, targets[part, None]).squeeze(1)
        logp.append(chosen - torch.logsumexp(logits, 1))
        greedy.append(logits.argmax(1) == targets[part])
    return torch.cat(logp).double().cpu().numpy(), torch.cat(greedy).cpu().numpy()


def _hidden(model: Transformer, tokens: Tensor, rows: list[_Row], where: Tensor) -> Tensor:
    """Final states [N,D] of the positions `where` of the flat tokens [B,T]; the last feed-forward reads no others."""
    if model.adapter is not None and model.adapter.virtual:
        return model.hidden(tokens).flatten(0, 1)[where]
    rotary, masks = _view(model, tokens, rows)
    x = model.embed(tokens, model.compute_dtype)
    for layer in model.layers:
        q, k, v = layer.project(x, rotary[layer.positions])
        y = attention(q, k, v, mask=masks[layer.windowed], doc=None, causal=True)
        if layer is model.layers[-1]:
            x, y = x.flatten(0, 1)[where][None], y.transpose(1, 2).flatten(0, 1)[where].transpose(0, 1)[None]
        x = layer.finish(x, y)
    return model.final_norm(x[0])


def _view(model: Transformer, tokens: Tensor, rows: list[_Row]) -> tuple[dict, tuple[Tensor | None, Tensor | None]]:
    """Rotary tables of each kind of layer, and masks of layers that see everything and of windowed ones.

    In a tree every branch of a row goes on from its context and sees no other branch.
    """
    device, dtype, window = tokens.device, model.compute_dtype, model.config.window
    if len(rows[0].branches) == 1:
        return model.rotaries(tokens.shape[1], device), model.masks(tokens, None, dtype)
    positions, seen = _trees(rows, tokens.shape[1])

    def mask(visible: np.ndarray) -> Tensor:
        blank = torch.zeros(visible.shape, dtype=dtype, device=device)
        return blank.masked_fill_(torch.from_numpy(~visible).to(device), -torch.inf)[:, None]  # [B,1,T,T]

    full = near = mask(seen)
    if window is not None and window < positions.max() + 1:
        near = mask(seen & (positions[:, :, None] - positions[:, None, :] < window))
    at = torch.from_numpy(positions).to(device)
    tables = model.rotaries(int(positions.max()) + 1, device)
    return {kind: (cos[at][:, None], sin[at][:, None]) for kind, (cos, sin) in tables.items()}, (full, near)


def _trees(rows: list[_Row], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Position of each token [B,T] and what it sees [B,T,T] (padding sees itself, so that nothing is NaN)."""
    positions = np.zeros((len(rows), length), dtype=np.int64)
    seen = np.zeros((len(rows), length, length), dtype=bool)
    seen[:, range(length), range(length)] = True
    below = np.tri(length, dtype=bool)
    for r, row in enumerate(rows):
        stem = len(row.context)
        positions[r, :stem] = np.arange(stem)
        seen[r, :stem, :stem] = below[:stem, :stem]
        start = stem
        for branch in row.branches:
            end = start + len(branch)
            positions[r, start:end] = np.arange(stem, stem + len(branch))
            seen[r, start:end, :stem] = True
            seen[r, start:end, start:end] = below[: len(branch), : len(branch)]
            start = end
    return positions, seen
