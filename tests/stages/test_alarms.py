"""Each red flag: raised once, with the right numbers, and not by a run that goes well."""

from collections.abc import Callable

import pytest

from fledge.stages.alarms import Alarms, Look

UPDATES = 60


def ramp(start: float, end: float) -> Callable[[float], float]:
    return lambda x: start + (end - start) * x


HEALTHY = {
    "reward": ramp(0.2, 0.6), "reward_std": ramp(0.4, 0.5), "entropy": ramp(1.0, 0.5), "no_signal": ramp(0.3, 0.4),
    "length": ramp(6, 9), "cut_off": ramp(0.1, 0.0), "kl": ramp(0, 5),
}  # fmt: skip


def raised(
    looks: Callable[[float], dict[str, float]] | None = None,
    kl_target: float | None = None,
    group: bool = True,
    **over: Callable[[float], float] | None,
) -> list[tuple[int, str]]:
    """(update, flag) of a run whose figures go as told; a look every 10 updates."""
    alarms, found, seen = Alarms(kl_target, group), [], []
    figures = {name: f for name, f in (HEALTHY | over).items() if f is not None}
    for n in range(1, UPDATES + 1):
        x = (n - 1) / (UPDATES - 1)
        if looks and n % 10 == 0:
            seen.append(Look(n, looks(x)))
        found += [
            (n, flag) for flag in alarms.update({k: f(x) for k, f in figures.items()}, seen if n % 10 == 0 else [])
        ]
    return found


def test_a_run_that_goes_well_raises_none():
    assert raised(looks=lambda x: {"score": 0.2 + 0.5 * x, "reward": 0.2 + 0.4 * x}, kl_target=4.0) == []
    assert raised(kl=None) == []


@pytest.mark.parametrize("start", [0.05, 0.6, 0.8])
def test_answers_that_become_equal_because_they_become_right_are_no_flag(start):
    """Entropy to 2% and most prompts silent, at a score near 1, from wherever it began."""
    spread = (start * (1 - start)) ** 0.5
    done = raised(
        looks=lambda x: {"score": start + (1 - start) * x}, reward=ramp(start, 0.99), reward_std=ramp(spread, 0.1),
        entropy=lambda x: 1.2 * 0.02**x, no_signal=ramp(0.1, 0.95),
    )  # fmt: skip
    assert done == []


@pytest.mark.parametrize(("target", "limit"), [(None, 20.0), (4.0, 6.0)])
def test_kl_far_from_the_reference(target, limit):
    ((at, flag),) = raised(kl_target=target, kl=ramp(0, 40))
    means = {n: 40 * (n - 5.5) / (UPDATES - 1) for n in range(20, UPDATES + 1)}  # of the last 10 updates
    assert at == min(n for n, mean in means.items() if mean > limit)
    mean = means[at]
    assert (
        flag.startswith(f"KL to the reference is {mean:.1f} nats per answer, above {limit:.1f}")
        and "kl_coefficient" in flag
    )
    assert raised(kl_target=target, kl=ramp(0, 0.95 * limit)) == []
    assert raised(kl_target=target, kl=ramp(0, -40)) == []


def test_entropy_that_collapsed_with_nothing_gained():
    collapse = {"entropy": lambda x: 1.5 if x < 0.3 else 0.01, "no_signal": ramp(0.2, 0.9), "reward": ramp(0.3, 0.35)}
    ((at, flag),) = raised(**collapse)
    assert flag.startswith("entropy fell from 1.50 to 0.") and "of prompts get equal answers" in flag
    silent = sum(0.2 + 0.7 * (n - 1) / (UPDATES - 1) for n in range(at - 9, at + 1)) / 10
    assert f"{silent:.0%} of prompts" in flag and silent > 0.5
    assert raised(**collapse, group=False) == []  # answers are not compared within a prompt
    assert raised(**collapse | {"no_signal": ramp(0.2, 0.4)}) == []
    assert raised(**collapse | {"entropy": ramp(1.5, 0.2)}) == []


def test_answers_that_grow():
    ((_, flag),) = raised(length=ramp(10, 40))
    assert flag.startswith("answers grew from 12 to 2") and "--reward length:N" in flag
    assert raised(length=ramp(2, 9)) == []  # more than twice, but short all the same
    assert raised(length=ramp(40, 60)) == []


def test_answers_that_are_cut_off_are_told_beside_those_that_grow():
    found = raised(length=ramp(10, 60), cut_off=ramp(0.0, 0.8))
    assert [flag.split(":")[0][:14] for _, flag in found] == ["answers grew f", "31% of answers"]
    assert "Raise max_tokens or cut_penalty" in found[1][1]
    ((at, flag),) = raised(cut_off=lambda x: 0.9)
    assert at == 20 and flag.startswith("90% of answers are cut off")


def test_a_reward_that_is_gamed():
    """It rises while the held-out score peaks at update 30 and stays below."""
    scores = {10: 0.3, 20: 0.5, 30: 0.6, 40: 0.5, 50: 0.4, 60: 0.35}  # above the start to the end

    def looks(x: float) -> dict[str, float]:
        n = round(x * (UPDATES - 1)) + 1
        return {"score": scores[n], "reward": 0.2 + 0.4 * x}

    ((at, flag),) = raised(looks=looks)
    assert at == 50 and "score on held-out prompts fell from 0.60 (step 30) to 0.40" in flag
    first = 0.2 + 0.4 * 4.5 / 59
    assert (
        flag.startswith(f"the reward rose from {first:.2f} to {0.2 + 0.4 * 44.5 / 59:.2f}") and "train.steps = 30" in flag
    )
    assert raised(looks=looks, reward=ramp(0.3, 0.3)) == []  # both fall: that is no gaming
    assert raised(looks=lambda x: {"score": 0.5 + (0.01 if x < 0.5 else -0.01)}) == []  # noise


def test_nothing_is_said_before_20_updates():
    alarms = Alarms(1.0, True)
    bad = {
        "reward": 0.0,
        "reward_std": 0.1,
        "entropy": 1.0,
        "no_signal": 0.0,
        "length": 9.0,
        "cut_off": 1.0,
        "kl": 99.0,
    }
    told = [alarms.update(bad, []) for _ in range(40)]
    assert [len(flags) for flags in told] == [0] * 19 + [2] + [0] * 20
