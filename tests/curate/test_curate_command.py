"""`fledge curate` as it is typed: options, scores that decide, evaluation text, repeats, resume, and what is refused."""

import json
import shutil

import pyarrow as pa
import pytest
from crawls import digests, write_crawl, write_rule

from fledge.cli import TABLE, main, parse
from fledge.curate import deciding
from fledge.curate.command import CurateOptions, curate
from fledge.curate.plan import open_job
from fledge.curate.scorers import Scorer
from fledge.curate.shards import Curated, write_shard
from fledge.curate.sifting import DECIDED, name_of
from fledge.text.curated import read_manifest


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    write_crawl(folder / "crawl", files=2, pages=24)
    write_rule(folder)
    return folder


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    monkeypatch.chdir(place)


def typed(*words: str) -> CurateOptions:
    return parse(TABLE["curate"], CurateOptions, list(words))


def test_the_verb_curates_shows_and_resumes(place, capsys):
    words = ["curate", "crawl", "--out", "clean", "--recipe", "rule.toml", "--workers", "1", "--languages", "en,zh"]
    assert main(words) == 0
    whole = digests(place / "clean")
    assert "pages stay, about" in capsys.readouterr().err
    assert main(["curate", "--show", "clean"]) == 0
    assert "words below 20" in capsys.readouterr().out

    (place / "clean" / "manifest.json").unlink()  # as if killed before it was written
    shutil.rmtree(place / "clean" / "data")
    assert main(["resume", "clean"]) == 0
    assert digests(place / "clean") == whole


def test_what_is_typed_becomes_options():
    options = typed("crawl", "--languages", "zh-Hant", "--languages", "en", "--split-bytes", "2M", "--rejects", "false")
    assert options.wanted() == ["zh-Hant", "en"] and options.split_size() == 2_000_000 and not options.rejects
    assert typed("crawl").wanted() == ["en", "zh"] and typed("crawl", "--languages", "any").wanted() == []
    assert typed("--show", "clean").problems() == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "inputs: name at least one"),
        (["crawl", "--keep-top", "0"], "keep_top = 0.0: must be a share above 0"),
        (["crawl", "--keep-top", "0.1", "--keep-above", "0.5"], "keep_top and keep_above: set one of them"),
        (["crawl", "--split-bytes", "some"], "split_bytes = 'some': must be a number of bytes"),
        (["crawl", "--workers", "0"], "workers = 0: must be between 1 and 4096"),
        (["crawl", "--rejcts", "false"], "did you mean rejects?"),
    ],
)
def test_options_that_cannot_be_used_are_told_at_once(words, said):
    with pytest.raises(ValueError) as told:
        typed(*words)
    assert said in str(told.value)


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"inputs": ["nowhere"]}, "nowhere"),
        ({"recipe": "fineweeb"}, "did you mean fineweb?"),
        ({"keep_top": 0.5}, "no scorer gives this column"),
        ({"evaluations": ["no.jsonl"]}, "no.jsonl: no such file"),
        ({"languages": "english"}, "language 'english'"),
        ({"ray": "192.0.2.1:1"}, "native runner"),
    ],
)
def test_what_is_missing_is_named_before_any_work(over, said, place):
    if "ray" in over:  # this process has chosen its runner by then
        curate(CurateOptions(inputs=["crawl"], recipe="rule.toml", out="native", workers=1), quiet=True)
    with pytest.raises((ValueError, OSError), match=said):
        curate(CurateOptions(**{"inputs": ["crawl"], "recipe": "rule.toml", "out": "refused"} | over), quiet=True)
    assert not (place / "refused" / "manifest.json").exists()


def test_evaluation_text_is_rejected_with_what_it_is(place):
    pages = (json.loads(line) for line in open("crawl/pages-0.jsonl", encoding="utf-8") if "broken" not in line)
    leaked = next(page["text"] for page in pages if page["text"].isascii() and len(page["text"]) > 200)
    (place / "questions.jsonl").write_text(json.dumps({"question": leaked[:200], "answer": "none"}) + "\n")
    options = CurateOptions(
        inputs=["crawl"], recipe="rule.toml", out="held", evaluations=["questions.jsonl"], substrings=True, workers=1
    )
    out = curate(options, quiet=True)
    rejected = [row for table in Curated.open(out).tables(rejected=True) for row in table.to_pylist()]
    found = [row for row in rejected if row["step"] == "evaluations"]
    assert found and leaked in [row["text"] for row in found]
    assert all("questions.jsonl:1" in row["contaminated_by"] for row in found)
    facts = read_manifest(out).facts
    shown = [sample["text"] for sample in facts["funnel"]["samples"] if sample["step"] == "evaluations"]
    assert shown and shown[0].startswith("questions.jsonl:1")
    assert leaked not in list(Curated.open(out).texts())
    assert facts["repeats"]["pages"] == sum(record.pages for record in read_manifest(out).shards)


def test_other_evaluation_questions_are_other_settings(place):
    (place / "other.jsonl").write_text('{"question": "What is nowhere in the crawl, asked at some length?"}\n')
    jobs = [open_job(CurateOptions(inputs=["crawl"], recipe="rule.toml", evaluations=["other.jsonl"]))]
    (place / "other.jsonl").write_text('{"question": "What else is nowhere in the crawl, asked at some length?"}\n')
    jobs.append(open_job(CurateOptions(inputs=["crawl"], recipe="rule.toml", evaluations=["other.jsonl"])))
    assert jobs[0][0].config != jobs[1][0].config


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize(("setting", "stay"), [({"keep_top": 0.5}, 2), ({"keep_above": 0.25}, None)])
def test_scores_decide_after_duplicates_and_pages_without_one_stay(tmp_path, monkeypatch, higher, setting, stay):
    scores = [0.1, 0.9, None, 0.3, 0.25]
    scorer = Scorer("quality", lambda pages: pages, higher, "a test's")
    monkeypatch.setattr("fledge.curate.plan.open_scorers", lambda _: [scorer])
    monkeypatch.setattr(deciding, "open_scorers", lambda _: [scorer])
    (tmp_path / "rule.toml").write_text(open("rule.toml").read() + "[duplicates]\nexact = false\nnear = false\n")
    options = CurateOptions(
        inputs=["crawl"], recipe=str(tmp_path / "rule.toml"), out=str(tmp_path / "clean"), **setting
    )
    job, _ = open_job(options)
    table = pa.table({"quality": pa.array(scores, pa.float32())})
    write_shard(job.work() / name_of("sifted", 0), [table], folder=job.work())
    decided = deciding.decide(job, 1)
    found = next(iter_decisions(job))
    assert found.schema.equals(DECIDED)
    kept = [score for score, step in zip(scores, found["step"].to_pylist(), strict=True) if step is None]
    assert None in kept
    judged = sorted((score for score in scores if score is not None), reverse=higher)
    if stay:
        assert sorted((s for s in kept if s is not None), reverse=higher) == judged[:stay]
    else:
        assert decided.limit == 0.25
        assert sorted(s for s in kept if s is not None) == sorted(
            s for s in judged if (s >= 0.25) == higher or s == 0.25
        )
    gone = {reason for reason in found["reason"].to_pylist() if reason}
    assert gone == {f"quality {'below' if higher else 'above'} the limit"}


def iter_decisions(job):
    from fledge.curate.shards import row_groups

    return row_groups(job.work() / name_of("decided", 0))


def test_a_folder_of_another_stage_is_refused(place):
    (place / "run").mkdir()
    (place / "run" / "recipe.json").write_text('{"stage": "pretrain", "recipe": {"out": "run"}}')
    with pytest.raises(ValueError, match="holds a run of `fledge pretrain`"):
        curate(CurateOptions(inputs=["crawl"], recipe="rule.toml", out="run"), quiet=True)
