"""The published claims one can rerun: one line each, and the module that runs it. Imports nothing heavy."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """A claim and where its lab is."""

    module: str  # in fledge.labs
    title: str
    chinese: str
    claim: str  # in a sentence
    paper: str  # who, year, section
    minutes: float  # one seed at pocket, measured alone on 2 cores; the shared models it needs are counted apart
    needs: tuple[str, ...] = ()  # shared models, see bench.SHARED

    def load(self) -> Any:
        """The lab's module: Setup, SCALES, measure, judge and draw (see `bench.Lab`)."""
        return import_module(f"fledge.labs.{self.module}")


# fmt: off
LABS = {
    "P2": Entry("p02_next_token", "Next token is classification", "預測下一個詞就是分類",
                "A language model is a classifier of the next token: it reaches the entropy of its source, and cannot go below.",
                "Shannon 1948, section 7; Bengio et al. 2003", 1.0),
}
# fmt: on


def entry(name: str) -> Entry:
    """The entry called `name`, whatever its case. Raises ValueError naming those there are."""
    found = LABS.get(name.upper())
    if found is None:
        raise ValueError(f"no lab {name!r}: there are {', '.join(LABS)} (`fledge lab list`)")
    return found
