"""`fledge probe`: what a linear probe reads off a frozen model's states, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from fledge.core.checkpoint import canonical_json, write_atomically
from fledge.core.config import Settings
from fledge.core.log import say

_HELD_OUT_EVERY = 5  # rows that test where no --test is given


class ProbeOptions(Settings, frozen=True, kw_only=True):
    """Fit a linear probe on labelled texts: `fledge probe runs/first/base --data people.jsonl --layers all`."""

    run: str
    "Run or checkpoint whose states are read; it stays as it is."
    data: list[str]
    'Rows to fit on: JSONL with text and label, such as {"text": "Mira Kolden", "label": "Belmora"}.'
    test: list[str] = []
    "Rows to test on; empty keeps every fifth row of the data for it."
    out: str | None = None
    "File for the figures as JSON; none only prints them."
    layers: Literal["final", "all"] = "final"
    "final: the normed state before the head; all: the embedding and each block as well."
    query: bool = False
    "Learn a query token after each text and read the answer off the model's own output rows, instead of a regression."
    device: str = "auto"
    "auto, cpu, cuda or cuda:1."

    def problems(self) -> list[str]:
        found = [] if self.data else ["data: empty; name at least one file"]
        if self.query and self.layers == "all":
            found.append("layers = all with query: a query is read at the final state; leave one of them out")
        return found


class Labelled(NamedTuple):
    """A text and what a probe should say about it."""

    text: str
    label: str


def read_labelled(paths: list[str]) -> list[Labelled]:
    """Rows with text and label (text or a number). Raises ValueError naming the first row that has none."""
    from fledge.text.readers import Rejects, read_rows

    rows = []
    for source, row in read_rows(paths, encoding=None, skip_bad=None, rejects=Rejects(), columns=frozenset()):
        text, label = row.get("text"), row.get("label")
        if not isinstance(text, str) or not text or not isinstance(label, str | int):
            raise ValueError(f"{source}: a row needs text and label, and has {', '.join(row)}")
        rows.append(Labelled(text, str(label)))
    if not rows:
        raise ValueError(f"{', '.join(paths)}: no rows")
    return rows


def run(options: ProbeOptions) -> dict[str, Any]:
    """Fit and test a probe on each layer asked for, print a table; returns what OUT holds."""
    from fledge.probe.linear import linear_probe, query_probe
    from fledge.stages.common import open_model

    opened = open_model(options.run, device=options.device)
    rows, apart = read_labelled(options.data), options.test
    test = read_labelled(apart) if apart else rows[_HELD_OUT_EVERY - 1 :: _HELD_OUT_EVERY]
    train = rows if apart else [row for i, row in enumerate(rows) if i % _HELD_OUT_EVERY != _HELD_OUT_EVERY - 1]
    tokens = [
        [[opened.tokenizer.bos, *ids] for ids in opened.tokenizer.encode_batch([row.text for row in part])]
        for part in (train, test)
    ]
    labels = {"label": ([row.label for row in train], [row.label for row in test])}
    blocks = range(opened.model.config.layers + 1) if options.layers == "all" else ()
    if options.query:
        words = {label: opened.tokenizer.encode(f" {label}")[0] for part in labels["label"] for label in part}
        found = {"final": query_probe(opened.model, *tokens, labels, words, query=opened.tokenizer.eos)}
    else:
        found = {
            "final" if layer is None else str(layer): linear_probe(opened.model, *tokens, labels, layer)
            for layer in (*blocks, None)
        }
    layers = {layer: msgspec.to_builtins(one["label"]) for layer, one in found.items()}
    result = {"model": {"id": opened.id, "path": str(opened.path)}, "query": options.query, "layers": layers}
    if options.out:
        write_atomically(Path(options.out), canonical_json(result))
    _show(result)
    return result


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("state after", "test", "train", box=None, header_style="bold")
    for layer, found in result["layers"].items():
        name = {"0": "embedding", "final": "final norm"}.get(layer, f"block {layer}")
        table.add_row(name, f"{found['accuracy']:.1%}", f"{found['train_accuracy']:.1%}")
    Console(highlight=False).print(table)
    one = result["layers"]["final"]
    say(
        f"{one['rows']} test rows, {one['classes']} labels; the most frequent one alone is right in {one['majority']:.1%}"
    )
