"""The trap of lab P8: a table of texts where p^alpha is known exactly, and how close chains come to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from fledge.generate.power import PowerSampling, power_sample
from fledge.generate.sampling import uniforms


class Trap:
    """A table as a `generate.power.Writer`: after 0 (likelier) one of 8 tokens and one of 4, after 1 one nearly sure text."""

    END, FIRST, SURE = 12, 0.55, 0.95
    stop_ids = (END,)

    def row(self, answer: Sequence[int]) -> np.ndarray:
        """p [13] of the next token."""
        p = np.zeros(self.END + 1)
        if not answer:
            p[:2] = self.FIRST, 1 - self.FIRST
        elif len(answer) == 3:
            p[self.END] = 1.0
        else:
            among = slice(2, 10 if len(answer) == 1 else 6)
            p[among] = 1.0
            p /= p.sum()
            if answer[0] == 1:
                p[among] = (1 - self.SURE) / (p[among].size - 1)
                p[2] = self.SURE
        return p

    def sharp(self, answer: Sequence[int], temperature: float) -> np.ndarray:
        """The same at a temperature."""
        p = self.row(answer) ** (1 / temperature)
        return p / p.sum()

    def texts(self) -> dict[tuple[int, ...], float]:
        """Every text with its probability."""
        found, open_ = {}, {(): 1.0}
        while open_:
            text, p = open_.popitem()
            for token in np.flatnonzero(row := self.row(text)):
                longer = (*text, int(token))
                (found if token == self.END else open_)[longer] = p * float(row[token])
        return found

    def write(
        self, prefixes: Sequence[Sequence[int]], max_tokens: int, temperature: float, seed: int
    ) -> list[list[int]]:
        chance, told = uniforms(seed, range(len(prefixes)), max_tokens).tolist(), []
        for prefix, row in zip(prefixes, chance, strict=True):
            text = list(prefix)
            for u in row:
                text.append(int(np.searchsorted(self._sums(tuple(text), temperature), u, side="right")))
                if text[-1] == self.END:
                    break
            told.append(text[len(prefix) :])
        return told

    def logps(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], temperature: float
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        known: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}
        for answer in map(tuple, answers):
            if answer not in known:
                known[answer] = tuple(
                    np.log([self.sharp(answer[:n], t)[token] for n, token in enumerate(answer)])
                    for t in (1.0, temperature)
                )
        return [known[tuple(answer)] for answer in answers]

    def _sums(self, text: tuple[int, ...], temperature: float) -> np.ndarray:
        held = self.__dict__.setdefault("_held", {})
        if (text, temperature) not in held:
            held[text, temperature] = np.minimum(self.sharp(text, temperature).cumsum() * (1 + 1e-12), 1.0)
        return held[text, temperature]


def distance(p: dict[tuple[int, ...], float], q: dict[tuple[int, ...], float]) -> float:
    """Total variation: half the sum of differences."""
    return 0.5 * sum(abs(p.get(text, 0.0) - q.get(text, 0.0)) for text in p.keys() | q.keys())


def powered(p: dict[tuple[int, ...], float], alpha: float) -> dict[tuple[int, ...], float]:
    """p^alpha, normalised."""
    whole = sum(value**alpha for value in p.values())
    return {text: value**alpha / whole for text, value in p.items()}


def trap(alpha: float, steps: Sequence[int], chains: int, seed: int) -> dict[str, Any]:
    """Distances to p^alpha: of the table at temperature 1/alpha, and of the chains after each number of steps."""
    table = Trap()
    wanted = powered(table.texts(), alpha)
    low = {
        text: float(np.prod([table.sharp(text[:n], 1 / alpha)[token] for n, token in enumerate(text)]))
        for text in wanted
    }
    found = []
    for many in steps:
        how = PowerSampling(alpha=alpha, steps=many, blocks=1, max_tokens=4, seed=seed)
        drawn = Counter(tuple(d.tokens) for d in power_sample(table, [[]] * chains, how))
        found.append([many, distance(wanted, {text: n / chains for text, n in drawn.items()})])
    ones = {name: sum(v for text, v in p.items() if text[0] == 1) for name, p in (("power", wanted), ("low", low))}
    return {"low": distance(wanted, low), "chains": found, "second branch": ones}
