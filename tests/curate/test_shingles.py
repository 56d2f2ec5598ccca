"""Words and n-grams as hashes: against loops over characters, and what counts as the same word."""

from collections import defaultdict
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.curate import shingles
from fledge.curate.shingles import Words, code_table, word_blocks

ALONE = 1 << 31
LETTERS = st.text(st.sampled_from("ab cé1,٣龍龙が한ไ\n\u00ad\u0301𠀀😀"), max_size=12)


def one_block(*texts: str, digits: bool = False) -> Words:
    (words,) = word_blocks(pa.array(texts, pa.large_string()), digits=digits)
    return words


def slow_words(text: str) -> list[tuple[int, ...]]:
    """Each word as its codes, by a loop over characters."""
    words, joins = [], False
    for code in (int(code_table()[ord(character)]) for character in text):
        if code == 1:
            continue
        if code and joins and code < ALONE:
            words[-1] += (code,)
        elif code:
            words.append((code,))
        joins = 0 < code < ALONE
    return words


def by_hash(hashes: np.ndarray, meanings: list) -> None:
    """Equal hashes where the meanings are equal, and nowhere else."""
    of_hash, of_meaning = defaultdict(set), defaultdict(set)
    for value, meaning in zip(hashes.tolist(), meanings, strict=True):
        of_hash[value].add(meaning)
        of_meaning[meaning].add(value)
    assert all(len(found) == 1 for found in (*of_hash.values(), *of_meaning.values()))


@given(st.lists(LETTERS, min_size=1, max_size=6), st.integers(1, 6))
def test_words_and_grams_are_those_of_a_loop(texts: list[str], n: int):
    words, expected = one_block(*texts), [slow_words(text) for text in texts]
    assert np.diff(words.offsets).tolist() == [len(page) for page in expected]
    by_hash(words.hashes, [word for page in expected for word in page])
    starts = [(page, i) for page in expected for i in range(len(page))]
    whole = words.whole(n)
    assert whole.tolist() == [i + n <= len(page) for page, i in starts]
    grams = [tuple(page[i : i + n]) for page, i in starts if i + n <= len(page)]
    by_hash(words.grams(n)[whole], grams)


@given(st.lists(LETTERS, min_size=1, max_size=6))
def test_each_word_begins_where_it_stands(texts: list[str]):
    words = one_block(*texts)
    flat = [word for text in texts for word in slow_words(text)]
    assert [int(code_table()[ord(words.text[at])]) for at in words.begins] == [word[0] for word in flat]


def test_blocks_and_slices_change_no_hash(monkeypatch: pytest.MonkeyPatch):
    texts = ["The fox, the hound.", "", "春眠不覺曉，處處聞啼鳥。", "x" * 300, "one two three four five six " * 9, "尾"]
    whole = one_block(*texts)
    expected = [whole.hashes[a:b].tolist() for a, b in pairwise(whole.offsets)]
    monkeypatch.setattr(shingles, "BLOCK_BYTES", 64)
    column = pa.chunked_array([pa.array(["skipped", *texts[:3]]), pa.array(texts[3:])]).slice(1)
    found, rows = [], []
    for words in word_blocks(column):
        found += [words.hashes[a:b].tolist() for a, b in pairwise(words.offsets)]
        rows += range(words.first_page, words.first_page + len(words.offsets) - 1)
    assert found == expected
    assert rows == list(range(len(texts)))


def test_a_null_is_a_page_without_words():
    (words,) = word_blocks(pa.array([None, "a"]))
    assert words.offsets.tolist() == [0, 0, 1]
    assert list(word_blocks(pa.array([], pa.large_string()))) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Café, ＡＢＣ!", "cafe abc"),
        ("cafe\u0301", "CAFÉ"),
        ("co\u00adop\u200ber\ufeffate", "cooperate"),
        ("born in 1984 at ½ past ３", "born in 2001 at ¾ past ٧"),
        ("龍門客棧", "龙门客栈"),
        ("がギ", "かキ"),
        ("Ω Ж", "ω ж"),
    ],
)
def test_what_counts_as_the_same(one: str, other: str):
    words = one_block(one, other)
    first, second = np.split(words.hashes, words.offsets[1:2])
    assert len(first) > 0
    assert first.tolist() == second.tolist()


@pytest.mark.parametrize(
    ("one", "other"), [("한국", "하구"), ("ab c", "a bc"), ("abc", "acb"), ("大", "太"), ("в", "b"), ("12", "123")]
)
def test_what_stays_different(one: str, other: str):
    words = one_block(one, other)
    first, second = np.split(words.hashes, words.offsets[1:2])
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize(
    ("text", "count"),
    [("don't stop", 3), ("春眠abc不覺", 5), ("ไทย", 3), ("한국어 말", 2), ("…。！ \t", 0), ("3.14", 2)],
)
def test_how_many_words(text: str, count: int):
    assert len(one_block(text).hashes) == count


def test_digits_are_told_apart_on_request():
    kept, folded = (one_block("in 1984", "in 1985", "in １９８４", digits=digits).hashes for digits in (True, False))
    assert kept[1] == kept[5] != kept[3]
    assert folded[1] == folded[3] == folded[5]


def test_written_gives_the_words_as_they_stand():
    words = one_block("zero", "The  quick,\n brown fox.", "next")
    assert words.written(int(words.offsets[1]) + 1, 2) == "quick, brown"
    assert words.written(int(words.offsets[1]) + 2, 2) == "brown fox."
    assert words.page_of(np.array([0, 1, 4, 5])).tolist() == [0, 1, 1, 2]


def test_a_page_longer_than_a_block_is_one_block(monkeypatch: pytest.MonkeyPatch):
    text = "one two three 春 " * 50
    expected = one_block(text)
    monkeypatch.setattr(shingles, "BLOCK_BYTES", 16)
    found = one_block(text)
    assert found.hashes.tolist() == expected.hashes.tolist()
    assert found.grams(5).tolist() == expected.grams(5).tolist()


def test_the_table_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        code_table()[0] = 1
