"""Rollouts on a tiny model: which tokens count and how much, ratios, KL, and what is logged."""

import pytest
import torch
from rolling import LONGEST, noise, rollouts, taken
from torch import Tensor

from fledge.core.batch import Batch
from fledge.core.policy import policy_gradient

# ------------------------------------------------------------------------------------------------- which tokens


def test_the_sampled_tokens_count_with_their_end_token_and_nothing_else(model, tokenizer, asked):
    source = rollouts(model, tokenizer, asked)
    (batch,) = taken(source, 1)
    drawn, prompts = source.last.samples, [asked[p] for p in source.last.prompts for _ in range(3)]
    assert batch.tokens.shape == batch.targets.shape == batch.weight.shape and len(batch.tokens) == 12
    for r, prompt in enumerate(prompts):
        answer = drawn.tokens[r, : drawn.lengths[r]].tolist()
        row = [*batch.tokens[r].tolist(), batch.targets[r, -1].item()]
        assert row[: len(prompt) + len(answer)] == prompt + answer
        assert set(row[len(prompt) + len(answer) :]) <= {tokenizer.pad}
        assert batch.targets[r, :-1].tolist() == batch.tokens[r, 1:].tolist()
        counted = batch.weight[r].nonzero()[:, 0].tolist()
        assert counted == list(range(len(prompt) - 1, len(prompt) - 1 + len(answer)))
        assert batch.targets[r][counted].tolist() == answer
        assert (answer[-1] in source.engine.stop_ids) == bool(drawn.stopped[r])
        assert set(answer[:-1]).isdisjoint(source.engine.stop_ids)
    assert set(batch.weight.unique().tolist()) == {0.0, 1.0}
    assert 0 < int(drawn.stopped.sum()) < 12, "some end, some are cut off"
    assert batch.ids.tolist() == [p for p in source.last.prompts for _ in range(3)]
    assert batch.tokens.shape[1] % 16 == 0
    for column in (batch.advantage, batch.weight):
        assert column[batch.weight == 0].abs().max() == 0


def test_the_natural_end_token_is_trained(model, tokenizer, asked):
    """With the tokenizer's own end token, made likely."""
    with torch.no_grad():
        model.head_weight[tokenizer.end] = 3 * model.head_weight[tokenizer.end]
    source = rollouts(model, tokenizer, asked, stop_ids=None, prompts_per_update=8)
    (batch,) = taken(source, 1)
    last = [batch.targets[r][batch.weight[r] > 0][-1].item() for r in range(len(batch.tokens))]
    assert 0 < last.count(tokenizer.end) == int(source.last.samples.stopped.sum())


def test_a_prompt_and_answer_that_fill_the_context(make, tokenizer, asked):
    longest = max(map(len, asked))
    source = rollouts(make(context_tokens=longest + LONGEST), tokenizer, asked, prompts_per_update=8)
    (batch,) = taken(source, 1)
    assert batch.tokens.shape[1] <= longest + LONGEST
    assert batch.weight.sum() == source.last.samples.lengths.sum()


# ------------------------------------------------------------------------------------------ ratio 1, zero gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("divisor", "micro"), [("token", 40), ("sequence", 40), ("token", 16384)])
def test_before_the_first_update_every_ratio_of_the_first_epoch_is_exactly_1(
    path, make, tokenizer, asked, dtype, divisor, micro
):
    """To the last bit: the log-probs at sampling are cut into the same minibatches and micro-batches as the steps."""
    model = make().train()
    model.compute_dtype = dtype
    source = rollouts(
        model, tokenizer, asked, prompts_per_update=5, epochs=2, minibatches=3, micro_tokens=micro, divisor=divisor
    )
    objective = policy_gradient(clip=(0.2, 0.2))
    for step, batch in enumerate(taken(source, 6)):
        parts = list(batch.split(micro))
        assert len(parts) == (3 if micro == 40 else 1)
        for part in parts:
            output = model(part)
            _, metrics = objective(output, part)
            moved = ((output.logp - part.old_logp) * (part.weight > 0)).abs().max()
            if step < 3:
                assert moved == 0 and metrics["clipped"] == 0
                assert metrics["ratio"] == part.weight.sum()
            else:  # other rows together: the same up to rounding
                assert moved < (1e-4 if dtype == torch.float32 else 0.1)
    assert source.last.rewards.unique().numel() > 2


def test_one_step_per_rollout_is_on_policy_by_construction(model, tokenizer, asked):
    (batch,) = taken(rollouts(model, tokenizer, asked), 1)
    assert batch.old_logp is None and batch.notes.get("ratio") is None


@pytest.mark.parametrize("baseline", ["group", "group-std", "leave-one-out", "none"])
def test_groups_of_equal_rewards_give_exactly_no_gradient(model, tokenizer, asked, baseline):
    """Of three numbers 0.9 the mean is not 0.9 in float32."""
    source = rollouts(
        model, tokenizer, asked, lambda _, answers: [0.9] * len(answers), baseline=baseline, cut_penalty=0.0
    )
    (batch,) = taken(source, 1)
    loss, _ = policy_gradient(clip=(0.2, 0.2))(model(batch), batch)
    loss.backward()
    norm = sum(float(p.grad.abs().sum()) for p in model.parameters() if p.grad is not None)
    assert (norm == 0) == (baseline != "none")
    assert batch.notes["no_signal"] == 1.0


# -------------------------------------------------------------------------------------------------------- divisors


@pytest.mark.parametrize("divisor", ["token", "sequence", "fixed"])
def test_divisors_weigh_tokens_answers_or_slots(model, tokenizer, asked, divisor):
    batches = taken(rollouts(model, tokenizer, asked, divisor=divisor, minibatches=2), 2)
    lengths = [(b.weight > 0).sum(1) for b in batches]
    assert all(n.unique().numel() > 1 for n in lengths)
    for batch, size in zip(batches, lengths, strict=True):
        if divisor == "sequence":
            assert torch.allclose(batch.weight.sum(1), torch.ones(6)) and batch.units == 6.0
            assert all((batch.weight[r][batch.weight[r] > 0] == 1 / size[r]).all() for r in range(6))
        else:
            assert set(batch.weight.unique().tolist()) == {0.0, 1.0}
            assert batch.units == (float(size.sum()) if divisor == "token" else 6.0 * LONGEST)


def test_epochs_show_every_answer_once_each_and_in_another_order(model, tokenizer, asked):
    batches = taken(rollouts(model, tokenizer, asked, epochs=3, minibatches=2), 6)
    epochs = [[row for b in batches[e : e + 2] for row in b.old_logp.tolist()] for e in (0, 2, 4)]
    assert all(sorted(epochs[0]) == sorted(e) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert all(b.notes == batches[0].notes for b in batches)


# --------------------------------------------------------------------------------------------------------------- KL


@torch.no_grad()
def kl_per_answer(model, reference, batch: Batch) -> Tensor:
    """[R] sum over the answer of log pi - log pi_ref."""
    return ((model(batch).logp - reference(batch).logp) * (batch.weight > 0)).sum(1)


def test_kl_is_measured_or_paid_once_in_the_reward_or_in_the_loss(model, reference, tokenizer, asked):
    found = {
        kl: taken(rollouts(
            model, tokenizer, asked, reference=reference, kl=kl, baseline="none", cut_penalty=0.0,
            kl_coefficient=0.0 if kl == "measure" else 0.3,
        ), 1)[0]
        for kl in ("measure", "reward", "loss")
    }  # fmt: skip
    away = kl_per_answer(model, reference, found["measure"])
    assert away.abs().max() > 1
    for batch in found.values():
        assert batch.notes["kl"] == pytest.approx(away.mean().item(), rel=1e-3)
    plain, paid = found["measure"].advantage, found["reward"].advantage
    weight = found["measure"].weight
    assert torch.allclose(paid - plain, -0.3 * away[:, None] * weight, atol=1e-3)
    assert torch.equal(found["loss"].advantage, plain)
    for kl, batch in found.items():
        assert batch.kl_weight == (0.3 if kl == "loss" else 0.0)
        assert (batch.ref_logp is not None) == (kl == "loss")
        assert ("kl_coefficient" in batch.notes) == (kl != "measure")
    at = weight > 0
    assert torch.allclose(found["loss"].ref_logp[at], reference(found["loss"]).logp[at], atol=1e-5)


def test_the_reference_is_the_model_itself_at_the_start(model, tokenizer, asked):
    """KL 0 up to the rounding between the engine and the model."""
    (batch,) = taken(rollouts(model, tokenizer, asked, reference=model, kl="measure"), 1)
    assert abs(batch.notes["kl"]) < 1e-3


@pytest.mark.parametrize(("target", "factor"), [(1e-3, 1.02), (1e3, 0.98), (None, 1.0)])
def test_the_price_of_kl_is_moved_by_at_most_2_percent_an_update(model, reference, tokenizer, asked, target, factor):
    """Ziegler et al. 2019, section 2.2: beta (1 + 0.1 clip(KL/target - 1, -0.2, 0.2))."""
    source = rollouts(model, tokenizer, asked, reference=reference, kl="loss", kl_coefficient=0.1, kl_target=target)
    for n, batch in enumerate(taken(source, 4)):
        assert batch.kl_weight == pytest.approx(0.1 * factor**n) == batch.notes["kl_coefficient"]
    assert source.kl_coefficient == pytest.approx(0.1 * factor**4)


def test_the_price_of_kl_moves_in_proportion_near_the_target(model, reference, tokenizer, asked):
    settings = {"reference": reference, "kl": "reward", "kl_coefficient": 0.1}
    (before,) = taken(rollouts(model, tokenizer, asked, **settings), 1)
    for off in (0.9, 1.0, 1.1):
        source = rollouts(model, tokenizer, asked, **settings, kl_target=before.notes["kl"] / off)
        taken(source, 1)
        assert source.kl_coefficient == pytest.approx(0.1 * (1 + 0.1 * (off - 1)))


# ----------------------------------------------------------------------------------------- rewards, what is logged


def test_cut_off_answers_pay_and_the_log_says_what_happened(model, reference, tokenizer, asked):
    free, fined = (
        rollouts(model, tokenizer, asked, reference=reference, kl="measure", cut_penalty=fine) for fine in (0.0, 0.25)
    )
    (batch,), _ = taken(free, 1), taken(fined, 1)
    drawn, rewards = free.last.samples, free.last.rewards
    assert free.last.answers == [
        tokenizer.decode(r[:n]) for r, n in zip(drawn.tokens.tolist(), drawn.lengths, strict=True)
    ]
    assert rewards.tolist() == pytest.approx(noise([], free.last.answers))
    assert torch.allclose(rewards - fined.last.rewards, 0.25 * (~drawn.stopped).float())
    alike = (rewards.view(4, 3) == rewards.view(4, 3)[:, :1]).all(1).float().mean().item()
    assert batch.notes | {"kl": 0} == {
        "update": 1, "kl": 0, "reward": pytest.approx(rewards.mean().item()),
        "reward_std": pytest.approx(rewards.std(correction=0).item()),
        "entropy": pytest.approx(-drawn.logp.sum().item() / drawn.lengths.sum().item()),
        "length": pytest.approx(drawn.lengths.float().mean().item()), "no_signal": alike,
        "cut_off": pytest.approx((~drawn.stopped).float().mean().item()),
    }  # fmt: skip
    assert torch.equal(fined.last.samples.tokens, drawn.tokens)


def test_the_engine_and_the_model_agree_on_what_was_sampled(model, tokenizer, asked):
    (batch, _) = taken(rollouts(model, tokenizer, asked, epochs=2), 2)
    assert batch.notes["engine_gap"] < 1e-4


def test_entropy_is_asked_for_where_a_bonus_needs_it(model, tokenizer, asked):
    for want in (True, False):
        (batch, _) = taken(rollouts(model, tokenizer, asked, want_entropy=want, epochs=2), 2)
        assert batch.want_entropy == want and (model(batch).entropy is not None) == want
