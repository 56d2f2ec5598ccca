"""Sites: a world's pages joined into long documents, as pages of one kind stand together on the web.

A page of the world holds one question, or a few sentences, and then it ends: a model of such pages ends as soon as it
has said something. On a site many pages of one kind follow each other: quizzes, calls for help, questions with their
answers, articles about one entity. A model of sites goes on writing, and learns to go on as a text began.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fledge.world.dice import Dice

GAP = "\n\n"
"""What stands between two pages."""


def sites(documents: Iterable[Mapping[str, Any]], pages: int, seed: int) -> Iterator[str]:
    """Texts of up to `pages` pages of one kind and language each, every page but junk used once, in random order.

    documents: as `World.documents()` gives them. Kinds: the forms of web pages, plain sentences, and the pages of facts
    of each entity. Raises ValueError for pages below 1.
    """
    if pages < 1:
        raise ValueError(f"pages = {pages}: must be at least 1")
    dice, kinds = Dice(seed, 150), {}
    for row in documents:
        if row["source"] != "junk":
            about = row["facts"][0].split(".")[0] if row["source"] == "facts" else row["form"]
            kinds.setdefault((row["language"], row["source"], about), []).append(row["text"])
    joined = []
    for texts in kinds.values():
        texts = dice.shuffled(texts)
        joined += [GAP.join(texts[start : start + pages]) for start in range(0, len(texts), pages)]
    yield from dice.shuffled(joined)
