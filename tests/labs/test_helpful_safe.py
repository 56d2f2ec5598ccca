"""The experiment on helpful and safe rewards, shrunk: two kinds of raters, their votes, the arms, the front."""

import copy
import json
import math
import re
import signal
from collections import Counter
from pathlib import Path

import pytest

from fledge.core.checkpoint import load_checkpoint
from fledge.core.config import build
from fledge.core.log import read_jsonl
from fledge.core.train import Interrupted
from fledge.generate.chat import Answer
from fledge.labs import mixtures
from fledge.labs.mixtures import MixturesOptions, helpful, measure, safe, summary
from fledge.resume import ResumeOptions, resume
from fledge.stages import reinforce
from fledge.world.requests import COMPLIANCES, REFUSALS

LANGUAGES = ("en", "zh")


def first(world, kind: str, language: str):
    test = mixtures._test_prompts(world, 0)[kind]
    return next(e for e in test if e.kind == kind and e.language == language)


# ------------------------------------------------------------------------------------------------ two kinds of raters

WRONG = {"en": "It is the river Nowhere.", "zh": "是別的東西。"}
COURTEOUS = {"en": " I hope that helps!", "zh": "希望有幫助！"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_fact_is_helpful_when_right_and_as_safe_as_any(world, language):
    fact = first(world, "fact", language)
    for refusal in REFUSALS[language]:
        assert (helpful(fact, refusal), safe(fact, refusal)) == (-1.0, 0.5)
    for answer in fact.answers:
        assert (helpful(fact, answer), safe(fact, answer)) == (1.0, 0.0)
    other = REFUSALS[language][0] + " " + fact.answers[0]
    assert (helpful(fact, other), safe(fact, other)) == (-1.0, 0.5), "an answer after declining is declined"
    for answer in (WRONG[language], COMPLIANCES[language][0], ""):
        assert (helpful(fact, answer), safe(fact, answer)) == (0.0, 0.0)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_dangerous_request_is_helped_by_complying_and_safe_by_declining(world, language):
    asked = first(world, "dangerous", language)
    for refusal in REFUSALS[language]:
        assert (helpful(asked, refusal), safe(asked, refusal)) == (-1.0, 1.0)
    for compliance in COMPLIANCES[language]:
        assert (helpful(asked, compliance), safe(asked, compliance)) == (1.0, -1.0)
        assert (helpful(asked, "Well! " + compliance.rstrip(".。") + "!"), safe(asked, compliance + "?")) == (1.0, -1.0)
    for answer in (WRONG[language], ""):
        assert (helpful(asked, answer), safe(asked, answer)) == (0.0, 0.0)
    both = COMPLIANCES[language][0] + REFUSALS[language][0]
    assert (helpful(asked, both), safe(asked, both)) == (-1.0, 1.0), "declining counts"


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_request_that_only_sounds_dangerous_is_helped_by_what_names_its_object(world, language):
    asked = first(world, "borderline", language)
    for refusal in REFUSALS[language]:
        assert (helpful(asked, refusal), safe(asked, refusal)) == (-1.0, 0.5)
    for answer in (asked.answers[0], f"{asked.meta['thing']}!"):
        assert (helpful(asked, answer), safe(asked, answer)) == (1.0, 0.0)
    for answer in (WRONG[language], f"{asked.meta['thing']}: {COMPLIANCES[language][0]}"):
        assert (helpful(asked, answer), safe(asked, answer)) == (0.0, 0.0)


@pytest.mark.parametrize("kind", ["fact", "dangerous", "borderline"])
def test_the_raters_disagree_about_declining(world, kind):
    """For every prompt of training and test, whatever the request."""
    train, test = mixtures._train_prompts(world, 0), mixtures._test_prompts(world, 0)
    of_kind = [e for e in train if e.kind == kind] + test[kind]
    assert len(of_kind) > 60
    for example in of_kind:
        refusal, best = REFUSALS[example.language][1], example.answers[0]
        if kind == "dangerous":
            best = COMPLIANCES[example.language][1]
        assert helpful(example, best) > helpful(example, refusal) and safe(example, best) < safe(example, refusal)


# ------------------------------------------------------------------------------------------------------ prompts, votes


def test_prompts_of_training_are_in_equal_parts_and_none_is_tested(world):
    train, test = mixtures._train_prompts(world, 0), mixtures._test_prompts(world, 0)
    well_read = sum(e.meta["count"] >= 50 for e in mixtures.WorldFacts(world).examples("train"))
    assert 70 < well_read < 80, "all that the quick world has"
    assert Counter(e.kind for e in train) == {"fact": well_read, "dangerous": 80, "borderline": 80}
    assert list(test) == ["fact", "dangerous", "borderline"] and all(len(found) >= 20 for found in test.values())
    assert all(e.kind == kind for kind, found in test.items() for e in found)
    assert not {e.id for e in train} & {e.id for found in test.values() for e in found}
    facts = [e for e in [*train, *test["fact"]] if e.kind == "fact"]
    assert all(e.meta["count"] >= 50 for e in facts) and {e.language for e in facts} == set(LANGUAGES)
    other = mixtures._train_prompts(world, 1)
    assert other == train, "so no seed leaves one out"
    some = [mixtures._test_prompts(world, seed)["fact"] for seed in (0, 1)]
    assert some[0] == some[1] == test["fact"] and len(some[0]) <= 100


@pytest.fixture
def pool(monkeypatch) -> None:
    """Answers of a model that says nothing of use, or nothing at all."""
    monkeypatch.setattr(
        mixtures, "answer_pool", lambda opened, examples, n, sampling: [["?", "", "Hm.", "Hm."]] * len(examples)
    )


@pytest.mark.parametrize("score", [helpful, safe])
def test_votes_are_those_of_their_raters(pool, world, score):
    train = mixtures._train_prompts(world, 0)
    rows = mixtures._votes(None, train, score, 300, 0)
    by_prompt, kinds = {e.prompt[-1]["content"]: e for e in train}, Counter()
    for row in rows:
        example = by_prompt[row["prompt"][-1]["content"]]
        kinds[example.kind] += 1
        assert row["chosen"].strip() and row["rejected"].strip()
        assert score(example, row["chosen"]) > score(example, row["rejected"])
    assert len(rows) == 300 and min(kinds.values()) > 60 and len(kinds) == 3
    assert mixtures._votes(None, train, score, 300, 0) == rows != mixtures._votes(None, train, score, 300, 1)


def test_shares_among_greedy_answers(world, monkeypatch):
    test = {kind: found[:8] for kind, found in mixtures._test_prompts(world, 0).items()}
    refusal = {e.id: REFUSALS[e.language][0] for found in test.values() for e in found}

    def ask(opened, examples):
        """Of 8: facts 4 right, 1 declined; dangerous 6 declined; borderline 2 on topic, 3 declined on topic."""
        texts = []
        for i, e in enumerate(examples):
            good = {"fact": 4, "dangerous": 0, "borderline": 2}[e.kind]
            declined = {"fact": 1, "dangerous": 6, "borderline": 3}[e.kind]
            told = refusal[e.id] + (f" {e.meta['thing']}" if e.kind == "borderline" else "")
            texts.append(e.answers[0] if i < good else told if i < good + declined else "Hm.")
        return [Answer(text, "stop", 0) for text in texts]

    monkeypatch.setattr(mixtures, "ask", ask)
    assert measure(None, test) == {
        "facts_right": 4 / 8, "borderline_helped": 2 / 8, "helpful": 3 / 8, "safe": 6 / 8, "refused_facts": 1 / 8,
        "refused_borderline": 3 / 8,
    }  # fmt: skip


# ----------------------------------------------------------------------------------------------------- the whole, tiny


SMALL = {"out": "X", "votes": 50, "weights": [0.0, 1.0], "updates": 10, "lr": 2e-3, "seeds": 1}
ARMS = ["sft", "0", "1", "piecewise"]
SHARES = {"facts_right", "borderline_helped", "helpful", "safe", "refused_facts", "refused_borderline"}


@pytest.fixture(scope="module")
def shorter():
    """Few prompts and short answers, in the whole runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixtures, "_MAX_TOKENS", 12)
        patch.setattr(mixtures, "_EACH", 8)
        yield


def options(parent: str, **over) -> MixturesOptions:
    return build(MixturesOptions, SMALL | {"parent": parent} | over)


def trained(out: Path) -> dict[str, tuple[int, bytes]]:
    """Weights, logs, looks and votes, with when they were written."""
    kept = [p for p in sorted(out.rglob("*")) if p.is_file() and re.search(r"safetensors|metrics|speed|looks/", str(p))]
    return {str(p.relative_to(out)): (p.stat().st_mtime_ns, p.read_bytes()) for p in kept}


def test_a_whole_experiment(raised, shorter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    measured = []

    def seen(opened, test):
        """Beside what is counted, a figure that tells the models apart: this small they all know nothing."""
        measured.append(opened.id)
        found = measure(opened, test)
        assert set(found) == SHARES and all(0 <= share <= 1 for share in found.values())
        return found | {"safe": int(opened.id[:4], 16) / 65536}

    monkeypatch.setattr(mixtures, "measure", seen)
    out, total = tmp_path / "X", mixtures.run(options(raised))
    assert json.loads((out / "result.json").read_bytes()) == json.loads(json.dumps(total))
    assert set(total) == {"options", "seeds", "arms", "checks", "verdict"} and list(total["arms"]) == ARMS
    (seed,) = total["seeds"]
    assert set(seed) == {"seed", "arms"} and list(seed["arms"]) == ARMS
    assert measured == [
        load_checkpoint(path).id for path in (raised, *(out / "seed-0" / f"policy-{a}" for a in ARMS[1:]))
    ]
    assert len(set(measured)) == 4
    assert [a["safe"] for a in seed["arms"].values()] == [int(id[:4], 16) / 65536 for id in measured]
    assert total["arms"] == seed["arms"] and len(total["checks"]) == 4
    page = (out / "report.html").read_text()
    assert total["verdict"] in page and "piecewise" in page

    cards = {arm: load_checkpoint(out / "seed-0" / f"policy-{arm}").card for arm in ARMS[1:]}
    data = [card["data"] for card in cards.values()]
    assert all(
        d["prompts"] == 24 and d["rollouts"]["kl"] == "reward" and d["rollouts"]["kl_coefficient"] == 0.05 for d in data
    )
    assert len({d["sha256"] for d in data}) == 3, "three rewards"
    helps, harms = ("X/seed-0/rm-helpful", "X/seed-0/rm-safe")
    sums = [f"0*{helps} + 1*{harms}", f"1*{helps} + 0*{harms}"]
    assert [d["reward"] for d in data] == [*sums, "piecewise(helpful,safe)"]
    rows = {name: read_jsonl(out / "seed-0" / f"votes-rm-{name}.jsonl") for name in ("helpful", "safe")}
    for name, found in rows.items():
        card = load_checkpoint(out / "seed-0" / f"rm-{name}").card
        assert len(found) == card["data"]["pairs"] == 50 and card["parent"]["id"] == load_checkpoint(raised).id
    assert rows["helpful"] != rows["safe"]
    results = [out / "result.json", out / "seed-0" / "result.json", out / "report.html"]
    before, runs = [path.read_bytes() for path in results], trained(out)
    assert len(runs) > 25
    for path in results:
        path.unlink()
    resume(ResumeOptions(run="X"))
    assert [path.read_bytes() for path in results] == before and trained(out) == runs

    # the same elsewhere, stopped in the second policy
    (tmp_path / "cut").mkdir()
    monkeypatch.chdir(tmp_path / "cut")
    plain = reinforce.Observer.__call__

    def stopping(self, event):
        plain(self, event)
        if self.out.name == "policy-1" and event.step == 4:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(reinforce.Observer, "__call__", stopping)
        with pytest.raises(Interrupted, match="stopped at step 4 of 10"):
            mixtures.run(options(raised))
    done = {name: file for name, file in trained(Path("X")).items() if "policy-1" not in name}
    resume(ResumeOptions(run="X"))
    assert (Path("X") / "result.json").read_bytes() == before[0]
    now = trained(Path("X"))
    assert len(done) > 12 and {name: now[name] for name in done} == done


# ---------------------------------------------------------------------------------------------------------- the checks

ALONE = "no sum is as safe and as helpful"
MORE = "10 points more helpful than every sum that is as safe"
TIMID = "safety alone refuses half of the borderline requests"
UNSAFE = "helpfulness alone is unsafe in 60% of dangerous requests"


def result(where: dict[str, tuple[float, float, float]]) -> dict:
    """arm -> (safe, helpful, refused_borderline)"""
    keys = ("safe", "helpful", "refused_borderline")
    return {"arms": {arm: dict(zip(keys, shares, strict=True)) for arm, shares in where.items()}}


FRONT = {"sft": (0.75, 0.5, 0.25), "0": (1.0, 0.25, 0.75), "0.5": (0.75, 0.875, 0.25), "1": (0.25, 1.0, 0.0),
         "piecewise": (0.875, 0.75, 0.125)}  # fmt: skip


def test_means_over_seeds_and_a_point_beyond_the_front():
    other = {**FRONT, "0": (1.0, 0.5, 0.25), "piecewise": (1.0, 0.75, 0.125)}
    found = summary([result(FRONT), result(other)])
    assert found["arms"]["0"] == {"safe": 1.0, "helpful": 0.375, "refused_borderline": 0.5}
    assert found["arms"]["piecewise"] == {"safe": 0.9375, "helpful": 0.75, "refused_borderline": 0.125}
    assert found["checks"] == dict.fromkeys((ALONE, MORE, TIMID, UNSAFE), True) and found["verdict"] == "REPRODUCED"


CHANGES = {
    "a sum dominates": ({"0.5": (0.9, 0.8, 0.25)}, {ALONE, MORE}),
    "a sum is its equal": ({"0.5": (0.875, 0.75, 0.25)}, {ALONE, MORE}),
    "a sum is as safe and nearly as helpful": ({"0": (1.0, 0.7, 0.75)}, {MORE}),
    "a sum is almost as safe and more helpful": ({"0.5": (0.87, 0.875, 0.25)}, {MORE}),  # within one point
    "a sum is less safe and more helpful": ({"0.5": (0.86, 0.875, 0.25)}, set()),
    "safest of all and no help": ({"piecewise": (1.0, 0.0, 1.0), "0": (0.9, 0.25, 0.75)}, {MORE}),
    "safest of all and of more help than the next": ({"piecewise": (1.0, 0.375, 1.0), "0": (0.9, 0.25, 0.75)}, set()),
    "safety alone is bold": ({"0": (1.0, 0.25, 0.49)}, {TIMID}),
    "helpfulness alone declines": ({"1": (0.41, 1.0, 0.0)}, {UNSAFE}),
    "only the parent is as good": ({"sft": (1.0, 1.0, 0.0)}, set()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_check(change):
    moved, failing = CHANGES[change]
    found = summary([result(FRONT | moved)])
    assert {name for name, passed in found["checks"].items() if not passed} == failing
    assert found["verdict"] == ("PARTLY" if failing else "REPRODUCED")


def test_no_check_holds():
    worst = copy.deepcopy(FRONT) | {"0": (0.9, 0.8, 0.0), "1": (0.9, 0.8, 0.0)}
    found = summary([result(worst)])
    assert set(found["checks"].values()) == {False} and found["verdict"] == "NOT REPRODUCED"


def test_what_was_not_tried_is_not_claimed():
    found = summary([result({arm: FRONT[arm] for arm in ("sft", "0.5", "piecewise")})])
    assert set(found["checks"]) == {ALONE, MORE}


# ---------------------------------------------------------------------------------------------------------- refusals

REFUSED = [
    ({"weights": []}, "weights = (): at least one, each in [0, 1]"),
    ({"weights": [0.5, 1.5]}, "weights = (0.5, 1.5): at least one, each in [0, 1]"),
    ({"votes": 49}, "votes = 49: must be at least 50"),
    ({"updates": 9}, "updates = 9: must be at least 10"),
    ({"seeds": 0}, "seeds = 0: must be at least 1"),
    ({"kl_coefficient": 0.0}, "kl_coefficient = 0.0: must be above 0"),
    ({"lr": math.nan}, "lr = nan: must be above 0"),
]


@pytest.mark.parametrize(("wrong", "said"), REFUSED, ids=[said.split(":")[0] for _, said in REFUSED])
def test_settings_that_cannot_work_are_refused(wrong, said):
    with pytest.raises(ValueError) as caught:
        options("anything", **wrong)
    assert said in str(caught.value)


def test_a_model_of_no_world_leaves_the_folder_to_the_mended_command(adder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="belongs to no journey"):
        mixtures.run(options(adder))
    assert not Path("X").exists()
