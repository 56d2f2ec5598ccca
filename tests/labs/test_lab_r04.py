"""R4, learning from preferences: the whole lab at tiny, with what must hold exactly at any size."""

import json

import pytest

from fledge.core.config import build
from fledge.labs import overoptimise, r04_preferences
from fledge.labs.bench import Bench
from fledge.stages.common import open_model
from fledge.stages.worlds import world_behind
from fledge.tasks.world_tasks import WorldGold


@pytest.fixture(scope="module")
def told(little_journey, tmp_path_factory) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overoptimise, "_PAIR_PROMPTS", 24)
        patch.setattr(r04_preferences, "_MAX_TOKENS", 16)
        bench = Bench(tmp_path_factory.mktemp("R4"), little_journey, 0, "tiny")
        return json.loads(json.dumps(r04_preferences.measure(r04_preferences.SCALES["tiny"], bench)))


def test_dpo_begins_at_ln_2_and_without_a_gap(told):
    assert told["first"]["loss_gap"] < 1e-6 and told["first"]["reward_gap"] < 1e-6


def test_every_arm_is_judged(told):
    assert set(told["arms"]) == {
        "DPO 0.1", "DPO 1", "DPO + NLL", "IPO", "KTO", "KTO 1:9", "KTO 1:9, unbalanced", "DPO, noisy", "cDPO, noisy", "SFT on chosen",
    }  # fmt: skip
    for name, arm in told["arms"].items():
        assert 0 <= arm["wins"] <= 1 and 0 <= arm["right"] <= 1 and arm["kl"] > -0.5, name
        assert bool(arm["chosen"]) == (name not in ("KTO", "KTO 1:9", "KTO 1:9, unbalanced", "SFT on chosen")), name
    found = r04_preferences.judge(r04_preferences.SCALES["tiny"], [told, told])
    assert len(found.numbers) == 8 and sum(c.core for c in found.checks) == 5
    assert r04_preferences.draw(r04_preferences.SCALES["tiny"], [told, told]).startswith("<svg")


def test_a_model_against_itself_wins_half_at_no_distance(little_journey):
    sft = open_model(Bench(little_journey / "none", little_journey, 0, "tiny").journey() / "sft")
    task = WorldGold(world_behind(sft.path))
    asked = task.examples("test")[:6]
    mine = r04_preferences.sampled(sft, asked, 3)
    before = [[task.score(e, text) for text, *_ in row] for e, row in zip(asked, mine, strict=True)]
    found = r04_preferences._samples_of(sft, sft, task, asked, before, 3)
    assert found["wins"] == 0.5 and abs(found["kl"]) < 0.05


def test_the_other_arms_beta_must_be_there():
    with pytest.raises(ValueError, match=r"must hold 0.1, which the other arms take"):
        build(r04_preferences.Setup, {"betas": [0.3, 1.0]})
