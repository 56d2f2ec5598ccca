"""`fledge shift`: on many prompts, which tokens of a model's answers its base would not have written."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fledge.core.checkpoint import canonical_json, write_atomically
from fledge.core.config import Settings
from fledge.core.log import say, visible
from fledge.probe.reading import Context, prompt_tokens
from fledge.probe.shift import Shift, TokenShift, greedy_answers, one_step, require_same_tokens, shares, shifts
from fledge.text.messages import Message

_BANDS = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, None))  # positions in an answer, from 1


class ShiftOptions(Settings, frozen=True, kw_only=True):
    """Which tokens of answers the base would not write: `fledge shift RUN --base BASE --task world --out OUT`."""

    aligned: str
    "Run or checkpoint that answers."
    base: str
    "Run or checkpoint it was raised from; it reads the same tokens."
    out: str
    "Folder for shift.json (figures) and answers.jsonl (every token of every answer)."
    task: str | None = None
    "Built-in task whose held-out prompts are answered."
    prompts: list[str] = []
    "Own prompts instead: JSONL with prompt."
    count: int = 100
    "Prompts at most."
    max_tokens: int = 64
    "Longest answer in tokens."
    context: Context = "chat"
    "What both models read: chat is the template, plain the bare text of the prompt and a new line."
    top: int = 5
    "Likeliest tokens kept of each distribution."
    device: str = "auto"
    "auto, cpu, cuda or cuda:1."
    seed: int = 0
    "Seed of the choice of prompts."

    def problems(self) -> list[str]:
        low = [n for n in ("count", "max_tokens", "top") if getattr(self, n) < 1]
        found = [f"{name} = {getattr(self, name)}: must be at least 1" for name in low]
        if (self.task is None) == (not self.prompts):
            found.append("task and prompts: set one of them (--task world, or --prompts prompts.jsonl)")
        return found


def by_position(answers: Iterable[Shift]) -> list[dict[str, Any]]:
    """Figures by place in the answer; end tokens are counted apart."""
    groups: dict[str, list[TokenShift]] = {_band(low, high): [] for low, high in _BANDS} | {"end": []}
    for answer in answers:
        for place, token in enumerate(answer.tokens, 1):
            low, high = next((a, b) for a, b in _BANDS if b is None or place <= b)
            groups["end" if token.control else _band(low, high)].append(token)
    return [{"position": name} | _figures(tokens) for name, tokens in groups.items() if tokens]


def by_kind(kinds: Sequence[str], answers: Sequence[Shift]) -> list[dict[str, Any]]:
    """Figures by the kind of question; control tokens, which every answer ends with, are left out."""
    groups: dict[str, list[TokenShift]] = defaultdict(list)
    for kind, answer in zip(kinds, answers, strict=True):
        groups[kind] += [t for t in answer.tokens if not t.control]
    return [{"kind": kind} | _figures(tokens) for kind, tokens in sorted(groups.items()) if tokens]


def _figures(tokens: Sequence[TokenShift]) -> dict[str, Any]:
    """Shares, mean KL and mean probability under the base."""
    means = {"kl": _mean(t.kl for t in tokens), "base_p": _mean(t.base_p for t in tokens)}
    return {"tokens": len(tokens)} | shares([t.category for t in tokens]) | means


def _band(low: int, high: int | None) -> str:
    return f"{low}" if low == high else f"{low}-{high}" if high else f"{low} on"


def _mean(values: Iterable[float]) -> float:
    held = list(values)
    return sum(held) / len(held)


def most_shifted(answers: Iterable[Shift]) -> list[dict[str, Any]]:
    """Tokens that were shifted at least once, the most often first: how often, of how many times written, mean KL."""
    seen: dict[int, list[TokenShift]] = defaultdict(list)
    for answer in answers:
        for token in answer.tokens:
            seen[token.id].append(token)
    rows = []
    for id_, tokens in seen.items():
        shifted = [t for t in tokens if t.category == "shifted"]
        if shifted:
            rows.append(
                {
                    "id": id_, "text": tokens[0].text, "shifted": len(shifted), "written": len(tokens),
                    "share": len(shifted) / len(tokens), "kl": _mean(t.kl for t in shifted),
                }
            )  # fmt: skip
    return sorted(rows, key=lambda row: (-row["shifted"], row["id"]))


def summary(answers: Sequence[Shift], kinds: Sequence[str]) -> dict[str, Any]:
    """All figures of a set of answers to questions of these kinds."""
    tokens = [token for answer in answers for token in answer.tokens]
    early = [t for a in answers for i, t in enumerate(a.tokens) if i < 2 or t.control]
    shifted, where = (sum(t.category == "shifted" for t in some) for some in (tokens, early))
    return {
        "answers": len(answers), "tokens": len(tokens), "shares": shares([t.category for t in tokens]),
        "shares_without_end": shares([t.category for t in tokens if not t.control]),
        "shifted_at_start_or_end": where / shifted if shifted else None, "kl": _mean(t.kl for t in tokens),
        "base_p": _mean(t.base_p for t in tokens), "by_kind": by_kind(kinds, answers),
        "by_position": by_position(answers), "most_shifted": most_shifted(answers),
    }  # fmt: skip


def run(options: ShiftOptions) -> dict[str, Any]:
    """Answer, compare, write the files and print the figures; returns what shift.json holds."""
    from fledge.stages.common import open_model
    from fledge.stages.evaluate import messages_of, sample_of
    from fledge.tasks.catalog import open_task
    from fledge.tasks.prompts import PromptFile

    aligned, base = (open_model(path, device=options.device) for path in (options.aligned, options.base))
    require_same_tokens(aligned, base)
    task = open_task(options.task) if options.task else PromptFile(options.prompts)
    every = list(task.examples("test")) if options.task else [*task.examples("train"), *task.examples("test")]
    examples = sample_of(every, options.count, options.seed)
    context = min(m.model.config.context_tokens for m in (aligned, base))
    room = context - min(options.max_tokens, context // 2)
    asked: list[list[Message]] = [messages_of(e) for e in examples]
    prompts = [prompt_tokens(aligned.tokenizer, messages, options.context, room) for messages in asked]
    written = greedy_answers(aligned, prompts, min(options.max_tokens, context // 2))
    found = shifts(aligned, base, prompts, [c.tokens for c in written], top=options.top)
    continued = one_step(base, prompts, found)
    result = {
        "aligned": {"id": aligned.id, "path": str(aligned.path)}, "base": {"id": base.id, "path": str(base.path)},
        "context": options.context, "prompts": options.task or options.prompts, "seed": options.seed,
        "cut_off": sum(c.finish == "length" for c in written),
        "one_step_recovers": _mean(step.recovered for step in continued),
    } | summary(found, [e.kind for e in examples])  # fmt: skip
    rows = [
        {"prompt": example.prompt, "text": aligned.tokenizer.decode(c.tokens), "finish": c.finish}
        | msgspec.to_builtins(shift)
        | {
            "one_step": {
                "text": aligned.tokenizer.decode(step.tokens),
                "given": step.given,
                "recovered": step.recovered,
            }
        }
        for example, c, shift, step in zip(examples, written, found, continued, strict=True)
    ]
    out = Path(options.out)
    write_atomically(out / "answers.jsonl", b"".join(canonical_json(row) for row in rows))
    write_atomically(out / "shift.json", canonical_json(result))
    _show(result, out)
    return result


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _show(result: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    names = ("unshifted", "marginal", "shifted")
    table = Table("tokens", "count", *names, "KL, nats", "p under base", box=None, header_style="bold")
    kinds = [{**row, "of": row["kind"]} for row in result["by_kind"]]
    places = [{**row, "of": f"place {row['position']}"} for row in result["by_position"]]
    for row in ({**result, **result["shares"], "of": "all"}, *(kinds if len(kinds) > 1 else ()), *places):
        figures = (f"{row['kl']:.2f}", f"{row['base_p']:.3f}")
        table.add_row(visible(row["of"]), str(row["tokens"]), *(_percent(row[n]) for n in names), *figures)
    console.print(table)
    console.print(
        f"\n{_percent(result['shifted_at_start_or_end'])} of the shifted tokens are the first two of an answer or its "
        f"end\n{_percent(result['one_step_recovers'])} of the answers are written by the base itself once it is given their "
        "first shifted token"
    )
    listed = Table("most shifted", "times", "of", "share", "KL, nats", box=None, header_style="bold")
    for row in result["most_shifted"][:15]:
        # the spaces of a token matter, and would be trimmed at the cell's edge
        listed.add_row(
            f"'{visible('|' + row['text'] + '|')[1:-1]}'", str(row["shifted"]), str(row["written"]),
            _percent(row["share"]), f"{row['kl']:.2f}",
        )  # fmt: skip
    console.print(listed)
    if result["cut_off"]:
        say(f"{result['cut_off']} of {result['answers']} answers were cut off at max_tokens: raise it")
    say(f"{out}: shift.json holds the figures, answers.jsonl every token with both distributions")
