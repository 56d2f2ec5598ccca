"""The ChatFormat of an imported model, derived from its Jinja chat template by rendering probes (see sandbox.py).

A template is understood where a conversation is its messages with fixed text around each: between system and user, user
and assistant, assistant and user. That is what every instruct model's template writes for plain chats; one that does
more (thoughts cut from earlier answers, say) is refused with the difference, and ChatML offered in its place.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from fledge.text import template_probes as probes
from fledge.text.chat_format import JINJA, SPECIALS, ChatFormat, Place, Turn, Turns
from fledge.text.foreign import is_mark, load_tokenizer
from fledge.text.messages import Message
from fledge.text.template import render, render_prompt
from fledge.text.template_probes import Difference, Texts
from fledge.text.tokenizer import PATTERN, Tokenizer

Choice = Literal["model", "chatml", "none"]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


class Derived(NamedTuple):
    """What a checkpoint of the model keeps."""

    tokenizer: bytes  # tokenizer.json, with tokens added where the format needs them
    chat_format: ChatFormat | None  # card["chat_format"]; None where tokenizer and template are our own


def derive(tokenizer_json: bytes, names: Mapping[str, Any], template: str | None, choice: Choice = "model") -> Derived:
    """The form of a model's conversations.

    names: "bos_token", "eos_token", "pad_token", "mask_token", "cls_token", "sep_token" as text, "bos_token_id",
    "eos_token_id" (one or several), "pad_token_id", each where config files have it. template: the Jinja source.
    choice: the model's own template (no chats without one), ChatML in its place, or no chats at all.
    Raises ValueError for a tokenizer that is not supported, and for a template that is refused, with the difference.
    """
    if choice == "model" and _is_own(tokenizer_json, template):
        Tokenizer(tokenizer_json)
        return Derived(tokenizer_json, None)
    added: tuple[int, ...] = ()
    if choice == "chatml":
        tokenizer_json, added = _with_tokens(tokenizer_json, _CHATML_TOKENS)
    marks = _Marks(tokenizer_json)
    if choice == "chatml":
        begin = names.get("bos_token")
        if begin and begin not in _CHATML_TOKENS:  # spelled out, so that it is there wherever this is exported
            template = f"{{{{ {msgspec.json.encode(begin).decode()} }}}}{CHATML}"
        else:
            template = CHATML
    if choice == "none" or template is None:
        made = ChatFormat(**_controls(marks, names, None), name="none")
        Tokenizer(tokenizer_json, made)
        return Derived(tokenizer_json, made)
    tokens = {k: v for k, v in names.items() if k.endswith("_token") and isinstance(v, str)}
    try:
        made = _from_template(tokenizer_json, marks, names, template, tokens)
    except Difference as error:
        missing = sum(t not in marks.ids for t in _CHATML_TOKENS)
        cost = f"{missing} control tokens are added and trained" if missing else "the model has its control tokens"
        raise ValueError(
            f"the model's chat template cannot be used: {error}. Import it with `--template chatml` to train on ChatML "
            f"instead ({cost}), or with `--template none` for text without conversations"
        ) from error
    made = msgspec.structs.replace(made, name="chatml" if choice == "chatml" else "template", added=added)
    return Derived(tokenizer_json, made)


def _is_own(tokenizer_json: bytes, template: str | None) -> bool:
    """Whether this is what we export: our control tokens, our way to cut text, and our template or none."""
    held = msgspec.json.decode(tokenizer_json, type=dict[str, Any])
    names = {t.get("content") for t in held.get("added_tokens") or []}
    parts = (held.get("pre_tokenizer") or {}).get("pretokenizers") or [{}]
    cut = (parts[0].get("pattern") or {}).get("Regex")
    return names.issuperset(SPECIALS) and cut == PATTERN and template in (JINJA, None)


def _with_tokens(tokenizer_json: bytes, wanted: tuple[str, ...]) -> tuple[bytes, tuple[int, ...]]:
    """tokenizer.json with control tokens added behind the last id where they are absent, and the new ids."""
    held = msgspec.json.decode(tokenizer_json, type=dict[str, Any])
    there = load_tokenizer(tokenizer_json).get_vocab(with_added_tokens=True)
    absent, free = [w for w in wanted if w not in there], max(there.values()) + 1
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    new = [{"id": free + n, "content": word, **flags} for n, word in enumerate(absent)]
    if not new:
        return tokenizer_json, ()
    held["added_tokens"] = [*(held.get("added_tokens") or []), *new]
    return msgspec.json.encode(held), tuple(t["id"] for t in new)


class _Marks:
    """The control tokens of a tokenizer, found in text as `transformers` finds them in a rendered template."""

    def __init__(self, tokenizer_json: bytes):
        try:
            self.slow = load_tokenizer(tokenizer_json)
            added = msgspec.json.decode(tokenizer_json, type=dict[str, Any]).get("added_tokens") or []
            self.slow.encode_special_tokens = False
        except Exception as error:  # `tokenizers` raises nothing narrower
            raise ValueError(f"tokenizer.json cannot be read: {type(error).__name__}: {error}") from error
        marks = [t for t in added if is_mark(t)]
        self.ids = {t["content"]: t["id"] for t in marks}
        self.words = self.slow.get_vocab(with_added_tokens=True)
        # some tokens swallow the white space around them
        written = {
            t["content"]: (r"\s*" if t.get("lstrip") else "")
            + re.escape(t["content"])
            + (r"\s*" if t.get("rstrip") else "")
            for t in marks
        }
        self._find = re.compile("|".join(written[w] for w in sorted(written, key=len, reverse=True)) or r"(?!)")

    def first(self, text: str) -> tuple[str, int, str] | None:
        """(text before, id, text after) of the first control token; None without one."""
        found = self._find.search(text)
        return found and (text[: found.start()], self.ids[found[0].strip()], text[found.end() :])

    def split(self, text: str) -> tuple[str, str]:
        """(up to and with the last control token, the text after it)."""
        ends = [found.end() for found in self._find.finditer(text)]
        cut = ends[-1] if ends else 0
        return text[:cut], text[cut:]

    def encode(self, text: str, after: int | None = None) -> tuple[int, ...]:
        """Ids of fixed text, control tokens among them; `after` is the control token before it, None at the start."""
        start = "" if after is None else self.slow.id_to_token(after)
        ids = self.slow.encode(start + text, add_special_tokens=False).ids
        return tuple(ids[after is not None :])


def _controls(marks: _Marks, names: Mapping[str, Any], end: int | None) -> dict[str, Any]:
    """pad, bos, eos, mask and end of a ChatFormat."""

    def named(*keys: str) -> int | None:
        for key in keys:
            if (word := names.get(key)) is not None:
                if word not in marks.words:
                    raise ValueError(
                        f"{key} is {word!r}, which the tokenizer does not have: its files do not belong together"
                    )
                return marks.words[word]
        return None

    def numbered(key: str) -> list[int]:
        held = names.get(key)
        known = set(marks.ids.values())
        return [i for i in (held if isinstance(held, list) else [held]) if i in known]

    ends = [i for i in (named("eos_token", "sep_token"), *numbered("eos_token_id"), end) if i is not None]
    if not ends:
        raise ValueError(
            "no eos_token: neither tokenizer_config.json nor config.json names the token that ends a text; add it there"
        )
    # a chat model often calls the end of a turn its eos; a document ends with the other one, where there is one
    eos = next((i for i in ends if i != end), ends[0])
    bos = next((i for i in (named("bos_token", "cls_token"), *numbered("bos_token_id")) if i is not None), eos)
    pad = next((i for i in (named("pad_token"), *numbered("pad_token_id")) if i is not None), eos)
    return {"pad": pad, "bos": bos, "eos": eos, "mask": named("mask_token"), "end": eos if end is None else end}


def _from_template(
    tokenizer_json: bytes, marks: _Marks, names: Mapping[str, Any], template: str, tokens: Mapping[str, str]
) -> ChatFormat:
    """Derive, then compare with what the template writes. Raises Difference."""
    try:
        texts = probes.texts_of(template, tokens)
    except ValueError as error:
        raise Difference(str(error)) from error
    turns, end = _turns(texts, marks)
    made = ChatFormat(**_controls(marks, names, end), turns=turns, template=template)
    forging = "".join(_written(marks, turns)) or "<|im_end|>"
    chats = probes.trials(forging, with_system=turns.system is not None)
    tests = probes.rendered(template, tokens, chats)
    cut = [_check(texts, marks, chat, text) for chat, text in zip(chats, tests, strict=True)]
    tokenizer = Tokenizer(tokenizer_json, made)
    other = sum(_other_tokens(tokenizer, marks, chat, text) for chat, text in zip(chats, cut, strict=True))
    notes = _notes(texts, marks, template)
    if other:
        notes.append(
            f"{other} of {len(chats)} test chats are cut into other tokens beside a message than transformers cuts them; "
            "the text is the same"
        )
    return msgspec.structs.replace(made, notes=tuple(notes))


def _turns(texts: Texts, marks: _Marks) -> tuple[Turns, int]:
    """(the turns in ids, the token that ends the assistant's)."""
    found = marks.first(texts.assistant_user)
    if found is None or not texts.after.startswith(texts.assistant_user[: len(texts.assistant_user) - len(found[2])]):
        raise Difference(
            f"the assistant's turn ends in no control token ({texts.assistant_user[:60]!r} follows an answer), so an "
            "answer could not end itself"
        )
    tail, end, rest = found
    later = _opened(marks, rest, end, texts.strips["user_later"])
    before_answer = marks.first(texts.prompt)
    if before_answer is None:  # words alone divide the turns: they are encoded with the user's
        closing, user_tail, opening, place = (), texts.prompt, (), "inside"
    else:
        user_tail, mark, opened = before_answer
        closing, opening = (mark,), marks.encode(opened, mark)
        place = "inside" if marks.split(opened)[1] else "control"
    assistant = _turn(opening, (end,), texts.lead, tail, texts.strips["assistant"], place)
    closed = {"closing": closing, "tail": user_tail}
    user = msgspec.structs.replace(_opened(marks, texts.first, None, texts.strips["user"]), **closed)
    later = msgspec.structs.replace(later, **closed)
    turns = Turns(begin=(), user=user, user_later=later, assistant=assistant, no_system=texts.no_system)
    if texts.no_system:
        return turns, end
    system = _opened(marks, texts.first_system, None, texts.strips["system"])
    if (between := marks.first(texts.system_user)) is None:
        system = msgspec.structs.replace(system, tail=texts.system_user)
        after = _turn((), (), "", "", texts.strips["user_after_system"], "inside")
    else:
        system = msgspec.structs.replace(system, tail=between[0], closing=(between[1],))
        after = _opened(marks, between[2], between[1], texts.strips["user_after_system"])
    after = msgspec.structs.replace(after, **closed)
    return msgspec.structs.replace(turns, system=system, user_after_system=after), end


def _turn(opening: Any, closing: Any, lead: str, tail: str, strips: tuple[Any, Any], place: Place) -> Turn:
    return Turn(tuple(opening), tuple(closing), lead, tail, strips[0], strips[1], place)


def _opened(marks: _Marks, text: str, after: int | None, strips: tuple[Any, Any]) -> Turn:
    """A turn that begins with `text` behind the control token `after`; words right before the content are its lead."""
    fixed, lead = marks.split(text)
    place: Place = "start" if after is None and not fixed else "control"
    return _turn(marks.encode(fixed, after) if fixed else (), (), lead, "", strips, place)


def _written(marks: _Marks, turns: Turns) -> list[str]:
    """The control tokens of the turns, as a text that would forge one spells them."""
    ids = {*turns.assistant.opening, *turns.assistant.closing, *turns.user.opening, *turns.user.closing}
    return [word for word, i in marks.ids.items() if i in ids]


def _check(texts: Texts, marks: _Marks, chat: probes.Trial, text: str) -> str:
    """What the template wrote, without what follows the last answer's end. Raises Difference where ours is another."""
    ours, asks = texts.write(chat.messages), chat.messages[-1]["role"] == "user"
    if text != (whole := ours if asks else ours + texts.after):
        raise Difference(probes.difference(f"for {chat.name}", text, whole))
    return ours if asks else text[: len(text) - len(marks.first(texts.after)[2])]


def _other_tokens(tokenizer: Tokenizer, marks: _Marks, chat: probes.Trial, text: str) -> bool:
    """Whether transformers would cut this chat into other tokens. Raises Difference where ours mean another text."""
    messages = [Message(m["role"], m["content"]) for m in chat.messages]
    ours = render_prompt(tokenizer, messages) if messages[-1].role == "user" else render(tokenizer, messages).tokens
    if any(marks.first(m.content) for m in messages):  # transformers would read control tokens out of the text
        return False
    theirs = marks.slow.encode(text, add_special_tokens=False).ids
    if ours == theirs:
        return False
    said, meant = (marks.slow.decode(ids, skip_special_tokens=False) for ids in (ours, theirs))
    if said != meant:
        raise Difference(probes.difference(f"in tokens, for {chat.name}", meant, said))
    return True


def _notes(texts: Texts, marks: _Marks, template: str) -> list[str]:
    notes = []
    if texts.no_system:
        notes.append(f"system messages cannot be written: {texts.no_system}")
    default = texts.first.removeprefix(texts.first_system).removesuffix(texts.system_user)
    if (
        not texts.no_system
        and default
        and len(default) + len(texts.first_system + texts.system_user) == len(texts.first)
    ):
        notes.append(f"where no system message is given, the template writes one: {default!r}")
    if "strftime_now" in template:
        notes.append("the template writes today's date; here it is always 26 July 2024")
    for what, between in (("user's and assistant's", texts.prompt), ("assistant's and user's", texts.assistant_user)):
        if marks.first(between) is None:
            notes.append(f"only the words {between!r} divide {what} turns, so a text can imitate them")
    return notes
