"""A checkpoint as one GGUF file that llama.cpp and what is built on it open: weights, tokenizer and chat template.

Names, fields and layouts are those of llama.cpp's convert_hf_to_gguf.py. Its `llama` turns pairs of neighbours (2i, 2i+1)
by rotary positions, ours turns (i, i + E/2), so rows of queries and keys change places there.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import torch
from gguf import GGMLQuantizationType as Quantization
from gguf import GGUFWriter, LlamaFileType, get_tensor_name_map, quantize
from gguf.constants import MODEL_ARCH, RopeScalingType
from gguf.quants import quant_shape_to_byte_shape
from torch import Tensor

from fledge import __version__
from fledge.core.checkpoint import Checkpoint, fsync_folder, load_checkpoint
from fledge.core.model import ModelConfig, RopeScaling
from fledge.core.rotary import rotary_table
from fledge.interop.gguf_tokenizer import read_vocabulary, write_vocabulary
from fledge.interop.hf_config import fitting
from fledge.interop.tensor_names import Slot, slots
from fledge.text.chat_format import ChatFormat
from fledge.text.tokenizer import Tokenizer

GGUFDtype = Literal["auto", "float32", "float16", "bfloat16", "q8_0"]
ARCHITECTURES = {"llama": MODEL_ARCH.LLAMA, "qwen2": MODEL_ARCH.QWEN2, "qwen3": MODEL_ARCH.QWEN3}
_TYPES = {
    "float32": (Quantization.F32, LlamaFileType.ALL_F32),
    "float16": (Quantization.F16, LlamaFileType.MOSTLY_F16),
    "bfloat16": (Quantization.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (Quantization.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
_BLOCK = 32  # numbers that share a scale in q8_0


class ExportedGGUF(msgspec.Struct, frozen=True):
    """What was written."""

    file: Path
    architecture: str
    dtype: str  # of matrices; norms and biases are float32 in every file
    tensors: int
    left_out: list[str]  # tensors of ours that the format has no place for
    notes: list[str]  # what a person should know


def architecture_of(model: ModelConfig, usual: str | None = None) -> str:
    """The architecture of llama.cpp that computes what this model does; `usual`, an imported model's family, goes first.

    Raises ValueError where none of those written here does, naming what is in the way.
    """
    if model.head not in ("tokens", "tokens+value"):
        raise ValueError(
            f"model.head = {model.head!r}: GGUF is written for models that write tokens; export with --to hf"
        )
    if model.window is not None:
        raise ValueError(
            f"model.window = {model.window}: llama.cpp's {', '.join(ARCHITECTURES)} see everything before; export with "
            "--to hf"
        )
    scaling = model.rope_scaling
    if scaling.kind == "yarn" and msgspec.structs.replace(
        scaling, factor=1.0, original_context=RopeScaling().original_context
    ) != RopeScaling(kind="yarn"):
        raise ValueError(
            f"model.rope_scaling = {scaling}: only YaRN with the paper's numbers is written to GGUF; export with --to hf"
        )
    able = [f for f in fitting(model) if f in ARCHITECTURES and not (f == "qwen3" and model.bias)]
    if not able:
        raise ValueError(
            f"no architecture of llama.cpp that is written here ({', '.join(ARCHITECTURES)}) can hold this model; export "
            "with --to hf" + (f" (its family is {usual})" if usual else "")
        )
    return usual if usual in able else able[0]


def export_gguf(run: Path | str, out: Path | str, *, dtype: GGUFDtype = "auto") -> ExportedGGUF:
    """Write the model of `run` into `out`: a new file *.gguf, or a folder, where it is called model.gguf.

    dtype "auto" is that of the imported model, float32 for our own. The file is whole or not there; equal checkpoints give
    equal bytes. Raises ValueError where llama.cpp has no such model or tokenizer, and where the file exists.
    """
    out = Path(out)
    file = out if out.suffix == ".gguf" else out / "model.gguf"
    if file.exists():
        raise ValueError(f"{file} exists: name another --out, or remove it")
    found = load_checkpoint(run)
    if found.card.get("adapter"):
        raise ValueError(f"{found.path} holds an adapter, not a whole model: `fledge merge` it, then export the result")
    model, imported = msgspec.convert(found.card["model"], ModelConfig).resolved(), found.card.get("imported", {})
    if "foreign" in imported:
        raise ValueError(
            f"{found.path} is {imported['family']}, which only `transformers` runs: export with --to hf, and use llama.cpp's "
            "own convert_hf_to_gguf.py on that folder"
        )
    architecture = architecture_of(model, imported.get("family"))
    dtype = model.dtype if dtype == "auto" else dtype
    held = found.card.get("chat_format")
    tokenizer = Tokenizer(found.files["tokenizer.json"], msgspec.convert(held, ChatFormat) if held else None)
    vocabulary = read_vocabulary(tokenizer, model.vocab_size)
    writer = GGUFWriter(None, architecture)
    _add_settings(writer, architecture, model, imported.get("context_tokens", model.context_tokens), dtype, found)
    write_vocabulary(writer, vocabulary, tokenizer)
    tensors, notes = _plan(architecture, model, dtype)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        _write(writer, temporary, tensors, found, model, architecture)
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(file.resolve().parent)
    left_out = sorted(found.model_tensors().keys() - {t.slot.ours for t in tensors if t.slot})
    return ExportedGGUF(file, architecture, dtype, len(tensors), left_out, vocabulary.notes + notes)


class _Tensor(msgspec.Struct, frozen=True):
    """One tensor of the file."""

    name: str
    shape: tuple[int, ...]
    type: Quantization
    slot: Slot | None  # None: rope_freqs, which is made and not read


def _plan(architecture: str, model: ModelConfig, dtype: str) -> tuple[list[_Tensor], list[str]]:
    """Every tensor of the file in order, and what is stored otherwise than asked."""
    names = get_tensor_name_map(ARCHITECTURES[architecture], model.layers)
    wanted, notes = _TYPES[dtype][0], []
    tensors = []
    if model.rope_scaling.kind == "llama3":
        tensors.append(_Tensor("rope_freqs.weight", (model.head_width // 2,), Quantization.F32, None))
    for slot in slots(model):
        name = names.get_name(slot.theirs, try_suffixes=(".weight", ".bias"))
        assert name is not None, f"llama.cpp has no name for {slot.theirs}"
        kind = wanted if len(slot.shape) > 1 else Quantization.F32
        if kind == Quantization.Q8_0 and slot.shape[-1] % _BLOCK:
            kind = Quantization.F16
            notes.append(f"{name} is float16: its rows of {slot.shape[-1]} are no multiple of q8_0's {_BLOCK}")
        tensors.append(_Tensor(name, slot.shape, kind, slot))
    return tensors, notes


def _write(
    writer: GGUFWriter, path: Path, tensors: list[_Tensor], found: Checkpoint, model: ModelConfig, architecture: str
) -> None:
    """The whole file, one tensor in memory at a time beside the checkpoint."""
    for t in tensors:
        packed = t.type in (Quantization.BF16, Quantization.Q8_0)
        shape = quant_shape_to_byte_shape(t.shape, t.type) if packed else t.shape
        numpy_type = np.dtype({Quantization.F32: np.float32, Quantization.F16: np.float16}.get(t.type, np.uint8))
        writer.add_tensor_info(
            t.name, shape, numpy_type, int(np.prod(shape)) * numpy_type.itemsize, t.type if packed else None
        )
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for data in _data(tensors, found, model, architecture):
            writer.write_tensor_data(data)
        writer.flush()
        os.fsync(writer.fout[0].fileno())
    finally:
        writer.close()


def _data(tensors: list[_Tensor], found: Checkpoint, model: ModelConfig, architecture: str) -> Iterator[np.ndarray]:
    """What stands in the file for each tensor. Raises ValueError where a weight is missing, not finite or too large."""
    ours = found.model_tensors()
    for t in tensors:
        if t.slot is None:
            yield _frequency_factors(model)
            continue
        whole = ours.get(t.slot.ours)
        if whole is None or len(whole) < (t.slot.rows.stop if t.slot.rows else t.slot.shape[0]):
            raise ValueError(f"{found.path}: tensor {t.slot.ours!r} is missing or too short for {t.name} {t.shape}")
        tensor = (whole if t.slot.rows is None else whole[t.slot.rows]).float()
        if tuple(tensor.shape) != t.shape:
            raise ValueError(f"{found.path}: tensor {t.slot.ours!r} is {tuple(tensor.shape)}, {t.name} is {t.shape}")
        if architecture == "llama" and (heads := _rotated_heads(t.slot.theirs, model)):
            tensor = neighbours(tensor, heads)
        limit = torch.finfo(torch.float16).max if t.type in (Quantization.F16, Quantization.Q8_0) else torch.inf
        if not bool((tensor.abs() <= limit).all()) or not bool(tensor.isfinite().all()):
            raise ValueError(
                f"{found.path}: tensor {t.slot.ours!r} does not become {t.name} of finite {t.type.name} numbers: export "
                "with --dtype float32"
            )
        yield np.ascontiguousarray(quantize(tensor.numpy(), t.type))


def _rotated_heads(theirs: str, model: ModelConfig) -> int:
    """Heads of a projection that positions turn; 0 for every other tensor."""
    if ".q_proj." in theirs:
        return model.heads
    return model.kv_heads if ".k_proj." in theirs else 0


def neighbours(tensor: Tensor, heads: int) -> Tensor:
    """Rows [H E,..] reordered per head from (0 .. E/2-1, E/2 .. E-1) to (0, E/2, 1, E/2+1, ..)."""
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2).contiguous()


def _frequency_factors(model: ModelConfig) -> np.ndarray:
    """[E/2] float32: what llama.cpp divides each rotary frequency by, read off the turns of position 1."""

    def turns(c: ModelConfig) -> Tensor:
        cos, sin = rotary_table(c, 2, "global")
        return torch.atan2(sin[1].double(), cos[1].double())

    plain = msgspec.structs.replace(model, rope_scaling=RopeScaling())
    return (turns(plain) / turns(model)).float().numpy()


def _add_settings(
    writer: GGUFWriter, architecture: str, model: ModelConfig, context: int, dtype: str, found: Checkpoint
) -> None:
    """The fields of the model, and where it comes from."""
    writer.add_type("model")
    writer.add_name(f"{found.path.parent.parent.name or 'model'}-{found.step}")
    writer.add_description(f"fledge {__version__}, stage {found.card['stage']}, checkpoint {found.id}")
    writer.add_file_type(_TYPES[dtype][1])
    writer.add_quantization_version(2)
    writer.add_vocab_size(model.vocab_size)
    writer.add_context_length(context)
    writer.add_embedding_length(model.width)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(model.ffn_width)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_key_length(model.head_width)
    writer.add_value_length(model.head_width)
    writer.add_layer_norm_rms_eps(model.norm_eps)
    writer.add_rope_dimension_count(model.head_width)
    writer.add_rope_freq_base(model.rope_base)
    scaling = model.rope_scaling
    if scaling.kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling.factor)
    if scaling.kind == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling.factor)
        writer.add_rope_scaling_orig_ctx_len(scaling.original_context)
