"""The experiment on rephrased text: the noise, the rephraser made of rules, and a whole run shrunk to seconds."""

import json
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from fledge.core.config import build
from fledge.curate.rephrase import STYLES, Passage, passages
from fledge.curate.rephrase_checks import check_all
from fledge.labs import rephrasing
from fledge.labs.noisy import RuleRephraser, Statement, mended, mistyped, noisy, read_statement
from fledge.labs.rephrasing import RephrasingOptions, material, summary, tokens_to_reach
from fledge.world import World, WorldConfig
from fledge.world.answers import sentences
from fledge.world.dice import Dice
from fledge.world.facts import RELATIONS
from fledge.world.junk import BOILERPLATE

LANGUAGE = {"en": "en", "zh": "zh-Hant"}


@pytest.fixture(scope="module")
def world() -> World:
    return World(WorldConfig.quick(2))


@pytest.fixture(scope="module")
def pages(world) -> list[dict]:
    return [page for page in world.documents() if page["source"] == "facts"][:300]


def passage(text: str, language: str = "en") -> Passage:
    return Passage("0" * 16, "0", "page 0", LANGUAGE[language], text)


# --- reading and writing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_wording_of_every_fact_is_read_as_what_it_says(world, language):
    for fact in world.facts[::3]:
        for number in range(len(RELATIONS[fact.relation].wording(language).statements)):
            said = read_statement(fact.sentence(language, number), language)
            wanted = Statement(fact.relation, fact.names[language], fact.values[language], number)
            assert said == wanted, fact.sentence(language, number)


@pytest.mark.parametrize("text", ["All rights reserved.", "A cat sleeps.", "", "the the the"])
def test_other_sentences_say_nothing(text):
    assert read_statement(text, "en") is None


def test_mistyped_words_are_mended_and_names_are_not():
    assert mended("The hihgest mountian of Karru is Muont Vela.") == "The highest mountain of Karru is Muont Vela."
    assert (
        mended("No rivver in Karu is longr than the Voa Rivver.") == "No river in Karu is longer than the Voa Rivver."
    )


def test_noise_keeps_every_sentence_and_adds_phrases(pages):
    dice = Dice(0, 1)
    for page in pages[:50]:
        lines = noisy(page["text"], page["language"], dice).split("\n")
        phrases = [line for line in lines if line in BOILERPLATE[page["language"]]]
        assert 3 <= len(phrases) <= 7 and len(lines) - len(phrases) == len(sentences(page["text"]))


def test_about_as_many_words_are_mistyped_as_is_said():
    text = " ".join(["mountain"] * 4000)
    changed = sum(word != "mountain" for word in mistyped(text, "en", Dice(0, 1)).split())
    assert 140 <= changed <= 260
    han = mistyped("山河湖海" * 2000, "zh", Dice(0, 1))
    assert han != "山河湖海" * 2000 and abs(len(han) - 8000) < 40


@pytest.mark.parametrize("style", STYLES)
def test_a_clean_page_is_rephrased_whole_and_passes_the_checks(pages, style):
    rephraser = RuleRephraser(style, 0)
    asked = [passage(page["text"], page["language"]) for page in pages]
    written = rephraser(asked)
    assert rephraser.unread == 0 and rephraser.read == sum(len(sentences(page["text"])) for page in pages)
    reasons = Counter(one.reason for one in check_all(asked, written, style))
    assert reasons[None] >= 0.97 * len(pages) and not reasons["new names"] + reasons["new numbers"]
    assert all(one.text and one.text != page["text"] for page, one in zip(pages, written, strict=True))
    assert [one.text for one in RuleRephraser(style, 0)(asked)] == [one.text for one in written]
    assert [one.text for one in RuleRephraser(style, 1)(asked)] != [one.text for one in written]


def test_nothing_is_said_that_the_page_does_not_say(world, pages):
    """Every statement of a rephrasing is one of its page's, whoever made the page."""
    by_name = {(f.relation, f.names[x], f.values[x]): f.id for f in world.facts for x in ("en", "zh")}
    for style in ("wiki", "easy", "hard"):
        for page, one in zip(
            pages, RuleRephraser(style, 3)([passage(p["text"], p["language"]) for p in pages]), strict=True
        ):
            told = [read_statement(s, page["language"]) for s in sentences(one.text)]
            assert sorted(by_name[said.relation, said.entity, said.value] for said in told) == sorted(page["facts"])


def test_questions_and_answers_are_those_of_the_facts(world):
    fact = next(f for f in world.facts if f.relation == "longest_river")
    asked = [passage(fact.sentence(x, 0), x) for x in ("en", "zh")]
    english, chinese = (one.text for one in RuleRephraser("qa", 0)(asked))
    value = fact.values["en"]
    assert english.startswith("Question: ") and english.endswith(f"\nAnswer: {value[0].upper()}{value[1:]}.")
    assert chinese.startswith("問題：") and chinese.endswith(f"\n回答：{fact.values['zh']}。")
    assert fact.names["en"] in english and fact.names["zh"] in chinese


def test_what_is_not_understood_stays_but_is_not_asked_about():
    text = "A kind cat sleeps.\nAll rights reserved."
    assert RuleRephraser("wiki", 0).rephrase(text, "en") == "A kind cat sleeps."
    assert RuleRephraser("qa", 0).rephrase(text, "en") == ""


def test_material_holds_pages_out_and_rejects_nothing_silently(world):
    found = material(world, 400, 2)
    assert len(found.texts["raw"]) == 380 and len(found.texts["part"]) == 95
    assert set(found.texts) == {"raw", "part", "wiki", "qa"} and 0 < len(found.clean) <= 20 == len(found.noisy)
    for style, told in found.rephrased.items():
        assert told["kept"] + sum(told["rejected"].values()) == told["passages"] and told["sentences_read"] > 0.9
        if style in found.texts:
            assert len(found.texts[style]) == told["kept"] > 300
    assert not set(found.noisy) & set(found.texts["raw"])
    assert material(world, 400, 2).texts == found.texts


def test_passages_are_those_of_the_command():
    text = "One sentence here. " * 200
    assert rephrasing.cut("7", "en", text, "wiki") == list(passages("7", "page 7", "en", text, "wiki", 300))
    assert len(rephrasing.cut("7", "en", text, "wiki")) > 1


# --- figures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "wanted"), [(0.1, 50.0), (0.2, 100.0), (0.3, 150.0), (0.4, 200.0), (0.5, None), (0.0, 0.0)]
)
def test_tokens_to_reach_a_level(level, wanted):
    curve = [{"tokens": 100, "x": 0.2}, {"tokens": 200, "x": 0.4}]
    assert tokens_to_reach(curve, "x", level) == wanted


def _result(raw: float, reached: list[float], **end: dict) -> dict:
    def curve(cloze: list[float], **more: float) -> list[dict]:
        held = {"answers": 0.0, "clean_bits": 1.0, "noisy_bits": 1.0} | more
        return [{"tokens": 100 * 2**i, "epochs": 1.0, "cloze": c} | held for i, c in enumerate(cloze)]

    flat = [0.01, 0.02, 0.03]
    arms = {"raw": curve([0.0, raw / 2, raw]), "repeated": curve(flat), "wiki": curve(flat, noisy_bits=2.0),
            "qa": curve(flat, noisy_bits=2.0, answers=0.5), "mixed": curve(reached, answers=0.4),
            "three": curve(flat, answers=0.4)}  # fmt: skip
    for name, more in end.items():
        arms[name][-1] |= more
    return {"seed": 0, "arms": arms, "rephrased": {}}


@pytest.mark.parametrize(
    ("result", "missed"),
    [
        (_result(0.2, [0.1, 0.2, 0.3]), 0),
        (_result(0.2, [0.1, 0.15, 0.3]), 1),
        (_result(0.0, [0.1, 0.15, 0.3]), 1),
        (_result(0.2, [0.1, 0.2, 0.3], wiki={"noisy_bits": 0.9}), 1),
        (_result(0.2, [0.0, 0.1, 0.1], wiki={"noisy_bits": 0.9}, mixed={"answers": 0.6}), 3),
    ],
)
def test_the_verdict_follows_from_the_checks(result, missed):
    found = summary([result])
    assert sum(not ok for ok in found["checks"].values()) == missed
    assert found["verdict"] == {0: "REPRODUCED", 3: "NOT REPRODUCED"}.get(missed, "PARTLY")


def test_settings_that_cannot_be_used_are_told_together():
    with pytest.raises(ValueError, match="3 settings") as error:
        build(RephrasingOptions, {"out": "x", "pages": 5, "tokens": "many", "seeds": 0})
    assert "pages = 5: must be at least 100" in str(error.value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, dict]:
    """The folder of one whole experiment, and what it returned."""
    out = tmp_path_factory.mktemp("rephrasing") / "R"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rephrasing, "FRACTIONS", (0.5, 1.0))
        small = {"out": str(out), "pages": 120, "tokens": 8192, "size": "tiny", "seeds": 1}
        return out, rephrasing.run(build(RephrasingOptions, small))


def test_a_whole_experiment_keeps_what_it_found(whole):
    out, total = whole
    assert json.loads((out / "result.json").read_bytes()) == json.loads(json.dumps(total))
    (seed,) = total["seeds"]
    assert list(seed["arms"]) == list(rephrasing.ARMS)
    for curve in seed["arms"].values():
        assert [row["tokens"] for row in curve] == [4096, 8192]
        assert all(0 <= row["cloze"] <= 1 and 0 < row["clean_bits"] < 10 for row in curve)
    assert seed["arms"]["repeated"][-1]["epochs"] > 3 * seed["arms"]["raw"][-1]["epochs"]


def test_the_mixtures_are_half_real(whole):
    from fledge.core.checkpoint import load_checkpoint

    for arm, wanted in (("mixed", {"raw": 1.0, "wiki": 1.0}), ("three", {"raw": 2.0, "wiki": 1.0, "qa": 1.0})):
        card = load_checkpoint(whole[0] / "seed-0" / f"{arm}-8192").card
        assert {Path(source["text"]).stem: source["weight"] for source in card["data"]["sources"]} == wanted


def test_a_second_call_trains_nothing_and_the_page_says_the_verdict(whole):
    out, total = whole
    written = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rephrasing, "FRACTIONS", (0.5, 1.0))
        assert rephrasing.run(msgspec.convert(total["options"], RephrasingOptions))["arms"] == total["arms"]
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")} == written
    page = (out / "report.html").read_text("utf-8")
    assert total["verdict"] in page and "One page in four styles" in page and "<script" not in page


def test_a_page_of_half_a_result_leaves_no_gap(tmp_path):
    from fledge.labs.rephrasing_page import rephrasing_page

    assert b"<h1>" in rephrasing_page(tmp_path, {"verdict": "PARTLY", "checks": {}, "seeds": []}).read_bytes()
