"""The junk of a crawl: boilerplate, exact and near copies, keyword spam, noise, wrong facts. `quality` says which."""

from __future__ import annotations

from collections.abc import Iterator

from fledge.world.dice import Dice
from fledge.world.facts import RELATIONS, Fact, Value, fill
from fledge.world.page import page
from fledge.world.relations import capital
from fledge.world.words import words

SHARES = {"boilerplate": 0.32, "copy": 0.32, "spam": 0.15, "noise": 0.13, "wrong": 0.08}
"""Shares of the junk's characters."""

BOILERPLATE = {
    "en": (
        "Click here to read more.",
        "Please accept our cookies to continue.",
        "All rights reserved.",
        "Sign up for our newsletter today.",
        "Share this page with your friends.",
        "Back to the top of the page.",
        "Log in or create an account.",
        "This page could not be found.",
        "Home | About | Contact | Help",
        "Next page >>",
        "By using this site you agree to our terms of use.",
        "Advertisement",
    ),
    "zh": (
        "點這裡看更多。",
        "請接受我們的條款再繼續。",
        "版權所有。",
        "今天就訂閱我們的電子報。",
        "把這一頁分享給朋友。",
        "回到頁首。",
        "請登入或註冊帳號。",
        "找不到這一頁。",
        "首頁 | 關於 | 聯絡 | 幫助",
        "下一頁 >>",
        "使用本網站就是同意我們的條款。",
        "廣告",
    ),
}
KEYWORDS = {
    "en": words("cheap best buy free sale online shop hotel ticket deal price new top win now fast car house phone"),
    "zh": words("便宜 最好 買 免費 特價 網路 商店 旅館 車票 優惠 價格 新 第一 贏 現在 快速 汽車 房子 手機"),
}
NEAR_COPY = {"en": ("Copied from another site: ", "Read this: "), "zh": ("轉載自別的網站：", "大家看看：")}


def boilerplate(language: str, dice: Dice) -> str:
    """Three to eight menu lines."""
    return "\n".join(dice.sample(BOILERPLATE[language], 3 + dice.below(6)))


def spam(language: str, dice: Dice) -> str:
    """Forty to eighty keywords, few of them different."""
    few = dice.sample(KEYWORDS[language], 4)
    return " ".join(dice.pick(few) for _ in range(40 + dice.below(41)))


def noise(language: str, dice: Dice) -> str:
    """A page as from r/microwavegang: hundreds of times the same sound."""
    sounds = "mM" if language == "en" else "嗯"
    return "".join(dice.pick(sounds) for _ in range(400 + dice.below(1600 if language == "en" else 400)))


def wrong_fact(fact: Fact, pool: list[Value], language: str, dice: Dice) -> str:
    """A statement of the fact with another value of the same pool."""
    value = dice.pick([value for value in pool if value.key != fact.value])
    return capital(fill(dice.pick(RELATIONS[fact.relation].wording(language).statements), fact, language, value))


def junk_pages(
    facts: list[Fact], pools: dict[str, list[Value]], originals: list[dict], language: str, chars: int, dice: Dice
) -> Iterator[dict]:
    """Pages of each kind until its share of `chars` characters is written.

    Copies are of grammar pages (`originals`, whose `dup_cluster` is set here), so they never change a fact's count.
    Wrong facts are about facts stated at least 20 times, so the truth always outnumbers them."""
    known = [fact for fact in facts if fact.count[language] >= 20] or facts[:1]
    clusters = 0
    for kind, share in SHARES.items():
        written = 0
        while written < chars * share:
            cluster, quality = None, kind
            if kind == "boilerplate":
                text = boilerplate(language, dice)
            elif kind == "spam":
                text = spam(language, dice)
            elif kind == "noise":
                text = noise(language, dice)
            elif kind == "wrong":
                fact = dice.pick(known)
                text = wrong_fact(fact, pools[fact.relation], language, dice)
            else:
                original = dice.pick(originals)
                if original["dup_cluster"] is None:
                    original["dup_cluster"], clusters = f"{language}-{clusters}", clusters + 1
                cluster, near = original["dup_cluster"], dice.chance(0.5)
                quality = "near_copy" if near else "exact_copy"
                text = (dice.pick(NEAR_COPY[language]) if near else "") + original["text"]
            written += len(text)
            yield page(text, language, "junk", quality=quality, dup_cluster=cluster)
