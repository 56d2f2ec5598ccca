"""Red flags of a reinforcement run, in plain words with the remedy; each is raised once."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

_WINDOW = 10  # updates averaged at the start and now
_FAR_NATS = 20.0  # KL of an answer beyond which over-optimisation is usual (Gao et al. 2023, figure 1), without a target


class Look(NamedTuple):
    """Scores on held-out prompts after some step, by name; the first is what the run is for."""

    step: int
    scores: dict[str, float]


class Alarms:
    """Watches the notes of each update and the held-out scores."""

    def __init__(self, kl_target: float | None, group: bool):
        """group: whether answers are compared within a prompt, so that prompts can fall silent."""
        self.kl_target, self.group = kl_target, group
        self.notes: list[dict[str, float]] = []
        self.raised: set[str] = set()

    def update(self, notes: dict[str, float], looks: Sequence[Look]) -> list[str]:
        """New red flags after this update."""
        self.notes.append(notes)
        if len(self.notes) < 2 * _WINDOW:
            return []
        first, now = self.notes[:_WINDOW], self.notes[-_WINDOW:]

        def ends(key: str) -> tuple[float, float]:
            return statistics.fmean(n[key] for n in first), statistics.fmean(n[key] for n in now)

        spread = statistics.fmean(n["reward_std"] for n in first)
        found = {
            "kl": self._kl(ends("kl")[1]) if "kl" in notes else None,
            "entropy": self._entropy(*ends("entropy"), ends("no_signal")[1], ends("reward"), spread),
            "length": _longer(*ends("length")),
            "cut_off": _cut_off(ends("cut_off")[1]),
            "reward": _hacked(ends("reward"), spread, looks),
        }
        new = {name: text for name, text in found.items() if text and name not in self.raised}
        self.raised |= set(new)
        return list(new.values())

    def _kl(self, now: float) -> str | None:
        limit = _FAR_NATS if self.kl_target is None else 1.5 * self.kl_target
        if now <= limit:
            return None
        return (
            f"KL to the reference is {now:.1f} nats per answer, above {limit:.1f}: the model is leaving what it was "
            "taught. Raise kl_coefficient (or set kl = reward), lower train.lr, or stop earlier"
        )

    def _entropy(
        self, before: float, now: float, silent: float, reward: tuple[float, float], spread: float
    ) -> str | None:
        """Where answers became equal because they became right, the reward has gone up, and all is well."""
        if not (self.group and now < 0.1 * before and silent > 0.5 and reward[1] < reward[0] + 0.25 * spread):
            return None
        return (
            f"entropy fell from {before:.2f} to {now:.3f} nats per token and {silent:.0%} of prompts get equal answers: "
            "nothing is left to compare. Add entropy_weight (0.01), lower train.lr, or stop earlier"
        )


def _longer(before: float, now: float) -> str | None:
    if now > 2 * before and now > before + 8:
        return (
            f"answers grew from {before:.0f} to {now:.0f} tokens: length is being rewarded. Look at the samples; add a "
            "length rule to the reward (--reward length:N), or take divisor = fixed"
        )
    return None


def _cut_off(cut: float) -> str | None:
    if cut > 0.3:
        return (
            f"{cut:.0%} of answers are cut off at max_tokens: they never end. Raise max_tokens or cut_penalty, or give "
            "the model more SFT first"
        )
    return None


def _hacked(reward: tuple[float, float], spread: float, looks: Sequence[Look]) -> str | None:
    """The reward went up while a held-out score stayed clearly below its best in the last two looks."""
    if len(looks) < 3 or reward[1] < reward[0] + 0.1 * max(spread, 1e-6):
        return None
    for name in looks[-1].scores:
        seen = [look.scores[name] for look in looks]
        best = max(seen)
        if max(seen[-2:]) < best - max(0.02, 0.1 * (best - min(seen)), 0.05 * abs(best)):
            at = looks[seen.index(best)].step
            return (
                f"the reward rose from {reward[0]:.2f} to {reward[1]:.2f} while {name} on held-out prompts fell from "
                f"{best:.2f} (step {at}) to {seen[-1]:.2f}: the reward is being gamed. Run again with train.steps = {at}, "
                "raise kl_coefficient, or improve the reward"
            )
    return None
