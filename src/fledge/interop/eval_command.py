"""`fledge eval RUN`: a model through lm-evaluation-harness; results with standard errors, per task and per document.

RUN/eval/TASK.json holds the figures and what each document counted; TASK.samples.jsonl every prompt and answer.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from fledge.core.checkpoint import canonical_json, write_atomically
from fledge.core.config import Settings
from fledge.core.log import say, visible
from fledge.core.shown import Listing

if TYPE_CHECKING:
    from fledge.interop.lm_eval_model import FledgeLM

WEIGHTED = {  # of lm-eval: (sum of log p, weight) a document; the figure as a function of their ratio
    "bits_per_byte": lambda nats: -nats / math.log(2),
    "byte_perplexity": lambda nats: math.exp(-nats),
    "word_perplexity": lambda nats: math.exp(-nats),
}
_UNTAUGHT = ("pretrain", "import")  # stages after which a model has not been taught conversations by us


class EvalOptions(Settings, frozen=True, kw_only=True):
    """Evaluate a model on tasks of lm-evaluation-harness, own files, or the embedded world."""

    run: str
    "Run or checkpoint."
    tasks: list[str] = []
    "Names with commas or one by one, or YAML files; none given: choices:own and cloze:own, of the journey's world."
    limit: int | None = None
    "Documents of each task at most; none takes all."
    shots: int | None = None
    "Solved examples before each question; none: as the task says, 0 for ours."
    chat: bool | None = None
    "Ask through the chat template; none: yes unless the run is pretrained or imported."
    out: str | None = None
    "Folder for the results; none: RUN/eval."
    device: str = "auto"
    "auto, cpu, cuda or cuda:1."
    precision: str = "float32"
    "float32, so that scores are the model's own, or bfloat16."
    seed: int = 0
    "Seed of the choice of solved examples."

    def problems(self) -> list[str]:
        found = []
        if self.limit is not None and self.limit < 1:
            found.append(f"limit = {self.limit}: must be at least 1")
        if self.shots is not None and self.shots < 0:
            found.append(f"shots = {self.shots}: must be at least 0")
        if self.precision not in ("float32", "bfloat16", "auto"):
            found.append(f"precision = {self.precision!r}: must be float32, bfloat16 or auto")
        return found

    def names(self) -> list[str]:
        """The tasks, cut at commas that begin another name; what a YAML list names in its place."""
        words = [word for entry in self.tasks for word in _cut(entry)]
        return [name for word in words for name in _listed(word)] or ["choices:own", "cloze:own"]


def _cut(entry: str) -> list[str]:
    """Names at commas, but files of one task ("gsm8k:train.jsonl,test.jsonl") stay together: a part that is a path goes
    with the name before it."""
    found: list[str] = []
    for part in filter(None, (p.strip() for p in entry.split(","))):
        is_path = "." in part and ":" not in part and not part.endswith((".yaml", ".yml"))
        if found and is_path and ":" in found[-1]:
            found[-1] += f",{part}"
        else:
            found.append(part)
    return found


def _listed(name: str) -> list[str]:
    """A YAML file that only lists tasks ({tasks: [names]}) as those names; any other name as it is.

    A YAML file that is a task of lm-eval is the harness's to read. It may name Python functions that lie beside it, so
    it is a program like any other that its user runs.
    """
    if not name.endswith((".yaml", ".yml")):
        return [name]
    import yaml

    path = Path(name)
    if not path.is_file():
        raise ValueError(f"tasks file {name} does not exist")
    try:
        held = yaml.safe_load(path.read_text("utf-8"))
    except yaml.constructor.ConstructorError:  # !function and the like: a task
        return [name]
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is not valid YAML ({' '.join(str(error).split())})") from None
    if isinstance(held, dict) and "tasks" in held and not {"task", "group"} & held.keys():
        if set(held) != {"tasks"} or not isinstance(held["tasks"], list):
            raise ValueError(f"{name}: must be {{tasks: [names]}} and nothing else, or a task of lm-eval")
        return [str(task) for task in held["tasks"]]
    return [name]


class TaskResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one task gave, as it stands in RUN/eval/TASK.json."""

    task: str
    model: str
    "Id of the weights."
    path: str
    asked: dict[str, Any]
    "How it was asked: chat, shots, limit, version of the task."
    metrics: dict[str, dict[str, Any]]
    "By name: value, stderr (None where there is none), higher_is_better."
    documents: list[dict[str, Any]]
    "key (its id, or hash and number among equal ones), and of each metric a number, or [sum, weight] of a ratio."


def file_of(task: str) -> str:
    """File name of a task's results: its name where that can be one, else made safe and told apart by a hash."""
    safe = re.sub(r"[^\w.-]+", "-", task).strip("-.")[-60:]
    return safe if safe == task else f"{safe}-{hashlib.sha256(task.encode()).hexdigest()[:8]}"


def folder_of(run: Path | str) -> Path:
    """Where the results of a run or checkpoint are: RUN/eval; a folder of results is its own."""
    run = Path(run)
    if run.parent.name == "checkpoints":
        return run.parent.parent / "eval" / run.name
    return run if run.name == "eval" or run.parent.name == "eval" else run / "eval"


def evaluate(lm: FledgeLM, options: EvalOptions) -> list[TaskResult]:
    """Run the tasks on an open model and write their results. Raises ValueError for tasks that cannot be used."""
    import datasets
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    from fledge.interop.offline_tasks import build, usages

    for name in ("lm_eval", "lm-eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    chat = lm.opened.card.get("stage") not in _UNTAUGHT if options.chat is None else options.chat
    if chat and lm.tokenizer.format.turns is None:
        lm.tokenizer.turns  # noqa: B018 - raises, saying what to do
    names = list(dict.fromkeys(options.names()))
    built = {name: build(name, Path(options.run), chat) for name in names}
    foreign = [name for name, task in built.items() if task is None]
    manager = TaskManager(include_defaults=bool(foreign))
    for name in foreign:
        if not name.endswith((".yaml", ".yml")) and not manager.match_tasks([name]):
            raise ValueError(
                f"no task {name!r}: lm-eval has none of that name, and those that need no network are\n{usages()}"
            )
    say(f"{lm.opened.path}: {', '.join(names)}; questions {'in the chat template' if chat else 'as plain text'}")
    # the harness asks git for the commit of the folder it is in; where that is no repository, git would complain to the user
    evaluator.get_git_commit_hash = lambda: None
    results = []
    for through_chat in (False, True):
        asked = [task.task for task in built.values() if task is not None and (task.chat and chat) is through_chat]
        asked += foreign if chat is through_chat else []
        if not asked:
            continue
        found = evaluator.simple_evaluate(
            lm, tasks=asked, num_fewshot=options.shots, limit=options.limit, task_manager=manager, bootstrap_iters=1000,
            apply_chat_template=through_chat, fewshot_as_multiturn=through_chat, fewshot_random_seed=options.seed,
        )  # fmt: skip
        results += [
            _write(found, task, lm, options, through_chat, built.get(task) is not None) for task in found["samples"]
        ]
    return results


def _write(found: dict[str, Any], task: str, lm: FledgeLM, options: EvalOptions, chat: bool, named: bool) -> TaskResult:
    """One task's files. named: its documents have ids of their own, the same however they are asked."""
    samples, figures = found["samples"][task], found["results"][task]
    versions = {"version": found["versions"].get(task), "shots": found["n-shot"].get(task)}
    documents = _documents(samples, named)
    higher = found.get("higher_is_better", {}).get(task, {})
    result = TaskResult(
        task=task,
        model=lm.opened.id,
        path=str(lm.opened.path),
        asked={"chat": chat, "limit": options.limit, **versions},
        metrics=_metrics(figures, higher, documents),
        documents=documents,
    )
    folder = Path(options.out) if options.out else folder_of(options.run)
    write_atomically(folder / f"{file_of(task)}.json", canonical_json(result))
    kept = ("doc_id", "doc", "target", "arguments", "filtered_resps", "filter")
    lines = [msgspec.json.encode({k: s[k] for k in kept} | _numbers(s), enc_hook=str) + b"\n" for s in samples]
    write_atomically(folder / f"{file_of(task)}.samples.jsonl", b"".join(lines))
    return result


def _label(metric: str, kind: str) -> str:
    """A metric and the filter that read the answers, "none" being the usual one."""
    return metric if kind in ("none", "") else f"{metric} ({kind})"


def _numbers(sample: dict[str, Any]) -> dict[str, Any]:
    """{metric: number, or [sum of log p, weight]} of a sample; what is neither is left out."""
    found = {}
    for metric in sample["metrics"]:
        value = sample[metric]
        if metric in WEIGHTED and isinstance(value, tuple | list):
            found[_label(metric, sample["filter"])] = [float(value[0]), float(value[1])]
        elif isinstance(value, int | float | np.number):
            found[_label(metric, sample["filter"])] = float(value)
    return found


def _documents(samples: Iterable[dict[str, Any]], named: bool) -> list[dict[str, Any]]:
    """The metrics of each document over all filters, in the harness's order; `key` finds it in another evaluation."""
    by_id: dict[int, dict[str, Any]] = {}
    seen: Counter[str] = Counter()
    for sample in samples:
        if sample["doc_id"] not in by_id:
            key = sample["doc"]["id"] if named else sample["doc_hash"][:16]
            seen[key] += 1
            by_id[sample["doc_id"]] = {"key": key if seen[key] == 1 else f"{key}.{seen[key]}"}
        by_id[sample["doc_id"]] |= _numbers(sample)
    return list(by_id.values())


def _metrics(
    figures: dict[str, Any], higher: dict[str, bool], documents: Sequence[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    found = {}
    for key, value in figures.items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float | np.number):
            continue
        label, error = _label(metric, kind), figures.get(f"{metric}_stderr,{kind}")
        if metric in WEIGHTED:
            error = ratio_error(metric, np.array([d[label] for d in documents if label in d]))
        known = isinstance(error, int | float | np.number) and math.isfinite(error)
        found[label] = {
            "value": float(value),
            "stderr": float(error) if known else None,
            "higher_is_better": higher.get(metric, True),
        }
    return found


def ratio_error(metric: str, pairs: np.ndarray) -> float | None:
    """Standard error of f(sum of log p / sum of weights) over documents [n,2], by the delta method; None for one."""
    if len(pairs) < 2:
        return None
    nats, weight = pairs.T
    ratio = nats.sum() / weight.sum()
    error = np.std(nats - ratio * weight, ddof=1) / math.sqrt(len(pairs)) / weight.mean()
    step = 1e-6
    slope = (WEIGHTED[metric](ratio + step) - WEIGHTED[metric](ratio - step)) / (2 * step)
    return float(abs(slope) * error)


def table(results: Sequence[TaskResult]) -> Any:
    """The figures for a terminal."""
    from rich.table import Table

    shown = Table("task", "documents", "shots", "metric", "value", "standard error", box=None)
    for result in results:
        for n, (metric, figure) in enumerate(result.metrics.items()):
            first = (
                (visible(result.task), str(len(result.documents)), str(result.asked["shots"])) if n == 0 else ("",) * 3
            )
            error = "" if figure["stderr"] is None else f"{figure['stderr']:.2g}"
            shown.add_row(
                *first, f"{metric} {'↑' if figure['higher_is_better'] else '↓'}", f"{figure['value']:.5g}", error
            )
    return shown


def open_lm(run: str, device: str, precision: str) -> FledgeLM:
    """The model of a run as the harness takes it. Raises ValueError where the harness is not installed."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise ValueError(
            "evaluation goes through lm-evaluation-harness, which is not here: `pip install fledge[eval]`"
        ) from None
    from fledge.interop.lm_eval_model import FledgeLM

    return FledgeLM(run=run, device=device, precision=precision)


def run(options: EvalOptions) -> Listing[TaskResult]:
    """Evaluate and say where the files are; the results are shown as a table."""
    results = evaluate(open_lm(options.run, options.device, options.precision), options)
    say(f"written to {options.out or folder_of(options.run)}")
    return Listing(results, lambda: table(results))
