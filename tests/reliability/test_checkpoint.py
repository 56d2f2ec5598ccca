"""A checkpoint is whole and verified, or it is refused with its file named and the one before offered."""

import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load as load_tensors
from support import ENVIRONMENT, Trainers, assert_same_run, pretrain_recipe

from fledge.core import checkpoint
from fledge.core.checkpoint import (
    FORMAT,
    DamagedCheckpoint,
    canonical_json,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    sha256,
)

FILES = {"MANIFEST.json", "card.json", "model.safetensors", "optimizer.safetensors", "state.json", "tokenizer.json"}
FLIPS, CUTS = 200, 20


@pytest.fixture(scope="module")
def trained(memory: Path, trainers: Trainers, text: Path) -> Path:
    """A finished pretraining run of 60 steps."""
    folder = memory / "trained"
    trainers.run("stage", folder, verb="pretrain", recipe=pretrain_recipe(text, 60))
    return folder / "run"


@pytest.fixture
def run(trained: Path, place: Path) -> Path:
    """A copy of that run, with two checkpoints, to damage."""
    shutil.copytree(trained, place / "run")
    assert len(list_checkpoints(place / "run")) == 2
    return place / "run"


def save(run: Path, step: int, **over) -> Path:
    tensors = {"w": torch.full((2, 3), float(step))}
    parts = {"model": tensors, "optimizer": tensors, "state": {"n": step}, "card": {}, **over}
    return save_checkpoint(run, step, **parts)


def refusal(run: Path) -> str:
    with pytest.raises(DamagedCheckpoint) as caught:
        load_checkpoint(run)
    return str(caught.value)


def test_200_single_bit_flips_are_detected_with_the_file_named_and_the_checkpoint_before_offered(run: Path):
    older, newest = list_checkpoints(run)
    chance = random.Random(200)
    names = sorted(p.name for p in newest.iterdir())
    assert set(names) == FILES
    flipped = [names[i % len(names)] for i in range(90)]  # every file 15 times, the rest by size
    flipped += chance.choices(names, [(newest / n).stat().st_size for n in names], k=FLIPS - len(flipped))
    detected = 0
    for name in flipped:
        bit = chance.randrange(8 * (newest / name).stat().st_size)
        with open(newest / name, "r+b") as file:
            file.seek(bit // 8)
            before = file.read(1)[0]
            file.seek(bit // 8)
            file.write(bytes([before ^ 1 << bit % 8]))
        message = refusal(run)
        assert str(newest / name) in message, (name, bit)
        assert f"the checkpoint before it is {older}" in message
        detected += 1
        with open(newest / name, "r+b") as file:
            file.seek(bit // 8)
            file.write(bytes([before]))
    assert detected == FLIPS
    print(f"{detected} of {FLIPS} flips detected: {dict(Counter(flipped))}")
    assert load_checkpoint(run).path == newest


def test_every_bit_of_the_manifest_counts(run: Path):
    newest = list_checkpoints(run)[-1]
    path = newest / "MANIFEST.json"
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(DamagedCheckpoint, match=re.escape(str(newest))):
            load_checkpoint(run)
    print(f"{8 * len(data)} flips of the manifest detected")
    for same_meaning in (data + b" ", data.replace(b":", b": ", 1), data[:-1]):
        path.write_bytes(same_meaning)
        assert "MANIFEST.json is damaged" in refusal(run)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_flip_stops_resume_before_the_first_step_and_the_offer_works(
    trainers: Trainers, trained: Path, run: Path, name: str
):
    """The offered way out, removing the damaged folder, ends in the bytes of the run that was never damaged."""
    (run / "done.json").unlink()
    newest = list_checkpoints(run)[-1]
    data = bytearray((newest / name).read_bytes())
    data[len(data) // 2] ^= 4
    (newest / name).write_bytes(data)
    metrics = (run / "metrics.jsonl").read_bytes()
    ended = trainers.wait(trainers.start("command", run.parent, arguments=["resume", "run"]))
    assert (ended.code, ended.step) == (2, 0)
    assert f"{newest.relative_to(run.parent) / name}" in ended.said and "the checkpoint before it is" in ended.said
    assert "Traceback" not in ended.said
    assert (run / "metrics.jsonl").read_bytes() == metrics
    shutil.rmtree(newest)
    trainers.run("resume", run.parent, run="run")
    assert_same_run(trained, run)


def test_truncations_are_detected(run: Path):
    newest, chance = list_checkpoints(run)[-1], random.Random(20)
    names = sorted(FILES)
    for i in range(CUTS):
        path = newest / names[i % len(names)]
        data = path.read_bytes()
        path.write_bytes(data[: 0 if i < len(names) else chance.randrange(1, len(data))])
        assert str(path) in refusal(run)
        path.write_bytes(data)
    path.write_bytes(data + b"\0")
    assert str(path) in refusal(run)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_is_named(run: Path, name: str):
    older, newest = list_checkpoints(run)
    (newest / name).unlink()
    message = refusal(run)
    assert f"{newest / name} is missing" in message and str(older) in message


def test_files_of_two_checkpoints_mixed_are_detected(run: Path):
    older, newest = list_checkpoints(run)
    shutil.copy(older / "optimizer.safetensors", newest / "optimizer.safetensors")
    assert str(newest / "optimizer.safetensors") in refusal(run)


def test_without_an_earlier_checkpoint_the_message_says_so(run: Path):
    older, newest = list_checkpoints(run)
    shutil.rmtree(older)
    (newest / "card.json").write_bytes(b"{}")
    assert "there is no earlier checkpoint" in refusal(run)


def test_a_half_written_folder_and_an_unfinished_rename_are_ignored_and_swept(
    trainers: Trainers, trained: Path, run: Path
):
    (run / "done.json").unlink()
    older, newest = list_checkpoints(run)
    half = newest.with_name(".step-0000059.tmp")
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    os.rename(newest, newest.with_name(f".{newest.name}.tmp"))  # all written, killed before the rename
    assert list_checkpoints(run) == [older]
    assert load_checkpoint(run).path == older
    trainers.run("resume", run.parent, run="run")
    assert_same_run(trained, run)
    assert [p.name for p in (run / "checkpoints").iterdir() if p.name.startswith(".")] == []


def test_a_folder_copied_under_another_name_is_no_checkpoint_of_the_run(run: Path):
    newest = list_checkpoints(run)[-1]
    shutil.copytree(newest, newest.with_name(f"{newest.name}.backup"))
    shutil.copytree(newest, newest.with_name("step-last"))
    assert load_checkpoint(run).path == newest
    assert load_checkpoint(newest.with_name("step-last")).step == 60  # but can be named


def test_another_format_is_refused_with_both_names(run: Path):
    newest = list_checkpoints(run)[-1]
    body = msgspec.json.decode((newest / "MANIFEST.json").read_bytes())["body"] | {"format": "fledge-checkpoint-9"}
    manifest = {"body": body, "sha256": sha256(canonical_json(body))}
    (newest / "MANIFEST.json").write_bytes(canonical_json(manifest))
    message = refusal(run)
    assert "fledge-checkpoint-9" in message and FORMAT in message and str(newest / "MANIFEST.json") in message


def test_the_newest_two_are_kept(place: Path):
    for step in (1, 2, 10, 9_999_999, 10_000_000, 123_456_789):  # names of different lengths sort by number
        save(place / "run", step)
        assert load_checkpoint(place / "run").step == step
    assert [c.name for c in list_checkpoints(place / "run")] == ["step-10000000", "step-123456789"]
    assert len(list((place / "run" / "checkpoints").iterdir())) == 2


def test_a_checkpoint_holds_no_pickle_and_float32_weights(run: Path):
    newest = list_checkpoints(run)[-1]
    for path in newest.iterdir():
        start = path.read_bytes()[:4]
        assert start[:1] != b"\x80" and start[:2] != b"PK" and start[:2] != b"\x1f\x8b", path
        if path.suffix == ".json":
            msgspec.json.decode(path.read_bytes())
        else:
            assert path.suffix == ".safetensors"
    weights = load_tensors((newest / "model.safetensors").read_bytes())
    assert {t.dtype for t in weights.values()} == {torch.float32}
    moments = load_tensors((newest / "optimizer.safetensors").read_bytes())
    assert moments.pop("rng/torch").dtype == torch.uint8
    assert {t.dtype for t in moments.values()} == {torch.float32}


def test_a_pickle_is_never_loaded(place: Path):
    """A weights file of another tool, handed to us as a model, is refused unread."""
    import pickle

    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(place / "owned"),))

    for name in ("model.pt", "pytorch_model.bin", "model.pkl", ".metadata"):
        (place / name).write_bytes(pickle.dumps(Payload()))
        with pytest.raises(ValueError, match="no checkpoint in"):
            load_checkpoint(place / name)
    with pytest.raises(ValueError, match="no checkpoint in"):
        load_checkpoint(place)
    assert not (place / "owned").exists()


def test_every_file_is_on_disk_before_its_name_and_the_name_before_the_next_step(place: Path, monkeypatch):
    """Order of fsync and rename as the code asks for it (the next test watches the kernel do it)."""
    calls: list[str] = []
    sync, rename = os.fsync, os.rename

    def fsync(handle: int) -> None:
        calls.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")
        sync(handle)

    def renamed(old, new) -> None:
        calls.append(f"rename {Path(old).name} {Path(new).name}")
        rename(old, new)

    monkeypatch.setattr(checkpoint.os, "fsync", fsync)
    monkeypatch.setattr(checkpoint.os, "rename", renamed)
    save(place / "run", 7)
    _assert_safe_order(calls)


def _assert_safe_order(calls: list[str]) -> None:
    at = calls.index("rename .step-0000007.tmp step-0000007")
    synced = [c.removeprefix("fsync ") for c in calls[:at] if c.startswith("fsync ")]
    assert set(synced[:-2]) == FILES - {"MANIFEST.json"}
    assert synced[-2:] == ["MANIFEST.json", ".step-0000007.tmp"], "the manifest last, then the folder's own entries"
    assert calls[at + 1 :] == ["fsync checkpoints", "fsync run"], "then the new name, and the folder that holds it"


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed; the test before asks the code")
def test_the_kernel_sees_the_same_order(place: Path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from jobs import tiny_tensors as t;"
        "from fledge.core.checkpoint import save_checkpoint as s;"
        "s(Path('run'), 7, model=t(7), optimizer=t(8), state={}, card={})"
    )
    watch = ["strace", "-f", "-y", "-qq", "--seccomp-bpf", "-o", "trace"]
    watch += ["-e", "trace=fsync,fdatasync,rename,renameat,renameat2"]
    done = subprocess.run(
        [*watch, sys.executable, "-c", code, str(Path(__file__).parent)],
        cwd=place, env=ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip
    if "PTRACE" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip("strace may not trace here; the test before asks the code")
    assert done.returncode == 0, done.stderr
    calls = []
    for line in (place / "trace").read_text().splitlines():
        assert line.endswith("= 0"), line
        if "sync(" in line:
            calls.append("fsync " + Path(line.split("<")[1].split(">")[0]).name)
        else:
            old, new = line.split('"')[1::2]
            calls.append(f"rename {Path(old).name} {Path(new).name}")
    _assert_safe_order(calls)
