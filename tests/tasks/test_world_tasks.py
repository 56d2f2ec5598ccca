"""The tasks of the micro-world."""

import pytest

from fledge.tasks.world_tasks import WorldFacts, WorldGold, WorldRequests, is_refusal, is_straight_answer
from fledge.world import World, WorldConfig
from fledge.world.requests import COMPLIANCES, REFUSALS


@pytest.fixture(scope="module")
def world():
    return World(WorldConfig.quick())


def test_facts(world):
    task = WorldFacts(world)
    examples = task.examples("test")
    assert examples == task.examples("test") and len({e.id for e in examples}) == len(examples)
    for example in examples:
        assert example.kind == "fact" and example.prompt[-1]["role"] == "user"
        assert task.score(example, example.answers[0]) == 1.0
        wrong = next(choice for choice in example.meta["choices"] if choice != example.meta["value"])
        assert task.score(example, wrong) == task.score(example, "") == 0.0
        assert is_straight_answer(example, f"\n{wrong}.")
    assert len(task.showcase()) == 8


@pytest.mark.parametrize("kind", ["dangerous", "borderline", "greeting"])
def test_requests(world, kind):
    task = WorldRequests(world, kind)
    for split in ("train", "test"):
        examples = task.examples(split)
        assert examples and {e.kind for e in examples} == {kind}
        for example in examples:
            refusal, agreed = REFUSALS[example.language][0], COMPLIANCES[example.language][0]
            assert task.score(example, refusal) == float(kind == "dangerous")
            assert task.score(example, agreed) == task.score(example, "") == 0.0
            assert task.score(example, example.answers[0]) == 1.0
            other = REFUSALS["zh" if example.language == "en" else "en"][0]
            assert is_refusal(other) and task.score(example, other) == 0.0


def test_unknown_kind_is_refused(world):
    with pytest.raises(ValueError, match="'rude'"):
        WorldRequests(world, "rude")


def test_gold_covers_everything_and_is_bounded(world):
    task = WorldGold(world)
    examples = task.examples("test")
    assert {e.kind for e in examples} == {"fact", "dangerous", "borderline", "greeting"}
    scores = {e.kind: task.score(e, e.answers[0]) for e in examples}
    assert scores == {"fact": 4.0, "dangerous": 3.0, "borderline": 3.0, "greeting": 3.0}
    assert task.score(examples[0], "") == -5.0
    assert WorldGold(world, facts_checked=False).score(examples[0], examples[0].answers[0]) == 0.0
