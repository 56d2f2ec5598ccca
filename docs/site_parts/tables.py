"""Tables that the code already holds: families that are read, fields that are refused, the functions of fledge.api."""

import html
import inspect
import re
import typing
from collections.abc import Sequence

from site_parts.sources import PACKAGE

from fledge import api
from fledge.cli import TABLE


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table class="options"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def families() -> str:
    """Native families, with the classes of transformers and whether llama.cpp's format is written for them."""
    from fledge.interop.families import FAMILIES
    from fledge.interop.gguf_export import ARCHITECTURES

    rows = [
        (f"<code>{name}</code>", f"<code>{family.prefix}…</code>", "hf, gguf" if name in ARCHITECTURES else "hf")
        for name, family in FAMILIES.items()
    ]
    return _table(["model_type", "classes", "written again as"], rows)


def refused() -> str:
    """Fields of config.json that would change what is computed."""
    from fledge.interop.families import REFUSED

    rows = [
        (
            f"<code>{field}</code>",
            "absent" if harmless is None else f"absent or <code>{harmless}</code>",
            html.escape(why),
        )
        for field, (harmless, why) in REFUSED.items()
    ]
    return _table(["field", "accepted", "anything else"], rows)


def recipes() -> str:
    """The recipes of curation: their steps and the papers whose bounds they hold."""
    from fledge.curate.recipes import load_recipe_of

    rows = []
    for path in sorted((PACKAGE / "curate" / "recipes").glob("*.toml")):
        recipe = load_recipe_of(path.stem)
        steps = ", ".join(f"<code>{step}</code>" for step in recipe.steps)
        rows.append((f"<code>{recipe.name}</code>", steps, html.escape(recipe.paper)))
    return _table(["--recipe", "steps", "bounds of"], rows)


def _written(kind: object) -> str:
    """A type as people write it: without the modules its names come from."""
    text = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
    return html.escape(re.sub(r"\b(?:\w+\.)+(?=\w)", "", text).replace("NoneType", "None"))


def functions() -> str:
    """Every function of fledge.api: what it must be given, what it returns, and where its options are listed."""
    rows = []
    for name, verb in api.VERBS.items():
        signature = inspect.signature(getattr(api, name))
        needed = [p.name for p in signature.parameters.values() if p.default is p.empty]
        call = f'<a href="commands.html#{verb}"><code>{name}({", ".join([*needed, "…"])})</code></a>'
        rows.append((call, f"<code>{_written(signature.return_annotation)}</code>", html.escape(TABLE[verb].help)))
    return _table(["function, with what it must be given", "returns", ""], rows)
