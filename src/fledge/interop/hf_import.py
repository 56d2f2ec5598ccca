"""A Hugging Face model's folder becomes a run folder with one checkpoint, which every stage takes as its parent.

Read: config.json by an allow-list, safetensors, tokenizer.json, the chat template as text. Nothing else of the folder
is opened; no code of it runs in this process.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from fledge import __version__
from fledge.core.checkpoint import (
    canonical_json,
    list_checkpoints,
    load_checkpoint,
    run_lock,
    save_checkpoint,
    write_atomically,
)
from fledge.core.model import ModelConfig
from fledge.interop.families import Reading, read_config, require_fit
from fledge.interop.tensor_names import Slot, copies, current_name, passed_over, slots
from fledge.interop.tensors import (
    INDEX,
    Entry,
    TensorReader,
    file_hashes,
    find_tensors,
    read_json,
    refuse_pickle,
)
from fledge.text.chat_format import ChatFormat
from fledge.text.chat_template import Choice, derive
from fledge.text.tokenizer import Tokenizer

TOKENIZER_BYTES = 256 * 1024 * 1024  # the largest in use has 35 MB
TEMPLATE_BYTES = 1024 * 1024
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Found(msgspec.Struct, frozen=True):
    """A folder that has been checked as far as it can be without reading a weight."""

    folder: Path
    reading: Reading  # its model: with the dtype that most weights have
    reader: TensorReader
    slots: list[Slot]
    dtypes: dict[str, str]  # of the weights that have another dtype than most, by their names
    passed_over: list[str]  # tensors that no model of ours has
    tokenizer: bytes
    names: dict[str, Any]  # of the control tokens, and their ids, as the folder's small files give them
    template: str | None

    @property
    def files(self) -> list[Path]:
        """What an import depends on."""
        small = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
        listed = [self.folder / name for name in (*small, "chat_template.jinja", INDEX)]
        return [p for p in listed if p.exists()] + sorted({e.file for e in self.reader.entries.values()})


def find(source: Path | str) -> Found:
    """Check a model's folder: family, every tensor's name, shape and dtype, the tokenizer's size.

    Raises ValueError naming the file, field or tensor that cannot be used.
    """
    folder = Path(source)
    if folder.is_file():
        refuse_pickle(folder)
        raise ValueError(f"{folder} is a file: name the folder that holds config.json and *.safetensors")
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is no folder: a model of the Hub is downloaded first, for example with "
            f"`hf download {source} --local-dir model`"
        )
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} has no config.json: name the folder of a Hugging Face model")
    reading = read_config(read_json(folder / "config.json"), str(folder / "config.json"))
    entries = {current_name(name): entry for name, entry in find_tensors(folder).items()}
    wanted, left_over = _match(folder, reading, entries)
    dtypes = {s.theirs: _DTYPES[entries[s.theirs].dtype] for s in wanted}
    main = Counter(dtypes.values()).most_common(1)[0][0]
    reading = reading._replace(model=msgspec.structs.replace(reading.model.resolved(), dtype=main))
    return Found(
        folder,
        reading,
        TensorReader(entries),
        wanted,
        {name: dtype for name, dtype in dtypes.items() if dtype != main},
        left_over,
        tokenizer_bytes(folder),
        token_names(folder),
        template_source(folder),
    )


def _match(folder: Path, reading: Reading, entries: dict[str, Entry]) -> tuple[list[Slot], list[str]]:
    """(slots, tensors passed over) where file and family agree on every name, shape and dtype."""
    wanted = slots(reading.model)
    known, twice = {s.theirs for s in wanted}, copies(reading.model)
    if lost := [s for s in wanted if s.theirs not in entries]:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise ValueError(
            f"{folder}: tensor {lost[0].theirs!r} {lost[0].shape}{more} is missing: {reading.family} with this "
            "config.json has it, so the checkpoint is not whole, or config.json belongs to another one"
        )
    strange = [n for n in entries if n not in known and n not in twice and not passed_over(reading.model, n)]
    if strange:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise ValueError(
            f"{entries[strange[0]].file}: tensor {strange[0]!r}{more} is not part of {reading.family} with this "
            "config.json, so config.json belongs to another checkpoint, or parts of the model would be lost"
        )
    for slot in wanted:
        TensorReader(entries).check(slot.theirs, slot.shape)
    return wanted, [name for name in entries if name not in known and name not in twice]


def tokenizer_bytes(folder: Path) -> bytes:
    path = folder / "tokenizer.json"
    if not path.exists():
        raise ValueError(
            f"{folder} has no tokenizer.json: write one with `transformers`, AutoTokenizer.from_pretrained(folder)"
            ".save_pretrained(folder); tokenizer.model and vocab files are not read here"
        )
    if (size := path.stat().st_size) > TOKENIZER_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, at most {TOKENIZER_BYTES:,} are read: it is no such file")
    return path.read_bytes()


def token_names(folder: Path) -> dict[str, Any]:
    """Texts and ids of the control tokens: bos_token, eos_token, ..., and eos_token_id as config.json gives it."""
    found: dict[str, Any] = {}
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.exists() else {}
    for key in ("bos_token", "eos_token", "pad_token", "mask_token", "cls_token", "sep_token", "unk_token"):
        value = settings.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            found[key] = value
    for name in ("config.json", "generation_config.json"):  # the latter wins: it is what people generate with
        held = read_json(folder / name) if (folder / name).exists() else {}
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = held.get(key)
            if value is None:
                continue
            if not all(type(i) is int for i in (value if isinstance(value, list) else [value])):
                raise ValueError(f"{folder / name}: {key} = {value!r}: must be a token's id, or several")
            found[key] = value
    return found


def template_source(folder: Path) -> str | None:
    """The chat template's source, from its own file or from tokenizer_config.json; None for a base model."""
    path = folder / "chat_template.jinja"
    if path.exists():
        if path.stat().st_size > TEMPLATE_BYTES:
            raise ValueError(f"{path} has {path.stat().st_size:,} bytes: no chat template is so long")
        return path.read_text("utf-8")
    path = folder / "tokenizer_config.json"
    held = read_json(path).get("chat_template") if path.exists() else None
    if isinstance(held, list):  # several by name
        named = {t.get("name"): t.get("template") for t in held if isinstance(t, dict)}
        held = named.get("default")
    if held is not None and (not isinstance(held, str) or len(held) > TEMPLATE_BYTES):
        raise ValueError(
            f"{path}: chat_template is no text of at most {TEMPLATE_BYTES:,} characters: mend or remove it"
        )
    return held


def read_weights(found: Found, added: Sequence[int] = ()) -> dict[str, Tensor]:
    """Our tensors by name, float32. added: ids of new tokens; their rows are the mean of those before.

    The mean gives a new token no more than an average share (Hewitt 2021, "Initializing new word embeddings"). Raises
    ValueError for values that are not finite, and for a second copy that is not equal.
    """
    tensors: dict[str, Tensor] = {}
    whole: dict[str, int] = {}
    for slot in found.slots:
        whole[slot.ours] = max(whole.get(slot.ours, 0), slot.rows.stop if slot.rows else 0)
    for slot in found.slots:
        data = found.reader.read(slot.theirs, slot.shape)
        if slot.rows is None:
            tensors[slot.ours] = data
            continue
        if slot.ours not in tensors:
            tensors[slot.ours] = torch.empty(whole[slot.ours], *slot.shape[1:])
        tensors[slot.ours][slot.rows] = data
    theirs = {slot.theirs: slot.ours for slot in found.slots}
    for copy, original in copies(found.reading.model).items():
        if copy in found.reader.entries:
            ours = tensors[theirs[original]]
            if not torch.equal(found.reader.read(copy, tuple(ours.shape)), ours):
                raise ValueError(
                    f"{found.folder}: tensors {copy!r} and {original!r} differ, config.json says that they are one "
                    "(tie_word_embeddings): correct the field, or use another copy of the model"
                )
    for name in ("embedding", "unembedding", "logit_bias") if added else ():
        if name in tensors:
            old, first = tensors[name], min(added)
            grown = old.new_empty(max(len(old), max(added) + 1), *old.shape[1:])
            grown[: len(old)] = old
            grown[list(added)] = old[:first].mean(0)
            tensors[name] = grown
    return tensors


class Plan(msgspec.Struct, frozen=True):
    """What a run will hold, decided without reading a weight."""

    model: ModelConfig
    tokenizer: bytes
    chat_format: ChatFormat | None  # None: tokenizer and template are our own

    @property
    def added(self) -> tuple[int, ...]:
        """Ids of tokens that the model does not know yet."""
        return () if self.chat_format is None else self.chat_format.added


def plan(found: Found, template: Choice = "model", context_tokens: int | None = None) -> Plan:
    """template: as for `derive`; context_tokens: a shorter context than the model was made for, None keeps that.

    Raises ValueError where the chat template cannot be used, or tokenizer and embedding do not fit.
    """
    model = found.reading.model
    made = Plan(model, *derive(found.tokenizer, found.names, found.template, template))
    tokens = Tokenizer(made.tokenizer, made.chat_format).vocab_size
    require_fit(tokens - len(made.added), model.vocab_size, found.folder)
    sizes = {"vocab_size": max(model.vocab_size, tokens), "context_tokens": _context(found, context_tokens)}
    return msgspec.structs.replace(made, model=msgspec.structs.replace(model, **sizes))


def import_run(found: Found, planned: Plan, out: Path | str, recipe: dict[str, Any]) -> Path:
    """Write the run folder `out` (one checkpoint, done.json) and return the checkpoint. recipe: what `fix_recipe` gave.

    The same import again does nothing. Raises ValueError where `out` was made of other bytes.
    """
    out = Path(out)
    hashes = file_hashes(found.files)
    if (out / "done.json").exists() and (done := list_checkpoints(out)):
        if load_checkpoint(done[-1]).card["source"]["sha256"] != hashes:
            raise ValueError(f"{out} was imported from other bytes than {found.folder} holds now: choose another --out")
        return done[-1]
    card = {
        "stage": "import",
        "parent": None,
        "model": msgspec.to_builtins(planned.model),
        "recipe": recipe["recipe"],
        "data": {},
        "imported": {  # what an export says again, of this model and of those trained from it
            "family": found.reading.family,
            "context_tokens": found.reading.model.context_tokens,
            "tokens": found.names,
        },
        "source": {"path": str(found.folder), "sha256": hashes},
        "ignored": found.reading.ignored,
        "passed_over": found.passed_over,
        "dtypes": found.dtypes,
        **({} if planned.chat_format is None else {"chat_format": msgspec.to_builtins(planned.chat_format)}),
        "fledge": __version__,
    }
    with run_lock(out):
        tensors = read_weights(found, planned.added)
        saved = save_checkpoint(out, 0, model=tensors, optimizer={}, state={}, card=card, tokenizer=planned.tokenizer)
        write_atomically(out / "done.json", canonical_json({"step": 0}))
    return saved


def _context(found: Found, wish: int | None) -> int:
    """Longest sequence of the run, in tokens."""
    model = found.reading.model
    if wish is None or wish == model.context_tokens:
        return model.context_tokens
    if model.architecture == "bert" or wish > model.context_tokens:
        raise ValueError(
            f"context_tokens = {wish}: {found.folder} was made for {model.context_tokens}"
            + (", and its positions are learned" if model.architecture == "bert" else ": it can only be shortened")
        )
    return wish


def summary(found: Found, planned: Plan) -> list[str]:
    """What an import reads, keeps and passes over, in lines for people."""
    model, names, form = planned.model, (p.name for p in found.files), planned.chat_format
    size = sum(e.end - e.begin for e in found.reader.entries.values())
    lines = [
        f"{found.folder}: {found.reading.family}, gives {model.head}; read: {', '.join(names)}",
        f"{model.parameter_count():,} parameters ({size / 1e6:.1f} MB, {model.dtype}): {model.layers} layers, width "
        f"{model.width}, {model.heads} heads of {model.head_width} on {model.kv_heads}, vocabulary {model.vocab_size}, "
        f"context {model.context_tokens}",
        "conversations: "
        + ("our own form" if form is None else {"none": "none"}.get(form.name, f"by its {form.name}")),
    ]
    lines += [] if form is None else list(form.notes)
    lines += [f"tensor {name} is {dtype}" for name, dtype in found.dtypes.items()]
    if found.reading.ignored:
        lines.append(f"config.json, ignored: {', '.join(found.reading.ignored)}")
    if found.passed_over:
        lines.append(f"tensors left out: {', '.join(found.passed_over)}")
    others = sorted(p.name for p in found.folder.iterdir() if p not in found.files)
    return lines + ([f"not opened: {', '.join(others)}"] if others else [])
