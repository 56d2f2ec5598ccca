"""One lab, from its setting to result.json: every seed is measured once and kept, then judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from fledge import __version__
from fledge.core.config import Settings, TrainConfig, build, merge
from fledge.core.durable import canonical_json, write_atomically
from fledge.core.log import say
from fledge.core.runtime import release_memory, set_threads, usable_cores
from fledge.labs.bench import SCALES, Bench, Spent
from fledge.labs.catalogue import entry
from fledge.labs.code import code_version
from fledge.labs.speed import slowness
from fledge.labs.verdict import reason, verdict
from fledge.stages.common import fix_recipe, machine


class LabRun(Settings, frozen=True, kw_only=True):
    """One lab at one scale."""

    id: str
    "Which lab: P9, S11 and so on."
    out: str
    "Folder of this lab."
    shared: str
    "Folder of the models that labs share."
    scale: str = "pocket"
    "pocket, gpu, full or tiny."
    seeds: int = 3
    "Repetitions."
    set: dict[str, Any] = {}
    "Settings of the lab that are not as at this scale."

    def problems(self) -> list[str]:
        found = [] if self.scale in SCALES else [f"scale = {self.scale!r}: must be one of {', '.join(SCALES)}"]
        return found + ([] if self.seeds >= 1 else [f"seeds = {self.seeds}: must be at least 1"])


def setup_of(options: LabRun) -> Settings:
    """The lab's settings at this scale, with what `set` changes. Raises ValueError where the lab has no such scale."""
    lab = entry(options.id).load()
    if options.scale not in lab.SCALES:
        raise ValueError(f"{options.id} has no scale {options.scale!r}: it has {', '.join(lab.SCALES)}")
    return build(lab.Setup, merge(msgspec.to_builtins(lab.SCALES[options.scale]), options.set))


def run(options: LabRun) -> dict[str, Any]:
    """Measure each seed (kept as it ends), judge, and write OUT/result.json; returns what it holds.

    A killed lab continues: seeds that are done are read, the arms of the one that was not resume.
    """
    listed, setup = entry(options.id), setup_of(options)
    lab, out = listed.load(), Path(options.out)
    fix_recipe(out, "lab-run", options)
    set_threads(None)
    times = slowness(out.parent)
    predicted = listed.minutes * options.seeds * times if options.scale == "pocket" else None
    if predicted is not None:
        say(f"{options.id}, {options.seeds} seeds: about {predicted:.1f} minutes on this machine, shared models apart")
    seeds, minutes, core_minutes = [], [], []
    for seed in range(options.seeds):
        measured = _one_seed(lab, setup, options, seed)
        seeds.append(measured["found"])
        minutes.append(measured["seconds"] / 60)
        core_minutes.append(measured["core_seconds"] / 60)
        release_memory()
    told = judged(options.id, options.scale, setup, seeds) | {
        "minutes": minutes, "core_minutes": core_minutes, "minutes_predicted": predicted, "command": command(options),
        "code": code_version(), "fledge": __version__, "machine": {"cores": usable_cores(), **machine(TrainConfig())},
    }  # fmt: skip
    write_result(out / "result.json", told)
    return told


def judged(name: str, scale: str, setup: Settings, seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """The part of result.json that measurements alone give: title, verdict, numbers, checks, setting and seeds."""
    listed = entry(name)
    found = listed.load().judge(setup, seeds)
    return {
        "id": name.upper(), "title": listed.title, "scale": scale, "verdict": verdict(found.checks),
        "reason": reason(found.checks), "said": found.said, "numbers": _numbers(found.numbers),
        "checks": msgspec.to_builtins(found.checks), "setup": msgspec.to_builtins(setup), "seeds": seeds,
    }  # fmt: skip


def write_result(path: Path, told: dict[str, Any]) -> None:
    """As text that people and git can read."""
    write_atomically(path, msgspec.json.format(canonical_json(told), indent=1) + b"\n")


def _one_seed(lab: Any, setup: Settings, options: LabRun, seed: int) -> dict[str, Any]:
    """What was measured ("found"), and the time and the time of all cores that it took here; from disk where it is done.

    Shared models are left out of the times. That of the cores tells what a lab costs also where a machine is shared.
    """
    folder = Path(options.out) / f"seed-{seed}"
    done, clock = folder / "measured.json", folder / "clock.json"
    if done.exists():
        return msgspec.json.decode(done.read_bytes())
    say(f"{options.id.upper()}, seed {seed}")
    before = msgspec.json.decode(clock.read_bytes()) if clock.exists() else {}  # an interrupted try counts, too
    bench, start = Bench(folder, Path(options.shared), seed, options.scale), Spent.now()

    def times() -> dict[str, float]:
        spent = Spent.now() - start - bench.shared_spent
        return {name: before.get(name, 0.0) + value for name, value in zip(spent._fields, spent, strict=True)}

    try:
        found = lab.measure(setup, bench)
    except BaseException:
        write_atomically(clock, canonical_json(times()))
        raise
    write_atomically(done, canonical_json({"found": found, **times()}))
    return msgspec.json.decode(done.read_bytes())  # as the next time will find it


def _numbers(numbers: list[Any]) -> list[dict[str, Any]]:
    told = []
    for number in numbers:
        low, high = number.interval()
        told.append(msgspec.to_builtins(number) | {"mean": number.mean, "low": low, "high": high})
    return told


def command(options: LabRun) -> str:
    """What runs this lab again."""
    words = ["fledge lab run", options.id.upper(), f"--seeds {options.seeds}", f"--scale {options.scale}"]
    return " ".join(words + [f"--set.{name} {value}" for name, value in options.set.items()])
