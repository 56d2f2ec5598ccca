"""Who judges a new model: the four reward models that never saw a question, the figures, and the verdict."""

import json

import numpy as np
import pytest
from sums import LOOP, write_rows

from fledge.core.config import build
from fledge.stages.common import open_model
from fledge.stages.improve import ImproveRecipe
from fledge.stages.improve_data import as_example
from fledge.stages.improve_judge import (
    PARTS,
    Measured,
    Verdicts,
    bootstrap,
    part_of,
    problem_with,
    train_committee,
    verdicts,
)
from fledge.stages.improve_verdict import Regression, reasons
from fledge.stages.prefer import RewardRecipe, run_reward
from fledge.tasks.base import user


def pairs(count: int, ties: int = 0) -> list[dict]:
    """A seven is better than a two, whatever is asked; the last `ties` are undecided."""
    rows = []
    for i in range(count):
        sides = {
            name: [{"role": "assistant", "content": text}] for name, text in (("chosen", "17"), ("rejected", "12"))
        }
        row = {"prompt": user(f"{i % 9 + 1}+{i // 9 + 1}="), **sides, "votes": [str(i)]}
        rows.append(row | ({"tie": True} if i >= count - ties else {}))
    return rows


@pytest.fixture(scope="module")
def committee(parent, tmp_path_factory):
    folder = tmp_path_factory.mktemp("round")
    (folder / "data").mkdir()
    write_rows(folder / "data" / "pairs.jsonl", pairs(60, ties=6))
    write_rows(folder / "data" / "edit-pairs.jsonl", pairs(70)[60:])
    recipe = {"run": str(folder), "batch_tokens": 512, "reward": {"lr": 3e-3, "epochs": 8.0, "batch_tokens": 512}}
    return folder, train_committee(build(ImproveRecipe, recipe), folder, parent)


def test_each_model_is_blind_to_its_part_of_the_questions(committee):
    folder, _ = committee
    for part in range(PARTS):
        seen = [json.loads(line) for line in (folder / "data" / f"judge-{part + 1}.jsonl").read_text().splitlines()]
        assert seen and all(part_of(row["prompt"]) != part for row in seen)
    rows = pairs(70)
    assert {part_of(row["prompt"]) for row in rows} == set(range(PARTS))


def test_an_answer_is_scored_by_the_models_that_never_saw_its_question(committee):
    from fledge.feedback.rewards import ModelReward

    _, judge = committee
    voted, fresh = as_example(user("1+1=")), as_example(user("9+9="))
    every = [ModelReward(o.model, o.tokenizer)([voted, fresh], ["17", "17"]) for o in judge.opened]
    scores = judge.score([voted, fresh], ["17", "17"])
    assert scores[0] == pytest.approx(every[part_of(voted.prompt)][0])
    assert scores[1] == pytest.approx(np.mean([e[1] for e in every]))
    assert len({round(e[0], 6) for e in every}) == PARTS, "the four differ, so that it matters who is asked"


def test_its_accuracy_counts_decided_choices_once_each(committee):
    _, judge = committee
    found = judge.accuracy(0)
    assert found.count == 54 and found.value > 0.9 and found.interval[0] <= found.value <= found.interval[1]
    assert judge.accuracy(0) == found


def test_a_reward_model_judges_and_equal_answers_are_alike(parent, tmp_path):
    rows = pairs(40)
    recipe = {
        "out": str(tmp_path / "reward"), "parent": parent, "pairs": [write_rows(tmp_path / "pairs.jsonl", rows)],
        "epochs": 8, "train": {**LOOP, "lr": 3e-3, "batch_tokens": 512},
    }  # fmt: skip
    run_reward(build(RewardRecipe, recipe), quiet=True)
    options = build(ImproveRecipe, {"run": "x", "judge": recipe["out"]})
    example = as_example(user("2+3="))
    asked = [(example, "17", "12"), (example, "12", "17"), (example, "5", "5")]
    assert verdicts(options, tmp_path, parent, None, asked) == Verdicts([1.0, 0.0, 0.5], recipe["out"], None)


def test_a_model_that_is_no_reward_model_cannot_judge(parent, tmp_path):
    options = build(ImproveRecipe, {"run": "x", "judge": parent})
    with pytest.raises(ValueError, match="holds a sft model: train one with `fledge reward`"):
        verdicts(options, tmp_path, parent, None, [(as_example(user("1+1=")), "2", "3")])
    assert open_model(parent).card["stage"] == "sft"


def test_what_cannot_judge_is_told():
    assert "there are 39 of the 40 it needs" in problem_with("auto", None, 39)
    assert problem_with("auto", None, 40) == ""
    assert "not raised in the embedded world" in problem_with("gold", None, 0)
    assert problem_with("judge:http://localhost:1/v1#m", None, 0) == ""


# ----------------------------------------------------------------------------------------------------------- the verdict

SURE = Measured(0.7, (0.65, 0.75), 200)
WON, LOST = Measured(0.6, (0.55, 0.65), 400), Measured(0.52, (0.5, 0.54), 400)
KEPT = Regression("held-out facts answered exactly", 0.9, 0.87, 100, 0.03, True)
FELL = Regression("held-out facts answered exactly", 0.9, 0.86, 100, 0.03, False)


@pytest.mark.parametrize(
    ("accuracy", "win_rate", "questions", "regression", "said"),
    [
        (SURE, WON, 40, KEPT, []),
        (None, WON, 40, None, []),  # a judge from elsewhere, and nothing held out
        (Measured(0.55, (0.52, 0.6), 200), WON, 40, KEPT, ["the judge cannot tell: it predicts 55.0%"]),
        (Measured(0.6, (0.5, 0.7), 30), WON, 40, KEPT, ["the judge cannot tell"]),
        (SURE, LOST, 40, KEPT, ["win rate 52.0% (90% interval 50.0% to 54.0%): the lower end"]),
        (SURE, WON, 19, KEPT, ["19 held-out questions, 20 are needed"]),
        (SURE, None, 0, KEPT, ["0 held-out questions"]),
        (
            SURE,
            WON,
            40,
            FELL,
            ["held-out facts answered exactly: 90.0% before, 86.0% now (-4.0 points; -3 are allowed)"],
        ),
        (Measured(0.5, (0.4, 0.6), 9), LOST, 40, FELL, ["the judge cannot tell", "win rate", "held-out facts"]),
    ],
)
def test_a_model_is_served_only_if_nothing_speaks_against_it(accuracy, win_rate, questions, regression, said):
    found = reasons(Verdicts([], "auto", accuracy), win_rate, questions, regression)
    assert len(found) == len(said) and all(why.startswith(start) for why, start in zip(found, said, strict=True))


def test_the_interval_is_over_questions_not_over_answers():
    points = np.repeat(
        np.array([[1.0], [0.0], [1.0], [0.0]] * 10), 8, axis=1
    )  # eight answers of a question always agree
    wide, narrow = bootstrap(points, 0), bootstrap(points.reshape(-1), 0)
    assert wide.value == narrow.value == 0.5 and wide.count == narrow.count == 320
    assert wide.interval[1] - wide.interval[0] > 2.2 * (narrow.interval[1] - narrow.interval[0])


def test_an_equal_model_is_promoted_by_chance_in_one_round_of_twenty():
    """The rule promotes an equal model in about one of twenty rounds, not more."""
    dice = np.random.default_rng(0)
    promoted = [bootstrap(dice.integers(0, 2, (60, 2)).astype(float), 0).interval[0] > 0.5 for _ in range(300)]
    assert 0.01 < np.mean(promoted) < 0.09
