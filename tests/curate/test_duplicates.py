"""Fingerprints against a loop, and what find_duplicates removes: planted edits of real pages, chains, any sharding."""

import json
import random
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from opencc import OpenCC

from fledge.curate import duplicates, minhash
from fledge.curate.duplicates import EXACT, NEAR, Duplicates, find_duplicates
from fledge.curate.minhash import FINEWEB, DuplicateSettings, fingerprints, keys_schema
from fledge.curate.shingles import word_blocks

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
WORDS = [f"{a}{b}" for a in ("ba", "co", "di", "fu", "ge", "ho") for b in ("lan", "mer", "nis", "por", "tuk", "vel")]
needs_data = pytest.mark.skipif(not (SHARED / "peps").is_dir(), reason=f"no {SHARED}")


def table(texts: list[str], first: int = 0) -> pa.Table:
    return pa.table(
        {"text": pa.array(texts, pa.large_string()), "id": [f"p{i}" for i in range(first, first + len(texts))]}
    )


def found(texts: list[str], folder: Path, settings: DuplicateSettings, shards: int = 1) -> Duplicates:
    keys, edges = [], np.linspace(0, len(texts), shards + 1).astype(int).tolist()
    for number, (start, end) in enumerate(pairwise(edges)):
        path = folder / f"keys-{number:05d}.parquet"
        pq.write_table(fingerprints(table(texts[start:end], start), settings), path, row_group_size=7)
        keys.append(path)
    answer = find_duplicates(keys, settings, folder / "scratch")
    assert list((folder / "scratch").glob("*")) == []
    assert len(answer) == shards
    return answer


def rows(answer: Duplicates) -> list[dict]:
    return [row for shard in answer for row in shard.to_pylist()]


def page(seed: int, words: int = 120) -> list[str]:
    draw = random.Random(seed)
    return [draw.choice(WORDS) for _ in range(words)]


def shingles_of(text: str) -> set[int]:
    (words,) = word_blocks(pa.array([text], pa.large_string()))
    return set(words.grams(5)[words.whole(5)].tolist())


def jaccard(one: str, other: str) -> float:
    a, b = shingles_of(one), shingles_of(other)
    return len(a & b) / max(1, len(a | b))


def shingles_and_counts(texts: list[str]) -> list[list[int]]:
    """The 32-bit shingles of each text."""
    found = []
    for text in texts:
        (words,) = word_blocks(pa.array([text], pa.large_string()))
        size = min(5, len(words.hashes))
        found.append([int(gram) >> 32 for gram in words.grams(size)[words.whole(size)]] if size else [])
    return found


def test_fingerprints_are_those_of_a_loop_over_shingles():
    texts = [
        "one two three four five six seven",
        "?!",
        "just three words",
        "",
        " ".join(page(1, 900)),
        "春眠不覺曉處處聞啼鳥",
    ]
    settings = DuplicateSettings(bands=3, rows=2)
    made = fingerprints(table(texts), settings)
    assert made.schema.equals(keys_schema(settings), check_metadata=True)
    assert made["tokens"].to_pylist() == [7, 0, 3, 0, 900, 10]
    factors = [int(factor) for factor in minhash._factors(6)]
    keys_of: dict[tuple[int, ...], set[bytes]] = {}
    for shingles, row in zip(shingles_and_counts(texts), made.to_pylist(), strict=True):
        if not shingles:
            assert row["bands"] == bytes(12)
            assert row["sketch"] == bytes(128)
            continue
        least = [min(x * a % 2**32 for x in shingles) for a in factors]
        for band in range(3):
            key = row["bands"][4 * band : 4 * band + 4]
            keys_of.setdefault(tuple(least[2 * band : 2 * band + 2]), set()).add(key)
        bins = [min((x % 2**24 for x in shingles if x >> 24 == number), default=None) for number in range(256)]
        values = [0 if x is None else x % 2**16 * 15 // 2**16 + 1 for x in bins]
        assert list(row["sketch"]) == [low | high << 4 for low, high in zip(values[::2], values[1::2], strict=True)]
    assert len(keys_of) == len(set().union(*keys_of.values())) == 12


@pytest.mark.parametrize("count", [40, 200, 2000])
def test_sketches_estimate_jaccard(count: int):
    """Without bias, and with a standard deviation of at most that of 256 independent hashes: .031 at .5."""
    errors = []
    for seed in range(60):
        both = page(seed, count)
        pair = [" ".join(both), " ".join(both[: count * 2 // 3] + page(1000 + seed, count // 3))]
        sketches = [
            np.frombuffer(s, np.uint8) for s in fingerprints(table(pair), DuplicateSettings())["sketch"].to_pylist()
        ]
        errors.append(minhash.similarity(*(sketch[None] for sketch in sketches))[0] - jaccard(*pair))
    assert abs(np.mean(errors)) < 0.012
    assert np.std(errors) < 0.038


def test_similarity_of_equal_and_of_unlike_sketches():
    one, other = np.full((1, 128), 0x37, np.uint8), np.full((1, 128), 0x84, np.uint8)
    assert minhash.similarity(one, one).tolist() == [1.0]
    assert minhash.similarity(one, other).tolist() == [0.0]
    assert minhash.similarity(one, np.zeros((1, 128), np.uint8)).tolist() == [0.0]
    half = one.copy()
    half[:, ::2] = 0x84
    assert minhash.similarity(one, half) == pytest.approx((15 * 128 - 256) / (14 * 256))


def test_exact_copies_near_copies_and_others(tmp_path: Path):
    a, b = " ".join(page(1)), " ".join(page(2))
    near = " ".join([*page(1)[:60], "changed", *page(1)[61:]])
    texts = [a, b, a.upper().replace(" ", "\n "), near, near, "x", "", "", "?!"]
    answer = found(texts, tmp_path, DuplicateSettings())
    decided = rows(answer)
    assert [row["reason"] for row in decided] == [None, None, EXACT, NEAR, EXACT, None, None, EXACT, None]
    assert [row["of"] for row in decided] == [None, None, "p0", "p0", "p0", None, None, "p6", None]
    assert [row["keep"] for row in decided] == [row["reason"] is None for row in decided]
    assert [row["cluster"] for row in decided] == [4, 1, 4, 4, 4, 1, 2, 2, 1]
    assert decided[2]["value"] == 1.0
    assert 0.8 < decided[3]["value"] == decided[4]["value"] < 1.0
    assert decided[0]["value"] is None
    assert answer.summary == {
        "pages": 9,
        "exact_duplicates": 3,
        "near_duplicates": 1,
        "not_compared": 0,
        "largest_group": 2,
        "clusters": {"2": 1, "3-4": 1},
        "largest_cluster": {"id": "p0", "pages": 4},
    }


def test_each_kind_can_be_left_alone(tmp_path: Path):
    a = " ".join(page(1))
    texts = [a, a, a.replace(" ", ", ")]
    reasons = {
        (exact, near): [
            row["reason"] for row in rows(found(texts, tmp_path, DuplicateSettings(exact=exact, near=near)))
        ]
        for exact in (True, False)
        for near in (True, False)
    }
    assert reasons == {
        (True, True): [None, EXACT, NEAR],
        (True, False): [None, EXACT, None],
        (False, True): [None, NEAR, NEAR],
        (False, False): [None, None, None],
    }


def test_a_chain_does_not_carry_away_its_far_end(tmp_path: Path):
    """Pages that each share most with the next: the ends have nothing in common, and no page goes without a likeness."""
    words = page(3, 400)
    texts = [" ".join(words[start : start + 120]) for start in range(0, 240, 20)]
    for settings in (DuplicateSettings(), DuplicateSettings(verify=0.4)):
        answer = found(texts, tmp_path, settings, shards=3)
        decided = rows(answer)
        assert answer.summary["largest_group"] > 4
        assert not decided[-1]["keep"] or decided[-1]["of"] is None
        for text, row in zip(texts, decided, strict=True):
            if not row["keep"]:
                assert decided[int(row["of"][1:])]["keep"]
                assert row["value"] >= settings.verify
                assert jaccard(text, texts[int(row["of"][1:])]) > settings.verify - 0.1
        assert sum(row["keep"] for row in decided) > 2


def test_without_verifying_whole_groups_go(tmp_path: Path):
    words = page(3, 400)
    texts = [" ".join(words[start : start + 120]) for start in range(0, 240, 5)]
    decided = rows(found(texts, tmp_path, FINEWEB))
    assert [row["of"] for row in decided] == [None] + ["p0"] * (len(texts) - 1)
    assert decided[-1]["value"] < 0.1


def test_too_many_different_pages_in_a_group_stay_and_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = page(3, 400)
    texts = [" ".join(words[start : start + 120]) for start in range(0, 240, 20)]
    whole = rows(found(texts, tmp_path, DuplicateSettings()))
    monkeypatch.setattr(duplicates, "_LEADERS", 1)
    answer = found(texts, tmp_path, DuplicateSettings())
    assert answer.summary["not_compared"] > 0
    assert sum(row["keep"] for row in rows(answer)) > sum(row["keep"] for row in whole)


def test_shards_and_files_change_nothing(tmp_path: Path):
    texts = []
    for seed in range(60):
        words = page(seed % 40)
        words[seed : seed + seed // 10] = ["other"] * (seed // 10)
        texts.append(" ".join(words))
    alone = rows(found(texts, tmp_path, DuplicateSettings()))
    assert sum(not row["keep"] for row in alone) == 20
    for shards in (2, 7, 60):
        assert rows(found(texts, tmp_path, DuplicateSettings(), shards)) == alone


def test_each_row_meets_the_one_before_it_and_the_first_of_its_bucket():
    keys = np.array([7, 3, 7, 7, 3, 9], np.uint32)
    pairs = {tuple(pair) for pair in np.stack(duplicates._meetings(keys)).T.tolist()}
    assert pairs == {(0, 2), (2, 3), (0, 3), (1, 4)}


def test_chance_equality_of_band_keys_joins_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Keys are cut to 32 bits, so some of a large corpus are equal by chance: here all of them."""
    monkeypatch.setattr(duplicates, "_meetings", lambda keys: (np.zeros(4, np.int64), np.arange(1, 5)))
    texts = [" ".join(page(seed)) for seed in range(5)]
    assert all(row["keep"] for row in rows(found(texts, tmp_path, FINEWEB)))


def test_no_pages(tmp_path: Path):
    settings = DuplicateSettings()
    for shards in (0, 1):
        answer = (
            found([], tmp_path, settings, shards) if shards else find_duplicates([], settings, tmp_path / "scratch")
        )
        assert rows(answer) == []
        assert answer.summary["pages"] == 0
        assert answer.summary["largest_cluster"] is None


def test_fingerprints_of_other_settings_are_refused(tmp_path: Path):
    path = tmp_path / "keys.parquet"
    pq.write_table(fingerprints(table(["a b c"]), DuplicateSettings()), path)
    with pytest.raises(
        ValueError,
        match=r"keys\.parquet: holds 28 bands of 4, .*digits folded.*need 14 bands of 8, .*again with these settings",
    ):
        find_duplicates([path], FINEWEB, tmp_path)
    with pytest.raises(ValueError, match=r"digits folded.*need.*digits kept"):
        find_duplicates([path], DuplicateSettings(fold_digits=False), tmp_path)
    pq.write_table(table(["a"]), path)
    with pytest.raises(ValueError, match=r"holds no fingerprints \(text"):
        find_duplicates([path], DuplicateSettings(), tmp_path)


def test_settings_name_every_broken_rule():
    broken = DuplicateSettings(bands=0, rows=65, verify=2.0, shingle_tokens=0).problems()
    assert [problem.split(" ")[0] for problem in broken] == [
        "duplicates.bands", "duplicates.rows", "duplicates.verify", "duplicates.shingle_tokens",
    ]  # fmt: skip
    assert DuplicateSettings().problems() == FINEWEB.problems() == []


def test_pages_that_differ_in_digits(tmp_path: Path):
    texts = [f"In {year} they sold {sold} apples, and nothing else." for year, sold in ((1984, 10), (2001, 32))]
    assert [row["keep"] for row in rows(found(texts, tmp_path, DuplicateSettings()))] == [True, False]
    assert all(row["keep"] for row in rows(found(texts, tmp_path, DuplicateSettings(fold_digits=False))))


def edited(text: str, share: float, draw: random.Random, vocabulary: list[str], pattern: str, space: str) -> str:
    """A share of the words (English) or characters (Chinese) left out, replaced, or followed by another."""
    out = []
    for piece in re.findall(pattern, text):
        if re.search(r"\w", piece) is None or draw.random() >= share:
            out.append(piece)
            continue
        kind = draw.randrange(3)
        out += [] if kind == 0 else [draw.choice(vocabulary)] if kind == 1 else [piece, space, draw.choice(vocabulary)]
    return "".join(out)


def english_pages(count: int) -> list[str]:
    pages: list[str] = []
    for path in sorted((SHARED / "peps").glob("*.rst"))[::4]:
        paragraphs = path.read_text(encoding="utf-8").split("\n\n")
        words = [len(paragraph.split()) for paragraph in paragraphs]
        start = 0
        for end in range(1, len(paragraphs) + 1):
            if sum(words[start:end]) >= 150:
                pages.append("\n\n".join(paragraphs[start:end]))
                start = end
        if len(pages) >= count:
            break
    return pages[:count]


def chinese_pages(count: int) -> list[str]:
    pages, poems = [], ""
    with open(SHARED / "tang_poems.jsonl", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            poems += row["title"] + "\n" + row["text"] + "\n\n"
            if len(poems) >= 300:
                pages.append(poems)
                poems = ""
            if len(pages) == count:
                return pages
    return pages


@needs_data
@pytest.mark.parametrize("language", ["en", "zh"])
def test_recall_and_precision_on_planted_copies(language: str, tmp_path: Path):
    draw, each = random.Random(0), 120
    base = english_pages(700) if language == "en" else chinese_pages(900)
    draw.shuffle(base)
    pattern, space = (r"\s+|\S+", " ") if language == "en" else (r"[\s\S]", "")
    vocabulary = sorted({w for text in base for w in re.findall(r"\w+" if language == "en" else r"[一-鿿]", text)})
    texts, planted = list(base), {}
    for kind, share in (("1%", 0.01), ("2%", 0.02), ("5%", 0.05), ("10%", 0.1)):
        for _ in range(each):
            number = len(planted)
            planted[len(texts)] = (number, kind)
            texts.append(edited(base[number], share, draw, vocabulary, pattern, space))
    if language == "zh":
        for number in range(len(planted), len(planted) + each):
            planted[len(texts)] = (number, "twin")
            texts.append(OpenCC("t2s").convert(base[number]))
    decided = rows(found(texts, tmp_path, DuplicateSettings(), shards=3))
    recall = {kind: 0.0 for _, kind in planted.values()}
    for copy, (original, kind) in planted.items():
        recall[kind] += (not decided[copy]["keep"] or not decided[original]["keep"]) / each
    assert min(recall["1%"], recall["2%"]) >= 0.98
    assert recall["5%"] >= 0.88
    assert recall.get("twin", 1.0) == pytest.approx(1.0)
    unlike = [jaccard(t, texts[int(r["of"][1:])]) < 0.5 for t, r in zip(texts, decided, strict=True) if not r["keep"]]
    assert np.mean(unlike) <= 0.02
