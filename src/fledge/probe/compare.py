"""`fledge compare A B`: what B gains over A on each task, document by document, with intervals.

Both answered the same documents, so the difference of each is taken and the documents are drawn again and again
(Efron and Tibshirani 1993, section 6; paired as in Berg-Kirkpatrick et al. 2012): what is hard for both cancels out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fledge.core.checkpoint import canonical_json, write_atomically
from fledge.core.config import Settings
from fledge.core.log import say, visible
from fledge.core.shown import Listing
from fledge.interop.eval_command import WEIGHTED, EvalOptions, TaskResult, evaluate, folder_of, open_lm

_DRAWS_AT_ONCE = 1 << 22  # numbers held while resampling


class CompareOptions(Settings, frozen=True, kw_only=True):
    """Compare two models on what both were evaluated on."""

    a: str
    "Run, checkpoint, or folder of results."
    b: str
    "Another; differences are b less a."
    tasks: list[str] = []
    "Evaluate both on these first, as `fledge eval` does; none: compare the results that are there."
    limit: int | None = None
    "Documents of each task at most, where tasks are evaluated."
    chat: bool | None = None
    "As in `fledge eval`, where tasks are evaluated."
    level: float = 0.95
    "Share of the resamples that an interval holds."
    draws: int = 10000
    "Resamples of the documents."
    out: str | None = None
    "File for the figures (.json); none: they are only printed."
    device: str = "auto"
    "auto, cpu, cuda or cuda:1."
    seed: int = 0
    "Seed of the resamples."

    def problems(self) -> list[str]:
        found = []
        if not 0 < self.level < 1:
            found.append(f"level = {self.level}: must be above 0 and below 1; 0.95 is usual")
        if self.draws < 100:
            found.append(f"draws = {self.draws}: must be at least 100")
        if not self.tasks and (self.limit is not None or self.chat is not None):
            found.append("limit and chat belong to an evaluation: give tasks too, or leave them out")
        return found


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of one task."""

    task: str
    metric: str
    documents: int
    "That both answered."
    a: float
    b: float
    difference: float
    "b less a, on these documents."
    low: float
    high: float
    better: int
    "Documents on which b is better; the rest but `worse` are equal."
    worse: int
    verdict: str
    '"b better", "a better", or "no difference seen" where the interval holds 0.'


def read_results(place: str) -> dict[str, TaskResult]:
    """{task: result} of a run or a folder of results. Raises ValueError for a damaged file, naming it."""
    folder, found = folder_of(place), {}
    for path in sorted(folder.glob("*.json")):
        try:
            result = msgspec.json.decode(path.read_bytes(), type=TaskResult)
        except msgspec.DecodeError as error:
            raise ValueError(
                f"{path} is no result of `fledge eval` ({error}): take it away, or evaluate again"
            ) from None
        found[result.task] = result
    return found


def paired(a: TaskResult, b: TaskResult, metric: str) -> np.ndarray:
    """Of the documents that both answered: [n,2,2] (a or b; sum and weight), weight 1 for plain numbers."""
    others = {document["key"]: document for document in b.documents}
    pairs = [
        (document[metric], others[document["key"]][metric])
        for document in a.documents
        if metric in document and metric in others.get(document["key"], {})
    ]
    rows = [[one if isinstance(one, list) else [one, 1.0] for one in pair] for pair in pairs]
    return np.array(rows, dtype=np.float64).reshape(-1, 2, 2)


def is_mean(result: TaskResult, metric: str) -> bool:
    """Whether the figure of a metric is made of its documents alone, so that documents can be resampled."""
    rows = [document[metric] for document in result.documents if metric in document]
    if not rows:
        return False
    if metric in WEIGHTED:
        return True
    return bool(np.isclose(np.mean(rows), result.metrics[metric]["value"], rtol=1e-6, atol=1e-9))


def difference(
    a: TaskResult, b: TaskResult, metric: str, *, level: float = 0.95, draws: int = 10000, seed: int = 0
) -> Difference:
    """b less a on the documents both answered, with a bootstrap interval over documents."""
    rows = paired(a, b, metric)
    figure = np.vectorize(WEIGHTED[metric]) if metric in WEIGHTED else lambda ratio: ratio
    generator = np.random.Generator(np.random.PCG64(seed))

    def figures(sums: np.ndarray) -> np.ndarray:  # [..,2,2] -> [..,2]
        return figure(sums[..., 0] / sums[..., 1])

    drawn = []
    for start in range(0, draws, step := max(1, _DRAWS_AT_ONCE // (4 * len(rows)))):
        picked = generator.integers(0, len(rows), (min(step, draws - start), len(rows)))
        both = figures(rows[picked].sum(1))
        drawn.append(both[:, 1] - both[:, 0])
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail])
    one, other = figures(rows.sum(0))
    up = 1 if a.metrics[metric]["higher_is_better"] else -1
    each = figures(rows)
    gains = up * (each[:, 1] - each[:, 0])
    verdict = "no difference seen" if low <= 0 <= high else "b better" if up * low > 0 else "a better"
    return Difference(
        task=a.task, metric=metric, documents=len(rows), a=float(one), b=float(other), difference=float(other - one),
        low=float(low), high=float(high), better=int((gains > 0).sum()), worse=int((gains < 0).sum()), verdict=verdict,
    )  # fmt: skip


def compare(
    a: dict[str, TaskResult], b: dict[str, TaskResult], options: CompareOptions
) -> tuple[list[Difference], list[str]]:
    """Every metric that both have, and notes on what was left out or asked in another way."""
    found, notes = [], []
    for task in (task for task in a if task in b):
        asked = {k for k in ("chat", "shots", "version") if a[task].asked.get(k) != b[task].asked.get(k)}
        if asked:
            told = ", ".join(f"{k} {a[task].asked.get(k)} and {b[task].asked.get(k)}" for k in sorted(asked))
            notes.append(f"{task}: asked in two ways ({told})")
        for metric in (metric for metric in a[task].metrics if metric in b[task].metrics):
            if not (is_mean(a[task], metric) and is_mean(b[task], metric)):
                notes.append(f"{task}: {metric} is no mean over documents, so it has no paired interval")
                continue
            if not len(paired(a[task], b[task], metric)):
                notes.append(f"{task}: no document has {metric} in both")
                continue
            kept = {"level": options.level, "draws": options.draws, "seed": options.seed}
            found.append(difference(a[task], b[task], metric, **kept))
        most, both = max(len(a[task].documents), len(b[task].documents)), _common(a[task], b[task])
        if both < most:
            notes.append(f"{task}: {both} of {most} documents were answered by both and are compared")
    return found, notes


def _common(a: TaskResult, b: TaskResult) -> int:
    return len({d["key"] for d in a.documents} & {d["key"] for d in b.documents})


def table(found: Sequence[Difference], level: float) -> Any:
    """The differences for a terminal."""
    from rich.table import Table

    shown = Table(
        "task", "metric", "documents", "a", "b", "b - a", f"{level:.0%} interval", "better / worse", "", box=None
    )
    for d in found:
        interval = f"{d.low:+.4f} to {d.high:+.4f}"
        shown.add_row(
            visible(d.task), d.metric, str(d.documents), f"{d.a:.4f}", f"{d.b:.4f}", f"{d.difference:+.4f}", interval,
            f"{d.better} / {d.worse}", d.verdict,
        )  # fmt: skip
    return shown


def _evaluated(place: str, options: CompareOptions) -> dict[str, TaskResult]:
    wanted = EvalOptions(run=place, tasks=options.tasks, limit=options.limit, chat=options.chat, device=options.device)
    return {result.task: result for result in evaluate(open_lm(place, options.device, wanted.precision), wanted)}


def run(options: CompareOptions) -> Listing[Difference]:
    """Compare, and write the figures where they are wanted; the differences are shown as a table."""
    results = [_evaluated(p, options) if options.tasks else read_results(p) for p in (options.a, options.b)]
    if not results[0].keys() & results[1].keys():
        held = " and ".join(
            f"{folder_of(place)} ({', '.join(found) or 'nothing'})"
            for place, found in zip((options.a, options.b), results, strict=True)
        )
        raise ValueError(f"no task was evaluated on both: there are {held}; give --tasks, or run `fledge eval` on both")
    found, notes = compare(*results, options)
    for note in notes:
        say(note)
    if options.out:
        write_atomically(Path(options.out), canonical_json({"a": options.a, "b": options.b, "differences": found}))
    return Listing(found, lambda: table(found, options.level))
