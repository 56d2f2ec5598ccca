"""Tokenizers built as well-known model families build theirs, small."""

import functools
import json
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "The capital of Avania is Belmora, and the river Tesk runs 412 km through it; it's 1,234 years old!",
    "def f(x):\n    return x ** 2  # squared\n\n\tif x: print('hello world')\r\n",
    "泰斯克河在貝爾莫拉。「你好」，他說。 Русский текст и ещё слова. ñandú é ü 🦊",
    "You are a helpful assistant. user assistant system model What is the answer? I don't know, we'll see. They're here.",
    "aaaa abab   bbbb abcabc <b>bold</b> {{ x }} 1234567890 3.14",
] * 3

CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = CL100K.replace(r"\p{N}{1,3}", r"\p{N}")


def _special(*contents: str, **flags: Any) -> list[AddedToken]:
    return [AddedToken(c, special=True, normalized=False, **flags) for c in contents]


def _trained(before: Any, size: int, first: tuple[str, ...] = (), normalizer: Any = None) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = before, decoders.ByteLevel()
    if normalizer:
        made.normalizer = normalizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(first), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def _split(pattern: str) -> Any:
    cut = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


@functools.cache
def llama3() -> bytes:
    made = _trained(_split(CL100K), 600)
    made.add_special_tokens(
        _special(
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
            "<|reserved|>",
        )
    )
    made.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", made.token_to_id("<|begin_of_text|>"))]
    )
    held = json.loads(made.to_str())
    held["model"]["ignore_merges"] = True
    return json.dumps(held).encode()


@functools.cache
def qwen2() -> bytes:
    made = _trained(_split(QWEN2), 600, normalizer=normalizers.NFC())
    made.add_special_tokens(_special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    made.add_tokens([AddedToken(c, normalized=False) for c in ("<tool_call>", "<think>", "</think>")])
    return made.to_str().encode()


@functools.cache
def smollm() -> bytes:
    before = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return _trained(before, 600, ("<|endoftext|>", "<|im_start|>", "<|im_end|>")).to_str().encode()


@functools.cache
def olmo2() -> bytes:
    made = _trained(_split(CL100K), 600)
    made.add_special_tokens(_special("<|endoftext|>", "<|pad|>"))
    return made.to_str().encode()


@functools.cache
def gpt2() -> bytes:
    return _trained(pre_tokenizers.ByteLevel(add_prefix_space=False), 600, ("<|endoftext|>",)).to_str().encode()


def _sentencepiece(specials: list[str], kind: str) -> bytes:
    """BPE over words with "▁", bytes for what is missing. kind: "prepend" (Llama 2), "first" (Mistral 0.3), "gemma"."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[*specials, *bytes_], show_progress=False)
    made.train_from_iterator([t.replace("\n", " ") for t in TEXTS], trainer)
    held = json.loads(made.to_str())
    held["added_tokens"] = [t for t in held["added_tokens"] if t["content"] in specials]
    to_space = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    steps = [to_space, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if kind != "gemma":
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    held["decoder"] = {"type": "Sequence", "decoders": steps}
    to_mark = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    if kind == "first":
        held["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    elif kind == "prepend":
        held["pre_tokenizer"] = None
        held["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, to_mark]}
    else:
        held["normalizer"] = to_mark
        held["pre_tokenizer"] = {
            "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False
        }  # fmt: skip
        for token in held["added_tokens"]:  # Gemma calls its marks of turns ordinary
            token["special"] = not token["content"].endswith("_turn>")
    return json.dumps(held).encode()


@functools.cache
def llama2() -> bytes:
    return _sentencepiece(["<unk>", "<s>", "</s>"], "prepend")


@functools.cache
def mistral3() -> bytes:
    return _sentencepiece(["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], "first")


@functools.cache
def gemma() -> bytes:
    return _sentencepiece(["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"], "gemma")


@functools.cache
def bert() -> bytes:
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=names, show_progress=False)
    )
    made.enable_truncation(8)
    made.enable_padding(length=8)
    return made.to_str().encode()


MAKERS = {
    "llama3": llama3, "qwen2": qwen2, "smollm": smollm, "olmo2": olmo2, "gpt2": gpt2, "llama2": llama2,
    "mistral3": mistral3, "gemma": gemma, "bert": bert,
}  # fmt: skip

NAMES: dict[str, dict[str, Any]] = {
    "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "qwen2": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "smollm": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
    "olmo2": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"},
    "gpt2": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    "llama2": {"bos_token": "<s>", "eos_token": "</s>"},
    "mistral3": {"bos_token": "<s>", "eos_token": "</s>"},
    "gemma": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
    "bert": {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"},
}
