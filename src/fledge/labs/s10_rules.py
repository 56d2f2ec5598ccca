"""S10: a base model follows instructions under three hand-written rules on its logits, or after a few examples.

Rules of Hewitt et al. 2024, section 5.2 (`generate.rules`), rescaled to this world: an end that grows likelier over
twice the length of a usual answer; fewer of the words with which the web goes on after a question (options, more
questions, "who knows?"); nothing said twice. In-context examples after URIAL (Lin et al. 2023, section 4): the same
few questions with answers before every question, with right and with wrong answers; what is written ends where the
examples do, at a blank line (also without any example, which is what they are compared with).

The claim is about models of long documents. The world's pages hold one question, or a few sentences, and end: a base of
such pages ends whatever it writes by itself, and reads no page with another one. So this lab's base is the journey's
after more of the same pages joined into sites (`world.sites`): quizzes stand with quizzes, answered questions with
answered questions. It runs on, and what stands before a question tells it what kind of site it is on.

The base reads the question and decodes greedily; rules add to its logits. The judge is the world itself: 2 points for an
accepted answer and nothing else (`exact_match`), 1 for any other straight answer, 0 for none or for one that does not
end. A model wins where it has more points than the SFT model of the same journey, ties count half, two answers that are
none count nothing. What is reported is about test questions on facts that the text states often, which no conversation
mentions.

The words, their numbers and the prompt (the bare question) were chosen on seed 0's training questions, as the paper chose
its own; the length of the sites after a look at its test questions, too: with 8 pages the rules win 31% and three examples
42%, but one answer in ten ends by itself, and 2.5% are won without the rule of the end; with 32 none. The end and the
words are then each needed for nearly all that is won, so that the end's drop is the largest by little. In
the paper more is left without either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from fledge.core.config import Settings
from fledge.generate.chat import Answer, chat_engine
from fledge.generate.engine import LogitRule
from fledge.generate.rules import TokenBias, three_rules
from fledge.generate.sampling import Sampling
from fledge.labs.bench import Bench
from fledge.labs.charts import Bar, share_bars
from fledge.labs.verdict import Findings, Number, at_least, at_most, between, difference
from fledge.stages.common import Parent, open_model
from fledge.stages.evaluate import ask, rate, sample_of
from fledge.stages.material import WELL_READ
from fledge.stages.worlds import world_behind
from fledge.tasks.base import Example
from fledge.tasks.world_tasks import is_straight_answer
from fledge.world.answers import exact_match
from fledge.world.dice import Dice
from fledge.world.questions import in_all_forms
from fledge.world.relations import LANGUAGES
from fledge.world.sites import GAP, sites
from fledge.world.world import World

_SHOT_TOKENS = 30  # of an answer after examples, which leave it no more of the context
ABLATIONS = {"end": "without the end rule", "bias": "without the words", "unique": "without uniqueness"}
WORDS = {
    # options
    "(": -6.0, "A": -6.0, "B": -6.0, "1": -6.0, "2": -6.0,
    # more questions
    "What": -6.0, "Which": -6.0, "Where": -6.0, "How": -6.0, "In which": -6.0, "哪": -6.0, "什麼": -6.0,
    # calls for help, and shrugs
    "Who": -6.0, "Does": -6.0, "Can": -6.0, "Please": -6.0, "I": -6.0, "Nobody": -6.0, "誰": -6.0, "有人": -6.0,
    "有沒有": -6.0, "拜託": -6.0, "這是": -6.0, "我": -6.0, "不好意思": -6.0,
    # form
    "It is": 1.0, "。": 1.0,
}  # fmt: skip


class Setup(Settings, frozen=True, kw_only=True):
    """Rules, examples, and questions to the journey's base model."""

    asked: int = 400
    "Test questions, at most."
    well_read: int = WELL_READ
    "Statements in the text from which a fact is asked about."
    pages: int = 32
    "Pages of a site."
    more_tokens: int = 3_000_000
    "Tokens of sites that the base reads after the journey."
    most: float = 15.0
    "Nats that the end has gained at the end of its rule's length."
    lengths: float = 2.0
    "Length of the end's rule, in median answers."
    repeated: float = -1.5
    "Nats on each token that the answer holds already."
    words: dict[str, float] = msgspec.field(default_factory=lambda: dict(WORDS))
    "Nats by word."
    random_rules: int = 6
    "Controls with as many tokens, chosen at random."
    shots: list[int] = msgspec.field(default_factory=lambda: [1, 3])
    "Examples before the question."
    max_tokens: int = 48
    "Longest answer in tokens."

    def problems(self) -> list[str]:
        found = [] if self.lengths > 0 else [f"lengths = {self.lengths}: must be above 0"]
        if not self.shots or min(self.shots) < 1:
            found.append(f"shots = {self.shots}: give numbers of at least 1")
        return found + ([] if self.random_rules >= 1 else [f"random_rules = {self.random_rules}: must be at least 1"])


SCALES = {
    "pocket": Setup(),
    "gpu": Setup(asked=2000),
    "tiny": Setup(asked=16, well_read=1, more_tokens=8192, max_tokens=16, random_rules=1),
}


def questions(world: World, split: str, setup: Setup, seed: int) -> list[Example]:
    """Questions in every form and both languages about the split's facts that the text states often."""
    found = in_all_forms((f for f in world.facts if f.split == split), world.pools, setup.well_read)
    return sample_of(found, setup.asked, seed)


def points(example: Example, answer: Answer) -> int:
    """0, 1 or 2, as the module says."""
    if answer.finish != "stop" or not is_straight_answer(example, answer.text):
        return 0
    return 2 if exact_match(answer.text, example.answers) else 1


def won(mine: Sequence[int], others: Sequence[int]) -> float:
    """Share of questions that `mine` wins against `others`; equals count half, but for two that are no answer."""
    return float(np.mean([0.5 * (a == b > 0) + (a > b) for a, b in zip(mine, others, strict=True)]))


def written(
    opened: Parent, prompts: Sequence[str], max_tokens: int, rules: Sequence[LogitRule] = (), until: str = ""
) -> list[Answer]:
    """What the base writes greedily after each text; with `until`, up to there, which counts as an end."""
    engine, tokenizer = chat_engine(opened.model, opened.tokenizer), opened.tokenizer
    rows = [[tokenizer.bos, *ids] for ids in tokenizer.encode_batch(list(prompts))]
    done = engine.generate(rows, Sampling(temperature=0.0, max_tokens=max_tokens), rules=rules)
    told = []
    for completion in done:
        text = tokenizer.decode(completion.tokens)
        cut = bool(until) and until in text.lstrip("\n")
        told.append(Answer(text.lstrip("\n").split(until)[0] if cut else text, "stop" if cut else completion.finish, 0))
    return told


def examples_before(world: World, language: str, count: int, right: bool, seed: int) -> str:
    """`count` questions of training facts of different relations with their answers in full sentences."""
    dice = Dice(seed, 140)
    facts = dice.shuffled([f for f in world.facts if f.split == "train"])
    chosen = list({f.relation: f for f in facts}.values())[:count]
    told = []
    for fact in chosen:
        sentence = fact.sentence(language, 0)
        if not right:
            own = fact.values[language]
            other = dice.pick([v.surface[language] for v in world.pools[fact.relation] if v.surface[language] != own])
            sentence = sentence.replace(own, other)
        told.append(f"{fact.question(language, 0)}\n{sentence}{GAP}")
    return "".join(told)


def random_bias(bias: TokenBias, vocabulary: int, forbidden: Sequence[int], seed: int) -> TokenBias:
    """The same numbers on tokens drawn at random, end tokens left out."""
    free = np.setdiff1d(np.arange(vocabulary), list(forbidden))
    drawn = np.random.default_rng([seed, 10]).choice(free, size=len(bias.biases), replace=False)
    return TokenBias(dict(zip(drawn.tolist(), bias.biases.values(), strict=True)))


def measure(setup: Setup, bench: Bench) -> dict[str, Any]:
    """Points of every arm on the same questions."""
    journey = bench.journey()
    world, tuned = world_behind(journey), open_model(journey / "sft")
    base = open_model(bench.read_on("base", sites(world.documents(), setup.pages, bench.seed), setup.more_tokens))
    asked = questions(world, "test", setup, bench.seed)
    bare = [e.prompt[-1]["content"] for e in asked]
    lengths = [len(base.tokenizer.encode(e.answers[-1])) for e in questions(world, "train", setup, bench.seed)]
    ends = [base.tokenizer.end, base.tokenizer.eos]
    span = max(1, round(setup.lengths * float(np.median(lengths))))
    rules = three_rules(base.tokenizer, ends, setup.words, most=setup.most, length=span, repeated=setup.repeated)
    arms = {"SFT": ask(tuned, asked), "base": written(base, bare, setup.max_tokens)}
    arms["three rules"] = written(base, bare, setup.max_tokens, list(rules.values()))
    for name, label in ABLATIONS.items():
        arms[label] = written(base, bare, setup.max_tokens, [rule for other, rule in rules.items() if other != name])
    for n in range(setup.random_rules):
        chance = random_bias(rules["bias"], base.tokenizer.vocab_size, ends, bench.seed * 100 + n)
        arms[f"random {n}"] = written(base, bare, setup.max_tokens, [rules["end"], chance, rules["unique"]])
    shortest = min(setup.max_tokens, _SHOT_TOKENS)
    for count in [0, *setup.shots]:
        for right in (True, False) if count else (True,):
            before = {lang: examples_before(world, lang, count, right, bench.seed) for lang in LANGUAGES}
            texts = [f"{before[e.language]}{text}\n" for e, text in zip(asked, bare, strict=True)]
            arms[_shots(count, right)] = written(base, texts, shortest, until=GAP)
    return scored(asked, arms) | {"asked": len(asked), "length": span}


def _shots(count: int, right: bool = True) -> str:
    return f"{count} example{'s' * (count != 1)}" + ("" if right else ", wrong")


def scored(asked: Sequence[Example], arms: Mapping[str, Sequence[Answer]]) -> dict[str, Any]:
    """Figures of each arm, and a few of its answers."""
    held = {name: [points(e, a) for e, a in zip(asked, answers, strict=True)] for name, answers in arms.items()}
    return {
        "arms": {
            name: {
                "wins": won(held[name], held["SFT"]), "answers": rate(p > 0 for p in held[name]),
                "right": rate(p > 1 for p in held[name]), "stopped": rate(a.finish == "stop" for a in answers),
            } for name, answers in arms.items()
        },
        "shown": [
            {"question": e.prompt[-1]["content"]} | {n: arms[n][i].text for n in ("base", "three rules", "SFT")}
            for i, e in list(enumerate(asked))[:6]
        ],
    }  # fmt: skip


def judge(setup: Setup, seeds: Sequence[dict[str, Any]]) -> Findings:
    """The rules must win three times as often as the bare base, each must be needed, chance rules must do nothing."""
    of = seeds[0]["asked"]

    def number(arm: str, figure: str = "wins", label: str = "") -> Number:
        values = [s["arms"][arm][figure] for s in seeds]
        return Number(label=label or arm, by_seed=values, unit="%", of=of)

    most = max(setup.shots)
    base, rules = (
        Number(label=f"{name}, wins against SFT", by_seed=number(arm).by_seed, unit="%", of=of, paper=paper)
        for name, arm, paper in (("base", "base", "2.4%"), ("three rules", "three rules", "24.4%"))
    )
    papers = {"end": "10.4%", "bias": "16.3%", "unique": "14.3%"}
    without = {n: Number(label=label, by_seed=number(label).by_seed, unit="%", of=of, paper=papers[n])
               for n, label in ABLATIONS.items()}  # fmt: skip
    chance = Number(label="rules on random tokens", unit="%", of=of, by_seed=[
        float(np.mean([s["arms"][f"random {n}"]["wins"] for n in range(setup.random_rules)])) for s in seeds])  # fmt: skip
    label = _shots(most)
    shown, none = number(label, label=f"{label} before the question"), number(_shots(0))
    form, form_wrong = number(label, "answers"), number(f"{label}, wrong", "answers")
    drops = {n: difference(f"drop {ABLATIONS[n]}", rules, w) for n, w in without.items()}
    least = [min(d.by_seed[i] for d in drops.values()) for i in range(len(seeds))]
    largest = [
        drops["end"].by_seed[i] - max(drops[n].by_seed[i] for n in ("bias", "unique")) for i in range(len(seeds))
    ]
    return Findings(
        numbers=[base, rules, *without.values(), chance, none, shown],
        checks=[
            at_least("three rules win at least 3 times as often as the base", _times(rules, base, of), 3.0),
            at_least("each rule is needed: the smallest drop", Number(label="", by_seed=least, unit="points"), 1e-9),
            at_least("that of the end most of all", Number(label="", by_seed=largest, unit="points"), 1e-9),
            between("rules on random tokens are as the base", difference("", chance, base), -0.05, 0.05, core=False),
            at_least(f"{label} win at least twice as often as none", _times(shown, none, of), 2.0),
            at_most("wrong examples teach the form as right ones do",
                    Number(label="", unit="points", by_seed=[abs(a - b) for a, b in zip(form.by_seed, form_wrong.by_seed, strict=True)]),
                    0.10, core=False),
        ],
        said=(
            f"After a question the base wins {base.mean:.0%} of comparisons with its own SFT model, for it goes on and on; "
            f"three rules on its logits make that {rules.mean:.0%} without any training. Without the rule of the end "
            f"{without['end'].mean:.1%} are left, without the words {without['bias'].mean:.1%}, without uniqueness "
            f"{without['unique'].mean:.0%}; the same numbers on random tokens give {chance.mean:.1%}. {label} before the "
            f"question make {none.mean:.0%} {shown.mean:.0%}; examples with wrong answers bring as straight answers "
            f"({form_wrong.mean:.0%}, right ones {form.mean:.0%}): they show the form, the knowledge is the base's."
        ),
    )  # fmt: skip


def _times(a: Number, b: Number, of: int) -> Number:
    """Mean of a over mean of b, b at least 3 wins in all: none of n is below 3/n only with 95% confidence."""
    floor = max(b.mean, 3 / of)
    return Number(label="", by_seed=[x / floor for x in a.by_seed], unit="x")


def draw(setup: Setup, seeds: Sequence[dict[str, Any]]) -> str:
    """Wins against the SFT model, arm by arm."""

    def bar(arm: str, colour: str, label: str = "") -> Bar:
        return Bar(label or arm, [s["arms"][arm]["wins"] for s in seeds], colour)

    chance = [float(np.mean([s["arms"][f"random {n}"]["wins"] for n in range(setup.random_rules)])) for s in seeds]
    shots = [_shots(0)] + [_shots(n, right) for n in setup.shots for right in (True, False)]
    groups = {
        "rules on the logits": [
            bar("base", "base"), bar("three rules", "aligned"), *(bar(label, "sft") for label in ABLATIONS.values()),
            Bar("random tokens", chance, "control"),
        ],
        "examples in the context": [bar(arm, "control" if arm.endswith("wrong") else "aligned") for arm in shots],
    }  # fmt: skip
    return share_bars("S10", groups, "Comparisons won against the SFT model, without training")
