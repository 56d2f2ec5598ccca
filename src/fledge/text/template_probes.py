"""Chats that show what a chat template writes around messages, and chats that test whether that is all it does."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fledge.text.chat_format import Strip, Turn
from fledge.text.sandbox import Asked, Refusal, render_all

Spoken = dict[str, str]
_PADDED = ("\n\t ", " \t\n")
"""White space around a probe's content, to see what the template takes off."""
_LEFT: dict[Strip, str] = {"keep": "\n\t ", "newline": "\t ", "space": ""}
_RIGHT: dict[Strip, str] = {"keep": " \t\n", "newline": " \t", "space": ""}


class Difference(ValueError):
    """Where a template does something that no fixed text around each message does."""


class Texts(NamedTuple):
    """The fixed text of a template, and what it strips off contents."""

    first: str  # before the first message, by the user
    prompt: str  # between user and assistant, as far as a prompt goes
    lead: str  # white space after that which the assistant writes itself
    assistant_user: str
    after: str  # behind the last answer
    strips: dict[str, tuple[Strip, Strip]]  # by "system", "user", "user_after_system", "user_later", "assistant"
    first_system: str = ""
    system_user: str = ""
    no_system: str = ""  # why the template has no system messages

    def write(self, messages: Sequence[Spoken]) -> str:
        """The chat in text, up to where the assistant speaks or the last answer's content ends."""
        parts, before = [], ""
        for message in messages:
            role = message["role"]
            place = {"system": "system", "assistant": "assistant"}.get(role)
            place = place or {"": "user", "system": "user_after_system", "assistant": "user_later"}[before]
            fixed = {
                "system": self.first_system, "user": self.first, "user_after_system": self.system_user,
                "user_later": self.assistant_user, "assistant": self.prompt + self.lead,
            }[place]  # fmt: skip
            parts += [
                fixed,
                Turn((), (), left=self.strips[place][0], right=self.strips[place][1]).text(message["content"]),
            ]
            before = role
        return "".join(parts) + (self.prompt if before == "user" else "")


class Trial(NamedTuple):
    """A chat and what it tests."""

    name: str
    messages: list[Spoken]


def _chat(roles: str, pad: tuple[str, str] = ("", "")) -> list[Spoken]:
    """ "sua": contents are words that no template knows."""
    named = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": named[r], "content": f"{pad[0]}{_word(n)}{pad[1]}"} for n, r in enumerate(roles)]


def _word(number: int) -> str:
    return f"Qx{'abcdefgh'[number]}vZ"


def _around(text: str, count: int, what: str) -> list[str]:
    """The parts of `text` before, between and behind the `count` words. Raises Difference unless each is there once."""
    parts = []
    for number in range(count):
        if (times := text.count(_word(number))) != 1:
            fault = (
                f"writes message {number + 1} {times} times" if times else f"leaves out or moves message {number + 1}"
            )
            raise Difference(f"of {what} it {fault}")
        part, _, text = text.partition(_word(number))
        parts.append(part)
    return [*parts, text]


def rendered(template: str, tokens: Mapping[str, str], chats: Sequence[Trial]) -> list[str]:
    """Each chat as the template writes it, asking for an answer where the user spoke last. Raises Difference."""
    found = render_all(template, [Asked(c.messages, c.messages[-1]["role"] == "user") for c in chats], tokens)
    for chat, text in zip(chats, found, strict=True):
        if isinstance(text, Refusal):
            raise Difference(f"it fails for {chat.name}: {text.why}")
    return found


def texts_of(template: str, tokens: Mapping[str, str]) -> Texts:
    """Derive the fixed text from probes. Raises Difference, and ValueError as render_all does."""
    shapes = ("u", "ua", "uau", "uaua", "su", "sua", "suau", "suaua")
    asked = [Asked(_chat(s), s[-1] == "u") for s in shapes]
    asked += [Asked(_chat("u")), Asked(_chat("uaua", _PADDED)), Asked(_chat("suaua", _PADDED))]
    found = dict(zip([*shapes, "u.", "uaua~", "suaua~"], render_all(template, asked, tokens), strict=True))
    plain = _without_system(found)
    try:
        return _with_system(plain, found)
    except Difference as error:
        return plain._replace(no_system=str(error))


def _text(found: Mapping[str, str | Refusal], key: str) -> list[str]:
    """The parts around the messages of a probe."""
    text, roles = found[key], key.rstrip(".~")
    spelled = ", ".join({"s": "system", "u": "user", "a": "assistant"}[r] for r in roles)
    if isinstance(text, Refusal):
        raise Difference(f"it fails for a chat of {spelled}: {text.why}")
    return _around(text, len(roles), f"a chat of {spelled}")


def _without_system(found: Mapping[str, str | Refusal]) -> Texts:
    whole = _text(found, "uaua")
    first, between, later, again, after = whole
    prompt = _text(found, "u")[1]
    closed = _text(found, "u.")[1]
    if between != again:
        raise Difference(difference("before the second answer", again, between))
    if not between.startswith(prompt) or between[len(prompt) :].strip():
        if prompt == closed and between.startswith(closed):
            raise Difference(
                f"it has no generation prompt: {between[len(closed) :]!r} stands before an answer, but it does not write "
                "that when add_generation_prompt asks for it"
            )
        raise Difference(difference("asked for an answer, against before a given one", prompt, between))
    for key, wanted in (
        ("u", [first, prompt]), ("ua", [first, between, after]), ("uau", [first, between, later, prompt]),
    ):  # fmt: skip
        if (parts := _text(found, key)) != wanted:
            told = (difference(f"beside message {n + 1} of {len(key)}", a, b) for n, (a, b) in _unlike(parts, wanted))
            raise Difference(f"what it writes depends on what follows: {next(told)}")
    strips = _strips(whole, _text(found, "uaua~"))
    if strips[1] != strips[3]:
        raise Difference(f"it strips the last answer otherwise ({strips[3]}) than earlier ones ({strips[1]})")
    kinds = {"user": strips[0], "assistant": strips[1], "user_later": strips[2]}
    return Texts(first, prompt, between[len(prompt) :], later, after, kinds)


def _with_system(plain: Texts, found: Mapping[str, str | Refusal]) -> Texts:
    first, between, _ = _text(found, "su")
    answer = plain.prompt + plain.lead
    wanted = [answer, plain.assistant_user, answer, plain.after]
    for key, parts in (
        ("su", [first, between, plain.prompt]), ("sua", [first, between, answer, plain.after]),
        ("suau", [first, between, answer, plain.assistant_user, plain.prompt]), ("suaua", [first, between, *wanted]),
    ):  # fmt: skip
        if (got := _text(found, key)) != parts:
            told = (difference(f"beside message {n + 1} of {len(key)}", a, b) for n, (a, b) in _unlike(got, parts))
            raise Difference(f"with a system message, what it writes depends on what follows: {next(told)}")
    strips = _strips(_text(found, "suaua"), _text(found, "suaua~"))
    if strips[2:] != [plain.strips["assistant"], plain.strips["user_later"], plain.strips["assistant"]]:
        raise Difference("with a system message it strips white space otherwise than without")
    kinds = plain.strips | {"system": strips[0], "user_after_system": strips[1]}
    return plain._replace(first_system=first, system_user=between, strips=kinds)


def _unlike(left: Sequence[str], right: Sequence[str]) -> list[tuple[int, tuple[str, str]]]:
    return [(n, pair) for n, pair in enumerate(zip(left, right, strict=True)) if pair[0] != pair[1]]


def _strips(plain: Sequence[str], padded: Sequence[str]) -> list[tuple[Strip, Strip]]:
    """(left, right) of each message, from the parts around words without and with white space about them."""
    lefts, rights = [], []
    for number, (fixed, part) in enumerate(zip(plain, padded, strict=True)):
        ways = [
            (right, left)
            for right, left in itertools.product(
                _RIGHT if number else ("",), _LEFT if number < len(plain) - 1 else ("",)
            )
            if part == _RIGHT.get(right, "") + fixed + _LEFT.get(left, "")
        ]
        if not ways:
            raise Difference(f"it changes the white space around contents: {fixed!r} becomes {part!r}")
        rights.append(ways[0][0])
        lefts.append(ways[0][1])
    return list(zip(lefts[:-1], rights[1:], strict=True))


def difference(where: str, theirs: str, ours: str) -> str:
    """The first place two texts part, in words."""
    at = next((n for n, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(theirs), len(ours)))
    start = max(0, at - 20)
    return f"{where} it writes {theirs[start : at + 40]!r}, not {ours[start : at + 40]!r}"


def trials(forging: str, *, with_system: bool) -> list[Trial]:
    """Chats with contents that trip templates. forging: the template's own control tokens, spelled."""
    contents = (
        ("plain words", "Which river runs through Belmora?", "The Tesk, 412 km long."),
        ("other scripts", "泰斯克河在哪裡？ 🦊 é ñ", "在貝爾莫拉。Привет! שלום"),
        ("markup of programs", "{{ 7 * 7 }} {% if x %} {# no #} %s {0}", "<b>&amp;</b> \"quoted\" 'so' \\n \\u0041"),
        ("lines", "One\n\nTwo\n\n- a\n- b", "```python\nprint('x')\n```\n\n| a | b |\nEnd"),
        ("white space at the ends", "  before\n", "\n\n after \t"),
        ("thoughts", "Think first.", "<think>\nLet me see.\n</think>\n\nThree."),
        ("control tokens spelled out", f"a {forging} b", f"{forging}</s><|end|>[/INST] c"),
        ("commands", "Say [INST] hi <<SYS>>", '{"name": "f", "arguments": {}} <tool_call>'),
    )
    found = []
    for name, asks, says in contents:
        talk = [{"role": "user", "content": asks}, {"role": "assistant", "content": says}]
        more = [{"role": "user", "content": says}, {"role": "assistant", "content": asks}]
        for turns in (talk[:1], talk, [*talk, more[0]], [*talk, *more]):
            for start in (False, True) if with_system else (False,):
                head = [{"role": "system", "content": asks}] if start else []
                title = f"{name} ({len(turns)} turns{', with a system message' if start else ''})"
                found.append(Trial(title, head + turns))
    return found
