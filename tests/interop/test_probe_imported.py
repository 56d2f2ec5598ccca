"""Every probe command on a model that came from `transformers` with its own tokenizer, and from Python."""

import json
from pathlib import Path

import pytest
import torch
from hf_models import make_model, save
from sentences import SENTENCES

from fledge import api
from fledge.cli import main
from fledge.interop.command import ModelImportOptions, import_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the run `qwen`, imported from a Qwen3 of two layers, and rows to ask it about."""
    folder = tmp_path_factory.mktemp("probes")
    save(folder / "model", make_model("qwen3", max_position_embeddings=256).to(torch.float32), SENTENCES * 3)
    import_model(ModelImportOptions(path=str(folder / "model"), out=str(folder / "qwen"), context_tokens=96))
    names = ["Ann", "Bob", "Cid", "Dan"] * 3
    rows = {
        "questions": [{"question": f"Where is {n}?", "answer": f"at {n}", "relation": "place"} for n in "ABCDEF"],
        "prompts": [{"prompt": f"Where is {n}?", "answer": "here"} for n in names[:3]],
        "people": [{"text": f"{n} is here", "label": str(i % 2)} for i, n in enumerate(names)],
    }
    for name, held in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    return folder


def test_shift(folder: Path):
    asked = ["--base", str(folder / "qwen"), "--prompts", str(folder / "prompts.jsonl"), "--out", str(folder / "shift")]
    assert main(["shift", str(folder / "qwen"), *asked, "--max_tokens", "6"]) == 0
    shares = json.loads((folder / "shift/shift.json").read_bytes())["shares"]
    assert shares["unshifted"] == 1.0  # a model is its own first choice


def test_knowledge(folder: Path):
    out = folder / "known.jsonl"
    asked = [
        "--data",
        str(folder / "questions.jsonl"),
        "--prompts",
        "2",
        "--shots",
        "2",
        "--samples",
        "2",
        "--max_tokens",
        "4",
    ]
    assert main(["knowledge", str(folder / "qwen"), *asked, "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 6 and {row["category"] for row in rows} == {"Unknown"}  # random weights know nothing


def test_linear(folder: Path):
    out = folder / "probe.json"
    asked = ["--data", str(folder / "people.jsonl"), "--layers", "all", "--out", str(out)]
    assert main(["probe", str(folder / "qwen"), *asked]) == 0
    assert "0." in out.read_text()


def test_memorise(folder: Path):
    out = folder / "found.json"
    asked = ["--text", "the cat sat on the mat", "--search.steps", "2", "--search.longest", "1", "--out", str(out)]
    assert main(["memorise", str(folder / "qwen"), *asked]) == 0
    row = json.loads(out.read_bytes())["texts"][0]
    assert row["tokens"] > 2 and 0 <= row["recall"]["distance"] <= 1


def test_passk_and_power(folder: Path):
    asked = ["--prompts", str(folder / "prompts.jsonl"), "--max_tokens", "4"]
    assert main(["passk", str(folder / "qwen"), *asked, "--samples", "4", "--out", str(folder / "passk.json")]) == 0
    told = json.loads((folder / "passk.json").read_bytes())
    assert told["questions"] == 3 and set(told["pass"]) == {"1", "2", "4"}
    assert (
        main(["power", str(folder / "qwen"), *asked, "--blocks", "2", "--steps", "2", "--out", str(folder / "p.jsonl")])
        == 0
    )
    assert len((folder / "p.jsonl").read_text().splitlines()) == 3


def test_from_python(folder: Path):
    told = api.passk(str(folder / "qwen"), prompts=[str(folder / "prompts.jsonl")], samples=2, max_tokens=2)
    assert told["questions"] == 3
    assert api.memorise(str(folder / "qwen"), text=["a cat"], recall_only=True)
