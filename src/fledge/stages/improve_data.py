"""What a round of improvement learns from and is asked about: exports of new votes, replay, held-out questions.

Everything is written into ROUND/data before training begins; a round that is continued finds it there.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from fledge.core.checkpoint import canonical_json, list_checkpoints, write_atomically
from fledge.core.log import say
from fledge.feedback.agreement import read_votes
from fledge.feedback.exports import Exported, export_rows, write_export
from fledge.stages.common import Parent
from fledge.stages.worlds import world_behind
from fledge.tasks.base import Example
from fledge.text.formats import Pair, read_chats, read_pairs, read_thumbs, to_row
from fledge.world.questions import in_all_forms, request_questions
from fledge.world.requests import REQUESTS

if TYPE_CHECKING:
    from fledge.feedback.store import Store
    from fledge.world import World

LEARNING = {"sft": "chats", "dpo": "pairs", "kto": "votes"}
"""Stages of a round in their order, each with the field of its recipe that names its files."""
WELL_READ = 50
"""Statements per language from which a fact of the embedded world counts as read well."""
_READ = {"chats": read_chats, "pairs": read_pairs, "votes": read_thumbs}


class Ancestor(NamedTuple):
    """A model that the served one descends from, or itself; the youngest comes first."""

    path: Path
    card: dict[str, Any]


def ancestors(opened: Parent) -> list[Ancestor]:
    """The served model and its forebears, as far back as their folders are still there."""
    found = [Ancestor(opened.path, opened.card)]
    while parent := found[-1].card.get("parent"):
        path = Path(parent["path"])
        if not (path / "card.json").exists():  # pruned by later training of that run: its newest has the same history
            newest = list_checkpoints(path.parent.parent)
            if not newest:
                say(f"{path} is no longer there: what was learnt before it cannot be replayed")
                break
            path = newest[-1]
        found.append(Ancestor(path, msgspec.json.decode((path / "card.json").read_bytes())))
    return found


def world_of(family: Sequence[Ancestor]) -> World | None:
    """The embedded world one of them was raised in, or None."""
    for ancestor in family:
        try:
            return world_behind(ancestor.path)
        except ValueError:
            continue
    return None


def first_of(family: Sequence[Ancestor], rounds: Path) -> Path:
    """The youngest of the family that no round of this run made; the served one where it is gone."""
    inside = rounds.resolve()
    return next((a.path for a in family if inside not in a.path.resolve().parents), family[0].path)


def journey_of(family: Sequence[Ancestor]) -> Path | None:
    """The folder of the journey one of them belongs to, or None."""
    for ancestor in family:
        for folder in ancestor.path.parents:
            if (folder / "journey.json").exists() or (folder / "data" / "chats" / "heldout.jsonl").exists():
                return folder
    return None


class Sources(NamedTuple):
    """Files that older models of the family learnt from."""

    votes: list[Path]  # exports of earlier rounds
    raised: list[Path]  # anything else: what the model was raised on


def sources(family: Sequence[Ancestor], stage: str) -> Sources:
    """Where rows to learn again come from; what earlier rounds replayed is left out, for its origin is here too."""
    votes: list[Path] = []
    raised: list[Path] = []
    for ancestor in reversed(family):
        if ancestor.card["stage"] != stage:
            continue
        for name in ancestor.card["recipe"].get(LEARNING[stage]) or []:
            path = Path(name)
            if path.name == replay_name(stage):
                continue
            if not path.exists():
                say(f"{path}, which {ancestor.card['stage']} at {ancestor.path} learnt from, is gone: not replayed")
                continue
            (votes if path.with_name(f"{path.name}.export.json").exists() else raised).append(path)
    return Sources(list(dict.fromkeys(votes)), list(dict.fromkeys(raised)))


def replay_name(stage: str) -> str:
    """The file of rows that are learnt again."""
    return f"{stage}-replay.jsonl"


def _some(paths: Sequence[Path], stage: str, count: int, dice: random.Random) -> list[dict[str, Any]]:
    """At most `count` rows of the files, chosen by `dice`, in their order; ties teach DPO nothing and are left out."""
    if not count or not paths:
        return []
    rows = [to_row(r) for r in _READ[LEARNING[stage]]([str(p) for p in paths]) if not getattr(r, "tie", False)]
    kept = sorted(dice.sample(range(len(rows)), min(count, len(rows))))
    return [rows[i] for i in kept]


class Taken(msgspec.Struct, frozen=True):
    """What one stage learns from."""

    rows: int
    """Rows of new votes."""
    votes: int
    """Votes behind them."""
    export: str
    """Id of the export."""
    replayed_votes: int
    replayed_raised: int
    dropped: dict[str, int]
    skipped: str
    """Why the stage is left out; empty where it is not."""


class Material(msgspec.Struct, frozen=True):
    """ROUND/data.json."""

    stages: dict[str, Taken]
    pairs: int
    """Choices of all rounds, decided or not: what the judge learns from."""
    prompts: dict[str, int]
    """Held-out questions by where they come from."""


class Rows(NamedTuple):
    """What a stage would learn from, before anything is written."""

    new: Exported
    older: list[dict[str, Any]]  # earlier rounds' votes
    raised: list[dict[str, Any]]  # what the model was raised on
    skipped: str  # why the stage is left out; empty where it is not


def rows_of_stage(options, store: Store, family: Sequence[Ancestor], stage: str, after_seq: int, last_seq: int) -> Rows:
    """New rows and those that are learnt again beside them; the same for the same votes, settings and family."""
    made = export_rows(store, stage, after_seq, last_seq, split="train")
    dice, found = random.Random(f"replay {stage} {options.seed} {last_seq}"), sources(family, stage)
    older = _some(found.votes, stage, round(options.replay * len(made.rows)), dice)
    raised = _some(found.raised, stage, round(options.base_replay * len(made.rows)), dice)
    return Rows(made, older, raised, _why_skipped(options, stage, made.rows, older + raised))


def _why_skipped(options, stage: str, new: Sequence[dict[str, Any]], replay: Sequence[dict[str, Any]]) -> str:
    if len(new) < options.min_rows:
        return f"{len(new)} rows from new votes, {options.min_rows} are needed"
    if stage == "kto" and len(labels := {row["label"] for row in (*new, *replay)}) == 1:
        return f"all {len(new)} are {'liked' if True in labels else 'disliked'}, and KTO needs both"
    return ""


def write_material(options, folder: Path, store: Store, plan, family: Sequence[Ancestor]) -> Material:
    """Write all data of a round, or read what is there; killed half-way it is written again, the same bytes."""
    done = folder / "data.json"
    if done.exists():
        return msgspec.json.decode(done.read_bytes(), type=Material)
    data = folder / "data"
    stages = {stage: _write_stage(options, data, store, plan, family, stage) for stage in LEARNING}
    pairs = write_export(store, "pairs", data / "pairs.jsonl", 0, plan.last_seq)
    write_atomically(data / "edit-pairs.jsonl", _lines(edit_pairs(store, plan.after_seq, plan.last_seq)))
    prompts = held_out_prompts(options, store, plan, family)
    write_atomically(data / "prompts.jsonl", _lines(prompts))
    counted = Counter(row["source"] for row in prompts)
    material = Material(stages, pairs.rows, dict(sorted(counted.items())))
    write_atomically(done, canonical_json(material))
    return material


def _write_stage(options, data: Path, store: Store, plan, family: Sequence[Ancestor], stage: str) -> Taken:
    rows = rows_of_stage(options, store, family, stage, plan.after_seq, plan.last_seq)
    made = write_export(store, stage, data / f"{stage}.jsonl", plan.after_seq, plan.last_seq, split="train")
    write_atomically(data / replay_name(stage), _lines(rows.older + rows.raised))
    return Taken(made.rows, made.votes, made.id, len(rows.older), len(rows.raised), made.dropped, rows.skipped)


def edit_pairs(store: Store, after_seq: int, last_seq: int) -> list[dict[str, Any]]:
    """New edits as preferences for the judge: people wrote the one because they did not like the other."""
    read, rows = read_votes(store, last_seq), []
    for vote in read.counted("edit"):
        old, new = read.drafts[vote.draft_id], read.drafts[vote.edit_draft_id]
        if vote.seq > after_seq and old.text.strip() and old.text != new.text:
            rows.append(to_row(Pair(old.messages, new.text, old.text, "")) | {"votes": [vote.id]})
    return rows


def _lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(canonical_json(row) for row in rows)


def files(folder: Path, stage: str) -> list[str]:
    """What a stage of the round reads."""
    data = folder / "data"
    replay = data / replay_name(stage)
    return [str(data / f"{stage}.jsonl"), *([str(replay)] if replay.stat().st_size else [])]


# --- held-out questions ---------------------------------------------------------------------------------------------


def held_out_prompts(options, store: Store, plan, family: Sequence[Ancestor]) -> list[dict[str, Any]]:
    """{"prompt", "source"} rows, at most options.questions, that no stage of this family learnt an answer to.

    In this order: prompts of votes that are set apart (one in eight), the user's own file, chats the journey held out,
    other wordings of the embedded world's questions. Where there is none of the last three, questions the model was
    raised on and nobody voted on: both models learnt those alike.
    """
    voted = {canonical_json(r["prompt"]) for r in export_rows(store, "prompts", upto_seq=plan.last_seq).rows}
    found: dict[bytes, dict[str, Any]] = {}

    def add(source: str, prompts: Iterator[list[dict[str, str]]], count: int, seen_is_fine: bool = False) -> None:
        rows = list({canonical_json(p): p for p in prompts}.items())
        random.Random(f"held out {source} {options.seed} {plan.last_seq}").shuffle(rows)
        for key, prompt in rows:
            if len(found) >= count:
                return
            if key not in found and (seen_is_fine or key not in voted):
                found[key] = {"prompt": prompt, "source": source}

    most = options.questions
    apart = export_rows(store, "prompts", upto_seq=plan.last_seq, split="test").rows
    add("votes set apart", iter([r["prompt"] for r in apart]), most // 2, seen_is_fine=True)
    own = len(found)
    if options.prompts:
        add("own prompts", _own_prompts(options.prompts), most)
    elif (world := world_of(family)) is not None:
        add("other wordings of the world", _wordings(world), most)
    elif (folder := journey_of(family)) is not None:
        add("chats held out", _chat_prompts([folder / "data" / "chats" / "heldout.jsonl"]), most)
    if len(found) == own:
        add("chats it was raised on", _chat_prompts(sources(family, "sft").raised), most)
    return list(found.values())


def _own_prompts(paths: Sequence[str]) -> Iterator[list[dict[str, str]]]:
    from fledge.tasks.prompts import PromptFile

    task = PromptFile(paths)
    for split in ("train", "test"):
        yield from (list(e.prompt) for e in task.examples(split))


def _chat_prompts(paths: Sequence[Path]) -> Iterator[list[dict[str, str]]]:
    for chat in read_chats([str(p) for p in paths if p.exists()]) if any(p.exists() for p in paths) else ():
        yield [{"role": m.role, "content": m.content} for m in chat.messages[:-1]]


def _wordings(world: World) -> Iterator[list[dict[str, str]]]:
    """Every wording of the train half's questions: well-read facts and requests, as many requests as there are."""
    learned = (fact for fact in world.facts if fact.split == "train")
    yield from (example.prompt for example in in_all_forms(learned, world.pools, WELL_READ))
    for request in REQUESTS:
        if request.split == "train":
            yield from ([{"role": "user", "content": request.text(form)}] for form in range(3))
    yield from (q.example().prompt for q in request_questions("train", world.config.seed) if q.kind == "greeting")


def as_example(prompt: Sequence[dict[str, str]], answers: tuple[str, ...] = ()) -> Example:
    """A bare prompt as tasks and rewards take it."""
    id = hashlib.sha256(canonical_json(prompt)).hexdigest()[:16]
    return Example(id=id, prompt=list(prompt), answers=answers, kind="prompt", language="", meta={})
