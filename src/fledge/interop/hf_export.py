"""A checkpoint as a folder that transformers, vLLM and other tools open: config, safetensors, tokenizer, chat template."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from fledge import __version__
from fledge.core.checkpoint import Checkpoint, load_checkpoint
from fledge.core.durable import fsync_folder
from fledge.core.model import ModelConfig
from fledge.interop.hf_config import choose_family, write_config
from fledge.interop.tensor_names import Slot, slots
from fledge.interop.tensors import SHARD_BYTES, write_tensors
from fledge.text.chat_format import ChatFormat
from fledge.text.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Exported(msgspec.Struct, frozen=True):
    """What was written."""

    folder: Path
    family: str
    dtype: str
    tensors: int
    left_out: list[str]  # tensors of ours that the format has no place for


def export(
    run: Path | str, out: Path | str, *, family: str | None = None, dtype: str = "auto", shard_bytes: int = SHARD_BYTES
) -> Exported:
    """Write the model of `run` into the new folder `out`; it is whole or not there.

    family None keeps that of the imported model, where it had one. dtype "auto" is that of the imported model, and each
    tensor's own where the model was not trained since. Raises ValueError where no family can hold the model, where a
    weight is too large for the dtype, and where `out` holds something.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} holds something: name a new folder, or empty that one")
    found = load_checkpoint(run)
    if found.card.get("adapter"):
        raise ValueError(f"{found.path} holds an adapter, not a whole model: `fledge merge` it, then export the result")
    if "foreign" in found.card.get("imported", {}):
        from fledge.interop.foreign_files import export_foreign

        kind = "float32" if dtype == "auto" else dtype
        return Exported(out, found.card["imported"]["family"], kind, export_foreign(found, out, kind), [])
    model, imported = msgspec.convert(found.card["model"], ModelConfig).resolved(), found.card.get("imported", {})
    chosen, model = choose_family(model, family, imported.get("family"))
    if dtype != "auto":
        model = msgspec.structs.replace(model, dtype=dtype)
    wanted = slots(model)  # before the context is set back: learned positions are rows
    model = msgspec.structs.replace(model, context_tokens=imported.get("context_tokens", model.context_tokens))
    own_dtypes = found.card.get("dtypes", {}) if dtype == "auto" else {}
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        left_out = _write_weights(temporary, found, wanted, {s.theirs: own_dtypes.get(s.theirs, model.dtype) for s in wanted},
                                  shard_bytes)  # fmt: skip
        _write_settings(temporary, chosen, model, found)
        for path in temporary.iterdir():
            fsync_folder(path)  # a file's bytes are pushed to the disk the same way
        if out.exists():
            out.rmdir()
        os.rename(temporary, out)
        fsync_folder(out.resolve().parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Exported(out, chosen, model.dtype, len(wanted), left_out)


def _write_weights(
    folder: Path, found: Checkpoint, wanted: list[Slot], dtypes: dict[str, str], shard_bytes: int
) -> list[str]:
    """Write their tensors; returns the names of ours that have no place among them."""
    ours, by_name = found.model_tensors(), {slot.theirs: slot for slot in wanted}
    sizes = {s.theirs: torch.Size(s.shape).numel() * DTYPES[dtypes[s.theirs]].itemsize for s in wanted}

    def make(name: str) -> Tensor:
        slot, dtype = by_name[name], DTYPES[dtypes[name]]
        if slot.ours not in ours:  # the family has a bias here, the model none
            return torch.zeros(slot.shape, dtype=dtype)
        whole = ours[slot.ours]
        tensor = (whole if slot.rows is None else whole[slot.rows]).to(dtype)
        if tensor.shape != slot.shape or not tensor.isfinite().all():
            raise ValueError(
                f"{found.path}: tensor {slot.ours!r} of shape {tuple(whole.shape)} does not become {name!r} "
                f"{slot.shape} of finite {dtypes[name]} numbers: export with --dtype float32"
            )
        return tensor

    write_tensors(folder, sizes, make, shard_bytes)
    return sorted(ours.keys() - {slot.ours for slot in wanted})


def _write_settings(folder: Path, family: str, model: ModelConfig, found: Checkpoint) -> None:
    """The small files beside the weights."""
    held = found.card.get("chat_format")
    tokenizer = Tokenizer(found.files["tokenizer.json"], msgspec.convert(held, ChatFormat) if held else None)
    tokens = control_tokens(tokenizer, model, found.card.get("imported", {}).get("tokens"))
    ids = {name: i for name, i in tokens.items() if name.endswith("_id")}
    if family != "bert" and model.head == "tokens":
        _write(folder / "generation_config.json", ids)
        if ids["pad_token_id"] in (tokenizer.bos, tokenizer.eos, tokenizer.end):
            ids["pad_token_id"] = None  # transformers would not train the row that config.json names here
        ids.setdefault("bos_token_id", None)  # unsaid, it would be the family's usual one
    _write(folder / "config.json", write_config(family, model) | ids)
    (folder / "tokenizer.json").write_bytes(tokenizer.json)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.context_tokens,
        "clean_up_tokenization_spaces": False,
        **{name: text for name, text in tokens.items() if not name.endswith("_id")},
    }
    if tokenizer.format.template:
        settings["chat_template"] = tokenizer.format.template
        (folder / "chat_template.jinja").write_text(tokenizer.format.template, "utf-8")
    _write(folder / "tokenizer_config.json", settings)
    about = {"checkpoint": found.id, "stage": found.card["stage"], "step": found.step, "fledge": __version__}
    _write(folder / "fledge.json", about)


def control_tokens(tokenizer: Tokenizer, model: ModelConfig, given: dict[str, Any] | None) -> dict[str, Any]:
    """bos_token, eos_token, ... as texts and bos_token_id, eos_token_id, pad_token_id as config files have them.

    given: those of the imported model, which stay as they were; None for our own, where eos_token ends an answer, as in
    chat models elsewhere.
    """
    format, text = tokenizer.format, tokenizer.slow.id_to_token
    if model.architecture == "bert":
        made = {"cls_token": text(format.bos), "sep_token": text(format.eos)}
    else:
        made = {"bos_token": text(format.bos), "eos_token": text(format.end), "bos_token_id": format.bos}
    made["pad_token"] = text(format.pad)
    if format.mask is not None:
        made["mask_token"] = text(format.mask)
    if given is not None:
        made = given | ({"eos_token": text(format.end)} if format.name == "chatml" else {})
    made["pad_token_id"] = format.pad
    if model.architecture != "bert":
        known = made.get("eos_token_id")
        ends = {format.eos, format.end, *(known if isinstance(known, list) else [] if known is None else [known])}
        made["eos_token_id"] = sorted(ends) if len(ends) > 1 else format.end
    return made


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
