"""The plan gives the same bytes however it is run, loses no page, and refuses to go on with something else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crawls import FILES, PAGES, digests, write_crawl, write_rule

import fledge
from fledge.curate import sifting
from fledge.curate.command import curate, joined
from fledge.curate.deciding import decide
from fledge.curate.engine import Task, Work
from fledge.curate.funnel import Tally
from fledge.curate.inputs import find_splits
from fledge.curate.pages import REASON, kept_all
from fledge.curate.plan import CurateOptions, open_job
from fledge.curate.shards import Curated
from fledge.text.curated import read_manifest

BROKEN = FILES  # one line in each file


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_crawl(tmp_path_factory.mktemp("crawled") / "crawl")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rule(tmp_path_factory.mktemp("rule"))


def options_of(crawl: Path, recipe: Path, out: Path, **over) -> CurateOptions:
    return CurateOptions(
        **{"inputs": [str(crawl)], "recipe": str(recipe), "out": str(out), "split_bytes": 40_000, "workers": 2} | over
    )


@pytest.fixture(scope="module")
def curated(crawl: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two workers make of the crawl."""
    return curate(options_of(crawl, recipe, tmp_path_factory.mktemp("whole") / "clean"), quiet=True)


def test_one_worker_two_workers_and_a_plain_loop_give_the_same_bytes(crawl, recipe, curated, tmp_path):
    one = curate(options_of(crawl, recipe, tmp_path / "one", workers=1), quiet=True)
    assert len(read_manifest(curated).shards) > 3
    assert digests(one) == digests(curated)

    options = options_of(crawl, recipe, tmp_path / "loop")
    job, _ = open_job(options)
    splits, _ = find_splits(options.inputs, options.split_size(), options.read)
    sieve = sifting.Sieve(job)
    for split in reversed(splits):  # in another order
        sieve.sift(split)
    decide(job, len(splits))
    for split in splits:
        sifting.keep(job, split.number, job.decided_steps())
    shards = {name: digest for name, digest in digests(curated).items() if name.endswith(".parquet")}
    loop = {name: digest for name, digest in digests(tmp_path / "loop").items() if not name.startswith("work/")}
    assert loop == shards


def test_a_local_ray_cluster_of_two_workers_gives_the_same_bytes(crawl, recipe, curated, tmp_path):
    pytest.importorskip("ray")
    options = options_of(crawl, recipe, tmp_path / "ray", ray="local")
    code = "import sys, msgspec; from fledge.curate.command import CurateOptions, curate; "
    code += "curate(msgspec.json.decode(sys.argv[1], type=CurateOptions))"
    environment = {**os.environ, "PYTHONPATH": str(Path(fledge.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code, msgspec.json.encode(options).decode()],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "ray") == digests(curated)


def test_every_page_is_kept_once_or_rejected_once_with_its_reason(curated):
    manifest = read_manifest(curated)
    kept = [row for table in Curated.open(curated).tables() for row in table.to_pylist()]
    rejected = [row for table in Curated.open(curated).tables(rejected=True) for row in table.to_pylist()]
    ids = [row["id"] for row in kept + rejected]
    assert len(ids) == len(set(ids)) == FILES * PAGES + BROKEN
    assert all(row["step"] and row["reason"] for row in rejected)
    counted = {}
    for row in rejected:
        counted[row["step"], row["reason"]] = counted.get((row["step"], row["reason"]), 0) + 1
    told = {}
    for dropped in manifest.facts["funnel"]["dropped"]:
        key = dropped["step"], dropped["reason"]
        told[key] = told.get(key, 0) + dropped["amount"]["pages"]
    assert counted == told
    assert counted["gopher_quality", "words below 20"] == FILES * PAGES // 12
    assert counted["duplicates", "exact duplicate"] == FILES * PAGES // 12
    assert {row["of"] for row in rejected if row["step"] == "duplicates"} <= {row["id"] for row in kept}
    assert manifest.facts["funnel"]["counted"]["pii_email"] == FILES * PAGES // 12
    assert not any("@mail" in row["text"] for row in kept)
    assert {row["language"] for row in kept} == {"en", "zh-Hant"}


def test_the_manifest_describes_every_file_and_work_is_gone(curated):
    manifest = read_manifest(curated)
    named = {record.file: record.sha256 for record in (*manifest.shards, *manifest.rejected)}
    assert named == {name: digest for name, digest in digests(curated).items() if name != "manifest.json"}
    assert not (curated / "work").exists()
    for record in manifest.shards:
        texts = pq.read_table(curated / record.file)["text"].to_pylist()
        assert (record.pages, record.characters) == (len(texts), sum(map(len, texts)))
    assert len(manifest.facts["inputs"]) == FILES


def test_rejects_can_be_left_out_and_change_nothing_else(crawl, recipe, curated, tmp_path):
    out = curate(options_of(crawl, recipe, tmp_path / "clean", rejects=False), quiet=True)
    assert not (out / "rejected").exists()
    there, here = read_manifest(curated), read_manifest(out)
    assert here.shards == there.shards and here.facts["funnel"] == there.facts["funnel"]


def test_finished_work_is_not_done_again_and_other_settings_are_refused(crawl, recipe, curated, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in curated.rglob("*.parquet")}
    assert curate(options_of(crawl, recipe, curated, workers=1)) == curated
    assert "nothing to do" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in curated.rglob("*.parquet")}
    with pytest.raises(ValueError, match=r"options\.languages: .* there, .* now"):
        curate(options_of(crawl, recipe, curated, languages="en"), quiet=True)
    other = tmp_path / "other.toml"
    other.write_text(recipe.read_text().replace("[20, 100_000]", "[30, 100_000]"))
    with pytest.raises(ValueError, match=r"recipe\.rules\.gopher_quality\.en\.words"):
        curate(options_of(crawl, other, curated), quiet=True)


def test_input_that_changed_is_refused_by_name(recipe, tmp_path, monkeypatch):
    crawl = write_crawl(tmp_path / "crawl", files=2, pages=12)
    options = options_of(crawl, recipe, tmp_path / "clean")
    with monkeypatch.context() as patch:  # stopped before the second phase
        patch.setattr("fledge.curate.command.decide", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            curate(options, quiet=True)
    changed = crawl / "pages-1.jsonl"
    changed.write_text(changed.read_text() + '{"text": "one more"}\n')
    with pytest.raises(ValueError, match=r"begun from other input: .*pages-1\.jsonl \(changed\)"):
        curate(options, quiet=True)
    (crawl / "pages-2.jsonl").write_text('{"text": "new"}\n')
    with pytest.raises(ValueError, match=r"pages-2\.jsonl \(new\)"):
        curate(options, quiet=True)


def test_shards_of_another_version_are_done_again(crawl, recipe, curated, tmp_path, monkeypatch, capsys):
    options = options_of(crawl, recipe, tmp_path / "clean")
    with monkeypatch.context() as patch:
        patch.setattr("fledge.curate.plan.made_by", lambda: {"kernels": "older"})
        patch.setattr("fledge.curate.command.decide", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            curate(options, quiet=True)
    curate(options)
    assert "by another version of this program" in capsys.readouterr().err
    assert digests(tmp_path / "clean") == digests(curated)


def test_a_kernel_that_loses_a_page_or_a_count_that_differs_is_our_bug(crawl, recipe, tmp_path):
    options = options_of(crawl, recipe, tmp_path / "clean")
    job, _ = open_job(options)
    splits, _ = find_splits(options.inputs, options.split_size(), options.read)
    sieve = sifting.Sieve(job)
    sieve.kernels.append(("careless", lambda pages: kept_all(pages.slice(0, max(0, len(pages) - 1)))))
    sieve.steps.append("careless")
    with pytest.raises(AssertionError, match="step careless lost or moved pages"):
        sieve.sift(splits[0])
    assert not list(job.work().glob("*.parquet")) and not list(job.work().glob(".*"))

    told = Work(job).summary(msgspec.json.encode(Task("keep", 99, steps=["duplicates"])).decode())
    assert told.error and "sifted-00099.json is gone" in told.error
    sifted = sifting.Sieve(job).sift(splits[0])
    dropped = sifted.funnel.dropped[:-1]
    with pytest.raises(AssertionError, match="pages came"):
        msgspec.structs.replace(sifted.funnel, dropped=dropped).check()


def test_a_shard_of_which_nothing_stays_is_empty_and_readable(recipe, tmp_path):
    crawl = write_crawl(tmp_path / "crawl", files=1, pages=12)
    (crawl / "spam.jsonl").write_text('{"text": "Buy now!"}\n' * 3 + "[]\n" * 3)
    out = curate(options_of(crawl, recipe, tmp_path / "clean", split_bytes=1, workers=1), quiet=True)
    records = read_manifest(out).shards
    assert 0 in [record.pages for record in records]
    assert sum(1 for _ in Curated.open(out).texts()) == sum(record.pages for record in records)


def test_no_page_left_is_an_error_that_says_where_they_went(recipe, tmp_path):
    (tmp_path / "crawl").mkdir()
    (tmp_path / "crawl" / "spam.jsonl").write_text('{"text": "Buy now and save!"}\n' * 4)
    with pytest.raises(ValueError, match=r"0 usable pages .* \(4 read: 4 gopher_quality: words below 20\)"):
        curate(options_of(tmp_path / "crawl", recipe, tmp_path / "clean", languages="any"), quiet=True)
    assert not (tmp_path / "clean" / "manifest.json").exists()


def test_output_inside_the_input_is_refused(crawl, recipe):
    for out in (crawl, crawl / "clean"):
        with pytest.raises(ValueError, match="would be read as input"):
            curate(options_of(crawl, recipe, out), quiet=True)
        assert not (crawl / "recipe.json").exists()


def test_edited_text_is_counted_as_it_is_afterwards():
    tally = Tally(["read", "cut"])
    sieve = object.__new__(sifting.Sieve)
    sieve.scorers, sieve.counting = [], []

    def cut(pages: pa.Table) -> pa.Table:
        halves = pa.array([text[: len(text) // 2] for text in pages["text"].to_pylist()], pa.large_string())
        return kept_all(pages.set_column(0, "text", halves))

    sieve.kernels = [("cut", cut)]
    rows = [{"text": "abcd efgh", "id": str(i), "source": str(i), "language": "en"} for i in range(3)]
    table = kept_all(pa.Table.from_pylist(rows).cast(pa.schema(
        [("text", pa.large_string()), ("id", pa.string()), ("source", pa.string()), ("language", pa.string())]
    )))  # fmt: skip
    kept = sieve._through(table, tally, None)
    funnel = tally.funnel()
    assert kept["text"].to_pylist() == ["abcd"] * 3 and REASON not in kept.column_names
    assert funnel.after("read").characters == 27 and funnel.after("cut").characters == 12
    assert funnel.after("cut").tokens == 3
    funnel.check()


def test_joined_funnels_run_through_both_phases(curated):
    facts = read_manifest(curated).facts
    steps = facts["funnel"]["steps"]
    assert steps == ["read", "language", "gopher_quality", "personal", "duplicates"]
    assert joined([], []).steps == []
    assert json.loads((curated / "recipe.json").read_text())["stage"] == "curate"
