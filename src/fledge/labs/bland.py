"""Junk that no rule of form can find: well-formed talk that says nothing, and pages of an article spinner.

Real crawls are full of both; they are what a quality classifier is for. Kinds as in `world.crawl`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fledge.world.copies import HAN
from fledge.world.crawl import crawl_page
from fledge.world.dice import Dice
from fledge.world.relations import LANGUAGES

BLAND = ("talk", "spun")
TALK = {
    "en": (
        "Thanks for the post, it made my whole day.",
        "I was first here, and I will be first again.",
        "Has anybody else seen this thread before?",
        "Same problem here since the last update.",
        "Please move this thread to the other forum.",
        "I agree with the user above me.",
        "Sorry for my late reply, I was on holiday.",
        "You can delete this comment now.",
        "My cousin told me the same story last week.",
        "Do not forget to like and to subscribe.",
        "I have not read the article, but I do not like it.",
        "Bump, because nobody has replied yet.",
        "This is so true, and I cannot say why.",
        "The moderator should really look at this.",
        "Great blog, I will come back for more.",
        "It works for me after I turned it off and on again.",
        "See my signature for the rules of this game.",
        "Who is still here in the new year?",
    ),
    "zh": (
        "謝謝樓主分享，今天心情都好了。",
        "我先來搶頭香，下次還要再搶。",
        "有人看過這個討論串嗎？",
        "上次更新以後我也有一樣的問題。",
        "請把這篇移到另外一個討論區。",
        "我同意樓上的說法。",
        "不好意思回得晚，我前幾天去度假。",
        "這則留言可以刪掉了。",
        "我表哥上禮拜也跟我說過一樣的事。",
        "記得按讚還有開啟小鈴鐺。",
        "文章我沒看，可是我不喜歡。",
        "推一下，怎麼都沒有人回。",
        "說得太對了，但是我講不出為什麼。",
        "版主真的應該來看一看。",
        "部落格寫得很棒，我會常常來。",
        "我關掉再打開就好了。",
        "這個遊戲的規則請看我的簽名檔。",
        "新的一年還有誰在這裡？",
    ),
}
_SENTENCE = re.compile(r"[^.!?。！？\n]+")


def talk(language: str, dice: Dice) -> str:
    """Five to twelve remarks of a forum."""
    return "\n".join(dice.pick(TALK[language]) for _ in range(5 + dice.below(8)))


def spun(text: str, language: str, dice: Dice) -> str:
    """The text with the words (Chinese: runs of two characters) of each sentence in another order; marks stay."""

    def mixed(sentence: re.Match[str]) -> str:
        held = sentence.group()
        if language == "en":
            return " " * held.startswith(" ") + " ".join(dice.shuffled(held.split()))
        head = held[: len(held) - len(held.lstrip())]
        return head + "".join(dice.shuffled(re.findall(rf"(?:{HAN.pattern}){{1,2}}|[^\u3400-\u9fff]+", held.strip())))

    return _SENTENCE.sub(mixed, text)


def bland_pages(originals: Sequence[dict], count: int, dice: Dice) -> list[dict]:
    """`count` pages, half of each kind and of each language; `originals` (good pages) are what is spun."""
    by_language = {language: [p for p in originals if p["language"] == language] for language in LANGUAGES}
    pages = []
    for number in range(count):
        language, kind = LANGUAGES[number % 2], BLAND[number // 2 % 2]
        text = (
            talk(language, dice) if kind == "talk" else spun(dice.pick(by_language[language])["text"], language, dice)
        )
        pages.append(crawl_page(text, language, "junk", kind=kind))
    return pages
