"""`fledge world`: writes the micro-world."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from fledge.core.config import Settings


class WorldOptions(Settings, frozen=True, kw_only=True):
    """Write the documents, conversations, pairs and questions of the embedded world, to look at or to train on."""

    out: str = "world"
    "Folder for the files; made if missing."
    seed: int = 0
    "The same seed gives the same bytes."
    quick: bool = False
    "About a sixth of the text, for first tries."

    def problems(self) -> list[str]:
        """Every rule these settings break, in words."""
        return [] if self.seed >= 0 else [f"seed = {self.seed}: must be at least 0"]


def run(options: WorldOptions) -> dict[str, Any]:
    """Writes the world, prints what was written and returns the content of world.json."""
    from rich.console import Console
    from rich.table import Table

    from fledge.world import World, WorldConfig

    start = time.perf_counter()
    config = WorldConfig.quick(options.seed) if options.quick else WorldConfig(seed=options.seed)
    report = World(config).write(Path(options.out))
    seconds = time.perf_counter() - start
    measured = report["text"]
    text = Table("text", "pages", "characters", title=f"micro-world, seed {options.seed}")
    for key, pages in measured["pages"].items():
        text.add_row(key, f"{pages:,}", f"{measured['chars'][key]:,}")
    files = Table("file", "rows", "sha256")
    for name, rows in report["rows"].items():
        files.add_row(name, f"{rows:,}", report["sha256"][name][:12])
    console = Console()
    console.print(text, files)
    console.print(f"about {measured['tokens_estimated']:,} tokens, {len(report['counts']):,} facts")
    console.print(f"written to {options.out} in {seconds:.1f} s", soft_wrap=True)
    return report
