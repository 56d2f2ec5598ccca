"""Rules on logits: each by itself, exactly, and in the engine."""

import pytest
import torch

from fledge.generate.engine import Engine
from fledge.generate.rules import EndBoost, TokenBias, UniquenessPenalty, starting_tokens, three_rules
from fledge.generate.sampling import Sampling

LOGITS = torch.arange(12.0).reshape(2, 6)


def made(count: int) -> torch.Tensor:
    return torch.zeros(2, count, dtype=torch.long)


@pytest.mark.parametrize(("count", "nats"), [(0, 0.0), (5, 7.5), (10, 15.0), (40, 15.0)])
def test_the_end_gains_with_length_up_to_its_most(count, nats):
    found = EndBoost([1, 4, 1], 15.0, 10)(LOGITS, made(count)) - LOGITS
    assert torch.equal(found, torch.tensor([[0, nats, 0, 0, nats, 0]] * 2))


def test_a_bias_is_added_at_every_step_and_leaves_its_input_alone():
    before = LOGITS.clone()
    found = TokenBias({2: -6.0, 0: 1.0})(LOGITS, made(3)) - LOGITS
    assert torch.equal(found, torch.tensor([[1.0, 0, -6, 0, 0, 0]] * 2)) and torch.equal(LOGITS, before)


def test_what_an_answer_holds_is_penalised_once_and_in_its_own_row():
    rule = UniquenessPenalty(-1.5)
    found = rule(LOGITS, torch.tensor([[3, 3, 5], [1, -1, -1]])) - LOGITS
    assert torch.equal(found, torch.tensor([[0, 0, 0, -1.5, 0, -1.5], [0, -1.5, 0, 0, 0, 0]]))
    assert torch.equal(rule(LOGITS, made(0)), LOGITS)


def test_words_are_found_with_and_without_a_space(tokenizer):
    for word in ("Which", "river", "哪", "(", "\n"):
        ids = starting_tokens(tokenizer, [word])
        assert tokenizer.encode(word)[0] in ids
        assert all(tokenizer.token_text(i).strip(" ") for i in ids), word
    with pytest.raises(ValueError, match="an empty one"):
        starting_tokens(tokenizer, [""])


def test_the_first_word_of_a_token_holds_and_no_end_is_an_error(tokenizer):
    rules = three_rules(tokenizer, [tokenizer.eos], {"River": -2.0, "Rivers": -5.0})
    assert set(rules) == {"end", "bias", "unique"} and -2.0 in rules["bias"].biases.values()
    with pytest.raises(ValueError, match="give an end token"):
        EndBoost([], 15.0, 10)


def test_the_engine_obeys_them(tokenizer, model):
    engine = Engine(model, [tokenizer.eos])
    prompts, greedy = [[tokenizer.bos, 70, 80], [tokenizer.bos, 90]], Sampling(temperature=0.0, max_tokens=12)
    once = engine.generate(prompts, greedy, rules=[UniquenessPenalty(-1e4)])
    assert all(len(set(c.tokens)) == len(c.tokens) for c in once)
    ended = engine.generate(prompts, greedy, rules=[EndBoost([tokenizer.eos], 1e4, 4)])
    assert all(c.finish == "stop" and len(c.tokens) <= 3 for c in ended)
    forced = engine.generate(prompts, greedy, rules=[TokenBias({99: 1e4})])
    assert all(set(c.tokens) == {99} for c in forced)
