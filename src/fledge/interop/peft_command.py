"""Adapters of `peft` as runs and back: `fledge import PEFT --base RUN --out RUN`, `fledge export RUN --to peft`."""

from pathlib import Path

from fledge.core.config import Settings
from fledge.core.log import say


class PeftImportOptions(Settings, frozen=True, kw_only=True):
    """Take an adapter that peft made: its folder and a base model become a run."""

    path: str
    "Folder with adapter_config.json and adapter_model.safetensors."
    base: str
    "Run or checkpoint of the model it belongs to."
    out: str
    "Run folder to write."


def import_adapter(options: PeftImportOptions) -> Path:
    """Import and say what was read; returns the checkpoint. The same import again does nothing.

    Raises ValueError where the adapter is of no kind that fledge has, or does not fit the base.
    """
    from fledge.core.checkpoint import load_checkpoint
    from fledge.interop.peft_files import import_peft, read_adapter
    from fledge.stages.common import fix_recipe

    read = read_adapter(options.path, options.base)  # what cannot be used is refused before the folder is made
    recipe = fix_recipe(Path(options.out), "import", options)
    saved = import_peft(read, options.out, recipe)
    held = load_checkpoint(saved)
    count = sum(t.numel() for t in held.model_tensors().values())
    say(f"{options.out}: a {read.config.kind} adapter of {count:,} numbers on {held.card['adapter']['base']['path']}")
    return saved


class PeftExportOptions(Settings, frozen=True, kw_only=True):
    """Write an adapter for peft."""

    run: str
    "Run or checkpoint of an adapter (lora, dora, ia3, prefix or prompt)."
    out: str
    "New folder to write."
    base_name: str = ""
    "Name or folder of the exported base model, for adapter_config.json."


def export_adapter(options: PeftExportOptions) -> Path:
    """Export, and say what peft has no place for; returns the folder."""
    from fledge.interop.peft_files import write_peft

    left_out = write_peft(options.run, options.out, options.base_name)
    say(f"{options.out}: open it with peft.PeftModel.from_pretrained(base, {options.out!r})")
    if left_out:
        say(f"left out, for peft has no place for it: {', '.join(left_out)}")
    return Path(options.out)
