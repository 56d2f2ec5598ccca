"""A batch refuses what would train on NaN, and its parts add up to the whole."""

import dataclasses

import pytest
import torch

from fledge.core.batch import Batch


def batch(rows: int = 6, length: int = 4, **columns) -> Batch:
    count = rows * length
    return Batch(
        tokens=torch.arange(count).view(rows, length), targets=torch.arange(count).view(rows, length) + 1,
        weight=torch.ones(rows, length), units=float(count), ids=torch.arange(rows) + 100, **columns,
    )  # fmt: skip


def test_a_batch_without_a_weighted_token_names_its_rows():
    empty = dataclasses.replace(batch(2), weight=torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"no weighted token \(rows \[100, 101\]\)"):
        empty.check()
    with pytest.raises(ValueError, match="rows unknown"):
        dataclasses.replace(empty, ids=None).check()
    batch().check()


@pytest.mark.parametrize("units", [0.0, -1.0, float("nan")])
def test_units_must_divide(units):
    with pytest.raises(ValueError, match="units"):
        dataclasses.replace(batch(), units=units).check()


@pytest.mark.parametrize(("rows_per_unit", "max_tokens"), [(1, 1), (1, 8), (1, 11), (2, 1), (2, 16), (2, 23), (3, 12)])
def test_split_covers_every_row_once_in_order_and_keeps_units_together(rows_per_unit, max_tokens):
    whole = batch(rows_per_unit=rows_per_unit, label=torch.arange(6))
    parts = list(whole.split(max_tokens))
    for column in ("tokens", "targets", "weight", "label", "ids"):
        assert torch.equal(torch.cat([getattr(p, column) for p in parts]), getattr(whole, column))
    for part in parts:
        assert len(part.tokens) % rows_per_unit == 0 and part.units == whole.units
        assert part.tokens.numel() <= max(max_tokens, 4 * rows_per_unit)
        assert part.advantage is None


def test_a_batch_that_fits_is_not_split():
    whole = batch()
    assert next(iter(whole.split(24))) is whole
    assert len(list(whole.split(23))) == 2


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("rows_per_unit", [1, 2])
def test_ranks_share_every_row_once(world, rows_per_unit):
    whole = batch(10, rows_per_unit=rows_per_unit)
    parts = [whole.shard(rank, world) for rank in range(world)]
    assert torch.equal(torch.cat([p.tokens for p in parts]), whole.tokens)
    assert sum(p.units for p in parts) == pytest.approx(whole.units)
    assert all(len(p.tokens) % rows_per_unit == 0 for p in parts)
