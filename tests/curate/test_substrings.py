"""Passages shared word for word: against a search of all runs of words, and in bounded parts."""

import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fledge.curate.substrings import RepeatSettings, find_repeats

VOCABULARY = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrs"]


def words(seed: int, count: int) -> list[str]:
    draw = random.Random(seed)
    return [draw.choice(VOCABULARY) for _ in range(count)]


def report(pages: list[list[str]], folder: Path, batch: int = 4, **settings: int) -> dict:
    texts = [" ".join(page) for page in pages]
    table = pa.table({"text": pa.array(texts, pa.large_string()), "id": [f"p{i}" for i in range(len(texts))]})
    found = find_repeats(
        lambda: (table.slice(start, batch) for start in range(0, len(table), batch)), folder, RepeatSettings(**settings)
    )
    assert list(folder.iterdir()) == []
    return found


def inside_repeats(pages: list[list[str]], length: int) -> int:
    """Words inside a run of `length` that another page has too."""
    holders = defaultdict(set)
    for number, page in enumerate(pages):
        for start in range(len(page) - length + 1):
            holders[tuple(page[start : start + length])].add(number)
    covered = 0
    for page in pages:
        marks = np.zeros(len(page), bool)
        for start in range(len(page) - length + 1):
            marks[start : start + length] |= len(holders[tuple(page[start : start + length])]) > 1
        covered += int(marks.sum())
    return covered


def test_passages_are_found_and_counted(tmp_path: Path):
    notice, pair = words(1, 90), words(2, 120)
    pages = [words(10 + i, 150) for i in range(12)]
    for i in (0, 3, 5, 9):
        pages[i] = pages[i][: 20 * i] + notice + pages[i][20 * i :]
    pages[9] += notice
    pages[1], pages[2] = pair + pages[1], pages[2] + pair
    pages[7] = pages[7] + pages[7]  # a page that repeats itself shares nothing
    found = report(pages, tmp_path)
    assert found["pages"] == 12
    assert found["tokens"] == sum(map(len, pages))
    exact = inside_repeats(pages, 50)
    assert exact == 5 * 90 + 2 * 120
    assert 0.7 * exact < found["repeated_tokens"] <= exact
    assert found["share"] == found["repeated_tokens"] / found["tokens"]
    first, second = found["passages"]
    assert (first["pages"], first["count"], second["pages"], second["count"]) == (4, 5, 2, 2)
    assert first["text"][:200] in " ".join(notice)
    assert second["id"] in ("p1", "p2")
    assert second["text"][:200] in " ".join(pair)
    assert 60 <= first["tokens"] <= 90


def test_passages_of_100_words_are_found_and_none_of_49(tmp_path: Path):
    long, short = ([words(seed, size) for seed in range(100, 140)] for size in (100, 49))
    for passages, expected in ((long, 40), (short, 0)):
        pages = [words(1000 + 2 * i + side, 30 + 5 * side) + p for i, p in enumerate(passages) for side in (0, 1)]
        found = report(pages, tmp_path, shown=100)
        assert len(found["passages"]) == expected


def test_batches_change_nothing(tmp_path: Path):
    pages = [words(i % 9, 200)[: 100 + 10 * i] for i in range(18)]
    assert report(pages, tmp_path, batch=1) == report(pages, tmp_path, batch=100)


def test_nothing_repeated(tmp_path: Path):
    found = report([words(i, 80) for i in range(3)], tmp_path)
    assert (found["repeated_tokens"], found["share"], found["passages"]) == (0, 0.0, [])
    assert report([], tmp_path)["share"] == 0.0


def test_chinese_and_a_cut_of_long_passages(tmp_path: Path):
    draw = random.Random(0)
    shared = "".join(chr(0x4E00 + draw.randrange(3000)) for _ in range(400))
    found = report([[shared], ["前言，", shared], ["別的"]], tmp_path)
    (passage,) = found["passages"]
    assert passage["pages"] == 2
    assert 370 <= passage["tokens"] <= 400
    assert len(passage["text"]) == 300


def test_settings_name_every_broken_rule():
    assert RepeatSettings().problems() == []
    assert len(RepeatSettings(tokens=3, shown=-1).problems()) == 2
    with pytest.raises(ValueError, match="at least 10"):
        find_repeats(list, Path("unused"), RepeatSettings(tokens=3))
