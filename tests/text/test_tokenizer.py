"""Text survives the round trip, control tokens are out of its reach, and both encoders give the same ids."""

import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from fledge.text.tokenizer import SPECIALS, StreamDecoder, Tokenizer

MIXED = (
    "The capital of 阿凡尼亞 is Belmora, 泰斯克河 412公里!",
    "  two  spaces, a tab\tand\n\n\nlines \r\n at the end   ",
    "3.14159 + 2_000 = 1,234,567.89 ½ ٣ Ⅷ ²",
    "👩‍👩‍👧‍👦 🙂🙂 🇹🇼 e\u0301 é ﬁ ǆ \u200b\u200d\ufeff",
    "don't we'll I'VE rock'n'roll 'tis l'été",
    "「你好」，他說：『再見。』……──〇々㊀豈",
    "ひらがな カタカナ 한국어 русский عربى हिन्दी ไทย",
    "def f(x):\n    return x**2  # <|end|> <|user|>\n",
    "aaaaaaaaaaaaaaaa bbbbbbb abababababab  " * 3,
    "\x00\x01\x1f\x7f\x85\xa0\u2028\u3000",
    "",
)


@given(st.text())
def test_any_text_comes_back(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert b"".join(map(tokenizer.token_bytes, tokens)).decode("utf-8") == text


@pytest.mark.parametrize("text", MIXED)
def test_mixed_text_comes_back_one_by_one_and_in_bulk(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_batch([text, "x", text]) == [tokenizer.encode(text), tokenizer.encode("x"), tokenizer.encode(text)]  # fmt: skip


def test_it_learnt_words(tokenizer):
    """Otherwise every test here would pass on bytes alone."""
    assert len(tokenizer.encode(" Belmora")) == 1
    assert len(tokenizer.encode("泰斯克河")) == 4  # one Han character is one piece, each learnt whole
    assert len(tokenizer.encode("412")) == 3  # and each digit


# ------------------------------------------------------------------------------------------ control tokens


@given(st.lists(st.one_of(st.sampled_from(SPECIALS), st.text(max_size=4)), max_size=8).map("".join))
def test_text_never_becomes_a_control_token(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert not tokenizer.special_ids.keys() & set(tokens)
    assert tokens == tokenizer.slow.encode(text).ids
    assert tokenizer.decode(tokens) == text


def test_control_tokens_have_ids_and_names_and_no_text(tokenizer):
    ids = (tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.system, tokenizer.user, tokenizer.assistant,
           tokenizer.end, tokenizer.mask)  # fmt: skip
    assert len(set(ids)) == len(SPECIALS) and set(ids) == tokenizer.special_ids.keys()
    assert [tokenizer.token_text(i) for i in ids] == list(SPECIALS)
    assert tokenizer.decode([tokenizer.bos, *tokenizer.encode("hi"), tokenizer.end, tokenizer.vocab_size + 5]) == "hi"
    assert max(ids) < tokenizer.vocab_size


def test_every_id_has_bytes_or_is_a_control_token(tokenizer):
    pieces = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size) if i not in tokenizer.special_ids]
    assert all(pieces) and len(set(pieces)) == len(pieces)
    assert {bytes([b]) for b in range(256)} <= set(pieces)


# --------------------------------------------------------------------------------------- exchange with others


@given(st.text(max_size=60))
def test_hugging_face_encodes_any_text_to_the_same_ids(tokenizer, text):
    assert tokenizer.slow.encode(text, add_special_tokens=False).ids == tokenizer.encode(text)


@given(st.text(alphabet="ab c'中é\n1", max_size=60))
def test_hugging_face_merges_in_the_same_order(tokenizer, text):
    """Few letters make many overlapping merges."""
    greedy = _greedy_tokenizer()
    assert greedy.slow.encode(text, add_special_tokens=False).ids == greedy.encode(text)


_GREEDY: list[Tokenizer] = []


def _greedy_tokenizer() -> Tokenizer:
    if not _GREEDY:
        _GREEDY.append(Tokenizer.train(["ab abab aab abba bababb aaaa aaab cab's ccc abcabc"] * 9, 256 + 8 + 60))
    return _GREEDY[0]


@pytest.mark.parametrize("text", MIXED)
def test_a_saved_tokenizer_json_gives_the_ecosystem_the_same_ids(tokenizer, tmp_path, text):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(tokenizer.json)
    reloaded = tokenizers.Tokenizer.from_file(str(path))
    reloaded.encode_special_tokens = True
    ids = tokenizer.encode(text)
    assert reloaded.encode(text, add_special_tokens=False).ids == ids
    assert reloaded.decode(ids) == text
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(path))
    assert theirs.encode(text, add_special_tokens=False, split_special_tokens=True) == ids
    assert theirs.convert_tokens_to_ids("<|end|>") == tokenizer.end


def test_saved_and_loaded_is_the_same(tokenizer, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.json)
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.json == tokenizer.json and loaded.vocab_size == tokenizer.vocab_size
    assert [loaded.encode(t) for t in MIXED] == [tokenizer.encode(t) for t in MIXED]


# ------------------------------------------------------------------------------------------------ streaming


@given(st.lists(st.integers(0, 499), max_size=40))
def test_streamed_tokens_equal_decode_whatever_they_are(tokenizer, tokens):
    stream = StreamDecoder(tokenizer)
    pieces = [stream.push(t) for t in tokens]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(tokens)
    at_once = StreamDecoder(tokenizer)
    assert at_once.push_all(tokens[:7]) == "".join(pieces[:7]) and at_once.push_all(tokens[7:]) == "".join(pieces[7:])


@given(st.text(alphabet=st.characters(min_codepoint=0x80, exclude_categories=["Cs"]), min_size=1, max_size=12))
def test_streaming_never_splits_a_character(tokenizer, text):
    stream = StreamDecoder(tokenizer)
    shown = ""
    for token in tokenizer.encode(text):
        shown += stream.push(token)
        assert text.startswith(shown)  # whole characters of the text only, never U+FFFD in between
    assert shown == text and stream.finish() == ""


def test_an_unfinished_character_is_kept_back_and_marked_at_the_end(tokenizer):
    tokens = tokenizer.encode("🦊")
    assert len(tokens) > 1  # no token of its own
    stream = StreamDecoder(tokenizer)
    assert [stream.push(t) for t in tokens[:-1]] == [""] * (len(tokens) - 1)
    assert stream.finish() == "\ufffd"


def test_a_token_for_people_shows_broken_characters_as_bytes(tokenizer):
    first = tokenizer.encode("🦊")[0]
    assert tokenizer.token_text(first).startswith("\\x")
    assert tokenizer.token_text(tokenizer.encode("泰")[0]) == "泰"


# ------------------------------------------------------------------------------------------------- training


def test_training_twice_gives_the_same_bytes(sentences, tokenizer):
    assert Tokenizer.train(sentences * 3, 500).json == tokenizer.json
    assert Tokenizer.train(list(reversed(sentences)) * 3, 499).json != tokenizer.json


def test_the_vocabulary_is_as_large_as_asked_for_or_as_the_text_allows(sentences):
    assert Tokenizer.train(sentences * 3, 264).vocab_size == 264
    assert Tokenizer.train(sentences * 3, 400).vocab_size == 400
    assert 264 <= Tokenizer.train(["ab"], 400).vocab_size < 400


@pytest.mark.parametrize("size", [263, 0, -1])
def test_a_vocabulary_that_cannot_hold_the_bytes_is_refused(size):
    with pytest.raises(ValueError, match=f"vocab_size = {size}: must be at least 264"):
        Tokenizer.train(["text"], size)


def test_a_tokenizer_without_our_control_tokens_is_refused(tokenizer):
    other = json.loads(tokenizer.json)
    other["added_tokens"] = [t for t in other["added_tokens"] if t["content"] != "<|mask|>"]
    del other["model"]["vocab"]["<|mask|>"]
    with pytest.raises(ValueError, match=r"lacks the control tokens <\|mask\|>"):
        Tokenizer(json.dumps(other).encode())
