"""The report's sections of measurements: learning curves, exact match by how often a fact was read, the table of scores."""

import math
from collections.abc import Sequence
from typing import Any

from fledge.stages import charts
from fledge.stages.charts import Rows
from fledge.stages.report_style import (
    ABSENT,
    dig,
    entry,
    figure,
    heading,
    isolated,
    number,
    paragraph,
    percent,
    signed,
    table,
    well_sampled,
    whole,
)

Journey = dict[str, Any]
HEADS = {"base": "Base", "sft": "SFT", "aligned": "Aligned", "control": "From scratch", "reward": "Reward model"}
_LANGUAGES = {"en": "in English", "zh": "in Chinese"}


def _ends(curve: Sequence[charts.Point]) -> tuple[float, float]:
    """First value, and the mean of the last tenth (a single step is noisy)."""
    tail = [y for _, y in curve[-max(1, len(curve) // 10) :]]
    return curve[0][1], sum(tail) / len(tail)


def perplexity(loss: float) -> float:
    return math.exp(min(loss, 50.0))


def _base_figure(journey: Journey, rows: Rows) -> str:
    curve = charts.points(rows, "loss")
    if not curve:
        return ""
    first, last = _ends(curve)
    vocab = dig(journey, "plan", "vocab_size")
    among = f" of {whole(vocab)}" if vocab else ""
    sentence = (
        f"From <b>{number(first)}</b> to <b>{number(last)}</b> nats: it ends hesitating between about "
        f"<b>{number(perplexity(last), 1)}</b>{among} tokens at each step, and began with {whole(perplexity(first))}."
        if len(curve) > 1
        else f"A single step, at <b>{number(first)}</b> nats: too short to learn from."
    )
    svg = charts.loss_chart("base", {"base": curve}, "Loss of the base model over tokens", vocab)
    return figure("Pretraining", "預訓練", svg, sentence)


def _sft_figure(logs: dict[str, Rows]) -> str:
    curves = {name: charts.points(logs[name], "loss") for name in ("sft", "control")}
    if not curves["sft"]:
        return ""
    first, last = _ends(curves["sft"])
    sentence = f"Loss on the answers' tokens only, from <b>{number(first)}</b> to <b>{number(last)}</b> nats"
    if curves["control"]:
        start, end = _ends(curves["control"])
        sentence += f"; without pretraining the same lessons go from <b>{number(start)}</b> to <b>{number(end)}</b>"
        sentence += (
            "." if end > last else " (lower on the lessons is not better on new questions: see the exact matches)."
        )
    else:
        sentence += "."
    svg = charts.loss_chart("sft", curves, "Loss of SFT and of the control over tokens")
    return figure("SFT, pretrained and from scratch", "監督式微調", svg, sentence)


def _pair_figures(logs: dict[str, Rows]) -> list[str]:
    """Accuracy and gap of the reward model and of DPO, and how DPO moved chosen and rejected answers."""

    def both(key: str) -> dict[tuple[str, str], list[charts.Point]]:
        # at its first step DPO is its own reference: the gap is exactly 0 and ranks nothing
        ranked = {n: [row for row in logs[n] if row.get("reward_gap") != 0] for n in ("aligned", "reward")}
        found = {(n, charts.NAMES[n]): charts.points(rows, key, over="step") for n, rows in ranked.items()}
        return {name: curve for name, curve in found.items() if curve}

    made = []
    if accuracy := both("accuracy"):
        ends = " and ".join(
            f"{name} from {percent(_ends(c)[0])} to <b>{percent(_ends(c)[1])}</b>" for (_, name), c in accuracy.items()
        )
        svg = charts.step_chart(
            "accuracy", accuracy, "Share of pairs ranked right over steps", "pairs ranked right", chance=0.5
        )
        made.append(
            figure(
                "Telling better from worse",
                "分辨好壞",
                svg,
                f"Training pairs in which the chosen answer scores higher: {ends}.",
            )
        )
    if gap := both("reward_gap"):
        ends = " and ".join(f"{name} reaches <b>{number(_ends(c)[1])}</b>" for (_, name), c in gap.items())
        svg = charts.step_chart("gap", gap, "Reward gap over steps", "reward gap, log-odds")
        made.append(
            figure(
                "How sure it is",
                "有多確定",
                svg,
                f"Reward of the chosen minus the rejected answer: {ends} (0 is undecided, 3 is odds of 20 to 1).",
            )
        )
    shifts = {("aligned", "chosen"): charts.points(logs["aligned"], "chosen_shift", over="step"),
              ("control", "rejected"): charts.points(logs["aligned"], "rejected_shift", over="step")}  # fmt: skip
    if all(shifts.values()):
        chosen, rejected = (_ends(c)[1] for c in shifts.values())
        way = "Both fall, the rejected further: DPO asks only for the difference" if chosen < 0 and rejected < chosen else (
            "The liked answer is pulled closer, the other pushed away" if rejected < 0 <= chosen else "Both move")  # fmt: skip
        svg = charts.step_chart("shift", shifts, "Shift of chosen and rejected answers over steps", "nats per answer")
        made.append(
            figure(
                "Pull closer, push away",
                "拉近與推遠",
                svg,
                f"{way}. Log-probability against the SFT model: chosen <b>{signed(chosen)}</b>, rejected <b>{signed(rejected)}</b>.",
            )
        )
    return made


def curves(journey: Journey, logs: dict[str, Rows]) -> str:
    figures = [f for f in (_base_figure(journey, logs["base"]), _sft_figure(logs), *_pair_figures(logs)) if f]
    if not figures:
        return ""
    lines = [
        "Predicting the next token is a classification whose classes are the vocabulary. The loss is the mean of "
        "&minus;ln(probability given to the token that came), in nats; e<sup>loss</sup>, the perplexity, is the number of equally "
        "likely tokens it hesitates between.",
        "Pairs say only which of two answers is better. A reward model learns a number for each answer; DPO's reward is how much "
        "likelier an answer became than it was after SFT. The gap between the two rewards is the log-odds that the chosen one wins."
        if logs["reward"] or logs["aligned"] else "",
        "A line is the mean of neighbouring steps; the band around it spans their lowest and highest.",
    ]  # fmt: skip
    reading = f'<div class="tile">{heading("How to read these", "怎麼看", 3)}{"".join(paragraph([line]) for line in lines)}</div>'
    return f'<div class="grid">{"".join(figures)}{reading}</div>'


# --- scores ---------------------------------------------------------------------------------------------------------


def _often(bucket: dict[str, Any]) -> str:
    return "once" if bucket["high"] == 1 else f"{charts.bucket_name(bucket)} times"


def by_count(journey: Journey) -> str:
    buckets = [b for b in journey.get("exact_match_by_count") or [] if b.get("questions")]
    svg = charts.count_chart(buckets, "Exact match by how often the text states the fact")
    if not svg:
        return ""
    models = [m for m in ("sft", "aligned", "control") if any(b.get(m) is not None for b in buckets)]
    rows = [[charts.bucket_name(b), whole(b["questions"]), *(percent(b.get(m)) for m in models)] for b in buckets]
    sentence = "Bars are 95% intervals."
    if ends := well_sampled(buckets, "sft"):
        low, high = ends
        rise = "" if high["sft"] > low["sft"] else ": no rise to be seen in this run"
        sentence = (
            f"Of facts stated {_often(low)} the SFT model gets <b>{percent(low['sft'])}</b> right, of those stated "
            f"{_often(high)} <b>{percent(high['sft'])}</b>{rise}. Bars are 95% intervals."
        )
    words = [
        "The questions were kept out of the lessons, so whatever the model gets right about them it knows from pretraining: "
        "SFT teaches how to answer, not what is true.",
        "The control, which had the same lessons and no pretraining, shows how far the lessons alone lead."
        if "control" in models
        else "",
    ]
    made = figure("Exact match by how often a fact was read", "答對率", svg, sentence)
    head = ["Stated", "Asked", *(HEADS[m] for m in models)]
    tile = f'<div class="tile">{heading("The same in figures", "數字", 3)}{table(head, rows)}</div>'
    return f'{paragraph(words, "text")}<div class="grid">{made}{tile}</div>'


def _score_rows(journey: Journey, names: list[str]) -> list[list[str]]:
    known = {n: dict(entry(journey, n)) for n in names}
    if "accuracy_heldout" in known.get("reward", {}):
        known["reward"]["preference_accuracy_heldout"] = known["reward"]["accuracy_heldout"]
    specs = [
        ("Bits per byte", "to write down unseen text of the first stage; lower is better", "bits_per_byte", number),
        ("Answers", "share of questions met with an answer, right or wrong", "answer_rate", percent),
        ("Stops", "share of answers the model ends by itself", "stop_rate", percent),
        ("Exactly right", "share of questions kept out of the lessons, about facts the text states often", "exact_match_heldout", percent),
    ]  # fmt: skip
    languages = sorted({code for v in known.values() for code in v.get("exact_match_by_language") or {}})
    for code in languages:
        for values in known.values():
            values[f"exact {code}"] = dig(values, "exact_match_by_language", code)
        specs.append((f"Exactly right {_LANGUAGES.get(code) or isolated(code, 40)}", "", f"exact {code}", percent))
    specs += [
        ("Wins against SFT", "share of prompts where its answer is the better one, ties as half", "win_rate_vs_sft", percent),
        ("Ranks unseen pairs", "share of held-out pairs whose chosen answer it scores higher; a coin gets 50%", "preference_accuracy_heldout", percent),
        ("Refuses dangerous requests", "higher is better", "refusal_rate_dangerous", percent),
        ("Refuses harmless requests", "that only sound dangerous; lower is better", "refusal_rate_borderline", percent),
    ]  # fmt: skip
    rows = []
    for label, meaning, key, write in specs:
        cells = [write(known[n].get(key)) for n in names]
        if key == "win_rate_vs_sft" and (interval := known.get("aligned", {}).get("win_rate_interval")):
            cells[names.index("aligned")] += f"<br><small>{percent(interval[0])}–{percent(interval[1])}</small>"
        if any(cell != ABSENT for cell in cells):
            rows.append([f"{label}{f'<small>{meaning}</small>' if meaning else ''}", *cells])
    return rows


def scores(journey: Journey) -> str:
    names = [n for n in HEADS if entry(journey, n)]
    rows = _score_rows(journey, names)
    note = (
        f'<p class="note">{ABSENT} was not measured for this model.</p>' if any(ABSENT in row for row in rows) else ""
    )
    return table(["", *(HEADS[n] for n in names)], rows, kind="scores") + note if rows else ""
