"""The quality classifier: its features, what it learns, whether it can be believed, and files that are damaged."""

import math
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.curate import ngrams
from fledge.curate.calibration import (
    balanced,
    expected_error,
    fit_calibration,
    reliability,
    roc_area,
    sigmoid,
)
from fledge.curate.pages import PAGE, parted
from fledge.curate.quality import CARD, WEIGHTS, FitSettings, QualityModel, quality_kernel
from fledge.curate.quality_page import quality_page, telling
from fledge.curate.quality_sample import TRAIN, collect
from fledge.curate.quality_training import TrainSettings, train_quality

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
NOUNS = "river bridge teacher harbour mountain garden letter window winter journey farmer village".split()
VERBS = "crosses builds paints follows remembers describes repairs visits protects measures".split()
CHINESE = "春風吹過河邊的小橋，老師帶著學生去看山上的花園。", "冬天的港口很安靜，漁夫修理他的船，等待明年的旅程。"


def sentence(draw: random.Random) -> list[str]:
    return [
        "the",
        draw.choice(NOUNS),
        draw.choice(VERBS),
        "an",
        "old",
        draw.choice(NOUNS),
        "near",
        "the",
        draw.choice(NOUNS),
    ]


def written(count: int, seed: int, shuffled: bool, sentences: int = 12) -> list[str]:
    """Pages of the same words, in the order of sentences or in none."""
    draw = random.Random(seed)
    pages = []
    for _ in range(count):
        said = [sentence(draw) for _ in range(sentences)]
        if shuffled:
            for words in said:
                draw.shuffle(words)
        pages.append(". ".join(" ".join(words) for words in said) + ".")
    return pages


def chinese(count: int, seed: int, shuffled: bool) -> list[str]:
    draw = random.Random(seed)
    pages = []
    for number in range(count):
        characters = list(
            "".join(draw.choice(CHINESE) for _ in range(4)) + "一二三四五六七八九"[number % 9] * (number // 9)
        )
        if shuffled:
            draw.shuffle(characters)
        pages.append("".join(characters))
    return pages


def pages_of(texts: list[str], language: str = "en", url: str | None = None) -> pa.Table:
    columns = {
        "text": texts, "id": [str(i) for i in range(len(texts))], "source": [f"a.jsonl:{i}" for i in range(len(texts))],
        "url": [url] * len(texts), "language": [language] * len(texts),
    }  # fmt: skip
    return pa.table(columns, schema=PAGE)


@pytest.fixture(scope="module")
def trained():
    good = [pages_of(written(200, 1, False)), pages_of(chinese(150, 1, False), "zh-Hant")]
    ordinary = [pages_of(written(300, 2, True)), pages_of(chinese(150, 2, True), "zh-Hans")]
    return train_quality(good, ordinary)


# ------------------------------------------------------------------------------------------------------ features


def buckets(texts: list[str]) -> list[list[int]]:
    """The features of each text, chunk after chunk."""
    found: list[list[int]] = [[] for _ in texts]
    for piece in ngrams.features(texts):
        ends = np.cumsum(piece.sizes)
        for text, first, end in zip(piece.text, ends - piece.sizes, ends, strict=True):
            found[text] += piece.buckets[first:end].tolist()
    return found


def named(text: str) -> list[str]:
    """The slow twin: words and pairs of words of a text of fewer than 512 words, one character at a time."""
    words, open_word = [], False
    for character in text:
        if character in "說著漢カก𠀀" or character in ".=。":
            words.append({"說": "说", "著": "着", "漢": "汉"}.get(character, character))
            open_word = False
        elif character in "aBé9한":
            letter = {"B": "b", "é": "e", "9": "0"}.get(character, character)
            words[-1:] = [words[-1] + letter] if open_word else [*words[-1:], letter]
            open_word = True
        else:
            open_word = False
    return sorted({*words, *(f"{a} {b}" for a, b in zip(words, words[1:], strict=False))})


@given(st.lists(st.text(st.sampled_from("aBé9 \n.=。著說漢カ한ก𠀀\0"), max_size=40), max_size=6))
def test_the_features_are_those_of_the_slow_twin(texts):
    meant: dict[str, int] = {}
    for text, found in zip(texts, buckets(texts), strict=True):
        names = named(text)
        assert len(found) == len(names), "one bucket for each; among so few none fall together"
        for name in sorted(names, key=lambda name: " " in name):  # by itself a name says which bucket is its own
            if name not in meant:
                (meant[name],) = set(buckets([name])[0]) - {meant.get(part) for part in name.split(" ")}
        assert sorted(meant[name] for name in names) == found


def test_words():
    found = ngrams.features_of("Hello, WORLD 2024! 看著")
    assert set(found.values()) == {
        "hello", ",", "world", "2024", "!", "看", "著", "hello,", ", world", "world 2024", "2024!", "! 看", "看著",
    }  # fmt: skip
    assert sorted(found) == buckets(["hello, world 0000! 看着"])[0]
    assert buckets(["說話的漢字"]) == buckets(["说话的汉字"]), "Traditional and Simplified are the same features"
    assert buckets(["한국"]) != buckets(["하늘"]), "a syllable is more than its first consonant"


def test_long_pages_are_cut_into_even_chunks():
    (piece,) = ngrams.features(["one " * 600, "", "two"])
    assert piece.words.tolist() == [300, 300, 1] and piece.text.tolist() == [0, 0, 2]
    assert piece.sizes.tolist() == [2, 2, 1], "a feature counts once in a chunk"


def test_texts_do_not_depend_on_their_neighbours():
    texts = [*written(5, 3, False), "x" * 70, "", "終", "page " * 60_000, *written(5, 4, False)]
    alone = [buckets([text])[0] for text in texts]
    assert len(list(ngrams.features(texts))) > 1, "several blocks"
    assert buckets(texts) == alone
    together = ngrams.identities(texts)
    assert len(set(together.tolist())) == 14 and together[6] == 0
    assert together.tolist() == [int(ngrams.identities([text])[0]) for text in texts]


def test_many_chunks_in_one_page():
    """More than 4,096 chunks: chunk and bucket no longer fit into 32 bits."""
    words = 4200 * ngrams.CHUNK_WORDS
    (found,) = ngrams.features(["no" + " no" * (words - 1)])
    assert len(found.words) == 4200 and set(found.words) == {ngrams.CHUNK_WORDS}
    assert set(found.sizes[:-1]) == {2} and len(set(found.buckets.tolist())) == 2


# --------------------------------------------------------------------------------------------------- calibration


def test_roc_area_by_hand():
    good = np.array([True, True, False, False])
    assert roc_area(np.array([4.0, 3.0, 2.0, 1.0]), good) == 1.0
    assert roc_area(np.array([1.0, 3.0, 2.0, 0.0]), good) == 0.75
    assert roc_area(np.array([1.0, 1.0, 1.0, 1.0]), good) == 0.5
    assert math.isnan(roc_area(np.ones(2), np.array([True, True])))


def test_calibration_finds_slopes_that_grow_with_length():
    draw = np.random.default_rng(0)
    words = 2.0 ** draw.uniform(4, 10, 40_000)
    score = draw.normal(0, 1, len(words))
    truth = sigmoid((3 + 0.4 * np.log2(words / 512)) * score - 0.5)
    good = draw.random(len(words)) < truth
    found = fit_calibration(score, words, good)
    assert found.slope == pytest.approx(3, abs=0.15) and found.per_doubling == pytest.approx(0.4, abs=0.05)
    said, weight = found(score, words), balanced(good)
    assert expected_error(reliability(said, good)) < 0.01 < expected_error(reliability(sigmoid(score), good))
    assert weight[good].sum() == pytest.approx(weight[~good].sum()) and weight.mean() == pytest.approx(1)


def test_calibration_of_few_and_separate_pages_is_finite():
    found = fit_calibration(np.array([-1.0, 1.0]), np.array([100.0, 100.0]), np.array([False, True]))
    assert 0.5 < found(np.array([1.0]), np.array([100.0]))[0] < 0.75, "two pages give no certainty"
    with pytest.raises(ValueError, match="0 good and 2 ordinary"):
        fit_calibration(np.zeros(2), np.ones(2), np.zeros(2, bool))


def test_reliability_by_hand():
    p, good = np.array([0.05, 0.05, 0.95, 1.0]), np.array([False, True, True, True])
    rows = reliability(p, good, np.ones(4))
    assert [(r.pages, r.weight, r.was) for r in rows] == [(2, 0.5, 0.5), (2, 0.5, 1.0)]
    assert expected_error(rows) == pytest.approx(0.5 * 0.45 + 0.5 * 0.025)


# ------------------------------------------------------------------------------------------------------ training


def test_it_tells_order_from_disorder_in_both_languages(trained):
    metrics = trained.model.card.metrics
    assert set(metrics["languages"]) == {"en", "zh"}
    for row in (metrics["all"], *metrics["languages"].values()):
        assert row["roc_area"] > 0.97 and row["accuracy"] > 0.9 and row["calibration_error"] < 0.15
    assert metrics["all"]["length_area"] == pytest.approx(0.5, abs=0.15)
    fresh = trained.model.score([written(1, 9, False)[0], written(1, 9, True)[0]], ["en", "en"])
    assert fresh[0] > 0.7 and fresh[1] < 0.3


def test_the_same_pages_in_any_order_give_the_same_model(trained):
    good = [pages_of(chinese(150, 1, False), "zh-Hant"), *(pages_of([t]) for t in reversed(written(200, 1, False)))]
    ordinary = [pages_of(chinese(150, 2, True), "zh-Hans"), pages_of(written(300, 2, True) * 2)]
    again = train_quality(good, ordinary).model
    assert again.card.weights == trained.model.card.weights
    assert again.card.metrics == trained.model.card.metrics
    other = train_quality(good, ordinary, TrainSettings(fit=FitSettings(seed=1))).model
    assert other.card.weights != again.card.weights


def test_a_language_on_one_side_only_is_left_out_and_gets_no_score(trained):
    german = pages_of(
        [f"der alte Fischer wartet auf den Winter und repariert Boot {chr(97 + i // 9) * (i % 9)}" for i in range(81)],
        "de",
    )
    found = train_quality([pages_of(written(200, 1, False)), german], [pages_of(written(300, 2, True))])
    assert found.model.card.data["left_out"] == {"de": [73, 0]}
    p = found.model.score(["der Fischer", "the river", "the river"], ["de", "en", ""])
    assert np.isnan(p).tolist() == [True, False, False]
    with pytest.raises(
        ValueError, match=r"no language has enough good and ordinary pages \(de 73 and 0, en 0 and 300\)"
    ):
        train_quality([german], [pages_of(written(300, 2, True))])


def test_language_is_not_quality():
    """Most good pages are Chinese, most ordinary ones English: a Chinese page is not good for being Chinese."""
    good = [pages_of(written(120, 1, False)), pages_of(chinese(500, 1, False), "zh")]
    ordinary = [pages_of(written(600, 2, True)), pages_of(chinese(120, 2, True), "zh")]
    found = train_quality(good, ordinary)
    languages = found.held_out.language
    for name in ("en", "zh"):
        here = languages == name
        assert found.p[here & found.good].mean() - found.p[here & ~found.good].mean() > 0.5
        assert 0.3 < np.average(found.p[here], weights=balanced(found.good[here])) < 0.7


def test_pages_on_both_sides():
    good, ordinary = written(200, 1, False), written(300, 2, True)
    found = train_quality([pages_of(good)], [pages_of([*ordinary, good[0].upper(), good[1]])])
    assert found.model.card.data["on_both_sides"] == 2, "the same words are the same page"
    with pytest.raises(ValueError, match="200 of 200 good pages are among the 500 ordinary ones too"):
        train_quality([pages_of(good)], [pages_of(ordinary + good)])


def test_the_sample_is_bounded_and_does_not_depend_on_order():
    texts = written(700, 4, False)
    one, counts = collect([pages_of(texts[i : i + 50]) for i in range(0, 700, 50)], 100)
    other, _ = collect([pages_of([*texts[::-1], "", " \n"])], 100)
    assert counts["seen"] == 700 and counts["used"] == 100 == len(one.identity)
    assert one.identity.tolist() == other.identity.tolist() == np.sort(ngrams.identities(texts))[:100].tolist()
    for mine, theirs in zip(one.features(), other.features(), strict=True):
        assert mine.tolist() == theirs.tolist()
    assert one.head.tolist() == other.head.tolist() and one.part.tolist() == other.part.tolist()
    with pytest.raises(ValueError, match="2 pages, none of them with words"):
        collect([pages_of(["", " "])], 100)


def test_of_a_long_page_some_chunks_are_trained_on():
    texts = [" ".join(f"word{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}" for i in range(n, n + 9000)) for n in range(40)]
    sample, _ = collect([pages_of(texts)], 100)
    for part, own in zip(sample.part, sample.found, strict=True):
        assert len(own.sizes) == (8 if part == TRAIN else 18) and own.sizes.sum() == len(own.buckets)
    assert set(sample.words) == {9000}


def test_held_out_by_source_keeps_a_host_on_one_side():
    tables = [pages_of(written(10, host, False), url=f"https://h{host}.example/a") for host in range(30)]
    by_page, _ = collect(tables, 1000)
    by_host, _ = collect(tables, 1000, "source")
    sides: dict[str, set[int]] = {}
    where = {text[:600]: host for host, table in enumerate(tables) for text in table["text"].to_pylist()}
    for sample, kind in ((by_page, "page"), (by_host, "host")):
        for head, part in zip(sample.head, sample.part, strict=True):
            sides.setdefault(f"{kind} {where[head]}", set()).add(int(part))
    assert all(len(v) == 1 for k, v in sides.items() if k.startswith("host"))
    assert any(len(v) > 1 for k, v in sides.items() if k.startswith("page"))


# ---------------------------------------------------------------------------------------------- files, the kernel


def test_saved_and_opened(trained, tmp_path):
    trained.model.save(tmp_path / "q")
    opened = QualityModel.open(tmp_path / "q")
    assert opened.id == trained.model.id
    texts = written(3, 5, False)
    assert opened.score(texts).tolist() == trained.model.score(texts).tolist()


def test_files_that_cannot_be_used(trained, tmp_path):
    with pytest.raises(ValueError, match=r"holds no trained classifier \(card.json is missing\).*fledge quality"):
        QualityModel.open(tmp_path)
    trained.model.save(tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[:-3] + b"\x01\x02\x03")
    with pytest.raises(ValueError, match=r"weights.safetensors is damaged: its sha256"):
        QualityModel.open(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(whole[:1000])
    with pytest.raises(ValueError, match="is damaged"):
        QualityModel.open(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(whole)
    card = (tmp_path / CARD).read_bytes()
    (tmp_path / CARD).write_bytes(card.replace(ngrams.fingerprint().encode(), b"0" * 64))
    with pytest.raises(ValueError, match="trained with other features"):
        QualityModel.open(tmp_path)
    (tmp_path / CARD).write_bytes(card[:50])
    with pytest.raises(ValueError, match="is damaged"):
        QualityModel.open(tmp_path)


def test_the_kernel_adds_a_column_and_rejects_nothing(trained):
    kernel = quality_kernel(trained.model)
    pages = pa.concat_tables([pages_of([*written(2, 6, False), ""]), pages_of(["Der Fischer"], "de")])
    kept, rejected = parted(kernel(pages))
    assert len(kept) == 4 and not len(rejected) and kept.select(PAGE.names).equals(pages)
    values = kept["quality"].to_pylist()
    assert all(0 <= v <= 1 for v in values[:3]) and values[3] is None
    one_by_one = [kernel(pages.slice(i, 1))["quality"][0].as_py() for i in range(4)]
    assert one_by_one == values, "a page's score does not depend on its batch"
    assert kernel(pages.slice(0, 0)).schema == kernel(pages).schema


def test_settings_say_what_is_wrong():
    found = TrainSettings(pages=3, fit=FitSettings(epochs=0, lr=0)).problems()
    assert len(found) == 3 and "pages = 3: must be at least 100" in found


def test_the_page_shows_foreign_text_as_text(trained):
    spoilt = trained.held_out._replace(head=np.array(["<script>alert(1)</script>"] * len(trained.p), object))
    html = quality_page(trained._replace(held_out=spoilt)).decode()
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "What it goes by" in html and html.count("<svg") == 2
    named = telling(trained)
    assert any(" " in word for word, _ in named["good"]), "order shows in pairs"


@pytest.mark.skipif(not (REAL / "peps").exists(), reason="../shared/data/peps is not here")
def test_real_prose_against_the_same_with_a_fifth_of_its_words_exchanged():
    draw = random.Random(0)
    texts = []
    for path in sorted((REAL / "peps").glob("*.rst")):
        text = path.read_text("utf-8")
        texts += [text[i : i + 4000] for i in range(0, len(text) - 2000, 4000)]
    good, ordinary = texts[::2], []
    for text in texts[1::2]:
        words = text.split(" ")
        moved = [i for i in range(len(words)) if draw.random() < 0.2]
        for i, word in zip(moved, draw.sample([words[i] for i in moved], len(moved)), strict=True):
            words[i] = word
        ordinary.append(" ".join(words))
    row = train_quality([pages_of(good)], [pages_of(ordinary)]).model.card.metrics["all"]
    assert row["roc_area"] > 0.9 and row["calibration_error"] < 0.15
