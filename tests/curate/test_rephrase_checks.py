"""Which rephrasings are kept, and the reason of each that is not."""

import pytest

from fledge.curate.rephrase import Passage, Rephrased
from fledge.curate.rephrase_checks import CheckSettings, check, check_all, copied_share, stripped

ENGLISH = Passage(
    "0" * 16, "p", "s", "en",
    "The capital of Arvania is Belmora, a city on the river Tesk. The river is 412 km long and flows into the sea. "
    "Mira Kolden was born there.",
)  # fmt: skip
GOOD = (
    "Belmora, on the banks of the Tesk, serves as capital of Arvania. This river runs 412 km to the sea, and it is the "
    "birthplace of Mira Kolden."
)
HANT = Passage(
    "1" * 16, "p", "s", "zh-Hant", "泰斯克河全長412公里，流過貝爾莫拉，然後入海。她說這條河很美，許多人來這裡看風景。"
)
GOOD_HANT = "全長412公里的泰斯克河經過貝爾莫拉流入大海；她覺得河很美，來看風景的人很多。"
GOOD_HANS = "全长412公里的泰斯克河经过贝尔莫拉流入大海；她觉得河很美，来看风景的人很多。"


def reason(passage: Passage, text: str, style="wiki", finish="stop", **settings) -> str | None:
    return check(passage, Rephrased(text, finish), style, CheckSettings(**settings)).reason


def test_good_ones_are_kept_as_they_are():
    for passage, text in ((ENGLISH, GOOD), (HANT, GOOD_HANT)):
        found = check(passage, Rephrased(text), "wiki")
        assert found == (text, None, None, "", False)
    hans = Passage(
        "2" * 16,
        "p",
        "s",
        "zh-Hans",
        "泰斯克河全长412公里，流过贝尔莫拉，然后入海。她说这条河很美，许多人来这里看风景。",
    )
    assert reason(hans, GOOD_HANS) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm sorry, but I cannot help with that request.", "refusal"),
        ("As an AI language model, I do not write " + GOOD, "refusal"),
        ("Please provide the paragraph you would like me to rephrase, and I will do so.", "refusal"),
        ("", "empty"),
        ("   \n", "empty"),
        ("Here is a paraphrase:", "empty"),
        ("Belmora.", "too short"),
        (GOOD * 4, "too long"),
        (GOOD_HANT * 2, "another language"),
        (
            "La capitale d'Arvania est Belmora, une ville au bord du fleuve Tesk, qui est long de 412 km.",
            "another language",
        ),
        (ENGLISH.text, "copy of the passage"),
        (ENGLISH.text.upper().replace(",", ""), "copy of the passage"),
        (GOOD.replace("412", "413"), "new numbers"),
        (GOOD.replace("Kolden", "Harlan"), "new names"),
        (" ".join(["the river is"] * 28), "repeats itself"),
    ],
)
def test_each_broken_rule_has_its_reason(text, expected):
    assert reason(ENGLISH, text) == expected


def test_how_it_ended_is_a_reason_too():
    assert reason(ENGLISH, GOOD, finish="length") == "truncated"
    assert reason(ENGLISH, "no", finish="refusal") == "refusal"
    assert reason(ENGLISH, "", finish="unanswered") == "not answered"
    assert reason(ENGLISH, "", finish="no room") == "passage beyond the model's context"


def test_the_other_chinese_script_is_another_language():
    assert reason(HANT, GOOD_HANS) == "another language"
    assert reason(HANT, "抱歉，我無法改寫這段文字，因為沒有足夠的資料。") == "refusal"
    assert reason(HANT, "作為一個人工智慧助理，我不能這樣做，請換一段文字。") == "refusal"
    assert reason(HANT, GOOD_HANT.replace("412", "421")) == "new numbers"


def test_what_is_new_is_told():
    found = check(ENGLISH, Rephrased(GOOD.replace("Arvania", "France")), "wiki")
    assert (found.reason, found.value, found.found) == ("new names", 1.0, "France")


@pytest.mark.parametrize(
    "said",
    [
        "Here is a paraphrase:\n{}", "Sure! Here's a diverse paraphrase of the paragraph in high quality English:\n\n{}",
        "Paraphrase: {}", "Rewritten text:\n{}", "Certainly! {}", "{}\n\nLet me know if you need anything else!",
        "{}\nI hope this helps.", '"{}"', "```text\n{}\n```", "Of course! Below is the paraphrased paragraph: {}",
    ],
)  # fmt: skip
def test_words_around_are_taken_away_and_counted(said):
    found = check(ENGLISH, Rephrased(said.format(GOOD)), "wiki")
    assert (found.text, found.reason, found.stripped) == (GOOD, None, True)


@pytest.mark.parametrize(
    "said", ["以下是改寫後的文字：\n{}", "好的，以下是改寫：{}", "改寫：{}", "當然！{}", "{}\n希望這對您有幫助。"]
)
def test_words_around_in_chinese(said):
    found = check(HANT, Rephrased(said.format(GOOD_HANT)), "wiki")
    assert (found.text, found.reason, found.stripped) == (GOOD_HANT, None, True)


def test_what_the_passage_says_itself_stays():
    text = "Here is the list: the capital is Belmora."
    assert stripped(text, text) == (text, False)
    sorry = Passage(
        "3" * 16, "p", "s", "en", "I'm sorry, he said, but the river is far too long for us to swim along it today."
    )
    assert (
        reason(sorry, "I am sorry, were his words: we cannot swim along the river today, as it is far too long.")
        is None
    )
    plain = "Note that Belmora is small. Sure footing helps."
    assert stripped("x", plain) == (plain, False)


def test_questions_with_answers():
    asked = "Question: What is the capital of Arvania?\nAnswer: Belmora.\nQuestion: How long is the river Tesk?\nAnswer: 412 km."
    assert reason(ENGLISH, asked, "qa") is None
    assert (
        reason(
            ENGLISH, "**Question:** Where was Mira Kolden born?\n**Answer:** In Belmora, where the river flows.", "qa"
        )
        is None
    )
    assert reason(ENGLISH, GOOD, "qa") == "no questions and answers"
    assert reason(HANT, "問題：泰斯克河有多長？\n回答：全長412公里。", "qa") is None
    assert reason(HANT, GOOD_HANT, "qa") == "no questions and answers"


def test_limits_are_settings():
    assert reason(ENGLISH, ENGLISH.text, copied=None) is None
    assert reason(ENGLISH, GOOD.replace("412", "413"), numbers=False) is None
    assert reason(ENGLISH, GOOD.replace("Kolden", "Harlan"), names=False) is None
    assert reason(ENGLISH, "Belmora.", shortest=0.0) is None
    assert reason(ENGLISH, GOOD, longest=0.5) == "too long"
    assert CheckSettings(shortest=3, copied=2.0).problems()[0].startswith("checks.shortest = 3")
    assert len(CheckSettings(shortest=3, copied=2.0).problems()) == 2


def test_the_share_that_is_copied():
    assert copied_share("a b c d e f", "a b c d e x") == 0.5
    assert copied_share("a b c", "A, b! C.") == 1 and copied_share("a b c", "a b") == 0
    assert copied_share("", "") == 1 and copied_share("a", "") == 0
    assert copied_share("泰斯克河全長", "泰斯克河全長。") == 1


def test_many_at_once_in_order():
    found = check_all([ENGLISH, HANT, ENGLISH], [Rephrased(GOOD), Rephrased(GOOD_HANS), Rephrased("")], "wiki")
    assert [one.reason for one in found] == [None, "another language", "empty"]
