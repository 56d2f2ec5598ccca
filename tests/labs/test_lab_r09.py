"""R9, credit: when a curve gets there, errors at a likelihood, careless poems, and the whole lab at tiny."""

import json
import math

import pytest

from fledge.core.config import build
from fledge.labs import r09_arms, r09_credit
from fledge.labs.bench import Bench
from fledge.labs.r09_credit import SCALES, Setup, error_at, samples_to, share_needed
from fledge.tasks.poem import Poem


def test_a_curve_is_there_when_five_updates_are():
    curve = [[10 * (i + 1), share] for i, share in enumerate([0, 1, 0.8, 0.9, 0.9, 0.9, 1.0])]
    assert samples_to(curve) == 60.0, "0.8, 0.9, 0.9, 0.9 and the 1 before: 0.9"
    assert samples_to(curve[:5]) == math.inf and samples_to([[8, 1.0]]) == 8.0


def test_the_share_of_answers_needed_counts_a_whole_budget_for_what_never_gets_there():
    there, never = [[10, 0.0]] * 4 + [[50, 4.5], [60, 1.0]], [[10 * i, 0.1] for i in range(1, 11)]
    assert share_needed({"steps": there, "end": never}, 100.0) == 0.5
    assert share_needed({"steps": never, "end": there}, 100.0) == math.inf


def test_errors_are_read_between_stops_and_the_last_ones_hold_beyond():
    curve = [{"nll": 0.2, "error": 0.0}, {"nll": 1.0, "error": 0.4}, {"nll": 0.6, "error": 0.1}]
    assert error_at(curve, 0.8) == pytest.approx(0.25) and error_at(curve, 0.4) == pytest.approx(0.05)
    assert error_at(curve, 5.0) == 0.4 and error_at(curve, 0.1) == 0.0


def test_careless_poems_miss_lines_with_their_probability():
    task = Poem(3, 5)
    by_prompt = {e.prompt[0]["content"]: e for e in task.examples("train")}
    right = [
        task.score(by_prompt[c[0]["content"]], c[1]["content"]) for c in r09_arms.careless_poems(task, 600, 0.3, 0)
    ]
    assert abs(sum(right) / 600 - 0.7**3) < 0.08
    assert all(
        task.score(by_prompt[c[0]["content"]], c[1]["content"]) for c in r09_arms.careless_poems(task, 20, 0.0, 0)
    )


def test_settings_that_cannot_be_used():
    with pytest.raises(ValueError, match="2 settings") as error:
        build(Setup, {"teach_from": 17, "shapings": ["steps"]})
    assert "must be in teach_steps" in str(error.value) and "must hold end and steps" in str(error.value)


def test_the_lab_runs(little_journey, tmp_path):
    setup, bench = SCALES["tiny"], Bench(tmp_path, little_journey, 0, "tiny")
    told = json.loads(json.dumps(r09_credit.measure(setup, bench)))
    table = told["meaning"]["triples"]
    assert table["count"] == 20 and table["distance"] == 1.0 and table["reward"] == 0.0 and table["places"][0] == 1.0
    assert [row["steps"] for row in told["meaning"]["curve"]] == [2, 4]
    arms = told["sums"]["arms"]
    assert list(arms) == ["GRPO-A", "RFT-A", "SFT-A", "SFT-B", "start"] or set(arms) == {
        "start",
        "SFT-B",
        "SFT-A",
        "RFT-A",
        "GRPO-A",
    }
    assert arms["start"]["forgotten"] == 0.0 < arms["SFT-B"]["forgotten"] and told["sums"]["labels"] <= 20
    assert {name: len(curve) for name, curve in told["poems"]["curves"].items()} == {"end": 2, "steps": 2}
    found = r09_credit.judge(setup, [told, told])
    assert len(found.numbers) == 8 and found.checks[0].held and found.checks[1].held
    svg = r09_credit.draw(setup, [told, told])
    assert svg.startswith("<svg") and "poems of the right form" in svg
