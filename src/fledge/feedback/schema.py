"""The tables of the store, alike on SQLite and PostgreSQL. Rows of `vote` are only ever added.

Times are milliseconds since the epoch, JSON is canonical text, and texts are only blanked, never changed, so that
every digest stays true.
"""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
)
from sqlalchemy.dialects.sqlite import REAL

FORMAT = 1
TEXT_BYTES = 256 << 10
COMMENT_BYTES = 4 << 10
PROMPT_BYTES = 1 << 20
KINDS = ("owner", "person", "simulated", "rule", "reward", "judge", "self", "import")
ROLES = ("owner", "rater", "service")
ORIGINS = ("model", "human", "import")
WHYS = ("random", "gold", "compare")

metadata = MetaData()
# STRICT tables of SQLite know INTEGER, REAL and TEXT; "C" sorts by code point, as SQLite does
_Big = BigInteger().with_variant(Integer, "sqlite")
_Small = SmallInteger().with_variant(Integer, "sqlite")
_Real = Double().with_variant(REAL, "sqlite")
_Text = Text().with_variant(Text(collation="C"), "postgresql")


def _table(name: str, *parts) -> Table:
    return Table(name, metadata, *parts, sqlite_strict=True)


def _must(name: str, kind=_Text, *parts) -> Column:
    return Column(name, kind, *parts, nullable=False)


def _may(name: str, kind=_Text, *parts) -> Column:
    return Column(name, kind, *parts, nullable=True)


def _key(name: str = "id") -> Column:
    return Column(name, _Text, primary_key=True, nullable=False)


def _one_of(column: str, *values: str) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(map(repr, values))})")


head = _table(
    "head", Column("id", Integer, primary_key=True), _must("format", Integer), _must("seq", _Big), _must("sha256")
)

person = _table(
    "person",
    _key(),
    _must("kind"),
    _must("name"),
    _must("role"),
    Column("secret_sha256", _Text, unique=True),
    _must("created_ms", _Big),
    _may("disabled_ms", _Big),
    _one_of("kind", *KINDS),
    _one_of("role", *ROLES),
)

checkpoint = _table(
    "checkpoint",
    _key(),
    _must("stage"),
    _must("step", _Big),
    _must("path"),
    _may("parent_id"),
    _must("template_sha256"),
    _must("tokenizer_sha256"),
    _must("card_json"),
    _must("created_ms", _Big),
)

decoding = _table("decoding", _key(), _must("json"))

prompt = _table(
    "prompt",
    _key(),
    _must("messages_json"),
    _must("language"),
    _must("source"),
    _may("blanked_ms", _Big),
    CheckConstraint(f"length(messages_json) <= {PROMPT_BYTES}"),
)

conversation = _table(
    "conversation",
    _key(),
    _must("person_id", _Text, ForeignKey("person.id")),
    _must("title"),
    _must("created_ms", _Big),
    _may("blanked_ms", _Big),
    Index("conversation_person", "person_id", "created_ms"),
)

draft = _table(
    "draft",
    _key(),
    _must("prompt_id", _Text, ForeignKey("prompt.id")),
    _may("conversation_id", _Text, ForeignKey("conversation.id")),
    _must("person_id", _Text, ForeignKey("person.id")),
    _may("checkpoint_id", _Text, ForeignKey("checkpoint.id")),
    _may("decoding_id", _Text, ForeignKey("decoding.id")),
    _may("seed", _Big),
    _may("stream", _Big),
    _must("tokens_json"),
    _must("tokens_sha256"),
    _must("text"),
    _must("text_sha256"),
    _may("logp", _Real),
    _must("finish"),
    _must("origin"),
    _may("parent_id", _Text, ForeignKey("draft.id", deferrable=True, initially="DEFERRED")),
    _must("created_ms", _Big),
    _must("took_ms", _Big),
    _may("blanked_ms", _Big),
    _one_of("origin", *ORIGINS),
    CheckConstraint(f"length(text) <= {TEXT_BYTES}"),
    Index("draft_prompt", "prompt_id"),
    Index("draft_person", "person_id"),
    Index("draft_conversation", "conversation_id"),
)

task = _table(
    "task",
    _key(),
    _must("prompt_id", _Text, ForeignKey("prompt.id")),
    _must("person_id", _Text, ForeignKey("person.id")),
    _must("draft_a", _Text, ForeignKey("draft.id")),
    _must("draft_b", _Text, ForeignKey("draft.id")),
    _must("left"),
    _must("why"),
    _may("expected"),
    _must("created_ms", _Big),
    CheckConstraint("draft_a <> draft_b"),
    CheckConstraint("\"left\" IN ('a', 'b')"),
    _one_of("why", *WHYS),
    _one_of("expected", "a", "b"),
    Index("task_person", "person_id", "created_ms"),
    Index("task_draft_a", "draft_a"),
    Index("task_draft_b", "draft_b"),
)

vote = _table(
    "vote",
    Column("seq", _Big, primary_key=True, autoincrement=False),
    Column("id", _Text, nullable=False, unique=True),
    _must("person_id", _Text, ForeignKey("person.id")),
    _must("kind"),
    _must("subject"),
    _may("draft_id", _Text, ForeignKey("draft.id")),
    _may("task_id", _Text, ForeignKey("task.id")),
    _may("value", _Small),
    _must("both_bad", _Small),
    _may("edit_draft_id", _Text, ForeignKey("draft.id")),
    _may("supersedes", _Text, ForeignKey("vote.id")),
    _must("reasons_json"),
    _must("comment"),
    _must("comment_sha256"),
    _may("dwell_ms", _Big),
    _may("client_ms", _Big),
    _must("server_ms", _Big),
    _must("subject_sha256"),
    _must("prev_sha256"),
    _must("sha256"),
    _one_of("kind", "thumb", "pair", "score", "edit", "retract", "forget"),
    # COALESCE, because a CHECK that comes out NULL passes
    CheckConstraint("kind <> 'thumb' OR (COALESCE(value, 9) IN (-1, 1) AND draft_id IS NOT NULL)", name="thumb"),
    CheckConstraint("kind <> 'pair' OR (COALESCE(value, 9) IN (-1, 0, 1) AND task_id IS NOT NULL)", name="pair"),
    CheckConstraint("kind <> 'score' OR (COALESCE(value, 9) BETWEEN 0 AND 5 AND draft_id IS NOT NULL)", name="score"),
    CheckConstraint("kind <> 'edit' OR (draft_id IS NOT NULL AND edit_draft_id IS NOT NULL)", name="edit"),
    CheckConstraint("kind <> 'retract' OR supersedes IS NOT NULL", name="retract"),
    CheckConstraint("value IS NULL OR kind IN ('thumb', 'pair', 'score')", name="valued"),
    CheckConstraint("both_bad = 0 OR (both_bad = 1 AND kind = 'pair' AND value = 0)", name="both_bad"),
    CheckConstraint(f"length(comment) <= {COMMENT_BYTES}", name="comment"),
    # the only index besides the keys: each one more costs a page of log per vote
    Index("vote_subject", "person_id", "subject", "seq", unique=True),
)

export = _table(
    "export",
    _key(),
    _must("format"),
    _must("spec_json"),
    _must("rows", _Big),
    _must("dropped_json"),
    _must("first_seq", _Big),
    _must("last_seq", _Big),
    _must("path"),
    _must("created_ms", _Big),
)

export_row = _table(
    "export_row",
    _must("export_id", _Text, ForeignKey("export.id")),
    _must("row", _Big),
    _must("vote_id", _Text, ForeignKey("vote.id")),
    PrimaryKeyConstraint("export_id", "row", "vote_id"),
    Index("export_row_vote", "vote_id"),
)

# in an order in which every reference points backwards (a draft's parent is checked at COMMIT)
TABLES = (person, checkpoint, decoding, prompt, conversation, draft, task, vote, export, export_row, head)
