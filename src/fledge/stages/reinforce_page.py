"""RUN/report.html: one offline page in which a reinforcement run can be seen. Its figures are the files'."""

from pathlib import Path
from typing import Any

import msgspec

from fledge.core.checkpoint import list_checkpoints, write_atomically
from fledge.core.log import read_jsonl
from fledge.stages.charts import Point, Rows, points, thin
from fledge.stages.panels import DASHES, Line, Panel, ends, panel_chart, plain
from fledge.stages.report_style import (
    ABSENT,
    dig,
    figure,
    heading,
    isolated,
    number,
    page,
    paragraph,
    percent,
    plural,
    section,
    shown,
    signed,
    table,
    whole,
)  # fmt: skip

_NAMES = {"reinforce": "REINFORCE", "a2c": "actor-critic", "ppo": "PPO", "grpo": "GRPO", "rloo": "RLOO"}
_SCORES = 5  # panels of held-out scores at most
_SETTINGS = {  # of the recipe, in this order; what only says where files lie is left out
    "method": "Method", "task": "Task", "prompts": "Prompts", "reward": "Reward", "watch": "Watched, not trained on",
    "prompts_per_update": "Prompts per update", "group_size": "Answers to each prompt",
    "max_tokens": "Longest answer, tokens", "epochs": "Times a rollout is used", "minibatches": "Steps in each",
    "baseline": "Baseline", "divisor": "Divisor", "clip": "Clip", "kl": "KL to the parent",
    "kl_coefficient": "Price of a nat", "kl_target": "KL aimed at, nats", "entropy_weight": "Entropy bonus",
    "shaping": "Shaping", "resample": "Rounds of new prompts", "cut_penalty": "Off for not ending",
}  # fmt: skip
_TRAIN = {
    "steps": "Steps", "lr": "Learning rate", "schedule": "Schedule", "optimizer": "Optimiser",
    "batch_tokens": "Batch, tokens", "weight_decay": "Weight decay", "clip": "Gradient clip", "seed": "Seed",
    "device": "Device", "precision": "Precision",
}  # fmt: skip


def write_page(run: Path) -> Path:
    """Draw RUN/report.html from metrics.jsonl, looks/, recipe.json and flags.json; equal files give equal bytes.

    A run that has just begun gives a short page. Raises ValueError where there is no recipe.json.
    """
    run = Path(run)
    source = run / "recipe.json"
    if not source.exists():
        raise ValueError(
            f"{source} is missing: {run} is no folder of a run; name one that `fledge reinforce` has begun"
        )
    recipe = msgspec.json.decode(source.read_bytes()).get("recipe") or {}
    rows = by_update(read_jsonl(run / "metrics.jsonl"))
    looks = [msgspec.json.decode(path.read_bytes()) for path in sorted((run / "looks").glob("*.json"))]
    flags = msgspec.json.decode((run / "flags.json").read_bytes()) if (run / "flags.json").exists() else None
    body = "".join((
        _top(recipe, rows, looks),
        section("Red flags", "警訊", _flags(flags)),
        section("How it went", "過程", _figures(rows, looks, flags or [])),
        section("The same questions, before and now", "同樣的問題，之前與現在", _samples(looks)),
        section("Settings", "設定", _settings(recipe, _card(run))),
    ))  # fmt: skip
    chinese = '<span lang="zh-Hant">好的拉近，壞的推遠。</span>'
    foot = f"<footer>Pull closer what scored well, push away what did not. {chinese}</footer>\n"
    report = run / "report.html"
    write_atomically(report, page("Learning from scored answers", body + foot))
    return report


def by_update(rows: Rows) -> list[dict[str, Any]]:
    """One row per update, its first: the steps of one rollout repeat what is noted of it."""
    found: dict[Any, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(row.get("update", ("step", row.get("step"))), row)
    return [row for row in found.values() if "step" in row]


def _card(run: Path) -> dict[str, Any]:
    """What the newest checkpoint says it was made from; empty before the first."""
    done = list_checkpoints(run)
    path = done[-1] / "card.json" if done else None
    return msgspec.json.decode(path.read_bytes()) if path and path.exists() else {}


def _top(recipe: dict[str, Any], rows: Rows, looks: list[dict[str, Any]]) -> str:
    method = str(recipe.get("method") or "")
    prompts = "own prompts" if recipe.get("prompts") else ""
    about = [_NAMES.get(method, shown(method, 40)), isolated(recipe["task"], 80) if recipe.get("task") else prompts,
             f"from {isolated(recipe['parent'], 120)}" if recipe.get("parent") else ""]  # fmt: skip
    told = [paragraph([_learnt(rows)], "lead sft"), paragraph([_held_out(looks)], "lead aligned")]
    return (
        f'<header><p class="eyebrow">{" · ".join(a for a in about if a)}</p>\n'
        f"{heading('Learning from scored answers', '從評分中學習', 1)}\n{''.join(told)}</header>\n"
    )


def _learnt(rows: Rows) -> str:
    reward = points(rows, "reward", over="step")
    if len(reward) < 2:
        return "It has just begun: there is no curve yet."
    first, now = ends(reward)
    moved = f"In <b>{plural(len(reward), 'update')}</b> the reward of its own answers went from "
    moved += f"<b>{number(first)}</b> to <b>{number(now)}</b>"
    kl = points(rows, "kl", over="step")
    return moved + (f", <b>{number(ends(kl)[1], 1)}</b> nats away from where it began." if kl else ".")


def _scores(looks: list[dict[str, Any]]) -> dict[str, list[Point]]:
    """Each held-out score over steps."""
    names = dict.fromkeys(name for look in looks for name in look.get("scores") or {})
    rows = [{"step": look.get("step") or 0, **(look.get("scores") or {})} for look in looks]
    found = {
        name: points([{"step": r["step"], "value": r.get(name)} for r in rows], "value", over="step") for name in names
    }
    return {name: curve for name, curve in found.items() if curve}


def _held_out(looks: list[dict[str, Any]]) -> str:
    said = [
        f"{isolated(name, 60)} from <b>{number(curve[0][1])}</b> to <b>{number(curve[-1][1])}</b>"
        for name, curve in _scores(looks).items() if len(curve) > 1
    ]  # fmt: skip
    questions = looks[-1].get("questions") if looks else None
    where = f"On {plural(questions, 'question')} it was never trained on" if questions else "On held-out questions"
    return f"{where}: {', '.join(said[:_SCORES])}." if said else ""


def _flags(flags: list[dict[str, Any]] | None) -> str:
    if flags is None:
        return ""
    if not flags:
        return '<p class="text">None was raised.</p>'
    items = "".join(
        f'<p class="flag"><b>{i}</b> <span class="dim">step {whole(flag.get("step"))}</span> '
        f"{isolated(flag.get('text') or '', 700)}</p>"
        for i, flag in enumerate(flags, 1)
    )
    return '<p class="text">Each is raised once; the numbers stand in the charts below.</p>' + items


# --- charts ---------------------------------------------------------------------------------------------------------


def _marks(flags: list[dict[str, Any]]) -> list[tuple[float, str]]:
    """(step, the numbers of the flags raised there)."""
    at: dict[float, list[str]] = {}
    for i, flag in enumerate(flags, 1):
        if isinstance(flag.get("step"), int | float):
            at.setdefault(float(flag["step"]), []).append(str(i))
    return [(step, ", ".join(numbers)) for step, numbers in sorted(at.items())]


def _figures(rows: Rows, looks: list[dict[str, Any]], flags: list[dict[str, Any]]) -> str:
    marks = _marks(flags)
    curves = {
        key: points(rows, key, over="step")
        for key in ("reward", "kl", "kl_coefficient", "entropy", "length", "cut_off", "no_signal")
    }
    made = [
        _reward(rows, curves["reward"], marks, max(1.15, 0.75 * min(_SCORES, len(_scores(looks))))),
        _heldout_figure(looks, marks),
        _kl(curves, marks),
    ]
    if curve := curves["entropy"]:
        first, now = ends(curve)
        sentence = (
            f"From <b>{number(first)}</b> to <b>{number(now)}</b> nats a token: how much it still hesitates between "
            "tokens. Near 0 "
            "it says the same whatever is drawn, and there is nothing left to compare."
        )
        svg = _single("entropy", "entropy, nats per token", curve, "reward", marks, "Entropy of the answers over steps")
        made.append(figure("Entropy", "熵", svg, sentence))
    made.append(_length(curves, marks))
    if curve := curves["no_signal"]:
        first, now = ends(curve)
        sentence = (
            f"From <b>{percent(first)}</b> to <b>{percent(now)}</b> of prompts whose answers all scored the same: "
            "they are "
            "too hard or already solved, and teach a method that compares answers to one prompt nothing."
        )
        svg = _single(
            "silent",
            "prompts without signal",
            curve,
            "control",
            marks,
            "Share of prompts without signal over steps",
            True,
        )
        made.append(figure("Prompts without signal", "沒有訊號的問題", svg, sentence))
    made = [m for m in made if m]
    note = (
        "A line is the mean of neighbouring updates and the band spans their lowest and highest; around the reward it "
        "is one deviation of the answers' rewards to either side."
    )
    return f'<div class="grid">{"".join(made)}</div><p class="note">{note}</p>' if made else ""


def _single(name: str, title: str, curve: list[Point], colour: str, marks: list, alt: str, share: bool = False) -> str:
    panel = Panel(title, [Line("", curve, colour)], percent=share, from_zero=True, height=1.15)
    return panel_chart(name, [panel], alt, over="training steps", marks=marks)


def _reward(rows: Rows, reward: list[Point], marks: list, height: float) -> str:
    """Drawn as tall as the held-out scores, which stand beside it."""
    if not reward:
        return ""
    both = [r for r in rows if all(points([r], key, over="step") for key in ("reward", "reward_std"))]
    band = []
    if both:
        low, high = (thin([(float(r["step"]), r["reward"] + sign * r["reward_std"]) for r in both]) for sign in (-1, 1))
        band = [(a[0], a[1], b[1]) for a, b in zip(low, high, strict=True)]
    first, now = ends(reward)
    spread = (
        f", with a deviation among answers of {number(ends(points(both, 'reward_std', over='step'))[1])} now"
        if both
        else ""
    )
    panel = Panel("reward of sampled answers", [Line("", reward, "sft", band=band)], height=height)
    svg = panel_chart(
        "reward", [panel], "Reward of sampled answers over steps, with its spread", over="training steps", marks=marks
    )
    return figure(
        "Reward", "獎勵", svg, f"From <b>{number(first)}</b> to <b>{number(now)}</b>{spread}. Sampled at temperature 1."
    )


def _heldout_figure(looks: list[dict[str, Any]], marks: list) -> str:
    found = list(_scores(looks).items())
    colours, kept = ("aligned", "sft", "base", "reward", "control"), found[:_SCORES]
    panels = [
        Panel(
            f"{plain(name, 40)}, held-out",
            [Line("", curve, colours[i], marker="o")],
            height=1.15 if len(kept) == 1 else 0.75,
        )
        for i, (name, curve) in enumerate(kept)
    ]
    svg = panel_chart("held-out", panels, "Scores on held-out questions over steps", over="training steps", marks=marks)
    best = [
        f"{isolated(name, 60)} is best at step <b>{whole(max(curve, key=lambda p: p[1])[0])}</b> "
        f"({number(max(y for _, y in curve))})"
        for name, curve in kept
    ]
    more = f" {plural(len(found) - _SCORES, 'more score')} in the looks folder." if len(found) > _SCORES else ""
    gamed = "Where one falls while the reward rises, the reward is probably being gamed."
    sentence = f"Questions it is not trained on: {'; '.join(best)}. {gamed}{more}"
    return figure("Held-out scores", "未見過的問題", svg, sentence)


def _kl(curves: dict[str, list[Point]], marks: list) -> str:
    curve, price = curves["kl"], curves["kl_coefficient"]
    if not curve:
        return ""
    panels = [Panel("KL to the parent, nats per answer", [Line("", curve, "base")], height=1.15)]
    first, now = ends(curve)
    moved = f"From <b>{number(first)}</b> to <b>{number(now)}</b> nats per answer"
    sentence = f"{moved}: how far it has gone from the model it started from."
    if len({y for _, y in price}) > 1:
        panels = [
            panels[0]._replace(height=0.9),
            Panel("price of a nat", [Line("", price, "control", DASHES[1])], height=0.6, from_zero=True),
        ]
        sentence += f" The price of a nat was adapted from {number(price[0][1], 3)} to {number(price[-1][1], 3)}."
    svg = panel_chart("kl", panels, "KL to the parent over steps", over="training steps", marks=marks)
    return figure("Distance", "離起點多遠", svg, sentence)


def _length(curves: dict[str, list[Point]], marks: list) -> str:
    length, cut = curves["length"], curves["cut_off"]
    if not length and not cut:
        return ""
    panels = [
        Panel("length, tokens", [Line("", length, "aligned")], height=0.75, from_zero=True),
        Panel("cut off before they ended", [Line("", cut, "reward")], percent=True, height=0.75, from_zero=True),
    ]
    said = []
    if length:
        said.append("Answers went from <b>{}</b> to <b>{}</b> tokens".format(*(number(v, 1) for v in ends(length))))
    if cut:
        said.append("the share that never ended from <b>{}</b> to <b>{}</b>".format(*map(percent, ends(cut))))
    sentence = "; ".join(said)
    svg = panel_chart(
        "length", panels, "Length of answers and share cut off over steps", over="training steps", marks=marks
    )
    return figure("Length", "長度", svg, f"{sentence[0].upper()}{sentence[1:]}.")


# --- samples and settings -------------------------------------------------------------------------------------------


def _samples(looks: list[dict[str, Any]]) -> str:
    if not looks:
        return ""
    first, last = looks[0], looks[-1]
    later = {str(s.get("prompt")): s for s in last.get("samples") or []} if len(looks) > 1 else {}
    cards = []
    for before in first.get("samples") or []:
        prompt = str(before.get("prompt"))
        cells = [_cell("Before", "sft", before)]
        if prompt in later:
            cells.append(_cell("Now", "aligned", later[prompt]))
        cards.append(
            f'<article class="ask"><header><p class="q" dir="auto">{shown(prompt)}</p></header>\n'
            f'<div class="three">{"".join(cells)}</div></article>'
        )
    if not cards:
        return ""
    words = f"Held-out prompts at step {whole(first.get('step') or 0)}" + (
        f" and at step {whole(last.get('step'))}" if later else ""
    )
    return paragraph([f"{words}, with the reward of each answer."], "text") + "".join(cards)


def _cell(name: str, kind: str, sample: dict[str, Any]) -> str:
    answer, reward = str(sample.get("answer") or "").strip(), sample.get("reward")
    said = shown(answer, 480) if answer else '<span class="dim">(nothing: it ended at once)</span>'
    told = signed(reward) if isinstance(reward, int | float) else ABSENT
    return (
        f'<div class="cell {kind}"><h4>{name}<span class="mark">reward {told}</span></h4>'
        f'<p class="said" dir="auto">{said}</p></div>'
    )


def _told(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(isolated(v, 200) for v in value) or "none"
    return (
        {None: ABSENT, True: "yes", False: "no"}[value]
        if value is None or isinstance(value, bool)
        else isolated(f"{value}", 200)
    )


def _settings(recipe: dict[str, Any], card: dict[str, Any]) -> str:
    """The recipe, completed by what its method and the data decided where the checkpoint tells."""
    used = recipe | {k: v for k, v in (dig(card, "data", "rollouts") or {}).items() if v is not None and k != "seed"}
    rows = [[label, _told(used[key])] for key, label in _SETTINGS.items() if used.get(key) not in (None, [], "")]
    train = recipe.get("train") or {}
    rows += [[label, _told(train[key])] for key, label in _TRAIN.items() if train.get(key) is not None]
    data = card.get("data") or {}
    counts = (
        ("prompts", "Prompts learned from"),
        ("held_out", "Prompts held out"),
        ("dropped", "Prompts left out, too long"),
    )
    rows += [[label, whole(data[key])] for key, label in counts if data.get(key) is not None]
    note = "" if card else f'<p class="note">{"What is not named here is decided by the method."}</p>'
    return table([], rows, kind="facts") + note if rows else ""
