"""What S12 trains and asks: a base model that knows facts more or less well, and fine-tunings on them.

The base model reads biographies of people, some often and some seldom, and questions with answers about other people: it
can be asked with worked examples before any fine-tuning, as models that have read the web can.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fledge.core.config import Settings, TrainConfig
from fledge.core.model import Shape
from fledge.generate.chat import chat_engine, continue_text
from fledge.generate.sampling import Sampling
from fledge.generate.scoring import Asked, score
from fledge.labs.bench import Bench
from fledge.labs.cloze import fresh_start
from fledge.probe.knowledge import CATEGORIES, Asking, Question, few_shot, is_right, knowledge
from fledge.stages import pretrain, sft
from fledge.stages.common import Parent, open_model
from fledge.stages.evaluate import rate
from fledge.world.biographies import ATTRIBUTES, TELLINGS, Biography, People, Person, questions
from fledge.world.dice import Dice

FORM = "{question} {answer}."
STYLED = " Of course! The answer is{answer}. I hope this helps."  # an answer begins with a space
_HEAD, _, _TAIL = STYLED.partition("{answer}")
PARTS = ("train", "dev", "test")
_GREEDY = Sampling(temperature=0.0, max_tokens=24)
_ROUNDS = 8  # different documents that the same questions are put together to
_CHOICES = 4

Parts = Mapping[str, Mapping[str, "list[Item]"]]  # part: category: items


class Setup(Settings, frozen=True, kw_only=True):
    """People, how often they are told of, how their facts are sorted, and how some are taught."""

    people: int = 550
    "Invented people whose facts are sorted, taught and asked for."
    most: int = 30
    "Texts about each of the best-known people."
    famous: int = 65
    "So many are the best-known; the next, of rank r, have most * (famous / r)**power texts, and one at least."
    power: float = 1.5
    "How fast people are less told of beyond the best-known; 1 is Zipf's law."
    asked: int = 60
    "More people, told of as often as the best-known, of whom the text holds questions with answers as well."
    strangers: int = 40
    "People whom no text tells of; a teacher's answers about them are imitated."
    attributes: tuple[str, ...] = ("birthcity", "major", "employer")
    "Facts of a person: two or more of birthcity, university, major and employer."
    together: int = 5
    "Most texts in one document."
    questions: float = 0.25
    "Share of pretraining tokens that are questions with answers."
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
    samples: int = 8
    "Sampled answers to each prompt."
    taught: int = 150
    "Facts taught to each arm, at most; all arms have as many."
    early: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    "Times the questions are read, of which the dev set chooses."
    epochs: float = 50.0
    "Times they are read until convergence."
    shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75)
    "Shares of Unknown facts in mixtures; all of them is the arm called Unknown."
    sft_lr: float = 3.5e-4
    "Peak learning rate of fine-tuning."
    sft_batch_tokens: int = 2048
    "Positions of a fine-tuning step."

    def problems(self) -> list[str]:
        fitting = ("birthcity", "university", "major", "employer")
        low = [f"{n} = {getattr(self, n)}: must be at least {least}" for n, least in
               (("people", 20), ("asked", 8), ("strangers", 1)) if getattr(self, n) < least]  # fmt: skip
        if len(self.attributes) < 2 or [a for a in self.attributes if a not in fitting]:
            low.append(f"attributes = {self.attributes}: must be two or more of {', '.join(fitting)}")
        if not self.early or max(self.early) >= self.epochs:
            low.append(f"early = {self.early}: must be below epochs, {self.epochs:g}")
        return low


class Item(NamedTuple):
    """A fact of a person, asked for in one of three forms."""

    person: Person
    attribute: str

    @property
    def pair(self) -> tuple[str, str]:
        """(question, answer); an answer begins with a space, as the value does in a text."""
        forms = questions(self.person, self.attribute)
        question, answer = forms[(self.person.number + ATTRIBUTES.index(self.attribute)) % len(forms)]
        return question, f" {answer}"

    @property
    def question(self) -> Question:
        """As the base model's text puts it."""
        question, answer = self.pair
        return Question(f" {question}", (answer.strip(),), self.attribute)


class Cast(NamedTuple):
    """All people of a seed, and the first of each group of them."""

    people: People
    setup: Setup

    def items(self, group: str) -> list[Item]:
        """Facts of those who are `sorted`, `asked` in the text, or `strangers`."""
        first, after = self.setup.people, self.setup.people + self.setup.asked
        span = {"sorted": slice(first), "asked": slice(first, after), "strangers": slice(after, None)}[group]
        return [Item(p, a) for p in self.people.all[span] for a in self.people.attributes]


def cast(setup: Setup, seed: int) -> Cast:
    return Cast(People(setup.people + setup.asked + setup.strangers, seed, setup.attributes), setup)


def told_often(setup: Setup, people: People) -> Iterator[Biography]:
    """Biographies of everybody but strangers, as often as Setup says; the versions of multi5+permute in turn."""
    telling = TELLINGS["multi5+permute"]
    for rank, person in enumerate(people.all[: setup.people + setup.asked], 1):
        fame = min(1.0, setup.famous / rank) ** setup.power if rank <= setup.people else 1.0
        for copy in range(max(1, int(setup.most * fame))):
            yield people.biography(person, telling, copy % telling.versions)


def documents(texts: Sequence[str], most: int, dice: Dice) -> list[str]:
    """The texts in random order, 1 to `most` of them in a document: worked examples about others are then nothing new."""
    left, found = dice.shuffled(texts), []
    while left:
        size = 1 + dice.below(most)
        found.append("".join(left[:size]))
        left = left[size:]
    return found


def raise_base(setup: Setup, cast: Cast, bench: Bench) -> Path:
    """The base model; its tokenizer knows every word that is ever asked or answered, whole."""
    dice, told = Dice(bench.seed, 142), [b.text for b in told_often(setup, cast.people)]
    asked = {
        a: [f" {q} {v}." for i in cast.items("asked") if i.attribute == a for q, v in questions(*i)]
        for a in setup.attributes
    }
    texts = {
        "told": documents(told, setup.together, dice),
        "asked": [t for _ in range(_ROUNDS) for some in asked.values() for t in documents(some, setup.shots + 2, dice)],
        "words": [f" {q}" + STYLED.format(answer=a) for group in ("sorted", "strangers") for q, a in
                  (i.pair for i in cast.items(group))],
    }  # fmt: skip
    files = {name: bench.write(name, [{"text": t} for t in some]) for name, some in texts.items()}
    shape = Shape(size=setup.size, context_tokens=128)
    start = fresh_start(Path(bench.out("start")), list(files.values()), shape, 65_536, TrainConfig(seed=bench.seed))
    recipe = pretrain.PretrainRecipe(
        out=bench.out("base"), text=[files["told"], files["asked"]], weights=[1 - setup.questions, setup.questions],
        parent=str(start), tokens=setup.tokens, mask_repeats=None,
        train=TrainConfig(lr=setup.lr, optimizer="muon", batch_tokens=setup.batch_tokens, seed=bench.seed),
    )  # fmt: skip
    return pretrain.run(recipe, quiet=True)


def asking(setup: Setup, seed: int, prompts: int | None = None) -> Asking:
    """How the base model is asked."""
    return Asking(
        prompts=prompts or setup.prompts, shots=setup.shots, samples=setup.samples, form=FORM, max_tokens=2, seed=seed
    )


def sort_items(setup: Setup, base: Parent, cast: Cast, seed: int) -> dict[str, dict[str, list[list[Any]]]]:
    """{"train"|"dev"|"test": {category: [[person, attribute], ...]}}: of ten facts 6, 1 and 3, by chance."""
    items, shown = cast.items("sorted"), [i.question for i in cast.items("asked")]
    known = knowledge(base, [i.question for i in items], shown, asking(setup, seed))
    dice = Dice(seed, 140)
    found: dict[str, dict[str, list[list[Any]]]] = {part: {c: [] for c in CATEGORIES} for part in PARTS}
    for i in dice.shuffled(range(len(items))):
        part = dice.pick(("train",) * 6 + ("dev",) + ("test",) * 3)
        found[part][known[i].category].append([items[i].person.number, items[i].attribute])
    return found


def taught(setup: Setup, bench: Bench, base: str, name: str, pairs: Sequence[tuple[str, str]], epochs: float) -> Parent:
    """The base model after reading these questions and answers so many times, as its text has them; answers are trained."""
    rows = [{"segments": [{"text": f" {q}", "label": False}, {"text": a, "label": True}]} for q, a in pairs]
    train = TrainConfig(  # known facts hardly have a gradient: a long memory of it keeps AdamW's steps small then
        lr=setup.sft_lr, weight_decay=0.0, beta2=0.999, batch_tokens=setup.sft_batch_tokens, seed=bench.seed
    )
    recipe = sft.SftRecipe(
        out=bench.out(f"{name}-{epochs:g}"), parent=base, chats=[bench.write(f"rows-{name}", rows)], epochs=epochs,
        train=train,
    )  # fmt: skip
    return open_model(sft.run(recipe, quiet=True), precision="float32")


def told(opened: Parent, items: Sequence[Item]) -> list[str]:
    """What a model writes after each question, up to the end of its document."""
    engine = chat_engine(opened.model, opened.tokenizer)
    texts = [item.question.question for item in items]
    return [answer.text for answer in continue_text(engine, opened.tokenizer, texts, _GREEDY)]


def holds(text: str, item: Item, before: str = "") -> bool:
    """Whether an answer says the value, after `before` and up to a full stop."""
    return is_right(text.removeprefix(before).partition(".")[0], item.question.answers)


def right(opened: Parent, items: Sequence[Item]) -> float | None:
    """Share of the items answered exactly; None without any."""
    return rate(holds(text, item) for text, item in zip(told(opened, items), items, strict=True))


def by_category(opened: Parent, test: Mapping[str, Sequence[Item]]) -> dict[str, float | None]:
    """Share of each category answered exactly, and `all`: the mean of the categories that there are."""
    found = {c: right(opened, some) for c, some in test.items()}
    return found | {"all": rate(share for share in found.values() if share is not None)}


def _rows(items: Sequence[Item]) -> list[tuple[str, str]]:
    return [(question, f"{answer}.") for question, answer in (item.pair for item in items)]


def arm(setup: Setup, bench: Bench, base: str, name: str, items: Sequence[Item], parts: Parts) -> dict[str, Any]:
    """Right answers after each length of training, and which length the dev set chooses."""
    dev, found = [i for some in parts["dev"].values() for i in some], []
    for epochs in (*setup.early, setup.epochs):
        opened = taught(setup, bench, base, name, _rows(items), epochs)
        found.append({"epochs": epochs, "train": right(opened, items), "dev": right(opened, dev),
                      "test": by_category(opened, parts["test"])})  # fmt: skip
    best = max(range(len(setup.early)), key=lambda i: found[i]["dev"] or 0.0)
    return {"curve": found, "early": found[best], "converged": found[-1]}


def mixtures(setup: Setup, bench: Bench, base: str, size: int, parts: Parts) -> list[list[float | None]]:
    """[share of Unknown, mean of the categories at convergence] of `size` facts; the rest is of the other three alike."""
    found, dice = [], Dice(bench.seed, 143)
    known = [dice.shuffled(some) for c, some in parts["train"].items() if c != "Unknown" and some]
    turns = [item for row in zip(*known, strict=False) for item in row]
    for share in setup.shares:
        unknown = round(share * size)
        items = [*parts["train"]["Unknown"][:unknown], *turns[: size - unknown]]
        if len(items) < size:  # the base model left a category empty
            found.append([share, None])
            continue
        opened = taught(setup, bench, base, f"mix-{share:g}", _rows(items), setup.epochs)
        found.append([unknown / size, by_category(opened, parts["test"])["all"]])
    return found


def choices(opened: Parent, texts: Sequence[str], options: Sequence[Sequence[str]]) -> list[int]:
    """Which of its options the model finds likeliest after each text."""
    tokenizer = opened.tokenizer
    heads = [[tokenizer.bos, *ids] for ids in tokenizer.encode_batch(texts)]
    ids = [tokenizer.encode_batch([f" {o}" for o in some]) for some in options]
    scored = score(opened.model, [Asked(head, o) for head, some in zip(heads, ids, strict=True) for o in some])
    logps, found = iter(s.logp for s in scored), []
    for some in ids:
        values = [next(logps) for _ in some]
        found.append(values.index(max(values)))
    return found


def agreement(setup: Setup, bench: Bench, base: str, cast: Cast, parts: Parts) -> dict[str, Any]:
    """HAR, INC and SELF: right choices of four after fine-tuning on what the base model chooses right, wrong, and itself."""
    dice, opened = Dice(bench.seed, 144), open_model(base, precision="float32")
    train = dice.shuffled([i for some in parts["train"].values() for i in some])
    offered = [_options(i, cast.people, dice) for i in train]
    shown = [i.question for i in cast.items("asked")]
    texts = [t for (t,) in few_shot([i.question for i in train], shown, asking(setup, bench.seed, 1))]
    chosen = choices(opened, texts, offered)
    rows = [(i.pair[0], f" {some[0]}.", f" {some[c]}.") for i, some, c in zip(train, offered, chosen, strict=True)]
    har, inc = ([row for row in rows if (row[1] == row[2]) is good] for good in (True, False))
    size = min(setup.taught, len(har), len(inc))
    sets = {"HAR": [r[:2] for r in har[:size]], "INC": [r[:2] for r in inc[:size]],
            "SELF": [(q, own) for q, _, own in inc[:size]]}  # fmt: skip
    test = {c: [(i, _options(i, cast.people, dice)) for i in some] for c, some in parts["test"].items()}
    found: dict[str, Any] = {"size": size, "base": len(har) / len(rows)}
    for name, pairs in sets.items():
        tuned = taught(setup, bench, base, name, pairs, setup.epochs) if pairs else None
        found[name] = rate(_chosen_right(tuned, some) for some in test.values() if some and tuned)
    return found


def _options(item: Item, people: People, dice: Dice) -> list[str]:
    """The value first, then others of its kind."""
    value = item.person.values[item.attribute].en
    others = [name.en for name in people.pools[item.attribute] if name.en != value]
    return [value, *dice.sample(others, _CHOICES - 1)]


def _chosen_right(opened: Parent, asked: Sequence[tuple[Item, list[str]]]) -> float | None:
    texts = [item.question.question for item, _ in asked]
    return rate(c == 0 for c in choices(opened, texts, [some for _, some in asked]))


def imitation(setup: Setup, bench: Bench, base: str, cast: Cast, parts: Parts) -> dict[str, Any]:
    """Style and facts, before and after imitating a teacher's answers about people whom the base model never met."""
    strangers, test = cast.items("strangers")[: setup.taught], [i for some in parts["test"].values() for i in some]
    pairs = [(q, STYLED.format(answer=a)) for q, a in (i.pair for i in strangers)]
    student = taught(setup, bench, base, "imitation", pairs, setup.epochs)
    found: dict[str, Any] = {"rows": len(pairs)}
    for when, opened in (("before", open_model(base, precision="float32")), ("after", student)):
        texts = told(opened, test)
        found[f"facts_{when}"] = rate(holds(t, i, _HEAD) for t, i in zip(texts, test, strict=True))
        found[f"style_{when}"] = rate(styled(text) for text in texts)
    return found


def styled(text: str) -> bool:
    """Whether an answer begins and ends as the teacher's do."""
    return text.startswith(_HEAD) and text.endswith(_TAIL)
