"""`fledge compare`: paired differences follow from the documents, and their intervals hold what they say."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from fledge.core.checkpoint import save_checkpoint
from fledge.core.config import build
from fledge.core.shown import print_result
from fledge.interop.eval_command import TaskResult
from fledge.probe.compare import CompareOptions, compare, difference, read_results, run


def result(values, metric: str = "acc", task: str = "t", higher: bool = True, **over) -> TaskResult:
    documents = [{"key": f"d{n}", metric: v} for n, v in enumerate(values)]
    value = float(np.mean([v if not isinstance(v, list) else v[0] for v in values]))
    metrics = {metric: {"value": value, "stderr": None, "higher_is_better": higher}}
    given = {"task": task, "model": "m", "path": "p", "asked": {"chat": True, "shots": 0, "version": 1}}
    return TaskResult(**given | {"metrics": metrics, "documents": documents} | over)


def test_what_is_hard_for_both_cancels_out():
    hard = np.random.default_rng(0).normal(0, 10, 200)
    gain = 0.5 + np.random.default_rng(1).normal(0, 0.5, 200)
    found = difference(result(hard.tolist()), result((hard + gain).tolist()), "acc")
    assert found.difference == pytest.approx(gain.mean()) and found.verdict == "b better"
    assert found.high - found.low == pytest.approx(2 * 1.96 * gain.std() / 200**0.5, rel=0.1)
    assert (found.better, found.worse) == (int((gain > 0).sum()), int((gain < 0).sum()))


def test_intervals_hold_the_truth_as_often_as_they_say():
    draw, held = np.random.default_rng(0), 0
    for _ in range(200):
        a, b = draw.random((2, 60)) < [[0.4], [0.6]]
        found = difference(result(a.astype(float).tolist()), result(b.astype(float).tolist()), "acc", draws=400)
        held += found.low <= 0.2 <= found.high
    assert 0.88 < held / 200 <= 0.99


def test_bits_per_byte_are_compared_as_ratios_and_less_is_better():
    weights = [100.0, 10.0, 50.0] * 20
    a = result([[-w, w] for w in weights], "bits_per_byte", higher=False)
    b = result([[-0.9 * w, w] for w in weights], "bits_per_byte", higher=False)
    found = difference(a, b, "bits_per_byte")
    assert found.difference == pytest.approx(-0.1 / np.log(2)) and found.verdict == "b better"
    assert (found.better, found.worse) == (60, 0)
    assert difference(b, a, "bits_per_byte").verdict == "a better"


def test_equal_models_show_no_difference():
    found = difference(result([1.0, 0.0, 1.0]), result([1.0, 0.0, 1.0]), "acc")
    assert (found.difference, found.low, found.high, found.verdict) == (0, 0, 0, "no difference seen")


def test_only_what_both_answered_is_paired_and_told():
    a, b = result([1.0, 0.0, 1.0, 1.0]), result([0.0, 0.0], asked={"chat": False, "shots": 0, "version": 1})
    found, notes = compare({"t": a, "only": a}, {"t": b}, build(CompareOptions, {"a": "x", "b": "y"}))
    assert [(d.task, d.documents, d.a, d.b) for d in found] == [("t", 2, 0.5, 0.0)]
    assert any("asked in two ways (chat True and False)" in n for n in notes)
    assert any("2 of 4 documents" in n for n in notes)


def test_a_figure_that_is_no_mean_gets_no_interval():
    a = result([0.1, 0.9])
    odd = TaskResult(
        **msgspec.structs.asdict(a) | {"metrics": {"acc": {"value": 0.9, "stderr": None, "higher_is_better": True}}}
    )
    found, notes = compare({"t": a}, {"t": odd}, build(CompareOptions, {"a": "x", "b": "y"}))
    assert not found and "no mean over documents" in notes[0]


@pytest.fixture
def runs(tmp_path: Path, base, aligned) -> list[str]:
    for name, held in (("base", base), ("aligned", aligned)):
        card = {"stage": "sft", "parent": None, "model": msgspec.to_builtins(held.model.config)}
        save_checkpoint(
            tmp_path / name, 1, model=held.model.state_dict(), optimizer={}, state={}, card=card,
            tokenizer=held.tokenizer.json,
        )  # fmt: skip
    return [str(tmp_path / "base"), str(tmp_path / "aligned")]


def test_the_command_evaluates_both_and_compares_again_from_the_files(runs, tmp_path, capsys):
    out = tmp_path / "c.json"
    given = {"a": runs[0], "b": runs[1], "device": "cpu", "draws": 500}
    first = run(build(CompareOptions, given | {"tasks": "cloze:world:quick", "limit": 25, "out": str(out)}))
    assert {(d.task, d.metric, d.documents) for d in first} == {
        ("cloze:world:quick", "acc", 25), ("cloze:world:quick", "exact_match", 25)
    }  # fmt: skip
    assert json.loads(out.read_text())["differences"] == msgspec.to_builtins(first)
    print_result(first)
    assert "b - a" in capsys.readouterr().out
    assert sorted(run(build(CompareOptions, given)), key=str) == sorted(first, key=str)


def test_wrong_settings_and_nothing_to_compare_are_told(runs, tmp_path):
    with pytest.raises(ValueError, match=r"no task was evaluated on both: there are .*nothing.*; give --tasks"):
        run(build(CompareOptions, {"a": runs[0], "b": runs[1]}))
    with pytest.raises(ValueError, match=r"level = 1\.5") as error:
        build(CompareOptions, {"a": "x", "b": "y", "level": 1.5, "draws": 1, "limit": 3})
    assert "draws = 1" in str(error.value) and "limit and chat belong" in str(error.value)
    folder = tmp_path / "base" / "eval"
    folder.mkdir()
    (folder / "t.json").write_text("{}")
    with pytest.raises(ValueError, match=r"t\.json is no result"):
        read_results(runs[0])
