"""An exact form: a poem of eight lines of seven characters (七言律詩). Easy to judge, hard to keep to.

A line is so many Han characters; lines are parted by one mark (，。！？；) with or without a new line after it, or by new
lines alone. The material is written as Tang poems are printed: a comma and a full stop by turns, one token each in our
tokenizer, and no new lines. Its verse comes from a small phrase grammar of our own, in words of one and two characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from fledge.tasks.base import Example, Message, answered, known_split, user
from fledge.world.dice import Dice
from fledge.world.words import pairs, words

HAN = "[\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
MARKS = "，。！？；"
_PART = re.compile(rf"[{MARKS}]\s*|\n\s*")

TOPICS = pairs(
    "moon/明月 river/江水 mountain/青山 snow/白雪 rain/夜雨 autumn/秋風 boat/孤舟 bridge/石橋 willow/楊柳 cloud/浮雲 bamboo/竹林 "
    "temple/古寺 friend/故人 wine/美酒 spring/春風 lake/湖光 wild_goose/飛雁 sunset/夕陽 flower/落花 home/故鄉 star/星河 garden/小園 "
    "road/長路 bell/鐘聲 horse/白馬 pine/老松 frost/秋霜 dream/歸夢 lamp/孤燈 sea/海潮 village/山村 lotus/荷花 swallow/燕子 "
    "morning/曉日 tower/高樓 flute/笛聲 fisherman/漁人 grass/芳草 moss/青苔 mist/煙霧"
)
"""40 topics; every fourth is for tests."""
_PLACES = words("江上 山中 門前 樓外 溪邊 雲間 橋頭 天邊 林下 窗前 今夜 昨日 明朝 春來 秋去 歲晚")
_THINGS = tuple(zh for _, zh in TOPICS)
_VERBS = words("照 入 過 隨 向 伴 映 臨 近 望 繞 別")
_STATES = words("東來 西去 無聲 千里 依舊 如夢 不歸 正好 漸遠 初開")
_ASKS = {
    "en": ("Write a poem about the {}.", "A poem on the {}, please.", "Can you write verse about the {}?"),
    "zh": ("以{}為題寫一首詩。", "請寫一首{}的詩。", "寫{}，成詩一首。"),
}


class Poem:
    """Prompts that name a topic; a right answer has exactly `lines` lines of exactly `width` Han characters."""

    def __init__(self, lines: int = 8, width: int = 7, seed: int = 0):
        """lines and width in lines and characters; a smaller shape suits a smaller context.

        Raises ValueError for shapes outside 1 to 40 lines of 1 to 20 characters.
        """
        if not (1 <= lines <= 40 and 1 <= width <= 20):
            raise ValueError(f"{lines} lines of {width} characters: must be 1 to 40 lines of 1 to 20, such as poem:8x7")
        self.lines, self.width, self.seed = lines, width, seed
        self._line = re.compile(f"{HAN}{{{width}}}")
        part = f"(?:{_PART.pattern})"
        self._whole = re.compile(f"{HAN}{{{width}}}(?:{part}{HAN}{{{width}}}){{{lines - 1}}}[{MARKS}]?")

    def examples(self, split: str) -> list[Example]:
        """Every topic of the split in both languages and three wordings; no topic is in both splits."""
        test = known_split(split) == "test"
        topics = [topic for i, topic in enumerate(TOPICS) if (i % 4 == 3) == test]
        return [
            _example(english.replace("_", " "), chinese, language, form)
            for english, chinese in topics
            for language, forms in _ASKS.items()
            for form in range(len(forms))
        ]

    def score(self, example: Example, answer: str) -> float:
        """1.0 if the answer, but for outer spaces, has the shape and nothing else; else 0.0. Sense does not count."""
        return float(self._whole.fullmatch(answer.strip()) is not None)

    def progress(self, example: Example, partial: str) -> float:
        """Share of the lines that are written and right, up to the first wrong one; 0 when there are too many lines.

        The last line counts as soon as it has its characters, and no more once it has too many.
        """
        pieces = _PART.split(partial.strip())
        if pieces[-1] == "":  # after the last mark
            pieces.pop()
        right = 0
        while right < len(pieces) and self._line.fullmatch(pieces[right]):
            right += 1
        return right / self.lines if len(pieces) <= self.lines else 0.0

    def verse(self, dice: Dice, widths: list[int], topic: str | None = None) -> str:
        """A poem with lines of the given widths, whose first line names the topic where there is room."""
        lines = [_verse_line(dice, width, topic if i == 0 else None) for i, width in enumerate(widths)]
        return "".join(line + "，。"[i % 2] for i, line in enumerate(lines[:-1])) + lines[-1] + "。"

    def texts(self, count: int) -> Iterator[str]:
        """Poems of any length up to two lines more than asked for; one in five has one line too short or too long."""
        dice = Dice(self.seed, 36)
        for _ in range(count):
            widths = [self.width] * (1 + dice.below(self.lines + 2))
            if dice.chance(0.2):
                widths[dice.below(len(widths))] = self._other_width(dice)
            yield self.verse(dice, widths)

    def chats(self, count: int, wrong: float = 0.0) -> Iterator[list[Message]]:
        """A request and a poem; wrong ones miss the shape by up to two lines, or by a character in some line."""
        dice, train = Dice(self.seed, 37), self.examples("train")
        for _ in range(count):
            example, widths = dice.pick(train), [self.width] * self.lines
            if dice.chance(wrong):
                if dice.chance(0.5):
                    widths[dice.below(self.lines)] = self._other_width(dice)
                else:
                    more = self.lines + 1 + dice.below(2)
                    fewer = max(1, self.lines - 1 - dice.below(2))
                    widths = [self.width] * (more if fewer == self.lines or dice.chance(0.5) else fewer)
            yield answered(example, self.verse(dice, widths, example.meta["topic"]))

    def _other_width(self, dice: Dice) -> int:
        return self.width + 1 if self.width == 1 or dice.chance(0.5) else self.width - 1


def _verse_line(dice: Dice, width: int, topic: str | None) -> str:
    """Place, place, ... thing, verb, thing: 春來江上明月照青山. Short lines leave parts out."""
    if width > 5:
        return dice.pick(_PLACES) + _verse_line(dice, width - 2, topic)
    thing = topic or dice.pick(_THINGS)
    return {
        1: lambda: dice.pick(_VERBS),
        2: lambda: thing,
        3: lambda: thing + dice.pick(_VERBS),
        4: lambda: thing + dice.pick(_STATES),
        5: lambda: thing + dice.pick(_VERBS) + dice.pick(_THINGS),
    }[width]()


def _example(english: str, chinese: str, language: str, form: int) -> Example:
    prompt = user(_ASKS[language][form].format(english if language == "en" else chinese))
    id = f"{english.replace(' ', '-')}-{form}.{language}"
    return Example(id=id, prompt=prompt, answers=(), kind="poem", language=language, meta={"topic": chinese})
