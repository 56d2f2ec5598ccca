"""Runs jobs in forked children: torch is imported once, and every child starts like a fresh process.

Reads one JSON request a line and answers each with one JSON line:
    {"start": JOB, "with": {..}, "folder": CWD, "env": {..}}      -> {"pid": n}
    {"signal": n, "pid": p, "step": s, "after_seconds": x}        sent once the child has logged step s, x seconds later
    {"wait": p}                                                   -> {"pid", "code": as of a shell, "step", "said"}

The step a child has reached is seen through shared memory, so that a signal falls where the test wants it.
"""

import importlib
import json
import mmap
import os
import signal
import struct
import sys
import tempfile
import time
import traceback

import torch
import torch._dynamo  # an optimiser imports it on first use: a second of CPU for every child

from fledge.core.log import MetricsLog
from fledge.core.native import library

JOBS = importlib.import_module("jobs")  # beside this file; imports torch and the stages
_steps: dict[int, mmap.mmap] = {}
_said: dict[int, str] = {}
_codes: dict[int, int] = {}


def start(job: str, arguments: dict, folder: str, environment: dict) -> int:
    """Fork a child that runs one job and return its pid."""
    progress = mmap.mmap(-1, 8)
    handle, said = tempfile.mkstemp(prefix="fledge-said-")
    if pid := os.fork():
        os.close(handle)
        _codes.pop(pid, None)  # numbers of processes come round again
        _steps[pid], _said[pid] = progress, said
        return pid
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.chdir(folder)
        os.environ.update(environment)
        write = MetricsLog.write

        def noted(self: MetricsLog, row: dict, speed: dict) -> None:
            write(self, row, speed)
            progress[:8] = struct.pack("q", row["step"])

        MetricsLog.write = noted
        torch.seed()  # a fresh process has a random state of its own
        code = getattr(JOBS, job)(**arguments) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int, block: bool) -> bool:
    """Whether the child has ended; its exit code is kept as a shell gives it."""
    if pid in _codes:
        return True
    found, status = os.waitpid(pid, 0 if block else os.WNOHANG)
    if found:
        code = os.waitstatus_to_exitcode(status)
        _codes[pid] = 128 - code if code < 0 else code
    return bool(found)


def step_of(pid: int) -> int:
    return struct.unpack("q", _steps[pid][:8])[0]


def send(pid: int, number: int, step: int, after_seconds: float) -> bool:
    """Signal the child when it has logged `step`; False when it ended before."""
    while step_of(pid) < step:
        if ended(pid, False):
            return False
        time.sleep(2e-4)
    if after_seconds:
        time.sleep(after_seconds)
    if ended(pid, False):
        return False
    os.kill(pid, number)
    return True


def answer(request: dict) -> dict:
    if "start" in request:
        return {"pid": start(request["start"], request["with"], request["folder"], request["env"])}
    if "signal" in request:
        pid, number = request["pid"], request["signal"]
        return {"sent": send(pid, number, request["step"], request["after_seconds"]), "step": step_of(pid)}
    pid = request["wait"]
    ended(pid, True)
    with open(_said[pid], encoding="utf-8", errors="replace") as file:
        said = file.read()
    os.unlink(_said[pid])
    return {"pid": pid, "code": _codes[pid], "step": step_of(pid), "said": said}


def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    library()  # the compiled kernels, found once
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
    for pid in _steps:
        if not ended(pid, False):
            os.kill(pid, signal.SIGKILL)
    for said in _said.values():
        if os.path.exists(said):
            os.unlink(said)


if __name__ == "__main__":
    main()
