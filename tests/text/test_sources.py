"""Every source covers its data exactly once per epoch, weights what it says, and resumes at any step bit for bit."""

import itertools
import json
from collections import Counter

import pytest
import torch
from source_checks import assert_resumes_everywhere, columns, take

from fledge.core.batch import Batch
from fledge.text.formats import Chat, Message
from fledge.text.sources import ChatSource, DocumentSource, MaskedSource, Sequences, TokenStore
from fledge.text.template import Rendered, render_chats

LENGTH = 16


# ------------------------------------------------------------------------------------------------ documents


@pytest.fixture(scope="module")
def texts(sentences) -> list[str]:
    """40 different documents of 1 to about 100 tokens, one of them empty."""
    return ["", "a"] + [f"{n}. " + " ".join(sentences[(n + k) % len(sentences)] for k in range(n % 3)) for n in range(38)]  # fmt: skip


@pytest.fixture(scope="module")
def store(texts, tokenizer, tmp_path_factory) -> TokenStore:
    return TokenStore.build(texts, tokenizer, tmp_path_factory.mktemp("store"))


def documents_of(store: TokenStore) -> list[tuple[int, ...]]:
    return [tuple(store.tokens[a:b].tolist()) for a, b in itertools.pairwise(store.offsets)]


def test_a_store_holds_every_document_between_its_two_marks(store, texts, tokenizer):
    assert len(store) == len(texts) == 40
    assert documents_of(store) == [(tokenizer.bos, *tokenizer.encode(t), tokenizer.eos) for t in texts]
    assert store.bytes == sum(len(t.encode()) for t in texts)


def test_an_epoch_covers_every_token_of_the_stream_exactly_once_in_a_new_order(store, tokenizer):
    source = DocumentSource(store, rows=1, length=LENGTH, seed=3)
    wanted, orders = Counter(documents_of(store)), []
    for _ in range(3):
        rows = take(source, source.rows_per_epoch)
        stream = torch.cat([b.tokens[0] for b in rows] + [rows[-1].targets[0, -1:]]).tolist()
        assert len(stream) == source.rows_per_epoch * LENGTH + 1
        assert 0 <= len(store.tokens) - len(stream) < LENGTH  # less than a row is left over
        for before, after in itertools.pairwise(rows):
            assert before.targets[0, -1] == after.tokens[0, 0]  # a row begins with what the last one predicted last
        starts = [i for i, t in enumerate(stream) if t == tokenizer.bos]
        assert starts[0] == 0
        found = [tuple(stream[a:b]) for a, b in itertools.pairwise([*starts, len(stream)])]
        assert not Counter(found[:-1]) - wanted  # whole documents, none twice
        assert any(d[: len(found[-1])] == found[-1] for d in wanted - Counter(found[:-1]))
        missing = wanted - Counter(found)
        assert sum(map(len, missing.elements())) <= LENGTH + max(map(len, wanted))
        orders.append(found)
    assert orders[0] != orders[1] != orders[2] and source.state_dict()["epoch"] == 3


def test_row_by_row_or_in_batches_the_same_rows(store):
    """Batches run on across the end of an epoch."""
    single = DocumentSource(store, rows=1, length=LENGTH, seed=3)
    count = 2 * single.rows_per_epoch // 4 + 3
    fours = take(DocumentSource(store, rows=4, length=LENGTH, seed=3), count)
    ones = take(single, 4 * count)
    for name in ("tokens", "targets", "weight", "ids"):
        assert torch.equal(torch.cat([getattr(b, name) for b in fours]), torch.cat([getattr(b, name) for b in ones]))
    assert all(b.tokens.shape == (4, LENGTH) for b in fours)


def test_weight_is_0_exactly_where_another_document_begins(store, tokenizer):
    for batch in take(DocumentSource(store, rows=3, length=LENGTH, seed=0), 25):
        assert torch.equal(batch.weight, (batch.targets != tokenizer.bos).float())
        assert batch.units == batch.weight.sum().item()
        assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
        begins = batch.doc[:, 1:] != batch.doc[:, :-1]
        assert torch.equal(begins, batch.tokens[:, 1:] == tokenizer.bos)
        assert torch.equal(torch.from_numpy(store.tokens[batch.ids.numpy()].astype(int)), batch.tokens[:, 0])


def test_documents_resume_at_every_step_over_three_epochs(store):
    assert_resumes_everywhere(lambda: DocumentSource(store, rows=2, length=LENGTH, seed=1), steps=60, epochs=1)
    assert_resumes_everywhere(lambda: DocumentSource(store, rows=5, length=LENGTH, seed=1), steps=60, epochs=3)


def test_another_seed_is_another_order_and_the_same_seed_the_same(store):
    first, again, other = (
        [columns(b) for b in take(DocumentSource(store, rows=4, length=LENGTH, seed=seed), 3)] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_text_shorter_than_one_row_is_refused(tokenizer, tmp_path):
    small = TokenStore.build(["ab"], tokenizer, tmp_path)
    with pytest.raises(ValueError, match=r"the text has \d+ tokens, one row needs 17"):
        DocumentSource(small, rows=1, length=LENGTH, seed=0)


# ---------------------------------------------------------------------------------------------- the store


def test_a_store_is_read_again_and_stops_after_the_document_that_fills_it(texts, tokenizer, tmp_path):
    built = TokenStore.build(texts, tokenizer, tmp_path / "a")
    opened = TokenStore.open(tmp_path / "a", tokenizer)
    assert documents_of(opened) == documents_of(built) and opened.content == built.content
    part = TokenStore.build(texts, tokenizer, tmp_path / "b", max_tokens=100)
    whole_until = next(n for n in range(len(texts)) if built.offsets[n] >= 100)
    assert documents_of(part) == documents_of(built)[:whole_until]
    assert part.content != built.content
    with pytest.raises(ValueError, match="0 usable documents"):
        TokenStore.build([], tokenizer, tmp_path / "c")


def test_the_order_of_documents_is_part_of_the_content(tokenizer, tmp_path):
    one = TokenStore.build(["ab", "c"], tokenizer, tmp_path / "a")
    other = TokenStore.build(["c", "ab"], tokenizer, tmp_path / "b")
    assert one.content != other.content


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.bin"])
def test_a_flipped_bit_anywhere_is_refused(texts, tokenizer, tmp_path, name):
    TokenStore.build(texts[:6], tokenizer, tmp_path)
    path = tmp_path / name
    good = path.read_bytes()
    for at in range(0, len(good), 7):
        path.write_bytes(good[:at] + bytes([good[at] ^ (1 << at % 8)]) + good[at + 1 :])
        with pytest.raises(ValueError, match="is damaged"):
            TokenStore.open(tmp_path)
    path.write_bytes(good)
    TokenStore.open(tmp_path)


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.bin", "store.json"])
@pytest.mark.parametrize(
    "change", [lambda b: b[:-1], lambda b: b[: len(b) // 2 // 8 * 8], lambda b: b"", lambda b: b + b[:8]]
)
def test_a_cut_or_grown_file_is_refused(texts, tokenizer, tmp_path, name, change):
    TokenStore.build(texts[:6], tokenizer, tmp_path)
    before = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(change(before))
    if name == "store.json" and change(before) == before.rstrip():
        TokenStore.open(tmp_path)  # only the line's end is gone
    else:
        with pytest.raises(ValueError, match="is damaged"):
            TokenStore.open(tmp_path)


@pytest.mark.parametrize("key", ["dtype", "documents", "tokens", "sha256"])
def test_store_json_must_fit_the_files(texts, tokenizer, tmp_path, key):
    TokenStore.build(texts[:6], tokenizer, tmp_path)
    meta = json.loads((tmp_path / "store.json").read_bytes())
    wrong = {"dtype": "uint8", "documents": 7, "tokens": 1, "sha256": "0" * 64}
    for value in (wrong[key], None):
        (tmp_path / "store.json").write_text(json.dumps(meta | {key: value}))
        with pytest.raises(ValueError, match="is damaged"):
            TokenStore.open(tmp_path)


def test_tokens_of_another_tokenizer_are_refused(texts, tokenizer, sentences, tmp_path):
    TokenStore.build(texts[:6], tokenizer, tmp_path)
    with pytest.raises(ValueError, match="tokenizer is not the one"):
        TokenStore.open(tmp_path, type(tokenizer).train(sentences, 300))


# ------------------------------------------------------------------------------------------------ conversations


@pytest.fixture(scope="module")
def chats(sentences) -> list[Chat]:
    """30 different conversations of one or two exchanges."""
    made = []
    for n in range(30):
        turns = [Message("user", f"{n} {sentences[n % 9][: 5 + n]}"), Message("assistant", sentences[(n + 4) % 9][:n])]
        if n % 3 == 0:
            turns += [Message("user", "more?"), Message("assistant", f"no {n}")]
        made.append(Chat(tuple(turns), f"test:{n}"))
    return made


@pytest.fixture(scope="module")
def rendered(chats, tokenizer) -> list[Rendered]:
    return render_chats(tokenizer, chats)


def chat_source(rendered, tokenizer, rows=3, length=96, seed=0) -> ChatSource:
    return ChatSource(Sequences(rendered, length + 1), rows=rows, length=length, seed=seed, pad=tokenizer.pad)


def conversations_in(batch: Batch) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """(tokens, weights) of each conversation of a packed batch, put together again from inputs and targets."""
    found = []
    for row in range(len(batch.tokens)):
        docs = batch.doc[row].tolist()
        for doc in dict.fromkeys(docs):
            span = [t for t, d in enumerate(docs) if d == doc]
            assert span == list(range(span[0], span[-1] + 1))
            if doc < 0:
                continue
            inputs, targets = batch.tokens[row, span].tolist(), batch.targets[row, span].tolist()
            assert inputs[1:] == targets[:-1]
            found.append(((*inputs, targets[-1]), (0.0, *batch.weight[row, span].tolist())))
    return found


def test_packing_never_splits_or_loses_a_conversation(rendered, tokenizer):
    source, wanted = chat_source(rendered, tokenizer), Counter((tuple(t), tuple(map(float, w))) for t, w in rendered)
    assert len(wanted) == 30
    orders = []
    for epoch in range(3):
        found, batches = [], 0
        while source.state_dict()["epoch"] == epoch:
            found += conversations_in(next(iter(source)))
            batches += 1
        assert Counter(found) == wanted
        assert epoch or batches == source.steps_per_epoch()
        orders.append(found)
    assert orders[0] != orders[1] != orders[2]


def test_packed_rows_are_padded_without_weight_and_apart_from_the_documents(rendered, tokenizer):
    several = 0
    for batch in take(chat_source(rendered, tokenizer), 12):
        padding = batch.doc == -1
        assert padding.any() and not batch.weight[padding].any()
        assert (batch.tokens[padding] == tokenizer.pad).all()
        assert batch.units == batch.weight.sum().item() > 0
        several += int((batch.doc.max(1).values > 0).sum())
        for row in batch.doc.tolist():
            seen = [d for d, _ in itertools.groupby(row)]
            assert seen == sorted(set(seen) - {-1}) + [-1] * (-1 in seen)  # numbered in order, padding last
    assert several > 10  # rows do hold several conversations


def test_conversations_resume_at_every_step_over_three_epochs(rendered, tokenizer):
    assert_resumes_everywhere(lambda: chat_source(rendered, tokenizer, rows=1), steps=60, epochs=3)


def test_a_conversation_of_exactly_the_limit_fits_and_a_longer_one_is_cut(tokenizer):
    exact = Rendered(list(range(10, 27)), [0] * 10 + [1] * 7)  # T + 1 = 17 tokens
    longer = Rendered(list(range(10, 28)), [0] * 16 + [1] * 2)
    lost = Rendered(list(range(10, 30)), [0] * 17 + [1] * 3)  # its trained tokens are beyond the limit
    sequences = Sequences([exact, longer, lost], 17)
    assert (sequences.cut, sequences.dropped, sequences.kept, len(sequences)) == (2, 1, [0, 1], 2)
    (batch,) = take(ChatSource(sequences, rows=2, length=16, seed=0, pad=0), 1)
    wanted = [(tuple(exact.tokens), tuple(map(float, exact.weights)))]
    wanted += [(tuple(longer.tokens[:17]), tuple(map(float, longer.weights[:17])))]
    assert sorted(conversations_in(batch)) == sorted(wanted)
    with pytest.raises(ValueError, match="none of 1 conversations has a trained token within 17 tokens"):
        Sequences([lost], 17)


# -------------------------------------------------------------------------------------------------------- masked


def masked_source(store, tokenizer, seed=0, rows=2, length=LENGTH) -> MaskedSource:
    documents = DocumentSource(store, rows=rows, length=length, seed=seed)
    return MaskedSource(documents, mask=tokenizer.mask, vocab_size=tokenizer.vocab_size, seed=seed)


def test_masked_positions_and_what_hides_them_have_their_shares(store, tokenizer):
    """15% predicted; of those 80% hidden, 10% random, 10% kept, each within 5 standard deviations."""
    batches = take(masked_source(store, tokenizer, rows=32), 60)
    plain = take(DocumentSource(store, rows=32, length=LENGTH, seed=0), 60)
    tokens, targets, weight = (torch.cat([getattr(b, n) for b in batches]) for n in ("tokens", "targets", "weight"))
    assert torch.equal(targets, torch.cat([b.tokens for b in plain]))  # not shifted: a position predicts itself
    chosen = weight > 0
    assert torch.equal(tokens[~chosen], targets[~chosen])
    hidden = (tokens == tokenizer.mask) & chosen
    kept = (tokens == targets) & chosen
    changed = chosen & ~hidden & ~kept

    def near(count: int, total: int, share: float) -> bool:
        return abs(count - share * total) < 5 * (total * share * (1 - share)) ** 0.5

    total = int(chosen.sum())
    assert near(total, chosen.numel(), 0.15)
    random_kept = 0.1 / tokenizer.vocab_size  # a random token may be the old one, or the mask
    assert near(int(hidden.sum()), total, 0.8 + random_kept)
    assert near(int(kept.sum()), total, 0.1 + random_kept)
    assert near(int(changed.sum()), total, 0.1)
    assert len(set(tokens[changed].tolist())) > 100  # random ones come from the whole vocabulary
    for batch in batches:
        assert batch.units == batch.weight.sum().item()


def test_masked_batches_resume_at_every_step_over_three_epochs(store, tokenizer):
    assert_resumes_everywhere(lambda: masked_source(store, tokenizer, rows=5), steps=60, epochs=3)


def test_a_second_reading_is_masked_differently(store, tokenizer):
    source = masked_source(store, tokenizer, rows=1)
    count = source.source.rows_per_epoch
    first, second = (torch.cat([b.weight for b in take(source, count)]) for _ in range(2))
    assert not torch.equal(first, second)


# ------------------------------------------------------------------------------------------------- other data


def test_other_data_is_refused_on_resume(store, texts, rendered, tokenizer, tmp_path):
    other_store = TokenStore.build([*texts[:-1], texts[-1] + "!"], tokenizer, tmp_path)
    for make, data, other in (
        (lambda d: DocumentSource(d, rows=2, length=LENGTH, seed=0), store, other_store),
        (lambda d: masked_source(d, tokenizer), store, other_store),
        (lambda d: chat_source(d, tokenizer), rendered, rendered[:-1]),
    ):
        source = make(data)
        take(source, 3)
        with pytest.raises(ValueError, match="the data changed since the checkpoint"):
            make(other).load_state_dict(source.state_dict())
        make(data).load_state_dict(source.state_dict())


def test_a_changed_weight_is_other_data_too(rendered, tokenizer):
    tokens, weights = rendered[0]
    changed = Rendered(tokens, [0, *weights[:-1]])
    source = chat_source(rendered, tokenizer)
    with pytest.raises(ValueError, match="the data changed"):
        chat_source([changed, *rendered[1:]], tokenizer).load_state_dict(source.state_dict())
