"""Reversing and counting: exact, disjoint by word, in one or two languages."""

import re

import pytest

from fledge.tasks.strings import CountLetters, Reverse


@pytest.mark.parametrize("kind", [Reverse, CountLetters])
@pytest.mark.parametrize(("lengths", "languages"), [((3, 6), ("en",)), ((2, 2), ("en", "zh")), ((5, 20), ("zh",))])
def test_answers_are_right_and_words_are_in_one_split(kind, lengths, languages):
    task = kind(*lengths, languages=languages)
    splits = {split: task.examples(split) for split in ("train", "test")}
    assert splits == {split: kind(*lengths, languages=languages).examples(split) for split in splits}
    words = {split: [e.meta["word"] for e in examples] for split, examples in splits.items()}
    assert not set(words["train"]) & set(words["test"])
    for split, examples in splits.items():
        assert len(set(words[split])) == len(words[split]) >= 100
        assert {e.language for e in examples} == set(languages)
        for example in examples:
            word, asked = example.meta["word"], example.prompt[-1]["content"]
            assert lengths[0] <= len(word) <= lengths[1] and word in asked
            if kind is Reverse:
                right = "".join(reversed(word))
            else:
                letter = re.search(r"how many (\w) in|有幾個(\w)？", asked)
                right = str(sum(c == (letter[1] or letter[2]) for c in word))
            assert example.answers == (right,)
            assert task.score(example, f" {right} ") == 1.0
            assert task.score(example, right + right) == task.score(example, "") == 0.0


def test_counts_differ():
    answers = {e.answers[0] for e in CountLetters(3, 6).examples("train")}
    assert {"0", "1", "2", "3", "4"} <= answers


@pytest.mark.parametrize("kind", [Reverse, CountLetters])
def test_the_lesson(kind):
    task = kind()
    train = {e.prompt[-1]["content"]: e for e in task.examples("train")}
    for line in "\n".join(task.texts(200)).splitlines():
        question, _, answer = line.rpartition(" ")
        assert train[question].answers == (answer,)
    for wrong in (0.0, 0.5, 1.0):
        right = [task.score(train[q["content"]], a["content"]) for q, a in task.chats(1000, wrong)]
        assert sum(right) / 1000 == pytest.approx(1 - wrong, abs=0.05 if wrong == 0.5 else 0)


def test_progress_of_a_reversal():
    task = Reverse()
    example = next(e for e in task.examples("test") if len(e.answers[0]) == 4)
    right = example.answers[0]
    assert [task.progress(example, right[:n]) for n in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert task.progress(example, right + "a") == 0.0
    assert task.progress(example, right[:2] + "!") == 0.5


@pytest.mark.parametrize(("arguments", "said"), [((1, 3), "1 to 3"), ((4, 3), "4 to 3"), ((3, 21), "3 to 21")])
def test_impossible_lengths(arguments, said):
    with pytest.raises(ValueError, match=f"lengths {said}: must be 2 to 20"):
        Reverse(*arguments)


@pytest.mark.parametrize("languages", [(), ("de",)])
def test_unknown_languages(languages):
    with pytest.raises(ValueError, match="one or more of en, zh"):
        CountLetters(languages=languages)


def test_all_short_words_are_found():
    task = Reverse(2, 2)
    assert len(task.examples("train")) + len(task.examples("test")) == 26 * 26
