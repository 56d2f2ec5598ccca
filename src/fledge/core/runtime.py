"""Process settings that make small models fast on a CPU, and the rules that choose device, precision and threads.

Figures behind each setting: benchmarks/README.md.
"""

import ctypes
import os
import resource
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# mallopt(3) parameter numbers of glibc.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEEP_BYTES = 2**31 - 1  # mallopt takes an int
_TOP_PAD_BYTES = 64 << 20


def prepare_process() -> None:
    """Keep freed activations in the heap, and let idle OpenMP threads sleep.

    glibc returns every large block to the kernel at once, so each training step would pay page faults for the same
    activations again (1.2x of a bf16 step). libgomp's idle threads spin, which collapses the speed by 5x and more
    when a neighbour needs the core. Both must be set before torch is imported; a value the user set wins.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not sys.platform.startswith("linux") or any(k.startswith("MALLOC_") for k in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl has no mallopt: slower, still right
        return
    mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)
    mallopt(_M_TOP_PAD, _TOP_PAD_BYTES)


def release_memory() -> None:
    """Hand memory kept for the next step back to the kernel: what a finished stage used is not what the next one needs."""
    if sys.platform.startswith("linux"):
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except AttributeError:
            return  # not glibc: freed memory went back by itself


def peak_memory() -> int:
    """Most bytes of resident memory this process, or a child it has waited for, ever had.

    On Linux from VmHWM: ru_maxrss survives exec, so a program started by a large one would report its starter's peak.
    """
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    try:
        status = Path("/proc/self/status").read_text()
        own = int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return max(own, children * unit)


def usable_cores() -> int:
    """Cores this process may use: its affinity mask, capped by a cgroup v2 CPU quota where one is set."""
    cores = len(os.sched_getaffinity(0)) if sys.platform.startswith("linux") else (os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


@cache
def has_fast_bfloat16() -> bool:
    """True where the CPU multiplies bfloat16 matrices faster than float32 ones (avx512_bf16 or AMX; measured 2.2x)."""
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_device(name: str = "auto") -> "torch.device":
    """`auto` takes CUDA where torch sees it, else the CPU. Raises ValueError for a device that is not there."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device = {name!r}: torch sees no CUDA device here; set device = 'cpu' or 'auto'")
    return device


def choose_dtype(precision: str, device: "torch.device") -> "torch.dtype":
    """The dtype of activations and matrix products; weights and optimiser state stay float32.

    `auto` follows a fixed rule, so the same command on the same machine gives the same bytes: bfloat16 on CUDA of
    compute capability 8 and up and on CPUs with bfloat16 instructions, float32 elsewhere.
    """
    import torch

    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float32
    return torch.bfloat16 if device.type == "cpu" and has_fast_bfloat16() else torch.float32


def set_threads(count: int | None = None) -> int:
    """Set torch's CPU threads (None: all usable cores) and return the number; part of a run's recorded settings."""
    import torch

    count = count or usable_cores()
    torch.set_num_threads(count)
    return count
