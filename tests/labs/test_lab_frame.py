"""The frame of the labs: verdicts, intervals, keeping, resuming, the command and the page, on a lab that trains nothing."""

import json
import subprocess
import sys
import types

import pytest

from fledge.cli import main
from fledge.core.config import Settings
from fledge.labs import catalogue
from fledge.labs.bench import Bench
from fledge.labs.lab_command import LabOptions, run
from fledge.labs.verdict import (
    Check,
    Findings,
    Number,
    at_least,
    at_most,
    between,
    interval,
    reason,
    span,
    verdict,
    written,
)
from fledge.stages.common import open_model
from fledge.stages.evaluate import ask
from fledge.stages.worlds import world_behind
from fledge.tasks.world_tasks import WorldFacts


class Setup(Settings, frozen=True, kw_only=True):
    coins: int = 10
    "Coins thrown."
    fail_at: int | None = None
    "Seed at which it breaks."


def measure(setup, bench: Bench):
    bench.keep("throws", lambda: [bench.seed] * setup.coins)
    (bench.folder / "tries").open("a").write("x")
    if setup.fail_at == bench.seed:
        raise ValueError("a coin is lost: look under the table")
    return {"share": 0.5 + bench.seed / 10}


def judge(setup, seeds):
    share = Number(label="heads", by_seed=[s["share"] for s in seeds], unit="%", of=setup.coins, paper="half <b>")
    return Findings(numbers=[share], checks=[at_least("heads come up", share, 0.4)], said=f"{share.mean:.0%} <heads>")


LAB = types.SimpleNamespace(
    Setup=Setup, SCALES={"pocket": Setup(), "tiny": Setup(coins=2)}, measure=measure, judge=judge,
    draw=lambda setup, seeds: f'<svg aria-label="{len(seeds)} seeds"></svg>',
)  # fmt: skip


class Entry(catalogue.Entry):
    def load(self):
        return LAB


@pytest.fixture
def labs(monkeypatch, tmp_path):
    entries = {"C1": Entry("coins", "Coins", "硬幣", "A fair coin is fair.", "Bernoulli 1713", 0.1)}
    monkeypatch.setattr(catalogue, "LABS", entries)
    for module in ("lab_command", "gallery"):
        monkeypatch.setattr(f"fledge.labs.{module}.LABS", entries)
    monkeypatch.setattr("fledge.labs.running.slowness", lambda folder: 2.0)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs/labs"


def test_a_lab_runs_keeps_and_shows(labs, capsys):
    told = run(LabOptions(action="run", ids=["c1"], seeds=2))[0]
    assert told["verdict"] == "REPRODUCED" and told["reason"] == "" and told["minutes_predicted"] == pytest.approx(0.4)
    assert told["numbers"][0]["mean"] == pytest.approx(0.55) and len(told["minutes"]) == 2 and len(told["code"]) == 12
    assert len(told["core_minutes"]) == 2 and all(minutes > 0 for minutes in told["core_minutes"])
    assert json.loads((labs / "C1/result.json").read_bytes())["seeds"] == [{"share": 0.5}, {"share": 0.6}]
    run(LabOptions(action="run", ids=["C1"], seeds=2))
    assert (labs / "C1/seed-0/tries").read_text() == "x"  # not measured again
    page = (labs / "report.html").read_text()
    assert (
        'aria-label="2 seeds"' in page and "硬幣" in page and "half &lt;b&gt;" in page and "55% &lt;heads&gt;" in page
    )
    assert "heads come up" in capsys.readouterr().out
    rows = run(LabOptions(action="list"))
    assert rows[0]["verdict"] == "REPRODUCED" and "Bernoulli" in repr(rows)


def test_a_result_of_another_version_has_no_chart_and_leaves_the_others_theirs(labs, monkeypatch):
    run(LabOptions(action="run", ids=["C1"], seeds=1))
    path = labs / "C1/result.json"
    told = json.loads(path.read_bytes())
    monkeypatch.setattr(LAB, "draw", lambda setup, seeds: f"<svg>{seeds[0]['share']}</svg>")
    for setup, seeds in (({"gone": 1}, told["seeds"]), (told["setup"], [{}])):
        path.write_text(json.dumps(told | {"setup": setup, "seeds": seeds}))
        page = run(LabOptions(action="report")).read_text()
        assert "Measured by another version of this lab" in page and "heads" in page and "<svg>" not in page


def test_a_broken_seed_costs_only_itself(labs):
    with pytest.raises(ValueError, match="look under the table"):
        run(LabOptions(action="run", ids=["C1"], seeds=2, set={"fail_at": 1}))
    assert not (labs / "C1/result.json").exists()
    LAB.measure = lambda setup, bench: {"share": 0.9}
    try:
        assert main(["resume", str(labs.relative_to(labs.parents[1]) / "C1")]) == 0
    finally:
        LAB.measure = measure
    assert json.loads((labs / "C1/result.json").read_bytes())["seeds"] == [{"share": 0.5}, {"share": 0.9}]


def test_settings_are_checked_and_another_setting_is_refused(labs):
    with pytest.raises(ValueError, match="no lab 'Z9': there are C1"):
        run(LabOptions(action="run", ids=["Z9"]))
    with pytest.raises(ValueError, match="coin"):
        run(LabOptions(action="run", ids=["C1"], set={"coinz": 3}))
    with pytest.raises(ValueError, match="no scale 'gpu': it has pocket, tiny"):
        run(LabOptions(action="run", ids=["C1"], scale="gpu"))
    assert not (labs / "C1").exists()
    run(LabOptions(action="run", ids=["C1"], set={"coins": 3}, seeds=1))
    with pytest.raises(ValueError, match="another run"):
        run(LabOptions(action="run", ids=["C1"], set={"coins": 4}, seeds=1))
    assert LabOptions(action="run").problems() and LabOptions(action="list", ids=["C1"]).problems()


def test_tiny_runs_are_no_results(labs):
    run(LabOptions(action="run", ids=["C1"], scale="tiny", seeds=1))
    assert run(LabOptions(action="list"))[0]["verdict"] == ""


def checks(*held_core):
    return [Check(says="s", value=1.0, low=0.0, high=2.0, rule=">= 1", held=h, core=c) for h, c in held_core]


def test_verdicts():
    assert verdict(checks((True, True), (True, False))) == "REPRODUCED"
    assert verdict(checks((True, True), (False, False))) == "PARTLY"
    assert verdict(checks((True, True), (False, True))) == "PARTLY"
    assert verdict(checks((False, True), (True, False))) == "NOT REPRODUCED"
    assert reason(checks((False, True))) == "s: 1, must be >= 1" and reason(checks((True, True))) == ""


def test_rules_are_tested_on_the_mean():
    number = Number(label="n", by_seed=[0.25, 0.75])
    assert at_least("", number, 0.5).held and not at_least("", number, 0.51).held
    assert at_most("", number, 0.5).held and not at_most("", number, 0.49).held
    assert between("", number, 0.5, 0.6).held and not between("", number, 0.51, 0.6).held


def test_intervals_widen_with_few_questions_and_few_seeds():
    assert interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
    low, high = interval([0.5, 0.5, 0.5], of=20)
    assert low < 0.45 and high > 0.55
    narrow = interval([0.5, 0.5, 0.5], of=2000)
    assert low < narrow[0] < 0.5 < narrow[1] < high
    assert interval([0.0, 1.0]) == (0.0, 1.0) and interval([float("nan")]) == (float("-inf"), float("inf"))


def test_numbers_are_written_with_their_units():
    assert [written(0.412, "%"), written(0.031, "%"), written(0.125, "points"), written(-0.1, "points"), written(3.21, "x")] == [
        "41%", "3.1%", "+12.5 points", "−10.0 points", "3.21×"]  # fmt: skip
    assert written(1.2041, "nats") == "1.204 nats" and written(float("nan")) == "–"
    assert span(0.1, 0.2, "points") == "+10.0 to +20.0 points" and span(1.0, 2.0, "nats") == "1 to 2"


def test_the_list_needs_no_torch():
    code = "import sys; from fledge.labs.lab_command import LabOptions, run; print(run(LabOptions(action='list'))); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "P2" in done.stdout, done.stderr


def test_every_lab_has_its_names():
    for name, listed in catalogue.LABS.items():
        lab = listed.load()
        assert {"pocket", "tiny"} <= set(lab.SCALES), name
        for setup in lab.SCALES.values():
            assert type(setup) is lab.Setup, name
        assert callable(lab.measure) and callable(lab.judge) and callable(lab.draw) and listed.chinese, name


def test_the_miniature_journey_answers_and_is_raised_once(little_journey, tmp_path):
    bench = Bench(tmp_path, little_journey, 0, "tiny")
    folder = bench.journey()
    assert bench.shared_spent.seconds == 0.0 and folder.parent == little_journey
    models = {name: open_model(folder / name) for name in ("base", "sft", "control", "aligned")}
    assert open_model(folder / "reward", head="reward").card["stage"] == "reward"
    questions = WorldFacts(world_behind(models["sft"].path)).examples("test")[:40]
    answers = ask(models["sft"], questions)
    assert sum(a.finish == "stop" and bool(a.text.strip()) for a in answers) >= 36


def test_a_base_reads_on_once(little_journey, tmp_path):
    bench = Bench(tmp_path, little_journey, 0, "tiny")
    longer = bench.longer_base(8192)
    assert bench.shared_spent.seconds > 0 and longer.parent == bench.journey()
    first = open_model(longer)
    assert open_model(bench.longer_base(8192)).id == first.id  # trained once
    taught = open_model(bench.longer_sft(8192))
    assert taught.card["parent"]["id"] == first.id and open_model(bench.longer_sft(8192)).id == taught.id
    own = open_model(bench.read_on("own", ["Who can tell me? I do not know."] * 600, 4096, longer))
    assert own.card["parent"]["id"] == first.id
    assert open_model(bench.read_on("other", ["I do not know."] * 600, 4096)).card["parent"]["id"] != first.id
