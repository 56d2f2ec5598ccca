"""One document of the world."""

from __future__ import annotations


def page(
    text: str,
    language: str,
    source: str,
    *,
    quality: str = "good",
    form: str | None = None,
    facts: list[str] | None = None,
    dup_cluster: str | None = None,
) -> dict:
    """A document with its hidden labels.

    `source`: facts, web, grammar or junk. `quality`: "good", or what kind of junk it is. `form`: how a web page goes on
    after its question. `facts`: ids of the facts it states truly. `dup_cluster`: shared by a page and its copies."""
    return {
        "text": text,
        "language": language,
        "source": source,
        "quality": quality,
        "form": form,
        "dup_cluster": dup_cluster,
        "facts": facts or [],
    }
