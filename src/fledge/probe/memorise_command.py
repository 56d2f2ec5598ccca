"""`fledge memorise`: whether a model holds texts by heart, and in how short a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fledge.core.checkpoint import canonical_json, write_atomically
from fledge.core.config import Settings
from fledge.probe.memorise import Compressed, Recall, Search, compress, recall


class MemoriseOptions(Settings, frozen=True, kw_only=True):
    """What a model holds by heart: `fledge memorise RUN --text "To be, or not to be" --out found.json`.

    Each text is continued from its beginning (verbatim recall), and the shortest prompt that makes the model write all of
    it is searched for: the adversarial compression ratio, above 1 where the model knows the text by heart (Schwarzschild et
    al. 2024). `fledge memorise RUN --data quotes.jsonl --recall_only true` only recalls, in seconds.
    """

    run: str
    "Run or checkpoint, also an imported one."
    text: list[str] = []
    "Texts, as many as you like."
    data: list[str] = []
    "Texts in files instead: JSONL with text, or plain text."
    begin: float = 0.5
    "Share of each text's tokens that recall begins from."
    search: Search = Search()
    "How hard short prompts are looked for."
    recall_only: bool = False
    "Look for no prompts: recall takes seconds, the search minutes."
    out: str | None = None
    "File for the figures as JSON; none only prints them."
    device: str = "auto"
    "auto, cpu, cuda or cuda:1."

    def problems(self) -> list[str]:
        found = self.search.problems()
        if bool(self.text) == bool(self.data):
            found.append('text and data: set one of them (--text "To be, or not to be", or --data quotes.jsonl)')
        if not 0 <= self.begin < 1:
            found.append(f"begin = {self.begin}: must be a share in [0, 1)")
        return found


def run(options: MemoriseOptions) -> dict[str, Any]:
    """Recall and compress each text, print a table; returns what OUT holds."""
    import msgspec

    from fledge.stages.common import open_model
    from fledge.text.readers import Rejects, read_documents

    opened = open_model(options.run, device=options.device, precision="float32")
    tokenizer = opened.tokenizer
    texts = options.text or [d.text for d in read_documents(options.data, encoding=None, skip_bad=0, rejects=Rejects())]
    allowed = [t for t in range(tokenizer.vocab_size) if t not in tokenizer.special_ids]
    rows = []
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        told = recall(opened.model, tokenizer.bos, [ids], int(options.begin * len(ids)))[0]
        small = None
        if not options.recall_only:
            small = compress(opened.model, tokenizer.bos, ids, allowed, options.search)
        rows.append(_row(text, tokenizer.decode(told.written), told, small) | {"tokens": len(ids)})
        if small is not None:
            rows[-1]["prompt_text"] = tokenizer.decode(small.prompt)
            # a prompt of ids need not come back from its own text: only one that does can be typed
            rows[-1]["prompt_can_be_typed"] = small.found and tokenizer.encode(rows[-1]["prompt_text"]) == small.prompt
    held = None if options.recall_only else msgspec.to_builtins(options.search)
    result = {
        "model": {"id": opened.id, "path": str(opened.path)},
        "begin": options.begin,
        "search": held,
        "texts": rows,
    }
    if options.out:
        write_atomically(Path(options.out), canonical_json(result))
    _show(rows)
    return result


def _row(text: str, written: str, told: Recall, small: Compressed | None) -> dict[str, Any]:
    import msgspec

    row = {"text": text, "written": written, "recall": msgspec.to_builtins(told)}
    return row if small is None else row | {"compression": msgspec.to_builtins(small)}


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from fledge.core.log import visible

    table = Table("text", "tokens", "recalled", "edit distance", "ACR", "prompt", box=None, header_style="bold")
    for row in rows:
        told, small = row["recall"], row.get("compression")
        ratio = (
            "–"
            if small is None
            else f"{small['ratio']:.2f}"
            if small["found"]
            else f"{small['ratio']:.2f} (none found)"
        )
        table.add_row(
            visible(row["text"])[:40], str(row["tokens"]), "yes" if told["exact"] else f"{told['prefix']} tokens",
            f"{told['distance']:.2f}", ratio, visible(row.get("prompt_text", ""))[:40],
        )  # fmt: skip
    Console(highlight=False).print(table)
