"""Copies as the web makes them: edited, recased, wrapped in menus, written in the other Chinese script; and how alike.

English is counted in words, Chinese in characters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from fledge.world.dice import Dice
from fledge.world.junk import BOILERPLATE

HAN = re.compile(r"[\u3400-\u9fff]")
SHINGLE_TOKENS = 5


def vocabulary(texts: Sequence[str], language: str) -> list[str]:
    """The words (Chinese: the Han characters) of the texts, sorted: what edits put in."""
    found: set[str] = set()
    for text in texts:
        found.update(HAN.findall(text) if language == "zh" else (word for word in text.split() if word.isalpha()))
    return sorted(found)


def edited(text: str, language: str, share: float, vocabulary: Sequence[str], dice: Dice) -> str:
    """The text with `share` of its words (Chinese: Han characters) dropped, replaced or preceded by a new one.

    Exactly max(1, round(share * words)) places, drawn without repeats; a third each way."""
    pieces = list(text) if language == "zh" else re.findall(r"\s+|\S+", text)
    places = [i for i, piece in enumerate(pieces) if (HAN.match(piece) if language == "zh" else not piece.isspace())]
    for i in dice.sample(places, max(1, round(share * len(places)))):
        way, new = dice.below(3), dice.pick(vocabulary)
        while new == pieces[i]:
            new = dice.pick(vocabulary)
        gap = "" if language == "zh" else " "
        pieces[i] = ("", new, new + gap + pieces[i])[way]
    return "".join(pieces)


def recased(text: str, language: str) -> str:
    """The same words in other case, spacing and punctuation, which normalising before a hash undoes."""
    if language == "zh":
        return text.replace("，", "、").replace("。", "．").replace("\n", "\n　") + " "
    return text.lower().replace("\n", "\n  ").replace(", ", " , ") + " "


def wrapped(text: str, language: str, dice: Dice) -> str:
    """The text between three lines of a site's menu and three of its footer."""
    lines = dice.sample(BOILERPLATE[language], 6)
    return "\n".join([*lines[:3], text, *lines[3:]])


@cache
def _converter():
    from opencc import OpenCC

    return OpenCC("t2s")


def simplified(text: str) -> str:
    """Traditional Chinese in Simplified characters (OpenCC, t2s)."""
    return _converter().convert(text)


def shingles(text: str) -> set[tuple[str, ...]]:
    """Runs of five tokens (all of them, if fewer), where a token is a Han character or a word; case and script folded."""
    folded = simplified(text.casefold()) if HAN.search(text) else text.casefold()
    tokens = re.findall(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+", folded)
    return {tuple(tokens[i : i + SHINGLE_TOKENS]) for i in range(max(1, len(tokens) - SHINGLE_TOKENS + 1))}


def jaccard(a: str, b: str) -> float:
    """Shared shingles over all shingles of the two texts, in [0, 1]."""
    one, other = shingles(a), shingles(b)
    return len(one & other) / len(one | other)
