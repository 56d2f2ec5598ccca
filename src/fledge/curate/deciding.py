"""What only all pages together can tell: which are duplicates, and which are the best.

It runs in one process. Fingerprints and scores are read shard by shard, so its memory grows by a few bytes a page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fledge.curate.duplicates import Duplicates, find_duplicates
from fledge.curate.pages import REASON, VALUE
from fledge.curate.plan import DUPLICATES_STEP, Job, keep_by, open_scorers
from fledge.curate.scorers import top_share
from fledge.curate.shards import ShardRecord, read_sidecar, write_shard, write_sidecar
from fledge.curate.sifting import CLUSTER, DECIDED, OF, STEP, name_of, nothing_decided

SIDECAR = "decided.json"


class Decided(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sidecar of the decisions."""

    config: str
    records: list[ShardRecord]
    duplicates: dict[str, Any]  # as find_duplicates sums up
    limit: float | None  # of keep_by's column, where it decides


def decide(job: Job, shards: int) -> Decided:
    """Write decided-N.parquet (DECIDED, the rows of sifted-N) for every shard, and the sidecar after them."""
    work = job.work()
    held = read_sidecar(work / SIDECAR, Decided)
    if held is not None and held.config == job.config and len(held.records) == shards:
        return held
    found = None
    if job.looks_for_duplicates():
        keys = [work / name_of("keys", number) for number in range(shards)]
        found = find_duplicates(keys, job.recipe.duplicates, work / "scratch")
    limit, higher = _limit(job, found, shards)
    records = []
    for number in range(shards):
        table = _decided(job, found, number, limit, higher)
        records.append(write_shard(work / name_of("decided", number), [table], schema=DECIDED, folder=work))
    decided = Decided(job.config, records, found.summary if found is not None else {}, limit)
    write_sidecar(work / SIDECAR, decided)
    return decided


def _limit(job: Job, found: Duplicates | None, shards: int) -> tuple[float | None, bool]:
    """(the score from which on a page stays, whether higher is better); None where scores decide nothing."""
    if not job.judges_scores():
        return None, True
    scorer, share = keep_by(job, open_scorers(job)), job.share_kept()
    if share is None:
        return job.options.keep_above, scorer.higher_is_better

    def values() -> Iterator[np.ndarray]:
        for number in range(shards):
            scores = _scores(job.work(), number, scorer.name)
            yield scores if found is None else scores[found.table(number)["keep"].to_numpy()]

    return float(top_share(values(), share, higher_is_better=scorer.higher_is_better)), scorer.higher_is_better


def _scores(work: Path, number: int, column: str) -> np.ndarray:
    """float32 [n], NaN where a page was not judged."""
    scores = pq.read_table(work / name_of("sifted", number), columns=[column])[column]
    return pc.fill_null(scores.cast(pa.float32()), float("nan")).to_numpy()


def _decided(job: Job, found: Duplicates | None, number: int, limit: float | None, higher: bool) -> pa.Table:
    """DECIDED of one shard: duplicates first; then pages past the limit. A page that was not judged stays."""
    work = job.work()
    if found is None:
        table = nothing_decided(pq.read_metadata(work / name_of("sifted", number)).num_rows)
    else:
        decision = found.table(number)
        step = pc.if_else(decision["keep"], pa.scalar(None, pa.string()), DUPLICATES_STEP)
        columns = {STEP: step, **{name: decision[name] for name in (REASON, VALUE, OF, CLUSTER)}}
        table = pa.table(columns).cast(DECIDED)
    if limit is None:
        return table
    scores = _scores(work, number, job.options.keep_by)
    worse = (scores < np.float32(limit)) if higher else (scores > np.float32(limit))
    ends = pa.array(worse & pc.is_null(table[STEP]).to_numpy())
    reason = f"{job.options.keep_by} {'below' if higher else 'above'} the limit"
    given: Sequence[tuple[str, Any]] = (
        (STEP, job.options.keep_by),
        (REASON, reason),
        (VALUE, pa.array(scores.astype(np.float64), from_pandas=True)),
    )
    for column, value in given:
        table = table.set_column(
            table.schema.get_field_index(column), DECIDED.field(column), pc.if_else(ends, value, table[column])
        )
    return table
