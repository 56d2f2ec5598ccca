"""A safetensors file that lies is refused by the name of the tensor that lies; a pickle is never opened."""

import json
import os
import pickle
import stat
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fledge.interop.tensors import (
    HEADER_BYTES,
    INDEX,
    TensorReader,
    find_tensors,
    read_header,
    strict_object,
    write_tensors,
)

TWO = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
}


def write(path: Path, header: dict | bytes, data_bytes: int = 12) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(data_bytes))
    return path


def changed(name: str, **claims) -> dict:
    return TWO | {name: TWO[name] | claims}


def test_a_good_header_is_read(tmp_path: Path):
    found = read_header(write(tmp_path / "m.safetensors", TWO | {"__metadata__": {"format": "pt"}}))
    assert {n: (e.dtype, e.shape, e.begin, e.end) for n, e in found.items()} == {
        "a": ("F32", (2,), 0, 8),
        "b": ("F32", (1,), 8, 12),
    }


@pytest.mark.parametrize("length", [0x0480, 0x4B50])
def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path: Path, length: int):
    path = write(tmp_path / "m.safetensors", json.dumps(TWO).encode().ljust(length))
    assert path.read_bytes()[:2] in (b"PK", b"\x80\x04")
    assert read_header(path).keys() == TWO.keys()


def test_what_safetensors_writes_is_read(tmp_path: Path):
    save_file({"x": torch.ones(3, 2, dtype=torch.bfloat16), "n": torch.arange(3)}, tmp_path / "m.safetensors")
    assert {n: (e.dtype, e.shape) for n, e in read_header(tmp_path / "m.safetensors").items()} == {
        "x": ("BF16", (3, 2)),
        "n": ("I64", (3,)),
    }


@pytest.mark.parametrize(
    ("header", "data_bytes", "words"),
    [
        (changed("b", data_offsets=[4, 8]), 8, "tensor 'b' overlaps 'a'"),
        (changed("b", data_offsets=[12, 16]), 16, "tensor 'b' leaves a gap after 'a'"),
        (changed("a", data_offsets=[0, 4]), 12, "tensor 'a' of F32 \\(2,\\) needs 8 bytes, its offsets give 4"),
        (changed("a", shape=[2**40, 2**40]), 12, "tensor 'a' of F32 .* needs"),
        (changed("a", shape=[-2]), 12, "tensor 'a' has shape \\[-2\\]"),
        (changed("a", shape=[2.0]), 12, "tensor 'a' has shape \\[2.0\\]"),
        (changed("a", shape=[True, 2]), 12, "tensor 'a' has shape"),
        (changed("a", dtype="F31"), 12, "tensor 'a' has dtype 'F31'"),
        (changed("a", dtype=["F32"]), 12, "tensor 'a' has dtype \\['F32'\\]"),
        (changed("a", data_offsets=[0]), 12, "tensor 'a' lacks dtype, shape or data_offsets"),
        (TWO | {"a": 7}, 12, "tensor 'a' lacks dtype, shape or data_offsets"),
        (TWO, 11, "its tensors take 12 bytes, 11 follow the header"),
        (TWO, 90, "its tensors take 12 bytes, 90 follow the header"),
        (b'{"a": {}, "a": {}}', 0, "duplicate JSON key \\(a\\)"),
        (b'{"a": NaN}', 0, "NaN or Infinity is not a JSON number"),
        (b"[1, 2]", 0, "row is not a JSON object"),
        (b'{"a": ' * 100_000, 0, "no JSON object: Nested too deeply"),
        (b"\xff\xfe{}", 0, "not UTF-8"),
    ],
)
def test_a_lying_header_is_refused(tmp_path: Path, header, data_bytes: int, words: str):
    with pytest.raises(ValueError, match=words):
        read_header(write(tmp_path / "m.safetensors", header, data_bytes))


@pytest.mark.parametrize("length", [0, 1, HEADER_BYTES + 1, 2**63, 10**6])
def test_a_header_longer_than_its_file_or_the_limit_is_refused(tmp_path: Path, length: int):
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(ValueError, match=f"header claims {length:,} bytes"):
        read_header(path)


class Harm:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", ".metadata", "model.safetensors"])
def test_a_pickle_is_never_opened(tmp_path: Path, name: str):
    """Bad input 21, also where the pickle is called model.safetensors; the way to convert it is told."""
    folder, mark = tmp_path / "model", tmp_path / "harm"
    folder.mkdir()
    harm = pickle.dumps(Harm(mark))
    (folder / name).write_bytes(harm)
    with pytest.raises(ValueError, match=r"never opens one\. Convert it where nothing can be lost"):
        find_tensors(folder)
    assert not mark.exists()
    pickle.loads(harm)
    assert mark.exists()  # so the file would have done harm


def test_a_zip_pickle_called_safetensors_is_refused(tmp_path: Path):
    torch.save({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="pickle under another name"):
        find_tensors(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"has neither model\.safetensors nor"):
        find_tensors(tmp_path)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    tensors = {name: torch.full((4,), float(i)) for i, name in enumerate("abc")}
    write_tensors(tmp_path, dict.fromkeys(tensors, 16), tensors.__getitem__, limit_bytes=32)
    return tmp_path


def index_of(folder: Path) -> dict:
    return json.loads((folder / INDEX).read_text())


def rewrite_index(folder: Path, **where) -> None:
    index = index_of(folder)
    index["weight_map"] |= where
    (folder / INDEX).write_text(json.dumps(index))


def test_shards_are_written_with_their_index_and_read_by_it(sharded: Path):
    assert sorted(p.name for p in sharded.iterdir()) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        INDEX,
    ]
    assert index_of(sharded)["metadata"] == {"total_size": 48}
    reader = TensorReader(find_tensors(sharded))
    assert [reader.read(name, (4,)).tolist() for name in "abc"] == [[0.0] * 4, [1.0] * 4, [2.0] * 4]


def test_a_missing_shard_is_named_with_what_it_held(sharded: Path):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors is missing: the index says it holds c"):
        find_tensors(sharded)


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "pytorch_model.bin", ".."]
)
def test_an_index_may_not_name_files_elsewhere(sharded: Path, name: str):
    rewrite_index(sharded, c=name)
    with pytest.raises(ValueError, match="a shard must be a plain"):
        find_tensors(sharded)


def test_an_index_and_its_shards_must_agree(sharded: Path):
    rewrite_index(sharded, d="model-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match="tensor 'd' is missing"):
        find_tensors(sharded)


def test_a_tensor_that_the_index_does_not_know_is_refused(sharded: Path):
    """A shard swapped for one of another model."""
    save_file({"z": torch.ones(4)}, sharded / "model-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"tensor 'z' is not what model\.safetensors\.index"):
        find_tensors(sharded)


def test_a_tensor_in_two_shards_is_refused(sharded: Path):
    save_file({"a": torch.ones(4), "c": torch.ones(4)}, sharded / "model-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"tensor 'a' stands in model-00001-of-00002\.safetensors as well"):
        find_tensors(sharded)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.ones(3), r"tensor 'w' has shape \(3,\), config.json makes it \(2,\)"),
        (torch.ones(2, dtype=torch.int8), "tensor 'w' is I8; weights must be F32, F16, BF16: quantised"),
        (torch.ones(2, dtype=torch.float64), "tensor 'w' is F64"),
        (torch.tensor([1.0, torch.nan]), "tensor 'w' has 1 of 2 values that are NaN or infinite"),
        (torch.tensor([torch.inf, -torch.inf]).bfloat16(), "tensor 'w' has 2 of 2 values that are NaN or infinite"),
    ],
)
def test_a_tensor_that_cannot_be_weights_is_refused_by_name(tmp_path: Path, tensor: torch.Tensor, words: str):
    save_file({"w": tensor}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=words):
        TensorReader(find_tensors(tmp_path)).read("w", (2,))


def test_a_missing_tensor_is_named(tmp_path: Path):
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"tensor 'v' \(2,\) is missing"):
        TensorReader(find_tensors(tmp_path)).read("v", (2,))


def test_one_file_is_written_below_the_limit(tmp_path: Path):
    write_tensors(tmp_path, {"a": 16}, lambda name: torch.ones(4))
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert load_file(tmp_path / "model.safetensors")["a"].tolist() == [1.0] * 4


def test_strict_object_takes_a_byte_order_mark():
    assert strict_object(b'\xef\xbb\xbf{"a": 1}', "x") == {"a": 1}


def test_others_may_read_what_is_written_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path, {"a": 8}, lambda name: torch.ones(2))
    finally:
        os.umask(before)
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640 and "a" in read_header(file)
