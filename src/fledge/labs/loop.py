"""Claim R1, closed: votes raise the next model. Simulated people vote, `improve` trains from the votes, three times over.

Each round: `votes` thumbs, choices, scores and edits on the served model's own answers, by people who err in one vote in
ten and favour the left side in one choice in five; then `fledge improve` as users run it, which promotes or refuses. The gold
score, which no stage and no verdict sees, measures every served model against the first one on held-out questions.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fledge.core.checkpoint import read_serving, resolve, write_serving
from fledge.core.config import Settings
from fledge.core.log import say
from fledge.feedback.collecting import collect
from fledge.feedback.raters import KINDS
from fledge.feedback.simulated import Simulated
from fledge.feedback.store import Store, store_url
from fledge.generate.sampling import Sampling
from fledge.labs import experiment
from fledge.labs.experiment import verdict_of
from fledge.stages import evaluate, improve
from fledge.stages.best_of_n import answer_pool
from fledge.stages.common import Parent, open_model
from fledge.stages.improve_data import WELL_READ
from fledge.stages.worlds import world_behind
from fledge.tasks.base import Example
from fledge.tasks.world_tasks import WorldFacts, WorldGold, WorldRequests
from fledge.world import World

_DRAFTS = Sampling(temperature=1.0, max_tokens=48)
_MEASURED = 4  # answers of each model to each held-out question
GOAL = 0.65
MOST_LOST = 0.03


class LoopOptions(Settings, frozen=True, kw_only=True):
    """The closed loop with simulated people: votes, the next model, and whether it is better, round after round."""

    out: str
    "Folder of the experiment; what is done is kept and the rest continues."
    parent: list[str]
    "First models: SFT models of journeys through the embedded world; seed k takes number k, from the start again."
    rounds: int = 3
    "Rounds of votes and improvement."
    votes: int = 300
    "Votes of each kind (choice, thumb, score, edit) in each round."
    noise: float = 0.1
    "Probability that a vote is wrong."
    position_bias: float = 0.2
    "Probability that the left answer is taken whatever stands there."
    tie_band: float = 0.25
    "Gold scores no further apart than this are the same."
    seeds: int = 3
    "Repetitions, each with its own votes and training."

    def problems(self) -> list[str]:
        found = [] if self.parent else ["parent: empty; name at least one SFT model"]
        for name, least in (("rounds", 1), ("votes", 50), ("seeds", 1)):
            if getattr(self, name) < least:
                found.append(f"{name} = {getattr(self, name)}: must be at least {least}")
        for name in ("noise", "position_bias"):
            if not 0 <= getattr(self, name) <= 1:
                found.append(f"{name} = {getattr(self, name)}: must be a probability between 0 and 1")
        if not self.tie_band >= 0:
            found.append(f"tie_band = {self.tie_band}: must be at least 0")
        return found


class Yardstick:
    """Gold's view of a model: win rate over the first one on held-out questions, and facts answered exactly."""

    def __init__(self, world: World, first: Parent, seed: int):
        self.facts, self.gold, self.seed = WorldFacts(world), WorldGold(world), seed
        self.asked = [e for e in self.facts.examples("test") if e.meta["count"] >= WELL_READ]
        requests = [e for k in ("dangerous", "borderline") for e in WorldRequests(world, k).examples("test")]
        self.mixed = [*self.asked, *requests]
        self._scores: dict[str, np.ndarray] = {}
        self.first = first

    def scores(self, opened: Parent) -> np.ndarray:
        """Gold scores [P,N] of sampled answers."""
        if opened.id not in self._scores:
            sampling = msgspec.structs.replace(evaluate.SAMPLED, seed=self.seed)
            pool = answer_pool(opened, self.mixed, _MEASURED, sampling)
            self._scores[opened.id] = np.array(
                [[self.gold.score(e, text) for text in answers] for e, answers in zip(self.mixed, pool, strict=True)]
            )
        return self._scores[opened.id]

    def wins(self, new: Parent, old: Parent) -> float:
        """Share of comparisons the new model wins, ties as half."""
        return float((0.5 + 0.5 * np.sign(self.scores(new) - self.scores(old))).mean())

    def measure(self, opened: Parent) -> dict[str, float]:
        answers = evaluate.ask(opened, self.asked)
        right = [self.facts.score(e, a.text) for e, a in zip(self.asked, answers, strict=True)]
        return {
            "win_rate": self.wins(opened, self.first), "exact_match": float(np.mean(right)),
            "gold": float(self.scores(opened).mean()),
        }  # fmt: skip


def questions(world: World) -> list[Example]:
    """What people ask: the train half's well-read facts and requests."""
    facts = [e for e in WorldFacts(world).examples("train") if e.meta["count"] >= WELL_READ]
    kinds = ("dangerous", "borderline", "greeting")
    return facts + [e for k in kinds for e in WorldRequests(world, k).examples("train")]


def _vote(options: LoopOptions, run: Path, world: World, number: int, seed: int) -> None:
    """A round's votes, unless its plan says that they are all there; begun again, none is given twice."""
    if (run / "rounds" / f"{number:03d}" / "plan.json").exists():
        return
    rater = Simulated(WorldGold(world), options.noise, options.position_bias, options.tie_band, seed)
    with Store.open(store_url(run)) as store:
        collect(
            store, open_model(run), rater, questions(world), KINDS, options.votes, 1000 * seed + number, _DRAFTS
        )  # fmt: skip


def one_seed(options: LoopOptions, run: Path, seed: int) -> dict[str, Any]:
    """The loop of one first model in the run's folder `run`."""
    first = open_model(resolve(options.parent[seed % len(options.parent)]))
    world = world_behind(first.path)
    run.mkdir(parents=True, exist_ok=True)
    if read_serving(run) is None:
        write_serving(run, first.path, first.id)  # the journey's own folder is only read
    yardstick = Yardstick(world, first, seed)
    curve: list[dict[str, Any]] = [{"round": 0, **yardstick.measure(first), "win_rate": 0.5}]
    for number in range(1, options.rounds + 1):
        _vote(options, run, world, number, seed)
        folder = run / "rounds" / f"{number:03d}"
        found = improve.run(
            improve.ImproveRecipe(run=str(run), out=str(folder), seed=seed), quiet=True, gentle=False
        )  # fmt: skip
        curve.append(_row(yardstick, found, number))
        _tell(seed, curve[-1])
    result = {"seed": seed, "parent": str(first.path), "curve": curve}
    return result


def _row(yardstick: Yardstick, found: dict[str, Any], number: int) -> dict[str, Any]:
    """A round: the served model by gold, the verdict, and what gold says of the verdict."""
    old, new = (open_model(found[side]["checkpoint"]) for side in ("old", "new"))
    served = new if found["promoted"] else old
    regression = found["regression"]
    return {
        "round": number, **yardstick.measure(served), "promoted": found["promoted"], "why_not": found["why_not"],
        "judged": msgspec.to_builtins(found["win_rate"]), "accuracy": msgspec.to_builtins(found["judge"]["accuracy"]),
        "gold_over_old": yardstick.wins(new, old), "regression": [regression["old"], regression["new"]],
        "rows": {s: msgspec.to_builtins(taken)["rows"] for s, taken in found["stages"].items()},
    }  # fmt: skip


def _tell(seed: int, row: dict[str, Any]) -> None:
    verdict = "promoted" if row["promoted"] else "refused: " + "; ".join(row["why_not"])
    judged, low, high = row["judged"]["value"], *row["judged"]["interval"]
    say(
        f"seed {seed}, round {row['round']}: gold win rate {row['win_rate']:.1%} over the first model, exact match "
        f"{row['exact_match']:.1%}; judge {judged:.1%} ({low:.1%} to {high:.1%}), gold {row['gold_over_old']:.1%}, over the "
        f"one before; judge right in {(row['accuracy'] or {'value': 0})['value']:.0%} of unseen choices; {verdict}"
    )


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Whether each check holds for every seed."""
    wins = [[row["win_rate"] for row in r["curve"]] for r in results]
    exact = [[row["exact_match"] for row in r["curve"]] for r in results]
    rounds = [row for r in results for row in r["curve"][1:]]
    checks = {
        "the gold win rate over the first model rises in every round, for every seed": all(
            later > earlier for w in wins for earlier, later in zip(w, w[1:], strict=False)
        ),
        f"after the last round it is at least {GOAL:.0%}, for every seed": all(w[-1] >= GOAL for w in wins),
        f"exact match on held-out facts never falls by more than {100 * MOST_LOST:.0f} points, for every seed": all(
            round(e[0] - later, 9) <= MOST_LOST for e in exact for later in e[1:]
        ),
        "gold prefers every promoted model to the one before it": all(
            row["gold_over_old"] > 0.5 for row in rounds if row["promoted"]
        ),
    }
    return {"checks": checks, "verdict": verdict_of(checks)}


def run(options: LoopOptions) -> dict[str, Any]:
    """Every seed, then the summary, the page and the verdict; returns what result.json holds."""
    from fledge.labs.loop_page import loop_page

    def refuse() -> None:
        for parent in options.parent:
            world_behind(resolve(parent))

    return experiment.run("loop", options, one_seed, summary, loop_page, _show, refuse=refuse, done="seed.json")


def _show(console: Any, total: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("seed", "round", "gold win rate", "exact match", "judge", "gold over the one before", "", box=None)
    for found in total["seeds"]:
        for row in found["curve"]:
            judged = f"{row['judged']['value']:.1%}" if row["round"] else ""
            over = f"{row['gold_over_old']:.1%}" if row["round"] else ""
            verdict = ("promoted" if row["promoted"] else "refused") if row["round"] else "first model"
            table.add_row(
                str(found["seed"]), str(row["round"]), f"{row['win_rate']:.1%}", f"{row['exact_match']:.1%}", judged, over, verdict
            )  # fmt: skip
    console.print(table)
