"""Scores as columns: perplexity under a checkpoint, points of a judge, and the limit that keeps a share."""

import json
import math
import time
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fledge.core.batch import Batch
from fledge.core.checkpoint import save_checkpoint
from fledge.curate.educational import MOST_CHARS, Educational, judge_config, read_points
from fledge.curate.pages import PAGE, parted
from fledge.curate.perplexity import MOST_TOKENS, Perplexity
from fledge.curate.scorers import open_scorer, top_share
from fledge.generate.endpoint import Reply, Unreadable


def pages_of(texts: list[str]) -> pa.Table:
    blank = [""] * len(texts)
    columns = {"text": texts, "id": blank, "source": blank, "url": [None] * len(texts), "language": blank}
    return pa.table(columns, schema=PAGE)


# ---------------------------------------------------------------------------------------------------- perplexity


@pytest.fixture(scope="module")
def model(make_model, tokenizer):
    return make_model(0, spread=0.15, vocab_size=tokenizer.vocab_size)


def by_hand(model, tokenizer, text: str) -> float:
    """exp(mean nats) with every token predicted by itself, window after window."""
    tokens, room, nats = tokenizer.encode(text)[:MOST_TOKENS], model.config.context_tokens, []
    for first in range(0, len(tokens), room):
        row = [tokenizer.bos, *tokens[first : first + room]]
        for place in range(1, len(row)):
            batch = Batch(
                tokens=torch.tensor([row[:place]]), targets=torch.tensor([row[1 : place + 1]]),
                weight=torch.ones(1, place), units=1.0,
            )  # fmt: skip
            with torch.no_grad():
                nats.append(-model(batch).logp[0, -1].item())
    return math.exp(sum(nats) / len(nats))


def test_perplexity_is_the_exponential_of_the_mean_loss(model, tokenizer, sentences):
    texts = [sentences[0], " ".join(sentences) * 2, "", sentences[4], "a"]
    assert len(tokenizer.encode(texts[1])) > 2 * model.config.context_tokens, "several windows"
    found = Perplexity(model, tokenizer, "m").of(texts)
    assert math.isnan(found[2])
    for text, value in zip(texts, found, strict=True):
        if text:
            assert value == pytest.approx(by_hand(model, tokenizer, text), rel=1e-4)


def test_the_kernel_of_a_checkpoint(model, tokenizer, sentences, tmp_path: Path):
    card = {"stage": "pretrain", "parent": None, "model": msgspec.to_builtins(model.config), "recipe": {}, "data": {}}
    save_checkpoint(
        tmp_path, 1, model=model.state_dict(), optimizer={}, state={}, card=card, tokenizer=tokenizer.json
    )  # fmt: skip
    scorer = open_scorer(f"perplexity:{tmp_path}")
    assert (scorer.name, scorer.higher_is_better) == ("perplexity", False)
    pages = pages_of([*sentences, ""])
    kept, rejected = parted(scorer.kernel(pages))
    assert len(kept) == len(pages) and not len(rejected) and kept["perplexity"].type == pa.float32()
    assert kept["perplexity"][-1].as_py() is None
    assert kept["perplexity"][0].as_py() == pytest.approx(by_hand(model, tokenizer, sentences[0]), rel=1e-4)
    assert scorer.kernel(pages.slice(0, 0)).schema == scorer.kernel(pages).schema
    assert open_scorer(f"perplexity:{tmp_path}").identity == scorer.identity


def test_a_long_page_is_read_up_to_a_limit(model, tokenizer):
    scorer = Perplexity(model, tokenizer, "m")
    text = "river " * 3000
    cut = tokenizer.decode(tokenizer.encode(text)[:MOST_TOKENS])
    assert scorer.of([text])[0] == pytest.approx(scorer.of([cut])[0], rel=1e-5)


def test_a_model_that_predicts_no_token(make_model, tokenizer):
    with pytest.raises(ValueError, match="x has the head 'reward': perplexity needs a model that predicts"):
        Perplexity(make_model(head="reward"), tokenizer, "x")
    with pytest.raises(ValueError, match="sees both ways"):
        Perplexity(make_model(causal=False), tokenizer, "x")


# --------------------------------------------------------------------------------------------------------- judge


def judge_at(server, scratch: Path | None, **settings) -> Educational:
    config = msgspec.structs.replace(judge_config(server.url, "m"), backoff_seconds=0.01, **settings)
    return Educational(config, scratch)


def points(text: str, _: int) -> str:
    return f"It is about rivers.\nEducational score: {text.count('river')}"


def test_points_become_a_column(endpoint):
    server = endpoint(points)
    kernel = judge_at(server, None)
    pages = pages_of(["river river", "nothing", "   ", "river", "river river"])
    kept, rejected = parted(kernel(pages))
    assert kept["educational"].to_pylist() == [2, 0, None, 1, 2] and not len(rejected)
    assert len(server.requests) == 3, "equal pages are asked about once, blank ones not at all"
    _, _, body = server.requests[0]
    assert body["temperature"] == 0 and "follow no instruction" in body["messages"][0]["content"]
    assert kernel(pages.slice(0, 0)).schema == kernel(pages).schema and len(server.requests) == 3


def test_a_long_page_is_shown_in_part(endpoint):
    server = endpoint(lambda t, n: "3")
    judge_at(server, None)(pages_of(["x" * 10_000]))
    shown = server.requests[0][2]["messages"][1]["content"]
    assert shown.count("x") == MOST_CHARS and shown.endswith("[End of the page]")


def test_several_pages_at_once(endpoint):
    def slow(text: str, _: int) -> str:
        time.sleep(0.05)
        return "Educational score: 1"

    server = endpoint(slow)
    judge_at(server, None, concurrency=4)(pages_of([f"page {i}" for i in range(12)]))
    assert 2 <= server.most <= 4


def test_a_resumed_run_asks_nothing_twice(endpoint, tmp_path: Path):
    def dies_after_three(text: str, number: int):
        return (500, {}, "down") if number >= 3 else points(text, number)

    pages = pages_of([f"river {'river ' * (i % 4)}{i}" for i in range(6)])
    server = endpoint(dies_after_three)
    with pytest.raises(ConnectionError, match="did not answer 2 times, last: HTTP 500: down"):
        judge_at(server, tmp_path / "replies", retries=1, concurrency=1)(pages)
    (file,) = (tmp_path / "replies").iterdir()
    with open(file, "a") as torn:
        torn.write('{"page": "ab')  # killed while writing
    server = endpoint(points)
    kernel = judge_at(server, tmp_path / "replies")
    assert kernel(pages)["educational"].to_pylist() == [1, 2, 3, 4, 1, 2]
    assert len(server.requests) == 3
    assert judge_at(server, tmp_path / "replies")(pages)["educational"].to_pylist() == [1, 2, 3, 4, 1, 2]
    assert len(server.requests) == 3
    other = Educational(msgspec.structs.replace(kernel.config, model="other"), tmp_path / "replies")
    other(pages.slice(0, 1))
    assert len(server.requests) == 4, "points of one judge are not those of another"


def test_a_page_the_judge_will_not_rate_has_no_points(endpoint):
    server = endpoint(lambda t, n: "I would rather not." if "secret" in t else "Educational score: 4")
    kept = judge_at(server, None, retries=1)(pages_of(["a", "secret", "b"]))
    assert kept["educational"].to_pylist() == [4, None, 4]


def test_a_judge_that_answers_uselessly_is_an_error_not_a_zero(endpoint):
    server = endpoint(lambda t, n: "What a lovely page!")
    with pytest.raises(ValueError, match=r"3 of 3 pages got no points; the last: judge:.*a reply without points"):
        judge_at(server, None, retries=0)(pages_of(["a", "b", "c"]))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Good.\nEducational score: 4", 4), ("**Educational score:** 3", 3), ("educational score:  2.5 points", 2.5),
        ("Educational score: 1\nNo, I meant\nEducational score: 0", 0), ("5", 5), (" 3.\n", 3),
    ],
)  # fmt: skip
def test_points_are_read(text: str, found: float):
    assert read_points(Reply(text, "stop", None)) == found


@pytest.mark.parametrize("text", ["", "three", "Educational score: 7", "It has 3 pictures.", "Educational score: -1"])
def test_what_are_no_points(text: str):
    with pytest.raises(Unreadable):
        read_points(Reply(text, "stop", None))


# ------------------------------------------------------------------------------------------------ which, and how many


@pytest.mark.parametrize("spec", ["", "quality", "quality:", "perplexity", "judgement:x"])
def test_no_such_scorer(spec: str):
    with pytest.raises(ValueError, match=r"must be quality:FOLDER .* perplexity:RUN .* judge:URL#MODEL"):
        open_scorer(spec)


def test_an_address_that_cannot_be_used():
    with pytest.raises(ValueError, match=r"judge url = 'example.com'.*; judge model: empty.*; write judge:URL#MODEL"):
        open_scorer("judge:example.com")


def test_a_judge_by_its_address(endpoint, tmp_path: Path):
    server = endpoint(points)
    scorer = open_scorer(f"judge:{server.url}#m", tmp_path)
    assert (scorer.name, scorer.higher_is_better) == ("educational", True) and " m " in scorer.identity
    assert scorer.kernel(pages_of(["river"]))["educational"].to_pylist() == [1]
    (row,) = [json.loads(line) for file in tmp_path.iterdir() for line in file.read_text().splitlines()]
    assert row["points"] == 1


@given(
    st.lists(st.lists(st.floats(-9, 9, width=32) | st.just(float("nan")), max_size=9), max_size=5),
    st.floats(0.01, 1),
    st.booleans(),
)
def test_top_share_keeps_the_share_and_no_more_than_ties(columns, share, higher):
    limit = top_share((np.array(c, np.float32) for c in columns), share, higher_is_better=higher)
    scores = np.array([v for c in columns for v in c if not math.isnan(v)], np.float32)
    kept = (scores >= limit) if higher else (scores <= limit)
    assert kept.sum() >= share * len(scores) - 1e-6
    beyond = (scores > limit) if higher else (scores < limit)
    assert beyond.sum() < max(1, share * len(scores)), "without the ties it would be too few"


def test_top_share_by_hand():
    values = [np.arange(50, dtype=np.float32), np.arange(50, 100, dtype=np.float32), np.full(7, np.nan, np.float32)]
    assert top_share(values, 0.1) == 90 and top_share(values, 0.1, higher_is_better=False) == 9
    assert top_share(values, 1.0) == 0 and top_share([], 0.1) == -math.inf
    with pytest.raises(ValueError, match="share = 0: must be above 0"):
        top_share(values, 0)
