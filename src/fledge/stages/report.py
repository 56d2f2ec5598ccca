"""OUT/report.html: one offline page in which a journey can be seen. Every figure comes from journey.json and the logs."""

from pathlib import Path
from typing import Any

import msgspec

from fledge.core.checkpoint import write_atomically
from fledge.core.log import read_jsonl
from fledge.curate.funnel import Funnel
from fledge.curate.funnel_page import funnel_chart, sentence
from fledge.stages import charts, report_figures
from fledge.stages.charts import Box
from fledge.stages.report_figures import HEADS
from fledge.stages.report_style import (
    ABSENT,
    byte_size,
    dig,
    duration,
    entry,
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
_JUNK = {
    "good": "good pages", "copy": "copies of good pages", "noise": "noise: hundreds of times one sound",
    "spam": "keyword spam", "wrong": "wrong facts", "boilerplate": "menus and other boilerplate",
}  # fmt: skip
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
    logs = {name: read_jsonl(out / name / "metrics.jsonl") for name in HEADS}
    body = "".join((
        _top(journey),
        section("Three stages, one idea", "三個階段，同一件事", _picture(journey)),
        section("Before the first stage: what is worth reading", "第零步：什麼值得讀", _curation(journey)),
        section("The same prompts, stage by stage", "同樣的問題，每個階段各問一次", _samples(journey)),
        section("How it learned", "學習曲線", report_figures.curves(journey, logs)),
        section("Pretraining decides what it can know", "讀過多少次，決定能不能答對", report_figures.by_count(journey)),
        section("Scores", "成績", report_figures.scores(journey)),
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
        Box(
            "source",
            "Text",
            whole(data.get("documents")),
            "document" if data.get("documents") == 1 else "documents",
            f"{large(data.get('tokens'))} tokens in all",
        )
    ]
    chats = plural(data["chats"], "conversation") if data.get("chats") else "conversations"
    pairs = plural(data["pairs"], "pair") if data.get("pairs") else "pairs"
    exact = ("exact_match_heldout", "%", "right on unseen questions")
    described = {
        "base": ("1 Base model", f"reads {large(read)} tokens", [
            ("answer_rate", "%", "of questions answered"), ("bits_per_byte", "", "bits per unseen byte"), ("loss", "", "nats per token")]),
        "sft": ("2 SFT", f"after {chats}", [exact, ("stop_rate", "%", "of answers come to an end"), ("loss", "", "nats per token")]),
        "aligned": ("3 Aligned (DPO)", f"after {pairs}", [
            ("win_rate_vs_sft", "%", "wins against SFT"), ("preference_accuracy_heldout", "%", "unseen pairs ranked right"),
            ("stop_rate", "%", "of answers come to an end")]),
        "control": ("Control", "same conversations", [exact, ("stop_rate", "%", "of answers come to an end"), ("loss", "", "nats")]),
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
    return paragraph([words, *branches], "text") + charts.stages_picture(
        boxes, "How each model came from the one before"
    )


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
        about = [_KINDS[kind]] if kind in _KINDS else []
        if sample.get("expected") is not None:
            about.append(f"{'expected' if kind == 'fact' else 'a good answer'}: {isolated(sample['expected'], 200)}")
        cells = []
        for name in present:
            text = (sample.get(name) or "").strip()
            said = shown(text, 480) if text else '<span class="dim">(nothing: it ended at once)</span>'
            mark = _mark(dig(sample, "correct", name), kind)
            cells.append(
                f'<div class="cell {name}"><h4>{verbs[name]}{mark}</h4><p class="said" dir="auto">{said}</p></div>'
            )
        cards.append(
            f'<article class="ask"><header><p class="q" dir="auto">{shown(sample.get("prompt", ""))}</p>'
            f'<p class="meta">{" · ".join(about)}</p></header>\n<div class="three">{"".join(cells)}</div></article>'
        )
    return f"{paragraph(_about_samples(journey, present), 'text')}\n{''.join(cards)}" if present and cards else ""


def _about_samples(journey: Journey, present: list[str]) -> list[str]:
    stops = entry(journey, "sft").get("stop_rate")
    words = {
        "base": "The base model has only seen pages, so it continues a prompt as a page would: with another question, a list of "
        "options, the next sentence, and now and then the answer.",
        "sft": f"After SFT the model knows who is speaking, answers, and {'' if stops is None or stops > 0.95 else 'mostly '}stops.",
        "aligned": "After learning from preferences it answers more in the way that was liked.",
    }
    own = (
        ["The prompts are beginnings of unseen documents."]
        if present == ["base"] and journey.get("material") == "yours"
        else []
    )
    return own + [words[name] for name in present]


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
                about = f'<b>{shown(m.get("stage", ""))}</b> {isolated(m.get("folder", ""), 200)} <span class="dim">{step}</span>'
                items.append(f"<li>{about} <code>{shown(m['id'][:12])}</code>{grow(m['id'])}</li>")
        return f"<ul>{''.join(items)}</ul>" if items else ""

    trees = grow(None)
    for outside in sorted({m["parent"] for m in models if m.get("parent")} - known):
        trees += f'<ul><li class="dim"><code>{shown(outside[:12])}</code> (elsewhere){grow(outside)}</li></ul>'
    words = "Each model names its parent; an id is the SHA-256 of exactly these weights."
    return f'<p class="text">{words}</p><div class="tree">{trees}</div>' if trees else ""


def _curation(journey: Journey) -> str:
    """The funnel of what was curated and, for the embedded world, how far the rules found the junk in it."""
    held = journey.get("curation")
    if not held:
        return ""
    funnel = msgspec.convert(held["funnel"], Funnel)
    found = []
    for row in held.get("truth") or []:
        kind = _JUNK.get(row["kind"], row["kind"].replace("_", " "))
        found.append([shown(kind, 60), whole(row["pages"]), whole(row["dropped"]), percent(row["dropped"] / row["pages"])])
    told = "The embedded world knows which of its pages are junk, and what the rules made of them: wrong facts read like "\
        "right ones, so no rule of form finds them. Good pages that say word for word the same go, too."  # fmt: skip
    truth = table(["What it is", "Pages", "Dropped", "Share"], found)
    page = '<p class="note">Every rule, with samples of what it dropped: <code>clean/funnel.html</code>.</p>'
    return paragraph([sentence(funnel)], "text") + funnel_chart(funnel) + (paragraph([told], "text note") + truth if found else "") + page


def _data(journey: Journey) -> str:
    data = journey.get("data") or {}
    rows = []
    if data.get("documents") is not None:
        tokens, size = data.get("tokens"), data.get("bytes")
        each = f", {size / tokens:.2f} bytes each" if size and tokens else ""
        rows.append(
            ["Text", f"{plural(data['documents'], 'document')}, {byte_size(size)}, {large(tokens)} tokens{each}"]
        )
    rows += [[label, plural(data[key], word)] for label, key, word in (
        ("Conversations", "chats", "conversation"), ("Preferences", "pairs", "pair")) if data.get(key) is not None]  # fmt: skip
    dropped = []
    for key, label, kept in (
        ("text", "Text", "documents"),
        ("chats", "Conversations", "chats"),
        ("pairs", "Preferences", "pairs"),
    ):
        found = dig(data, "rejected", key) or {}
        reasons = found.get("by_reason", found)
        total = sum(reasons.values()) + (data.get(kept) or 0)
        for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
            first = (dig(found, "samples", reason) or [{}])[0].get("source")
            place = f'<small class="dim">first at {isolated(first, 200)}</small>' if first else ""
            dropped.append(
                [label, isolated(reason, 200) + place, whole(count), percent(count / total) if total else ABSENT]
            )
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
        balance = (
            f", {tokens / parameters:.2g} per parameter (about 20 makes the most of given compute: Hoffmann et al. 2022)"
            if tokens and parameters
            else ""
        )
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
    spent = [
        f"{HEADS[n]} {duration(entry(journey, n)['seconds'])}"
        for n in HEADS
        if entry(journey, n).get("seconds") is not None
    ]
    rows.append(["Time", f"{duration(journey.get('seconds'))} in all{': ' + ', '.join(spent) if spent else ''}"])
    rows.append(["Peak memory", byte_size(journey.get("peak_rss_bytes"))])
    return table([], rows, kind="facts")


def _again(journey: Journey) -> str:
    if not journey.get("command"):
        return ""
    words = "The same command with the same seed and material reads the same batches in the same order."
    return f'<p class="text">{words}</p><pre dir="ltr">{shown(journey["command"], 2000)}</pre>'


def _foot(journey: Journey) -> str:
    return '<footer>Pretraining decides what is possible; alignment decides what is likely. <span lang="zh-Hant">預訓練決定能做什麼，對齊決定會做什麼。</span></footer>\n'
