"""The experiment on adapters, shrunk to seconds: what it keeps, how it goes on, what it measures and refuses."""

import json
from pathlib import Path

import msgspec
import pytest

from fledge.core.checkpoint import load_checkpoint
from fledge.core.config import build
from fledge.labs import adapters
from fledge.labs.adapters import ARMS, AdaptersOptions, summary

SMALL = {"arms": ["full", "lora", "bitfit", "prefix"], "quick": True, "size": "tiny", "tokens": 8192, "chats": 40, "epochs": 1.0,
         "rank": 2, "targets": ["q", "v"], "virtual_tokens": 2, "draws": 2, "all_chats": False, "lr_spread": [0.5], "seeds": 1}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, dict]:
    """The folder of one whole experiment, and what it returned."""
    out = tmp_path_factory.mktemp("adapters") / "A"
    return out, adapters.run(build(AdaptersOptions, {"out": str(out), **SMALL}))


def test_the_result_holds_what_the_runs_found(whole):
    out, total = whole
    assert json.loads((out / "result.json").read_bytes()) == json.loads(json.dumps(total))
    (seed,) = total["seeds"]
    assert list(seed["arms"]) == SMALL["arms"]
    base = load_checkpoint(out / "seed-0" / "base")
    for arm, found in seed["arms"].items():
        held = load_checkpoint(out / "seed-0" / arm)
        assert held.card["parent"]["id"] == base.id
        assert found["trained"] == sum(t.numel() for t in held.model_tensors().values())
        assert found["file_bytes"] == (held.path / "model.safetensors").stat().st_size
        assert 0 <= found["facts"] <= 1 and 0 < found["bits_per_byte"] < 10 and found["seconds"] > 0
        assert found["forgotten"] == pytest.approx(found["bits_per_byte"] - seed["base"]["bits_per_byte"])
    arms = seed["arms"]
    assert (
        arms["full"]["trained"] == arms["full"]["parameters"] == sum(t.numel() for t in base.model_tensors().values())
    )
    # 3 layers of width 64: q and v by rank 2, and 4 control tokens
    assert arms["lora"]["trained"] == 3 * 2 * 2 * (64 + 64) + 4 * 64
    assert arms["prefix"]["trained"] == 3 * 2 * 2 * 64 + 4 * 64
    assert (out / "seed-0" / "chats.jsonl").read_text("utf-8").count("\n") == 40
    first, second = (set((out / "seed-0" / f"{n}.jsonl").read_text("utf-8").splitlines()) for n in ("chats", "chats-1"))
    assert len(second - first) >= 35  # other conversations, some of which say the same
    assert [len(found) for found in seed["draws"].values()] == [2, 2] and seed["draws"]["lora"][0] == seed["arms"][
        "lora"
    ]
    random = load_checkpoint(out / "seed-0" / "lora-random")
    assert load_checkpoint(out / "seed-0" / "random").id == random.card["parent"]["id"] != base.id
    assert seed["random"]["facts"] <= 0.1
    assert arms["lora"]["merge_gap"] <= 1e-5 and "merge_gap" not in arms["prefix"]


def test_a_second_call_trains_nothing_and_the_page_says_the_verdict(whole):
    out, total = whole
    written = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    assert adapters.run(msgspec.convert(total["options"], AdaptersOptions))["arms"] == total["arms"]
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")} == written
    page = (out / "report.html").read_text("utf-8")
    assert total["verdict"] in page and "BitFit" in page and "Hu et al. 2021" in page and "<script" not in page
    assert page.count("<svg") == 2 and "on random weights answers" in page


def test_a_page_of_half_a_result_leaves_no_gap(tmp_path):
    from fledge.labs.adapters_page import adapters_page

    assert b"<h1>" in adapters_page(tmp_path, {"verdict": "PARTLY", "checks": {}, "seeds": []}).read_bytes()


def _result(
    facts: float = 0.78, trained: int = 40, forgotten: float = 0.1, gap: float = 1e-7, full: float = 0.8
) -> dict:
    common = {"answered": 1.0, "bits_per_byte": 1.0, "parameters": 1000, "seconds": 9.0, "file_bytes": 4000}
    lora = {**common, "facts": facts, "trained": trained, "forgotten": forgotten, "merge_gap": gap}
    everything = {**common, "facts": full, "trained": 1000, "forgotten": 0.2}
    arms = {"full": everything, "lora": lora}
    return {"seed": 0, "base": {"facts": 0.1}, "arms": arms, "draws": {name: [arm] for name, arm in arms.items()}}


@pytest.mark.parametrize(
    ("result", "missed"),
    [
        (_result(), 0),
        (_result(facts=0.7), 1),
        (_result(trained=51), 1),
        (_result(forgotten=0.2), 1),
        (_result(gap=2e-5), 1),
        (_result(facts=0.0, trained=60, forgotten=0.3, gap=1.0, full=0.1), 5),
    ],
)
def test_the_verdict_follows_from_the_checks(result, missed):
    found = summary([result])
    assert sum(not ok for ok in found["checks"].values()) == missed
    assert found["verdict"] == {0: "REPRODUCED", 5: "NOT REPRODUCED"}.get(missed, "PARTLY")


def test_the_interval_is_students_over_seeds():
    results = [_result(facts=0.78), _result(facts=0.80), _result(facts=0.76)]
    less = summary(results)["lora_less_full"]["facts"]
    assert less["mean"] == pytest.approx(-0.02)
    half = 2.920 * 0.02 / 3**0.5  # deviation of three seeds 0.02, two degrees of freedom
    assert (less["low"], less["high"]) == (pytest.approx(-0.02 - half), pytest.approx(-0.02 + half))
    assert summary(results[:1])["lora_less_full"]["facts"]["low"] is None


def test_a_control_that_answers_fails_the_claim():
    results = [_result() | {"random": {"facts": facts}} for facts in (0.0, 0.3)]
    assert sum(not ok for ok in summary(results)["checks"].values()) == 1
    assert all(summary(results[:1])["checks"].values())


def test_settings_that_cannot_be_used_are_told_together():
    with pytest.raises(ValueError, match="4 settings") as error:
        build(AdaptersOptions, {"out": "x", "arms": ["full", "lola"], "epochs": 0, "targets": ["w"]})
    assert "must hold full and lora" in str(error.value) and f"not one of {', '.join(ARMS)}" in str(error.value)
