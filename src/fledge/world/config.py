"""The settings of the micro-world."""

from __future__ import annotations

import msgspec


class WorldConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How large the world is and what its text is made of. The default gives about 5 million tokens (2,048-token BPE)."""

    seed: int = 0
    """The same seed gives the same bytes on every machine."""
    countries: int = 130
    """Number of fictional countries; each has four facts."""
    people: int = 160
    """Number of fictional people; each has three facts."""
    top_count: int = 520
    """How often each fact of the most-read entity is stated, in each language."""
    count_offset: float = 1000.0
    """q of Zipf-Mandelbrot: count(rank) = max(1, round(top_count * ((1 + q) / (rank + q)) ** s)); large q = flat top."""
    count_exponent: float = 20.0
    """s of Zipf-Mandelbrot: how fast the counts fall from the best-known entity to the least-known one."""
    web_share: float = 0.29
    """Share of characters, in each language, of web pages that put a question and mostly do not answer it."""
    grammar_share: float = 0.14
    """Share of characters of plain sentences without facts: grammar, kinds of things, how everyday things are done."""
    junk_share: float = 0.05
    """Share of characters of junk: boilerplate, copies, keyword spam, noise and wrong facts."""
    n_chats: int = 6000
    """Number of conversations for fine-tuning; their fact questions are about train entities only."""
    n_pairs: int = 4000
    """Number of preference pairs (a better and a worse answer) for training."""
    n_pairs_heldout: int = 500
    """Number of preference pairs about held-out entities and requests, for testing a reward model."""

    def __post_init__(self) -> None:
        """Raises ValueError with all broken rules in one list."""
        wrong = []
        for name in ("countries", "people"):
            if not 4 <= getattr(self, name) <= 400:
                wrong.append(f"{name} = {getattr(self, name)}: must be between 4 and 400")
        for name in ("top_count", "n_chats", "n_pairs", "n_pairs_heldout"):
            if getattr(self, name) < 1:
                wrong.append(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.count_offset < 0 or self.count_exponent < 0:
            wrong.append(
                f"count_offset = {self.count_offset}, count_exponent = {self.count_exponent}: must not be negative"
            )
        shares = (self.web_share, self.grammar_share, self.junk_share)
        if min(shares) < 0 or sum(shares) > 0.9:
            wrong.append(
                f"web, grammar and junk share = {shares}: each at least 0, together at most 0.9 (the rest is facts)"
            )
        if wrong:
            raise ValueError("world config: " + "; ".join(wrong))

    @classmethod
    def quick(cls, seed: int = 0) -> WorldConfig:
        """About a sixth of the text, for tests and first tries; the counts have the same shape."""
        return cls(
            seed=seed, countries=24, people=24, count_offset=1000.0 / 6, n_chats=2500, n_pairs=1600, n_pairs_heldout=200
        )

    def count(self, rank: int) -> int:
        """Statements of each fact of the entity at `rank` (1 = best known), per language."""
        q = self.count_offset
        return max(1, round(self.top_count * ((1 + q) / (rank + q)) ** self.count_exponent))
