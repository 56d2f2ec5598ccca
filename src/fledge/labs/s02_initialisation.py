"""S2: a few examples teach a pretrained model what is asked of it, and random weights only what was answered.

The same n questions and answers of the embedded world are learned from its base model and from random weights of the same
shape, and both are asked about people and places that no example mentions. The first four examples ask for highest
mountains, of four countries: what does the model say of the mountains of other countries, and of the other facts of these
four (the traps: "the highest mountain of Oru" is known, "the longest river of Oru" is asked)? A picture of it:
from random weights the rule learned is "mountain → Mount Jade". Hu et al. 2021 (table 2) is the source of the last part:
LoRA beside full training on 256 examples; all kinds of adapters are compared by `fledge adapters`.

Arms are alike in examples, order, batches and steps, at most ten epochs of more than 32 examples (fewer are read 24 times,
a step each); 1,024 examples, which show no more than 256 do, are left to the larger scale. Each arm has its own peak
learning rate, tuned on seed 0, and so were three choices that the first check depends on, made after looking at it: the
first examples are of facts that the text states most often, in English, and their relation is asked about in English.
The base reads longer than a quick journey's (`Bench.longer_base`); from that one, full training answered 69%.

The base is not safe from the traps: after four examples that all ask for mountains it answers a question for a river of
these countries with their mountain, too, and unlearns that only as other relations are shown (40% of the traps after 16
examples, 10% after 256). LoRA needs small batches and about ten times the rate of full training: with four times larger
batches, a quarter of the steps, it stayed 80 points behind at 1.7e-3. What it forgets less depends on the rates: on seed
0, (answers, bits per byte forgotten) were (88%, .06), (88%, .09), (86%, .14) for full training at 1e-4, 1.4e-4, 2e-4 and
(82%, .08), (88%, .09), (91%, .11) for LoRA at 1.2e-3, 1.4e-3, 1.7e-3. At these rates there is little between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from fledge.core.adapters import AdapterConfig
from fledge.core.checkpoint import load_checkpoint
from fledge.core.config import Settings, TrainConfig
from fledge.core.log import read_jsonl
from fledge.core.model import Transformer
from fledge.generate.sampling import Sampling
from fledge.labs.adapters import merge_gap
from fledge.labs.bench import Bench
from fledge.labs.verdict import Findings, Number, at_least, at_most, difference
from fledge.stages import pretrain, sft
from fledge.stages.charts import COLOURS
from fledge.stages.charts import draw as drawing
from fledge.stages.common import open_model
from fledge.stages.evaluate import ask, bits_per_byte, rate, sample_of
from fledge.stages.material import WELL_READ
from fledge.stages.worlds import world_behind
from fledge.tasks.base import Example
from fledge.world.answers import exact_match, named
from fledge.world.chats import turns
from fledge.world.dice import Dice
from fledge.world.facts import Fact
from fledge.world.questions import FORMS, in_all_forms
from fledge.world.relations import LANGUAGES
from fledge.world.world import World

STARTS = ("base", "scratch")
ASKED_FIRST = "highest_mountain"
_LANGUAGE = "en"  # of the first examples, and of the questions about their relation and their countries
_FIRST, _WORDINGS = 4, 3


class Setup(Settings, frozen=True, kw_only=True):
    """How many examples are learned, and how."""

    examples: tuple[int, ...] = (1, 4, 16, 64, 256)
    "Numbers of examples; those of a smaller number are among those of a larger one."
    adapters_at: int = 256
    "Number of examples at which LoRA is compared with full training; one of examples."
    ranks: tuple[int, ...] = (1, 8)
    "Ranks of LoRA."
    epochs: float = 10.0
    "Times the examples are read."
    least_reads: float = 24.0
    "Times 32 or fewer examples are read: each time is one step."
    lr: float = 1.4e-4
    "Peak learning rate from the base model."
    lr_scratch: float = 1e-3
    "The same from random weights."
    lr_lora: float = 1.3e-3
    "The same of LoRA, for Muon."
    more_tokens: int = 3_000_000
    "Tokens of the world's pages that the base reads after the journey."
    batch_tokens: int = 256
    "Positions of an optimiser step."
    asked: int = 300
    "Test questions of each kind, at most."
    well_read: int = WELL_READ
    "Statements in the text from which a fact is asked about."
    max_tokens: int = 48
    "Longest answer in tokens."

    def problems(self) -> list[str]:
        found = []
        if not self.examples or min(self.examples) < 1 or list(self.examples) != sorted(set(self.examples)):
            found.append(f"examples = {self.examples}: must rise, from 1 or more")
        elif self.examples[0] > _FIRST:
            found.append(f"examples = {self.examples}: the first must be at most {_FIRST}, copies are counted there")
        if self.adapters_at not in self.examples:
            found.append(f"adapters_at = {self.adapters_at}: must be one of examples")
        return found

    def reads(self, count: int) -> float:
        """Times `count` examples are read: enough steps also where there are few of them."""
        return max(self.epochs, self.least_reads * min(1.0, 32 / count))


SCALES = {
    "pocket": Setup(),
    "gpu": Setup(examples=(1, 4, 16, 64, 256, 1024), asked=1000),
    "tiny": Setup(more_tokens=8192, examples=(1, 8), adapters_at=8, ranks=(1,), least_reads=2.0, epochs=1.0, asked=8, well_read=1, max_tokens=8),
}  # fmt: skip


class Taught(NamedTuple):
    """A question with its answer, and the fact behind it."""

    fact: Fact
    language: str
    question: str
    answer: str


def examples(world: World, most: int, seed: int) -> list[Taught]:
    """Up to `most` different ones about train entities: mountains of the four best-known countries, then all else, mixed.

    Nothing else is taught about these four: their other facts are the traps. Best known, for an example of a fact that
    the base model does not know teaches it to answer what it does not know.
    """
    dice = Dice(seed, 120)
    facts = dice.shuffled([f for f in world.facts if f.split == "train"])
    first = sorted((f for f in facts if f.relation == ASKED_FIRST), key=lambda f: -min(f.count.values()))[:_FIRST]
    reserved = {f.entity for f in first}
    others = [f for f in facts if f.entity not in reserved]
    kinds = [
        (f, lang, form, w) for f in others for lang in LANGUAGES for form in range(FORMS) for w in range(_WORDINGS)
    ]
    chosen = [(f, _LANGUAGE, dice.below(FORMS), 0) for f in first] + dice.shuffled(kinds)
    return [Taught(f, lang, f.question(lang, form), f.sentence(lang, w)) for f, lang, form, w in chosen[:most]]


def questions(world: World, taught: Sequence[Taught], setup: Setup, seed: int) -> dict[str, list[Example]]:
    """{"same": mountains of unseen countries, "trap": other facts of the first countries, "all": facts never taught}.

    In every form, of facts that the text states often: "all" in both languages, the others in that of the examples.
    """
    reserved = {t.fact.entity for t in taught[:_FIRST]}

    def every(facts: Sequence[Fact], languages: Sequence[str] = (_LANGUAGE,)) -> list[Example]:
        return sample_of(in_all_forms(facts, world.pools, setup.well_read, languages), setup.asked, seed)

    unseen = [f for f in world.facts if f.split == "test"]
    return {
        "same": every([f for f in unseen if f.relation == ASKED_FIRST]),
        "trap": every([f for f in world.facts if f.entity in reserved and f.relation != ASKED_FIRST]),
        "all": every(unseen, LANGUAGES),
    }


def copied(example: Example, answer: str, taught: Sequence[Taught]) -> bool:
    """Whether a wrong answer names a value that an example gave, whatever the relation, in either language."""
    values = tuple({t.fact.values[lang] for t in taught for lang in LANGUAGES} - {example.meta["value"]})
    return bool(named(answer, values)) and not exact_match(answer, example.answers)


def distance(model: Transformer, start: Transformer) -> float:
    """‖θ − θ0‖ / ‖θ0‖ over all parameters."""
    pairs = list(zip(model.parameters(), start.parameters(), strict=True))
    moved = sum(float((a - b).detach().float().square().sum()) for a, b in pairs)
    return (moved / sum(float(b.detach().float().square().sum()) for _, b in pairs)) ** 0.5


def measure(setup: Setup, bench: Bench) -> dict[str, Any]:
    """Every number of examples from both starts, then LoRA; each kept as it ends."""
    world, parent = world_behind(bench.journey()), bench.longer_base(setup.more_tokens)
    base = open_model(parent)
    texts = pretrain.heldout_texts(parent)
    rows = examples(world, max(setup.examples), bench.seed)
    asked = questions(world, rows, setup, bench.seed)
    random = Transformer(base.model.config).initialise(bench.seed)
    greedy = Sampling(temperature=0.0, max_tokens=setup.max_tokens)

    def arm(name: str, count: int, lr: float, adapter: AdapterConfig | None = None) -> dict[str, Any]:
        some, fresh = rows[:count], name.startswith("scratch")
        chats = [{"messages": turns(t.question, t.answer)} for t in some]
        recipe = sft.SftRecipe(
            out=bench.out(name), parent=str(parent), chats=[bench.write(f"{name}-chats", chats)],
            epochs=setup.reads(count), fresh=fresh, adapter=adapter,
            train=TrainConfig(lr=lr, weight_decay=0.0, batch_tokens=setup.batch_tokens, seed=bench.seed,
                              optimizer="muon" if adapter else "adamw"),
        )  # fmt: skip
        path = sft.run(recipe, quiet=True)
        opened = open_model(path)
        found: dict[str, Any] = {"examples": len(some), "steps": len(read_jsonl(bench.folder / name / "metrics.jsonl"))}
        for kind, some_asked in asked.items():
            told = [a.text for a in ask(opened, some_asked, greedy)]
            found[kind] = {
                "right": rate(exact_match(text, e.answers) for e, text in zip(some_asked, told, strict=True)),
                "copied": rate(copied(e, text, some) for e, text in zip(some_asked, told, strict=True)),
                "shown": [[e.prompt[-1]["content"], text] for e, text in zip(some_asked[:2], told, strict=False)],
            }
        found["distance"] = distance(opened.model, random if fresh else base.model)
        found["bits_per_byte"] = bits_per_byte(opened, texts)
        if adapter:
            tensors = load_checkpoint(path).model_tensors()
            found["trained"] = sum(t.numel() for t in tensors.values()) / base.model.config.parameter_count()
            found["merge_gap"] = merge_gap(path, texts)
        return found

    def kept(name: str, *how: Any) -> dict[str, Any]:
        return bench.keep(name, lambda: arm(name, *how))

    lr = {"base": setup.lr, "scratch": setup.lr_scratch}
    arms = {start: [kept(f"{start}-{n}", n, lr[start]) for n in setup.examples] for start in STARTS}
    lora = {
        f"lora-{r}": kept(f"lora-{r}", setup.adapters_at, setup.lr_lora,
                          AdapterConfig(kind="lora", rank=r, targets=["q", "k", "v", "o", "down"]))
        for r in setup.ranks
    }  # fmt: skip
    counts = {kind: len(some) for kind, some in asked.items()}
    return {**arms, "lora": lora, "asked": counts, "bits_per_byte": bits_per_byte(base, texts)}


def judge(setup: Setup, seeds: Sequence[dict[str, Any]]) -> Findings:
    """Copies after four examples or fewer, right answers after 256; LoRA beside full training."""
    few = [i for i, n in enumerate(setup.examples) if n <= _FIRST]
    at = setup.examples.index(setup.adapters_at)

    def copies(label: str, start: str, kind: str = "same") -> Number:
        by_seed = [rate(seed[start][i][kind]["copied"] for i in few) for seed in seeds]
        return Number(label=label, by_seed=by_seed, unit="%", of=seeds[0]["asked"][kind])

    def right(label: str, by_seed: list[float]) -> Number:
        return Number(label=label, by_seed=by_seed, unit="%", of=seeds[0]["asked"]["all"])

    copy = {s: copies(f"a taught answer for another country's mountain, {s}", s) for s in STARTS}
    traps = {s: copies(f"a taught answer to a trap, {s}", s, "trap") for s in STARTS}
    known = {s: right(f"right after {setup.adapters_at} examples, {s}", [x[s][at]["all"]["right"] for x in seeds])
             for s in STARTS}  # fmt: skip
    best = f"lora-{max(setup.ranks)}"
    lora = right(f"right with {best}", [x["lora"][best]["all"]["right"] for x in seeds])
    less = difference("full training less LoRA", known["base"], lora)
    lost = [
        Number(label=f"forgotten by {name}", by_seed=[arm(x)["bits_per_byte"] - x["bits_per_byte"] for x in seeds], unit="bits")
        for name, arm in (("full training", lambda x: x["base"][at]), ("LoRA", lambda x: x["lora"][best]))
    ]  # fmt: skip
    trained = Number(label="parameters LoRA trains", by_seed=[x["lora"][best]["trained"] for x in seeds], unit="%")
    gap = Number(label="largest difference of a logit, merged against beside",
                 by_seed=[max(a["merge_gap"] for a in x["lora"].values()) for x in seeds])  # fmt: skip
    return Findings(
        numbers=[*copy.values(), *traps.values(), *known.values(), lora, *lost[1:]],
        checks=[
            at_least("from random weights, 1 to 4 examples: a taught answer for every mountain", copy["scratch"], 0.80),
            at_most("from the base model: seldom", copy["base"], 0.30),
            at_least(
                f"{setup.adapters_at} examples: the base model answers what was never taught", known["base"], 0.60
            ),
            at_most("random weights cannot", known["scratch"], 0.10),
            at_most("LoRA answers within 5 points of full training", less, 0.05, core=False),
            at_most("with 5% of the parameters", trained, 0.05, core=False),
            at_most("and forgets less", difference("", lost[1], lost[0], "bits"), 0.0, core=False),
            at_most("merged LoRA gives the same logits", gap, 1e-5, core=False),
        ],
        said=(
            f"Taught the mountains of at most four countries, random weights give one of those names for "
            f"{copy['scratch'].mean:.0%} of the other countries' (and to {traps['scratch'].mean:.0%} of the questions for "
            f"rivers and such of the four); the base model does for {copy['base'].mean:.0%} (and to {traps['base'].mean:.0%}: "
            f"that more than mountains is asked for, no example said). After {setup.adapters_at} examples it answers "
            f"{known['base'].mean:.0%} of what no example said, random weights {known['scratch'].mean:.0%}: examples show what "
            f"is wanted, the knowledge is the base model's. LoRA, with {trained.mean:.1%} of the parameters, answers "
            f"{lora.mean:.0%} and costs {lost[1].mean:.3f} bits per byte of the old text, full training {lost[0].mean:.3f}."
        ),
    )


_PANELS = (  # (title, kind of question, what)
    ("a taught answer for another country's mountain", "same", "copied"),
    ("a taught answer to a trap: another fact of a taught country", "trap", "copied"),
    ("right about what no example mentions", "all", "right"),
)


def draw(setup: Setup, seeds: Sequence[dict[str, Any]]) -> str:
    """Copies and right answers over the number of examples, from both starts."""
    colours = {"base": COLOURS["base"], "scratch": COLOURS["control"]}

    def paint(figure: Any) -> None:
        axes = figure.subplots(len(_PANELS), 1, sharex=True)
        for ax, (title, kind, what) in zip(axes, _PANELS, strict=True):
            for start, marker, dash in (("base", "o", "-"), ("scratch", "s", (0, (1.5, 1.5)))):
                by_seed = [[found[kind][what] for found in seed[start]] for seed in seeds]
                means = [sum(column) / len(column) for column in zip(*by_seed, strict=True)]
                for values in by_seed:
                    ax.plot(setup.examples, values, ".", color=colours[start], markersize=3, alpha=0.6)
                ax.plot(setup.examples, means, marker=marker, linestyle=dash, color=colours[start], markersize=5,
                        label={"base": "from the base model", "scratch": "from random weights"}[start])  # fmt: skip
            ax.set_title(title, loc="left", color=COLOURS["dim"])
            ax.set_ylim(-0.04, 1.04)
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        for name, marker in zip((f"lora-{r}" for r in setup.ranks), "v^D", strict=False):
            mean = sum(seed["lora"][name]["all"]["right"] for seed in seeds) / len(seeds)
            axes[-1].plot([setup.adapters_at], [mean], marker, color=COLOURS["reward"], markersize=6, linestyle="",
                          label=name.replace("lora-", "LoRA, rank "))  # fmt: skip
        axes[-1].set_xscale("log", base=4)
        axes[-1].set_xticks(setup.examples, [f"{n:,}" for n in setup.examples])
        axes[-1].minorticks_off()
        axes[-1].set_xlabel("examples")
        figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower left", ncols=2)

    at = setup.examples.index(setup.adapters_at)
    means = {s: sum(seed[s][at]["all"]["right"] for seed in seeds) / len(seeds) for s in STARTS}
    alt = f"Right after {setup.adapters_at} examples: {means['base']:.0%} from the base model, {means['scratch']:.0%} from random weights"
    return drawing("S2", alt, paint, (4.9, 5.6))
