"""Who says whether the new model is better: reward models trained on the votes, the world's gold, or a judge elsewhere.

Shapes: R compared answers, P prompts, K reward models.

The judge of `--judge auto` is K reward models. The voted prompts are dealt into K parts, model k learns from all parts but
its own, and an answer is scored by the models that never saw its prompt: by one where the prompt was voted on, by the mean
of all elsewhere. So every vote also tests the judge, and no answer is judged from memory. And since each model lacks
one part of the votes, their differences tell how far the win rate depends on who happened to vote (a jackknife), which
widens its interval. What the interval cannot tell: judge and new model learnt from the same votes, errors included, so the
judge is rather too kind to the new model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from fledge.core.checkpoint import canonical_json, write_atomically
from fledge.core.config import TrainConfig
from fledge.core.log import say
from fledge.feedback.judge import JudgeConfig, JudgeReward, judge_pairs
from fledge.feedback.rewards import ModelReward
from fledge.stages.common import open_model
from fledge.stages.improve_data import as_example
from fledge.stages.prefer import RewardRecipe, run_reward
from fledge.tasks.base import Example
from fledge.tasks.world_tasks import WorldGold

PARTS = 4
"""K. More parts leave more votes to each model and cost more; a choice, tuned nowhere."""
LEAST_RIGHT = 0.55
"""Share of unseen choices the judge must predict: below it nothing it says of the new model means much."""
LEAST_CHOICES = 40
"""Decided choices below which no judge is trained: its accuracy could not be told from chance."""
_BOOTSTRAP = 2000
_NORMAL_90 = 1.6448536


class Measured(msgspec.Struct, frozen=True):
    """A share with its 90% interval."""

    value: float
    interval: tuple[float, float]
    count: int


def bootstrap(points: np.ndarray, seed: int, error: float = 0.0) -> Measured:
    """Mean and 90% interval over groups of equal weight: rows [P] or [P,N], drawn again by row.

    error: a standard error of another origin, which widens the interval.
    """
    rows = points.mean(1) if points.ndim == 2 else points
    generator = np.random.Generator(np.random.PCG64(seed))
    means = rows[generator.integers(0, len(rows), (_BOOTSTRAP, len(rows)))].mean(1)
    low, high = np.quantile(means, [0.05, 0.95])
    value, other = float(rows.mean()), _NORMAL_90 * error
    interval = (value - float(np.hypot(value - low, other)), value + float(np.hypot(high - value, other)))
    return Measured(value, interval, int(points.size))


def deleted_group_error(rates: Sequence[float]) -> float:
    """Standard error of a figure from what it is without each of K groups of the votes (delete-a-group jackknife, Kott 2001)."""
    found = np.asarray(rates)
    return float(np.sqrt((len(found) - 1) / len(found) * ((found - found.mean()) ** 2).sum()))


class Verdicts(NamedTuple):
    """What a judge says of R comparisons, and how far it is to be trusted."""

    points: list[float]  # 1 the new answer is better, 0 the old one, 0.5 alike
    judge: str
    accuracy: Measured | None  # on choices it did not learn from; None for a judge that learnt from none
    error: float = 0.0  # standard error of its win rate, had others voted


def problem_with(judge: str, world: Any, decided: int) -> str:
    """Why this judge cannot be used here, found before any training; "" where it can."""
    if judge == "auto" and decided < LEAST_CHOICES:
        return (
            f"the judge is trained on choices between two answers, and there are {decided} of the {LEAST_CHOICES} it "
            "needs: collect choices (two drafts in `fledge chat`, or `fledge rate --kinds pair`), or name another with "
            "--judge PATH_OF_A_REWARD_MODEL or --judge judge:URL#MODEL"
        )
    if judge == "gold" and world is None:
        return "judge gold: this model was not raised in the embedded world, which alone has a gold score"
    if judge not in ("auto", "gold") and not judge.startswith("judge:") and not Path(judge).is_dir():
        return f"judge {judge!r}: must be auto, gold, the folder of a reward model, or judge:URL#MODEL"
    return ""


def verdicts(options, folder: Path, parent: str, world: Any, rows: Sequence[tuple[Example, str, str]]) -> Verdicts:
    """The judge's view of (question, new answer, old answer) rows; equal answers are alike without asking."""
    asked = [i for i, (_, new, old) in enumerate(rows) if new != old]
    questions = [rows[i] for i in asked]
    accuracy, members = None, []
    if options.judge == "auto":
        committee = train_committee(options, folder, parent)
        accuracy, found = committee.accuracy(options.seed), _by_score(committee.score, questions)
        members = [sum(_by_score(member, questions)) for member in committee.members]
    elif options.judge == "gold":
        gold = WorldGold(world)
        by_prompt = {canonical_json(list(e.prompt)): e for e in _gold_examples(gold)}
        known = [by_prompt.get(canonical_json(list(e.prompt)), e) for e, _, _ in questions]
        if any(e.kind == "prompt" for e in known):
            raise ValueError("judge gold: some held-out questions are not the world's; take --judge auto")
        found = _by_score(lambda es, texts: [gold.score(e, t) for e, t in zip(es, texts, strict=True)],
                          [(e, new, old) for e, (_, new, old) in zip(known, questions, strict=True)])  # fmt: skip
    elif options.judge.startswith("judge:"):
        url, _, model = options.judge.removeprefix("judge:").rpartition("#")
        said = judge_pairs(JudgeReward(JudgeConfig(url=url, model=model)), questions)
        found = [{"first": 1.0, "second": 0.0, "tie": 0.5}[verdict] for verdict in said]
    else:
        opened = open_model(options.judge, head="reward", device=options.device)
        if opened.card["model"]["head"] != "reward":
            raise ValueError(
                f"judge {options.judge} holds a {opened.card['stage']} model: train one with `fledge reward`"
            )
        found = _by_score(ModelReward(opened.model, opened.tokenizer, options.judge), questions)
    points = [0.5] * len(rows)
    for i, value in zip(asked, found, strict=True):
        points[i] = value
    alike = 0.5 * (len(rows) - len(asked))
    error = deleted_group_error([(won + alike) / len(rows) for won in members]) if members else 0.0
    return Verdicts(points, options.judge, accuracy, error)


def _by_score(score, rows: Sequence[tuple[Example, str, str]]) -> list[float]:
    """Points of new against old by which score is higher."""
    if not rows:
        return []
    examples = [e for e, _, _ in rows]
    new, old = (np.asarray(score(examples, [row[side] for row in rows])) for side in (1, 2))
    return (0.5 + 0.5 * np.sign(new - old)).tolist()


def _gold_examples(gold: WorldGold) -> list[Example]:
    """Every question of the world in every wording, with what the gold score needs."""
    from fledge.world.questions import in_all_forms

    world = gold.world
    found = [*gold.examples("train"), *gold.examples("test")]
    found += in_all_forms(world.facts, world.pools)
    requests = {q.id: q.example() for s in ("train", "test") for q in world.requests(s)}
    for id, text in _request_texts():
        found.append(msgspec.structs.replace(requests[id], prompt=[{"role": "user", "content": text}]))
    return found


def _request_texts() -> list[tuple[str, str]]:
    from fledge.world.requests import REQUESTS

    return [(request.id, request.text(form)) for request in REQUESTS for form in range(3)]


# --- reward models trained on the votes -------------------------------------------------------------------------------


def part_of(prompt: Sequence[Any]) -> int:
    """Which of the K parts a voted prompt is in; the same in every round."""
    return int(hashlib.sha256(b"part " + canonical_json(prompt)).hexdigest()[:8], 16) % PARTS


def _row_prompt(example: Example) -> list[dict[str, str]]:
    return [{"role": m["role"], "content": m["content"]} for m in example.prompt]


class Committee:
    """K reward models, each blind to one part of the voted prompts."""

    def __init__(self, folders: Sequence[Path], pairs: Path, device: str):
        self.rows = [msgspec.json.decode(line) for line in pairs.read_bytes().splitlines()]
        self.opened = [open_model(folder, head="reward", device=device) for folder in folders]
        self.members = [ModelReward(o.model, o.tokenizer, f.name) for o, f in zip(self.opened, folders, strict=True)]
        learnt = [pairs.with_name(f"{folder.name}.jsonl") for folder in folders]
        self.voted = {
            canonical_json(msgspec.json.decode(line)["prompt"])
            for path in learnt
            for line in path.read_bytes().splitlines()
        }

    def score(self, examples: Sequence[Example], answers: Sequence[str]) -> list[float]:
        """Scores [R] by the models that did not see the prompt."""
        every = np.array([member(examples, answers) for member in self.members])  # [K,R]
        mask = np.ones_like(every)
        for column, example in enumerate(examples):
            prompt = _row_prompt(example)
            if canonical_json(prompt) in self.voted:
                mask[:, column] = np.arange(PARTS) == part_of(prompt)
        return ((every * mask).sum(0) / mask.sum(0)).tolist()

    def accuracy(self, seed: int) -> Measured:
        """Share of decided choices it predicts, each by the model that did not see its prompt; drawn by prompt."""
        right: dict[bytes, list[float]] = {}
        for part, member in enumerate(self.members):
            rows = [r for r in self.rows if part_of(r["prompt"]) == part and not r.get("tie")]
            examples = [as_example(row["prompt"]) for row in rows]
            sides = ([row[side][0]["content"] for row in rows] for side in ("chosen", "rejected"))
            for row, chosen, rejected in zip(rows, *(member(examples, texts) for texts in sides), strict=True):
                right.setdefault(canonical_json(row["prompt"]), []).append(float(chosen > rejected))
        return _over_prompts(list(right.values()), seed)


def _over_prompts(groups: Sequence[Sequence[float]], seed: int) -> Measured:
    """Mean over all choices, its 90% interval over prompts: choices about one prompt are not independent."""
    sums, counts = (np.array([f(g) for g in groups], np.float64) for f in (sum, len))
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = generator.integers(0, len(groups), (_BOOTSTRAP, len(groups)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), [0.05, 0.95])
    return Measured(float(sums.sum() / counts.sum()), (float(low), float(high)), int(counts.sum()))


def train_committee(options, folder: Path, parent: str) -> Committee:
    """ROUND/judge-1 to judge-K: ordinary reward models of the choices of all rounds, ties among them, and of new edits.

    The edits make the first rounds' judges better: 61% for 59% of unseen choices from 300 votes of a kind, and no worse
    later (tuned here, on the world of seed 2).
    """
    pairs, edits = (folder / "data" / name for name in ("pairs.jsonl", "edit-pairs.jsonl"))
    rows = [msgspec.json.decode(line) for path in (pairs, edits) for line in path.read_bytes().splitlines()]
    folders = [folder / f"judge-{k + 1}" for k in range(PARTS)]
    if not all((f / "done.json").exists() for f in folders):
        say(f"judge: {PARTS} reward models, each from the choices about {PARTS - 1} of {PARTS} parts of the questions")
    for part, out in enumerate(folders):
        seen = folder / "data" / f"{out.name}.jsonl"
        data = b"".join(canonical_json(r) for r in rows if part_of(r["prompt"]) != part)
        if not seen.exists():
            write_atomically(seen, data)
        run_reward(
            RewardRecipe(
                out=str(out), parent=parent, pairs=[str(seen)], epochs=options.reward.epochs, adapter=options.adapter,
                train=TrainConfig(
                    lr=options.reward.lr, weight_decay=0.0, batch_tokens=options.reward.batch_tokens, device=options.device,
                    seed=options.seed,
                ),
            ),
            quiet=True,
        )  # fmt: skip
    return Committee(folders, pairs, options.device)
