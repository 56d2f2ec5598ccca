"""R4: preferences teach a policy without a reward model: DPO from pairs, KTO from thumbs alone.

The SFT model's own answers to questions, ordered by the taste of people who do not look facts up (as in R2: courtesy,
rudeness, length, repetition), train the same start in a dozen ways: DPO at four prices of distance, with the chosen
answers' own likelihood added, IPO, KTO on the same answers as single votes and on one like for nine dislikes (with and
without balancing their weights), DPO and its conservative form on votes of which 30% are turned round, and SFT on the
chosen answers alone as the control. The same taste, here "gold", judges sampled answers to questions about facts that no
vote is about; KL is of those answers to the SFT model, which is also the reference.

Chosen on seed 0, for all arms alike: the taste, the SFT model and the size of a step. From the quick journey's SFT
model and by people who look facts up, DPO won 61%, KTO 58%, and 66% of held-out pairs were ordered right: a model of
this size hardly sees in an answer whether its facts are right (R2 measures that), so little carried over to other
facts. Steps are of 1024 positions, a quarter of the usual, since a thousand pairs are few; no rate was tuned, and beta
0.1 is not the best here: 0.3 and 1 stay nearer and win more, and at 0.03 the policy goes so far that nothing is won.
Whether facts come out right is not judged.

Rafailov et al. 2023; Ethayarajh et al. 2024; Azar et al. 2023; Mitchell 2023 (conservative DPO); Pang et al. 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fledge.core.config import Settings, TrainConfig
from fledge.core.log import read_jsonl
from fledge.generate.chat import chat_engine
from fledge.generate.sampling import Sampling
from fledge.generate.scoring import Asked, score
from fledge.labs.bench import Bench
from fledge.labs.overoptimise import votes
from fledge.labs.r02_reward_model import questions_of, turned
from fledge.labs.verdict import Findings, Number, at_least, at_most, difference
from fledge.labs.worlds import Asked as AskedOf
from fledge.stages import sft
from fledge.stages.charts import COLOURS
from fledge.stages.charts import draw as drawing
from fledge.stages.common import Parent, open_model
from fledge.stages.evaluate import messages_of, sample_of
from fledge.stages.prefer import DpoRecipe, KtoRecipe, pair_source, reference_logp, run_dpo, run_kto
from fledge.stages.worlds import world_behind
from fledge.tasks.base import Example, Task
from fledge.text.formats import read_pairs
from fledge.text.template import render_prompt

_MAX_TOKENS = 48
_SAMPLES = 4  # answers of a model to each held-out prompt
_HELD_PAIRS = 400
_BETA = 0.1


class Setup(Settings, frozen=True, kw_only=True):
    """Votes, and how the policy learns from them."""

    pairs: int = 1000
    "Pairs of answers; KTO gets the same answers as single votes."
    betas: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    "Prices of distance that DPO is tried at; 0.1 is that of the other arms."
    noise: float = 0.3
    "Share of pairs turned round in the noisy arms."
    liked: float = 0.1
    "Share of likes in the unbalanced arms."
    epochs: float = 2.0
    "Times each arm reads its votes."
    lr: float = 1e-4
    "Learning rate of every arm."
    batch_tokens: int = 1024
    "Positions of an optimiser step."
    more_tokens: int = 3_000_000
    "Tokens of the world's pages that the base behind the SFT model reads after the journey."
    prompts: int = 200
    "Held-out prompts."

    def problems(self) -> list[str]:
        return [] if _BETA in self.betas else [f"betas = {self.betas}: must hold {_BETA}, which the other arms take"]


SCALES = {
    "pocket": Setup(),
    "gpu": Setup(pairs=8000, prompts=400),
    "tiny": Setup(pairs=40, betas=(0.1, 1.0), prompts=8, epochs=1.0, more_tokens=8192),
}


def measure(setup: Setup, bench: Bench) -> dict[str, Any]:
    """Every arm: wins over the SFT model by gold, KL, held-out pairs ordered right, and what became of chosen answers."""
    start = bench.longer_sft(setup.more_tokens)
    opened = open_model(start)
    task = questions_of(world_behind(opened.path), facts_checked=False)
    rows = votes(opened, task, setup.pairs, 0.0, bench.seed)
    asked = sample_of(list(task.examples("test")), setup.prompts, bench.seed)
    held = bench.write("held", votes(opened, AskedOf(task, [], asked), min(_HELD_PAIRS, setup.pairs), 0.0, bench.seed))
    held_pairs = list(read_pairs([held]))
    before = [
        [task.score(e, text) for text, *_ in found]
        for e, found in zip(asked, sampled(opened, asked, bench.seed), strict=True)
    ]
    told: dict[str, Any] = {}
    for name, path in _arms(setup, bench, str(start), rows).items():
        policy = open_model(path)
        told[name] = {
            **_samples_of(policy, opened, task, asked, before, bench.seed),
            "right": _ordered(policy, opened, held_pairs),
            **_log_of(path.parents[1]),
        }
    return {"arms": told, "first": _first(Path(bench.out(f"DPO-{_BETA:g}")))}


def _arms(setup: Setup, bench: Bench, start: str, rows: list[dict[str, Any]]) -> dict[str, Path]:
    """Name of each arm -> its checkpoint."""
    train = TrainConfig(lr=setup.lr, weight_decay=0.0, batch_tokens=setup.batch_tokens, seed=bench.seed)
    pairs, noisy = bench.write("pairs", rows), bench.write("noisy", turned(rows, setup.noise, bench.seed))
    likes = [{"prompt": r["prompt"], "completion": r["chosen"], "label": True} for r in rows]
    dislikes = [{"prompt": r["prompt"], "completion": r["rejected"], "label": False} for r in rows]
    many, few = round((1 - setup.liked) * len(rows)), round(setup.liked * len(rows))
    both, few_liked = bench.write("votes", likes + dislikes), bench.write("few-liked", likes[:few] + dislikes[-many:])
    chats = bench.write(
        "chosen", [{"messages": [*r["prompt"], {"role": "assistant", "content": r["chosen"]}]} for r in rows]
    )
    common = {"parent": start, "epochs": setup.epochs, "train": train}

    def dpo(name: str, data: str = pairs, **more: Any) -> Path:
        return run_dpo(
            DpoRecipe(out=bench.out(name.replace(" ", "-")), pairs=[data], **{"beta": _BETA, **common, **more}),
            quiet=True,
        )

    def kto(name: str, data: str, **more: Any) -> Path:
        return run_kto(
            KtoRecipe(out=bench.out(name.replace(" ", "-")), votes=[data], beta=_BETA, **common, **more), quiet=True
        )

    made = {f"DPO {beta:g}": dpo(f"DPO {beta:g}", beta=beta) for beta in setup.betas}
    return made | {
        "DPO + NLL": dpo("DPO-NLL", nll_weight=1.0),
        "IPO": dpo("IPO", loss="ipo"),
        "KTO": kto("KTO", both),
        "KTO 1:9": kto("KTO few liked", few_liked),
        "KTO 1:9, unbalanced": kto("KTO few liked unbalanced", few_liked, desirable_weight=1.0, undesirable_weight=1.0),
        "DPO, noisy": dpo("DPO noisy", noisy),
        "cDPO, noisy": dpo("cDPO noisy", noisy, label_smoothing=setup.noise),
        "SFT on chosen": sft.run(sft.SftRecipe(out=bench.out("SFT-chosen"), chats=[chats], **common), quiet=True),
    }


def sampled(opened: Parent, asked: Sequence[Example], seed: int) -> list[list[tuple[str, list[int], float]]]:
    """Answers drawn at temperature 1 to each prompt: (text, its tokens, log p of them)."""
    engine = chat_engine(opened.model, opened.tokenizer)
    prompts = [render_prompt(opened.tokenizer, messages_of(e)) for e in asked]
    drawn = engine.sample(prompts, Sampling(temperature=1.0, max_tokens=_MAX_TOKENS, seed=seed), samples=_SAMPLES)
    rows = [row[:size] for row, size in zip(drawn.tokens.tolist(), drawn.lengths.tolist(), strict=True)]
    found = [
        (opened.tokenizer.decode(row), row, logp) for row, logp in zip(rows, drawn.logp.sum(1).tolist(), strict=True)
    ]
    return [found[i : i + _SAMPLES] for i in range(0, len(found), _SAMPLES)]


def _samples_of(
    policy: Parent, reference: Parent, task: Task, asked: Sequence[Example], before: list[list[float]], seed: int
) -> dict[str, float]:
    """Share of comparisons with the SFT model's answers that gold gives to the policy, its gold score, and KL per answer."""
    found = sampled(policy, asked, seed)
    gold = np.array([[task.score(e, text) for text, *_ in row] for e, row in zip(asked, found, strict=True)])
    old = np.array(before)
    wins = 0.5 + 0.5 * np.sign(gold[:, :, None] - old[:, None, :])
    prompts = [render_prompt(reference.tokenizer, messages_of(e)) for e in asked]
    flat = [(prompt, tokens, logp) for prompt, row in zip(prompts, found, strict=True) for _, tokens, logp in row]
    scored = score(reference.model, [Asked(prompt, tokens) for prompt, tokens, _ in flat])
    far = [logp - s.logp for (*_, logp), s in zip(flat, scored, strict=True)]
    return {"wins": float(wins.mean()), "gold": float(gold.mean()), "kl": float(np.mean(far))}


def _ordered(policy: Parent, reference: Parent, pairs: list[Any]) -> float:
    """Share of pairs whose chosen answer the policy made likelier, relative to the reference, than the rejected one."""
    source = pair_source(reference, pairs)
    shift = reference_logp(policy.model, source) - reference_logp(reference.model, source)
    sums = np.add.reduceat(shift.astype(np.float64), source.sequences.offsets[:-1])
    return float((sums[0::2] > sums[1::2]).mean())


def _log_of(run: Path) -> dict[str, Any]:
    """What the log of a DPO run tells: log p of chosen answers relative to the reference, over steps."""
    rows = read_jsonl(run / "metrics.jsonl")
    return {"chosen": [[row["step"], row["chosen_shift"]] for row in rows if "chosen_shift" in row]}


def _first(run: Path) -> dict[str, float]:
    """The first step of DPO, before anything was learned: distance of the loss from ln 2, and the reward gap."""
    row = read_jsonl(run / "metrics.jsonl")[0]
    return {"loss_gap": abs(row["loss"] - math.log(2)), "reward_gap": abs(row["reward_gap"])}


def judge(setup: Setup, seeds: Sequence[dict[str, Any]]) -> Findings:
    """Wins, the order of held-out pairs, the start, the price of distance, and what balance and smoothing are worth."""
    of = setup.prompts * _SAMPLES

    def get(arm: str, key: str = "wins", label: str = "", unit: Any = "%") -> Number:
        return Number(label=label or f"wins over SFT, {arm}", by_seed=[s["arms"][arm][key] for s in seeds], unit=unit,
                      of=of if unit == "%" and key == "wins" else None)  # fmt: skip

    dpo, kto, chosen = get(f"DPO {_BETA:g}", label="wins over SFT, DPO"), get("KTO"), get("SFT on chosen")
    order = get(f"DPO {_BETA:g}", "right", "held-out pairs ordered by the policy itself (implicit reward)")
    low, high = (
        get(f"DPO {b:g}", "kl", f"KL of DPO at beta {b:g} in nats", "") for b in (min(setup.betas), max(setup.betas))
    )
    fell, kept = (
        Number(label=f"change of log p of chosen answers, {arm}, in nats",
               by_seed=[float(np.mean([v for _, v in s["arms"][arm]["chosen"][-5:]])) for s in seeds])
        for arm in (f"DPO {_BETA:g}", "DPO + NLL")
    )  # fmt: skip
    loss = Number(label="", by_seed=[s["first"]["loss_gap"] for s in seeds])
    gap = Number(label="", by_seed=[s["first"]["reward_gap"] for s in seeds])
    return Findings(
        numbers=[dpo, kto, chosen, order, low, high, fell, kept],
        checks=[
            at_least("DPO wins 65% against the SFT model, by gold", dpo, 0.65),
            at_least("KTO wins 65%", kto, 0.65),
            at_least("the policy orders 80% of held-out pairs as gold does", order, 0.80),
            at_least("KTO, from single votes, is within 5 points of DPO", difference("", kto, dpo), -0.05),
            at_least("the smallest beta goes farther than the largest", difference("", low, high, "nats"), 0.0),
            at_most("the first loss is ln 2", loss, 1e-6, core=False),
            at_most("and the first reward 0", gap, 1e-6, core=False),
            at_least("NLL beside DPO keeps chosen answers likelier than DPO alone", difference("", kept, fell, "nats"), 0.0, core=False),
            at_least("one like in ten: balanced weights are no worse", difference("", get("KTO 1:9"), get("KTO 1:9, unbalanced")), 0.0, core=False),
            at_least("30% of votes wrong: conservative DPO is no worse", difference("", get("cDPO, noisy"), get("DPO, noisy")), 0.0, core=False),
        ],
        said=(
            f"By gold, DPO wins {dpo.mean:.0%} and KTO {kto.mean:.0%} of comparisons with the model they started from; SFT on "
            f"the same chosen answers {chosen.mean:.0%}. DPO at beta {min(setup.betas):g} ends {low.mean:.1f} nats away, at "
            f"{max(setup.betas):g} {high.mean:.1f}."
        ),
    )  # fmt: skip


def draw(setup: Setup, seeds: Sequence[dict[str, Any]]) -> str:
    """Wins over the SFT model against KL, one point for each arm; small marks are seeds."""
    colours = {"DPO": "sft", "KTO": "base", "IPO": "aligned", "cDPO": "reward", "SFT": "control"}
    arms = {name: [(s["arms"][name]["kl"], s["arms"][name]["wins"]) for s in seeds] for name in seeds[0]["arms"]}

    def paint(figure: Any) -> None:
        ax = figure.subplots()
        rows = sorted(arms, key=lambda name: sum(w for _, w in arms[name]))
        for y, name in enumerate(rows):
            wins = [w for _, w in arms[name]]
            colour = COLOURS[colours[name.replace(",", " ").split()[0]]]
            ax.plot(wins, [y] * len(wins), linestyle="", marker="|", markersize=8, color=colour)
            ax.plot(sum(wins) / len(wins), y, linestyle="", marker="o", markersize=6.5, color=colour)
            kl = sum(k for k, _ in arms[name]) / len(wins)
            ax.annotate(f"{sum(wins) / len(wins):.0%}, {kl:.1f} nats", (max(wins), y), (8, 0), textcoords="offset points",
                        va="center", color=colour)  # fmt: skip
        every = [w for row in arms.values() for _, w in row]
        ax.axvline(0.5, color=COLOURS["dim"], linewidth=0.9)
        ax.axvline(0.65, color=COLOURS["dim"], linewidth=0.9, linestyle=(0, (2, 2)))
        ax.set_xlim(min([0.48, *every]) - 0.02, max(every) + 0.22)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}" if value <= 1 else "")
        ax.set_yticks(range(len(rows)), rows)
        ax.set_xlabel("wins over the SFT model, by gold; KL of an answer beside")
        ax.grid(False)

    return drawing(
        "R4", "Wins over the SFT model of each way to learn from preferences", paint, (4.9, 1.0 + 0.33 * len(arms))
    )
