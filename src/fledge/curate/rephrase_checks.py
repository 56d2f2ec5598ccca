"""What a rephrasing must not be: a refusal, cut off, a copy, in another language, or richer than its passage.

A rephraser that adds knowledge distils its own; checked are names and numbers as far as rules can tell (`named`), not
what is said about them.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fledge.core.config import Settings
from fledge.curate.languages import UNKNOWN, identify
from fledge.curate.named import HAN, new_names, new_numbers, pieces
from fledge.curate.rephrase import Passage, Rephrased, Style
from fledge.curate.variants import SIMPLIFIED, TRADITIONAL, script_marks


class CheckSettings(Settings, frozen=True, kw_only=True):
    """Limits of a rephrasing; all tuned here."""

    shortest: float = 0.25
    "Shortest rephrasing as a share of its passage, in words and Han characters."
    longest: float = 3.0
    "Longest rephrasing as a share of its passage; questions with answers need about twice."
    copied: float | None = 0.9
    "Share of its 5-grams from which a rephrasing is a copy of its passage; None allows copies."
    names: bool = True
    "Reject names that the passage does not hold."
    numbers: bool = True
    "Reject numbers that the passage does not hold."

    def problems(self) -> list[str]:
        found = []
        if not 0 <= self.shortest < self.longest:
            found.append(
                f"checks.shortest = {self.shortest}, checks.longest = {self.longest}: must be at least 0, and above it"
            )
        if self.copied is not None and not 0 < self.copied <= 1:
            found.append(f"checks.copied = {self.copied}: must be a share in (0, 1]; none allows copies")
        return found


class Checked(NamedTuple):
    """A rephrasing after the checks."""

    text: str  # without what was said around it
    reason: str | None  # null = keep
    value: float | None  # the figure that broke the rule
    found: str  # what is new, for people: "Paris, 1998"; else ""
    stripped: bool  # words around the text ("Here is a paraphrase:") were taken away


# Said around a paraphrase, not part of it. Only at the very beginning or end, and never where the passage says so too.
_BEFORE = re.compile(
    r"\s*(?:(?:sure|certainly|of course|okay|ok|absolutely|great)\b[^\n:.!]{0,40}[!,.:]?\s*)?"
    r"(?:(?:here(?:'s|’s| is| are)|below is|this is)\b[^\n:]{0,120}:|"
    r"(?:(?:the |a )?(?:paraphrased?|rewritten|rephrased|simplified|converted)\b[^\n:]{0,60}|output|answer|result):)\s*"
    r"|\s*(?:(?:好的|好|當然|当然|沒問題|没问题|可以)[，,。！!]\s*)?"
    r"(?:(?:以下|下面|這|这)(?:就)?是[^\n：:]{0,40}[：:]|(?:改寫|改写|重寫|重写|釋義|释义)[^\n：:]{0,20}[：:])\s*",
    re.I,
)
_GREETING = re.compile(
    r"\s*(?:(?:sure|certainly|of course|absolutely)[!.,]|(?:好的|當然|当然|沒問題|没问题)[，,。！!])\s*", re.I
)
_AFTER = re.compile(
    r"\s*\n\s*(?:I hope (?:this|that)\b|let me know\b|please let me know\b|is there anything\b|note:|\(note\b|"
    r"希望這|希望这|如果您|如果你|如有|請告訴我|请告诉我)[^\n]*\s*$",
    re.I,
)
_FENCE = re.compile(r"\s*```[a-z]*\n(.*?)\n?```\s*$", re.S)
_REFUSAL = re.compile(
    r"\s*(?:(?:i'm|i’m|i am)\s+(?:very |really )?(?:sorry|afraid|unable)|sorry,|i apologi[sz]e|"
    r"(?:i|we)\s+(?:cannot|can't|can’t|could not|couldn't|won't|am not able|do not have|don't have)|"
    r"as an? (?:ai|artificial|large language|language model)|unfortunately,? i\b|(?:there is|you have) no paragraph|"
    r"please provide|(?:很)?抱歉|對不起|对不起|(?:我)?(?:無法|无法|不能)(?:為您|为您|提供|完成|改|重|協|协)|"
    r"作為(?:一[個个名位])?(?:AI|人工|語言模型|大型)|作为(?:一[個个名位])?(?:AI|人工|语言模型|大型)|請提供|请提供)",
    re.I,
)
_QUESTION = re.compile(r"(?im)(?:^|[\s*#])(?:question|q|問題|问题|問|问)\s*\d{0,2}[*]*\s*[:：]")
_ANSWER = re.compile(r"(?im)(?:^|[\s*#])(?:answer|a|回答|答案|答)\s*\d{0,2}[*]*\s*[:：]")
_HAN_CHAR = re.compile(f"[{HAN}]")
_QUOTES = {'"': '"', "“": "”", "「": "」", "'": "'"}

REFUSAL, EMPTY, CUT_OFF, UNANSWERED, NO_ROOM = (
    "refusal", "empty", "truncated", "not answered", "passage beyond the model's context",
)  # fmt: skip
SHORT, LONG, LANGUAGE, COPY = "too short", "too long", "another language", "copy of the passage"
NAMES, NUMBERS, REPEATS, STYLE = "new names", "new numbers", "repeats itself", "no questions and answers"
_NGRAM = 5
_MARKS_LEAST = 3  # characters of the other script before it is another language: a name may be written in it
_CERTAIN = 0.5  # identification of another Latin language; short texts full of names are never so certain
_ZLIB_LEAST = 0.15  # real text stays above it, from 200 bytes on
_ZLIB_BYTES = 200


def stripped(passage: str, written: str) -> tuple[str, bool]:
    """(the rephrasing without what was said around it, whether there was such)."""
    text = written.strip()
    for pattern in (_BEFORE, _GREETING):
        found = pattern.match(text)
        if found and found.end() and not pattern.match(passage):
            text = text[found.end() :].strip()
            break
    if (found := _AFTER.search(text)) and not _AFTER.search("\n" + passage):
        text = text[: found.start()]
    if found := _FENCE.match(text):
        text = found.group(1)
    text = text.strip()
    closing = _QUOTES.get(text[:1])
    if closing and len(text) > 2 and text.endswith(closing) and closing not in text[1:-1]:
        if not passage.strip().startswith(text[0]):
            text = text[1:-1].strip()
    return text, text != written.strip()


def copied_share(passage: str, written: str) -> float:
    """Share of the 5-grams of `written` (words, Han characters) that the passage holds; of short ones, equal or not."""
    held, made = pieces(passage), pieces(written)
    size = min(_NGRAM, max(1, len(made)))
    grams = {tuple(held[i : i + size]) for i in range(len(held) - size + 1)}
    if len(made) < _NGRAM:
        return float(made == held)
    return sum(tuple(made[i : i + size]) in grams for i in range(len(made) - size + 1)) / (len(made) - size + 1)


def _speaks(language: str, text: str) -> bool:
    """Whether `text` is in `language`: by its script first, then which Chinese script, or which Latin language."""
    counted = pieces(text)
    letters = sum(not piece.isdigit() for piece in counted)
    han = sum(bool(_HAN_CHAR.match(piece)) for piece in counted)
    if letters and (han > letters / 2) != language.startswith("zh"):
        return False
    if language == "en":
        (code,), (score,) = identify([text])
        return code in ("en", UNKNOWN) or score < _CERTAIN
    marks = script_marks()[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)]
    traditional, simplified = int((marks == TRADITIONAL).sum()), int((marks == SIMPLIFIED).sum())
    own, other = (traditional, simplified) if language == "zh-Hant" else (simplified, traditional)
    return other < _MARKS_LEAST or other <= own


def check(passage: Passage, written: Rephrased, style: Style, settings: CheckSettings | None = None) -> Checked:
    """One rephrasing; the first broken rule is its reason. Raises nothing whatever was written."""
    settings = settings or CheckSettings()
    text, around = stripped(passage.text, written.text)
    reason, value, found = _judge(passage, text, written.finish, style, settings)
    return Checked(text, reason, value, found, around)


def check_all(
    passages: Sequence[Passage], written: Sequence[Rephrased], style: Style, settings: CheckSettings | None = None
) -> list[Checked]:
    """`check` of each."""
    return [check(p, w, style, settings) for p, w in zip(passages, written, strict=True)]


def _judge(
    passage: Passage, text: str, finish: str, style: Style, settings: CheckSettings
) -> tuple[str | None, float | None, str]:
    """(reason, value, what is new)."""
    refused = _REFUSAL.match(text)
    if finish == "refusal" or (refused and not _REFUSAL.match(passage.text)):
        return REFUSAL, None, ""
    ended = {"unanswered": UNANSWERED, "no room": NO_ROOM, "length": CUT_OFF}.get(finish)
    if ended or not text:
        return ended or EMPTY, None, ""
    share = len(pieces(text)) / max(1, len(pieces(passage.text)))
    if not settings.shortest <= share <= settings.longest:
        return (SHORT if share < settings.shortest else LONG), share, ""
    if not _speaks(passage.language, text):
        return LANGUAGE, None, ""
    data = text.encode("utf-8", "surrogatepass")
    if len(data) >= _ZLIB_BYTES and (packed := len(zlib.compress(data, 1)) / len(data)) < _ZLIB_LEAST:
        return REPEATS, packed, ""
    if settings.copied is not None and (copied := copied_share(passage.text, text)) >= settings.copied:
        return COPY, copied, ""
    if style == "qa" and not (_QUESTION.search(text) and _ANSWER.search(text)):
        return STYLE, None, ""
    if settings.numbers and (new := new_numbers(passage.text, text)):
        return NUMBERS, float(len(new)), ", ".join(new)
    if settings.names and (new := new_names(passage.text, text, passage.language)):
        return NAMES, float(len(new)), ", ".join(new)
    return None, None, ""
