"""Compiles the C++ sources once per machine where a C++ compiler is present; without one the torch paths serve.

The rule is fixed (compiler present, x86-64 or Arm Linux), so the same machine always takes the same path; FLEDGE_NATIVE=0
turns it off. Runs record which path they took.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

_SOURCES = {  # library: its source, then what that includes
    "kernels": ("kernels.cpp",),
    "decode": (
        "decode.cpp",
        "decode_live.h",
        "decode_slots.h",
        "decode_score.h",
        "decode_model.h",
        "decode_math.h",
        "decode_draw.h",
    ),
}
_FLAGS = ["-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-std=c++17", "-shared", "-fPIC"]
_NAMES = (
    "rotate",
    "rotate_back",
    "rms",
    "rms_back",
    "swiglu",
    "swiglu_back",
    "softmax",
    "softmax_back",
    "choose",
    "choose_back",
)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fledge"


def _openmp() -> list[str]:
    """torch's own libgomp where it ships one, so that both share one pool of threads."""
    return [str(p) for p in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))[:1]]


def _cpu() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _build(compiler: str, name: str) -> Path | None:
    sources = [Path(__file__).with_name(source) for source in _SOURCES[name]]
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    openmp = _openmp()
    parts = (*(source.read_text() for source in sources), *_FLAGS, version, _cpu(), *openmp)
    target = _cache_folder() / f"{name}-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:16]}.so"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / f"{name}.so"
            command = [compiler, *_FLAGS, str(sources[0]), "-o", str(made), *openmp]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            if done.returncode:
                print(f"fledge: native {name} did not compile, torch serves: {done.stderr[:500]}", file=sys.stderr)
                return None
            os.replace(made, target)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"fledge: native {name} not built, torch serves: {error}", file=sys.stderr)
        return None
    return target


@functools.cache
def library(name: str = "kernels") -> ctypes.CDLL | None:
    """One compiled library, or None where it is off, cannot be built, or fails to load.

    kernels: the training step's loops (kernels.py); decode: the decoding loop (generate/native_decoder.py).
    """
    if os.environ.get("FLEDGE_NATIVE") == "0" or not sys.platform.startswith("linux"):
        return None
    compiler = shutil.which("g++") or shutil.which("c++")
    path = _build(compiler, name) if compiler else None
    if path is None:
        return None
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        print(f"fledge: native {name} did not load, torch serves: {error}", file=sys.stderr)
        return None


@functools.cache
def kernel(name: str, dtype: torch.dtype):
    """The C function of a kernel for float32 or bfloat16, or None: then the torch path serves."""
    assert name in _NAMES
    suffix = {torch.float32: "float32", torch.bfloat16: "bfloat16"}.get(dtype)
    found = library()
    if found is None or suffix is None:
        return None
    function = getattr(found, f"{name}_{suffix}")
    function.restype = None
    return function


def path_taken() -> str:
    """ "native" or "torch": what training steps on this machine's CPU run through."""
    return "native" if library() else "torch"


def usable(name: str, *tensors: Tensor):
    """kernel() if all tensors are contiguous on the CPU (the first gives the dtype), else None.

    Under torch.compile always None: the compiler fuses the torch operations itself.
    """
    if torch.compiler.is_compiling() or tensors[0].device.type != "cpu" or not all(t.is_contiguous() for t in tensors):
        return None
    return kernel(name, tensors[0].dtype)


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def integer(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)


def real(value: float) -> ctypes.c_float:
    return ctypes.c_float(value)
