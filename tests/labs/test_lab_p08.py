"""P8, what a base model could say: the whole lab at tiny, its trap against enumeration, and the two commands."""

import json

import numpy as np
import pytest

from fledge.cli import main
from fledge.labs import p08_latent, p08_trap
from fledge.labs.bench import Bench

TINY = p08_latent.SCALES["tiny"]


@pytest.fixture(scope="module")
def told(little_journey, tmp_path_factory) -> dict:
    bench = Bench(tmp_path_factory.mktemp("P8"), little_journey, 0, "tiny")
    return json.loads(json.dumps(p08_latent.measure(TINY, bench)))


def test_every_model_and_sampler_is_judged(told):
    for who in ("base", "rl"):
        shares = [share for _, share in told[who]["pass"]]
        assert shares == sorted(shares) and 0 <= shares[0] and shares[-1] <= 1
    assert set(told["samplers"]) == {"low 4", "power 4", "power 4, cold"}
    assert all(0 <= s["right"] <= s["answers"] for s in told["samplers"].values())
    assert all(rank >= 1 and 0 <= p <= 1 for rank, p in told["rank"])
    found = p08_latent.judge(TINY, [told, told])
    assert len(found.numbers) <= 8 and sum(check.core for check in found.checks) == 9
    assert p08_latent.draw(TINY, [told, told]).startswith("<svg")


def test_right_is_a_straight_answer_with_the_right_value_alone(world):
    example = next(e for e in p08_latent.questions(world, TINY, 0) if e.language == "en")
    value, other = example.meta["value"], next(v for v in example.meta["choices"] if v != example.meta["value"])
    for text, holds in ((f" It is {value}.", True), (f"\n{value}.", True), (f" It is {other}.", False),
                        (f" It is {value}. It is {other}.", False), (f"\n(A) {value} (B) {other}", False)):  # fmt: skip
        assert p08_latent.right(example, text) == holds, text


def test_an_answer_begun_stops_at_its_name(world):
    for example in p08_latent.questions(world, p08_latent.Setup(well_read=1), 0):
        head, name = p08_latent.opening(example)
        start = example.prompt[-1]["content"] + (" It is" if example.language == "en" else "是")
        assert head.startswith(start) and name.strip() and (head + name).endswith(example.meta["value"][-3:])


def test_the_trap_is_one_and_chains_escape_from_it():
    texts = p08_trap.Trap().texts()
    assert sum(texts.values()) == pytest.approx(1) and all(len(text) == 4 for text in texts)
    first = sum(p for text, p in texts.items() if text[0] == 0)
    assert first == pytest.approx(0.55)  # the likelier token
    found = p08_trap.trap(4.0, [0, 50], 400, 0)
    assert found["second branch"]["power"] > 0.99 > 0.5 > found["second branch"]["low"]
    assert found["low"] > 0.5 and found["chains"][0][1] > 0.5 and found["chains"][1][1] < 0.1


def test_the_table_samples_what_it_scores():
    table = p08_trap.Trap()
    drawn = table.write([[]] * 4000, 4, 0.5, 3)
    assert {text[0]: np.mean([t[0] == text[0] for t in drawn]) for text in drawn}[1] == pytest.approx(
        table.sharp([], 0.5)[1], abs=0.03
    )
    (plain, sharp), _ = table.logps([[], []], [drawn[0], drawn[1]], 0.5)
    assert np.exp(plain.sum()) == pytest.approx(table.texts()[tuple(drawn[0])]) and sharp[0] == pytest.approx(
        np.log(table.sharp([], 0.5)[drawn[0][0]])
    )


def test_both_commands_on_a_run(little_journey, tmp_path):
    sft = str(Bench(little_journey / "none", little_journey, 0, "tiny").journey() / "sft")
    rows = [{"prompt": "What is 1?", "answer": "1"}, {"prompt": "What is 2?", "answer": "2"}]
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert not main(
        ["passk", sft, "--prompts", str(asked), "--samples", "4", "--max_tokens", "8", "--out", f"{tmp_path}/k.json"]
    )
    found = json.loads((tmp_path / "k.json").read_text("utf-8"))
    assert list(found["pass"]) == ["1", "2", "4"] and found["questions"] == 2
    assert not main(
        ["power", sft, "--text", "What is 1?", "--max_tokens", "8", "--steps", "2", "--out", f"{tmp_path}/p.jsonl"]
    )
    row = json.loads((tmp_path / "p.jsonl").read_text("utf-8"))
    assert row["prompt"] == "What is 1?" and row["logp"] < 0 and row["tokens_written"] >= 8
