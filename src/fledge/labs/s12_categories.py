"""S12: fine-tuning on facts that a model does not know harms what it knows, once it has learned them (Gekhman et al. 2024).

Invented people are told of in five shuffled wordings, some often and some seldom (Zipf), several in a document. What the
base model knows of them is sorted by `probe.knowledge` (SliCK): worked examples and questions are in the form of its text.
Equal numbers of facts of each category, and of all categories as they come, are then taught as questions and answers; one
training stops where questions about other facts (the dev set) are answered best, one goes on to convergence. Both are
asked about facts of each category that nobody taught. Values are one word, so guessing is right in 2.5% or less.

Early stopping chooses among trainings of different length, each with its own schedule; the test set chooses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fledge.core.config import Settings, TrainConfig
from fledge.core.model import Shape
from fledge.generate.sampling import Sampling
from fledge.labs.bench import Bench
from fledge.labs.cloze import fresh_start
from fledge.labs.verdict import Findings, Number, at_least, at_most, difference
from fledge.probe.knowledge import CATEGORIES, Asking, Question, knowledge
from fledge.stages import pretrain, sft
from fledge.stages.charts import COLOURS
from fledge.stages.charts import draw as drawing
from fledge.stages.common import Parent, open_model
from fledge.stages.evaluate import ask, rate
from fledge.tasks.base import Example, user
from fledge.world.biographies import TELLINGS, Biography, People, Person, questions
from fledge.world.biography_words import STATEMENTS
from fledge.world.dice import Dice

ARMS = (*CATEGORIES, "Natural")
PAPER = {  # table 2: accuracy on all test questions at early stop and at convergence
    "HighlyKnown": (0.405, 0.400), "MaybeKnown": (0.436, 0.432), "WeaklyKnown": (0.392, 0.354),
    "Unknown": (0.375, 0.258), "Natural": (0.435, 0.418),
}  # fmt: skip
_GREEDY = Sampling(temperature=0.0, max_tokens=6)
_FORM = "{question} {answer}."
_PARTS = ("train", "dev", "test")


class Setup(Settings, frozen=True, kw_only=True):
    """People, how often they are told of, how their facts are sorted, and how some are taught."""

    people: int = 300
    "Invented people."
    attributes: tuple[str, ...] = ("birthcity", "major", "employer")
    "Told of, of birthcity, major and employer, whose sentences can end with the value."
    most: int = 200
    "Texts about the best-known person; the one of rank r has 1 / r of them, and one at least."
    together: int = 5
    "People told of in one document, at most."
    tokens: int = 1_500_000
    "Tokens of pretraining."
    size: str = "pocket"
    "Model size."
    lr: float = 4e-3
    "Peak learning rate of pretraining."
    batch_tokens: int = 4096
    "Tokens of a pretraining step."
    prompts: int = 5
    "Prompts for each fact when they are sorted."
    shots: int = 4
    "Worked examples in a prompt."
    samples: int = 4
    "Sampled answers to each prompt."
    taught: int = 60
    "Facts taught to each arm, at most; all arms have as many."
    early: tuple[float, ...] = (2.0, 4.0, 8.0, 16.0)
    "Times the questions are read, of which the dev set chooses."
    epochs: float = 50.0
    "Times they are read until convergence."
    sft_lr: float = 2e-4
    "Peak learning rate of fine-tuning."
    sft_batch_tokens: int = 512
    "Positions of a fine-tuning step."

    def problems(self) -> list[str]:
        fitting = ("birthcity", "major", "employer")
        found = [f"people = {self.people}: must be at least 20"] * (self.people < 20)
        if wrong := [a for a in self.attributes if a not in fitting]:
            found.append(f"attributes = {wrong}: must be of {', '.join(fitting)}")
        if not self.early or max(self.early) >= self.epochs:
            found.append(f"early = {self.early}: must be below epochs, {self.epochs:g}")
        return found


SCALES = {
    "pocket": Setup(),
    "gpu": Setup(people=4000, most=2000, size="small", tokens=100_000_000, batch_tokens=65_536, lr=2e-3, prompts=10,
                 samples=16, taught=800, sft_batch_tokens=4096),
    "tiny": Setup(people=20, most=4, tokens=4_000, size="tiny", batch_tokens=512, prompts=2, shots=2, samples=1, taught=4,
                  early=(1.0,), epochs=2.0),
}  # fmt: skip


class Item(NamedTuple):
    """A fact of a person."""

    person: Person
    attribute: str

    def pairs(self) -> list[tuple[str, str]]:
        """(question, answer) in each form; an answer begins with a space, as the value does in a text."""
        return [(q, f" {a}") for q, a in questions(self.person, self.attribute)]


def told_often(people: People, most: int) -> Iterator[Biography]:
    """most / rank texts about each person, at least one; the versions of multi5+permute in turn."""
    telling = TELLINGS["multi5+permute"]
    for rank, person in enumerate(people.all, 1):
        for copy in range(max(1, most // rank)):
            yield people.biography(person, telling, copy % telling.versions)


def documents(texts: Sequence[str], most: int, seed: int) -> list[str]:
    """The texts in random order, 1 to `most` of them in a document: worked examples about others are then nothing new."""
    dice = Dice(seed, 142)
    left, found = dice.shuffled(texts), []
    while left:
        size = 1 + dice.below(most)
        found.append("".join(left[:size]))
        left = left[size:]
    return found


def beginning(item: Item) -> Question:
    """The first wording that begins with the name and ends with the value, up to the value."""
    forms = STATEMENTS[item.attribute]["en"]
    form = next(f for f in forms if f.startswith("{n}") and f.endswith(" {v}."))
    question = " " + form.removesuffix(" {v}.").replace("{n}", item.person.name)
    return Question(question, (item.person.values[item.attribute].en,), item.attribute)


def sort_items(setup: Setup, base: Parent, people: People, seed: int) -> dict[str, dict[str, list[list[Any]]]]:
    """{"train"|"dev"|"test": {category: [[person, attribute], ...]}}; halves and tenths by chance, person by fact."""
    items = [Item(p, a) for p in people.all for a in people.attributes]
    asked = [beginning(item) for item in items]
    asking = Asking(
        prompts=setup.prompts, shots=setup.shots, samples=setup.samples, form=_FORM, max_tokens=2, seed=seed
    )
    known = knowledge(base, asked, asked, asking)
    dice = Dice(seed, 140)
    found: dict[str, dict[str, list[list[Any]]]] = {part: {c: [] for c in CATEGORIES} for part in _PARTS}
    for i in dice.shuffled(range(len(items))):
        part = ("train", "dev", "test", "train", "test")[dice.below(5)]
        found[part][known[i].category].append([items[i].person.number, items[i].attribute])
    return found


def measure(setup: Setup, bench: Bench) -> dict[str, Any]:
    """One base model; its facts sorted; an arm for each category, trained for several lengths."""
    people = People(setup.people, bench.seed, setup.attributes)
    base = _base(setup, people, bench)
    parts = bench.keep("sorted", lambda: sort_items(setup, open_model(base, precision="float32"), people, bench.seed))
    items = {
        part: {c: [Item(people.all[number], a) for number, a in some] for c, some in by.items()}
        for part, by in parts.items()
    }
    train = items["train"]
    size = min(setup.taught, *(len(some) for some in train.values() if some))
    mixed = Dice(bench.seed, 141).shuffled([item for some in train.values() for item in some])
    chosen = {c: some[:size] for c, some in (*train.items(), ("Natural", mixed)) if some}
    arms = {
        arm: bench.keep(f"arm-{arm}", lambda arm=arm, some=some: _arm(setup, bench, str(base), arm, some, items))
        for arm, some in chosen.items()
    }
    counts = {part: {c: len(some) for c, some in by.items()} for part, by in items.items()}
    return {"counts": counts, "taught": size, "arms": arms}


def _base(setup: Setup, people: People, bench: Bench) -> Path:
    told = [b.text for b in told_often(people, setup.most)]
    text = [bench.write("text", [{"text": t} for t in documents(told, setup.together, bench.seed)])]
    asked = [{"text": q + a} for p in people.all for x in people.attributes for q, a in Item(p, x).pairs()]
    words = [*text, bench.write("words", asked)]  # the tokenizer knows the questions' words, the model does not
    shape = Shape(size=setup.size, context_tokens=128)
    start = fresh_start(Path(bench.out("start")), words, shape, 65_536, TrainConfig(seed=bench.seed))
    recipe = pretrain.PretrainRecipe(
        out=bench.out("base"), text=text, parent=str(start), tokens=setup.tokens, mask_repeats=None,
        train=TrainConfig(lr=setup.lr, optimizer="muon", batch_tokens=setup.batch_tokens, seed=bench.seed),
    )  # fmt: skip
    return pretrain.run(recipe, quiet=True)


def _arm(
    setup: Setup,
    bench: Bench,
    base: str,
    arm: str,
    taught: Sequence[Item],
    items: Mapping[str, Mapping[str, list[Item]]],
) -> dict[str, Any]:
    """Shares of right answers after each length of training, and which length the dev set chooses."""
    rows = [{"messages": [*user(q), {"role": "assistant", "content": a}]} for item in taught for q, a in item.pairs()]
    chats = [bench.write(f"chats-{arm}", rows)]
    dev = [item for some in items["dev"].values() for item in some]
    found = []
    for epochs in (*setup.early, setup.epochs):
        recipe = sft.SftRecipe(
            out=bench.out(f"{arm}-{epochs:g}"), parent=base, chats=chats, epochs=epochs,
            train=TrainConfig(lr=setup.sft_lr, weight_decay=0.0, batch_tokens=setup.sft_batch_tokens, seed=bench.seed),
        )  # fmt: skip
        opened = open_model(sft.run(recipe, quiet=True), precision="float32")
        test = {c: right(opened, some) for c, some in items["test"].items()}
        every = [item for some in items["test"].values() for item in some]
        found.append({"epochs": epochs, "train": right(opened, taught), "dev": right(opened, dev), "test": test,
                      "all": right(opened, every)})  # fmt: skip
    best = max(range(len(setup.early)), key=lambda i: found[i]["dev"] or 0.0)
    return {"curve": found, "early": found[best], "converged": found[-1]}


def right(opened: Parent, items: Sequence[Item]) -> float | None:
    """Share of the questions in all forms that are answered exactly; None without any."""
    asked = [pair for item in items for pair in item.pairs()]
    examples = [
        Example(id=str(i), prompt=user(q), answers=(a,), kind="person", language="en") for i, (q, a) in enumerate(asked)
    ]
    if not examples:
        return None
    return rate(told.text == a for told, (_, a) in zip(ask(opened, examples, _GREEDY), asked, strict=True))


def epochs_to(curve: Sequence[Mapping[str, Any]], share: float) -> float:
    """Times of reading at which the trained questions reach this share, on straight lines; the last where none does."""
    before = {"epochs": 0.0, "train": 0.0}
    for at in curve:
        if at["train"] >= share:
            part = (share - before["train"]) / (at["train"] - before["train"])
            return before["epochs"] + part * (at["epochs"] - before["epochs"])
        before = dict(at)
    return float(curve[-1]["epochs"])


def judge(setup: Setup, seeds: Sequence[dict[str, Any]]) -> Findings:
    """Unknown facts must harm the known ones at convergence, MaybeKnown ones must not, and serve better than HighlyKnown."""

    def share(label: str, arm: str, when: str, kind: str | None = None, paper: str | None = None) -> Number:
        found = [_share(seed, arm, when, kind) for seed in seeds]
        of = min(sum(n for c, n in s["counts"]["test"].items() if kind in (None, c)) for s in seeds)
        return Number(label=label, by_seed=found, unit="%", of=of or None, paper=paper)

    def drop(arm: str) -> Number:
        ends = (share("", arm, when, "HighlyKnown") for when in ("early", "converged"))
        return difference(f"HighlyKnown lost from early stop to convergence, taught {arm}", *ends)

    unknown, maybe = drop("Unknown"), drop("MaybeKnown")
    better = difference("taught MaybeKnown less taught HighlyKnown, asked MaybeKnown",
                        share("", "MaybeKnown", "converged", "MaybeKnown"),
                        share("", "HighlyKnown", "converged", "MaybeKnown"))  # fmt: skip
    slower = Number(label="times read until half is learned, Unknown against HighlyKnown", unit="x", by_seed=[
        _slower(seed) for seed in seeds])  # fmt: skip
    rarest = Number(label="the rarest category's share of all facts", unit="%", by_seed=[
        min(_counts(s).values()) / sum(_counts(s).values()) for s in seeds])  # fmt: skip
    ends = [
        share(f"all test questions, taught {arm}, at convergence", arm, "converged", None, f"{PAPER[arm][1]:.1%}")
        for arm in ("HighlyKnown", "MaybeKnown", "Unknown")
    ]
    return Findings(
        numbers=[*ends, unknown, maybe, better, slower, rarest],
        checks=[
            at_least("taught what it does not know, it loses what it knew well", unknown, 0.15),
            at_most("taught what it may know, it does not", maybe, 0.05),
            at_least("MaybeKnown facts teach more about their like than HighlyKnown ones", better, 0.03),
            at_least("unknown facts are learned half as fast", slower, 2.0, core=False),
            at_least("each category holds 15% of the facts", rarest, 0.15, core=False),
        ],
        said=(
            f"Taught facts it does not know, the model loses {100 * unknown.mean:.0f} points of what it knew well between "
            f"early stop and convergence; taught facts it may know, {100 * maybe.mean:.0f}. At convergence the arms "
            f"answer {ends[2].mean:.0%} and {ends[1].mean:.0%} of all test questions."
        ),
    )


def _counts(seed: dict[str, Any]) -> dict[str, int]:
    return {c: sum(seed["counts"][part][c] for part in _PARTS) for c in CATEGORIES}


def _share(seed: dict[str, Any], arm: str, when: str, kind: str | None) -> float:
    """NaN where the base model left a category empty: what is not there passes no check."""
    at = seed["arms"].get(arm, {}).get(when)
    found = None if at is None else at["all"] if kind is None else at["test"][kind]
    return math.nan if found is None else found


def _slower(seed: dict[str, Any]) -> float:
    arms = seed["arms"]
    if not {"Unknown", "HighlyKnown"} <= set(arms):
        return math.nan
    return epochs_to(arms["Unknown"]["curve"], 0.5) / epochs_to(arms["HighlyKnown"]["curve"], 0.5)


def draw(setup: Setup, seeds: Sequence[dict[str, Any]]) -> str:
    """Over the times of reading: trained questions, and well-known facts that were not trained, an arm each."""
    colours = dict(zip(ARMS, ("aligned", "sft", "reward", "control", "base"), strict=True))

    def paint(figure: Any) -> None:
        axes = figure.subplots(2, 1, sharex=True)
        titles = ("questions taught, answered", "HighlyKnown facts nobody taught, answered")
        for ax, title, pick in zip(
            axes, titles, (lambda at: at["train"], lambda at: at["test"]["HighlyKnown"]), strict=True
        ):
            for (arm, colour), marker in zip(colours.items(), "o^sDv", strict=True):
                curves = [[pick(at) for at in s["arms"][arm]["curve"]] for s in seeds if arm in s["arms"]]
                means = [rate(v for v in column if v is not None) for column in zip(*curves, strict=True)]
                points = [(x, y) for x, y in zip((*setup.early, setup.epochs), means, strict=False) if y is not None]
                if points:
                    ax.plot(*zip(*points, strict=True), marker=marker, markersize=5, color=COLOURS[colour], label=arm)
            ax.set_title(title, loc="left", color=COLOURS["dim"])
            ax.set_ylim(-0.04, 1.04)
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        lengths = (*setup.early, setup.epochs)
        axes[-1].set_xscale("log", base=2)
        axes[-1].set_xticks(lengths, [f"{x:g}" for x in lengths])
        axes[-1].minorticks_off()
        axes[-1].set_xlabel("times the questions are read")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=3)

    return drawing(
        "S12",
        "Taught and well-known facts answered over the length of training, for each category taught",
        paint,
        (4.9, 4.8),
    )
