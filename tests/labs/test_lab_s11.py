"""S11: which tokens are names, the material of the arms, the whole at tiny, and checkpoints that are there already."""

import json

import msgspec
import pytest

from fledge.core.config import build
from fledge.labs import s11_shift as lab
from fledge.labs.bench import Bench
from fledge.labs.s11_shift import SCALES, Setup, name_tokens, questions
from fledge.probe.reading import prompt_tokens
from fledge.probe.shift import Shift, TokenShift
from fledge.text.messages import Message
from fledge.text.segments import NOT_TRAINED


def answer(*pieces: str, end: bool = True) -> Shift:
    """An answer of these pieces; "" is a byte of the character that comes with the next."""
    tokens = [
        TokenShift(id=9, text=piece, piece=piece, partial=not piece, control=False, rank=1, category="unshifted",
                   kl=0.0, p=1.0, base_p=1.0, top=[], base_top=[])
        for piece in pieces
    ]  # fmt: skip
    return Shift(tokens + [msgspec.structs.replace(tokens[0], piece="", control=True)] * end, {})


@pytest.mark.parametrize(("pieces", "values", "wanted"), [
    (("It", " is", " the", " Ne", "po", " River", "."), ["Nepo River"], "...###.."),
    ((" NEPO", " river", " it", " is"), ["Nepo River"], "##..."),
    (("是", "", "法", "芬", "", "", "山", "。"), ["法芬山"], ".######.."),
    (("It", " is"), ["Nepo River"], "..."),
    (("Fafen", " and", " Nosi"), ["Fafen", "Nosi"], "#.#."),
])  # fmt: skip
def test_tokens_of_a_name(pieces, values, wanted):
    assert "".join(".#"[inside] for inside in name_tokens(answer(*pieces), values)) == wanted


def test_questions_are_held_out_and_well_read(world):
    setup = Setup()
    asked = questions(world, setup, 0)
    assert asked and len(asked) <= setup.asked and len({e.prompt[0]["content"] for e in asked}) == len(asked)
    for example in asked:
        fact = world.fact_by_id[example.meta["fact"]]
        assert fact.split == "test" and fact.count[example.language] >= setup.well_read


def test_the_material_is_alike_but_for_its_style(world, tokenizer, tmp_path):
    files = lab._material(world, tokenizer, Bench(tmp_path, tmp_path, 0, "tiny"))
    rows = {name: [json.loads(line) for line in open(path, encoding="utf-8")] for name, path in files.items()}
    assert len(rows["chats"]) == len(rows["styled"]) == len(rows["text"]) > 300
    for chat, row in zip(rows["chats"], rows["text"], strict=True):
        messages = [Message(**m) for m in chat["messages"][:2]]
        told = [*tokenizer.encode(messages[1].content), tokenizer.end]
        assert row["input_ids"] == [*prompt_tokens(tokenizer, messages[:1], "plain", 99), *told]
        assert [i for i in row["labels"] if i != NOT_TRAINED] == told == row["labels"][-len(told) :]
    assert rows["text"] != rows["styled"] and {p["styles"][0] for p in rows["pairs"]} == {"plain"}


def test_it_runs(little_journey, tmp_path):
    setup = SCALES["tiny"]
    found = lab.measure(setup, Bench(tmp_path, little_journey, 0, "tiny"))
    assert found == lab.measure(setup, Bench(tmp_path, little_journey, 0, "tiny"))
    for arm in ("sft", "dpo", "scratch", "template", "new words"):
        assert found[arm]["names"]["tokens"] + found[arm]["form"]["tokens"] == found[arm]["tokens"]
        assert sum(found[arm]["shares"].values()) == pytest.approx(1.0)
    findings = lab.judge(setup, [found, found])
    assert len(findings.numbers) == 8 and sum(c.core for c in findings.checks) == 6
    svg = lab.draw(setup, [found, found])
    assert svg.startswith("<svg") and "from scratch" in svg


def test_checkpoints_that_are_there_already(little_journey, tmp_path):
    journey = Bench(tmp_path, little_journey, 0, "tiny").journey()
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"prompt": q, "choices": 4}) + "\n" for q in ("Who?", "你好！", "Where is it?"))
    )
    given = {"model": str(journey / "aligned"), "base": str(journey / "base"), "data": [str(prompts)], "max_tokens": 8}
    for control in (None, str(journey / "control")):
        setup = build(Setup, given | {"control": control})
        found = lab.measure(setup, Bench(tmp_path / str(bool(control)), little_journey, 0, "full"))
        findings = lab.judge(setup, [found])
        assert found["asked"] == 3 and found["sft"]["names"]["tokens"] == 0 and ("scratch" in found) == bool(control)
        assert len(findings.checks) == 3 + bool(control) and lab.draw(setup, [found]).startswith("<svg")
    with pytest.raises(ValueError, match=r"give --set\.model RUN"):
        lab.measure(SCALES["full"], Bench(tmp_path / "none", little_journey, 0, "full"))
    with pytest.raises(ValueError, match="base, data: not set"):
        build(Setup, {"model": "runs/x"})
