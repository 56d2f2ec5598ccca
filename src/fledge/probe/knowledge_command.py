"""`fledge knowledge`: which facts a model knows always, sometimes, hardly or not at all."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from fledge.core.checkpoint import canonical_json, write_atomically
from fledge.core.log import say
from fledge.probe.knowledge import CATEGORIES, Asking, Known, Question


class KnowledgeOptions(Asking, frozen=True, kw_only=True):
    """Sort questions by how surely a model knows the answer: `fledge knowledge RUN --data questions.jsonl --out known.jsonl`.

    Rows: {"question": "Where was Ada born?", "answer": "London", "relation": "birthplace"}; answer may be a list.
    """

    run: str
    "Run or checkpoint; imported ones, too."
    data: list[str]
    "Questions: JSONL with question, answer (a text, or a list of all that are right) and relation."
    examples: list[str] = []
    "Questions that the worked examples are taken from; none takes those of data."
    count: int | None = None
    "Questions to sort, at most; none takes all."
    out: str | None = None
    "JSONL to write: the rows with category, p_greedy and p_sampled."
    device: str = "auto"
    "auto, cpu, cuda or cuda:1."

    def problems(self) -> list[str]:
        found = super().problems() + ([] if self.data else ["data: empty; name at least one file"])
        return found + [f"count = {self.count}: must be at least 1"] * (self.count is not None and self.count < 1)


def read_questions(paths: list[str]) -> list[Question]:
    """Rows with question, answer and perhaps relation. Raises ValueError naming the first row that has no such thing."""
    from fledge.text.readers import Rejects, read_rows

    found = []
    for source, row in read_rows(paths, encoding=None, skip_bad=None, rejects=Rejects(), columns=frozenset()):
        question, answer = row.get("question"), row.get("answer")
        answers = tuple(answer) if isinstance(answer, list) else (answer,)
        if not isinstance(question, str) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
            raise ValueError(f"{source}: a row needs question and answer, and has {', '.join(row)}")
        found.append(Question(question, answers, str(row.get("relation") or "")))
    if not found:
        raise ValueError(f"{', '.join(paths)}: no rows")
    return found


def run(options: KnowledgeOptions) -> dict[str, Any]:
    """Sort the questions, write OUT and print a table; returns counts and rows."""
    from fledge.probe.knowledge import knowledge
    from fledge.stages.common import open_model

    asked = read_questions(options.data)
    examples = read_questions(options.examples) if options.examples else asked
    asked = asked[: options.count]
    known = knowledge(open_model(options.run, device=options.device), asked, examples, options)
    rows = [
        {"question": q.question, "answer": list(q.answers), "relation": q.relation, "category": k.category,
         "p_greedy": k.greedy, "p_sampled": k.sampled}
        for q, k in zip(asked, known, strict=True)
    ]  # fmt: skip
    if options.out:
        write_atomically(Path(options.out), b"".join(canonical_json(row).strip() + b"\n" for row in rows))
    _show(asked, known)
    return {"counts": {c: sum(k.category == c for k in known) for c in CATEGORIES}, "rows": rows}


def _show(asked: list[Question], known: list[Known]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("relation", *CATEGORIES, "questions", box=None, header_style="bold")
    relations = list(dict.fromkeys(q.relation for q in asked))
    for relation in relations if len(relations) > 1 else []:
        _row(table, relation, [k for q, k in zip(asked, known, strict=True) if q.relation == relation])
    _row(table, "all", known)
    Console(highlight=False).print(table)
    say(
        "HighlyKnown: right greedily in every prompt; MaybeKnown: in some; WeaklyKnown: in samples alone; Unknown: never"
    )


def _row(table: Any, name: str, known: list[Known]) -> None:
    counts = Counter(k.category for k in known)
    table.add_row(name, *(f"{counts[c] / len(known):.0%}" for c in CATEGORIES), str(len(known)))
