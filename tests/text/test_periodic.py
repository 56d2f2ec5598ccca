"""Periodic spans are found exactly, carry no weight in pretraining, and leave everything else as it was."""

import itertools

import numpy as np
import pytest
import torch
from source_checks import assert_resumes_everywhere, columns, take

from fledge.stages.pretrain import PretrainRecipe
from fledge.text.mixing import MixedSource, Part
from fledge.text.periodic import periodic, periodic_spans
from fledge.text.sources import DocumentSource, TokenStore

LENGTH = 128


def slow_spans(values: list[int], longest: int, repeats: int) -> set[tuple[int, int]]:
    """Every longest stretch in which each value equals the one `period` before, for every period."""
    found = set()
    for period in range(1, longest + 1):
        start = 0
        for i in range(period, len(values) + 1):
            if i == len(values) or values[i] != values[i - period]:
                if i - start >= repeats * period:
                    found.add((start, i))
                start = i - period + 1
    return found


def planted(rng: np.random.Generator, length: int) -> np.ndarray:
    """Random tokens with a few stretches of short period among them."""
    values = rng.integers(0, 4, length)
    for _ in range(rng.integers(0, 4)):
        period, start = int(rng.integers(1, 10)), int(rng.integers(0, length))
        stretch = np.resize(rng.integers(0, 3, period), int(rng.integers(14, 60) * period))
        stretch = stretch[: length - start]
        values[start : start + len(stretch)] = stretch
    return values


def test_spans_are_those_of_the_slow_twin():
    rng, several = np.random.default_rng(0), 0
    for _ in range(400):
        values = planted(rng, int(rng.integers(1, 1500)))
        longest, repeats = int(rng.integers(1, 14)), int(rng.integers(16, 24))
        slow = slow_spans(values.tolist(), longest, repeats)
        assert {tuple(span) for span in periodic_spans(values, longest, repeats).tolist()} == slow
        several += len(slow) > 1
    assert several > 50


@pytest.mark.parametrize("period", [1, 2, 5, 13])
def test_thirty_two_repeats_are_a_span_and_one_token_less_is_none(period):
    values = np.concatenate([[90, 91], np.resize(np.arange(period), 32 * period), [92]])
    assert periodic(values[None]).tolist() == [[False] * 2 + [True] * 32 * period + [False]]
    assert not periodic(np.delete(values, 2)[None]).any()


def test_a_period_of_fourteen_and_spans_over_two_rows_are_none():
    assert not periodic(np.resize(np.arange(14), 14 * 40)[None]).any()
    assert not periodic(np.full((2, 31), 7)).any()
    assert periodic(np.full((2, 32), 7)).all()
    assert periodic(np.zeros((0, 5), int)).shape == (0, 5)


def test_too_few_repeats_are_refused():
    with pytest.raises(ValueError, match="repeats = 3: must be at least 16; 32 is usual"):
        periodic_spans(np.zeros(9), repeats=3)
    assert PretrainRecipe(out="x", text=["y"], mask_repeats=3).problems() == [
        "mask_repeats = 3: must be at least 16; none masks nothing"
    ]
    assert PretrainRecipe(out="x", text=["y"]).mask_repeats == 32
    assert PretrainRecipe(out="x", text=["y"], mask_repeats=None).problems() == []


# ------------------------------------------------------------------------------------------------ in training


@pytest.fixture(scope="module")
def store(sentences, tokenizer, tmp_path_factory) -> TokenStore:
    texts = [f"{n}. {sentences[n % len(sentences)]}" for n in range(200)]
    return TokenStore.build(texts, tokenizer, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def noisy(sentences, tokenizer, tmp_path_factory) -> TokenStore:
    texts = [f"{n}. {sentences[n % len(sentences)]}" for n in range(60)] + ["m m " * 900, "嗯" * 900]
    return TokenStore.build(texts, tokenizer, tmp_path_factory.mktemp("noisy"))


def test_batches_without_a_span_are_the_same_bytes(store):
    plain, masked = (
        take(DocumentSource(store, rows=4, length=LENGTH, seed=3, mask_repeats=repeats), 20) for repeats in (None, 32)
    )
    assert [columns(b) for b in plain] == [columns(b) for b in masked]


def test_targets_inside_a_span_weigh_nothing_and_all_others_as_before(noisy):
    plain, masked = (
        DocumentSource(noisy, rows=1, length=LENGTH, seed=3, mask_repeats=repeats) for repeats in (None, 32)
    )
    rows = plain.rows_per_epoch
    kept = {}
    for batch in masked:
        if masked.epoch:
            break
        kept[int(batch.ids[0])] = batch
    some = none = 0
    for batch in take(plain, rows):
        whole = torch.cat([batch.tokens[0], batch.targets[0, -1:]]).tolist()
        inside = torch.zeros(LENGTH + 1, dtype=torch.bool)
        for start, end in slow_spans(whole, 13, 32):
            inside[start:end] = True
        expected = batch.weight * ~inside[1:]
        row = kept.get(int(batch.ids[0]))
        if row is not None:
            assert torch.equal(row.weight, expected)
            assert row.units == float(expected.sum()) > 0
            some += bool(inside.any())
        else:
            none += not expected.any()
    assert some  # rows masked in part
    assert none + len(kept) in (rows, rows - 1)  # and rows left with nothing, which are skipped
    assert none


def test_skipped_batches_resume_exactly(noisy):
    assert_resumes_everywhere(
        lambda: DocumentSource(noisy, rows=1, length=LENGTH, seed=1, mask_repeats=32), steps=30, epochs=1
    )
    ids = [int(b.ids[0]) for b in take(DocumentSource(noisy, rows=1, length=LENGTH, seed=1, mask_repeats=32), 60)]
    assert len({*ids}) < DocumentSource(noisy, rows=1, length=LENGTH, seed=1).rows_per_epoch


def test_text_that_is_nothing_but_one_span_is_an_error_and_no_endless_loop(tokenizer, tmp_path):
    bare = TokenStore.build(["嗯" * 5000], tokenizer, tmp_path)
    for source in (
        DocumentSource(bare, rows=2, length=LENGTH, seed=0, mask_repeats=32),
        MixedSource([Part(DocumentSource(bare, rows=2, length=LENGTH, seed=0), 1.0, None)], rows=2, mask_repeats=32),
    ):
        with pytest.raises(ValueError, match="lies in a span that repeats 32 times or more"):
            next(iter(source))


def test_a_mixture_masks_as_its_sources_do(noisy, store):
    parts = [Part(DocumentSource(s, rows=2, length=LENGTH, seed=k), 1.0, None) for k, s in enumerate((noisy, store))]
    masked = 0
    for batch in itertools.islice(MixedSource(parts, rows=4, mask_repeats=32), 20):
        whole = np.concatenate([batch.tokens.numpy(), batch.targets.numpy()[:, -1:]], 1)
        inside = periodic(whole)[:, 1:]
        assert not batch.weight.numpy()[inside].any()
        masked += int(inside.sum())
    assert masked
