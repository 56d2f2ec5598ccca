"""Sites: every page but junk once, with its kind, in long documents."""

import pytest

from fledge.world import World, WorldConfig
from fledge.world.sites import GAP, sites


def test_pages_of_one_kind_stand_together_once_each():
    rows = list(World(WorldConfig.quick(2)).documents())
    kinds = {row["text"]: (row["language"], row["source"], row["form"]) for row in rows if row["source"] != "junk"}
    made = list(sites(rows, 5, 0))
    pages = [site.split(GAP) for site in made]
    assert sorted(p for site in pages for p in site) == sorted(r["text"] for r in rows if r["source"] != "junk")
    assert {len(site) for site in pages} == {1, 2, 3, 4, 5} and sum(len(site) == 5 for site in pages) > 0.9 * len(pages)
    assert all(len({kinds[p] for p in site}) == 1 for site in pages)
    assert made == list(sites(rows, 5, 0)) != list(sites(rows, 5, 1))
    with pytest.raises(ValueError, match="pages = 0: must be at least 1"):
        next(sites(rows, 0, 0))
