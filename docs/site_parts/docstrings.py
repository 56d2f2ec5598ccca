"""Docstrings are plain text: `<user>` in one is no HTML. What stands in code is left as it is."""

import re
from typing import Any

import griffe

_CODE = re.compile(r"(`[^`]*`|^ {4}.*$)", re.M)


def escaped(text: str) -> str:
    """A docstring whose angle brackets outside of code are shown as they are."""
    parts = _CODE.split(text)  # code is at the odd places
    return "".join(part if i % 2 else part.replace("<", "&lt;") for i, part in enumerate(parts))


class Plain(griffe.Extension):
    """Escapes every docstring that is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = escaped(obj.docstring.value)
