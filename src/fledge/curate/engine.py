"""The plan on Daft: one column of tasks, one of summaries; native processes here, the same on a Ray cluster.

Daft starts the workers, feeds them and carries their answers. What it lacks is here: a task whose shard is finished is
not given out again, a worker that dies costs one more try, and workers of a driver that is gone end themselves.
"""

from __future__ import annotations

import gc
import logging
import os
import secrets
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any, Literal

import msgspec
import pyarrow as pa

from fledge.core.durable import write_atomically
from fledge.core.log import say
from fledge.core.runtime import release_memory, usable_cores
from fledge.curate.inputs import Split
from fledge.curate.plan import Job
from fledge.curate.sifting import Finished, Sieve, Sifted, keep

os.environ.setdefault("DO_NOT_TRACK", "true")  # read when daft is imported
os.environ.setdefault("DAFT_PROGRESS_BAR", "0")
os.environ.setdefault("DAFT_SHOW_QUERY_ID", "0")
import daft
from daft.execution.udf import UdfHandle

_TRIES = 3  # of a set of tasks in which a worker died and nothing was finished
_WATCH_SECONDS = 0.5
_START_SECONDS = 1.0
_END_SECONDS = 10.0
_ATTEMPT = "attempt"
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1")


class Task(msgspec.Struct, frozen=True):
    """One shard's work in one phase."""

    phase: Literal["sift", "keep"]
    number: int
    split: Split | None = None
    steps: list[str] = []


class Summary(msgspec.Struct, frozen=True):
    """What a worker says of a finished task; `error` is for the user, `bug` for us."""

    number: int = -1
    pages_in: int = 0
    pages_out: int = 0
    tokens: int = 0
    seconds: float = 0.0
    error: str | None = None
    errno: int | None = None
    bug: str | None = None


class Work:
    """A worker: opens the job's steps once, then takes tasks."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.sieve: Sieve | None = None
        pa.set_cpu_count(1)
        pa.set_io_thread_count(1)
        if job.attempt:
            threading.Thread(target=_end_with_the_attempt, args=(job,), daemon=True).start()

    @daft.method.batch(return_dtype=daft.DataType.string(), batch_size=1)
    def __call__(self, tasks: daft.Series) -> list[str]:
        return [msgspec.json.encode(self.summary(task)).decode() for task in tasks.to_pylist()]

    def summary(self, encoded: str) -> Summary:
        """Do one task. Errors are answers: an engine wraps what is raised beyond recognition."""
        started = time.monotonic()
        try:
            task = msgspec.json.decode(encoded, type=Task)
            found = self._done(task)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            return Summary(error=f"{where}{error.strerror or error}", errno=error.errno or 0)
        except ValueError as error:
            if isinstance(error, pa.ArrowInvalid):
                return Summary(bug=traceback.format_exc())
            return Summary(error=str(error))
        except Exception:
            return Summary(bug=traceback.format_exc())
        finally:
            pa.default_memory_pool().release_unused()
            release_memory()
        funnel = found.funnel
        came = funnel.came().pages if funnel.steps else found.pages.pages
        return Summary(task.number, came, found.pages.pages, found.pages.tokens, time.monotonic() - started)

    def _done(self, task: Task) -> Sifted | Finished:
        if task.phase == "keep":
            return keep(self.job, task.number, task.steps)
        self.sieve = self.sieve or Sieve(self.job)
        assert task.split is not None
        return self.sieve.sift(task.split)


def _end_with_the_attempt(job: Job) -> None:
    """End this process once its driver is gone or has begun anew; what it was writing is done again."""
    path, missed = job.work() / _ATTEMPT, 0
    while missed < 2:  # once may be a file system that shows the change late
        time.sleep(_WATCH_SECONDS)
        missed += 1
        with suppress(OSError):
            if path.read_text() == job.attempt and job.driver in (None, os.getppid()):
                missed = 0
    os._exit(1)


def start_runner(options_ray: str | None, workers: int) -> None:
    """Choose Daft's runner for this process. Raises ValueError where another one was chosen before."""
    wanted = "native" if options_ray is None else "ray"
    if daft.runners._get_runner() is None:
        if options_ray is None:
            daft.set_runner_native()
        else:
            _join_ray(options_ray, workers)
            daft.set_runner_ray(noop_if_initialized=True)
    if (chosen := daft.runners.get_or_infer_runner_type()) != wanted:
        raise ValueError(
            f"this process has run Daft on its {chosen} runner, and cannot change to {wanted}: start another"
        )


def _join_ray(address: str, workers: int) -> None:
    try:
        import ray
    except ImportError:
        raise ValueError('ray: the package is missing; `pip install "ray"`, or leave --ray out') from None
    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "ignore_reinit_error": True}
    environment = {"env_vars": {**_ONE_THREAD, "DO_NOT_TRACK": "true"}}
    if address == "local":
        ray.init(num_cpus=workers, include_dashboard=False, runtime_env=environment, **quiet)
        return
    try:
        ray.init(address=address, runtime_env=environment, **quiet)
    except ConnectionError as error:
        raise ValueError(f"ray = {address!r}: no cluster answers there ({error}); start one, or use local") from None


def workers_of(options_workers: int | None, tasks: int) -> int:
    """Worker processes for so many tasks."""
    return max(1, min(tasks, options_workers or usable_cores()))


def run_tasks(job: Job, tasks: Sequence[Task], finished: Callable[[Task], bool]) -> Iterator[Summary]:
    """Do all tasks; yields a summary as each is done.

    finished(task) says whether a task's sidecar is there: after a worker has died, only the others are given out again.
    Raises ValueError or OSError for what the user can mend, RuntimeError for a worker that dies again and again.
    """
    left, tries = list(tasks), _TRIES
    start_runner(job.options.ray, workers_of(job.options.workers, len(left)))
    while left:
        before = len(left)
        try:
            with closing(_attempt(job, left)) as summaries:
                for summary in summaries:
                    yield _checked(summary)
            left = []
        except _WorkerDied as death:
            wait_for_workers()
            left = [task for task in left if not finished(task)]
            tries = _TRIES if len(left) < before else tries - 1
            if not tries:
                shards = ", ".join(str(task.number) for task in left[:5])
                raise RuntimeError(
                    f"workers died {_TRIES} times in a row without finishing a shard ({death}); shards left: {shards}. "
                    "Out of memory is the usual reason: use fewer --workers or smaller --split-bytes, then "
                    f"`fledge resume {job.options.out}`"
                ) from None
            say(f"a worker died ({death}); its shard is done again, {len(left)} left")


class _WorkerDied(Exception):
    """The engine lost a worker process."""


def _attempt(job: Job, tasks: Sequence[Task]) -> Iterator[Summary]:
    """One run of the plan. Raises _WorkerDied."""
    native = job.options.ray is None
    unordered = daft.context.execution_config_ctx(maintain_order=False)  # in order, it deals tasks out in turn
    with _this_attempt(job) as token, _one_thread(native), unordered, ExitStack() as held:
        job = msgspec.structs.replace(job, attempt=token, driver=os.getpid() if native else None)
        workers = workers_of(job.options.workers, len(tasks))
        if native:
            held.enter_context(_starts_watched(workers))
        work = daft.cls(Work, use_process=True, max_concurrency=workers)
        frame = daft.from_pydict({"task": [msgspec.json.encode(task).decode() for task in tasks]})
        if not native:
            frame = frame.into_partitions(len(tasks))
        rows = frame.select(work(job)(daft.col("task")).alias("summary")).iter_rows(None)
        while True:
            row, death = None, None
            try:
                row = next(rows, None)
            except Exception as error:
                death = " ".join(str(error).split())[-300:]
            if death is not None:  # raised here, without the error: its traceback would hold Daft's worker
                raise _WorkerDied(death)
            if row is None:
                return
            yield msgspec.json.decode(row["summary"], type=Summary)


@contextmanager
def _this_attempt(job: Job) -> Iterator[str]:
    """Name this start in the work folder: workers that find another name, or none, end themselves."""
    path, token = job.work() / _ATTEMPT, secrets.token_hex(8)
    write_atomically(path, token.encode())
    try:
        yield token
    finally:
        path.unlink(missing_ok=True)


def _workers() -> list[UdfHandle]:
    """Daft's side of the native workers of this process, past ones too while something holds them."""
    return [held for held in gc.get_objects() if type(held) is UdfHandle]


@contextmanager
def _starts_watched(count: int) -> Iterator[None]:
    """Daft waits for ever for a worker that died before it called back: knock at its door in its place, which Daft
    takes for a failed start."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_START_SECONDS):
            called = [worker for worker in _workers() if "handle_conn" in vars(worker) and _runs(worker)]
            if len(called) >= count:
                return
            for worker in _workers():
                process = vars(worker).get("process")
                if "handle_conn" not in vars(worker) and process is not None and process.poll() is not None:
                    with suppress(OSError), socket.socket(socket.AF_UNIX) as door:
                        door.connect(worker.socket_path)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def wait_for_workers() -> None:
    """Wait until Daft has let go of all its workers, which happens in threads of its own after the last answer.

    A process that ends while one of them is in Python code is aborted (exit code 134); workers of an attempt that has
    failed end themselves within two looks at its name.
    """
    stop = time.monotonic() + _END_SECONDS
    while time.monotonic() < stop and any(map(_runs, _workers())):
        time.sleep(0.02)
    time.sleep(0.05)  # from the end of the last one to releasing the interpreter


def _runs(worker: UdfHandle) -> bool:
    """Whether Daft has not collected this worker's process yet."""
    process = vars(worker).get("process")  # set while the worker is made
    return process is None or process.returncode is None


@contextmanager
def _one_thread(native: bool) -> Iterator[None]:
    """Native workers inherit one thread each for numeric libraries: there are as many workers as cores."""
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    log = logging.getLogger("daft_local_execution")
    level = log.level
    if native:
        os.environ.update(_ONE_THREAD)
    log.setLevel(logging.CRITICAL)  # a worker's death is told by us
    try:
        yield
    finally:
        log.setLevel(level)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def _checked(summary: Summary) -> Summary:
    """Raise what a worker met: an error of the user's as itself, one of ours with its traceback."""
    if summary.bug is not None:
        raise RuntimeError(f"a worker met a fault of this program:\n{summary.bug}")
    if summary.error is None:
        return summary
    if summary.errno is None:
        raise ValueError(summary.error)
    raise OSError(summary.errno, f"{summary.error}; finished shards are intact. Free space or make the folder writable, "
                  "then run the command again")  # fmt: skip
