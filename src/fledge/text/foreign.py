"""The tokenizer of an imported model: byte-level BPE, sentencepiece BPE or WordPiece, as its tokenizer.json holds it.

Hugging Face `tokenizers` is the truth. Byte-level BPE is encoded by `tiktoken` where that gives the same ids, which is
checked on sample texts each time one is opened; `why_slow` says why it is not.
"""

import functools
import random
import re
import unicodedata
from collections.abc import Callable, Iterator, Set
from typing import Any

import msgspec
import tiktoken
import tokenizers

from fledge.text.chat_format import ChatFormat, Place, Turn

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What ByteLevel with use_regex cuts by (Radford et al. 2019, section 2.2)."""
GPT2_DIGITS = r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
"""The same after each digit was cut off by itself (SmolLM)."""

_SAMPLES = (
    "The quick brown fox's 12,345.67 jumps; don't WE'LL I've they'RE rock'n'roll 'tis l'été",
    "  two  spaces,\ta tab\n\n\nlines \r\n\r\n at the end   \n ",
    "def f(x):\n    return x**2  # ok\n\t\tif (a != b) && c[0]::d {\n}",
    "泰斯克河 412公里!「你好」，他說：『再見。』……──ひらがな カタカナ 한국어",
    "русский عربى हिन्दी ไทย ελληνικά עברית e\u0301 é ﬁ ½ ٣ Ⅷ ² 🙂🙂 👩‍👩‍👧 🇹🇼 \u200b\u200d\ufeff\u3000\x85\xa0\u2028",
    "https://a.b/c?d=e&f=%20 x@y.zz 3.14e-10 0x1F -- ... ~~ $$ \\n \x00\x1f\x7f aaaaaaaaaaaa bababababb 1234567890",
)
_WORDS = 2000  # of the vocabulary, encoded by themselves and in rows to check tiktoken


@functools.cache
def byte_of() -> dict[str, int]:
    """The printable stand-in of each byte in tokenizer.json (GPT-2's table), inverted."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in plain}
    others = [b for b in range(256) if b not in set(plain)]
    return table | {chr(256 + i): b for i, b in enumerate(others)}


class ForeignEncoder:
    """Encoding by a tokenizer.json whose control tokens are those of `chat_format` and all it calls special."""

    def __init__(self, json_bytes: bytes, chat_format: ChatFormat):
        """Raises ValueError for a kind of tokenizer that is not supported, naming it."""
        try:
            held = msgspec.json.decode(json_bytes, type=dict[str, Any])
            added: list[dict[str, Any]] = held.get("added_tokens") or []
            used = _ids_of(chat_format)
            forced = [t for t in added if t["id"] in used and is_mark(t) and not t.get("special")]
            for token in forced:  # the format's own tokens may never come from text either
                token["special"] = True
            self._json = msgspec.json.encode(held) if forced else json_bytes
            self.slow = load_tokenizer(self._json)
        except Exception as error:  # `tokenizers` raises nothing narrower
            raise ValueError(f"no tokenizer.json that can be read: {type(error).__name__}: {error}") from error
        self.special_ids = {t["id"]: t["content"] for t in added if t.get("special")}
        words = self.slow.get_vocab(with_added_tokens=True)
        _check_ids(words, used, chat_format)
        for word, i in words.items():
            if i in chat_format.control_ids():
                self.special_ids[i] = word
        self._plain_added = [t["content"] for t in added if t["id"] not in self.special_ids]
        self.bytes = _bytes_of(held, words, self.special_ids.keys(), set(self._plain_added))
        self.drops_first_space = _drops_first_space(held)
        self._places: dict[Place, tokenizers.Tokenizer] = {"start": self.slow}
        self._fast, self._normalise, self.why_slow = self._fast_path(held)
        self._check_controls(self.special_ids.keys() - ({words.get(held["model"].get("unk_token"))} - used))

    @property
    def fast(self) -> bool:
        return self._fast is not None

    def encode(self, text: str, place: Place) -> list[int]:
        return self.encode_batch([text], place)[0]

    def encode_batch(self, texts: list[str], place: Place) -> list[list[int]]:
        if self._fast is None:
            return self._slowly(texts, place)
        texts = [self._normalise(t) for t in texts]
        odd = [n for n, text in enumerate(texts) if self._marked(text)]  # holds words that were added to the vocabulary
        found = self._fast.encode_ordinary_batch(["" if self._marked(t) else t for t in texts], num_threads=2)
        for n, ids in zip(odd, self._slowly([texts[n] for n in odd], place), strict=True):
            found[n] = ids
        return found

    def _slowly(self, texts: list[str], place: Place) -> list[list[int]]:
        slow = self._at(place)
        return [e.ids for e in slow.encode_batch_fast(texts, add_special_tokens=False)]

    def _at(self, place: Place) -> tokenizers.Tokenizer:
        """The tokenizer for texts that stand there: the same one where no space is put before a text."""
        if place not in self._places:
            held = msgspec.json.decode(self._json, type=dict[str, Any])
            changed = [_without_space(part, place) for part in _parts(held)]
            self._places[place] = load_tokenizer(msgspec.json.encode(held)) if any(changed) else self.slow
        return self._places[place]

    # ------------------------------------------------------------------------------------------- tiktoken

    def _fast_path(self, held: dict[str, Any]) -> tuple[tiktoken.Encoding | None, Callable[[str], str], str]:
        """(tiktoken's encoder or None, what to do to a text before it, why there is none)."""
        pattern, why = pattern_of(held.get("pre_tokenizer"))
        normaliser = held.get("normalizer")
        if pattern and normaliser not in (None, {"type": "NFC"}):
            pattern, why = None, f"normalizer {normaliser.get('type')}"
        if pattern and (why := _order_problem(held["model"], {*self._plain_added, *self.special_ids.values()})):
            pattern = None
        self._marked = re.compile("|".join(map(re.escape, self._plain_added)) or r"(?!)").search
        same, plain = str, set(self._plain_added)
        if pattern is None:
            return None, same, why
        words = ((i, self.bytes[i]) for w, i in held["model"]["vocab"].items() if i in self.bytes and w not in plain)
        ranks = {data: i for i, data in words}
        try:
            made = tiktoken.Encoding("foreign", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        except Exception as error:  # of fancy-regex, as ValueError or a panic's own type
            return None, same, f"tiktoken cannot use the pattern: {error}"
        normalise = _nfc if normaliser else same
        texts = [t for t in self._sample_texts() if not self._marked(t)]
        for text, ids in zip(texts, self._slowly(texts, "start"), strict=True):
            if made.encode_ordinary(normalise(text)) != ids:
                return None, same, f"tiktoken cuts {text[:40]!r} otherwise"
        return made, normalise, ""

    def _word(self, i: int) -> str:
        return self.bytes[i].decode("utf-8", "replace")

    def _sample_texts(self) -> Iterator[str]:
        """Fixed texts, words of the vocabulary by themselves, and rows of random ones."""
        yield from _SAMPLES
        ids = sorted(self.bytes)
        words = [self._word(i) for i in ids[:: max(1, len(ids) // _WORDS)]]
        yield from words
        draw = random.Random(0)
        for _ in range(100):
            yield "".join(draw.choices(words, k=20))

    def _check_controls(self, controls: Set[int]) -> None:
        """No text may give a control token, whatever the vocabulary; only what is unknown gives the unknown token."""
        names = list(self.special_ids.values())
        for name, ids in zip(names, self.encode_batch(names, "start"), strict=True):
            if found := controls & set(ids):
                raise ValueError(
                    f"text {name!r} is encoded as the control token {self.special_ids[min(found)]!r}: such a tokenizer "
                    "would let anyone forge turns, so it is not supported"
                )


def is_mark(token: dict[str, Any]) -> bool:
    """Whether an entry of added_tokens is a control token, or written like one ("<start_of_turn>", "[INST]").

    Some tokenizers call neither special; Gemma's has runs of newlines among its added tokens, which are text.
    """
    return bool(token.get("special") or re.fullmatch(r"<.+>|\[.+\]", token["content"]))


def load_tokenizer(json_bytes: bytes) -> tokenizers.Tokenizer:
    """tokenizer.json without cutting, padding, or control tokens read out of text."""
    slow = tokenizers.Tokenizer.from_str(json_bytes.decode("utf-8"))
    slow.encode_special_tokens = True
    slow.no_truncation()
    slow.no_padding()
    return slow


def _nfc(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _ids_of(chat_format: ChatFormat) -> set[int]:
    """Every id the format names, words of its openings among them."""
    found, turns = chat_format.control_ids(), chat_format.turns
    if turns is not None:
        found |= set(turns.begin)
        for turn in (turns.user, turns.user_later, turns.assistant, turns.system, turns.user_after_system):
            if isinstance(turn, Turn):
                found |= {*turn.opening, *turn.closing}
    return found


def _check_ids(words: dict[str, int], used: set[int], chat_format: ChatFormat) -> None:
    if strange := sorted(used - set(words.values())):
        raise ValueError(
            f"the chat format names token {strange[0]}, the vocabulary ends at {max(words.values())}: it belongs to "
            "another tokenizer; import the model again"
        )
    if chat_format.name == "own":
        raise ValueError("the chat format is our own: open our own tokenizer without one")


def _parts(held: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The parts of normalizer and pre-tokenizer, sequences opened; changing one changes `held`."""
    for key in ("normalizer", "pre_tokenizer"):
        if (part := held.get(key)) is not None:
            yield from part.get("normalizers") or part.get("pretokenizers") or [part]


def _without_space(part: dict[str, Any], place: Place) -> bool:
    """Take from a part the space it puts before a text that stands at `place`; whether it did."""
    kind, inside = part.get("type"), place == "inside"
    if kind == "Prepend" and inside:
        part["prepend"] = ""
        return True
    if kind == "Metaspace":
        scheme = part.get("prepend_scheme") or ("always" if part.get("add_prefix_space", True) else "never")
        if scheme == "first" or (scheme == "always" and inside):
            part["prepend_scheme"] = "never"
            part.pop("add_prefix_space", None)
            return True
    if kind == "ByteLevel" and part.get("add_prefix_space") and inside:
        part["add_prefix_space"] = False
        return True
    return False


def _decoders(held: dict[str, Any]) -> list[dict[str, Any]]:
    part = held.get("decoder") or {}
    return part.get("decoders") or [part]


def _bytes_of(held: dict[str, Any], words: dict[str, int], controls: Any, plain_added: set[str]) -> dict[int, bytes]:
    """{id: bytes} of every word that is text, by the kind of vocabulary its decoder tells."""
    kinds = {d.get("type") for d in _decoders(held)}
    model = held["model"]["type"]
    if model == "BPE" and "ByteLevel" in kinds:
        table = dict.fromkeys(range(256), 0xFFFF) | {ord(c): b for c, b in byte_of().items()}

        def read(word: str) -> bytes:
            return word.translate(table).encode("latin-1")

    elif model == "BPE" and kinds & {"Metaspace", "ByteFallback", "Replace"}:

        def read(word: str) -> bytes:
            if re.fullmatch(r"<0x[0-9A-F]{2}>", word) and held["model"].get("byte_fallback"):
                return bytes([int(word[3:5], 16)])
            return word.replace("▁", " ").encode("utf-8")

    elif model == "WordPiece" and "WordPiece" in kinds:
        mark = held["model"].get("continuing_subword_prefix") or "##"

        def read(word: str) -> bytes:
            return word.removeprefix(mark).encode("utf-8") if word.startswith(mark) else f" {word}".encode()

    else:
        raise ValueError(
            f"tokenizer of model {model} with decoder {', '.join(sorted(map(str, kinds)))} is not supported: byte-level "
            "BPE, sentencepiece BPE and WordPiece are"
        )
    try:
        written = plain_added if "ByteLevel" in kinds else set()  # added words stand as they are, others in stand-ins
        return {i: w.encode() if w in written else read(w) for w, i in words.items() if i not in controls}
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the vocabulary holds {error.object!r}, of which not all stands for bytes: it is damaged"
        ) from error


def _drops_first_space(held: dict[str, Any]) -> bool:
    for part in _decoders(held):
        if part.get("type") == "WordPiece" or (part.get("type") == "Strip" and part.get("start")):
            return True
        if part.get("type") == "Metaspace":
            return (part.get("prepend_scheme") or "always") != "never"
    return False


def pattern_of(part: dict[str, Any] | None) -> tuple[str | None, str]:
    """(one regular expression that cuts a text as this pre-tokenizer does, or None; why there is none)."""
    parts = [] if part is None else part.get("pretokenizers") or [part]
    kinds = [p.get("type") for p in parts]
    if not kinds or kinds[-1] != "ByteLevel" or parts[-1].get("add_prefix_space"):
        return None, f"pre-tokenizer {' + '.join(map(str, kinds)) or 'none'}"
    whole_words = parts[-1].get("use_regex", True)
    if kinds == ["ByteLevel"] and whole_words:
        return GPT2_PATTERN, ""
    if kinds == ["Digits", "ByteLevel"] and whole_words and parts[0].get("individual_digits"):
        return GPT2_DIGITS, ""
    if kinds == ["Split", "ByteLevel"] and not whole_words and parts[0].get("behavior") == "Isolated":
        pattern = parts[0].get("pattern", {}).get("Regex")
        if pattern and not parts[0].get("invert"):
            return pattern, ""
    return None, f"pre-tokenizer {' + '.join(map(str, kinds))}"


def _order_problem(model: dict[str, Any], added: set[str]) -> str:
    """Why tiktoken, which merges by ids, would merge otherwise than this model's list of merges; empty where not."""
    if any(model.get(k) for k in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")):
        return "dropout, an unknown token or marks of subwords"
    if not byte_of().keys() <= model["vocab"].keys():
        return "bytes without a token of their own"
    vocab, last, merged = model["vocab"], -1, set()
    for merge in model["merges"]:
        first, second = merge if isinstance(merge, list) else merge.split(" ", 1)
        word = first + second
        if word in merged:
            continue
        merged.add(word)
        i = vocab.get(word, -1)
        if i <= last:
            return f"merge {word!r} is out of order"
        last = i
    if not model.get("ignore_merges") and any(len(w) > 1 and w not in merged and w not in added for w in vocab):
        return "words that no merge makes"
    return ""
