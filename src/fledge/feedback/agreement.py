"""What the votes say about the people who gave them: agreement, favoured sides, gold questions, speed; and whose votes
count for nothing because of it. Nothing of this is stored: it is worked out from the votes each time, so it can be undone.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from statistics import median
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from fledge.feedback.records import Draft, Person, StoredCheckpoint, Task, Vote
    from fledge.feedback.store import Store

HUMAN = ("owner", "person")
"""Kinds of people that can be too fast: a program may vote as fast as it likes."""
MOST_PER_MINUTE = 60
LEAST_DWELL_MS = 300
LEAST_PAIRS, MOST_ONE_SIDE = 20, 0.95
"""Above so many decided pairs nobody honest sees all but 5% of the better answers on one side."""
LEAST_GOLD, LEAST_GOLD_RIGHT = 5, 0.6
"""Somebody who fails 2 in 5 gold questions, of 5 or more, does not read them. A choice, tuned nowhere."""
_NORMAL_95 = 1.959964


class Read(msgspec.Struct):
    """The votes that stand, with all they point to; read once for statistics, exports and the leaderboard."""

    votes: list[Vote]
    """The last of each person on each subject, by seq; thumbs, pairs, scores and edits."""
    drafts: dict[str, Draft]
    tasks: dict[str, Task]
    people: dict[str, Person]
    checkpoints: dict[str, StoredCheckpoint]
    ignored: dict[str, list[str]]
    """Person -> why their votes count for nothing."""
    upto_seq: int

    def counted(self, kind: str) -> list[Vote]:
        """Votes of one kind that count; gold questions and votes whose text was blanked are none."""
        return [v for v in self.votes if v.kind == kind and self.reason_against(v) is None]

    def reason_against(self, vote: Vote) -> str | None:
        """Why a vote is not used, in words that are counted; None where it is."""
        if vote.person_id in self.ignored:
            return self.ignored[vote.person_id][0]
        if vote.task_id is not None and self.tasks[vote.task_id].why == "gold":
            return "gold question"
        if any(d.blanked_ms is not None or d.prompt_blanked_ms is not None for d in self.judged(vote)):
            return "text forgotten on request"
        return None

    def judged(self, vote: Vote) -> list[Draft]:
        """The drafts a vote is about, and the text of an edit."""
        task = self.tasks[vote.task_id] if vote.kind == "pair" else None
        ids = [task.draft_a, task.draft_b] if task else [vote.draft_id]
        return [self.drafts[i] for i in (*ids, vote.edit_draft_id) if i is not None]


def read_votes(store: Store, upto_seq: int | None = None) -> Read:
    """Everything the votes up to `upto_seq` (None: all) point to."""
    upto_seq = store.last_seq() if upto_seq is None else upto_seq
    votes = list(store.current_votes(0, upto_seq))
    tasks = store.tasks(sorted({v.task_id for v in votes if v.task_id is not None}))
    wanted = {i for v in votes for i in (v.draft_id, v.edit_draft_id) if i is not None}
    wanted |= {i for t in tasks.values() for i in (t.draft_a, t.draft_b)}
    drafts = store.drafts(sorted(wanted))
    people = {p.id: p for p in store.people()}
    checkpoints = {c.id: c for c in store.checkpoints()}
    read = Read(votes, drafts, tasks, people, checkpoints, {}, upto_seq)
    for person, own in by_person(votes).items():
        if why := flags(own, tasks, people[person].kind in HUMAN):
            read.ignored[person] = why
    return read


def by_person(votes: Sequence[Vote]) -> dict[str, list[Vote]]:
    """Votes of each person, in the order of their first."""
    found: dict[str, list[Vote]] = {}
    for vote in votes:
        found.setdefault(vote.person_id, []).append(vote)
    return found


def flags(votes: Sequence[Vote], tasks: Mapping[str, Task], human: bool) -> list[str]:
    """Why the votes of one person count for nothing; empty for nearly everyone."""
    found = []
    right, asked = gold_record(votes, tasks)
    if asked >= LEAST_GOLD and right < LEAST_GOLD_RIGHT * asked:
        found.append("failed gold questions")
    if not human:
        return found
    if busiest_minute(votes) > MOST_PER_MINUTE:
        found.append(f"more than {MOST_PER_MINUTE} votes in a minute")
    dwell = [v.dwell_ms for v in votes if v.dwell_ms is not None]
    if dwell and median(dwell) < LEAST_DWELL_MS:
        found.append(f"looked less than {LEAST_DWELL_MS} ms")
    left, right_side, _ = sides(votes, tasks)
    if left + right_side >= LEAST_PAIRS and max(left, right_side) > MOST_ONE_SIDE * (left + right_side):
        found.append("nearly always one side")
    return found


def busiest_minute(votes: Sequence[Vote]) -> int:
    """Most votes within any 60 s, by the client's clock where it told one (votes may wait for a network)."""
    times = sorted(v.server_ms if v.client_ms is None else v.client_ms for v in votes)
    most = start = 0
    for end, time in enumerate(times):
        while time - times[start] >= 60_000:
            start += 1
        most = max(most, end - start + 1)
    return most


def sides(votes: Sequence[Vote], tasks: Mapping[str, Task]) -> tuple[int, int, int]:
    """(left better, right better, neither) among the pair votes."""
    counts = Counter()
    for vote in votes:
        if vote.kind == "pair":
            a_is_left = tasks[vote.task_id].left == "a"
            counts["neither" if vote.value == 0 else "left" if (vote.value == 1) == a_is_left else "right"] += 1
    return counts["left"], counts["right"], counts["neither"]


def gold_record(votes: Sequence[Vote], tasks: Mapping[str, Task]) -> tuple[int, int]:
    """(right answers, gold questions answered); "same" is a wrong answer."""
    answers = [
        vote.value == (1 if tasks[vote.task_id].expected == "a" else -1)
        for vote in votes
        if vote.kind == "pair" and tasks[vote.task_id].why == "gold" and tasks[vote.task_id].expected is not None
    ]
    return sum(answers), len(answers)


class Bias(msgspec.Struct, frozen=True):
    """How often a side is taken for itself. Sides are drawn at random, so content falls on both alike."""

    left: int
    right: int
    neither: int
    left_share: float
    """Of decided pairs; 0.5 without bias. With its 95% interval (Wilson 1927)."""
    left_low: float
    left_high: float
    bias: float
    """(left - right) / all pairs, ties among them: the share of pairs in which left is taken whatever stands there
    (negative: right). With its 95% normal interval."""
    low: float
    high: float


def position_bias(left: int, right: int, neither: int) -> Bias | None:
    """None without a decided pair. Each pair is +1, -1 or 0; the interval is of their mean."""
    decided, n = left + right, left + right + neither
    if not decided:
        return None
    mean = (left - right) / n
    deviation = math.sqrt(max(0.0, decided / n - mean * mean) / n)
    half = _NORMAL_95 * deviation
    return Bias(left, right, neither, left / decided, *wilson(left, decided), mean, mean - half, mean + half)


def wilson(count: int, of: int) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927); right for small numbers, and never outside 0 to 1."""
    z, share = _NORMAL_95, count / of
    centre, spread = share + z * z / (2 * of), z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return max(0.0, (centre - spread) / (1 + z * z / of)), min(1.0, (centre + spread) / (1 + z * z / of))


class Agreement(msgspec.Struct, frozen=True):
    """How far people agree who judged the same thing."""

    kind: str
    subjects: int
    raters: int
    share: float
    """Of all pairs of votes on one subject, those that are alike."""
    kappa: float | None
    """Agreement beyond chance: 1 all, 0 none; None where everybody always says the same."""
    method: str
    """"Cohen" for two raters, "Fleiss" for more."""


def agreement(kind: str, subjects: Mapping[Hashable, Mapping[str, Hashable]]) -> Agreement | None:
    """Agreement over {subject: {person: answer}}; None where no subject was judged twice.

    Cohen (1960) with each rater's own habits where there are two people, else Fleiss (1971), generalised to subjects
    with different numbers of raters by weighing each subject by its pairs of votes.
    """
    shared = {s: answers for s, answers in subjects.items() if len(answers) > 1}
    people = sorted({p for answers in shared.values() for p in answers})
    if not shared:
        return None
    alike = [x == y for answers in shared.values() for x, y in combinations(answers.values(), 2)]
    share = sum(alike) / len(alike)
    if len(people) == 2:
        habits = [Counter(answers[p] for answers in shared.values()) for p in people]
        chance = sum(habits[0][c] * habits[1][c] for c in habits[0]) / len(shared) ** 2
    else:
        habit = Counter(answer for answers in shared.values() for answer in answers.values())
        chance = sum(n * n for n in habit.values()) / habit.total() ** 2
    kappa = (share - chance) / (1 - chance) if chance < 1 else None
    return Agreement(kind, len(shared), len(people), share, kappa, "Cohen" if len(people) == 2 else "Fleiss")


class RaterStatistics(msgspec.Struct, frozen=True):
    """One person's votes in figures."""

    person: str
    name: str
    kind: str
    votes: int
    kinds: dict[str, int]
    bias: Bias | None
    ties: float | None
    """Share of "same" and "both bad" among pairs."""
    gold_right: int
    gold_asked: int
    median_dwell_ms: float | None
    flags: list[str]
    """Why these votes count for nothing in exports and on the leaderboard; empty where they count."""


class Statistics(msgspec.Struct, frozen=True):
    """All votes in figures; votes replaced or withdrawn later are left out."""

    votes: int
    kinds: dict[str, int]
    models: dict[str, dict[str, int]]
    """Checkpoint ("" for answers that no model here wrote) -> votes by kind; a pair counts for both its models."""
    raters: list[RaterStatistics]
    agreement: list[Agreement]
    bias: Bias | None
    """Over everybody whose votes count."""
    ties: float | None


def statistics(store: Store, upto_seq: int | None = None) -> Statistics:
    """The figures behind `fledge votes`."""
    read = read_votes(store, upto_seq)
    models: dict[str, Counter] = defaultdict(Counter)
    for vote in read.votes:
        ids = {d.checkpoint_id or "" for d in read.judged(vote) if d.id != vote.edit_draft_id}
        for model in ids:
            models[model][vote.kind] += 1
    used = [v for v in read.votes if v.person_id not in read.ignored]
    left, right, neither = sides(used, read.tasks)
    return Statistics(
        votes=len(read.votes),
        kinds=_sorted(Counter(v.kind for v in read.votes)),
        models={model: _sorted(counts) for model, counts in sorted(models.items())},
        raters=[_rater(read, person, own) for person, own in by_person(read.votes).items()],
        agreement=[a for kind in ("pair", "thumb", "score") if (a := agreement(kind, shared_subjects(read, kind)))],
        bias=position_bias(left, right, neither),
        ties=neither / (left + right + neither) if left + right + neither else None,
    )


def shared_subjects(read: Read, kind: str) -> dict[Hashable, dict[str, Hashable]]:
    """{what was judged: {person: answer}} of one kind of vote. The same two drafts are one subject, in whatever task."""
    found: dict[Hashable, dict[str, Hashable]] = {}
    for vote in read.votes:
        if vote.kind != kind or vote.person_id in read.ignored:
            continue
        if kind == "pair":
            task = read.tasks[vote.task_id]
            subject: Hashable = (min(task.draft_a, task.draft_b), max(task.draft_a, task.draft_b))
            answer: Hashable = vote.value if task.draft_a < task.draft_b else -vote.value
        else:
            subject, answer = vote.draft_id, vote.value
        found.setdefault(subject, {})[vote.person_id] = answer
    return found


def _rater(read: Read, person: str, votes: Sequence[Vote]) -> RaterStatistics:
    left, right, neither = sides(votes, read.tasks)
    pairs = left + right + neither
    dwell = [v.dwell_ms for v in votes if v.dwell_ms is not None]
    gold_right, gold_asked = gold_record(votes, read.tasks)
    return RaterStatistics(
        person=person,
        name=read.people[person].name,
        kind=read.people[person].kind,
        votes=len(votes),
        kinds=_sorted(Counter(v.kind for v in votes)),
        bias=position_bias(left, right, neither),
        ties=neither / pairs if pairs else None,
        gold_right=gold_right,
        gold_asked=gold_asked,
        median_dwell_ms=median(dwell) if dwell else None,
        flags=read.ignored.get(person, []),
    )


def _sorted(counts: Counter) -> dict[str, int]:
    return dict(sorted(counts.items()))
