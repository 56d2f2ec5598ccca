"""Which code made a result."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import fledge


def code_version() -> str:
    """The first 12 digits of a sha256 over the package's sources, by name: equal code, equal version, wherever it is."""
    root = Path(fledge.__file__).parent
    digest = sha256()
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".cpp", ".h", ".toml")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
