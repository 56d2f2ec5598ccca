"""Pages for tests of rules: tables, real text where there is some, and texts that try every corner of a rule."""

import json
import random
from functools import cache
from pathlib import Path

import pyarrow as pa
import pytest

from fledge.curate.pages import PAGE

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
PARTS = (
    "[1]", "[edit]", ".", "?", "!", "...", "…", "'", "#", "javascript", "lorem ipsum", "use cookies", "word", "the",
    "and", "with", "more words here", "\n", "\n", "\n\n", "\r\n", "\u2029", " ", "  ", "\t", "end.", "don't", "3.14",
    "- item", "•", "foo_bar", "caf\u00e9", "e\u0301", "ー", "한국", "中文", "人", "的", "－", "١٢", "x" * 40,
)  # fmt: skip


def table(texts: list[str], language: str | list[str]) -> pa.Table:
    """Pages with numbers for ids."""
    ids = [str(n) for n in range(len(texts))]
    languages = [language] * len(texts) if isinstance(language, str) else language
    return pa.table([texts, ids, ids, [None] * len(texts), languages], PAGE)


def strange(count: int, seed: int, longest: int = 60) -> list[str]:
    """Short texts of odd parts in random order; every one has a word with a letter."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        few = rng.sample(PARTS, rng.randrange(2, len(PARTS)))
        texts.append("".join(rng.choice(few) + rng.choice(["", " ", " "]) for _ in range(rng.randrange(longest))) + "a")
    return texts


@cache
def real(count: int = 40) -> dict[str, list[str]]:
    """Language -> pages of real text: technical documents, dialogue and arithmetic; Tang poems in Traditional Chinese."""
    if not SHARED.exists():
        pytest.skip(f"the real texts are not there: {SHARED}")
    english = [path.read_text("utf-8")[3000:7300] for path in sorted((SHARED / "peps").glob("*.rst"))[:count]]
    plays = (SHARED / "tinyshakespeare.txt").read_text("utf-8")
    english += [plays[start : start + 4000] for start in range(0, 4000 * count // 2, 4000)]
    with open(SHARED / "gsm8k" / "train.jsonl", encoding="utf-8") as lines:
        english += [
            f"{(row := json.loads(line))['question']}\n{row['answer']}"
            for _, line in zip(range(count), lines, strict=False)
        ]
    chinese, page = [], ""
    with open(SHARED / "tang_poems.jsonl", encoding="utf-8") as lines:
        for line in lines:
            page += (row := json.loads(line))["title"] + "\n" + row["text"] + "\n\n"
            if len(page) > 300:
                chinese.append(page.strip())
                page = ""
            if len(chinese) == count:
                break
    return {"en": [text for text in english if text.strip()], "zh-Hant": chinese}
