"""Digests: canonical JSON, the digest of what was judged, and the chain that ties each vote to the one before it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from fledge.text.messages import Message

START = "0" * 64  # prev_sha256 of the first vote
JUDGED = ("id", "prompt_id", "checkpoint_id", "decoding_id", "seed", "text_sha256", "tokens_sha256")
_OUTSIDE = ("comment", "sha256")  # the text can be blanked, its digest stays; the digest cannot hold itself


def canonical(value: Any) -> str:
    """Dicts with sorted keys, no spaces: what `core.checkpoint.canonical_json` writes, without its newline and without torch."""
    return msgspec.json.encode(value, order="deterministic").decode()


def digest(text: str) -> str:
    """sha256 of UTF-8 text, 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def prompt_json(messages: Iterable[Message]) -> str:
    """What a prompt's id is the digest of: a list of {"content", "role"}."""
    return canonical([{"content": m.content, "role": m.role} for m in messages])


NOTHING_SHA256 = digest(canonical([]))


def judged_sha256(drafts: Iterable[Mapping[str, Any]]) -> str:
    """Commits to the exact answers a vote is about; digests of texts only, so it outlives their blanking."""
    return digest(canonical([{name: draft[name] for name in JUDGED} for draft in drafts]))


def row_sha256(row: Mapping[str, Any]) -> str:
    """Digest of a vote's row, which holds that of the row before: changing, removing or moving one breaks the chain."""
    return digest(canonical({name: value for name, value in row.items() if name not in _OUTSIDE}))
