"""Text to tokens and back: our own byte-level BPE, or the tokenizer of an imported model.

Ours is trained and exchanged by Hugging Face `tokenizers` and encoded in bulk by `tiktoken` (same tokens, faster); how
an imported one is read is in `foreign.py`. Text can never become a control token: encoding knows no specials, they are
added by id (see template.py).
"""

import codecs
from collections.abc import Iterable, Sequence
from pathlib import Path

import tiktoken
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from fledge.text.chat_format import SPECIALS, ChatFormat, Place, Turn, Turns, own_format
from fledge.text.foreign import ForeignEncoder, byte_of

__all__ = ["PATTERN", "SPECIALS", "StreamDecoder", "Tokenizer"]

# One Han character is one piece, so a Chinese name is cut alike wherever it stands; a number is its digits, so
# arithmetic sees places; other letters, with a leading space, are words as in GPT-2 (Radford et al. 2019, section 2.2).
PATTERN = r"\p{Han}|'(?:[sdmt]|ll|ve|re)| ?(?:(?!\p{Han})\p{L})+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


class _OwnEncoder:
    """Our own tokenizer's encoding. Where the text stands makes no difference to it."""

    fast, why_slow, drops_first_space = True, "", False

    def __init__(self, slow: tokenizers.Tokenizer, vocab: dict[str, int]):
        self.slow = slow
        self.special_ids = {vocab[s]: s for s in SPECIALS}
        table = byte_of()
        self.bytes = {i: bytes(table[c] for c in t) for t, i in vocab.items() if i not in self.special_ids}
        ranks = {data: i for i, data in self.bytes.items()}
        self._tiktoken = tiktoken.Encoding("fledge", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})

    def encode(self, text: str, place: Place) -> list[int]:
        return self._tiktoken.encode_ordinary(text)

    def encode_batch(self, texts: list[str], place: Place) -> list[list[int]]:
        return self._tiktoken.encode_ordinary_batch(texts, num_threads=2)


class Tokenizer:
    """ids <-> text. `pad`, `bos`, `eos`, `end`, `mask` are ids of the control tokens, `format` the form of conversations.

    bos and pad are always ids (see ChatFormat); mask is None where there is none. `system`, `user` and `assistant` are
    ids of our own tokenizer, None for an imported one, whose turns may begin with several tokens: see template.py.
    """

    def __init__(self, json_bytes: bytes, chat_format: ChatFormat | None = None):
        """json_bytes: a tokenizer.json. chat_format: None for our own tokenizer, else as card["chat_format"] holds it.

        Raises ValueError where control tokens are missing, or the tokenizer is of a kind that is not supported.
        """
        self.json, self.chat_format = json_bytes, chat_format
        self._encoder = _own(json_bytes) if chat_format is None else ForeignEncoder(json_bytes, chat_format)
        self.slow = self._encoder.slow
        self.special_ids: dict[int, str] = self._encoder.special_ids
        self._bytes = self._encoder.bytes
        self.vocab_size = max(max(self._bytes), max(self.special_ids)) + 1
        ids = {name: i for i, name in self.special_ids.items()}
        self.format = own_format(ids) if chat_format is None else chat_format
        self.pad, self.bos, self.eos, self.mask = self.format.pad, self.format.bos, self.format.eos, self.format.mask
        self.end = self.format.end
        self._turn_of = {} if self.format.turns is None else _turns_by_order(self.format)
        self.system, self.user, self.assistant = (
            ids[f"<|{role}|>"] if chat_format is None else None for role in ("system", "user", "assistant")
        )

    @property
    def turns(self) -> Turns:
        """The form of conversations. Raises ValueError where the model has none."""
        if self.format.turns is None:
            raise ValueError(
                "this model has no chat template, so it cannot read conversations: import it with `--template chatml` "
                "and train it with `fledge sft`"
            )
        return self.format.turns

    def turn(self, before: str | None, role: str) -> Turn:
        """How a message by `role` after one by `before` (None: the first) is written.

        Raises ValueError where the model's template has no form for it.
        """
        turn = self._turn_of.get((before, role))
        if turn is None:
            turns = self.turns
            if role == "system" and before is None:
                raise ValueError(
                    f"this model's chat template has no place for a system message ({turns.no_system}): put its "
                    "words into the user's first message, or import the model with `--template chatml`"
                )
            after = f"after one by {before}" if before else "first"
            raise ValueError(
                f"a message by {role} {after}: this model's chat template takes an optional system message, then user "
                "and assistant in turn"
            )
        return turn

    @property
    def fast(self) -> bool:
        """Whether `tiktoken` encodes; `why_slow` says why not."""
        return self._encoder.fast

    @property
    def why_slow(self) -> str:
        return self._encoder.why_slow

    @property
    def drops_first_space(self) -> bool:
        """Whether decoding takes off the space that encoding puts before a text (sentencepiece)."""
        return self._encoder.drops_first_space

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 2048) -> "Tokenizer":
        """Learn merges from `texts`. Raises ValueError when vocab_size cannot hold the bytes and control tokens."""
        least = 256 + len(SPECIALS)
        if vocab_size < least:
            raise ValueError(
                f"vocab_size = {vocab_size}: must be at least {least} (256 bytes + {len(SPECIALS)} control tokens)"
            )
        slow = tokenizers.Tokenizer(models.BPE())
        slow.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        slow.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIALS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        slow.train_from_iterator(texts, trainer)
        return cls(slow.to_str().encode("utf-8"))

    @classmethod
    def load(cls, path: Path | str, chat_format: ChatFormat | None = None) -> "Tokenizer":
        """Read tokenizer.json. Raises ValueError naming the file where it is none."""
        data = Path(path).read_bytes()
        try:
            return cls(data, chat_format)
        except Exception as error:  # `tokenizers` raises nothing narrower
            raise ValueError(f"{path} is damaged or no tokenizer of ours: {error}") from error

    def encode(self, text: str, place: Place = "start") -> list[int]:
        """Ordinary tokens of `text`; "<|end|>" written in it stays text. place: what the text follows."""
        return self._encoder.encode(text, place)

    def encode_batch(self, texts: Sequence[str], place: Place = "start") -> list[list[int]]:
        return self._encoder.encode_batch(list(texts), place)

    def token_bytes(self, token: int) -> bytes:
        """Bytes of one token; none for control tokens and ids beyond the vocabulary."""
        return self._bytes.get(token, b"")

    def token_text(self, token: int) -> str:
        """A token for people: control tokens by name, broken characters as their bytes."""
        return self.special_ids.get(token) or self.token_bytes(token).decode("utf-8", "backslashreplace")

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of the ordinary tokens; bytes that are not UTF-8 become U+FFFD."""
        data = b"".join(map(self.token_bytes, tokens))
        if self._encoder.drops_first_space and data.startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", "replace")


def _own(json_bytes: bytes) -> _OwnEncoder:
    slow = tokenizers.Tokenizer.from_str(json_bytes.decode("utf-8"))
    slow.encode_special_tokens = True
    vocab = slow.get_vocab(with_added_tokens=True)
    if missing := [s for s in SPECIALS if s not in vocab]:
        raise ValueError(
            f"tokenizer lacks the control tokens {', '.join(missing)}: train it with `fledge` or add them; that of "
            "another model is read with its chat format, see `fledge import`"
        )
    return _OwnEncoder(slow, vocab)


def _turns_by_order(chat_format: ChatFormat) -> dict[tuple[str | None, str], Turn]:
    """{(role of the message before or None, role): how it is written}; ours writes roles alike in any order."""
    turns = chat_format.turns
    if chat_format.name == "own":
        alike = {"system": turns.system, "user": turns.user, "assistant": turns.assistant}
        return {(before, role): turn for before in (None, *alike) for role, turn in alike.items()}
    found = {
        (None, "system"): turns.system, (None, "user"): turns.user, ("system", "user"): turns.user_after_system,
        ("user", "assistant"): turns.assistant, ("assistant", "user"): turns.user_later,
    }  # fmt: skip
    return {order: turn for order, turn in found.items() if turn is not None}


class StreamDecoder:
    """Turns tokens into text as they come, never splitting a character."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = tokenizer.drops_first_space  # before the first character, as `decode` does

    def push(self, token: int) -> str:
        """The characters this token completes, possibly none."""
        return self._push(self._tokenizer.token_bytes(token))

    def push_all(self, tokens: Iterable[int]) -> str:
        """The characters these tokens complete, several times faster than one by one."""
        return self._push(b"".join(map(self._tokenizer.token_bytes, tokens)))

    def _push(self, data: bytes) -> str:
        if self._drop_space and data:
            data, self._drop_space = data.removeprefix(b" "), False
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What an unfinished character leaves at the end of the stream."""
        return self._decoder.decode(b"", final=True)
