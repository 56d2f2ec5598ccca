"""A tokenizer.json as the fields that llama.cpp reads from a GGUF file: byte-level BPE and sentencepiece BPE.

llama.cpp cuts a text by rules of its own, which a file can only name: `pre` is the name whose rule is the tokenizer's.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from gguf import GGUFWriter, TokenType

from fledge.text.foreign import GPT2_DIGITS, GPT2_PATTERN, load_tokenizer, pattern_of
from fledge.text.tokenizer import PATTERN, Tokenizer

_CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# (pattern, whether words of the vocabulary are taken whole) -> llama.cpp's name (src/llama-vocab.cpp)
_PRE = {
    (GPT2_PATTERN, False): "gpt-2",
    (GPT2_DIGITS, False): "smollm",
    (_CL100K % r"\p{N}", False): "qwen2",
    (_CL100K % r"\p{N}{1,3}", False): "dbrx",
    (_CL100K % r"\p{N}{1,3}", True): "llama-bpe",
}
_NEAREST = {PATTERN: "smollm"}
_OWN_NOTE = (
    "llama.cpp has no rule that cuts text exactly as our tokenizer does; written as 'smollm', the nearest: other tokens "
    "where several spaces stand before a digit, and rarely where Chinese characters touch letters or a space"
)


class Vocabulary(NamedTuple):
    """What a GGUF file says of a tokenizer; lists are by id."""

    model: str  # gpt2: byte-level BPE; llama: sentencepiece BPE
    pre: str
    tokens: list[str]
    types: list[TokenType]
    merges: list[str]  # of gpt2, in order
    scores: list[float]  # of llama: the higher, the earlier merged
    space_prefix: bool
    add_bos: bool  # whether a bare text is begun with bos
    notes: list[str]  # what a person should know


def read_vocabulary(tokenizer: Tokenizer, rows: int) -> Vocabulary:
    """The tokenizer of a model whose embedding has `rows` rows; those beyond the vocabulary are named [PADn].

    Raises ValueError for a tokenizer that llama.cpp has no rule for.
    """
    held = msgspec.json.decode(tokenizer.json, type=dict[str, Any])
    if held["model"].get("type", "BPE") != "BPE":
        raise ValueError(
            f"tokenizer of model {held['model']['type']}: only BPE is written to GGUF; export with --to hf"
        )
    words = {i: w for w, i in tokenizer.slow.get_vocab(with_added_tokens=True).items()}
    tokens = [words.get(i, f"[PAD{i}]") for i in range(rows)]
    add_bos = tokenizer.chat_format is None or _begins_with(tokenizer)
    if held["model"].get("byte_fallback"):
        types = _types(tokenizer, held, words, rows, bytes_apart=True)
        return Vocabulary("llama", "default", tokens, types, [], _scores(held, words, rows), _space_prefix(held), add_bos,
                          _normaliser_notes(held))  # fmt: skip
    pre, notes = _pre(held)
    merges = [m if isinstance(m, str) else " ".join(m) for m in held["model"]["merges"]]
    types = _types(tokenizer, held, words, rows, bytes_apart=False)
    return Vocabulary("gpt2", pre, tokens, types, merges, [], False, add_bos, notes + _normaliser_notes(held))


def write_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    """Add the tokenizer's fields, the ids of its control tokens and the chat template to a file."""
    v, format = vocabulary, tokenizer.format
    writer.add_tokenizer_model(v.model)
    writer.add_tokenizer_pre(v.pre)
    writer.add_token_list(v.tokens)
    writer.add_token_types(v.types)
    if v.merges:
        writer.add_token_merges(v.merges)
    if v.scores:
        writer.add_token_scores(v.scores)
    writer.add_bos_token_id(format.bos)
    writer.add_eos_token_id(format.eos)
    writer.add_eot_token_id(format.end)  # llama.cpp stops at either
    writer.add_pad_token_id(format.pad)
    writer.add_add_bos_token(v.add_bos)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(v.space_prefix)
    if format.template:
        writer.add_chat_template(format.template)


def _pre(held: dict[str, Any]) -> tuple[str, list[str]]:
    """(llama.cpp's name of the rule that cuts a text, notes)."""
    pattern, why = pattern_of(held.get("pre_tokenizer"))
    if name := _PRE.get((pattern, bool(held["model"].get("ignore_merges")))):
        return name, []
    if name := _NEAREST.get(pattern):
        return name, [_OWN_NOTE]
    raise ValueError(
        f"tokenizer with {why or f'the pattern {pattern!r}'}: llama.cpp has no such rule that is known here, it would cut "
        f"text otherwise; those known are {', '.join(_PRE.values())}: export with --to hf"
    )


def _types(
    tokenizer: Tokenizer, held: dict[str, Any], words: dict[int, str], rows: int, bytes_apart: bool
) -> list[TokenType]:
    added = {t["id"] for t in held.get("added_tokens") or []}
    unknown = held["model"].get("unk_token")

    def kind(i: int) -> TokenType:
        if i not in words:
            return TokenType.UNUSED
        if words[i] == unknown:
            return TokenType.UNKNOWN
        if i in tokenizer.special_ids:
            return TokenType.CONTROL
        if i in added:
            return TokenType.USER_DEFINED
        single = bytes_apart and len(words[i]) == 6 and words[i].startswith("<0x")
        return TokenType.BYTE if single else TokenType.NORMAL

    return [kind(i) for i in range(rows)]


def _scores(held: dict[str, Any], words: dict[int, str], rows: int) -> list[float]:
    """Minus the place of the first merge that makes a token: sentencepiece joins the pair of the highest score first."""
    place: dict[str, int] = {}
    for merge in held["model"]["merges"]:
        whole = "".join(merge if isinstance(merge, list) else merge.split(" ", 1))
        place.setdefault(whole, len(place) + 1)
    return [-float(place.get(words.get(i, ""), 0)) for i in range(rows)]


def _parts(held: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for key in ("normalizer", "pre_tokenizer"):
        part = held.get(key) or {}
        yield from part.get("normalizers") or part.get("pretokenizers") or [part]


def _space_prefix(held: dict[str, Any]) -> bool:
    """Whether a space is put before a text."""
    for part in _parts(held):
        if part.get("type") == "Prepend":
            return True
        if part.get("type") == "Metaspace":
            return (part.get("prepend_scheme") or "always") != "never"
    return False


def _normaliser_notes(held: dict[str, Any]) -> list[str]:
    if any(part.get("type") == "NFC" for part in _parts(held)):
        return ["llama.cpp does not compose accents (NFC) as this tokenizer does: text must come composed"]
    return []


def _begins_with(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer's own post-processor begins a bare text with bos."""
    ids = load_tokenizer(tokenizer.json).encode("a", add_special_tokens=True).ids
    return ids[0] == tokenizer.bos
