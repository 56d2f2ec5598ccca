"""`fledge pretrain` on several texts with weights, epochs and caps, as it is typed; interrupted and continued."""

import json
import os
import signal
from pathlib import Path

import pytest

from fledge.cli import main
from fledge.core.checkpoint import list_checkpoints, load_checkpoint
from fledge.core.config import build
from fledge.core.log import MetricsLog, read_jsonl
from fledge.core.train import Interrupted
from fledge.stages import pretrain
from fledge.stages.pretrain import PretrainRecipe


@pytest.fixture
def texts(tmp_path, sentences) -> list[str]:
    """A long and a short text."""
    paths = []
    for name, count in (("real", 300), ("synth", 80)):
        paths.append(tmp_path / f"{name}.jsonl")
        rows = [{"text": f"{name} {n} {sentences[n % len(sentences)]} {sentences[(n + 3) % 9]}"} for n in range(count)]
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(path) for path in paths]


def recipe(texts: list[str], out: Path, **over) -> PretrainRecipe:
    train = {"batch_tokens": 256, "threads": 1, "device": "cpu"} | over.pop("train", {})
    given = {"out": str(out), "text": texts, "weights": [1, 1], "vocab_size": 400, "heldout_every": 10}
    return build(PretrainRecipe, given | {"model": {"size": "tiny", "context_tokens": 32}, "train": train} | over)


def shares(run: Path) -> list[list[float]]:
    return [[row["rows_of_0"], row["rows_of_1"]] for row in read_jsonl(run / "metrics.jsonl")]


def test_as_typed(texts, tmp_path, capfd):
    out = tmp_path / "run"
    typed = ["pretrain", "--out", str(out), "--vocab-size", "400", "--model.size", "tiny", "--tokens", "10k"]
    flags = "--model.context-tokens 32 --train.batch-tokens 256 --train.threads 1 --heldout-every 9"
    typed += flags.split()
    for text, weight in zip(texts, ("3", "1:0.3x"), strict=True):
        typed += ["--text", text, "--weights", weight]
    assert main(typed) == 0
    said = " ".join(capfd.readouterr().err.split())
    assert "real.jsonl, 75% of the tokens" in said and "synth.jsonl, 25% of the tokens" in said
    assert "reaches its cap about step" in said

    card = load_checkpoint(out).card["data"]
    assert [s["text"] for s in card["sources"]] == texts and card["tokens"] == sum(s["tokens"] for s in card["sources"])
    assert card["documents"] == sum(s["documents"] for s in card["sources"]) == 300 + 80 - 33 - 8
    rows = shares(out)
    assert len(rows) == -(-10_000 // 256) and rows[0] == [6, 2]
    cap = card["sources"][1]["most_rows"]
    assert sum(r[1] for r in rows) == cap and rows[-1] == [8, 0], "the cap is kept, its share goes to the other text"
    ends = next(step for step, row in enumerate(rows, 1) if row[1] < 2)
    assert abs(int(said.split("about step ")[1].split(",")[0]) - ends) <= 1
    held = pretrain.heldout_texts(out)
    assert len(held) == 33 + 8 and held[0].startswith("real") and held[-1].startswith("synth")
    assert main(typed) == 0, "done already: nothing to do"


def test_interrupted_and_continued_it_is_the_run_nobody_disturbed(texts, tmp_path, monkeypatch):
    def settings(name: str) -> PretrainRecipe:
        return recipe(texts, tmp_path / name, weights=[1, "1:0.5x"], train={"steps": 40})

    whole = pretrain.run(settings("whole"), quiet=True)
    write = MetricsLog.write
    for stop_at in (7, 26):  # before and after the cap

        def interrupt(self, row, speed, stop_at=stop_at):
            write(self, row, speed)
            if row["step"] == stop_at:
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(MetricsLog, "write", interrupt)
        with pytest.raises(Interrupted, match="saved in"):
            pretrain.run(settings("cut"), quiet=True)
        assert load_checkpoint(list_checkpoints(tmp_path / "cut")[-1]).step == stop_at
    monkeypatch.setattr(MetricsLog, "write", write)
    cut = pretrain.run(settings("cut"), quiet=True)
    assert (whole / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()
    same = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
    assert same[0] == same[1]
    assert shares(tmp_path / "cut")[0] == [4, 4] and shares(tmp_path / "cut")[-1] == [8, 0]


def test_without_tokens_it_reads_what_the_texts_hold_or_their_caps_allow(texts, tmp_path):
    def steps(name: str, **over) -> tuple[int, dict]:
        path = pretrain.run(recipe(texts, tmp_path / name, **over), quiet=True)
        return load_checkpoint(path).step, load_checkpoint(path).card["data"]

    held, data = steps("held")
    assert held == -(-data["tokens"] // 256)
    capped, data = steps("capped", weights=["1:1k", "1:640"])
    assert capped == -(-(1000 // 32 + 20) // 8) and [s["most_rows"] for s in data["sources"]] == [31, 20]
    assert sum(map(sum, shares(tmp_path / "capped"))) == 51, "the last batch is shorter, no row is read beyond a cap"


def test_what_cannot_be_is_told_before_the_work(texts, tmp_path):
    with pytest.raises(ValueError, match=r"weights = \[1.0\]: must be one per text, and there are 2"):
        recipe(texts, tmp_path, weights=[1])
    for wrong in (0, -1, "nan", "inf", "1:", "1:x", "1:-2x", "1:0x", "1:no", "1:0", "many"):
        with pytest.raises(ValueError, match=f"weights: .*{wrong}.* must be a finite number above 0"):
            recipe(texts, tmp_path, weights=[1, wrong])
    with pytest.raises(ValueError, match=r"100 steps of 8 rows need 25,600 tokens, the caps of the texts leave 3,200"):
        pretrain.run(recipe(texts, tmp_path / "a", weights=["1:1600", "1:1600"], train={"steps": 100}), quiet=True)
    with pytest.raises(ValueError, match=r"real.jsonl: its cap holds no row of 32 tokens"):
        pretrain.run(recipe(texts, tmp_path / "b", weights=["1:20", 1]), quiet=True)
