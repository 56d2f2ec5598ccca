"""Votes as training data: files that fledge's own stages and other trainers read, each row naming its votes.

    dpo      prompt, chosen, rejected         decided pairs; two scores of one person on one prompt, 2 or more apart
    pairs    the same, with ties              for Bradley-Terry with ties: what `fledge reward` reads
    kto      prompt, completion, label        thumbs; scores of 4 and 5 up, 0 and 1 down; both bad is two down
    sft      messages                         edits; scores of 5
    prompts  prompt, up, down                 prompts to practise on, the ones that went worst first
    argilla  records for Argilla              see `argilla`
    arena    conversation_a/b, winner         as Chatbot Arena writes them

Rows stand in the order of their votes and are canonical JSON, so the same votes give the same bytes, on either store.
Every vote that makes no row is counted under its reason in `dropped`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from fledge import __version__
from fledge.core.checkpoint import canonical_json, sha256, write_atomically
from fledge.feedback.agreement import Read, read_votes
from fledge.feedback.arena import arena_row, import_arena
from fledge.feedback.argilla import argilla_rows, import_argilla, settings
from fledge.text.formats import Chat, Pair, Thumb, to_row
from fledge.text.messages import Message

if TYPE_CHECKING:
    from fledge.feedback.records import Draft, Vote
    from fledge.feedback.store import Store

__all__ = [
    "FORMATS", "Exported", "Format", "Split", "Written", "export_rows", "import_arena", "import_argilla", "is_test",
    "write_export",
]  # fmt: skip

Format = Literal["dpo", "pairs", "kto", "sft", "prompts", "argilla", "arena"]
Split = Literal["train", "test"]
TEST_EVERY = 8
"""One prompt in eight, told by the hash of its id, is for tests."""
LEAST_GAP = 2
"""Two scores this far apart say which answer is better (0-5)."""
LIKED_FROM, DISLIKED_TO = 4, 1
CUT_OFF = ("length", "stopped")
"""Answers that did not end by themselves: to learn from one is to learn not to end."""

Row = dict[str, Any]
Made = tuple[Row, list[str]] | str
"""A row with the ids of its votes, or the reason why there is none."""


class Exported(msgspec.Struct, frozen=True):
    """Rows to train on, the votes behind each, and how many votes were left out for which reason."""

    rows: list[Row]
    votes: list[list[str]]
    dropped: dict[str, int]
    first_seq: int
    last_seq: int

    def data(self) -> bytes:
        """The file: one row per line."""
        return b"".join(canonical_json(row) for row in self.rows)


def is_test(prompt_id: str) -> bool:
    """Whether votes on this prompt are held out; the same in every round and on every machine."""
    return int(hashlib.sha256(f"held out {prompt_id}".encode()).hexdigest()[:8], 16) % TEST_EVERY == 0


def export_rows(
    store: Store,
    format: Format,
    after_seq: int = 0,
    upto_seq: int | None = None,
    split: Split | None = None,
    people: Sequence[str] | None = None,
) -> Exported:
    """The rows of one format from the votes that stand at `upto_seq` and were given after `after_seq`.

    split: of the prompts, None takes all. people: ids of those whose votes are taken; None takes everybody's.
    Raises ValueError for an unknown format, split or person.
    """
    makers = MAKERS.get(format)
    if makers is None:
        raise ValueError(f"format = {format!r}: must be one of {', '.join(MAKERS)}")
    if split not in (None, "train", "test"):
        raise ValueError(f"split = {split!r}: must be train or test, or none for both")
    read = read_votes(store, upto_seq)
    if unknown := sorted(set(people or ()) - set(read.people)):
        raise ValueError(f"people: no {', '.join(unknown)}; `fledge votes RUN` lists who voted")
    dropped: Counter[str] = Counter()
    usable = [vote for vote in read.votes if _usable(read, vote, after_seq, split, people, dropped)]
    found = list(makers(read, usable, after_seq, dropped))
    for row, ids in found:
        row["votes"] = ids
    kept = [ids for _, ids in found]
    return Exported([row for row, _ in found], kept, dict(sorted(dropped.items())), after_seq + 1, read.upto_seq)


def _usable(
    read: Read, vote: Vote, after_seq: int, split: Split | None, people: Sequence[str] | None, dropped: Counter
) -> bool:
    """Whether a vote may make a row. What was not asked for is passed over; what is refused is counted, when new."""
    if people is not None and vote.person_id not in people:
        return False
    if split is not None and is_test(read.judged(vote)[0].prompt_id) != (split == "test"):
        return False
    reason = read.reason_against(vote)
    if reason is not None and vote.seq > after_seq:
        dropped[reason] += 1
    return reason is None


def _each(make: Callable[[Read, Vote], Iterator[Made]]):
    """A maker of rows that looks at one vote at a time."""

    def made(read: Read, votes: Sequence[Vote], after_seq: int, dropped: Counter) -> Iterator[tuple[Row, list[str]]]:
        for vote in votes:
            if vote.seq > after_seq:
                yield from _counted(make(read, vote), dropped)

    return made


def _counted(made: Iterator[Made], dropped: Counter) -> Iterator[tuple[Row, list[str]]]:
    for one in made:
        if isinstance(one, str):
            dropped[one] += 1
        else:
            yield one


def _dpo(read: Read, votes: Sequence[Vote], after_seq: int, dropped: Counter) -> Iterator[tuple[Row, list[str]]]:
    return _preferences(read, votes, after_seq, dropped, ties=False)


def _pairs(read: Read, votes: Sequence[Vote], after_seq: int, dropped: Counter) -> Iterator[tuple[Row, list[str]]]:
    return _preferences(read, votes, after_seq, dropped, ties=True)


def _preferences(
    read: Read, votes: Sequence[Vote], after_seq: int, dropped: Counter, ties: bool
) -> Iterator[tuple[Row, list[str]]]:
    """Pair votes, and after each score the pairs it makes with the same person's earlier scores on that prompt."""
    earlier: dict[tuple[str, str], list[Vote]] = {}
    for vote in votes:
        made: list[Made] = []
        if vote.kind == "pair":
            made = [_from_pair(read, vote, ties)]
        elif vote.kind == "score":
            before = earlier.setdefault((vote.person_id, read.drafts[vote.draft_id].prompt_id), [])
            made = [_from_scores(read, vote, other) for other in before if abs(vote.value - other.value) >= LEAST_GAP]
            before.append(vote)
        if vote.seq > after_seq:
            yield from _counted(iter(made), dropped)


def _from_pair(read: Read, vote: Vote, ties: bool) -> Made:
    task = read.tasks[vote.task_id]
    a, b = read.drafts[task.draft_a], read.drafts[task.draft_b]
    if vote.value == 0:
        return _preference(a, b, [vote.id], tie=True) if ties else "tie"
    return _preference(*((a, b) if vote.value > 0 else (b, a)), [vote.id])


def _from_scores(read: Read, vote: Vote, other: Vote) -> Made:
    high, low = (vote, other) if vote.value > other.value else (other, vote)
    return _preference(read.drafts[high.draft_id], read.drafts[low.draft_id], [other.id, vote.id])


def _preference(chosen: Draft, rejected: Draft, ids: list[str], tie: bool = False) -> Made:
    if chosen.text == rejected.text:
        return "same text"
    if not chosen.text.strip() or not rejected.text.strip():
        return "empty answer"
    if chosen.finish in CUT_OFF and not tie:
        return "cut-off answer chosen"
    return to_row(Pair(chosen.messages, chosen.text, rejected.text, "", tie=tie)), ids


def _kto(read: Read, vote: Vote) -> Iterator[Made]:
    if vote.kind == "thumb":
        yield _thumb(read.drafts[vote.draft_id], vote.value > 0, vote.id)
    elif vote.kind == "score":
        middling = DISLIKED_TO < vote.value < LIKED_FROM
        yield "middling score" if middling else _thumb(read.drafts[vote.draft_id], vote.value >= LIKED_FROM, vote.id)
    elif vote.kind == "pair" and vote.both_bad:
        task = read.tasks[vote.task_id]
        for draft in dict.fromkeys((task.draft_a, task.draft_b)):
            yield _thumb(read.drafts[draft], False, vote.id)


def _thumb(draft: Draft, liked: bool, id: str) -> Made:
    if not draft.text.strip():
        return "empty answer"
    if liked and draft.finish in CUT_OFF:
        return "cut-off answer liked"
    return to_row(Thumb(draft.messages, draft.text, liked, "")), [id]


def _sft(read: Read, vote: Vote) -> Iterator[Made]:
    if vote.kind not in ("edit", "score") or (vote.kind == "score" and vote.value < 5):
        return
    draft = read.drafts[vote.draft_id]
    text = draft.text if vote.kind == "score" else read.drafts[vote.edit_draft_id].text
    if not text.strip():
        yield "empty answer"
    elif vote.kind == "edit" and text == draft.text:
        yield "edit changed nothing"
    elif vote.kind == "score" and draft.finish in CUT_OFF:
        yield "cut-off answer liked"
    else:
        yield to_row(Chat((*draft.messages, Message("assistant", text)), "")), [vote.id]


def _prompts(read: Read, votes: Sequence[Vote], after_seq: int, dropped: Counter) -> Iterator[tuple[Row, list[str]]]:
    """Each prompt with its votes up and down; most probably bad first, (down + 1) / (up + down + 2), then most votes."""
    about: dict[str, list[Vote]] = {}
    for vote in votes:
        if vote.seq > after_seq:
            about.setdefault(read.judged(vote)[0].prompt_id, []).append(vote)
    found = []
    for own in about.values():
        up, down = sum(map(_is_up, own)), sum(map(_is_down, own))
        messages = read.judged(own[0])[0].messages
        row = {"prompt": [{"role": m.role, "content": m.content} for m in messages], "up": up, "down": down}
        found.append((-(down + 1) / (up + down + 2), -len(own), own[0].seq, row, [v.id for v in own]))
    for *_, row, ids in sorted(found, key=lambda entry: entry[:3]):
        yield row, ids


def _is_up(vote: Vote) -> bool:
    return (vote.kind == "thumb" and vote.value > 0) or (vote.kind == "score" and vote.value >= LIKED_FROM)


def _is_down(vote: Vote) -> bool:
    low = vote.kind == "score" and vote.value <= DISLIKED_TO
    return low or vote.kind == "edit" or vote.both_bad or (vote.kind == "thumb" and vote.value < 0)


def _arena(read: Read, vote: Vote) -> Iterator[Made]:
    if vote.kind == "pair":
        yield arena_row(read, vote), [vote.id]


def _argilla(read: Read, votes: Sequence[Vote], after_seq: int, dropped: Counter) -> Iterator[tuple[Row, list[str]]]:
    return argilla_rows(read, [vote for vote in votes if vote.seq > after_seq])


MAKERS: Mapping[str, Callable[[Read, Sequence[Vote], int, Counter], Iterator[tuple[Row, list[str]]]]] = {
    "dpo": _dpo,
    "pairs": _pairs,
    "kto": _each(_kto),
    "sft": _each(_sft),
    "prompts": _prompts,
    "argilla": _argilla,
    "arena": _each(_arena),
}
FORMATS = tuple(MAKERS)


class Written(msgspec.Struct, frozen=True):
    """What lies beside an exported file as FILE.export.json."""

    id: str
    """sha256 of the file."""
    format: str
    path: str
    rows: int
    dropped: dict[str, int]
    first_seq: int
    last_seq: int
    split: str | None
    people: list[str] | None
    votes: int
    """Different votes behind the rows."""
    votes_sha256: str
    """Digest of the ids of the votes, row by row."""
    fledge: str


def write_export(
    store: Store,
    format: Format,
    path: Path | str,
    after_seq: int = 0,
    upto_seq: int | None = None,
    split: Split | None = None,
    people: Sequence[str] | None = None,
) -> Written:
    """`export_rows` as a file, whole or not at all, with FILE.export.json beside it, known to the store if it is writable.

    Argilla's settings are written beside as FILE.settings.json.
    """
    path = Path(path)
    found = export_rows(store, format, after_seq, upto_seq, split, people)
    data = found.data()
    written = Written(
        id=sha256(data), format=format, path=path.name, rows=len(found.rows), dropped=found.dropped,
        first_seq=found.first_seq, last_seq=found.last_seq, split=split, people=None if people is None else sorted(people),
        votes=len({id for ids in found.votes for id in ids}), votes_sha256=sha256(canonical_json(found.votes)),
        fledge=__version__,
    )  # fmt: skip
    write_atomically(path, data)
    if format == "argilla":
        write_atomically(path.with_name(f"{path.name}.settings.json"), canonical_json(settings()))
    write_atomically(path.with_name(f"{path.name}.export.json"), canonical_json(written))
    if not store.database.read_only:
        spec = {"after_seq": after_seq, "upto_seq": found.last_seq, "split": split, "people": written.people}
        store.put_export(
            id=written.id, format=format, spec=spec, rows=written.rows, dropped=found.dropped, first_seq=found.first_seq,
            last_seq=found.last_seq, path=str(path), votes=found.votes,
        )  # fmt: skip
    return written
