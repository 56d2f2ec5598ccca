"""The experiments' pages say what result.json holds: every method and arm, the same figures, escaped, offline, same bytes."""

import copy
import math
import random
import re
import sys
from pathlib import Path

import pytest

from fledge.labs import charts as lab_charts
from fledge.labs import pages
from fledge.labs.page_parts import figures as number
from fledge.labs.page_parts import over_seeds, points_of, spread
from fledge.stages import panels
from fledge.stages.report_style import percent

sys.path.insert(0, str(Path(__file__).parents[1] / "stages"))
from test_report import CHROMIUM, HOSTILE, hostile, text_of

METHODS = {"reinforce": 0.80, "a2c": 0.84, "ppo": 0.92, "grpo": 0.88, "rloo": 0.885}


def methods_total(seeds: int = 3) -> dict:
    dice = random.Random(1)
    results = []
    for seed in range(seeds):
        runs = {}
        for method, end in METHODS.items():
            start, reach = 0.16 + 0.02 * seed, end + dice.uniform(-0.03, 0.03)
            xs = [round(i * 38400 / 15) for i in range(16)]
            curve = [
                {
                    "answers": x,
                    "accuracy": start
                    + (reach - start) * (1 - math.exp(-x / 9000))
                    + (dice.uniform(-0.02, 0.02) if x else 0),
                }
                for x in xs
            ]
            runs[method] = {"curve": curve, "seconds": 61.0 + 10 * seed, "kl_end": 3.2, "entropy_end": 0.21}
        noise = {"none": 9.0 + seed, "mean": 4.1, "group": 3.6, "leave-one-out": 4.0}
        results.append(
            {
                "seed": seed,
                "methods": runs,
                "spread": {"start": noise, "after reinforce": {**noise, "none": 14.0 + 5 * seed}},
            }
        )
    ends = {
        m: [(r["methods"][m]["curve"][0]["accuracy"], r["methods"][m]["curve"][-1]["accuracy"]) for r in results]
        for m in METHODS
    }
    calmer = {
        p: {
            b: [r["spread"][p]["none"] / r["spread"][p][b] for r in results] for b in ("mean", "group", "leave-one-out")
        }
        for p in results[0]["spread"]
    }
    options = {
        "out": "runs/methods",
        "parent": None,
        "task": "arithmetic",
        "methods": list(METHODS),
        "updates": 150,
        "lr": 3e-4,
        "seeds": seeds,
    }
    checks = {"every start is between 5% and 40%": True, "every method gains 30 points on every seed": True,
              "a baseline halves the gradient's variance": True, "every run takes 5 minutes at most": False}  # fmt: skip
    return {"options": options, "seeds": results, "gains": {m: [b - a for a, b in e] for m, e in ends.items()}, "calmer": calmer,
            "checks": checks, "verdict": "PARTLY"}  # fmt: skip


def over_arms(results: list[dict]) -> dict:
    """As labs.overoptimise sums them up."""
    seeds = len(results)
    arms = {}
    for arm in results[0]["policy_gradient"]:
        runs = [r["policy_gradient"][arm] for r in results]
        means = [sum(c[i]["gold"] for c in runs) / seeds for i in range(21)]
        at = means.index(max(means))
        arms[arm] = {
            "gold_start": means[0], "gold_peak": means[at], "gold_end": means[-1], "kl_at_peak": sum(c[at]["kl"] for c in runs) / seeds,
            "kl_end": sum(c[-1]["kl"] for c in runs) / seeds, "proxy_start": 0.01, "proxy_end": sum(c[-1]["proxy"] for c in runs) / seeds,
            "kl_end_by_seed": [c[-1]["kl"] for c in runs], "gold_end_by_seed": [c[-1]["gold"] for c in runs], "kl_at_peak_by_seed": [c[at]["kl"] for c in runs],
        }  # fmt: skip
    return arms


def overoptimise_total(seeds: int = 3) -> dict:
    dice, sizes = random.Random(2), [2**i for i in range(11)]
    strength = {"100": 0.55, "500": 0.8, "2000": 1.1}
    results = []
    for seed in range(seeds):
        best = {
            "gold": [{"n": n, "kl": math.log(n) - (n - 1) / n, "gold": 1.4 + 0.75 * math.log(n) ** 0.8} for n in sizes]
        }
        for votes, s in strength.items():
            rows = []
            for n in sizes:
                kl = math.log(n) - (n - 1) / n
                rows.append(
                    {
                        "n": n,
                        "kl": kl,
                        "proxy": 1.2 * math.sqrt(kl),
                        "gold": 1.4 + 0.02 * seed + math.sqrt(kl) * (1.1 * s - 0.42 * math.sqrt(kl) / s),
                    }
                )
            best[votes] = rows
        gradient = {}
        for arm in [f"{v} 0" for v in strength] + ["100 0.05", "100 0.2"]:
            votes, price = arm.split()
            s, far, curve = strength[votes], 28.0 / (1 + 25 * float(price)), []
            for i in range(21):
                kl = far * (1 - math.exp(-i / 9)) * (dice.uniform(0.93, 1.07) if i else 0)
                d = math.sqrt(kl)
                curve.append(
                    {
                        "step": 10 * i,
                        "kl": kl,
                        "proxy": 1.05 * d + dice.uniform(-0.1, 0.1),
                        "gold": 1.4 + d * (1.4 * s - 0.28 * d / s) + dice.uniform(-0.06, 0.06),
                    }
                )
            gradient[arm] = curve
        hacked = [{"prompt": f"Which river flows past Belmora ({i})?", "before": "The Tesk.",
                   "after": "It is the river Tesk, of course! I am so happy to help you! 很高興能幫上忙！ " * (i + 1), "gold": [2.5, -0.75 - i], "proxy": [0.31, 2.87 + i]} for i in range(3)]  # fmt: skip
        results.append({"seed": seed, "best_of_n": best, "policy_gradient": gradient, "start": 1.4, "hacked": hacked})
    arms = over_arms(results)
    options = {
        "out": "runs/over",
        "parent": "runs/first/sft",
        "pairs": [100, 500, 2000],
        "noise": 0.15,
        "kl_coefficients": [0.05, 0.2],
        "seeds": seeds,
    }
    checks = dict.fromkeys(
        (
            "proxy rises",
            "gold peaks, then loses 20% of its gain or more",
            "more votes move the peak out",
            "a KL penalty lowers the final KL",
        ),
        True,
    )
    return {"options": options, "seeds": results, "arms": arms, "checks": checks, "verdict": "REPRODUCED"}


def mixtures_total(seeds: int = 3) -> dict:
    dice = random.Random(3)
    where = {
        "sft": (0.62, 0.71),
        "0": (0.38, 0.99),
        "0.25": (0.47, 0.98),
        "0.5": (0.66, 0.90),
        "0.75": (0.78, 0.52),
        "1": (0.81, 0.21),
        "piecewise": (0.80, 0.97),
    }
    results = []
    for seed in range(seeds):
        arms = {}
        for arm, (h, s) in where.items():
            h, s = h + dice.uniform(-0.03, 0.03), min(1.0, s + dice.uniform(-0.02, 0.02))
            arms[arm] = {
                "facts_right": h + 0.02,
                "borderline_helped": h - 0.02,
                "helpful": h,
                "safe": s,
                "refused_facts": 0.01,
                "refused_borderline": 1 - h,
            }
        results.append({"seed": seed, "arms": arms})
    arms = {a: {k: sum(r["arms"][a][k] for r in results) / seeds for k in results[0]["arms"][a]} for a in where}
    options = {
        "out": "runs/mixtures",
        "parent": "runs/first/sft",
        "weights": [0.0, 0.25, 0.5, 0.75, 1.0],
        "seeds": seeds,
    }
    checks = {
        "no sum is as safe and as helpful": True,
        "10 points more helpful than every sum that is as safe": True,
        "safety alone refuses half of the borderline requests": False,
    }
    return {"options": options, "seeds": results, "arms": arms, "checks": checks, "verdict": "PARTLY"}


PAGES = [
    (pages.methods_page, methods_total),
    (pages.overoptimise_page, overoptimise_total),
    (pages.mixtures_page, mixtures_total),
]


def written(out: Path, make, total: dict) -> str:
    path = make(out, total)
    assert path == out / "report.html" and not list(out.glob(".*"))
    return path.read_text()


def drawn(report: str) -> list[str]:
    """The words in each drawing."""
    return [
        " ".join(re.findall(r"<text[^>]*>([^<]*)<", svg)) for svg in re.findall(r"<svg.*?</svg>", report, re.DOTALL)
    ]


def test_every_method_has_a_line_and_its_figures(tmp_path):
    total = methods_total()
    report = written(tmp_path, pages.methods_page, total)
    text = text_of(report)
    wide, narrow, ratios = drawn(report)
    for method, name in zip(METHODS, ("REINFORCE", "actor-critic", "PPO", "GRPO", "RLOO"), strict=True):
        runs = [s["methods"][method] for s in total["seeds"]]
        start, end = (sum(r["curve"][i]["accuracy"] for r in runs) / 3 for i in (0, -1))
        assert f"{name} {end:.0%}" in wide and f"{name} {end:.0%}" in narrow
        gains = ", ".join(points_of(g) for g in total["gains"][method])
        assert f"{name} {percent(start)}{percent(end)}{gains}1 min 11 s3.20.21" in text.replace(
            f"{name}{percent(start)}", f"{name} {percent(start)}"
        )
    assert "mean group leave-one-out" in ratios and "start after reinforce" in ratios
    ratio = sum(total["calmer"]["after reinforce"]["group"]) / 3
    assert (
        f"without one the variance is {ratio:.2f} times" in text
        and spread(total["calmer"]["start"]["mean"]).split("<")[0] in text
    )
    assert "PARTLY 部分重現: 3 of 4 checks hold." in text and "✗ noevery run takes 5 minutes at most" in text
    assert "−Σ weight · min(ratio · A, clip(ratio) · A)" in text
    assert (
        """fledge methods --out runs/methods --task arithmetic --methods '["reinforce", "a2c", "ppo", "grpo", "rloo"]' --updates 150 --lr 0.0003 --seeds 3"""
        in text
    )


def test_overoptimise_shows_peaks_arms_and_fooled_answers(tmp_path):
    total = overoptimise_total()
    report = written(tmp_path, pages.overoptimise_page, total)
    text, charts = text_of(report), drawn(report)
    assert len(charts) == 4
    assert all(f"{n} votes" in chart for n in ("100", "500", "2,000") for chart in charts[:2])
    assert all(name in chart for name in ("no penalty", "0.05 per nat", "0.2 per nat") for chart in charts[2:])
    for arm in total["arms"].values():  # the peaks of the charts are the peaks of the table
        assert f": {number(arm['gold_peak'])} at {number(arm['kl_at_peak'], 1)} nats" in text
        assert number(arm["gold_end"]) in text and number(arm["proxy_end"]) in text
    best = [max(sum(s["best_of_n"]["500"][i]["gold"] for s in total["seeds"]) / 3 for i in range(11))]
    assert f"500 votes: {number(best[0])} at" in text
    assert "gold 2.50 → −0.75 · proxy 0.31 → 2.87" in text and "Beforegold 2.50, proxy 0.31The Tesk." in text
    assert text.count("Which river flows past Belmora") == 3
    assert "REPRODUCED 重現: 4 of 4 checks hold." in text and "--pairs '[100, 500, 2000]'" in text


def test_mixtures_shows_every_arm(tmp_path):
    total = mixtures_total()
    report = written(tmp_path, pages.mixtures_page, total)
    text, charts = text_of(report), drawn(report)
    for chart in charts:
        assert {"0", "0.25", "0.5", "0.75", "1", "piecewise", "SFT"} <= set(chart.split())
    for arm, a in total["arms"].items():
        name = {"sft": "SFT, before", "piecewise": "piecewise"}.get(
            arm
        ) or f"{float(arm):g} helpful + {1 - float(arm):g} safe"
        seeds = [s["arms"][arm]["safe"] for s in total["seeds"]]
        assert f"{name}{percent(a['safe'])}{percent(min(seeds))}–{percent(max(seeds))}".replace("&gt;", ">") in text
    ours, rival = total["arms"]["piecewise"], max(total["arms"][w]["helpful"] for w in ("0", "0.25"))
    assert (
        f"{percent(ours['helpful'])} helpful; of the sums as safe as that the best is {percent(rival)} helpful" in text
    )
    assert "R_safe < 0.15" in text and "✗ nosafety alone refuses half of the borderline requests" in text


@pytest.mark.parametrize(("make", "total"), PAGES)
def test_equal_results_give_equal_bytes_and_nothing_is_fetched(tmp_path, make, total):
    report = written(tmp_path / "a", make, total())
    assert report == written(tmp_path / "b", make, total())
    assert "default-src 'none'" in report and "http" not in report.replace("http-equiv", "") and "<script" not in report
    ids = re.findall(r'id="([^"]+)"', report)
    assert len(ids) == len(set(ids)), "two charts share a name"
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', report)) <= set(ids)
    assert len(re.findall(r"<h2>.*?<span class=\"zh\"", report)) == report.count("<h2>") >= 4


def lacking(value, path=()):
    """Copies of a result, each without one key: every key of the top, of its options and of the first seed's levels."""
    if isinstance(value, dict):
        for key in value:
            yield (*path, key)
            if len(path) < 3:
                yield from lacking(value[key], (*path, key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield from lacking(value[0], (*path, 0))


@pytest.mark.parametrize(("make", "total"), PAGES)
def test_a_missing_key_is_no_crash(tmp_path, make, total, monkeypatch):
    for module in (panels, lab_charts):  # drawing takes its time and sees finite points only
        monkeypatch.setattr(module, "draw", lambda *given: "<svg></svg>")
    for path in [p for p in lacking(total(1)) if p[0] != "options"]:
        for gone in (True, False):
            data = copy.deepcopy(total(1))
            node = data
            for key in path[:-1]:
                node = node[key]
            if gone:
                del node[path[-1]]
            else:
                node[path[-1]] = None
            assert "<h1>" in written(tmp_path, make, data), path
    assert "<h1>" in written(tmp_path, make, {}) and "<h1>" in written(tmp_path, make, {"seeds": [], "arms": {}})


@pytest.mark.parametrize(("make", "total"), PAGES)
def test_hostile_text_is_shown_and_does_nothing(tmp_path, make, total):
    data = total()
    data["options"], data["verdict"] = hostile(data["options"]), HOSTILE
    data["checks"][HOSTILE] = True
    for seed in data["seeds"]:
        for sample in seed.get("hacked", []):
            sample |= {k: HOSTILE for k in ("prompt", "before", "after")}
        for key in ("methods", "arms", "best_of_n"):
            if key in seed:
                seed[key]["$x$ " + HOSTILE] = next(iter(seed[key].values()))
        if "policy_gradient" in seed:
            seed["policy_gradient"]["7 " + HOSTILE] = seed["policy_gradient"]["100 0"]
    if "calmer" in data:
        data["calmer"] = {HOSTILE: {HOSTILE: [2.0, 3.0]}}
    if make is pages.mixtures_page:
        data["arms"][HOSTILE] = data["arms"]["0.5"]
    report = written(tmp_path, make, data)
    assert "<script>alert(1)</script>" in text_of(
        report
    )  # the parser refuses unknown tags, handlers and broken nesting
    assert not set("\u202e\u2066\x00\x1b\u2028\ufeff") & set(report)


def test_words_about_methods_are_those_of_the_stage():
    stage = pytest.importorskip("fledge.stages.reinforce", exc_type=ImportError)
    assert set(pages.METHOD_WORDS) == set(stage.METHODS)
    words = {"mean": "the mean of all answers", "value": "a learned value of each token", "leave-one-out": "the mean of the prompt's other answers",
             "group-std": "the mean of the prompt's answers, in their deviations"}  # fmt: skip
    divisors = {"fixed": "answers × longest answer", "token": "tokens", "sequence": "tokens, then answers"}
    for name, method in stage.METHODS.items():
        bound = f"bounded to {1 - method.clip[0]:g}–{1 + method.clip[1]:g}" if method.clip else "free"
        assert pages.METHOD_WORDS[name][:4] == (words[method.baseline], divisors[method.divisor], method.epochs, bound)


def test_means_over_seeds_keep_only_what_every_seed_has():
    curves = [[{"step": 0, "kl": 0.0, "gold": 1.0}, {"step": 5, "kl": 2.0, "gold": 3.0}, {"step": 9, "kl": 3.0, "gold": None}],
              [{"step": 0, "kl": 0.0, "gold": 2.0}, {"step": 5, "kl": 4.0, "gold": 4.0}, {"step": 9, "kl": 3.0, "gold": 1.0}]]  # fmt: skip
    line = over_seeds(curves, "step", "kl", "gold", label="x")
    assert line.points == [(0.0, 1.5), (3.0, 3.5)] and line.band == [(0.0, 1.0, 2.0), (3.0, 3.0, 4.0)]
    assert over_seeds(curves[:1], "step", "kl", "gold", label="x").band == ()


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no {CHROMIUM}")
def test_fits_the_screen_and_asks_for_nothing(tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )
        for make, total in PAGES:
            path = make(tmp_path / make.__name__, total())
            for width in (360, 1200):
                page = browser.new_page(viewport={"width": width, "height": 800})
                requests, complaints = [], []
                page.on("request", lambda r, to=requests: to.append(r.url))
                page.on("console", lambda m, to=complaints: to.append(m.text))
                page.goto(path.as_uri())
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                assert requests == [path.as_uri()] and not complaints
                page.close()
        browser.close()
