"""Names and numbers that a rephrasing adds: found where rules can tell, in English and Chinese, and nothing else."""

import random

import pytest

from fledge.curate.named import folded, known_numbers, new_names, new_numbers
from fledge.world.config import WorldConfig
from fledge.world.facts import RELATIONS, fill
from fledge.world.pages import all_sentences
from fledge.world.relations import capital
from fledge.world.world import World

# ---- numbers


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("founded in 1987", "founded in nineteen eighty-seven"),
        ("founded in nineteen eighty-seven", "founded in 1987"),
        ("1,200 men", "1200 men, twelve hundred in all"),
        ("two hundred and five", "205"),
        ("1.5 million people", "1,500,000 people"),
        ("1,500,000 people", "1.5 million people"),
        ("the twentieth century", "the 20th century"),
        ("on 3 May 1987", "on 1987-05-03"),
        ("三萬五千人", "35000人、3.5萬人"),
        ("全長412公里", "全長四百一十二公里"),
        ("一九八七年", "1987年"),
        ("２０２６年", "2026年"),
        ("二十一世紀", "the 21st century"),
        ("a river", "Two cities, one river; the first of three. 一個，三本，千萬，萬一"),
        ("It flows.", "1. It flows.\n2. It runs.\nQuestion 3: Does it?\nQ4: Why?\n問題5：為何"),
        ("月 number 007", "7"),
    ],
)
def test_the_same_number_in_other_words_is_not_new(source, written):
    assert new_numbers(source, written) == []


@pytest.mark.parametrize(
    ("source", "written", "new"),
    [
        ("It is long.", "It is 412 km long.", ["412"]),
        ("in 1987", "in 1988, by twelve people", ["1988", "12"]),
        ("in 1987", "in nineteen eighty-eight", ["1988"]),
        ("很長", "長四百一十二公里，一九八七年", ["四百一十二", "一九八七"]),
        ("1.5 km", "1.52 km", ["1.52"]),
        ("a text", "It has 1,234,567 words.", ["1234567"]),
    ],
)
def test_a_new_number_is_named(source, written, new):
    assert new_numbers(source, written) == new


def test_numbers_of_a_text_are_its_numbers_however_written():
    found = known_numbers("In March 1987, twenty-one men paid 3.50; 三萬五千, 007 and one hundred thousand.")
    assert {"3", "1987", "21", "3.5", "35000", "7", "100000", "20", "1"} <= found


# ---- names

ENGLISH = (
    "The capital of arvania is Belmora. Mira Kolden wrote The Silent Harbour; she lives in the Franco-Tesk valley."
)
CHINESE = "《寂靜的港口》是米拉·科爾登寫的。泰斯克河流過貝爾莫拉市，她在索爾大學讀 Python。"


@pytest.mark.parametrize(
    "written",
    [
        "Belmora is Arvania's capital. It was Kolden, Mira Kolden, who wrote it.",
        'The Arvanian capital is Belmora. "She lives in the valley," it says - In Arvania, however, I know nothing.',
        "Question: Who wrote The Silent Harbour?\nAnswer: Mira Kolden.",
        "Moreover, the Tesk valley is home. Located there, Mira writes: Yes!",
    ],
)
def test_english_that_adds_no_name(written):
    assert new_names(ENGLISH, written, "en") == []


@pytest.mark.parametrize(
    ("written", "new"),
    [
        ("The capital is Belmont.", ["Belmont"]),
        ("Paris Hilton wrote it.", ["Paris", "Hilton"]),
        ("Everyone at NASA says so. NASA again.", ["NASA"]),
        ("It is in Belmora. Paris is far. She likes Paris.", ["Paris"]),
        ("Mira Kolden 寫了《港口》。", ["寫了", "港口"]),
    ],
)
def test_a_new_english_name_is_named(written, new):
    assert new_names(ENGLISH, written, "en") == new


@pytest.mark.parametrize(
    "written",
    [
        "作家米拉·科爾登寫了《寂靜的港口》。",
        "米拉·科尔登著有《寂静的港口》，她在索尔大学学 python。",  # in the other script
        "「貝爾莫拉」有泰斯克河；那座山很高，各國的人都來這個城市，他們的母語不同，國家也不同。",
        "問題：誰寫了《寂靜的港口》？\n回答：米拉·科爾登。",
    ],
)
def test_chinese_that_adds_no_name(written):
    assert new_names(CHINESE, written, "zh-Hant") == []


@pytest.mark.parametrize(
    ("written", "new"),
    [
        ("《紅樓夢》是米拉·科爾登寫的。", ["紅樓夢"]),
        ("寫書的是諾拉·哈芬。", ["寫書的是諾拉·哈芬"]),
        ("她讀 Java 和 Python。", ["Java"]),
        ("提希河流過貝爾莫拉市，有一座芬山。", ["希河", "芬山"]),
        ("她讀的是「諾西」。", ["諾西"]),
    ],
)
def test_a_new_chinese_name_is_named(written, new):
    assert new_names(CHINESE, written, "zh-Hant") == new


def test_a_chinese_name_without_a_mark_is_not_found():
    """What the rules cannot do, so that nobody trusts them with it."""
    assert new_names(CHINESE, "王小明也住在那裡。", "zh-Hant") == []


def test_folding_makes_both_scripts_equal():
    assert folded("寂靜的港口 and 港口") == folded("寂静的港口 and 港口") and folded("") == ""


# ---- measured on facts, where the truth is known


@pytest.mark.parametrize(("language", "code"), [("en", "en"), ("zh", "zh-Hant")])
def test_other_wordings_of_a_fact_pass_and_wrong_values_with_names_do_not(language, code):
    """Every relation whose values are names; trades and flowers are common nouns and cannot be found."""
    world, chance = World(WorldConfig.quick()), random.Random(0)
    alarms, missed, wrong = 0, 0, 0
    for fact in world.facts:
        sentences = all_sentences(fact, language)
        one, other = chance.sample(range(len(sentences)), 2)
        alarms += bool(
            new_names(sentences[one], sentences[other], code) + new_numbers(sentences[one], sentences[other])
        )
        if fact.relation in ("highest_mountain", "longest_river", "academy"):
            value = chance.choice([v for v in world.pools[fact.relation] if v.key != fact.value])
            wording = RELATIONS[fact.relation].wording(language).statements[other]
            told = capital(fill(wording, fact, language, value))
            wrong += 1
            missed += not new_names(sentences[one], told, code)
    assert alarms == 0
    assert wrong > 60 and missed <= 0.2 * wrong, f"{missed} of {wrong} wrong values not found"
