"""Followers of metrics.jsonl: what trackers hold is what the log holds, and nothing they do reaches the run."""

import json
import os
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sums import LOOP, write_rows

from fledge import cli
from fledge.core.config import build
from fledge.core.log import read_jsonl
from fledge.core.train import Interrupted
from fledge.resume import ResumeOptions, resume
from fledge.stages import pretrain, trackers, tracking
from fledge.stages.samples import shown_steps
from fledge.stages.tracker_kinds import Target
from fledge.stages.trackers import Followed, Follower, FollowOptions, follow, name_of

STEPS = 30
FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "card.json", "tokenizer.json", "MANIFEST.json")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No tracker asked for, none spoken of, quick polls; processes that were started are gone at the end."""
    for variable in ("FLEDGE_TRACK", "WANDB_PROJECT", "WANDB_DIR", "TRACKIO_PROJECT", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setattr(tracking, "_told", set())
    monkeypatch.setattr(tracking, "_beside", [])
    monkeypatch.setattr(trackers, "POLL_SECONDS", 0.02)
    yield
    for beside in tracking._beside:
        beside.process.kill()
        beside.process.wait()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, sentences: tuple[str, ...]) -> Path:
    folder = tmp_path_factory.mktemp("tracked")
    return Path(write_rows(folder / "text.jsonl", [{"text": f"{a} {b}"} for a in sentences for b in sentences]))


def recipe(texts: Path, out: Path, steps: int = STEPS) -> dict[str, Any]:
    return {
        "out": str(out), "text": [str(texts)], "vocab_size": 300,
        "model": {"size": "tiny", "layers": 1, "context_tokens": 64},
        "train": {**LOOP, "steps": steps, "batch_tokens": 256, "save_seconds": 600.0},
    }  # fmt: skip


def train(texts: Path, out: Path, steps: int = STEPS) -> Path:
    pretrain.run(build(pretrain.PretrainRecipe, recipe(texts, out, steps)))
    return out


@pytest.fixture(scope="module")
def trained(texts: Path) -> Path:
    """A run that nobody watched; it stands in texts.parent / "plain"."""
    return train(texts, texts.parent / "plain")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """What a tracker sees of that run, to play with."""
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    for name in ("metrics.jsonl", "samples.jsonl", "recipe.json", "done.json"):
        shutil.copy(trained / name, folder)
    return folder


def made_up(folder: Path, rows: list[dict[str, Any]], mode: str = "wb") -> Path:
    """A run folder whose log holds these rows, after those it has where mode is "ab"."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.json").write_text(json.dumps({"stage": "sft", "recipe": {"out": str(folder)}}))
    with open(folder / "metrics.jsonl", mode) as log:
        log.writelines(json.dumps(row).encode() + b"\n" for row in rows)
    return folder


def rows_of(first: int, last: int, scale: float = 1.0) -> list[dict[str, Any]]:
    return [{"step": s, "loss": scale / s, "tokens": 7} for s in range(first, last + 1)]


def figures(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The log by its columns: (step, value) of all that is a number."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in read_jsonl(run / "metrics.jsonl"):
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                found.setdefault(name, []).append((row["step"], value))
    return found


def tensorboard(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    return read.Reload()


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    read = tensorboard(folder)
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def single(columns: dict[str, list[tuple[int, float]]]) -> dict[str, list[tuple[int, float]]]:
    """The same in float32, as event files hold numbers."""
    return {k: [(step, float(np.float32(v))) for step, v in column] for k, column in columns.items()}


def trackio(tmp_path: Path, project: str = "fledge") -> dict[str, list[dict[str, Any]]]:
    """trackio's own store: the rows of each run, in the order they were stored."""
    with sqlite3.connect(tmp_path / "trackio" / f"{project}.db") as store:
        held = store.execute("select run_name, step, metrics from metrics order by id").fetchall()
    found: dict[str, list[dict[str, Any]]] = {}
    for name, step, metrics in held:
        found.setdefault(name, []).append({"step": step, **json.loads(metrics)})
    return found


def columns(rows: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, int | float) and name != "step" and not name.startswith("samples"):
                found.setdefault(name, []).append((row["step"], value))
    return found


def wandb_records(path: Path) -> list[Any]:
    """Records of an offline run: LevelDB's log format with a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole, found = path.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole record, or its last part
            record = Record()
            record.ParseFromString(whole)
            found.append(record)
            whole = b""
    return found


def wandb_rows(run: Path) -> tuple[list[dict[str, Any]], list[Any]]:
    """(history rows, run records) of all offline folders of a run, oldest first."""
    rows, runs = [], []
    for path in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        for record in wandb_records(path):
            if record.WhichOneof("record_type") == "history":
                row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                rows.append({"step": row["_step"], **{k: v for k, v in row.items() if not k.startswith("_")}})
            elif record.WhichOneof("record_type") == "run":
                runs.append(record.run)
    return rows, runs


def send(run: Path, to: str) -> None:
    """The process beside a training run that has ended already: it sends what is there and ends."""
    command = [sys.executable, "-m", "fledge.stages.tracking", str(run), to, "60", "60"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def wait_for(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


# ------------------------------------------------------------------------------------- what the trackers hold


def test_tensorboard_holds_the_log_the_recipe_and_the_samples(run):
    assert follow(FollowOptions(run=str(run), to="tensorboard", once=True)) == {"mine": STEPS}
    read = tensorboard(run / "tensorboard")
    assert events(run / "tensorboard") == single(figures(run))
    assert len(figures(run)["loss"]) == STEPS and "grad_norm" in figures(run)
    told = read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"train.batch_tokens" in told and b"pretrain" in told
    (table,) = (
        read.Tensors("recipe/text_summary")
        if "recipe/text_summary" in read.Tags()["tensors"]
        else read.Tensors("recipe")
    )
    assert b"|train.batch_tokens|256|" in table.tensor_proto.string_val[0]
    shown = {(e.step, e.tensor_proto.string_val[0].decode()) for e in read.Tensors("samples/1")}
    assert {step for step, _ in shown} == shown_steps(STEPS)
    first = read_jsonl(run / "samples.jsonl")[0]["samples"][0]
    assert any(step == 1 and first["prompt"].split("\n")[0] in text for step, text in shown)


def test_trackio_s_own_store_holds_the_log_the_recipe_and_the_samples(run, tmp_path):
    send(run, "trackio")
    send(run, "trackio")  # nothing is new
    held = trackio(tmp_path)
    assert list(held) == ["mine"] and columns(held["mine"]) == figures(run)
    assert {row["step"] for row in held["mine"] if "samples" in row} == shown_steps(STEPS)
    with sqlite3.connect(tmp_path / "trackio" / "fledge.db") as store:
        (config,) = (json.loads(c) for (c,) in store.execute("select config from configs"))
    assert (config["stage"], config["train.batch_tokens"], config["model.layers"]) == ("pretrain", 256, 1)


def test_wandb_offline_holds_the_log_the_recipe_and_the_samples(run):
    send(run, "wandb")
    held, runs = wandb_rows(run)
    assert columns(held) == figures(run)
    assert {row["step"] for row in held if any(k.startswith("samples") for k in row)} == shown_steps(STEPS)
    assert (runs[0].display_name, runs[0].project) == ("mine", "fledge")
    config = {i.key: json.loads(i.value_json) for i in runs[0].config.update}
    assert (config["stage"], config["train.batch_tokens"]) == ("pretrain", 256)
    made_up(run, rows_of(STEPS + 1, STEPS + 3), "ab")
    send(run, "wandb")  # the same run in a folder of its own, which `wandb sync` adds in order
    held, runs = wandb_rows(run)
    assert columns(held) == figures(run)
    assert len({r.run_id for r in runs}) == 1


def test_a_journey_s_runs_are_sent_under_their_own_names(tmp_path):
    top = made_up(tmp_path / "runs" / "first", [])
    (top / "metrics.jsonl").unlink()
    for name, last in (("base", 4), ("sft", 6), ("rounds/1/dpo", 3)):
        made_up(top / name, rows_of(1, last))
    names = {"first/base": 4, "first/sft": 6, "first/rounds/1/dpo": 3}
    logs = tmp_path / "logs"
    assert follow(FollowOptions(run=str(top), to="tensorboard", folder=str(logs), once=True)) == names
    assert all(events(logs / name)["loss"][-1][0] == last for name, last in names.items())
    done = subprocess.run(
        [sys.executable, "-m", "fledge.cli", "follow", str(top), "--to", "trackio", "--once", "--project", "mine"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and "first/sft: in trackio up to step 6" in done.stderr, done.stderr
    assert {name: len(rows) for name, rows in trackio(tmp_path, "mine").items()} == names


# ------------------------------------------------------------------------- a log that grows, is cut, is replaced


def test_a_line_that_is_being_written_is_sent_when_it_is_whole(tmp_path):
    run = made_up(tmp_path / "r", rows_of(1, 3))
    follower = Follower(Target(run, "r", None, None), "tensorboard")
    assert follower.poll() == 3
    with open(run / "metrics.jsonl", "ab") as log:
        log.write(b'{"step":4,"lo')
        log.flush()
        assert follower.poll() == 0
        log.write(b'ss":0.5}\n{"step":5,"loss":null}\n')
    assert follower.poll() == 2
    follower.close()
    assert events(run / "tensorboard")["loss"] == [*single(columns(rows_of(1, 3)))["loss"], (4, 0.5)]


def test_what_is_no_row_is_left_out_and_said(tmp_path):
    run = made_up(tmp_path / "r", rows_of(1, 2))
    with open(run / "metrics.jsonl", "ab") as log:
        log.write(b'[1]\n{"loss":1}\n{"st\x00\n{"step":3,"loss":1.0,"skipped":"spike","ids":[1,2]}\n')
    (run / "samples.jsonl").write_bytes(b"{\n{\n")
    said: list[str] = []
    follower = Follower(Target(run, "r", None, None), "tensorboard", said.append)
    assert follower.poll() == 3
    follower.close()
    assert len([s for s in said if "no row of figures" in s]) == 3 and any(
        "samples.jsonl is damaged" in s for s in said
    )
    assert events(run / "tensorboard").keys() == {"loss", "tokens"}


@pytest.mark.parametrize("again", [False, True], ids=["followed", "started again"])
@pytest.mark.parametrize("scale", [1.0, 2.0], ids=["same bytes", "other rounding"])
@pytest.mark.parametrize("seen", [True, False], ids=["seen short", "unseen"])
@pytest.mark.parametrize("kept", [0, 5])
def test_tensorboard_takes_back_what_a_resumed_run_does_again(tmp_path, again, scale, seen, kept):
    run = made_up(tmp_path / "r", rows_of(1, 10))

    def started() -> Follower:
        return Follower(Target(run, "r", None, None), "tensorboard")

    follower = started()
    assert follower.poll() == 10
    if again:
        follower.close()
        follower = started()
    made_up(run, rows_of(1, kept))
    if seen:
        follower.poll()
        made_up(run, rows_of(kept + 1, 7, scale), "ab")
        follower.poll()
        made_up(run, rows_of(8, 14, scale), "ab")
    else:
        made_up(run, rows_of(kept + 1, 14, scale), "ab")
    follower.poll()
    follower.close()
    assert events(run / "tensorboard") == single(figures(run))


@pytest.mark.parametrize("to", ["trackio", "wandb"])
def test_points_are_not_doubled_where_none_can_be_taken_back(tmp_path, to):
    run = made_up(tmp_path / "r", rows_of(1, 10))
    send(run, to)
    made_up(run, rows_of(1, 5))
    send(run, to)
    made_up(run, rows_of(6, 12), "ab")
    send(run, to)
    held = trackio(tmp_path)["r"] if to == "trackio" else wandb_rows(run)[0]
    assert columns(held) == figures(run)


@pytest.mark.parametrize("to", ["tensorboard", "trackio"])
def test_a_follower_killed_before_it_noted_what_it_sent_doubles_nothing(tmp_path, to):
    run = made_up(tmp_path / "r", rows_of(1, 4))
    send(run, to)
    (noted,) = tmp_path.rglob("position.json")
    before = noted.read_bytes()
    made_up(run, rows_of(5, 9), "ab")
    send(run, to)
    noted.write_bytes(before)
    made_up(run, rows_of(10, 11), "ab")
    send(run, to)
    held = single(columns(trackio(tmp_path)["r"])) if to == "trackio" else events(run / "tensorboard")
    assert held == single(figures(run))


def test_another_run_in_the_same_folder_is_another_run_to_the_tracker(tmp_path):
    run = made_up(tmp_path / "r", rows_of(1, 8))
    send(run, "trackio")
    send(run, "tensorboard")
    made_up(run, rows_of(1, 5, 3.0))
    send(run, "trackio")
    send(run, "tensorboard")
    first, second = trackio(tmp_path).values()
    assert columns(first) == columns(rows_of(1, 8)) and columns(second) == figures(run)
    assert events(run / "tensorboard") == single(figures(run))


def test_a_damaged_note_of_the_position_doubles_nothing(tmp_path):
    run = made_up(tmp_path / "r", rows_of(1, 6))
    follow(FollowOptions(run=str(run), to="tensorboard", once=True))
    (run / "tensorboard" / "position.json").write_bytes(b"{")
    follow(FollowOptions(run=str(run), to="tensorboard", once=True))
    assert events(run / "tensorboard") == single(figures(run))


def test_follow_waits_for_a_run_and_ends_when_it_is_done(tmp_path):
    run, found = tmp_path / "later", []
    thread = threading.Thread(target=lambda: found.append(follow(FollowOptions(run=str(run), to="tensorboard"))))
    thread.start()
    time.sleep(0.1)
    made_up(run, rows_of(1, 3))
    wait_for(lambda: (run / "tensorboard" / "position.json").exists())
    assert thread.is_alive()
    made_up(run, rows_of(4, 5), "ab")
    (run / "done.json").write_text('{"step":5}')
    thread.join(60)
    assert found == [{"later": 5}]
    assert events(run / "tensorboard") == single(figures(run))


def test_two_followers_of_one_run_do_not_send_it_twice(tmp_path):
    run = made_up(tmp_path / "r", rows_of(1, 3))
    one = Follower(Target(run, "r", None, None), "tensorboard")
    one.poll()
    with pytest.raises(Followed, match=r"by another process, named in .*lock: let it go on"):
        follow(FollowOptions(run=str(run), to="tensorboard", once=True))
    one.close()
    assert follow(FollowOptions(run=str(run), to="tensorboard", once=True)) == {"r": 3}


def test_follow_says_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"holds no metrics\.jsonl to send; without --once it is waited for"):
        follow(FollowOptions(run=str(tmp_path / "none"), to="tensorboard", once=True))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'trackio is not installed: pip install "fledge\[trackers\]"'):
        follow(FollowOptions(run=str(tmp_path), to="trackio"))


def test_a_tracker_s_own_error_is_one_message(run, monkeypatch, capsys):
    class Refused(Exception):
        pass

    def refuse(*_):
        raise Refused("no API key configured")

    monkeypatch.setattr("fledge.stages.tracker_kinds.Wandb.__init__", refuse)
    assert cli.main(["follow", str(run), "--to", "wandb", "--once"]) == 2
    assert "error: wandb: no API key configured; the same command goes on from there" in capsys.readouterr().err


def test_names_of_runs(tmp_path):
    inner = made_up(tmp_path / "first" / "rounds" / "1" / "sft", [])
    assert name_of(inner) == "sft"
    made_up(tmp_path / "first", [])
    assert name_of(inner) == "first/rounds/1/sft"
    assert name_of(tmp_path / "first") == "first"


# ------------------------------------------------------------------------------------ beside a training run


def everything(run: Path) -> dict[str, bytes]:
    newest = sorted((run / "checkpoints").iterdir())[-1]
    return {name: (newest / name).read_bytes() for name in FILES} | {
        name: (run / name).read_bytes() for name in ("metrics.jsonl", "samples.jsonl", "recipe.json", "done.json")
    }


def ended() -> None:
    """Wait until the followers that were started have ended, as nobody but a test does."""
    for beside in list(tracking._beside):
        beside.process.wait(60)


@pytest.fixture
def again(trained: Path, texts: Path) -> Iterator[Callable[[], Path]]:
    """Train in the same folder as `trained` did, so that every byte can be compared; that run is put aside meanwhile."""
    aside = trained.with_name("aside")
    trained.rename(aside)
    yield lambda: train(texts, trained)
    shutil.rmtree(trained, ignore_errors=True)
    aside.rename(trained)


BROKEN = {
    "raises when imported": "raise RuntimeError('broken build')",
    "raises when started": "def init(**_): raise RuntimeError('no API key')\nclass Settings: __init__ = lambda *a, **k: None",
    "hangs": "import time\ntime.sleep(600)",
    "is killed": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "floods": "import sys\nwhile True: print('x' * 10000)",
}


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """broken(code): a package `wandb` of this code comes first for the follower's process."""

    def put(code: str) -> None:
        package = tmp_path / "packages" / "wandb"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("Table = None\n" + code)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(package.parent), *filter(None, sys.path)]))

    return put


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_tracker_changes_no_byte_of_a_run(again, trained, broken, monkeypatch, how):
    wanted = everything(trained.with_name("aside"))
    broken(BROKEN[how])
    monkeypatch.setattr(tracking, "LAST_SECONDS", 0.5)
    monkeypatch.setenv("FLEDGE_TRACK", "wandb")
    assert everything(again()) == wanted
    ended()  # also one that hangs: it does not outlive the run for long


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("raises when started", "wandb: RuntimeError: no API key: `fledge follow"),
        ("is killed", "wandb: its process ended with code -9: `fledge follow"),
        ("hangs", "wandb: no answer for 0.2 s: `fledge follow"),
    ],
)
def test_a_broken_tracker_is_told_of_once(tmp_path, broken, monkeypatch, capsys, how, told):
    run = made_up(tmp_path / "r", rows_of(1, 3))
    broken(BROKEN[how])
    monkeypatch.setattr(tracking, "SILENT_SECONDS", 0.2)
    monkeypatch.setenv("FLEDGE_TRACK", "wandb")
    said = ""

    def heard() -> bool:
        nonlocal said
        tracking._look()
        said += capsys.readouterr().err
        return "wandb" in said

    for _ in range(2):  # a second stage of the same command
        with tracking.tracked(run):
            wait_for(heard)
    assert said.count("wandb: ") == 1 and told in said and said.rstrip().endswith("the run goes on without it")


def test_a_missing_package_and_an_unknown_tracker_are_told_and_nothing_starts(tmp_path, monkeypatch, capsys):
    run = made_up(tmp_path / "r", rows_of(1, 3))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for value in ("trackio", "nosuch"):
        monkeypatch.setenv("FLEDGE_TRACK", value)
        with tracking.tracked(run) as hook:
            hook(None)
    assert tracking._beside == []
    said = capsys.readouterr().err
    assert 'trackio: trackio is not installed: pip install "fledge[trackers]"; the run goes on without it' in said
    assert "FLEDGE_TRACK: 'nosuch' is no tracker: name tensorboard, trackio, wandb" in said


def test_a_place_that_cannot_be_written_is_told_and_the_run_is_the_same(again, trained, monkeypatch):
    wanted = everything(trained.with_name("aside"))
    trained.mkdir()
    (trained / "tensorboard").write_text("in the way")
    monkeypatch.setenv("FLEDGE_TRACK", "tensorboard")
    assert everything(again()) == wanted
    (beside,) = tracking._beside or [None]
    if beside is not None:
        beside.process.wait(60)
        assert beside.process.returncode == 1


def test_a_command_with_a_tracker_that_hangs_ends_with_0_and_holds_no_pipe(texts, trained, tmp_path, broken):
    """What waits for the command's output must not wait for the tracker."""
    broken(f"open({str(tmp_path / 'pid')!r}, 'w').write(str(__import__('os').getpid()))\n" + BROKEN["hangs"])
    flags = [f"--{k}={v}" for k, v in recipe(texts, tmp_path / "r")["train"].items()]
    flags = [flag.replace("--", "--train.", 1) for flag in flags]
    done = subprocess.run(
        [sys.executable, "-m", "fledge.cli", "pretrain", "--text", str(texts), "--vocab-size", "300", "--model.size",
         "tiny", "--model.layers", "1", "--model.context-tokens", "64", *flags, "--out", str(tmp_path / "r"),
         "--track", "wandb"],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    wait_for((tmp_path / "pid").exists)
    wait_for(lambda: bool((tmp_path / "pid").read_text()))
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)  # still there: the command did not wait for it
    assert done.returncode == 0, done.stderr
    assert everything(tmp_path / "r")["model.safetensors"] == everything(trained)["model.safetensors"]


def test_an_interrupted_run_is_tracked_again_when_it_is_resumed(texts, tmp_path, trained, monkeypatch):
    out = tmp_path / "runs" / "mine"
    stopped = recipe(texts, out)

    def stop(event) -> None:
        if event.step == 13:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setenv("FLEDGE_TRACK", "tensorboard")
    monkeypatch.setattr("fledge.stages.common.progress", lambda *_: (stop, None))
    with pytest.raises(Interrupted):
        pretrain.run(build(pretrain.PretrainRecipe, stopped))
    ended()
    assert events(out / "tensorboard") == single(figures(out)) and len(figures(out)["loss"]) == 13
    monkeypatch.undo()
    monkeypatch.setattr(tracking, "_beside", [])
    assert "FLEDGE_TRACK" not in os.environ
    resume(ResumeOptions(run=str(out)))
    assert [b.name for b in tracking._beside] == ["tensorboard"]
    ended()
    assert everything(out)["model.safetensors"] == everything(trained)["model.safetensors"]
    assert events(out / "tensorboard") == single(figures(trained))


def test_who_watches_is_no_part_of_the_recipe_and_is_remembered(tmp_path, monkeypatch):
    journey, stage = made_up(tmp_path / "j", []), made_up(tmp_path / "j" / "sft", [])
    monkeypatch.setenv("FLEDGE_TRACK", "wandb,tensorboard")
    tracking.remember(journey)
    monkeypatch.delenv("FLEDGE_TRACK")
    assert tracking._names(stage) == ["wandb", "tensorboard"]
    monkeypatch.setenv("FLEDGE_TRACK", "off")
    assert tracking._names(stage) == []
    tracking.remember(journey)
    monkeypatch.delenv("FLEDGE_TRACK")
    assert tracking._names(stage) == []


def test_the_follower_is_light_humble_and_outlives_a_killed_run_only_to_send_the_rest(tmp_path):
    """It imports no torch, has the lowest priority, and sends what a run left that got SIGKILL."""
    run = made_up(tmp_path / "r", rows_of(1, 5))
    trainer = f"""
import pathlib, sys, time
from fledge.stages import tracking
assert "torch" not in sys.modules
with tracking.tracked(pathlib.Path({str(run)!r})):
    print(tracking._beside[0].process.pid, flush=True)
    time.sleep(600)
"""
    environment = os.environ | {"FLEDGE_TRACK": "tensorboard"}
    with subprocess.Popen([sys.executable, "-c", trainer], stdout=subprocess.PIPE, env=environment) as process:
        follower = int(process.stdout.readline())
        wait_for((run / "tensorboard" / "position.json").exists)
        assert os.getpriority(os.PRIO_PROCESS, follower) == 19
        made_up(run, rows_of(6, 8), "ab")
        process.kill()
    wait_for(lambda: events(run / "tensorboard") == single(figures(run)))
    wait_for(lambda: _gone(follower))


def _gone(pid: int) -> bool:
    """True where there is no such process, or only what its parent has not asked for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("given", [["--track", "trackio,wandb"], ["--track=trackio,wandb"]])
def test_the_flag_is_the_command_s_not_the_recipe_s(given, monkeypatch):
    monkeypatch.setenv("FLEDGE_TRACK", "off")
    assert tracking.take_setting(["--out", "a", *given, "--train.lr", "1"]) == ["--out", "a", "--train.lr", "1"]
    assert os.environ["FLEDGE_TRACK"] == "trackio,wandb"


def test_an_unknown_tracker_on_the_command_line_is_refused_before_any_work(capsys, monkeypatch):
    monkeypatch.setenv("FLEDGE_TRACK", "off")
    assert cli.main(["journey", "--track", "tensorbord"]) == 2
    assert "--track: 'tensorbord' is no tracker: name tensorboard, trackio, wandb" in capsys.readouterr().err
    assert cli.main(["journey", "--track"]) == 2
    assert os.environ["FLEDGE_TRACK"] == "off"


def test_verbs_that_train_say_so_in_their_help_and_others_take_no_flag(capsys):
    assert set(cli.TABLE) >= cli.TRAINING
    for name in ("pretrain", "resume", "methods"):
        assert cli.main([name, "--help"]) == 0
        assert "--track" in capsys.readouterr().out
    assert cli.main(["runs", "--track", "wandb"]) == 2
    assert "track: unknown key" in capsys.readouterr().err
