"""Safetensors files that nobody vouches for: every claim of a header is checked before a tensor is read.

A file is eight bytes of header length, a JSON header {name: {dtype, shape, data_offsets}}, then the data. Tensors must
lie end to end and fill the file: what overlaps, leaves a gap or ends elsewhere is refused by name. Pickle (.bin, .pt)
runs code when it is opened, so it is never opened.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fledge.text.files import RowRejected, StrictJSON

HEADER_BYTES = 32 * 1024 * 1024  # a model of 200,000 tensors needs 20 MB; safetensors itself stops at 100 MB
JSON_BYTES = 512 * 1024 * 1024  # the largest tokenizer.json in use has 35 MB
SHARD_BYTES = 5_000_000_000  # what the Hub's tools write
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

# Bytes of one element. Only the first three are weights to compute with; the rest may stand in a file unread.
WEIGHTS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_ELEMENT_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_PLAIN_NAME = re.compile(r"[\w.-]+\.safetensors", re.ASCII)


class Entry(NamedTuple):
    """One tensor of a file, as its checked header states it."""

    file: Path
    name: str  # in that file
    dtype: str  # as safetensors names it: F32, BF16, ...
    shape: tuple[int, ...]
    begin: int  # in bytes from the start of the data
    end: int


def strict_object(data: bytes, name: str) -> dict[str, Any]:
    """The JSON object in `data`; `name` is used in errors.

    Raises ValueError where it is no UTF-8, no JSON, no object, or holds a repeated key, NaN or too large a number.
    """
    try:
        return StrictJSON().row(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 at byte {error.start}: restore it from its source") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is no JSON object: {error}; restore it from its source") from None
    except RowRejected as error:
        raise ValueError(f"{name}: {error.reason} ({error.sample}); mend it or restore it from its source") from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError naming the file where it is too large, none, or undefined JSON."""
    if (size := path.stat().st_size) > JSON_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, at most {JSON_BYTES:,} are read: it is no such file")
    return strict_object(path.read_bytes(), str(path))


def read_header(path: Path) -> dict[str, Entry]:
    """Name -> Entry of every tensor in the file, checked.

    Raises ValueError naming the file and the tensor that breaks a rule of the format.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(start := file.read(8), "little")
        if size < 8 or not 2 <= length <= min(HEADER_BYTES, size - 8):
            if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
                raise ValueError(f"{path} is a pickle under another name: {_converter(path)}")
            raise ValueError(
                f"{path}: its header claims {length:,} bytes; the file has {size:,}, a header at most {HEADER_BYTES:,}: "
                "the file is damaged or no safetensors file; copy or download it again"
            )
        header = strict_object(file.read(length), f"{path} (header)")
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, claim) for name, claim in header.items()}
    _require_end_to_end(path, entries, size - 8 - length)
    return entries


def _entry(path: Path, name: str, claim: Any) -> Entry:
    """One claim of a header, its parts of the right type and its length that of its shape."""
    try:
        dtype, shape, (begin, end) = claim["dtype"], claim["shape"], claim["data_offsets"]
        numbers = [*shape, begin, end]
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"{path}: tensor {name!r} lacks dtype, shape or data_offsets: the file is damaged") from None
    if not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
        raise ValueError(f"{path}: tensor {name!r} has shape {shape}, offsets {begin}, {end}: not counts of anything")
    if not isinstance(dtype, str) or dtype not in _ELEMENT_BYTES:
        raise ValueError(f"{path}: tensor {name!r} has dtype {dtype!r}: known are {', '.join(_ELEMENT_BYTES)}")
    if end - begin != (needed := math.prod(shape) * _ELEMENT_BYTES[dtype]):
        raise ValueError(
            f"{path}: tensor {name!r} of {dtype} {tuple(shape)} needs {needed:,} bytes, its offsets give {end - begin:,}"
        )
    return Entry(path, name, dtype, tuple(shape), begin, end)


def _require_end_to_end(path: Path, entries: dict[str, Entry], data_bytes: int) -> None:
    """Refuse tensors that overlap, leave a gap, or do not end where the file does."""
    at, before = 0, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            what = "overlaps" if entry.begin < at else "leaves a gap after"
            raise ValueError(f"{path}: tensor {name!r} {what} {before} (byte {entry.begin:,}, expected {at:,})")
        at, before = entry.end, repr(name)
    if at != data_bytes:
        raise ValueError(
            f"{path}: its tensors take {at:,} bytes, {data_bytes:,} follow the header: the file is cut short or has "
            "something hidden behind it; copy or download it again"
        )


def _converter(path: Path) -> str:
    """What to do with a pickle."""
    return (
        "a pickle runs code when it is opened, so fledge never opens one. Convert it where nothing can be lost (a "
        'container without network, or a throw-away account): python -c "import torch; from safetensors.torch import '
        f"save_file; save_file(torch.load('{path.name}', weights_only=True), 'model.safetensors')\" and import the folder"
    )


def refuse_pickle(path: Path) -> None:
    """Raise ValueError for a file that pickle would have to open, by its name; says how it is converted."""
    if path.suffix in _PICKLES or path.name == ".metadata":  # the latter is of torch.distributed.checkpoint
        raise ValueError(f"{path} holds its weights as a pickle: {_converter(path)}")


def find_tensors(folder: Path) -> dict[str, Entry]:
    """Name -> Entry of every tensor of a model's folder: model.safetensors, or the shards that its index names.

    Raises ValueError for pickles, a shard that is missing or named outside the folder, and a tensor in two shards or
    elsewhere than the index says.
    """
    index = folder / INDEX
    if not index.exists():
        if (folder / SINGLE).exists():
            return read_header(folder / SINGLE)
        for path in sorted(folder.iterdir()):
            refuse_pickle(path)
        raise ValueError(f"{folder} has neither {SINGLE} nor {INDEX}: name the folder of a Hugging Face model")
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise ValueError(f"{index} has no weight_map of tensor to file: restore it from its source")
    found: dict[str, Entry] = {}
    for shard in sorted({str(name) for name in where.values()}):
        if not _PLAIN_NAME.fullmatch(shard):
            raise ValueError(f"{index} names {shard!r}: a shard must be a plain *.safetensors name in the same folder")
        if not (folder / shard).exists():
            raise ValueError(f"{folder / shard} is missing: the index says it holds {_few(where, shard)}")
        entries = read_header(folder / shard)
        if twice := found.keys() & entries.keys():
            raise ValueError(f"{folder / shard}: tensor {min(twice)!r} stands in {found[min(twice)].file.name} as well")
        if strange := [name for name in entries if where.get(name) != shard]:
            raise ValueError(f"{folder / shard}: tensor {strange[0]!r} is not what {index.name} says it holds")
        found |= entries
    if missing := [name for name in where if name not in found]:
        raise ValueError(
            f"{folder / where[missing[0]]}: tensor {missing[0]!r} is missing, {index.name} says it is there"
        )
    return found


def _few(where: dict[str, str], shard: str) -> str:
    names = [name for name, file in where.items() if file == shard]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class TensorReader:
    """Reads checked tensors one at a time, as float32."""

    def __init__(self, entries: dict[str, Entry]):
        self.entries = entries
        self._open: dict[Path, Any] = {}

    def check(self, name: str, shape: tuple[int, ...]) -> Entry:
        """The entry of `name`. Raises ValueError where it is missing, or of another shape or dtype than weights have."""
        entry = self.entries.get(name)
        if entry is None:
            raise ValueError(f"tensor {name!r} {shape} is missing: the checkpoint is not whole or not of this family")
        if entry.shape != tuple(shape):
            raise ValueError(
                f"{entry.file}: tensor {name!r} has shape {entry.shape}, config.json makes it {tuple(shape)}"
            )
        if entry.dtype not in WEIGHTS:
            raise ValueError(
                f"{entry.file}: tensor {name!r} is {entry.dtype}; weights must be {', '.join(WEIGHTS)}: quantised "
                "models cannot be trained, import the unquantised one"
            )
        return entry

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Tensor `name` as float32. Raises ValueError as `check` does, and where values are not finite."""
        entry = self.check(name, shape)
        if entry.file not in self._open:
            self._open[entry.file] = safe_open(entry.file, framework="pt")
        tensor = self._open[entry.file].get_tensor(entry.name)
        if bad := int((~tensor.isfinite()).sum()):
            raise ValueError(
                f"{entry.file}: tensor {name!r} has {bad:,} of {tensor.numel():,} values that are NaN or infinite: the "
                "weights are broken; use an earlier checkpoint of that model"
            )
        return tensor.float()


def file_hashes(files: Iterable[Path]) -> dict[str, str]:
    """sha256 by name, read in pieces."""
    found = {}
    for path in files:
        with open(path, "rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def shards(sizes: dict[str, int], limit_bytes: int) -> Iterator[list[str]]:
    """Names in order, cut into groups of at most `limit_bytes` (one tensor may be larger alone)."""
    group, used = [], 0
    for name, size in sizes.items():
        if group and used + size > limit_bytes:
            yield group
            group, used = [], 0
        group.append(name)
        used += size
    if group:
        yield group


def write_file(tensors: dict[str, Tensor], path: Path) -> None:
    """One safetensors file, readable by those who can read what else is written here (the library keeps it to its owner)."""
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(mode)


def write_tensors(folder: Path, sizes: dict[str, int], make: Any, limit_bytes: int = SHARD_BYTES) -> None:
    """Write the tensors `make(name)` of `sizes` bytes each, in one file or in shards with their index.

    One shard is in memory at a time; equal tensors give equal bytes.
    """
    groups = list(shards(sizes, limit_bytes))
    names = (
        [SINGLE]
        if len(groups) == 1
        else [f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    )
    for file, group in zip(names, groups, strict=True):
        write_file({name: make(name).contiguous() for name in group}, folder / file)
    if len(groups) > 1:
        where = {name: file for file, group in zip(names, groups, strict=True) for name in group}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(where.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
