"""Scoring by the compiled loop (core/decode_score.h): texts in alphabetical order, so that each beginning is read once.

Shapes: R rows read, Q tokens asked about.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fledge.core.model import Transformer
from fledge.generate.native_decoder import NativeDecoder, Packed

_CALL_ROWS = 4096  # of each thread between looks at the signals Python has received
_PIECE_ROWS = 256  # at least so many for a thread of its own; fewer share every product


@dataclass
class _Stream:
    """Texts that one slot of the cache reads one after another."""

    rows: np.ndarray  # [R,4] slot, position, token, wanted: struct Row of decode_model.h
    questions: np.ndarray  # [Q,2] row, token, by row: struct Question of decode_score.h
    whose: np.ndarray  # [Q] the request each question is part of


def score_native(
    model: Transformer, asked: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> tuple[np.ndarray, np.ndarray]:
    """logp [N] float64, nats, and greedy [N] bool of requests (context, continuation) that fit into the model's context.

    Every position is computed by itself in a fixed order: neither the other requests nor threads change a byte. Tokens
    must be in the vocabulary: nobody checks them after this.
    """
    logp, greedy = np.zeros(len(asked)), np.ones(len(asked), dtype=bool)
    texts = [np.array([*context, *continuation], np.int64) for context, continuation in asked]
    keys = [text[:-1].astype(">u4").tobytes() for text in texts]  # ordered like the texts
    order = sorted((n for n, (_, found) in enumerate(asked) if len(found)), key=keys.__getitem__)
    if not order:
        return logp, greedy
    lengths = np.array([len(texts[n]) for n in order])
    threads = torch.get_num_threads()
    pieces = min(threads, max(1, int(lengths.sum()) // _PIECE_ROWS))
    cuts = np.searchsorted(np.cumsum(lengths), np.arange(1, pieces) * lengths.sum() / pieces)
    members = [part for part in np.split(np.array(order), cuts) if len(part)]
    streams = [_stream(slot, part, asked, texts) for slot, part in enumerate(members)]
    decoder = NativeDecoder(model, Packed(), model.compute_dtype, len(streams), int(lengths.max()))
    for rows, starts, questions, whose in _calls(streams):
        found, likeliest = decoder.score(rows, starts, questions)
        np.add.at(logp, whose, found)
        np.logical_and.at(greedy, whose, likeliest)
    return logp, greedy


def _stream(
    slot: int, members: np.ndarray, asked: Sequence[tuple[Sequence[int], Sequence[int]]], texts: list[np.ndarray]
) -> _Stream:
    """The rows of these requests, whose order is alphabetical: of each, what it does not share with the one before."""
    parts, questions, whose, read = [], [], [], 0
    before, row_of = np.zeros(0, np.int64), np.zeros(max(len(texts[n]) for n in members), np.int64)
    for n in members:
        text, continuation = texts[n][:-1], asked[n][1]  # the last token is only predicted
        both = min(len(before), len(text))
        differ = np.flatnonzero(before[:both] != text[:both])
        shared = int(differ[0]) if len(differ) else both
        positions = np.arange(shared, len(text))
        row_of[positions] = np.arange(read, read + len(positions))
        parts.append(np.stack([np.full_like(positions, slot), positions, text[shared:], np.zeros_like(positions)], 1))
        first = len(text) - len(continuation)  # the position whose next token is the continuation's first
        questions.append(np.stack([row_of[first : len(text)], texts[n][first + 1 :]], 1))
        whose.append(np.full(len(continuation), n))
        read, before = read + len(positions), text
    rows, questions, whose = np.concatenate(parts), np.concatenate(questions), np.concatenate(whose)
    rows[questions[:, 0], 3] = 1
    by_row = np.argsort(questions[:, 0], kind="stable")
    return _Stream(rows, questions[by_row], whose[by_row])


def _calls(streams: list[_Stream]) -> Iterator[tuple[np.ndarray, ...]]:
    """(rows, starts of the streams' pieces, questions, whose) of each call: the next rows of every stream."""
    for first in range(0, max(len(s.rows) for s in streams), _CALL_ROWS):
        rows = [s.rows[first : first + _CALL_ROWS] for s in streams]
        starts = np.cumsum([0, *map(len, rows)])
        questions, whose = [], []
        for stream, start in zip(streams, starts, strict=False):
            low, high = np.searchsorted(stream.questions[:, 0], (first, first + _CALL_ROWS))
            questions.append(stream.questions[low:high] + np.array([start - first, 0]))
            whose.append(stream.whose[low:high])
        yield np.concatenate(rows), starts, np.concatenate(questions), np.concatenate(whose)
