"""Tasks of lm-evaluation-harness that need no network: the embedded world, own files, and every task of the catalog.

    choices:WORLD   fact questions with four answers to choose from (acc; guessing gives 25%)
    cloze:WORLD     statements of the text up to their value, four values (acc), and whether greedy decoding writes the
                    right one (exact_match)
    bits:FILE       bits per byte of held-out text
    arithmetic:3, gsm8k:FILE, world, ...   a task of the catalog: the model answers, the task scores

WORLD is own (the world of the run's journey), world, or world:quick.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import datasets
from lm_eval.api.task import ConfigurableTask

if TYPE_CHECKING:
    from fledge.tasks.base import Example, Task
    from fledge.world.world import World

_OPTIONS = 4
_SHOTS = 200  # training questions that few-shot examples are drawn from
_SHORT_TOKENS, _LONG_TOKENS = 80, 256  # of an answer; long ones have worked solutions
_LONG_KINDS = ("maths", "prompt", "poem")
_ROLLING = ("bits_per_byte", "byte_perplexity", "word_perplexity")


class Offline(NamedTuple):
    """A task and whether it is asked through the chat template where one is wanted."""

    task: ConfigurableTask
    chat: bool


def usages() -> str:
    """Every name there is, one a line."""
    from fledge.tasks.catalog import usages as catalog

    own = "choices:WORLD", "cloze:WORLD (WORLD: own, world, world:quick)", "bits:FILE, bits:FILE,FILE"
    return "\n".join(f"  {usage}" for usage in own) + f"\n{catalog()}"


def build(name: str, run: Path, chat: bool) -> Offline | None:
    """The task of that name; None where it is none of these. chat: questions will stand in the chat template.

    Raises ValueError for an argument that is not understood, and what reading files raises.
    """
    from fledge.tasks.catalog import CATALOG, open_task

    family, _, argument = name.partition(":")
    if family == "choices":
        return Offline(_choices(name, _world(argument, run), chat), True)
    if family == "cloze":
        return Offline(_cloze(name, _world(argument, run)), False)
    if family == "bits":
        return Offline(_bits(name, argument), False)
    if family in CATALOG:
        return Offline(_answers(name, open_task(name), chat), True)
    return None


def _world(name: str, run: Path) -> World:
    from fledge.stages.worlds import world_behind
    from fledge.tasks.catalog import open_task

    if name == "own":
        return world_behind(run)
    if name not in ("world", "world:quick"):
        raise ValueError(f"world {name!r}: write own, world or world:quick after the colon, as in choices:own")
    return open_task(name).world  # type: ignore[attr-defined]


def _task(name: str, splits: Mapping[str, Sequence[dict[str, Any]]], **config: Any) -> ConfigurableTask:
    """A task over rows in memory. Raises ValueError where there is nothing to ask."""
    if not splits["test"]:
        raise ValueError(f"task {name!r} has no question to test with: give a file of its own for tests")
    held = datasets.DatasetDict({k: datasets.Dataset.from_list(list(rows)) for k, rows in splits.items() if rows})
    few_shot = {"training_split": "train", "fewshot_split": "train"} if "train" in held else {}
    return ConfigurableTask(
        config={
            "task": name, "test_split": "test", **few_shot, "custom_dataset": lambda **_: held, "target_delimiter": "",
            "metadata": {"version": 1}, **config,
        }
    )  # fmt: skip


def _shuffled(rows: Sequence[Any]) -> list[Any]:
    """The same order in every run, in which the first rows are a fair sample of all."""
    return random.Random(0).sample(list(rows), len(rows))


def _space(language: str, chat: bool = False) -> str:
    return " " if language == "en" and not chat else ""


def _options(right: str, pool: Sequence[str], key: str, lead: str) -> dict[str, Any]:
    """{choices, gold}: the right one among others of the pool, chosen and ordered by `key`."""
    draw = random.Random(key)
    wrong = draw.sample([value for value in dict.fromkeys(pool) if value != right], _OPTIONS - 1)
    options = draw.sample([right, *wrong], _OPTIONS)
    return {"choices": [lead + option for option in options], "gold": options.index(right)}


def _chosen(name: str, splits: Mapping[str, Sequence[dict[str, Any]]], *metrics: str) -> ConfigurableTask:
    """A multiple-choice task over rows of {text, choices, gold}."""
    return _task(
        name, splits, output_type="multiple_choice", doc_to_text="text", doc_to_choice="choices", doc_to_target="gold",
        metric_list=[{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in metrics],
    )  # fmt: skip


def _choices(name: str, world: World, chat: bool) -> ConfigurableTask:
    from fledge.world.questions import QUESTION

    def row(question: Any) -> dict[str, Any]:
        text = question.text if chat else QUESTION[question.language].format(question.text)
        lead = _space(question.language, chat)
        return {"id": question.id, "text": text} | _options(question.value, question.choices, question.id, lead)

    splits = {"test": world.questions("test"), "train": world.questions("train")[:_SHOTS]}
    return _chosen(name, {k: [row(q) for q in _shuffled(questions)] for k, questions in splits.items()}, "acc")


def _cloze(name: str, world: World) -> ConfigurableTask:
    from fledge.world.questions import statement_beginnings
    from fledge.world.relations import LANGUAGES

    rows = []
    for fact in world.facts:
        for language in (known for known in LANGUAGES if fact.count[known]):  # what the text never says is not asked
            pool = [value.surface[language] for value in world.pools[fact.relation]]
            for n, text in enumerate(statement_beginnings(fact, language)):
                key = f"{fact.id}.{language}.{n}"
                lead = _space(language)
                rows.append({"id": key, "text": text} | _options(fact.values[language], pool, key, lead))
    return _chosen(name, {"test": _shuffled(rows)}, "acc", "exact_match")


def _bits(name: str, paths: str) -> ConfigurableTask:
    from fledge.tasks.prompts import content_id
    from fledge.text.readers import read_documents

    texts = dict.fromkeys(document.text for document in read_documents([p for p in paths.split(",") if p]))
    rows = [{"id": content_id(text), "text": text} for text in texts]
    return _task(
        name, {"test": rows}, output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="text",
        metric_list=[{"metric": m, "higher_is_better": False, "aggregation": _ROLLING_MEANS[m]} for m in _ROLLING],
    )  # fmt: skip


_ROLLING_MEANS = {
    "bits_per_byte": "bits_per_byte",
    "byte_perplexity": "weighted_perplexity",
    "word_perplexity": "weighted_perplexity",
}


def _answers(name: str, task: Task, chat: bool) -> ConfigurableTask:
    splits = {"test": _shuffled(task.examples("test")), "train": _shuffled(task.examples("train"))[:_SHOTS]}
    examples = {example.id: example for example in splits["test"]}
    long = any(e.kind in _LONG_KINDS for e in splits["test"][:1])
    return _task(
        name, {k: [_asked(e, name, chat) for e in rows] for k, rows in splits.items()}, output_type="generate_until",
        doc_to_text="text", doc_to_target="answer", process_results=_scored(task, examples),
        generation_kwargs={
            "until": [] if chat else ["\n\n", "\nQuestion:", "\n問題："] if long else ["\n"],
            "max_gen_toks": _LONG_TOKENS if long else _SHORT_TOKENS, "do_sample": False,
        },
        metric_list=[{"metric": "score", "aggregation": "mean", "higher_is_better": True}],
    )  # fmt: skip


def _asked(example: Example, name: str, chat: bool) -> dict[str, Any]:
    from fledge.world.questions import QUESTION

    if len(example.prompt) != 1:
        raise ValueError(
            f"task {name!r}: question {example.id} has {len(example.prompt)} messages: only single questions are asked "
            "here; judge conversations with `fledge judge`"
        )
    text, answer = example.prompt[0]["content"], example.meta.get("worked") or (*example.answers, "")[0]
    if not chat:
        text, answer = QUESTION[example.language].format(text), _space(example.language) + answer
    return {"id": example.id, "text": text, "answer": answer}


def _scored(task: Task, examples: Mapping[str, Example]) -> Callable[[dict[str, Any], list[str]], dict[str, float]]:
    return lambda doc, answers: {"score": float(task.score(examples[doc["id"]], answers[0]))}
