"""What `fledge curate` finds of what was planted in real text: precision and recall of every step, by kind and language.

The pages are those of planted_pages.py. A page counts as found by the step that rejected it. For copies, a pair (copy and
base page) has reached the duplicates step when no earlier step rejected either; it is found when both end in one cluster.
A removed duplicate is real when its exact Jaccard similarity (five tokens per shingle) with the page kept, or with another
page of its cluster, is at least 0.5. "base" pages are real text; a rule that drops them may still be right (tables, verse
in short lines), so they are counted apart and not called errors.

    python benchmarks/planted.py [--recipe fineweb] [--scale 1.0] [--shared ../shared/data] [--folder DIR] [--json FILE]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from planted_pages import BROKEN_LINES, COPIES, HARMLESS, JUNK_PAGES, ROOT, make

from fledge.world.copies import jaccard, shingles

DUPLICATES = "duplicates"  # the step
LATER = (DUPLICATES, "quality")  # steps that a pair has reached the duplicates step when it was rejected by
REAL = 0.5  # Jaccard similarity of a real near-duplicate
LEAST = {"exact": 1.0, "recased": 1.0, "edit01": 0.95, "edit02": 0.95, "edit05": 0.88, "twin": 1.0}
MOST_UNREAL, MOST_JUNK = 0.02, 0.02
LEAST_MASKED = 0.95  # addresses whose four numbers are all small are left alone: they may be versions


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """All rows of the Parquet files of a folder."""
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def read_truth(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def right(text: str, planted: str) -> bool:
    """Whether a page's text is that planted, though rules may have taken lines out and masked data.

    It has no character beyond ASCII that was not planted, and four in five of its shingles were."""
    marks = Counter(c for c in text if not c.isascii() and not c.isspace())
    shown = shingles(text)
    return not marks - Counter(planted) and len(shown & shingles(planted)) >= 0.8 * len(shown)


def clusters(kept: dict[str, dict], rejected: dict[str, dict]) -> dict[str, str]:
    """url -> id of the page at the end of its `of` chain."""
    by_id = {row["id"]: row for row in (*kept.values(), *rejected.values())}
    roots = {}
    for url, row in (*kept.items(), *rejected.items()):
        while row.get("of") and row["of"] in by_id and row["of"] != row["id"]:
            row = by_id[row["of"]]
        roots[url] = row["id"]
    return roots


def pairs(truth: list[dict], rejected: dict[str, dict], roots: dict[str, str]) -> dict[tuple[str, str], Counter]:
    """(kind, language) -> planted pairs, those that reached the duplicates step, those found."""
    found: dict[tuple[str, str], Counter] = defaultdict(Counter)
    for row in truth:
        if row["kind"] not in COPIES:
            continue
        counts = found[row["kind"], row["language"][:2]]
        counts["planted"] += 1
        steps = [rejected[url]["step"] for url in (row["url"], row["of"]) if url in rejected]
        if all(step in LATER for step in steps) and row["url"] in roots and row["of"] in roots:
            counts["reached"] += 1
            counts["found"] += roots[row["url"]] == roots[row["of"]]
    return found


def unreal(truth: dict[str, dict], rejected: dict[str, dict], roots: dict[str, str]) -> tuple[int, list[dict]]:
    """(removed as duplicates, those of them without a real near-duplicate in their cluster)."""
    members = defaultdict(list)
    for url, root in roots.items():
        members[root].append(url)
    removed = [url for url, row in rejected.items() if row["step"] == DUPLICATES]
    alone = []
    for url in removed:
        others = (other for other in members[roots[url]] if other != url)
        if not any(jaccard(truth[url]["text"], truth[other]["text"]) >= REAL for other in others):
            alone.append(truth[url] | {"of": rejected[url]["of"], "value": rejected[url]["value"]})
    return len(removed), alone


def personal_data(truth: list[dict], kept: dict[str, dict]) -> dict[str, Any]:
    """Per kind of data: strings planted in kept pages, strings masked; and harmless sentences changed."""
    planted, masked, harmless, changed = Counter(), Counter(), 0, 0
    for row in truth:
        if row["url"] not in kept:
            continue
        text = kept[row["url"]]["text"]
        for kind, value in row["personal"] or []:
            planted[kind] += 1
            masked[kind] += value not in text
        if row["kind"] == "harmless":
            harmless += 1
            changed += HARMLESS[row["language"][:2]] not in text
    return {"planted": dict(planted), "masked": dict(masked), "harmless": harmless, "changed": changed}


def encodings(truth: list[dict], kept: dict[str, dict], rejected: dict[str, dict]) -> dict[str, Counter]:
    """Per kind of encoding: pages planted, kept with the right text, kept with a wrong one, rejected."""
    found: dict[str, Counter] = defaultdict(Counter)
    for row in truth:
        if row["kind"] in ("mojibake", "undeclared", "misdeclared", "declared", "undecodable", "replaced"):
            counts = found[f"{row['kind']}.{row['language'][:2]}"]
            counts["planted"] += 1
            if row["url"] in kept:
                counts["right" if right(kept[row["url"]]["text"], row["text"]) else "wrong"] += 1
            else:
                counts[f"rejected: {rejected[row['url']]['step']}" if row["url"] in rejected else "nowhere"] += 1
    return found


def measure(out: Path, truth_file: Path) -> dict[str, Any]:
    """Everything there is to say about a curated folder whose input was made by `make`; see the tables of `show`."""
    truth_rows = read_truth(truth_file)
    truth = {row["url"]: row for row in truth_rows}
    kept_rows, rejected_rows = rows_of(out / "data"), rows_of(out / "rejected")
    times = Counter(row["url"] for row in (*kept_rows, *rejected_rows) if row["url"])
    kept = {row["url"]: row for row in kept_rows}
    rejected = {row["url"]: row for row in rejected_rows if row["url"] in truth}
    roots = clusters(kept, rejected)
    removed, alone = unreal(truth, rejected, roots)
    ends: dict[tuple[str, str], Counter] = defaultdict(Counter)
    rules: dict[tuple[str, str], Counter] = defaultdict(Counter)
    for row in truth_rows:
        reject = rejected.get(row["url"])
        end = "kept" if row["url"] in kept else reject["step"] if reject else "nowhere"
        ends[row["kind"], row["language"][:2]][end] += 1
        if reject:
            kind = "base" if row["kind"] in ("base", "personal", "harmless", "declared") else "copy" if row["of"] else (
                "junk" if row["kind"] in JUNK_PAGES else "odd")  # fmt: skip
            rules[reject["step"], reject["reason"]][f"{kind}.{row['source']}" if kind == "base" else kind] += 1
    return {
        "pages": len(truth), "kept": len(kept), "rejected": len(rejected),
        "nowhere": sum(url not in times for url in truth), "twice": sum(n > 1 for n in times.values()),
        "strangers": sum(url not in truth for url in times if not url.endswith(".png")),
        "unnamed": sum(not row["url"] for row in rejected_rows),
        "pairs": pairs(truth_rows, rejected, roots), "removed": removed, "alone": alone,
        "ends": ends, "rules": rules, "personal": personal_data(truth_rows, kept),
        "encodings": encodings(truth_rows, kept, rejected),
        "evaluation": Counter(rejected[row["url"]]["step"] if row["url"] in rejected else "kept"
                              for row in truth_rows if row["kind"] == "evaluation"),
    }  # fmt: skip


def broken(found: dict[str, Any]) -> list[str]:
    """What was promised and is not so, in words."""
    wrong = [f"{found[name]} pages {name}" for name in ("nowhere", "twice", "strangers") if found[name]]
    if found["unnamed"] < len(BROKEN_LINES):
        wrong.append(f"{found['unnamed']} rejects without a url: at least the {len(BROKEN_LINES)} broken lines")
    for (kind, language), counts in found["pairs"].items():
        recall = counts["found"] / max(1, counts["reached"])
        if counts["reached"] and recall < LEAST.get(kind, 0):
            wrong.append(
                f"recall of {kind}.{language} {recall:.3f} ({counts['reached']} pairs): at least {LEAST[kind]}"
            )
    if len(found["alone"]) > MOST_UNREAL * found["removed"]:
        wrong.append(f"{len(found['alone'])} of {found['removed']} removed pages have no real near-duplicate")
    junk = [counts for (kind, _), counts in found["ends"].items() if kind in JUNK_PAGES]
    if (kept := sum(counts["kept"] for counts in junk)) > MOST_JUNK * sum(map(sum, (c.values() for c in junk))):
        wrong.append(f"{kept} pages of junk were kept")
    if found["evaluation"]["kept"]:
        wrong.append(f"{found['evaluation']['kept']} pages with a test question were kept")
    personal = found["personal"]
    for kind, planted in personal["planted"].items():
        if personal["masked"][kind] < LEAST_MASKED * planted:
            wrong.append(f"{planted - personal['masked'][kind]} of {planted} strings of kind {kind} are not masked")
    if personal["changed"]:
        wrong.append(f"{personal['changed']} harmless sentences were changed")
    for name, counts in found["encodings"].items():
        if counts["wrong"]:
            wrong.append(f"{counts['wrong']} pages with encoding {name} were kept with another text")
    return wrong


# --- tables ----------------------------------------------------------------------------------------------------------


def table(head: str, rows: Iterable[Iterable[Any]]) -> None:
    """A Markdown table; `head` is its first line."""
    print(f"\n{head}\n|" + "---|" * (head.count("|") - 1))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")


def share(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "-"


def show(found: dict[str, Any]) -> None:
    """All tables."""
    print(f"{found['pages']:,} pages: {found['kept']:,} kept, {found['rejected']:,} rejected, {found['nowhere']} nowhere, "
          f"{found['twice']} twice; {found['unnamed']} rejects without a url (broken lines, images)")  # fmt: skip
    table("| copies | language | planted | reached the step | found | recall |",
          ((kind, language, c["planted"], c["reached"], c["found"], share(c["found"], c["reached"]))
           for (kind, language), c in sorted(found["pairs"].items())))  # fmt: skip
    real = found["removed"] - len(found["alone"])
    print(
        f"\n{found['removed']:,} removed as duplicates, {share(real, found['removed'])} of them with a real near-duplicate"
    )
    table("| planted | language | pages | kept | rejected by |",
          ((kind, language, sum(c.values()), c["kept"],
            ", ".join(f"{step} {n}" for step, n in c.most_common() if step != "kept"))
           for (kind, language), c in sorted(found["ends"].items())))  # fmt: skip
    table("| step | reason | removed | junk | copies | odd | real text (of it) | not real text |",
          ((step, reason, sum(c.values()), c["junk"], c["copy"], c["odd"],
            ", ".join(f"{k[5:]} {n}" for k, n in c.most_common() if k.startswith("base.")) or 0,
            share(c["junk"] + c["copy"] + c["odd"], sum(c.values())))
           for (step, reason), c in sorted(found["rules"].items(), key=lambda item: (item[0][0], -sum(item[1].values())))))  # fmt: skip
    personal = found["personal"]
    table("| personal data | planted in kept pages | masked | recall |",
          ((kind, n, personal["masked"][kind], share(personal["masked"][kind], n))
           for kind, n in sorted(personal["planted"].items())))  # fmt: skip
    print(f"\nharmless sentences changed: {personal['changed']} of {personal['harmless']}")
    table("| encoding | planted | kept, right text | kept, wrong text | rejected |",
          ((name, c["planted"], c["right"], c["wrong"],
            ", ".join(f"{k[10:]} {n}" for k, n in c.items() if k.startswith("rejected")) or 0)
           for name, c in sorted(found["encodings"].items())))  # fmt: skip
    print(f"\npages with a test question: {dict(found['evaluation'])}")


def curate(folder: Path, out: Path, recipe: str, workers: int) -> None:
    """`fledge curate` in a process of its own."""
    command = [sys.executable, "-m", "fledge", "curate", str(folder / "pages"), "--out", str(out), "--recipe", recipe,
               "--evaluations", str(folder / "evaluation.jsonl"), "--workers", str(workers), "--split_bytes", "4M"]  # fmt: skip
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--recipe", default="fineweb")
    options.add_argument("--scale", type=float, default=1.0)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "data")
    options.add_argument("--folder", type=Path, help="an empty or new folder to work in and leave behind")
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        truth = make(folder, given.shared, given.scale, given.seed)
        curate(folder, folder / "clean", given.recipe, given.workers)
        found = measure(folder / "clean", truth)
    show(found)
    wrong = broken(found)
    print("\n" + ("\n".join(f"BROKEN: {line}" for line in wrong) or "everything promised holds"))
    if given.json:
        plain = {key: {".".join(k) if isinstance(k, tuple) else k: v for k, v in value.items()}
                 if isinstance(value, dict) else value for key, value in found.items()}  # fmt: skip
        given.json.write_text(json.dumps(plain, ensure_ascii=False, indent=1), encoding="utf-8")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
