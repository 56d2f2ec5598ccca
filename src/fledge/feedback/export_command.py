"""`fledge export`: votes as a file to train on; `fledge import`: votes given elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fledge.core.config import Settings
from fledge.core.log import say
from fledge.feedback.exports import FORMATS, Format, Split, Written, import_arena, import_argilla, write_export


class ExportOptions(Settings, frozen=True, kw_only=True):
    """Write the votes of a run as data: the same votes give the same bytes, and every row names its votes."""

    run: str
    "Run whose votes are exported."
    format: Format
    "dpo, pairs (dpo with ties, for `fledge reward`), kto, sft, prompts, argilla or arena."
    out: str
    "File to write; what it was made of stands beside it in OUT.export.json."
    store: str | None = None
    "Where the votes are: a path or postgresql://...; none: RUN/votes.sqlite3."
    after: int = 0
    "Only votes after this one, by its number."
    upto: int | None = None
    "Votes as they stood at this number; none: all there are."
    split: Split | None = None
    "train or test prompts only; one prompt in eight is test."
    people: list[str] = []
    "Only the votes of these people, by id; none given: everybody's."

    def problems(self) -> list[str]:
        found = []
        if self.after < 0:
            found.append(f"after = {self.after}: must be at least 0")
        if self.upto is not None and self.upto < self.after:
            found.append(f"upto = {self.upto}: must be at least after, {self.after}")
        return found


def run(options: ExportOptions) -> Written:
    """Write the file; prints rows, and votes left out by reason."""
    from fledge.feedback.store import Store, store_url

    assert options.format in FORMATS
    url = store_url(Path(options.run), options.store)
    Store.open(url, read_only=True).close()  # an export must not make a store where there is none
    with Store.open(url) as store:
        written = write_export(
            store, options.format, options.out, options.after, options.upto, options.split, options.people or None
        )
    say(f"{options.out}: {written.rows:,} rows from {written.votes:,} votes, {written.first_seq} to {written.last_seq}")
    if written.dropped:
        say("left out: " + ", ".join(f"{count} {reason}" for reason, count in written.dropped.items()))
    if options.format == "kto" and written.rows:
        say(_weights(Path(options.out)))
    return written


def _weights(path: Path) -> str:
    """How many votes up and down, and weights that make both count alike (Ethayarajh et al. 2024, section 4.2)."""
    import msgspec

    labels = [msgspec.json.decode(line)["label"] for line in path.read_bytes().splitlines()]
    up, down = labels.count(True), labels.count(False)
    if not up or not down:
        return f"{up} up, {down} down: KTO needs both; collect votes of the other kind"
    if up > down:
        return f"{up} up, {down} down: balanced by an undesirable weight of {up / down:.2f}"
    return f"{up} up, {down} down: balanced by a desirable weight of {down / up:.2f}"


class ImportOptions(Settings, frozen=True, kw_only=True):
    """Take votes given elsewhere: pairs as Chatbot Arena writes them, or Argilla's records of an export from here."""

    run: str
    "Run whose votes they join."
    files: list[str]
    "Files to read: JSONL, JSON or parquet."
    format: Literal["arena", "argilla"] = "arena"
    "arena or argilla."
    name: str = "arena"
    "arena: whose votes these are, for statistics."
    store: str | None = None
    "Where the votes are: a path or postgresql://...; none: RUN/votes.sqlite3."

    def problems(self) -> list[str]:
        return [] if self.files else ["files: none; name at least one"]


def take(options: ImportOptions) -> int:
    """Put the votes into the store; returns how many were new, so the same files again give 0."""
    import uuid

    from fledge.feedback.store import Store, store_url
    from fledge.text.readers import Rejects

    rejects = Rejects()
    with Store.open(store_url(Path(options.run), options.store)) as store:
        if options.format == "arena":
            id = f"p_{uuid.uuid5(uuid.NAMESPACE_URL, f'fledge import {options.name}').hex}"
            person = store.put_person("import", options.name, "service", id=id)
            new = import_arena(store, options.files, person, rejects)
        else:
            new = import_argilla(store, options.files, rejects)
    say(f"{new:,} new votes from {', '.join(options.files)}")
    if rejects.total:
        say(rejects.summary())
    return new
