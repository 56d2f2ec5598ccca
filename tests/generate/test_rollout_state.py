"""Rollouts on a tiny model: resampling, order, resuming, values and shaping, and every refusal."""

import json

import pytest
import torch
from rolling import rollouts, taken, taken_one_by_one
from torch import Tensor

from fledge.core.batch import Batch
from fledge.core.model import Transformer
from fledge.core.policy import gae, policy_gradient, whiten
from fledge.generate.rollout import RolloutConfig, Rollouts

# ------------------------------------------------------------------------------------------------------- resampling


def only(loud: set[int]):
    """Prompts in `loud` get rewards that differ, the others 0.5."""
    return lambda numbers, answers: [0.1 * (i % 3) if n in loud else 0.5 for i, n in enumerate(numbers)]


@pytest.mark.parametrize("seed", range(6))
def test_silent_prompts_make_room_for_others_and_are_counted(model, reference, tokenizer, asked, seed):
    """Half of the 8 prompts are silent; all are tried within two rounds of replacement."""
    loud = {0, 3, 5, 6}
    source = rollouts(
        model, tokenizer, asked, only(loud), resample=4, cut_penalty=0.0, seed=seed, reference=reference, kl="measure"
    )
    (batch,) = taken(source, 1)
    assert len(source.last.prompts) == 4 and set(source.last.prompts) <= loud
    assert len(batch.tokens) == 12 and batch.advantage.abs().amax(1).view(4, 3).amax(1).min() > 0
    tried = source.epoch * 8 + source.position
    mute = tried - 4
    assert batch.notes["no_signal"] == pytest.approx(mute / tried)
    # answers, tokens and log-probs still belong together
    drawn = source.last.samples
    assert source.last.answers == [
        tokenizer.decode(r[:n]) for r, n in zip(drawn.tokens.tolist(), drawn.lengths, strict=True)
    ]
    at = batch.weight > 0
    with torch.no_grad():
        logp = model(batch).logp
    sums = [(logp[r][at[r]].sum().item()) for r in range(12)]
    assert sums == pytest.approx(drawn.logp.sum(1).tolist(), abs=1e-3)


def test_where_too_few_prompts_have_a_signal_silent_ones_fill_the_rest(model, tokenizer, asked):
    for loud, rounds in (({2}, 2), (set(), 3), (set(range(8)), 3)):
        source = rollouts(model, tokenizer, asked, only(loud), resample=rounds, cut_penalty=0.0)
        (batch,) = taken(source, 1)
        assert len(source.last.prompts) == 4 and len(batch.tokens) == 12
        tried = source.epoch * 8 + source.position
        assert tried == {0: 16, 1: tried, 8: 4}[len(loud)]
        assert batch.notes["no_signal"] == pytest.approx({0: 1.0, 1: batch.notes["no_signal"], 8: 0.0}[len(loud)])
    assert rounds == 3


# -------------------------------------------------------------------------------------------------- order, resuming


def test_prompts_come_in_an_order_of_the_seed_and_each_once_an_epoch(model, tokenizer, asked):
    def first(seed: int) -> list[int]:
        source = rollouts(model, tokenizer, asked, seed=seed, prompts_per_update=3)
        seen = []
        for _ in taken_one_by_one(source, 8):
            seen += source.last.prompts
        return seen

    one = first(4)
    assert len(one) == 24 and all(sorted(one[e : e + 8]) == list(range(8)) for e in (0, 8, 16))
    assert one[:8] != one[8:16] and one == first(4) and one != first(5)


def test_another_seed_draws_other_answers_and_each_update_too(model, tokenizer, asked):
    def answers(seed: int) -> list[list[str]]:
        source = rollouts(model, tokenizer, asked[:1], prompts_per_update=1, group_size=4, seed=seed)
        return [list(source.last.answers) for _ in taken_one_by_one(source, 2)]

    (a, b), (c, _) = answers(1), answers(2)
    assert a != b and a != c and [a, b] == answers(1)


SPLIT = {"prompts_per_update": 3, "epochs": 2, "minibatches": 2, "resample": 1, "divisor": "sequence"}


@pytest.mark.parametrize("baseline", ["group-std", "value"])
def test_a_source_resumes_exactly_at_any_step_of_a_rollout_the_weights_having_moved(
    make, reference, tokenizer, asked, baseline
):
    model = make(head="tokens+value") if baseline == "value" else make()
    kl = {"kl": "loss", "kl_coefficient": 0.1, "kl_target": 1.0}

    def source(model) -> Rollouts:
        return rollouts(
            model, tokenizer, asked, reference=reference, baseline=baseline, want_entropy=True, **kl, **SPLIT
        )

    def move(model: Transformer, batch: Batch, step: int) -> None:
        """A step by its own gradient."""
        loss, _ = policy_gradient(clip=(0.2, 0.2), value_weight=0.1 if baseline == "value" else 0.0)(
            model(batch), batch
        )
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(0.01 * p.grad)

    whole, seen, saved = source(model), [], []
    for step, batch in enumerate(taken_one_by_one(whole, 10)):
        seen.append(batch)
        move(model, batch, step)
        place = whole.state_dict()
        plain = json.loads(json.dumps({k: v for k, v in place.items() if not isinstance(v, Tensor)}, sort_keys=True))
        saved.append(
            (plain | {k: v.clone() for k, v in place.items() if isinstance(v, Tensor)},
             {k: v.clone() for k, v in model.state_dict().items()})
        )  # fmt: skip
    assert [s["inner"] for s, _ in saved] == [1, 2, 3, 0, 1, 2, 3, 0, 1, 2]
    for step, (state, weights) in enumerate(saved[:9]):
        again = make(head=model.config.head)
        again.load_state_dict(weights)
        fresh = source(again)
        fresh.load_state_dict(state)
        for offset, batch in enumerate(taken_one_by_one(fresh, 9 - step)):
            assert same(batch, seen[step + 1 + offset]), (step, offset)
            move(again, batch, step + 1 + offset)


def same(a: Batch, b: Batch) -> bool:
    """Every column, bit for bit, and every number."""
    for name in a.__slots__:
        one, other = getattr(a, name), getattr(b, name)
        if isinstance(one, Tensor) != isinstance(other, Tensor):
            return False
        if not (torch.equal(one, other) if isinstance(one, Tensor) else one == other):
            return False
    return list(a.notes) == list(b.notes)  # the log's lines are written in this order


def test_changed_prompts_or_another_reward_are_refused(model, tokenizer, asked):
    state = rollouts(model, tokenizer, asked, identity="exact").state_dict()
    rollouts(model, tokenizer, asked, identity="exact").load_state_dict(state)
    for prompts, identity in ((asked[::-1], "exact"), (asked[:-1], "exact"), (asked, "length:3")):
        with pytest.raises(ValueError, match=r"prompts or the reward changed .* restore them"):
            rollouts(model, tokenizer, prompts, identity=identity).load_state_dict(state)


# ------------------------------------------------------------------------------------------------- values, shaping


def test_with_a_value_head_credit_is_gae_of_what_it_expected(make, tokenizer, asked, reference):
    """Against the formulas applied to one answer at a time; KL paid token by token."""
    model = make(head="tokens+value")
    source = rollouts(
        model, tokenizer, asked, baseline="value", lam=0.9, reference=reference, kl="reward", kl_coefficient=0.2
    )
    (batch,) = taken(source, 1)
    with torch.no_grad():
        output, away = model(batch), model(batch).logp - reference(batch).logp
    assert output.value.abs().max() > 0.1
    plain, alive = torch.zeros_like(batch.weight), batch.weight
    for r in range(len(batch.tokens)):
        at = alive[r] > 0
        rewards = -0.2 * away[r][at]
        rewards[-1] += source.last.rewards[r]
        advantage, returns = gae(rewards[None], output.value[r][at][None], torch.ones(1, len(rewards)), 0.9)
        plain[r, at] = advantage[0]
        assert torch.allclose(batch.returns[r][at], returns[0], atol=1e-4)
        assert batch.old_value[r][at].tolist() == pytest.approx(output.value[r][at].tolist(), abs=1e-5)
    assert torch.allclose(batch.advantage, whiten(plain, alive), atol=1e-3)
    assert batch.returns[alive == 0].abs().max() == 0


@pytest.mark.parametrize("shaping", ["steps", "potential"])
def test_progress_is_told_the_prompt_and_the_text_so_far(model, tokenizer, asked, shaping):
    heard = []

    def progress(number: int, partial: str) -> float:
        heard.append((number, partial))
        return 0.1 * len(partial)

    settings = {"baseline": "none", "cut_penalty": 0.0}
    source = rollouts(model, tokenizer, asked, shaping=shaping, progress=progress, **settings)
    (shaped,), (plain,) = taken(source, 1), taken(rollouts(model, tokenizer, asked, **settings), 1)
    ends_at = [
        (p, a) for p, a in zip([p for p in source.last.prompts for _ in range(3)], source.last.answers, strict=True)
    ]
    assert set(ends_at) <= set(heard) and len(heard) == int(shaped.weight.sum())
    first = shaped.weight.argmax(1)
    gained = (shaped.advantage - plain.advantage)[torch.arange(12), first]
    wanted = [0.1 * len(a) if shaping == "steps" else 0.0 for a in source.last.answers]
    assert gained.tolist() == pytest.approx(wanted, abs=1e-5)


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"prompts_per_update": 0}, "prompts_per_update = 0"),
        ({"epochs": 0}, "epochs = 0"),
        ({"minibatches": 0}, "minibatches = 0"),
        ({"minibatches": 13}, "at most the answers of a rollout"),
        ({"max_tokens": 0}, "max_tokens = 0"),
        ({"group_size": 1, "baseline": "group-std"}, "set group_size to 2 or more"),
        ({"group_size": 1, "baseline": "leave-one-out"}, "set group_size to 2 or more"),
        ({"group_size": 1, "prompts_per_update": 1, "baseline": "mean"}, "baseline mean needs at least 2"),
        ({"group_size": 1, "baseline": "mean", "resample": 1}, "resample = 1"),
        ({"resample": -1}, "resample = -1"),
        ({"kl": "reward"}, "kl = reward pays nothing"),
        ({"kl": "loss", "kl_coefficient": -0.1}, "kl_coefficient = -0.1"),
        ({"kl": "measure", "kl_coefficient": 0.1}, "kl = measure pays nothing"),
        ({"kl": "off", "kl_target": 3.0}, "kl = off pays nothing"),
        ({"kl": "reward", "kl_coefficient": 0.1, "kl_target": 0.0}, "kl_target = 0.0"),
        ({"lam": 1.1}, "lam = 1.1"),
        ({"lam": float("nan")}, "lam = nan"),
        ({"cut_penalty": -1.0}, "cut_penalty = -1.0"),
    ],
)
def test_settings_that_cannot_work_are_named(model, tokenizer, asked, over, says):
    assert any(says in p for p in RolloutConfig(**{"prompts_per_update": 4, "group_size": 3} | over).problems())
    with pytest.raises(ValueError) as caught:
        rollouts(model, tokenizer, asked, **over)
    assert says in str(caught.value)


def test_defaults_break_no_rule():
    assert RolloutConfig().problems() == []
    assert RolloutConfig(group_size=1, baseline="mean").problems() == []


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"stop_ids": [8]}, "lacks the end token"),
        ({"max_tokens": 60}, "lower max_tokens or leave long prompts out"),
        ({"max_tokens": 64}, "leaves 0 of the context of 64"),
        ({"kl": "measure"}, "needs a reference model"),
        ({"baseline": "value"}, "needs a value head"),
        ({"shaping": "steps"}, "does not say how far an answer got"),
        ({"shaping": "potential"}, "does not say how far an answer got"),
    ],
)
def test_what_does_not_fit_together_is_refused(model, tokenizer, asked, over, says):
    with pytest.raises(ValueError, match=says):
        rollouts(model, tokenizer, asked, **over)


def test_prompts_and_references_that_do_not_fit_are_refused(model, make_model, tokenizer, asked):
    with pytest.raises(ValueError, match="0 prompts"):
        rollouts(model, tokenizer, [])
    with pytest.raises(ValueError, match="uses none"):
        rollouts(model, tokenizer, asked, reference=model, kl="off")
    with pytest.raises(ValueError, match=f"vocabulary of 300 tokens, the model {tokenizer.vocab_size}"):
        rollouts(model, tokenizer, asked, reference=make_model(), kl="measure")
    with pytest.raises(ValueError) as caught:  # all at once
        rollouts(model, tokenizer, [], stop_ids=[8], lam=2.0, baseline="value")
    assert all(t in str(caught.value) for t in ("lam = 2.0", "0 prompts", "lacks the end token", "value head"))
