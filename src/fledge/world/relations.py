"""What a relation is: its wordings in both languages. The wordings themselves are in `relations_country` and `relations_person`."""

from __future__ import annotations

import msgspec

LANGUAGES = ("en", "zh")

# In every wording {e} is the entity's full name, {v} the value as it stands inside a sentence ("the Karu River"),
# {V} the same with a capital first letter ("The Karu River").


class Wording(msgspec.Struct, frozen=True, kw_only=True):
    """The sentences of one relation in one language."""

    statements: tuple[str, ...]
    """At least ten ways to state the fact; the first three also serve as full-sentence answers."""
    questions: tuple[str, ...]
    """Four ways to ask for the value."""
    follow_up: str
    """A second question about the same entity, with a pronoun."""


class Relation(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of fact."""

    name: str
    entity_kind: str
    """"country" or "person"."""
    value_en: str
    """How a value stands in an English sentence, e.g. "the {} River"; `a` before {} becomes `an` where needed."""
    value_zh: str
    """How a value stands in a Chinese sentence, e.g. 「{}河」."""
    en: Wording
    zh: Wording

    def wording(self, language: str) -> Wording:
        """The sentences in `language` ("en" or "zh")."""
        return self.en if language == "en" else self.zh


def capital(text: str) -> str:
    """The text with its first letter in upper case (`str.capitalize` would lower the rest)."""
    return text[:1].upper() + text[1:]


def with_article(noun: str) -> str:
    """ "a baker", "an actor"; right for every noun of this world."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun
