"""P3: rules, then duplicates, then a quality model: each step makes the same number of training tokens worth more.

The measurements are those of `fledge filters`: a crawl whose junk is labelled, each step judged against the labels, and
one model for each text from the same start. Controls: a random part of the raw crawl as large as what stays, and a
classifier whose idea of good is boilerplate. DCLM (Li et al. 2024, section 4); Penedo et al. 2024.

The part on loss spikes is exploratory and no part of the verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fledge.labs.bench import Bench
from fledge.labs.experiment import options_in
from fledge.labs.filters import FiltersOptions, one_seed
from fledge.labs.filters import FiltersSettings as Setup
from fledge.labs.filters_page import ladder_chart
from fledge.labs.verdict import Findings, Number, at_least, at_most, between, difference

SCALES = {
    "pocket": Setup(),
    "gpu": Setup(pages=200_000, tokens="100M", size="small"),
    "tiny": Setup(pages=400, tokens=8_000, size="tiny", spikes=False),
}
_LADDER = ("raw", "rules", "duplicates", "classifier")


def measure(setup: Setup, bench: Bench) -> dict[str, Any]:
    """The steps against the labels, and bits per byte and facts of one model for each text."""
    return one_seed(options_in(FiltersOptions, setup, bench), bench.folder, bench.seed)


def judge(setup: Setup, seeds: Sequence[dict[str, Any]]) -> Findings:
    """A ladder of bits, two controls, and what MinHash and the classifier find."""
    bits = {
        arm: Number(
            label=f"bits per byte, {arm}", by_seed=[s["arms"][arm]["bits_per_byte"] for s in seeds], unit="bits"
        )
        for arm in seeds[0]["arms"]
    }
    facts = {arm: Number(label=f"facts completed, {arm}", unit="%", by_seed=[s["arms"][arm]["cloze"] for s in seeds])
             for arm in ("raw", "classifier", "random")}  # fmt: skip
    told = [s["curation"] for s in seeds]

    def found_of(band: str) -> Number:
        known = [t["pairs"][band]["found"] for t in told if t["pairs"][band]["found"] is not None]
        return Number(label=f"planted pairs of Jaccard {band} found", by_seed=known or [float("nan")], unit="%")

    area = Number(label="ROC area of the classifier on unseen hosts", by_seed=[t["roc_area"]["tellable"] for t in told])
    kept = Number(label="pages that stay", unit="%", paper="1.4% of documents (DCLM)",
                  by_seed=[s["arms"]["classifier"]["pages"] / s["arms"]["raw"]["pages"] for s in seeds])  # fmt: skip
    whole = difference("bits from raw to the last step", bits["raw"], bits["classifier"], "bits")
    checks = [
        at_least(f"{after} is better than {before}", difference("", bits[before], bits[after], "bits"), 0.0)
        for before, after in zip(_LADDER, _LADDER[1:], strict=False)
    ]
    checks += [
        at_least("together by 0.05 bits", whole, 0.05),
        between("a random part of raw is like raw, within 0.05 bits", difference("", bits["random"], bits["raw"], "bits"), -0.05, 0.05),
        at_least("a classifier of boilerplate does harm", difference("", bits["wrong"], bits["duplicates"], "bits"), 0.0),
        at_least("MinHash finds 90% of planted pairs with Jaccard of 0.8 or more", found_of("at least 0.8"), 0.9, core=False),
        at_most("and at most 5% of those below 0.5", found_of("below 0.5"), 0.05, core=False),
        at_least("the classifier's ROC area on unseen hosts is 0.9", area, 0.9, core=False),
    ]  # fmt: skip
    return Findings(
        numbers=[
            bits["raw"],
            bits["classifier"],
            bits["random"],
            facts["raw"],
            facts["classifier"],
            facts["random"],
            kept,
            area,
        ],
        checks=checks,
        said=(
            f"With the same number of training tokens, bits per byte of good pages fall from {bits['raw'].mean:.2f} (raw) to "
            f"{bits['classifier'].mean:.2f} (all three steps) and facts completed rise from {facts['raw'].mean:.0%} to "
            f"{facts['classifier'].mean:.0%}; a random part as large stays at {bits['random'].mean:.2f}. What counts is which "
            "text is left, not that less is."
        ),
    )


def draw(setup: Setup, seeds: Sequence[dict[str, Any]]) -> str:
    """Bits per byte and facts for each text."""
    return ladder_chart({"seeds": seeds}, "P3")
