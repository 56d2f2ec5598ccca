"""S13: embers of autoregression: a shift cipher is decoded as well as its shift was frequent in the pretraining text.

McCoy et al. 2023 ask models that learned from the web to undo rot-n: rot-13, which people write, comes out, rot-12, which is
no harder, does not; and sentences that are unlikely come out worse. Here the text is made, so its frequencies are known:
lines such as "rot-13: fgnl urer -> stay here", read character by character, and 20% plain sentences.

    skewed     rot-13 in 55% of the lines, rot-1 and rot-3 in 15% each, the other 22 share 15%
    seven      the same with 7 and 13 exchanged: rot-13 is its own inverse, which no frequency explains
    uniform    all 25 shifts equally often (the control): what is left of a difference is the shift's own

The other 22 shares fall as 1/rank, in an order drawn with the seed: were they all equal, accuracies that differ at all would
hold their rank correlation with the frequency below 0.57. Accuracy is exact, greedy, of a hundred sentences that are the same
for all shifts: of words that the text is made of, and of the same letters in another order. A model that goes on reading
learns all shifts in the end, so training stops where the frequent ones have been learned; it is read in legs of fresh
lines, the learning rate constant but for the last one. The uniform arm goes on for as many legs again: at the moment that the
skewed arm ends it can undo no shift at all. Tuned on seed 0: tokens, learning rate, legs.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fledge.core.config import Settings, TrainConfig
from fledge.core.model import Shape
from fledge.generate.chat import chat_engine, continue_text
from fledge.generate.sampling import Sampling
from fledge.generate.scoring import Asked, score
from fledge.labs.bench import Bench
from fledge.labs.verdict import Findings, Number, at_least, at_most, difference
from fledge.probe.memorise import edit_distance
from fledge.stages import pretrain
from fledge.stages.charts import COLOURS
from fledge.stages.charts import draw as drawing
from fledge.stages.common import Parent, open_model
from fledge.text.tokenizer import SPECIALS

SHIFTS = range(1, 26)
FREQUENT = (13, 1, 3)
ARMS = ("skewed", "uniform", "seven")
_PAPER = {"GPT-4": {1: 0.82, 3: 0.76, 13: 0.50}, "GPT-3.5": {13: 0.21}}  # counted in the released answers
LEXICON = tuple(
    """able about above after again air all also animal answer any apple arm ask baby back bad bag ball bank bean bear beat bed
    bell best big bird bite black blue boat body bone book born both box boy bread bring brown build burn busy call came can
    car care carry cat catch chair child city class clay clean clear clock close cloud coal coat cold come cook cool copy corn
    count cow cross crowd cry cup cut dark day deep desk did dig dirt dog door down draw dream dress drink drive drop dry duck
    dust each ear early earth east easy eat egg empty end enjoy enter even every eye face fair fall farm fast fat feed feel
    feet few field fight fill find fine fire fish five flag flat floor flow fly fold food foot for forest four fox free fresh
    friend frog from fruit full game garden gave get gift girl give glad glass goat gold good grass gray great green ground
    group grow half hand happy hard hat have hay head hear heart heavy help her here hide high hill his hit hold home hope
    horse hot hour house how hunt ice inch iron job join jump keep key kind king kite know lake lamp land large last late
    laugh law lazy lead leaf learn left leg lemon less let life lift light like line lion list live long look lost loud love
    low lunch made mail make man many map mark meat meet milk mind mine miss moon more most mouse much must nail name near
    neck need nest never new next nice night nine north nose note now oak ocean off often oil old once one open orange our
    out owl own page paint park part path pay pen pick pig pin pink""".split()
)


class Setup(Settings, frozen=True, kw_only=True):
    """How much is read, by what, and how many sentences are asked."""

    tokens: int = 2_400_000
    "Characters each arm reads, the uniform one more, in legs of equal length."
    legs: int = 4
    "Points of the learning curve."
    uniform_legs: int = 8
    "Legs of the uniform arm: with no frequent shift to begin with it learns later, and what knows nothing has no spread."
    size: str = "tiny"
    "Model size."
    lr: float = 4e-3
    "Peak learning rate."
    batch_tokens: int = 2048
    "Characters of an optimiser step."
    plain: float = 0.2
    "Share of the lines that are a sentence and nothing else."
    sentences: int = 100
    "Sentences of each kind that are asked with every shift."

    def problems(self) -> list[str]:
        found = [f"legs = {self.legs}: must be at least 1, uniform_legs as many"] * (
            not 1 <= self.legs <= self.uniform_legs
        )
        return found + [f"plain = {self.plain}: must be in [0, 1)"] * (not 0 <= self.plain < 1)


SCALES = {
    "pocket": Setup(),
    "gpu": Setup(size="mini", tokens=40_000_000, batch_tokens=16_384, sentences=500),
    "tiny": Setup(tokens=8_000, legs=2, uniform_legs=3, batch_tokens=512, sentences=2),
}


def shift(text: str, by: int) -> str:
    """Each small letter moved `by` places on in the alphabet, z before a; the rest as it is."""
    letters, by = string.ascii_lowercase, by % 26
    return text.translate(str.maketrans(letters, letters[by:] + letters[:by]))


def shares(arm: str, seed: int) -> dict[int, float]:
    """The share of each shift among the ciphers of an arm."""
    if arm == "uniform":
        return dict.fromkeys(SHIFTS, 1 / len(SHIFTS))
    rare = np.random.default_rng([seed, 13]).permutation([n for n in SHIFTS if n not in FREQUENT])
    falling = 1 / np.arange(1, len(rare) + 1)
    found = {13: 0.55, 1: 0.15, 3: 0.15} | dict(
        zip(rare.tolist(), (0.15 * falling / falling.sum()).tolist(), strict=True)
    )
    if arm == "seven":
        found[7], found[13] = found[13], found[7]
    return found


class Writer:
    """Sentences, ciphers and lines, from one seed."""

    def __init__(self, seed: int, part: int):
        self.dice = np.random.default_rng([seed, part])

    def sentences(self, count: int) -> list[str]:
        """Two to four words of the lexicon each."""
        return [" ".join(self.dice.choice(LEXICON, size=n)) for n in self.dice.integers(2, 5, size=count)]

    def unlikely(self, like: Sequence[str]) -> list[str]:
        """The same letters in words of the same lengths, each text's letters in a random order."""

        def mixed(text: str) -> str:
            letters = iter(self.dice.permutation([c for c in text if c != " "]))
            return "".join(" " if c == " " else str(next(letters)) for c in text)

        return [mixed(text) for text in like]

    def lines(self, characters: int, frequency: Mapping[int, float], plain: float) -> list[str]:
        """Lines of this many characters in all, the ends of documents (two tokens each) included."""
        found, left, shifts = [], characters, list(frequency)
        while left > 0:
            for text in self.sentences(1000):
                n = 0 if self.dice.random() < plain else int(self.dice.choice(shifts, p=list(frequency.values())))
                found.append(f"{asked(text, n)} {text}" if n else text)
                left -= len(found[-1]) + 2
                if left <= 0:
                    break
        return found


def asked(text: str, n: int) -> str:
    """What a model is to go on from, a space and the text being the answer."""
    return f"rot-{n}: {shift(text, n)} ->"


def measure(setup: Setup, bench: Bench) -> dict[str, Any]:
    """Each arm leg by leg; the last model is asked in full."""
    likely = Writer(bench.seed, 1).sentences(setup.sentences)
    tests = {"likely": likely, "unlikely": Writer(bench.seed, 2).unlikely(likely)}
    return {arm: _arm(setup, bench, arm, tests) for arm in ARMS}


def _arm(setup: Setup, bench: Bench, arm: str, tests: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    frequency, parent, curve = shares(arm, bench.seed), None, []
    legs = setup.uniform_legs if arm == "uniform" else setup.legs
    for leg in range(legs):
        name, last = f"{arm}-{leg}", leg == legs - 1
        text = Writer(bench.seed, 10 + leg).lines(setup.tokens // setup.legs, frequency, setup.plain)
        recipe = pretrain.PretrainRecipe(
            out=bench.out(name), text=[bench.write(f"{name}-text", [{"text": line} for line in text])], parent=parent,
            tokens=setup.tokens // setup.legs, vocab_size=256 + len(SPECIALS), mask_repeats=None,
            model=Shape() if parent else Shape(size=setup.size, context_tokens=128),
            train=TrainConfig(
                lr=setup.lr, optimizer="muon", batch_tokens=setup.batch_tokens, seed=bench.seed,
                schedule="cosine" if last else "constant",
            ),
        )  # fmt: skip
        parent = str(pretrain.run(recipe, quiet=True))
        opened = open_model(parent, precision="float32")
        curve.append(bench.keep(name, lambda opened=opened: accuracies(opened, tests["likely"])))
    return {
        "shares": [frequency[n] for n in SHIFTS],
        "curve": curve,
        "likely": curve[-1],
        "unlikely": bench.keep(f"{arm}-unlikely", lambda: accuracies(opened, tests["unlikely"])),
        "answers": {
            kind: bench.keep(f"{arm}-{kind}-answers", lambda texts=texts: told(opened, texts))
            for kind, texts in tests.items()
        },
    }


def accuracies(opened: Parent, texts: Sequence[str]) -> list[float]:
    """Of each shift, the share of texts that greedy decoding gives back, the end included."""
    tokenizer = opened.tokenizer
    prompts = tokenizer.encode_batch([asked(text, n) for n in SHIFTS for text in texts])
    answers = [[*ids, tokenizer.eos] for ids in tokenizer.encode_batch([f" {text}" for text in texts])] * len(SHIFTS)
    requests = [Asked([tokenizer.bos, *prompt], answer) for prompt, answer in zip(prompts, answers, strict=True)]
    right = np.array([s.greedy for s in score(opened.model, requests)])
    return right.reshape(len(SHIFTS), -1).mean(1).tolist()


def told(opened: Parent, texts: Sequence[str]) -> dict[str, list[float]]:
    """Of each shift: mean edit distance over the longer length, and the share of answers that undo another shift."""
    engine, longest = chat_engine(opened.model, opened.tokenizer), max(map(len, texts))
    prompts = [asked(text, n) for n in SHIFTS for text in texts]
    answers = continue_text(engine, opened.tokenizer, prompts, Sampling(temperature=0.0, max_tokens=longest + 8))
    answers = [a.text.removeprefix(" ") for a in answers]
    wanted = list(texts) * len(SHIFTS)
    far = [edit_distance(a, t) / max(len(a), len(t)) for a, t in zip(answers, wanted, strict=True)]
    other = [a != t and any(a == shift(t, by) for by in SHIFTS) for a, t in zip(answers, wanted, strict=True)]
    rows = (np.array(values, dtype=float).reshape(len(SHIFTS), -1).mean(1).tolist() for values in (far, other))
    return dict(zip(("distance", "another_shift"), rows, strict=True))


def follows(accuracy: Sequence[float], share: Sequence[float]) -> float:
    """Spearman's correlation of accuracy with frequency; 0 where all accuracies are equal."""
    from scipy.stats import spearmanr

    return 0.0 if len(set(accuracy)) < 2 else float(spearmanr(accuracy, share).statistic)


def judge(setup: Setup, seeds: Sequence[dict[str, Any]]) -> Findings:
    """Accuracy must follow the frequency, and not without frequencies to follow; unlikely sentences must be harder."""
    rare = [n for n in SHIFTS if n not in FREQUENT]

    def share(label: str, arm: str, shifts: Sequence[int], kind: str = "likely", paper: str | None = None) -> Number:
        means = [float(np.mean([s[arm][kind][n - 1] for n in shifts])) for s in seeds]
        return Number(label=label, by_seed=means, unit="%", of=setup.sentences, paper=paper)

    thirteen = share("rot-13, 55% of the ciphers", "skewed", [13], paper="GPT-4 50%, GPT-3.5 21%")
    seldom = share("the 22 rare shifts", "skewed", rare, paper="GPT-4 at most 2%")
    likely, unlikely = share("", "skewed", SHIFTS), share("", "skewed", SHIFTS, "unlikely")
    seven = share("rot-7 where it is the frequent one", "seven", [7])
    other = share("rot-13 there", "seven", [13])
    rank = Number(label="rank correlation of accuracy and frequency",
                  by_seed=[follows(s["skewed"]["likely"], s["skewed"]["shares"]) for s in seeds])  # fmt: skip
    spread = Number(label="highest less lowest accuracy, all shifts equally frequent", unit="points",
                    by_seed=[max(s["uniform"]["likely"]) - min(s["uniform"]["likely"]) for s in seeds])  # fmt: skip
    control = share("", "uniform", SHIFTS)
    harder = difference("likely sentences above the same letters mixed", likely, unlikely)
    return Findings(
        numbers=[
            thirteen, share("rot-1 and rot-3, 15% each", "skewed", [1, 3], paper="GPT-4 82% and 76%"), seldom, rank, spread,
            harder, seven, other,
        ],
        checks=[
            at_least("accuracy follows the shift's frequency (Spearman)", rank, 0.7),
            at_least("the most frequent shift is learned", thirteen, 0.8),
            at_most("the rare ones are not yet", seldom, 0.4),
            at_most("no such difference where all shifts are as frequent", spread, 0.2, core=False),
            at_least("and all of them are learned then", control, 0.8, core=False),
            at_least("the same letters in another order are harder", harder, 0.1),
            at_least("the advantage goes to rot-7 where that is frequent", difference("", seven, other), 0.4, core=False),
        ],
        said=(
            f"At the same moment of the same training, rot-13 comes out in {thirteen.mean:.0%} and the rare shifts in "
            f"{seldom.mean:.0%}, though one is as hard as the other: what a model can do shows what it was fed. With the "
            f"frequencies of 7 and 13 exchanged, rot-7 comes out in {seven.mean:.0%} and rot-13 in {other.mean:.0%}."
        ),
    )  # fmt: skip


def draw(setup: Setup, seeds: Sequence[dict[str, Any]]) -> str:
    """Accuracy of each shift in the skewed and the uniform arm; below, accuracy over what was read."""

    def mean(arm: str, key: str) -> np.ndarray:
        return np.mean([s[arm][key] for s in seeds], 0)

    curve, even = mean("skewed", "curve"), mean("uniform", "curve")
    rare = [n - 1 for n in SHIFTS if n not in FREQUENT]

    def paint(figure: Any) -> None:
        top, bottom = figure.subplots(2, 1, height_ratios=[1.2, 1])
        top.bar(
            SHIFTS, mean("skewed", "likely"), color=COLOURS["sft"], alpha=0.8, width=0.7, label="13, 1 and 3 frequent"
        )
        top.plot(SHIFTS, mean("uniform", "likely"), color=COLOURS["control"], linestyle="", marker="s", markersize=3.5,
                 label="all equally frequent")  # fmt: skip
        top.plot(SHIFTS, mean("seven", "likely"), color=COLOURS["aligned"], linestyle="", marker="^", markersize=4,
                 label="7 in place of 13")  # fmt: skip
        top.set_xticks([1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25])
        top.set_xlabel("shift n of rot-n")
        lines = (("rot-13", curve[:, 12], "sft", "-"), ("rot-1 and rot-3", curve[:, [0, 2]].mean(1), "base", (0, (5, 1.5))),
                 ("rare shifts", curve[:, rare].mean(1), "reward", (0, (1.2, 1.3))),
                 ("all, equally frequent", even.mean(1), "control", (0, (6, 1.5, 1.2, 1.5))))  # fmt: skip
        for label, values, colour, dash in lines:
            read = np.arange(len(values) + 1) * (setup.tokens / setup.legs)
            bottom.plot(
                read, [0, *values], color=COLOURS[colour], linestyle=dash, marker="o", markersize=3, label=label
            )
        bottom.set_xlabel("million characters read")
        bottom.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g}")
        for ax in (top, bottom):
            ax.set_ylim(0, 1.04)
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
            ax.set_title("sentences decoded exactly", loc="left", color=COLOURS["dim"], pad=4)
            ax.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.24), ncols=2, fontsize=8.5, handlelength=1.8)

    return drawing("S13", "Accuracy of decoding rot-n by n, and over training", paint, (4.9, 5.4))
