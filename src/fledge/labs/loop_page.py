"""The page of `labs.loop`: gold win rate and exact match round by round, and every verdict beside what gold says of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fledge.labs.page_parts import Total, again, checks, head, mean, over_seeds, points_of, spread, values, write
from fledge.stages.panels import Panel, panel_chart
from fledge.stages.report_style import ABSENT, dig, figure, paragraph, percent, section, shown, table, whole

_WIDE, _NARROW = (9.6, 4.6), (4.9, 4.8)  # inches


def loop_page(out: Path, total: Total) -> Path:
    """OUT/report.html of `labs.loop`; equal results give equal bytes, and what a result lacks leaves no gap."""
    claim = (
        "Claim: votes on a model's own answers raise the next model, round after round, without costing it what it knew. "
        "Here the people are simulated, so that what they really like, the gold score, is known and can be measured; no "
        "stage and no verdict sees it."
    )
    return write(out, "The closed loop", (
        head(_named(total), ("The closed loop", "投票、訓練、再投票"), claim, _found(total)),
        section("Round by round", "一輪接一輪", _words(total), _figure(total), _table(total)),
        section("Was each verdict right?", "每次裁定對嗎", _verdict_words(), _verdicts(total)),
        checks(total),
        again("loop", total),
    ))  # fmt: skip


def _named(total: Total) -> dict[str, Any]:
    """`total` with its first models as words."""
    options = dict(total.get("options") or {})
    listed = options.get("parent")
    options["parent"] = ", ".join(map(str, listed)) if isinstance(listed, list) else listed
    return {**total, "options": options}


def _curves(total: Total) -> list[list[dict[str, Any]]]:
    return [seed.get("curve") or [] for seed in total.get("seeds") or []]


def _rounds(curves: Sequence[Sequence[dict[str, Any]]]) -> range:
    return range(max((len(c) for c in curves), default=0))


def _at(curves: Sequence[Sequence[dict[str, Any]]], number: int, key: str) -> list[float]:
    return values(c[number].get(key) for c in curves if len(c) > number)


def _found(total: Total) -> str:
    curves = _curves(total)
    last = len(_rounds(curves)) - 1
    if last < 1:
        return ""
    wins, exact = _at(curves, last, "win_rate"), [_at(curves, n, "exact_match") for n in (0, last)]
    if not wins or not all(exact):
        return ""
    change = points_of(mean(exact[1]) - mean(exact[0]))
    return (
        f"After {last} rounds the model wins {percent(mean(wins))} of comparisons with the first one (seeds: "
        f"{percent(min(wins))} to {percent(max(wins))}); exact match changes by {change} points."
    )


def _words(total: Total) -> str:
    if not _rounds(_curves(total)):
        return ""
    option = {k: dig(total, "options", k) for k in ("votes", "noise", "position_bias")}
    told = [
        f"In each round people give {whole(option['votes'])} votes of each kind on answers of the served model: choices "
        "between two drafts, thumbs, scores from 0 to 5, edits. "
        f"They err in {percent(option['noise'])} of votes and take the left answer unseen in "
        f"{percent(option['position_bias'])} of choices. Then one <code>fledge improve</code>: edits and top scores become "
        "conversations for SFT, choices pairs for DPO, thumbs votes for KTO, each beside rows from earlier rounds.",
        "Both figures are of held-out questions: facts about people and countries that no conversation and no vote "
        "mentions, dangerous requests, and requests that only sound dangerous. A win rate of 50% is the first model "
        "against itself. The facts are also the regression questions of each round, which refuse a model that lost more "
        "than 3 points.",
    ]
    return "".join(paragraph([t], "text") for t in told)


def _figure(total: Total) -> str:
    curves = _curves(total)
    looks = (
        ("wins over the first model, by gold", "win_rate", "aligned", "o", 1.4),
        ("held-out facts answered exactly", "exact_match", "sft", "s", 1.0),
    )
    panels = []
    for title, key, colour, marker, height in looks:
        line = over_seeds(curves, "round", "round", key, label="", colour=colour, marker=marker)
        if line.points:
            panels.append(Panel(title, [line], percent=True, height=height))
    alt = "Gold win rate over the first model, and exact match on held-out facts, after each round of votes"
    drawn = "".join(
        panel_chart(f"loop {kind}", panels, alt, over="round", direct=True, size=size, kind=f"chart {kind}")
        for kind, size in (("wide", _WIDE), ("narrow", _NARROW))
    )
    sentence = (
        "Marks are means over seeds; bands reach from the lowest to the highest seed. Round 0 is the first model."
    )
    return figure("Better by votes", "越投越好", drawn, sentence) if drawn else ""


def _table(total: Total) -> str:
    curves, rows = _curves(total), []
    for number in _rounds(curves):
        before = _at(curves, 0, "exact_match")
        changes = [b - a for a, b in zip(before, _at(curves, number, "exact_match"), strict=False)]
        promoted = [c[number].get("promoted") for c in curves if len(c) > number and number]
        rows.append([
            f"{number}" if number else "first model", spread(_at(curves, number, "win_rate"), percent),
            spread(_at(curves, number, "exact_match"), percent),
            points_of(round(min(changes), 2) + 0.0) if number and changes else ABSENT,
            f"{sum(map(bool, promoted))} of {len(promoted)}" if promoted else ABSENT,
        ])  # fmt: skip
    top = ["Round", "Wins over the first", "Exact match", "Largest fall, points", "Promoted"]
    note = "Means over seeds, with the lowest and the highest below."
    return table(top, rows, kind="scores") + f'<p class="note">{note}</p>' if rows else ""


def _verdict_words() -> str:
    told = [
        "A model is promoted only if the lower end of the judge's 90% interval is above 50% and the regression questions "
        "hold. The judge is four reward models trained on the same erring votes; its accuracy is on choices it did not "
        "learn from. Not even gold predicts more than about four in five of those: people erred in the others. The column "
        "of gold says how often it prefers the new model to the one it was to replace. Judge and model learnt from the "
        "same votes, so the judge is rather too kind; its interval cannot know that.",
    ]
    return "".join(paragraph([t], "text") for t in told)


def _verdicts(total: Total) -> str:
    rows = []
    for seed in total.get("seeds") or []:
        for row in seed.get("curve") or []:
            if not row.get("round"):
                continue
            low, high = (dig(row, "judged", "interval") or [None, None])[:2]
            why = "promoted" if row.get("promoted") else "refused: " + "; ".join(map(str, row.get("why_not") or []))
            rows.append([
                shown(f"{seed.get('seed')}, round {row['round']}"),
                f"{percent(dig(row, 'judged', 'value'))}<br><small>{percent(low)}–{percent(high)}</small>",
                percent(row.get("gold_over_old")), percent(dig(row, "accuracy", "value")), shown(why, 300),
            ])  # fmt: skip
    top = ["Seed", "Judge: new wins", "Gold: new wins", "Judge right in", "Verdict"]
    return table(top, rows, kind="scores") if rows else ""
