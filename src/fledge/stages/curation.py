"""What a journey reads, and what it leaves out: a crawl, or the embedded world's pages with their junk, curated first."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from fledge.core.log import say
from fledge.curate.command import CurateOptions
from fledge.curate.command import run as curate
from fledge.curate.shards import Curated
from fledge.curate.showing import open_funnel
from fledge.world import World, WorldConfig

_SHARDS_BYTES = "8M"  # of input each: a few shards, so that all cores have one


def text_of(recipe, out: Path) -> list[str]:
    """The text a JourneyRecipe pretrains on: what curation leaves, then what is read as it is."""
    if not recipe.own_text():
        return [str(out / "clean")] if recipe.rules != "off" else [str(out / "world" / "documents.jsonl")]
    return [str(out / "clean")] * bool(recipe.crawl) + recipe.text


def written_world(recipe, out: Path) -> tuple[World, Path]:
    """The embedded world of a JourneyRecipe and the folder of its files, written once."""
    world = World(WorldConfig.quick(recipe.seed) if recipe.quick else WorldConfig(seed=recipe.seed))
    folder = out / "world"
    if not (folder / "world.json").exists():
        say("writing the embedded world")
        world.write(folder)
    return world, folder


def prepare(recipe, out: Path) -> dict[str, Any] | None:
    """Curate what is to be curated into OUT/clean; a second call finds it there. Returns its figures for the report."""
    yours = recipe.own_text()
    if recipe.rules == "off" or (yours and not recipe.crawl):
        return None
    inputs = recipe.crawl if yours else [str(written_world(recipe, out)[1] / "documents.jsonl")]
    options = CurateOptions(
        inputs=inputs, out=str(out / "clean"), recipe=recipe.rules or ("fineweb" if yours else "world"),
        languages=recipe.languages, mask_personal=yours, split_bytes=_SHARDS_BYTES,
    )  # fmt: skip
    clean = in_a_child(options)
    held = open_funnel(clean)
    return {
        "recipe": held.facts["recipe"],
        "funnel": msgspec.to_builtins(held.funnel),
        "duplicates": held.facts["duplicates"],
        "truth": None if yours else _truth(clean, Path(inputs[0])),
    }


def in_a_child(options: CurateOptions) -> Path:
    """Curate in a process of its own: the memory that Arrow, Daft and the drawing keep goes with it.

    Raises what curating raises.
    """
    command = [sys.executable, "-c", "import sys; from fledge.stages.curation import child; sys.exit(child())"]
    done = subprocess.run(command, input=msgspec.json.encode(options), stdout=subprocess.PIPE, check=False)
    if done.returncode == 0:
        return options.folder()
    if done.returncode in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    if not done.stdout:
        raise RuntimeError(f"curation ended with {done.returncode}; what it said stands above")
    number, error = msgspec.json.decode(done.stdout, type=tuple[int | None, str])
    raise ValueError(error) if number is None else OSError(number, error)


def child() -> int:
    """What the child does: options from stdin, an error for the user on stdout as (errno or null, words)."""
    options = msgspec.json.decode(sys.stdin.buffer.read(), type=CurateOptions)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        curate(options)
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.stdout.write(msgspec.json.encode((error.errno or 0, f"{where}{error.strerror or error}")).decode())
        return 2
    except ValueError as error:
        sys.stdout.write(msgspec.json.encode((None, str(error))).decode())
        return 2
    return 0


def _end_with(parent: int) -> None:
    """A killed journey leaves nobody at work in its folder: the next one would find it locked."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _truth(clean: Path, documents: Path) -> list[dict[str, Any]]:
    """Pages and how many of them were dropped, by what the embedded world knows them to be.

    A copy and its original are one page too many, whichever of them was dropped: `copy` counts what is more than one.
    """
    rows = [msgspec.json.decode(line) for line in documents.read_bytes().splitlines()]
    stays = {int(s.rsplit(":", 1)[1]) - 1 for t in Curated.open(clean).tables(["source"]) for s in t["source"].to_pylist()}
    written: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    clusters: dict[str, list[bool]] = {}
    for number, row in enumerate(rows):
        if row["dup_cluster"] is not None:
            clusters.setdefault(row["dup_cluster"], []).append(number in stays)
            continue
        written[row["quality"]] += 1
        dropped[row["quality"]] += number not in stays
    for members in clusters.values():
        written["good"] += 1
        dropped["good"] += not any(members)
        written["copy"] += len(members) - 1
        dropped["copy"] += len(members) - max(1, sum(members))
    return [{"kind": kind, "pages": written[kind], "dropped": dropped[kind]} for kind in sorted(written)]
