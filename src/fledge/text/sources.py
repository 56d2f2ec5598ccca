"""Sources of batches. Order is a function of (seed, epoch, position): the state is two integers and a content hash.

Shapes: B rows, T positions.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from fledge.core.batch import Batch
from fledge.core.checkpoint import canonical_json, sha256, write_atomically
from fledge.text.periodic import FEWEST_REPEATS, periodic
from fledge.text.template import Rendered
from fledge.text.tokenizer import Tokenizer

_ENCODE_DOCUMENTS = 2000  # documents encoded at once
T = TypeVar("T")


def order(seed: int, epoch: int, count: int) -> np.ndarray:
    """A permutation of `count` items that depends on nothing but its arguments."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(count)


class Resumable:
    """Epoch, position and content hash, and the refusal to resume on other data."""

    def __init__(self, content: str):
        self.epoch, self.position, self.content = 0, 0, content

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, "content": self.content}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["content"] != self.content:
            raise ValueError(
                f"the data changed since the checkpoint (sha256 {self.content[:12]} now, {state['content'][:12]} then): "
                "restore the data, or start the stage again in another folder"
            )
        self.epoch, self.position = state["epoch"], state["position"]


class TokenStore:
    """Documents as one memory-mapped array of tokens with offsets; each document is <bos> text <eos>."""

    def __init__(self, tokens: np.ndarray, offsets: np.ndarray, bytes_: int, content: str):
        self.tokens, self.offsets, self.bytes, self.content = tokens, offsets, bytes_, content

    @classmethod
    def build(
        cls, texts: Iterable[str], tokenizer: Tokenizer, folder: Path, max_tokens: int | None = None
    ) -> "TokenStore":
        """Encode `texts` into `folder`, where open() finds them again.

        max_tokens: stop after the document that reaches it. Raises ValueError when there is no text.
        """
        folder.mkdir(parents=True, exist_ok=True)
        dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
        offsets, total_bytes, digest = [0], 0, hashlib.sha256()
        with open(folder / "tokens.bin", "wb") as file:
            for group in groups(texts, _ENCODE_DOCUMENTS):
                for text, body in zip(group, tokenizer.encode_batch(group), strict=True):
                    row = np.array([tokenizer.bos, *body, tokenizer.eos], dtype)
                    digest.update(row.data)
                    file.write(row.data)
                    offsets.append(offsets[-1] + len(row))
                    total_bytes += len(text.encode("utf-8"))
                    if max_tokens and offsets[-1] >= max_tokens:
                        break
                if max_tokens and offsets[-1] >= max_tokens:
                    break
        if len(offsets) == 1:
            raise ValueError("0 usable documents: give --text files or folders that hold text")
        np.asarray(offsets, np.int64).tofile(folder / "offsets.bin")
        digest.update(np.asarray(offsets, np.int64).data)
        meta = {
            "dtype": np.dtype(dtype).name,
            "documents": len(offsets) - 1,
            "tokens": offsets[-1],
            "bytes": total_bytes,
            "sha256": digest.hexdigest(),
            "tokenizer": sha256(tokenizer.json),
        }
        write_atomically(folder / "store.json", canonical_json(meta))
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path, tokenizer: Tokenizer | None = None) -> "TokenStore":
        """Map a finished store. Raises ValueError when the files, or the tokenizer, are not what store.json says."""
        import msgspec

        try:
            meta = msgspec.json.decode((folder / "store.json").read_bytes())
            tokens = np.memmap(folder / "tokens.bin", meta["dtype"], "r")
            offsets = np.fromfile(folder / "offsets.bin", np.int64)
            digest = hashlib.sha256(tokens.data)
            digest.update(offsets.data)
            counted = (len(tokens), len(offsets) - 1) == (meta["tokens"], meta["documents"])
            whole = counted and digest.hexdigest() == meta["sha256"]
            fits = tokenizer is None or sha256(tokenizer.json) == meta["tokenizer"]
        except (msgspec.DecodeError, KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            raise ValueError(
                f"{folder} is damaged: tokens.bin and offsets.bin are not what store.json says; delete {folder}"
            )
        if not fits:
            raise ValueError(f"{folder}: the tokenizer is not the one its tokens were made with; delete {folder}")
        return cls(tokens, offsets, meta["bytes"], meta["sha256"])

    def __len__(self) -> int:
        return len(self.offsets) - 1


def groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """`items` in lists of `size`, the last one shorter."""
    group = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


class DocumentSource(Resumable):
    """Documents in random order, joined and cut into rows of T; attention stays inside each document."""

    def __init__(self, store: TokenStore, *, rows: int, length: int, seed: int, mask_repeats: int | None = None):
        """mask_repeats: weight 0 for targets in spans that repeat so often, as in packed_batch; None masks none."""
        super().__init__(store.content)
        if mask_repeats is not None and mask_repeats < FEWEST_REPEATS:
            raise ValueError(f"mask_repeats = {mask_repeats}: must be at least {FEWEST_REPEATS}; none masks nothing")
        self.mask_repeats = mask_repeats
        self.store, self.rows, self.length, self.seed = store, rows, length, seed
        self.rows_per_epoch = (int(store.offsets[-1]) - 1) // length
        if self.rows_per_epoch < 1:
            raise ValueError(
                f"the text has {store.offsets[-1]} tokens, one row needs {length + 1}: "
                "give more text or a smaller model.context_tokens"
            )
        self._ready = -1

    def _prepare(self) -> None:
        """This epoch's document order and where each document starts in the joined stream."""
        if self._ready == self.epoch:
            return
        shuffled = order(self.seed, self.epoch, len(self.store))
        sizes = np.diff(self.store.offsets)[shuffled]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])  # in the stream
        self._origins = self.store.offsets[shuffled]  # in the store
        self._ready = self.epoch

    def _take(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tokens [n,T+1], document ordinal [n,T+1], first store position [n]) of the next n <= count rows."""
        self._prepare()
        count = min(count, self.rows_per_epoch - self.position)
        first = (self.position + np.arange(count))[:, None] * self.length
        place = first + np.arange(self.length + 1)  # [n,T+1] in the stream
        document = np.searchsorted(self._starts, place, "right") - 1
        origin = self._origins[document] + place - self._starts[document]
        self.position += count
        if self.position == self.rows_per_epoch:
            self.epoch, self.position = self.epoch + 1, 0
        return self.store.tokens[origin], document, origin[:, 0]

    def take(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tokens [n,T+1], document ordinal [n,T+1], first store position [n]) of the next n = count rows."""
        parts = []
        while count:
            parts.append(self._take(count))
            count -= len(parts[-1][0])
        return tuple(np.concatenate(p) for p in zip(*parts, strict=True))

    def __iter__(self) -> Iterator[Batch]:
        empty = 0
        while empty * self.rows <= self.rows_per_epoch:
            batch = packed_batch(*self.take(self.rows), mask_repeats=self.mask_repeats)
            empty = 0 if batch.units else empty + 1
            if batch.units:  # else nothing in it can be learned from
                yield batch
        raise ValueError(
            f"every token of the text lies in a span that repeats {self.mask_repeats} times or more: "
            "give other text, or set mask_repeats to none"
        )


def packed_batch(
    tokens: np.ndarray,
    document: np.ndarray,
    ids: np.ndarray,
    notes: dict[str, float] | None = None,
    mask_repeats: int | None = None,
) -> Batch:
    """The batch of rows as DocumentSource.take gives them.

    mask_repeats: targets have weight 0 in spans of 1 to 13 tokens that repeat so often within a row
    (`fledge.text.periodic`); None masks none.
    """
    whole = torch.from_numpy(tokens.astype(np.int64))
    docs = torch.from_numpy(document.astype(np.int32))
    # the last token of a document predicts nothing: what follows is another document
    weight = (docs[:, :-1] == docs[:, 1:]).float()
    if mask_repeats is not None:
        weight *= torch.from_numpy(~periodic(tokens, repeats=mask_repeats)[:, 1:])
    return Batch(
        tokens=whole[:, :-1],
        targets=whole[:, 1:],
        weight=weight,
        doc=docs[:, :-1],
        units=float(weight.sum()),
        ids=torch.from_numpy(ids),
        notes=notes,
    )


class Sequences:
    """Rendered sequences of at most T+1 tokens, flat in memory; says what it cut or dropped."""

    def __init__(self, rendered: Sequence[Rendered], limit: int):
        """limit: longest sequence in tokens. Longer ones are cut; those left without a trained token are dropped."""
        self.cut = self.dropped = 0
        tokens, weights, offsets, self.kept = [], [], [0], []
        for index, (ids, counts) in enumerate(rendered):
            if len(ids) > limit:
                ids, counts = ids[:limit], counts[:limit]
                self.cut += 1
            if not any(counts):
                self.dropped += 1
                continue
            self.kept.append(index)
            tokens += ids
            weights += counts
            offsets.append(offsets[-1] + len(ids))
        if not self.kept:
            raise ValueError(
                f"none of {len(rendered)} conversations has a trained token within {limit} tokens: "
                "raise model.context_tokens, or check that they end with an assistant message"
            )
        self.tokens = np.asarray(tokens, np.int64)
        self.weights = np.asarray(weights, np.float32)
        self.offsets = np.asarray(offsets, np.int64)

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def content(self) -> str:
        return sha256(self.tokens.tobytes() + self.weights.tobytes() + self.offsets.tobytes())


class ChatSource(Resumable):
    """Conversations packed into rows of T, whole, in random order; attention stays inside each conversation."""

    def __init__(self, sequences: Sequences, *, rows: int, length: int, seed: int, pad: int):
        super().__init__(sequences.content)
        self.sequences, self.rows, self.length, self.seed, self.pad = sequences, rows, length, seed, pad
        self._ready = -1

    def packed(self, epoch: int) -> list[list[int]]:
        """Which sequences share each row: in shuffled order, a new row when the next does not fit."""
        sizes = np.diff(self.sequences.offsets) - 1  # a sequence of n tokens takes n - 1 positions
        rows, room = [], 0
        for index in order(self.seed, epoch, len(self.sequences)).tolist():
            size = int(sizes[index])
            if size > room:
                rows.append([])
                room = self.length
            rows[-1].append(index)
            room -= size
        return rows

    def steps_per_epoch(self) -> int:
        return -(-len(self.packed(0)) // self.rows)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            if self._ready != self.epoch:
                self._rows, self._ready = self.packed(self.epoch), self.epoch
            chosen = self._rows[self.position : self.position + self.rows]
            self.position += len(chosen)
            if self.position >= len(self._rows):
                self.epoch, self.position = self.epoch + 1, 0
            yield self._batch(chosen)

    def _batch(self, rows: list[list[int]]) -> Batch:
        shape = (len(rows), self.length)
        tokens, targets = np.full(shape, self.pad), np.full(shape, self.pad)
        weight, doc = np.zeros(shape, np.float32), np.full(shape, -1, np.int32)
        flat, counts, offsets = self.sequences.tokens, self.sequences.weights, self.sequences.offsets
        for r, members in enumerate(rows):
            at = 0
            for d, index in enumerate(members):
                first, last = offsets[index], offsets[index + 1]
                span = slice(at, at + last - first - 1)
                tokens[r, span], targets[r, span] = flat[first : last - 1], flat[first + 1 : last]
                weight[r, span], doc[r, span] = counts[first + 1 : last], d
                at = span.stop
        return Batch(
            tokens=torch.from_numpy(tokens),
            targets=torch.from_numpy(targets),
            weight=torch.from_numpy(weight),
            doc=torch.from_numpy(doc),
            units=float(weight.sum()),
            ids=torch.tensor([members[0] for members in rows]),
        )


class MaskedSource(Resumable):
    """Masked language modelling over another source's rows (Devlin et al. 2019, section 3.1).

    15% of positions are predicted; of those 80% are hidden by the mask token, 10% replaced at random, 10% kept.
    """

    def __init__(self, source: DocumentSource, *, mask: int, vocab_size: int, seed: int, share: float = 0.15):
        super().__init__(source.content)
        self.source, self.mask, self.vocab_size, self.seed, self.share = source, mask, vocab_size, seed, share

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.source:
            draw = torch.Generator().manual_seed(self.seed * 1_000_003 + self.position)
            self.position += 1
            chance = torch.rand(batch.tokens.shape, generator=draw)
            kind = torch.rand(batch.tokens.shape, generator=draw)
            noise = torch.randint(self.vocab_size, batch.tokens.shape, generator=draw)
            weight = (chance < self.share).float()
            hidden = torch.where(kind < 0.8, self.mask, torch.where(kind < 0.9, noise, batch.tokens))
            tokens = torch.where(weight > 0, hidden, batch.tokens)
            yield Batch(
                tokens=tokens,
                targets=batch.tokens,
                weight=weight,
                doc=batch.doc,
                units=float(weight.sum()),
                ids=batch.ids,
            )

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"source": self.source.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.source.load_state_dict(state["source"])
