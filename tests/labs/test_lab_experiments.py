"""Labs that share an experiment's measurements: run at tiny, judged from stored results, adopted, drawn."""

import json
import shutil
from pathlib import Path

import pytest

from fledge.labs import filters, overoptimise, r03_methods, r05_overoptimise, rephrasing
from fledge.labs.adopting import COMMANDS, adopt, adopt_all
from fledge.labs.bench import Bench
from fledge.labs.catalogue import LABS, entry
from fledge.labs.gallery import write_gallery
from fledge.labs.lab_command import LabOptions, run

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module")
def short():
    """Short answers, few prompts and budgets, as in the experiments' own tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overoptimise, "_MAX_TOKENS", 12)
        patch.setattr(overoptimise, "_PAIR_PROMPTS", 24)
        patch.setattr(rephrasing, "FRACTIONS", (0.5, 1.0))
        patch.setattr(filters, "SPIKE_STEPS", 25)
        yield


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_lab_measures_judges_and_draws(name, short, little_journey, tmp_path):
    lab = entry(name).load()
    setup = lab.SCALES["tiny"]
    bench = Bench(tmp_path / "seed-0", little_journey, 0, "tiny")
    told = json.loads(json.dumps(lab.measure(setup, bench)))
    found = lab.judge(setup, [told, told])
    assert 1 <= len(found.numbers) <= 8 and any(check.core for check in found.checks) and found.said
    assert all(len(number.by_seed) == 2 for number in found.numbers if "R²" not in number.label)
    svg = lab.draw(setup, [told, told])
    assert svg.startswith("<svg") and "NaN" not in svg


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_stored_result_of_the_command_is_a_result_of_the_lab(name):
    path = RESULTS / f"{COMMANDS[name]}.json"
    stored, told = json.loads(path.read_bytes()), adopt(name, path)
    assert told["seeds"] == stored["seeds"] and told["minutes"] == [] and told["machine"] is None
    assert told["command"].startswith(f"fledge {COMMANDS[name]} ") and len(told["numbers"]) <= 8
    assert told["verdict"] == stored["verdict"], (
        "the lab tests no less than the command, and these results hold as much"
    )
    known = {key: value for key, value in json.loads(json.dumps(told["setup"])).items() if key in stored["options"]}
    assert known.items() <= stored["options"].items() and len(known) >= 4


def test_adopting_writes_what_the_page_shows_and_keeps_what_a_lab_measured(tmp_path):
    results = tmp_path / "labs"
    for verb in ("methods", "filters"):
        shutil.copy(RESULTS / f"{verb}.json", tmp_path)
    assert sorted(p.name for p in run(LabOptions(action="adopt", results=str(results)))) == ["P3.json", "R3.json"]
    told = json.loads((results / "R3.json").read_bytes())
    page = write_gallery(tmp_path, {"R3": told}).read_text()
    assert "0.0 minutes" not in page and "fledge methods --out" in page and "earlier version" in page
    (results / "R3.json").write_text(json.dumps(told | {"minutes": [1.0]}))
    assert [p.name for p in adopt_all(results, [])] == ["P3.json"]
    with pytest.raises(ValueError, match=r"mixtures.json is missing: run `fledge mixtures`"):
        adopt_all(results, ["R7"])
    with pytest.raises(ValueError, match="P2 has no command of its own: those that have are P3"):
        adopt("P2", tmp_path / "methods.json")
    with pytest.raises(ValueError, match=r"is no result\.json of `fledge methods`"):
        (tmp_path / "methods.json").write_text("{}")
        adopt("R3", tmp_path / "methods.json")


def test_all_commands_have_their_lab():
    assert set(COMMANDS) <= set(LABS)


def curve(points):
    return [{"answers": x, "accuracy": y} for x, y in points]


def test_the_answers_ppo_needs_are_read_between_looks():
    reinforce = curve([(0, 0.2), (100, 0.5), (200, 0.8)])
    ppo = curve([(0, 0.2), (100, 0.7), (200, 0.9)])
    assert r03_methods.share_needed({"reinforce": reinforce, "ppo": ppo}) == pytest.approx(0.75)
    assert r03_methods.share_needed({"reinforce": reinforce, "ppo": curve([(0, 0.1), (200, 0.7)])}) == float("inf")


def test_the_papers_form_is_found_again():
    import math

    rows = [{"kl": d * d, "gold": 0.3 + d * (1.2 - 0.4 * d)} for d in (0.0, 0.2, 0.5, 0.8, 1.1, 1.4, 1.7)]
    assert r05_overoptimise.fit_of(rows, log=False) == pytest.approx(1.0)
    assert r05_overoptimise.fit_of(rows, log=True) < 0.9999
    logs = [{"kl": 0.0, "gold": 0.3}] + [
        {"kl": d * d, "gold": 0.3 + d * (1.2 - 0.4 * math.log(d))} for d in (0.5, 1, 2, 3)
    ]
    assert r05_overoptimise.fit_of(logs, log=True) == pytest.approx(1.0)
    assert math.isnan(r05_overoptimise.fit_of(rows[:4], log=False)), "too few points beyond 0.3"
