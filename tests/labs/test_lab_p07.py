"""P7, memorisation: the correlation, the half that is asked, and the whole lab at its smallest."""

import pytest

from fledge.labs import p07_memorisation as lab
from fledge.labs.bench import Bench


def test_the_half_of_a_quote_begins_it():
    quote = " ".join(f"w{i}" for i in range(12))
    assert lab.half(quote) == "w0 w1 w2 w3 w4 w5" and quote.startswith(lab.half(quote) + " ")


def test_correlation_with_repeats():
    setup = lab.Setup(repeats=(1, 4, 16))

    def found(*ratios):
        return {str(r): [{"acr": a}, {"acr": a}] for r, a in zip(setup.repeats, ratios, strict=True)}

    assert lab.rises(setup, found(0.8, 1.0, 4.0)) == pytest.approx(1)
    assert lab.rises(setup, found(4.0, 1.0, 0.8)) == pytest.approx(-1)
    assert lab.rises(setup, found(0.8, 0.8, 0.8)) == 0.0


def test_settings_are_checked():
    assert "rising" in lab.Setup(repeats=(4, 1)).problems()[0]
    assert not any(setup.problems() for setup in lab.SCALES.values())


def test_the_lab_at_its_smallest(tmp_path):
    setup, bench = lab.SCALES["tiny"], Bench(tmp_path, tmp_path / "shared", 0, "tiny")
    found = lab.measure(setup, bench)
    assert set(found) == {"1", "8", "unseen", "random tokens", "random weights", "refusing"}
    for rows in found.values():
        assert len(rows) == setup.quotes and all(
            row["tokens"] >= 12 and row["acr"] > 0 and row["asked"] in (0, 1) for row in rows
        )
    told = lab.judge(setup, [found, found])
    assert len(told.numbers) == 8 and len(told.checks) == 8
    assert lab.draw(setup, [found]).startswith("<svg")
    assert lab.measure(setup, bench) == found  # kept, not searched for again
