"""How much memory `fledge curate` takes, and how fast it is, on input of any size: 10 GB unless --size says otherwise.

A bounded generator writes the input, 64 MB of text a file: English and Traditional Chinese pages of the world's grammar (about
4 kB, lognormal), as JSON lines, WARC with HTML, and WET. One page in ten is an exact copy of one of the last few thousand, one in
ten a copy with 2% of its words edited, 15 in 100 are junk of every kind, 2 in 100 hold personal data, and now and then a line is
broken. Then `fledge curate` runs on it in a process of its own, and the memory of its whole process tree is read from /proc ten
times a second: RSS summed over the processes (pages they share are counted for each), and PSS (shared pages counted once).

    python benchmarks/curate_memory.py [--size 10G] [--recipe fineweb] [--workers 2] [--folder DIR] [--keep] [--json FILE]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from planted_pages import ROOT

from fledge.world.copies import edited
from fledge.world.crawl import JUNK
from fledge.world.crawl_files import BROKEN_LINES, html_page, record, response
from fledge.world.dice import Dice
from fledge.world.grammar import SENTENCE
from fledge.world.rubbish import personal

FILE_BYTES = 64 << 20  # of text
POOL = 30_000  # sentences of a language that a file's pages are made of
RECENT = 2000  # pages that copies are made of
PAGE_SENTENCES = {"en": 110, "zh": 110}  # median; about 4 kB of UTF-8 either way
SHARES = (("exact", 0.10), ("near", 0.10), ("junk", 0.15), ("personal", 0.02), ("good", 0.63))
CHARACTERS = [chr(0x4E00 + 37 * i) for i in range(500)]
KINDS = (".jsonl", ".jsonl", ".warc.gz", ".jsonl", ".warc.wet.gz")  # of the files, in turn
SAMPLE_SECONDS = 0.1


def bytes_of(text: str) -> int:
    """10G, 200M or a number."""
    return round(float(text.rstrip("GM")) * {"G": 1e9, "M": 1e6}.get(text[-1], 1))


class Pages:
    """An endless stream of pages {text, kind, language, url}, in bounded memory, the same for the same seed."""

    def __init__(self, seed: int):
        self.seed, self.number = seed, 0
        self.recent: dict[str, deque[str]] = {language: deque(maxlen=RECENT) for language in SENTENCE}

    def file(self, number: int, size: int) -> Iterator[dict[str, Any]]:
        """The pages of file `number`, `size` bytes of text."""
        dice, draw = Dice(self.seed, 1000 + number), np.random.default_rng((self.seed, number))
        pool = {language: [sentence(dice) for _ in range(POOL)] for language, sentence in SENTENCE.items()}
        # the grammar's Chinese sentences are short and alike; with some characters changed they are as varied as real ones
        pool["zh"] = [edited(sentence, "zh", 0.2, CHARACTERS, dice) for sentence in pool["zh"]]
        words = {"en": [w for s in pool["en"][:500] for w in s.split()], "zh": list("".join(pool["zh"][:500]))}
        kinds, shares = zip(*SHARES, strict=True)
        while size > 0:
            language = "en" if dice.chance(0.6) else "zh"
            kind = kinds[int(draw.choice(len(kinds), p=shares))]
            recent = self.recent[language]
            if kind in ("exact", "near") and recent:
                text = recent[dice.below(len(recent))]
                if kind == "near":
                    text = edited(text, language, 0.02, words[language], dice)
            elif kind == "junk":
                text = dice.pick(list(JUNK.values()))(language, dice)
            else:
                text = self._page(pool[language], language, draw)
                if kind == "personal":
                    text += "\n\n" + "\n".join(personal(language, dice)[0])
                recent.append(text)
            size -= len(text.encode())
            self.number += 1
            yield {"text": text, "kind": kind, "language": language, "url": f"https://made.example/{self.number}"}

    def _page(self, pool: list[str], language: str, draw: np.random.Generator) -> str:
        """Paragraphs of six sentences; the number of sentences is lognormal (sigma 0.6)."""
        count = int(np.clip(draw.lognormal(np.log(PAGE_SENTENCES[language]), 0.6), 12, 2000))
        chosen = [pool[i] for i in draw.integers(0, len(pool), count)]
        gap = " " if language == "en" else ""
        return "\n\n".join(gap.join(chosen[i : i + 6]) for i in range(0, count, 6))


def write_input(folder: Path, size: int, seed: int) -> dict[str, Any]:
    """Writes files until `size` bytes of text are there; returns what was written."""
    pages, counts, written, bytes_on_disk = Pages(seed), Counter(), 0, 0
    dice = Dice(seed, 999)
    for number in range(-(-size // FILE_BYTES)):
        kind = KINDS[number % len(KINDS)]
        path = folder / f"input-{number:05d}{kind}"
        with path.open("wb") as file:
            for one in pages.file(number, min(FILE_BYTES, size - number * FILE_BYTES)):
                counts[f"{one['kind']}.{one['language']}"] += 1
                written += len(one["text"].encode())
                if kind == ".jsonl":
                    file.write(msgspec.json.encode({"url": one["url"], "text": one["text"]}) + b"\n")
                    if dice.below(5000) == 0:
                        counts["broken line"] += 1
                        file.write(dice.pick(BROKEN_LINES) + b"\n")
                elif kind == ".warc.gz":
                    body, content_type = html_page(one | {"encoding": "utf-8"}, pages.number, dice)
                    file.write(response(one["url"], content_type, body))
                else:
                    file.write(record("conversion", one["url"], "text/plain", one["text"].encode()))
        bytes_on_disk += path.stat().st_size
    return {"pages": dict(counts), "text_bytes": written, "file_bytes": bytes_on_disk}


# --- memory ----------------------------------------------------------------------------------------------------------


def tree(root: int) -> list[int]:
    """The process and all its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
    found, waiting = [], [root]
    while waiting:
        one = waiting.pop()
        found.append(one)
        waiting += parents.get(one, [])
    return found


def memory(pids: list[int]) -> tuple[int, int]:
    """(RSS, PSS) of the processes together, in bytes."""
    total = Counter()
    for pid in pids:
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                key, _, value = line.partition(":")
                if key in ("Rss", "Pss"):
                    total[key] += int(value.split()[0]) * 1024
        except OSError:  # it has ended
            continue
    return total["Rss"], total["Pss"]


class Watch(threading.Thread):
    """The peaks of a process tree's memory while it runs, and when they were."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.pid, self.rss, self.pss, self.processes, self.at = pid, 0, 0, 0, 0.0
        self.stop, self.start_time = threading.Event(), time.monotonic()

    def run(self) -> None:
        while not self.stop.wait(SAMPLE_SECONDS):
            pids = tree(self.pid)
            rss, pss = memory(pids)
            if rss > self.rss:
                self.rss, self.at = rss, time.monotonic() - self.start_time
            self.pss, self.processes = max(self.pss, pss), max(self.processes, len(pids))


def curate(folder: Path, out: Path, recipe: str, workers: int) -> dict[str, Any]:
    """`fledge curate` in a process of its own: seconds, CPU seconds of the tree, peaks of memory."""
    command = [sys.executable, "-m", "fledge", "curate", str(folder), "--out", str(out)]
    command += ["--recipe", recipe, "--workers", str(workers)]
    before, start = os.times(), time.monotonic()
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
    watch = Watch(process.pid)
    watch.start()
    code = process.wait()
    watch.stop.set()
    watch.join()
    if code:
        raise RuntimeError(f"fledge curate ended with {code}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": time.monotonic() - start, "cpu_seconds": cpu, "rss_bytes": watch.rss, "pss_bytes": watch.pss,
            "processes": watch.processes, "peak_at_seconds": watch.at}  # fmt: skip


def measured(scratch: Path, size: int, given: argparse.Namespace) -> dict[str, Any]:
    """Writes the input, curates it and prints the figures."""
    pages, out = scratch / "input", scratch / "clean"
    pages.mkdir()
    start = time.monotonic()
    made = write_input(pages, size, given.seed)
    print(f"input: {made['text_bytes'] / 1e9:.2f} GB of text, {sum(made['pages'].values()):,} pages, "
          f"{made['file_bytes'] / 1e9:.2f} GB on disk, written in {time.monotonic() - start:.0f} s", flush=True)  # fmt: skip
    took = curate(pages, out, given.recipe, given.workers)
    print(f"peak memory: {took['rss_bytes'] / 1e9:.2f} GB RSS of {took['processes']} processes, at "
          f"{took['peak_at_seconds']:.0f} s; {took['pss_bytes'] / 1e9:.2f} GB PSS")  # fmt: skip
    print(f"{took['seconds']:.0f} s, {took['cpu_seconds']:.0f} CPU seconds: "
          f"{made['text_bytes'] / 1e6 / took['seconds']:.1f} MB/s, "
          f"{made['text_bytes'] / 1e6 / took['cpu_seconds']:.1f} MB per CPU second", flush=True)  # fmt: skip
    subprocess.run([sys.executable, "-m", "fledge", "curate", "--show", str(out)], check=True,
                   env={**os.environ, "PYTHONPATH": str(ROOT / "src")})  # fmt: skip
    return {"input": made, "run": took, "funnel": json.loads((out / "manifest.json").read_bytes()).get("funnel")}


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--size", default="10G", help="bytes of text")
    options.add_argument("--recipe", default="fineweb")
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--folder", type=Path, help="where the input and the output go; removed after, unless --keep")
    options.add_argument("--keep", action="store_true")
    options.add_argument("--most", default="2G", help="fail above this much memory (RSS)")
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    size, most = bytes_of(given.size), bytes_of(given.most)
    scratch = Path(tempfile.mkdtemp(dir=given.folder))
    try:
        report = measured(scratch, size, given)
    finally:
        if given.keep:
            print(f"kept in {scratch}")
        else:
            shutil.rmtree(scratch)
    if given.json:
        given.json.write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")
    return report["run"]["rss_bytes"] > most


if __name__ == "__main__":
    sys.exit(main())
