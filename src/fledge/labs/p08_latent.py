"""P8: a base model knows more than it says: it does not answer, yet among its samples is the answer.

The journey's base has read web pages on which a question is mostly followed by options, more questions or a call for
help, and in 15 of 100 by the answer (planted, so the lab tests samplers and not that such a mixture exists). It is asked
test questions whose facts its text states often, sampled 64 times (pass@k, Chen et al. 2021) and by power sampling, whole
answers from p^alpha (Karan and Du 2025; `generate.power`), against greedy decoding, temperature, and the likeliest of as
many samples as the power chains wrote tokens. An answer is right if it is straight and names the right value
(`is_straight_answer`); the SFT model and one that GRPO trained further on training questions are measured alike, through
the template, and GRPO is compared with the model it started from.

Power sampling prefers what the model finds likely as a whole. This base's likeliest continuations are lists of options, so
it sharpens those; the paper's base answers mathematics in its format from the start, which here only the SFT model does.

The trap is a table (their example 1): the likelier first token has many unlikely futures, the other one likely future.
There p^alpha is enumerated, and the chains' distance to it is exact but for counting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from fledge.core.config import Settings, TrainConfig
from fledge.generate.chat import chat_engine
from fledge.generate.power import EngineWriter, PowerSampling, power_sample
from fledge.generate.sampling import Sampling, uniforms
from fledge.labs.bench import Bench
from fledge.labs.verdict import Findings, Number, at_least, at_most, difference
from fledge.probe.pass_at_k import curve, doublings, first_token_rank
from fledge.stages import reinforce
from fledge.stages.common import Parent, open_model
from fledge.stages.evaluate import messages_of, rate, sample_of
from fledge.stages.panels import Line, Panel, panel_chart
from fledge.stages.worlds import world_behind
from fledge.tasks.base import Example
from fledge.tasks.world_tasks import is_straight_answer
from fledge.text.template import fit_prompt
from fledge.world.answers import named
from fledge.world.facts import bare
from fledge.world.world import World


class Setup(Settings, frozen=True, kw_only=True):
    """Questions, samples, chains."""

    asked: int = 200
    "Test questions, at most."
    well_read: int = 8
    "Statements in the text from which a fact is asked about."
    samples: int = 64
    "Answers to each question for pass@k."
    max_tokens: int = 32
    "Longest answer in tokens."
    alphas: list[float] = msgspec.field(default_factory=lambda: [4.0, 2.0])
    "Powers; the first is the one that is judged."
    blocks: int = 4
    "Blocks of a chain."
    steps: int = 10
    "Steps after each block."
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
    "gpu": Setup(asked=1000, well_read=16, samples=256, updates=200),
    "tiny": Setup(
        asked=8, well_read=1, samples=4, max_tokens=8, alphas=[4.0], blocks=2, steps=2, updates=1, chains=500,
        trap_steps=[0, 10],
    ),
}  # fmt: skip


class Trap:
    """A table as a `generate.power.Writer`: after 0 (likelier) one of 8 tokens and one of 4, after 1 one nearly sure text."""

    END, FIRST, SURE = 12, 0.55, 0.95
    stop_ids = (END,)

    def row(self, answer: Sequence[int]) -> np.ndarray:
        """p [13] of the next token."""
        p = np.zeros(self.END + 1)
        if not answer:
            p[:2] = self.FIRST, 1 - self.FIRST
        elif len(answer) == 3:
            p[self.END] = 1.0
        else:
            among = slice(2, 10 if len(answer) == 1 else 6)
            p[among] = 1.0
            p /= p.sum()
            if answer[0] == 1:
                p[among] = (1 - self.SURE) / (p[among].size - 1)
                p[2] = self.SURE
        return p

    def sharp(self, answer: Sequence[int], temperature: float) -> np.ndarray:
        """The same at a temperature."""
        p = self.row(answer) ** (1 / temperature)
        return p / p.sum()

    def texts(self) -> dict[tuple[int, ...], float]:
        """Every text with its probability."""
        found, open_ = {}, {(): 1.0}
        while open_:
            text, p = open_.popitem()
            for token in np.flatnonzero(row := self.row(text)):
                longer = (*text, int(token))
                (found if token == self.END else open_)[longer] = p * float(row[token])
        return found

    def write(
        self, prefixes: Sequence[Sequence[int]], max_tokens: int, temperature: float, seed: int
    ) -> list[list[int]]:
        chance, told = uniforms(seed, range(len(prefixes)), max_tokens).tolist(), []
        for prefix, row in zip(prefixes, chance, strict=True):
            text = list(prefix)
            for u in row:
                text.append(int(np.searchsorted(self._sums(tuple(text), temperature), u, side="right")))
                if text[-1] == self.END:
                    break
            told.append(text[len(prefix) :])
        return told

    def logps(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], temperature: float
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        known: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}
        for answer in map(tuple, answers):
            if answer not in known:
                known[answer] = tuple(
                    np.log([self.sharp(answer[:n], t)[token] for n, token in enumerate(answer)])
                    for t in (1.0, temperature)
                )
        return [known[tuple(answer)] for answer in answers]

    def _sums(self, text: tuple[int, ...], temperature: float) -> np.ndarray:
        held = self.__dict__.setdefault("_held", {})
        if (text, temperature) not in held:
            held[text, temperature] = np.minimum(self.sharp(text, temperature).cumsum() * (1 + 1e-12), 1.0)
        return held[text, temperature]


def distance(p: dict[tuple[int, ...], float], q: dict[tuple[int, ...], float]) -> float:
    """Total variation: half the sum of differences."""
    return 0.5 * sum(abs(p.get(text, 0.0) - q.get(text, 0.0)) for text in p.keys() | q.keys())


def powered(p: dict[tuple[int, ...], float], alpha: float) -> dict[tuple[int, ...], float]:
    """p^alpha, normalised."""
    whole = sum(value**alpha for value in p.values())
    return {text: value**alpha / whole for text, value in p.items()}


def trap(setup: Setup, seed: int) -> dict[str, Any]:
    """Distances to p^alpha: of the table at temperature 1/alpha, and of the chains after so many steps."""
    table, alpha = Trap(), setup.alphas[0]
    wanted = powered(table.texts(), alpha)
    low = {
        text: float(np.prod([table.sharp(text[:n], 1 / alpha)[token] for n, token in enumerate(text)]))
        for text in wanted
    }
    found = []
    for steps in setup.trap_steps:
        how = PowerSampling(alpha=alpha, steps=steps, blocks=1, max_tokens=4, seed=seed)
        drawn = Counter(tuple(d.tokens) for d in power_sample(table, [[]] * setup.chains, how))
        found.append([steps, distance(wanted, {text: n / setup.chains for text, n in drawn.items()})])
    ones = {name: sum(v for text, v in p.items() if text[0] == 1) for name, p in (("power", wanted), ("low", low))}
    return {"low": distance(wanted, low), "chains": found, "second branch": ones}


def questions(world: World, setup: Setup, seed: int) -> list[Example]:
    """Test questions about facts that the text states often."""
    every = [q.example() for q in world.questions("test") if q.kind == "fact"]
    return sample_of([e for e in every if e.meta["count"] >= setup.well_read], setup.asked, seed)


def right(example: Example, text: str) -> bool:
    """Whether a text answers straight away, with the right value."""
    return is_straight_answer(example, text) and bool(named(text, (example.meta["value"],)))


def plain(opened: Parent, asked: Sequence[Example]) -> list[list[int]]:
    """Questions as a base reads them: a line of text each."""
    texts = opened.tokenizer.encode_batch([e.prompt[-1]["content"] + "\n" for e in asked])
    return [[opened.tokenizer.bos, *ids] for ids in texts]


def chat(opened: Parent, asked: Sequence[Example], max_tokens: int) -> list[list[int]]:
    """Questions through the template."""
    room = opened.model.config.context_tokens - max_tokens
    return [fit_prompt(opened.tokenizer, messages_of(e), room)[0] for e in asked]


def counted(
    opened: Parent, asked: Sequence[Example], prompts: list[list[int]], setup: Setup, seed: int
) -> dict[str, Any]:
    """pass@k from samples at temperature 1, with the likeliest sample's and the greedy answer's rate."""
    engine, decode = chat_engine(opened.model, opened.tokenizer), opened.tokenizer.decode
    greedy = [
        decode(c.tokens) for c in engine.generate(prompts, Sampling(temperature=0.0, max_tokens=setup.max_tokens))
    ]
    sampling = Sampling(temperature=1.0, max_tokens=setup.max_tokens, seed=seed)
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


def samplers(
    base: Parent, asked: Sequence[Example], prompts: list[list[int]], setup: Setup, seed: int
) -> dict[str, Any]:
    """Right answers by temperature 1/alpha and by chains, with the tokens an answer cost."""
    engine, decode, found = chat_engine(base.model, base.tokenizer), base.tokenizer.decode, {}
    for alpha in setup.alphas:
        low = Sampling(temperature=1 / alpha, max_tokens=setup.max_tokens, seed=seed)
        done = engine.generate(prompts, low, samples=4)
        found[f"low {alpha:g}"] = _rates([e for e in asked for _ in range(4)], [decode(c.tokens) for c in done])
        how = PowerSampling(alpha=alpha, steps=setup.steps, blocks=setup.blocks, max_tokens=setup.max_tokens, seed=seed)
        drawn = power_sample(EngineWriter(engine), prompts, how)
        texts = [decode(d.tokens) for d in drawn]
        found[f"power {alpha:g}"] = _rates(asked, texts) | {
            "taken": rate(d.taken for d in drawn), "tokens": rate(d.written for d in drawn), "shown": texts[:6],
            "logp": rate(d.logp for d in drawn),
        }  # fmt: skip
    return found


def _rates(asked: Sequence[Example], texts: Sequence[str]) -> dict[str, Any]:
    pairs = list(zip(asked, texts, strict=True))
    return {"right": rate(right(e, t) for e, t in pairs), "answers": rate(is_straight_answer(e, t) for e, t in pairs)}


def measure(setup: Setup, bench: Bench) -> dict[str, Any]:
    """The trap, the base under every sampler, and what fine-tuning and reinforcement make of it."""
    found = {"trap": bench.keep("trap", lambda: trap(setup, bench.seed))}
    journey = bench.journey()
    world, base, tuned = world_behind(journey), open_model(journey / "base"), open_model(journey / "sft")
    asked, seed = questions(world, setup, bench.seed), bench.seed
    prompts = plain(base, asked)
    starts = [base.tokenizer.encode(bare(e.meta["value"]))[:1] for e in asked]
    found["rank"] = bench.keep("rank", lambda: first_token_rank(base.model, prompts, starts))
    found["base"] = bench.keep("base", lambda: counted(base, asked, prompts, setup, seed))
    found["samplers"] = bench.keep("samplers", lambda: samplers(base, asked, prompts, setup, seed))
    chats = chat(tuned, asked, setup.max_tokens)
    found["sft"] = bench.keep("sft", lambda: counted(tuned, asked, chats, setup, seed))
    found["samplers sft"] = bench.keep("samplers sft", lambda: samplers(tuned, asked, chats, setup, seed))

    def reinforced() -> dict[str, Any]:
        rl = open_model(reinforce.run(recipe_rl(world, setup, bench, str(journey / "sft")), quiet=True))
        return counted(rl, asked, chats, setup, seed)

    return found | {"rl": bench.keep("rl", reinforced), "asked": len(asked)}


def recipe_rl(world: World, setup: Setup, bench: Bench, parent: str) -> reinforce.ReinforceRecipe:
    """GRPO on the training questions, rewarded for an accepted answer."""
    train = [q.example() for q in world.questions("train") if q.kind == "fact"]
    rows = bench.write("train", [{"prompt": e.prompt[-1]["content"], "answers": list(e.answers)} for e in train])
    return reinforce.ReinforceRecipe(
        out=bench.out("rl-run"), parent=parent, prompts=[rows], reward=["exact"], max_tokens=setup.max_tokens,
        prompts_per_update=32, group_size=8, kl="measure",
        train=TrainConfig(
            steps=setup.updates, lr=setup.lr_rl, schedule="constant", weight_decay=0.0, batch_tokens=65536, seed=bench.seed
        ),
    )  # fmt: skip


def judge(setup: Setup, seeds: Sequence[dict[str, Any]]) -> Findings:
    """The greedy answer is seldom there, one of 64 mostly is; chains reach p^alpha; power beats plain sampling."""
    of, alpha, k = seeds[0]["asked"], setup.alphas[0], setup.samples

    def number(label: str, values: Sequence[float], unit: Any = "%", paper: str | None = None) -> Number:
        return Number(label=label, by_seed=list(values), unit=unit, of=of if unit == "%" else None, paper=paper)

    def passed(who: str, at: int) -> list[float]:
        return [dict(map(tuple, s[who]["pass"]))[at] for s in seeds]

    greedy = number("base, greedy: right answers", [s["base"]["greedy"] for s in seeds])
    answers = [s["base"]["greedy answers"] for s in seeds]
    one, many = (
        number("base, one sample", passed("base", 1), paper="49.6% (MATH500)"),
        number(f"base, one of {k}", passed("base", k)),
    )
    power = number(
        f"base, power {alpha:g}", [s["samplers"][f"power {alpha:g}"]["right"] for s in seeds], paper="74.8% (MATH500)"
    )
    low = number(f"base, temperature 1/{alpha:g}", [s["samplers"][f"low {alpha:g}"]["right"] for s in seeds])
    rl, rl_many = (
        number("after GRPO, one sample", passed("rl", 1), paper="78.5% (MATH500)"),
        number(f"after GRPO, one of {k}", passed("rl", k)),
    )
    own, own_many = number("after SFT, one sample", passed("sft", 1)), number("", passed("sft", k))
    own_power = number(f"after SFT, power {alpha:g}", [s["samplers sft"][f"power {alpha:g}"]["right"] for s in seeds])
    chains = [dict(map(tuple, s["trap"]["chains"])) for s in seeds]
    judged = min((n for n in setup.trap_steps if n >= 50), default=setup.trap_steps[-1])
    at_50 = Number(label="", by_seed=[c[judged] for c in chains])
    falls = Number(label="", by_seed=[c[setup.trap_steps[0]] - c[judged] for c in chains])
    apart = Number(label="", by_seed=[s["trap"]["low"] for s in seeds])
    rank = float(np.mean([np.median([r for r, _ in s["rank"]]) for s in seeds]))
    return Findings(
        numbers=[greedy, one, power, many, own, own_power, rl, rl_many],
        checks=[
            at_most("the base's greedy line is the answer in at most 20%", greedy, 0.20),
            at_least(f"one of {k} samples is right in at least 70%", many, 0.70),
            at_least("power sampling is right more often than plain sampling", difference("", power, one), 1e-9),
            at_least("and not less often than a low temperature", difference("", power, low), 0.0),
            at_least("on the trap p^alpha and a low temperature differ", apart, 0.1),
            at_least("chains come closer with steps", falls, 1e-9),
            at_most(f"and are within 0.1 after {judged}", at_50, 0.1),
            at_least("on the SFT model power sampling beats plain sampling", difference("", own_power, own), 1e-9, core=False),
            at_least("GRPO raises one sample above the base's", difference("", rl, one), 1e-9, core=False),
            at_most(f"but not one of {k} above the base's", difference("", rl_many, many), 0.02, core=False),
            at_least("GRPO raises one sample above its start's", difference("", rl, own), 1e-9, core=False),
            at_most(f"but not one of {k}, within 2 points", difference("", rl_many, own_many), 0.02, core=False),
        ],
        said=(
            f"Asked as text, the base answers {np.mean(answers):.0%} of the questions greedily and {greedy.mean:.0%} rightly; "
            f"the right value's first token is at rank {rank:.0f}. One of {k} samples is right in {many.mean:.0%}. Power "
            f"sampling takes one answer from {one.mean:.0%} (temperature 1) to {power.mean:.0%}, a low temperature to "
            f"{low.mean:.0%}: it sharpens what a model says most, which in this base is no answer. In the SFT model, where it "
            f"is one, power sampling goes from {own.mean:.0%} to {own_power.mean:.0%}, GRPO from there to {rl.mean:.0%} in one "
            f"try and {rl_many.mean:.0%} in {k} (before: {own_many.mean:.0%}). In the trap chains come within "
            f"{at_50.mean:.2f} of p^alpha; a low temperature stays {apart.mean:.2f} away."
        ),
    )  # fmt: skip


def draw(setup: Setup, seeds: Sequence[dict[str, Any]]) -> str:
    """pass@k of the three models over k, and the trap's distance over steps."""

    def mean(points: Sequence[Sequence[Sequence[float]]]) -> list[tuple[float, float]]:
        return [(p[0][0], float(np.mean([y for _, y in p]))) for p in zip(*points, strict=True)]

    models = (("base", "base", "base"), ("sft", "SFT", "sft"), ("rl", "GRPO", "aligned"))
    lines = [Line(label, mean([s[who]["pass"] for s in seeds]), colour) for who, label, colour in models]
    chains = [Line("chains", mean([s["trap"]["chains"] for s in seeds]), "aligned")]
    end = float(max(setup.trap_steps))
    chains.append(Line("temperature 1/α", [(0.0, (low := float(np.mean([s["trap"]["low"] for s in seeds])))), (end, low)],
                       "control", dash=(0, (4, 2))))  # fmt: skip
    return panel_chart(
        "P8", [Panel("right in k tries", lines, percent=True), Panel("trap: distance to p^α after k steps", chains)],
        "Right answers in k tries, and the distance of chains to the power distribution", over="k", direct=True, root=True,
    )  # fmt: skip
