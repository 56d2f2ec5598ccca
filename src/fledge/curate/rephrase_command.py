"""`fledge rephrase`: curated pages written anew in another style, checked, and kept in the layout of curated text.

OUT/work/written.jsonl holds one line per passage, in the order of the passages, appended a batch at a time: a kill
loses the batch under way. When all are written they are checked and become OUT/data and OUT/rejected; the manifest is
written last, and the work is removed.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from fledge import __version__
from fledge.core.config import Settings
from fledge.core.durable import canonical_json, run_lock, sha256, write_atomically
from fledge.core.log import say
from fledge.curate.funnel import Funnel, Sizes, Tally
from fledge.curate.languages import identify
from fledge.curate.pages import BATCH_PAGES, PAGE
from fledge.curate.rephrase import (
    EndpointRephraser,
    ModelRephraser,
    Passage,
    Rephrased,
    Rephraser,
    Style,
    estimate,
    has_prompt,
    passages,
)
from fledge.curate.rephrase_checks import Checked, CheckSettings, check_all
from fledge.curate.shards import Curated, ShardRecord, ShardWriter, write_manifest
from fledge.generate.endpoint import EndpointConfig, split_address
from fledge.generate.sampling import Sampling
from fledge.text.curated import MANIFEST, is_curated, read_manifest
from fledge.text.readers import Rejects, read_documents, require_some
from fledge.text.sources import groups

_SHARD_PASSAGES = 1 << 14
_SAY_SECONDS = 10.0
_SAMPLE_CHARACTERS = 1000
_IDENTIFIED = 8  # documents at once, where each may be a large file
_LANGUAGE_STEP, _REPHRASE_STEP = "language", "rephrase"
_NO_PROMPT = "no prompt for its language"
_KEPT = pa.schema([*PAGE, ("style", pa.string()), ("of", pa.string()), ("stripped", pa.bool_())])
_REJECTED = pa.schema(
    [
        *_KEPT, ("step", pa.string()), ("reason", pa.string()), ("value", pa.float64()), ("found", pa.string()),
        ("passage", pa.large_string()),
    ]
)  # fmt: skip


class RephraseOptions(Settings, frozen=True, kw_only=True):
    """Write curated text anew in another style, through a checkpoint or an endpoint."""

    inputs: list[str]
    "Curated folders; or files and folders of text."
    out: str
    "Folder for the rephrased text."
    style: Style = "wiki"
    "wiki (like an encyclopedia), qa (questions and answers), easy (for a child) or hard (for a scholar)."
    model: str | None = None
    "Run or checkpoint of ours that writes."
    endpoint: str | None = None
    "OpenAI-compatible endpoint that writes, as URL#MODEL; its key is taken from FLEDGE_ENDPOINT_KEY."
    chunk_tokens: int = 300
    "Longest passage in tokens (Maini et al. 2024, section 3.1); by words and Han characters where an endpoint writes."
    passages: int | None = None
    "Stop after this many passages; none rephrases all."
    batch: int = 64
    "Passages asked for together; a kill loses at most these."
    sampling: Sampling = Sampling(temperature=0.7, top_p=0.95, max_tokens=512)
    "How the text is drawn."
    concurrency: int = 8
    "Questions an endpoint is asked at once."
    timeout_seconds: float = 120.0
    "Longest wait for one reply of an endpoint."
    checks: CheckSettings = CheckSettings()
    "What a rephrasing may be like."
    device: str = "auto"
    "auto, cpu, cuda or cuda:1, for a checkpoint."

    def problems(self) -> list[str]:
        found = self.sampling.problems() + self.checks.problems()
        if not self.inputs:
            found.append("inputs: empty; name at least one curated folder")
        if (self.model is None) == (self.endpoint is None):
            found.append("model and endpoint: set one of them, --model RUN or --endpoint URL#MODEL")
        if self.endpoint is not None:
            found += [f"endpoint {problem}" for problem in self.asked().problems()]
            if self.sampling.top_k is not None:
                found.append("sampling.top_k: no endpoint takes it; leave it out")
        for name in ("chunk_tokens", "batch"):
            if getattr(self, name) < 1:
                found.append(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.passages is not None and self.passages < 1:
            found.append(f"passages = {self.passages}: must be at least 1; none rephrases all")
        return found

    def asked(self) -> EndpointConfig:
        """The endpoint."""
        url, model = split_address(self.endpoint or "")
        return EndpointConfig(
            url=url, model=model, temperature=self.sampling.temperature, top_p=self.sampling.top_p,
            max_tokens=self.sampling.max_tokens, timeout_seconds=self.timeout_seconds, concurrency=self.concurrency,
        )  # fmt: skip


class Written(msgspec.Struct, frozen=True):
    """One line of written.jsonl."""

    passage: Passage
    text: str
    finish: str


def run(options: RephraseOptions) -> Path:
    """Rephrase everything and return the folder; continues what options.out already holds."""
    from fledge.stages.common import fix_recipe

    out = Path(options.out)
    _allow_another_address(out, options)
    fix_recipe(out, "rephrase", options)
    if is_curated(out):
        say(summary(out, msgspec.convert(read_manifest(out).facts["funnel"], Funnel)))
        return out
    with run_lock(out):
        rephraser, count, most, identity = _open(options)
        _same_writer(out / "work" / "rephraser.json", identity)
        read = Rejects()
        asked = islice(_passages(options, read, count, most), options.passages)
        total = write_all(asked, rephraser, out / "work" / "written.jsonl", options.batch)
        require_some(total, options.inputs, read, "passages")
        funnel, kept, rejected = finish(out, options.style, options.checks)
        facts = {
            "stage": "rephrase", "fledge": __version__, "options": msgspec.to_builtins(options), "rephraser": identity,
            "inputs": [_state(path) for path in options.inputs], "funnel": funnel, "read": read.as_dict(),
        }  # fmt: skip
        write_manifest(out, kept, rejected=rejected, facts=facts)
        shutil.rmtree(out / "work")
    if read.total:
        say(f"text: {read.summary()}")
    say(summary(out, funnel))
    return out


def _allow_another_address(out: Path, options: RephraseOptions) -> None:
    """A run goes on at another address of the same model, or with other speed settings; its recipe then says so."""
    from fledge.core.config import build
    from fledge.stages.common import read_recipe

    path = out / "recipe.json"
    if not path.exists() or options.endpoint is None:
        return
    stored = read_recipe(out)
    if stored["stage"] != "rephrase":
        return
    held = build(RephraseOptions, stored["recipe"])
    same_model = held.endpoint is not None and held.asked().model == options.asked().model
    free = {name: getattr(options, name) for name in ("endpoint", "concurrency", "timeout_seconds")}
    if same_model and held != options and msgspec.structs.replace(held, **free) == options:
        write_atomically(path, canonical_json(stored | {"recipe": msgspec.to_builtins(options)}))


def _open(options: RephraseOptions) -> tuple[Rephraser, Callable[[Sequence[str]], Sequence[int]], int, str]:
    """(who writes, how tokens are counted, longest passage, what names the writer's exact weights)."""
    if options.endpoint is not None:
        config = options.asked()
        return EndpointRephraser(config, options.style), estimate, options.chunk_tokens, f"endpoint {config.model}"
    from fledge.stages.common import open_model

    opened = open_model(options.model, device=options.device)
    if opened.card["model"]["head"] != "tokens":
        raise ValueError(f"{opened.path} is a reward model: it writes nothing; name a model that answers")
    rephraser = ModelRephraser(opened.model, opened.tokenizer, options.style, options.sampling)
    if options.chunk_tokens > (room := rephraser.room_tokens()):
        least = f"chunk_tokens of {room} or less" if room > 0 else "a smaller sampling.max_tokens"
        raise ValueError(
            f"{opened.path} reads {opened.model.config.context_tokens} tokens: beside the prompt and an answer of "
            f"{options.sampling.max_tokens} there is room for {max(0, room)}, chunk_tokens is {options.chunk_tokens}; "
            f"set {least}, or take a model with a larger context"
        )
    return rephraser, rephraser.count, options.chunk_tokens, f"checkpoint {opened.id}"


def _same_writer(path: Path, identity: str) -> None:
    if not path.exists():
        write_atomically(path, canonical_json(identity))
    elif (held := msgspec.json.decode(path.read_bytes())) != identity:
        raise ValueError(
            f"{path.parent.parent} was begun by {held}, now {identity} would go on: name the model that began it, or "
            "choose another --out"
        )


def _state(path: str) -> dict[str, Any]:
    """What names an input: a curated folder by its manifest, other paths by their name alone."""
    curated = is_curated(Path(path))
    return {"path": path, "sha256": sha256((Path(path) / MANIFEST).read_bytes()) if curated else None}


# --- reading --------------------------------------------------------------------------------------------------------


def _pages(options: RephraseOptions, rejects: Rejects) -> Iterator[tuple[str, str, str, str]]:
    """(id, source, language, text) of every page; languages that are not known yet are identified."""
    for path in options.inputs:
        curated = is_curated(Path(path))
        if curated:
            tables = Curated.open(path).tables(["id", "source", "language", "text"])
            rows = chain.from_iterable(zip(*(c.to_pylist() for c in t.columns), strict=True) for t in tables)
        else:
            found = read_documents([path], rejects=rejects)
            rows = ((sha256(d.source.encode("utf-8", "surrogatepass"))[:16], d.source, "", d.text) for d in found)
        for group in groups(rows, BATCH_PAGES if curated else _IDENTIFIED):
            yield from _with_languages(group)


def _with_languages(rows: Sequence[tuple[str, str, str, str]]) -> Iterator[tuple[str, str, str, str]]:
    unknown = [i for i, row in enumerate(rows) if row[2] in ("", "zh", None)]
    codes = dict(zip(unknown, identify([rows[i][3] for i in unknown])[0], strict=True))
    for i, (id, source, language, text) in enumerate(rows):
        yield id, source, codes.get(i, language), text


def _passages(
    options: RephraseOptions, rejects: Rejects, count: Callable[[Sequence[str]], Sequence[int]], most: int
) -> Iterator[Passage]:
    """Every passage in order; of a page without a prompt in its language the beginning, which nobody is asked for."""
    for id, source, language, text in _pages(options, rejects):
        if has_prompt(language):
            yield from passages(id, source, language, text, options.style, most, count)
        else:
            yield Passage(id, id, source, language, text[:_SAMPLE_CHARACTERS])


# --- writing --------------------------------------------------------------------------------------------------------


def write_all(asked: Iterable[Passage], rephraser: Rephraser, path: Path, batch: int) -> int:
    """Append what is not in `path` yet, a batch at a time, and return how many lines it holds then.

    Raises ValueError where the lines there are not of these passages: the input has changed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    done, asked = _whole_lines(path), iter(asked)
    for number, row in enumerate(_lines(path), 1):
        if row.passage != next(asked, None):
            raise ValueError(
                f"{path} line {number} holds a passage of {row.passage.source}, the text now goes another way there: "
                "the input changed since this began; restore it, or choose another --out"
            )
    total, started, said = done, time.monotonic(), time.monotonic()
    if done:
        say(f"rephrase: {done:,} passages are written, going on")
    with open(path, "ab") as file:
        for group in groups(asked, batch):
            rows = _rephrased(group, rephraser)
            file.write(b"".join(canonical_json(row) for row in rows))
            file.flush()
            os.fsync(file.fileno())  # the replies were paid for
            total += len(rows)
            now = time.monotonic()
            if now - said >= _SAY_SECONDS:
                say(f"rephrase: {total:,} passages, {(total - done) / (now - started):.1f} a second")
                said = now
    return total


def _rephrased(group: Sequence[Passage], rephraser: Rephraser) -> list[Written]:
    able = [passage for passage in group if has_prompt(passage.language)]
    texts = rephraser(able) if able else ()
    assert len(texts) == len(able), f"the rephraser wrote {len(texts)} texts for {len(able)} passages"
    written = iter(texts)
    nothing = Rephrased("", "unanswered")
    found = [next(written) if has_prompt(passage.language) else nothing for passage in group]
    return [Written(passage, one.text, one.finish) for passage, one in zip(group, found, strict=True)]


def _whole_lines(path: Path) -> int:
    """How many lines the file holds; a last one torn by a kill is cut off."""
    count = size = 0
    with open(path, "a+b") as file:
        file.seek(0)
        for line in file:
            if line.endswith(b"\n"):
                count, size = count + 1, size + len(line)
        file.truncate(size)
    return count


def _lines(path: Path) -> Iterator[Written]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield msgspec.json.decode(line, type=Written)
            except msgspec.MsgspecError as error:
                raise ValueError(
                    f"{path} line {number} is damaged ({error}): delete the file from that line on, and go on"
                ) from None


# --- the result -----------------------------------------------------------------------------------------------------


def finish(out: Path, style: Style, settings: CheckSettings) -> tuple[Funnel, list[ShardRecord], list[ShardRecord]]:
    """Check what was written and make the shards of it; the kept and the rejected ones."""
    tally, kept, rejected = Tally([_LANGUAGE_STEP, _REPHRASE_STEP]), [], []
    batches = groups(_lines(out / "work" / "written.jsonl"), BATCH_PAGES)
    for number, first in enumerate(batches):
        with ExitStack() as open_shards:
            name = f"part-{number:05d}.parquet"
            good, bad = (
                open_shards.enter_context(ShardWriter(out / folder / name, schema))
                for folder, schema in (("data", _KEPT), ("rejected", _REJECTED))
            )
            for group in chain([first], islice(batches, _SHARD_PASSAGES // BATCH_PAGES - 1)):
                passes, fails = judge(group, style, settings, tally)
                good.write(passes)
                bad.write(fails)
            kept.append(good.close(out))
            rejected.append(bad.close(out))
    funnel = tally.funnel()
    funnel.check()
    return funnel, kept, rejected


def judge(rows: Sequence[Written], style: Style, settings: CheckSettings, tally: Tally) -> tuple[pa.Table, pa.Table]:
    """(kept, with the text as it stays; rejected, with the text as it was written), counted in `tally`.

    What is lost is counted by its passage, what stays by its new text.
    """
    found = check_all([r.passage for r in rows], [Rephrased(r.text, r.finish) for r in rows], style, settings)
    judged = pa.Table.from_pylist([_row(row, one, style) for row, one in zip(rows, found, strict=True)], _REJECTED)
    sizes = Sizes.of(judged.select(["passage"]).rename_columns(["text"]))
    able = np.array([has_prompt(row.passage.language) for row in rows])
    passes = able & np.array([one.reason is None for one in found])
    asked, unable, kept, lost = (judged.filter(pa.array(mask)) for mask in (able, ~able, passes, able & ~passes))
    tally.keep(_LANGUAGE_STEP, asked, sizes.at(able))
    tally.drop(_LANGUAGE_STEP, unable.set_column(0, "text", unable["passage"]), sizes.at(~able))
    tally.keep(_REPHRASE_STEP, kept, Sizes.of(kept))
    tally.drop(_REPHRASE_STEP, _with_what_is_new(lost), sizes.at(able & ~passes))
    tally.count("stripped", sum(one.stripped for one, stays in zip(found, passes, strict=True) if stays))
    return kept.select(_KEPT.names), judged.filter(pa.array(~passes))


def _row(row: Written, found: Checked, style: Style) -> dict[str, Any]:
    passage, able = row.passage, has_prompt(row.passage.language)
    return {
        "text": found.text if found.reason is None else row.text, "id": passage.id, "source": passage.source,
        "url": None, "language": passage.language, "style": style, "of": passage.of, "stripped": found.stripped,
        "step": _REPHRASE_STEP if able else _LANGUAGE_STEP, "reason": found.reason if able else _NO_PROMPT,
        "value": found.value, "found": found.found, "passage": passage.text,
    }  # fmt: skip


def _with_what_is_new(lost: pa.Table) -> pa.Table:
    """Samples are to show the name that is new, not only the text that holds it."""
    rows = zip(lost["found"].to_pylist(), lost["text"].to_pylist(), strict=True)
    told = [f"[{new}] {text}" if new else text for new, text in rows]
    return lost.set_column(0, "text", pa.array(told, pa.large_string()))


def summary(out: Path, funnel: Funnel) -> str:
    """What came of it, in a line, and a line for each reason."""
    came, kept = funnel.came(), funnel.after(_REPHRASE_STEP)
    lines = [
        f"{out}: {kept.pages:,} of {came.pages:,} passages rephrased, about {kept.tokens:,} tokens; words around "
        f"{funnel.counted.get('stripped', 0):,} of them taken away; `fledge curate --show {out}` tells where others went"
    ]
    reasons: Counter[str] = Counter()
    for dropped in funnel.dropped:
        reasons[dropped.reason] += dropped.amount.pages
    return "\n".join([*lines, *(f"  {count:,} {reason}" for reason, count in reasons.most_common())])
