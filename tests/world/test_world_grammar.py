"""The small grammar and its minimal pairs."""

import re
from collections import Counter

import pytest

from fledge.world.dice import Dice
from fledge.world.grammar import chinese_sentence, english_sentence, minimal_pairs
from fledge.world.relations import with_article


def test_minimal_pairs_differ_and_are_balanced():
    pairs = minimal_pairs(seed=0, n=800)
    assert len({pair.good for pair in pairs}) == 800
    assert all(pair.good != pair.bad for pair in pairs)
    assert set(Counter(pair.phenomenon for pair in pairs).values()) == {100}
    assert len({pair.phenomenon for pair in pairs}) == 8
    assert sum(pair.phenomenon.startswith("zh_") for pair in pairs) == 400
    assert pairs == minimal_pairs(seed=0, n=800) != minimal_pairs(seed=1, n=800)


def test_no_bad_sentence_is_good_elsewhere():
    pairs = minimal_pairs(seed=0, n=1600)
    assert not {pair.good for pair in pairs} & {pair.bad for pair in pairs}


def test_too_many_minimal_pairs_are_refused():
    with pytest.raises(ValueError, match="at most 1600"):
        minimal_pairs(seed=0, n=1601)


@pytest.mark.parametrize("noun, expected", [("baker", "a baker"), ("actor", "an actor"), ("old dog", "an old dog")])
def test_articles(noun, expected):
    assert with_article(noun) == expected


def test_sentences_follow_the_rules():
    dice = Dice(0, 0)
    for _ in range(2000):
        sentence = english_sentence(dice)
        assert re.fullmatch(r"[A-Z][a-z ]+( Sunday)?( [a-z ]+)?\.", sentence), sentence
        assert not re.search(r"\b(this|that|every|an?) (\w+ )?(dogs|cats|girls|children|books)\b", sentence, re.I), (
            sentence
        )
        chinese = chinese_sentence(dice)
        assert re.fullmatch(r"[\u4e00-\u9fff]+。", chinese), chinese
        assert "不有" not in chinese
