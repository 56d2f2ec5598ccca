"""The page of a reinforcement run shows what its files say: curves, looks, red flags and settings; escaped, offline."""

import json
import math
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_report import CHROMIUM, HOSTILE, hostile, text_of

from fledge.stages.panels import ends, plain, spaced
from fledge.stages.reinforce_page import by_update, write_page

UPDATES = 60


def metrics(epochs: int = 1, **absent: None) -> list[dict]:
    """Rows of a run whose reward rises from 0.2 to 0.9; each update's notes are repeated in its `epochs` steps."""
    dice, rows = random.Random(4), []
    for i in range(UPDATES):
        x = i / (UPDATES - 1)
        notes = {
            "update": i + 1, "reward": 0.2 + 0.7 * x, "reward_std": 0.4 - 0.3 * x, "kl": 6 * x * x, "kl_coefficient": 0.05 * (1 + x),
            "entropy": 1.4 * math.exp(-2 * x) + dice.uniform(0, 0.05), "length": 6 + 12 * x, "no_signal": 0.1 + 0.5 * x, "cut_off": 0.3 * x * x,
        }  # fmt: skip
        for epoch in range(epochs):
            row = {"step": i * epochs + epoch + 1, "loss": -0.1, "grad_norm": 1.0, "lr": 1e-4, "tokens": 4096, **notes}
            rows.append({k: v for k, v in row.items() if k not in absent})
    return rows


def looks(steps: int = UPDATES) -> list[dict]:
    found = []
    for i in range(9):
        x = i / 8
        samples = [
            {"prompt": f"{n} + {n + 4} = ?", "answer": f"{2 * n + (4 if i > 3 else 3)}", "reward": float(i > 3) - 0.5}
            for n in (12, 31)
        ]
        scores = {"score": 0.22 + 0.6 * x, "reward": 0.18 + 0.65 * x, "length:20": 0.9 - 0.5 * x * x}
        found.append({"step": round(steps * x), "questions": 200, "scores": scores, "samples": samples})
    return found


RECIPE = {
    "out": "runs/rl", "parent": "runs/first/sft", "method": "ppo", "task": "arithmetic:3", "prompts": [], "reward": [], "watch": ["length:20"],
    "prompts_per_update": 16, "group_size": 8, "max_tokens": 64, "epochs": None, "baseline": None, "clip": None, "kl": None, "kl_target": 4.0,
    "train": {"steps": 240, "lr": 1e-4, "schedule": "constant", "optimizer": "adamw", "batch_tokens": 65536, "seed": 3, "compile": False},
}  # fmt: skip
FLAGS = [{"step": 40, "text": "entropy fell from 1.40 to 0.120 nats per token"}, {"step": 40, "text": "30% of answers are cut off"},
         {"step": 52, "text": "the reward rose while length:20 fell: the reward is being gamed"}]  # fmt: skip


def run_folder(
    run: Path, rows: list[dict], seen: list[dict], recipe: dict | None = None, flags: list | None = None
) -> Path:
    (run / "looks").mkdir(parents=True, exist_ok=True)
    (run / "recipe.json").write_text(
        json.dumps({"stage": "reinforce", "recipe": recipe if recipe is not None else RECIPE})
    )
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for i, look in enumerate(seen):
        (run / "looks" / f"{look.get('step') or i:08d}.json").write_text(json.dumps(look))
    if flags is not None:
        (run / "flags.json").write_text(json.dumps(flags))
    return run


def written(run: Path) -> str:
    path = write_page(run)
    assert path == run / "report.html" and not list(run.glob(".*"))
    return path.read_text()


def page_for_looking(run: Path) -> Path:
    return write_page(run_folder(run, metrics(), looks(), flags=FLAGS))


def test_a_run_is_shown_with_its_figures(tmp_path):
    report = written(run_folder(tmp_path, metrics(), looks(), flags=FLAGS))
    text = text_of(report)
    first, last = (f"{sum(0.2 + 0.7 * i / 59 for i in which) / 6:.2f}" for which in (range(6), range(54, 60)))
    for said in (f"In 60 updates the reward of its own answers went from {first} to {last}", "score from 0.22 to 0.82", "On 200 questions",
                 "length:20 is best at step 0 (0.90)", "The price of a nat was adapted from 0.050 to 0.100",
                 "12 + 16 = ?", "Beforereward −0.50", "27", "Nowreward +0.50", "28", "at step 0 and at step 60", "PPO · arithmetic:3 · from runs/first/sft",
                 "MethodPPO".replace("PPO", "ppo"), "Answers to each prompt8", "KL aimed at, nats4.0", "Learning rate0.0001", "Seed3"):  # fmt: skip
        assert said in text, said
    charts = [re.findall(r"<text[^>]*>([^<]*)<", svg) for svg in re.findall(r"<svg.*?</svg>", report, re.DOTALL)]
    titles = " ".join(word for chart in charts for word in chart)
    for title in ("reward of sampled answers", "score, held-out", "length:20, held-out", "KL to the parent, nats per answer", "price of a nat",
                  "entropy, nats per token", "length, tokens", "cut off before they ended", "prompts without signal"):  # fmt: skip
        assert title in titles
    assert len(charts) == 6 and all({"1, 2", "3"} <= set(chart) for chart in charts), "flags are marked in every chart"
    assert all(flag["text"] in text for flag in FLAGS) and text.count("step 40") == 2
    assert len(re.findall(r'<h[123]>[^\n]*?<span class="zh"', report)) == len(re.findall("<h[123]>", report))


def test_steps_of_one_rollout_count_once(tmp_path):
    assert [row["step"] for row in by_update(metrics(4))][:3] == [1, 5, 9]
    assert len(by_update([{"step": s, "reward": 1.0} for s in (1, 2, 3)])) == 3
    assert "In 60 updates" in text_of(written(run_folder(tmp_path, metrics(4), looks(240))))


@pytest.mark.parametrize(
    "absent", ["kl", "kl_coefficient", "reward", "reward_std", "entropy", "length", "cut_off", "no_signal", "update"]
)
def test_a_figure_that_was_not_measured_leaves_no_gap(tmp_path, absent):
    report = written(run_folder(tmp_path, metrics(1, **{absent: None}), looks()))
    assert report.count("<figure>") == (5 if absent in ("kl", "entropy", "no_signal", "reward") else 6)
    assert "nan" not in text_of(report).lower().split() and "Red flags" not in report


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_a_run_that_has_just_begun(tmp_path, rows):
    text = text_of(written(run_folder(tmp_path, metrics()[:rows], looks()[: min(rows, 1)], {"out": "x"}, [])))
    assert ("just begun" in text) == (rows < 2) and "None was raised." in text
    assert ("12 + 16 = ?" in text) == (rows > 0) and "Now" not in text.replace("Nowreward", "")


def test_looks_may_lack_anything(tmp_path):
    seen = [
        {"step": 0},
        {"step": 5, "scores": {"score": None}, "samples": [{"prompt": "a"}]},
        {"step": 9, "scores": {}, "samples": [{}]},
    ]
    assert "<h1>" in written(run_folder(tmp_path, metrics(), seen, flags=[{}, {"step": None, "text": None}]))


def test_settings_are_completed_by_the_checkpoint(tmp_path):
    run_folder(tmp_path, metrics(), looks())
    assert "decided by the method" in text_of(written(tmp_path))
    folder = tmp_path / "checkpoints" / "step-0000060"
    folder.mkdir(parents=True)
    data = {
        "prompts": 900,
        "held_out": 200,
        "dropped": 3,
        "rollouts": {"baseline": "value", "epochs": 4, "kl": "reward", "kl_coefficient": 0.05},
    }
    (folder / "card.json").write_text(json.dumps({"data": data}))
    text = text_of(written(tmp_path))
    for said in (
        "Baselinevalue",
        "Times a rollout is used4",
        "KL to the parentreward",
        "Price of a nat0.05",
        "Prompts learned from900",
        "too long3",
    ):
        assert said in text.replace(" Times", "Times"), said
    assert "decided by the method" not in text


def test_hostile_text_is_shown_and_does_nothing(tmp_path):
    seen = [{**hostile(look), "scores": {HOSTILE: 0.5 + i / 20, "$x$ 獎勵": 1.0}} for i, look in enumerate(looks())]
    report = written(run_folder(tmp_path, metrics(), seen, hostile(RECIPE), hostile(FLAGS)))
    text = text_of(report)  # the parser refuses unknown tags, handlers and broken nesting
    assert "<script>alert(1)</script>" in text and "$x$ 獎勵, held-out" in text
    assert not set("\u202e\u2066\x00\x1b\u2028\ufeff") & set(report)


def test_equal_files_give_equal_bytes_and_nothing_is_fetched(tmp_path):
    reports = [written(run_folder(tmp_path / name, metrics(), looks(), flags=FLAGS)) for name in ("a", "b")]
    code = "import sys, pathlib; from fledge.stages.reinforce_page import write_page as w; w(pathlib.Path(sys.argv[1]))"
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path), "TZ": "Asia/Taipei"}
    again = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "b"], env=environment, capture_output=True, text=True
    )
    assert again.returncode == 0 and not again.stderr, again.stderr
    assert reports[0] == reports[1] == (tmp_path / "b" / "report.html").read_text()
    assert (
        "default-src 'none'" in reports[0]
        and "http" not in reports[0].replace("http-equiv", "")
        and "<script" not in reports[0]
    )
    ids = re.findall(r'id="([^"]+)"', reports[0])
    assert len(ids) == len(set(ids)) and set(re.findall(r'(?:url\(|href=")#([^")]+)', reports[0])) <= set(ids)


def test_no_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"recipe\.json is missing.*fledge reinforce"):
        write_page(tmp_path)


def test_parts_of_the_drawings():
    assert spaced([0.1, 0.12, 0.9], 0.1) == pytest.approx([0.1, 0.2, 0.9])
    assert spaced([0.95, 0.97, 0.99], 0.1) == pytest.approx([0.8, 0.9, 1.0])
    assert ends([(float(i), float(i)) for i in range(30)]) == (1.0, 28.0) and ends([(0.0, 2.0)]) == (2.0, 2.0)
    assert plain("a\u202eb\x00") == "a\\x202eb\\x00" and plain("x" * 40) == "x" * 27 + "…"


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no {CHROMIUM}")
@pytest.mark.parametrize("width", [360, 1200])
def test_fits_the_screen_and_asks_for_nothing(tmp_path, width):
    sync_api = pytest.importorskip("playwright.sync_api")
    seen = [hostile(look) | {"scores": look["scores"] | {HOSTILE: 0.5}} for look in looks()]
    path = write_page(run_folder(tmp_path, metrics(), seen, hostile(RECIPE), hostile(FLAGS)))
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )
        page = browser.new_page(viewport={"width": width, "height": 800})
        requests, complaints = [], []
        page.on("request", lambda r: requests.append(r.url))
        page.on("console", lambda m: complaints.append(m.text))
        page.on("dialog", lambda d: complaints.append(d.message))
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert requests == [path.as_uri()] and not complaints
        browser.close()
