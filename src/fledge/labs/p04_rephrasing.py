"""P4: rephrased text teaches the same with a fraction of the tokens, and real text beside it keeps the real style.

The measurements are those of `fledge rephrasing`: noisy pages of facts, and the same rewritten by rules that can add no
knowledge; every text trains the same start on the same numbers of tokens, each budget a run of its own. WRAP (Maini et al.
2024): C4 and its rephrasings 1:1 are about three times as fast, rephrasings alone worse on noisy web text.

A language model as the rephraser could pack facts more densely, and could also add what it knows: that would be another
experiment (distillation). The rules here pack them about twice as densely, which bounds what they can save.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fledge.labs.bench import Bench
from fledge.labs.experiment import options_in
from fledge.labs.rephrasing import RephrasingOptions, one_seed, summary
from fledge.labs.rephrasing import RephrasingSettings as Setup
from fledge.labs.rephrasing_page import rephrasing_chart
from fledge.labs.verdict import Findings, Number, at_least, at_most, difference

SCALES = {
    "pocket": Setup(),
    "gpu": Setup(tokens="50M", size="small"),
    "tiny": Setup(pages=120, tokens=8192, size="tiny"),
}


def measure(setup: Setup, bench: Bench) -> dict[str, Any]:
    """Facts, answers and bits of one model for each text and budget."""
    return one_seed(options_in(RephrasingOptions, setup, bench), bench.folder, bench.seed)


def judge(setup: Setup, seeds: Sequence[dict[str, Any]]) -> Findings:
    """How soon the mixture knows what raw knows, style alone against mixed, and the style that answers best."""
    shares = summary(seeds)["shares"]["mixed"]

    def end(arm: str, key: str, label: str, unit: Any = "%") -> Number:
        return Number(label=label, by_seed=[s["arms"][arm][-1][key] for s in seeds], unit=unit)

    reached = Number(
        label="tokens until half real, half rephrased knows what raw does at the end", unit="%", paper="about a third",
        by_seed=[float("inf") if share is None else share for share in shares],
    )  # fmt: skip
    facts = {arm: end(arm, "cloze", f"facts completed, {arm}") for arm in ("raw", "mixed", "wiki")}
    noisy = {
        arm: end(arm, "noisy_bits", f"bits per byte of noisy pages, {arm}", "bits") for arm in ("wiki", "qa", "mixed")
    }
    answers = {arm: end(arm, "answers", f"questions answered, {arm}") for arm in seeds[0]["arms"]}
    others = max((number for arm, number in answers.items() if arm != "qa"), key=lambda number: number.mean)
    checks = [
        at_most("mixed knows what raw does after half of the tokens", reached, 0.5),
        *(at_least(f"{arm} alone is worse than mixed on noisy pages", difference("", noisy[arm], noisy["mixed"], "bits"), 0.0)
          for arm in ("wiki", "qa")),
        at_least("questions and answers make the best answers", difference("", answers["qa"], others), 0.0),
    ]  # fmt: skip
    return Findings(
        numbers=[reached, *facts.values(), answers["raw"], answers["qa"], noisy["wiki"], noisy["mixed"]],
        checks=checks,
        said=(
            f"Half real and half rephrased, the text knows what raw text knows after {reached.mean:.0%} of the tokens; at the "
            f"end it completes {facts['mixed'].mean:.0%} of the facts against {facts['raw'].mean:.0%}. Rephrased text alone "
            f"does not know how the web looks ({noisy['wiki'].mean:.1f} bits per byte of noisy pages against "
            f"{noisy['mixed'].mean:.2f}), and only questions with answers teach to answer."
        ),
    )


def draw(setup: Setup, seeds: Sequence[dict[str, Any]]) -> str:
    """What each text teaches over tokens."""
    return rephrasing_chart({"seeds": seeds}, "P4")
