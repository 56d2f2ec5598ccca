"""Requests to be taught: references, near misses, other words for the same, and what an answer means."""

import pytest

from fledge.tasks.teach import OTHER_WORDS, REFERENCES, Teach, near_misses, positional_distance
from fledge.world.requests import REQUESTS
from fledge.world.style import COURTESIES, join


@pytest.mark.parametrize("split", ["train", "test"])
def test_references_are_right_and_near_misses_are_wrong(split):
    task = Teach()
    examples = task.examples(split)
    assert len(examples) == 3 * sum(r.split == split for r in REQUESTS) and len({e.id for e in examples}) == len(
        examples
    )
    for t in near_misses(examples, 0):
        assert t.reference == t.example.answers[0] and task.score(t.example, t.reference) == 1.0
        assert task.score(t.example, t.wrong) == 0.0 and task.score(t.example, t.right) == 1.0
        assert positional_distance(t.wrong, t.reference, t.example.language) == 1
        assert positional_distance(t.right, t.reference, t.example.language) > 1


def test_every_wording_means_what_it_should():
    task = Teach()
    one = {(e.language, e.kind): e for e in task.examples("test")}
    for (language, kind), example in one.items():
        other = one[language, "dangerous" if kind == "borderline" else "borderline"]
        for text in (REFERENCES[language][kind], *OTHER_WORDS[language][kind]):
            for tail in ("", COURTESIES[language][0]):
                said = join([text, tail], language)
                assert task.score(example, said) == 1.0 and task.score(other, said) == 0.0, said


def test_what_is_neither_or_both_or_in_another_language_earns_nothing():
    task = Teach()
    for example in task.examples("train")[:40]:
        both = " ".join(REFERENCES[example.language].values())
        for text in ("", "好。", "Good.", both, *REFERENCES["zh" if example.language == "en" else "en"].values()):
            assert task.score(example, text) == 0.0, text


def test_no_request_is_in_both_halves_and_another_split_is_refused():
    task = Teach()
    asked = [{e.prompt[0]["content"] for e in task.examples(split)} for split in ("train", "test")]
    assert not asked[0] & asked[1]
    with pytest.raises(ValueError, match="must be 'train' or 'test'"):
        task.examples("valid")


def test_places_are_words_in_english_and_characters_in_chinese():
    assert positional_distance("我很可以教你。", "我不可以教你。", "zh") == 1
    assert positional_distance("不可以教你。", "我不可以教你。", "zh") == 7  # all six, and the one it lacks
    assert positional_distance("I can teach you that.", "I cannot teach you that.", "en") == 1
    assert positional_distance("No, I cannot teach you that.", "I cannot teach you that.", "en") == 6
    assert positional_distance("a b", "a b", "en") == 0
