"""Reading run folders: which there are, where they stand while they are trained, killed or torn, and only the newest rows."""

import fcntl
import os
import socket
import time
from pathlib import Path

import msgspec
import pytest

from fledge.core.checkpoint import canonical_json, run_lock, save_checkpoint
from fledge.serve.run_view import POINTS, curve, details, is_locked, list_runs, models, run_folders, state_of


def make_run(folder: Path, steps: int = 0, stage: str = "sft", **recipe) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    body = {"out": str(folder), "train": {"steps": None}} | recipe
    (folder / "recipe.json").write_bytes(canonical_json({"stage": stage, "recipe": body}))
    write_log(folder, range(1, steps + 1))
    return folder


def write_log(folder: Path, steps) -> None:
    rows = (msgspec.json.encode({"step": s, "loss": 1 / s, "tokens": 4096}) + b"\n" for s in steps)
    (folder / "metrics.jsonl").write_bytes(b"".join(rows))


def save(run: Path, step: int, stage: str = "sft", parent: dict | None = None, **recipe) -> Path:
    card = {"stage": stage, "parent": parent, "recipe": recipe, "model": {"head": "tokens"}}
    return save_checkpoint(run, step, model={}, optimizer={}, state={}, card=card)


def finish(run: Path, step: int) -> None:
    (run / "done.json").write_bytes(canonical_json({"step": step}))


@pytest.fixture
def journey(tmp_path) -> Path:
    top = tmp_path / "mine"
    top.mkdir()
    (top / "recipe.json").write_bytes(canonical_json({"stage": "journey", "recipe": {"out": str(top)}}))
    finish(make_run(top / "base", 30, "pretrain"), 30)
    finish(make_run(top / "sft", 20, "sft", parent=str(top / "base")), 20)
    make_run(top / "rounds" / "001" / "dpo", 7, "dpo", parent=str(top / "sft" / "checkpoints" / "step-0000020"))
    return top


def test_every_run_below_is_listed_with_its_parent(journey):
    found = {run.name: run for run in list_runs(journey)}
    assert list(found) == ["base", "rounds/001/dpo", "sft"], "a journey's own folder trains nothing"
    assert [(r.stage, r.state, r.step, r.steps, r.parent) for r in found.values()] == [
        ("pretrain", "done", 30, 30, None),
        ("dpo", "interrupted", 7, None, "sft"),
        ("sft", "done", 20, 20, "base"),
    ]
    assert abs(found["sft"].updated_ms - time.time() * 1000) < 60_000


def test_a_run_by_itself_goes_by_its_own_name_even_beside_its_rounds(tmp_path):
    run = make_run(tmp_path / "sft", 5)
    make_run(run / "rounds" / "001" / "sft", 5)
    assert list(run_folders(run)) == ["sft", "rounds/001/sft"]
    make_run(run / "sft", 5)
    assert len(run_folders(run)) == 3 and run_folders(run)["sft"] == run / "sft"


def test_what_is_no_run_is_left_out(journey, tmp_path):
    elsewhere = make_run(tmp_path / "secret", 3)
    (journey / "link").symlink_to(elsewhere)
    make_run(journey / "base" / "checkpoints" / "inner", 3)
    make_run(journey / ".hidden", 3)
    make_run(journey / "a" / "b" / "c" / "d" / "too-deep", 3)
    (journey / "broken").mkdir()
    (journey / "broken" / "recipe.json").write_bytes(b'{"stage": "sft", "rec')
    assert set(run_folders(journey)) == {"base", "sft", "rounds/001/dpo"}


def test_states_of_a_run(tmp_path):
    run = make_run(tmp_path / "run", 20)
    assert state_of(run, 20) == "interrupted", "nothing was saved"
    save(run, 12)
    assert state_of(run, 20) == "interrupted", "8 steps will be done again"
    save(run, 20)
    assert state_of(run, 20) == "stopped"
    with run_lock(run):
        assert state_of(run, 20) == "running"
    assert state_of(run, 20) == "stopped"
    finish(run, 20)
    assert state_of(run, 20) == "done"


def test_looking_never_keeps_a_trainer_out(tmp_path, monkeypatch):
    """A lock whose owner is dead, or alive without it, is not tried: the instant that takes could meet a trainer."""
    run = make_run(tmp_path / "run", 1)
    tried = []
    monkeypatch.setattr(fcntl, "flock", lambda *given: tried.append(given))
    dead = next(pid for pid in range(4_000_000, 5_000_000) if not Path("/proc", str(pid)).exists())
    for pid in (dead, os.getppid()):
        (run / "lock").write_text(f"pid {pid} on {socket.gethostname()}")
        assert not is_locked(run / "lock")
    assert not is_locked(run / "nothing") and not tried
    (run / "lock").write_text("pid 1 on another-machine")
    assert not is_locked(run / "lock") and len(tried) == 1


def test_a_lock_held_by_another_process_is_seen(tmp_path):
    run = make_run(tmp_path / "run", 1)
    ready, leave = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with run_lock(run):
            os.write(ready[1], b"x")
            os.read(leave[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    try:
        assert is_locked(run / "lock") and state_of(run, 1) == "running"
    finally:
        os.write(leave[1], b"x")
        os.waitpid(child, 0)
    assert not is_locked(run / "lock")


def test_a_run_whose_text_is_being_cut_into_tokens_is_running(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "data").mkdir()
    with open(run / "data" / "lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert state_of(run, 0) == "running"
    assert state_of(run, 0) == "interrupted"


@pytest.mark.parametrize("count", [1, 399, 400, 401, 5000])
def test_curves_are_thinned_evenly_and_end_with_the_newest(tmp_path, count):
    write_log(tmp_path, range(1, count + 1))
    steps = [row["step"] for row in curve(tmp_path / "metrics.jsonl")]
    assert steps[-1] == count and len(steps) == min(count, POINTS) and steps == sorted(set(steps))
    gaps = {b - a for a, b in zip([0, *steps], steps, strict=False)}
    assert max(gaps) - min(gaps) <= 1


def test_only_what_is_new_is_read_after_a_step(tmp_path):
    write_log(tmp_path, range(1, 1001))
    path = tmp_path / "metrics.jsonl"
    assert [row["step"] for row in curve(path, after=990)] == list(range(991, 1001))
    assert curve(path, after=1000) == [] and curve(path, after=10**9) == []
    assert len(curve(path, after=1)) == POINTS
    assert curve(tmp_path / "none.jsonl") == []


def test_torn_and_spoiled_lines_are_left_out(tmp_path):
    run = make_run(tmp_path / "run", 9)
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b'{"step":10,"los')
    assert [row["step"] for row in curve(run / "metrics.jsonl")] == list(range(1, 10))
    assert list_runs(tmp_path)[0].step == 9
    data = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    data[3] = b"\0" * 20 + b"\n"
    (run / "metrics.jsonl").write_bytes(b"".join(data))
    assert [row["step"] for row in curve(run / "metrics.jsonl")] == [1, 2, 3, 5, 6, 7, 8, 9]
    for length in range(0, 60, 7):  # cut anywhere
        (run / "metrics.jsonl").write_bytes(b"".join(data)[:length])
        assert list_runs(tmp_path)[0].step in (0, 1)


def test_rows_of_skipped_steps_come_without_the_ids_of_their_data(tmp_path):
    row = {"step": 1, "loss": None, "skipped": "nonfinite", "ids": list(range(5000))}
    (tmp_path / "metrics.jsonl").write_bytes(msgspec.json.encode(row) + b"\n")
    assert curve(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": None, "skipped": "nonfinite"}]


def test_details_of_a_run(journey):
    run = journey / "sft"
    rows = [{"step": s, "steps": 20, "samples": [{"prompt": "a", "text": "b", "finish": "stop"}]} for s in (1, 10, 20)]
    (run / "samples.jsonl").write_bytes(b"".join(map(canonical_json, rows)))
    (run / "looks").mkdir()
    (run / "looks" / "00000000.json").write_bytes(canonical_json({"step": 0, "scores": {"reward": 0.5}, "samples": []}))
    (run / "looks" / "00000010.json").write_bytes(b'{"step": 1')
    (run / "flags.json").write_bytes(canonical_json([{"step": 3, "text": "RED"}]))
    found = details("sft", run_folders(journey))
    assert (found["name"], found["state"], found["parent"]) == ("sft", "done", "base")
    assert [row["step"] for row in found["rows"]] == list(range(1, 21))
    assert found["samples"] == rows and found["flags"] == [{"step": 3, "text": "RED"}]
    assert found["looks"] == [{"step": 0, "scores": {"reward": 0.5}, "samples": []}]
    assert found["recipe"]["parent"].endswith("base")
    later = details("sft", run_folders(journey), after=10)
    assert [row["step"] for row in later["rows"]] == list(range(11, 21)) and later["samples"] == rows[2:]


def test_samples_of_a_reinforcement_run_are_those_of_its_looks(journey):
    run = make_run(journey / "rl", 8, "reinforce")
    (run / "looks").mkdir()
    look = {"step": 4, "scores": {}, "samples": [{"prompt": "1+1=", "answer": "2", "reward": 1.0}]}
    (run / "looks" / "00000004.json").write_bytes(canonical_json(look))
    assert details("rl", run_folders(journey))["samples"] == [look]
    assert details("rl", run_folders(journey), after=4)["samples"] == []


def test_how_many_steps_a_run_has_is_told_by_its_samples_while_it_learns(tmp_path):
    run = make_run(tmp_path / "run", 5)
    (run / "samples.jsonl").write_bytes(canonical_json({"step": 1, "steps": 50, "samples": []}))
    assert list_runs(tmp_path)[0].steps == 50
    make_run(run, 5, train={"steps": 60})
    assert list_runs(tmp_path)[0].steps == 60


def test_the_family_is_read_from_manifests_and_cards(journey):
    base = save(journey / "base", 30, "pretrain")
    known = models(run_folders(journey))[0]
    pairs = journey / "rounds" / "001" / "dpo.jsonl"
    export = {"id": "e1", "format": "dpo", "rows": 9, "first_seq": 1, "last_seq": 12, "dropped": {}, "votes": "x"}
    pairs.with_name("dpo.jsonl.export.json").write_bytes(canonical_json(export))
    parent = {"id": known.id, "path": str(base)}
    save(journey / "rounds" / "001" / "dpo", 7, "dpo", parent, pairs=[str(pairs), "/nowhere.jsonl"])
    first, second = models(run_folders(journey))
    assert (first.name, first.step, first.parent, first.exports) == ("base", 30, None, [])
    assert (second.name, second.stage, second.parent) == ("rounds/001/dpo", "dpo", first.id)
    assert second.exports == [{"id": "e1", "format": "dpo", "rows": 9, "first_seq": 1, "last_seq": 12}]
    (base / "MANIFEST.json").write_bytes(b"{")
    assert [m.name for m in models(run_folders(journey))] == ["rounds/001/dpo"]


def test_reading_changes_nothing(journey):
    before = {p: p.stat().st_mtime_ns for p in journey.rglob("*")}
    list_runs(journey)
    for name, folders in ((n, run_folders(journey)) for n in run_folders(journey)):
        details(name, folders)
    assert {p: p.stat().st_mtime_ns for p in journey.rglob("*")} == before
