"""Traditional and Simplified Chinese: one table that makes both comparable, and which characters tell them apart.

Both are read off OpenCC's dictionaries (Apache-2.0, inside its wheel) once per process, in about 0.1 seconds.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from opencc import OpenCC

CODE_POINTS = 0x110000
HAN = (
    (0x2E80, 0x2FE0),  # radicals
    (0x3005, 0x3008),  # iteration mark, closing mark, zero
    (0x3400, 0x4DC0),  # extension A
    (0x4E00, 0xA000),  # unified ideographs
    (0xF900, 0xFB00),  # compatibility ideographs
    (0x20000, 0x323B0),  # extensions B to H
)
"Half-open ranges of code points whose every character is a token of its own in Chinese."

_PHRASES = "沈沉 藉借 覆复 鍊链 锺钟 迳径 瞭了 麽么 钜巨 衹只 甦苏 哩里 画划 幺么 彷仿 著着 祇只"
"""Characters that OpenCC replaces inside some words only (瞭解 is 了解, 計畫 is 计划, 鍾書 is 锺书), or that regions write
differently (看著, 看着): an exact copy in the other script holds the second where the text holds the first."""

TRADITIONAL, SIMPLIFIED = 1, 2


@lru_cache(maxsize=1)
def simplified_table() -> np.ndarray:
    """Code point -> code point, uint32 [0x110000], read-only: the same entry for all written variants of a character.

    Traditional characters go to Simplified ones, regional and compatibility forms to the common one; all else stays.
    It is for comparing texts (hashes, stop characters), not for writing them: it knows no words, so 著作 becomes 着作.
    Applying it twice changes nothing.
    """
    table = np.arange(CODE_POINTS, dtype=np.uint32)
    han = _han()
    for name in ("t2s", "tw2s", "hk2s", "t2s"):
        table[han] = _converted(name, table[han])
    for variant, common in _PHRASES.split():
        table[np.isin(table, table[[ord(variant), ord(common)]])] = ord(common)
    table.flags.writeable = False
    return table


@lru_cache(maxsize=1)
def script_marks() -> np.ndarray:
    """Code point -> 0, TRADITIONAL or SIMPLIFIED, uint8 [0x110000], read-only.

    A character tells Traditional text when OpenCC simplifies it and it is not among the 3,755 common characters of the
    mainland (GB 2312, level 1: so 乾 tells nothing); Simplified text when OpenCC has a Traditional form for it and it is
    not among the 5,401 common ones of Taiwan (Big5, level 1: so 后, 里, 干, 面 tell nothing).
    """
    marks = np.zeros(CODE_POINTS, dtype=np.uint8)
    han = _han()
    marks[han[(_converted("t2s", han) != han) & ~_encoded(han, "gb2312", 0xB0A1, 0xD7F9)]] = TRADITIONAL
    simplified = (_converted("s2t", han) != han) & (_converted("t2s", han) == han)
    marks[han[simplified & ~_encoded(han, "big5", 0xA440, 0xC67E)]] = SIMPLIFIED
    marks.flags.writeable = False
    return marks


def _han() -> np.ndarray:
    return np.concatenate([np.arange(first, end, dtype=np.uint32) for first, end in HAN])


def _converted(configuration: str, characters: np.ndarray) -> np.ndarray:
    """OpenCC's answer for every character by itself: uint32 [N] -> uint32 [N]."""
    lines = OpenCC(configuration).convert("\n".join(map(chr, characters))).split("\n")
    # A character whose conversion has two (none does today) has no entry in a table of code points and stays.
    return np.array(
        [ord(line) if len(line) == 1 else old for line, old in zip(lines, characters, strict=True)], np.uint32
    )


def _encoded(characters: np.ndarray, encoding: str, first: int, last: int) -> np.ndarray:
    """Which characters a two-byte encoding holds between two codes: uint32 [N] -> bool [N]."""
    codes = (chr(character).encode(encoding, "ignore") for character in characters)
    return np.array([first <= int.from_bytes(code) <= last for code in codes])
