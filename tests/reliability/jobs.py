"""What the children of fork_server.py run. Each job returns its exit code; what it prints is handed back to the test."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from fledge import resume as resuming
from fledge.core import checkpoint
from fledge.core.config import build
from fledge.stages import common, improve, prefer, pretrain, reinforce, sft

STAGES = {
    "pretrain": (pretrain.PretrainRecipe, pretrain.run),
    "sft": (sft.SftRecipe, sft.run),
    "reward": (prefer.RewardRecipe, prefer.run_reward),
    "dpo": (prefer.DpoRecipe, prefer.run_dpo),
    "reinforce": (reinforce.ReinforceRecipe, reinforce.run),
    "improve": (improve.ImproveRecipe, improve.run),
}


def stage(verb: str, recipe: dict, quiet: bool = True) -> None:
    """A stage from its recipe, as its verb runs it."""
    kind, run = STAGES[verb]
    run(build(kind, recipe), quiet=quiet)


def resume(run: str) -> None:
    resuming.resume(resuming.ResumeOptions(run=run))


def command(arguments: list[str]) -> int:
    """`fledge ARGUMENTS` without the wait for a new interpreter."""
    from fledge.cli import main

    return main(arguments)


def observed_stage(verb: str, recipe: dict) -> None:
    """A stage with hooks that evaluate, sample and log between its steps."""
    from fledge.core.log import Bar
    from fledge.generate.chat import chat_engine, continue_text
    from fledge.generate.sampling import Sampling
    from fledge.stages.evaluate import bits_per_byte

    plain, bar = common.train, Bar("observed", steps=recipe["train"]["steps"], every_seconds=0.0)
    seen = []

    def train(model, source, *rest, hooks=(), tokenizer, **named):
        words = common.Tokenizer(tokenizer)

        def look(event: common.StepEvent) -> None:
            if event.step % 7:
                return
            opened = common.Parent(event.model, words, "", Path(), {})
            event.model.eval()
            bits = bits_per_byte(opened, ["some held-out words to measure by"])
            engine = chat_engine(event.model, words)
            texts = continue_text(engine, words, ["abc", "x"], Sampling(max_tokens=8, seed=event.step))
            event.model.train()
            bar.update(event.step, event.tokens, {"bits": bits})
            seen.append(texts)

        return plain(model, source, *rest, hooks=[*hooks, look], tokenizer=tokenizer, **named)

    common.train = train
    stage(verb, recipe, quiet=False)
    print(f"looked {len(seen)} times")


def slow_saves(run: str, seconds: float) -> int:
    """`fledge resume RUN` on a disk that takes `seconds` for each file; says when a save begins."""
    quick = checkpoint.write_durably

    def slow(path: Path, data: bytes) -> None:
        if path.name == "model.safetensors":
            Path("saving").touch()
        quick(path, data)
        time.sleep(seconds)

    checkpoint.write_durably = slow
    return command(["resume", run])


def limited(arguments: list[str], file_bytes: int) -> int:
    """A command whose files may not grow beyond `file_bytes`."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    return command(arguments)


def slow_tokenizer(arguments: list[str], seconds: float) -> int:
    """A command whose tokenizer takes longer to learn; says when it begins."""
    learn = pretrain.learn_tokenizer

    def slow(*given):
        Path("learning").touch()
        time.sleep(seconds)
        return learn(*given)

    pretrain.learn_tokenizer = slow
    return command(arguments)


def tiny_tensors(step: int) -> dict[str, torch.Tensor]:
    return {"a": torch.full((4, 3), float(step)), "b": torch.arange(5.0) * step}


def save(run: str, step: int) -> None:
    """One small checkpoint."""
    checkpoint.save_checkpoint(
        Path(run), step, model=tiny_tensors(step), optimizer=tiny_tensors(step + 1000), state={"step": step}, card={}
    )


def save_killed(run: str, step: int, at: int) -> int:
    """save(), killed by SIGKILL just before its call number `at` that changes or syncs the disk; 3 if it has fewer."""
    left = [at]

    def count(event: str, arguments: tuple) -> None:
        opens_to_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if opens_to_write or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "fsync"):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sync = os.fsync

    def fsync(handle: int) -> None:
        count("fsync", ())
        sync(handle)

    os.fsync = fsync
    sys.addaudithook(count)
    save(run, step)
    return 3


def rank(verb: str, recipe: dict, ids: str) -> None:
    """A stage as one rank of several (or alone); the rows it trained on go to the file `ids`."""
    from fledge.core.batch import Batch

    plain, seen = Batch.shard, []

    def shard(batch: Batch, place: int, world: int) -> Batch:
        part = plain(batch, place, world)
        seen.append(part.ids.tolist())
        return part

    Batch.shard = shard
    stage(verb, recipe)
    Path(ids).write_text(json.dumps(seen))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def rank_with_a_bad_row(verb: str, recipe: dict, step: int, bad_rank: int, ids: str) -> None:
    """A stage of several ranks, one of which meets a row of weight inf in one step; keeps the steps it applied."""
    from fledge.core.batch import Batch
    from fledge.core.optim import Optimizer

    plain, apply, seen, applied = Batch.shard, Optimizer.step, [0], []

    def shard(batch: Batch, place: int, world: int) -> Batch:
        part = plain(batch, place, world)
        seen[0] += 1
        if seen[0] == step and place == bad_rank:
            part.weight[0, 0] = float("inf")
        return part

    def noted(self: Optimizer, lr: float) -> None:
        applied.append(seen[0])
        apply(self, lr)

    Batch.shard, Optimizer.step = shard, noted
    stage(verb, recipe)
    Path(ids).write_text(json.dumps(applied))
