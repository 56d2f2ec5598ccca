"""How a model and its texts look in a notebook."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fledge.probe.next_token import Next
from fledge.probe.reading import Likely

_TOKEN = "padding:0.1em 0.15em;margin:0 1px;border-radius:3px;white-space:pre-wrap"
_SURE, _LOST = (38, 102, 168), 6.0  # the colour of a token nobody expected; nats at which it is full


class TextView:
    """A text in tokens; `logp` (nats) of each where a model read it. In a notebook darker tokens surprised it more."""

    def __init__(self, tokens: Sequence[str], ids: Sequence[int], logp: Sequence[float] | None = None):
        self.tokens, self.ids, self.logp = list(tokens), list(ids), None if logp is None else list(logp)

    @property
    def text(self) -> str:
        """The text itself."""
        return "".join(self.tokens)

    @property
    def total(self) -> float:
        """log p of the whole text after <bos>, in nats."""
        return math.fsum(self._logp())

    @property
    def bits_per_byte(self) -> float:
        """Bits the model needs per UTF-8 byte; comparable across tokenizers, lower is better."""
        return -self.total / math.log(2) / max(1, len(self.text.encode("utf-8")))

    def _logp(self) -> list[float]:
        if self.logp is None:
            raise ValueError("these tokens were not read by the model: `logprobs(text)` gives their probabilities")
        return self.logp

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        if self.logp is None:
            return " ".join(repr(token) for token in self.tokens)
        return " ".join(f"{token!r} {value:.2f}" for token, value in zip(self.tokens, self.logp, strict=True))

    def _repr_html_(self) -> str:
        if self.logp is None:
            shades = [0.10 + 0.14 * (i % 2) for i in range(len(self.tokens))]
            titles = [f"id {i}" for i in self.ids]
        else:
            shades = [min(1.0, -value / _LOST) * 0.85 for value in self.logp]
            titles = [f"p = {math.exp(value):.3g}" for value in self.logp]
        red, green, blue = _SURE
        spans = (
            f'<span title="{title}" style="{_TOKEN};background:rgba({red},{green},{blue},{shade:.2f})">'
            f"{html.escape(token)}</span>"
            for token, title, shade in zip(self.tokens, titles, shades, strict=True)
        )
        return f'<div style="line-height:2">{"".join(spans)}</div>'


def next_table(found: Next) -> Any:
    """The distribution over the next token."""
    from rich.table import Table
    from rich.text import Text

    table = Table("next token", "probability", "", box=None, header_style="bold")
    for token in found.tokens:
        table.add_row(Text(_visible(token)), f"{token.p:.1%}", "█" * round(30 * token.p))
    table.add_row(Text("all others"), f"{found.rest:.1%}", "░" * round(30 * found.rest))
    return table


def _visible(token: Likely) -> str:
    return token.text if token.control else repr(token.text)


def ancestors_table(found: Sequence[Any]) -> Any:
    """A model and those it came from."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("stage", "step", "checkpoint", "weights", box=None, header_style="bold")
    for each in found:
        table.add_row(each.stage, f"{each.step:,}", escape(each.path), each.id[:12])
    return table


def card_table(card: dict[str, Any], parameters: int, path: Path, weights: str) -> str:
    """A model in a few rows of HTML."""
    parent = card["parent"]
    shape = card["model"]
    rows = {
        "stage": card["stage"],
        "parameters": f"{parameters:,}",
        "shape": f"{shape['layers']} layers of width {shape['width']}, context {shape['context_tokens']:,} tokens",
        "vocabulary": f"{shape['vocab_size']:,} tokens",
        "parent": f"{parent['path']} ({parent['id'][:12]})" if parent else "none: from random weights",
        "checkpoint": f"{path} ({weights[:12]})",
    }
    cells = "".join(
        f'<tr><th style="text-align:left">{name}</th><td style="text-align:left">{html.escape(str(told))}</td></tr>'
        for name, told in rows.items()
    )
    return f"<table>{cells}</table>"
