"""Byte-level BPE: trained and exchanged by Hugging Face `tokenizers`, encoded in bulk by `tiktoken` (same tokens, faster).

Text can never become a control token: encoding knows no specials, they are added by id (see template.py).
"""

import codecs
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

import tiktoken
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

SPECIALS = ("<|pad|>", "<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|mask|>")

# One Han character is one piece, so a Chinese name is cut alike wherever it stands; a number is its digits, so
# arithmetic sees places; other letters, with a leading space, are words as in GPT-2 (Radford et al. 2019, section 2.2).
PATTERN = r"\p{Han}|'(?:[sdmt]|ll|ve|re)| ?(?:(?!\p{Han})\p{L})+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@functools.cache
def _byte_of() -> dict[str, int]:
    """The printable stand-in of each byte in tokenizer.json (GPT-2's table), inverted."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in plain}
    others = [b for b in range(256) if b not in set(plain)]
    return table | {chr(256 + i): b for i, b in enumerate(others)}


class Tokenizer:
    """ids <-> text. `pad`, `bos`, `eos`, `system`, `user`, `assistant`, `end`, `mask` are ids of the control tokens."""

    def __init__(self, json_bytes: bytes):
        self.json = json_bytes
        self.slow = tokenizers.Tokenizer.from_str(json_bytes.decode("utf-8"))
        self.slow.encode_special_tokens = True
        vocab = self.slow.get_vocab(with_added_tokens=True)
        missing = [s for s in SPECIALS if s not in vocab]
        if missing:
            raise ValueError(
                f"tokenizer lacks the control tokens {', '.join(missing)}: train it with `fledge` or add them"
            )
        self.vocab_size = max(vocab.values()) + 1
        self.pad, self.bos, self.eos, self.system, self.user, self.assistant, self.end, self.mask = (
            vocab[s] for s in SPECIALS
        )
        self.special_ids = {vocab[s]: s for s in SPECIALS}
        table = _byte_of()
        self._bytes = {i: bytes(table[c] for c in t) for t, i in vocab.items() if i not in self.special_ids}
        ranks = {data: i for i, data in self._bytes.items()}
        self._fast = tiktoken.Encoding("fledge", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})

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
    def load(cls, path: Path | str) -> "Tokenizer":
        """Read tokenizer.json. Raises ValueError naming the file where it is none."""
        data = Path(path).read_bytes()
        try:
            return cls(data)
        except Exception as error:  # `tokenizers` raises nothing narrower
            raise ValueError(f"{path} is damaged or no tokenizer of ours: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Ordinary tokens of `text`; "<|end|>" written in it stays text."""
        return self._fast.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._fast.encode_ordinary_batch(list(texts), num_threads=2)

    def token_bytes(self, token: int) -> bytes:
        """Bytes of one token; none for control tokens and ids beyond the vocabulary."""
        return self._bytes.get(token, b"")

    def token_text(self, token: int) -> str:
        """A token for people: control tokens by name, broken characters as their bytes."""
        return self.special_ids.get(token) or self.token_bytes(token).decode("utf-8", "backslashreplace")

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of the ordinary tokens; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", "replace")


class StreamDecoder:
    """Turns tokens into text as they come, never splitting a character."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The characters this token completes, possibly none."""
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def push_all(self, tokens: Iterable[int]) -> str:
        """The characters these tokens complete, several times faster than one by one."""
        return self._decoder.decode(b"".join(map(self._tokenizer.token_bytes, tokens)))

    def finish(self) -> str:
        """What an unfinished character leaves at the end of the stream."""
        return self._decoder.decode(b"", final=True)
