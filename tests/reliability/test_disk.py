"""Full disks, folders that cannot be written, two trainers at once: a clear refusal, and the old checkpoint intact."""

import errno
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support import FLEDGE, Trainers, assert_same_run, command_line, pretrain_recipe

from fledge.core import checkpoint, durable
from fledge.core.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    require_space,
    run_lock,
    save_checkpoint,
    write_atomically,
)
from fledge.core.log import read_jsonl

CHECKPOINT_BYTES = 2_180_000  # of the tests' model under AdamW


class Disk:
    """A small file system of its own, as root may mount one."""

    def __init__(self, folder: Path):
        self.folder = folder

    def mount(self, size_bytes: int) -> Path:
        self.folder.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(self.folder)],
            check=True,
            capture_output=True,
        )
        return self.folder

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True, capture_output=True)

    def set_writable(self, writable: bool) -> None:
        option = "remount,rw" if writable else "remount,ro"
        subprocess.run(["mount", "-o", option, str(self.folder)], check=True, capture_output=True)

    def fill(self) -> Path:
        """Take the last free byte; again, where some was freed since."""
        filler = self.folder / "filler"
        with open(filler, "ab", buffering=0) as file:
            for size in (1 << 16, 1 << 12):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError as error:
                    assert error.errno == errno.ENOSPC
        return filler


@pytest.fixture
def disk(place: Path) -> Iterator[Disk]:
    made, probe = Disk(place / "disk"), Disk(place / "probe")
    try:
        probe.mount(4096)
        probe.unmount()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small disk needs root; the tests with limited files and injected errors still run")
    yield made
    if made.folder.is_mount():
        made.unmount()


def failed(trainers: Trainers, folder: Path, recipe: dict, job: str = "command") -> str:
    """What `fledge resume` or a stage says when it cannot work: one message, exit code 2, no traceback."""
    arguments = ["resume", "run"] if job == "resume" else command(recipe)
    ended = trainers.wait(trainers.start("command", folder, arguments=arguments))
    assert ended.code == 2, ended.said
    assert "Traceback" not in ended.said
    return ended.said[ended.said.index("error: ") :]


def command(recipe: dict) -> list[str]:
    return command_line("pretrain", recipe)[len(FLEDGE) :]


# ---- full disk


def test_less_room_than_the_checkpoints_need_is_refused_before_training_with_the_figures(
    trainers: Trainers, disk: Disk, text: Path
):
    folder = disk.mount(3_000_000)
    said = failed(trainers, folder, pretrain_recipe(text, 30, optimizer="adamw"))
    free, needed = map(float, re.search(r"has ([\d.]+) MB free; .*need ([\d.]+) MB", said).groups())
    assert 2.0 < free < 3.0 and needed > 2 * CHECKPOINT_BYTES / 1e6
    assert not list_checkpoints(folder / "run") and not (folder / "run" / "metrics.jsonl").exists()


def test_a_run_that_was_let_start_never_fills_the_disk_with_its_own_checkpoints(
    trainers: Trainers, disk: Disk, text: Path
):
    """Two are kept while the third is written: room for two and a half is not enough."""
    recipe = pretrain_recipe(text, 30, save_seconds=0.01, optimizer="adamw")
    folder = disk.mount(int(2.5 * CHECKPOINT_BYTES))
    assert "MB free" in failed(trainers, folder, recipe)
    subprocess.run(["mount", "-o", f"remount,size={10_000_000}", str(folder)], check=True)
    trainers.run("stage", folder, verb="pretrain", recipe=recipe)
    assert load_checkpoint(folder / "run").step == 30
    written = sum(p.stat().st_size for p in list_checkpoints(folder / "run")[-1].iterdir())
    assert abs(written - CHECKPOINT_BYTES) < 0.05 * CHECKPOINT_BYTES


def test_a_disk_that_fills_up_in_the_middle_leaves_a_run_that_can_go_on(
    trainers: Trainers, disk: Disk, place: Path, text: Path
):
    recipe = pretrain_recipe(text, 200, save_seconds=0.03)
    trainers.run("stage", place / "whole", verb="pretrain", recipe=recipe)
    folder = disk.mount(40_000_000)
    child = trainers.start("command", folder, arguments=command(recipe))
    assert trainers.send(child, signal.SIGSTOP, step=60)
    filler = disk.fill()
    assert trainers.send(child, signal.SIGCONT)
    for _ in range(100):  # stopped in the middle of a save, it may yet delete its oldest checkpoint
        disk.fill()
        time.sleep(5e-3)
    ended = trainers.wait(child)
    assert ended.code == 2 and "Traceback" not in ended.said, ended.said
    said = ended.said[ended.said.index("error: ") :]
    assert "could not write" in said and "No space left" in said and "intact" in said and "fledge resume" in said
    held = load_checkpoint(folder / "run")
    assert 0 < held.step < 200
    assert [p for p in (folder / "run" / "checkpoints").iterdir() if p.name.startswith(".")] == []
    failed(trainers, folder, recipe, "resume")  # still full: refused again, nothing lost
    assert load_checkpoint(folder / "run").id == held.id
    filler.unlink()
    trainers.run("resume", folder, run="run")
    assert_same_run(place / "whole" / "run", folder / "run")
    assert {row["step"] for row in read_jsonl(folder / "run" / "speed.jsonl")} <= set(range(1, 201))


def test_a_file_that_may_not_grow_stops_the_save_and_leaves_a_run_that_can_go_on(
    trainers: Trainers, place: Path, text: Path
):
    """The kernel refuses the rest of optimizer.safetensors (RLIMIT_FSIZE); needs no root."""
    recipe = pretrain_recipe(text, 60, save_seconds=0.03)
    trainers.run("stage", place / "whole", verb="pretrain", recipe=recipe)
    folder = place / "limited"
    trainers.kill("stage", folder, verb="pretrain", recipe=recipe, step=30, after_seconds=0)
    held = load_checkpoint(folder / "run")
    ended = trainers.wait(trainers.start("limited", folder, arguments=["resume", "run"], file_bytes=750_000))
    assert ended.code == 2 and "Traceback" not in ended.said, ended.said
    assert "could not write checkpoint" in ended.said and "File too large" in ended.said
    assert load_checkpoint(folder / "run").id == held.id
    assert [p for p in (folder / "run" / "checkpoints").iterdir() if p.name.startswith(".")] == []
    trainers.run("resume", folder, run="run")
    assert_same_run(place / "whole" / "run", folder / "run")


def _tensors(step: int) -> dict[str, torch.Tensor]:
    return {"w": torch.full((50, 40), float(step))}


def _save(run: Path, step: int) -> Path:
    return save_checkpoint(run, step, model=_tensors(step), optimizer=_tensors(step), state={"n": step}, card={})


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
def test_an_error_at_each_write_of_a_save_is_told_and_harms_nothing(place: Path, monkeypatch, number: int):
    """The k-th call that changes or syncs the disk fails, half its bytes written, for every k."""
    run, count, failures = place / "run", {"left": 0}, 0
    real = {"write": checkpoint.write_durably, "fsync": os.fsync, "rename": os.rename, "mkdir": Path.mkdir}

    def due() -> bool:
        count["left"] -= 1
        return count["left"] == -1

    def write(path: Path, data: bytes) -> None:
        if due():
            path.write_bytes(data[: len(data) // 2])
            raise OSError(number, os.strerror(number))
        real["write"](path, data)

    def failing(name: str):
        def call(*arguments, **named):
            if due():
                raise OSError(number, os.strerror(number))
            return real[name](*arguments, **named)

        return call

    _save(run, 1)
    _save(run, 2)
    monkeypatch.setattr(checkpoint, "write_durably", write)
    monkeypatch.setattr(checkpoint.os, "fsync", failing("fsync"))
    monkeypatch.setattr(checkpoint.os, "rename", failing("rename"))
    monkeypatch.setattr(checkpoint.Path, "mkdir", failing("mkdir"))
    for k in range(1000):
        count["left"] = k
        try:
            _save(run, 3)
        except OSError as error:
            failures += 1
            assert error.errno == number and "could not write checkpoint" in error.strerror
            assert os.strerror(number) in error.strerror and "intact" in error.strerror
        else:
            if count["left"] >= 0:
                break  # nothing failed: all calls have had their turn
        newest = load_checkpoint(run)
        assert newest.step in (2, 3)
        assert [load_checkpoint(c).step for c in list_checkpoints(run)][-2:] in ([1, 2], [2, 3])
        assert [p.name for p in (run / "checkpoints").iterdir() if p.name.startswith(".") and newest.step == 2] == []
        shutil.rmtree(run / "checkpoints" / "step-0000003", ignore_errors=True)
        if not (run / "checkpoints" / "step-0000001").exists():
            count["left"] = 10**9
            shutil.rmtree(run)
            _save(run, 1)
            _save(run, 2)
    print(f"{failures} failures of one save, {os.strerror(number)}")
    assert failures >= 14


def test_a_failed_atomic_write_leaves_the_old_file_and_nothing_else(place: Path, monkeypatch):
    write_atomically(place / "recipe.json", b"old")

    def full(path: Path, data: bytes) -> None:
        path.write_bytes(data[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "write_durably", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(place / "recipe.json", b"new")
    assert {p.name: p.read_bytes() for p in place.iterdir()} == {"recipe.json": b"old"}


def test_the_room_asked_for_shrinks_with_the_checkpoints_there_are(place: Path, monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 75, 25))
    with pytest.raises(OSError, match=r"3 checkpoints .* need 0\.0 MB") as caught:
        require_space(place, 10)
    assert caught.value.errno == errno.ENOSPC
    require_space(place, 8)
    _save(place, 1)
    _save(place, 2)
    require_space(place, 25)
    with pytest.raises(OSError, match="1 checkpoints"):
        require_space(place, 26)


# ---- folders that cannot be written


@pytest.mark.parametrize("where", ["below a file", "below /proc"])
def test_a_folder_that_cannot_be_made_is_refused_before_any_work(
    trainers: Trainers, place: Path, text: Path, where: str
):
    (place / "file").write_bytes(b"")
    out = place / "file" / "run" if where == "below a file" else Path("/proc/fledge/run")
    said = failed(trainers, place, pretrain_recipe(text, 30, str(out)))
    assert f"cannot write to {out}" in said and "choose another --out" in said
    assert sorted(p.name for p in place.iterdir()) == ["file"]


def test_a_read_only_disk_is_refused_before_any_work(trainers: Trainers, disk: Disk, text: Path):
    recipe = pretrain_recipe(text, 30)
    folder = disk.mount(30_000_000)
    disk.set_writable(False)
    assert "cannot write to run" in failed(trainers, folder, recipe)
    disk.set_writable(True)
    trainers.kill("stage", folder, verb="pretrain", recipe=recipe, step=20, after_seconds=0)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    disk.set_writable(False)
    said = failed(trainers, folder, recipe, "resume")
    assert "cannot write to run" in said and "Read-only file system" in said
    disk.set_writable(True)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


# ---- two trainers


def test_a_second_trainer_is_refused_by_name_and_the_first_is_not_disturbed(
    trainers: Trainers, place: Path, text: Path
):
    recipe = pretrain_recipe(text, 60)
    trainers.run("stage", place / "whole", verb="pretrain", recipe=recipe)
    first = trainers.start("stage", place / "twice", verb="pretrain", recipe=recipe)
    assert trainers.send(first, signal.SIGSTOP, step=10)
    for job in ("command", "resume"):
        said = failed(trainers, place / "twice", recipe, job)
        assert f"pid {first} on {os.uname().nodename}" in said and "choose another --out" in said
    assert trainers.send(first, signal.SIGCONT)
    assert trainers.wait(first).code == 0
    assert_same_run(place / "whole" / "run", place / "twice" / "run")


@pytest.mark.parametrize("seconds", [0.0, 0.4])
def test_of_two_trainers_started_at_once_one_is_refused_and_one_is_whole(
    trainers: Trainers, place: Path, text: Path, seconds: float
):
    """Both find no tokenized text and make it; the slower one must not pull the files away from the one that trains."""
    recipe = pretrain_recipe(text, 100)
    trainers.run("stage", place / "whole", verb="pretrain", recipe=recipe)
    folder = place / "race"
    slow = trainers.start("slow_tokenizer", folder, arguments=command(recipe), seconds=seconds)
    while not (folder / "learning").exists():
        time.sleep(1e-3)
    quick = trainers.start("command", folder, arguments=command(recipe))
    ends = [trainers.wait(pid) for pid in (slow, quick)]
    idle, worked = sorted(ends, key=lambda e: e.step)
    assert (worked.code, worked.step, idle.step) == (0, 100, 0), ends
    assert idle.code == 0 or "is being written by another process" in idle.said, ends  # 0: it came when all was done
    assert_same_run(place / "whole" / "run", folder / "run")


def test_the_lock_of_a_dead_process_does_not_block(place: Path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    (place / "lock").write_text(f"pid {dead.pid} on {os.uname().nodename}")
    with run_lock(place):
        assert (place / "lock").read_text().startswith(f"pid {os.getpid()} ")
        with pytest.raises(ValueError, match=f"pid {os.getpid()} "), run_lock(place):
            pass
    with run_lock(place):
        pass


def test_a_lock_of_nonsense_does_not_block(place: Path):
    (place / "lock").write_bytes(b"\xff\xfe\0 not a pid")
    with run_lock(place), pytest.raises(ValueError, match="pid"), run_lock(place):
        pass
