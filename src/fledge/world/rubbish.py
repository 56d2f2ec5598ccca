"""Texts a crawl is full of that nobody wants to learn from, and personal data nobody may: made up, but well-formed.

The numbers pass the checks real ones pass: Luhn's for cards, the checksums of Chinese and Taiwanese identity numbers.
"""

from __future__ import annotations

from collections.abc import Callable

from fledge.world.dice import Dice
from fledge.world.junk import KEYWORDS

MENU = {
    "en": ("Home", "Log in", "Register", "Cart", "Contact", "Next", "Previous", "Menu", "Search", "About us"),
    "zh": ("首頁", "登入", "註冊", "購物車", "聯絡我們", "下一頁", "上一頁", "選單", "搜尋", "關於我們"),
}
CALLS = {
    "en": ("Click here to buy cheap watches now.", "Order today and win a free phone.", "Best price, fast and free."),
    "zh": ("點這裡買便宜的手錶。", "今天下單就送免費手機。", "價格最好，又快又免費。"),
}
LOREM = (
    "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut labore et dolore magna "
    "aliqua. Ut enim ad minim veniam, quis nostrud exercitation ullamco laboris nisi ut aliquip ex ea commodo consequat."
)
SYMBOLS = "abcdefghijklmnopqrstuvwxyz0123456789#@$%"


def microwave(language: str, dice: Dice) -> str:
    """Thousands of m (r/microwavegang), or of 嗯: one run, runs between spaces, runs in lines, one beat for ever."""
    sound = "m" if language == "en" else "嗯"
    way = dice.below(5)
    if way == 0:
        return sound * (500 + dice.below(4000))
    if way == 1:
        return " ".join(sound * (1 + dice.below(60)) for _ in range(60 + dice.below(200)))
    if way == 2:
        return sound.upper() * (300 + dice.below(1200)) + " BEEP " * (1 + dice.below(5)) + sound * 300
    if way == 3:
        return "\n".join([sound * 3] * (60 + dice.below(300)))
    return (sound * 4 + " " + sound * 5 + " ") * (80 + dice.below(200))


def menu(language: str, dice: Dice) -> str:
    """Sixty to 120 lines of menu entries, most with a number."""
    return "\n".join(f"{dice.pick(MENU[language])} {dice.below(100)}" for _ in range(60 + dice.below(61)))


def numbers(language: str, dice: Dice) -> str:
    """A table that lost its words: 150 to 250 numbers."""
    return (" " if language == "en" else "，").join(str(dice.below(1_000_000)) for _ in range(150 + dice.below(101)))


def gibberish(language: str, dice: Dice) -> str:
    """Letters, digits and symbols (Chinese: Han characters) drawn at random, 800 to 1,500 of them."""
    if language == "zh":
        return "".join(chr(0x4E00 + dice.below(0x5000)) for _ in range(800 + dice.below(701)))
    return "".join(dice.pick(SYMBOLS) + (" " if dice.chance(0.12) else "") for _ in range(800 + dice.below(701)))


def calls(language: str, dice: Dice) -> str:
    """One call to buy, 20 to 60 times, after a few keywords."""
    gap = " " if language == "en" else ""
    few = " ".join(dice.pick(KEYWORDS[language]) for _ in range(10))
    return few + gap + gap.join([dice.pick(CALLS[language])] * (20 + dice.below(41)))


def mojibake(text: str) -> str:
    """UTF-8 read as cp1252 and saved again; the five bytes cp1252 lacks become the control characters of Latin-1."""
    return "".join(
        bytes([byte]).decode("latin-1" if byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else "cp1252")
        for byte in text.encode()
    )


# --- personal data -------------------------------------------------------------------------------------------------


def digits(n: int, dice: Dice) -> str:
    return "".join(str(dice.below(10)) for _ in range(n))


def email(dice: Dice) -> str:
    name = "".join(dice.pick("abcdefghiklmnoprstuw") for _ in range(6))
    return f"{name}.{digits(2, dice)}@{dice.pick(('mail', 'post', 'inbox'))}.{dice.pick(('org', 'com.tw', 'net'))}"


def phone(dice: Dice) -> str:
    """American, international, Chinese mobile, Taiwanese mobile or landline."""
    forms = (
        f"({2 + dice.below(8)}{digits(2, dice)}) 555-01{digits(2, dice)}",
        f"+44 20 7{digits(3, dice)} {digits(4, dice)}",
        f"1{dice.pick('3578')}{digits(9, dice)}",
        f"09{digits(2, dice)}-{digits(3, dice)}-{digits(3, dice)}",
        f"+886 2 2{digits(3, dice)} {digits(4, dice)}",
    )
    return dice.pick(forms)


def ip(dice: Dice) -> str:
    """A public IPv4 address, or one time in four an IPv6 one."""
    if dice.chance(0.25):
        return "2a00:1450:" + ":".join(f"{4096 + dice.below(61440):x}" for _ in range(6))
    return f"{dice.pick((23, 45, 66, 81, 104, 151, 185))}." + ".".join(str(1 + dice.below(254)) for _ in range(3))


def identity(dice: Dice) -> str:
    """A Chinese (GB 11643), Taiwanese or American identity number."""
    way = dice.below(3)
    if way == 0:
        body = f"{dice.pick(('110101', '310104', '440305'))}19{50 + dice.below(50)}{1 + dice.below(12):02d}"
        body += f"{1 + dice.below(28):02d}{digits(3, dice)}"
        return body + "10X98765432"[sum(int(d) * (2 ** (17 - i)) for i, d in enumerate(body)) % 11]
    if way == 1:
        letter, body = dice.pick("ABCDEFGH"), str(1 + dice.below(2)) + digits(7, dice)
        place = 10 + "ABCDEFGH".index(letter)
        total = place // 10 + 9 * (place % 10) + sum(int(d) * (8 - i) for i, d in enumerate(body))
        return letter + body + str(-total % 10)
    return f"{1 + dice.below(665):03d}-{1 + dice.below(99):02d}-{1 + dice.below(9999):04d}"


def card(dice: Dice) -> str:
    """Sixteen digits with Luhn's check digit, plain or in groups of four."""
    body = dice.pick(("4", "51", "55"))
    body += digits(15 - len(body), dice)
    total = sum(sum(divmod(int(d) * (2 - i % 2), 10)) for i, d in enumerate(body))
    number = body + str(-total % 10)
    return dice.pick(("", " ", "-")).join(number[i : i + 4] for i in range(0, 16, 4))


PERSONAL: dict[str, Callable[[Dice], str]] = {"email": email, "phone": phone, "ip": ip, "id": identity, "card": card}
PERSONAL_SENTENCE = {
    "en": {
        "email": "Write to {} for more.",
        "phone": "Call {} in the morning.",
        "ip": "The server stands at {} today.",
        "id": "The identity number is {} in full.",
        "card": "Please pay with card {} now.",
    },
    "zh": {
        "email": "請寫信到 {} 詢問。",
        "phone": "早上請打電話 {} 找我。",
        "ip": "伺服器的位址是 {} 沒錯。",
        "id": "身分證號碼是 {} 沒錯。",
        "card": "請用卡號 {} 付款。",
    },
}


def personal(language: str, dice: Dice) -> tuple[list[str], list[tuple[str, str]]]:
    """(sentences, the (kind, string) pairs in them): one to three kinds of personal data."""
    kinds = dice.sample(list(PERSONAL), 1 + dice.below(3))
    data = [(kind, PERSONAL[kind](dice)) for kind in kinds]
    return [PERSONAL_SENTENCE[language][kind].format(value) for kind, value in data], data
