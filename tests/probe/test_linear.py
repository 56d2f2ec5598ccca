"""Linear probes: what they read is what the states hold, no more; and the command that runs them on a checkpoint."""

import json

import pytest
import torch

from fledge.cli import main
from fledge.probe.linear import last_states, linear_probe, query_probe
from fledge.probe.reading import in_float32

ROWS = [[1, 5 + i % 4, 20 + i // 4 % 6, *([40] * (i % 3))] for i in range(120)]
SECOND = [f"b{row[1]}" for row in ROWS]  # readable: the model attends to it
NOISE = [f"c{(i * 7919) % 5}" for i in range(len(ROWS))]  # not in the text at all


def test_states_are_those_of_the_model_whatever_shares_the_batch(base):
    model = in_float32(base.model)
    found, layers = last_states(base.model, ROWS[:9]), base.model.config.layers
    for row, state in zip(ROWS[:9], found, strict=True):
        alone = model.hidden(torch.tensor([row]))[0, -1]
        assert torch.allclose(state, alone, atol=1e-5)
    embedded = last_states(base.model, ROWS[:3], layer=0)
    assert torch.equal(embedded, base.model.embedding[[row[-1] for row in ROWS[:3]]].detach().float())
    top = model.final_norm(last_states(base.model, ROWS[:9], layer=layers))
    assert torch.allclose(top, found, atol=1e-5)
    assert torch.allclose(last_states(base.model, ROWS[:9]), found)  # no hook stays behind


def test_a_probe_reads_what_is_there_and_nothing_else(base):
    labels = {"second": (SECOND[:90], SECOND[90:]), "noise": (NOISE[:90], NOISE[90:])}
    found = linear_probe(base.model, ROWS[:90], ROWS[90:], labels)
    assert found["second"].accuracy > 0.9 and found["second"].classes == 4 and found["second"].rows == 30
    assert found["noise"].accuracy < 0.5 and 0.1 < found["noise"].majority < 0.4


def test_a_query_finds_what_one_vector_can_ask_for(base):
    words = {f"b{5 + i}": 60 + i for i in range(4)} | {f"c{i}": 70 + i for i in range(5)}
    labels = {"second": (SECOND[:90], SECOND[90:]), "noise": (NOISE[:90], NOISE[90:])}
    before = {name: p.clone() for name, p in base.model.named_parameters()}
    model, rows = base.model, [[*row, 2] for row in ROWS[90:]]
    at_once = query_probe(model, ROWS[:90], ROWS[90:], labels, words, query=2, steps=0)["second"]
    plain = last_states(model, rows) @ model.head_weight[[words[n] for n in sorted(set(SECOND))]].T
    right = (plain.argmax(1) == torch.tensor([sorted(set(SECOND)).index(n) for n in SECOND[90:]])).float().mean()
    assert at_once.accuracy == pytest.approx(float(right))  # before a step it is the model itself that answers
    found = query_probe(model, ROWS[:90], ROWS[90:], labels, words, query=2, steps=40, lr=0.2)
    assert found["second"].train_accuracy > at_once.train_accuracy + 0.1
    assert found["second"].accuracy > at_once.accuracy and found["noise"].accuracy < 0.5
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())


def test_what_cannot_be_probed_is_refused(base, make_model):
    labels = {"x": (["a"] * 5, ["a"])}
    with pytest.raises(ValueError, match="5 and 1 labels of 4 and 1 rows"):
        linear_probe(base.model, ROWS[:4], ROWS[:1], labels)
    with pytest.raises(ValueError, match="row 4 has 0 tokens: must be 1 to 48"):
        linear_probe(base.model, [*ROWS[:4], []], ROWS[:1], labels)
    with pytest.raises(ValueError, match="layer = 9: must be 0 to 3"):
        linear_probe(base.model, ROWS[:5], ROWS[:1], labels, layer=9)
    with pytest.raises(ValueError, match="labels a, b begin with one token"):
        query_probe(base.model, ROWS[:5], ROWS[:1], {"x": (["a"] * 5, ["b"])}, {"a": 7, "b": 7}, query=2)
    with pytest.raises(ValueError, match="causal = False"):
        linear_probe(make_model(causal=False), ROWS[:5], ROWS[:1], labels)


@pytest.fixture
def run(tmp_path, base_run):
    words = ("Belmora", "Tesk", "Arvania", "Kolden")
    rows = [{"text": f"{words[i % 4]} is {w}", "label": i % 4} for i, w in enumerate(["born", "long", "here"] * 20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_the_command_tells_every_layer(run, capsys):
    assert (
        main(
            [
                "probe",
                str(run / "base"),
                "--data",
                str(run / "rows.jsonl"),
                "--layers",
                "all",
                "--out",
                str(run / "f.json"),
            ]
        )
        == 0
    )
    found = json.loads((run / "f.json").read_bytes())["layers"]
    assert list(found) == ["0", "1", "2", "3", "final"] and found["final"]["rows"] == 12
    assert found["final"]["accuracy"] == 1.0 and found["0"]["accuracy"] < 0.6  # the last word alone does not tell it
    shown = capsys.readouterr()
    assert "block 3" in shown.out and "the most frequent one alone" in shown.err + shown.out


def test_the_command_asks_by_a_query(run, capsys):
    words = [w for w in ("Belmora", "Tesk") for _ in range(20)]
    rows = "".join(json.dumps({"text": f"{w} is here", "label": w}) + "\n" for w in words)
    (run / "words.jsonl").write_text(rows)
    data = str(run / "words.jsonl")
    assert main(["probe", str(run / "base"), "--data", data, "--test", data, "--query"]) == 0
    assert "40 test rows, 2 labels" in "".join(capsys.readouterr())


def test_the_command_refuses_what_it_cannot_use(run, capsys):
    (run / "bad.jsonl").write_text('{"text": "x"}\n')
    assert main(["probe", str(run / "base"), "--data", str(run / "bad.jsonl")]) == 2
    assert "a row needs text and label, and has text" in capsys.readouterr().err
    assert main(["probe", str(run / "base"), "--data", str(run / "rows.jsonl"), "--layers", "all", "--query"]) == 2
    assert "leave one of them out" in capsys.readouterr().err
