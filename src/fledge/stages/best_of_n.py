"""Best-of-n: sample many answers, keep the one the reward likes best. No training; the simplest use of a reward."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fledge.core.checkpoint import canonical_json, write_atomically
from fledge.core.config import Settings
from fledge.core.log import say
from fledge.feedback.rewards import Reward
from fledge.generate.chat import chat_engine
from fledge.generate.sampling import Sampling
from fledge.stages.common import Parent, open_model
from fledge.stages.evaluate import messages_of, sample_of
from fledge.stages.rewarding import open_rewards
from fledge.tasks.base import Example
from fledge.tasks.catalog import open_task
from fledge.tasks.prompts import PromptFile
from fledge.text.template import render_prompt


class BestOfNOptions(Settings, frozen=True, kw_only=True):
    """Sample n answers to each prompt and keep the one with the highest reward."""

    out: str
    "Folder for best.jsonl (conversations for SFT), pairs.jsonl (best against worst, for DPO) and best-of-n.json."
    parent: str
    "Checkpoint or run whose answers these are."
    reward: list[str]
    "As in reinforce: a reward model's folder, file.py:function, a rule, task."
    task: str | None = None
    "Built-in task whose held-out prompts are answered; its score is told beside the reward."
    prompts: list[str] = []
    "Own prompts instead: JSONL with prompt."
    n: int = 16
    "Answers per prompt."
    count: int = 64
    "Prompts at most."
    temperature: float = 1.0
    "Of the sampling; the KL of best-of-n is relative to the model at this temperature."
    max_tokens: int = 64
    "Longest answer in tokens."
    device: str = "auto"
    "auto, cpu, cuda or cuda:1."
    seed: int = 0
    "Seed of the choice of prompts and of the sampling."

    def problems(self) -> list[str]:
        found = Sampling(temperature=self.temperature, max_tokens=self.max_tokens, seed=self.seed).problems()
        if self.temperature == 0:
            found.append("temperature = 0: all n answers would be the same; 1.0 is usual")
        if self.n < 2:
            found.append(f"n = {self.n}: must be at least 2")
        if self.count < 1:
            found.append(f"count = {self.count}: must be at least 1")
        if (self.task is None) == (not self.prompts):
            found.append("task and prompts: set one of them (--task world, or --prompts prompts.jsonl)")
        if not self.reward:
            found.append("reward: empty; name a reward model's folder, file.py:function or a rule")
        return found


def kl_of_best(n: int) -> float:
    """KL(best-of-n || the model) in nats: ln n - (n - 1)/n (Stiennon et al. 2020, appendix G.3)."""
    return float(np.log(n) - (n - 1) / n)


def sizes_up_to(n: int) -> list[int]:
    """1, 2, 4, ... and n itself."""
    return sorted({*(2**i for i in range(n.bit_length()) if 2**i <= n), n})


def best_of(values: np.ndarray, by: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Expected value of the answer that `by` ranks first among n drawn from the pool: [P,N], [P,N] -> [P,len(sizes)].

    The unbiased order statistic over all subsets of the pool (as pass@k, Chen et al. 2021, eq. 1): the answer of rank i is
    the best of n with probability C(i-1, n-1) / C(N, n). Answers that `by` scores alike share their mean value.
    """
    pool = by.shape[1]
    if max(sizes) > pool:
        raise ValueError(f"n = {max(sizes)}: the pool has {pool} answers per prompt; sample more or ask for less")
    ranked = np.sort(by, 1)
    ordered = np.take_along_axis(values, np.argsort(by, 1, kind="stable"), 1).astype(np.float64)
    for row, keys in zip(ordered, ranked, strict=True):  # mean value of each run of equal scores
        starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
        counts = np.diff(np.r_[starts, pool])
        row[:] = np.repeat(np.add.reduceat(row, starts) / counts, counts)
    rank = np.arange(1, pool + 1)
    columns = []
    for n in sizes:
        chance = np.zeros(pool)
        possible = rank >= n
        i = rank[possible].astype(np.float64)
        log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, pool + 1)))])

        def log_choose(a, b, table=log_factorial):
            a, b = np.asarray(a, np.int64), np.asarray(b, np.int64)
            return table[a] - table[b] - table[a - b]

        chance[possible] = np.exp(log_choose(i - 1, np.full(len(i), n - 1)) - log_choose([pool], [n]))
        columns.append(ordered @ chance)
    return np.stack(columns, 1)


def answer_pool(opened: Parent, examples: Sequence[Example], n: int, sampling: Sampling) -> list[list[str]]:
    """n sampled answers to each prompt, [P][N]."""
    return ended_pool(opened, examples, n, sampling)[0]


def ended_pool(
    opened: Parent, examples: Sequence[Example], n: int, sampling: Sampling
) -> tuple[list[list[str]], np.ndarray]:
    """answer_pool(), and which answers ended by themselves, [P,N] bool."""
    engine = chat_engine(opened.model, opened.tokenizer)
    prompts = [render_prompt(opened.tokenizer, messages_of(e)) for e in examples]
    samples = engine.sample(prompts, sampling, samples=n)
    rows = zip(samples.tokens.tolist(), samples.lengths.tolist(), strict=True)
    texts = [opened.tokenizer.decode(row[:size]) for row, size in rows]
    return [texts[p * n : (p + 1) * n] for p in range(len(examples))], samples.stopped.numpy().reshape(-1, n)


def score_pool(reward: Reward, examples: Sequence[Example], pool: Sequence[Sequence[str]]) -> np.ndarray:
    """[P,N] rewards; an answer that occurs several times for a prompt is scored once."""
    unique = [list(dict.fromkeys(answers)) for answers in pool]
    asked = [e for e, answers in zip(examples, unique, strict=True) for _ in answers]
    scores = iter(reward(asked, [a for answers in unique for a in answers]))
    known = [{a: next(scores) for a in answers} for answers in unique]
    return np.array([[table[a] for a in answers] for table, answers in zip(known, pool, strict=True)])


def run(options: BestOfNOptions) -> dict[str, Any]:
    """Sample, score, write the files and print what n buys; returns what best-of-n.json holds."""
    out = Path(options.out)
    opened = open_model(options.parent, device=options.device)
    task = open_task(options.task) if options.task else PromptFile(options.prompts)
    reward = open_rewards(options.reward, task, options.device).reward
    every = list(task.examples("test")) if options.task else [*task.examples("train"), *task.examples("test")]
    examples = sample_of(every, options.count, options.seed)
    sampling = Sampling(temperature=options.temperature, max_tokens=options.max_tokens, seed=options.seed)
    pool, ended = ended_pool(opened, examples, options.n, sampling)
    rewards = score_pool(reward, examples, pool)
    sizes = sizes_up_to(options.n)
    curves = {"reward": best_of(rewards, rewards, sizes).mean(0)}
    if options.task:
        gold = np.array([[task.score(e, a) for a in answers] for e, answers in zip(examples, pool, strict=True)])
        curves["task score"] = best_of(gold, rewards, sizes).mean(0)
        curves["task score, chosen by itself"] = best_of(gold, gold, sizes).mean(0)
    result = {
        "parent": {"id": opened.id, "path": str(opened.path)}, "reward": reward.name, "prompts": len(examples),
        "curve": [
            {"n": n, "kl": kl_of_best(n)} | {name: float(curve[i]) for name, curve in curves.items()}
            for i, n in enumerate(sizes)
        ],
    }  # fmt: skip
    _write(out, examples, pool, ended, rewards, result)
    _show(result, list(curves), out)
    return result


def _write(
    out: Path, examples: Sequence[Example], pool: list[list[str]], ended: np.ndarray, rewards: np.ndarray, result: dict
) -> None:
    """Only whole answers are kept to learn from: one that was cut off would teach a model not to end."""
    best, pairs = [], []
    for example, answers, whole, row in zip(examples, pool, ended, rewards, strict=True):
        usable = [i for i, text in enumerate(answers) if whole[i] and text.strip()]
        if not usable:
            continue
        top, low = max(usable, key=lambda i: row[i]), min(usable, key=lambda i: row[i])
        best.append({"messages": [*example.prompt, {"role": "assistant", "content": answers[top]}], "reward": float(row[top])})
        if row[top] > row[low]:
            pairs.append({"prompt": example.prompt, "chosen": answers[top], "rejected": answers[low]})
    if missing := len(examples) - len(best):
        say(f"{missing} of {len(examples)} prompts left out of the files: no answer ended by itself; raise max_tokens")
    for name, rows in (("best.jsonl", best), ("pairs.jsonl", pairs)):
        write_atomically(out / name, b"".join(msgspec.json.encode(r) + b"\n" for r in rows))
    write_atomically(out / "best-of-n.json", canonical_json(result))


def _show(result: dict[str, Any], names: list[str], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("n", "KL, nats", *names, box=None, header_style="bold")
    for row in result["curve"]:
        table.add_row(str(row["n"]), f"{row['kl']:.2f}", *(f"{row[name]:.3f}" for name in names))
    Console(highlight=False).print(table)
    say(f"{out}: best.jsonl for `fledge sft --chats`, pairs.jsonl (best against worst) for `fledge dpo --pairs`")
