"""`fledge curate`: a crawl becomes training text, with every dropped page accounted for.

Three phases: every split is read and judged (sift), all pages together decide about duplicates and the best share
(decide), the shards are written (keep). Each leaves sidecars in OUT/work, by which a killed run goes on; the manifest is
written last, then OUT/work is removed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pyarrow as pa

from fledge.core.config import differences
from fledge.core.durable import canonical_json, run_lock, write_atomically
from fledge.core.log import Bar, say
from fledge.core.runtime import release_memory
from fledge.curate.deciding import Decided, decide
from fledge.curate.funnel import Funnel, merged
from fledge.curate.inputs import Skipped, Split, find_splits
from fledge.curate.plan import CurateOptions, Job, open_job
from fledge.curate.shards import Curated, ShardRecord, read_sidecar, remove_unfinished, row_groups, write_manifest
from fledge.curate.sifting import Finished, Sifted, name_of
from fledge.curate.substrings import find_repeats
from fledge.text.curated import MANIFEST, UNFINISHED, read_manifest

__all__ = ["CurateOptions", "Curated", "curate", "run"]

STAGE = "curate"
_SHOWN = 5
S = TypeVar("S", Sifted, Finished)


class Plan(msgspec.Struct, frozen=True):
    """What a folder is made from: written before any work, compared with when it goes on."""

    configuration: dict[str, Any]
    splits: list[Split]
    skipped: list[Skipped]


def run(options: CurateOptions) -> Path:
    """The verb: curate and draw OUT/funnel.html, or print the funnel of what is there."""
    from fledge.curate.funnel_page import write_funnel_page
    from fledge.curate.showing import show, summary_line

    if options.show is not None:
        show(Path(options.show))
        return Path(options.show)
    out = curate(options)
    write_funnel_page(out)
    say(summary_line(out))
    return out


def curate(options: CurateOptions, quiet: bool = False) -> Path:
    """Curate and return the folder; goes on where a killed run stopped, and does nothing where all is done.

    Raises ValueError for options, inputs and models that cannot be used, for an input that changed since the folder was
    begun, and where no page stays; OSError where the disk is full or may not be written.
    """
    from fledge.curate import engine  # imports Daft

    if broken := options.problems():
        raise ValueError("\n".join(broken))
    out = options.folder()
    _refuse_input_as_output(options)
    with run_lock(out):
        job, configuration = open_job(options)
        splits, skipped = find_splits(options.inputs, options.split_size(), options.read)
        plan = Plan(configuration, splits, skipped)
        if _settled(out, plan, quiet):
            return out
        _begin(job, plan, quiet)
        try:
            sifted = _phase("sift", job, plan, [], Sifted, quiet)
            decided = decide(job, len(splits))
            release_memory()  # of signatures and clusters
            finished = _phase("keep", job, plan, job.decided_steps(), Finished, quiet)
            _finish(job, plan, sifted, decided, finished)
        finally:
            engine.wait_for_workers()
    return out


def _refuse_input_as_output(options: CurateOptions) -> None:
    out = options.folder().resolve()
    for path in options.inputs:
        if "://" not in path and (out == Path(path).resolve() or Path(path).resolve() in out.parents):
            raise ValueError(
                f"out = {options.out}: lies in the input {path}, and would be read as input; choose another"
            )


def _inputs(splits: Sequence[Split]) -> dict[str, int]:
    """Size of every input file by its name."""
    return {piece.name: piece.size for split in splits for piece in split.pieces}


def _settled(out: Path, plan: Plan, quiet: bool) -> bool:
    """Whether `out` is finished and made from just this. Raises ValueError where it holds something else."""
    if (out / "recipe.json").exists():
        stage = msgspec.json.decode((out / "recipe.json").read_bytes()).get("stage")
        if stage != STAGE:
            raise ValueError(f"{out} holds a run of `fledge {stage}`: choose another --out")
    if not (out / MANIFEST).exists():
        return False
    facts = read_manifest(out).facts
    _compare(out, facts["configuration"], plan.configuration)
    _compare_inputs(out, facts["inputs"], _inputs(plan.splits))
    if not quiet:
        say(f"{out} is finished: nothing to do")
    shutil.rmtree(out / "work", ignore_errors=True)
    return True


def _compare(out: Path, there: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse other options; another version of the code is no other option."""
    changed = differences(*({k: v for k, v in each.items() if k != "made_by"} for each in (there, now)))
    if changed:
        told = "\n  ".join(changed)
        raise ValueError(f"{out} was made with other settings:\n  {told}\nChoose another --out, or the settings there")


def _compare_inputs(out: Path, there: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [f"{name} (new)" for name in now if name not in there]
    changed += [f"{name} (gone)" for name in there if name not in now]
    changed += [f"{name} (changed)" for name in now if name in there and now[name] != there[name]]
    if changed:
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise ValueError(
            f"{out} was begun from other input: {', '.join(sorted(changed)[:_SHOWN])}{more}. Restore the input, or "
            "choose another --out"
        )


def _begin(job: Job, plan: Plan, quiet: bool) -> None:
    """Fix recipe and plan in the folder, or check that those there are the same."""
    out, path = job.out(), job.out() / UNFINISHED
    held = read_sidecar(path, Plan)
    if held is not None:
        _compare(out, held.configuration, plan.configuration)
        versions = [{p.name: p.version for s in each.splits for p in s.pieces} for each in (held, plan)]
        _compare_inputs(out, *versions)
        if held.configuration != plan.configuration and not quiet:
            say(f"{out} was begun by another version of this program: its shards are done again")
    remove_unfinished(job.work())
    for folder in ("data", "rejected"):
        remove_unfinished(out / folder)
    write_atomically(out / "recipe.json", canonical_json({"stage": STAGE, "recipe": msgspec.to_builtins(job.options)}))
    write_atomically(path, canonical_json(plan))
    if plan.skipped and not quiet:
        say(f"{len(plan.skipped)} files are not read: {plan.skipped[0].source}: {plan.skipped[0].reason}, ...")


def _finished(job: Job, kind: type[S], prefix: str, folder: Path, number: int) -> S | None:
    """The sidecar of a shard whose files are there as it says."""
    held = read_sidecar(job.work() / name_of(prefix, number, "json"), kind)
    if held is None or held.config != job.config:
        return None
    for record in held.records():
        path = folder / record.file
        if not path.exists() or path.stat().st_size != record.bytes:
            return None
    return held


def _phase(phase: str, job: Job, plan: Plan, steps: list[str], kind: type[S], quiet: bool) -> list[S]:
    """Run a phase over the shards that have not been through it; returns the sidecars of all, in order."""
    from fledge.curate.engine import Task, run_tasks

    prefix, folder = ("sifted", job.work()) if phase == "sift" else ("kept", job.out())

    def finished(task: Task) -> bool:
        return _finished(job, kind, prefix, folder, task.number) is not None

    tasks = [Task(phase, s.number, s if phase == "sift" else None, steps) for s in plan.splits]
    left = [task for task in tasks if not finished(task)]
    left.sort(key=lambda task: -plan.splits[task.number].bytes)  # the longest first: at the end none is waited for
    if left:
        done = len(tasks) - len(left)
        bar = None if quiet else Bar(phase, steps=len(tasks), first_step=done)
        try:
            with open(job.out() / "speed.jsonl", "ab") as clock:
                for number, summary in enumerate(run_tasks(job, left, finished), start=done + 1):
                    clock.write(msgspec.json.encode({"phase": phase, **msgspec.to_builtins(summary)}) + b"\n")
                    if bar is not None:
                        bar.update(number, summary.tokens, {"kept": summary.pages_out / max(1, summary.pages_in)})
        finally:
            if bar is not None:
                bar.close()
    found = [_finished(job, kind, prefix, folder, split.number) for split in plan.splits]
    assert all(found), "a shard was reported as done and is not"
    return [each for each in found if each is not None]


def _finish(job: Job, plan: Plan, sifted: list[Sifted], decided: Decided, finished: list[Finished]) -> None:
    """Write the manifest and remove what led to it. Raises ValueError where no page stays."""
    out = job.out()
    funnel = joined(sifted, finished)
    funnel.check()
    stays = sum(f.pages.pages for f in finished)
    assert funnel.after(funnel.steps[-1]).pages == stays, "the funnel's last count is not what was written"
    if not stays:
        raise ValueError(_nothing(job, funnel))
    facts = {
        "recipe": job.recipe.name,
        "configuration": plan.configuration,
        "config": job.config,
        "inputs": _inputs(plan.splits),
        "skipped": [msgspec.to_builtins(s) for s in plan.skipped],
        "funnel": funnel,
        "duplicates": decided.duplicates,
        "limit": None if decided.limit is None else {"column": job.options.keep_by, "value": decided.limit},
        "repeats": _repeats(job, [f.pages for f in finished]) if job.options.substrings else None,
    }
    rejected = [f.rejected for f in finished if f.rejected is not None]
    write_manifest(out, [f.pages for f in finished], rejected=rejected, facts=facts)
    shutil.rmtree(job.work())


def _repeats(job: Job, shards: Sequence[ShardRecord]) -> dict[str, Any]:
    """What the pages that stay share word for word."""

    def tables() -> Iterator[pa.Table]:
        for record in shards:
            yield from row_groups(job.out() / record.file, ["text", "id"])

    return find_repeats(tables, job.work())


def joined(sifted: Sequence[Sifted], finished: Sequence[Finished]) -> Funnel:
    """One funnel of all shards and phases."""
    funnels = [s.funnel for s in sifted] + [f.funnel for f in finished]
    steps = list(dict.fromkeys(step for funnel in funnels for step in funnel.steps))
    return merged(funnels, steps)


def _nothing(job: Job, funnel: Funnel) -> str:
    worst = sorted(funnel.dropped, key=lambda d: -d.amount.pages)[:_SHOWN]
    why = "; ".join(f"{d.amount.pages:,} {d.step}: {d.reason}" for d in worst) or "the files are empty"
    names = ", ".join(job.options.inputs[:_SHOWN])
    return (
        f"0 usable pages in {names} ({funnel.came().pages:,} read: {why}). `fledge curate --show {job.options.out}` "
        f"shows samples; check --languages and --recipe. {MANIFEST} was not written"
    )
