"""One shard through the steps: the work of a worker, whatever engine calls it.

sift: a split of the input -> work/sifted-N.parquet (pages kept so far), rejected-N.parquet, keys-N.parquet, and last the
sidecar sifted-N.json.
keep: what is left of it after the decisions over all shards -> data/part-N.parquet, rejected/part-N.parquet, and last
work/kept-N.json.

Both give the same bytes for the same shard, so doing one twice, or at the same time in two places, harms nothing.
"""

from __future__ import annotations

from contextlib import ExitStack

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fledge.curate.funnel import Funnel, Sizes, Tally
from fledge.curate.inputs import Split
from fledge.curate.minhash import fingerprints, keys_schema
from fledge.curate.pages import REASON, VALUE, Kernel, parted
from fledge.curate.plan import READ_STEP, Job, kernels_of_job, open_scorers
from fledge.curate.records import READ, read_split
from fledge.curate.shards import (
    ShardRecord,
    ShardWriter,
    read_sidecar,
    require_whole,
    row_groups,
    write_sidecar,
)

STEP, OF, CLUSTER = "step", "of", "cluster"
DECIDED = pa.schema(
    [(STEP, pa.string()), (REASON, pa.string()), (VALUE, pa.float64()), (OF, pa.string()), (CLUSTER, pa.int64())]
)
_OUTCOME = [(STEP, pa.string()), (REASON, pa.string()), (VALUE, pa.float64()), (OF, pa.string())]


class Sifted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sidecar of one sifted split."""

    number: int
    config: str
    funnel: Funnel
    pages: ShardRecord
    rejected: ShardRecord | None
    keys: ShardRecord | None

    def records(self) -> list[ShardRecord]:
        return [record for record in (self.pages, self.rejected, self.keys) if record is not None]


class Finished(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sidecar of one shard of the output."""

    number: int
    config: str
    funnel: Funnel
    pages: ShardRecord
    rejected: ShardRecord | None

    def records(self) -> list[ShardRecord]:
        return [record for record in (self.pages, self.rejected) if record is not None]


def name_of(kind: str, number: int, ending: str = "parquet") -> str:
    """sifted-00012.parquet and the like."""
    return f"{kind}-{number:05d}.{ending}"


class Sieve:
    """The steps of a job, opened once and used for many splits."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.kernels: list[tuple[str, Kernel]] = kernels_of_job(job)
        self.steps = [READ_STEP, *(name for name, _ in self.kernels)]
        self.scorers = open_scorers(job)
        pages = READ.empty_table().drop_columns([REASON, VALUE])
        for kernel in (*(kernel for _, kernel in self.kernels), *(scorer.kernel for scorer in self.scorers)):
            pages, _ = parted(kernel(pages))
        self.schema = pages.schema.remove_metadata()
        read = set(READ.names)
        self.counting = [f.name for f in self.schema if pa.types.is_integer(f.type) and f.name not in read]
        self.rejected_schema = pa.schema([*self.schema, *_OUTCOME])

    def sift(self, split: Split) -> Sifted:
        """Read a split, judge its pages and write what the next phases need. Raises ValueError for a changed input."""
        work, number, duplicates = self.job.work(), split.number, self.job.recipe.duplicates
        tally = Tally(self.steps)
        with ExitStack() as open_files:

            def writer(kind: str, schema: pa.Schema) -> ShardWriter:
                return open_files.enter_context(ShardWriter(work / name_of(kind, number), schema))

            pages = writer("sifted", self.schema)
            rejected = writer("rejected", self.rejected_schema) if self.job.options.rejects else None
            keys = writer("keys", keys_schema(duplicates)) if self.job.looks_for_duplicates() else None
            read = 0
            for table in read_split(split, self.job.options.read):
                read += len(table)
                kept = self._through(table, tally, rejected)
                pages.write(kept)
                if keys is not None:
                    keys.write(fingerprints(kept, duplicates))
            sifted = Sifted(
                number,
                self.job.config,
                tally.funnel(),
                pages.close(work),
                rejected.close(work) if rejected is not None else None,
                keys.close(work) if keys is not None else None,
            )
        self._account(sifted, read)
        write_sidecar(work / name_of("sifted", number, "json"), sifted)
        return sifted

    def _through(self, table: pa.Table, tally: Tally, rejected: ShardWriter | None) -> pa.Table:
        """One batch through every step; returns the pages that stay."""
        kept = _part(READ_STEP, table, Sizes.of(table), tally, rejected)
        sizes = Sizes.of(kept)
        for step, kernel in self.kernels:
            if not len(kept):
                break
            judged = kernel(kept)
            assert judged["id"].equals(kept["id"]), f"step {step} lost or moved pages"
            edited = not judged["text"].equals(kept["text"])
            stays = pc.is_null(judged[REASON]).to_numpy()
            kept = _part(step, judged, sizes, tally, rejected, counted=not edited)
            sizes = sizes.at(stays)
            if edited:
                sizes = Sizes.of(kept)
                tally.keep(step, kept, sizes)
        if not len(kept):
            return kept
        for scorer in self.scorers:
            kept, none = parted(scorer.kernel(kept))
            assert not len(none), f"{scorer.name} rejected pages: a scorer only adds its column"
        for column in self.counting:
            tally.count(column, pc.sum(kept[column]).as_py() or 0)
        return kept

    def _account(self, sifted: Sifted, read: int) -> None:
        """Nothing is lost: the pages read are those kept and those rejected, in the counts and in the files."""
        funnel = sifted.funnel
        funnel.check()
        assert funnel.came().pages == read, f"{read} pages read, {funnel.came().pages} counted"
        assert funnel.after(self.steps[-1]).pages == sifted.pages.pages, "pages kept are not those written"
        dropped = sum(d.amount.pages for d in funnel.dropped)
        assert sifted.rejected is None or sifted.rejected.pages == dropped, "pages rejected are not those written"
        assert sifted.keys is None or sifted.keys.pages == sifted.pages.pages, "not one fingerprint a page"


def _part(
    step: str,
    judged: pa.Table,
    sizes: Sizes,
    tally: Tally,
    rejected: ShardWriter | None,
    *,
    counted: bool = True,
) -> pa.Table:
    """Part a judged table, count both sides (the kept one where `counted`) and write the rejected one."""
    kept, dropped = parted(judged)
    stays = pc.is_null(judged[REASON]).to_numpy()
    if counted:
        tally.keep(step, kept, sizes.at(stays))
    if len(dropped):
        tally.drop(step, dropped, sizes.at(~stays))
        if rejected is not None:
            rejected.write(dropped.append_column(STEP, pa.repeat(step, len(dropped))))
    return kept


def keep(job: Job, number: int, decided_steps: list[str]) -> Finished:
    """Write shard `number` of the output: pages that the decisions leave, and all that was rejected on the way."""
    work, out = job.work(), job.out()
    sifted = read_sidecar(work / name_of("sifted", number, "json"), Sifted)
    if sifted is None or sifted.config != job.config:
        raise ValueError(f"{work / name_of('sifted', number, 'json')} is gone or of another run: curate again")
    for record in sifted.records():
        require_whole(work, record)
    decisions = pq.read_table(work / name_of("decided", number))
    part = name_of("part", number)
    tally = Tally(decided_steps)
    with ExitStack() as open_files:
        schema = pq.read_schema(work / name_of("sifted", number)).remove_metadata()
        if job.looks_for_duplicates():
            schema = schema.append(pa.field(CLUSTER, pa.int64()))
        pages = open_files.enter_context(ShardWriter(out / "data" / part, schema))
        rejected = None
        if job.options.rejects:
            outcome = pa.schema([*schema, *_OUTCOME])
            rejected = open_files.enter_context(ShardWriter(out / "rejected" / part, outcome))
            for group in row_groups(work / name_of("rejected", number)):
                rejected.write(group)
        first = 0
        for group in row_groups(work / name_of("sifted", number)):
            here = decisions.slice(first, len(group))
            first += len(group)
            pages.write(_decide(group, here, decided_steps, tally, rejected, job.looks_for_duplicates()))
        assert first == len(decisions), f"{first} pages sifted, {len(decisions)} decided"
        finished = Finished(
            number,
            job.config,
            tally.funnel(),
            pages.close(out),
            rejected.close(out) if rejected is not None else None,
        )
    _account_finished(sifted, finished)
    write_sidecar(work / name_of("kept", number, "json"), finished)
    return finished


def _decide(
    group: pa.Table, here: pa.Table, steps: list[str], tally: Tally, rejected: ShardWriter | None, clusters: bool
) -> pa.Table:
    """The pages of a row group that the decisions `here` (same rows) leave."""
    sizes = Sizes.of(group)
    if clusters:
        group = group.append_column(CLUSTER, here[CLUSTER])
    group = group.append_column(OF, here[OF])
    for step in steps:
        ends = pc.fill_null(pc.equal(here[STEP], step), False)
        judged = group.append_column(REASON, pc.if_else(ends, here[REASON], None)).append_column(
            VALUE, pc.if_else(ends, here[VALUE], None)
        )
        group = _part(step, judged, sizes, tally, rejected)
        stays = pc.invert(ends)
        here, sizes = here.filter(stays), sizes.at(stays.to_numpy())
    return group.drop_columns([OF])


def _account_finished(sifted: Sifted, finished: Finished) -> None:
    """Nothing is lost between the phases either."""
    funnel = finished.funnel
    funnel.check()
    if funnel.steps:
        assert funnel.came().pages == sifted.pages.pages, "pages sifted are not those decided on"
        assert funnel.after(funnel.steps[-1]).pages == finished.pages.pages, "pages kept are not those written"
    if sifted.rejected is not None and finished.rejected is not None:
        came = sifted.pages.pages + sifted.rejected.pages
        assert came == finished.pages.pages + finished.rejected.pages, "pages were lost"


def nothing_decided(pages: int) -> pa.Table:
    """The decisions (DECIDED) that let `pages` pages stay."""
    nulls = [pa.nulls(pages, field.type) for field in DECIDED if field.name != CLUSTER]
    return pa.Table.from_arrays([*nulls, pa.array(np.ones(pages, np.int64))], schema=DECIDED)
