"""What the README and the recipes say works: its commands run, on less text, and every option it names exists."""

import re
import shlex
from pathlib import Path

import msgspec
import pytest

from fledge import cli
from fledge.core.config import load_recipe

ROOT = Path(__file__).resolve().parents[1]
KINDS = {"pretrain": "PretrainRecipe", "sft": "SftRecipe", "reward": "RewardRecipe", "dpo": "DpoRecipe", "kto": "KtoRecipe"}


def commands(name: str) -> list[list[str]]:
    """Every `fledge ...` line of a README's code blocks, as words."""
    blocks = re.findall(r"```\n(.*?)```", (ROOT / name).read_text("utf-8"), re.S)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
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


def test_stages_run_as_the_readme_shows(tmp_path, monkeypatch, capsys):
    """The block "Each stage on its own", with the quick world and few steps."""
    monkeypatch.chdir(tmp_path)
    quick = {
        "world": ["--quick"],
        "pretrain": ["--train.steps", "30", "--model.size", "tiny", "--vocab_size", "1200"],
        "sft": ["--train.steps", "20"],
        "reward": ["--train.steps", "5"],
        "dpo": ["--train.steps", "5"],
    }
    wanted = ["world", "pretrain", "sft", "reward", "dpo", "show", "runs", "lineage", "resume"]
    block = [words for words in commands("README.md") if words[0] in wanted]
    assert [words[0] for words in block] == wanted
    for words in block:
        assert cli.main(words + quick.get(words[0], [])) == 0, words
    shown = capsys.readouterr().out
    assert "tokens trained" in shown
    assert all(stage in shown for stage in ("pretrain", "sft", "reward", "dpo"))
