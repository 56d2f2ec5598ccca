"""What every source must do, whatever it draws from: shared by the tests of sources."""

import itertools
import json
from collections.abc import Callable

import msgspec

from fledge.core.batch import Batch, Source
from fledge.core.checkpoint import canonical_json


def take(source: Source, count: int) -> list[Batch]:
    return list(itertools.islice(source, count))


def columns(batch: Batch) -> dict[str, list]:
    names = ("tokens", "targets", "weight", "doc", "ref_logp", "margin", "win", "liked", "kto_kl", "ids")
    found = {name: value.tolist() for name in names if (value := getattr(batch, name)) is not None}
    return found | {"units": batch.units, "rows_per_unit": batch.rows_per_unit}


def assert_resumes_everywhere(make: Callable[[], Source], steps: int, epochs: int) -> None:
    """Stop after every step 1..steps, through JSON as in a checkpoint; the next two batches are the uninterrupted ones."""
    source, batches, states = make(), [], []
    for batch in itertools.islice(source, steps + 2):
        batches.append(columns(batch))
        states.append(canonical_json(source.state_dict()))
    if epochs:  # else the source has no one epoch
        last = json.loads(states[steps - 1])
        assert last.get("source", last)["epoch"] >= epochs
    for step in range(1, steps + 1):
        again = make()
        again.load_state_dict(msgspec.json.decode(states[step - 1]))
        assert [columns(b) for b in take(again, 2)] == batches[step : step + 2], f"after step {step}"
    assert len({json.dumps(b["tokens"]) for b in batches}) > steps * 0.9  # they do differ from step to step
