"""R2, reward models: what counts as agreement, comparisons turned round, and the whole lab at tiny."""

import json

import numpy as np
import pytest

from fledge.labs import overoptimise, r02_reward_model
from fledge.labs.bench import Bench
from fledge.labs.r02_reward_model import agreement, questions_of, right_on_facts, turned


def test_comparisons_are_turned_round_with_their_share():
    rows = [{"prompt": i, "chosen": "a", "rejected": "b"} for i in range(2000)]
    found = turned(rows, 0.3, 0)
    share = sum(row["chosen"] == "b" for row in found) / 2000
    assert 0.27 < share < 0.33 and turned(rows, 0.3, 0) == found and turned(rows, 0.0, 0) == rows
    assert all({row["chosen"], row["rejected"]} == {"a", "b"} for row in found)


def test_agreement_counts_pairs_of_a_prompt_that_gold_tells_apart():
    gold = np.array([[1.0, 2.0, 2.0, 3.0], [5.0, 5.0, 5.0, 5.0]])
    pool = [["aaaa", "aaaa", "aaaa", "aaaaaaaaaa"], ["x"] * 4]
    right = agreement(gold, gold, pool)
    assert right["accuracy"] == 1.0 and right["pairs"] == 5 and right["spearman"] == pytest.approx(1.0)
    assert agreement(gold, -gold, pool)["accuracy"] == 0.0 and agreement(gold, -gold, pool)[
        "spearman"
    ] == pytest.approx(-1.0)
    assert agreement(gold, np.zeros_like(gold), pool) | {"by_gap": 0} == {
        "accuracy": 0.5, "pairs": 5, "same_length": 0.5, "spearman": 0.0, "by_gap": 0}  # fmt: skip
    by_length = np.array([[0.0, 0.0, 0.0, 1.0], [0.0] * 4])  # knows only which is longer
    told = agreement(gold, by_length, pool)
    assert told["same_length"] == 0.5 and told["accuracy"] == pytest.approx((3 + 2 * 0.5) / 5)


def test_empty_answers_are_not_compared():
    assert agreement(np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 2.0, 3.0]]), [["a", " ", "b"]])["pairs"] == 1


def test_facts_count_where_the_manner_is_the_same():
    manner, checked = np.array([[0.0, 0.0, 0.5, 0.5]]), np.array([[4.0, -1.0, 4.5, 4.5]])
    assert right_on_facts(checked, manner, checked) == 1.0 and right_on_facts(checked, manner, -checked) == 0.0
    assert right_on_facts(checked, manner, manner) == 0.5  # of the one pair that counts it says nothing
    assert right_on_facts(manner, manner, checked) is None


def test_questions_are_asked_in_all_forms_and_judged_by_either_taste(world):
    blind, strict = questions_of(world, False), questions_of(world, True)
    for split in ("train", "test"):
        examples = blind.examples(split)
        assert examples == strict.examples(split) and {e.kind for e in examples} == {"fact"}
        assert len({e.prompt[0]["content"] for e in examples}) == 4 * len({e.id for e in examples})
    example = blind.examples("test")[0]
    assert (blind.score(example, example.answers[0]), strict.score(example, example.answers[0])) == (0.0, 4.0)
    asked = {e.meta["fact"] for e in blind.examples("train")}
    assert not asked & {e.meta["fact"] for e in blind.examples("test")}


def test_the_lab_runs(little_journey, tmp_path, monkeypatch):
    monkeypatch.setattr(overoptimise, "_PAIR_PROMPTS", 24)
    setup = r02_reward_model.SCALES["tiny"]
    told = json.loads(json.dumps(r02_reward_model.measure(setup, Bench(tmp_path, little_journey, 0, "tiny"))))
    facts = {"facts, pretrained 12", "facts, random 12", "facts, pretrained 24"}
    assert set(told["arms"]) == {"pretrained 12", "random 12", "pretrained 24", "random 24", "noisy 24"} | facts
    assert told["sizes"] == [1, 2, 4, 8, 16] and told["gold"] == sorted(told["gold"])
    for name, arm in told["arms"].items():
        assert ("facts" in arm) == (name in facts)
        if name not in facts:
            assert arm["best"][0] == pytest.approx(told["gold"][0])
            assert all(a <= g + 1e-9 for a, g in zip(arm["best"], told["gold"], strict=True))
    found = r02_reward_model.judge(setup, [told])
    assert [c.core for c in found.checks] == [True] * 4 and len(found.numbers) <= 8
    assert r02_reward_model.draw(setup, [told, told]).count("<svg") == 2
