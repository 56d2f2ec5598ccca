"""Rollouts on a tiny model: which tokens count and how much, KL, resampling, resuming, and every refusal."""

import json
import zlib
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fledge.core.batch import Batch
from fledge.core.model import Transformer
from fledge.core.policy import gae, policy_gradient, whiten
from fledge.generate.rollout import RolloutConfig, Rollouts
from fledge.text.tokenizer import Tokenizer

LONGEST = 6
QUESTIONS = ("Who", "Where is Belmora?", "The river", "請問你是誰？", "How long is the Tesk", "Tell me", "Mira Kolden", "412")


@pytest.fixture(scope="module")
def asked(tokenizer: Tokenizer) -> list[list[int]]:
    """Prompts of several lengths."""
    return [
        [tokenizer.bos, tokenizer.user, *tokenizer.encode(q), tokenizer.end, tokenizer.assistant] for q in QUESTIONS
    ]


@pytest.fixture(scope="module")
def make(make_model, tokenizer):
    """make(seed, **config): a model of the tokenizer's vocabulary whose distributions differ by nats."""
    return lambda seed=0, **config: make_model(seed, spread=0.15, vocab_size=tokenizer.vocab_size, **config)


@pytest.fixture
def model(make) -> Transformer:
    return make()


def noise(numbers: Sequence[int], answers: Sequence[str]) -> list[float]:
    """A reward that is a function of the answer: 0, 0.1, ... 0.6."""
    return [zlib.crc32(a.encode()) % 7 / 10 for a in answers]


def ends(tokenizer: Tokenizer) -> list[int]:
    """Every fourth token ends an answer, so that a model that has learnt nothing ends some answers and not others."""
    return [tokenizer.end, *range(8, tokenizer.vocab_size, 4)]


def rollouts(model, tokenizer, prompts, score=noise, **over) -> Rollouts:
    named = ("reference", "progress", "identity", "stop_ids", "micro_tokens", "want_entropy")
    given = {"stop_ids": ends(tokenizer)} | {k: over.pop(k) for k in named if k in over}
    settings = {"prompts_per_update": 4, "group_size": 3, "max_tokens": LONGEST, "seed": 1}
    if "reference" not in given:
        settings["kl"] = "off"
    return Rollouts(model, tokenizer, prompts, score, RolloutConfig(**settings | over), **given)


def taken(source: Rollouts, steps: int) -> list[Batch]:
    batches = iter(source)
    return [next(batches) for _ in range(steps)]


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
@pytest.mark.parametrize("divisor", ["token", "sequence"])
def test_before_the_first_update_every_ratio_of_the_first_epoch_is_exactly_1(
    path, make, tokenizer, asked, dtype, divisor
):
    """To the last bit: the log-probs at sampling are cut into the same minibatches and micro-batches as the steps."""
    model = make().train()
    model.compute_dtype = dtype
    micro = 40
    source = rollouts(model, tokenizer, asked, epochs=2, minibatches=3, micro_tokens=micro, divisor=divisor)
    objective = policy_gradient(clip=(0.2, 0.2))
    for step, batch in enumerate(taken(source, 6)):
        parts = list(batch.split(micro))
        assert len(parts) > 1
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
    source = rollouts(model, tokenizer, asked, lambda _, answers: [0.1] * len(answers), baseline=baseline, cut_penalty=0.0)
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


@pytest.fixture
def reference(make) -> Transformer:
    """The model moved: an answer's KL is a few nats."""
    other = make()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(torch.empty_like(p).normal_(0, 0.03, generator=generator))
    return other.requires_grad_(False)


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
    assert free.last.answers == [tokenizer.decode(r[:n]) for r, n in zip(drawn.tokens.tolist(), drawn.lengths, strict=True)]
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


# ------------------------------------------------------------------------------------------------------- resampling


def only(loud: set[int]):
    """Prompts in `loud` get rewards that differ, the others 0.5."""
    return lambda numbers, answers: [
        0.1 * (i % 3) if n in loud else 0.5 for i, n in enumerate(numbers)
    ]


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
    assert source.last.answers == [tokenizer.decode(r[:n]) for r, n in zip(drawn.tokens.tolist(), drawn.lengths, strict=True)]
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


def taken_one_by_one(source: Rollouts, steps: int):
    batches = iter(source)
    for _ in range(steps):
        yield next(batches)


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
        loss, _ = policy_gradient(clip=(0.2, 0.2), value_weight=0.1 if baseline == "value" else 0.0)(model(batch), batch)
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
    ends_at = [(p, a) for p, a in zip([p for p in source.last.prompts for _ in range(3)], source.last.answers, strict=True)]
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
