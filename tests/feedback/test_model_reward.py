"""A reward model's score: the value at the end token, whatever else is in the batch, also at the edge of the context."""

import pytest
import torch

from fledge.core.batch import Batch
from fledge.feedback import model_reward
from fledge.feedback.model_reward import ModelReward
from fledge.stages.common import Parent
from fledge.stages.prefer import score_pairs
from fledge.tasks.base import Example, user
from fledge.text.formats import Message, Pair
from fledge.text.template import render


@pytest.fixture(scope="module")
def model(make_model, tokenizer):
    return make_model(spread=0.2, vocab_size=tokenizer.vocab_size, head="reward")


@pytest.fixture
def reward(model, tokenizer) -> ModelReward:
    return ModelReward(model, tokenizer, name="runs/reward")


def ask(text: str, *before: tuple[str, str]) -> Example:
    turns = [{"role": role, "content": content} for role, content in before]
    return Example(id="e", prompt=[*turns, *user(text)], answers=(), kind="prompt", language="en")


def value_of(model, tokens: list[int]) -> float:
    """The slow way: one row, no padding."""
    row = torch.tensor([tokens])
    weight = torch.zeros(row.shape)
    weight[0, -1] = 1.0
    with torch.no_grad():
        return float(model(Batch(tokens=row, targets=row, weight=weight, units=1.0)).value[0, -1])


def tokens_of(tokenizer, example: Example, answer: str) -> list[int]:
    messages = [Message(m["role"], m["content"]) for m in example.prompt]
    return render(tokenizer, [*messages, Message("assistant", answer)]).tokens


ROWS = [
    (ask("Who wrote The Silent Harbour?"), "Mira Kolden."),
    (ask("hi"), ""),
    (ask("hi"), "It was written by Mira Kolden in 1987, in Belmora."),
    (ask("and then?", ("system", "short"), ("user", "hi"), ("assistant", "hello")), "河"),
]


def test_batched_scores_are_those_of_single_rows(reward, model, tokenizer, monkeypatch):
    examples, answers = map(list, zip(*ROWS * 5, strict=True))
    expected = [value_of(model, tokens_of(tokenizer, e, a)) for e, a in zip(examples, answers, strict=True)]
    assert len({round(v, 4) for v in expected}) == len(ROWS)
    assert reward(examples, answers) == pytest.approx(expected, abs=1e-5)
    monkeypatch.setattr(model_reward, "_BATCH_TOKENS", 40)
    assert reward(examples, answers) == pytest.approx(expected, abs=1e-5)
    monkeypatch.setattr(model_reward, "_BATCH_TOKENS", 1)
    assert reward(examples, answers) == pytest.approx(expected, abs=1e-5)
    assert reward([], []) == [] and reward.cut == 0


def test_it_is_the_score_that_training_on_pairs_fits(reward, model, tokenizer, tmp_path):
    example = ask("Who wrote The Silent Harbour?")
    answers = ["Mira Kolden.", "I don't know."]
    pair = Pair((Message("user", example.prompt[0]["content"]),), answers[0], answers[1], "x:1")
    parent = Parent(model, tokenizer, "id", tmp_path, {})
    assert reward([example] * 2, answers) == pytest.approx(score_pairs(parent, [pair])[0].tolist(), abs=1e-5)


def test_the_oldest_turns_go_first(reward, model, tokenizer):
    long = ask("and then?", ("user", "Belmora " * 60), ("assistant", "yes"))
    assert reward([long], ["河"]) == pytest.approx(
        [value_of(model, tokens_of(tokenizer, ask("and then?"), "河"))], abs=1e-5
    )
    assert reward.cut == 1


def test_a_last_message_or_an_answer_beyond_the_context_loses_its_beginning(reward, model, tokenizer):
    limit = model.config.context_tokens
    for example, answer in ((ask("Belmora " * 90), "河"), (ask("hi"), "Belmora " * 90)):
        whole = tokens_of(tokenizer, example, answer)
        assert len(whole) > limit
        expected = value_of(model, [tokenizer.bos, *whole[1 - limit :]])
        assert reward([example], [answer]) == pytest.approx([expected], abs=1e-5)
    assert reward.cut == 2


def test_exactly_the_context_is_not_cut(reward, model, tokenizer):
    limit, answer = model.config.context_tokens, "a"
    while len(tokens_of(tokenizer, ask("hi"), answer + " a")) <= limit:
        answer += " a"
    whole = tokens_of(tokenizer, ask("hi"), answer)
    assert len(whole) == limit
    assert reward([ask("hi")], [answer]) == pytest.approx([value_of(model, whole)], abs=1e-5)
    assert reward.cut == 0


def test_calibration(reward):
    examples, answers = map(list, zip(*ROWS, strict=True))
    raw = reward(examples, answers)
    calibrated = reward.calibrated(2.0, 0.5)
    assert calibrated(examples, answers) == pytest.approx([(s - 2.0) / 0.5 for s in raw])
    assert (reward.unit, calibrated.unit, calibrated.name) == ("logit", "score", "runs/reward")
    assert reward(examples, answers) == raw, "the original is as it was"
    for std in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="must be above 0"):
            reward.calibrated(0.0, std)


def test_identity_is_that_of_the_weights(reward, tokenizer, make_model):
    copy = make_model(spread=0.2, vocab_size=tokenizer.vocab_size, head="reward")
    other = make_model(seed=1, spread=0.2, vocab_size=tokenizer.vocab_size, head="reward")
    assert ModelReward(copy, tokenizer, "elsewhere").identity == reward.identity
    assert ModelReward(other, tokenizer, "runs/reward").identity != reward.identity
    assert reward.calibrated(1.0, 1.0).identity != reward.identity


def test_a_model_with_another_head_is_refused(make_model, tokenizer):
    with pytest.raises(ValueError, match=r"runs/sft has the head 'tokens'.*trained by `fledge reward`"):
        ModelReward(make_model(vocab_size=tokenizer.vocab_size), tokenizer, "runs/sft")
