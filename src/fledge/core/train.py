"""The loop. Every stage is this function with another source of batches and another objective."""

import math
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fledge.core import parallel
from fledge.core.adapting import load_trained, trained_tensors
from fledge.core.batch import Batch, Source
from fledge.core.checkpoint import (
    Checkpoint,
    canonical_json,
    list_checkpoints,
    load_checkpoint,
    remove_unfinished,
    require_space,
    run_lock,
    save_checkpoint,
    write_atomically,
)
from fledge.core.config import TrainConfig, differences
from fledge.core.log import MetricsLog
from fledge.core.model import Transformer
from fledge.core.objectives import Objective
from fledge.core.optim import Optimizer, schedule_factor
from fledge.core.runtime import choose_device, choose_dtype, set_threads

_WINDOW = 128  # steps the spike rule looks back on (OLMo 2, section 3.1, skips on the same window)
_BAD_IN_A_ROW = 3
_OF_SOURCE = "source/"  # tensors of the source's state, kept beside the optimiser's


class StepEvent(NamedTuple):
    """What a hook sees after each step."""

    step: int  # steps done
    steps: int
    tokens: int  # positions in this step
    figures: dict[str, float]
    model: Transformer


Hook = Callable[[StepEvent], None]


class Interrupted(RuntimeError):
    """The run was asked to stop and has saved; `fledge resume` continues it bit for bit."""

    def __init__(self, message: str, run: Path, signals: list[int]):
        """signals: those this rank saw; empty where another rank saw one."""
        super().__init__(f"{message}, saved in {run}")
        self.run = run
        self.exit_code = 128 + (signals[0] if signals else signal.SIGTERM)


class Guard:
    """Decides whether a step may be applied; its memory is part of the checkpoint."""

    def __init__(self, sigma: float | None):
        self.sigma = sigma
        self.window: list[tuple[float, float]] = []
        self.bad_in_a_row = 0

    def verdict(self, loss: float, norm: float) -> str:
        """ "apply", "nonfinite" or "spike" (loss or gradient norm far above the last 128 steps')."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.bad_in_a_row += 1
            return "nonfinite"
        self.bad_in_a_row = 0
        spike = self.sigma is not None and len(self.window) == _WINDOW and self._far(loss, 0) | self._far(norm, 1)
        self.window = [*self.window[-_WINDOW + 1 :], (loss, norm)]
        return "spike" if spike else "apply"

    def _far(self, value: float, column: int) -> bool:
        seen = [row[column] for row in self.window]
        mean = statistics.fmean(seen)
        return value > mean + self.sigma * max(statistics.pstdev(seen, mean), 1e-3 * abs(mean))


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM; a second one quits at once (checkpoints are atomic, nothing is harmed)."""
    seen: list[int] = []

    def handler(number: int, _: Any) -> None:
        if seen:
            os._exit(128 + number)
        seen.append(number)

    try:
        before = {n: signal.signal(n, handler) for n in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever runs us handles signals
        before = {}
    try:
        yield seen
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _accumulate(
    model, objective: Objective, batch: Batch, units: float, micro_tokens: int, share: float = 1.0
) -> dict[str, float]:
    """Add the gradient of the whole batch, in micro-batches; returns loss and metrics per unit over all ranks.

    share: 0.0 for a rank that has no rows of its own in this step.
    """
    device = next(model.parameters()).device
    sums: dict[str, Tensor] = {}
    for micro in batch.split(micro_tokens):
        micro = micro.to(device)
        loss, metrics = objective(model(micro), micro)
        (share * loss / units).backward()
        for name, value in {"loss": loss.detach(), **metrics}.items():
            sums[name] = sums.get(name, 0.0) + share * value.detach().double()
    totals = parallel.total(torch.stack(list(sums.values())))
    return dict(zip(sums, (totals / units).tolist(), strict=True))


def _restore(found: Checkpoint, model: Transformer, optimizer: Optimizer, source: Source, guard: Guard) -> None:
    load_trained(model, found.model_tensors())
    tensors = found.optimizer_tensors()
    torch.set_rng_state(tensors.pop("rng/torch"))
    held = {k: tensors.pop(k) for k in list(tensors) if k.startswith(_OF_SOURCE)}
    optimizer.load_tensors(tensors)
    source.load_state_dict(found.state["source"] | {k.removeprefix(_OF_SOURCE): t for k, t in held.items()})
    guard.window = [tuple(row) for row in found.state["window"]]
    guard.bad_in_a_row = found.state["bad_in_a_row"]


def _require_same_origin(found: Checkpoint, card: dict[str, Any]) -> None:
    """A checkpoint goes on only from the parent and by the recipe it began with."""
    held, now = ((c.get("parent") or {"id": "none", "path": "random weights"}) for c in (found.card, card))
    if held["id"] != now["id"]:
        raise ValueError(
            f"{found.path} was raised from {held['path']} ({held['id'][:12]}), now the parent is {now['path']} "
            f"({now['id'][:12]}): restore that parent, or start the stage again in another folder"
        )
    if changed := differences(found.card.get("recipe"), card.get("recipe")):
        raise ValueError(
            f"{found.path} was trained by another recipe:\n  "
            + "\n  ".join(changed)
            + "\nRestore recipe.json, or start the stage again in another folder"
        )


def _not_finite(out: Path, row: dict[str, Any]) -> FloatingPointError:
    good = list_checkpoints(out)
    return FloatingPointError(
        f"loss or gradient not finite {_BAD_IN_A_ROW} steps in a row, at step {row['step']}; rows {row['ids'][:16]} "
        f"(all in metrics.jsonl). No bad step was applied; last good checkpoint: {good[-1] if good else 'none yet'}. "
        "Lower train.lr or look at those rows"
    )


def _mark_done(out: Path, config: TrainConfig, rank: int) -> None:
    if rank == 0 and not (out / "done.json").exists():
        write_atomically(out / "done.json", canonical_json({"step": config.steps}))


def train(
    model: Transformer,
    source: Source,
    objective: Objective,
    config: TrainConfig,
    *,
    out: Path,
    card: dict[str, Any],
    tokenizer: bytes = b"",
    hooks: Iterable[Hook] = (),
) -> Path:
    """Train for config.steps steps and return the last checkpoint's folder; continues what `out` already holds.

    card: what the checkpoint says about itself (stage, parent, recipe, model config). Raises Interrupted after saving on
    SIGINT or SIGTERM, FloatingPointError after three non-finite steps in a row, ValueError for settings that cannot work.
    """
    if config.problems() or config.steps is None:
        raise ValueError("; ".join(config.problems() or ["train.steps is not set: say how many steps"]))
    device = choose_device(config.device)
    set_threads(config.threads)
    rank, world = parallel.start()
    model.to(device).train()
    model.compute_dtype = choose_dtype(config.precision, device)
    step_model = torch.compile(model, dynamic=False) if config.compile else model
    optimizer = Optimizer(
        model, kind=config.optimizer, lr=config.lr, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay
    )
    guard = Guard(config.spike_sigma)
    parameters = [p for p in model.parameters() if p.requires_grad]
    weight_bytes = sum(p.numel() * p.element_size() for p in parameters)
    with run_lock(out if rank == 0 else out / f"rank-{rank}"), _interrupts() as signals:
        first, offset = 0, 0
        if rank == 0:
            remove_unfinished(out)
        torch.manual_seed(config.seed)  # torch seeds each process differently; the state is part of a checkpoint
        if own := list_checkpoints(out):
            found = load_checkpoint(own[-1])  # not what the run serves, which may be a descendant
            _require_same_origin(found, card)
            _restore(found, model, optimizer, source, guard)
            first, offset = found.step, found.state["log_bytes"]
        if first >= config.steps:
            _mark_done(out, config, rank)
            return list_checkpoints(out)[-1]
        require_space(out, 3 * weight_bytes)
        log = MetricsLog(out, offset) if rank == 0 else None
        saved_at = started = time.monotonic()
        batches = iter(source)

        def save(step: int) -> Path:
            place = source.state_dict()
            held = {_OF_SOURCE + k: v for k, v in place.items() if isinstance(v, Tensor)}
            tensors = {**optimizer.tensors(), "rng/torch": torch.get_rng_state(), **held}
            state = {
                "source": {k: v for k, v in place.items() if not isinstance(v, Tensor)},
                "window": guard.window,
                "bad_in_a_row": guard.bad_in_a_row,
                "log_bytes": log.flush(durably=True),
            }
            return save_checkpoint(
                out, step, model=trained_tensors(model), optimizer=tensors, state=state, card=card, tokenizer=tokenizer
            )

        try:
            for step in range(first, config.steps):
                whole = next(batches)
                whole.check()
                batch = whole.shard(rank, world)
                units = parallel.total(batch.units)
                idle = not len(batch.tokens)  # fewer rows than ranks: this one computes along and counts nothing
                batch = whole.rows(0, whole.rows_per_unit) if idle else batch
                figures = _accumulate(step_model, objective, batch, units, config.micro_tokens, 0.0 if idle else 1.0)
                parallel.sum_gradients(model)
                norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip).item()
                lr = config.lr * schedule_factor(
                    (step + 1) / config.steps, config.schedule, config.warmup, config.min_lr
                )
                verdict = guard.verdict(figures["loss"], norm)
                if verdict == "apply":
                    optimizer.step(lr)
                optimizer.zero_grad()
                figures |= {"grad_norm": norm, "lr": lr}
                figures |= whole.notes or {}
                row = {"step": step + 1, **figures, "tokens": whole.tokens.numel()}
                if verdict != "apply":
                    row |= {"skipped": verdict, "ids": [] if whole.ids is None else whole.ids.tolist()}
                if log:
                    log.write(row, {"step": step + 1, "seconds": time.monotonic() - started})
                for hook in hooks:
                    hook(StepEvent(step + 1, config.steps, row["tokens"], figures, model))
                if guard.bad_in_a_row >= _BAD_IN_A_ROW:
                    raise _not_finite(out, row)
                stop = parallel.total(float(bool(signals))) > 0  # a signal to any rank stops all at the same step
                due = time.monotonic() - saved_at >= config.save_seconds
                if rank == 0 and (due or stop or step + 1 == config.steps):
                    path = save(step + 1)
                    saved_at = time.monotonic()
                if stop and step + 1 < config.steps:
                    raise Interrupted(f"stopped at step {step + 1} of {config.steps}", out, signals)
                if log and step % 20 == 0:
                    log.flush()
        finally:
            if log:
                log.close()
        _mark_done(out, config, rank)
        if stop or signals:  # asked to stop in the last step: what comes after this stage must not start
            raise Interrupted(f"stopped after the last of {config.steps} steps", out, signals)
        return path if rank == 0 else out
