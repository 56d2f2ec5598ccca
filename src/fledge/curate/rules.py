"""Kernels of the heuristic steps: bounds on signals, and the steps that edit lines.

The first broken bound, in the order of the recipe's table, is the reason ("words below 50"); its value is the signal.
Bounds and signals are compared as float32, the signals' type, so a share that equals a bound is within it.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from fledge.curate.lines import boilerplate_kernel, c4_kernel, dclm_lines_kernel
from fledge.curate.pages import Kernel, for_language, judged
from fledge.curate.recipes import Bounds, Recipe, measured_together, needed, shown
from fledge.curate.signals import signals


def kernel_of(recipe: Recipe, step: str) -> Kernel:
    """The kernel of one of the recipe's steps. Raises ValueError when the recipe has no such step."""
    if step not in recipe.steps:
        raise ValueError(f"step {step!r}: not one of the recipe {recipe.name!r}: {', '.join(recipe.steps)}")
    if step == "c4":
        return c4_kernel(recipe.c4)
    if step == "dclm_lines":
        return dclm_lines_kernel(recipe.dclm_lines)
    if step == "boilerplate":
        return boilerplate_kernel(recipe.boilerplate)
    return rule_kernel(recipe, step)


def kernels_of(recipe: Recipe) -> list[tuple[str, Kernel]]:
    """(step, kernel) for every step, in order."""
    return [(step, kernel_of(recipe, step)) for step in recipe.steps]


def rule_kernel(recipe: Recipe, step: str) -> Kernel:
    """A kernel that adds the signals it needs, where the table has none of this text, and judges by their bounds."""
    rules, own = recipe.rules[step], needed(recipe, step)
    together, first = measured_together(recipe, step)

    def judge(pages: pa.Table) -> pa.Table:
        if first:
            pages = signals(pages, together, recipe.stop_words)
        elif missing := [name for name in own if name not in pages.column_names]:
            pages = signals(pages, missing, recipe.stop_words)
        columns = {name: pages[name].to_numpy() for name in own}
        reason = np.full(len(pages), None, object)
        value = np.full(len(pages), np.nan)
        for language, rows in _by_language(pages):
            bounds = for_language(rules, language)
            if bounds is not None:
                _break(bounds, {name: columns[name][rows] for name in bounds}, rows, reason, value)
        return judged(pages, pa.array(reason, pa.string()), pa.array(value, pa.float64(), from_pandas=True))

    return judge


def _by_language(pages: pa.Table) -> list[tuple[str, np.ndarray]]:
    """(language, its rows) for every language of the table."""
    encoded = pages["language"].combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    codes = encoded.indices.fill_null(-1).to_numpy()
    return [(language, np.flatnonzero(codes == code)) for code, language in enumerate(encoded.dictionary.to_pylist())]


def _break(
    bounds: dict[str, Bounds],
    measured: dict[str, np.ndarray],
    rows: np.ndarray,
    reason: np.ndarray,
    value: np.ndarray,
) -> None:
    """Write the first broken bound of each of `rows` into reason and value (both [pages])."""
    open_ = np.ones(len(rows), bool)
    for name, (least, most) in bounds.items():
        signal = measured[name]
        for broken, side, bound in (
            (signal < np.float32(least), "below", least),
            (signal > np.float32(most), "above", most),
        ):
            hit = open_ & broken
            if hit.any():
                reason[rows[hit]] = f"{name.replace('_', ' ')} {side} {shown(bound)}"
                value[rows[hit]] = signal[hit]
                open_ &= ~hit
