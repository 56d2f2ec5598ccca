"""Names and numbers that a text states, by rules: what a rephrasing must not add.

What is found, and what is not:

- numbers: runs of digits (1,987 = 1987, full width = half width), English number words from eleven on, Chinese numerals
  of two characters or more. Not found: smaller number words (one, 三) and changed units;
- names in English: capitalised words inside a sentence; at its beginning only where the next word is capitalised too,
  where it holds a second capital, or where it is capitalised inside a sentence as well;
- names in Chinese: Latin words, titles in 《》, short quotations, names with · (by the first two characters of their last
  part), and names that end in a word for a place or an institution (山, 市, 語, 學院), by the character before it. Any
  other Chinese name looks like a common word and is NOT found.

Common nouns are not names: a potter that becomes a doctor is not found in any language.
"""

from __future__ import annotations

import re
import unicodedata

import numpy as np

from fledge.curate.variants import simplified_table

HAN = r"\u3400-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_WORD = re.compile(rf"[^\W\d_{HAN}]+(?:['’-][^\W\d_{HAN}]+)*")
_PIECE = re.compile(rf"[{HAN}]|[^\W_{HAN}]+")
_OPENING = re.compile(r"(?:^|[.!?:;。！？：；\n\"“”‘’'(（\[「『*#>•|–—-])[\s\"“‘'(（「『*#>•-]*$")
_TITLE = re.compile(r"[《〈]([^》〉]{1,40})[》〉]")
_QUOTED = re.compile(rf"[「『“]([{HAN}]{{1,6}})[」』”]")
_DOT = re.compile("[·・•‧]")
_DOTTED = re.compile(rf"[{HAN}]+(?:[·・•‧][{HAN}]+)+")
_PLACE = re.compile(
    rf"([{HAN}])(?:[山河江湖島岛市縣县省州國国語语鎮镇村](?![言家民際际王花旗歌土內内務务籍慶庆防場场])|"
    r"學院|学院|大學|大学|公司|銀行|银行|機場|机场)"
)
_NO_NAME = frozenset(
    "一三上下不与且两个中为主么之九也乡书买乱了二于互五些亡交亦亲仅今仍从他令以任会但位低住何余作你使供便俗俚倒假偈"
    "做像先光党入全公六共其兼再写军农冰冲几出刀分列则刚初别到前副办动区十半单卖占即却去县又及双反发取受变叛口古另只"
    "叫可台右号吃各合同名后向吗吧听呀呈呓呢和咒咱哪啊啦四回国土在地场均坐城外多夜大天太失女她好如妄子孤它完官定家宽"
    "宾寄寰对导将小少就居属山岁岛峰州巡左已市帝带常干年并幽应座建开异弃张弱强当往待很得必忙快怕急总恶您惊想成我或战"
    "房所手才打找承把投护报拔拿按据掉掌接提搞收改放敌救教敢文新方无既日旧早明星是暗曰更最月有望未本术杀村条来极某标"
    "椰楼次正此死殉段母每比毫民水汇江没河治活派海深清渔满火灯点煤熊爬爱片牛物状率王环球甚生用由登白的盟直相省看着瞧"
    "知短矿破祖离私种称穷空穿立站竟笑第等算管类系红级细结给绿罢置群老而耳股背胰能自至船节花茶荒获菜落虽螺行街被西要"
    "见观让讲许设评词话该误诳说请谁谓谚谜谵谶贵走起超越足跑跟跨跳车转较边过运近返还这进远退送通道那邻郊都里重野银长"
    "门间闹除随隐难集雪需靠面顶须首高鱼鸟黄黑"
)
"""What stands before 山, 國, 語 ... and names nothing (高山, 各國, 母語, 的山, 覺得河): the 330 most frequent one-character
verbs, adverbs, pronouns and particles and the first characters of common words that end so, by jieba's dictionary; without
those that often write foreign names."""
_HAN_RUN = re.compile(rf"[{HAN}]+")

FUNCTION_WORDS = frozenset(
    "a about above across after again against all along also although among an and another any are around as at be "
    "because been before behind below beneath beside between beyond both but by can could despite did do does down "
    "during each either even ever every few first for from further had has have he hence her here hers him his how "
    "however i if in indeed inside instead into is it its just last later like many may me meanwhile might more "
    "moreover most much must my near neither never next no nor not now of off often on once one only or other our out "
    "outside over per perhaps rather same second several shall she should since so some soon still such than that the "
    "their them then there therefore these they this those though through throughout thus to today together too toward "
    "towards two under until unlike up upon us very was we were what when where whereas whether which while who whose "
    "why will with within without would yes yet you your question answer q".split()
)
"""English words that begin sentences and name nothing."""

# --- numbers --------------------------------------------------------------------------------------------------------

_DIGITS = re.compile(r"\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?")
_LISTED = re.compile(r"(?m)^\s*(?:[-*#>]+\s*)?(?:\(?\d{1,2}[.)、）:：](?=\s|\D)|[QA]\d{0,2}[.:：])")
_LABEL = re.compile(r"(?i)\b(?:question|answer|q|a)\s*\d{1,2}\s*[:：.)]|[問问答題题]\s*\d{1,2}\s*[:：.、]")
_SMALL = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen \
seventeen eighteen nineteen".split()
_SMALL_TH = "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth \
fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_VALUE = (
    {word: i for i, word in enumerate(_SMALL)}
    | {word: i for i, word in enumerate(_SMALL_TH)}
    | {word: 10 * i for i, word in enumerate(_TENS, 2)}
    | {word.removesuffix("y") + "ieth": 10 * i for i, word in enumerate(_TENS, 2)}
)
_SCALE = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "dozen": 12}
MONTHS = {m: i for i, m in enumerate("january february march april may june july august september october november \
december".split(), 1)}  # fmt: skip
_HAN_DIGIT = {
    c: i for i, cs in enumerate(("〇零○", "一", "二兩两", "三", "四", "五", "六", "七", "八", "九")) for c in cs
}
_HAN_UNIT = {"十": 10, "百": 100, "千": 1000}
_HAN_SCALE = {"萬": 10**4, "万": 10**4, "億": 10**8, "亿": 10**8}
_HAN_NUMERAL = re.compile("[" + "".join((*_HAN_DIGIT, *_HAN_UNIT, *_HAN_SCALE)) + "]+")
_HAN_FOLLOWS = re.compile("[萬万億亿千百]+")
_IDIOMS = frozenset(
    ("萬一", "万一", "一一", "一再", "十全十", "千千萬萬", "千千万万", "一五一十", "七八", "三三兩兩", "三三两两")
)


def _canonical(digits: str) -> str:
    """One spelling of a number: no separators, no zeros at either end."""
    whole, _, part = digits.replace(",", "").partition(".")
    whole, part = whole.lstrip("0") or "0", part.rstrip("0")
    return f"{whole}.{part}" if part else whole


def _scaled(number: str, factor: int) -> str:
    whole, _, part = number.partition(".")
    return _canonical(f"{int(whole + part) * factor / 10 ** len(part):.4f}")


def _digit_numbers(text: str) -> list[set[str]]:
    """Each number in digits: its spellings (1.5, and 1500000 where "million" or 萬 follows)."""
    found = []
    for m in _DIGITS.finditer(text):
        number = _canonical(m.group())
        spellings = {number}
        rest = text[m.end() : m.end() + 12].lstrip()
        if after := re.match(r"[a-z]+", rest.lower()):
            if factor := _SCALE.get(after.group()):
                spellings.add(_scaled(number, factor))
        elif after := _HAN_FOLLOWS.match(rest):
            factor = 1
            for c in after.group():
                factor *= _HAN_SCALE.get(c) or _HAN_UNIT[c]
            spellings.add(_scaled(number, factor))
        found.append(spellings)
    return found


def _word_numbers(text: str) -> list[int]:
    """Values of English number words: "two hundred and five" is 205, "nineteen eighty-seven" 1987, "twentieth" 20."""
    found: list[int] = []
    run: list[int | str] = []

    def close() -> None:
        if any(isinstance(part, int) for part in run):
            found.append(_value_of(run))
        run.clear()

    end = 0
    for m in re.finditer(r"[a-z]+", text.lower()):
        word, gap = m.group(), text[end : m.start()]
        end = m.end()
        if gap not in (" ", "-", "‑"):
            close()
        if word in _VALUE:
            run.append(_VALUE[word])
        elif word in _SCALE:
            run.append(word)
        elif word != "and" or not run:
            close()
    close()
    return found


def _value_of(run: list[int | str]) -> int:
    """Value of number words; a tens after a number below 100 is a year: nineteen eighty-seven."""
    total, current = 0, 0
    for part in run:
        if isinstance(part, str):
            scale = _SCALE[part]
            if scale in (100, 12):
                current = max(current, 1) * scale
            else:
                total, current = total + max(current, 1) * scale, 0
        elif 10 <= current < 100 and part >= 10:
            current = current * 100 + part
        else:
            current += part
    return total + current


def _han_value(numeral: str) -> int:
    """Value of a Chinese numeral: 一百二十三 = 123, 一九八七 = 1987, 三萬五千 = 35000."""
    if not any(c in _HAN_UNIT or c in _HAN_SCALE for c in numeral):
        return int("".join(str(_HAN_DIGIT[c]) for c in numeral))
    total = section = digit = 0
    for c in numeral:
        if c in _HAN_DIGIT:
            digit = _HAN_DIGIT[c]
        elif c in _HAN_UNIT:
            section += (digit or 1) * _HAN_UNIT[c]
            digit = 0
        else:
            total, section, digit = (total + section + digit or 1) * _HAN_SCALE[c], 0, 0
    return total + section + digit


def known_numbers(text: str) -> set[str]:
    """Every number that `text` states, however it is written, months included."""
    text = unicodedata.normalize("NFKC", text)
    known = {spelling for spellings in _digit_numbers(text) for spelling in spellings}
    known |= {str(value) for value in _word_numbers(text)}
    known |= {str(_VALUE[word]) for word in re.findall(r"[a-z]+", text.lower()) if word in _VALUE}
    known |= {str(MONTHS[word]) for word in re.findall(r"[a-z]+", text.lower()) if word in MONTHS}
    return known | {str(_han_value(m.group())) for m in _HAN_NUMERAL.finditer(text)}


def new_numbers(source: str, written: str) -> list[str]:
    """Numbers in `written` that `source` does not state; numbers of list items and of questions are not counted."""
    known = known_numbers(source)
    text = _LABEL.sub(" ", _LISTED.sub(" ", unicodedata.normalize("NFKC", written)))
    found = [min(spellings, key=len) for spellings in _digit_numbers(text) if not spellings & known]
    found += [str(value) for value in _word_numbers(text) if value > 10 and str(value) not in known]
    for m in _HAN_NUMERAL.finditer(text):
        numeral = m.group()
        loose = len(numeral) < 2 or numeral in _IDIOMS or not any(c in _HAN_DIGIT for c in numeral)
        after_digits = m.start() > 0 and text[m.start() - 1].isdigit()  # 35萬 was seen above
        if not loose and not after_digits and str(_han_value(numeral)) not in known:
            found.append(numeral)
    return list(dict.fromkeys(found))


# --- names ----------------------------------------------------------------------------------------------------------


def pieces(text: str) -> list[str]:
    """Words in lower case and single Han characters, in order; what lengths and copies are counted in."""
    return _PIECE.findall(text.lower())


def folded(text: str) -> str:
    """`text` with every Han character in its Simplified form."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return simplified_table()[points].tobytes().decode("utf-32-le", "surrogatepass")


def _parts(word: str) -> list[str]:
    """Parts of a word in lower case, without a possessive: "Kolden's" -> kolden, "Franco-Prussian" -> two."""
    return [part for part in re.split("[-'’]", re.sub("['’]s$", "", word.lower())) if len(part) > 1]


def _kin(one: str, other: str) -> bool:
    """Arvania and Arvanian, China and Chinese: four letters or more in common, and one has at most one more."""
    common = 0
    while common < min(len(one), len(other)) and one[common] == other[common]:
        common += 1
    ends = sorted((len(one) - common, len(other) - common))
    return common >= 4 and ends[0] <= 1 and ends[1] <= 3


def _capitalised(text: str) -> list[str]:
    """Words of an English text that look like names, see the top of the file."""
    words = [(m.group(), m.start(), m.end()) for m in _WORD.finditer(text)]
    opening = [bool(_OPENING.search(text[max(0, start - 8) : start])) or start == 0 for _, start, _ in words]
    inside = {w for (w, _, _), first in zip(words, opening, strict=True) if not first and w[0].isupper()}
    found = []
    for i, (word, _, end) in enumerate(words):
        if not word[0].isupper() or word.lower().split("'")[0].split("’")[0] in FUNCTION_WORDS:
            continue
        follows = i + 1 < len(words) and text[end : words[i + 1][1]] == " " and words[i + 1][0][0].isupper()
        if not opening[i] or follows or word in inside or sum(c.isupper() for c in word) > 1:
            found.append(word)
    return found


def new_names(source: str, written: str, language: str) -> list[str]:
    """Names in `written` that `source` does not hold, as far as rules can tell; see the top of the file."""
    known = {part for m in _WORD.finditer(source) for part in _parts(m.group())}
    chinese = language.startswith("zh")
    text = unicodedata.normalize("NFKC", written)
    words = [m.group() for m in _WORD.finditer(text)] if chinese else _capitalised(text)
    numbers = known_numbers(source) if any(word.lower() in MONTHS for word in words) else set()
    found = []
    for word in words:
        strange = [p for p in _parts(word) if p not in known and p not in FUNCTION_WORDS]
        month = str(MONTHS.get(word.lower())) in numbers
        if strange and not month and not all(any(_kin(p, k) for k in known) for p in strange):
            found.append(word)
    if chinese:
        marked, dotted, placed = _TITLE.findall(text) + _QUOTED.findall(text), _DOTTED.findall(text), _places(text)
    else:
        marked, dotted, placed = _HAN_RUN.findall(text), [], []
    if marked or dotted or placed:
        held = folded(unicodedata.normalize("NFKC", source))
        found += [name for name in [*marked, *placed] if folded(name) not in held]
        found += [name for name in dotted if not _dotted_in(folded(name), held)]
    return list(dict.fromkeys(found))


def _places(text: str) -> list[str]:
    """The last character of each Chinese name of a place or an institution, with the word that it ends in: 芬山, 希學院."""
    return [m.group() for m in _PLACE.finditer(text) if folded(m.group(1)) not in _NO_NAME]


def _dotted_in(name: str, source: str) -> bool:
    """Whether the source holds a name such as 米拉·科爾登 that stands between other characters."""
    first, *inner, last = _DOT.split(name)
    begins = any(len(end) > 1 and end in source for end in (first[i:] for i in range(len(first))))
    return begins and last[:2] in source and all(part in source for part in inner)
