"""Several sources at a ratio: proportions, epochs, caps, and a resume that is exact to the bit."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from source_checks import assert_resumes_everywhere, columns, take

from fledge.text.mixing import MixedSource, Part, forecast, picks, seed_of
from fledge.text.sources import DocumentSource, TokenStore

LENGTH = 16


@pytest.fixture(scope="module")
def stores(sentences, tokenizer, tmp_path_factory) -> list[TokenStore]:
    """Three texts of different sizes; every document of text k begins with the letter of k."""
    made = []
    for number, letter in enumerate("xyz"):
        texts = [f"{letter} {n} {sentences[(n + number) % len(sentences)]}" for n in range(12 + 9 * number)]
        made.append(TokenStore.build(texts, tokenizer, tmp_path_factory.mktemp(f"store-{letter}")))
    return made


def mixed(stores, weights=(1, 1), caps=(None, None, None), rows=4, seed=3) -> MixedSource:
    parts = [
        Part(DocumentSource(store, rows=rows, length=LENGTH, seed=seed_of(seed, k)), weight, cap)
        for k, (store, weight, cap) in enumerate(zip(stores, weights, caps, strict=False))
    ]
    return MixedSource(parts, rows=rows)


def first_tokens(stores) -> list[int]:
    """Where each text begins among the ids of a mixture."""
    return [0, *np.cumsum([len(s.tokens) for s in stores]).tolist()]


def came_from(batch, stores) -> list[int]:
    return (np.searchsorted(first_tokens(stores), batch.ids.numpy(), "right") - 1).tolist()


def everything(stores) -> np.ndarray:
    return np.concatenate([store.tokens for store in stores]).astype(np.int64)


# ---- which row comes from where


def test_the_rows_are_those_of_their_sources_in_their_order(stores):
    source = mixed(stores[:2], weights=(2, 1))
    alone = [iter(DocumentSource(s, rows=1, length=LENGTH, seed=seed_of(3, k))) for k, s in enumerate(stores[:2])]
    whole, start = everything(stores[:2]), first_tokens(stores[:2])
    for batch in take(source, 80):
        origins = came_from(batch, stores[:2])
        assert batch.notes == {"rows_of_0": origins.count(0), "rows_of_1": origins.count(1)}
        for row, origin in enumerate(origins):
            own = next(alone[origin])
            for name in ("tokens", "targets", "weight"):
                assert torch.equal(getattr(batch, name)[row], getattr(own, name)[0])
            assert batch.ids[row] == own.ids[0] + start[origin]
        assert torch.equal(torch.from_numpy(whole[batch.ids.numpy()]), batch.tokens[:, 0]), "an id names its token"
        assert batch.units == batch.weight.sum().item()


def test_one_source_alone_gives_the_batches_of_an_unmixed_run(stores):
    plain = take(DocumentSource(stores[1], rows=4, length=LENGTH, seed=3), 60)
    for one, other in zip(take(mixed(stores[1:2], weights=(5,)), 60), plain, strict=True):
        assert columns(one) == columns(other)


def test_row_by_row_or_in_batches_the_same_rows(stores):
    weights, caps = (3, 1, 0.7), (None, 9, None)
    ones = take(mixed(stores, weights, caps, rows=1), 210)
    sevens = take(mixed(stores, weights, caps, rows=7), 30)
    for name in ("tokens", "targets", "weight", "ids"):
        assert torch.equal(torch.cat([getattr(b, name) for b in ones]), torch.cat([getattr(b, name) for b in sevens]))


@settings(max_examples=60)
@given(
    weights=st.lists(st.floats(0.05, 20), min_size=1, max_size=5),
    count=st.integers(1, 400),
)
def test_the_ratio_holds_at_every_row(weights: list[float], count: int):
    """No source is ever two rows away from its share; of two sources, never a whole row."""
    chosen = picks(np.array(weights), np.zeros(len(weights), np.int64), np.full(len(weights), 10**6), count)
    assert len(chosen) == count
    so_far = np.cumsum(chosen[:, None] == np.arange(len(weights)), 0)  # [n,K]
    wanted = np.arange(1, count + 1)[:, None] * np.array(weights) / sum(weights)
    assert np.abs(so_far - wanted).max() < (1 if len(weights) <= 2 else 2)


@settings(max_examples=60)
@given(
    weights=st.lists(st.integers(1, 7), min_size=2, max_size=4),
    caps=st.lists(st.one_of(st.none(), st.integers(1, 60)), min_size=4, max_size=4),
    cuts=st.lists(st.integers(1, 30), min_size=1, max_size=12),
)
def test_rows_follow_from_how_many_were_taken_alone(weights, caps, cuts):
    """Batches of any sizes give the same rows; caps are reached and never passed."""
    share, most = np.array(weights, float), np.array([10**6 if c is None else c for c in caps[: len(weights)]])
    total, taken, pieces = sum(cuts), np.zeros(len(weights), np.int64), []
    for count in cuts:
        pieces.append(picks(share, taken, most, count))
        taken = taken + np.bincount(pieces[-1], minlength=len(weights))
    whole = picks(share, np.zeros(len(weights), np.int64), most, total)
    assert np.concatenate(pieces).tolist() == whole.tolist()
    assert (taken <= most).all() and len(whole) == min(total, most.sum())


# ---- epochs and caps


def test_every_source_goes_through_whole_epochs_of_its_own(stores):
    source = mixed(stores[:2], weights=(1, 3), rows=2)
    epochs = [Counter(), Counter()]
    for batch in take(source, 300):
        for row, origin in enumerate(came_from(batch, stores[:2])):
            epochs[origin][batch.ids[row].item()] += 1
    for part, seen, taken in zip(source.parts, epochs, source.state_dict()["rows_taken"], strict=True):
        epoch, position = divmod(taken, part.source.rows_per_epoch)
        assert (part.source.epoch, part.source.position) == (epoch, position)
        assert epoch > 3 and seen.total() == taken


def test_a_cap_is_kept_exactly_and_its_share_goes_to_the_others(stores):
    source = mixed(stores, weights=(2, 1, 1), caps=(10, None, None), rows=4)
    origins = [came_from(batch, stores) for batch in take(source, 20)]
    counts = [[o.count(k) for k in range(3)] for o in origins]
    assert counts[:5] == [[2, 1, 1]] * 5, "half of each batch until the cap of 10 rows"
    assert all(c == [0, 2, 2] for c in counts[5:]), "then the others share it"
    assert source.state_dict()["rows_taken"] == [10, 35, 35]


def test_when_all_caps_are_reached_the_last_batch_is_shorter_and_then_it_is_told(stores):
    source = iter(mixed(stores[:2], weights=(1, 1), caps=(3, 7), rows=4))
    assert [len(next(source).tokens) for _ in range(3)] == [4, 4, 2]
    with pytest.raises(ValueError, match=r"every source .* reached its cap \(10 rows in all\): train on fewer"):
        next(source)


@settings(max_examples=100)
@given(
    weights=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    caps=st.lists(st.one_of(st.none(), st.integers(1, 200)), min_size=4, max_size=4),
    rows=st.integers(0, 500),
)
def test_the_forecast_is_what_comes(weights, caps, rows):
    caps = caps[: len(weights)]
    told = forecast(weights, caps, rows)
    most = np.array([10**6 if c is None else c for c in caps])
    chosen = picks(np.array(weights, float), np.zeros(len(weights), np.int64), most, rows)
    real = np.bincount(chosen, minlength=len(weights))
    assert np.abs(np.array(told.rows) - real).max() <= 1
    for k, (cap, at) in enumerate(zip(caps, told.capped_at, strict=True)):
        if at is not None and at < rows - len(weights):
            assert abs(int(np.flatnonzero(chosen == k)[-1]) + 1 - at) <= 2 * len(weights)
        elif cap is not None and at is None:
            assert real[k] >= cap - 1 if real[k] == cap else real[k] < cap


# ---- resume


@pytest.mark.parametrize("rows", [3, 7])
def test_a_mixture_resumes_at_every_step(stores, rows):
    """Through ends of epochs and past a cap, from two integers per source."""

    def make() -> MixedSource:
        return mixed(stores, weights=(1, 2, 1.5), caps=(40, None, None), rows=rows)

    reached = make()
    take(reached, 100)
    assert all(part.source.epoch >= 1 for part in reached.parts) and reached.state_dict()["rows_taken"][0] == 40
    assert reached.state_dict().keys() == {"rows_taken", "rows_skipped", "content"}
    assert_resumes_everywhere(make, steps=100, epochs=0)


def test_another_seed_is_another_order_and_the_same_seed_the_same(stores):
    first, again, other = ([columns(b) for b in take(mixed(stores, (1, 1, 1), seed=s), 5)] for s in (3, 3, 4))
    assert first == again != other


def test_a_batch_without_weight_is_skipped_and_counts_towards_no_cap(stores):
    """A text of one repeated word beside a real one: batches of its rows alone teach nothing."""
    dull = TokenStore(np.full(4000, 300, np.uint16), np.array([0, 4000]), 4000, "dull")

    def make(caps=(None, None)) -> MixedSource:
        return MixedSource(mixed([dull, stores[1]], (8, 1), caps, rows=4).parts, rows=4, mask_repeats=16)

    source = make()
    batches = take(source, 25)
    assert all(1 in came_from(batch, [dull, stores[1]]) for batch in batches)
    state = source.state_dict()
    assert state["rows_skipped"][0] > 50 and state["rows_skipped"][1] == 0 and state["rows_taken"][1] == 25
    assert_resumes_everywhere(make, steps=20, epochs=0)
    capped = make(caps=(10, 30))
    given = np.sum([list(batch.notes.values()) for batch in itertools.islice(capped, 10)], 0)
    assert given.tolist() == [10, 30] and capped.state_dict()["rows_skipped"][0] > 0, (
        "the cap counts what is learned from"
    )
    with pytest.raises(ValueError, match="every token of the texts lies in a span that repeats 16 times"):
        take(MixedSource(mixed([dull], (1,)).parts, rows=4, mask_repeats=16), 100)


@pytest.mark.parametrize("change", [{"weights": (1, 2)}, {"caps": (None, 50)}, {"swap": True}])
def test_other_weights_caps_or_texts_are_refused_on_resume(stores, change):
    source = mixed(stores[:2])
    take(source, 3)
    swap = change.pop("swap", False)
    other = mixed(stores[1:] if swap else stores[:2], **change)
    with pytest.raises(ValueError, match="the texts, their weights or their caps changed since the checkpoint"):
        other.load_state_dict(source.state_dict())


@pytest.mark.parametrize(
    ("weights", "caps", "said"),
    [
        ((0, 1), (None, None), "weight 0"),
        ((1, float("inf")), (None, None), "weight inf"),
        ((1, 1), (0, None), "cap of 0"),
    ],
)
def test_what_cannot_work_is_refused(stores, weights, caps, said):
    with pytest.raises(ValueError, match=f"mixture with {said}"):
        mixed(stores[:2], weights, caps)
    with pytest.raises(ValueError, match="no source"):
        MixedSource([], rows=2)
