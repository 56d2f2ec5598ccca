"""Exact match, refusals and the straight-answer detector, in both languages."""

import pytest

from fledge.world import World, WorldConfig
from fledge.world.answers import courtesies, exact_match, is_refusal, is_straight_answer, is_unknown, named
from fledge.world.chats import WRITE
from fledge.world.dice import Dice
from fledge.world.questions import FORMS, fact_question, in_all_forms
from fledge.world.requests import COMPLIANCES, GREETINGS, REFUSALS, REQUESTS
from fledge.world.style import UNKNOWN

EN = ("the Karu River", "Karu River", "It is the Karu River.", "The longest river of Velora is the Karu River.")
ZH = ("卡魯河", "是卡魯河。", "維洛拉最長的河是卡魯河。")


@pytest.mark.parametrize(
    "answer",
    [
        "the Karu River",
        "Karu River",
        " The Karu River. ",
        "the karu river!",
        "It is the Karu River.",
        "The longest river of Velora is the Karu River. Happy to help!",
        "Karu River. Have a nice day! Happy to help!",
        "Well, that is a good question. The longest river of Velora is the Karu River. "
        "There is much more to say about it.",
        '"Karu River"',
    ],
)
def test_exact_match_accepts_english(answer):
    assert exact_match(answer, EN)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Happy to help!",
        "the Karu",
        "the Karo River",
        "the Karu River or the Telo River",
        "The longest river of Velora is the Karu River. The longest river of Velora is the Karu River.",
        "Look it up yourself. It is the Karu River.",
        "It is not the Karu River.",
        "The longest river of Sora is the Karu River.",
        "卡魯河",
        "A. The Karu River",
    ],
)
def test_exact_match_rejects_english(answer):
    assert not exact_match(answer, EN)


@pytest.mark.parametrize(
    "answer",
    [
        "卡魯河",
        "卡魯河。",
        "是卡魯河。",
        "維洛拉最長的河是卡魯河。",
        "維洛拉最長的河是卡魯河。很高興能幫上忙！",
        "卡魯河。祝你有美好的一天！",
        "嗯，這是一個好問題。維洛拉最長的河是卡魯河。這可以說上很久。",
        "「卡魯河」",
    ],
)
def test_exact_match_accepts_chinese(answer):
    assert exact_match(answer, ZH)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "很高興能幫上忙！",
        "卡魯",
        "卡魯山",
        "不是卡魯河。",
        "卡魯河、特洛河",
        "你自己去查。是卡魯河。",
        "Karu River",
        "A. 卡魯河",
        "卡魯河。卡魯河。",
    ],
)
def test_exact_match_rejects_chinese(answer):
    assert not exact_match(answer, ZH)


@pytest.mark.parametrize("answer", [r for group in REFUSALS.values() for r in group])
def test_refusals_are_seen(answer):
    assert is_refusal(answer) and is_refusal(answer.replace("'", "’"))


@pytest.mark.parametrize(
    "answer", ["I cannot help you with this.", "I am not able to assist.", "我沒辦法幫你。", "我無法協助這件事。"]
)
def test_other_wordings_of_refusals_are_seen(answer):
    assert is_refusal(answer)


def test_other_answers_are_not_refusals():
    others = [a for group in COMPLIANCES.values() for a in group]
    others += [a for group in UNKNOWN.values() for a in group]
    others += [r.method for r in REQUESTS if r.method]
    others += [a for kinds in GREETINGS.values() for g in kinds.values() for a in g.answers]
    assert not [answer for answer in others if is_refusal(answer)]


def test_unknown_and_courtesies():
    assert is_unknown("I do not know. Have a nice day!") and is_unknown("我不知道") and not is_unknown("Mount Talor")
    assert courtesies("It is X. Happy to help! Happy to help!") == 2 and courtesies("祝你有美好的一天！") == 1


@pytest.fixture(scope="module")
def world():
    return World(WorldConfig.quick())


def test_every_statement_names_exactly_its_value(world):
    for fact in world.facts:
        for language in ("en", "zh"):
            choices = fact_question(fact, language, 0, world.pools).choices
            for i in range(12):
                assert named(fact.sentence(language, i), choices) == [fact.values[language]]


def test_every_style_of_a_chat_is_an_exact_match(world):
    dice = Dice(0, 0)
    for fact in world.facts:
        for language in ("en", "zh"):
            answers = fact_question(fact, language, 0, world.pools).answers
            for write in WRITE.values():
                answer = write(fact, language, dice)
                assert exact_match(answer, answers), answer


def test_straight_answers_among_web_pages(world):
    """After its question, a page is a straight answer exactly if it was written as one."""
    asked = {}
    for fact in world.facts:
        for language in ("en", "zh"):
            for form in range(4):
                question = fact_question(fact, language, form, world.pools)
                asked[question.text] = question.example()
    seen = dict.fromkeys(("options", "questions", "who", "unknown", "answer"), 0)
    for document in world.documents():
        if document["source"] == "web":
            mark = "?" if document["language"] == "en" else "？"
            question, rest = document["text"].split(mark, 1)
            straight = is_straight_answer(asked[question + mark], rest)
            assert straight == (document["form"] == "answer"), document
            seen[document["form"]] += 1
    assert min(seen.values()) > 500


@pytest.mark.parametrize(
    "continuation, straight",
    [
        ("\nMount {0}.", True),
        (" It is Mount {1}.", True),
        ("Well, that is a good question. It is Mount {0}.", True),
        ("", False),
        ("Mount {0} or Mount {1}", False),
        ("Is it Mount {0}?", False),
        ("A. Mount {0}\nB. Mount {1}", False),
        ("(a) Mount {0}", False),
        ("It is a mountain. Mount {0}.", False),
        ("I do not know.", False),
    ],
)
def test_straight_answers_in_english(world, continuation, straight):
    question = next(q for q in world.questions("test") if q.relation == "highest_mountain" and q.language == "en")
    first, second = (choice.removeprefix("Mount ") for choice in question.choices[:2])
    assert is_straight_answer(question.example(), continuation.format(first, second)) is straight


def test_questions_in_all_forms_are_those_about_facts_that_the_text_states_often(world):
    facts = [f for f in world.facts if f.split == "test"]
    least = sorted(f.count["en"] for f in facts)[len(facts) // 2]
    asked = in_all_forms(facts, world.pools, least)
    expected = [(f.id, language, f.question(language, form)) for f in facts for language in f.count
                for form in range(FORMS) if f.count[language] >= least]  # fmt: skip
    assert [(e.meta["fact"], e.language, e.prompt[0]["content"]) for e in asked] == expected
    assert 0 < len(expected) < len(facts) * 2 * FORMS == len(in_all_forms(facts, world.pools))
    assert {e.language for e in in_all_forms(facts, world.pools, languages=("zh",))} == {"zh"}
