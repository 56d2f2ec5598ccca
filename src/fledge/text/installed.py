"""Real text that is on every machine: the source files of Python itself and of packages that are installed.

Which files there are differs a little with the version of Python and how it was packaged, so say with a result what was
read (`content`, `versions`). Tests, generated tables and parts that some systems package apart are left out.
"""

from __future__ import annotations

import platform
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

from fledge.text.readers import Document

_NOT_EVERYWHERE = {"idlelib", "turtledemo", "tkinter", "lib2to3", "ensurepip", "venv", "distutils", "pydoc_data"}
_LEFT_OUT = {"test", "tests", "testing", "idle_test", "encodings", "site-packages", "dist-packages", "__pycache__"}


def python_sources(packages: Sequence[str] = ()) -> Iterator[Document]:
    """Each .py file of the standard library, then of `packages`, as one document named as in `json/decoder.py`.

    Sorted by name. Raises ValueError for a package that is not installed.
    """
    roots = [(Path(sysconfig.get_paths()["stdlib"]), "")]
    for name in packages:
        found = find_spec(name)
        if found is None or not found.submodule_search_locations:
            raise ValueError(
                f"package {name!r}: not installed here, or a single file; name a folder that `import` finds"
            )
        roots.append((Path(next(iter(found.submodule_search_locations))), f"{name}/"))
    for root, prefix in roots:
        skip = _LEFT_OUT if prefix else _LEFT_OUT | _NOT_EVERYWHERE
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).parts
            # config-3.11-x86_64-linux-gnu and _sysconfigdata...py say how this Python was built
            if skip & set(parts[:-1]) or parts[0].startswith(("config-", "_sysconfigdata")):
                continue
            text = path.read_text("utf-8", "replace")
            if text.strip():
                yield Document(text, prefix + "/".join(parts))


def versions(packages: Sequence[str] = ()) -> dict[str, str]:
    """Versions of Python and of what provides each of `packages`; "" where no distribution says that it does."""
    providers = packages_distributions() if packages else {}
    known = {name: version(providers[name][0]) if name in providers else "" for name in packages}
    return {"python": platform.python_version()} | known


def content(documents: Iterable[Document]) -> str:
    """sha256 of names and texts, in their order."""
    digest = sha256()
    for document in documents:
        digest.update(document.source.encode() + b"\0" + document.text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()
