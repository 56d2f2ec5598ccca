"""Generation: the cache changes nothing, the batch changes nothing, and logp is of what was really sampled from."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fledge.core.model import ModelConfig, Transformer
from fledge.generate.engine import Completion, Engine
from fledge.generate.sampling import Sampling, draw, probabilities, uniforms

V = 300
NEVER = V - 1  # an id the rules below keep from being sampled, where nothing shall stop an answer
GREEDY = Sampling(temperature=0.0, max_tokens=12)


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(V - 1, (n,), generator=generator).tolist() for n in lengths]


def ban(*tokens: int):
    """A logit rule: these are never drawn."""

    def rule(logits: Tensor, made: Tensor) -> Tensor:
        logits = logits.clone()
        logits[:, list(tokens)] = -torch.inf
        return logits

    return rule


class Watch:
    """A logit rule that changes nothing and keeps what it saw."""

    def __init__(self):
        self.logits: list[Tensor] = []
        self.made: list[Tensor] = []

    def __call__(self, logits: Tensor, made: Tensor) -> Tensor:
        self.logits.append(logits.clone())
        self.made.append(made.clone())
        return logits


@torch.no_grad()
def uncached(model: Transformer, tokens: list[int]) -> Tensor:
    """Next-token logits [V] by reading the whole sequence at once."""
    return model.logits(model.hidden(torch.tensor([tokens])))[0, -1]


def as_tuples(done: list[Completion]) -> list[tuple]:
    return [(c.tokens, c.finish) for c in done]


# --------------------------------------------------------------------------------------- the cache, the batch

SHAPES = [{}, {"kv_heads": 2, "qk_norm": True}, {"kv_heads": 1, "bias": True, "tied": False}, {"head": "tokens+value"}]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cached_logits_equal_uncached(path, make_model, shape):
    """At every step and for rows of different lengths, the longest beyond the short ones' padding."""
    model, asked, watch = make_model(spread=0.15, **shape), prompts(3, 9, 1, 17), Watch()
    done = Engine(model, [NEVER]).generate(asked, GREEDY, rules=[watch, ban(NEVER)])
    order = sorted(range(4), key=lambda i: len(asked[i]))
    for step, logits in enumerate(watch.logits):
        for row, index in enumerate(order):
            expected = uncached(model, asked[index] + done[index].tokens[:step])
            assert torch.allclose(logits[row], expected, atol=1e-4 * expected.abs().max().item())
    assert len(watch.logits) == 12


def test_cached_logits_equal_uncached_beyond_the_short_attention(make_model, monkeypatch):
    monkeypatch.setattr("fledge.core.kernels.SHORT_TOKENS", 8)
    monkeypatch.setattr("fledge.core.model.SHORT_TOKENS", 8)
    model, asked, watch = make_model(spread=0.15, kv_heads=2), prompts(13, 4), Watch()
    done = Engine(model, [NEVER]).generate(asked, GREEDY, rules=[watch, ban(NEVER)])
    for step, logits in enumerate(watch.logits):
        for row, index in enumerate([1, 0]):
            expected = uncached(model, asked[index] + done[index].tokens[:step])
            assert torch.allclose(logits[row], expected, atol=1e-4 * expected.abs().max().item())


def test_bfloat16_decoding_stays_close_to_its_own_uncached_logits(make_model):
    model, watch = make_model(spread=0.1), Watch()
    model.compute_dtype = torch.bfloat16
    (done,) = Engine(model, [NEVER], dtype=torch.bfloat16).generate(prompts(6), GREEDY, rules=[watch, ban(NEVER)])
    for step, logits in enumerate(watch.logits):
        expected = uncached(model, prompts(6)[0] + done.tokens[:step])
        assert (logits[0] - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batched_and_single_greedy_agree(path, make_model, shape):
    model, asked = make_model(spread=0.15, **shape), prompts(5, 1, 20, 7, 7, 2)
    engine = Engine(model, stop_ids=range(0, V, 7))  # often enough that rows leave the batch at different times
    batched = engine.generate(asked, GREEDY)
    assert len({len(c.tokens) for c in batched}) > 1
    single = [engine.generate([p], GREEDY)[0] for p in asked]
    assert as_tuples(batched) == as_tuples(single) == as_tuples(engine.generate(asked, GREEDY, batch_rows=4))
    for a, b in zip(batched, single, strict=True):
        assert a.logp == pytest.approx(b.logp, abs=1e-4)


def test_greedy_takes_the_most_likely_token_and_reports_its_plain_logp(path, make_model):
    model, (asked,) = make_model(spread=0.15), prompts(6)
    (done,) = Engine(model, [NEVER]).generate([asked], GREEDY)
    for step, (token, logp) in enumerate(zip(done.tokens, done.logp, strict=True)):
        expected = torch.log_softmax(uncached(model, asked + done.tokens[:step]), -1)
        assert token == int(expected.argmax()) and logp == pytest.approx(expected[token].item(), abs=1e-4)


def test_the_engine_reads_the_weights_as_they_are_now(make_model):
    model = make_model(spread=0.15)
    engine = Engine(model, [NEVER])
    before = engine.generate(prompts(6), GREEDY)
    with torch.no_grad():
        model.layers[0].down.mul_(-3.0)
    after = engine.generate(prompts(6), GREEDY)
    assert as_tuples(after) != as_tuples(before)
    assert as_tuples(after) == as_tuples(Engine(model, [NEVER]).generate(prompts(6), GREEDY))


# ------------------------------------------------------------------------------------------------- sampling


def test_each_row_draws_from_its_own_stream_whatever_is_in_the_batch(path, make_model):
    model, asked = make_model(spread=0.1), prompts(5, 3, 3, 11, 5, 1)
    engine, sampling = Engine(model, stop_ids=range(0, V, 20)), Sampling(temperature=1.0, max_tokens=14, seed=9)
    together = engine.generate(asked, sampling)
    assert as_tuples(engine.generate(asked, sampling, batch_rows=1)) == as_tuples(together)
    assert as_tuples(engine.generate(asked, sampling, batch_rows=4)) == as_tuples(together)
    for row in (5, 2):  # alone, under its number
        alone = [e[0] for e in engine.steps([asked[row]], sampling, streams=[row])]
        assert [token for _, token, _, _ in alone] == together[row].tokens
    assert as_tuples(engine.generate(asked[:3], sampling)) == as_tuples(together[:3])
    same_prompt = engine.generate([asked[0]] * 8, sampling)
    assert len({tuple(c.tokens) for c in same_prompt}) > 4  # streams differ from row to row
    other_seed = engine.generate(asked, Sampling(temperature=1.0, max_tokens=14, seed=10))
    assert as_tuples(other_seed) != as_tuples(together)


def test_a_longer_answer_begins_with_the_shorter_one(path, make_model):
    engine = Engine(make_model(spread=0.1), [NEVER])
    short, long = (
        engine.generate(prompts(4), Sampling(temperature=1.0, max_tokens=n), rules=[ban(NEVER)])[0] for n in (5, 21)
    )
    assert long.tokens[:5] == short.tokens and len(long.tokens) == 21


def test_streams_are_uniform_and_do_not_depend_on_how_many_are_drawn():
    few, many = uniforms(3, [0, 7], 4), uniforms(3, [7], 1000)
    assert torch.equal(few[1], many[0, :4]) and not torch.equal(few[0], few[1])
    assert 0 <= many.min() and many.max() < 1
    assert many.mean().item() == pytest.approx(0.5, abs=5 / math.sqrt(12 * 1000))


def reference(logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None) -> np.ndarray:
    """The sampling distribution written down plainly, in float64."""
    x = logits.astype(np.float64) / temperature
    p = np.exp(x - x.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    keep = len(p) if top_k is None else min(top_k, len(p))
    allowed = list(order[:keep])
    if top_p is not None:
        total, reached, chosen = p[allowed].sum(), 0.0, []
        for token in allowed:
            chosen.append(token)
            reached += p[token]
            if reached >= top_p * total:
                break
        allowed = chosen
    q = np.zeros_like(p)
    q[allowed] = p[allowed]
    return q / q.sum()


SETTINGS = [
    Sampling(temperature=1.0, max_tokens=10),
    Sampling(temperature=0.6, max_tokens=10),
    Sampling(temperature=1.7, top_k=5, max_tokens=10),
    Sampling(temperature=0.9, top_p=0.7, max_tokens=10),
    Sampling(temperature=1.3, top_k=20, top_p=0.8, max_tokens=10),
    Sampling(temperature=2.0, top_k=10_000, top_p=1.0, max_tokens=10),
    Sampling(temperature=1.0, top_k=1, max_tokens=10),
]


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_logp_is_of_the_distribution_really_sampled_from(path, make_model, sampling):
    model, asked = make_model(spread=0.1), prompts(4, 8, 2)
    for prompt, c in zip(asked, Engine(model, [NEVER]).generate(asked, sampling), strict=True):
        assert len(c.tokens) == len(c.logp) == len(c.sampled) and all(c.sampled)
        for step, (token, logp) in enumerate(zip(c.tokens, c.logp, strict=True)):
            logits = uncached(model, prompt + c.tokens[:step]).numpy()
            wanted = reference(logits, sampling.temperature, sampling.top_k, sampling.top_p)
            assert logp == pytest.approx(math.log(wanted[token]), abs=2e-3)


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_probabilities_agree_with_the_plain_definition(sampling):
    logits = 3.0 * torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    found = probabilities(logits, sampling)
    wanted = np.stack([reference(row, sampling.temperature, sampling.top_k, sampling.top_p) for row in logits.numpy()])
    assert np.abs(found.numpy() - wanted).max() < 1e-5
    assert ((found > 0).numpy() == (wanted > 0)).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_of_three_tokens_come_as_often_as_they_should(temperature):
    """A model of three tokens asked 6,000 times: every share within 4.5 standard deviations of its probability."""
    model = Transformer(ModelConfig(size="tiny", layers=1, vocab_size=3, context_tokens=8, tied=False)).initialise(1)
    with torch.no_grad():
        model.unembedding.mul_(5)
    asked, count = [0, 2, 1], 6000
    sampling = Sampling(temperature=temperature, max_tokens=1, seed=4)
    done = Engine(model, [5]).generate([asked] * count, sampling, batch_rows=1000)
    wanted = reference(uncached(model, asked).numpy(), temperature, None, None)
    assert 0.02 < wanted.min() and wanted.max() < 0.95
    for token, share in enumerate(wanted):
        seen = sum(c.tokens == [token] for c in done)
        assert abs(seen - share * count) < 4.5 * math.sqrt(count * share * (1 - share))


def test_the_inverse_of_the_distribution_has_its_borders_in_the_right_places():
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(7, 3)
    uniform = torch.tensor([0.0, 0.499, 0.501, 0.799, 0.801, 0.99, 1 - 2**-24])
    token, logp = draw(logits, Sampling(temperature=1.0), uniform)
    assert token.tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert logp.exp().tolist() == pytest.approx([0.5, 0.5, 0.3, 0.3, 0.2, 0.2, 0.2])


def test_a_token_without_probability_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 0.5, -torch.inf]]).repeat(5, 1)
    uniform = torch.tensor([0.0, 0.3, 0.6, 0.99, 1 - 2**-24])
    for sampling in (Sampling(temperature=1.0), Sampling(temperature=1.0, top_p=0.99), Sampling(temperature=0.0)):
        token, logp = draw(logits, sampling, uniform)
        assert set(token.tolist()) <= {1, 3} and logp.isfinite().all()
        assert token[0] == 1  # the uniform 0 belongs to the first token that has probability


@pytest.mark.parametrize("temperature", [1e-3, 1e-8, 1e-30, 1e-37])
def test_a_tiny_temperature_is_greedy_not_nan(temperature):
    logits = 20 * torch.randn(30, 50, generator=torch.Generator().manual_seed(1))
    token, logp = draw(logits, Sampling(temperature=temperature), torch.full((30,), 0.7))
    assert torch.equal(token, logits.argmax(-1)) and torch.allclose(logp, torch.zeros(30), atol=1e-3)


# ------------------------------------------------------------------------------------------ where answers end


def force(token: int, at: int):
    """A logit rule that makes `token` certain once `at` tokens have been made."""

    def rule(logits: Tensor, made: Tensor) -> Tensor:
        if made.shape[1] == at:
            logits = torch.full_like(logits, -torch.inf)
            logits[:, token] = 0.0
        return logits

    return rule


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_stops_at_the_end_token_which_is_kept_and_scored(path, make_model, temperature):
    sampling = Sampling(temperature=temperature, max_tokens=10)
    done = Engine(make_model(spread=0.1), stop_ids=[7, NEVER]).generate(
        prompts(3, 5), sampling, rules=[ban(7, NEVER), force(NEVER, at=4)]
    )
    for c in done:
        assert len(c.tokens) == len(c.logp) == 5 and c.tokens[-1] == NEVER and NEVER not in c.tokens[:-1]
        assert c.finish == "stop" and c.logp[-1] == pytest.approx(0.0, abs=1e-6)


def test_an_end_token_on_the_last_allowed_place_is_a_stop(path, make_model):
    engine = Engine(make_model(spread=0.1), stop_ids=[NEVER])
    rules = [ban(NEVER), force(NEVER, at=3)]
    assert engine.generate(prompts(3), Sampling(max_tokens=4), rules=rules)[0].finish == "stop"
    cut = engine.generate(prompts(3), Sampling(max_tokens=3), rules=rules)[0]
    assert (cut.finish, len(cut.tokens)) == ("length", 3)


def test_answers_end_with_length_at_the_end_of_the_context(path, make_model):
    """Context 64: each row has the room its own prompt leaves, in one batch with others."""
    engine = Engine(make_model(spread=0.1), stop_ids=[NEVER])
    done = engine.generate(prompts(60, 63, 10, 61), Sampling(max_tokens=20), rules=[ban(NEVER)])
    assert [(len(c.tokens), c.finish) for c in done] == [(4, "length"), (1, "length"), (20, "length"), (3, "length")]


def test_no_prompts_no_answers(make_model):
    assert Engine(make_model(), [0]).generate([], Sampling()) == []


# ------------------------------------------------------------------------------------------------ logit rules


def test_rules_are_applied_in_order_and_see_what_each_row_has_written(path, make_model):
    model, asked, watch = make_model(spread=0.1), prompts(2, 6, 4, 3, 7, 5), Watch()
    engine = Engine(model, stop_ids=range(0, V, 15))
    done = engine.generate(asked, Sampling(temperature=1.0, max_tokens=16), rules=[watch])
    order = sorted(range(6), key=lambda i: len(asked[i]))
    lengths = [len(done[i].tokens) for i in order]
    assert lengths != sorted(lengths, reverse=True)  # some row left before one below it
    for step, made in enumerate(watch.made):
        alive = [done[i].tokens for i in order if len(done[i].tokens) > step]
        assert made.tolist() == [tokens[:step] for tokens in alive]
        assert watch.logits[step].shape == (len(alive), V)

    changed = Watch()
    engine.generate(asked, Sampling(max_tokens=1), rules=[ban(3, 4), changed])
    assert changed.logits[0][:, 3:5].isneginf().all() and changed.logits[0][:, 5:].isfinite().all()


def test_a_banned_token_is_never_written_and_logp_counts_the_ban(make_model):
    model, (asked,) = make_model(spread=0.1), prompts(5)
    banned = list(range(0, V, 2))
    (done,) = Engine(model, [NEVER]).generate([asked], Sampling(temperature=1.0, max_tokens=20), rules=[ban(*banned)])
    assert not set(done.tokens) & set(banned)
    logits = uncached(model, asked)
    logits[banned] = -torch.inf
    assert done.logp[0] == pytest.approx(torch.log_softmax(logits, -1)[done.tokens[0]].item(), abs=1e-4)


# ----------------------------------------------------------------------------------------------------- errors


def test_empty_and_too_long_prompts_are_named_by_their_place_before_any_work(make_model):
    engine, watch = Engine(make_model(), [0]), Watch()
    good = prompts(5, 3)
    with pytest.raises(ValueError, match="prompt 2 has no tokens"):
        engine.generate([*good, []], Sampling(), rules=[watch])
    with pytest.raises(ValueError, match="prompt 1 has 64 tokens, the model's context is 64"):
        engine.generate([good[0], [1] * 64, good[1]], Sampling(), rules=[watch], batch_rows=1)
    assert watch.logits == []
    with pytest.raises(ValueError, match="prompt 0 has no tokens"):
        next(engine.steps([[]], Sampling()))


def test_sampling_settings_that_cannot_work_are_told_at_once(make_model):
    engine = Engine(make_model(), [0])
    bad = Sampling(temperature=-1.0, top_k=0, top_p=1.5, max_tokens=0)
    with pytest.raises(ValueError, match=r"temperature = -1.*top_k = 0.*top_p = 1\.5.*max_tokens = 0"):
        engine.generate(prompts(3), bad)
