"""The page of `labs.adapters`: every kind of adapter by facts answered, numbers trained and text forgotten."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fledge.labs.charts import Arm, name_points
from fledge.labs.page_parts import Total, again, checks, figures, head, mean, points_of, spread, values, write
from fledge.stages.charts import COLOURS, draw
from fledge.stages.panels import MARKERS, plain
from fledge.stages.report_style import duration, figure, paragraph, percent, plural, section, shown, table, whole

_NAMES = {
    "full": "full training", "lora": "LoRA", "dora": "DoRA", "houlsby": "Houlsby", "prefix": "prefix", "prompt": "prompt",
    "bitfit": "BitFit", "ia3": "IA3",
}  # fmt: skip
_COLOURS = {
    "full": "control",
    "lora": "sft",
    "dora": "aligned",
    "houlsby": "base",
    "prefix": "reward",
    "prompt": "reward",
}
# What is trained; source
WORDS = {
    "full": ("every weight", ""),
    "lora": ("a product of two thin matrices beside a weight: W x + s B A x", "Hu et al. 2021"),
    "dora": ("LoRA, and the length of every row of the sum", "Liu et al. 2024"),
    "houlsby": ("a narrow layer with a nonlinearity after attention and after the feed-forward", "Houlsby et al. 2019"),
    "prefix": ("keys and values of a few positions before the text, in every layer", "Li and Liang 2021"),
    "prompt": ("embeddings of a few positions before the text", "Lester et al. 2021"),
    "bitfit": ("biases, which this model gets for it", "Ben Zaken et al. 2022"),
    "ia3": ("factors on keys, values and the inside of the feed-forward", "Liu et al. 2022"),
}
_AXES = {"share": "share of the parameters trained", "forgotten": "bits per byte of pretraining text lost"}
_WIDE, _NARROW = (9.6, 4.2), (4.9, 7.2)  # inches


def adapters_page(out: Path, total: Total) -> Path:
    """OUT/report.html of `labs.adapters`; equal results give equal bytes, and what a result lacks leaves no gap."""
    claim = (
        "Claim: what pretraining gave is the key; a small adapter on frozen weights teaches a model to answer nearly as "
        "well as training all of it, and costs it less of what it knew (Hu et al. 2021; Houlsby et al. 2019)."
    )
    return write(out, "Adapters", (
        head(total, ("Adapters", "適配器：只訓練一小部分"), claim, _found(total)),
        section("Facts, numbers trained, text forgotten", "答對、參數與遺忘", _figure(total), _table(total)),
        section("What each of them trains", "各訓練什麼", _words(total)),
        section("Where it ends", "適用的範圍", _limits(total)),
        checks(total),
        again("adapters", total),
    ))  # fmt: skip


def _arms(total: Total) -> Mapping[str, Mapping[str, Any]]:
    """Arms in the order of the experiment: a stored result has its keys sorted."""
    found = total.get("arms") or {}
    return {arm: found[arm] for arm in sorted(found, key=lambda arm: [*WORDS, arm].index(arm))}


def _of(total: Total, arm: str, key: str) -> list[float]:
    """A measure of an arm by seed."""
    return values((seed.get("arms") or {}).get(arm, {}).get(key) for seed in total.get("seeds") or [])


def _path(total: Total, arm: str) -> list[tuple[float, float]]:
    """(bits per byte lost, facts) of an arm from small steps to large ones, means over seeds."""
    places: dict[float, list[tuple[float, float]]] = {}
    for seed in total.get("seeds") or []:
        found = {1.0: (seed.get("arms") or {}).get(arm), **((seed.get("spread") or {}).get(arm) or {})}
        for times, told in found.items():
            if told:
                places.setdefault(float(times), []).append((told["forgotten"], told["facts"]))
    return [(mean(x for x, _ in at), mean(y for _, y in at)) for _, at in sorted(places.items())]


def _found(total: Total) -> str:
    full, lora = (_arms(total).get(name) or {} for name in ("full", "lora"))
    if not (full.get("parameters") and lora.get("trained")):
        return ""
    return (
        f"LoRA trains {_share(lora)} of the parameters and answers {percent(lora['facts'])} "
        f"of held-out facts, full training {percent(full['facts'])}{_interval(total, 'facts', 100, 1, ' points')}; bits per "
        f"byte of pretraining text lost: {figures(lora['forgotten'], 3)} against {figures(full['forgotten'], 3)}"
        f"{_interval(total, 'forgotten', 1, 3, '')}."
    )


def _share(told: Mapping[str, Any]) -> str:
    """4.9%: what an arm trains of all parameters."""
    return _two_figures(told["trained"] / told["parameters"]) if told.get("parameters") else percent(None)


def _two_figures(share: float) -> str:
    """0.26%, 4.9%, 30%, 100%."""
    return f"{100 * share:.2g}%" if share < 0.0995 else f"{share:.0%}"


def _interval(total: Total, key: str, times: float, digits: int, unit: str) -> str:
    """(LoRA less full: −2.0 points over draws of ..., 90% interval over seeds −4.1 to 0.1), where seeds allow one."""
    found = (total.get("lora_less_full") or {}).get(key) or {}
    if found.get("low") is None:
        return ""
    mean, low, high = (figures(times * found[name], digits) for name in ("mean", "low", "high"))
    draws = plural((total.get("options") or {}).get("draws") or 1, "draw")
    return f" (LoRA less full over {draws} of the conversations: {mean}{unit}, 90% interval over seeds {low} to {high})"


def _figure(total: Total) -> str:
    arms = {name: arm for name, arm in _arms(total).items() if arm.get("trained") and arm.get("parameters")}
    if not arms:
        return ""
    drawn = "".join(
        _chart(
            f"adapters {kind}",
            arms,
            {a: _path(total, a) for a in ("full", "lora")},
            size,
            f"chart {kind}",
            2 if kind == "wide" else 1,
        )
        for kind, size in (("wide", _WIDE), ("narrow", _NARROW))
    )
    sentence = (
        "Above: held-out facts answered over the share of the parameters that is trained. "
        "Below or beside: the same facts over bits per byte of pretraining text lost. Up and to the left is better in both, whose horizontal scales are logarithmic. "
        "The lines follow full training and LoRA from smaller steps to larger ones."
    )
    return figure("Every kind against full training", "與全量訓練比較", drawn, sentence)


def _chart(
    name: str,
    arms: Mapping[str, Mapping[str, Any]],
    paths: Mapping[str, list[tuple[float, float]]],
    size: tuple[float, float],
    kind: str,
    columns: int,
) -> str:
    def paint(found: Any) -> None:
        axes = found.subplots(3 - columns, columns, sharey=True)
        for ax, key in ((axes[0], "share"), (axes[1], "forgotten")):
            points = []
            for i, (arm, told) in enumerate(arms.items()):
                x = told["trained"] / told["parameters"] if key == "share" else told[key]
                look = {"colour": _COLOURS.get(arm, "dim"), "marker": MARKERS[i % 5], "size": 7.0}
                points.append(Arm(_NAMES.get(arm, plain(arm)), (x, told["facts"]), **look))
                colour = COLOURS[look["colour"]]
                ax.plot(x, told["facts"], linestyle="", marker=look["marker"], markersize=7, color=colour)
                if key == "forgotten" and len(path := paths.get(arm) or []) > 1:
                    ax.plot(*zip(*path, strict=True), linewidth=1, marker=".", markersize=3, color=colour)
            ax.set_xlabel(_AXES[key])
            if all(p.at[0] > 0 for p in points):
                _powers(ax, [p.at[0] for p in points], percents=key == "share")
            ax.set_ylim(-0.03, min(1.12, 1.18 * max(0.1, *(t["facts"] for t in arms.values()))))
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
            ax.set_ylabel("held-out facts answered")
            name_points(found, ax, points)

    return draw(
        name, "Facts answered by each kind of adapter over parameters trained and text forgotten", paint, size, kind
    )


def _powers(ax: Any, places: Sequence[float], percents: bool) -> None:
    """A logarithmic axis with room for names beside the outermost points, its ticks in plain figures."""
    low, high = 0.4 * min(places), 2.8 * max(places)
    ticks = [v for power in range(-5, 2) for v in (10.0**power, 3 * 10.0**power) if low <= v <= high]
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    ax.set_xticks(ticks, [_two_figures(v) if percents else f"{v:g}" for v in ticks])
    ax.minorticks_off()


def _table(total: Total) -> str:
    rows = []
    for arm, told in _arms(total).items():
        rows.append([
            shown(_NAMES.get(arm, plain(arm))), spread(_of(total, arm, "facts"), percent), whole(told.get("trained")),
            _share(told), spread(_of(total, arm, "forgotten"), lambda v: figures(v, 3)), duration(told.get("seconds")),
            f"{whole((told.get('file_bytes') or 0) / 1000)} kB",
        ])  # fmt: skip
    top = ["", "Held-out facts", "Numbers trained", "Of all", "Bits per byte lost", "Training", "File"]
    base = mean(b.get("bits_per_byte") for seed in total.get("seeds") or [] if (b := seed.get("base")))
    note = (
        f"The base model needs {figures(base, 3)} bits per byte of held-out pretraining text and answers no questions."
    )
    return table(top, rows, kind="scores") + f'<p class="note">{note}</p>' if rows else ""


def _limits(total: Total) -> str:
    """What the controls say: the same adapter on random weights, and many conversations in place of few."""
    seeds, said = total.get("seeds") or [], []
    chats = (total.get("options") or {}).get("chats")
    if (random := mean(seed["random"]["facts"] for seed in seeds if seed.get("random"))) is not None:
        said.append(
            f"The same adapter on random weights answers {percent(random)} of the facts: what is answered comes from "
            "pretraining, the conversations only teach to answer."
        )
    if every := next((seed["all_chats"] for seed in seeds if seed.get("all_chats")), None):
        full, lora = every["full"], every["lora"]
        said.append(
            f"The claim is about few conversations, here {whole(chats)}. On all conversations of one world, read as a "
            f"journey reads them and with the same steps, full training answers {percent(full['facts'])} and LoRA "
            f"{percent(lora['facts'])} ({points_of(lora['facts'] - full['facts'])} points); "
            f"{figures(full['forgotten'], 3)} and {figures(lora['forgotten'], 3)} bits per byte are lost. There full "
            "training goes on learning the wordings of the answers, for which a small adapter on a small model has less room."
        )
    return paragraph(said, "text") if said else ""


def _words(total: Total) -> str:
    rows = []
    for arm in _arms(total):
        if arm in WORDS:
            told, source = WORDS[arm]
            rows.append([f"{_NAMES[arm]}<small>{source}</small>", told])
    lead = (
        "All kinds start from the same base model, whose weights stay as they are. Each has its own learning rate and "
        "optimiser, those with which it answers most on the first seed's world: Muon for LoRA, DoRA and Houlsby, AdamW for "
        "full training and the others. LoRA, DoRA, IA3 and BitFit can be made part of the weights afterwards and "
        "then cost nothing when the model answers; the others stay beside it."
    )
    return paragraph([lead], "text") + table([], rows, kind="facts") if rows else ""
