"""`fledge quality`: from two folders to a classifier, its figures and its page."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pytest

from fledge.core.config import build
from fledge.curate.pages import PAGE
from fledge.curate.quality import QualityModel
from fledge.curate.quality_command import QualityOptions, run, warnings
from fledge.curate.shards import write_manifest, write_shard

WORDS = "the river crosses an old bridge near our quiet harbour where a teacher paints winter gardens".split()


def texts(count: int, seed: int, shuffled: bool, sentences: int = 6) -> list[str]:
    """Pages of parts of one sentence, in its order or in none."""
    draw = random.Random(seed)
    pages = []
    for _ in range(count):
        said = []
        for _ in range(sentences):
            first = draw.randrange(len(WORDS) - 5)
            part = WORDS[first : first + 6]
            if shuffled:
                draw.shuffle(part)
            said.append(" ".join(part))
        pages.append(". ".join(said) + ".")
    return pages


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """good.jsonl and ordinary/, with a broken line each way."""
    rows = [json.dumps({"text": text, "language": "en"}) for text in texts(150, 1, False)]
    (tmp_path / "good.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "ordinary").mkdir()
    rows = [json.dumps({"text": text, "language": "en"}) for text in texts(200, 2, True)]
    (tmp_path / "ordinary" / "a.jsonl").write_text("\n".join([*rows, '{"text": "cut of']) + "\n")
    return tmp_path


def options(place: Path, **over) -> QualityOptions:
    given = {"good": str(place / "good.jsonl"), "ordinary": str(place / "ordinary"), "out": str(place / "q")}
    return build(QualityOptions, given | over)


def test_two_folders_become_a_classifier(place: Path, capsys):
    out = run(options(place))
    card = QualityModel.open(out).card
    assert card.metrics["all"]["roc_area"] > 0.95 and list(card.languages) == ["*", "en"]
    assert (card.data["good"]["seen"], card.data["ordinary"]["seen"], card.data["ordinary"]["not_read"]) == (
        150,
        200,
        1,
    )
    said = capsys.readouterr()
    assert "ROC area" in said.out and "the best tenth" in said.out
    assert "ordinary: records that could not be read and were left out: 1" in said.err
    html = (out / "quality.html").read_text()
    assert "Ordinary pages it likes best" in html and "ordinary/a.jsonl" in html
    first = (out / "card.json").read_bytes()
    run(options(place))
    assert (out / "card.json").read_bytes() == first, "the same input gives the same bytes"


def test_pages_of_unlike_length_are_told_of(place: Path):
    rows = [json.dumps({"text": text, "language": "en"}) for text in texts(150, 1, False, sentences=40)]
    (place / "good.jsonl").write_text("\n".join(rows) + "\n")
    out = run(options(place))
    assert any(
        "good pages are longer (ROC area of length alone 1.00)" in w for w in warnings(QualityModel.open(out).card)
    )


def test_a_curated_folder_is_its_shards_alone(place: Path):
    def table(found: list[str]) -> pa.Table:
        blank = [""] * len(found)
        columns = {
            "text": found,
            "id": blank,
            "source": blank,
            "url": [None] * len(found),
            "language": ["en"] * len(found),
        }
        return pa.table(columns, schema=PAGE)

    clean = place / "clean"
    kept = write_shard(clean / "data" / "part-00000.parquet", [table(texts(150, 1, False))])
    dropped = write_shard(clean / "rejected" / "part-00000.parquet", [table(texts(90, 3, True))])
    write_manifest(clean, [kept], rejected=[dropped], facts={})
    out = run(options(place, good=str(clean)))
    assert QualityModel.open(out).card.data["good"]["seen"] == 150


def test_options_that_cannot_be_used(place: Path):
    with pytest.raises(ValueError, match=r"(?s)train.pages|pages = 1: must be at least 100"):
        build(QualityOptions, {"good": "a", "ordinary": "b", "out": "c", "train": {"pages": 1}})
    with pytest.raises(ValueError, match="good: required"):
        build(QualityOptions, {"ordinary": "b", "out": "c"})
    with pytest.raises(ValueError, match="nowhere"):
        run(options(place, good=str(place / "nowhere")))
    assert not (place / "q").exists()
