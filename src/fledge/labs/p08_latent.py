"""P8: a base model knows more than it says: it does not answer, yet among its samples is the answer.

The base has read web pages on which a question is mostly followed by options, more questions or a call for help, and
in 15 of 100 by the answer (planted, so the lab tests samplers and not that such a mixture exists). It is the journey's
base after more of the world's pages (`Bench.longer_base`), and is asked test questions as they stand on a page, about
facts that the text states often: greedily, 64 times (pass@k, Chen et al. 2021), at a low temperature, by power sampling,
whole answers from p^alpha (Karan and Du 2025; `generate.power`), and by the likeliest of as many samples as the chains
wrote tokens. An answer is right if it is straight and names the right value alone (`right`), whoever gave it. GRPO starts
from the same base, reads the same form of question about other people and places, is rewarded by the same rule and shown
no answer (Yue et al. 2025).

Why p^alpha should help here is why it should in the paper: options are the likelier start, but end in hundreds of ways,
of which none is likely; the right answer is less likely to be begun, but known. Chains must get from one to the other,
so they propose at temperature 1; at 1/alpha, the paper's choice for a model that answers anyway, they seldom leave the
options (both are measured). Calls for help are short and few as well, so chains end there as often as with the answer.

Chosen on seed 0: the proposals; the bare question, without a new line, which makes options likelier; and what the base
reads more, pages as the world wrote them, for curated text has half as many answers. GRPO's one of 64 is always right,
so the last check is one of the base: after 3M tokens of pages one of its 64 was right in 95% or 99% (two runs), hence 4M
more.

The trap is a table (their example 1): the likelier first token has many unlikely futures, the other one likely future.
There p^alpha is enumerated, and the chains' distance to it is exact but for counting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from fledge.core.config import Settings, TrainConfig
from fledge.feedback.rewards import Rule
from fledge.generate.chat import chat_engine
from fledge.generate.power import EngineWriter, PowerSampling, power_sample
from fledge.generate.sampling import Sampling
from fledge.labs.bench import Bench
from fledge.labs.p08_trap import trap
from fledge.labs.verdict import Findings, Number, at_least, at_most, difference
from fledge.probe.pass_at_k import curve, doublings, first_token_rank
from fledge.stages import reinforce
from fledge.stages.common import Parent, open_model
from fledge.stages.evaluate import rate, sample_of
from fledge.stages.material import WELL_READ
from fledge.stages.observer import Questions
from fledge.stages.panels import Line, Panel, panel_chart
from fledge.stages.worlds import world_behind
from fledge.tasks.base import Example
from fledge.tasks.world_tasks import is_straight_answer
from fledge.world.answers import named
from fledge.world.facts import RELATIONS, bare
from fledge.world.questions import in_all_forms
from fledge.world.style import IT_IS
from fledge.world.world import World


class Setup(Settings, frozen=True, kw_only=True):
    """Questions, samples, chains."""

    asked: int = 200
    "Test questions, at most."
    well_read: int = WELL_READ
    "Statements in the text from which a fact is asked about."
    samples: int = 64
    "Answers to each question for pass@k."
    max_tokens: int = 32
    "Longest answer in tokens."
    more_tokens: int = 3_000_000
    "Tokens of the world's pages that the base reads after the journey, which is a shared model."
    again_tokens: int = 4_000_000
    "Tokens of them that it reads after that."
    alphas: list[float] = msgspec.field(default_factory=lambda: [4.0, 2.0])
    "Powers; the first is the one that is judged."
    blocks: int = 4
    "Blocks of a chain."
    steps: int = 10
    "Steps after each block."
    proposal: float = 1.0
    "Temperature of the chains' proposals; 1/alpha, as in the paper, is measured beside it."
    repeats: int = 2
    "Chains, and answers at a low temperature, to each question."
    updates: int = 40
    "Updates of GRPO."
    lr_rl: float = 2e-4
    "Its learning rate."
    chains: int = 4000
    "Chains in the trap."
    trap_steps: list[int] = msgspec.field(default_factory=lambda: [0, 1, 2, 5, 10, 20, 50, 100])
    "Steps after which the trap's chains are compared with p^alpha."


SCALES = {
    "pocket": Setup(),
    "gpu": Setup(asked=1000, samples=256, updates=200),
    "tiny": Setup(
        asked=8, well_read=1, samples=4, max_tokens=8, more_tokens=8192, again_tokens=8192, alphas=[4.0], blocks=2, steps=2, updates=1, chains=500,
        trap_steps=[0, 10],
    ),
}  # fmt: skip


def questions(world: World, setup: Setup, seed: int) -> list[Example]:
    """Test questions in all four forms about facts that the text states often."""
    found = in_all_forms((f for f in world.facts if f.split == "test"), world.pools, setup.well_read)
    return sample_of(found, setup.asked, seed)


def right(example: Example, text: str) -> bool:
    """Whether a text answers straight away and names the right value and no other."""
    return is_straight_answer(example, text) and named(text, example.meta["choices"]) == [example.meta["value"]]


def plain(opened: Parent, texts: Sequence[str]) -> list[list[int]]:
    """Texts as a base reads them."""
    return [[opened.tokenizer.bos, *ids] for ids in opened.tokenizer.encode_batch(list(texts))]


def prompts_of(opened: Parent, asked: Sequence[Example]) -> list[list[int]]:
    """Questions as they stand on a web page: what follows them is up to the model, a new line included."""
    return plain(opened, [e.prompt[-1]["content"] for e in asked])


def opening(example: Example) -> tuple[str, str]:
    """A question with an answer begun as far as the name, and the name: "... It is Mount", " Fafen"."""
    value, language, known = example.meta["value"], example.language, RELATIONS[example.meta["relation"]]
    name = bare(value).removeprefix(known.value_en.split("{}")[0])
    head = IT_IS[language].split("{}")[0] + value[: value.index(name)]
    gap = " " if language == "en" else ""
    return (example.prompt[-1]["content"] + gap + head).rstrip(), gap + name


def counted(opened: Parent, asked: Sequence[Example], setup: Setup, seed: int) -> dict[str, Any]:
    """pass@k from samples at temperature 1, with the likeliest sample's and the greedy answer's rate."""
    engine, decode = chat_engine(opened.model, opened.tokenizer), opened.tokenizer.decode
    prompts, sampling = prompts_of(opened, asked), Sampling(temperature=1.0, max_tokens=setup.max_tokens, seed=seed)
    still = msgspec.structs.replace(sampling, temperature=0.0)
    greedy = [decode(c.tokens) for c in engine.generate(prompts, still)]
    done = engine.generate(prompts, sampling, samples=setup.samples)
    texts = [decode(c.tokens) for c in done]
    rows = [range(i * setup.samples, (i + 1) * setup.samples) for i in range(len(asked))]
    flags = [[right(e, texts[r]) for r in row] for e, row in zip(asked, rows, strict=True)]
    return {
        "greedy": rate(right(e, t) for e, t in zip(asked, greedy, strict=True)),
        "greedy answers": rate(is_straight_answer(e, t) for e, t in zip(asked, greedy, strict=True)),
        "answers": rate(is_straight_answer(e, texts[r]) for e, row in zip(asked, rows, strict=True) for r in row),
        "pass": [[k, p] for k, p in curve([sum(f) for f in flags], setup.samples).items()],
        "best of n": [
            [n, rate(f[int(np.argmax([sum(done[r].logp) for r in row[:n]]))] for f, row in zip(flags, rows, strict=True))]
            for n in doublings(setup.samples)
        ],
        "tokens": float(np.mean([len(c.tokens) for c in done])), "shown": greedy[:4],
    }  # fmt: skip


def samplers(base: Parent, asked: Sequence[Example], setup: Setup, seed: int) -> dict[str, Any]:
    """Right answers by temperature 1/alpha and by chains, with the tokens an answer cost."""
    engine, decode, found = chat_engine(base.model, base.tokenizer), base.tokenizer.decode, {}
    again = [e for e in asked for _ in range(setup.repeats)]
    prompts = prompts_of(base, again)
    for alpha in setup.alphas:
        low = Sampling(temperature=1 / alpha, max_tokens=setup.max_tokens, seed=seed)
        found[f"low {alpha:g}"] = _rates(again, [decode(c.tokens) for c in engine.generate(prompts, low)])
        for name, temperature in ((f"power {alpha:g}", setup.proposal), (f"power {alpha:g}, cold", None)):
            how = PowerSampling(
                alpha=alpha, temperature=temperature, steps=setup.steps, blocks=setup.blocks,
                max_tokens=setup.max_tokens, seed=seed,
            )  # fmt: skip
            drawn = power_sample(EngineWriter(engine), prompts, how)
            texts = [decode(d.tokens) for d in drawn]
            found[name] = _rates(again, texts) | {
                "taken": rate(d.taken for d in drawn), "tokens": rate(d.written for d in drawn),
                "logp": rate(d.logp for d in drawn), "shown": texts[:: max(1, len(texts) // 8)],
            }  # fmt: skip
    return found


def _rates(asked: Sequence[Example], texts: Sequence[str]) -> dict[str, Any]:
    pairs = list(zip(asked, texts, strict=True))
    return {"right": rate(right(e, t) for e, t in pairs), "answers": rate(is_straight_answer(e, t) for e, t in pairs)}


def measure(setup: Setup, bench: Bench) -> dict[str, Any]:
    """The trap, the base under every sampler, and what reinforcement makes of it."""
    found = {"trap": bench.keep("trap", lambda: trap(setup.alphas[0], setup.trap_steps, setup.chains, bench.seed))}
    world, seed = world_behind(bench.journey()), bench.seed
    pages = (row["text"] for row in world.documents() if row["source"] != "junk")
    path = bench.read_on("base", pages, setup.again_tokens, bench.longer_base(setup.more_tokens))
    base = open_model(path)
    asked = questions(world, setup, seed)

    def ranks() -> list[tuple[int, float]]:
        heads, names = zip(*map(opening, asked), strict=True)
        starts = [ids[:1] for ids in base.tokenizer.encode_batch(list(names))]
        return first_token_rank(base.model, plain(base, heads), starts)

    def reinforced() -> dict[str, Any]:
        recipe = recipe_rl(world, setup, bench, str(path))
        done = reinforce.run(recipe, quiet=True, ask_about=lambda _, parent: to_answer(world, parent))
        return counted(open_model(done), asked, setup, seed)

    found["rank"] = bench.keep("rank", ranks)
    found["base"] = bench.keep("base", lambda: counted(base, asked, setup, seed))
    found["samplers"] = bench.keep("samplers", lambda: samplers(base, asked, setup, seed))
    return found | {"rl": bench.keep("rl", reinforced), "asked": len(asked)}


def to_answer(world: World, parent: Parent) -> Questions:
    """Training questions as bare text, rewarded by `right`."""
    train = [q.example() for q in world.questions("train") if q.kind == "fact"]
    rule = Rule("right", lambda example, answer: float(right(example, answer)))
    return Questions(train, [], prompts_of(parent, train), 0, rule, {}, None, False, "p08 right")


def recipe_rl(world: World, setup: Setup, bench: Bench, parent: str) -> reinforce.ReinforceRecipe:
    """GRPO from the base, without any answer to imitate; `to_answer` says what is asked and rewarded."""
    rows = bench.write("train", [{"prompt": q.text} for q in world.questions("train") if q.kind == "fact"])
    return reinforce.ReinforceRecipe(
        out=bench.out("rl-run"), parent=parent, prompts=[rows], reward=["exact"], max_tokens=setup.max_tokens,
        prompts_per_update=32, group_size=8, kl="measure",
        train=TrainConfig(
            steps=setup.updates, lr=setup.lr_rl, schedule="constant", weight_decay=0.0, batch_tokens=65536, seed=bench.seed
        ),
    )  # fmt: skip


def judge(setup: Setup, seeds: Sequence[dict[str, Any]]) -> Findings:
    """The greedy line is seldom an answer, one of 64 mostly is; chains reach p^alpha; power beats plain sampling."""
    of, alpha, k = seeds[0]["asked"], setup.alphas[0], setup.samples

    def number(label: str, values: Sequence[float], unit: Any = "%", paper: str | None = None) -> Number:
        return Number(label=label, by_seed=list(values), unit=unit, of=of if unit == "%" else None, paper=paper)

    def passed(who: str, at: int, label: str, paper: str | None = None) -> Number:
        return number(label, [_at(s[who]["pass"], at) for s in seeds], paper=paper)

    def drawn(name: str) -> list[float]:
        return [s["samplers"][name]["right"] for s in seeds]

    answers = number("base: greedy line is an answer", [s["base"]["greedy answers"] for s in seeds])
    one = passed("base", 1, "base: one sample", "49.6% (MATH500)")
    many = passed("base", k, f"base: one of {k}")
    power = number(f"base: power {alpha:g}", drawn(f"power {alpha:g}"), paper="74.8% (MATH500)")
    low = number(f"base: temperature 1/{alpha:g}", drawn(f"low {alpha:g}"))
    n = _as_many(setup, seeds)
    likely = number(f"base: likeliest of {n}", [_at(s["base"]["best of n"], n) for s in seeds])
    rl, rl_many = passed("rl", 1, "GRPO: one sample", "78.5% (MATH500)"), passed("rl", k, f"GRPO: one of {k}")
    chains = [dict(map(tuple, s["trap"]["chains"])) for s in seeds]
    judged = min((n for n in setup.trap_steps if n >= 50), default=setup.trap_steps[-1])
    at_50 = Number(label="", by_seed=[c[judged] for c in chains])
    falls = Number(label="", by_seed=[c[setup.trap_steps[0]] - c[judged] for c in chains])
    apart = Number(label="", by_seed=[s["trap"]["low"] for s in seeds])
    first = float(np.mean([np.mean([rank == 1 for rank, _ in s["rank"]]) for s in seeds]))
    cold = float(np.mean(drawn(f"power {alpha:g}, cold")))
    return Findings(
        numbers=[answers, one, low, power, likely, many, rl, rl_many],
        checks=[
            at_most("the base's greedy line is an answer in at most 20%", answers, 0.20),
            at_least(f"one of {k} samples is right in at least 70%", many, 0.70),
            at_least("power sampling is right more often than plain sampling", difference("", power, one), 1e-9),
            at_least("and not less often than a low temperature", difference("", power, low), 0.0),
            at_least("on the trap p^alpha and a low temperature differ", apart, 0.1),
            at_least("chains come closer with steps", falls, 1e-9),
            at_most(f"and are within 0.1 after {judged}", at_50, 0.1),
            at_least("GRPO raises one sample above the base's", difference("", rl, one), 1e-9),
            at_most(f"but not one of {k}, within 2 points", difference("", rl_many, many), 0.02),
        ],
        said=(
            f"The base's greedy line answers {answers.mean:.0%} of the questions, although it knows: with \"It is\" written "
            f"for it, {first:.0%} of the names are its first choice, and one of {k} samples is right in {many.mean:.0%}. "
            f"Power sampling takes one answer from {one.mean:.1%} (temperature 1) to {power.mean:.1%}; a low temperature, "
            f"which goes for the likeliest token, gets {low.mean:.1%}. It is no magic: the likeliest of {n} samples, as many "
            f"tokens, is right in {likely.mean:.1%}, and chains that propose at 1/{alpha:g} get {cold:.1%}. GRPO, rewarded "
            f"for right answers and shown none, makes one sample {rl.mean:.0%} and one of {k} {rl_many.mean:.0%}: it brings "
            f"out what was there. In the trap chains come within {at_50.mean:.2f} of p^alpha; a low temperature stays "
            f"{apart.mean:.2f} away."
        ),
    )  # fmt: skip


def _at(points: Sequence[Sequence[float]], x: int) -> float:
    """The value at x of [x, value] rows."""
    return dict(map(tuple, points))[x]


def _as_many(setup: Setup, seeds: Sequence[dict[str, Any]]) -> int:
    """The number of samples, of those measured, that costs about as many tokens as a power chain."""
    spent = np.mean([s["samplers"][f"power {setup.alphas[0]:g}"]["tokens"] / s["base"]["tokens"] for s in seeds])
    return min(doublings(setup.samples), key=lambda n: abs(np.log(n / spent)))


def draw(setup: Setup, seeds: Sequence[dict[str, Any]]) -> str:
    """pass@k of the base and after GRPO over k, with the single answers of samplers; and the trap's distance over steps."""

    def mean(points: Sequence[Sequence[Sequence[float]]]) -> list[tuple[float, float]]:
        return [(p[0][0], float(np.mean([y for _, y in p]))) for p in zip(*points, strict=True)]

    def level(label: str, value: float, colour: str, end: float, start: float = 1.0) -> Line:
        return Line(label, [(start, value), (end, value)], colour, dash=(0, (4, 2)))

    lines = [Line(label, mean([s[who]["pass"] for s in seeds]), colour)
             for who, label, colour in (("base", "base", "base"), ("rl", "GRPO", "aligned"))]  # fmt: skip
    power = float(np.mean([s["samplers"][f"power {setup.alphas[0]:g}"]["right"] for s in seeds]))
    lines.append(level("power, one try", power, "sft", setup.samples))
    low = float(np.mean([s["trap"]["low"] for s in seeds]))
    chains = [Line("chains", mean([s["trap"]["chains"] for s in seeds]), "aligned")]
    chains.append(level("temperature 1/α", low, "control", float(max(setup.trap_steps)), 0.0))
    return panel_chart(
        "P8", [Panel("right in k tries", lines, percent=True), Panel("trap: distance to p^α after k steps", chains)],
        "Right answers in k tries, and the distance of chains to the power distribution", over="k", direct=True, root=True,
    )  # fmt: skip
