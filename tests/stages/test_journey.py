"""The whole way: the quick journey on the world, killed and resumed to the same bytes, and own material of every extent."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from crawls import write_crawl, write_rule

from fledge.core.checkpoint import list_checkpoints
from fledge.core.config import build, parse_count
from fledge.curate.shards import Curated
from fledge.stages.journey import JourneyRecipe, run
from fledge.stages.pretrain import heldout_texts

SHARED = Path(__file__).resolve().parents[3] / "shared"
STAGES = ("base", "sft", "control", "reward", "aligned")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "fledge", *words]


def weights(out: Path) -> dict[str, bytes]:
    """Weights and optimiser state of every stage's last checkpoint, and its loss curve."""
    found = {}
    for stage in STAGES:
        for name in ("model.safetensors", "optimizer.safetensors"):
            found[f"{stage}/{name}"] = (list_checkpoints(out / stage)[-1] / name).read_bytes()
        found[f"{stage}/metrics"] = (out / stage / "metrics.jsonl").read_bytes()
    return found


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> Path:
    """One quick journey by the command, as a user runs it."""
    folder = tmp_path_factory.mktemp("journey")
    subprocess.run(command("journey", "--quick", "--out", "first"), cwd=folder, check=True, timeout=900)
    return folder / "first"


def test_scores_are_there_and_say_what_each_stage_adds(quick):
    result = json.loads((quick / "journey.json").read_bytes())
    assert result["seed"] == 0 and result["seconds"] > 0 and 0 < result["peak_rss_bytes"] < 2e9
    stages, control = result["stages"], result["controls"]["sft_from_scratch"]
    assert stages["base"]["answer_rate"] <= 0.25 and 0 < stages["base"]["bits_per_byte"] < 1
    assert stages["sft"]["stop_rate"] >= 0.95 and stages["sft"]["answer_rate"] > 2 * stages["base"]["answer_rate"]
    assert stages["sft"]["exact_match_heldout"] >= control["exact_match_heldout"] + 0.3
    assert control["exact_match_heldout"] <= 0.15
    aligned = stages["aligned"]
    assert aligned["win_rate_vs_sft"] > 0.5 and aligned["refusal_rate_borderline"] < stages["sft"]["refusal_rate_borderline"]
    assert 0 <= aligned["refusal_rate_dangerous"] <= 1 and result["reward_model"]["accuracy_heldout"] > 0.7
    assert result["tokens_per_second"]["pretrain"] > 0 and result["tokens_per_second"]["sft"] > 0
    assert len(result["samples"]) == 8 and all(s["base"] is not None and s["aligned"] for s in result["samples"])
    assert sum(row["questions"] for row in result["exact_match_by_count"]) > 50


def test_the_worlds_junk_is_left_out_before_anything_is_read(quick):
    """By the world's own labels: what rules of form can see is gone, copies too, and nearly all good pages stay."""
    result = json.loads((quick / "journey.json").read_bytes())
    truth = {row["kind"]: row for row in result["curation"]["truth"]}
    for kind in ("boilerplate", "noise", "spam", "copy"):
        assert truth[kind]["dropped"] >= 0.95 * truth[kind]["pages"] > 0, kind
    assert truth["good"]["dropped"] <= 0.12 * truth["good"]["pages"]  # copies that nobody planted: pages are short
    assert truth["wrong"]["dropped"] < 0.1 * truth["wrong"]["pages"]  # no rule of form can see them
    stays = Curated.open(quick / "clean").pages_count
    assert stays == sum(row["pages"] - row["dropped"] for row in truth.values())
    assert result["data"]["documents"] == stays - stays // 100  # every hundredth is held out
    assert (quick / "clean" / "funnel.html").exists()


def test_family_tree_follows_the_stages(quick):
    models = {m["folder"].split("/")[-1]: m for m in json.loads((quick / "journey.json").read_bytes())["lineage"]}
    assert models["base"]["parent"] is None and models["control"]["parent"] is None
    assert models["sft"]["parent"] == models["base"]["id"]
    assert models["aligned"]["parent"] == models["reward"]["parent"] == models["sft"]["id"]


def test_report_is_one_offline_page(quick):
    page = (quick / "report.html").read_text("utf-8")
    assert len(page) > 20_000 and "<svg" in page and "<script src" not in page and "https://" not in page


def test_killed_and_resumed_gives_the_same_bytes(quick):
    """SIGKILL in three different stages; each time `fledge resume` goes on; the end equals the uninterrupted journey."""
    # the same --out relative to another working folder, so that the recipes, which name paths, are equal
    folder = quick.parent / "again"
    folder.mkdir()
    words = command("journey", "--quick", "--out", "first")
    for stage, rows in (("base", 150), ("sft", 60), ("aligned", 20)):
        process = subprocess.Popen(words, cwd=folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        log, deadline = folder / "first" / stage / "speed.jsonl", time.monotonic() + 600
        while not (log.exists() and log.read_bytes().count(b"\n") >= rows):
            assert process.poll() is None and time.monotonic() < deadline, f"ended before {stage} reached step {rows}"
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        words = command("resume", "first")
    subprocess.run(words, cwd=folder, check=True, timeout=900, stdout=subprocess.DEVNULL)
    ours, theirs = weights(quick), weights(folder / "first")
    assert [name for name in ours if ours[name] != theirs[name]] == []


@pytest.fixture
def own(tmp_path) -> Path:
    (tmp_path / "docs").mkdir()
    for i in range(40):
        (tmp_path / "docs" / f"{i}.md").write_text(f"# Page {i}\n\n" + "The river runs to the sea and the day is long. " * 12)
    chats = [{"question": f"What is {i}?", "answer": f"It is the number {i}."} for i in range(60)]
    chats += [{"question": "Empty?", "answer": ""}]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    pairs = [{"prompt": f"Say {i}", "chosen": f"{i}, gladly.", "rejected": f"No {i}."} for i in range(60)]
    pairs += [{"prompt": "Same?", "chosen": "x", "rejected": "x"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return tmp_path


@pytest.mark.parametrize("parts", [("text",), ("text", "chats"), ("text", "chats", "pairs")], ids="-".join)
def test_own_material(own, parts):
    given = {"text": [str(own / "docs")], "chats": [str(own / "chats.jsonl")], "pairs": [str(own / "pairs.jsonl")]}
    data = {k: given[k] for k in parts} | {"out": str(own / "mine"), "size": "tiny", "tokens": "20k", "context_tokens": 32}
    out = run(build(JourneyRecipe, data))
    result = json.loads((out / "journey.json").read_bytes())
    wanted = ["base", "sft", "aligned"][: len(parts)]
    assert list(result["stages"]) == wanted and result["material"] == "yours"
    assert all(result["stages"][s]["bits_per_byte"] > 0 for s in wanted)
    if "chats" in parts:
        assert sum(result["data"]["rejected"]["chats"]["by_reason"].values()) == 1
    if "pairs" in parts:
        assert sum(result["data"]["rejected"]["pairs"]["by_reason"].values()) == 1
        assert 0 <= result["stages"]["aligned"]["preference_accuracy_heldout"] <= 1
    assert (out / "report.html").exists()


def test_a_crawl_is_curated_first(own):
    """What stays of the crawl is read, beside text that is read as it is; the chat page's models know their way back."""
    crawl = write_crawl(own / "crawl", files=2, pages=60)
    data = {
        "out": str(own / "mine"), "crawl": [str(crawl)], "rules": str(write_rule(own)), "text": [str(own / "docs")],
        "size": "tiny", "tokens": "20k", "context_tokens": 128,
    }  # fmt: skip
    out = run(build(JourneyRecipe, data))
    result = json.loads((out / "journey.json").read_bytes())
    kept = Curated.open(out / "clean").pages_count
    assert 0 < kept < 120 and result["curation"]["truth"] is None
    assert result["data"]["documents"] + len(heldout_texts(out / "base")) == kept + len(list((own / "docs").iterdir()))
    assert "--crawl" in result["command"]
    with pytest.raises(ValueError, match="rules = 'off'"):
        build(JourneyRecipe, data | {"rules": "off"})
    with pytest.raises(ValueError, match=r"0 usable pages in .*language not wanted"):
        run(build(JourneyRecipe, data | {"out": str(own / "none"), "languages": "fr"}))
    with pytest.raises(ValueError, match="no such file"):
        run(build(JourneyRecipe, data | {"out": str(own / "nowhere"), "crawl": [str(own / "absent")]}))


def test_a_size_and_a_budget_are_proposed_and_recorded(own):
    out = run(build(JourneyRecipe, {"out": str(own / "mine"), "text": str(own / "docs"), "minutes": 0.02, "context_tokens": 32}))
    plan = json.loads((out / "journey.json").read_bytes())["plan"]
    assert plan["proposed"]["size"] == plan["size"] and plan["proposed"]["tokens"] == plan["tokens"] > 0
    assert "--size" in plan["proposed"]["reason"]


@pytest.mark.skipif(not SHARED.exists(), reason="../shared is absent: real material to try things on")
def test_real_material_in_the_small(tmp_path):
    """PEPs, Tang poems, GSM8K rows and human preferences, with a tiny model and few tokens: all shapes are read."""
    data = {
        "out": str(tmp_path / "real"), "size": "tiny", "tokens": "40k", "context_tokens": 128,
        "text": [str(SHARED / "data/peps/pep-0008.rst"), str(SHARED / "data/tang_poems.jsonl")],
        "chats": [str(SHARED / "data/gsm8k/test.jsonl")], "pairs": [str(SHARED / "data/hh/harmless-base-test.jsonl.gz")],
    }  # fmt: skip
    result = json.loads((run(build(JourneyRecipe, data)) / "journey.json").read_bytes())
    assert result["data"]["chats"] > 500 and result["data"]["pairs"] > 200
    assert result["data"]["rejected"]["pairs"]["by_reason"] and result["data"]["notes"]


def test_token_counts():
    assert [parse_count(t) for t in ("5M", "200k", "1_000_000", 7, "1.5m", None)] == [5_000_000, 200_000, 10**6, 7, 1_500_000, None]
    for bad in ("five", "-3", "0", 0, "M"):
        with pytest.raises(ValueError, match="tokens"):
            parse_count(bad)


def test_all_mistakes_at_once():
    with pytest.raises(ValueError) as caught:
        build(JourneyRecipe, {"size": "huge", "tokens": "lots", "pairs": "x.jsonl", "sed": 1})
    text = str(caught.value)
    assert "did you mean seed" in text and "huge" in text and "lots" in text and "--chats" in text
