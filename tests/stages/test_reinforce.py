"""The reinforce stage on a tiny model that can answer some sums: five methods, resuming bit for bit, every refusal."""

import json
import signal
from pathlib import Path

import msgspec
import pytest
import torch
from sums import SEVEN, asked, go, write_rows

from fledge.core.checkpoint import list_checkpoints, load_checkpoint
from fledge.core.config import describe
from fledge.core.log import read_jsonl
from fledge.core.train import Interrupted
from fledge.resume import ResumeOptions, resume
from fledge.stages import reinforce
from fledge.stages.observer import looks_of
from fledge.stages.reinforce import METHODS, ReinforceRecipe

NOTES = {"update", "reward", "reward_std", "entropy", "length", "no_signal", "cut_off", "kl"}


@pytest.mark.parametrize("method", METHODS)
def test_each_method_runs_and_says_what_happened(parent, tmp_path, method):
    log = go(tmp_path / "run", parent, method=method, train={"steps": 9})
    epochs = METHODS[method].epochs
    assert all(row.keys() >= NOTES | {"loss", "grad_norm", "tokens"} for row in log)
    assert [row["update"] for row in log] == [i // epochs + 1 for i in range(9)]
    assert all(0 <= row["no_signal"] <= 1 and 0 <= row["cut_off"] <= 1 and 1 <= row["length"] <= 4 for row in log)
    assert abs(log[0]["kl"]) < 1e-3 and abs(log[-1]["kl"]) > 1e-3  # it starts as its own reference, and leaves it
    assert ("value_loss" in log[0]) == (METHODS[method].baseline == "value")
    assert ("ratio" in log[0]) == (epochs > 1) == ("engine_gap" in log[0] and method == "ppo")
    if epochs > 1:
        firsts = [row["ratio"] for row in log if row["step"] % epochs == 1]
        assert firsts == [1.0] * len(firsts) and any(row["ratio"] != 1 for row in log)

    found = load_checkpoint(tmp_path / "run")
    data = found.card["data"]
    assert data["reference"] == load_checkpoint(parent).id == found.card["parent"]["id"]
    assert data["rollouts"]["baseline"] == METHODS[method].baseline and data["reward"] == "task"
    assert (data["prompts"], data["held_out"], data["dropped"]) == (64, 16, 0)
    assert found.card["model"]["head"] == ("tokens+value" if METHODS[method].baseline == "value" else "tokens")
    before, after = load_checkpoint(parent).model_tensors(), found.model_tensors()
    assert all(not torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("method", METHODS)
def test_each_method_raises_a_reward_that_can_be_raised(parent, rules, tmp_path, method):
    """A 7 in the answer is worth 1; from about 1 in 5 answers to most of them."""
    log = go(
        tmp_path / "run", parent, method=method, reward=[f"{rules}:seven"], prompts_per_update=8, cut_penalty=0.5,
        train={"steps": 60},
    )  # fmt: skip
    first, last = (sum(row["reward"] for row in rows) / len(rows) for rows in (log[:6], log[-6:]))
    assert first < 0.5 and last > first + 0.3, (first, last)
    scores = [look.scores["reward"] for look in looks_of(tmp_path / "run")]
    assert scores[-1] > scores[0] + 0.3


def test_looks_are_kept_beside_the_run(parent, rules, tmp_path):
    log = go(tmp_path / "run", parent, method="ppo", watch=["exact", f"{rules}:seven"], train={"steps": 36})
    files = sorted((tmp_path / "run" / "looks").iterdir())
    steps = [int(path.stem) for path in files]
    assert steps == list(range(0, 37, 4)) and log[-1]["step"] == 36
    for path, step in zip(files, steps, strict=True):
        entry = json.loads(path.read_bytes())
        assert entry["step"] == step and entry["questions"] == 16 and len(entry["samples"]) == 6
        assert list(entry["scores"]) == sorted(["score", "reward", "exact", f"{rules}:seven"])
        assert entry["scores"]["score"] == entry["scores"]["reward"] == entry["scores"]["exact"]
        assert set(entry["samples"][0]) == {"prompt", "answer", "reward"}
    assert [look.step for look in looks_of(tmp_path / "run")] == steps


def test_a_plan_and_the_answers_before_and_after_are_shown(parent, tmp_path, capsys):
    go(tmp_path / "run", parent, quiet=False, train={"steps": 3})
    said = capsys.readouterr()
    assert "grpo: 64 prompts, 4 x 4 answers per update, 1 steps on each" in said.err
    assert "baseline group-std, divisor sequence, clip [0.2, 0.2], KL measure; reward task" in said.err
    assert "Held-out prompts" in said.out and "score on 16 held-out prompts" in said.out


def test_rewards_add_up_by_their_weights(parent, rules, tmp_path):
    """The same answers under two rewards and their sum (seven gives the length here)."""
    rules.write_text(SEVEN.replace("'7' in answer", "len(answer) + 0.25"))
    found = {}
    for name, reward in {"a": ["exact"], "b": [f"{rules}:seven"], "both": ["2*exact", f"-0.5*{rules}:seven"]}.items():
        found[name] = go(tmp_path / name, parent, reward=reward, cut_penalty=0.0, train={"steps": 1})[0]["reward"]
    assert found["both"] == pytest.approx(2 * found["a"] - 0.5 * found["b"]) and found["a"] != found["b"]
    name = load_checkpoint(tmp_path / "both").card["data"]["reward"]
    assert "exact" in name and "seven" in name and "0.5" in name


def test_a_rollout_larger_than_a_batch_is_cut_into_steps(parent, tmp_path):
    log = go(tmp_path / "run", parent, method="grpo", train={"batch_tokens": 60, "steps": 5})
    parts = load_checkpoint(tmp_path / "run").card["data"]["rollouts"]["minibatches"]
    assert parts == -(-16 * (8 + 4) // 60) == 4
    assert [row["update"] for row in log] == [1, 1, 1, 1, 2] and log[0]["ratio"] == 1.0 != log[3]["ratio"]


def test_own_prompts_that_are_too_long_are_left_out_and_counted(parent, tmp_path, capsys):
    rows = [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(6)] + [{"prompt": "1+" * 40, "answer": "1"}]
    prompts = [write_rows(tmp_path / "p.jsonl", rows)]
    go(tmp_path / "run", parent, quiet=False, prompts=prompts, reward=["exact"], train={"steps": 2})
    assert "prompts: 1 left out" in capsys.readouterr().err
    data = load_checkpoint(tmp_path / "run").card["data"]
    assert (data["prompts"], data["dropped"], data["held_out"]) == (6, 1, 0)  # too few to hold some out


def test_a_model_that_gives_the_reward_makes_kl_cost_something():
    made = ReinforceRecipe(out="o", parent="p", task="arithmetic")
    assert (made.rollouts().kl, made.rollouts().kl_coefficient) == ("measure", 0.0)
    assert (made.rollouts(opinion=True).kl, made.rollouts(opinion=True).kl_coefficient) == ("loss", 0.05)
    assert msgspec.structs.replace(made, method="ppo").rollouts(opinion=True).kl == "reward"
    assert msgspec.structs.replace(made, kl="measure").rollouts(opinion=True).kl_coefficient == 0.0
    aimed = msgspec.structs.replace(made, kl_target=4.0).rollouts()
    assert (aimed.kl, aimed.kl_coefficient) == ("loss", 0.05)


def test_a_field_that_is_set_wins_over_its_method():
    made = ReinforceRecipe(
        out="o", parent="p", task="arithmetic", method="ppo", epochs=1, baseline="mean", divisor="fixed", clip=[]
    )
    config = made.rollouts()
    assert (config.epochs, config.baseline, config.divisor, made._clip) == (1, "mean", "fixed", None)
    assert made.problems() == []


def test_at_most_40_settings():
    assert len([flag for flag, *_ in describe(ReinforceRecipe) if not flag.startswith("--adapter.")]) <= 40


# ------------------------------------------------------------------------------------------------------------- resume


def files_of(run: Path) -> dict[str, bytes]:
    """Everything of a finished run that must not depend on how it got there."""
    newest = list_checkpoints(run)[-1]
    paths = [*newest.iterdir(), *(run / "looks").iterdir(), *run.glob("*.json"), run / "metrics.jsonl"]
    assert {"recipe.json", "done.json", "flags.json"} <= {path.name for path in paths}
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(paths)}


def stop_after(monkeypatch, steps: set[int] | None) -> None:
    """Signal the loop in these steps; None: in every step."""
    plain = reinforce.Observer.__call__

    def stopping(self, event):
        plain(self, event)
        if (steps is None and event.step < event.steps) or (steps and event.step in steps):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(reinforce.Observer, "__call__", stopping)


SHAPES = {
    "reinforce": {"method": "reinforce"},
    "a2c": {"method": "a2c", "shaping": "potential"},
    "ppo": {"method": "ppo", "kl": "reward", "kl_coefficient": 0.1, "kl_target": 0.5},
    "ppo, cut": {"method": "ppo", "epochs": 2, "entropy_weight": 0.01, "train": {"batch_tokens": 60}},
    "grpo": {"method": "grpo", "kl": "loss", "kl_coefficient": 0.1, "resample": 2},
    "rloo": {"method": "rloo", "prompts_per_update": 7, "train": {"optimizer": "muon"}},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_stopped_after_every_step_and_resumed_is_the_same_run(parent, tmp_path, monkeypatch, shape):
    """In the middle of a rollout too: its answers were sampled by weights that are gone."""
    steps = 10
    given = SHAPES[shape] | {"train": {"steps": steps, **SHAPES[shape].get("train", {})}}
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    go("run", parent, **given)
    monkeypatch.chdir(tmp_path / "cut")
    stop_after(monkeypatch, None)
    for step in range(1, steps):
        with pytest.raises(Interrupted, match=f"stopped at step {step} of {steps}"):
            go("run", parent, **given) if step == 1 else resume(ResumeOptions(run="run"))
    assert not Path("run/done.json").exists()
    resume(ResumeOptions(run="run"))
    ours, theirs = files_of(tmp_path / "whole/run"), files_of(tmp_path / "cut/run")
    assert [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)] == []


def interrupted(out: Path, parent: str, monkeypatch, **over) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, {3})
        with pytest.raises(Interrupted, match="stopped at step 3"):
            go(out, parent, **over)


def test_a_reward_file_that_changed_is_refused_and_restored_goes_on(parent, rules, tmp_path, monkeypatch):
    run = tmp_path / "run"
    interrupted(run, parent, monkeypatch, reward=[f"{rules}:seven"])
    rules.write_text(SEVEN.replace("'7' in", "'8' in"))
    with pytest.raises(ValueError, match=r"prompts or the reward changed .* restore them"):
        resume(ResumeOptions(run=str(run)))
    assert len(read_jsonl(run / "metrics.jsonl")) == 3
    rules.write_text(SEVEN)
    resume(ResumeOptions(run=str(run)))
    assert len(read_jsonl(run / "metrics.jsonl")) == 6


@pytest.mark.parametrize("changed", ["answer", "level"])
def test_what_answers_are_compared_with_is_part_of_the_reward(parent, rules, tmp_path, monkeypatch, changed):
    """The prompts are the same; what a rule may look at is not."""
    prompts = tmp_path / "p.jsonl"
    given = {"prompts": [asked(prompts, 9, level=1)], "reward": ["exact"]}
    interrupted(tmp_path / "run", parent, monkeypatch, **given)
    rows = read_jsonl(prompts)
    rows[4][changed] = "0"
    write_rows(prompts, rows)
    with pytest.raises(ValueError, match="prompts or the reward changed"):
        go(tmp_path / "run", parent, **given)


def test_another_parent_is_refused(parent, tmp_path, monkeypatch):
    interrupted(tmp_path / "run", parent, monkeypatch)
    other = tmp_path / "other"
    go(other, parent, train={"steps": 2})
    stored = (tmp_path / "run" / "recipe.json").read_text()
    (tmp_path / "run" / "recipe.json").write_text(stored.replace(json.dumps(parent), json.dumps(str(other))))
    with pytest.raises(ValueError, match=r"was raised from .* now the parent is"):
        resume(ResumeOptions(run=str(tmp_path / "run")))


# ---------------------------------------------------------------------------------------------------------- red flags


def test_red_flags_are_said_once_and_kept_however_often_the_run_stops(parent, tmp_path, monkeypatch, capsys):
    """An answer of 2 tokens at most is mostly cut off: told after 20 updates, stopped before that and after."""
    given = {"max_tokens": 1, "quiet": False, "train": {"steps": 30}}
    go(tmp_path / "whole", parent, **given)
    assert capsys.readouterr().err.count("RED FLAG") == 1
    flags = json.loads((tmp_path / "whole" / "flags.json").read_bytes())
    assert [flag["step"] for flag in flags] == [20] and "of answers are cut off" in flags[0]["text"]
    stop_after(monkeypatch, {12, 19, 23})
    for step in (12, 19, 23):
        with pytest.raises(Interrupted, match=f"stopped at step {step}"):
            go(tmp_path / "cut", parent, **given)
    go(tmp_path / "cut", parent, **given)
    assert capsys.readouterr().err.count("RED FLAG") == 1
    assert json.loads((tmp_path / "cut" / "flags.json").read_bytes()) == flags


def test_a_run_without_flags_says_so(parent, tmp_path):
    go(tmp_path / "run", parent, train={"steps": 2})
    assert json.loads((tmp_path / "run" / "flags.json").read_bytes()) == []
