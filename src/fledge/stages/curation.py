"""What a journey reads, and what it leaves out: a crawl, or the embedded world's pages with their junk, curated first."""

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
    clean = curate(options)
    held = open_funnel(clean)
    return {
        "recipe": held.facts["recipe"],
        "funnel": msgspec.to_builtins(held.funnel),
        "duplicates": held.facts["duplicates"],
        "truth": None if yours else _truth(clean, Path(inputs[0])),
    }


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
