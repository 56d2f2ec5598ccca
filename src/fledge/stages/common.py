"""What every stage does around the loop: open the parent, fix the recipe, time the work, show it, train."""

import copy
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from fledge import __version__
from fledge.core import native
from fledge.core.adapters import AdapterConfig
from fledge.core.adapting import Reference, attach, can_merge, fold, load_trained, trained_tensors
from fledge.core.batch import Source
from fledge.core.checkpoint import Checkpoint, canonical_json, list_checkpoints, load_checkpoint, write_atomically
from fledge.core.config import TrainConfig, differences
from fledge.core.encoder import build_model
from fledge.core.log import Bar, say
from fledge.core.model import ModelConfig, Transformer
from fledge.core.objectives import Objective
from fledge.core.optim import Optimizer
from fledge.core.runtime import choose_device, choose_dtype, release_memory, set_threads
from fledge.core.train import Hook, StepEvent, train
from fledge.stages.samples import Prompt, Samples
from fledge.stages.tracking import remember, tracked
from fledge.text.chat_format import ChatFormat
from fledge.text.sources import MaskedSource
from fledge.text.tokenizer import Tokenizer

_TIMED_STEPS = 20


class Parent(NamedTuple):
    """A model to start from, as its checkpoint holds it."""

    model: Transformer
    tokenizer: Tokenizer
    id: str
    path: Path
    card: dict[str, Any]
    base: dict[str, str] | None = None  # what the adapter beside the model sits on; None where there is no adapter

    def reference(self) -> dict[str, str]:
        """How a child's card names it."""
        return {"id": self.id, "path": str(self.path)}


def open_model(path: Path | str, *, head: str = "tokens", device: str = "auto", precision: str = "auto") -> Parent:
    """Load a checkpoint (verified); `head` swaps what the model gives, new heads start at zero.

    A checkpoint of an adapter opens its base too and becomes part of its weights where it can, else `model.adapter`.
    Raises ValueError when the tokenizer does not fit the embedding, and where an adapter's base is gone.
    """
    found = load_checkpoint(path)
    if "adapter" in found.card:
        return _open_on_base(found, head, device, precision)
    config = msgspec.convert(found.card["model"], ModelConfig)
    tokenizer = tokenizer_of(found)
    padded = tokenizer.chat_format is not None and tokenizer.vocab_size < config.vocab_size  # as imported models are
    if tokenizer.vocab_size != config.vocab_size and not padded:
        raise ValueError(
            f"{found.path}: the tokenizer has {tokenizer.vocab_size} tokens, the embedding {config.vocab_size} rows; "
            "use the checkpoint with the tokenizer it was trained with"
        )
    if "foreign" in found.card.get("imported", {}):
        return _open_foreign(found, tokenizer, head, device, precision)
    model = build_model(msgspec.structs.replace(config, head=head))
    tensors = found.model_tensors()
    if config.architecture == "bert" and head != config.head:  # its other head has layers that cannot start at zero
        tensors = model.initialise(0).state_dict() | tensors
    fresh = {"value_head", "class_head"} if head != config.head else set()
    for name in fresh & set(dict(model.named_parameters())):
        tensors[name] = torch.zeros_like(model.get_parameter(name))
    wanted = {n for n, _ in model.named_parameters()}
    model.load_state_dict({n: t for n, t in tensors.items() if n in wanted})
    where = choose_device(device)
    model.to(where).eval()
    model.compute_dtype = choose_dtype(precision, where)
    return Parent(model, tokenizer, found.id, found.path, found.card)


def _open_foreign(found: Checkpoint, tokenizer: Tokenizer, head: str, device: str, precision: str) -> Parent:
    """open_model() of a model that is none of our families."""
    from fledge.interop.foreign_files import load_foreign  # it needs transformers, nothing else here does

    model, where = load_foreign(found, head), choose_device(device)
    model.to(where).eval()
    model.compute_dtype = choose_dtype(precision, where)
    return Parent(model, tokenizer, found.id, found.path, found.card)


def tokenizer_of(found: Checkpoint) -> Tokenizer:
    """The tokenizer of a checkpoint, an imported one with the chat format that the card holds."""
    held = found.card.get("chat_format")
    return Tokenizer(found.files["tokenizer.json"], None if held is None else msgspec.convert(held, ChatFormat))


def _base_folder(found: Checkpoint) -> Path:
    """Where the base of an adapter lies: as its card says, or in a run beside the adapter's, both having moved."""
    base = found.card["adapter"]["base"]
    folder = Path(base["path"])
    beside = found.path.parent.parent.parent / Path(*folder.parts[-3:])  # run/checkpoints/step-N
    for candidate in (folder, beside):
        if (candidate / "MANIFEST.json").exists():
            return candidate
    raise ValueError(
        f"{found.path} is an adapter on {folder} ({base['id'][:12]}), which is gone; it is not {beside} either: put the "
        "base back, it holds the weights"
    )


def _open_on_base(found: Checkpoint, head: str, device: str, precision: str) -> Parent:
    """open_model() of an adapter's checkpoint."""
    held, folder = found.card["adapter"], _base_folder(found)
    opened = open_model(folder, head=head, device=device, precision=precision)
    if opened.id != held["base"]["id"]:
        raise ValueError(
            f"{found.path} is an adapter on {folder} with the weights {held['base']['id'][:12]}, there are now "
            f"{opened.id[:12]}: put the base back as it was"
        )
    if opened.model.adapter is not None:
        raise ValueError(f"{found.path} is an adapter on {folder}, which is one that cannot be merged: use it alone")
    model = attach(opened.model, msgspec.convert(held["config"], AdapterConfig))
    tensors = found.model_tensors()
    of_heads = {"value_head", "class_head"}
    stays = trained_tensors(model) if head != found.card["model"]["head"] else {}
    tensors = {n: t for n, t in tensors.items() if not (stays and n in of_heads)}
    load_trained(model, tensors | {n: t for n, t in stays.items() if n in of_heads})
    base = held["base"]
    if can_merge(model):
        fold(model)
        base = None
    return Parent(model.eval(), tokenizer_of(found), found.id, found.path, found.card, base)


def _unseen(parent: Parent) -> list[int]:
    """Control tokens that this model has read nowhere: their embeddings are as they were drawn, frozen they would stay so."""
    tokenizer = parent.tokenizer
    if parent.card["stage"] == "pretrain" and tokenizer.chat_format is None:
        return sorted((tokenizer.system, tokenizer.user, tokenizer.assistant, tokenizer.end))
    return sorted(tokenizer.format.added) if parent.card["stage"] == "import" else []


def adapted(parent: Parent, config: AdapterConfig | None, seed: int) -> tuple[Parent, Reference | None]:
    """The parent with the adapter that a recipe asks for, and beside it the model as it is before training.

    The parent alone and None where no adapter is asked for. An adapter that could not become part of the parent's weights
    is trained on, by the settings it has; raises ValueError as check_adapter().
    """
    check_adapter(parent, config)
    if config is None:
        return parent, None
    model = parent.model
    if parent.base is None:
        if config.new_tokens is None:
            config = msgspec.structs.replace(config, new_tokens=_unseen(parent))
        _quantise_base(attach(model, config, seed), config)
        return parent._replace(base=parent.reference()), Reference(model)
    _quantise_base(model, model.adapter.config)
    return parent, Reference(model, began_with=True)


def check_adapter(parent: Parent, config: AdapterConfig | None) -> None:
    """Raise ValueError where the parent holds an adapter that is no part of its weights and others are asked for."""
    if parent.base is None:
        return
    there = parent.model.adapter.config
    if config is None:
        raise ValueError(
            f"{parent.path} holds a {there.kind} adapter, which cannot become part of the weights: train it further "
            f"with --adapter {there.kind}, or start from its base {parent.base['path']}"
        )
    wanted = config if config.new_tokens is not None else msgspec.structs.replace(config, new_tokens=there.rows)
    if changed := differences(there, wanted):
        raise ValueError(
            f"{parent.path} holds an adapter that is trained further as it is, but it differs in\n  "
            + "\n  ".join(changed)
            + f"\nGive it the same settings, or start from its base {parent.base['path']}"
        )


def _quantise_base(model: Transformer, config: AdapterConfig) -> None:
    """The frozen weights in as many bits as the recipe wants. What is trained so is opened on the base's own weights."""
    if config.base_bits is not None:
        from fledge.interop.quantised import quantise  # it needs torchao, nothing else here does

        quantise(model, config.base_bits)


def read_recipe(run: Path) -> dict[str, Any]:
    """{"stage": .., "recipe": ..} of a run. Raises ValueError naming the file where it is damaged."""
    path = run / "recipe.json"
    try:
        held = msgspec.json.decode(path.read_bytes())
        if isinstance(held["stage"], str) and isinstance(held["recipe"]["out"], str):
            return held
        error = "stage and recipe.out are not text"
    except (ValueError, KeyError, TypeError) as caught:
        error = str(caught)
    raise ValueError(f"{path} is damaged ({error}): restore it, or start the stage again in another folder")


def fix_recipe(out: Path, stage: str, recipe: msgspec.Struct) -> dict[str, Any]:
    """Write the recipe beside its run, or refuse a folder that holds another one, listing the differences."""
    wanted = {"stage": stage, "recipe": msgspec.to_builtins(recipe)}
    path = out / "recipe.json"
    if path.exists():
        if changed := differences(read_recipe(out), wanted):
            raise ValueError(
                f"{out} holds another run; it differs in\n  "
                + "\n  ".join(changed)
                + f"\nChoose another --out, or `fledge resume {out}` to continue the one there"
            )
    else:
        try:
            write_atomically(path, canonical_json(wanted))
        except OSError as error:
            raise OSError(
                error.errno, f"cannot write to {out}: {error.strerror}; choose another --out or make it writable"
            ) from error
    remember(out)
    return wanted


def time_steps(model: Transformer, source: Source, objective: Objective, config: TrainConfig) -> float:
    """Seconds per step, from 20 steps on a copy of the model; leaves model and source as they were."""
    device = choose_device(config.device)
    set_threads(config.threads)
    trial = copy.deepcopy(model).to(device).train()
    trial.compute_dtype = choose_dtype(config.precision, device)
    optimizer = Optimizer(trial, kind=config.optimizer, lr=0.0)
    state, batches = source.state_dict(), iter(source)
    warm = 3
    for step in range(warm + _TIMED_STEPS):
        if step == warm:
            start = time.monotonic()
        batch = next(batches)
        for micro in batch.split(config.micro_tokens):
            micro = micro.to(device)
            (objective(trial(micro), micro)[0] / batch.units).backward()
        optimizer.step(0.0)
        optimizer.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = (time.monotonic() - start) / _TIMED_STEPS
    source.load_state_dict(state)
    return seconds


def progress(name: str, steps: int, first: int, shown: Iterable[str] = ("loss",)) -> tuple[Hook, Bar]:
    """A hook that drives the live bar."""
    bar = Bar(name, steps=steps, first_step=first)

    def hook(event: StepEvent) -> None:
        bar.update(event.step, event.tokens, {k: event.figures[k] for k in shown if k in event.figures})

    return hook, bar


def machine(config: TrainConfig) -> dict[str, Any]:
    """What the bytes of a run depend on besides its recipe."""
    device = choose_device(config.device)
    return {
        "device": device.type,
        "dtype": str(choose_dtype(config.precision, device)).removeprefix("torch."),
        "threads": set_threads(config.threads),
        "kernels": native.path_taken(),
        "torch": str(torch.__version__),
    }


def _say_what_differs(folder: Path, now: dict[str, Any]) -> None:
    """A resume is bit for bit on a machine like the one before; elsewhere it is exact in its data, and says so."""
    then = load_checkpoint(folder).card.get("machine", {})
    if changed := differences(then, now):
        say(
            f"{folder.parent.parent}: continues on another machine or setting, so rounding may differ from an "
            "uninterrupted run: " + "; ".join(changed)
        )


def run_stage(
    stage: str,
    model: Transformer,
    tokenizer: Tokenizer,
    source: Source,
    objective: Objective,
    config: TrainConfig,
    *,
    out: Path,
    recipe: dict[str, Any],
    parent: Parent | None,
    data: dict[str, Any],
    shown: Iterable[str] = ("loss",),
    hooks: Iterable[Hook] = (),
    prompts: Iterable[Prompt] = (),
    estimate: bool = True,
    quiet: bool = False,
) -> Path:
    """Train one stage with its bar, its samples, its card and a time estimate; returns the last checkpoint.

    prompts: what the model is asked now and then, see `samples`; quiet runs ask nothing.
    estimate: False where timing 20 steps costs more than it tells, as with rollouts.
    """
    if not model.config.causal and model.config.head == "tokens" and not isinstance(source, MaskedSource):
        raise ValueError(
            f"{stage}: an encoder such as BERT sees the tokens it would have to predict here; it learns from hidden ones "
            "(fledge.text.sources.MaskedSource)"
        )
    release_memory()  # of the stage before
    done = list_checkpoints(out)
    first = int(done[-1].name.split("-")[1]) if done else 0
    card = {
        "stage": stage,
        "parent": parent.reference() if parent else None,
        "model": msgspec.to_builtins(model.config),
        **_adapter_card(parent),
        **_imported_card(parent),
        **({} if tokenizer.chat_format is None else {"chat_format": msgspec.to_builtins(tokenizer.chat_format)}),
        "recipe": recipe["recipe"],
        "data": data,
        "fledge": __version__,
        "machine": machine(config),
    }
    if first >= config.steps and (out / "done.json").exists():
        return done[-1]
    if done:
        _say_what_differs(done[-1], card["machine"])
    hooks, bar = list(hooks), None
    if not quiet:
        if estimate and config.steps - first > 5 * _TIMED_STEPS:  # otherwise the timing costs more than it tells
            seconds = (config.steps - first) * time_steps(model, source, objective, config)
            say(f"{stage}: {config.steps - first} steps, about {seconds:.0f} s by a {_TIMED_STEPS}-step timing")
        hook, bar = progress(stage, config.steps, first, shown)
        hooks.insert(0, hook)
        if prompts := list(prompts):
            hooks.append(Samples(out, tokenizer, prompts, config.steps))
    try:
        with tracked(out) as passes_on:
            hooks.append(passes_on)
            return train(model, source, objective, config, out=out, card=card, tokenizer=tokenizer.json, hooks=hooks)
    finally:
        if bar:
            bar.close()


def _imported_card(parent: Parent | None) -> dict[str, Any]:
    """What an export of a model that was once imported needs: its family and its own context."""
    return {"imported": parent.card["imported"]} if parent is not None and "imported" in parent.card else {}


def _adapter_card(parent: Parent | None) -> dict[str, Any]:
    """What a checkpoint that holds only an adapter says of it."""
    if parent is None or parent.base is None:
        return {}
    return {"adapter": {"config": msgspec.to_builtins(parent.model.adapter.config), "base": parent.base}}


def rows_of(config: TrainConfig, length: int) -> int:
    """Rows of `length` positions in one step's batch."""
    return max(1, config.batch_tokens // length)


def with_steps(config: TrainConfig, steps: float) -> TrainConfig:
    """`config` with `steps` filled in unless it is set already."""
    return config if config.steps else msgspec.structs.replace(config, steps=max(1, math.ceil(steps)))
