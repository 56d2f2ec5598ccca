"""Votes of programs: on answers really sampled, the same ones each time, and none twice."""

import pytest
from polling import parent_of

from fledge.feedback.agreement import statistics
from fledge.feedback.collecting import collect, decoding_of
from fledge.feedback.exports import export_rows
from fledge.feedback.raters import KINDS, RewardRater, Scale
from fledge.feedback.rules import Rule
from fledge.feedback.simulated import Simulated
from fledge.feedback.store import Store, store_url
from fledge.generate.chat import chat_engine
from fledge.generate.sampling import Sampling
from fledge.stages.common import Parent
from fledge.tasks.base import Example, user
from fledge.text.template import fit_prompt

SAMPLING = Sampling(temperature=1.0, max_tokens=12)
WITHOUT_TIMES = ("dpo", "pairs", "kto", "sft", "prompts", "argilla")
EXAMPLES = [
    Example(id=f"e{n}", prompt=user(text), answers=(f"right {n}",), kind="number", language="en")
    for n, text in enumerate(
        ("Who are you?", "What is the river?", "請問你是誰？", "Where is Belmora?", "How long is it?")
    )
]


@pytest.fixture(scope="module")
def opened(make_model, tokenizer) -> Parent:
    return parent_of(make_model(spread=0.2, vocab_size=tokenizer.vocab_size, context_tokens=96), tokenizer)


def gold(example: Example, answer: str) -> float:
    """Every text has its own value between 0 and 1; the right answer has 2."""
    return 2.0 if answer in example.answers else (sum(answer.encode()) % 97) / 97


def rater(noise: float = 0.1, bias: float = 0.0, **over) -> Simulated:
    scale = Scale(levels=(0.2, 0.4, 0.6, 0.8, 0.9), liked=0.5, bad=0.1)
    clean = RewardRater(Rule("gold", gold), scales=scale, ideal=lambda example, subject: example.answers[0])
    return Simulated(clean, noise, bias, **over)


def exported(store: Store) -> dict[str, bytes]:
    return {form: export_rows(store, form).data() for form in WITHOUT_TIMES}


def test_every_kind_in_the_asked_number(store, opened):
    found = collect(store, opened, rater(), EXAMPLES, KINDS, 30, 0, SAMPLING)
    assert found.votes == dict.fromkeys(KINDS, 30) and found.new == 120 and found.skipped == 0
    assert statistics(store).kinds == {"edit": 30, "pair": 30, "score": 30, "thumb": 30}
    assert statistics(store).models == {opened.id: {"edit": 30, "pair": 30, "score": 30, "thumb": 30}}
    (person,) = store.people()
    assert (person.kind, person.role, person.id) == ("simulated", "service", found.person)
    assert store.verify().problems == []


def test_the_answers_can_be_sampled_again_from_what_is_kept(store, opened):
    collect(store, opened, rater(), EXAMPLES, ["pair", "thumb"], 10, 7, SAMPLING)
    engine = chat_engine(opened.model, opened.tokenizer)
    for vote in store.votes():
        task = store.task(vote.task_id) if vote.kind == "pair" else None
        for id in (task.draft_a, task.draft_b) if task else (vote.draft_id,):
            draft = store.draft(id)
            assert draft.checkpoint_id == opened.id and store.decoding(draft.decoding_id) == decoding_of(
                engine, SAMPLING
            )
            prompt = fit_prompt(opened.tokenizer, draft.messages, 96 - 12)[0]
            again = engine.sample(
                [prompt], Sampling(temperature=1.0, max_tokens=12, seed=draft.seed), streams=[draft.stream]
            )
            assert again.tokens[0].tolist() == draft.tokens
            assert float(again.logp.double().sum()) == pytest.approx(draft.logp, abs=1e-4)
            assert opened.tokenizer.decode(draft.tokens).replace("\0", "␀") == draft.text
            assert draft.finish == ("stop" if again.stopped[0] else "length")


def test_the_two_answers_of_a_pair_differ_and_sides_are_mixed(store, opened):
    collect(store, opened, rater(), EXAMPLES, ["pair"], 60, 0, SAMPLING)
    tasks = store.tasks([vote.task_id for vote in store.votes()])
    drafts = store.drafts([id for task in tasks.values() for id in (task.draft_a, task.draft_b)])
    assert all(drafts[t.draft_a].text != drafts[t.draft_b].text for t in tasks.values())
    assert 15 < sum(t.left == "a" for t in tasks.values()) < 45


def test_a_model_that_always_says_the_same_gives_no_pairs(store, opened):
    """Greedy answers to one prompt are alike: nothing to compare, and asking ends."""
    found = collect(store, opened, rater(), EXAMPLES, ["pair", "thumb"], 5, 0, Sampling(temperature=0.0, max_tokens=4))
    assert found.votes == {"pair": 0, "thumb": 5} and found.asked["pair"] == 20


def test_prompts_are_all_asked_before_any_is_asked_twice(store, opened):
    collect(store, opened, rater(), EXAMPLES, ["thumb"], 12, 0, SAMPLING)
    asked = [store.draft(vote.draft_id).prompt_id for vote in store.votes()]
    assert len(set(asked[:5])) == len(set(asked[5:10])) == 5


def test_the_same_seed_gives_the_same_data_in_any_store(store, opened, tmp_path):
    collect(store, opened, rater(), EXAMPLES, KINDS, 20, 3, SAMPLING)
    with Store.open(store_url(tmp_path / "other")) as other:
        collect(other, opened, rater(), EXAMPLES, KINDS, 20, 3, SAMPLING)
        assert exported(other) == exported(store)
    with Store.open(store_url(tmp_path / "third")) as third:
        collect(third, opened, rater(), EXAMPLES, KINDS, 20, 4, SAMPLING)
        assert exported(third)["kto"] != exported(store)["kto"]


class Dies(Exception):
    """Stands for the kill."""


@pytest.mark.parametrize("after", [0, 1, 2, 3, 5])
def test_killed_and_begun_again_nothing_is_doubled_or_missing(opened, tmp_path, monkeypatch, after):
    from fledge.feedback import collecting

    monkeypatch.setattr(collecting, "_COMMIT_ROWS", 8)
    whole, cut = (store_url(tmp_path / name) for name in ("whole", "cut"))
    with Store.open(whole) as store:
        collect(store, opened, rater(), EXAMPLES, KINDS, 20, 0, SAMPLING)
        wanted = exported(store)
    put, left = Store.put_votes, [after]

    def dying(self, votes):
        left[0] -= 1
        done = put(self, votes)
        if left[0] < 0:
            raise Dies  # before COMMIT
        return done

    with Store.open(cut) as store:
        monkeypatch.setattr(Store, "put_votes", dying)
        with pytest.raises(Dies):
            collect(store, opened, rater(), EXAMPLES, KINDS, 20, 0, SAMPLING)
        assert store.last_seq() == 8 * after - 4 * (after > 2) - 4 * (after > 5)
        monkeypatch.setattr(Store, "put_votes", put)
        found = collect(store, opened, rater(), EXAMPLES, KINDS, 20, 0, SAMPLING)
        assert found.new == 80 - (8 * after - 4 * (after > 2) - 4 * (after > 5))
        assert exported(store) == wanted
        assert collect(store, opened, rater(), EXAMPLES, KINDS, 20, 0, SAMPLING).new == 0
        assert store.last_seq() == 80 and store.verify().problems == []


def test_answers_stored_before_stand_where_sampling_would_differ_now(store, opened, make_model, tokenizer):
    """Another machine may round differently: what was judged is what was stored."""
    collect(store, opened, rater(), EXAMPLES, ["thumb"], 6, 0, SAMPLING)
    other = Parent(make_model(seed=1, spread=0.2, vocab_size=tokenizer.vocab_size, context_tokens=96), *opened[1:])
    found = collect(store, other, rater(), EXAMPLES, ["thumb"], 9, 0, SAMPLING)
    assert found.votes == {"thumb": 9} and found.new == 3
    assert collect(store, other, rater(noise=0.0), EXAMPLES, ["thumb"], 9, 0, SAMPLING).new == 9


def test_two_raters_with_one_seed_judge_the_same_answers(store, opened):
    for who in (rater(0.0), rater(0.3)):
        collect(store, opened, who, EXAMPLES, ["pair", "thumb", "score"], 40, 0, SAMPLING)
    found = {a.kind: a for a in statistics(store).agreement}
    assert {kind: a.subjects for kind, a in found.items()} == {"pair": 40, "thumb": 40, "score": 40}
    assert 0.4 < found["thumb"].share < 0.95 and found["pair"].method == "Cohen"
    for r in statistics(store).raters:
        assert r.votes == 120


def test_injected_bias_is_seen_in_the_store(opened, tmp_path):
    with Store.open(store_url(tmp_path)) as store:
        collect(store, opened, rater(0.1, 0.4), EXAMPLES, ["pair"], 600, 0, Sampling(temperature=1.0, max_tokens=3))
        bias = statistics(store).bias
    assert bias.bias == pytest.approx(0.4, abs=0.1) and bias.low <= 0.4 <= bias.high


def test_prompts_too_long_are_counted_or_refused(store, opened):
    long = Example(id="long", prompt=user("river " * 200), answers=(), kind="number", language="en")
    found = collect(store, opened, rater(), [*EXAMPLES, long], ["thumb"], 12, 0, SAMPLING)
    assert (found.skipped, found.votes) == (1, {"thumb": 12})
    with pytest.raises(ValueError, match="none of the 1 prompts fits the model's context of 96 tokens"):
        collect(store, opened, rater(), [long], ["thumb"], 1, 0, SAMPLING)


def test_what_a_rater_cannot_do_is_refused_before_anything_is_written(store, opened):
    plain = RewardRater(Rule("gold", gold))
    with pytest.raises(ValueError, match="kind 'edit': rater gold can give pair, thumb, score"):
        collect(store, opened, plain, EXAMPLES, ["thumb", "edit"], 5, 0, SAMPLING)
    with pytest.raises(ValueError, match="count = 0"):
        collect(store, opened, plain, EXAMPLES, ["thumb"], 0, 0, SAMPLING)
    assert store.counts()["draft"] == 0 and store.people() == []
