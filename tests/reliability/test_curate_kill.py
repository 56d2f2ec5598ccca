"""kill -9 of curation, of its driver at borders and at random, of its workers: nothing is lost, the bytes are the same."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
import pytest
from crawls import digests, write_crawl, write_rule
from support import ENVIRONMENT

from fledge.curate.plan import CurateOptions

BORDERS = ("work/plan.json", "work/sifted-00001.json", "work/decided.json", "work/kept-00000.json", "manifest.json")
MOMENTS = (
    "work/plan.json", *(f"work/sifted-{number:05d}.json" for number in range(5)), "work/keys-00002.parquet",
    "work/decided-00001.parquet", *(f"work/kept-{number:05d}.json" for number in range(5)), "manifest.json",
)  # fmt: skip
RANDOM = 12
_CODE = """
import sys, msgspec
from fledge.curate.command import CurateOptions, curate
curate(msgspec.json.decode(sys.argv[1], type=CurateOptions))
"""

_DYING = (
    """
import os, daft
from fledge.curate import engine
class Dying(engine.Work):
    @daft.method.batch(return_dtype=daft.DataType.string(), batch_size=1)
    def __call__(self, tasks):
        os._exit(9)
engine.Work = Dying
"""
    + _CODE
)
_LITTLE_DISK = (
    """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))
"""
    + _CODE
)


@pytest.fixture(scope="module")
def given(memory: Path) -> dict:
    """Input and recipe, the same for every run here."""
    folder = memory / "curate"
    crawl, recipe = write_crawl(folder / "crawl", files=4, pages=48), write_rule(folder)
    return {"inputs": [str(crawl)], "recipe": str(recipe), "split_bytes": 15_000, "workers": 2}


def start(given: dict, out: Path, *, code: str = _CODE, **over) -> subprocess.Popen:
    options = msgspec.json.encode(CurateOptions(**given | {"out": str(out)} | over)).decode()
    return subprocess.Popen(
        [sys.executable, "-c", code, options],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(given: dict, out: Path, **over) -> str:
    """Run to the end, which must be a good one; returns what it said."""
    process = start(given, out, **over)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def whole(memory: Path, given: dict) -> dict[str, str]:
    """sha256 of every file of an undisturbed run."""
    finish(given, memory / "curate" / "whole")
    found = digests(memory / "curate" / "whole")
    assert sum(name.startswith("data/") for name in found) > 4
    return found


def workers_of(driver: int, name: str) -> list[psutil.Process]:
    """Worker processes below the driver whose command line holds `name`."""
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:  # it ended meanwhile
            continue
    return found


def wait_until(seen: Callable[[], object], seconds: float = 60.0) -> bool:
    stop = time.monotonic() + seconds
    while not seen() and time.monotonic() < stop:
        time.sleep(1e-3)
    return bool(seen())


def test_a_driver_killed_at_every_border_goes_on_to_the_same_bytes(given, whole, place):
    out = place / "clean"
    for border in BORDERS:
        process = start(given, out)
        assert wait_until((out / border).exists), f"{border} never came"
        orphans = workers_of(process.pid, "udf_worker")
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not psutil.wait_procs(orphans, timeout=10)[1], "workers outlive their driver"
    finish(given, out)
    assert digests(out) == whole


def test_a_driver_killed_at_random_goes_on_to_the_same_bytes(given, whole, place):
    chance, kills, finished = random.Random(3), 0, 0
    out = place / "clean-0"
    while kills < RANDOM or finished < 2:
        left = [border for border in MOMENTS if not (out / border).exists()]
        process = start(given, out, workers=chance.choice((1, 2)))
        border = out / chance.choice(left[:4])
        wait_until(lambda: border.exists() or process.poll() is not None)  # noqa: B023 - called at once
        time.sleep(chance.uniform(0, 0.4))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        if (out / "manifest.json").exists() and not (out / "work").exists():
            assert digests(out) == whole
            finished += 1
            out = place / f"clean-{finished}"
    finish(given, out)
    assert digests(out) == whole
    print(f"{kills} kills, finished {finished + 1} times")


def test_a_killed_worker_costs_its_shard_only(given, whole, place):
    out = place / "clean"
    process = start(given, out)
    assert wait_until((out / "work/sifted-00000.json").exists)
    workers = workers_of(process.pid, "udf_worker")
    workers[-1].kill()
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    assert digests(out) == whole


def test_a_worker_killed_before_it_calls_back_is_replaced(given, whole, place):
    out = place / "clean"
    process = start(given, out)
    assert wait_until(lambda: workers_of(process.pid, "udf_worker"))
    workers_of(process.pid, "udf_worker")[0].kill()
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0 and "a worker died" in said, said
    assert digests(out) == whole


def test_workers_that_die_again_and_again_are_an_error_and_the_work_goes_on_later(given, whole, place):
    out = place / "clean"
    process = start(given, out, code=_DYING)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 1 and "workers died 3 times in a row without finishing a shard" in said, said
    assert "fewer --workers" in said
    finish(given, out)
    assert digests(out) == whole


def test_a_killed_ray_worker_costs_its_shard_only(given, whole, place):
    pytest.importorskip("ray")
    out = place / "clean"
    process = start(given, out, ray="local")
    assert wait_until(lambda: workers_of(process.pid, "ray::UDFActor"), seconds=120)
    workers_of(process.pid, "ray::UDFActor")[0].kill()
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    assert digests(out) == whole


def test_a_full_disk_is_named_and_leaves_finished_shards(given, whole, place):
    out = place / "clean"
    process = start(given, out, code=_LITTLE_DISK)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 1 and "finished shards are intact" in said, said
    assert not (out / "manifest.json").exists()
    finish(given, out)
    assert digests(out) == whole
