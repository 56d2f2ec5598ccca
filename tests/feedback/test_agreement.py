"""What is said about the people who vote: agreement, sides, gold questions, haste; on both kinds of store where it reads."""

import random

import pytest
from polling import WIDE, Poll, Said, question

from fledge.feedback.agreement import agreement, busiest_minute, position_bias, read_votes, statistics, wilson
from fledge.feedback.exports import export_rows
from fledge.feedback.raters import AskedPair
from fledge.feedback.simulated import Simulated


@pytest.fixture
def poll(store) -> Poll:
    return Poll(store)


def rater(store, person: str):
    return next(r for r in statistics(store).raters if r.person == person)


# ------------------------------------------------------------------------------------------------------------- agreement


def test_cohens_kappa_of_a_known_table():
    """Two raters, yes/no: 20 both yes, 15 both no, 5 and 10 apart. Cohen's kappa is 0.4."""
    table = [("yes", "yes")] * 20 + [("no", "no")] * 15 + [("yes", "no")] * 5 + [("no", "yes")] * 10
    found = agreement("thumb", {n: {"ann": a, "bo": b} for n, (a, b) in enumerate(table)})
    assert (found.subjects, found.raters, found.method, found.share) == (50, 2, "Cohen", 0.7)
    assert found.kappa == pytest.approx(0.4)


def test_fleiss_kappa_of_a_known_table():
    """Fleiss 1971's formula by hand: 3 raters, 4 subjects with 3:0, 0:3, 2:1 and 1:2 votes."""
    rows = ["xxx", "yyy", "xxy", "xyy"]
    found = agreement("thumb", {n: dict(zip("abc", row, strict=True)) for n, row in enumerate(rows)})
    observed, by_chance = (1 + 1 + 1 / 3 + 1 / 3) / 4, 0.5
    assert found.method == "Fleiss" and found.share == pytest.approx(observed)
    assert found.kappa == pytest.approx((observed - by_chance) / (1 - by_chance))


def test_agreement_without_a_second_opinion_and_without_differences():
    assert agreement("thumb", {1: {"ann": 1}, 2: {"bo": 1}}) is None
    assert agreement("thumb", {1: {"ann": 1, "bo": 1}}).kappa is None


def test_the_same_two_answers_are_one_subject_whoever_has_the_task_and_on_whatever_side(poll, store):
    ann, bo = poll.person("ann"), poll.person("bo")
    for n in range(6):
        a, b = poll.draft("x", f"q{n}"), poll.draft("y", f"q{n}")
        poll.vote(ann, "pair", task=poll.task(ann, a, b, "a"), choice="left")
        poll.vote(bo, "pair", task=poll.task(bo, b, a, "b"), choice="left" if n else "right")  # a, save once
    (found,) = statistics(store).agreement
    assert (found.kind, found.subjects, found.raters) == ("pair", 6, 2)
    assert found.share == pytest.approx(5 / 6)


# ------------------------------------------------------------------------------------------------------------- positions


def test_injected_position_bias_is_estimated_within_three_points():
    """At random sides, whatever the answers, the noise and the ties are; and the interval holds it."""
    for bias in (0.0, 0.2, 0.5):
        chance, who = random.Random(int(bias * 10)), Simulated(Said(), 0.1, bias, tie_band=0.3, scales=WIDE)
        asked = [AskedPair(str(n), question(), *(str(chance.gauss(0, 1)) for _ in range(2))) for n in range(6000)]
        said = who.pairs(asked)
        found = position_bias(said.count("left"), said.count("right"), said.count("same"))
        assert found.bias == pytest.approx(bias, abs=0.03)
        assert found.low <= bias <= found.high and found.high - found.low < 0.06


def test_bias_is_of_the_screen_not_of_the_answers(poll, store):
    ann = poll.person("ann")
    for n in range(12):
        poll.pair(ann, "left", left="ab"[n % 2])
    for _ in range(4):
        poll.pair(ann, "right")
    for _ in range(4):
        poll.pair(ann, "same")
    found = rater(store, ann)
    assert (found.bias.left, found.bias.right, found.bias.neither) == (12, 4, 4)
    assert found.bias.left_share == 0.75 and found.bias.bias == pytest.approx(8 / 20)
    assert found.ties == 0.2
    assert found.bias.left_low < 0.75 < found.bias.left_high


def test_wilson_interval_of_the_textbook():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 5)[0] == 0 and wilson(5, 5)[1] == pytest.approx(1)


# -------------------------------------------------------------------------------------------- people whose votes do not count


def dropped(store) -> dict[str, int]:
    return export_rows(store, "kto").dropped


def test_haste_is_told_by_the_busiest_minute(poll, store):
    slow, fast = poll.person("slow"), poll.person("fast")
    for n in range(61):
        poll.thumb(slow, 1)
        poll.vote(fast, "thumb", draft=poll.draft("x"), value=1, client_ms=10**6 + n * 900)
    assert rater(store, slow).flags == []
    assert rater(store, fast).flags == ["more than 60 votes in a minute"]
    assert dropped(store) == {"more than 60 votes in a minute": 61}
    assert len(export_rows(store, "kto").rows) == 61


def test_sixty_votes_in_a_minute_are_still_a_persons(poll, store):
    ann = poll.person("ann")
    for n in range(60):
        poll.vote(ann, "thumb", draft=poll.draft("x"), value=1, client_ms=10**6 + n * 900)
    assert busiest_minute(read_votes(store).votes) == 60
    assert rater(store, ann).flags == []


def test_programs_may_be_fast(poll, store):
    bot = poll.person("bot", "simulated")
    for _ in range(80):
        poll.vote(bot, "thumb", draft=poll.draft("x"), value=1, client_ms=0, dwell_ms=1)
    assert rater(store, bot).flags == []


def test_who_does_not_look_does_not_count(poll, store):
    ann, bo = poll.person("ann"), poll.person("bo")
    for n in range(3):
        poll.vote(ann, "thumb", draft=poll.draft("x"), value=1, dwell_ms=(100, 200, 9000)[n])
        poll.vote(bo, "thumb", draft=poll.draft("x"), value=1, dwell_ms=(100, 300, 9000)[n])
    assert rater(store, ann).flags == ["looked less than 300 ms"] and rater(store, ann).median_dwell_ms == 200
    assert rater(store, bo).flags == []


@pytest.mark.parametrize(("left", "right", "flagged"), [(20, 0, True), (19, 1, False), (19, 0, False), (0, 20, True)])
def test_who_always_takes_one_side_does_not_count(poll, store, left, right, flagged):
    ann = poll.person("ann")
    for choice, count in (("left", left), ("right", right)):
        for n in range(count):
            poll.pair(ann, choice, left="ab"[n % 2])
    assert rater(store, ann).flags == (["nearly always one side"] if flagged else [])
    assert len(export_rows(store, "dpo").rows) == (0 if flagged else left + right)


@pytest.mark.parametrize(("right", "asked", "flagged"), [(2, 5, True), (3, 5, False), (0, 4, False), (5, 9, True)])
def test_gold_questions_rate_the_raters(poll, store, right, asked, flagged):
    ann = poll.person("ann", "simulated")  # programs are asked them too
    poll.thumb(ann, 1)
    for n in range(asked):
        expected, left = "ab"[n % 2], "ab"[n % 3 % 2]
        task = poll.task(ann, poll.draft("x"), poll.draft("y"), left, "gold", expected=expected)
        wanted = "left" if expected == left else "right"
        other = ("same", "right" if wanted == "left" else "left")[n % 2]
        poll.vote(ann, "pair", task=task, choice=wanted if n < right else other)
    found = rater(store, ann)
    assert (found.gold_right, found.gold_asked) == (right, asked)
    assert found.flags == (["failed gold questions"] if flagged else [])
    kto, dpo = export_rows(store, "kto"), export_rows(store, "dpo")
    assert len(kto.rows) == (0 if flagged else 1)
    assert dpo.rows == [] and set(dpo.dropped) == {"failed gold questions" if flagged else "gold question"}


def test_what_was_left_out_comes_back_when_the_person_does_better(poll, store):
    """Flags are worked out anew each time: nothing about them is stored."""
    ann = poll.person("ann")
    for _ in range(20):
        poll.pair(ann, "left")
    before = store.last_seq()
    assert export_rows(store, "dpo").rows == []
    for _ in range(10):
        poll.pair(ann, "right")
    assert len(export_rows(store, "dpo").rows) == 30
    assert export_rows(store, "dpo", upto_seq=before).rows == [], "as it stood then"


# ------------------------------------------------------------------------------------------------------------- statistics


def test_statistics_count_what_stands(poll, store):
    ann, bo, model = poll.person("ann"), poll.person("bo", "judge"), poll.model("sft")
    first = poll.thumb(ann, 1, checkpoint=model)
    draft = poll.draft("x", checkpoint=model)
    poll.vote(ann, "thumb", draft=draft, value=1)
    poll.vote(ann, "thumb", draft=draft, value=-1)  # a change of mind
    poll.vote(ann, "score", draft=draft, value=4, dwell_ms=700)
    poll.edit(bo, "better", checkpoint=model)
    poll.pair(bo, "both_bad")
    poll.vote(ann, "retract", vote=first)
    found = statistics(store)
    assert found.votes == 4 and found.kinds == {"edit": 1, "pair": 1, "score": 1, "thumb": 1}
    assert found.models == {"": {"pair": 1}, model: {"edit": 1, "score": 1, "thumb": 1}}
    assert [(r.name, r.kind, r.votes, r.kinds) for r in found.raters] == [
        ("ann", "person", 2, {"score": 1, "thumb": 1}), ("bo", "judge", 2, {"edit": 1, "pair": 1}),
    ]  # fmt: skip
    assert (found.bias, found.ties) == (None, 1.0)
    assert statistics(store, upto_seq=1).votes == 1, "as it stood after the first vote"
    assert statistics(store, upto_seq=0).votes == 0
