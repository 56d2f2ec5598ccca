"""Code shown in a page is read from the source when the site is built: what changes there changes here."""

import ast
from pathlib import Path

from mkdocs.exceptions import PluginError

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "fledge"


def _found(body: list[ast.stmt], name: str) -> ast.stmt | None:
    for node in body:
        named = getattr(node, "name", None)  # functions and classes
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if named == name or any(isinstance(t, ast.Name) and t.id == name for t in targets):
            return node
    return None


def source(file: str, *names: str) -> str:
    """Functions, classes (also Class.method) and constants of a file of src/fledge as one block of code.

    Raises PluginError where a name is gone: a page must not outlive the code it shows.
    """
    path = PACKAGE / file
    if not path.is_file():
        raise PluginError(f"a page shows {file}, which is not in {PACKAGE}: name the file where the code is now")
    text = path.read_text("utf-8")
    lines, tree = text.splitlines(), ast.parse(text)
    parts = []
    for name in names:
        body, node = tree.body, None
        for step in name.split("."):
            node = _found(body, step)
            if node is None:
                raise PluginError(f"a page shows {name} of {file}, which has no such name: write what it is called now")
            body = getattr(node, "body", [])
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        while first > 1 and lines[first - 2].startswith("#"):  # a comment above it belongs to it
            first -= 1
        parts.append("\n".join(line[node.col_offset :] for line in lines[first - 1 : node.end_lineno]))
    code = "\n\n\n".join(parts)
    return f'```python title="src/fledge/{file}"\n{code}\n```'
