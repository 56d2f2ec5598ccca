"""P5 at tiny scale, its ladder of sizes and its text; what the judge makes of planted laws."""

import json
import math

import msgspec
import pytest

from fledge.labs import p05_isoflop as lab
from fledge.labs.bench import Bench
from fledge.labs.verdict import verdict
from fledge.probe.laws import Law, effective_tokens


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("p05")
    setup = lab.SCALES["tiny"]
    return setup, lab.measure(setup, Bench(folder / "seed-0", folder / "shared", 0, "tiny")), folder / "seed-0"


def test_the_lab_runs(found):
    setup, seed, folder = found
    assert len(seed["curves"]) == 2 and all(len(curve) == 4 for curve in seed["curves"])
    for budget, curve in zip(setup.budgets, seed["curves"], strict=True):
        for row in curve:
            assert 6 * row["parameters"] * row["tokens"] == pytest.approx(budget, rel=0.05)
            assert row["parameters"] - row["without_embedding"] == 264 * row["width"]
    assert seed["repeats"][0]["repeated"] == seed["repeats"][0]["fresh"]
    assert len(lab.judge(setup, [seed, seed]).checks) == 7 and "<svg" in lab.draw(setup, [seed, seed])
    assert len((folder / "runs.jsonl").read_text().splitlines()) == 8
    assert not [p for p in folder.iterdir() if p.is_dir()] and (folder / "held-out.json").exists()  # the models go


def test_what_is_done_is_not_done_again(found, monkeypatch):
    setup, seed, folder = found
    monkeypatch.setattr(lab.pretrain, "run", None)
    assert lab.measure(setup, Bench(folder, folder, 0, "tiny"))["curves"] == seed["curves"]


def test_validation_is_of_other_files_and_no_line_comes_twice(found):
    _, _, folder = found
    lines = [json.loads(line)["text"] for path in sorted(folder.glob("text-*.jsonl")) for line in path.open()]
    corpus = json.loads((folder / "corpus.json").read_text())
    assert len(lines) == len(set(lines)) > 100_000 and not set(corpus["validation"]) & set(lines)
    assert corpus["bytes"] == sum(len(line.encode()) + 2 for line in lines)
    unique = [json.loads(line)["text"] for line in (folder / "unique.jsonl").open()]
    assert unique == lines[: len(unique)] and 4000 <= sum(len(line.encode()) + 2 for line in unique) < 4200


@pytest.mark.parametrize("scale", ["pocket", "gpu", "tiny"])
def test_sizes_are_spread_and_can_be_built(scale):
    setup = lab.SCALES[scale]
    for budget in setup.budgets:
        forms = lab.sizes(setup, budget)
        counts = [form.parameter_count() for form in forms]
        assert counts == sorted(set(counts)) and not [p for form in forms for p in form.problems()]
        assert counts[-1] / counts[0] > 0.7 * setup.span**2


def test_lines_and_their_lengths():
    assert lab.distinct(["  abcd \nabcd\nxyz\n", "abcd\nefghi"]) == ["abcd", "efghi"]
    assert lab.upto(["abcd", "efgh", "ijkl"], 7) == ["abcd", "efgh"] and lab.upto(["abcd", "efgh"], 1) == ["abcd"]


def test_too_little_text_is_refused(tmp_path):
    (tmp_path / "short.txt").write_text("".join(f"a short text {i}\n" for i in range(900)))
    (tmp_path / "other.txt").write_text("".join(f"another text {i}\n" for i in range(900)))
    setup = msgspec.structs.replace(lab.SCALES["tiny"], data=[str(tmp_path / n) for n in ("short.txt", "other.txt")])
    with pytest.raises(ValueError, match=r"are to be read once.*--set\.data"):
        lab.measure(setup, Bench(tmp_path / "seed", tmp_path, 0, "tiny"))


def planted(setup, law, half):
    """What measure() would find where a law is exact."""

    def row(form, flops):
        n = form.parameter_count()
        return {"parameters": n, "without_embedding": n - 264 * form.width, "width": form.width, "tokens": flops / 6 / n,
                "loss": law.loss(n, flops / 6 / n)}  # fmt: skip

    curves = [[row(f, flops) for f in lab.sizes(setup, flops)] for flops in setup.budgets]
    last = setup.beyond * setup.budgets[-1]
    held = row(lab.shape(law.best_parameters(last), setup.context), last)
    unique, model = setup.unique, 5e4
    repeats = [
        {"epochs": e, "tokens": e * unique, "fresh": law.loss(model, e * unique),
         "repeated": law.loss(model, effective_tokens(unique, e * unique, half))} for e in setup.epochs
    ]  # fmt: skip
    rates = [{"rate": r, "width": w, "loss": 2.0} for r in setup.rates for w in (16, 48)]
    return {
        "text": {"versions": {"python": "3.11.7"}},
        "curves": curves,
        "held": held,
        "repeats": repeats,
        "repeater": model,
        "rates": rates,
        "rate": setup.rates[0],
    }


def test_the_judge_recovers_what_was_planted():
    law = Law(1.0, 30.0, 60.0, 0.36, 0.34, 0.0)
    guess = law.best_parameters(1e11) / math.sqrt(1e11)
    setup = lab.Setup(guess=guess)
    findings = lab.judge(setup, [planted(setup, law, 10.0)])
    numbers = {n.label: n.mean for n in findings.numbers}
    assert verdict(findings.checks) == "REPRODUCED", findings.checks
    assert numbers["exponent a by the law of all runs"] == pytest.approx(law.exponent, abs=1e-3)
    assert numbers["R*, repeats that wear text out"] == pytest.approx(10.0, rel=0.02)
    assert numbers["error of the foretold loss of a larger run"] < 1e-4
    worthless = lab.judge(setup, [planted(setup, law, 0.02)])
    assert verdict(worthless.checks) == "PARTLY"
    slope = Law(1.0, 30.0, 60.0, 0.9, 0.05, 0.0)  # a law whose best sizes stay where they are and out of the range
    assert verdict(lab.judge(setup, [planted(setup, slope, 6.0)]).checks) != "REPRODUCED"


def test_settings_that_cannot_work():
    for wrong in ({"budgets": (1e11,)}, {"budgets": (1e12, 1e11)}, {"sizes": 3}, {"epochs": (2, 4, 8, 16)}):
        assert lab.Setup(**wrong).problems(), wrong
