"""A small crawl with known rubbish, a recipe of one rule, and comparing what curation made of it byte by byte."""

import hashlib
import json
import random
from pathlib import Path

FILES, PAGES = 5, 60
CLOCKS = {"speed.jsonl", "lock", "recipe.json"}  # recipe.json holds workers and ray
RECIPE = """
name = "one rule"
paper = "none: for tests"
steps = ["gopher_quality"]
[gopher_quality.en]
words = [20, 100_000]
[gopher_quality.zh]
words = [20, 100_000]
"""
_ENGLISH = (
    "the of and to in that is was for with on as by at from have this which were their water river city house people "
    "many small great long found called under between country stone green summer winter music paper market bridge"
).split()
_CHINESE = "的是在了和有人這中大為上個國我以要他時來用們生到作地於出就分對成會可主發年動同工也能下過子說產種面而方後多定行學法所民得經"


def _sentences(chance: random.Random, chinese: bool) -> str:
    if chinese:
        return "".join("".join(chance.choices(_CHINESE, k=chance.randint(8, 16))) + "。" for _ in range(10))
    words = (" ".join(chance.choices(_ENGLISH, k=chance.randint(8, 14))) for _ in range(8))
    return " ".join(f"{each.capitalize()}." for each in words)


def write_crawl(folder: Path, files: int = FILES, pages: int = PAGES, seed: int = 0) -> Path:
    """JSONL files of English and Chinese pages, among them copies, near copies, short and broken ones, e-mails."""
    chance = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    known: list[str] = []
    for number in range(files):
        lines = []
        for place in range(pages):
            kind = (number * pages + place) % 12
            text = _sentences(chance, chinese=kind in (2, 5, 8))
            if kind == 9 and known:
                text = chance.choice(known)
            elif kind == 10 and known:
                text = chance.choice(known) + f" More on page {number * pages + place}."
            elif kind == 11:
                text = "Buy now and save!"
            elif kind == 7:
                text += f" Write to someone{place}@mail{number}.org today."
            else:
                known.append(text)
            lines.append(json.dumps({"text": text}, ensure_ascii=False))
        lines.insert(pages // 2, '{"text": "broken')
        (folder / f"pages-{number}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def write_rule(folder: Path) -> Path:
    """The recipe of one rule as a file."""
    path = folder / "rule.toml"
    path.write_text(RECIPE)
    return path


def digests(out: Path) -> dict[str, str]:
    """sha256 of every file of a curated folder that must not depend on how it came to be."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and path.name not in CLOCKS)
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
