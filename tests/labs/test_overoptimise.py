"""The experiment on over-optimised rewards, shrunk: whose world, which votes, what is kept and computed."""

import json
import math
import re
import signal
from pathlib import Path

import msgspec
import numpy as np
import pytest

from fledge.core.checkpoint import list_checkpoints, load_checkpoint
from fledge.core.config import build
from fledge.core.log import read_jsonl
from fledge.core.train import Interrupted
from fledge.generate.sampling import Sampling
from fledge.labs import overoptimise
from fledge.labs.overoptimise import OveroptimiseOptions, _best_of_n, _hacked, scaled, summary, votes
from fledge.labs.worlds import Asked
from fledge.resume import ResumeOptions, resume
from fledge.stages import reinforce
from fledge.stages.best_of_n import answer_pool, score_pool
from fledge.stages.common import fix_recipe, open_model
from fledge.stages.journey import JourneyRecipe
from fledge.stages.worlds import world_behind
from fledge.tasks.world_tasks import WorldFacts
from fledge.world import WorldConfig

# --------------------------------------------------------------------------------------------------------- whose world


def test_the_world_of_a_journey_is_found_from_any_folder_in_it(raised, monkeypatch):
    run = Path(raised)
    monkeypatch.chdir(run)
    for place in (run.parent, run, open_model(raised).path, list_checkpoints(run)[0], Path(".")):
        assert world_behind(place).config == WorldConfig.quick(3)


def test_the_full_world_is_not_the_quick_one(tmp_path):
    fix_recipe(tmp_path, "journey", JourneyRecipe(out=str(tmp_path), seed=5))
    assert world_behind(tmp_path / "sft").config == WorldConfig(seed=5)


def test_a_model_of_no_world_is_refused(adder, tmp_path):
    with pytest.raises(ValueError, match=r"sft.* belongs to no journey .* `fledge journey --quick"):
        world_behind(Path(adder))
    fix_recipe(tmp_path, "journey", JourneyRecipe(out=str(tmp_path), text=["mine.txt"]))
    with pytest.raises(ValueError, match="belongs to no journey through the embedded world"):
        world_behind(tmp_path / "sft")


def test_other_prompts_the_same_score(world, gold):
    test, facts = gold.examples("test")[:3], WorldFacts(world)
    asked = Asked(facts, test)
    assert asked.examples("test") == test and asked.examples("train") == facts.examples("train")
    assert Asked(facts, test, test[:1]).examples("train") == test[:1]
    fact = next(e for e in test if e.kind == "fact")
    assert asked.score(fact, fact.answers[0]) == 1.0 and asked.score(fact, "no") == 0.0
    with pytest.raises(KeyError):
        asked.examples("valid")


# --------------------------------------------------------------------------------------------------------------- votes


@pytest.fixture
def pool(monkeypatch) -> None:
    """Answers to each prompt without a model: three that gold tells apart, a copy, and an empty one."""

    def answers(opened, examples, n, sampling):
        assert sampling.temperature == 1.0
        return [[e.answers[0], "Nowhere.", e.answers[0] + " Nowhere.", "Nowhere.", " "] for e in examples]

    monkeypatch.setattr(overoptimise, "answer_pool", answers)


def ranked(gold, rows) -> list[bool]:
    """Whether each vote agrees with gold."""
    by_prompt = {e.prompt[-1]["content"]: e for e in gold.examples("train")}
    found = []
    for row in rows:
        example = by_prompt[row["prompt"][-1]["content"]]
        a, b = (gold.score(example, row[key]) for key in ("chosen", "rejected"))
        assert a != b and row["chosen"].strip() and row["rejected"].strip()
        found.append(a > b)
    return found


@pytest.mark.parametrize("noise", [0.0, 0.15, 0.4])
def test_votes_follow_gold_but_for_the_noise(pool, gold, noise):
    rows = votes(None, gold, 2000, noise, 0)
    wrong = ranked(gold, rows).count(False) / 2000
    assert len(rows) == 2000 and abs(wrong - noise) <= 3 * math.sqrt(noise * (1 - noise) / 2000)


def test_votes_depend_on_the_seed_alone_and_more_of_them_begin_alike(pool, gold):
    rows = votes(None, gold, 60, 0.15, 1)
    assert votes(None, gold, 60, 0.15, 1) == rows and votes(None, gold, 20, 0.15, 1) == rows[:20]
    assert votes(None, gold, 60, 0.15, 2) != rows
    assert len({row["prompt"][-1]["content"] for row in rows}) > 20


def test_answers_that_gold_cannot_tell_apart_are_refused(gold, monkeypatch):
    """Not looked for until the end of days. The one other answer is empty, for which no vote can be cast."""
    monkeypatch.setattr(
        overoptimise,
        "answer_pool",
        lambda opened, examples, n, sampling: [["Nowhere.", "Nowhere.", " "]] * len(examples),
    )
    with pytest.raises(ValueError, match="none is better than another; give an SFT model"):
        votes(open_nothing(), gold, 10, 0.15, 0)


def open_nothing():
    return type("Opened", (), {"path": Path("nowhere")})


# ----------------------------------------------------------------------------------------------------- the whole, tiny


SMALL = {
    "out": "O",
    "pairs": [10, 20],
    "kl_coefficients": [0.2],
    "pool": 4,
    "prompts": 8,
    "updates": 10,
    "lr": 2e-3,
    "seeds": 1,
}
ARMS = ["10 0", "20 0", "10 0.2"]


@pytest.fixture(scope="module")
def shorter():
    """Few prompts to vote on and short answers, in every test of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overoptimise, "_MAX_TOKENS", 12)
        patch.setattr(overoptimise, "_PAIR_PROMPTS", 24)
        yield


def options(parent: str, **over) -> OveroptimiseOptions:
    return build(OveroptimiseOptions, SMALL | {"parent": parent} | over)


@pytest.fixture(scope="module")
def whole(raised, shorter, tmp_path_factory) -> tuple[Path, dict]:
    """The folder of one whole experiment, and what it returned."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder / "O", overoptimise.run(options(raised))


def test_the_result_holds_every_curve(whole, raised):
    out, total = whole
    assert json.loads((out / "result.json").read_bytes()) == json.loads(json.dumps(total))
    assert set(total) == {"options", "seeds", "arms", "best_of_n", "checks", "verdict"}
    assert list(total["arms"]) == ARMS and list(total["best_of_n"]) == ["10", "20"]
    (seed,) = total["seeds"]
    assert set(seed) == {"seed", "best_of_n", "policy_gradient", "start", "hacked"}
    for curve in seed["best_of_n"].values():
        assert [row["n"] for row in curve] == [1, 2, 4]
        assert [row["kl"] for row in curve] == pytest.approx([0, math.log(2) - 1 / 2, math.log(4) - 3 / 4])
        assert curve[0]["gold"] == pytest.approx(seed["start"]), "the best of one is any"
    most = [row["gold"] for row in seed["best_of_n"]["gold"]]
    assert most == sorted(most) and most[2] > most[0]
    for votes_ in ("10", "20"):
        curve = seed["best_of_n"][votes_]
        assert all(row["gold"] <= best + 1e-9 for row, best in zip(curve, most, strict=True))
        assert curve[0]["proxy"] == pytest.approx(0, abs=1e-6), "scaled on these very answers"
        assert curve[0]["proxy"] < curve[1]["proxy"] < curve[2]["proxy"]
    for arm, curve in seed["policy_gradient"].items():
        assert [set(look) for look in curve] == [{"step", "kl", "proxy", "gold"}] * 11
        assert [look["step"] for look in curve] == list(range(11)) and curve[0]["kl"] == 0 < curve[-1]["kl"]
        run = out / "seed-0" / ("policy-{}-kl{}".format(*arm.split()))
        looks = [json.loads(path.read_bytes())["scores"] for path in sorted((run / "looks").iterdir())]
        assert [(s["score"], s["reward"]) for s in looks] == [(look["gold"], look["proxy"]) for look in curve]
        kl = {row["step"]: row["kl"] for row in read_jsonl(run / "metrics.jsonl")}
        assert curve[10]["kl"] == pytest.approx(max(0, np.mean([kl[s] for s in (6, 7, 8, 9, 10)])))
        assert curve[1]["kl"] == pytest.approx(max(0, np.mean([kl[s] for s in (1, 2, 3, 4, 5)])))
    again = summary([json.loads((out / "seed-0" / "result.json").read_bytes())], (10, 20))
    assert again == {key: total[key] for key in again}


def test_the_arms_differ_in_proxy_and_price_only(whole, raised):
    out, _ = whole
    cards = {arm: load_checkpoint(out / "seed-0" / ("policy-{}-kl{}".format(*arm.split()))).card for arm in ARMS}
    rollouts = {arm: card["data"]["rollouts"] for arm, card in cards.items()}
    assert [(r["kl"], r["kl_coefficient"]) for r in rollouts.values()] == [
        ("measure", 0),
        ("measure", 0),
        ("reward", 0.2),
    ]
    assert all(r["cut_penalty"] == 0 and r["baseline"] == "leave-one-out" for r in rollouts.values())
    assert {card["parent"]["id"] for card in cards.values()} == {load_checkpoint(raised).id}
    sources = {arm: card["data"]["sha256"] for arm, card in cards.items()}  # of prompts and reward
    assert sources["10 0"] == sources["10 0.2"] != sources["20 0"]


def test_the_smaller_set_of_votes_is_part_of_the_larger(whole):
    few, many = (read_jsonl(whole[0] / "seed-0" / f"votes-{count}.jsonl") for count in (10, 20))
    assert len(few) == 10 and len(many) == 20 and few == many[:10]
    for count in (10, 20):
        card = load_checkpoint(whole[0] / "seed-0" / f"proxy-{count}").card
        assert card["stage"] == "reward" and card["data"]["pairs"] == count and card["recipe"]["train"]["steps"] == 40


def test_fooled_answers_are_those_the_looks_hold(whole, gold):
    """In ten updates few or none are found; those that are, are worse by gold and better by the proxy."""
    out, total = whole
    by_prompt = {e.prompt[-1]["content"]: e for e in gold.examples("test")}
    for found in total["seeds"][0]["hacked"]:
        assert set(found) == {"prompt", "before", "after", "gold", "proxy"}
        example = by_prompt[found["prompt"]]
        assert found["gold"] == [gold.score(example, found["before"]), gold.score(example, found["after"])]
        assert found["gold"][1] < found["gold"][0] and found["proxy"][1] > found["proxy"][0]
    looks = sorted((out / "seed-0" / "policy-10-kl0" / "looks").iterdir())
    assert len(json.loads(looks[-1].read_bytes())["samples"]) == 8, "all held-out prompts are kept to choose from"


def test_the_page_says_the_verdict(whole):
    page = (whole[0] / "report.html").read_text()
    assert whole[1]["verdict"] in page and "20 votes" in page and "0.2 per nat" in page


def trained(out: Path) -> dict[str, tuple[int, bytes]]:
    """Weights, logs, looks and votes, with when they were written."""
    kept = [p for p in sorted(out.rglob("*")) if p.is_file() and re.search(r"safetensors|metrics|speed|looks/", str(p))]
    return {str(p.relative_to(out)): (p.stat().st_mtime_ns, p.read_bytes()) for p in kept}


def test_what_is_there_is_used(whole, shorter, monkeypatch):
    out, _ = whole
    monkeypatch.chdir(out.parent)
    results = [out / "result.json", out / "seed-0" / "result.json", out / "report.html"]
    before, runs = [path.read_bytes() for path in results], trained(out)
    assert len(runs) > 50
    for path in results:
        path.unlink()
    resume(ResumeOptions(run="O"))
    assert [path.read_bytes() for path in results] == before and trained(out) == runs


def test_stopped_in_the_second_policy_and_resumed_it_ends_the_same(whole, raised, shorter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = reinforce.Observer.__call__

    def stopping(self, event):
        plain(self, event)
        if self.out.name == "policy-20-kl0" and event.step == 4:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(reinforce.Observer, "__call__", stopping)
        with pytest.raises(Interrupted, match="stopped at step 4 of 10"):
            overoptimise.run(options(raised))
    done = {name: file for name, file in trained(Path("O")).items() if "policy-20" not in name}
    resume(ResumeOptions(run="O"))
    assert (Path("O") / "result.json").read_bytes() == (whole[0] / "result.json").read_bytes()
    now = trained(Path("O"))
    assert len(done) > 20 and {name: now[name] for name in done} == done


def test_a_scaled_proxy_has_mean_0_and_deviation_1_on_the_answers_it_was_scaled_on(whole, raised, gold):
    examples = gold.examples("test")[:6]
    pool = answer_pool(open_model(raised), examples, 4, Sampling(temperature=1.0, max_tokens=12, seed=0))
    found = scaled(whole[0] / "seed-0" / "proxy-10", examples, pool)
    scores = score_pool(found.reward, examples, pool)
    assert found.opinion and scores.shape == (6, 4)
    assert scores.mean() == pytest.approx(0, abs=1e-9) and scores.std() == pytest.approx(1)


def test_best_of_n_is_gold_of_the_answer_the_proxy_likes_most(whole, raised, gold, shorter):
    """All four answers to each prompt, drawn again and ranked here."""
    examples = overoptimise.sample_of(gold.examples("test"), 8, 0)
    pool = answer_pool(open_model(raised), examples, 4, Sampling(temperature=1.0, max_tokens=12, seed=1000))
    right = np.array([[gold.score(e, a) for a in answers] for e, answers in zip(examples, pool, strict=True)])
    best_of_n = whole[1]["seeds"][0]["best_of_n"]
    assert right.mean() == pytest.approx(whole[1]["seeds"][0]["start"])
    assert right.max(1).mean() == pytest.approx(best_of_n["gold"][-1]["gold"])
    for count in ("10", "20"):
        liked = score_pool(scaled(whole[0] / "seed-0" / f"proxy-{count}", examples, pool).reward, examples, pool)
        assert liked.max(1).mean() == pytest.approx(best_of_n[count][-1]["proxy"])
        chosen = right[np.arange(8), liked.argmax(1)].mean()
        assert chosen == pytest.approx(best_of_n[count][-1]["gold"]) and chosen < right.max(1).mean()


def test_more_held_out_prompts_than_a_run_usually_asks(raised, gold, shorter, tmp_path, monkeypatch):
    """All of them are asked and kept, or the samples could not be told which question they answer."""
    asked = []
    monkeypatch.setattr(overoptimise.reinforce, "run", lambda recipe, ask_about, **_: asked.append(
        ask_about(recipe, open_model(raised))))  # fmt: skip
    held_out = gold.examples("test")
    assert len(held_out) > 200
    reward = overoptimise.Opened(overoptimise.TaskReward(gold), False)
    overoptimise._optimised(options(raised), tmp_path, "p", reward, gold, held_out, 0.0, 0)
    assert asked[0].test == held_out


# ------------------------------------------------------------------------------------------------------- fooled answers


def test_fooled_answers_are_sorted_and_fit_their_questions(gold, tmp_path):
    """Six questions were held out, the second was too long to be asked."""
    held_out = [e for e in gold.examples("test") if e.kind == "fact" and e.language == "en"][:6]
    asked = [held_out[i] for i in (0, 2, 3, 4, 5)]
    right = [e.answers[0] for e in asked]
    after = ["Nowhere.", "Nowhere.", right[2], "", ""]
    rewards = [(0.0, 1.0), (0.0, 3.0), (0.0, 9.0), (0.0, 2.0), (2.0, 1.0)]  # third: gold is kept; last: proxy fell
    (tmp_path / "looks").mkdir()
    for step, answers, side in ((0, right, 0), (10, after, 1)):
        samples = [
            {"prompt": e.prompt[-1]["content"], "answer": a, "reward": r[side]}
            for e, a, r in zip(asked, answers, rewards, strict=True)
        ]
        (tmp_path / "looks" / f"{step:08d}.json").write_bytes(msgspec.json.encode({"step": step, "samples": samples}))
    (tmp_path / "looks" / "00000005.json").write_bytes(msgspec.json.encode({"step": 5, "samples": []}))
    found = _hacked(tmp_path, gold, held_out)
    # gold 4 -> -5, -1, -1 and proxy +2, +3, +1: what was lost and won in all is 11, 8, 6
    order = (3, 1, 0)
    assert [f["prompt"] for f in found] == [asked[i].prompt[-1]["content"] for i in order]
    assert [f["gold"] for f in found] == [
        [gold.score(asked[i], right[i]), gold.score(asked[i], after[i])] for i in order
    ]
    assert [f["proxy"] for f in found] == [list(map(float, rewards[i])) for i in order]
    assert [(f["before"], f["after"]) for f in found] == [(right[i], after[i]) for i in order]
    assert [round(f["gold"][0] - f["gold"][1]) for f in found] == [9, 5, 5]


# ---------------------------------------------------------------------------------------------------------- the checks


RISES = "the proxy rises, under best-of-n and policy gradients"
FALLS = "best-of-n by the weakest proxy: gold peaks, then loses 20% of its gain or more"
OUT = "more votes move that peak out"
HIGHER = "more votes raise that peak"
LOWER = "a KL penalty lowers the policy's final KL"
CHECKS = (RISES, FALLS, OUT, HIGHER, LOWER)


def bests(gold: list[float], proxy: list[float]) -> list[dict]:
    return [{"n": 2**i, "kl": i / 2, "gold": g, "proxy": p} for i, (g, p) in enumerate(zip(gold, proxy, strict=True))]


def looks(gold: list[float], proxy: list[float], kl: list[float]) -> list[dict]:
    return [
        {"step": i, "gold": g, "proxy": p, "kl": k} for i, (g, p, k) in enumerate(zip(gold, proxy, kl, strict=True))
    ]


def results() -> list[dict]:
    """Two seeds in which every check holds."""
    found = []
    for seed in (0, 1):
        shift = 0.5 * seed
        best = {
            "gold": [], "100": bests([1 + shift, 2 + shift, 1.75 + shift, 1 + shift], [0, 1, 2, 3]),
            "500": bests([1 + shift, 2 + shift, 3 + shift, 2 + shift], [0, 1, 2, 3]),
        }  # fmt: skip
        policy = {
            "100 0": looks([1, 2 - seed, 0], [0, 1, 2], [0, 4, 8]), "500 0": looks([1, 3, 4], [0, 1, 2], [0, 4, 9]),
            "100 0.05": looks([1, 2, 1], [0, 1, 1], [0, 3, 7 + seed]),
        }  # fmt: skip
        found.append({"best_of_n": best, "policy_gradient": policy})
    return found


def test_sums_over_seeds():
    found = summary(results(), (500, 100))
    assert found["checks"] == dict.fromkeys(CHECKS, True) and found["verdict"] == "REPRODUCED"
    assert found["best_of_n"]["100"] == {
        "gold_start": 1.25, "gold_peak": 2.25, "gold_end": 1.25, "n_at_peak": 2, "kl_at_peak": 0.5, "kl_end": 1.5,
        "proxy_start": 0.0, "proxy_end": 3.0,
    }  # fmt: skip
    assert (found["best_of_n"]["500"]["n_at_peak"], found["best_of_n"]["500"]["gold_peak"]) == (4, 3.25)
    assert found["arms"]["100 0"] == {
        "gold_start": 1.0, "gold_peak": 1.5, "gold_end": 0.0, "kl_at_peak": 4.0, "kl_end": 8.0,
        "proxy_start": 0.0, "proxy_end": 2.0, "kl_end_by_seed": [8, 8], "gold_end_by_seed": [0, 0],
        "kl_at_peak_by_seed": [4.0, 0.0],  # where a seed has a tie, its first peak
    }  # fmt: skip
    assert found["arms"]["100 0.05"]["kl_end_by_seed"] == [7, 8]


def test_the_peak_is_that_of_the_mean_over_seeds():
    rows = [{"best_of_n": {"7": bests(gold, [0, 1, 2])}} for gold in ([0, 4, 2], [0, 0, 3])]
    found = _best_of_n(rows, "7")
    assert (found["gold_peak"], found["n_at_peak"], found["kl_at_peak"]) == (2.5, 4, 1.0)
    assert (found["gold_end"], found["proxy_end"], found["kl_end"]) == (2.5, 2.0, 1.0)


def weak(given, gold):
    for result in given:
        result["best_of_n"]["100"] = bests(gold, [0, 1, 2, 3])


def flat_proxy(given):
    for result in given:
        result["policy_gradient"]["500 0"] = looks([1, 3, 4], [2, 3, 2], [0, 4, 9])


def flat_best(given):
    for result in given:
        result["best_of_n"]["500"] = bests([1, 2, 3, 2], [1, 1, 1, 1])


def small_fall(given):
    weak(given, [1, 2, 1.9, 1.85])  # 15% of the gain


def no_gain(given):
    weak(given, [2, 1, 1, 0])


def early(given):
    for result in given:
        result["best_of_n"]["500"] = bests([1, 4, 3, 2], [0, 1, 2, 3])


def lower(given):
    for result in given:
        result["best_of_n"]["500"] = bests([1, 1.5, 2, 1.5], [0, 1, 2, 3])


def dear(given):
    given[1]["policy_gradient"]["100 0.05"] = looks([1, 2, 1], [0, 1, 1], [0, 3, 9.5])  # 8.25 in the mean


CHANGES = [
    (flat_proxy, RISES),
    (flat_best, RISES),
    (small_fall, FALLS),
    (no_gain, FALLS),
    (early, OUT),
    (lower, HIGHER),
    (dear, LOWER),
]


@pytest.mark.parametrize(("change", "check"), CHANGES, ids=[c.__name__ for c, _ in CHANGES])
def test_each_check_fails_on_its_own(change, check):
    given = results()
    change(given)
    found = summary(given, (100, 500))
    assert [name for name, passed in found["checks"].items() if not passed] == [check]
    assert found["verdict"] == "PARTLY"


def test_no_check_holds():
    given = results()
    for change in (flat_proxy, dear):
        change(given)
    weak(given, [1, 2, 3, 4])
    for result in given:
        result["best_of_n"]["500"] = bests([1, 2, 1, 0], [1, 1, 1, 1])
    found = summary(given, (100, 500))
    assert set(found["checks"].values()) == {False} and found["verdict"] == "NOT REPRODUCED"


def test_what_was_not_tried_is_not_claimed():
    given = results()
    for result in given:
        del result["policy_gradient"]["100 0.05"], result["policy_gradient"]["500 0"], result["best_of_n"]["500"]
    assert set(summary(given, (100,))["checks"]) == {RISES, FALLS}


# ---------------------------------------------------------------------------------------------------------- refusals


REFUSED = [
    ({"pairs": []}, "pairs = (): at least one size"),
    ({"pairs": [100, 9]}, "pairs = (100, 9): at least one size, each at least 10"),
    ({"noise": 0.5}, "noise = 0.5: must be in [0, 0.5)"),
    ({"noise": -0.1}, "noise = -0.1: must be in"),
    ({"kl_coefficients": [0.1, 0.0]}, "kl_coefficients = (0.1, 0.0): each must be above 0; none is always run"),
    ({"pool": 1}, "pool = 1: must be at least 2"),
    ({"prompts": 7}, "prompts = 7: must be at least 8"),
    ({"updates": 9}, "updates = 9: must be at least 10"),
    ({"seeds": 0}, "seeds = 0: must be at least 1"),
    ({"lr": -1.0}, "lr = -1.0: must be above 0"),
]


@pytest.mark.parametrize(("wrong", "said"), REFUSED, ids=[said.split(":")[0] for _, said in REFUSED])
def test_settings_that_cannot_work_are_refused(wrong, said):
    with pytest.raises(ValueError) as caught:
        options("anything", **wrong)
    assert said in str(caught.value)


def test_a_model_of_no_world_leaves_the_folder_to_the_mended_command(adder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="belongs to no journey"):
        overoptimise.run(options(adder))
    assert not Path("O").exists()
