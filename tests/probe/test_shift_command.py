"""`fledge shift`: its figures add up to what the tokens say, in files and on paper."""

import json

import msgspec
import pytest

from fledge.core.checkpoint import save_checkpoint
from fledge.core.config import build
from fledge.core.log import read_jsonl
from fledge.probe.shift import CATEGORIES
from fledge.probe.shift_command import ShiftOptions, run


@pytest.fixture(scope="module")
def place(tmp_path_factory, aligned, base):
    """Runs `aligned` and `base`, and prompts.jsonl."""
    folder = tmp_path_factory.mktemp("shift")
    for name, held in (("aligned", aligned), ("base", base)):
        card = {"stage": name, "parent": None, "model": msgspec.to_builtins(held.model.config)}
        save_checkpoint(
            folder / name, 1, model=held.model.state_dict(), optimizer={}, state={}, card=card,
            tokenizer=held.tokenizer.json,
        )  # fmt: skip
    asked = ("Who are you?", "請問你是誰？", "What is the capital?", "Tesk")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": q}) + "\n" for q in asked))
    return folder


def options(place, out, **over) -> ShiftOptions:
    given = {
        "aligned": str(place / "aligned"), "base": str(place / "base"), "out": str(out),
        "prompts": str(place / "prompts.jsonl"), "max_tokens": 12,
    }  # fmt: skip
    return build(ShiftOptions, given | over)


def test_figures_are_those_of_the_tokens(place, tmp_path, capsys):
    result = run(options(place, tmp_path / "out"))
    rows = read_jsonl(tmp_path / "out" / "answers.jsonl")
    assert msgspec.json.decode((tmp_path / "out" / "shift.json").read_bytes()) == result
    tokens = [t for row in rows for t in row["tokens"]]
    assert (result["answers"], result["tokens"]) == (4, len(tokens)) and len(rows) == 4
    for name in CATEGORIES:
        share = sum(t["category"] == name for t in tokens) / len(tokens)
        assert result["shares"][name] == pytest.approx(share)
    assert sum(row["tokens"] for row in result["by_position"]) == len(tokens)
    first = next(row for row in result["by_position"] if row["position"] == "1")
    starts = [row["tokens"][0] for row in rows if not row["tokens"][0]["control"]]
    assert first["tokens"] == len(starts)
    assert first["shifted"] == pytest.approx(sum(t["category"] == "shifted" for t in starts) / len(starts))
    shifted = [t for t in tokens if t["category"] == "shifted"]
    assert sum(row["shifted"] for row in result["most_shifted"]) == len(shifted) > 0
    counts = [row["shifted"] for row in result["most_shifted"]]
    assert counts == sorted(counts, reverse=True)
    for row in result["most_shifted"]:
        same = [t for t in tokens if t["id"] == row["id"]]
        assert row["written"] == len(same) and row["share"] == row["shifted"] / len(same)
    steps = [row["one_step"] for row in rows]
    assert result["one_step_recovers"] == sum(step["recovered"] for step in steps) / 4
    assert all(step["recovered"] == (step["text"] == row["text"]) for step, row in zip(steps, rows, strict=True))
    shown = capsys.readouterr().out
    assert "written by the base itself" in shown
    assert "unshifted" in shown and "place 1" in shown and "most shifted" in shown
    assert f"{result['shares']['shifted']:.1%}" in shown


def test_the_same_command_gives_the_same_bytes_and_the_context_matters(place, tmp_path):
    for name in ("one", "two"):
        run(options(place, tmp_path / name))
    run(options(place, tmp_path / "plain", context="plain"))
    one, two, plain = (
        [(tmp_path / name / f).read_bytes() for f in ("shift.json", "answers.jsonl")]
        for name in ("one", "two", "plain")
    )
    assert one == two and one != plain


def test_a_task_asks_its_held_out_questions(place, tmp_path):
    result = run(options(place, tmp_path / "out", prompts=[], task="arithmetic:1", count=5))
    assert result["answers"] == 5 and result["prompts"] == "arithmetic:1"
    assert {row["kind"] for row in result["by_kind"]}


def test_wrong_settings_are_told_at_once(place, tmp_path):
    with pytest.raises(ValueError, match="task and prompts: set one of them"):
        options(place, tmp_path, prompts=[])
    with pytest.raises(ValueError, match="count = 0: must be at least 1"):
        options(place, tmp_path, count=0)
