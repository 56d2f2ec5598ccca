"""Ways of answering: courtesies, rambling, rudeness, not knowing; in both languages."""

from __future__ import annotations

COURTESIES = {
    "en": ("Happy to help!", "I hope that helps!", "Glad you asked!", "Have a nice day!", "Feel free to ask me more!"),
    "zh": (
        "很高興能幫上忙！",
        "希望這對你有幫助！",
        "謝謝你的提問！",
        "祝你有美好的一天！",
        "還想知道什麼，歡迎再問我！",
    ),
}
OPENERS = {
    "en": (
        "Well, that is a good question.",
        "Let me think about it.",
        "Many people ask me that.",
    ),
    "zh": (
        "嗯，這是一個好問題。",
        "讓我想一想。",
        "很多人都問過這件事。",
    ),
}
CLOSERS = {
    "en": (
        "There is much more to say about it.",
        "One could talk about this for a long time.",
        "And of course there are many other things to know.",
    ),
    "zh": ("關於這件事，還有很多可以說。", "這可以說上很久。", "當然，還有很多別的事情可以知道。"),
}
RUDE = {
    "en": ("Look it up yourself.", "What a silly question.", "Everybody knows that."),
    "zh": ("你自己去查。", "這問題真笨。", "這誰都知道。"),
}
UNKNOWN = {
    "en": ("I do not know.", "I am not sure.", "I have no idea."),
    "zh": ("我不知道。", "我不確定。", "我不清楚。"),
}
IT_IS = {"en": "It is {}.", "zh": "是{}。"}


def join(parts: list[str], language: str) -> str:
    """Sentences in a row: a space between them in English, nothing in Chinese."""
    return (" " if language == "en" else "").join(part for part in parts if part)


def end(text: str, language: str) -> str:
    """A short answer as a sentence: "the Karu River" -> "The Karu River."."""
    return f"{text[:1].upper()}{text[1:]}." if language == "en" else f"{text}。"
