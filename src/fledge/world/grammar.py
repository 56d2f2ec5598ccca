"""Plain sentences without facts: a small probabilistic grammar per language, and minimal pairs that differ in one rule.

English: agreement of subject and verb, of determiner and noun, a/an, word order. Chinese: classifiers, the place of
adverbs, the 把 construction, negation of 有.
"""

from __future__ import annotations

from typing import NamedTuple

from fledge.world.dice import Dice
from fledge.world.relations import capital, with_article
from fledge.world.words import pairs, words


class Noun(NamedTuple):
    """An English noun with its plural."""

    one: str
    many: str


def _nouns(text: str) -> tuple[Noun, ...]:
    """Nouns in a row; an irregular plural follows a slash."""
    return tuple(Noun(*(word.split("/") if "/" in word else (word, word + "s"))) for word in text.split())


PEOPLE = _nouns(
    "girl boy child/children woman/women man/men farmer teacher doctor sister brother friend aunt uncle artist actor king queen"
)
ANIMALS = _nouns("dog cat bird horse rabbit goat duck ant owl elephant")
BEINGS = PEOPLE + ANIMALS
THINGS = _nouns(
    "book apple letter picture cup hat chair box/boxes orange coat basket umbrella egg song story/stories ball cake lamp "
    "ticket stone"
)
PLACES = _nouns("garden house field market river hill bridge tree window door")
ADJECTIVES = words("old young small happy quiet tall kind clever brave little")
THING_ADJECTIVES = words("old small big red green new little blue heavy ugly")
# verbs as (he ..., they ...)
INTRANSITIVE = pairs(
    "sleeps/sleep runs/run waits/wait walks/walk rests/rest laughs/laugh sings/sing dances/dance smiles/smile"
)
ANIMAL_INTRANSITIVE = INTRANSITIVE[:5]
TRANSITIVE = pairs(
    "sees/see carries/carry finds/find likes/like wants/want buys/buy sells/sell keeps/keep paints/paint loses/lose "
    "brings/bring holds/hold"
)
LIKING = pairs("sees/see helps/help likes/like follows/follow hears/hear knows/know meets/meet")
NEAR = ("near", "behind", "in front of", "next to")
WHEN = ("every day", "in the morning", "at night", "in summer", "after school", "on Sunday", "before dinner", "today")
HOW = ("slowly", "quietly", "gladly", "often", "alone", "again")
ONE_WORDS = ("the", "this", "that", "every", "our")
MANY_WORDS = ("the", "these", "those", "many", "two", "three", "some", "our")


def noun_phrase(dice: Dice, nouns: tuple[Noun, ...]) -> tuple[str, bool]:
    """("the old dogs", True): words, and whether they are plural."""
    noun, plural = dice.pick(nouns), dice.chance(0.45)
    word = noun.many if plural else noun.one
    if dice.chance(0.4):
        word = f"{dice.pick(ADJECTIVES if noun in BEINGS else THING_ADJECTIVES)} {word}"
    if plural:
        return f"{dice.pick(MANY_WORDS)} {word}", True
    if dice.chance(0.3):
        return with_article(word), False
    return f"{dice.pick(ONE_WORDS)} {word}", False


def english_sentence(dice: Dice) -> str:
    """One grammatical sentence."""
    person = dice.chance(0.65)
    subject, plural = noun_phrase(dice, PEOPLE if person else ANIMALS)
    if dice.chance(0.25):
        subject += f" {dice.pick(NEAR)} {noun_phrase(dice, PLACES if dice.chance(0.6) else BEINGS)[0]}"
    kind = dice.random()
    if kind < 0.3:
        verb = dice.pick(INTRANSITIVE if person else ANIMAL_INTRANSITIVE)[plural]
        rest = verb + (f" {dice.pick(HOW)}" if dice.chance(0.4) else "")
    elif kind < 0.65 and person:
        rest = f"{dice.pick(TRANSITIVE)[plural]} {noun_phrase(dice, THINGS)[0]}"
    elif kind < 0.85:
        rest = f"{dice.pick(LIKING)[plural]} {noun_phrase(dice, BEINGS)[0]}"
    else:
        rest = f"{'are' if plural else 'is'} {dice.pick(ADJECTIVES)}"
    if dice.chance(0.3):
        rest += f" {dice.pick(WHEN)}"
    return capital(f"{subject} {rest}.")


# Chinese: every noun with its classifier
ZH_PEOPLE = pairs("個/女孩 個/男孩 個/朋友 個/小孩 位/老師 位/醫生 位/農夫 位/叔叔 位/阿姨 位/畫家 位/國王")
ZH_ANIMALS = pairs("隻/狗 隻/貓 隻/鳥 匹/馬 隻/兔子 隻/羊 隻/鴨子 頭/牛 頭/大象")
ZH_THINGS = pairs(
    "本/書 顆/蘋果 封/信 張/圖畫 個/杯子 頂/帽子 張/椅子 個/盒子 件/外套 個/籃子 把/雨傘 顆/雞蛋 顆/球 塊/蛋糕 盞/燈 張/車票 條/魚 "
    "塊/石頭 枝/筆"
)
ZH_PLACES = words("花園裡 房子裡 田裡 市場 河邊 山上 橋上 樹下 窗邊 門口")
ZH_PUT = words("桌上 椅子上 盒子裡 籃子裡 門口 窗邊 書架上 床上")
ZH_ADJ = words("小 快樂的 安靜的 聰明的 可愛的 年輕的 勇敢的")
ZH_THING_ADJ = words("小 大 紅色的 綠色的 新的 舊的 漂亮的")
ZH_DO = words("睡覺 休息 散步 跑步 唱歌 跳舞 讀書 游泳 等人")
ZH_ANIMAL_DO = words("睡覺 休息 散步 吃東西 玩")
ZH_TRANSITIVE = words("看見 找到 喜歡 想要 買 賣 畫 帶著 拿著")
ZH_MEET = words("看見 幫助 喜歡 跟著 認識 遇見")
ZH_ADVERBS = words("常常 總是 慢慢地 高興地 又 也 安靜地")
ZH_WHEN = words("今天 每天 早上 晚上 夏天 放學後 星期天 吃飯前")
ZH_NUMBERS = ("一", "兩", "三", "這", "那", "四", "幾")
ZH_MOVE = words("放 擺 留")


def zh_noun_phrase(dice: Dice, nouns: tuple[tuple[str, str], ...]) -> str:
    """「三隻可愛的狗」: number or pointer, classifier, perhaps an adjective, noun."""
    classifier, noun = dice.pick(nouns)
    adjective = ""
    if dice.chance(0.35):
        adjective = dice.pick(ZH_THING_ADJ if (classifier, noun) in ZH_THINGS else ZH_ADJ)
    return f"{dice.pick(ZH_NUMBERS)}{classifier}{adjective}{noun}"


def chinese_sentence(dice: Dice) -> str:
    """One grammatical sentence."""
    person = dice.chance(0.65)
    subject = zh_noun_phrase(dice, ZH_PEOPLE if person else ZH_ANIMALS)
    when = dice.pick(ZH_WHEN) if dice.chance(0.3) else ""
    adverb = dice.pick(ZH_ADVERBS) if dice.chance(0.3) else ""
    kind = dice.random()
    if kind < 0.25 or (kind < 0.5 and not person):
        place = f"在{dice.pick(ZH_PLACES)}" if dice.chance(0.5) else ""
        rest = f"{adverb}{place}{dice.pick(ZH_DO if person else ZH_ANIMAL_DO)}"
    elif kind < 0.5:
        rest = f"{dice.pick(ZH_TRANSITIVE)}{zh_noun_phrase(dice, ZH_THINGS)}"
    elif kind < 0.7 or not person:
        rest = f"{dice.pick(ZH_MEET)}{zh_noun_phrase(dice, ZH_PEOPLE + ZH_ANIMALS)}"
    elif kind < 0.88:
        manner = adverb if adverb != "總是" else ""
        rest = f"{manner}把{dice.pick(ZH_THINGS)[1]}{dice.pick(ZH_MOVE)}在{dice.pick(ZH_PUT)}"
    else:
        rest = f"沒有{dice.pick(ZH_THINGS)[1]}"
    return f"{subject}{when}{rest}。"


SENTENCE = {"en": english_sentence, "zh": chinese_sentence}


class MinimalPair(NamedTuple):
    """Two sentences that differ in one rule of grammar; a language model should find `good` more likely."""

    good: str
    bad: str
    phenomenon: str


def _agreement(dice: Dice) -> tuple[str, str]:
    noun, verb, plural = dice.pick(BEINGS), dice.pick(ANIMAL_INTRANSITIVE), dice.chance(0.5)
    head = f"The {dice.pick(ADJECTIVES)} {noun.many if plural else noun.one}"
    tail = dice.pick(WHEN)
    return f"{head} {verb[plural]} {tail}.", f"{head} {verb[not plural]} {tail}."


def _determiner(dice: Dice) -> tuple[str, str]:
    noun, plural = dice.pick(PEOPLE), dice.chance(0.5)
    verb = dice.pick(TRANSITIVE)[plural]
    one, many = dice.pick((("this", "these"), ("that", "those")))
    obj = noun_phrase(dice, THINGS)[0]
    word = noun.many if plural else noun.one
    good, bad = (many, one) if plural else (one, many)
    return capital(f"{good} {word} {verb} {obj}."), capital(f"{bad} {word} {verb} {obj}.")


def _article(dice: Dice) -> tuple[str, str]:
    noun, thing, verb = dice.pick(PEOPLE), dice.pick(THINGS), dice.pick(TRANSITIVE)
    right = with_article(thing.one)
    wrong = ("a " if right.startswith("an ") else "an ") + thing.one
    head = f"The {noun.one} {verb[0]}"
    return f"{head} {right}.", f"{head} {wrong}."


def _adjective_order(dice: Dice) -> tuple[str, str]:
    thing, adjective = dice.pick(THINGS), dice.pick(THING_ADJECTIVES)
    head = f"The {dice.pick(PEOPLE).one} {dice.pick(TRANSITIVE)[0]} the"
    return f"{head} {adjective} {thing.one}.", f"{head} {thing.one} {adjective}."


def _classifier(dice: Dice) -> tuple[str, str]:
    right, noun = dice.pick([pair for pair in ZH_ANIMALS + ZH_THINGS if pair[0] != "個"])
    # classifiers that no speaker would use for the noun: 條 for a dog or 隻 for a horse would not be plainly wrong
    wrong = dice.pick([c for c in ("匹", "封", "頂", "盞") if c != right])
    person, number = dice.pick(ZH_PEOPLE)[1], dice.pick(ZH_NUMBERS)
    verb = dice.pick(("看見", "喜歡", "找到"))
    return f"{person}{verb}{number}{right}{noun}。", f"{person}{verb}{number}{wrong}{noun}。"


def _adverb_place(dice: Dice) -> tuple[str, str]:
    subject, adverb = zh_noun_phrase(dice, ZH_PEOPLE), dice.pick(("常常", "總是", "也", "高興地"))
    action = dice.pick(("睡覺", "跑步", "唱歌", "跳舞", "散步", "休息", "讀書", "游泳"))
    return f"{subject}{adverb}{action}。", f"{subject}{action}{adverb}。"


def _ba(dice: Dice) -> tuple[str, str]:
    subject, thing = zh_noun_phrase(dice, ZH_PEOPLE), dice.pick(ZH_THINGS)[1]
    move, place = dice.pick(ZH_MOVE), dice.pick(ZH_PUT)
    return f"{subject}把{thing}{move}在{place}。", f"{subject}{move}{thing}把在{place}。"


def _no_have(dice: Dice) -> tuple[str, str]:
    subject, thing = zh_noun_phrase(dice, ZH_PEOPLE), dice.pick(ZH_THINGS)[1]
    return f"{subject}沒有{thing}。", f"{subject}不有{thing}。"


PHENOMENA = {
    "en_subject_verb": _agreement,
    "en_determiner_noun": _determiner,
    "en_article": _article,
    "en_adjective_order": _adjective_order,
    "zh_classifier": _classifier,
    "zh_adverb_order": _adverb_place,
    "zh_ba_order": _ba,
    "zh_negation": _no_have,
}


def minimal_pairs(seed: int, n: int) -> list[MinimalPair]:
    """`n` different minimal pairs, the eight phenomena in turn.

    Raises ValueError if `n` is above 1,600: there are too few different sentences of some phenomena."""
    if n > 1600:
        raise ValueError(f"n = {n}: at most 1600 minimal pairs; ask for fewer")
    dice, found, seen = Dice(seed, 90), [], set()
    names = list(PHENOMENA)
    while len(found) < n:
        name = names[len(found) % len(names)]
        good, bad = PHENOMENA[name](dice)
        if good not in seen:
            seen.add(good)
            found.append(MinimalPair(good, bad, name))
    return found
