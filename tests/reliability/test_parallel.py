"""Two ranks over gloo train what one rank trains: the same rows in each step, the same weights to rounding."""

import json
import socket
from pathlib import Path

import pytest
import torch
from support import Ended, Trainers, loop, pretrain_recipe

from fledge.core.checkpoint import load_checkpoint
from fledge.core.log import read_jsonl

TOLERANCE = 1e-6
# torch's Muon orthogonalises in bfloat16, where a gradient that differs by float32 rounding may fall on either side
MUON_TOLERANCE = 1e-4


def ranks(trainers: Trainers, folder: Path, count: int, job: str = "rank", **arguments) -> list[Ended]:
    """Run a job as `count` ranks with the environment torchrun gives them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    pids = [
        trainers.start(
            job, folder, {**shared, "RANK": str(r), "LOCAL_RANK": str(r)}, ids=f"ids-{r}-of-{count}.json", **arguments
        )
        for r in range(count)
    ]
    return [trainers.wait(pid) for pid in pids]


def train(trainers: Trainers, folder: Path, count: int, verb: str, recipe: dict) -> list[list[int]]:
    """Train as `count` ranks; the rows of each step over all ranks."""
    for ended in ranks(trainers, folder, count, verb=verb, recipe=recipe):
        assert ended.code == 0, ended.said
    seen = [json.loads((folder / f"ids-{r}-of-{count}.json").read_text()) for r in range(count)]
    return [[row for part in parts for row in part] for parts in zip(*seen, strict=True)]


def distance(one: Path, other: Path) -> float:
    a, b = load_checkpoint(one).model_tensors(), load_checkpoint(other).model_tensors()
    return max(float((a[n] - b[n]).abs().max()) for n in a)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_documents(trainers: Trainers, place: Path, text: Path, optimizer: str):
    recipe = pretrain_recipe(text, 5, precision="float32", optimizer=optimizer, lr=1e-3)
    alone = train(trainers, place / "one", 1, "pretrain", recipe)
    shared = train(trainers, place / "two", 2, "pretrain", recipe)
    assert alone == shared and len(alone) == 5 and all(len(step) == 8 for step in alone)
    gap = distance(place / "one" / "run", place / "two" / "run")
    print(f"{optimizer}: largest difference of a weight after 5 steps {gap:.1e}")
    assert gap <= (MUON_TOLERANCE if optimizer == "muon" else TOLERANCE)
    one, two = (load_checkpoint(place / n / "run") for n in ("one", "two"))
    assert one.state["source"] == two.state["source"]
    curves = [read_jsonl(place / n / "run" / "metrics.jsonl") for n in ("one", "two")]
    assert [row["tokens"] for row in curves[0]] == [row["tokens"] for row in curves[1]] == [256] * 5
    assert curves[0][0]["loss"] == pytest.approx(curves[1][0]["loss"], rel=1e-6)
    assert curves[0][0]["grad_norm"] == pytest.approx(curves[1][0]["grad_norm"], rel=1e-5)


@pytest.mark.parametrize(("verb", "key", "rows"), [("sft", "chats", 3), ("dpo", "pairs", 5), ("dpo", "pairs", 1), ("reward", "pairs", 5)])
def test_later_stages_with_uneven_shares(trainers: Trainers, grown: Path, place: Path, verb: str, key: str, rows: int):
    """An odd number of rows or pairs, over the end of an epoch, where a step may hold less than a row per rank."""
    data = place / "data.jsonl"
    data.write_text("".join((grown / f"{key}.jsonl").read_text().splitlines(keepends=True)[:13]))
    recipe = {
        "out": "run", "parent": str(grown / "sft"), key: [str(data)],
        "train": loop(9, precision="float32", batch_tokens=32 * rows, lr=1e-4),
    }  # fmt: skip
    alone = train(trainers, place / "one", 1, verb, recipe)
    shared = train(trainers, place / "two", 2, verb, recipe)
    assert alone == shared
    gap = distance(place / "one" / "run", place / "two" / "run")
    print(f"{verb}: rows per step {[len(step) for step in alone]}, largest difference {gap:.1e}")
    groups = [len(step) // (1 if verb == "sft" else 2) for step in alone]
    assert any(count % 2 for count in groups) and (rows > 1 or set(groups) == {1})
    assert gap <= TOLERANCE


def test_a_run_goes_on_with_another_number_of_ranks(trainers: Trainers, place: Path, text: Path):
    """1 rank, then 2, then 1 again: the same rows in the same steps, the weights of one rank all the way."""
    recipe = pretrain_recipe(text, 60, precision="float32", optimizer="adamw", lr=1e-3, save_seconds=0.001)
    whole = train(trainers, place / "whole", 1, "pretrain", recipe)
    folder = place / "changing"
    trainers.kill("stage", folder, verb="pretrain", recipe=recipe, step=20, after_seconds=0)
    first = load_checkpoint(folder / "run").step
    shared = train(trainers, folder, 2, "pretrain", recipe)
    assert shared == whole[first:]
    assert distance(place / "whole" / "run", folder / "run") <= 1e-5  # rounding of the longer way


def test_a_bad_step_of_one_rank_is_skipped_by_all(trainers: Trainers, place: Path, text: Path):
    recipe = pretrain_recipe(text, 6, precision="float32")
    for ended in ranks(
        trainers, place, 2, job="rank_with_a_bad_row", verb="pretrain", recipe=recipe, step=3, bad_rank=1
    ):
        assert ended.code == 0, ended.said
    seen = [json.loads((place / f"ids-{r}-of-2.json").read_text()) for r in range(2)]
    assert seen[0] == seen[1] == [1, 2, 4, 5, 6], "the steps each rank applied"
    rows = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row.get("skipped") == "nonfinite"] == [3]
    assert len(rows[2]["ids"]) == 8, "the rows of all ranks"
    assert all(bool(t.isfinite().all()) for t in load_checkpoint(place / "run").model_tensors().values())


def test_a_signal_to_one_rank_stops_all_at_the_same_step(trainers: Trainers, place: Path, text: Path):
    import signal

    recipe = pretrain_recipe(text, 2000, precision="float32", save_seconds=600.0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    pids = [
        trainers.start("stage", place, {**shared, "RANK": str(r)}, verb="pretrain", recipe=recipe) for r in range(2)
    ]
    assert trainers.send(pids[0], signal.SIGTERM, step=20) is True
    ends = [trainers.wait(pid) for pid in pids]
    assert all("Interrupted: stopped at step" in e.said for e in ends), ends
    assert 20 <= load_checkpoint(place / "run").step < 2000


def test_the_split_of_a_batch_keeps_units_and_rows():
    from fledge.core.batch import Batch

    whole = Batch(
        tokens=torch.zeros(10, 4, dtype=torch.long), targets=torch.zeros(10, 4, dtype=torch.long),
        weight=torch.ones(10, 4), units=5.0, ids=torch.arange(10), rows_per_unit=2,
    )  # fmt: skip
    for world in (1, 2, 3, 5, 8):
        parts = [whole.shard(rank, world) for rank in range(world)]
        assert torch.cat([p.ids for p in parts]).tolist() == list(range(10))
        assert sum(p.units for p in parts) == pytest.approx(5.0)
        assert all(len(p.ids) % 2 == 0 for p in parts)
