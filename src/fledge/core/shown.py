"""Results that know how they look: a table on a terminal, HTML in a notebook, and otherwise the plain list they are."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")
_PIPED_WIDTH = 400  # where nobody's window ends a line
# a notebook would be told of by itself, and has colours switched on for whoever asks
_PLAIN = {
    "force_terminal": False,
    "force_jupyter": False,
    "color_system": None,
    "highlight": False,
    "width": _PIPED_WIDTH,
}
_CELL = "text-align:left;padding:0.15em 0.9em 0.15em 0"
_PRE = '<pre style="white-space:pre-wrap;line-height:1.5">{code}</pre>'


class Listing(list[T]):
    """Rows of a result as a list; `look()` gives them as something `rich` prints."""

    def __init__(self, rows: Iterable[T], look: Callable[[], Any]):
        super().__init__(rows)
        self._look = look

    def __rich__(self) -> Any:
        return self._look()

    def __repr__(self) -> str:
        from rich.console import Console

        console = Console(**_PLAIN, file=io.StringIO())
        console.print(self._look(), crop=False)
        return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().split("\n"))

    def _repr_html_(self) -> str:
        return as_html(self._look())


def print_result(result: Any) -> None:
    """What a verb gave, on stdout where it is a Listing; other results were told while they came about."""
    if not isinstance(result, Listing):
        return
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPED_WIDTH)
    console.print(result, crop=False)


def as_html(shown: Any) -> str:
    """A table of `rich` as a table, anything else it prints as preformatted text in its colours."""
    from rich.console import Console
    from rich.table import Table

    if isinstance(shown, Table):
        return _table(shown)
    console = Console(
        file=io.StringIO(), record=True, force_terminal=True, force_jupyter=False, highlight=False, width=_PIPED_WIDTH
    )
    console.print(shown, crop=False)
    return console.export_html(inline_styles=True, code_format=_PRE)


def _table(shown: Any) -> str:
    from rich.text import Text

    def plain(cell: Any) -> str:
        return html.escape((Text.from_markup(cell) if isinstance(cell, str) else cell).plain)

    def row(cells: Iterable[Any], tag: str) -> str:
        return "<tr>" + "".join(f'<{tag} style="{_CELL}">{plain(cell)}</{tag}>' for cell in cells) + "</tr>"

    head = row((column.header for column in shown.columns), "th")
    body = "".join(row(cells, "td") for cells in zip(*(column.cells for column in shown.columns), strict=True))
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
