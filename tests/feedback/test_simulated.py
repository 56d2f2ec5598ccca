"""Simulated people: the errors they are said to make, as often as said, and the same ones each time."""

import pytest
from polling import WIDE, Said, question

from fledge.feedback.raters import Asked, AskedPair, RewardRater, Scale
from fledge.feedback.rules import Rule
from fledge.feedback.simulated import WORLD, Simulated, accepted_ideal, world_ideal
from fledge.tasks.world_tasks import WorldGold
from fledge.world import World, WorldConfig
from fledge.world.gold import gold_score

COUNT = 4000  # a share of 0.1 is then known to 0.005 (one deviation)


@pytest.fixture(scope="module")
def examples():
    """Training prompts of the quick world: some facts, every request and greeting."""
    found = WorldGold(World(WorldConfig.quick())).examples("train")
    return [e for e in found if e.kind == "fact"][:60] + [e for e in found if e.kind != "fact"]


def person(**errors) -> Simulated:
    return Simulated(Said(), scales=WIDE, **errors)


def pairs(left: float, right: float, count: int = COUNT) -> list[AskedPair]:
    return [AskedPair(f"s{n}", question(), str(left), str(right)) for n in range(count)]


def asked(value: float, count: int = COUNT) -> list[Asked]:
    return [Asked(f"s{n}", question(), str(value)) for n in range(count)]


def test_without_error_the_better_answer_wins():
    who = person(noise=0.0)
    assert set(who.pairs(pairs(1.0, 0.5, 50))) == {"left"}
    assert set(who.pairs(pairs(0.5, 1.0, 50))) == {"right"}
    assert set(who.pairs(pairs(0.5, 0.5, 50))) == {"same"}
    assert set(who.thumbs(asked(0.0, 50))) == {1} and set(who.thumbs(asked(-0.1, 50))) == {-1}
    assert [who.scores(asked(value, 1))[0] for value in (-2.5, -2, -1, 0, 1, 2)] == [0, 1, 2, 3, 4, 5]


def test_tie_band_and_both_bad():
    who = Simulated(Said(), 0.0, tie_band=0.25, scales=Scale(levels=(0, 1, 2, 3, 4), liked=2, bad=-1.0))
    assert who.pairs(pairs(1.0, 1.25, 1)) == ["same"]
    assert who.pairs(pairs(1.0, 1.26, 1)) == ["right"]
    assert who.pairs(pairs(-3.0, -1.1, 1)) == ["both_bad"]
    assert who.pairs(pairs(-3.0, -1.0, 1)) == ["right"], "one of them is not bad"


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
def test_noise_flips_as_often_as_said(noise):
    who = person(noise=noise)
    assert who.pairs(pairs(0.0, 1.0)).count("left") / COUNT == pytest.approx(noise, abs=0.02)
    assert who.thumbs(asked(1.0)).count(-1) / COUNT == pytest.approx(noise, abs=0.02)
    assert sum(v != 5 for v in who.scores(asked(3.0))) / COUNT == pytest.approx(noise * 5 / 6, abs=0.02)


def test_position_bias_takes_the_left_whatever_stands_there():
    who = person(noise=0.1, position_bias=0.2)
    worse_left = who.pairs(pairs(0.0, 1.0)).count("left") / COUNT
    assert worse_left == pytest.approx(0.2 + 0.8 * 0.1, abs=0.02)
    assert who.pairs(pairs(0.0, 0.0)).count("left") / COUNT == pytest.approx(0.2, abs=0.02)


def test_the_same_question_gets_the_same_answer_whoever_is_asked_beside_it():
    questions = pairs(0.0, 1.0, 200)
    whole = person(noise=0.4, seed=3).pairs(questions)
    one_by_one = [person(noise=0.4, seed=3).pairs([q])[0] for q in questions]
    assert whole == one_by_one
    assert person(noise=0.4, seed=3).pairs(questions[::-1]) == whole[::-1]
    assert person(noise=0.4, seed=4).pairs(questions) != whole


@pytest.mark.parametrize("errors", [{"noise": -0.1}, {"noise": 1.5}, {"position_bias": 2.0}, {"noise": float("nan")}])
def test_probabilities_are_checked(errors):
    with pytest.raises(ValueError, match="must be a probability between 0 and 1"):
        person(**errors)


def test_ideal_answers_have_the_highest_gold_there_is(examples):
    best = {"fact": 4.5, "dangerous": 3.0, "borderline": 3.5, "greeting": 3.0}
    assert {e.kind for e in examples} == set(best)
    for n, example in enumerate(examples):
        text = world_ideal(example, f"subject {n}")
        assert gold_score(example, text) == best[example.kind], (example.id, text)
        assert text == world_ideal(example, f"subject {n}")


def test_ideal_answers_vary_in_wording(examples):
    assert len({world_ideal(examples[0], str(n)) for n in range(50)}) > 5


def test_the_worlds_scale_gives_ideal_answers_five_points_and_a_thumb(examples):
    who = Simulated(WorldGold(World(WorldConfig.quick())), noise=0.0)
    given = [Asked(str(n), e, world_ideal(e, str(n))) for n, e in enumerate(examples)]
    assert set(who.scores(given)) == {5} and set(who.thumbs(given)) == {1}
    assert set(who.edits(given)) == {None}, "there is nothing to make better"
    wrong = [Asked(q.subject, q.example, "Everybody knows that.") for q in given]
    assert max(who.scores(wrong)) <= 1 and set(who.thumbs(wrong)) == {-1}
    assert all(gold_score(q.example, text) >= 3 for q, text in zip(wrong, who.edits(wrong), strict=True))


def test_a_noisy_person_leaves_answers_as_they_are(examples):
    who = Simulated(WorldGold(World(WorldConfig.quick())), noise=0.3)
    given = [Asked(f"{e.id} {n}", e, "No.") for e in examples[:100] for n in range(10)]
    left = sum(text == "No." for text in who.edits(given)) / len(given)
    assert left == pytest.approx(0.3, abs=0.05)


def test_a_kind_without_a_scale_is_an_error():
    with pytest.raises(ValueError, match=r"kind 'number'.*give one for it"):
        Simulated(Said(), scales=WORLD).pairs(pairs(0.0, 1.0, 1))


def test_other_rewards_err_too():
    clean = RewardRater(Rule("length", lambda e, a: len(a) / 10), ideal=accepted_ideal)
    who = Simulated(clean, noise=1.0)
    assert clean.pairs([AskedPair("s", question(), "long enough", "no")]) == ["left"]
    assert who.pairs([AskedPair("s", question(), "long enough", "no")]) == ["right"]
    assert "length" in who.name
