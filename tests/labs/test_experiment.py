"""What experiments that are commands share: kept seeds, refusals, the order of what is told, time, verdicts."""

import json
from pathlib import Path

import msgspec
import pytest

from fledge.core.config import Settings
from fledge.labs import experiment
from fledge.labs.bench import Bench
from fledge.labs.experiment import options_in, seeds_problems, verdict_of


class Numbers(Settings, frozen=True, kw_only=True):
    coins: int = 10
    "Coins thrown."


class Options(Numbers, frozen=True, kw_only=True):
    out: str
    "Folder of the experiment."
    parent: str | None = None
    "Model."
    seeds: int = 2
    "Repetitions."


def go(options: Options, calls: list, **more) -> dict:
    def one_seed(options: Options, folder: Path, seed: int) -> dict:
        calls.append(seed)
        return {"seed": seed, "arms": {"raw": folder.name, "best": options.coins}}

    def page(out: Path, total: dict) -> Path:
        return out / "report.html"

    def summary(results: list) -> dict:
        checks = {"coins were thrown": all(r["arms"]["best"] for r in results), "and more than ten": False}
        return {"checks": checks, "verdict": verdict_of(checks)}

    return experiment.run(
        "coins", options, one_seed, summary, page, lambda console, total: console.print("a table"), **more
    )


def test_seeds_are_measured_once_and_told_in_their_order(tmp_path, capsys):
    calls: list[int] = []
    options = Options(out=str(tmp_path / "X"))
    total = go(options, calls)
    assert list(total["seeds"][0]["arms"]) == ["raw", "best"] and total["verdict"] == "PARTLY" and calls == [0, 1]
    assert json.loads((tmp_path / "X/result.json").read_bytes()) == total
    said = capsys.readouterr().out
    assert "a table" in said and "yes  coins were thrown" in said and "NO   and more than ten" in said
    assert "PARTLY, in 0.0 minutes" in said and set(json.loads((tmp_path / "X/clock.json").read_bytes())) == {
        "seed 0",
        "seed 1",
    }
    (tmp_path / "X/seed-1/result.json").unlink()
    assert go(options, calls) == total and calls == [0, 1, 1]
    with pytest.raises(ValueError, match="coins: 10 there, 11 now"):
        go(msgspec.structs.replace(options, coins=11), calls)


def test_what_is_refused_leaves_no_folder_and_is_asked_once(tmp_path):
    def refuse() -> None:
        raise ValueError("no coin: bring one")

    options = Options(out=str(tmp_path / "X"), seeds=1)
    with pytest.raises(ValueError, match="bring one"):
        go(options, [], refuse=refuse)
    assert not (tmp_path / "X").exists()
    go(options, [])
    go(options, [], refuse=refuse, done="result.json")  # a folder that is there was not refused


def test_a_labs_setup_becomes_the_commands_options(tmp_path):
    made = options_in(Options, Numbers(coins=3), Bench(tmp_path / "seed-0", tmp_path, 0), parent="p")
    assert made == Options(coins=3, out=str(tmp_path / "seed-0"), parent="p")


def test_verdicts_and_counts():
    assert verdict_of({"a": True, "b": True}) == "REPRODUCED" and verdict_of({"a": True, "b": False}) == "PARTLY"
    assert verdict_of({"a": False}) == "NOT REPRODUCED"
    assert seeds_problems(1) == [] and seeds_problems(0) == ["seeds = 0: must be at least 1"]
