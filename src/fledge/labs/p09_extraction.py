"""P9: a fact can be asked for only if pretraining met it in several wordings (Allen-Zhu and Li 2023, Physics of LM 3.1).

Invented people, a biography each; a base model is trained on all of them, then taught to answer questions about half of
the people. Can it answer about the other half, whose biographies it knows by heart just the same? The arms differ in how
the people are told of and in nothing else: one tokenizer, one set of random weights, as many tokens, steps and questions.

    single            one text each, sentences in one order          multi5          five wordings, one order
    multi5+permute    five wordings, each in an order of its own     reverse         of these, half name the person last
    mixed             single, and the questions of the first half in the pretraining text, 8 tokens of 10 (the control)
    celebrity         multi5+permute for the first half of people, single for those who are asked about
    bilingual5        of five wordings, two are Chinese

Versions of a person are never in view of each other: documents are shuffled, and attention stays inside a document; so the
only thing a second wording can do is to change what is stored. Positions are rotary. The first sentence's attribute is left
out of the mean: in `single` it follows the name and can be answered without being stored apart. Questions have three forms,
the same in both halves, and all lengths are fixed.

`reverse`: half of the versions name the person only at the end of the band's sentence, "The drummer of Hiya is ...", which
stands wherever the shuffling puts it, and not always at the very end of the text: with that, 1% of the questions from band
to name were answered (400 people, seed 0), perhaps because the four sentences before it give the person away.

Fine-tuning is as gentle as teaches the questions, by one rule for all arms: a narrow adapter of attention, and a wide one of
everything where fewer than 95% of the taught questions are answered after that. The embeddings of words that no text has
are trained with it, after the paper. It matters: `mixed` answers 72% by the narrow one and 52% to 60% by the wide one, while
`single` learns 8% of its taught questions by the narrow one, for it can only find what is stored at the name, and all by
the wide one.

Tuned on seed 0, for all arms alike and partly by looking at the second half's answers, so that seeds 1 and 2 are the test:
people, attributes and wordings (800, 4 and 6, not 400, 5 and 12), weight decay 0.7, steps of 2,048 tokens, 3M tokens, the two
adapters. They were changed together; which of them helps how much was not taken apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fledge.core.adapters import AdapterConfig
from fledge.core.config import Settings, TrainConfig
from fledge.core.model import Shape
from fledge.generate.sampling import Sampling
from fledge.labs.bench import Bench
from fledge.labs.cloze import fresh_start
from fledge.labs.p09_chart import Row, chart
from fledge.labs.p09_probes import by_heart, name_probe, place_probe
from fledge.labs.verdict import Findings, Number, at_least, at_most, difference, ratio
from fledge.stages import pretrain, sft
from fledge.stages.common import Parent, open_model
from fledge.stages.evaluate import ask, rate
from fledge.tasks.base import Example, user
from fledge.text.tokenizer import Tokenizer
from fledge.world.biographies import (
    ATTRIBUTES,
    TELLINGS,
    WORDINGS,
    Biography,
    People,
    Person,
    inverse_questions,
    questions,
)

ARMS = ("single", "multi5", "multi5+permute", "reverse", "mixed", "celebrity", "bilingual5")
PAPER = {"single": 0.097, "multi5": 0.41, "multi5+permute": 0.966, "mixed": 0.866, "celebrity": 0.868}
_TELLING = {"reverse": "multi5+permute+reverse", "mixed": "single"}
_INVERSE = ("multi5+permute", "reverse")  # arms that are asked from band to name
_PROBED = ("single", "multi5+permute")
_QUESTION_SHARE = 0.8  # of the tokens of `mixed`, as in the paper's section 3
_GREEDY = Sampling(temperature=0.0, max_tokens=24)


class Tuning(Settings, frozen=True, kw_only=True):
    """A way of teaching the questions: a low-rank adapter and how long it is trained; the weights themselves stay."""

    targets: tuple[str, ...] = ()
    "Products that are adapted, as q, k, v; none means all."
    rank: int = 16
    "Rank of the adapter."
    lr: float = 1e-3
    "Peak learning rate."
    epochs: float = 5.0
    "Times each question is read; as many times more from band to name as there are fewer questions."


class Setup(Settings, frozen=True, kw_only=True):
    """People, how much is read of them, and how the model is taught to answer."""

    people: int = 800
    "People; questions about the first half are taught, the other half is asked about."
    attributes: tuple[str, ...] = ("birthcity", "university", "major", "band")
    "Told of, of birthdate, birthcity, university, major, employer and band; the first is not counted."
    wordings: int = 6
    "Wordings of each attribute that there are, at least 5; each person is told of in some of them."
    tokens: int = 3_000_000
    "Tokens of each arm's pretraining."
    size: str = "pocket"
    "Model size."
    lr: float = 3e-3
    "Peak learning rate of pretraining."
    batch_tokens: int = 2048
    "Tokens of a pretraining step."
    tunings: tuple[Tuning, ...] = (
        Tuning(targets=("q", "k", "v"), rank=16, lr=1.5e-3, epochs=5.0),
        Tuning(rank=128, lr=5e-4, epochs=7.0),
    )
    "Each arm takes the first of these after which `learned` of its taught questions are answered, else the last."
    learned: float = 0.95
    "Share of the taught questions, of which the arms differ in how hard they are to learn."
    sft_batch_tokens: int = 1024
    "Positions of a fine-tuning step."
    weight_decay: float = 0.7
    "Of pretraining: more of it ties a fact less to the wording that it was read in."
    probed: int = 100
    "People of each half whose biographies are probed from word to word; by their names all are."
    probe_steps: int = 30
    "Steps of a probe."
    base: str | None = None
    "Checkpoint to continue from in all arms; none starts from random weights and learns a tokenizer."

    def problems(self) -> list[str]:
        found = [f"people = {self.people}: must be at least 10, half of them are asked about"] * (self.people < 10)
        if wrong := [a for a in self.attributes if a not in ATTRIBUTES]:
            found.append(f"attributes = {wrong}: must be of {', '.join(ATTRIBUTES)}")
        if "band" not in self.attributes or len(self.attributes) < 3:
            found.append("attributes: band, which the inverse question is about, and two more are needed")
        if not 5 <= self.wordings <= WORDINGS:
            found.append(f"wordings = {self.wordings}: must be between 5, which a person is told of in, and {WORDINGS}")
        if self.base == "":
            found.append("base: give a checkpoint (--set.base), imported with --template chatml if it has no template")
        return found


SCALES = {
    "pocket": Setup(),
    "gpu": Setup(people=20_000, wordings=12, size="small", tokens=300_000_000, batch_tokens=65_536, lr=2e-3,
                 weight_decay=0.5, sft_batch_tokens=16_384),
    "full": Setup(base="", people=5_000, wordings=12, tokens=60_000_000, batch_tokens=32_768, lr=1e-3, weight_decay=0.1,
                  sft_batch_tokens=8_192),
    "tiny": Setup(people=12, size="tiny", tokens=4_000, batch_tokens=512, probed=6, probe_steps=2,
                  tunings=(Tuning(targets=("q",), rank=2, epochs=1.0), Tuning(rank=4, epochs=1.0))),
}  # fmt: skip


def measure(setup: Setup, bench: Bench) -> dict[str, Any]:
    """All arms from one start, each kept as it ends."""
    people = People(setup.people, bench.seed, setup.attributes, setup.wordings)
    start = setup.base or str(_start(setup, people, bench))
    return {arm: bench.keep(arm, lambda arm=arm: _arm(setup, bench, people, start, arm)) for arm in ARMS}


def _start(setup: Setup, people: People, bench: Bench) -> Path:
    """Random weights, and a tokenizer of all that any arm reads, so that every English name and value is one token."""
    tellings = [TELLINGS[_TELLING.get(arm, arm)] for arm in ("multi5+permute", "reverse", "bilingual5")]
    texts = [b.text for telling in tellings for b in people.tell(telling)]
    texts += [q + a for p in people.all for q, a in (*_forward(people, p), *_inverse(p))]
    text = bench.write("all", [{"text": text} for text in texts])
    shape = Shape(size=setup.size, context_tokens=128)
    return fresh_start(Path(bench.out("start")), [text], shape, 65_536, TrainConfig(seed=bench.seed))


def _forward(people: People, person: Person) -> list[tuple[str, str]]:
    """(question, answer) of all attributes. An answer begins with a space, as the value does in a text."""
    return [(q, f" {a}") for attribute in people.attributes for q, a in questions(person, attribute)]


def _inverse(person: Person) -> list[tuple[str, str]]:
    return [(q, f" {name}") for q, name in inverse_questions(person)]


def told_in(people: People, arm: str) -> list[Biography]:
    """The biographies of an arm; of `mixed`, without the questions."""
    if arm != "celebrity":
        return list(people.tell(TELLINGS[_TELLING.get(arm, arm)]))
    half = len(people.all) // 2
    known, others = people.tell(TELLINGS["multi5+permute"], people.all[:half]), people.all[half:]
    return [*known, *people.tell(TELLINGS["single"], others)]


def pretrained(setup: Setup, bench: Bench, people: People, start: str, arm: str) -> tuple[Path, list[str]]:
    """The base model of an arm, and what it read."""
    told = [b.text for b in told_in(people, arm)]
    asked = [q + a for p in people.all[: len(people.all) // 2] for q, a in _forward(people, p)] * (arm == "mixed")
    files = {f"{arm}-text": told, f"{arm}-questions": asked}
    recipe = pretrain.PretrainRecipe(
        out=bench.out(f"{arm}-base"), parent=start, tokens=setup.tokens, mask_repeats=None,
        text=[bench.write(name, [{"text": text} for text in texts]) for name, texts in files.items() if texts],
        weights=[1 - _QUESTION_SHARE, _QUESTION_SHARE] if asked else [],
        train=TrainConfig(
            lr=setup.lr, optimizer="muon", weight_decay=setup.weight_decay, batch_tokens=setup.batch_tokens,
            seed=bench.seed,
        ),
    )  # fmt: skip
    return pretrain.run(recipe, quiet=True), told + asked


def _arm(setup: Setup, bench: Bench, people: People, start: str, arm: str) -> dict[str, Any]:
    """Pretrain; probe the base model; teach half of the questions, and ask all."""
    half, told = len(people.all) // 2, told_in(people, arm)
    groups = {"taught": people.all[:half], "others": people.all[half:]}
    base, read = pretrained(setup, bench, people, start, arm)
    opened = open_model(base, precision="float32")
    found: dict[str, Any] = {"by_heart": by_heart(opened, told, people.attributes)}
    if arm in _PROBED and setup.base is None:  # probes read values of one token, which other tokenizers do not make
        found |= {"name_probe": name_probe(setup, opened, people), "place_probe": place_probe(setup, opened, people)}
    for way in ("forward", *["inverse"] * (arm in _INVERSE)):
        asked = {
            name: [_forward(people, p) if way == "forward" else _inverse(p) for p in some]
            for name, some in groups.items()
        }
        pairs = [pair for person in asked["taught"] for pair in person]
        fresh = None if setup.base else unread(opened.tokenizer, read, pairs)
        times = 1 if way == "forward" else len(people.attributes)  # as many steps
        tuned = taught(setup, bench, str(base), f"{arm}-{way}", pairs, fresh, times)
        for name, by_person in asked.items():
            right = exact(tuned, [pair for person in by_person for pair in person])
            found[f"{way}_{name}"] = _by_attribute(right, people.attributes) if way == "forward" else rate(right)
    return found


def unread(tokenizer: Tokenizer, read: Sequence[str], asked: Sequence[tuple[str, str]]) -> list[int]:
    """Tokens of questions, answers and the template that are in no text: their embeddings are still random."""
    known = {token for ids in tokenizer.encode_batch(read) for token in ids}
    said = {token for ids in tokenizer.encode_batch([part for pair in asked for part in pair]) for token in ids}
    return sorted({*said, tokenizer.system, tokenizer.user, tokenizer.assistant, tokenizer.end} - known)


def taught(
    setup: Setup,
    bench: Bench,
    base: str,
    name: str,
    asked: Sequence[tuple[str, str]],
    fresh: list[int] | None,
    times: int = 1,
) -> Parent:
    """The base model after reading these questions and answers, by the first of the tunings that teaches them.

    fresh: tokens whose embeddings are trained besides. times: of the epochs.
    """
    rows = [{"messages": [*user(q), {"role": "assistant", "content": a}]} for q, a in asked]
    chats = bench.write(f"{name}-chats", rows)
    for number, tuning in enumerate(setup.tunings):
        adapter = AdapterConfig(rank=tuning.rank, targets=list(tuning.targets), new_tokens=fresh)
        train = TrainConfig(lr=tuning.lr, weight_decay=0.0, batch_tokens=setup.sft_batch_tokens, seed=bench.seed)
        recipe = sft.SftRecipe(
            out=bench.out(f"{name}-{number}"), parent=base, chats=[chats], epochs=times * tuning.epochs,
            adapter=adapter, train=train,
        )  # fmt: skip
        tuned = open_model(sft.run(recipe, quiet=True), precision="float32")
        if rate(exact(tuned, asked)) >= setup.learned:
            break
    return tuned


def exact(opened: Parent, asked: Sequence[tuple[str, str]]) -> list[bool]:
    """Which (question, answer) the model answers exactly, greedily."""
    examples = [
        Example(id=str(i), prompt=user(q), answers=(a,), kind="person", language="en") for i, (q, a) in enumerate(asked)
    ]
    return [told.text == a for told, (_, a) in zip(ask(opened, examples, _GREEDY), asked, strict=True)]


def _by_attribute(right: Sequence[bool], attributes: Sequence[str]) -> dict[str, float]:
    """Shares of what `_forward` of people in a row gives: each attribute in as many forms as the others."""
    forms = 3
    kinds = [a for _ in range(len(right) // (forms * len(attributes))) for a in attributes for _ in range(forms)]
    return {a: rate(ok for ok, kind in zip(right, kinds, strict=True) if kind == a) for a in attributes}


def _counted(by_attribute: dict[str, float]) -> float:
    """Mean over all attributes but the first."""
    return sum(list(by_attribute.values())[1:]) / (len(by_attribute) - 1)


def _number(
    setup: Setup, seeds: Sequence[dict[str, Any]], label: str, arm: str, key: str, paper: str | None = None
) -> Number:
    """A share of questions, or of names read off, over the seeds."""
    found = [seed[arm][key] for seed in seeds]
    shares = [share if isinstance(share, float) else _counted(share) for share in found]
    asked = (setup.people - setup.people // 2) * (len(setup.attributes) - 1 if isinstance(found[0], dict) else 1)
    return Number(
        label=label, by_seed=shares, unit="%", of=asked, paper=paper
    )  # forms of one question are not counted anew


def _worst(seeds: Sequence[dict[str, Any]], label: str, keys: Sequence[str]) -> Number:
    """The share of the worst arm, seed by seed; of several attributes the mean, all of them."""
    found = [[arm[key] for arm in seed.values() for key in keys if key in arm] for seed in seeds]
    means = [[rate(share.values()) if isinstance(share, dict) else share for share in shares] for shares in found]
    return Number(label=label, by_seed=[min(shares) for shares in means], unit="%")


def judge(setup: Setup, seeds: Sequence[dict[str, Any]]) -> Findings:
    """Shuffled versions against one, and the other way round; the first half and the biographies must be known in all arms."""

    def share(label: str, arm: str, key: str = "forward_others", paper: str | None = None) -> Number:
        return _number(setup, seeds, label, arm, key, paper)

    single = share("one text a person", "single", paper="9.7%")
    many = share("five wordings, shuffled", "multi5+permute", paper="96.6%")
    mixed = share("one text, questions in pretraining", "mixed", paper="86.6%")
    famous = share("one text, the others have five", "celebrity", paper="86.8%, from 4.4%")
    bilingual = share("three English wordings and two Chinese", "bilingual5")
    back = share("from band to name", "multi5+permute", "inverse_others", paper="0%")
    last = share("from band to name, said so in half of the texts", "reverse", "inverse_others")
    taught = _worst(seeds, "questions taught, the worst arm", ("forward_taught", "inverse_taught"))
    heart = _worst(seeds, "values known in the biographies, the worst arm", ("by_heart",))
    read, saying = [], ""
    if "name_probe" in seeds[0]["single"]:
        probes = [share("", arm, "name_probe") for arm in ("multi5+permute", "single")]
        read = [difference("read off the name: shuffled wordings less one text", *probes)]
        saying = f"; a probe reads {probes[0].mean:.0%} off the bare name there, {probes[1].mean:.0%} in the other"
    return Findings(
        numbers=[single, many, mixed, famous, bilingual, back, last, *read],
        checks=[
            at_most("one text a person: hardly anything can be asked for", single, 0.15),
            at_least("five shuffled wordings: most of it can", many, 0.70),
            at_least("that is four times as much", ratio("", many, single), 4.0),
            at_most("the other way round nothing can be asked for", back, 0.05),
            at_least("unless half of the texts come to the name after the band", last, 0.50),
            at_least("questions in pretraining make one text enough (control)", mixed, 0.60, core=False),
            *(at_least("a probe finds the difference before any question", n, 0.40, core=False) for n in read),
            at_least("every arm answers the questions it was taught", taught, 0.95, core=False),
            at_least("every arm knows the biographies it read", heart, 0.99, core=False),
        ],
        said=(
            f"Every arm knows its biographies by heart ({heart.mean:.1%} of the values at least). Asked about people whose "
            f"questions were never taught, one that read a single text of each answers {single.mean:.0%}, one that read "
            f"five shuffled wordings {many.mean:.0%}{saying}. Whether a fact can be used is settled in pretraining. From band "
            f"to name it is {back.mean:.0%}, {last.mean:.0%} where half of the texts say the name after the band."
        ),
    )


_ROWS = {  # row of the chart: (arm, what was measured)
    "one text": ("single", "forward_others"),
    "5 wordings": ("multi5", "forward_others"),
    "5 wordings, shuffled": ("multi5+permute", "forward_others"),
    "3 English, 2 Chinese": ("bilingual5", "forward_others"),
    "1 text, others have 5": ("celebrity", "forward_others"),
    "1 text and questions": ("mixed", "forward_others"),
    "band to name": ("multi5+permute", "inverse_others"),
    "… half say it after": ("reverse", "inverse_others"),
}


def draw(setup: Setup, seeds: Sequence[dict[str, Any]]) -> str:
    """Exact answers of each arm beside the paper's, and below, what can be read off a biography before it is said."""
    rows = []
    for label, (arm, key) in _ROWS.items():
        paper = PAPER.get(arm) if key == "forward_others" else 0.0 if arm != "reverse" else None
        rows.append(Row(_number(setup, seeds, label, arm, key), paper))
    probed = {} if "place_probe" not in seeds[0]["single"] else {
        title: [_mean_probe(setup, [seed[arm]["place_probe"][place] for seed in seeds]) for place in range(len(setup.attributes))]
        for title, arm in zip(("one text", "5 wordings, shuffled"), _PROBED, strict=True)
    }  # fmt: skip
    return chart(rows, probed, [a.removeprefix("birth") for a in setup.attributes])


def _mean_probe(setup: Setup, by_seed: Sequence[dict[str, float]]) -> list[float | None]:
    """Share of each attribute over the seeds; None for those that have been said."""
    return [rate(found[a] for found in by_seed) if a in by_seed[0] else None for a in setup.attributes]
