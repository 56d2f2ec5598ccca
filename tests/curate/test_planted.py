"""Planted junk: the truth is what is in the files, the measuring counts right, and the pipeline finds what it should."""

import gzip
import json
import sys
from collections import Counter
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastwarc.warc import ArchiveIterator

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import planted
from planted_pages import BROKEN_LINES, COPIES, HARMLESS, HTML_KINDS, JUNK_PAGES, ODD, ROOT, cut, make

SHARED = ROOT.parent / "shared" / "data"
pytestmark = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"needs real text in {SHARED}, which is not part of the project"
)
SCALE = 0.1


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, truth file) of a tenth of the pages."""
    folder = tmp_path_factory.mktemp("planted")
    return folder, make(folder, SHARED, SCALE)


@pytest.fixture(scope="module")
def truth(made):
    return planted.read_truth(made[1])


def urls_in_files(folder: Path) -> Counter:
    found = Counter()
    for path in sorted((folder / "pages").iterdir()):
        data = path.read_bytes()
        if ".warc" in path.name:
            found.update(r.headers["WARC-Target-URI"] for r in ArchiveIterator(BytesIO(data)))
            continue
        for line in (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines():
            try:
                found[json.loads(line)["url"]] += 1
            except (ValueError, KeyError, TypeError):
                found["broken"] += 1
    return found


def test_every_page_is_in_the_files_once(made, truth):
    found = urls_in_files(made[0])
    assert found.pop("broken") == len(BROKEN_LINES)
    assert set(found.values()) == {1} and set(found) == {row["url"] for row in truth}


def test_every_kind_is_planted_in_both_languages(truth):
    kinds = Counter((row["kind"], row["language"][:2]) for row in truth)
    for kind in (*COPIES, *ODD, *JUNK_PAGES):
        for language in ("ot",) if kind == "foreign" else ("zh",) if kind == "twin" else ("en", "zh"):
            assert kinds[kind, language] >= 1, (kind, language)
    assert kinds["edit01", "zh"] == round(SCALE * COPIES["edit01"])
    assert {row["language"] for row in truth} == {"en", "zh-Hans", "zh-Hant", "other"}


def test_copies_point_at_base_pages_no_two_at_the_same(truth):
    base = {row["url"]: row for row in truth if row["kind"] == "base"}
    originals = [row["of"] for row in truth if row["of"]]
    assert len(set(originals)) == len(originals) and set(originals) <= set(base)
    assert all(len(row["text"]) >= 300 for row in base.values() if row["source"] == "poems")
    twins = [row for row in truth if row["kind"] == "twin"]
    assert all(base[row["of"]]["language"] == "zh-Hant" and row["language"] == "zh-Hans" for row in twins)
    assert sum(row["text"] != base[row["of"]]["text"] for row in twins) == len(twins)
    assert all(row["jaccard"] > 0.8 for row in truth if row["kind"] == "edit01")


def test_same_seed_same_bytes(made, tmp_path):
    make(tmp_path, SHARED, SCALE)
    for path in sorted((made[0] / "pages").iterdir()):
        assert path.read_bytes() == (tmp_path / "pages" / path.name).read_bytes(), path.name


def test_cutting_loses_no_paragraph_but_a_short_rest():
    text = "\n\n".join(f"paragraph {i} " + "x" * 40 for i in range(50))
    assert "\n\n".join(cut(text, 200)) == text
    assert list(cut("a\n\n\nb", 100)) == [] and list(cut("", 100)) == []


def write_outcome(folder: Path, truth: list[dict], kept: set[str], rejected: dict[str, dict]) -> None:
    """A curated folder in which `kept` were kept with the truth's text, and `rejected` url -> {step, reason, of url}."""
    ids = {row["url"]: f"{number:016x}" for number, row in enumerate(truth)}
    page = [("text", pa.large_string()), ("id", pa.string()), ("url", pa.string())]
    rows = [{"text": r["text"], "id": ids[r["url"]], "url": r["url"]} for r in truth]
    lost = [pa.field(name, pa.string()) for name in ("step", "reason", "of")] + [pa.field("value", pa.float64())]
    rejects = [row | {"of": None, "value": None} | rejected[row["url"]] for row in rows if row["url"] in rejected]
    for row in rejects:
        row["of"] = ids.get(row["of"])
    rejects += [{"text": "{", "step": "read", "reason": "broken line"}] * len(BROKEN_LINES)
    for name, some, schema in (
        ("data", [row for row in rows if row["url"] in kept], pa.schema(page)),
        ("rejected", rejects, pa.schema([*page, *lost])),
    ):
        (folder / name).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(some, schema), folder / name / "part-00000.parquet")


def test_measuring_a_perfect_outcome(made, truth, tmp_path):
    """Copies, but the 10% ones, removed for their base page; junk, damaged pages and test questions rejected; and data
    left unmasked, as texts are the planted ones, which is then all that is broken."""
    rejected = {row["url"]: {"step": "duplicates", "reason": "near duplicate", "of": row["of"]}
                for row in truth if row["of"] and row["kind"] != "edit10"}  # fmt: skip
    rejected |= {row["url"]: {"step": "rules", "reason": "junk"} for row in truth
                 if row["kind"] in JUNK_PAGES or row["kind"] in ("undecodable", "replaced", "evaluation")}  # fmt: skip
    write_outcome(tmp_path, truth, {row["url"] for row in truth} - set(rejected), rejected)
    found = planted.measure(tmp_path, made[1])
    assert all("are not masked" in line for line in planted.broken(found))
    assert len(planted.broken(found)) == len(found["personal"]["planted"]) > 1
    counts = found["pairs"]["edit02", "zh"]
    assert counts["planted"] == counts["reached"] == counts["found"] == round(SCALE * COPIES["edit02"])
    assert found["pairs"]["edit10", "en"]["found"] == 0
    assert found["rules"]["rules", "junk"]["junk"] == sum(row["kind"] in JUNK_PAGES for row in truth)
    assert found["personal"]["masked"] == dict.fromkeys(found["personal"]["planted"], 0)  # nobody masked anything
    assert found["personal"]["changed"] == 0 and found["personal"]["harmless"] > 0


def test_measuring_what_went_wrong(made, truth, tmp_path):
    """A page lost, one kept twice, a base page removed for a stranger, a page kept with another text: each is told."""
    base = [row["url"] for row in truth if row["kind"] == "base"]
    kept = {row["url"] for row in truth} - {base[0], base[1]}
    write_outcome(tmp_path, truth, kept, {base[1]: {"step": "duplicates", "reason": "near duplicate", "of": base[2]},
                                          base[3]: {"step": "rules", "reason": "short"}})  # fmt: skip
    damaged = next(row["url"] for row in truth if row["kind"] == "mojibake")
    data = pq.read_table(tmp_path / "data" / "part-00000.parquet")
    texts = [
        "spoilt" if url == damaged else text
        for url, text in zip(data["url"].to_pylist(), data["text"].to_pylist(), strict=True)
    ]
    data = data.set_column(0, "text", pa.array(texts, pa.large_string()))
    pq.write_table(data, tmp_path / "data" / "part-00000.parquet")
    wrong = "\n".join(planted.broken(planted.measure(tmp_path, made[1])))
    assert "1 pages nowhere" in wrong and "1 pages twice" in wrong
    assert "1 of 1 removed pages have no real near-duplicate" in wrong
    assert "pages of junk were kept" in wrong and "pages with a test question were kept" in wrong
    assert "recall of exact.en 0.000" in wrong and "1 pages with encoding mojibake" in wrong
    planted.show(planted.measure(tmp_path, made[1]))


def test_html_kinds_are_html_and_harmless_text_is_there(made, truth):
    assert {row["file"].partition("-")[0] for row in truth if row["kind"] in HTML_KINDS} == {"html"}
    assert all(HARMLESS[row["language"][:2]] in row["text"] for row in truth if row["kind"] == "harmless")


def test_the_pipeline_finds_what_was_planted(made, tmp_path):
    planted.curate(made[0], tmp_path / "clean", "fineweb", workers=1)
    found = planted.measure(tmp_path / "clean", made[1])
    assert planted.broken(found) == []
