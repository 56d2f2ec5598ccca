"""Folders of models that only `transformers` can run, as runs of ours and back: see foreign.py.

The checkpoint's card holds the model's checked config.json under card["imported"]["foreign"]; stages hand it on.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
import transformers

from fledge import __version__
from fledge.core.checkpoint import (
    Checkpoint,
    canonical_json,
    fsync_folder,
    list_checkpoints,
    load_checkpoint,
    run_lock,
    save_checkpoint,
    write_atomically,
)
from fledge.core.log import say
from fledge.core.model import Head, ModelConfig
from fledge.interop.families import require_fit
from fledge.interop.foreign import ForeignModel, config_of, model_config, new_foreign, read_foreign, read_network
from fledge.interop.hf_import import template_source, token_names, tokenizer_bytes
from fledge.interop.tensors import INDEX, TensorReader, file_hashes, find_tensors, read_json
from fledge.text.chat_format import ChatFormat
from fledge.text.chat_template import Choice, derive
from fledge.text.tokenizer import Tokenizer

_SMALL = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
    INDEX,
)


def import_foreign(
    source: Path | str,
    out: Path | str,
    recipe: dict[str, Any],
    *,
    template: Choice = "model",
    context_tokens: int | None = None,
) -> Path:
    """Write the run folder `out` (one checkpoint, done.json) of a model that `transformers` runs; returns the checkpoint.

    The same import again does nothing. Raises ValueError naming the file, field or tensor that cannot be used.
    """
    folder, out = Path(source), Path(out)
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} has no config.json: name the folder of a Hugging Face model")
    fields, ignored = read_foreign(read_json(folder / "config.json"), str(folder / "config.json"))
    entries = find_tensors(folder)  # every header is checked before the library opens a file
    for name, entry in entries.items():
        TensorReader(entries).check(name, entry.shape)
    files = [p for name in _SMALL if (p := folder / name).exists()] + sorted({e.file for e in entries.values()})
    hashes = file_hashes(files)
    if (out / "done.json").exists() and (done := list_checkpoints(out)):
        if load_checkpoint(done[-1]).card["source"]["sha256"] != hashes:
            raise ValueError(f"{out} was imported from other bytes than {folder} holds now: choose another --out")
        return done[-1]
    config = model_config(config_of(fields), context_tokens)
    data, form = derive(tokenizer_bytes(folder), token_names(folder), template_source(folder), template)
    added = () if form is None else form.added
    tokens = Tokenizer(data, form).vocab_size
    require_fit(tokens - len(added), config.vocab_size, folder)
    network = read_network(folder, fields)
    rows = max(config.vocab_size, tokens)
    _grow(network, rows, added)
    model = ForeignModel(network, msgspec.structs.replace(config, vocab_size=rows))
    card = {
        "stage": "import",
        "parent": None,
        "model": msgspec.to_builtins(model.config),
        "recipe": recipe["recipe"],
        "data": {},
        "imported": {"family": fields["model_type"], "context_tokens": config.context_tokens,
                     "foreign": fields | {"vocab_size": rows}, "tokens": token_names(folder)},
        "source": {"path": str(folder), "sha256": hashes},
        "ignored": ignored,
        **({} if form is None else {"chat_format": msgspec.to_builtins(form)}),
        "fledge": __version__,
    }  # fmt: skip
    with run_lock(out):
        saved = save_checkpoint(out, 0, model=model.state_dict(), optimizer={}, state={}, card=card, tokenizer=data)
        write_atomically(out / "done.json", canonical_json({"step": 0}))
    return saved


@torch.no_grad()
def _grow(network: transformers.PreTrainedModel, rows: int, added: Sequence[int]) -> None:
    """Rows for new tokens; each begins as the mean of those before the first new one."""
    if not added:
        return
    if rows > network.get_input_embeddings().weight.shape[0]:
        network.resize_token_embeddings(rows, mean_resizing=False)
    for part in (network.get_input_embeddings(), network.get_output_embeddings()):
        part.weight[list(added)] = part.weight[: min(added)].mean(0)


def is_foreign(card: dict[str, Any]) -> bool:
    """Whether a checkpoint's card is of a model that `transformers` runs."""
    return "foreign" in card.get("imported", {})


def load_foreign(found: Checkpoint, head: Head) -> ForeignModel:
    """The model of a checkpoint; a head it does not have starts at zero. Says that it is slower.

    Raises ValueError where tensors do not fit this version of `transformers`.
    """
    fields, config = found.card["imported"]["foreign"], msgspec.convert(found.card["model"], ModelConfig)
    model = new_foreign(fields, config, head)
    tensors, wanted = found.model_tensors(), model.state_dict()
    if head != config.head:
        tensors = {n: t for n, t in tensors.items() if n not in ("value_head", "class_head")}
    fresh = {n for n in ("value_head", "class_head") if n in wanted and n not in tensors}
    wrong = (wanted.keys() - fresh) ^ tensors.keys()
    if wrong:
        raise ValueError(
            f"{found.path}: tensor {min(wrong)!r} does not fit {fields['model_type']} of transformers "
            f"{transformers.__version__}: use the version it was imported with, or import it again"
        )
    model.load_state_dict(tensors, strict=False)
    say(
        f"{found.path}: {fields['model_type']} is none of our families; `transformers` runs it, slower than our own code "
        "(answers several times, for they are written without a cache)"
    )
    return model


def export_foreign(found: Checkpoint, out: Path, dtype: str) -> int:
    """Write the new or empty folder `out` as `save_pretrained` does, with tokenizer and chat template; returns the number
    of tensors.

    dtype: of the weights, "auto" for float32. Raises ValueError where a weight is too large for it.
    """
    model, kind = load_foreign(found, "tokens"), torch.float32 if dtype == "auto" else getattr(torch, dtype)
    tensors = {n: t for n, t in model.state_dict().items() if t.is_floating_point() and n.startswith("network.")}
    for name, tensor in tensors.items():
        if not bool(tensor.to(kind).isfinite().all()):
            raise ValueError(f"{found.path}: {name!r} is too large for {dtype}: export with --dtype float32")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        model.network.to(kind).save_pretrained(temporary)
        _write_tokenizer(temporary, found, model.config)
        for path in temporary.iterdir():
            fsync_folder(path)  # a file's bytes are pushed to the disk the same way
        if out.exists():
            out.rmdir()
        os.rename(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_folder(out.resolve().parent)
    return len(tensors)


def _write_tokenizer(folder: Path, found: Checkpoint, config: ModelConfig) -> None:
    """tokenizer.json, its settings as they came, and the chat template. Answers end with eos_token."""
    held = found.card.get("chat_format")
    tokenizer = Tokenizer(found.files["tokenizer.json"], msgspec.convert(held, ChatFormat) if held else None)
    names = {k: v for k, v in found.card["imported"]["tokens"].items() if k.endswith("_token")}
    names |= {
        "eos_token": tokenizer.slow.id_to_token(tokenizer.end),
        "pad_token": tokenizer.slow.id_to_token(tokenizer.pad),
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.context_tokens,
        "clean_up_tokenization_spaces": False,
        **names,
    }
    (folder / "tokenizer.json").write_bytes(tokenizer.json)
    (folder / "tokenizer_config.json").write_bytes(msgspec.json.format(msgspec.json.encode(settings), indent=2))
    if tokenizer.format.template:
        (folder / "chat_template.jinja").write_text(tokenizer.format.template, "utf-8")
