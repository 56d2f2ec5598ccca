"""Recipes say what they ask, refuse what they cannot mean, and their kernels judge page by page and language by language."""

import math
from itertools import islice

import numpy as np
import pytest
from curate_pages import real, strange, table

from fledge.curate.pages import parted
from fledge.curate.recipes import SHIPPED, Recipe, load_recipe_of
from fledge.curate.rules import kernel_of, kernels_of
from fledge.world import World, WorldConfig, rubbish
from fledge.world.dice import Dice

OWN = """
name = "own"
paper = "none"
steps = ["short"]

[short.en]
words = [3, inf]
hashes_per_word = [0, 0.5]

[short.zh]
words = [5, 8]

[stop_words]
en = ["the"]
"""


def judged_by(recipe: Recipe, texts: list[str], language: str | list[str]) -> list[str | None]:
    """Reason of every page after all steps; None where it stays."""
    pages, reasons = table(texts, language), dict.fromkeys(map(str, range(len(texts))))
    for _, kernel in kernels_of(recipe):
        pages, rejected = parted(kernel(pages))
        reasons |= dict(zip(rejected["id"].to_pylist(), rejected["reason"].to_pylist(), strict=True))
    return list(reasons.values())


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    return path


def test_reasons_name_the_first_broken_bound_and_values_are_the_signals(own):
    texts = ["one # # #", "one two three #", "# # one two three # four #", "中文字", "中文字中文字", "中文" * 5, "un"]
    languages = ["en", "en", "en", "zh-Hans", "zh-Hant", "zh", "fr"]
    found = kernel_of(load_recipe_of(str(own)), "short")(table(texts, languages))
    assert list(zip(found["reason"].to_pylist(), found["value"].to_pylist(), strict=True)) == [
        ("words below 3", 1.0), (None, None), (None, None), ("words below 5", 3.0), (None, None), ("words above 8", 10.0),
        (None, None),
    ]  # fmt: skip
    assert found["words"].to_pylist() == [1, 3, 4, 3, 6, 10, 1]
    assert found["text"].to_pylist() == texts
    found = kernel_of(load_recipe_of(str(own)), "short")(table(["one two three " + "# " * 9], "en"))
    assert found["reason"].to_pylist() == ["hashes per word above 0.5"]


def test_a_share_that_equals_its_bound_stays(own):
    own.write_text(OWN.replace("[0, 0.5]", "[0, 0.3]"))
    tenths = ["a b c d e f g # # #", "a b c d e f # # # #"]
    assert judged_by(load_recipe_of(str(own)), tenths, "en") == [None, "hashes per word above 0.3"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("words = [3", "wrods = [3", r"short.en.wrods: unknown signal; did you mean words\?"),
        ("words = [3, inf]", "words = [3, 2]", r"short.en.words = \[3, 2\]: must be \[least, most\] with least <= most"),
        ("words = [3, inf]", "words = [nan, 2]", r"must be \[least, most\] with least <= most"),
        ("words = [3, inf]", "words = 3", r"short.en.words = 3: must be \[least, most\], two numbers; inf is one"),
        ("words = [3, inf]", "words = [3]", r"short.en.words = \[3\]: must be \[least, most\]"),
        ("words = [3, inf]", "words = [3, true]", r"short.en.words = \[3, True\]: must be \[least, most\]"),
        ("[short.en]", "[short]", r"\[short\]: must hold a table for each language, such as \[short.en\]"),
        ("[short.zh]", "[c4]\nsentences = 2\n[short.zh]", r"\[c4\]: must hold a table for each language, such as \[c4.en\]"),
        ("[short.zh]", "[duplicate]\nbands = 2\n[short.zh]", r"duplicate: unknown key; did you mean duplicates\?"),
        ('["short"]', '["shrot"]', r"steps: 'shrot' has no table \[shrot.LANGUAGE\]; tables: \[short.LANGUAGE\]"),
        ('["short"]', '["shrot"]', r"\[short\]: not among the steps \(did you mean shrot\?\)"),
        ('["short"]', '["short", "short"]', "steps: 'short' is named twice"),
        ('["short"]', "[]", "steps: empty"),
        ('["short"]', '["short", "c4"]', r"steps: 'c4' has no table \[c4.LANGUAGE\]"),
        ("[short.zh]", "[c4.zh]\nwords_per_lin = 2\n[short.zh]", r"(?s)\[c4.zh\]: .*words_per_lin: unknown key; did you mean words_per_line"),
        ("[short.zh]", "[duplicates]\nband = 2\n[short.zh]", r"duplicates.band: .*did you mean .*bands"),
        ("[short.zh]", "[quality]\nkeep_top = 2\n[short.zh]", "quality.keep_top = 2.0: must be a share"),
        ("[short.zh]", "[language]\nleast_score = 2\n[short.zh]", "language.least_score = 2.0: must be between 0 and 1"),
        ('name = "own"', 'nam = "own"', "nam: unknown key; did you mean name"),
        ('name = "own"', "", "name: required"),
        ("[short.en]", "[short.en", "not valid TOML"),
    ],
)  # fmt: skip
def test_recipes_that_cannot_be_used_say_what_is_wrong(own, old: str, new: str, message: str):
    own.write_text(OWN.replace(old, new))
    with pytest.raises(ValueError, match=message) as error:
        load_recipe_of(str(own))
    assert str(own) in str(error.value)


def test_all_errors_of_a_recipe_are_told_at_once(own):
    own.write_text(OWN.replace("words = [3", "wrods = [3").replace("[5, 8]", "[8, 5]").replace('name = "own"', ""))
    with pytest.raises(ValueError, match=r"(?s)name: required") as error:
        load_recipe_of(str(own))
    own.write_text(OWN.replace("words = [3", "wrods = [3").replace("[5, 8]", "[8, 5]"))
    with pytest.raises(ValueError, match=r"(?s)short.en.wrods.*short.zh.words") as error:
        load_recipe_of(str(own))
    assert "2 settings cannot be used" in str(error.value)


def test_an_unknown_recipe_is_refused():
    with pytest.raises(
        ValueError, match=r"'finewebb': neither a shipped recipe \(.*\) nor a file; did you mean fineweb\?"
    ):
        load_recipe_of("finewebb")
    with pytest.raises(ValueError, match="step 'c5': not one of the recipe 'fineweb': gopher_repetition"):
        kernel_of(load_recipe_of("fineweb"), "c5")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_can_be_used_and_judge_any_page(name: str):
    recipe = load_recipe_of(name)
    assert recipe.name == name and recipe.paper
    texts = [*strange(200, seed=9), "", " ", "\0", "m" * 5000, "嗯" * 5000]
    languages = ["en", "zh-Hant", "zh-Hans", "de", "und"] * 41
    pages = table(texts, languages)
    for step, kernel in kernels_of(recipe):
        found = kernel(pages)
        assert found["id"].to_pylist() == pages["id"].to_pylist()
        reasons = {reason for reason in found["reason"].to_pylist() if reason}
        assert all(len(reason) < 50 for reason in reasons), step
        judged = found.filter(np.array([reason is not None for reason in found["reason"].to_pylist()]))
        assert set(judged["language"].to_pylist()) <= {"en", "zh-Hant", "zh-Hans"} or step in ("degenerate", "c4")
        pages = found.drop_columns(["reason", "value"])
    empty = pages.slice(0, 0).select(["text", "id", "source", "url", "language"])
    for _, kernel in kernels_of(recipe):
        assert len(kernel(empty)) == 0


def test_english_rules_judge_no_chinese_page_and_chinese_ones_keep_verse():
    poems = real()["zh-Hant"]
    for name in ("fineweb", "gopher", "dclm"):
        recipe = load_recipe_of(name)
        kept = judged_by(recipe, poems, "zh-Hant").count(None)
        assert kept >= 0.98 * len(poems), name
        assert judged_by(recipe, poems, "en").count(None) == 0


def test_technical_documents_pass_gophers_words_as_the_paper_means_them():
    peps = real()["en"][:40]
    gopher, fineweb = (judged_by(load_recipe_of(name), peps, "en") for name in ("gopher", "fineweb"))
    assert gopher.count(None) > 0.75 * len(peps)
    assert fineweb.count("words with letter below 0.8") > 0.5 * len(peps)


@pytest.mark.parametrize("name", ["fineweb", "gopher", "dclm"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_planted_rubbish_is_found(name: str, language: str):
    recipe, dice = load_recipe_of(name), Dice(0, 77)
    kinds = [rubbish.microwave, rubbish.numbers, rubbish.calls]
    kinds += [rubbish.menu] * (
        name == "fineweb" or language == "en"
    )  # of the three, FineWeb looks at the form of lines
    for kind in kinds:
        reasons = judged_by(recipe, [kind(language, dice) for _ in range(30)], language)
        assert None not in reasons, kind.__name__


def test_signals_are_measured_again_after_lines_were_taken_out():
    recipe = load_recipe_of("fineweb")
    text = "We use cookies.\nWe use cookies.\nWe use cookies.\n" + "".join(
        f"This is the {n}th sentence of a page that people read.\n" for n in ("four", "five", "six", "seven", "eigh")
    )
    pages = table([text], "en")
    for step, kernel in kernels_of(recipe):
        found = kernel(pages)
        if step == "gopher_repetition":
            assert found["duplicate_lines"].to_pylist() == [pytest.approx(2 / 9)]
        if step == "c4":
            assert "cookies" not in found["text"].to_pylist()[0]
            assert found["c4_lines_removed"].to_pylist() == [3]
        if step == "fineweb":
            assert found["copied_line_characters"].to_pylist() == [0.0]
            assert found["newlines_per_word"].to_pylist() == [pytest.approx(4 / 60)]
        pages = found.drop_columns(["reason", "value"])
    alone = kernel_of(recipe, "fineweb")(table([text], "en"))
    assert alone["reason"].to_pylist() == ["copied line characters above 0.01"]


def test_both_meanings_of_finewebs_copied_lines_can_be_said(tmp_path):
    code = load_recipe_of("fineweb")
    assert code.rules["fineweb"]["en"]["copied_line_characters"] == (0, 0.01)
    assert code.rules["fineweb"]["zh"]["copied_line_characters"] == (0, 0.1)
    assert math.isinf(code.rules["degenerate"]["*"]["compressed"][1])


def test_the_worlds_recipe_keeps_its_good_pages_and_finds_its_junk():
    world, recipe = World(WorldConfig.quick()), load_recipe_of("world")
    documents = list(islice(world.documents(), 8000))
    for language in ("en", "zh"):
        own = [document for document in documents if document["language"] == language]
        reasons = judged_by(recipe, [document["text"] for document in own], language)
        for quality, least, most in (
            ("good", 0.98, 1.0), ("wrong", 0.9, 1.0), ("boilerplate", 0.0, 0.02), ("spam", 0.0, 0.02), ("noise", 0.0, 0.0),
        ):  # fmt: skip
            kept = [reason is None for reason, d in zip(reasons, own, strict=True) if d["quality"] == quality]
            assert kept and least <= np.mean(kept) <= most, (language, quality)
