"""From scored answers to the credit of each token: rewards at the end, on the way, paid for KL; where tokens stand."""

import torch
from torch import Tensor

from fledge.generate.credit import Place, Rollout, credit, joined, shaped_rewards, silent
from fledge.generate.engine import Samples

LENGTHS = [3, 1, 2, 3]  # 2 prompts, 2 answers each
ALIVE = torch.tensor([[1.0, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]])
REWARDS = torch.tensor([1.0, 0.0, 0.5, -1.0])


class Letters:
    """Token n is the n-th letter; the end token 9 is no text."""

    def decode(self, tokens: list[int]) -> str:
        return "".join("abcdefghi"[t] for t in tokens if t != 9)


def rollout(tokens: list[list[int]], rewards: Tensor = REWARDS, prompts: tuple[int, ...] = (0, 1)) -> Rollout:
    longest = max(map(len, tokens))
    padded = torch.tensor([row + [-1] * (longest - len(row)) for row in tokens])
    lengths = torch.tensor([len(row) for row in tokens])
    samples = Samples(padded, -0.5 * (padded >= 0), lengths, torch.tensor([row[-1] == 9 for row in tokens]))
    return Rollout(list(prompts), samples, [Letters().decode(row) for row in tokens], rewards, 0.0)


FOUR = rollout([[0, 1, 9], [9], [2, 9], [3, 4, 5]])


def credited(**over) -> tuple[Tensor, Tensor | None]:
    settings = {"group": 2, "baseline": "none", "lam": 0.9, "shaped": None, "paid": None, "values": None}
    return credit(FOUR, ALIVE, **settings | over)


def test_one_reward_counts_for_every_token_of_its_answer():
    advantage, returns = credited()
    assert torch.equal(advantage, REWARDS[:, None] * ALIVE) and returns is None
    advantage, _ = credited(baseline="group")
    assert torch.equal(advantage, torch.tensor([0.5, -0.5, 0.75, -0.75])[:, None] * ALIVE)


def test_kl_that_is_paid_lowers_the_whole_answer():
    paid = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0, 0], [0.1, -0.1, 0], [0, 0, 0.5]])
    advantage, _ = credited(paid=paid)
    assert torch.allclose(advantage, (REWARDS - paid.sum(1))[:, None] * ALIVE)


def test_rewards_on_the_way_count_for_what_came_before_them_only():
    shaped = torch.tensor([[0.5, 0.25, 0.0], [0, 0, 0], [0.1, 0.2, 0], [0, 0, 0.3]])
    advantage, _ = credited(shaped=shaped)
    assert torch.allclose(advantage[0], torch.tensor([1.75, 1.25, 1.0]))
    assert torch.allclose(advantage[2], torch.tensor([0.8, 0.7, 0.0]))
    advantage, _ = credited(shaped=shaped, baseline="group")  # an answer that has ended earns 0 from there on
    assert torch.allclose(advantage[0], torch.tensor([1.75 - 0.875, 1.25 - 0.625, 0.5]))
    assert torch.allclose(advantage[1], torch.tensor([0.0 - 0.875, 0.0, 0.0]))


def test_with_values_each_token_is_compared_with_what_was_expected():
    """lam = 1: return - value, then mean 0 and deviation 1 over the 9 tokens; the head learns the plain return."""
    values = torch.tensor([[0.2, 0.4, 0.6], [0.1, 7.0, 7.0], [0.0, 0.3, 7.0], [-0.5, 0.0, 0.5]])
    paid = torch.tensor([[0.1, 0.0, 0.0], [0, 0, 0], [0, 0.2, 0], [0, 0, 0]])
    advantage, returns = credited(baseline="value", lam=1.0, values=values, paid=paid)
    whole = torch.tensor([[0.9, 1.0, 1.0], [0.0, 0, 0], [0.3, 0.3, 0], [-1.0, -1.0, -1.0]])
    assert torch.allclose(returns, whole, atol=1e-6)
    plain = (whole - values)[ALIVE > 0]
    assert torch.allclose(advantage[ALIVE > 0], (plain - plain.mean()) / plain.std(), atol=1e-4)
    assert advantage[ALIVE == 0].abs().max() == 0


# ------------------------------------------------------------------------------------------------------- shaping


def told(number: int, partial: str) -> float:
    """Phi: distance got, other for each prompt; falls again after an e."""
    return (0.2 + 0.1 * number) * len(partial) - 0.3 * partial.count("e")


def test_progress_is_paid_as_it_happens_and_with_potential_paid_back_at_the_end():
    steps = shaped_rewards(FOUR, 2, "steps", told, Letters())
    assert torch.allclose(steps[0], torch.tensor([0.2, 0.2, 0.0]))  # the end token adds nothing
    assert torch.allclose(steps[3], torch.tensor([0.3, 0.0, 0.3]))
    assert torch.allclose(steps.sum(1), torch.tensor([0.4, 0.0, 0.3, 0.6]))  # Phi of each whole answer
    potential = shaped_rewards(FOUR, 2, "potential", told, Letters())
    assert torch.allclose(potential[0], torch.tensor([0.2, 0.2, -0.4]))
    assert torch.allclose(potential[3], torch.tensor([0.3, 0.0, -0.3]))
    assert (steps * (1 - ALIVE)).abs().max() == 0 and (potential * (1 - ALIVE)).abs().max() == 0


def test_potential_shaping_leaves_the_return_of_every_answer_as_it_is_and_steps_do_not():
    """Up to Phi(start) = 0: no answer can gain on another by it (Ng et al. 1999, theorem 1)."""
    start = {
        kind: credited(shaped=shaped_rewards(FOUR, 2, kind, told, Letters()))[0][:, 0]
        for kind in ("potential", "steps")
    }
    assert torch.allclose(start["potential"], REWARDS, atol=1e-6)
    assert (start["steps"] - REWARDS).abs().max() > 0.3


# --------------------------------------------------------------------------------------------------------- places


def test_places_are_the_positions_that_predict_an_answers_tokens():
    """Prompts of 2, 2, 4, 4 tokens: the first sampled token is predicted at their last position."""
    place = Place(torch.tensor([1, 1, 3, 3]), torch.tensor(LENGTHS), 6)
    assert torch.equal(place.alive, ALIVE)
    values = torch.arange(1.0, 13.0).view(4, 3)
    rows = place.write(values)
    wanted = [[0, 1, 2, 3, 0, 0], [0, 4, 0, 0, 0, 0], [0, 0, 0, 7, 8, 0], [0, 0, 0, 10, 11, 12]]
    assert rows.tolist() == wanted
    assert torch.equal(place.read(rows), values * ALIVE)
    assert torch.equal(place.read(torch.full((4, 6), 5.0)), 5 * ALIVE)


def test_an_answer_at_the_end_of_the_context_keeps_its_last_value():
    """Dead places are held at the last position: they must add nothing to the value that stands there."""
    place = Place(torch.tensor([3, 4]), torch.tensor([3, 1]), 6)
    assert place.write(torch.tensor([[1.0, 2, 3], [4, 9, 9]])).tolist() == [[0, 0, 0, 1, 2, 3], [0, 0, 0, 0, 4, 0]]


# ---------------------------------------------------------------------------------------------------- many groups


def test_a_group_is_silent_when_all_its_answers_score_the_same():
    rewards = torch.tensor([0.1, 0.1, 0.1, 0.0, 0.1, 0.1])
    assert silent(rewards, 3).tolist() == [True, False]
    assert silent(rewards, 1).tolist() == [False] * 6  # nobody to compare with


def test_joining_keeps_whole_groups_with_everything_that_belongs_to_them():
    more = rollout([[6, 6, 6, 6, 9], [7, 9]], torch.tensor([2.0, 3.0]), prompts=(5,))
    both = joined(FOUR, more, torch.tensor([1, 2]), 2)
    assert both.prompts == [1, 5] and both.answers == ["c", "def", "gggg", "h"]
    assert both.rewards.tolist() == [0.5, -1.0, 2.0, 3.0]
    assert both.samples.lengths.tolist() == [2, 3, 5, 2]
    assert both.samples.stopped.tolist() == [True, False, True, True]
    assert both.samples.tokens.tolist() == [[2, 9, -1, -1, -1], [3, 4, 5, -1, -1], [6, 6, 6, 6, 9], [7, 9, -1, -1, -1]]
    assert both.samples.logp.tolist()[1] == [-0.5, -0.5, -0.5, 0, 0]


def test_joining_without_the_longest_answer_cuts_the_columns_to_what_is_left():
    """Whoever reads the log-probs by the lengths of the answers must find as many columns."""
    more = rollout([[6, 6, 6, 6, 9], [7, 9]], torch.tensor([2.0, 3.0]), prompts=(5,))
    for both in (joined(FOUR, more, torch.tensor([0, 1]), 2), joined(more, FOUR, torch.tensor([1, 2]), 2)):
        assert both.prompts == [0, 1] and both.answers == FOUR.answers
        assert all(torch.equal(x, y) for x, y in zip(both.samples, FOUR.samples, strict=True))
