"""Is the new model better, and can it still do what the old one could? The figures, the verdict and how it is told."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from fledge.core.checkpoint import canonical_json, write_atomically
from fledge.core.log import say
from fledge.generate.sampling import Sampling
from fledge.stages import evaluate
from fledge.stages import improve_data as data
from fledge.stages.best_of_n import answer_pool
from fledge.stages.common import Parent, open_model
from fledge.stages.improve_judge import LEAST_RIGHT, Measured, Verdicts, bootstrap, verdicts
from fledge.stages.pretrain import heldout_texts
from fledge.tasks.base import Example
from fledge.tasks.world_tasks import WorldFacts
from fledge.text.formats import Chat, read_chats
from fledge.text.readers import Rejects, require_some
from fledge.text.template import render_prompt
from fledge.world.answers import tidy

LEAST_QUESTIONS = 20
"""Held-out questions below which nothing is concluded: an interval over fewer is not to be believed."""
MOST_LOST = 0.03
"""Share of regression questions that may be lost."""
MOST_LOSS = 0.01
"""Rise of the bits per byte of held-out text that is allowed, as a share of them."""
_BITS = "bits per byte of held-out text"
_MOST_TEXTS = 300
_TEMPERATURE, _MAX_TOKENS = 0.7, 80  # as people sample, and longer than the answers of small models


class Regression(NamedTuple):
    """What must not get worse."""

    measure: str
    old: float
    new: float
    count: int
    allowed: float  # share of questions, or share of the loss
    ok: bool

    def told(self) -> str:
        if self.measure == _BITS:
            return f"{self.measure}: {self.old:.4f} before, {self.new:.4f} now ({self.new / self.old - 1:+.1%}; {self.allowed:+.0%} is allowed)"
        return f"{self.measure}: {self.old:.1%} before, {self.new:.1%} now ({100 * (self.new - self.old):+.1f} points; {-100 * self.allowed:.0f} are allowed)"


def judge_round(options, folder: Path, plan, material, family, new_path: Path) -> dict[str, Any]:
    """result.json of a round: every figure behind the verdict, the verdict and its reasons."""
    old, new = (open_model(path, device=options.device) for path in (plan.served, new_path))
    world = data.world_of(family)
    rows = _compared(options, folder, plan, old, new)
    found = verdicts(options, folder, plan.served, world, [(e, a, b) for e, a, b, _ in rows])
    win_rate = _win_rate(rows, found, options.seed) if rows else None
    _keep_answers(folder, rows, found.points)
    first = open_model(data.first_of(family, folder.parent), device=options.device)
    regression = regressed(options, family, world, first, new)
    why_not = reasons(found, win_rate, len({r[3] for r in rows}), regression)
    result = {
        "round": plan.round, "promoted": not why_not, "why_not": why_not,
        "win_rate": win_rate, "questions": material.prompts,
        "judge": {"name": found.judge, "accuracy": found.accuracy},
        "regression": regression._asdict() if regression else None,
        "old": {"checkpoint": plan.served, "id": old.id}, "new": {"checkpoint": str(new_path), "id": new.id},
        "votes": {"first_seq": plan.first_seq, "last_seq": plan.last_seq, "kinds": plan.votes},
        "stages": material.stages,
    }  # fmt: skip
    return msgspec.json.decode(msgspec.json.encode(result))  # as it is read back


def _compared(options, folder: Path, plan, old: Parent, new: Parent) -> list[tuple[Example, str, str, int]]:
    """(question, new answer, old answer, number of the question): both draw from the same random streams."""
    held = [msgspec.json.decode(line) for line in (folder / "data" / "prompts.jsonl").read_bytes().splitlines()]
    examples = [data.as_example(row["prompt"]) for row in held]
    room = min(_MAX_TOKENS, old.model.config.context_tokens // 2)
    fitting = [e for e in examples if _prompt_tokens(old, e) <= old.model.config.context_tokens - room]
    if not fitting:
        return []
    sampling = Sampling(temperature=_TEMPERATURE, max_tokens=room, seed=options.seed + plan.round)
    pools = [answer_pool(model, fitting, options.answers, sampling) for model in (new, old)]
    return [
        (e, a, b, number)
        for number, (e, ours, theirs) in enumerate(zip(fitting, *pools, strict=True))
        for a, b in zip(ours, theirs, strict=True)
    ]


def _prompt_tokens(opened: Parent, example: Example) -> int:
    return len(render_prompt(opened.tokenizer, evaluate.messages_of(example)))


def _win_rate(rows: Sequence[tuple], found: Verdicts, seed: int) -> Measured:
    """Share of comparisons the new model wins, ties as half; its interval counts the choice of questions and of votes."""
    count = max(r[3] for r in rows) + 1
    return bootstrap(np.array(found.points).reshape(count, -1), seed, found.error)


def _keep_answers(folder: Path, rows: Sequence[tuple], points: Sequence[float]) -> None:
    """ROUND/answers.jsonl, to look at what was compared."""
    lines = [
        canonical_json({"prompt": e.prompt, "new": a, "old": b, "points": p})
        for (e, a, b, _), p in zip(rows, points, strict=True)
    ]
    write_atomically(folder / "answers.jsonl", b"".join(lines))


def reasons(found: Verdicts, win_rate: Measured | None, questions: int, regression: Regression | None) -> list[str]:
    """Why the new model is not served; empty where it is."""
    why = []
    if found.accuracy is not None and not (found.accuracy.value > LEAST_RIGHT and found.accuracy.interval[0] > 0.5):
        why.append(
            f"the judge cannot tell: it predicts {_share(found.accuracy)} of the choices it did not learn from, above "
            f"{LEAST_RIGHT:.0%} and surely above half are needed; more choices make a better judge"
        )
    if win_rate is None or questions < LEAST_QUESTIONS:
        why.append(
            f"{questions} held-out questions, {LEAST_QUESTIONS} are needed: collect votes on more different questions, or "
            "name some with --prompts FILE"
        )
    elif not win_rate.interval[0] > 0.5:
        why.append(f"win rate {_share(win_rate)}: the lower end of the interval is not above 50%")
    if regression and not regression.ok:
        why.append(regression.told())
    return why


def _share(measured: Measured) -> str:
    low, high = measured.interval
    return f"{measured.value:.1%} (90% interval {low:.1%} to {high:.1%})"


# --- what must not get worse ------------------------------------------------------------------------------------------


def regressed(options, family, world, old: Parent, new: Parent) -> Regression | None:
    """Regression questions: the user's own, the world's facts, or text held out when its base was trained; None without.

    old: the model before the first round, not the one before this: small losses must not add up unseen. Held-out chats
    are not asked: votes change how a model answers, so their loss rises with every good round (by 5% to 12% in the first
    and 65% to 96% in three of `fledge loop`, while facts and the bits of held-out text got better).
    """
    if options.regression:
        chats = _read(options.regression)
        right = [_share_named(model, chats) for model in (old, new)]
        return _of_questions("own questions answered", *right, len(chats))
    if world is not None:
        facts = WorldFacts(world)
        asked = [e for e in facts.examples("test") if e.meta["count"] >= data.WELL_READ]
        right = [
            sum(facts.score(e, a.text) for e, a in zip(asked, evaluate.ask(model, asked), strict=True)) / len(asked)
            for model in (old, new)
        ]
        return _of_questions("held-out facts answered exactly", *right, len(asked))
    texts = [text for a in family if a.card["stage"] == "pretrain" for text in heldout_texts(a.path.parent.parent)]
    if not texts:
        return None
    texts = evaluate.sample_of(texts, _MOST_TEXTS, options.seed)
    before, now = (evaluate.bits_per_byte(model, texts) for model in (old, new))
    return Regression(_BITS, before, now, len(texts), MOST_LOSS, now <= before * (1 + MOST_LOSS))


def _of_questions(measure: str, old: float, new: float, count: int) -> Regression:
    return Regression(measure, old, new, count, MOST_LOST, round(old - new, 9) <= MOST_LOST)


def _read(path: str) -> list[Chat]:
    rejects = Rejects()
    chats = list(read_chats([path], rejects=rejects))
    require_some(len(chats), [path], rejects, "questions with answers")
    return chats


def _share_named(opened: Parent, chats: Sequence[Chat]) -> float:
    """Share of questions whose greedy answer holds the expected one; case and outer marks do not count."""
    examples = [data.as_example([{"role": m.role, "content": m.content} for m in c.messages[:-1]]) for c in chats]
    answers = evaluate.ask(opened, examples)
    right = [tidy(c.messages[-1].content) in tidy(a.text) for c, a in zip(chats, answers, strict=True)]
    return sum(right) / len(right)


# --- told on the terminal ---------------------------------------------------------------------------------------------


def show(options, result: dict[str, Any]) -> None:
    """The figures in a few lines, and what to do next."""
    judge = result["judge"]
    if judge["accuracy"]:
        seen = msgspec.convert(judge["accuracy"], Measured)
        say(f"judge: predicts {_share(seen)} of {seen.count:,} choices, none of which it learnt from")
    if result["win_rate"]:
        told = ", ".join(f"{n} {source}" for source, n in result["questions"].items())
        won = msgspec.convert(result["win_rate"], Measured)
        say(f"new against old: wins {_share(won)} of {won.count:,} comparisons; questions: {told}")
    if result["regression"]:
        say(Regression(**result["regression"]).told())
    else:
        say(
            "no regression questions: nothing was held out when this model was raised; name some with --regression FILE"
        )
    if result["promoted"]:
        say(f"promoted: {options.run} now means {result['new']['checkpoint']}; a server follows within seconds")
    else:
        say("not promoted:\n  " + "\n  ".join(result["why_not"]))
        tried = Path(result["new"]["checkpoint"]).parents[1]
        say(f"the old model stays; `fledge chat {options.run} --compare {tried}` lets you try the new one")
    say(f"family tree: fledge lineage {options.run}")
