"""SFT on rows that are no conversations: template-free segments and rows of tokens, beside chats."""

import json
from pathlib import Path

import pytest
from sums import LOOP, write_rows

from fledge.core.checkpoint import load_checkpoint
from fledge.core.config import build
from fledge.core.log import read_jsonl
from fledge.core.shown import print_result
from fledge.stages import sft
from fledge.stages.common import open_model
from fledge.stages.show import ShowOptions
from fledge.stages.show import run as show

CHAT = {"question": "1+1=", "answer": "2"}
SEGMENTS = {"segments": [{"text": "2+2=", "label": False}, {"text": "4", "label": True}]}


def tokens_of(parent: str) -> dict:
    tokenizer = open_model(parent).tokenizer
    ids = [tokenizer.bos, *tokenizer.encode("3+3=6"), tokenizer.eos]
    return {"input_ids": ids, "labels": [-100, *ids[1:]]}


def test_they_are_trained_as_they_say(tmp_path: Path, parent: str):
    rows = [CHAT, SEGMENTS, tokens_of(parent), {"text": "no answer"}] * 6
    recipe = {
        "out": str(tmp_path / "run"), "parent": parent, "chats": [write_rows(tmp_path / "rows.jsonl", rows)],
        "train": {**LOOP, "steps": 30, "lr": 3e-3, "batch_tokens": 256},
    }  # fmt: skip
    checkpoint = sft.run(build(sft.SftRecipe, recipe), quiet=True)
    data = load_checkpoint(checkpoint).card["data"]
    assert data["chats"] == 18 and data["rejected"]["by_reason"] == {"plain text row, not a chat": 6}
    losses = [row["loss"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    assert losses[-1] < losses[0] / 2


def test_the_loss_is_on_what_the_recipe_says(tmp_path: Path, parent: str, monkeypatch):
    turns = [("user", "1+1="), ("assistant", "2"), ("user", "2+2="), ("assistant", "4")]
    rows = [{"messages": [{"role": r, "content": t} for r, t in turns]}, tokens_of(parent)] * 4
    recipe = {"parent": parent, "chats": [write_rows(tmp_path / "rows.jsonl", rows)]}
    trained = {}
    for loss_on in ("answers", "last", "all"):
        monkeypatch.setattr(
            sft, "run_stage", lambda *given, loss_on=loss_on, **_: trained.update({loss_on: given[3].sequences.weights})
        )
        sft.run(build(sft.SftRecipe, recipe | {"out": str(tmp_path / loss_on), "loss_on": loss_on}), quiet=True)
    own = len(tokens_of(parent)["input_ids"]) - 1  # such rows say themselves what is trained
    asked, answer = 1 + 4 + 1, 1 + 1 + 1  # role, text, end
    assert trained["answers"].sum() == 4 * (2 * (answer - 1) + own)
    assert trained["last"].sum() == 4 * (answer - 1 + own)
    assert trained["all"].sum() == 4 * (2 * (asked + answer) + own)
    with pytest.raises(ValueError, match="loss_on = 'prompt'"):
        build(sft.SftRecipe, recipe | {"out": str(tmp_path / "run"), "loss_on": "prompt"})


def test_tokens_of_another_tokenizer_are_refused_before_training(tmp_path: Path, parent: str):
    path = write_rows(tmp_path / "rows.jsonl", [CHAT, {"input_ids": [1, 99999], "labels": [1, 99999]}])
    recipe = {"out": str(tmp_path / "run"), "parent": parent, "chats": [path], "train": {**LOOP, "steps": 1}}
    with pytest.raises(
        ValueError, match=r"rows\.jsonl:2: token 99999, but the tokenizer has [\d,]+ .*another tokenizer"
    ):
        sft.run(build(sft.SftRecipe, recipe), quiet=True)


def test_they_are_shown(tmp_path: Path, parent: str, capsys):
    path = Path(write_rows(tmp_path / "rows.jsonl", [CHAT, SEGMENTS]))
    print_result(show(ShowOptions(chats=str(path))))
    assert "rows.jsonl:2: 2 of 7 tokens trained" in capsys.readouterr().out
    path.write_text(json.dumps(tokens_of(parent)))
    with pytest.raises(ValueError, match=r"rows\.jsonl:1 holds tokens: say with --model"):
        show(ShowOptions(chats=str(path)))
    print_result(show(ShowOptions(chats=str(path), model=parent)))
    assert "6 of 7 tokens trained" in capsys.readouterr().out
