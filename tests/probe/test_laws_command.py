"""`fledge laws` on tables, on runs and without either; what it draws."""

import csv
import json
import math

import pytest

from fledge.cli import main
from fledge.core.config import TrainConfig
from fledge.core.shape import Shape
from fledge.probe.laws import BESIROGLU, effective_tokens
from fledge.probe.laws_command import LawsOptions, read_runs, run
from fledge.stages import pretrain
from fledge.stages.law_charts import compact, scientific


def rows(repeats=False):
    found = []
    for flops in (1e18, 1e19, 1e20):
        for step in (-1.5, -0.9, -0.3, 0.3, 0.9, 1.5):
            n = BESIROGLU.best_parameters(flops) * math.exp(step)
            found.append({"parameters": n, "tokens": flops / 6 / n, "loss": BESIROGLU.loss(n, flops / 6 / n)})
    if repeats:
        found = [row | {"unique": row["tokens"]} for row in found]
        for epochs in (4, 16, 64):
            loss = BESIROGLU.loss(1e8, effective_tokens(1e8, 1e8 * epochs, 15.4))
            found.append({"parameters": 1e8, "tokens": 1e8 * epochs, "loss": loss, "unique": 1e8})
    return found


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "runs.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["parameters", "tokens", "loss"])
        writer.writeheader()
        writer.writerows(rows())
    return path


def test_a_table_is_fitted_told_and_drawn(table, tmp_path, capsys):
    out = tmp_path / "laws"
    assert main(["laws", str(table), "--compute", "1e21", "--out", str(out), "--draws", "5"]) == 0
    told = json.loads((out / "laws.json").read_text())
    assert told["law"]["alpha"] == pytest.approx(0.3478, rel=1e-3) and len(told["isoflops"]) == 3
    best = told["compute"][0]["law"]["parameters"]
    assert best == pytest.approx(BESIROGLU.best_parameters(1e21), rel=0.01)
    assert told["compute"][0]["parabolas"]["parameters"] == pytest.approx(best, rel=0.05)
    page = (out / "laws.html").read_text()
    assert "<svg" in page and "10²⁰" in page and "var(--sft)" in page and "http" not in page.split("<body>")[1]
    assert "best parameters = " in capsys.readouterr().out


def test_rows_that_repeat_are_kept_out_of_the_law_and_give_its_own(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(repeats=True)))
    told = run(LawsOptions(files=[str(path)], draws=0))
    assert told["repeats"]["R*"] == pytest.approx(15.4, rel=0.01) and told["intervals"] is None
    assert told["law"]["beta"] == pytest.approx(0.3658, rel=1e-3)


def test_what_a_table_does_not_allow_is_said(tmp_path, capsys):
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()[:3]))
    told = run(LawsOptions(files=[str(path)], out=str(tmp_path / "out")))
    assert told["law"] is None and "needs as many runs" in told["missing"]["law"]
    assert "no law: 3 runs" in capsys.readouterr().out and (tmp_path / "out/laws.html").exists()


@pytest.mark.parametrize("row", ["1e6,abc,2.0", "1e6,,2.0", "-5,1e6,2", "1e6,1e6,nan", "1e6,inf,2.0"])
def test_a_broken_row_is_named(tmp_path, row):
    path = tmp_path / "runs.csv"
    path.write_text(f"parameters,tokens,loss\n1e6,1e6,3.0\n{row}\n")
    with pytest.raises(ValueError, match=r"runs\.csv:3: (parameters|tokens|loss) is"):
        read_runs([str(path)])


def test_runs_are_read_from_their_folders(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 40)
    for width in (16, 32):
        pretrain.run(pretrain.PretrainRecipe(
            out=str(tmp_path / f"runs/w{width}"), text=[str(text)], tokens=2000, vocab_size=264, mask_repeats=None,
            model=Shape(layers=1, width=width, heads=2, context_tokens=32), train=TrainConfig(batch_tokens=128),
        ), quiet=True)  # fmt: skip
    small, large = sorted(read_runs([str(tmp_path / "runs")]))
    assert large.parameters > small.parameters > 264 * 16 and 2000 <= small.tokens < 2200
    assert 0 < small.loss < 6 and small.unique == 1682 and small.repeats
    assert read_runs([str(tmp_path / "runs/w16")]) == [small]
    with pytest.raises(ValueError, match="no runs"):
        read_runs([str(tmp_path / "runs/w16/data")])


def test_the_calculator_needs_no_files(capsys):
    assert main(["laws", "--used", "15e12", "--growth", "2.4"]) == 0
    assert "3.4 years" in capsys.readouterr().out
    assert main(["laws"]) == 2 and "files: none" in capsys.readouterr().err
    assert main(["laws", "--used", "15e12", "--growth", "0"]) == 2


def test_numbers_on_axes():
    assert [scientific(v) for v in (1e11, 3e11, 1.5e-3)] == ["10¹¹", "3·10¹¹", "1.5·10⁻³"]
    assert [compact(v) for v in (800, 3e4, 1.25e6, 7e10)] == ["800", "30k", "1.25M", "70B"]
