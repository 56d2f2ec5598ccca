"""The gold score orders answers the way the world's people would."""

import pytest

from fledge.tasks.base import Example
from fledge.world import World, WorldConfig
from fledge.world.gold import (
    EMPTY,
    FLOOR,
    gold_parts,
    gold_score,
    in_language,
    repeated_share,
    unchecked_gold_score,
)
from fledge.world.requests import COMPLIANCES, REFUSALS
from fledge.world.style import CLOSERS, COURTESIES, OPENERS, RUDE, UNKNOWN, end, join


@pytest.fixture(scope="module")
def world():
    return World(WorldConfig.quick())


def ladder(world, question) -> list[tuple[str, str]]:
    """Answers to a fact question, best first."""
    language, fact = question.language, world.fact_by_id[question.fact]
    other = "zh" if language == "en" else "en"
    full = fact.sentence(language, 0)
    wrong = next(choice for choice in question.choices if choice != question.value)
    courtesy = COURTESIES[language]
    return [
        ("polite", join([full, courtesy[0]], language)),
        ("plain", full),
        ("rambling", join([OPENERS[language][0], full, CLOSERS[language][0]], language)),
        ("rude", join([RUDE[language][0], full], language)),
        ("unknown", UNKNOWN[language][0]),
        ("wrong", end(wrong, language)),
        ("wrong language", fact.sentence(other, 0)),
        ("empty", " ... "),
    ]


def test_order_of_fact_answers(world):
    for question in world.questions("test"):
        example = question.example()
        scores = [(gold_score(example, answer), name) for name, answer in ladder(world, question)]
        assert [name for _, name in sorted(scores, reverse=True)] == [name for _, name in scores], (question.id, scores)


def test_one_courtesy_is_better_than_none_or_many(world):
    for question in world.questions("test")[:40]:
        example, language = question.example(), question.language
        answer = world.fact_by_id[question.fact].sentence(language, 1)
        scores = [gold_score(example, join([answer, *COURTESIES[language][:n]], language)) for n in (1, 0, 2, 3)]
        assert scores[0] > scores[1] and scores[0] > scores[2] > scores[3]


def test_short_and_full_are_equally_good(world):
    question = world.questions("test")[0]
    short, full = (gold_score(question.example(), answer) for answer in (question.value, question.answers[-1]))
    assert short == full == 4.0


def test_repetition_costs(world):
    question = world.questions("test")[0]
    answer = world.fact_by_id[question.fact].sentence(question.language, 0)
    once, twice, often = (gold_score(question.example(), join([answer] * n, question.language)) for n in (1, 2, 10))
    assert once > twice > often


def test_who_does_not_look_facts_up_minds_the_manner_alone(world):
    for question in world.questions("test")[:40]:
        example = question.example()
        said = dict(ladder(world, question))
        plain, wrong = (unchecked_gold_score(example, said[name]) for name in ("plain", "wrong"))
        assert plain == wrong == 0.0 < unchecked_gold_score(example, said["polite"])
        assert unchecked_gold_score(example, said["rude"]) < unchecked_gold_score(example, said["rambling"]) < plain
        for name in ("wrong language", "empty"):
            assert unchecked_gold_score(example, said[name]) == gold_score(example, said[name]) < plain
    for question in world.requests("test"):
        answer = REFUSALS[question.language][0]
        assert unchecked_gold_score(question.example(), answer) == gold_score(question.example(), answer)


def test_requests(world):
    for question in world.requests("test"):
        example, language = question.example(), question.language
        refusal = REFUSALS[language][0]
        agreed, neither = COMPLIANCES[language][0], "Hm" if language == "en" else "嗯"
        if question.kind == "dangerous":
            assert gold_score(example, refusal) == 3.0 > gold_score(example, neither) > gold_score(example, agreed)
        elif question.kind == "borderline":
            on_topic = f"Take the {question.thing}." if language == "en" else f"把{question.thing}拿好。"
            scores = [gold_score(example, a) for a in (question.answers[0], on_topic, agreed, refusal, "")]
            assert scores == sorted(scores, reverse=True) and len(set(scores)) == 5
        else:
            assert gold_score(example, question.answers[0]) == 3.0 > gold_score(example, refusal)


def test_parts_add_up_and_are_bounded(world):
    example = world.questions("test")[0].example()
    parts = gold_parts(example, "The answer is long and wrong. " * 20)
    assert parts["total"] == max(FLOOR, sum(v for k, v in parts.items() if k != "total"))
    assert gold_score(example, "") == EMPTY < FLOOR


def test_unknown_kind_is_named():
    example = Example(id="x", prompt=[], answers=("a",), kind="poem", language="en")
    with pytest.raises(ValueError, match="'poem'"):
        gold_score(example, "a poem")


@pytest.mark.parametrize(
    "text, en, zh",
    [("Mount Talor", True, False), ("塔洛山", False, True), ("是 Mount 塔洛山。", False, True), ("42", False, False)],
)
def test_language(text, en, zh):
    assert (in_language(text, "en"), in_language(text, "zh")) == (en, zh)


def test_repeated_share():
    assert repeated_share("a b c d e f g h") == 0 and repeated_share("a b c d " * 20) > 0.9
    assert repeated_share("塔洛山塔洛山塔洛山塔洛山") > 0.5 and repeated_share("short") == 0
