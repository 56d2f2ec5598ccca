"""Fictional names in two writings: each syllable is a Latin sound and one Chinese character (ve = 維, lo = 洛, ra = 拉)."""

from __future__ import annotations

from typing import NamedTuple

from fledge.world.dice import Dice
from fledge.world.words import words

SYLLABLES: tuple[tuple[str, str], ...] = tuple(
    (pair[:-1], pair[-1])
    for pair in words(
        "ve維 lo洛 ra拉 ta塔 ka卡 ru魯 so索 ri里 be貝 mi米 na娜 no諾 do多 ma馬 le列 sa薩 ti提 ko科 ne內 bo波 da達 fa法 "
        "ga加 ha哈 hi希 ho霍 jo喬 ju朱 la萊 lu盧 me梅 mo莫 mu穆 ni尼 pa帕 pe佩 pi皮 po坡 ro羅 re雷 se塞 si西 su蘇 te特 "
        "to托 tu圖 va瓦 vi薇 vo沃 ya亞 yo約 za札 ze澤 zo佐 lan蘭 rin琳 ben本 dan丹 fen芬 gan甘 han漢 ken肯 lon隆 man曼 "
        "mer默 san桑 tan坦 ton頓 ver弗 kan坎"
    )
)


class Name(NamedTuple):
    """One fictional word in both languages."""

    en: str
    zh: str


class NameMaker:
    """Hands out names such that no name occurs inside another one, in either language."""

    def __init__(self, seed: int, stream: int):
        self.dice = Dice(seed, stream)
        self.taken: list[Name] = []

    def make(self, syllables: tuple[int, ...]) -> Name:
        """A new name; `syllables` lists the lengths to draw from, e.g. (2, 3, 3)."""
        while True:
            parts = [self.dice.pick(SYLLABLES) for _ in range(self.dice.pick(syllables))]
            # a closed syllable (lan, rin) reads well only at the end, and no syllable comes twice
            if len(set(parts)) < len(parts) or any(len(latin) > 2 for latin, _ in parts[:-1]):
                continue
            name = Name("".join(latin for latin, _ in parts).capitalize(), "".join(han for _, han in parts))
            if not any(_overlap(name, other) for other in self.taken):
                self.taken.append(name)
                return name

    def many(self, count: int, syllables: tuple[int, ...]) -> list[Name]:
        """`count` new names."""
        return [self.make(syllables) for _ in range(count)]


def _overlap(a: Name, b: Name) -> bool:
    """Whether one name contains the other in Latin letters or in Chinese characters."""
    en_a, en_b = a.en.lower(), b.en.lower()
    return a.zh in b.zh or b.zh in a.zh or en_a in en_b or en_b in en_a
