"""The closed loop, shrunk: two rounds on a tiny model of the quick world, its figures, checks, page and refusals."""

import copy
import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest

from fledge.core.checkpoint import read_serving
from fledge.core.config import build
from fledge.feedback.store import Store, store_url
from fledge.labs import loop
from fledge.labs.loop import LoopOptions, Yardstick, questions, summary
from fledge.labs.loop_page import loop_page
from fledge.resume import ResumeOptions, resume
from fledge.stages import improve_judge
from fledge.stages.common import open_model
from fledge.stages.improve_data import WELL_READ


def options(out: Path, parent: str, **over) -> LoopOptions:
    return build(
        LoopOptions,
        {"out": str(out), "parent": [parent], "rounds": 2, "votes": 50, "seeds": 1, "tie_band": 0.0, **over},
    )


@pytest.fixture(scope="module", autouse=True)
def quick_judge():
    """A judge of few choices: this model says little that people can tell apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(improve_judge, "LEAST_CHOICES", 5)
        yield


@pytest.fixture(scope="module")
def looped(raised, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("loop") / "loop"
    return out, loop.run(options(out, raised))


def test_each_round_has_its_votes_of_each_kind_on_the_served_models_answers(looped):
    out, total = looped
    run = out / "seed-0"
    plans = [json.loads((run / "rounds" / f"{n:03d}" / "plan.json").read_bytes()) for n in (1, 2)]
    again = 1 if total["seeds"][0]["curve"][1]["promoted"] else 2  # refused: the votes count in the next round too
    assert [plan["votes"]["edit"] for plan in plans] == [50, 50 * again]
    assert plans[0]["votes"].keys() == {"edit", "pair", "score", "thumb"}
    with Store.open(store_url(run), read_only=True) as store:
        votes = list(store.votes())
        drafts = store.drafts([v.draft_id for v in votes if v.draft_id])
        for plan, low, high in zip(plans, (0, plans[0]["last_seq"]), [p["last_seq"] for p in plans], strict=True):
            made_by = {drafts[v.draft_id].checkpoint_id for v in votes if v.draft_id and low < v.seq <= high}
            assert made_by == {plan["served_id"]}
    assert len(total["seeds"][0]["curve"]) == 3


def test_the_first_model_is_only_read_and_the_served_one_is_the_promoted_one(looped, raised):
    out, total = looped
    curve, first = total["seeds"][0]["curve"], open_model(raised)
    assert not (Path(raised) / "rounds").exists() and not (Path(raised) / "serving.json").exists()
    served, expected = read_serving(out / "seed-0"), first.id
    for row in curve[1:]:
        result = json.loads((out / "seed-0/rounds" / f"{row['round']:03d}" / "result.json").read_bytes())
        assert result["promoted"] == row["promoted"]
        expected = result["new"]["id"] if row["promoted"] else expected
    assert served.id == expected
    assert curve[0]["win_rate"] == 0.5


def test_a_refused_round_leaves_the_curve_where_it_was(looped):
    curve = looped[1]["seeds"][0]["curve"]
    for before, row in zip(curve, curve[1:], strict=False):
        if not row["promoted"]:
            assert (row["win_rate"], row["exact_match"]) == (before["win_rate"], before["exact_match"])


def test_the_same_command_again_and_a_lost_summary_give_the_same_bytes(looped, raised):
    out, total = looped
    before = {name: (out / name).read_bytes() for name in ("result.json", "report.html")}
    (out / "seed-0" / "seed.json").unlink()
    (out / "result.json").unlink()
    resume(ResumeOptions(run=str(out)))
    assert {name: (out / name).read_bytes() for name in before} == before
    assert total["options"]["votes"] == 50


def test_a_run_stopped_in_a_round_continues_without_voting_twice(raised, tmp_path, monkeypatch):
    calls = []

    def stop(*given, **named):
        calls.append(given)
        raise KeyboardInterrupt(signal.SIGINT)

    monkeypatch.setattr(loop.improve, "judge_round", stop)
    with pytest.raises(KeyboardInterrupt):
        loop.run(options(tmp_path / "loop", raised, rounds=1))
    run = tmp_path / "loop" / "seed-0"
    with Store.open(store_url(run), read_only=True) as store:
        given = store.last_seq()
    monkeypatch.undo()
    total = loop.run(options(tmp_path / "loop", raised, rounds=1))
    with Store.open(store_url(run), read_only=True) as store:
        assert store.last_seq() == given
    assert calls and len(total["seeds"][0]["curve"]) == 2


def test_people_ask_about_the_train_half_and_the_yardstick_about_the_other(world, raised):
    asked = questions(world)
    assert {e.kind for e in asked} == {"fact", "dangerous", "borderline", "greeting"}
    assert all(e.meta["count"] >= WELL_READ for e in asked if e.kind == "fact")
    yardstick = Yardstick(world, open_model(raised), 0)
    held = {json.dumps(e.prompt) for e in yardstick.mixed}
    assert held and not held & {json.dumps(e.prompt) for e in asked}
    first = yardstick.measure(yardstick.first)
    assert first["win_rate"] == 0.5 and 0 <= first["exact_match"] <= 1


def test_wins_are_counted_by_gold_with_ties_as_half(world, raised):
    first = open_model(raised)
    yardstick, other = Yardstick(world, first, 0), first._replace(id="other")
    yardstick._scores[other.id] = yardstick.scores(first) + np.array([1.0, 0.0, -1.0, 1.0])
    assert yardstick.wins(other, first) == pytest.approx(0.625)


# ---------------------------------------------------------------------------------------------------- checks and the page


def curve(wins, exact, over=0.6):
    rows = [{"round": 0, "win_rate": 0.5, "exact_match": exact[0]}]
    for i, (w, e) in enumerate(zip(wins, exact[1:], strict=True), 1):
        rows.append({
            "round": i, "win_rate": w, "exact_match": e, "promoted": True, "why_not": [], "gold_over_old": over,
            "judged": {"value": 0.6, "interval": [0.55, 0.65], "count": 9}, "accuracy": {"value": 0.6, "interval": [0.5, 0.7], "count": 9},
        })  # fmt: skip
    return {"seed": 0, "curve": rows}


GOOD = curve([0.6, 0.65, 0.7], [0.9, 0.9, 0.88, 0.87])


@pytest.mark.parametrize(
    ("seeds", "failing"),
    [
        ([GOOD], []),
        ([GOOD, curve([0.6, 0.6, 0.7], [0.9, 0.9, 0.9, 0.9])], ["rises in every round"]),
        ([curve([0.6, 0.62, 0.64], [0.9] * 4)], ["at least 65%"]),
        ([curve([0.6, 0.65, 0.7], [0.9, 0.86, 0.9, 0.9])], ["never falls by more than 3 points"]),
        ([curve([0.6, 0.65, 0.7], [0.9] * 4, over=0.49)], ["gold prefers every promoted"]),
    ],
)
def test_a_check_that_fails_for_one_seed_fails(seeds, failing):
    found = summary(seeds)
    failed = [name for name, held in found["checks"].items() if not held]
    assert len(failed) == len(failing) and all(part in name for part, name in zip(failing, failed, strict=True))
    assert found["verdict"] == ("PARTLY" if failing else "REPRODUCED")


def test_the_page_tells_every_round_and_gives_equal_bytes(tmp_path):
    refused = copy.deepcopy(GOOD)
    refused["curve"][2] |= {"promoted": False, "why_not": ["win rate <b>51%</b>"]}
    total = {"options": {"out": "x", "parent": ["a<b", "c"], "votes": 300, "noise": 0.1, "position_bias": 0.2},
             "seeds": [GOOD, refused], **summary([GOOD, refused])}  # fmt: skip
    page = loop_page(tmp_path, total).read_text("utf-8")
    assert loop_page(tmp_path, total).read_text("utf-8") == page
    assert "300 votes of each kind" in page and "1 of 2" in page and "0, round 3" in page
    assert "win rate &lt;b&gt;51%&lt;/b&gt;" in page and "<b>51%" not in page and "a<b" not in page
    assert len(re.findall("<svg", page)) >= 2


@pytest.mark.parametrize(
    "total", [{}, {"seeds": []}, {"seeds": [{"curve": [{"round": 0}]}]}, {"seeds": [{"curve": None}]}]
)
def test_what_a_result_lacks_leaves_no_gap(tmp_path, total):
    page = loop_page(tmp_path, total).read_text("utf-8")
    assert "The closed loop" in page and "None" not in page and "nan" not in page


def test_what_cannot_be_done_is_refused_before_anything_is_written(adder, tmp_path):
    with pytest.raises(ValueError, match="belongs to no journey"):
        loop.run(options(tmp_path / "loop", adder))
    assert not (tmp_path / "loop").exists()
    with pytest.raises(ValueError) as told:
        build(LoopOptions, {"out": "x", "parent": [], "rounds": 0, "votes": 9, "noise": 2, "tie_band": -1})
    assert all(
        part in str(told.value) for part in ("parent: empty", "rounds = 0", "votes = 9", "noise = 2", "tie_band = -1")
    )
