"""The reinforce stage on a tiny model that can answer some sums: five methods, resuming bit for bit, every refusal."""

import json
import signal
from pathlib import Path

import pytest
import torch

from fledge.cli import main
from fledge.core.checkpoint import list_checkpoints, load_checkpoint
from fledge.core.config import build, describe
from fledge.core.log import read_jsonl
from fledge.core.train import Interrupted
from fledge.resume import ResumeOptions, resume
from fledge.stages import pretrain, reinforce, sft
from fledge.stages.observer import looks_of
from fledge.stages.reinforce import METHODS, ReinforceRecipe
from fledge.tasks.catalog import open_lesson

LOOP = {"threads": 1, "precision": "float32"}
SEVEN = "def seven(example, answer):\n    return '7' in answer\n"


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of one layer that answers sums of one digit, mostly wrong."""
    folder, lesson = tmp_path_factory.mktemp("parent"), open_lesson("arithmetic:1")
    text = write_rows(folder / "text.jsonl", [{"text": t} for t in lesson.texts(60)])
    chats = write_rows(folder / "chats.jsonl", [{"messages": c} for c in lesson.chats(400)])
    model = {"size": "tiny", "layers": 1, "context_tokens": 48}
    base = {
        "out": str(folder / "base"), "text": [text], "vocab_size": 280, "model": model,
        "train": {**LOOP, "steps": 3, "batch_tokens": 256},
    }  # fmt: skip
    pretrain.run(build(pretrain.PretrainRecipe, base), quiet=True)
    taught = {
        "out": str(folder / "sft"), "parent": base["out"], "chats": [chats],
        "train": {**LOOP, "steps": 100, "lr": 3e-3, "batch_tokens": 512},
    }  # fmt: skip
    sft.run(build(sft.SftRecipe, taught), quiet=True)
    return taught["out"]


@pytest.fixture
def rules(tmp_path) -> Path:
    path = tmp_path / "my rules.py"
    path.write_text(SEVEN)
    return path


def asked(path: Path, count: int = 24, **extra) -> str:
    return write_rows(path, [{"prompt": f"{i % 9 + 1}+{i // 9 + 1}=", "answer": str(i % 9 + i // 9 + 2), **extra} for i in range(count)])


def recipe(out: Path | str, parent: str, **over) -> ReinforceRecipe:
    train = {**LOOP, "steps": 6, "lr": 3e-3, "schedule": "constant", "batch_tokens": 65536} | over.pop("train", {})
    given = {
        "out": str(out), "parent": parent, "prompts_per_update": 4, "group_size": 4, "max_tokens": 4, "train": train
    }  # fmt: skip
    if "prompts" not in over:
        given["task"] = "arithmetic:1"
    return build(ReinforceRecipe, given | over)


def go(out: Path | str, parent: str, quiet: bool = True, **over) -> list[dict]:
    reinforce.run(recipe(out, parent, **over), quiet=quiet)
    return read_jsonl(Path(out) / "metrics.jsonl")


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
    before = load_checkpoint(parent).model_tensors()
    after = found.model_tensors()
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
    """The same answers under exact, seven, and 2 exact - 0.5 seven (here the length): the first update's rewards are the weighted sum."""
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
    made = ReinforceRecipe(out="o", parent="p", task="arithmetic", method="ppo")
    assert made.rollouts(opinion=True).kl == "reward"
    made = ReinforceRecipe(out="o", parent="p", task="arithmetic", kl="measure")
    assert made.rollouts(opinion=True).kl_coefficient == 0.0
    made = ReinforceRecipe(out="o", parent="p", task="arithmetic", kl_target=4.0)
    assert (made.rollouts().kl, made.rollouts().kl_coefficient) == ("loss", 0.05)


def test_a_field_that_is_set_wins_over_its_method():
    made = ReinforceRecipe(out="o", parent="p", task="arithmetic", method="ppo", epochs=1, baseline="mean", divisor="fixed", clip=[])
    config = made.rollouts()
    assert (config.epochs, config.baseline, config.divisor, made._clip) == (1, "mean", "fixed", None)
    assert made.problems() == []


def test_at_most_40_settings():
    assert len(describe(ReinforceRecipe)) <= 40


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
    assert list(ours) == list(theirs) and [name for name in ours if ours[name] != theirs[name]] == []


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


# ----------------------------------------------------------------------------------------------------------- refusals


def refused(capsys, words: list[str]) -> str:
    """What `fledge reinforce WORDS` says when it fails."""
    assert main(["reinforce", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 1 and "Traceback" not in said
    return said[said.index("error: ") :]


def words_of(out: Path, parent: str, *more: str, task: str | None = "arithmetic:1") -> list[str]:
    words = ["--out", str(out), "--from", parent, "--max-tokens", "4", "--train.steps", "4", "--train.threads", "1"]
    return [*words, *(["--task", task] if task else []), *more]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--group-size", "1"], "set group_size to 2 or more"),
        (["--task", "arithmetik:1"], "did you mean arithmetic?"),
        (["--task", "arithmetic:9"], "digits = 9"),
        (["--prompts", "p.jsonl"], "task and prompts: set one of them"),
        (["--method", "reinforce", "--epochs", "2"], "set clip = [0.2, 0.2], or epochs = 1"),
        (["--method", "rloo", "--train.batch-tokens", "100"], "train.batch_tokens to at least 1536"),
        (["--kl", "measure", "--kl-coefficient", "0.1"], "kl = measure pays nothing"),
        (["--kl", "reward", "--kl-coefficient", "0"], "kl = reward pays nothing"),
        (["--task", "world:quick", "--max-tokens", "10", "--shaping", "steps"], "does not say how far an answer got"),
        (["--max-tokens", "46"], "0 of 64 prompts can be used"),
        (["--max-tokens", "64"], "leaves -16 for the prompt"),
        (["--reward", "rules.py:seven"], "rules.py does not exist"),
        (["--reward", "exakt"], "did you mean exact?"),
        (["--watch", "rules.py:seven"], "rules.py does not exist"),
        (["--clip", "0.2"], "clip"),
        (["--clip", "0.2", "--clip", "0.2", "--clip", "1.1"], "dual clip"),
        (["--train.steps", "none"], "train.steps = none"),
        (["--metod", "grpo"], "did you mean method?"),
        (["--method", "dpo"], "method"),
        (["--parent", "other"], "--from and --parent are one setting"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_written(parent, tmp_path, capsys, monkeypatch, more, says):
    monkeypatch.chdir(tmp_path)
    words = words_of(tmp_path / "run", parent)
    for flag in {w for w in more if w.startswith("--")} & set(words):
        at = words.index(flag)
        del words[at : at + 2]
    assert says in refused(capsys, [*words, *more])
    assert not (tmp_path / "run").exists()


def test_prompts_that_are_missing_empty_or_without_a_reward_are_refused(parent, tmp_path, capsys):
    out, good = tmp_path / "run", asked(tmp_path / "p.jsonl")
    empty = write_rows(tmp_path / "empty.jsonl", [{"question": "x"}])
    for file, more, says in (
        (str(tmp_path / "no.jsonl"), ["--reward", "exact"], "no.jsonl"),
        (empty, ["--reward", "exact"], "0 usable prompts"),
        (good, [], "own prompts need one"),
    ):
        assert says in refused(capsys, words_of(out, parent, "--prompts", file, *more, task=None))
        assert not out.exists()


def test_several_mistakes_are_told_at_once(parent, tmp_path, capsys):
    said = refused(capsys, words_of(tmp_path / "run", parent, "--group-size", "1", "--epochs", "0", "--entropy-weight", "-1"))
    assert all(text in said for text in ("group_size = 1", "epochs = 0", "entropy_weight = -1"))


@pytest.mark.parametrize("count", [24, 6], ids=["at the first look", "at the first rollout"])
@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return float('nan')", "gave nan"),
        ("return 1 / 0", "ZeroDivisionError: division by zero"),
        ("return 'good'", "gave str"),
        ("return None", "gave None"),
    ],
)
def test_a_reward_that_fails_shows_the_prompt_and_the_answer(parent, tmp_path, capsys, body, says, count):
    rules, out, prompts = tmp_path / "rules.py", tmp_path / "run", asked(tmp_path / "p.jsonl", count)
    rules.write_text(f"def broken(example, answer):\n    {body}\n")
    words = words_of(out, parent, "--prompts", prompts, "--reward", f"{rules}:broken", task=None)
    said = refused(capsys, words)
    assert says in said and "=' (id " in said and "and the answer '" in said and "rules.py" in said
    assert not list_checkpoints(out) and not read_jsonl(out / "metrics.jsonl") if (out / "metrics.jsonl").exists() else True
    rules.write_text("def broken(example, answer):\n    return 1.0\n")
    assert main(["reinforce", *words]) == 0  # mended, the same command goes
    assert len(read_jsonl(out / "metrics.jsonl")) == 4


def test_a_mended_command_may_use_the_folder_of_a_refused_one(parent, tmp_path, capsys):
    world = words_of(tmp_path / "run", parent, "--shaping", "steps", task="world:quick")
    world[world.index("--max-tokens") + 1] = "20"
    refused(capsys, world)
    assert main(["reinforce", *words_of(tmp_path / "run", parent, "--shaping", "steps")]) == 0


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
