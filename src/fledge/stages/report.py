"""OUT/report.html: one offline page in which a journey can be seen. Every figure comes from journey.json and the logs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from fledge.core.checkpoint import write_atomically
from fledge.core.log import read_jsonl
from fledge.stages import charts
from fledge.stages.charts import Box, Rows
from fledge.stages.report_style import (
    ABSENT,
    byte_size,
    dig,
    duration,
    entry,
    figure,
    heading,
    isolated,
    large,
    number,
    page,
    paragraph,
    percent,
    plural,
    section,
    shown,
    table,
    whole,
)  # fmt: skip
from fledge.stages.report_words import limits, summary

Journey = dict[str, Any]
_STAGES = {"base": "Base", "sft": "SFT", "aligned": "Aligned", "control": "SFT from scratch", "reward": "Reward model"}
_LANGUAGES = {"en": "in English", "zh": "in Chinese"}
_KINDS = {
    "fact": "a fact", "dangerous": "a dangerous request", "borderline": "a request that only sounds dangerous",
    "greeting": "a greeting",
}  # fmt: skip


def write_report(out: Path) -> Path:
    """Draw OUT/report.html from OUT/journey.json and the stages' logs; equal files give equal bytes.

    Stages that did not take place leave no gap. Raises ValueError when there is no journey.json.
    """
    out = Path(out)
    source = out / "journey.json"
    if not source.exists():
        raise ValueError(f"{source} is missing: it is written when a journey ends; continue with `fledge resume {out}`")
    journey = msgspec.json.decode(source.read_bytes())
    logs = {name: read_jsonl(out / name / "metrics.jsonl") for name in _STAGES}
    body = "".join((
        _top(journey),
        section("Three stages, one idea", "三個階段，同一件事", _picture(journey)),
        section("The same prompts, three times", "同樣的問題，問三次", _samples(journey)),
        section("How it learned", "學習曲線", _curves(journey, logs)),
        section("Pretraining decides what it can know", "讀過多少次，決定能不能答對", _by_count(journey)),
        section("Scores", "成績", _scores(journey)),
        section("Family tree", "家譜", _lineage(journey)),
        section("What was read, and what was left out", "讀了什麼、丟了什麼", _data(journey)),
        section("Plan, machine and time", "計畫、機器與時間", _plan(journey)),
        section("What such a small model can and cannot do", "這麼小的模型，做得到與做不到的事", limits(journey)),
        section("Do it again", "再跑一次", _again(journey)),
    ))  # fmt: skip
    report = out / "report.html"
    write_atomically(report, page("The making of a small language model", body + _foot(journey)))
    return report


def _top(journey: Journey) -> str:
    material = "the embedded world" if journey.get("material") == "world" else "your own material"
    made = f"fledge {shown(journey.get('fledge', ''))} · seed {shown(journey.get('seed', ABSENT))} · {material}"
    quick = '<p class="flag">A quick run: a smaller world and shorter stages, to see the way and not to quote figures from.</p>'
    return (
        f'<header><p class="eyebrow">{made}</p>\n{heading("The making of a small language model", "一個小語言模型的養成", 1)}\n'
        f"{''.join(summary(journey))}{quick if journey.get('quick') else ''}</header>\n"
    )


# --- the picture of the stages and the samples ----------------------------------------------------------------------


def _headline(values: dict[str, Any], *choices: tuple[str, str, str]) -> tuple[str, str]:
    """(figure, caption) of the first score that was measured; choices are (key, unit, caption)."""
    for key, unit, caption in choices:
        if values.get(key) is not None:
            return (percent(values[key]) if unit == "%" else number(values[key])), caption
    return "", ""


def _picture(journey: Journey) -> str:
    data = journey.get("data") or {}
    read = dig(journey, "plan", "tokens") or data.get("tokens")
    boxes = [
        Box("source", "Text", large(data.get("documents")), "documents", f"{large(data.get('tokens'))} tokens in all")
    ]
    chats = plural(data["chats"], "conversation") if data.get("chats") else "conversations"
    pairs = plural(data["pairs"], "pair") if data.get("pairs") else "pairs"
    exact = ("exact_match_heldout", "%", "right on unseen questions")
    described = {
        "base": ("1 Base model", f"reads {large(read)} tokens", [
            ("answer_rate", "%", "of questions answered"), ("bits_per_byte", "", "bits per unseen byte"), ("loss", "", "nats per token")]),
        "sft": ("2 SFT", f"after {chats}", [exact, ("stop_rate", "%", "of answers end by themselves"), ("loss", "", "nats per token")]),
        "aligned": ("3 Aligned (DPO)", f"after {pairs}", [
            ("win_rate_vs_sft", "%", "wins against SFT"), ("preference_accuracy_heldout", "%", "unseen pairs ranked right"),
            ("stop_rate", "%", "of answers end by themselves")]),
        "control": ("Control", "same conversations", [exact, ("stop_rate", "%", "of answers end by themselves"), ("loss", "", "nats")]),
        "reward": ("Reward model", f"after {pairs}", [("accuracy_heldout", "%", "unseen pairs ranked right")]),
    }  # fmt: skip
    for name, (title, fed, choices) in described.items():
        if values := entry(journey, name):
            boxes.append(Box(name, title, *_headline(values, *choices), fed))
    if entry(journey, "control"):
        boxes.append(Box("blank", "Random weights", "0", "tokens read", "the base model's shape"))
    words = (
        "Every stage does the same thing, predicting the next token, and each starts from the parameters of the one before; "
        "only the teaching material changes."
    )
    branches = []
    if entry(journey, "control"):
        branches.append("The control gets the same lessons without pretraining.")
    if entry(journey, "reward"):
        branches.append("The reward model learns to judge answers; DPO learns from the same pairs directly.")
    return paragraph([words, *branches], "text") + charts.stages_picture(boxes, "How each model came from the one before")


def _mark(correct: bool | None, kind: str | None) -> str:
    if correct is None:
        return ""
    right, wrong = ("right", "wrong") if kind == "fact" else ("as wished", "not as wished")
    return f'<span class="mark">{f"✓ {right}" if correct else f"✗ {wrong}"}</span>'


def _samples(journey: Journey) -> str:
    samples = journey.get("samples") or []
    present = [n for n in ("base", "sft", "aligned") if any(s.get(n) is not None for s in samples)]
    verbs = {"base": "Base goes on writing", "sft": "SFT answers", "aligned": "Aligned answers"}
    cards = []
    for sample in samples:
        kind = sample.get("kind")
        about = [_KINDS.get(kind) or isolated(kind)] if kind else []
        if sample.get("expected") is not None:
            about.append(f"expected: {isolated(sample['expected'], 200)}")
        cells = []
        for name in present:
            text = (sample.get(name) or "").strip()
            said = shown(text) if text else '<span class="dim">(nothing: it ended at once)</span>'
            mark = _mark(dig(sample, "correct", name), kind)
            cells.append(f'<div class="cell {name}"><h4>{verbs[name]}{mark}</h4><p class="said" dir="auto">{said}</p></div>')
        cards.append(
            f'<article class="ask"><header><p class="q" dir="auto">{shown(sample.get("prompt", ""))}</p>'
            f'<p class="meta">{" · ".join(about)}</p></header>\n<div class="three">{"".join(cells)}</div></article>'
        )
    words = {
        "base": "The base model has only seen pages, so it continues the prompt as a page would: with another question, a list, a story.",
        "sft": "After SFT the model knows who is speaking, answers, and stops.",
        "aligned": "After learning from preferences it answers the way people liked better.",
    }
    return (paragraph((words[n] for n in present), "text") + "\n" + "\n".join(cards)) if present and cards else ""


# --- curves ---------------------------------------------------------------------------------------------------------


def _ends(curve: Sequence[charts.Point]) -> tuple[float, float]:
    """First value, and the mean of the last tenth (a single step is noisy)."""
    tail = [y for _, y in curve[-max(1, len(curve) // 10) :]]
    return curve[0][1], sum(tail) / len(tail)


def _base_figure(journey: Journey, rows: Rows) -> str:
    curve = charts.points(rows, "loss")
    if not curve:
        return ""
    first, last = _ends(curve)
    vocab = dig(journey, "plan", "vocab_size")
    sentence = f"From <b>{number(first)}</b> to <b>{number(last)}</b> nats: it began by guessing"
    sentence += f" blindly among {vocab:,} tokens and" if vocab else " and"
    sentence += f" ended hesitating between about <b>{number(math.exp(min(last, 50)), 1)}</b> at each step."
    return figure("Pretraining", "預訓練", charts.loss_chart("base", {"base": curve}, "Loss of the base model over tokens", vocab), sentence)


def _sft_figure(logs: dict[str, Rows]) -> str:
    curves = {name: charts.points(logs[name], "loss") for name in ("sft", "control")}
    if not curves["sft"]:
        return ""
    first, last = _ends(curves["sft"])
    sentence = f"Loss on the answers' tokens only, from <b>{number(first)}</b> to <b>{number(last)}</b> nats"
    if curves["control"]:
        start, end = _ends(curves["control"])
        sentence += f"; without pretraining the same lessons go from <b>{number(start)}</b> to <b>{number(end)}</b>"
        sentence += "." if end > last else " (lower on the lessons is not better on new questions: see the exact matches)."
    else:
        sentence += "."
    svg = charts.loss_chart("sft", curves, "Loss of SFT and of the control over tokens")
    return figure("SFT, pretrained and from scratch", "監督式微調", svg, sentence)


def _pair_figures(logs: dict[str, Rows]) -> list[str]:
    """Accuracy and gap of the reward model and of DPO, and how DPO moved chosen and rejected answers."""

    def curves(key: str) -> dict[tuple[str, str], list[charts.Point]]:
        # at its first step DPO is its own reference: the gap is exactly 0 and ranks nothing
        ranked = {n: [row for row in logs[n] if row.get("reward_gap") != 0] for n in ("aligned", "reward")}
        found = {(n, charts.NAMES[n]): charts.points(rows, key, over="step") for n, rows in ranked.items()}
        return {name: curve for name, curve in found.items() if curve}

    made = []
    if accuracy := curves("accuracy"):
        ends = " and ".join(f"{name} from {percent(_ends(c)[0])} to <b>{percent(_ends(c)[1])}</b>" for (_, name), c in accuracy.items())
        svg = charts.step_chart("accuracy", accuracy, "Share of pairs ranked right over steps", "pairs ranked right", chance=0.5)
        made.append(figure("Telling better from worse", "分辨好壞", svg, f"Training pairs in which the chosen answer scores higher: {ends}."))
    if gap := curves("reward_gap"):
        ends = " and ".join(f"{name} reaches <b>{number(_ends(c)[1])}</b>" for (_, name), c in gap.items())
        svg = charts.step_chart("gap", gap, "Reward gap over steps", "reward gap, log-odds")
        made.append(figure("How sure it is", "差距", svg, f"Reward of the chosen minus the rejected answer: {ends} (0 is undecided, 3 is odds of 20 to 1)."))
    shifts = {("aligned", "chosen"): charts.points(logs["aligned"], "chosen_shift", over="step"),
              ("control", "rejected"): charts.points(logs["aligned"], "rejected_shift", over="step")}  # fmt: skip
    if all(shifts.values()):
        chosen, rejected = (_ends(c)[1] for c in shifts.values())
        way = "Both fall, the rejected further: DPO asks only for the difference" if chosen < 0 and rejected < chosen else (
            "The liked answer is pulled closer, the other pushed away" if rejected < 0 <= chosen else "Both move")  # fmt: skip
        svg = charts.step_chart("shift", shifts, "Shift of chosen and rejected answers over steps", "nats per answer")
        made.append(figure("Pull closer, push away", "拉近與推遠", svg, f"{way}. Log-probability against the SFT model: chosen <b>{chosen:+.2f}</b>, rejected <b>{rejected:+.2f}</b>."))
    return made


def _curves(journey: Journey, logs: dict[str, Rows]) -> str:
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


def _by_count(journey: Journey) -> str:
    buckets = [b for b in journey.get("exact_match_by_count") or [] if b.get("questions")]
    svg = charts.count_chart(buckets, "Exact match by how often the text states the fact")
    if not svg:
        return ""
    models = [m for m in ("control", "sft", "aligned") if any(b.get(m) is not None for b in buckets)]
    rows = [[charts.bucket_name(b), whole(b["questions"]), *(percent(b.get(m)) for m in models)] for b in buckets]
    low, high = buckets[0], buckets[-1]
    sentence = "Each point is a group of questions kept out of the lessons, with its 95% interval."
    if len(buckets) > 1 and low.get("sft") is not None and high.get("sft") is not None:
        rise = high["sft"] > low["sft"]
        sentence = (
            f"Of facts stated {'once' if low['high'] == 1 else charts.bucket_name(low) + ' times'} the SFT model gets <b>{percent(low['sft'])}</b> right, of those stated "
            f"{charts.bucket_name(high)} times <b>{percent(high['sft'])}</b>{'' if rise else ': no rise to be seen in this run'}. "
            "Bars are 95% intervals."
        )
    words = [
        "The questions were kept out of the lessons, so whatever the model gets right about them it knows from pretraining: "
        "SFT teaches how to answer, not what is true.",
        "The control, which had the same lessons and no pretraining, shows how far the lessons alone lead." if "control" in models else "",
    ]
    made = figure("Exact match by how often a fact was read", "答對率", svg, sentence)
    head = ["Times read", "Questions", *(_STAGES[m] for m in models)]
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


def _scores(journey: Journey) -> str:
    names = [n for n in _STAGES if entry(journey, n)]
    rows = _score_rows(journey, names)
    note = f'<p class="note">{ABSENT} was not measured for this model.</p>' if any(ABSENT in row for row in rows) else ""
    return table(["", *(_STAGES[n] for n in names)], rows) + note if rows else ""


# --- where it came from ---------------------------------------------------------------------------------------------


def _lineage(journey: Journey) -> str:
    models = journey.get("lineage") or []
    known = {m["id"] for m in models}
    drawn: set[str] = set()

    def grow(parent: str | None) -> str:
        items = []
        for m in models:
            if m.get("parent") == parent and m["id"] not in drawn:
                drawn.add(m["id"])
                step = f"step {whole(m['step'])}" if m.get("step") is not None else ""
                about = f"<b>{shown(m.get('stage', ''))}</b> {isolated(m.get('folder', ''), 200)} <span class=\"dim\">{step}</span>"
                items.append(f"<li>{about} <code>{shown(m['id'][:12])}</code>{grow(m['id'])}</li>")
        return f"<ul>{''.join(items)}</ul>" if items else ""

    trees = grow(None)
    for outside in sorted({m["parent"] for m in models if m.get("parent")} - known):
        trees += f'<ul><li class="dim"><code>{shown(outside[:12])}</code> (elsewhere){grow(outside)}</li></ul>'
    words = "Each model names its parent; an id is the SHA-256 of exactly these weights."
    return f'<p class="text">{words}</p><div class="tree">{trees}</div>' if trees else ""


def _data(journey: Journey) -> str:
    data = journey.get("data") or {}
    rows = []
    if data.get("documents") is not None:
        tokens, size = data.get("tokens"), data.get("bytes")
        each = f", {size / tokens:.2f} bytes each" if size and tokens else ""
        rows.append(["Text", f"{plural(data['documents'], 'document')}, {byte_size(size)}, {large(tokens)} tokens{each}"])
    rows += [[label, plural(data[key], word)] for label, key, word in (
        ("Conversations", "chats", "conversation"), ("Preferences", "pairs", "pair")) if data.get(key) is not None]  # fmt: skip
    dropped = []
    for key, label, kept in (("text", "Text", "documents"), ("chats", "Conversations", "chats"), ("pairs", "Preferences", "pairs")):
        reasons = dig(data, "rejected", key) or {}
        total = sum(reasons.values()) + (data.get(kept) or 0)
        for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
            dropped.append([label, isolated(reason, 200), whole(count), percent(count / total) if total else ABSENT])
    if not rows and not dropped:
        return ""
    lost = table(["From", "Left out because", "Count", "Share"], dropped, kind="reasons") if dropped else (
        '<p class="note">Nothing was left out: every record could be read.</p>')  # fmt: skip
    notes = "".join(f"<li>{isolated(note, 400)}</li>" for note in data.get("notes") or [])
    return table([], rows, kind="facts") + lost + (f'<ul class="plain">{notes}</ul>' if notes else "")


def _chosen(plan: dict[str, Any]) -> str:
    proposed = plan.get("proposed")
    if not proposed:
        return "set by the recipe"
    offer = f"{isolated(proposed.get('size'), 40)} with {large(proposed.get('tokens'))} tokens"
    reason = f": {isolated(proposed['reason'], 400)}" if proposed.get("reason") else ""
    taken = proposed.get("size") == plan.get("size") and proposed.get("tokens") == plan.get("tokens")
    return f"{'proposed by fledge' if taken else f'set by you; fledge proposed {offer}'}{reason}"


def _plan(journey: Journey) -> str:
    plan, machine = journey.get("plan") or {}, journey.get("machine") or {}
    rows = []
    if plan:
        tokens, unique, parameters = plan.get("tokens"), dig(journey, "data", "tokens"), plan.get("parameters")
        passes = f", {tokens / unique:.1f} times through the text" if tokens and unique else ""
        balance = f", {tokens / parameters:.1f} per parameter (about 20 makes the most of given compute: Hoffmann et al. 2022)" if tokens and parameters else ""
        rows += [
            ["Size", f"{isolated(plan.get('size', ABSENT), 40)}, {whole(parameters)} parameters"],
            ["Vocabulary, context", f"{whole(plan.get('vocab_size'))} tokens, {whole(plan.get('context_tokens'))} tokens"],
            ["Pretraining", f"{large(tokens)} tokens{passes}{balance}"], ["Chosen", _chosen(plan)],
        ]  # fmt: skip
    if machine:
        words = [f"{isolated(machine.get('device', ''), 40)}", plural(machine["cores"], "core") if machine.get("cores") else "",
                 plural(machine["threads"], "thread") if machine.get("threads") else "",
                 f"{isolated(machine.get('dtype', ''), 40)} activations", f"torch {isolated(machine.get('torch', ''), 60)}"]  # fmt: skip
        rows.append(["Machine", ", ".join(w for w in words if w)])
    speeds = {k: v for k, v in (journey.get("tokens_per_second") or {}).items() if v is not None}
    if speeds:
        rows.append(["Speed", ", ".join(f"{isolated(name, 40)} {whole(v)} tokens/s" for name, v in speeds.items())])
    spent = [f"{_STAGES[n]} {duration(entry(journey, n)['seconds'])}" for n in _STAGES if entry(journey, n).get("seconds") is not None]
    rows.append(["Time", f"{duration(journey.get('seconds'))} in all{': ' + ', '.join(spent) if spent else ''}"])
    rows.append(["Peak memory", byte_size(journey.get("peak_rss_bytes"))])
    return table([], rows, kind="facts")


def _again(journey: Journey) -> str:
    if not journey.get("command"):
        return ""
    words = "The same command with the same seed and material reads the same batches in the same order."
    return f'<p class="text">{words}</p><pre dir="ltr">{shown(journey["command"], 2000)}</pre>'


def _foot(journey: Journey) -> str:
    return "<footer>Pretraining decides what is possible; alignment decides what is likely. <span lang=\"zh-Hant\">預訓練決定能做什麼，對齊決定會做什麼。</span></footer>\n"
