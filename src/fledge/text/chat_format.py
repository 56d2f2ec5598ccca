"""How a model's conversations are written in token ids: what stands before and after each message.

Our own form is `own_format`; that of an imported model is derived from its chat template by `chat_template.py` and kept
in its checkpoints as card["chat_format"].
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

SPECIALS = ("<|pad|>", "<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|mask|>")

JINJA = (
    "<|bos|>{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)  # our template for the ecosystem's tokenizer_config.json

Strip = Literal["keep", "space", "newline"]
Place = Literal["start", "control", "inside"]
"""Where a text is encoded: at the very start, after a control token, or going on from other text."""


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message in ids: opening + encode(lead + content + tail) + closing.

    Words next to the content are encoded together with it, as `transformers` does, wherever no control token divides
    them; the assistant's opening alone is all ids, for it is what a prompt ends with.
    """

    opening: tuple[int, ...]
    "Ids before the content."
    closing: tuple[int, ...]
    "Ids after the content; for the assistant the one end token, which is trained."
    lead: str = ""
    "Text before the content, encoded together with it."
    tail: str = ""
    "Text after the content, encoded together with it."
    left: Strip = "keep"
    "What the template takes off the content's start: nothing, white space, or newlines."
    right: Strip = "keep"
    "What the template takes off the content's end."
    place: Place = "control"
    "What the encoded text follows: sentencepiece puts a space before some of them."

    def text(self, content: str) -> str:
        """What is encoded for a message."""
        if self.left != "keep":
            content = content.lstrip(None if self.left == "space" else "\n")
        if self.right != "keep":
            content = content.rstrip(None if self.right == "space" else "\n")
        return self.lead + content + self.tail


class Turns(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A conversation: an optional system message, then user and assistant in turn."""

    begin: tuple[int, ...]
    "Ids before everything else."
    user: Turn
    "The user's first message where no system message was given; its opening holds a default system prompt."
    user_later: Turn
    "The user's message after the assistant's."
    assistant: Turn
    "Its opening is what a prompt ends with, its closing the end token."
    system: Turn | None = None
    "None where the template has no place for one; `no_system` says why."
    user_after_system: Turn | None = None
    "The user's first message after a system message; None without one."
    no_system: str = ""
    "Why a system message cannot be written."


class ChatFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The control tokens of a tokenizer and the form of its conversations."""

    pad: int
    "Fills rows, never trained; the end of a document where the model has no token of its own for it."
    bos: int
    "Begins a document; the end of a document where the model has no token of its own for it."
    eos: int
    "Ends a document."
    mask: int | None = None
    "Hides a position (BERT)."
    end: int
    "Ends the assistant's turn and is trained; eos where there are no turns."
    turns: Turns | None = None
    "None for a model without chat template."
    name: Literal["own", "template", "chatml", "none"] = "template"
    "Where the turns come from."
    template: str = ""
    "The Jinja chat template they stand for, for export."
    added: tuple[int, ...] = ()
    "Ids that were added to the tokenizer for this format: their embedding rows are new and must be trained."
    notes: tuple[str, ...] = ()
    "What a person should know about the derivation."

    def control_ids(self) -> set[int]:
        """Ids that stand for no text: pad, bos, eos, mask, end. Those of the turns are told by the tokenizer."""
        return {self.pad, self.bos, self.eos, self.end} | ({self.mask} - {None})


def own_format(ids: Mapping[str, int]) -> ChatFormat:
    """Our own form, of the ids of SPECIALS: <bos>(<system>s<end>)?(<user>u<end><assistant>a<end>)*."""
    end = (ids["<|end|>"],)
    system, user, assistant = (Turn((ids[f"<|{role}|>"],), end) for role in ("system", "user", "assistant"))
    turns = Turns(
        begin=(ids["<|bos|>"],), user=user, user_later=user, assistant=assistant, system=system, user_after_system=user
    )
    return ChatFormat(
        pad=ids["<|pad|>"], bos=ids["<|bos|>"], eos=ids["<|eos|>"], mask=ids["<|mask|>"], end=end[0], turns=turns,
        name="own", template=JINJA,
    )  # fmt: skip
