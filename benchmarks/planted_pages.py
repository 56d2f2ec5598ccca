"""Real text with planted junk: a folder of pages to curate, and the truth about every one of them beside it.

The text is that of ../shared/data: PEPs without code and markup, cut into pages of about 1,500 characters, as is Shakespeare,
gsm8k's questions with their answers, Tang poems joined into pages of at least 300 characters (six in ten
Traditional, the rest converted to Simplified). Every plant has a base page of its own, so no two plants disturb each other;
English ones are pages of prose (LEAST_WORDED), which the rules keep.
"""

import gzip
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from fledge.world.copies import edited, jaccard, recased, simplified, vocabulary, wrapped  # noqa: E402
from fledge.world.crawl import EDITS, JUNK  # noqa: E402
from fledge.world.crawl_files import BROKEN_LINES, html_page, record, response  # noqa: E402
from fledge.world.dice import Dice  # noqa: E402
from fledge.world.rubbish import LOREM, mojibake, personal  # noqa: E402

COPIES = {"exact": 150, "recased": 60, "edit01": 280, "edit02": 280, "edit05": 280, "edit10": 280, "wrapped": 120,
          "framed": 40, "twin": 280}  # fmt: skip
"""Copies per language (twins: Chinese only). wrapped: menu lines as text; framed: the page as HTML in a site's template."""

ODD = {"personal": 80, "harmless": 30, "mojibake": 30, "undeclared": 30, "misdeclared": 30, "declared": 30,
       "undecodable": 30, "replaced": 30, "evaluation": 30}  # fmt: skip
"""Other plants per language that need a base page: personal data; things that look like it; UTF-8 read as cp1252; Big5,
GB18030 or cp1252 undeclared, declared as UTF-8, and declared rightly; broken bytes; U+FFFD; a question of the test set."""

JUNK_PAGES = {**dict.fromkeys(JUNK, 40), "lorem": 40, "foreign": 40, "blank": 10}
"""Junk per language. foreign: French, German, Russian, Japanese or Korean (counted once, as language "other")."""

LEAST_WORDED = 0.82
"""Plants in English are made of pages of PEPs with at least this share of words with a letter."""

FOREIGN = {
    "fr": ("Le conseil municipal se réunit chaque mardi dans la grande salle de la mairie.", "Les enfants jouent au parc "
           "pendant que leurs parents préparent le repas.", "Cette année, la récolte des pommes a été très abondante.",
           "Le train de Lyon arrive toujours en retard quand il neige."),
    "de": ("Der Gemeinderat trifft sich jeden Dienstag im großen Saal des Rathauses.", "Die Kinder spielen im Garten, "
           "während ihre Eltern das Essen vorbereiten.", "In diesem Jahr war die Apfelernte besonders reich.",
           "Der Zug aus München kommt immer zu spät, wenn es schneit."),
    "ru": ("Городской совет собирается каждый вторник в большом зале.", "Дети играют в парке, пока родители готовят обед.",
           "В этом году урожай яблок был очень богатым.", "Поезд из Москвы всегда опаздывает, когда идёт снег."),
    "ja": ("市議会は毎週火曜日に大きな会議室で開かれます。", "子どもたちは公園で遊び、親は食事の準備をしています。",
           "今年はりんごがたくさん取れました。", "雪が降ると、東京からの電車はいつも遅れます。"),
    "ko": ("시의회는 매주 화요일에 큰 회의실에서 열립니다.", "아이들은 공원에서 놀고 부모는 식사를 준비합니다.",
           "올해는 사과 수확이 아주 풍성했습니다.", "눈이 오면 서울에서 오는 기차는 항상 늦습니다."),
}  # fmt: skip

HARMLESS = {
    "en": "Version 3.11.0.4 came out on 2024-05-17 and cost $1,299.00; the router keeps 192.168.0.12. ISBN 978-0-13-110362-7.",
    "zh": "版本3.11.0.4於2024-05-17發布，售價1,299.00元；路由器仍是192.168.0.12。書號978-0-13-110362-7。",
}
"""A version, a date, a price, a private address and a book's number: none of them is personal."""


def cut(text: str, size: int) -> Iterator[str]:
    """Paragraphs joined into pages of at least `size` characters; a rest below a third of it is left out."""
    some: list[str] = []
    for paragraph in [*re.split(r"\n[ \t]*\n", text), None]:
        if paragraph is not None and paragraph.strip():
            some.append(paragraph.strip("\n"))
        length = sum(map(len, some))
        if length >= size or (paragraph is None and length >= size // 3):
            yield "\n\n".join(some)
            some = []


def prose(text: str) -> str:
    """reStructuredText without directives, literal blocks and inline markup."""
    kept = []
    for paragraph in re.split(r"\n[ \t]*\n", text):
        lines = [line for line in paragraph.split("\n") if line.strip()]
        if lines and not lines[0].lstrip().startswith("..") and not all(line.startswith("    ") for line in lines):
            kept.append(re.sub(r"``|\*\*|:[a-z]+:(?=`)|`_{0,2}", "", paragraph))
    return "\n\n".join(kept)


def worded(text: str) -> float:
    """Share of the words that have a letter, where a run of symbols is a word."""
    words = re.findall(r"\w+|[^\w\s]+", text)
    return sum(any(map(str.isalpha, word)) for word in words) / max(1, len(words))


def base_pages(shared: Path, scale: float) -> dict[str, list[dict]]:
    """Language ("en", "zh") -> pages {text, source, language}, a share `scale` of what there is, in a fixed order."""
    en, zh = [], []
    peps = sorted((shared / "peps").glob("*.rst"))
    if not peps:
        raise FileNotFoundError(f"{shared} holds no peps/*.rst: give the folder that holds the real data")
    for path in peps:
        en += [("peps", page) for page in cut(prose(path.read_text(encoding="utf-8")), 1500)]
    en += [("shakespeare", page) for page in cut((shared / "tinyshakespeare.txt").read_text(encoding="utf-8"), 1500)]
    with (shared / "gsm8k" / "train.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(1000), strict=False)]
    en += [("gsm8k", row["question"] + "\n\n" + re.sub(r"<<.*?>>", "", row["answer"])) for row in rows]
    with (shared / "tang_poems.jsonl").open(encoding="utf-8") as file:
        poems = [json.loads(line) for line in file]
    one: list[str] = []
    for poem in poems:
        one.append(poem["title"] + "\n" + poem["text"].replace("\n", ""))
        if sum(map(len, one)) >= 300:
            zh.append(("poems", "\n\n".join(one)))
            one = []
    dice = Dice(0, 70)
    pages: dict[str, list[dict]] = {}
    for language, some in (("en", en), ("zh", zh)):
        some = dice.shuffled(some)[: max(1, round(scale * len(some)))]
        pages[language] = [{"text": text, "source": source, "language": language} for source, text in some]
    for number, page in enumerate(pages["zh"]):
        page["language"] = "zh-Hans" if number % 10 >= 6 else "zh-Hant"
        if page["language"] == "zh-Hans":
            page["text"] = simplified(page["text"])
    return pages


def copy(base: dict, kind: str, words: list[str], dice: Dice) -> dict:
    """A copy of `base`; what its text becomes after extraction, where it is HTML, is the text."""
    text, language = base["text"], base["language"][:2]
    if kind in EDITS:
        text = edited(text, language, EDITS[kind], words, dice)
    elif kind == "recased":
        text = recased(text, language)
    elif kind == "wrapped":
        text = wrapped(text, language, dice)
    elif kind == "twin":
        text = simplified(text)
    return {"text": text, "source": "planted", "language": "zh-Hans" if kind == "twin" else base["language"],
            "kind": kind, "of": base, "jaccard": round(jaccard(base["text"], text), 4)}  # fmt: skip


def odd(base: dict, kind: str, questions: list[str], dice: Dice) -> dict:
    """`base` itself with something odd about it; `text` stays the right text wherever there is one."""
    language, extra = base["language"][:2], {}
    if kind == "personal":
        sentences, data = personal(language, dice)
        extra = {"personal": data, "text": base["text"] + "\n\n" + ("" if language == "zh" else " ").join(sentences)}
    elif kind == "harmless":
        extra = {"text": base["text"] + "\n\n" + HARMLESS[language]}
    elif kind == "evaluation":
        extra = {"text": base["text"] + "\n\n" + dice.pick(questions)}
    elif kind == "undeclared" or kind == "misdeclared" or kind == "declared":
        codec = {"en": "cp1252", "zh-Hant": "big5", "zh-Hans": "gb18030"}[base["language"]]
        text = base["text"] if language == "zh" else base["text"].replace("'", "’").replace(" - ", " – ")
        extra = {"codec": codec, "text": text.encode(codec, "ignore").decode(codec)}
    return {**base, "kind": kind, **extra}


def junk(language: str, kind: str, bases: list[dict], dice: Dice) -> dict:
    """A page that should go."""
    if kind in JUNK:
        text = JUNK[kind](language, dice)
    elif kind == "lorem":
        text = LOREM + "\n\n" + dice.pick(bases)["text"][:400]
    elif kind == "foreign":
        language = dice.pick(sorted(FOREIGN))
        text = " ".join(dice.pick(FOREIGN[language]) for _ in range(20))
    else:
        text = dice.pick((" ", "\n\n \t\n", "\u3000\u3000"))
    return {"text": text, "source": "planted", "language": {"en": "en", "zh": "zh-Hant"}.get(language, "other"),
            "kind": kind}  # fmt: skip


def all_pages(shared: Path, scale: float, seed: int) -> list[dict]:
    """Base pages, copies, oddities and junk, shuffled; every page gets `url`; `of` becomes the url of the base page."""
    pages: list[dict] = []
    with (shared / "gsm8k" / "test.jsonl").open(encoding="utf-8") as file:
        questions = [json.loads(line)["question"] for line in file]
    for number, (language, bases) in enumerate(base_pages(shared, scale).items()):
        dice = Dice(seed, 71 + number)
        words = vocabulary([base["text"] for base in bases[:1000]], language)
        long = [
            base
            for base in bases
            if base["source"] == "poems" or (base["source"] == "peps" and worded(base["text"]) > LEAST_WORDED)
        ]
        twins = round(scale * COPIES["twin"]) if language == "zh" else 0
        traditional = [base for base in long if base["language"] == "zh-Hant"][:twins]
        pages += [copy(base, "twin", words, dice) for base in traditional]
        taken = {id(base) for base in traditional}
        free = iter(dice.shuffled([base for base in long if id(base) not in taken]))
        for kind, count in COPIES.items():
            if kind != "twin":
                pages += [copy(next(free), kind, words, dice) for _ in range(round(scale * count))]
        used: set[int] = set()
        for kind, count in ODD.items():
            some = [next(free) for _ in range(max(1, round(scale * count)))]
            used.update(map(id, some))
            pages += [odd(base, kind, questions, dice) for base in some]
        pages += [{**base, "kind": "base", "self": id(base)} for base in bases if id(base) not in used]
        for kind, count in JUNK_PAGES.items():
            pages += [junk(language, kind, long, dice) for _ in range(max(1, round(scale * count)))]
    pages = Dice(seed, 73).shuffled(pages)
    urls = {}
    for number, page in enumerate(pages):
        page["url"] = f"https://planted.example/{number}"
        if "self" in page:
            urls[page.pop("self")] = page["url"]
    for page in pages:
        page["of"] = urls[id(page["of"])] if page.get("of") else None
    return pages


def as_html(page: dict, number: int, dice: Dice) -> bytes:
    """A response record: the page in a site's template, with the encoding that its kind says."""
    kind, codec = page["kind"], page.get("codec", "utf-8")
    text = mojibake(page["text"]) if kind == "mojibake" else page["text"]
    body, _ = html_page({"text": text, "language": page["language"][:2], "encoding": "utf-8", "url": page["url"]},
                        number, dice)  # fmt: skip
    told = {"undeclared": "", "misdeclared": "utf-8"}.get(kind, codec)
    body = re.sub(rb'<meta charset="utf-8">', b"", body).decode().encode(codec, "xmlcharrefreplace")
    if kind == "undecodable":  # every 40th byte is one that neither UTF-8 nor GB18030 nor Big5 can hold there
        body = bytes(0xFF if i % 40 == 7 else byte for i, byte in enumerate(body))
    return response(page["url"], f"text/html; charset={told}" if told else "text/html", body)


def spoilt(page: dict) -> str:
    """Text with every 25th character replaced by U+FFFD, as a careless decoder leaves it."""
    return "".join("\ufffd" if i % 25 == 3 else c for i, c in enumerate(page["text"]))


HTML_KINDS = ("framed", "mojibake", "undeclared", "misdeclared", "declared", "undecodable")


def make(folder: Path, shared: Path, scale: float = 1.0, seed: int = 0) -> Path:
    """Writes FOLDER/pages/*, FOLDER/evaluation.jsonl (gsm8k's test questions) and FOLDER/truth.jsonl, and returns the last.

    A base page in ten is HTML, like every page whose encoding matters; two are WET or plain text files."""
    pages, dice = all_pages(shared, scale, seed), Dice(seed, 74)
    target = folder / "pages"
    target.mkdir(parents=True)
    rows: dict[str, list[bytes]] = defaultdict(list)
    for number, page in enumerate(pages):
        text = spoilt(page) if page["kind"] == "replaced" else page["text"]
        if page["kind"] in HTML_KINDS or (page["kind"] == "base" and number % 10 == 0):
            page["file"] = f"html-{number // 10 % 2}.warc.gz"
            rows[page["file"]].append(as_html(page, number, dice))
        elif page["kind"] == "base" and number % 10 == 1:
            page["file"] = "text.warc.wet.gz"
            rows[page["file"]].append(record("conversion", page["url"], "text/plain", text.encode()))
        else:
            page["file"] = f"lines-{number % 3}.jsonl" + (".gz" if number % 3 == 2 else "")
            rows[page["file"]].append(
                json.dumps({"url": page["url"], "text": text}, ensure_ascii=False).encode() + b"\n"
            )
    rows["lines-0.jsonl"] += [line + b"\n" for line in BROKEN_LINES]
    for name, some in rows.items():
        data = b"".join(some)
        (target / name).write_bytes(gzip.compress(data, 1, mtime=0) if name.endswith("jsonl.gz") else data)
    with (shared / "gsm8k" / "test.jsonl").open(encoding="utf-8") as file:
        questions = [json.loads(line)["question"] for line in file]
    write_lines(folder / "evaluation.jsonl", ({"id": f"gsm8k-test-{i}", "text": q} for i, q in enumerate(questions)))
    keep = ("url", "kind", "language", "source", "of", "jaccard", "personal", "file", "text")
    write_lines(folder / "truth.jsonl", ({key: page.get(key) for key in keep} for page in pages))
    return folder / "truth.jsonl"


def write_lines(path: Path, rows: Iterable[dict]) -> None:
    path.write_bytes(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
