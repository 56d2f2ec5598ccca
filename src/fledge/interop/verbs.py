"""`fledge import` and `fledge export`: models and votes, in and out, under one verb each."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from fledge.core.config import Settings
from fledge.interop.command import ModelExportOptions, ModelImportOptions, export_model, import_model
from fledge.interop.peft_command import PeftExportOptions, PeftImportOptions, export_adapter, import_adapter


class ImportOptions(Settings, frozen=True, kw_only=True):
    """Take a Hugging Face model (PATH --out RUN), an adapter of peft (PATH --base RUN --out RUN), or votes (RUN FILES)."""

    path: str
    "Model: folder with config.json, *.safetensors and tokenizer.json. Adapter: peft's folder. Votes: the run they join."
    files: list[str] = []
    "Votes: files to read, JSONL, JSON or parquet."
    out: str | None = None
    "Model or adapter: run folder to write."
    base: str | None = None
    "Adapter: run or checkpoint of the model it belongs to."
    template: Literal["model", "chatml", "none"] = "model"
    "Model: its own chat template; chatml, with control tokens added where absent; or none, no chats."
    context_tokens: int | None = None
    "Model: longest sequence to train on and serve, in tokens; none: what it was made for."
    backend: Literal["native", "transformers"] = "native"
    "Model: native, the families we know; transformers, any causal model that library has, slower."
    dry: bool = False
    "Model: only say what would be read, kept and passed over."
    format: Literal["arena", "argilla"] = "arena"
    "Votes: arena or argilla."
    name: str = "arena"
    "Votes of arena: whose they are, for statistics."
    store: str | None = None
    "Votes: where they are kept, a path or postgresql://...; none: RUN/votes.sqlite3."

    def problems(self) -> list[str]:
        if self.files:
            given = [name for name in ("out", "base", "dry") if getattr(self, name)]
            return [f"{name}: belongs to importing a model; votes need RUN FILES only" for name in given]
        if self.base is not None:
            return [] if self.out and not self.dry else ["out: an adapter needs --base RUN and --out RUN, and no --dry"]
        if not self.out and not self.dry:
            return ["out: for a model, the run folder to write; for votes, name their files after the run"]
        return self.model().problems()

    def model(self) -> ModelImportOptions:
        return msgspec.convert(_shared(self, ModelImportOptions), ModelImportOptions)


def take(options: ImportOptions) -> Any:
    """Import a model, an adapter where its base is named, or votes where files are."""
    if options.base is not None:
        return import_adapter(msgspec.convert(_shared(options, PeftImportOptions), PeftImportOptions))
    if not options.files:
        return import_model(options.model())
    from fledge.feedback import export_command as votes

    given = _shared(options, votes.ImportOptions) | {"run": options.path}
    return votes.take(msgspec.convert(given, votes.ImportOptions))


class ExportOptions(Settings, frozen=True, kw_only=True):
    """Write a model for other programs (--to), or the votes of a run as data (--format)."""

    run: str
    "Run or checkpoint whose model is written, or run whose votes are."
    out: str
    "Model: new folder, or *.gguf. Votes: file; what it was made of stands beside it in OUT.export.json."
    to: Literal["hf", "gguf", "peft"] | None = None
    "Model: hf (transformers, vLLM) or gguf (llama.cpp). Adapter: peft."
    format: Literal["dpo", "pairs", "kto", "sft", "prompts", "argilla", "arena"] | None = None
    "Votes: dpo, pairs (dpo with ties, for `fledge reward`), kto, sft, prompts, argilla or arena."
    family: str | None = None
    "Model: family to write it as (llama, qwen3, ...); none: that of the imported model, else the plainest that fits."
    dtype: Literal["auto", "float32", "bfloat16", "float16", "q8_0"] = "auto"
    "Model: dtype of the weights; auto: that of the imported model, float32 for our own; q8_0 is for gguf."
    shard_bytes: int = 5_000_000_000
    "Model: largest file of weights, in bytes."
    base_name: str | None = None
    "Adapter: name or folder of the exported base model, for adapter_config.json."
    store: str | None = None
    "Votes: where they are, a path or postgresql://...; none: RUN/votes.sqlite3."
    after: int = 0
    "Votes: only those after this one, by its number."
    upto: int | None = None
    "Votes as they stood at this number; none: all there are."
    split: Literal["train", "test"] | None = None
    "Votes: train or test prompts only; one prompt in eight is test."
    people: list[str] = []
    "Votes: only those of these people, by id; none given: everybody's."

    def problems(self) -> list[str]:
        if (self.to is None) == (self.format is None):
            return ["to, format: set one of them: --to hf, gguf or peft for a model, --format dpo (and others) for votes"]
        if self.to == "peft":
            return []
        return (self.model() if self.to else self.votes()).problems()

    def model(self) -> ModelExportOptions:
        return msgspec.convert(_shared(self, ModelExportOptions), ModelExportOptions)

    def votes(self) -> Any:
        from fledge.feedback import export_command as votes

        return msgspec.convert(_shared(self, votes.ExportOptions), votes.ExportOptions)


def give(options: ExportOptions) -> Any:
    """Export a model, an adapter for peft, or votes where a format is named."""
    if options.to == "peft":
        return export_adapter(msgspec.convert(_shared(options, PeftExportOptions), PeftExportOptions))
    if options.to is not None:
        return export_model(options.model())
    from fledge.feedback import export_command as votes

    return votes.run(options.votes())


def _shared(options: Settings, kind: type[Settings]) -> dict[str, Any]:
    """The fields of `options` that are set and that a `kind` has, too."""
    names = {field.name for field in msgspec.structs.fields(kind)}
    given = msgspec.structs.asdict(options)
    return {name: value for name, value in given.items() if name in names and value is not None}
