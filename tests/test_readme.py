"""What the README and the recipes say works: its commands run, on less text, and every option it names exists."""

import re
import shlex
from pathlib import Path

import msgspec
import pytest

from fledge import cli
from fledge.core.config import load_recipe

ROOT = Path(__file__).resolve().parents[1]
KINDS = {
    "pretrain": "PretrainRecipe", "sft": "SftRecipe", "reward": "RewardRecipe", "dpo": "DpoRecipe", "kto": "KtoRecipe",
    "reinforce": "ReinforceRecipe",
}  # fmt: skip


def commands(name: str, under: str = "") -> list[list[str]]:
    """Every `fledge ...` line of a README's code blocks, as words; `under`: only those of the section with this heading."""
    text = (ROOT / name).read_text("utf-8")
    text = text[text.index(under) + len(under) :].split("\n## ")[0] if under else text
    blocks = re.findall(r"```(\w*)\n(.*?)```", text, re.S)  # with a language (Python, JSON): no commands
    lines = [line.strip() for language, block in blocks if not language for line in block.splitlines()]
    found = [shlex.split(line, comments=True) for line in lines if re.match(r"(\.venv/bin/)?fledge ", line)]
    return [words[1:] for words in found]


@pytest.mark.parametrize("name", ["README.md", "README.zh-TW.md"])
def test_every_command_is_understood(name):
    found = commands(name)
    assert {words[0] for words in found} >= {"journey", "chat", "world", "pretrain", "sft", "reward", "dpo", "resume", "show"}
    for verb, *arguments in found:
        entry = cli.TABLE[verb]
        module = __import__(f"fledge.{entry.module}", fromlist=[entry.options])
        cli.parse(entry, getattr(module, entry.options), arguments)


def test_both_readmes_show_the_same_commands():
    assert commands("README.md") == commands("README.zh-TW.md")


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda p: p.stem)
def test_recipes_are_valid(path):
    entry = cli.TABLE[path.stem]
    module = __import__(f"fledge.{entry.module}", fromlist=[entry.options])
    recipe = load_recipe(getattr(module, KINDS[path.stem]), path, {})
    assert msgspec.to_builtins(recipe)["out"].startswith("runs/")


def test_reinforcement_runs_as_the_readme_shows(tmp_path, monkeypatch, capsys):
    """The first block of "Learning from scored answers", with less text and few steps; then best-of-n on its model."""
    monkeypatch.chdir(tmp_path)
    few = {
        "task": ["--texts", "300"],
        "pretrain": ["--train.steps", "8"],
        "sft": ["--train.steps", "10"],
        "reinforce": ["--train.steps", "3"],
        "best-of-n": ["--count", "8"],
    }
    block = commands("README.md", "## Learning from scored answers")[:5]
    assert [words[0] for words in block] == list(few)
    for words in block:
        assert cli.main(words + few[words[0]]) == 0, words
    assert "held-out prompts" in capsys.readouterr().out
    assert (tmp_path / "runs" / "sums" / "grpo" / "report.html").exists()


def test_stages_run_as_the_readme_shows(tmp_path, monkeypatch, capsys):
    """The block "Each stage on its own", with the quick world and few steps."""
    monkeypatch.chdir(tmp_path)
    quick = {
        "world": ["--quick"],
        "pretrain": ["--train.steps", "30", "--model.size", "tiny", "--vocab_size", "1200"],
        "sft": ["--train.steps", "20"],
        "reward": ["--train.steps", "5"],
        "dpo": ["--train.steps", "5"],
        "kto": ["--train.steps", "5"],
    }
    wanted = ["world", "pretrain", "sft", "reward", "dpo", "kto", "show", "runs", "lineage", "resume"]
    block = commands("README.md", "## Each stage on its own")
    assert [words[0] for words in block] == wanted
    for words in block:
        assert cli.main(words + quick.get(words[0], [])) == 0, words
    shown = capsys.readouterr().out
    assert "tokens trained" in shown
    assert all(stage in shown for stage in ("pretrain", "sft", "reward", "dpo"))
