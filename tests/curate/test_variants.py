"""Traditional and Simplified: an exact twin in the other script folds to the same characters."""

import json
from pathlib import Path

import numpy as np
import pytest
from opencc import OpenCC

from fledge.curate.variants import SIMPLIFIED, TRADITIONAL, script_marks, simplified_table

POEMS = Path(__file__).resolve().parents[3] / "shared" / "data" / "tang_poems.jsonl"
TRADITIONAL_TEXT = "據瞭解，電腦計畫由錢鍾書的憑藉與回覆開始，項鍊甚鉅，復甦看著後來的裡面。"


def points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def folded(text: str) -> str:
    return simplified_table()[points(text)].tobytes().decode("utf-32-le")


def test_table_leaves_all_but_han_alone_and_is_idempotent():
    table = simplified_table()
    assert table.shape == (0x110000,)
    assert table.dtype == np.uint32
    assert (table[table] == table).all()
    assert (table[:0x2E80] == np.arange(0x2E80)).all()
    assert (table != np.arange(0x110000)).sum() > 5000


def test_tables_cannot_be_written():
    for table in (simplified_table(), script_marks()):
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 1


@pytest.mark.parametrize("configuration", ["t2s", "tw2s", "hk2s"])
def test_words_opencc_converts_as_words_fold_alike(configuration: str):
    assert folded(OpenCC(configuration).convert(TRADITIONAL_TEXT)) == folded(TRADITIONAL_TEXT)


def test_regional_forms_fold_alike():
    assert folded("裏裡群羣爲為") == "里里群群为为"


def test_different_characters_stay_different():
    assert len(set(folded("大太天夫未末土士己已"))) == 10


@pytest.mark.parametrize(
    ("characters", "mark"),
    [("後裡於個萬與國學會體雲號", TRADITIONAL), ("个万与国学会体号这说们", SIMPLIFIED), ("乾后里于云人大山水abc，", 0)],
)
def test_marks(characters: str, mark: int):
    assert script_marks()[points(characters)].tolist() == [mark] * len(characters)


@pytest.mark.skipif(not POEMS.exists(), reason=f"no {POEMS}")
def test_poems_and_their_twins():
    poems = [json.loads(line)["text"] for line in POEMS.read_text(encoding="utf-8").splitlines()[:3000]]
    text = "\n".join(poems)
    twin = OpenCC("t2s").convert(text)
    assert folded(twin) == folded(text)
    marks = script_marks()
    assert (marks[points(text)] == TRADITIONAL).mean() > 100 * (marks[points(text)] == SIMPLIFIED).mean()
    assert (marks[points(twin)] == TRADITIONAL).mean() < 0.0001
