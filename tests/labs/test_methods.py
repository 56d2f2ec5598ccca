"""The experiment on five methods, shrunk to seconds: what it keeps, how it goes on, what it computes and refuses."""

import json
import math
import signal
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from fledge.core.batch import Batch
from fledge.core.checkpoint import load_checkpoint
from fledge.core.config import build
from fledge.core.log import read_jsonl
from fledge.core.train import Interrupted
from fledge.labs import methods
from fledge.labs.methods import CODINGS, MethodsOptions, gradient_spread, make_start, summary
from fledge.resume import ResumeOptions, resume
from fledge.stages import reinforce
from fledge.stages.common import open_model
from fledge.tasks.catalog import open_task

BASELINES = ("none", "mean", "group", "leave-one-out")
SMALL = {"methods": ["reinforce", "ppo"], "task": "arithmetic:1", "updates": 3, "answers": 16, "max_tokens": 4,
         "lr": 3e-3, "variance_rollouts": 2, "seeds": 1}  # fmt: skip


def options(parent: str | None, **over) -> MethodsOptions:
    return build(MethodsOptions, {"out": "M", "parent": parent} | SMALL | over)


def written(run: Path) -> dict[str, tuple[int, bytes]]:
    """What training writes, with when it did; flags and pages are written anew by every call."""
    kept = [p for p in sorted(run.rglob("*")) if p.is_file() and p.name not in ("flags.json", "report.html", ".lock")]
    return {str(p.relative_to(run)): (p.stat().st_mtime_ns, p.read_bytes()) for p in kept}


@pytest.fixture(scope="module")
def whole(adder, tmp_path_factory) -> tuple[Path, dict]:
    """The folder of one whole experiment, and what it returned."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder / "M", methods.run(options(adder))


def test_the_result_holds_what_the_runs_found(whole):
    out, total = whole
    assert json.loads((out / "result.json").read_bytes()) == json.loads(json.dumps(total))
    assert set(total) == {"options", "seeds", "gains", "calmer", "checks", "verdict"}
    assert {k: v for k, v in total["options"].items() if k in SMALL} == SMALL | {"methods": ("reinforce", "ppo")}
    (seed,) = total["seeds"]
    assert set(seed) == {"seed", "methods", "spread"} and list(seed["methods"]) == ["reinforce", "ppo"]
    for method, found in seed["methods"].items():
        assert set(found) == {"curve", "seconds", "kl_end", "entropy_end"}
        run = out / "seed-0" / method
        looks = [json.loads(path.read_bytes()) for path in sorted((run / "looks").iterdir())]
        epochs = {"reinforce": 1, "ppo": 4}[method]
        assert [look["step"] for look in looks] == [0, epochs, 2 * epochs, 3 * epochs]
        assert found["curve"] == [
            {"answers": 16 * i, "accuracy": look["scores"]["score"]} for i, look in enumerate(looks)
        ]
        last = read_jsonl(run / "metrics.jsonl")[-1]
        assert (found["kl_end"], found["entropy_end"]) == (last["kl"], last["entropy"]) and last["kl"] != 0
        assert found["seconds"] == read_jsonl(run / "speed.jsonl")[-1]["seconds"] > 0
        recipe = load_checkpoint(run).card["recipe"]
        assert (recipe["prompts_per_update"], recipe["group_size"], recipe["train"]["seed"]) == (2, 8, 0)
    assert set(seed["spread"]) == set(CODINGS)
    assert all(list(by) == list(BASELINES) and min(by.values()) >= 0 < by["none"] for by in seed["spread"].values())
    again = summary([json.loads((out / "seed-0" / "result.json").read_bytes())])
    assert again == {key: total[key] for key in again}


def test_the_page_says_the_verdict(whole):
    out, total = whole
    page = (out / "report.html").read_text()
    assert total["verdict"] in page and "REINFORCE" in page and "PPO" in page and "A2C" not in page


def stop_in(monkeypatch, name: str, step: int) -> None:
    plain = reinforce.Observer.__call__

    def stopping(self, event):
        plain(self, event)
        if self.out.name == name and event.step == step:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(reinforce.Observer, "__call__", stopping)


def test_stopped_in_the_second_method_it_goes_on_there(whole, adder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        stop_in(patch, "ppo", 5)
        with pytest.raises(Interrupted, match="stopped at step 5 of 12"):
            methods.run(options(adder))
    out, first = Path("M"), written(Path("M/seed-0/reinforce"))
    assert len(first) > 8 and not list(out.glob("**/result.json"))
    resume(ResumeOptions(run="M"))
    assert written(out / "seed-0/reinforce") == first
    for path in ("reinforce/metrics.jsonl", "ppo/metrics.jsonl", "ppo/looks/00000012.json"):
        assert (out / "seed-0" / path).read_bytes() == (whole[0] / "seed-0" / path).read_bytes()

    ours, theirs = json.loads((out / "result.json").read_bytes()), json.loads((whole[0] / "result.json").read_bytes())
    clock = [row["seconds"] for row in read_jsonl(out / "seed-0/ppo/speed.jsonl")]
    assert ours["seeds"][0]["methods"]["ppo"]["seconds"] == clock[4] + clock[11]  # of both sittings
    for total in (ours, theirs):
        for found in total["seeds"][0]["methods"].values():
            del found["seconds"]
    assert ours == theirs


def test_without_its_results_it_finds_them_again_and_trains_nothing(whole, monkeypatch):
    out, _ = whole
    monkeypatch.chdir(out.parent)
    results = [out / "result.json", out / "seed-0" / "result.json", out / "report.html"]
    before, runs = [path.read_bytes() for path in results], written(out / "seed-0")
    for path in results:
        path.unlink()
    resume(ResumeOptions(run="M"))
    assert [path.read_bytes() for path in results] == before
    ours = written(out / "seed-0")
    del ours["result.json"], runs["result.json"]
    assert ours == runs


def test_a_seed_that_is_done_is_not_done_again(whole, adder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = json.loads((whole[0] / "seed-0" / "result.json").read_bytes())
    for seed in (0, 1):
        folder = tmp_path / "M" / f"seed-{seed}"
        folder.mkdir(parents=True)
        kept["methods"]["ppo"]["curve"][-1]["accuracy"] = 0.5 + seed / 8
        (folder / "result.json").write_bytes(msgspec.json.encode(kept))
    total = methods.run(options(adder, seeds=2))
    start = kept["methods"]["ppo"]["curve"][0]["accuracy"]
    assert total["gains"]["ppo"] == [0.5 - start, 0.625 - start]
    assert not (tmp_path / "M" / "seed-0" / "ppo").exists()


def test_a_start_of_its_own(tmp_path, monkeypatch):
    """The folders and shapes as they are; fewer rows and steps."""
    steps = iter((3, 2))
    train, material = methods.TrainConfig, methods.MaterialOptions
    monkeypatch.setattr(methods, "TrainConfig", lambda **given: train(**given | {"steps": next(steps)}))
    monkeypatch.setattr(methods, "MaterialOptions", lambda **given: material(**given | {"texts": 100, "chats": 300}))
    start = make_start(tmp_path / "seed-4", "arithmetic:1", 4)
    assert start == tmp_path / "seed-4" / "sft"
    base, taught = load_checkpoint(tmp_path / "seed-4" / "base"), load_checkpoint(start)
    assert taught.card["parent"]["id"] == base.id and taught.card["model"]["context_tokens"] == 64
    assert base.card["recipe"]["train"]["seed"] == taught.card["recipe"]["train"]["seed"] == 4
    wrong, chats = 0, read_jsonl(tmp_path / "seed-4" / "data" / "chats.jsonl")
    for chat in chats:
        asked, said = (message["content"] for message in chat["messages"])
        a, b = (int(part.strip(" =?")) for part in asked.split("+"))
        wrong += int(said) != a + b
    assert len(chats) == 300 and 0.6 < wrong / 300 < 0.8


@pytest.mark.parametrize("answers", [256, 4096])
@pytest.mark.parametrize("method", reinforce.METHODS)
def test_every_method_gets_as_many_rollouts_however_large(adder, monkeypatch, method, answers):
    given = []

    def taken(recipe, **_):
        given.append(recipe)
        raise Interrupted("enough", Path("."), [2])

    monkeypatch.setattr(methods.reinforce, "run", taken)
    with pytest.raises(Interrupted):
        methods._one_run(options(adder, answers=answers, updates=7), Path("seed-0"), method, adder, 5)
    (recipe,) = given
    config = recipe.rollouts(positions=48)  # the parent's whole context
    assert recipe.train.steps / (config.epochs * config.minibatches) == 7
    assert recipe.prompts_per_update * recipe.group_size == answers and recipe.train.seed == 5


# ------------------------------------------------------------------------------------------------ the gradient's noise


@pytest.fixture
def rollouts(monkeypatch) -> list:
    """Every rollout that is sampled, with its prompts' tokens."""
    seen = []

    class Kept(methods.Rollouts):
        def _new(self):
            batch = super()._new()
            seen.append((self.last, [self.prompts[p] for p in self.last.prompts for _ in range(8)]))
            return batch

    monkeypatch.setattr(methods, "Rollouts", Kept)
    return seen


SIZE = {"rollouts": 2, "answers": 16, "max_tokens": 4}


@pytest.mark.parametrize("baseline", BASELINES)
def test_the_spread_of_two_gradients_is_half_their_squared_distance(adder, rollouts, baseline, monkeypatch):
    """Against gradients of answers read one at a time, weighed here."""
    coding = (2.0, -1.0)
    monkeypatch.setattr(methods, "open_model", lambda path: open_model(path, precision="float32"))
    found = gradient_spread(adder, "arithmetic:1", baseline, coding, rollouts=2, answers=16, max_tokens=2)
    assert len(rollouts) == 2, "no more is sampled than used"
    assert not all(rollout.samples.stopped.all() for rollout, _ in rollouts), "answers that are cut off count alike"
    opened, task = open_model(adder, precision="float32"), open_task("arithmetic:1")
    by_prompt = {e.prompt[-1]["content"]: e for e in task.examples("train")}
    gradients = []
    for rollout, prompts in rollouts:
        earned, logps = [], []
        for row, prompt in enumerate(prompts):
            size = int(rollout.samples.lengths[row])
            tokens = torch.tensor([*prompt, *rollout.samples.tokens[row, :size].tolist()])
            weight = torch.ones(1, len(tokens) - 1)
            output = opened.model(Batch(tokens=tokens[None, :-1], targets=tokens[None, 1:], weight=weight, units=1.0))
            logps.append(output.logp[0, len(prompt) - 1 :].sum())
            said = opened.tokenizer.decode(prompt[2:-2])  # <bos><user> ... <end><assistant>
            earned.append(coding[0] if task.score(by_prompt[said], rollout.answers[row]) else coding[1])
        groups = np.array(earned).reshape(2, 8)
        credit = {
            "none": groups, "mean": groups - groups.mean(), "group": groups - groups.mean(1, keepdims=True),
            "leave-one-out": groups - (groups.sum(1, keepdims=True) - groups) / 7,
        }[baseline].ravel()  # fmt: skip
        loss = -sum(float(c) * logp for c, logp in zip(credit, logps, strict=True)) / (16 * 2)
        parts = torch.autograd.grad(loss, list(opened.model.parameters()), allow_unused=True)
        gradients.append(torch.cat([p.flatten() for p in parts if p is not None]))
    wanted = float((gradients[0] - gradients[1]).square().sum()) / 2
    assert wanted > 1e-6 and found == pytest.approx(wanted, rel=1e-4)


def test_a_reward_that_never_differs_has_noise_only_without_a_baseline(adder):
    same = {b: gradient_spread(adder, "arithmetic:1", b, (1.0, 1.0), **SIZE) for b in BASELINES}
    assert same["mean"] < 1e-10 and same["group"] == same["leave-one-out"] == 0 and same["none"] > 1e-4


def test_where_the_zero_lies_matters_only_without_a_baseline(adder):
    one, other = ({b: gradient_spread(adder, "arithmetic:1", b, coding, **SIZE) for b in BASELINES}
                  for coding in ((1.0, 0.0), (0.0, -1.0)))  # fmt: skip
    assert all(one[b] == pytest.approx(other[b], rel=1e-4) for b in BASELINES[1:])
    assert one["none"] < 0.5 * other["none"], "mostly wrong: wrong answers that earn 0 make no noise"


def test_prompts_too_long_for_the_context_are_left_out(adder, rollouts):
    opened = open_model(adder)
    examples = open_task("reverse").examples("train")
    lengths = {len(methods.render_prompt(opened.tokenizer, methods.messages_of(e))) for e in examples}
    room = max(lengths) - 1
    gradient_spread(adder, "reverse", "none", (1.0, 0.0), rollouts=2, answers=64, max_tokens=48 - room)
    asked = {len(prompt) for _, prompts in rollouts for prompt in prompts}
    assert asked and max(asked) <= room < max(lengths)


# ---------------------------------------------------------------------------------------------------------- the checks


START = "every start is between 5% and 40%"
GAIN = "every method gains 30 points on every seed"
TIME = "every run takes 5 minutes at most"
HALF = "a baseline halves the gradient's variance, "


def results() -> list[dict]:
    """Two seeds of two methods in which every check holds, some of them just."""

    def one(seed: int, start: float, end: float, seconds: float, none: float) -> dict:
        curve = [{"answers": 0, "accuracy": start}, {"answers": 16, "accuracy": 0.1}, {"answers": 32, "accuracy": end}]
        found = {"curve": curve, "seconds": seconds, "kl_end": 1.0, "entropy_end": 0.5}
        spread = {"none": none, "mean": 4.0, "group": 2.0, "leave-one-out": 1.6}
        return {
            "seed": seed, "methods": {"ppo": found, "rloo": {**found, "seconds": 10.0}},
            "spread": {"a": spread, "b": {**spread, "none": 16.0}},
        }  # fmt: skip

    return [one(0, 0.0625, 0.5, 300.0, 3.0), one(1, 0.375, 0.875, 20.0, 3.5)]


def test_sums_over_seeds():
    found = summary(results())
    assert found["gains"] == {"ppo": [0.4375, 0.5], "rloo": [0.4375, 0.5]}
    assert found["calmer"]["a"] == {"mean": [0.75, 0.875], "group": [1.5, 1.75], "leave-one-out": [1.875, 2.1875]}
    assert found["calmer"]["b"]["group"] == [8.0, 8.0]
    assert found["checks"] == dict.fromkeys((START, GAIN, TIME, HALF + "a", HALF + "b"), True)
    assert found["verdict"] == "REPRODUCED"


def test_a_baseline_that_leaves_no_noise_is_no_division_by_zero(tmp_path):
    """Every answer wrong: with rewards 1 and 0 there is no gradient, with 0 and -1 a baseline takes all of it."""
    given = results()[:1]
    given[0]["spread"] = {"a": dict.fromkeys(BASELINES, 0.0), "b": {**dict.fromkeys(BASELINES, 0.0), "none": 3.0}}
    found = summary(given)
    assert found["calmer"]["a"]["mean"] == [1.0] and found["calmer"]["b"]["mean"] == [math.inf]
    assert (found["checks"][HALF + "a"], found["checks"][HALF + "b"]) == (False, True)
    from fledge.labs.pages import methods_page

    assert "<h1>" in methods_page(tmp_path, {"options": {}, "seeds": given, **found}).read_text()


def low(given):
    given[0]["methods"]["rloo"]["curve"] = [{"answers": 0, "accuracy": 0.04}, *given[0]["methods"]["rloo"]["curve"][1:]]


def high(given):
    given[1]["methods"]["ppo"]["curve"] = [{"answers": 0, "accuracy": 0.41}, *given[1]["methods"]["ppo"]["curve"][1:]]


def short(given):
    curve = given[1]["methods"]["rloo"]["curve"]
    given[1]["methods"]["rloo"]["curve"] = [*curve[:2], {"answers": 32, "accuracy": 0.67}]


def slow(given):
    given[1]["methods"]["rloo"]["seconds"] = 300.5


def noisy(given):
    given[0]["spread"]["a"]["none"] = 2.8  # 1.75 and 2.1875 by the best baseline


CHANGES = [(low, START), (high, START), (short, GAIN), (slow, TIME), (noisy, HALF + "a")]


@pytest.mark.parametrize(("change", "check"), CHANGES, ids=[f"{c.__name__}" for c, _ in CHANGES])
def test_each_check_fails_on_its_own(change, check):
    given = results()
    change(given)
    found = summary(given)
    assert [name for name, passed in found["checks"].items() if not passed] == [check]
    assert found["verdict"] == "PARTLY"


def test_no_check_holds():
    given = results()
    for change in (high, short, slow, noisy):
        change(given)
    for result in given:
        result["spread"]["b"]["none"] = 1.0
    found = summary(given)
    assert not any(found["checks"].values()) and found["verdict"] == "NOT REPRODUCED"


# ---------------------------------------------------------------------------------------------------------- refusals


REFUSED = [
    ({"methods": ["ppo", "dpo"]}, "methods: 'dpo' is not one of reinforce, a2c, ppo, grpo, rloo"),
    ({"methods": []}, "methods: empty; name at least one of reinforce"),
    ({"answers": 8}, "answers = 8: must be a multiple of 8, at least 16"),
    ({"answers": 20}, "answers = 20: must be a multiple of 8"),
    ({"updates": 0}, "updates = 0: must be at least 1"),
    ({"max_tokens": 0}, "max_tokens = 0: must be at least 1"),
    ({"variance_rollouts": 1}, "variance_rollouts = 1: must be at least 2"),
    ({"seeds": 0}, "seeds = 0: must be at least 1"),
    ({"lr": 0.0}, "lr = 0.0: must be above 0"),
    ({"lr": math.nan}, "lr = nan: must be above 0"),
]


@pytest.mark.parametrize(("wrong", "said"), REFUSED, ids=[said.split(":")[0] for _, said in REFUSED])
def test_settings_that_cannot_work_are_refused(wrong, said):
    with pytest.raises(ValueError) as caught:
        options(None, **wrong)
    assert said in str(caught.value)


def test_what_the_settings_allow_at_least(adder):
    assert (
        options(None, answers=16, updates=1, max_tokens=1, variance_rollouts=2, seeds=1, methods=["rloo"]).problems()
        == []
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"task": "arithmatic"}, "did you mean arithmetic"), ({"task": "world"}, "makes no training material"),
     ({"parent": "nowhere"}, "nowhere")],
    ids=["task", "no lesson", "parent"],
)  # fmt: skip
def test_what_is_refused_leaves_the_folder_to_the_mended_command(wrong, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError), match=said):
        methods.run(options(wrong.pop("parent", None), **wrong))
    assert not Path("M").exists()
