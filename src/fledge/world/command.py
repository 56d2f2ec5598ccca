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
    crawl: bool = False
    "Write the world's pages as a small crawl instead (WARC, WET, JSON lines) with much junk; labels beside the folder."
    junk: float = 0.4
    "The junk's share of the crawl's pages."

    def problems(self) -> list[str]:
        """Every rule these settings break, in words."""
        wrong = [] if self.seed >= 0 else [f"seed = {self.seed}: must be at least 0"]
        if not 0 <= self.junk < 1:
            wrong.append(f"junk = {self.junk}: must be at least 0 and less than 1")
        return wrong


def run(options: WorldOptions) -> dict[str, Any]:
    """Writes the world, prints what was written and returns the content of world.json (a crawl: OUT.report.json)."""
    if options.crawl:
        return run_crawl(options)
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


def run_crawl(options: WorldOptions) -> dict[str, Any]:
    """Writes the world as a crawl, prints what was written and returns the report."""
    from rich.console import Console
    from rich.table import Table

    from fledge.world import World, WorldConfig
    from fledge.world.crawl_files import TRUTH, write_crawl

    start = time.perf_counter()
    config = WorldConfig.quick(options.seed) if options.quick else WorldConfig(seed=options.seed)
    report = write_crawl(World(config), Path(options.out), options.junk)
    seconds = time.perf_counter() - start
    files = Table("file", "pages", "sha256", title=f"crawl of the micro-world, seed {options.seed}")
    for name, pages in report["pages"].items():
        files.add_row(name, f"{pages:,}", report["sha256"][name][:12])
    kinds = Table("kind", "en", "zh")
    for kind in dict.fromkeys(key.rpartition(".")[0] for key in report["kinds"]):
        kinds.add_row(kind, *(f"{report['kinds'].get(f'{kind}.{language}', 0):,}" for language in ("en", "zh")))
    console = Console()
    console.print(files, kinds)
    console.print(f"written to {options.out} in {seconds:.1f} s; labels: {options.out}{TRUTH}", soft_wrap=True)
    console.print(f"next: fledge curate {options.out} --recipe world --out clean", soft_wrap=True)
    return report
