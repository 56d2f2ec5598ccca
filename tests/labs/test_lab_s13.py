"""S13, embers of autoregression: the cipher, the frequencies, exact accuracy, and the whole lab at its smallest."""

import numpy as np
import pytest

from fledge.labs import s13_embers as lab
from fledge.labs.bench import Bench
from fledge.labs.s13_embers import ARMS, FREQUENT, LEXICON, SHIFTS, Writer, asked, follows, shares, shift
from fledge.stages.common import open_model


def test_the_cipher():
    assert shift("stay here!", 13) == "fgnl urer!" and shift("zoo", 1) == "app"
    assert all(shift(shift("any old text", n), 26 - n) == "any old text" for n in SHIFTS)
    assert asked("stay here", 13) == "rot-13: fgnl urer ->"


def test_frequencies_of_the_arms():
    skewed, seven, uniform = (shares(arm, 5) for arm in ("skewed", "seven", "uniform"))
    for found in (skewed, seven, uniform):
        assert sorted(found) == [*SHIFTS] and sum(found.values()) == pytest.approx(1)
    assert (skewed[13], skewed[1], skewed[3]) == (0.55, 0.15, 0.15)
    rare = [skewed[n] for n in SHIFTS if n not in FREQUENT]
    assert sum(rare) == pytest.approx(0.15) and len(set(rare)) == 22 and max(rare) < 0.05
    assert (seven[7], seven[13]) == (skewed[13], skewed[7]) and len(set(uniform.values())) == 1
    assert shares("skewed", 6) != skewed == shares("skewed", 5)


def test_lines_have_the_frequencies_they_are_given():
    lines = Writer(0, 10).lines(200_000, shares("skewed", 0), plain=0.2)
    assert 200_000 <= sum(len(line) + 2 for line in lines) < 200_100
    ciphers = [line.split(": ", 1) for line in lines if line.startswith("rot-")]
    assert len(ciphers) / len(lines) == pytest.approx(0.8, abs=0.03)
    assert np.mean([head == "rot-13" for head, _ in ciphers]) == pytest.approx(0.55, abs=0.03)
    for head, body in ciphers[:50]:
        cipher, text = body.split(" -> ")
        assert shift(text, int(head[4:])) == cipher and set(text.split()) <= set(LEXICON)


def test_unlikely_sentences_have_the_same_letters():
    likely = Writer(0, 1).sentences(50)
    unlikely = Writer(0, 2).unlikely(likely)
    assert [[*map(len, t.split())] for t in likely] == [[*map(len, t.split())] for t in unlikely]
    assert [sorted(t) for t in likely] == [sorted(t) for t in unlikely]
    assert sum(w in LEXICON for t in unlikely for w in t.split()) < 10


def test_the_lexicon_is_300_words():
    assert len(LEXICON) == len(set(LEXICON)) == 300 and all(w.isascii() and w.islower() for w in LEXICON)


def test_correlation_with_frequency():
    share = [shares("skewed", 0)[n] for n in SHIFTS]
    assert follows(share, share) == pytest.approx(1) and follows([0.0] * 25, share) == 0.0
    equal = [share[n - 1] if n in FREQUENT else 0.1 for n in SHIFTS]
    assert follows(share, [s if n in FREQUENT else 0.15 / 22 for n, s in zip(SHIFTS, share, strict=True)]) < 0.57
    assert follows(equal, equal) == pytest.approx(1)


def test_the_lab_at_its_smallest(tmp_path):
    setup, bench = lab.SCALES["tiny"], Bench(tmp_path, tmp_path / "shared", 0, "tiny")
    found = lab.measure(setup, bench)
    assert set(found) == set(ARMS) and [len(found[arm]["curve"]) for arm in ARMS] == [2, 3, 2]
    assert len(found["skewed"]["likely"]) == 25 and all(
        0 <= d <= 1 for d in found["seven"]["answers"]["unlikely"]["distance"]
    )
    told = lab.judge(setup, [found, found])
    assert len(told.numbers) == 8 and len(told.checks) == 7
    assert lab.draw(setup, [found]).startswith("<svg")
    # Scoring says "exact" of a text exactly when writing it out gives it back.
    opened = open_model(bench.out("skewed-1"), precision="float32")
    assert lab.accuracies(opened, ["stay here"]) == [float(d == 0) for d in lab.told(opened, ["stay here"])["distance"]]
