"""Raters that are no people: rewards, judges and the model itself."""

import pytest
import torch
from polling import question

from fledge.feedback.raters import LOGIT, UNIT, Asked, AskedPair, JudgeRater, RewardRater, SelfRater
from fledge.feedback.rules import Rule, contains
from fledge.feedback.simulated import accepted_ideal
from fledge.generate.engine import Engine
from fledge.generate.sampling import Sampling
from fledge.tasks.base import Example, user
from fledge.text.messages import Message
from fledge.text.template import render_prompt


def ask(answer: str, subject: str = "s") -> Asked:
    return Asked(subject, question(), answer)


def compare(left: str, right: str) -> AskedPair:
    return AskedPair("s", question(), left, right)


def test_a_rule_rates():
    who = RewardRater(contains("please"))
    assert (who.name, who.kind, who.kinds) == ("contains:please", "rule", ("pair", "thumb", "score"))
    said = who.pairs(
        [compare("yes please", "no"), compare("no", "please"), compare("please", "please!"), compare("a", "b")]
    )
    assert said == ["left", "right", "same", "both_bad"]
    assert who.thumbs([ask("please"), ask("no")]) == [1, -1]
    assert who.scores([ask("please"), ask("no")]) == [5, 0]
    with pytest.raises(ValueError, match="knows no better answers"):
        who.edits([ask("no")])


def test_logits_and_shares_are_cut_alike():
    chances = [0.05, 0.2, 0.4, 0.6, 0.8, 0.95]
    logits = torch.logit(torch.tensor(chances)).tolist()
    assert [UNIT.points(p) for p in chances] == [LOGIT.points(x) for x in logits] == [0, 1, 2, 3, 4, 5]


def test_edits_only_where_the_answer_is_worse():
    example = Example(id="e", prompt=user("2+2"), answers=("4", "four"), kind="prompt", language="en")
    open_ended = Example(id="o", prompt=user("Sing!"), answers=(), kind="prompt", language="en")
    who = RewardRater(Rule("exact", lambda e, a: float(a in e.answers)), ideal=accepted_ideal)
    given = [Asked("1", example, "5"), Asked("2", example, "four"), Asked("3", open_ended, "la")]
    assert who.edits(given) == ["4", None, None]


def test_a_judge_is_asked_in_both_orders():
    class Judge:
        name, identity, unit = "judge:x#y", "judge", "score"

    who = JudgeRater(Judge())
    who.judge.config = type("Config", (), {"concurrency": 1})
    replies = iter(["A", "B", "A", "A", "B", "A"])
    who.judge.ask = lambda instruction, body, read, about: next(replies)
    assert who.pairs([compare("x", "y"), compare("x", "y"), compare("x", "y")]) == ["left", "same", "right"]
    assert who.kind == "judge"


@pytest.fixture(scope="module")
def self_rater(make_model, tokenizer) -> SelfRater:
    return SelfRater(make_model(spread=0.3, vocab_size=tokenizer.vocab_size, context_tokens=256), tokenizer)


def letters(rater: SelfRater, text: str) -> torch.Tensor:
    """The slow way: probabilities of A and B as the first token of an answer, [2]."""
    prompt = torch.tensor([render_prompt(rater.tokenizer, [Message("user", text)])])
    engine = Engine(rater.model, stop_ids=[rater.tokenizer.end])
    scores = []
    look = [lambda logits, made: scores.append(logits.clone()) or logits]
    engine.sample(prompt.tolist(), Sampling(max_tokens=1, temperature=0.0), rules=look)
    chosen = torch.softmax(scores[0][0].float(), -1)[[rater.tokenizer.encode(c)[0] for c in "AB"]]
    return chosen / chosen.sum()


def test_the_model_itself_is_asked_in_both_orders(self_rater):
    q = compare("Belmora.", "The river Tesk, I believe.")
    text = (
        "Which answer is better?\n\n[The conversation]\nuser: How much?\n\n[Answer A]\n{}\n\n[Answer B]\n{}\n\n"
        "Reply with A or B only."
    )
    first = letters(self_rater, text.format(q.left, q.right))[0]
    second = letters(self_rater, text.format(q.right, q.left))[1]
    wanted = float(first + second) / 2
    assert self_rater.preferences([q])[0] == pytest.approx(wanted, abs=1e-4)
    swapped = AskedPair("s", q.example, q.right, q.left)
    assert self_rater.preferences([swapped])[0] == pytest.approx(1 - wanted, abs=1e-5), "no side is favoured"


def test_the_models_opinion_does_not_depend_on_the_batch(self_rater):
    many = [compare("x" * n, "It is Belmora.") for n in range(1, 40)]
    one_by_one = [self_rater.preferences([q])[0] for q in many]
    assert self_rater.preferences(many) == pytest.approx(one_by_one, abs=1e-4)
    assert len({round(p, 3) for p in one_by_one}) > 5


def test_the_model_gives_thumbs_and_points(self_rater):
    given = [ask("Belmora."), ask("泰斯克河"), ask("")]
    chances = self_rater.worth(given)
    assert all(0 < p < 1 for p in chances)
    assert self_rater.thumbs(given) == [1 if p >= 0.5 else -1 for p in chances]
    assert self_rater.scores(given) == [UNIT.points(p) for p in chances]
    assert "edit" not in self_rater.kinds


def test_long_answers_are_cut_at_the_start(self_rater):
    assert 0 < self_rater.preferences([compare("word " * 2000, "short")])[0] < 1
