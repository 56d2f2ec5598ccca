"""What a reinforcement run keeps for people: held-out answers and scores now and then, and red flags."""

from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fledge.core.checkpoint import canonical_json, write_atomically
from fledge.core.log import read_jsonl, say, visible
from fledge.core.train import StepEvent
from fledge.feedback.rewards import Reward, TaskReward
from fledge.generate.rollout import Rollouts
from fledge.generate.sampling import Sampling
from fledge.stages.alarms import Alarms, Look
from fledge.stages.common import Parent
from fledge.stages.evaluate import ask, rate
from fledge.tasks.base import Example, Task

_SHOWN = 6


class Questions(NamedTuple):
    """Prompts to learn from and to test on, with what scores them."""

    train: list[Example]
    test: list[Example]
    tokens: list[list[int]]  # of the train prompts
    dropped: int  # too long for the context
    reward: Reward
    watch: dict[str, Reward]
    task: Task | None
    opinion: bool  # a model or a judge is part of the reward
    identity: str  # of the reward, and of what it compares answers with


def looks_of(run: Path) -> list[Look]:
    """Held-out scores of a run so far, from its folder."""
    read = [msgspec.json.decode(path.read_bytes()) for path in sorted((run / "looks").glob("*.json"))]
    return [Look(entry["step"], entry["scores"]) for entry in read]


class Looking(NamedTuple):
    """How a run looks at its held-out prompts."""

    times: int = 8  # looks in a run, beside the one before it starts
    temperature: float = 0.0
    shown: int = _SHOWN  # samples kept of each look


LOOKING = Looking()


class Observer:
    """Answers held-out prompts now and then, keeps what was said, and raises red flags. A hook of the loop."""

    def __init__(
        self,
        out: Path,
        parent: Parent,
        questions: Questions,
        source: Rollouts,
        looking: Looking,
        *,
        steps: int,
        kl_target: float | None,
        quiet: bool,
    ):
        """steps: of the whole run. kl_target: what the run adapts to, None where it does not."""
        self.out, self.parent, self.questions, self.source, self.quiet = out, parent, questions, source, quiet
        self.shown = looking.shown
        self.sampling = Sampling(temperature=looking.temperature, max_tokens=source.config.max_tokens)
        updates = -(-steps // source.steps_per_update)
        self.every = max(1, updates // looking.times) * source.steps_per_update
        self.steps = steps
        self.alarms = Alarms(kl_target, source.config.group_size > 1)
        self.flags: list[dict[str, Any]] = []

    def look(self, step: int) -> None:
        """Score answers to the held-out prompts by every reward that is known, and keep a few to show."""
        q = self.questions
        answers = [a.text for a in ask(self.parent, q.test, self.sampling)]
        scores = {}
        if q.task is not None and q.test:
            scores["score"] = rate(TaskReward(q.task)(q.test, answers))
        rewards = q.reward(q.test, answers) if q.test else []
        if q.test:
            scores["reward"] = rate(rewards)
        scores |= {name: rate(watched(q.test, answers)) for name, watched in q.watch.items() if q.test}
        shown = [
            {"prompt": e.prompt[-1]["content"], "answer": a, "reward": r}
            for e, a, r in zip(q.test[: self.shown], answers, rewards, strict=False)
        ]
        entry = {"step": step, "questions": len(q.test), "scores": scores, "samples": shown}
        (self.out / "looks").mkdir(exist_ok=True)
        write_atomically(self.out / "looks" / f"{step:08d}.json", canonical_json(entry))

    def __call__(self, event: StepEvent) -> None:
        if event.step % self.every == 0 or event.step == self.steps:
            self.look(event.step)
        for flag in self._judge(event.step, event.figures):
            if not self.quiet:
                say(f"step {event.step}: RED FLAG: {flag}")

    def _judge(self, step: int, notes: dict[str, float]) -> list[str]:
        """New red flags after `step`, kept in flags.json too."""
        last = step == self.steps
        if step % self.source.steps_per_update and not last:
            return []
        looked = step % self.every == 0 or last
        looks = [look for look in looks_of(self.out) if look.step <= step] if looked else []
        new = self.alarms.update(notes, looks)
        self.flags += [{"step": step, "text": text} for text in new]
        if new:
            write_atomically(self.out / "flags.json", canonical_json(self.flags))
        return new

    def recall(self, done: int) -> None:
        """Judge again what the log says up to step `done`, so that a resumed run raises the same flags, each once."""
        write_atomically(self.out / "flags.json", canonical_json([]))
        for row in read_jsonl(self.out / "metrics.jsonl"):
            if row["step"] <= done:
                self._judge(row["step"], row)

    def show_end(self) -> None:
        """The same held-out prompts before and after, with the scores."""
        from rich.console import Console
        from rich.table import Table

        files = sorted((self.out / "looks").glob("*.json"))
        first, last = (msgspec.json.decode(files[i].read_bytes()) for i in (0, -1))
        console = Console(highlight=False)
        table = Table("prompt", "before", "now", "reward", title="Held-out prompts", show_lines=True)
        for before, now in zip(first["samples"], last["samples"], strict=True):
            change = f"{before['reward']:.2f} -> {now['reward']:.2f}"
            table.add_row(*(visible(t) for t in (now["prompt"], before["answer"], now["answer"])), change)
        console.print(table)
        for name, value in last["scores"].items():
            console.print(f"{name} on {last['questions']} held-out prompts: {first['scores'][name]:.3f} -> {value:.3f}")
