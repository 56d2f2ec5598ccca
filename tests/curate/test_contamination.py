"""Evaluation text on pages: found however it is written, named, and not where it only looks alike."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fledge.curate import shingles
from fledge.curate.contamination import FOUND, Evaluations, contamination_kernel

QUESTION = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
POEM = "春眠不覺曉，處處聞啼鳥。夜來風雨聲，花落知多少。"
FILLER = "This page is about the making of clips out of wire, and about the people who sell them to each other. " * 3


def evaluations(folder: Path, *rows: dict, ngram: int = 13) -> Evaluations:
    path = folder / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Evaluations([path], ngram)


def judged(found: Evaluations, *texts: str, reject: bool = True, least_share: float = 0.0) -> list[dict]:
    pages = pa.table({"text": pa.array(texts, pa.large_string()), "id": [str(i) for i in range(len(texts))]})
    table = contamination_kernel(found, reject, least_share)(pages)
    assert table.schema.field("contaminated").type == pa.float32()
    assert table["text"].to_pylist() == list(texts)
    return table.to_pylist()


def test_a_question_is_found_however_it_is_set(tmp_path: Path):
    found = evaluations(tmp_path, {"question": "Other words entirely, none of which anyone would look for here today."}, {"question": QUESTION})  # fmt: skip
    clean, copied, shouted = judged(found, FILLER, FILLER + QUESTION + FILLER, QUESTION.upper().replace(" ", "\n"))
    assert (clean["contaminated"], clean["contaminated_by"], clean["reason"], clean["value"]) == (0, None, None, None)
    assert copied["reason"] == shouted["reason"] == FOUND
    assert copied["contaminated"] == copied["value"] == shouted["contaminated"] == 1.0
    first = "Natalia sold clips to 48 of her friends in April, and then she"
    assert copied["contaminated_by"] == f"{tmp_path}/test.jsonl:2: {first}"
    assert shouted["contaminated_by"].endswith(first.upper())


def test_the_share_is_of_the_items_ngrams(tmp_path: Path):
    """20 words have 8 runs of 13: the first 15 words have 3 of them."""
    found = evaluations(tmp_path, {"question": QUESTION})
    start = " ".join(QUESTION.split()[:15])
    (row,) = judged(found, f"{start} something else. {start} again.")
    assert row["contaminated"] == pytest.approx(3 / 8)
    assert judged(found, start, least_share=0.5)[0]["reason"] is None
    assert judged(found, start, reject=False)[0]["reason"] is None
    assert judged(found, start, reject=False)[0]["contaminated_by"] is not None


def test_the_item_with_the_largest_share_is_named(tmp_path: Path):
    found = evaluations(tmp_path, {"question": QUESTION + " How many did she sell altogether in April and May?"}, {"question": QUESTION})  # fmt: skip
    (row,) = judged(found, QUESTION)
    assert row["contaminated"] == 1.0
    assert ":2: " in row["contaminated_by"]


def test_chinese_in_either_script(tmp_path: Path):
    found = evaluations(tmp_path, {"question": "背一首诗", "answer": POEM})
    copied, other = judged(
        found, "前言。春眠不觉晓，处处闻啼鸟。夜来风雨声", "春天到了，處處聽見鳥叫，夜裡又有風雨，花都落了。"
    )
    assert copied["contaminated"] == pytest.approx(3 / 8)
    assert copied["contaminated_by"].endswith(": 春眠不觉晓，处处闻啼鸟。夜来风")
    assert other["reason"] is None


def test_short_fields_count_whole_and_from_8_words_on(tmp_path: Path):
    found = evaluations(
        tmp_path,
        {"question": "Which is the highest mountain of Tasland, and why?", "answer": "It is Mount Otto, seven words."},
    )
    whole, part, answer = judged(
        found, "Q: which is the highest mountain of tasland and why", "the highest mountain of Tasland, and why?",
        "It is Mount Otto, seven words.",
    )  # fmt: skip
    assert whole["contaminated"] == 1.0
    assert part["reason"] is None
    assert answer["reason"] is None


def test_numbers_matter(tmp_path: Path):
    found = evaluations(tmp_path, {"question": QUESTION})
    assert judged(found, QUESTION.replace("48", "52").replace("half", "twice"))[0]["reason"] is None


def test_rows_of_numbers_and_instructions_are_no_evidence(tmp_path: Path):
    instruction = "Answer the following multiple choice question with one of the letters A, B, C or D only."
    names = [f"{a}{b}" for a in ("ka", "lo", "mi", "ne") for b in ("ran", "sum", "tel")]
    rows = [
        {"prompt": f"{instruction} {name} " + " ".join(f"{name}{other}" for other in names) + " 0" * 40}
        for name in names
    ]
    found = evaluations(tmp_path, *rows)
    told, zeros, item = judged(found, instruction, "0 " * 60, rows[5]["prompt"])
    assert told["reason"] is None
    assert zeros["reason"] is None
    assert ":6: " in item["contaminated_by"]


def test_parquet_nested_strings_and_many_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "test.parquet"
    rows = [
        {"id": i, "choices": {"text": [f"item{i} " + " ".join(f"{c}{i}" for c in "abcdefghijklmn")]}} for i in range(50)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    monkeypatch.setattr(shingles, "BLOCK_BYTES", 200)
    texts = [FILLER if i % 3 else f"{i} {rows[i]['choices']['text'][0]}" for i in range(50)]
    found = judged(Evaluations([path]), *texts)
    assert [row["reason"] is not None for row in found] == [i % 3 == 0 for i in range(50)]
    assert [row["contaminated_by"].split(": ")[0] for row in found[::3]] == [f"{path}:{i + 1}" for i in range(0, 50, 3)]


def test_what_is_wrong_is_said(tmp_path: Path):
    with pytest.raises(ValueError, match=r"0 usable evaluation texts of 8 words or more in .*test\.jsonl"):
        evaluations(tmp_path, {"question": "Too short to tell?"})
    with pytest.raises(ValueError, match="ngram = 5: must be between 8 and 255"):
        evaluations(tmp_path, {"question": QUESTION}, ngram=5)
    with pytest.raises(FileNotFoundError):
        Evaluations([tmp_path / "none.jsonl"])
