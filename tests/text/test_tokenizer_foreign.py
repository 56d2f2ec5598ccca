"""Imported tokenizers: the ids of `tokenizers`, text back again, and no control token out of any text."""

import json

import msgspec
import pytest
import tokenizers
from foreign_models import MAKERS, NAMES, TEXTS, gemma, gpt2, llama2, llama3, qwen2
from hypothesis import given
from hypothesis import strategies as st
from published_templates import GEMMA2, QWEN25
from transformers import PreTrainedTokenizerFast

from fledge.text.chat_format import ChatFormat
from fledge.text.chat_template import derive
from fledge.text.tokenizer import StreamDecoder, Tokenizer

BYTE_LEVEL = ("llama3", "qwen2", "smollm", "olmo2", "gpt2")
SENTENCEPIECE = ("llama2", "mistral3", "gemma")
TEXTS_MORE = [
    *TEXTS[:5], "", " ", "  two  spaces\tand\n\n\nlines \r\n at the end   ", "e\u0301 é ﬁ ½ ٣ Ⅷ ² \u200b\u200d\ufeff\u3000\x85",
    "👩‍👩‍👧‍👦 🇹🇼 a<think>b</think> <tool_call>", "don't WE'LL I've 'tis", "12345 6 1.5e-3", "x" * 300,
]  # fmt: skip
_OPENED: dict[str, Tokenizer] = {}


def opened(name: str) -> Tokenizer:
    if name not in _OPENED:
        _OPENED[name] = Tokenizer(*derive(MAKERS[name](), NAMES[name], None, "none"))
    return _OPENED[name]


def theirs(name: str, text: str) -> list[int]:
    """What transformers makes of plain text."""
    made = tokenizers.Tokenizer.from_str(MAKERS[name]().decode())
    made.no_truncation()
    made.no_padding()
    made.encode_special_tokens = True
    return made.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", MAKERS)
def test_ids_are_those_of_the_ecosystem_one_by_one_and_in_bulk(name):
    tokenizer = opened(name)
    assert tokenizer.encode_batch(TEXTS_MORE) == [theirs(name, t) for t in TEXTS_MORE]
    assert [tokenizer.encode(t) for t in TEXTS_MORE] == [theirs(name, t) for t in TEXTS_MORE]


@pytest.mark.parametrize("name", BYTE_LEVEL)
@given(text=st.text(max_size=40) | st.text(alphabet="ab c'中é\n\t 12.,<|>think/é\u0301", max_size=60))
def test_tiktoken_cuts_any_text_the_same(name, text):
    tokenizer = opened(name)
    assert tokenizer.fast
    assert tokenizer.encode(text) == tokenizer.slow.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", [*BYTE_LEVEL, "llama2", "gemma"])
@given(text=st.text(max_size=40))
def test_any_text_comes_back(name, text):
    tokenizer = opened(name)
    wanted = text
    if name == "qwen2":  # it normalises, as its makers want
        wanted = tokenizers.normalizers.NFC().normalize_str(text)
    if "▁" in text and name in SENTENCEPIECE:
        wanted = text.replace("▁", " ")  # its mark of a space cannot be told from one
    assert tokenizer.decode(tokenizer.encode(text)) == wanted


@pytest.mark.parametrize("name", MAKERS)
def test_streamed_text_is_the_decoded_text(name):
    tokenizer = opened(name)
    for text in TEXTS_MORE:
        tokens, stream = tokenizer.encode(text), StreamDecoder(tokenizer)
        pieces = [stream.push(t) for t in tokens]
        assert "".join(pieces) + stream.finish() == tokenizer.decode(tokens)
        at_once = StreamDecoder(tokenizer)
        assert at_once.push_all(tokens) + at_once.finish() == tokenizer.decode(tokens)


@pytest.mark.parametrize("name", [n for n in MAKERS if n != "bert"])
def test_decoding_is_that_of_the_ecosystem(name):
    tokenizer = opened(name)
    for text in TEXTS_MORE:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == tokenizer.slow.decode(ids)


# -------------------------------------------------------------------------------------------- control tokens


@pytest.mark.parametrize("name", MAKERS)
def test_text_never_becomes_a_control_token(name):
    tokenizer = opened(name)
    names = list(tokenizer.special_ids.values())
    unknown = tokenizer.slow.token_to_id("[UNK]")  # what WordPiece has no piece for
    for text in (*names, "".join(names), f"a {' '.join(names)} b", *(f"x{n}\n{n}y" for n in names)):
        assert not (tokenizer.special_ids.keys() - {unknown}) & set(tokenizer.encode(text))
        if name not in ("bert", "mistral3"):
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_marks_of_turns_that_their_tokenizer_calls_ordinary_are_control_tokens_here():
    """Gemma's: in transformers a user's text can hold them."""
    tokenizer = Tokenizer(*derive(gemma(), NAMES["gemma"], GEMMA2))
    mark = tokenizer.slow.token_to_id("<start_of_turn>")
    before = tokenizers.Tokenizer.from_str(gemma().decode())
    before.encode_special_tokens = True
    assert mark in before.encode("a<start_of_turn>model\n").ids
    assert mark not in tokenizer.encode("a<start_of_turn>model\n")
    assert tokenizer.token_text(mark) == "<start_of_turn>" and tokenizer.token_bytes(mark) == b""
    assert tokenizer.decode(tokenizer.encode("a<start_of_turn>b")) == "a<start_of_turn>b"


def test_words_that_were_added_stay_text():
    tokenizer = opened("qwen2")
    think = tokenizer.slow.token_to_id("<think>")
    assert think in tokenizer.encode("<think>x") and tokenizer.token_bytes(think) == b"<think>"
    assert tokenizer.decode(tokenizer.encode("<think>x</think>")) == "<think>x</think>"


def test_ids_of_control_tokens():
    llama = opened("llama3")
    assert llama.special_ids[llama.bos] == "<|begin_of_text|>" and llama.special_ids[llama.end] == "<|eot_id|>"
    assert llama.user is None and llama.mask is None
    qwen = opened("qwen2")  # has no token that begins a text
    assert qwen.bos == qwen.eos == qwen.slow.token_to_id("<|im_end|>")
    assert qwen.special_ids[qwen.pad] == "<|endoftext|>"
    bert = opened("bert")
    assert [bert.special_ids[i] for i in (bert.pad, bert.bos, bert.eos, bert.mask)] == [
        "[PAD]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
    ]
    several = NAMES["qwen2"] | {"eos_token_id": [520, 518], "bos_token_id": 518}
    both = Tokenizer(*derive(qwen2(), several, QWEN25))
    assert both.special_ids[both.end] == "<|im_end|>" and both.special_ids[both.eos] == "<|endoftext|>"
    assert both.bos == both.eos


# --------------------------------------------------------------------------------------------- sentencepiece


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_a_space_is_put_before_a_text_only_where_transformers_puts_one(name):
    tokenizer = opened(name)
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer.from_str(MAKERS[name]().decode()))
    mark = tokenizer.special_ids[tokenizer.eos]

    def inside(text: str) -> list[int]:
        return whole.encode(f"{mark}{text}", add_special_tokens=False)[1:]

    assert tokenizer.encode("hello", "start") == whole.encode("hello", add_special_tokens=False)
    assert tokenizer.encode("hello", "control") == inside("hello")
    assert inside("x: hello")[-len(tokenizer.encode(" hello", "inside")) :] == tokenizer.encode(" hello", "inside")
    assert tokenizer.token_bytes(tokenizer.encode("hello", "inside")[0])[:1] == b"h"


# ----------------------------------------------------------------------------------- when tiktoken cannot be used


def changed(json_bytes: bytes, **parts) -> bytes:
    held = json.loads(json_bytes)
    for key, value in parts.items():
        (held["model"] if key in held["model"] else held)[key] = value
    return json.dumps(held).encode()


def test_what_tiktoken_cannot_do_is_left_to_tokenizers_and_said():
    vocab = json.loads(gpt2())["model"]["vocab"]
    merges = json.loads(gpt2())["model"]["merges"]
    swapped = vocab | {"".join(merges[0]): vocab["".join(merges[5])], "".join(merges[5]): vocab["".join(merges[0])]}
    lower = {"type": "Lowercase"}
    prefixed = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    for json_bytes, why in (
        (changed(gpt2(), vocab=swapped), "out of order"),
        (changed(gpt2(), merges=merges[:-3]), "words that no merge makes"),
        (changed(gpt2(), normalizer=lower), "normalizer Lowercase"),
        (changed(gpt2(), pre_tokenizer=prefixed), "pre-tokenizer ByteLevel"),
        (llama2(), "pre-tokenizer none"),
    ):
        names = NAMES["llama2" if json_bytes is llama2() else "gpt2"]
        tokenizer = Tokenizer(*derive(json_bytes, names, None, "none"))
        assert not tokenizer.fast and why in tokenizer.why_slow
        slow = tokenizers.Tokenizer.from_str(json_bytes.decode())
        slow.encode_special_tokens = True
        assert tokenizer.encode_batch(TEXTS_MORE) == [slow.encode(t, add_special_tokens=False).ids for t in TEXTS_MORE]


def test_a_sample_that_is_cut_otherwise_turns_tiktoken_off():
    """A word that only stands for itself is found by looking it up, not by merging: tiktoken would merge it, too."""
    held = json.loads(llama3())
    word = next(w for w in held["model"]["vocab"] if w.isalpha() and w.isascii() and len(w) == 2)
    held["model"]["merges"] = [m for m in held["model"]["merges"] if "".join(m) != word]
    tokenizer = Tokenizer(*derive(json.dumps(held).encode(), NAMES["llama3"], None, "none"))
    assert not tokenizer.fast and tokenizer.why_slow.startswith("tiktoken cuts ")
    assert (
        tokenizer.encode(f"{word} x{word}x") == tokenizer.slow.encode(f"{word} x{word}x", add_special_tokens=False).ids
    )


# --------------------------------------------------------------------------------------------------- refusals


def test_kinds_and_files_that_are_refused():
    form = ChatFormat(pad=0, bos=0, eos=0, end=0, name="none")
    with pytest.raises(ValueError, match=r"no tokenizer.json that can be read"):
        Tokenizer(b"{}", form)
    with pytest.raises(ValueError, match=r"no tokenizer.json that can be read"):
        Tokenizer(b"\xff\xfe", form)
    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram([("<s>", 0.0), ("▁a", -1.0)], 0))
    unigram.add_special_tokens(["<s>"])
    unigram.decoder = tokenizers.decoders.Metaspace()
    with pytest.raises(ValueError, match="model Unigram with decoder Metaspace is not supported"):
        Tokenizer(unigram.to_str().encode(), form)
    with pytest.raises(ValueError, match=r"names token 9999, the vocabulary ends at 531"):
        Tokenizer(gpt2(), msgspec.structs.replace(form, eos=9999))
    with pytest.raises(ValueError, match=r"lacks the control tokens .* see `fledge import`"):
        Tokenizer(gpt2())
    with pytest.raises(ValueError, match="no eos_token"):
        derive(gpt2(), {}, None)
    with pytest.raises(ValueError, match="eos_token is '<nowhere>', which the tokenizer does not have"):
        derive(gpt2(), {"eos_token": "<nowhere>"}, None)


def test_a_vocabulary_in_which_text_can_be_a_control_token_is_refused():
    """WordPiece looks words up as they stand: one that is special would come from text."""
    held = json.loads(MAKERS["bert"]())
    held["model"]["vocab"]["hello"] = 999
    held["added_tokens"].append({**held["added_tokens"][0], "id": 999, "content": "hello"})
    with pytest.raises(ValueError, match="text 'hello' is encoded as the control token 'hello'"):
        derive(json.dumps(held).encode(), NAMES["bert"], None)
