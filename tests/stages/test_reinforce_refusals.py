"""What `fledge reinforce` refuses: before anything is written, save for a reward that fails on an answer."""

from pathlib import Path

import pytest
from sums import asked, write_rows

from fledge.cli import main
from fledge.core.checkpoint import list_checkpoints
from fledge.core.log import read_jsonl


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
    empty = write_rows(tmp_path / "empty.jsonl", [{"title": "x"}])
    for file, more, says in (
        (str(tmp_path / "no.jsonl"), ["--reward", "exact"], "no.jsonl"),
        (empty, ["--reward", "exact"], "0 usable prompts"),
        (good, [], "own prompts need one"),
    ):
        assert says in refused(capsys, words_of(out, parent, "--prompts", file, *more, task=None))
        assert not out.exists()


def test_several_mistakes_are_told_at_once(parent, tmp_path, capsys):
    wrong = ["--group-size", "1", "--epochs", "0", "--entropy-weight", "-1"]
    said = refused(capsys, words_of(tmp_path / "run", parent, *wrong))
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
    assert not list_checkpoints(out) and not read_jsonl(out / "metrics.jsonl")
    rules.write_text("def broken(example, answer):\n    return 1.0\n")
    assert main(["reinforce", *words]) == 0  # mended, the same command goes
    assert len(read_jsonl(out / "metrics.jsonl")) == 4


def test_a_mended_command_may_use_the_folder_of_a_refused_one(parent, tmp_path, capsys):
    world = words_of(tmp_path / "run", parent, "--shaping", "steps", task="world:quick")
    world[world.index("--max-tokens") + 1] = "20"
    refused(capsys, world)
    assert main(["reinforce", *words_of(tmp_path / "run", parent, "--shaping", "steps")]) == 0
