"""Quality: a linear classifier on hashed words and word pairs, as fastText's, that tells good pages from ordinary ones.

fastText (Joulin et al. 2016) sums learnt vectors of words and hashed n-grams and puts a softmax on top; with two classes
and one layer that is a logistic regression on the same features, which is what is fitted here. DCLM (Li et al. 2024,
section 4.4) trains it with wordNgrams 2, dim 100, lr 0.1, 5 epochs, and keeps the best tenth. A page's score is the mean
over its chunks of sum(weights of the chunk's features) / sqrt(features) + bias, weighted by their words; `Calibration`
makes it P(good). Shapes: P pages, C chunks, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from fledge.core.config import Settings
from fledge.core.durable import canonical_json, sha256, write_atomically
from fledge.curate.calibration import Calibration, sigmoid
from fledge.curate.ngrams import BITS, Features, features, fingerprint
from fledge.curate.pages import Kernel, kept_all

FORMAT = "fledge quality 1"
WEIGHTS, CARD = "weights.safetensors", "card.json"
ANY = "*"  # the calibration over all languages, for pages whose language nobody has told
_UNTOLD = ("", "und")


class FitSettings(Settings, frozen=True, kw_only=True):
    """How the classifier is trained."""

    epochs: int = 10
    "Passes over the training pages."
    lr: float = 0.1
    "Learning rate of AdaGrad, falling to 0 on a straight line."
    batch_chunks: int = 32
    "Chunks per step."
    seed: int = 0
    "Seed of their order."

    def problems(self) -> list[str]:
        """Every rule these settings break, in words."""
        low = [n for n in ("epochs", "batch_chunks") if getattr(self, n) < 1]
        found = [f"fit.{name} = {getattr(self, name)}: must be at least 1" for name in low]
        if not 0 < self.lr < 100:
            found.append(f"fit.lr = {self.lr}: must be above 0 and below 100; 0.1 is usual")
        if not 0 <= self.seed < 2**63:
            found.append(f"fit.seed = {self.seed}: must be at least 0 and below 2**63")
        return found


class Card(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a trained classifier says of itself."""

    format: str = FORMAT
    features: str  # fingerprint of how text becomes features
    weights: str  # sha256 of the weights' file
    languages: dict[str, Calibration]  # by the part before "-"; and ANY
    fit: FitSettings
    data: dict[str, Any]  # what it was trained on
    metrics: dict[str, Any]  # on pages it has not seen


def family(language: str) -> str:
    """ "zh" of "zh-Hant"."""
    return language.split("-")[0]


def fit_weights(
    found: Features, good: np.ndarray, weight: np.ndarray, settings: FitSettings
) -> tuple[np.ndarray, float]:
    """Weights float32 [2**BITS] and bias of a logistic regression, by AdaGrad (Duchi et al. 2011) in small batches.

    found: chunks to learn from; good bool [C]; weight float [C], mean about 1. Rare features take larger steps than
    common ones, which is what tells good from ordinary. The same input and settings give the same bytes.
    """
    weights, squares = np.zeros(1 << BITS, np.float32), np.full(1 << BITS, 1e-8, np.float32)
    bias = 0.0
    ends = np.cumsum(found.sizes)
    starts = ends - found.sizes
    scale = (1 / np.sqrt(found.sizes)).astype(np.float32)  # [C]
    chunks = len(found.sizes)
    draw = np.random.default_rng(settings.seed)
    steps, step = settings.epochs * -(-chunks // settings.batch_chunks), 0
    for _ in range(settings.epochs):
        order = draw.permutation(chunks)
        for first in range(0, chunks, settings.batch_chunks):
            members = order[first : first + settings.batch_chunks]
            sizes = found.sizes[members]
            buckets = np.concatenate([found.buckets[starts[c] : ends[c]] for c in members])
            score = np.add.reduceat(weights[buckets], np.cumsum(sizes) - sizes) * scale[members] + bias
            error = (sigmoid(score) - good[members]) * weight[members]  # [batch]
            rate = settings.lr * (1 - step / steps)
            slope = np.repeat((error * scale[members]).astype(np.float32), sizes)
            np.add.at(squares, buckets, slope * slope)
            np.subtract.at(weights, buckets, np.float32(rate) * slope / np.sqrt(squares[buckets]))
            bias -= rate * float(error.mean())
            step += 1
    return weights, bias


def chunk_scores(found: Features, weights: np.ndarray, bias: float) -> np.ndarray:
    """float64 [C]: the score of each chunk."""
    if not len(found.sizes):
        return np.zeros(0)
    starts = np.cumsum(found.sizes) - found.sizes
    return np.add.reduceat(weights[found.buckets], starts, dtype=np.float64) / np.sqrt(found.sizes) + bias


class QualityModel:
    """A trained classifier: weights, calibration, and a card that says what it was trained on."""

    def __init__(self, weights: np.ndarray, bias: float, card: Card):
        """weights float32 [2**BITS]."""
        self.weights, self.bias, self.card = weights, bias, card
        self.id = sha256(canonical_json(card))  # names the exact weights, for the card holds their sha256

    def scores(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(score, words), float64 and int64 [P]; a text without words has score 0, which says nothing."""
        total, words = np.zeros(len(texts)), np.zeros(len(texts), np.int64)
        for found in features(texts):
            np.add.at(total, found.text, chunk_scores(found, self.weights, self.bias) * found.words)
            np.add.at(words, found.text, found.words)
        return total / np.maximum(words, 1), words

    def score(self, texts: Sequence[str], languages: Sequence[str] | None = None) -> np.ndarray:
        """P(good) among as many good as ordinary pages, float32 [P].

        languages: of each text; those nobody has told ("", "und", or None for all) share one calibration, those the
        model has not learnt give NaN.
        """
        return self.calibrated(*self.scores(texts), languages)

    def calibrated(self, score: np.ndarray, words: np.ndarray, languages: Sequence[str] | None = None) -> np.ndarray:
        """What `scores` gives as P(good), float32 [P]."""
        names = np.array([ANY if name in _UNTOLD else family(name) for name in languages or [""] * len(score)], object)
        p = np.full(len(score), np.nan, np.float32)
        for name, calibration in self.card.languages.items():
            here = names == name
            p[here] = calibration(score[here], words[here])
        return p

    def save(self, folder: Path | str) -> None:
        """Write the weights, then the card that names their sha256."""
        folder = Path(folder)
        write_atomically(folder / WEIGHTS, _packed(self.weights, self.bias))
        write_atomically(folder / CARD, canonical_json(self.card))

    @classmethod
    def trained(cls, weights: np.ndarray, bias: float, **card: Any) -> QualityModel:
        """A model of these weights with the rest of its card."""
        digest = sha256(_packed(weights, bias))
        return cls(weights, bias, Card(features=fingerprint(), weights=digest, **card))

    @classmethod
    def open(cls, folder: Path | str) -> QualityModel:
        """Read and verify. Raises ValueError naming the file that is missing, damaged or of another version."""
        folder = Path(folder)
        try:
            card = msgspec.json.decode((folder / CARD).read_bytes(), type=Card)
            data = (folder / WEIGHTS).read_bytes()
            held = load_arrays(data)
            weights, bias = held["weights"], float(held["bias"][0])
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ValueError(
                f"{folder} holds no trained classifier ({Path(error.filename).name} is missing): "
                "make one with `fledge quality --good .. --ordinary .. --out FOLDER`"
            ) from None
        except (ValueError, KeyError, IndexError, SafetensorError) as error:
            raise ValueError(f"{folder} is damaged: {error}; restore it, or train the classifier again") from None
        if card.format != FORMAT or card.features != fingerprint():
            raise ValueError(
                f"{folder} was trained with other features than this version makes ({card.format}, "
                f"{card.features[:12]}; here {FORMAT}, {fingerprint()[:12]}): train it again"
            )
        if sha256(data) != card.weights or weights.shape != (1 << BITS,):
            raise ValueError(
                f"{folder / WEIGHTS} is damaged: its sha256 is {sha256(data)[:12]}, the card says "
                f"{card.weights[:12]}; restore it, or train the classifier again"
            )
        return cls(weights, bias, card)


def _packed(weights: np.ndarray, bias: float) -> bytes:
    return save_arrays({"weights": weights, "bias": np.array([bias])})


def quality_kernel(model: QualityModel) -> Kernel:
    """Adds `quality` (float32 in [0, 1], null in languages the model has not learnt); rejects nothing."""

    def kernel(pages: pa.Table) -> pa.Table:
        languages = [name or "" for name in pages["language"].to_pylist()]
        p = model.score(pages["text"].to_pylist(), languages)
        return kept_all(pages.append_column("quality", pa.array(p, pa.float32(), mask=np.isnan(p))))

    return kernel
