"""`fledge import PATH --out RUN`: a Hugging Face model as a run; `fledge export RUN --to hf --out DIR`: the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from fledge.core.config import Settings
from fledge.core.log import say


class ModelImportOptions(Settings, frozen=True, kw_only=True):
    """Take a Hugging Face model: its folder becomes a run that every stage can start from."""

    path: str
    "Folder with config.json, *.safetensors and tokenizer.json; other files in it are not opened."
    out: str = ""
    "Run folder to write."
    template: Literal["model", "chatml", "none"] = "model"
    "model: the model's own chat template; chatml: ChatML, with control tokens added where absent; none: no chats."
    context_tokens: int | None = None
    "Longest sequence to train on and serve, in tokens; none: what the model was made for, often too long for training."
    backend: Literal["native", "transformers"] = "native"
    "native: the families we know; transformers: any causal model that library has, slower (see docs: other families)."
    dry: bool = False
    "Only say what would be read, kept and passed over."

    def problems(self) -> list[str]:
        found = [] if self.out or self.dry else ["out: required; set it with --out, or look first with --dry"]
        if self.context_tokens is not None and self.context_tokens < 1:
            found.append(f"context_tokens = {self.context_tokens}: must be at least 1")
        if self.dry and self.backend == "transformers":
            found.append("dry with backend = 'transformers': not possible; leave dry out")
        return found


def import_model(options: ModelImportOptions) -> Path | None:
    """Import, and say what was ignored; returns the checkpoint, None for a dry run."""
    from fledge.interop.families import remote_keys
    from fledge.interop.hf_import import find, import_run, plan, summary
    from fledge.stages.common import fix_recipe

    if options.backend == "transformers":
        return _import_foreign(options)
    found = find(options.path)
    planned = plan(found, options.template, options.context_tokens)
    lines = summary(found, planned)
    if options.dry:
        say("\n".join(lines))
        return None
    # what cannot be used is refused before there is a folder
    recipe = fix_recipe(Path(options.out), "import", options)
    if remote := remote_keys(found.reading.ignored):
        say(f"{options.path}: {', '.join(remote)} ignored: no code of a model is ever run")
    if rest := [key for key in found.reading.ignored if key not in remote]:
        say(f"{options.path}: fields of config.json not known to {found.reading.family}, ignored: {', '.join(rest)}")
    if found.passed_over:
        say(f"{options.path}: tensors that fledge has no use for, left out: {', '.join(found.passed_over)}")
    for note in () if planned.chat_format is None else planned.chat_format.notes:
        say(f"{options.path}: {note}")
    saved = import_run(found, planned, options.out, recipe)
    say(f"{options.out}: {found.reading.family}, {lines[1]}; train it with --from {options.out}")
    return saved


def _import_foreign(options: ModelImportOptions) -> Path:
    from fledge.core.checkpoint import load_checkpoint
    from fledge.interop.foreign_files import import_foreign
    from fledge.stages.common import fix_recipe

    out = Path(options.out)
    recipe = {"recipe": msgspec.to_builtins(options)}  # fixed once the folder has proved usable
    saved = import_foreign(options.path, out, recipe, template=options.template, context_tokens=options.context_tokens)
    fix_recipe(out, "import", options)
    card = load_checkpoint(saved).card
    if card["ignored"]:
        say(f"{options.path}: {', '.join(card['ignored'])} ignored: no code of a model is ever run")
    say(
        f"{options.out}: {card['imported']['family']}, run by `transformers`: every stage takes it, slower than a family of "
        f"ours; train it with --from {options.out}"
    )
    return saved


class ModelExportOptions(Settings, frozen=True, kw_only=True):
    """Write a model as a folder that transformers, vLLM and other tools open."""

    run: str
    "Run or checkpoint to export."
    out: str
    "New folder to write; for gguf a new file *.gguf, or a folder for model.gguf."
    to: Literal["hf", "gguf"] = "hf"
    "hf: config.json, safetensors, tokenizer.json, chat template; gguf: one file for llama.cpp."
    family: str | None = None
    "Family to write it as (llama, qwen3, ...); none: that of the imported model, else the plainest that can hold it."
    dtype: Literal["auto", "float32", "bfloat16", "float16", "q8_0"] = "auto"
    "Dtype of the weights; auto: that of the imported model, float32 for our own; q8_0 (8 bits) is for gguf."
    shard_bytes: int = 5_000_000_000
    "Largest file of weights, in bytes."

    def problems(self) -> list[str]:
        from fledge.interop.families import FAMILIES

        found = []
        if self.family is not None and self.family not in FAMILIES:
            found.append(f"family = {self.family!r}: must be one of {', '.join(FAMILIES)}")
        if self.shard_bytes < 1:
            found.append(f"shard_bytes = {self.shard_bytes}: must be at least 1")
        if self.to == "hf" and self.dtype == "q8_0":
            found.append("dtype = 'q8_0': only with --to gguf; take bfloat16 or float16")
        if self.to == "gguf" and self.family is not None:
            found.append(f"family = {self.family!r}: not with --to gguf, which takes the architecture that fits")
        return found


def export_model(options: ModelExportOptions) -> Path:
    """Export and say what was written; returns the folder, or the file of --to gguf."""
    if options.to == "gguf":
        return _export_gguf(options)
    from fledge.interop.hf_export import export

    written = export(
        options.run, options.out, family=options.family, dtype=options.dtype, shard_bytes=options.shard_bytes
    )
    say(f"{written.folder}: {written.family}, {written.tensors} tensors, {written.dtype}")
    if written.left_out:
        say(f"left out, for {written.family} has no place for it: {', '.join(written.left_out)}")
    return written.folder


def _export_gguf(options: ModelExportOptions) -> Path:
    from fledge.interop.gguf_export import export_gguf

    written = export_gguf(options.run, options.out, dtype=options.dtype)
    say(f"{written.file}: {written.architecture}, {written.tensors} tensors, {written.dtype}")
    for note in written.notes:
        say(f"{written.file}: {note}")
    if written.left_out:
        say(f"left out, for GGUF has no place for it: {', '.join(written.left_out)}")
    return written.file
