"""The page of `labs.adapters`: every kind of adapter by facts answered, numbers trained and text forgotten."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fledge.labs.page_parts import Total, again, checks, figures, head, mean, points_of, spread, values, write
from fledge.stages.charts import COLOURS, draw
from fledge.stages.panels import MARKERS, plain
from fledge.stages.report_style import duration, figure, paragraph, percent, section, shown, table, whole

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
        checks(total),
        again("adapters", total),
    ))  # fmt: skip


def _arms(total: Total) -> Mapping[str, Mapping[str, Any]]:
    return total.get("arms") or {}


def _of(total: Total, arm: str, key: str) -> list[float]:
    """A measure of an arm by seed."""
    return values((seed.get("arms") or {}).get(arm, {}).get(key) for seed in total.get("seeds") or [])


def _found(total: Total) -> str:
    full, lora = (_arms(total).get(name) or {} for name in ("full", "lora"))
    if not (full.get("parameters") and lora.get("trained")):
        return ""
    return (
        f"LoRA trains {percent(lora['trained'] / lora['parameters'])} of the parameters and answers {percent(lora['facts'])} "
        f"of held-out facts, full training {percent(full['facts'])}; bits per byte of pretraining text lost: "
        f"{figures(lora['forgotten'], 3)} against {figures(full['forgotten'], 3)}."
    )


def _figure(total: Total) -> str:
    arms = {name: arm for name, arm in _arms(total).items() if arm.get("trained") and arm.get("parameters")}
    if not arms:
        return ""
    drawn = "".join(
        _chart(f"adapters {kind}", arms, size, f"chart {kind}", 2 if kind == "wide" else 1)
        for kind, size in (("wide", _WIDE), ("narrow", _NARROW))
    )
    sentence = (
        "Above: held-out facts answered over the share of the parameters that is trained (each step is ten times more). "
        "Below or beside: the same facts over bits per byte of pretraining text lost. Up and to the left is better in both."
    )
    return figure("Every kind against full training", "與全量訓練比較", drawn, sentence)


def _chart(name: str, arms: Mapping[str, Mapping[str, Any]], size: tuple[float, float], kind: str, columns: int) -> str:
    def paint(found: Any) -> None:
        axes = found.subplots(3 - columns, columns, sharey=True)
        for ax, key, label in (
            (axes[0], None, "share of the parameters trained"),
            (axes[1], "forgotten", "bits per byte of pretraining text lost"),
        ):
            for i, (arm, told) in enumerate(arms.items()):
                x = told["trained"] / told["parameters"] if key is None else told[key]
                colour = COLOURS[_COLOURS.get(arm, "dim")]
                ax.plot(x, told["facts"], linestyle="", marker=MARKERS[i % 5], markersize=7, color=colour)
                ax.annotate(
                    _NAMES.get(arm, plain(arm)), (x, told["facts"]), (0, 7), textcoords="offset points", ha="center",
                    color=colour,
                )  # fmt: skip
            if key is None:
                ax.set_xscale("log")
                ax.set_xlim(0.4 * min(t["trained"] / t["parameters"] for t in arms.values()), 2.5)
                ax.xaxis.set_major_formatter(lambda value, _: f"{value:.6%}".rstrip("0%").rstrip(".") + "%")
                ax.minorticks_off()
            else:
                ax.margins(x=0.18)
            ax.set_xlabel(label)
            ax.set_ylim(-0.03, min(1.12, 1.18 * max(0.1, *(t["facts"] for t in arms.values()))))
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
            ax.set_ylabel("held-out facts answered")

    return draw(
        name, "Facts answered by each kind of adapter over parameters trained and text forgotten", paint, size, kind
    )


def _table(total: Total) -> str:
    rows = []
    for arm, told in _arms(total).items():
        share = told["trained"] / told["parameters"] if told.get("parameters") else None
        rows.append([
            shown(_NAMES.get(arm, plain(arm))), spread(_of(total, arm, "facts"), percent), whole(told.get("trained")),
            percent(share), spread(_of(total, arm, "forgotten"), lambda v: figures(v, 3)), duration(told.get("seconds")),
            f"{whole((told.get('file_bytes') or 0) / 1000)} kB",
        ])  # fmt: skip
    top = ["", "Held-out facts", "Numbers trained", "Of all", "Bits per byte lost", "Training", "File"]
    base = mean(b.get("bits_per_byte") for seed in total.get("seeds") or [] if (b := seed.get("base")))
    note = (
        f"The base model needs {figures(base, 3)} bits per byte of held-out pretraining text and answers no questions."
    )
    return table(top, rows, kind="scores") + f'<p class="note">{note}</p>' if rows else ""


def _words(total: Total) -> str:
    rows = []
    for arm in _arms(total):
        if arm in WORDS:
            told, source = WORDS[arm]
            rows.append([f"{_NAMES[arm]}<small>{source}</small>", told])
    full, lora = (_arms(total).get(name) or {} for name in ("full", "lora"))
    sentence = ""
    if full and lora:
        sentence = f"LoRA ends {points_of(lora['facts'] - full['facts'])} points from full training."
    lead = (
        "All kinds start from the same base model, whose weights stay as they are; each was given its own learning rate, "
        "for small adapters need larger steps. LoRA, DoRA, IA3 and BitFit can be made part of the weights afterwards and "
        "then cost nothing when the model answers; the others stay beside it."
    )
    return paragraph([lead, sentence], "text") + table([], rows, kind="facts") if rows else ""
