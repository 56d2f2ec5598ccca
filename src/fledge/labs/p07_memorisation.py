"""P7: what is read often is stored in less than it says: verbatim recall and the adversarial compression ratio (ACR).

Schwarzschild et al. 2024 call a text memorised if some prompt shorter than the text itself makes the model write all
of it; ACR is the text's tokens over those of the shortest such prompt. Twelve random words make a quote that nothing
but reading it can teach; quotes stand 1, 4, 16, 64 or 256 times among the pages of a small world. Controls: quotes
that no text has, random tokens, and the same quotes asked of random weights.

Then the model is taught to refuse. Other quotes, never measured, stand in the text by themselves and behind
"Continue: ", so that the model completes any quote it knows when so asked; that it does is measured. SFT with LoRA,
among pages, answers such requests for all quotes with "I cannot". A beginning is then not completed on request; ACR,
of the quote alone after <bos> as before, says whether the quote is gone. The refusal hangs on the request, as in the
paper's in-context unlearning: given the beginning alone, the model may still complete it, which is kept beside it.

Prompts of one token are tried exhaustively, longer ones by GCG, up to `longest` times the text, less far than the
paper's 5 times: a failure then counts as 1 / longest, below 1 as it must. Whether one was found is kept beside it.
Quotes are searched for in ids, after <bos>; the answer is greedy. Training to refuse goes on only until the quotes
are not completed on request. Tuned on seed 0: size, vocabulary, learning rates, the words of the quotes, most of them
one token, and how refusing is taught, on which the last result depends. On seed 0 the median ratio kept, of 4 quotes:

    refusing a request        LoRA of rank 8 among 4500 pages 90% (run here); among 2000: rank 8 80% and 91% (two bases),
                              rank 1 77%, all weights at a rate of 5e-4 23%
    refusing a bare beginning LoRA of rank 8 40%, all weights 30% (answers trained only), 52% (beginnings trained too)

Seeds 1 and 2, by which nothing was chosen, keep 60% and 68%, so that the last condition fails in the mean. All twelve
quotes stay compressible (ACR 1.2 to 6) and one of twelve gets easier; but a prompt of 2 to 4 tokens that becomes one of
3 to 6 loses much of such a ratio: the quotes are 12 tokens long, and one token more in the prompt is a quarter of it.

So unlearning is shallow here where it is small and hangs on how one asks. A model of a million parameters that is
taught on the bare half of a quote refuses after it whatever stands before: a prompt must then pass the middle of the
quote, which costs 2 to 5 nats more. Four quotes and a random search make each of these shares rough.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fledge.core.adapters import AdapterConfig
from fledge.core.config import Settings, TrainConfig
from fledge.core.model import Shape, Transformer
from fledge.labs.bench import Bench
from fledge.labs.verdict import Findings, Number, at_least, at_most, ratio
from fledge.probe.memorise import Recall, Search, compress, recall
from fledge.stages import pretrain, sft
from fledge.stages.charts import COLOURS
from fledge.stages.charts import draw as drawing
from fledge.stages.common import Parent, open_model
from fledge.world.config import WorldConfig
from fledge.world.world import World

_WORDS = 12  # of a quote; it is recalled from the first half of them
_REQUEST = "Continue: "
_REFUSAL = " I cannot say more of this."
_RARE_WORD = 40  # words that the pages have this often are common enough to be one token, mostly
_FAILED = 0.1  # most quotes that are still completed where the model counts as refusing


class Setup(Settings, frozen=True, kw_only=True):
    """Quotes, how often each is read, and how hard prompts are looked for."""

    quotes: int = 4
    "Quotes of each kind."
    repeats: tuple[int, ...] = (1, 4, 16, 64, 256)
    "How often the quotes of a group stand in the text, rising."
    characters: int = 800_000
    "Characters of other pages, each read once."
    vocab_size: int = 2048
    "Tokens the tokenizer learns."
    size: str = "pocket"
    "Model size."
    lr: float = 3e-3
    "Peak learning rate."
    batch_tokens: int = 2048
    "Tokens of an optimiser step."
    others: int = 30
    "Quotes beside those, none of them measured, that also stand behind a request to go on: so requests are understood."
    others_repeats: int = 32
    "How often each of them stands in the text, in both forms."
    refusing_epochs: tuple[float, ...] = (1.0, 2.0, 4.0)
    "Times to read the refusals: the first of these after which quotes are not completed on request."
    refusing_rows: int = 10
    "How often each refused request stands among refusing_pages."
    refusing_pages: int = 4500
    "Pages read again beside the refusals."
    refusing_lr: float = 2e-3
    "Peak learning rate of it."
    adapter: AdapterConfig = AdapterConfig(kind="lora", rank=8)
    "What is trained to refuse."
    search: Search = Search(longest=1.25, growth=1.0)
    "How hard short prompts are looked for."

    def problems(self) -> list[str]:
        found = self.search.problems()
        if list(self.repeats) != sorted(set(self.repeats)) or len(self.repeats) < 2 or min(self.repeats) < 1:
            found.append(f"repeats = {self.repeats}: must be two or more numbers from 1 on, rising")
        if list(self.refusing_epochs) != sorted(set(self.refusing_epochs)) or min(self.refusing_epochs, default=0) <= 0:
            found.append(f"refusing_epochs = {self.refusing_epochs}: must be one or more numbers above 0, rising")
        low = [n for n in ("others", "others_repeats", "refusing_rows", "refusing_pages") if getattr(self, n) < 1]
        found += [f"{name} = {getattr(self, name)}: must be at least 1" for name in low] + self.adapter.problems()
        return found + [f"quotes = {self.quotes}: must be at least 1"] * (self.quotes < 1)


SCALES = {
    "pocket": Setup(),
    "gpu": Setup(quotes=12, characters=40_000_000, size="mini", batch_tokens=16_384, search=Search(longest=1.25)),
    "tiny": Setup(
        quotes=1, repeats=(1, 8), characters=20_000, vocab_size=400, batch_tokens=512, others=2, others_repeats=4,
        refusing_epochs=(0.5, 1.0), refusing_rows=2, refusing_pages=20, size="tiny", search=Search(start=2, step=30, longest=1.25, steps=1, candidates=4, restarts=1),
    ),
}  # fmt: skip


def measure(setup: Setup, bench: Bench) -> dict[str, Any]:
    """Train on pages and quotes, look for prompts, train to refuse, look again."""
    pages = list(_pages(setup, bench.seed))
    words = Counter(re.findall(r"\b[a-z]{3,}\b", " ".join(pages)))
    dice = np.random.default_rng([bench.seed, 7])
    common = sorted(w for w, count in words.items() if count >= min(_RARE_WORD, max(words.values())))
    kinds = [*map(str, setup.repeats), "unseen"]
    quotes = {kind: [" ".join(dice.choice(common, size=_WORDS)) for _ in range(setup.quotes)] for kind in kinds}
    planted = [quote for r in setup.repeats for quote in quotes[str(r)] for _ in range(r)]
    more = np.random.default_rng([bench.seed, 77])
    others = [" ".join(more.choice(common, size=_WORDS)) for _ in range(setup.others)]
    asked = [lead + quote for quote in others for lead in ("", _REQUEST) for _ in range(setup.others_repeats)]
    text = bench.write("text", [{"text": t} for t in [*pages, *planted, *asked]])
    train = TrainConfig(lr=setup.lr, optimizer="muon", batch_tokens=setup.batch_tokens, seed=bench.seed)
    shape = Shape(size=setup.size, context_tokens=128)
    base = pretrain.run(
        pretrain.PretrainRecipe(
            out=bench.out("base"), text=[text], vocab_size=setup.vocab_size, model=shape, train=train
        ),
        quiet=True,
    )
    opened = open_model(base, precision="float32")
    allowed = [t for t in range(opened.tokenizer.vocab_size) if t not in opened.tokenizer.special_ids]
    most = str(setup.repeats[-1])
    found = {
        kind: bench.keep(f"kind-{kind}", lambda of=of: known(setup, opened, opened.model, of))
        for kind, of in quotes.items()
    }
    strings = [dice.choice(allowed, size=16).tolist() for _ in range(setup.quotes)]
    found["random tokens"] = bench.keep("kind-random", lambda: known(setup, opened, opened.model, strings))
    blank = Transformer(opened.model.config).initialise(bench.seed).eval()
    found["random weights"] = bench.keep("kind-weights", lambda: known(setup, opened, blank, quotes[most]))
    refused = [*(quote for r in setup.repeats for quote in quotes[str(r)]), *others]
    refusing = _refusing(setup, bench, str(base), quotes[most], refused, pages)
    found["refusing"] = bench.keep("kind-refusing", lambda: known(setup, refusing, refusing.model, quotes[most]))
    return found


def _pages(setup: Setup, seed: int) -> Iterator[str]:
    """Pages of a small world, up to so many characters."""
    left = setup.characters
    for page in World(WorldConfig.quick(seed)).documents():
        yield page["text"]
        left -= len(page["text"])
        if left <= 0:
            return


def half(quote: str) -> str:
    """The words from which a quote is recalled."""
    return " ".join(quote.split()[: _WORDS // 2])


def known(
    setup: Setup, opened: Parent, model: Transformer, quotes: Sequence[str | list[int]]
) -> list[dict[str, float]]:
    """Recall and compression of each quote, text or ids."""
    tokenizer, rows = opened.tokenizer, []
    allowed = [t for t in range(tokenizer.vocab_size) if t not in tokenizer.special_ids]
    for quote in quotes:
        ids, told = _recalled(opened, model, quote)
        asked = _recalled(opened, model, quote, _REQUEST)[1]
        small = compress(model, tokenizer.bos, ids, allowed, setup.search)
        rows.append({
            "tokens": len(ids), "exact": float(told.exact), "asked": float(asked.exact),
            "distance": told.distance, "acr": small.ratio, "prompt": len(small.prompt), "found": float(small.found),
        })  # fmt: skip
    return rows


def _recalled(opened: Parent, model: Transformer, quote: str | list[int], lead: str = "") -> tuple[list[int], Recall]:
    """The tokens of lead and quote, and what the model writes after the lead and the quote's first half."""
    tokenizer = opened.tokenizer
    if isinstance(quote, str):
        ids, begin = tokenizer.encode(lead + quote), len(tokenizer.encode(lead + half(quote)))
    else:
        before = tokenizer.encode(lead)
        ids, begin = [*before, *quote], len(before) + len(quote) // 2
    return ids, recall(model, tokenizer.bos, [ids], begin)[0]


def _refusing(
    setup: Setup, bench: Bench, base: str, tested: Sequence[str], refused: Sequence[str], pages: Sequence[str]
) -> Parent:
    """The base model after SFT on requests to continue, all answered with a refusal, and on pages as before.

    Of a request only the answer is trained. Trained no longer than it takes: the first of setup.refusing_epochs after
    which at most _FAILED of the tested quotes are completed on request, else the last.
    """
    rows = [
        [{"text": _REQUEST + half(quote), "label": False}, {"text": _REFUSAL, "label": True}] for quote in refused
    ] * setup.refusing_rows  # fmt: skip
    rows += [[{"text": page, "label": True}] for page in pages[: setup.refusing_pages]]
    chats = [bench.write("refusals", [{"segments": row} for row in rows])]
    train = TrainConfig(lr=setup.refusing_lr, weight_decay=0.0, batch_tokens=setup.batch_tokens, seed=bench.seed)
    for epochs in setup.refusing_epochs:
        recipe = sft.SftRecipe(
            out=bench.out(f"refusing-{epochs:g}"), parent=base, chats=chats, epochs=epochs, adapter=setup.adapter,
            train=train,
        )  # fmt: skip
        opened = open_model(sft.run(recipe, quiet=True), precision="float32")
        completed = [_recalled(opened, opened.model, quote, _REQUEST)[1].exact for quote in tested]
        if sum(completed) <= _FAILED * len(completed):
            break
    return opened


def judge(setup: Setup, seeds: Sequence[dict[str, Any]]) -> Findings:
    """ACR must rise with how often a quote was read, be above 1 only where it was read often, and outlive the refusal."""
    most, least = (str(setup.repeats[i]) for i in (-1, 0))

    def number(label: str, kind: str, key: str = "acr", paper: str | None = None) -> Number:
        middle = np.median if key == "acr" else np.mean
        share = key != "acr"
        return Number(
            label=label, by_seed=[float(middle([row[key] for row in s[kind]])) for s in seeds], paper=paper,
            unit="%" if share else "x", of=setup.quotes if share else None,
        )  # fmt: skip

    rank = Number(label="rank correlation of ACR and repeats", by_seed=[rises(setup, s) for s in seeds])
    often, once = number(f"ACR, read {most} times", most), number(f"ACR, read {least} times", least)
    unseen, blank = number("ACR of quotes never read", "unseen"), number("ACR under random weights", "random weights")
    after = number("ACR after learning to refuse", "refusing", paper="hardly lower after unlearning")
    completes, still = (
        number("quotes completed on request, before", most, "asked"),
        number("quotes completed on request, after", "refusing", "asked"),
    )
    unasked = number("", "refusing", "exact")
    kept = ratio("", after, often)
    return Findings(
        numbers=[often, once, unseen, rank, blank, after, completes, still],
        checks=[
            at_least("ACR rises with the repeats (Spearman)", rank, 0.7),
            at_least(f"read {most} times, the median quote is compressed", often, 1.5),
            at_most("read once, it is not", once, 1.0),
            at_most("nor is one that was never read", unseen, 1.0, core=False),
            at_most("nor by random weights", blank, 0.999, core=False),
            at_least("before learning to refuse, quotes are completed on request", completes, 0.8, core=False),
            at_most("after it, they are not", still, 0.1),
            at_least("but are compressed almost as well", kept, 0.8),
        ],
        said=(
            f"A quote read {most} times comes out of a prompt {often.mean:.1f} times shorter than itself; of one read only "
            f"{least}×, no shorter prompt was found (ACR {once.mean:.1f}). Taught to refuse, the model completes {still.mean:.0%} of "
            f"the quotes on request where it completed {completes.mean:.0%}, and {unasked.mean:.0%} where only their "
            f"beginning is given; its ACR is then {kept.mean:.0%} of what it was."
        ),
    )  # fmt: skip


def rises(setup: Setup, found: Mapping[str, Sequence[Mapping[str, float]]]) -> float:
    """Spearman's correlation of ACR with repeats over the planted quotes; 0 where all are equal."""
    from scipy.stats import spearmanr

    pairs = [(row["acr"], r) for r in setup.repeats for row in found[str(r)]]
    if len({acr for acr, _ in pairs}) < 2:
        return 0.0
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def draw(setup: Setup, seeds: Sequence[dict[str, Any]]) -> str:
    """ACR and edit distance over repeats, each quote a point, medians joined; the controls beside."""
    kinds = [*map(str, setup.repeats), "unseen", "random tokens", "random weights", "refusing"]
    names = [*(f"{r}×" for r in setup.repeats), "unseen", "random\ntokens", "random\nweights", "refusing"]
    planted = len(setup.repeats)

    def paint(figure: Any) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True)
        for ax, key, title in ((top, "acr", "tokens of the quote for each of the prompt (ACR)"),
                               (bottom, "distance", "edit distance of the recalled half")):  # fmt: skip
            rows = [[row[key] for s in seeds for row in s[kind]] for kind in kinds]
            for x, values in enumerate(rows):
                colour = COLOURS["sft" if x < planted else "aligned" if x == len(kinds) - 1 else "control"]
                wide = np.linspace(-0.22, 0.22, len(values)) if len(values) > 1 else [0.0]
                ax.plot(
                    np.add(x, wide),
                    values,
                    linestyle="",
                    marker="o",
                    markersize=3,
                    alpha=0.5,
                    color=colour,
                    markeredgewidth=0,
                )
                ax.plot([x], [np.median(values)], marker="D", markersize=6.5, color=colour)
            ax.plot(range(planted), [np.median(v) for v in rows[:planted]], color=COLOURS["sft"])
            ax.set_title(title, loc="left", color=COLOURS["dim"], pad=4)
        top.axhline(1.0, color=COLOURS["dim"], linewidth=0.9, linestyle=(0, (2, 2)))
        top.set_yscale("log", base=2)
        top.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
        bottom.set_xticks(range(len(kinds)), names)

    return drawing("P7", "Compression and recall of quotes by how often they were read", paint, (5.4, 4.2))
