"""The experiment on clean and raw text: its crawl and steps, the noisy batches, and a whole run shrunk to seconds."""

import json
import math
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from fledge.core.config import TrainConfig, build
from fledge.curate.pages import PAGE
from fledge.curate.recipes import load_recipe_of
from fledge.labs import filters, sieve, spikes
from fledge.labs.bland import TALK, bland_pages, spun, talk
from fledge.labs.cloze import Cloze, clozes, completes, statement_beginnings
from fledge.labs.filters import FiltersOptions, summary
from fledge.text.sources import DocumentSource, TokenStore
from fledge.text.tokenizer import Tokenizer
from fledge.world import World, WorldConfig
from fledge.world.dice import Dice

PAGES = 1200


@pytest.fixture(scope="module")
def crawl() -> sieve.Corpus:
    return sieve.corpus(World(WorldConfig.quick(2)), PAGES, 0.5, 0.4, 100, 600)


@pytest.fixture(scope="module")
def steps(crawl) -> list[sieve.Step]:
    return sieve.heuristics(crawl.table, load_recipe_of("world"))


# --- what models are asked ------------------------------------------------------------------------------------------


def test_a_statement_begins_with_the_entity_and_ends_before_the_value():
    for fact in World(WorldConfig.quick(2)).facts:
        for language in ("en", "zh"):
            beginnings = statement_beginnings(fact, language)
            assert len(beginnings) == 2
            whole = [fact.sentence(language, i) for i in range(20) if i < _wordings(fact, language)]
            for text in beginnings:
                assert fact.names[language] in text and fact.values[language] not in text
                assert any(s.startswith(text) and fact.values[language] in s[len(text) :] for s in whole)


def _wordings(fact, language: str) -> int:
    from fledge.world.facts import RELATIONS

    return len(RELATIONS[fact.relation].wording(language).statements)


def test_only_facts_that_the_text_states_are_asked():
    world = World(WorldConfig.quick(2))
    one = world.facts[3]
    assert {c.language for c in clozes(world, {(one.id, "zh"): 2})} == {"zh"}
    assert len(clozes(world, {(one.id, "zh"): 2, (one.id, "en"): 1})) == 4 and clozes(world, {}) == []


@pytest.mark.parametrize(
    ("value", "language", "written", "right"),
    [
        ("the Karu River", "en", " the Karu River. It", True),
        ("a baker", "en", " A baker", True),
        ("Mount Vel", "en", " Mount Vela.", False),
        ("Mount Vel", "en", " in Mount Vel", False),
        ("卡魯河", "zh", "卡魯河。", True),
        ("卡魯河", "zh", "大卡魯河", False),
    ],
)
def test_a_completion_is_right_where_the_value_comes_next(value, language, written, right):
    assert completes(Cloze("x", value, language), written) is right


# --- the crawl and the steps ----------------------------------------------------------------------------------------


def test_the_crawl_has_its_shares_and_its_pages_are_nowhere_else(crawl):
    kinds = Counter(page["kind"] for page in crawl.pages)
    assert len(crawl.pages) == len(crawl.table) == PAGES and kinds["good"] == PAGES // 2
    assert kinds["talk"] == kinds["spun"] == PAGES * 0.5 * 0.4 / 2
    assert crawl.table.schema.equals(PAGE) and len({page["id"] for page in crawl.pages}) == PAGES
    assert (len(crawl.validation), len(crawl.trusted)) == (100, 600)
    texts = [page["text"] for page in crawl.pages]
    for apart in (crawl.validation, crawl.trusted):
        assert sieve.not_among(apart, texts) == apart and not set(apart) & set(texts)
    assert not set(crawl.validation) & set(crawl.trusted)
    again = sieve.corpus(World(WorldConfig.quick(2)), PAGES, 0.5, 0.4, 100, 600)
    assert again.pages == crawl.pages and again.validation == crawl.validation
    assert sum(crawl.stated.values()) == sum(len(p["facts"]) for p in crawl.pages if p["kind"] == "good") > 0


def test_a_world_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match=r"pages = 60000.*ask for fewer"):
        sieve.corpus(World(WorldConfig.quick(2)), 60_000, 0.5, 0.4, 100, 600)


def test_spun_text_has_the_same_words_in_another_order():
    text = "The longest river of Karu is the Voa River. No river in Karu is longer than the Voa River."
    other = spun(text, "en", Dice(0, 1))
    assert other != text and other.count(".") == 2
    for one, two in zip(text.split("."), other.split("."), strict=True):
        assert sorted(one.split()) == sorted(two.split())
    chinese = "卡魯最長的河是沃亞河。\n卡魯人說維曼語。"
    other = spun(chinese, "zh", Dice(0, 1))
    assert other != chinese and sorted(other) == sorted(chinese) and other[11] == "\n"


def test_talk_is_of_its_language_and_bland_pages_are_dealt_evenly(crawl):
    for language in ("en", "zh"):
        assert set(talk(language, Dice(0, 1)).split("\n")) <= set(TALK[language])
    pages = bland_pages([p for p in crawl.pages if p["kind"] == "good"], 40, Dice(0, 1))
    assert set(Counter((p["language"], p["kind"]) for p in pages).values()) == {10}


def test_the_labels_account_for_every_page(crawl, steps):
    kinds = {page["id"]: page["kind"] for page in crawl.pages}
    before = len(crawl.table)
    for step in steps:
        told = sieve.judged_step(step, kinds)
        assert told["pages"] + told["removed"] == before == sum(n for _, n in told["removed_by_kind"].values())
        assert (
            sum(rule["removed"] for rule in told["rules"])
            == told["removed"]
            == sum(n for n, _ in told["removed_by_kind"].values())
        )
        before = told["pages"]
    kept = Counter(kinds[i] for i in steps[-1].kept["id"].to_pylist())
    assert kept["good"] >= 0.98 * PAGES / 2 and kept["spun"] >= 100  # rules of form see nothing in those
    assert kept["boilerplate"] + kept["spam"] + kept["microwave"] + kept["menu"] <= 5


def test_precision_and_recall_of_a_step():
    table = sieve.page_table([{"text": c, "id": c, "url": None} for c in "abcde"])
    rejected = table.slice(2).append_column("reason", [["x", "x", "y"]])
    told = sieve.judged_step(
        sieve.Step("s", table.slice(0, 2), rejected),
        dict(zip("abcde", ("good", "spam", "good", "spam", "menu"), strict=True)),
    )
    assert (told["precision"], told["recall"], told["good_lost"]) == (2 / 3, 2 / 3, 0.5)
    assert told["removed_by_kind"] == {"good": [1, 2], "menu": [1, 1], "spam": [1, 2]}
    assert told["rules"] == [
        {"rule": "x", "removed": 2, "precision": 0.5},
        {"rule": "y", "removed": 1, "precision": 1.0},
    ]


def test_duplicates_are_what_was_planted(crawl, steps, tmp_path):
    settings = load_recipe_of("world").duplicates
    step, found = sieve.without_duplicates(steps[-1].kept, settings, tmp_path)
    assert len(step.kept) + len(step.rejected) == len(steps[-1].kept) == len(found)
    assert step.rejected["reason"].null_count == 0
    told = sieve.judged_duplicates(steps[-1].kept, found, {page["id"]: page for page in crawl.pages})
    assert told["similar"] >= 0.95 and told["recall"] >= 0.65 and told["planted"] <= told["similar"]
    pairs = sieve.pair_recall(crawl.pages, settings, tmp_path)
    assert pairs["at least 0.8"]["found"] >= 0.9 and pairs["below 0.5"]["found"] <= 0.2
    assert sum(band["pairs"] for band in pairs.values()) > 20


def test_the_classifier_tells_good_pages_of_hosts_it_never_saw(crawl, steps):
    kinds = {page["id"]: page["kind"] for page in crawl.pages}
    model = sieve.classifier(crawl.trusted, crawl.table, PAGES)
    areas = sieve.areas(model, crawl.table, kinds)
    assert areas["tellable"] > 0.9 and areas["all"] > 0.75
    unseen = [url for url in crawl.table["url"].to_pylist() if sieve.is_unseen(url)]
    assert len(unseen) == areas["pages"] and 0.1 < len(unseen) / PAGES < 0.4
    chosen = sieve.best(steps[-1].kept, model, 0.5)
    assert len(chosen.kept) == round(0.5 * len(steps[-1].kept))
    share = [np.mean([kinds[i] == "good" for i in side["id"].to_pylist()]) for side in (chosen.kept, steps[-1].kept)]
    assert share[0] > share[1]


def test_a_random_part_has_the_size_asked_for(crawl):
    whole = sieve.size_bytes(crawl.table)
    part = sieve.random_part(crawl.table, whole // 3, 0)
    assert whole // 3 <= sieve.size_bytes(part) < whole // 3 + 20_000
    assert part.equals(sieve.random_part(crawl.table, whole // 3, 0)) and not part.equals(
        sieve.random_part(crawl.table, whole // 3, 1)
    )


# --- noisy batches --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> tuple[TokenStore, Tokenizer]:
    texts = [f"A plain page about number {n}, and what it is good for." for n in range(200)]
    tokenizer = Tokenizer.train(iter([*texts, "mmmm mm mmmm 嗯嗯嗯嗯"]), 300)
    TokenStore.build(texts, tokenizer, folder := tmp_path_factory.mktemp("store"))
    return TokenStore.open(folder, tokenizer), tokenizer


def _source(store, noise, mask=None) -> spikes.NoisySource:
    return spikes.NoisySource(DocumentSource(store, rows=4, length=32, seed=0), noise, (2, 4), mask)


def test_only_the_bad_batches_are_half_noise(store):
    noise = spikes.noise_rows(spikes.noise_pages(0), store[1], 32, 0)
    clean = DocumentSource(store[0], rows=4, length=32, seed=0)
    for number, batch, plain in zip(range(1, 6), _source(store[0], noise), clean, strict=False):
        bad = number in (2, 4)
        assert torch.equal(batch.tokens[2:], plain.tokens[2:]) and torch.equal(batch.weight[2:], plain.weight[2:])
        assert torch.equal(batch.tokens[:2], plain.tokens[:2]) is not bad
        if bad:
            first = 0 if number == 2 else 2
            assert np.array_equal(batch.tokens[:2].numpy(), noise[first : first + 2, :-1])
            assert batch.weight[:2].sum() == 64 and len(set(batch.doc[:2].flatten().tolist())) == 2


def test_without_noise_nothing_changes_and_a_mask_takes_its_weight(store):
    noise = spikes.noise_rows(spikes.noise_pages(0), store[1], 32, 0)
    none = _source(store[0], noise[:0])
    clean = DocumentSource(store[0], rows=4, length=32, seed=0)
    for _, batch, plain in zip(range(5), none, clean, strict=False):
        assert torch.equal(batch.tokens, plain.tokens) and batch.units == plain.units
    runs = np.full((4, 33), store[1].encode("m")[0])
    assert spikes.share_masked(runs) > 0.9 > spikes.share_masked(noise) > 0.02
    masked, alone = _source(store[0], runs, mask=32), _source(store[0], runs)
    for number, batch, other in zip(range(1, 3), masked, alone, strict=False):
        assert bool(batch.weight[:2].sum() < other.weight[:2].sum()) is (number == 2)


def test_a_noisy_source_goes_on_where_it_stopped(store):
    noise = spikes.noise_rows(spikes.noise_pages(0), store[1], 32, 0)
    one = _source(store[0], noise)
    batches = [batch for _, batch in zip(range(5), one, strict=False)]
    other = _source(store[0], noise)
    state = json.loads(json.dumps(_state_after(store[0], noise, 2)))
    other.load_state_dict(state)
    for batch, later in zip(batches[2:], other, strict=False):
        assert torch.equal(batch.tokens, later.tokens)


def _state_after(store: TokenStore, noise: np.ndarray, count: int) -> dict:
    source = _source(store, noise)
    stream = iter(source)
    for _ in range(count):
        next(stream)
    return source.state_dict()


# --- the whole ------------------------------------------------------------------------------------------------------


def _result(seed: int, **bits: float) -> dict:
    held = {"raw": 0.6, "rules": 0.5, "duplicates": 0.45, "classifier": 0.4, "random": 0.61, "wrong": 0.5} | bits
    arms = {name: {"bits_per_byte": value, "cloze": 0.1, "pages": 10, "tokens": 100} for name, value in held.items()}
    pairs = {"at least 0.8": {"pairs": 9, "found": 1.0}, "below 0.5": {"pairs": 9, "found": None}}
    return {"seed": seed, "arms": arms, "curation": {"pairs": pairs, "roc_area": {"tellable": 0.95}}}


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({}, 0),
        ({"duplicates": 0.39}, 1),
        ({"random": 0.7}, 1),
        ({"wrong": 0.44}, 1),
        ({"raw": 0.43, "random": 0.43}, 2),
    ],
)
def test_the_verdict_follows_from_the_checks(changed, missed):
    bands = {"at least 0.8": {"pairs": 9, "found": 1.0}, "below 0.5": {"pairs": 9, "found": 0.0}}
    one = _result(0, **changed)
    one["curation"]["pairs"] = bands
    found = summary([one])
    assert sum(not ok for ok in found["checks"].values()) == missed
    assert found["verdict"] == ("REPRODUCED" if not missed else "PARTLY")


def test_settings_that_cannot_be_used_are_told_together():
    with pytest.raises(ValueError, match="4 settings") as error:
        build(FiltersOptions, {"out": "x", "pages": 10, "junk": 0.0, "size": "huge", "keep_top": 2})
    assert "pages = 10: must be at least 200" in str(error.value) and "junk = 0.0" in str(error.value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, dict]:
    """The folder of one whole experiment, and what it returned."""
    out = tmp_path_factory.mktemp("filters") / "F"
    small = {"out": str(out), "pages": 400, "tokens": 8_000, "size": "tiny", "seeds": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filters, "SPIKE_STEPS", 25)
        patch.setattr(filters, "SPIKE_TOKENS", 512)
        patch.setattr(spikes, "_LOOK_TEXTS", 8)
        return out, filters.run(build(FiltersOptions, small))


def test_a_whole_experiment_keeps_what_it_found(whole):
    out, total = whole
    assert json.loads((out / "result.json").read_bytes()) == json.loads(json.dumps(total))
    (seed,) = total["seeds"]
    assert list(seed["arms"]) == list(filters.ARMS)
    assert all(0 < arm["bits_per_byte"] < 10 and 0 <= arm["cloze"] <= 1 for arm in seed["arms"].values())
    sizes = {name: arm["tokens"] for name, arm in seed["arms"].items()}
    assert sizes["raw"] > sizes["rules"] > sizes["duplicates"] > sizes["classifier"]
    assert abs(sizes["random"] / sizes["classifier"] - 1) < 0.8
    told = seed["spikes"]
    assert told["at"] == [10, 20] and told["pages_after_filter"] == 0 and list(told["arms"]) == list(spikes.ARMS)
    assert all(len(arm["norm_ratio"]) == 2 and all(map(math.isfinite, arm["bump"])) for arm in told["arms"].values())
    alone, kept_out = (told["arms"][arm]["curve"] for arm in ("left alone", "page filter"))
    assert [row for row in alone if row["step"] < 10] == [row for row in kept_out if row["step"] < 10]
    assert alone[-1] != kept_out[-1]


def test_a_second_call_trains_nothing_and_the_page_says_the_verdict(whole, monkeypatch):
    out, total = whole
    written = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    again = filters.run(msgspec.convert(total["options"], FiltersOptions))
    assert again == json.loads(json.dumps(total)) or again["arms"] == total["arms"]
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")} == written
    page = (out / "report.html").read_text("utf-8")
    assert total["verdict"] in page and "random part of raw" in page and "A batch of noise" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page


def test_a_page_of_half_a_result_leaves_no_gap(tmp_path):
    from fledge.labs.filters_page import filters_page

    assert b"<h1>" in filters_page(tmp_path, {"verdict": "PARTLY", "checks": {}, "seeds": []}).read_bytes()


def test_training_settings_of_spikes_are_harsh():
    usual = TrainConfig(steps=50, lr=1e-3)
    assert spikes.harsh(usual).lr == 2e-3 and math.isinf(spikes.harsh(usual).clip)
    assert spikes.harsh(usual).spike_sigma is None and spikes.harsh(usual).optimizer == "adamw"


def _arm(ratio: float, losses: list[float]) -> dict:
    curve = [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=9)]
    return {"norm_ratio": [ratio], "bump": [max(losses[1:]) - losses[0]], "curve": curve}


def test_a_spike_is_what_the_run_without_noise_does_not_do():
    arms = {
        "left alone": _arm(9.0, [1.0, 1.3, 1.1]),
        "page filter": _arm(1.0, [1.0, 1.1, 0.9]),
        "mask": _arm(2.0, [1.0, 1.11, 0.9]),
    }
    assert spikes.excess(arms["left alone"], arms["page filter"], [10]) == pytest.approx([0.2])
    result = {"arms": arms, "at": [10], "noise_pages": 60, "pages_after_filter": 0, "noise_masked": 0.5}
    found = spikes.summary([result])
    assert list(found["checks"].values()) == [True] * 4 and found["excess"]["page filter"] == [0.0]
    missed = spikes.summary([result | {"arms": arms | {"mask": arms["left alone"]}, "pages_after_filter": 1}])
    assert list(missed["checks"].values()) == [True, True, False, False]
    quiet = spikes.summary([result | {"arms": arms | {"left alone": arms["page filter"]}}])
    assert list(quiet["checks"].values()) == [False, False, True, True]
