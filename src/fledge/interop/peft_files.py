"""Adapters in the files of Hugging Face's `peft`: adapter_config.json and adapter_model.safetensors, both ways.

Our fused products are several modules there (q_proj, k_proj, v_proj in one `qkv`), whose adapters we keep apart anyway.
Prefix keys and values of layer l are columns 2l and 2l + 1 of `prompt_embeddings` (peft, PeftModel.get_prompt).
"""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from fledge import __version__
from fledge.core.adapters import MERGEABLE, AdapterConfig, products
from fledge.core.checkpoint import (
    Checkpoint,
    canonical_json,
    list_checkpoints,
    load_checkpoint,
    run_lock,
    save_checkpoint,
    write_atomically,
)
from fledge.core.durable import fsync_folder
from fledge.core.shape import ModelConfig
from fledge.interop.tensors import Entry, TensorReader, file_hashes, read_header, read_json, refuse_pickle, write_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MODULES = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip
_PARTS = {module.split(".")[1]: part for part, module in _MODULES.items()}
_TYPES = {"lora": "LORA", "dora": "LORA", "ia3": "IA3", "prefix": "PREFIX_TUNING", "prompt": "PROMPT_TUNING"}
_PREFIX = "base_model.model."

# Fields of adapter_config.json that change nothing about an adapter already trained, or are read below.
_PASSED = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type", "peft_type",
    "megatron_core", "qalora_group_size", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "init_ia3_weights", "init_weights", "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_kwargs",
    "tokenizer_name_or_path", "encoder_hidden_size", "ensure_weight_tying", "exclude_modules", "lora_dropout",
    "lora_alpha", "r", "target_modules", "feedforward_modules", "use_dora", "use_rslora", "num_virtual_tokens",
    "num_layers", "num_attention_heads", "token_dim", "num_transformer_submodules", "trainable_token_indices",
    "modules_to_save", "bias", "init_lora_weights",
}  # fmt: skip
_SAME = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian"), "num_transformer_submodules": (1, None)}


# ------------------------------------------------------------------------------------------- names of tensors


def _names(c: ModelConfig, config: AdapterConfig) -> dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """(their name, their shape, our shape) of every tensor that has a name of its own there.

    The keys and values of a prefix are one tensor there, see _flat_prefix().
    """
    found = {}

    def add(ours: str, theirs: str, *shapes: tuple[int, ...]) -> None:
        found[ours] = f"{_PREFIX}{theirs}", shapes[0], shapes[-1]

    for layer in range(c.layers):
        for name, product in products(c, config.parts).items():
            ours, block = f"adapter.layers.{layer}.{name}", f"model.layers.{layer}"
            for part, rows in product.rows.items():
                theirs, size = f"{block}.{_MODULES[part]}", rows.stop - rows.start
                if config.kind == "ia3":
                    count = product.inputs if part == "down" else size
                    add(
                        f"{ours}.factor.{part}",
                        f"{theirs}.ia3_l",
                        (1, count) if part == "down" else (count, 1),
                        (count,),
                    )
                    continue
                add(f"{ours}.a.{part}", f"{theirs}.lora_A.weight", (config.rank, product.inputs))
                add(f"{ours}.b.{part}", f"{theirs}.lora_B.weight", (size, config.rank))
                if config.kind == "dora":
                    add(f"{ours}.magnitude.{part}", f"{theirs}.lora_magnitude_vector", (size,))
    tables = {"embedding_rows": "model.embed_tokens"}
    tables |= {} if c.tied or c.head in ("reward", "class") else {"unembedding_rows": "lm_head"}
    for name, table in tables.items() if config.rows else ():
        theirs = f"{table}.token_adapter.trainable_tokens_delta"
        add(f"adapter.{name}", theirs, (len(config.rows), c.width))
    if c.head in ("reward", "class"):
        rows = 1 if c.head == "reward" else c.classes
        add("value_head" if c.head == "reward" else "class_head", "score.weight", (rows, c.width))
    if config.kind == "prompt":
        found["adapter.prompt"] = "prompt_embeddings", *[(config.virtual_tokens, c.width)] * 2
    return found


def _flat_prefix(tensors: dict[str, Tensor], layers: int) -> Tensor:
    """[n, 2 L K E] of the keys and values [K,n,E] of every layer."""
    columns = []
    for layer in range(layers):
        for what in ("keys", "values"):
            columns.append(tensors[f"adapter.layers.{layer}.prefix.{what}"].transpose(0, 1).flatten(1))
    return torch.cat(columns, 1)


def _split_prefix(flat: Tensor, layers: int, heads: int) -> dict[str, Tensor]:
    """The inverse of _flat_prefix()."""
    found = {}
    for column, part in enumerate(flat.chunk(2 * layers, 1)):
        name = f"adapter.layers.{column // 2}.prefix.{('keys', 'values')[column % 2]}"
        found[name] = part.unflatten(1, (heads, -1)).transpose(0, 1).contiguous()
    return found


# ------------------------------------------------------------------------------------------------------- export


def write_peft(run: Path | str, out: Path | str, base_name: str = "") -> list[str]:
    """Write the adapter of `run` as a folder that peft opens, and return the names of tensors it has no place for.

    base_name: the exported base model, path or name, for adapter_config.json. Raises ValueError where `run` holds no
    adapter, peft has none of its kind, or `out` holds something.
    """
    found, out = load_checkpoint(run), Path(out)
    if "adapter" not in found.card:
        raise ValueError(f"{found.path} holds a whole model: export it with --to hf, peft holds adapters")
    config = msgspec.convert(found.card["adapter"]["config"], AdapterConfig)
    c = msgspec.convert(found.card["model"], ModelConfig).resolved()
    if config.kind not in _TYPES:
        way = "merge it and export the whole model" if config.kind == "bitfit" else "it works in fledge only"
        raise ValueError(f"{found.path} holds a {config.kind} adapter, which peft does not have: {way}")
    if config.rows and config.kind not in ("lora", "dora"):
        raise ValueError(
            f"{found.path} trains embeddings of {len(config.rows)} tokens, which peft holds beside lora and dora only: train "
            "it on a model that knows its control tokens, or with --adapter.new_tokens []"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} holds something: name a new folder, or empty that one")
    tensors, names = found.model_tensors(), _names(c, config)
    written = {theirs: tensors[own].reshape(shape).contiguous() for own, (theirs, shape, _) in names.items()}
    placed = set(names)
    if config.kind == "prefix":
        written["prompt_embeddings"] = _flat_prefix(tensors, c.layers)
        placed |= {n for n in tensors if ".prefix." in n}
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        write_file(written, temporary / WEIGHTS)
        text = json.dumps(_config(c, config, base_name), indent=2, sort_keys=True)
        (temporary / CONFIG).write_text(text + "\n", "utf-8")
        for path in temporary.iterdir():
            fsync_folder(path)  # a file's bytes are pushed to the disk the same way
        if out.exists():
            out.rmdir()
        os.rename(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return sorted(tensors.keys() - placed)


def _config(c: ModelConfig, config: AdapterConfig, base_name: str) -> dict[str, Any]:
    """adapter_config.json."""
    scored = c.head in ("reward", "class")
    common = {
        "peft_type": _TYPES[config.kind], "task_type": "SEQ_CLS" if scored else "CAUSAL_LM", "inference_mode": True,
        "base_model_name_or_path": base_name or None,
    }  # fmt: skip
    if config.kind in ("prefix", "prompt"):
        keys = c.kv_heads * c.head_width
        prefix = config.kind == "prefix"
        return common | {
            "num_virtual_tokens": config.virtual_tokens, "num_layers": c.layers, "num_transformer_submodules": 1,
            "num_attention_heads": c.kv_heads if prefix else c.heads, "token_dim": keys if prefix else c.width,
            **({"encoder_hidden_size": keys, "prefix_projection": False} if prefix else {}),
        }  # fmt: skip
    modules = [_MODULES[part].split(".")[1] for part in config.parts]
    common |= {"target_modules": modules, "modules_to_save": ["score"] if scored else None}
    if config.kind == "ia3":
        return common | {"feedforward_modules": ["down_proj"] if "down" in config.parts else []}
    rows = {"embed_tokens": config.rows, "lm_head": config.rows}
    return common | {
        "r": config.rank, "lora_alpha": config.scale * config.rank, "lora_dropout": 0.0, "bias": "none",
        "use_dora": config.kind == "dora",
        "trainable_token_indices": None if not config.rows else config.rows if c.tied else rows,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------- import


def read_config(folder: Path) -> AdapterConfig:
    """adapter_config.json and the names in adapter_model.safetensors as our settings.

    Raises ValueError naming the field or tensor that no adapter of ours can hold.
    """
    raw, place = read_json(folder / CONFIG), folder / CONFIG
    kind = {v: k for k, v in _TYPES.items() if k != "dora"}.get(raw.get("peft_type"))
    if kind is None:
        raise ValueError(
            f"{place}: peft_type = {raw.get('peft_type')!r}: known are {', '.join(sorted({*_TYPES.values()}))}"
        )
    for key, value in raw.items():
        if key not in _PASSED and value not in (None, False, [], {}, ""):
            raise ValueError(
                f"{place}: {key} = {value!r} is not supported: merge the adapter with peft, import the result"
            )
        if value not in _SAME.get(key, (value,)):
            raise ValueError(f"{place}: {key} = {value!r}: only {_SAME[key]} is supported; merge it with peft instead")
    if kind in ("prefix", "prompt"):
        return AdapterConfig(kind=kind, virtual_tokens=raw["num_virtual_tokens"])
    parts = _parts_in(folder, kind)
    if kind == "ia3":
        if ("down" in parts) != ("down_proj" in (raw.get("feedforward_modules") or [])):
            raise ValueError(
                f"{place}: feedforward_modules = {raw.get('feedforward_modules')}: must be down_proj alone"
            )
        return AdapterConfig(kind="ia3", targets=parts)
    rank, alpha = raw["r"], float(raw["lora_alpha"])
    ids = raw.get("trainable_token_indices") or []
    return AdapterConfig(
        kind="dora" if raw.get("use_dora") else "lora", rank=rank, targets=parts,
        alpha=alpha * math.sqrt(rank) if raw.get("use_rslora") else alpha,
        new_tokens=ids if isinstance(ids, list) else ids.get("embed_tokens", []),
    )  # fmt: skip


def _parts_in(folder: Path, kind: str) -> list[str]:
    """Which products the tensors of the file adapt: target_modules may be a pattern, the names are plain."""
    ending = {"ia3": "ia3_l"}.get(kind, "lora_A.weight")
    layers: dict[str, set[str]] = {}
    for name in _entries(folder):
        words = name.removeprefix(f"{_PREFIX}model.layers.").split(".")
        if not name.endswith(ending):
            continue
        if not name.startswith(f"{_PREFIX}model.layers.") or words[2] not in _PARTS:
            raise ValueError(f"{folder / WEIGHTS}: tensor {name!r} adapts no product of ours ({', '.join(_PARTS)})")
        layers.setdefault(words[0], set()).add(_PARTS[words[2]])
    kinds = {frozenset(parts) for parts in layers.values()}
    if len(kinds) != 1:
        raise ValueError(
            f"{folder / WEIGHTS}: layers are adapted in {len(kinds)} ways; ours are all alike: merge it with peft"
        )
    (parts,) = kinds
    return [part for part in _MODULES if part in parts]


def _entries(folder: Path) -> dict[str, Entry]:
    """Name -> Entry of every tensor, its header checked."""
    if not (folder / WEIGHTS).exists():
        for path in sorted(folder.iterdir()):
            refuse_pickle(path)
        raise ValueError(f"{folder} has no {WEIGHTS}: name the folder of a peft adapter")
    return read_header(folder / WEIGHTS)


def read_tensors(folder: Path, c: ModelConfig, config: AdapterConfig) -> dict[str, Tensor]:
    """Our tensors of a peft folder, float32. Raises ValueError naming what is missing, left over or not finite."""
    entries = _entries(folder)
    reader, names = TensorReader(entries), _names(c, config)
    found = {own: reader.read(theirs, shape).reshape(ours) for own, (theirs, shape, ours) in names.items()}
    used = {theirs for theirs, *_ in names.values()}
    if config.kind == "prefix":
        flat = reader.read("prompt_embeddings", (config.virtual_tokens, 2 * c.layers * c.kv_heads * c.head_width))
        found, used = found | _split_prefix(flat, c.layers, c.kv_heads), used | {"prompt_embeddings"}
    if left := sorted(entries.keys() - used):
        raise ValueError(
            f"{folder / WEIGHTS}: tensor {left[0]!r} has no place in this base, nor {len(left) - 1} others"
        )
    return found


class ReadAdapter(NamedTuple):
    """A peft folder and the base it was found to fit."""

    folder: Path
    base: Checkpoint
    model: ModelConfig  # the base's, with the head that the adapter was trained for
    config: AdapterConfig
    tensors: dict[str, Tensor]


def read_adapter(folder: Path | str, base: Path | str) -> ReadAdapter:
    """Read a peft folder for the run `base`. Raises ValueError where it cannot be used, or does not fit."""
    folder, below = Path(folder), load_checkpoint(base)
    under = below.card.get("adapter")
    if under and under["config"]["kind"] not in MERGEABLE:
        raise ValueError(f"{below.path} holds an adapter that cannot be merged: name a whole model as base")
    if not (folder / CONFIG).exists():
        raise ValueError(f"{folder} has no {CONFIG}: name the folder of a peft adapter")
    c = msgspec.convert(below.card["model"], ModelConfig).resolved()
    if read_json(folder / CONFIG).get("task_type") == "SEQ_CLS":
        c = msgspec.structs.replace(c, head="reward")
    config = read_config(folder)
    if problems := config.problems():
        raise ValueError(f"{folder / CONFIG}: " + "; ".join(problems))
    return ReadAdapter(folder, below, c, config, read_tensors(folder, c, config))


def import_peft(read: ReadAdapter, out: Path | str, recipe: dict[str, Any]) -> Path:
    """Write the run folder `out` and return its checkpoint; the same import again does nothing.

    recipe: what `fix_recipe` gave. Raises ValueError where `out` was made of other bytes.
    """
    out, below = Path(out), read.base
    hashes = file_hashes([read.folder / CONFIG, read.folder / WEIGHTS])
    origin = {"id": below.id, "path": str(below.path)}
    if (out / "done.json").exists() and (done := list_checkpoints(out)):
        held = load_checkpoint(done[-1]).card
        if held["source"]["sha256"] != hashes or held["parent"] != origin:
            raise ValueError(f"{out} was imported from other files than {read.folder} holds now: choose another --out")
        return done[-1]
    card = {
        "stage": "import",
        "parent": origin,
        "model": msgspec.to_builtins(read.model),
        "adapter": {"config": msgspec.to_builtins(read.config), "base": origin},
        "recipe": recipe["recipe"],
        "data": {},
        "source": {"path": str(read.folder), "sha256": hashes},
        **{name: below.card[name] for name in ("chat_format",) if name in below.card},
        "fledge": __version__,
    }
    with run_lock(out):
        saved = save_checkpoint(
            out, 0, model=read.tensors, optimizer={}, state={}, card=card, tokenizer=below.files["tokenizer.json"]
        )
        write_atomically(out / "done.json", canonical_json({"step": 0}))
    return saved
