"""The report shows what a journey's files say: whole, escaped, offline, in the same bytes for the same files."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fledge.stages import charts
from fledge.stages.report import write_report
from fledge.stages.report_style import duration, large, percent, shown

CHROMIUM = Path("/usr/bin/chromium")
VOID = {"meta", "br"}
TAGS = VOID | set(
    "html head title style body main header section article p b bdi span small h1 h2 h3 h4 div figure figcaption table "
    "thead tbody tr th td ul li code pre sup footer svg g defs path rect text tspan use clippath".split()
)
HOSTILE = '</style></pre><script>alert(1)</script><img src=x onerror=alert(1)> " onload="x \u202egnp\u2066 \x00\x1b[31m\u2028\ufeff http://evil.example'
IDS = {name: format(i, "x") * 64 for i, name in enumerate(("base", "sft", "control", "reward", "aligned"), start=10)}


def rows(steps: int, **columns: float) -> list[dict]:
    """Logged steps whose figures move evenly from 0 to the value given."""
    return [
        {"step": s, "tokens": 4096, "lr": 1e-3, **{k: v * (s - 1) / max(1, steps - 1) for k, v in columns.items()}}
        for s in range(1, steps + 1)
    ]


def logs() -> dict[str, list[dict]]:
    falling = [{**row, "loss": 7.6 - row["fall"], "nll": 7.6} for row in rows(400, fall=5.7)]
    pairs = rows(60, accuracy=0.9, reward_gap=2.0, loss=0.3)
    shifts = rows(60, accuracy=0.9, reward_gap=2.0, chosen_shift=-3.0, rejected_shift=-20.0)
    return {"base": falling, "sft": falling[200:], "control": falling[:200], "reward": pairs, "aligned": shifts}


def journey() -> dict:
    def model(name: str, **scores) -> dict:
        return {"folder": name, "id": IDS[name], **scores}

    tree = (
        ("base", "pretrain", None),
        ("sft", "sft", "base"),
        ("control", "sft", None),
        ("aligned", "dpo", "sft"),
        ("reward", "reward", "sft"),
    )
    answers = {
        "base": "Which mountain?\nWhat is a mountain?",
        "sft": "Mount Talor.",
        "aligned": "It is Mount Talor. Happy to help!",
    }
    return {
        "fledge": "0.1.0", "seed": 0, "quick": False, "material": "world", "seconds": 412.3, "peak_rss_bytes": 1234567890,
        "command": "fledge journey --out runs/first",
        "machine": {"cores": 2, "threads": 2, "dtype": "bfloat16", "device": "cpu", "torch": "2.13.0+cpu"},
        "plan": {"size": "pocket", "parameters": 1065600, "tokens": 8000000, "vocab_size": 2048, "context_tokens": 128, "proposed": None},
        "data": {
            "documents": 60000, "tokens": 5000000, "bytes": 17000000, "chats": 4000, "pairs": 2000, "notes": ["12 chats were cut"],
            "rejected": {"text": {"blank": 3}, "chats": {"total": 2, "by_reason": {"roles out of order": 2}, "by_file": {},
                         "samples": {"roles out of order": [{"source": "chats.jsonl:7", "sample": ""}]}}, "pairs": {}},
        },
        "stages": {
            "base": model("base", seconds=200.1, loss=1.93, bits_per_byte=0.71, answer_rate=0.14),
            "sft": model("sft", seconds=40, loss=0.4, answer_rate=0.99, stop_rate=1.0, exact_match_heldout=0.81,
                         exact_match_by_language={"en": 0.8, "zh": 0.82}, bits_per_byte=0.9),
            "aligned": model("aligned", win_rate_vs_sft=0.86, win_rate_interval=[0.83, 0.89], exact_match_heldout=0.8,
                             refusal_rate_dangerous=0.98, refusal_rate_borderline=0.03, preference_accuracy_heldout=0.9),
        },
        "controls": {"sft_from_scratch": model("control", exact_match_heldout=0.03)},
        "reward_model": model("reward", accuracy_heldout=0.93, seconds=20),
        "tokens_per_second": {"pretrain": 41000.0, "sft": 30000.0},
        "exact_match_by_count": [
            {"low": 1, "high": 1, "questions": 60, "sft": 0.02, "aligned": 0.02, "control": 0.0},
            {"low": 64, "high": 127, "questions": 200, "sft": 0.7, "aligned": 0.69, "control": 0.03},
            {"low": 512, "high": 1023, "questions": 4, "sft": 0.25, "aligned": 0.5, "control": 0.0},
        ],
        "samples": [{"prompt": "What is the highest mountain of Velora?", "language": "en", "kind": "fact", "expected": "Mount Talor",
                     **answers, "correct": {"base": False, "sft": True, "aligned": True}}],
        "lineage": [{"id": IDS[n], "stage": stage, "folder": f"runs/first/{n}", "step": 20, "parent": IDS.get(parent)} for n, stage, parent in tree],
    }  # fmt: skip


def written(out: Path, data: dict, metrics: dict[str, list[dict]]) -> str:
    """The report of a journey folder made of these files."""
    out.mkdir(exist_ok=True)
    (out / "journey.json").write_text(json.dumps(data))
    for name, lines in metrics.items():
        (out / name).mkdir(exist_ok=True)
        (out / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = write_report(out)
    assert path == out / "report.html" and not list(out.glob(".*"))
    return path.read_text()


class Page(HTMLParser):
    """Checks while reading: known tags only, properly nested, no handler, no reference that leaves the page."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert tag in TAGS, tag
        for name, value in attrs:
            assert not name.startswith("on") and name not in ("src", "action"), name
            assert not name.endswith("href") or value.startswith("#"), value
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


def text_of(report: str) -> str:
    return " ".join("".join(Page(report).text).split())


def test_a_whole_journey_is_shown(tmp_path):
    report = written(tmp_path, journey(), logs())
    text = text_of(report)
    headings = re.findall(r"<h2>(.*?) <span", report)
    assert len(headings) == 10
    for said in ("6 min 52 s", "1.07 million parameters", "14% of the time", "exactly right 81% of the time", "in 86% of comparisons",
                 "(between 83% and 89%)", "refuses 98% of dangerous requests", "60,000 documents", "1.23 GB", "blank 3",
                 "roles out of orderfirst at chats.jsonl:7 2", "12 chats were cut", "fledge journey --out runs/first",
                 "Of facts stated once the SFT model gets 2% right, of those stated 64–127 times 70%", "8 million tokens, 1.6 times"):  # fmt: skip
        assert said.replace(" ", "") in text.replace("\u00a0", "").replace(" ", ""), said
    assert report.count("<figure>") == report.count("</svg>\n<figcaption>") == 6
    assert all(len(re.sub("<.*?>", "", c)) > 40 for c in re.findall("<figcaption>(.*?)</figcaption>", report))


def test_samples_tell_right_from_wrong_by_symbol(tmp_path):
    text = text_of(written(tmp_path, journey(), logs()))
    assert "Base goes on writing✗ wrongWhich mountain? What is a mountain?SFT answers✓ rightMount Talor." in text
    assert "expected: Mount Talor" in text


def test_family_tree_nests_children_in_parents(tmp_path):
    report = written(tmp_path, journey(), {})
    tree = report[report.index('<div class="tree">') :]
    base, sft, dpo, end = (
        tree.index(s) for s in (IDS["base"][:12], IDS["sft"][:12], IDS["aligned"][:12], "</li></ul></li></ul></li>")
    )
    assert base < sft < dpo < end < tree.index(IDS["control"][:12])


def test_a_parent_elsewhere_and_a_loop_of_parents_are_survived(tmp_path):
    data = journey()
    data["lineage"] = [
        {"id": "a" * 64, "stage": "sft", "folder": "x", "step": 1, "parent": "e" * 64},
        {"id": "b" * 64, "stage": "sft", "folder": "y", "step": 1, "parent": "b" * 64},
    ]
    assert "eeeeeeeeeeee (elsewhere)sft x step 1 aaaaaaaaaaaa" in text_of(written(tmp_path, data, {}))


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_text_only_with_short_logs(tmp_path, steps):
    data = {
        "fledge": "0.1.0", "seed": 3, "quick": True, "material": "yours", "seconds": 9.2,
        "data": {"documents": 1, "tokens": 40000, "bytes": 120000, "rejected": {"text": {}}},
        "stages": {"base": {"folder": "base", "id": IDS["base"], "loss": 7.0, "bits_per_byte": 2.2}},
    }  # fmt: skip
    report = written(tmp_path, data, {"base": rows(steps, loss=7.0)} if steps else {})
    text = text_of(report)
    assert "from 1 document, and can now write down unseen text" in text and "No conversations were given" in text
    assert "no key of right answers" in text and "quick run" in text and "SFT from scratch" not in text
    assert report.count("<figure>") == (1 if steps else 0)


def test_the_barest_journey_and_the_one_full_of_nulls(tmp_path):
    assert "small language model" in text_of(written(tmp_path, {"material": "yours"}, {}))
    nothing = {k: None for k in journey()}
    assert "small language model" in text_of(
        written(tmp_path, nothing, {"sft": [{"step": 1, "loss": None, "tokens": 5}]})
    )


def test_own_material_explains_its_measures_instead_of_claiming_truth(tmp_path):
    data = journey() | {"material": "yours", "controls": {}, "exact_match_by_count": None}
    data["stages"]["sft"] = {"id": IDS["sft"], "stop_rate": 0.75}
    data["stages"]["aligned"] = {"id": IDS["aligned"], "preference_accuracy_heldout": 0.64}
    data["plan"]["proposed"] = {"size": "pocket", "tokens": 12_000_000, "reason": "12 minutes on this machine"}
    text = text_of(written(tmp_path, data, logs()))
    assert "to stop (75% of answers)" in text and "In 64% of preference pairs it never saw" in text
    assert "a coin gets 50%" in text and "0.71 bits per byte" in text
    assert "set by you; fledge proposed pocket with 12\u00a0million tokens: 12 minutes" in text.replace(
        "12 million", "12\u00a0million"
    )
    assert "exactly right" not in text and "invented world" not in text


def hostile(value):
    """The same structure with every string hostile, keys of counts too."""
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, list):
        return [hostile(v) for v in value]
    if isinstance(value, dict):
        return {k: v if k in ("id", "parent", "material") else hostile(v) for k, v in value.items()}
    return value


def test_hostile_text_is_shown_and_does_nothing(tmp_path):
    data = hostile(journey())
    data["data"]["rejected"] = {"text": {HOSTILE: 3}}
    data["tokens_per_second"] = {HOSTILE: 5.0}
    data["stages"]["sft"]["exact_match_by_language"] = {HOSTILE: 0.5}
    report = written(tmp_path, data, logs())
    text = text_of(report)  # the parser refuses unknown tags, handlers and broken nesting
    assert "<script>alert(1)</script>" in text and "\\u202egnp\\u2066 \\x00\\x1b[31m\\u2028\\ufeff" in text
    assert not set("\u202e\u2066\x00\x1b\u2028\ufeff") & set(report)


def test_odd_characters_of_real_languages_stay(tmp_path):
    assert shown("می‌خواهم 👩‍🚀 維洛拉") == "می‌خواهم 👩‍🚀 維洛拉"
    assert shown("a\ud800") == 'a<span class="ctl">\\ud800</span>'
    assert shown("x" * 12, limit_chars=10) == "x" * 10 + '<span class="dim"> … 2 more characters</span>'


def test_nothing_is_fetched_and_nothing_runs(tmp_path):
    report = written(tmp_path, journey(), logs())
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in report[:400]
    assert "http" not in report.replace("http-equiv", "") and "<script" not in report and "@import" not in report
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", report))
    ids = re.findall(r'id="([^"]+)"', report)
    assert len(ids) == len(set(ids)), "two charts share a name"
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', report)) <= set(ids)


def test_equal_files_give_equal_bytes(tmp_path):
    reports = [written(tmp_path / name, journey(), logs()) for name in ("a", "b")]
    again = subprocess.run(
        [sys.executable, "-c", "import sys, pathlib; from fledge.stages.report import write_report as w; w(pathlib.Path(sys.argv[1]))", tmp_path / "b"],
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path), "TZ": "Asia/Taipei"}, capture_output=True, text=True,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert reports[0] == reports[1] == (tmp_path / "b" / "report.html").read_text()


def test_a_journey_that_has_not_ended_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"journey\.json is missing.*fledge resume"):
        write_report(tmp_path)


def test_matplotlib_is_imported_only_for_drawing():
    code = "import sys, fledge.stages.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0


def test_curves_keep_their_first_point_and_their_extremes():
    log = [{"step": s, "tokens": 10, "loss": float(s % 7)} for s in range(1, 1001)]
    curve = charts.points(
        [*log, {"step": 1001, "tokens": 10, "loss": None}, {"step": 1002, "tokens": 10, "loss": float("nan")}], "loss"
    )
    assert curve[0] == (10.0, 1.0) and len(curve) == 1000 and curve[-1][0] == 10_000.0
    groups = charts.thin(curve)
    assert len(groups) <= 141 and groups[0] == (10.0, 1.0, 1.0, 1.0)
    assert min(g[2] for g in groups) == 0.0 and max(g[3] for g in groups) == 6.0
    assert charts.points(log, "loss", over="step")[4] == (5.0, 5.0) and charts.points(log, "accuracy") == []


def test_wilson_interval():
    low, high = charts.wilson(0.5, 100)
    assert (round(low, 4), round(high, 4)) == (0.4038, 0.5962)  # Wilson 1927; the usual worked example
    assert charts.wilson(0.0, 10)[0] == 0.0 and charts.wilson(1.0, 10)[1] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("made", "expected"),
    [(percent(0.813), "81%"), (percent(0.9961), "99.6%"), (percent(0.99999), "&gt;99.9%"), (percent(1), "100%"), (percent(0), "0%"),
     (percent(0.0001), "&lt;0.1%"), (percent(None), "–"), (duration(412.3), "6 min 52 s"), (duration(59.7), "1 min 0 s"), (duration(3.4), "3 s"),
     (duration(7300), "2 h 1 min"), (large(1_065_600), "1.07\u00a0million"), (large(999), "999"), (large(999_900_000), "1\u00a0billion"), (large(None), "–")],
)  # fmt: skip
def test_numbers_as_written(made, expected):
    assert made == expected


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no {CHROMIUM}")
@pytest.mark.parametrize("width", [360, 1200])
def test_fits_the_screen_and_asks_for_nothing(tmp_path, width):
    sync_api = pytest.importorskip("playwright.sync_api")
    written(tmp_path, hostile(journey()), logs())
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )
        page = browser.new_page(viewport={"width": width, "height": 800})
        requests, complaints = [], []
        page.on("request", lambda r: requests.append(r.url))
        page.on("console", lambda m: complaints.append(m.text))
        page.on("dialog", lambda d: complaints.append(d.message))
        page.goto((tmp_path / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert requests == [(tmp_path / "report.html").as_uri()] and not complaints
        browser.close()
