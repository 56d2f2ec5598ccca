"""Scaling laws from runs of many sizes: the best size for a budget, a law of loss, repeated data, and when text runs out.

N parameters, D tokens of training, L loss in nats per token, C = 6 N D FLOPs (Kaplan et al. 2020, section 2.1).
Hoffmann et al. 2022 fit the best N in several ways; here are two of theirs:

    isoflops     section 3.2: at each budget a parabola of L over log N; its lowest point is the best size
    fit_law      section 3.3: L = E + A / N^alpha + B / D^beta for all runs at once

Text that is read again teaches less: `effective_tokens` and `fit_repeats` are section 3.1 of Muennighoff et al. 2023,
`years_left` is the arithmetic behind Villalobos et al. 2024.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

_HUBER = 1e-3  # of the log residual (Hoffmann et al. 2022, section 3.3)
_STARTS, _FIRST = 24, 60  # best cells of the grid from which L-BFGS starts, and steps before all but three are given up
_SAME_BUDGET = 1.2  # runs whose FLOPs differ by less are of one budget
_LEVEL = 0.90


class Run(NamedTuple):
    """One training run."""

    parameters: float
    tokens: float
    loss: float  # nats per token, of text it was not trained on
    unique: float = math.inf  # different tokens it read, where those are fewer

    @property
    def flops(self) -> float:
        return 6.0 * self.parameters * self.tokens

    @property
    def repeats(self) -> bool:
        """Whether it read more than a hundredth of its text again."""
        return self.tokens > 1.01 * self.unique


class PowerLaw(NamedTuple):
    """y = factor * x^exponent, fitted to logarithms."""

    factor: float
    exponent: float
    r2: float  # share of the variance of log y that it explains

    def at(self, x: float) -> float:
        return self.factor * x**self.exponent


def power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """Least squares of log y on log x. Raises ValueError for fewer than two points or a value that is not above 0."""
    if len(x) < 2 or min(*x, *y) <= 0:
        raise ValueError(f"a power law through {len(x)} points: it needs two or more, all above 0")
    lx, ly = np.log(x), np.log(y)
    exponent, constant = np.polyfit(lx, ly, 1)
    rest, spread = ly - constant - exponent * lx, ly - ly.mean()
    r2 = 1.0 - float(rest @ rest) / max(float(spread @ spread), 1e-300)
    return PowerLaw(float(np.exp(constant)), float(exponent), r2)


class IsoFlop(NamedTuple):
    """One budget: a parabola of loss over log N through its runs."""

    flops: float
    runs: list[Run]  # by size
    parabola: tuple[float, float, float]  # loss = a (log N)^2 + b log N + c
    parameters: float  # at the lowest point; nan where the parabola has none
    loss: float  # there

    @property
    def tokens(self) -> float:
        return self.flops / 6.0 / self.parameters

    @property
    def interior(self) -> bool:
        """Whether the lowest point lies between the second and the last size but one."""
        return self.runs[1].parameters <= self.parameters <= self.runs[-2].parameters  # False for nan

    def at(self, parameters: float) -> float:
        """Loss by the parabola."""
        return float(np.polyval(self.parabola, math.log(parameters)))


def isoflops(runs: Sequence[Run]) -> list[IsoFlop]:
    """Each budget of four runs or more with its parabola, cheapest first; other runs are left out."""
    groups: list[list[Run]] = []
    for run in sorted(runs, key=lambda r: r.flops):
        if groups and run.flops < _SAME_BUDGET * groups[-1][0].flops:
            groups[-1].append(run)
        else:
            groups.append([run])
    return [_isoflop(group) for group in groups if len({r.parameters for r in group}) >= 4]


def _isoflop(runs: Sequence[Run]) -> IsoFlop:
    runs = sorted(runs)
    a, b, c = _parabola(runs, [r.loss for r in runs])
    best = -b / (2 * a) if a > 0 else math.nan
    flops = math.exp(sum(math.log(r.flops) for r in runs) / len(runs))
    return IsoFlop(flops, runs, (a, b, c), math.exp(best), float(np.polyval((a, b, c), best)))


def _parabola(runs: Sequence[Run], losses: Sequence[float]) -> tuple[float, float, float]:
    """Least squares around the mean of log N, where the three columns are nearly independent."""
    x = np.log([r.parameters for r in runs])
    middle = x.mean()
    a, b, c = np.polyfit(x - middle, losses, 2)
    return float(a), float(b - 2 * a * middle), float(c - b * middle + a * middle**2)


class Frontier(NamedTuple):
    """How the best size, its tokens and its loss grow with the budget."""

    parameters: PowerLaw  # N = factor * C^a
    tokens: PowerLaw  # D = factor * C^(1-a)
    loss: PowerLaw
    exponent: tuple[float, float]  # 90% interval of a


def frontier(curves: Sequence[IsoFlop], *, draws: int = 1000, seed: int = 0) -> Frontier:
    """The best of each budget against C. Budgets whose parabola has no lowest point are left out.

    The interval is a bootstrap of the parabolas' residuals, widened for the three numbers each has been fitted.
    Raises ValueError where fewer than two budgets are left.
    """
    usable = [c for c in curves if math.isfinite(c.parameters)]
    if len(usable) < 2:
        raise ValueError(
            f"{len(usable)} budgets with a lowest point: two or more are needed; train more sizes on both sides of the best"
        )
    budgets = [c.flops for c in usable]
    dice, exponents = np.random.default_rng(seed), []
    for _ in range(draws):
        best = [_redrawn(curve, dice) for curve in usable]
        kept = [(c, n) for c, n in zip(budgets, best, strict=True) if math.isfinite(n)]
        if len(kept) >= 2:
            exponents.append(power_law(*zip(*kept, strict=True)).exponent)
    low, high = np.quantile(exponents, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Frontier(
        power_law(budgets, [c.parameters for c in usable]),
        power_law(budgets, [c.tokens for c in usable]),
        power_law(budgets, [c.loss for c in usable]),
        (float(low), float(high)),
    )


def _redrawn(curve: IsoFlop, dice: np.random.Generator) -> float:
    """The best size with the residuals of the parabola dealt out anew."""
    fitted = np.array([curve.at(r.parameters) for r in curve.runs])
    rest = np.array([r.loss for r in curve.runs]) - fitted
    count = len(rest)
    rest = rest * math.sqrt(count / max(1, count - 3))
    a, b, _ = _parabola(curve.runs, fitted + dice.choice(rest, count))
    return math.exp(min(max(-b / (2 * a), 0.0), 100.0)) if a > 0 else math.nan


class Law(NamedTuple):
    """L = E + A / N^alpha + B / D^beta."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    error: float  # root mean square of the log residuals of the runs it was fitted to

    def loss(self, parameters: float, tokens: float) -> float:
        """Nats per token of a model of that size on that many tokens, each read once."""
        return self.E + self.A * parameters**-self.alpha + self.B * tokens**-self.beta

    @property
    def exponent(self) -> float:
        """a of N_opt = G (C/6)^a."""
        return self.beta / (self.alpha + self.beta)

    def best_parameters(self, flops: float) -> float:
        """N of the lowest loss at a budget (Hoffmann et al. 2022, equation 4). nan where a larger model never helps."""
        if min(self.alpha, self.beta, self.A, self.B) <= 0:
            return math.nan
        g = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        return g * (flops / 6.0) ** self.exponent


# Hoffmann et al. 2022 print rounded constants (their appendix D.3), from which D / N at Gopher's budget comes out as 93,
# not the 20 of their other two fits; Besiroglu et al. 2024 read the runs off the figure and fitted them again.
HOFFMANN = Law(1.69, 406.4, 410.7, 0.34, 0.28, math.nan)
BESIROGLU = Law(1.8172, 482.01, 2085.43, 0.3478, 0.3658, math.nan)


def fit_law(runs: Sequence[Run], start: Law | None = None) -> Law:
    """Huber loss of the log residual by L-BFGS from the best of Hoffmann's grid, or from `start` alone.

    Where all runs are of one size, E, B and beta are fitted and A is 0. Raises ValueError where the runs cannot tell the
    constants apart: too few, or of one number of tokens.
    """
    n, d = np.log([r.parameters for r in runs]), np.log([r.tokens for r in runs])
    y = np.log([r.loss for r in runs])
    sized = float(np.ptp(n)) > 0
    constants = 5 if sized else 3
    if len(runs) < constants or not np.ptp(d) > 0:
        raise ValueError(
            f"{len(runs)} runs of {len(set(n))} sizes and {len(set(d))} numbers of tokens: a law of {constants} constants "
            "needs as many runs, and different numbers of tokens"
        )
    if start is not None:
        middle = [math.log(max(start.A, 1e-300)) - start.alpha * n.mean(), math.log(start.B) - start.beta * d.mean()]
        begin = np.array([*middle, math.log(start.E), start.alpha, start.beta])
    best = _minimise(n, d, y, sized, None if start is None else begin)
    a, b, e, alpha, beta = best  # of centred logarithms
    rest = _log_loss(best[None], n - n.mean(), d - d.mean(), sized)[0] - y
    return Law(
        E=math.exp(e), A=math.exp(a + alpha * n.mean()) if sized else 0.0, B=math.exp(b + beta * d.mean()),
        alpha=float(alpha) if sized else 0.0, beta=float(beta), error=float(np.sqrt(rest @ rest / len(rest))),
    )  # fmt: skip


def _log_loss(q: np.ndarray, n: np.ndarray, d: np.ndarray, sized: bool) -> np.ndarray:
    """log L [K,R] of K candidates q [K,5] = (log A, log B, log E, alpha, beta) for R runs."""
    return np.logaddexp.reduce(_terms(q, n, d, sized), axis=0)


def _terms(q: np.ndarray, n: np.ndarray, d: np.ndarray, sized: bool) -> np.ndarray:
    """Logs of the three terms [3,K,R]."""
    a, b, e, alpha, beta = (q[:, i, None] for i in range(5))
    first = a - alpha * n if sized else np.full((len(q), len(n)), -np.inf)
    return np.stack([first, b - beta * d, np.broadcast_to(e, (len(q), len(n)))])


def _minimise(n: np.ndarray, d: np.ndarray, y: np.ndarray, sized: bool, start: np.ndarray | None = None) -> np.ndarray:
    """(log A, log B, log E, alpha, beta) for logarithms taken from their means, which keeps A and alpha apart."""
    from scipy.optimize import minimize

    middle_n, middle_d = n.mean(), d.mean()
    n, d = n - middle_n, d - middle_d

    def cost(q: np.ndarray) -> tuple[float, np.ndarray]:
        terms = _terms(q[None], n, d, sized)[:, 0]
        told = np.logaddexp.reduce(terms, axis=0)
        rest = (told - y) / _HUBER
        bent = np.clip(rest, -1, 1)
        share = np.exp(terms - told) * bent  # [3,R]
        grad = np.array([share[0].sum(), share[1].sum(), share[2].sum(), -(share[0] * n).sum(), -(share[1] * d).sum()])
        # in units of delta^2: L-BFGS stops on absolute changes, and would stop at once on Huber's own scale
        return float((bent * (rest - bent / 2)).sum()), grad / _HUBER

    # the grid is the paper's, of A and B as such; centred, a = log A - alpha * mean log N
    grid = np.stack(np.meshgrid(np.arange(0, 30, 5.0), np.arange(0, 30, 5.0), np.arange(-1, 1.5, 0.5),
                                np.arange(0, 2.5, 0.5), np.arange(0, 2.5, 0.5), indexing="ij"), -1).reshape(-1, 5)  # fmt: skip
    grid[:, 0] -= grid[:, 3] * middle_n
    grid[:, 1] -= grid[:, 4] * middle_d
    rest = np.abs(_log_loss(grid, n, d, sized) - y).sum(-1)
    limits = [(None, None)] * 3 + [(0.0, 5.0)] * 2

    def descend(starts: Sequence[np.ndarray], steps: int) -> list[np.ndarray]:
        """Where L-BFGS comes to from each start, lowest cost first."""
        options = {"maxiter": steps, "ftol": 1e-13, "gtol": 1e-9}
        ends = [minimize(cost, q, jac=True, method="L-BFGS-B", bounds=limits, options=options) for q in starts]
        return [end.x for end in sorted(ends, key=lambda end: end.fun)]

    starts = descend(grid[np.argsort(rest)[:_STARTS]], _FIRST)[:3] if start is None else [start]
    return descend(starts, 3000)[0]


def law_intervals(runs: Sequence[Run], *, draws: int = 100, seed: int = 0) -> dict[str, tuple[float, float]]:
    """90% intervals of E, alpha, beta and the exponent a: runs drawn again with replacement, the law fitted anew."""
    dice, law, found = np.random.default_rng(seed), fit_law(runs), []
    for _ in range(draws):
        drawn = [runs[i] for i in dice.integers(len(runs), size=len(runs))]
        if len({r.parameters for r in drawn}) > 2 and len({r.tokens for r in drawn}) > 2:
            found.append(fit_law(drawn, law))
    ends = [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]
    return {
        name: tuple(float(v) for v in np.quantile([getattr(law, name) for law in found], ends))
        for name in ("E", "alpha", "beta", "exponent")
    }


def effective_tokens(unique: float, tokens: float, half: float) -> float:
    """Fresh tokens that `tokens` of training on `unique` ones are worth: U + U R* (1 - exp(-R / R*)), R = tokens/U - 1.

    half: R*, the repetitions after which the worth of one more has fallen to 1/e (15.4 in Muennighoff et al. 2023). The
    same formula with the best N for `unique` tokens in their place gives the effective parameters (R* 5.3).
    """
    repeats = tokens / unique - 1.0
    return float(tokens) if repeats <= 0 else unique + unique * half * (1.0 - math.exp(-repeats / half))


def fit_repeats(runs: Sequence[Run], fresh: Callable[[float, float], float]) -> tuple[float, float]:
    """(R*, root mean square log residual) of the runs that repeat their `unique` tokens; others are left out.

    fresh: loss of a model of that many parameters on that many tokens, each read once, such as `Law.loss`.
    Raises ValueError where no run repeats anything. R* is between 0.01 and 10,000.
    """
    runs = [run for run in runs if run.repeats]
    if not runs:
        raise ValueError(
            "no run reads more tokens than its unique ones: repeats can be fitted only where there are some"
        )

    def rests(half: float) -> np.ndarray:
        told = [fresh(r.parameters, effective_tokens(r.unique, r.tokens, half)) for r in runs]
        return np.log(told) - np.log([r.loss for r in runs])

    def cost(half: float) -> float:
        size = np.abs(rests(half)) / _HUBER
        return float(np.where(size < 1, size**2 / 2, size - 0.5).sum())

    best, width = 10.0, math.log(1000)
    for _ in range(12):  # the valley may be flat far out: look everywhere, then closer and closer
        around = np.exp(np.linspace(math.log(best) - width, math.log(best) + width, 41)).clip(0.01, 10_000)
        best = float(min(around, key=cost))
        width /= 5
    return best, float(np.sqrt((rests(best) ** 2).mean()))


def years_left(used: float, stock: float, growth: float, stock_growth: float = 1.0) -> float:
    """Years until training sets of `used` tokens, growing by the factor `growth` a year, need all the `stock` there is.

    0 where they do already; infinite where the stock grows as fast. Raises ValueError for what is not above 0.
    """
    if min(used, stock, growth, stock_growth) <= 0:
        raise ValueError(
            f"used {used:g}, stock {stock:g}, growth {growth:g}, growth of the stock {stock_growth:g}: all must be above 0"
        )
    if stock <= used:
        return 0.0
    return math.log(stock / used) / math.log(growth / stock_growth) if growth > stock_growth else math.inf
