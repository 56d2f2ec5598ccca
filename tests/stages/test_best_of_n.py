"""Best-of-n: the estimate against all subsets, the files other commands read, and what is refused."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from fledge.cli import main
from fledge.core.config import build
from fledge.stages.best_of_n import BestOfNOptions, best_of, kl_of_best, run, score_pool, sizes_up_to
from fledge.tasks.base import Example, user
from fledge.text.formats import read_chats, read_pairs


def brute(values: np.ndarray, by: np.ndarray, n: int) -> float:
    """Mean over all subsets of n of the value of the best by `by`; the best ones share where they tie."""
    means = []
    for chosen in itertools.combinations(range(len(by)), n):
        rows = np.array(chosen)
        means.append(values[rows][by[rows] == by[rows].max()].mean())
    return float(np.mean(means))


@pytest.mark.parametrize("levels", [2, 4, 1000], ids=["many ties", "ties", "none"])
def test_the_estimate_is_the_mean_over_all_subsets(levels):
    """Where answers tie, a run of equal scores shares its mean value: the same in expectation over the pool's order."""
    chance = np.random.default_rng(3)
    by = chance.integers(0, levels, (5, 8)).astype(float)
    values = by if levels == 2 else np.where(by > np.median(by), 1.0, 0.0) + 0.01 * by  # a function of the score
    sizes = [1, 2, 3, 5, 8]
    found = best_of(values, by, sizes)
    wanted = [[brute(v, b, n) for n in sizes] for v, b in zip(values, by, strict=True)]
    assert np.allclose(found, wanted, atol=1e-9)


def test_another_score_than_the_one_that_chooses():
    chance = np.random.default_rng(4)
    values, by = chance.normal(size=(4, 7)), chance.permuted(np.tile(np.arange(7.0), (4, 1)), axis=1)
    found = best_of(values, by, [1, 4, 7])
    assert np.allclose(found, [[brute(v, b, n) for n in (1, 4, 7)] for v, b in zip(values, by, strict=True)])
    assert np.allclose(found[:, 0], values.mean(1))
    assert np.allclose(found[:, 2], np.take_along_axis(values, by.argmax(1)[:, None], 1)[:, 0])


def test_answers_that_tie_share_their_value_whatever_their_order():
    """A pool of which all score alike gives the mean of the values at every n."""
    values = np.array([[3.0, 0.0, 0.0, 1.0]])
    assert np.allclose(best_of(values, np.zeros((1, 4)), [1, 2, 4]), 1.0)
    assert np.allclose(best_of(values[:, ::-1], np.zeros((1, 4)), [1, 2, 4]), 1.0)
    tied = best_of(np.array([[0.0, 1.0, 5.0, 7.0]]), np.array([[0.0, 0.0, 1.0, 1.0]]), [1, 2, 4])
    assert tied[0].tolist() == pytest.approx([3.25, (1 * 0.5 + 5 * 6.0) / 6, 6.0])


def test_large_pools_stay_exact():
    by = np.arange(1024.0)[None]
    found = best_of(by, by, [1, 32, 1024])[0]
    assert found.tolist() == pytest.approx([511.5, 32 * 1025 / 33 - 1, 1023.0])  # of the maximum of 32 out of 1..1024


def test_a_pool_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="n = 9: the pool has 8 answers"):
        best_of(np.zeros((1, 8)), np.zeros((1, 8)), [9])


def test_kl_and_sizes():
    assert kl_of_best(1) == 0 and kl_of_best(4) == pytest.approx(math.log(4) - 0.75)
    assert sizes_up_to(2) == [1, 2] and sizes_up_to(16) == [1, 2, 4, 8, 16] and sizes_up_to(12) == [1, 2, 4, 8, 12]


def test_an_answer_that_occurs_twice_is_scored_once():
    examples = [Example(id=q, prompt=user(q), answers=(), kind="", language="en") for q in "pq"]
    asked = []

    def reward(examples, answers):
        asked.extend((e.id, a) for e, a in zip(examples, answers, strict=True))
        return [len(a) + (e.id == "q") for e, a in zip(examples, answers, strict=True)]

    scores = score_pool(reward, examples, [["a", "bb", "a"], ["a", "a", ""]])
    assert scores.tolist() == [[1, 2, 1], [2, 2, 1]]
    assert asked == [("p", "a"), ("p", "bb"), ("q", "a"), ("q", "")]


# --------------------------------------------------------------------------------------------------------- the stage


def options(tmp_path: Path, parent: str, **over) -> BestOfNOptions:
    given = {"out": str(tmp_path / "best"), "parent": parent, "reward": ["length:1"], "n": 6, "max_tokens": 12}
    return build(BestOfNOptions, given | over)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def prompts(tmp_path) -> str:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"{a}+{b}="} for a, b in ((3, 4), (5, 2), (8, 1))]
    rows.append({"prompt": [{"role": "user", "content": "4+4="}]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_files_are_read_by_sft_and_dpo(parent, prompts, tmp_path, capsys):
    result = run(options(tmp_path, parent, prompts=[prompts]))
    out = tmp_path / "best"
    assert json.loads((out / "best-of-n.json").read_bytes()) == result
    assert [row["n"] for row in result["curve"]] == [1, 2, 4, 6] and result["prompts"] == 4
    curve = [row["reward"] for row in result["curve"]]
    assert curve == sorted(curve) and curve[0] < curve[-1]
    best = rows_of(out / "best.jsonl")
    assert [row["messages"][-1]["role"] for row in best] == ["assistant"] * 4
    assert curve[-1] == pytest.approx(sum(row["reward"] for row in best) / 4)
    assert result["curve"][2]["kl"] == pytest.approx(kl_of_best(4))
    chats = list(read_chats([out / "best.jsonl"]))
    told = [row for row in best if row["messages"][-1]["content"].strip()]
    assert [c.messages[-1].content for c in chats] == [row["messages"][-1]["content"] for row in told]
    assert [len(c.messages) for c in chats] == [2] * 4
    pairs = list(read_pairs([out / "pairs.jsonl"]))
    assert pairs and all(p.chosen != p.rejected and len(p.chosen) < len(p.rejected) for p in pairs)
    assert "fledge sft --chats" in capsys.readouterr().err


def test_answers_that_all_score_alike_make_no_pair(parent, prompts, tmp_path):
    result = run(options(tmp_path, parent, prompts=[prompts], reward=["contains:zzzz"]))
    assert {row["reward"] for row in result["curve"]} == {0.0}
    assert rows_of(tmp_path / "best" / "pairs.jsonl") == [] and len(rows_of(tmp_path / "best" / "best.jsonl")) == 4


def test_the_same_seed_gives_the_same_files(parent, prompts, tmp_path):
    def files(name: str, **over) -> list[bytes]:
        run(options(tmp_path, parent, prompts=[prompts], out=str(tmp_path / name), **over))
        return [path.read_bytes() for path in sorted((tmp_path / name).iterdir())]

    assert files("a") == files("b") != files("c", seed=1)


def test_a_task_tells_its_own_score_beside_the_reward(parent, tmp_path, capsys):
    result = run(options(tmp_path, parent, task="arithmetic:1", reward=["regex:.*[aeiou].*"], count=5))
    assert result["prompts"] == 5
    assert result["curve"][0].keys() == {"n", "kl", "reward", "task score", "task score, chosen by itself"}
    assert "task score" in capsys.readouterr().out


def test_from_is_the_parent_on_the_command_line(parent, prompts, tmp_path):
    words = [
        "best-of-n",
        "--out",
        str(tmp_path / "b"),
        "--from",
        parent,
        "--prompts",
        prompts,
        "--reward",
        "length:1",
        "--n",
        "8",
    ]
    assert main([*words, "--max-tokens", "12"]) == 0
    assert len(rows_of(tmp_path / "b" / "best.jsonl")) == 4


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"n": 1}, "n = 1: must be at least 2"),
        ({"count": 0}, "count = 0"),
        ({"temperature": 0.0}, "all n answers would be the same"),
        ({"temperature": -1.0}, "temperature = -1.0"),
        ({"max_tokens": 0}, "max_tokens = 0"),
        ({"reward": []}, "reward: empty"),
        ({"task": "poem"}, "task and prompts: set one of them"),
        ({"prompts": []}, "task and prompts: set one of them"),
        ({"prompts": [], "task": "poen"}, "did you mean poem"),
        ({"reward": ["rules.py:f"]}, "rules.py does not exist"),
        ({"prompts": ["no.jsonl"]}, "no.jsonl"),
    ],
)
def test_options_that_cannot_work_are_refused_before_any_sampling(parent, prompts, tmp_path, monkeypatch, over, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError)) as caught:
        run(options(tmp_path, parent, **{"prompts": [prompts]} | over))
    assert says in str(caught.value)
    assert not (tmp_path / "best").exists()
