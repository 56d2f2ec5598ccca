"""Perplexity of pages under a checkpoint: how surprising each is to a model of text one likes (CCNet, Wenzek 2020).

Low is like the model's own training text. Very low is boilerplate and repetition, so an upper limit alone keeps those:
the rules on repetition come before. Shapes: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from fledge.core.batch import Batch
from fledge.core.model import Transformer
from fledge.curate.pages import kept_all
from fledge.text.tokenizer import Tokenizer

MOST_TOKENS = 2048  # of a page that are read, from its beginning
_MOST_CHARS = 8 * MOST_TOKENS  # longer words than that are no text
_BATCH_TOKENS = 8192


class Perplexity:
    """A kernel: adds `perplexity` (float32, null for a page without text), exp(mean nats per token); rejects nothing.

    A page is read in windows of the model's context, each after <bos>; beyond 2,048 tokens it is not read.
    """

    identity = f"{MOST_TOKENS} tokens"

    def __init__(self, model: Transformer, tokenizer: Tokenizer, name: str):
        """Raises ValueError for a model that does not predict the next token."""
        if not model.config.causal or not model.config.head.startswith("tokens"):
            raise ValueError(
                f"{name} has the head {model.config.head!r}{'' if model.config.causal else ' and sees both ways'}: "
                "perplexity needs a model that predicts the next token, such as one of `fledge pretrain`"
            )
        self.model, self.tokenizer = model.eval(), tokenizer

    def __call__(self, pages: pa.Table) -> pa.Table:
        found = self.of(pages["text"].to_pylist())
        return kept_all(pages.append_column("perplexity", pa.array(found, pa.float32(), mask=np.isnan(found))))

    @torch.no_grad()
    def of(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [P], NaN for a text without tokens."""
        room = self.model.config.context_tokens
        rows: list[list[int]] = []
        owners: list[int] = []
        for page, tokens in enumerate(self.tokenizer.encode_batch([text[:_MOST_CHARS] for text in texts])):
            read = tokens[:MOST_TOKENS]
            for first in range(0, len(read), room):
                rows.append([self.tokenizer.bos, *read[first : first + room]])
                owners.append(page)
        nats, counts = np.zeros(len(texts)), np.zeros(len(texts))
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        while order:
            members = order[-max(1, _BATCH_TOKENS // len(rows[order[-1]])) :]  # long rows first: the rest fits too
            del order[-len(members) :]
            held = [owners[i] for i in members]
            np.add.at(nats, held, self._nats([rows[i] for i in members]))
            np.add.at(counts, held, [len(rows[i]) - 1 for i in members])
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.exp(nats / counts).astype(np.float32)

    def _nats(self, rows: Sequence[list[int]]) -> np.ndarray:
        """float64 [B]: -log p of all tokens of each row but its first."""
        longest = max(len(row) for row in rows) - 1
        tokens = torch.full((len(rows), longest), self.tokenizer.pad)
        targets, weight = tokens.clone(), torch.zeros(tokens.shape)
        for i, row in enumerate(rows):
            tokens[i, : len(row) - 1] = torch.tensor(row[:-1])
            targets[i, : len(row) - 1] = torch.tensor(row[1:])
            weight[i, : len(row) - 1] = 1.0
        batch = Batch(tokens=tokens, targets=targets, weight=weight, units=1.0)
        logp = self.model(batch.to(self.model.embedding.device)).logp
        return -(logp.cpu().double() * weight).sum(1).numpy()
