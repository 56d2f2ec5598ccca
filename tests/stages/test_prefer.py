"""The stages that learn from preferences, on tiny models: first loss, ties, votes, references, resuming bit for bit."""

import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from fledge.core.checkpoint import load_checkpoint
from fledge.core.config import build
from fledge.core.log import read_jsonl
from fledge.core.train import Interrupted
from fledge.resume import ResumeOptions, resume
from fledge.stages import prefer, pretrain
from fledge.text.pairs import ThumbSource

NAMES = ("ada", "bo", "cy", "di", "ed", "flo", "gus", "hal")
LOOP = {"batch_tokens": 128, "threads": 1, "lr": 1e-3, "precision": "float32"}


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def pair(name: str, **extra) -> dict:
    return {"prompt": f"who is {name}", "chosen": f"{name} is here.", "rejected": f"no {name}, go away!", **extra}


def vote(name: str, liked: bool) -> dict:
    answer = f"{name} is here." if liked else "go away!"
    return {"prompt": f"who is {name}", "completion": answer, "label": liked}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs base, other (the same tokenizer, other weights), short (a smaller context), foreign (another tokenizer)."""
    folder = tmp_path_factory.mktemp("prefer")
    text = [{"text": f"ada and bo meet number {i} of the day, who is here? go away!"} for i in range(60)]
    write_rows(folder / "text.jsonl", text)
    write_rows(folder / "foreign.jsonl", [{"text": f"zebra quilt {i} jumps vexed over foxes"} for i in range(60)])

    def make(name: str, context: int = 48, text: str = "text.jsonl", seed: int = 0) -> None:
        recipe = {
            "out": str(folder / name), "text": [str(folder / text)], "vocab_size": 280,
            "model": {"size": "tiny", "layers": 1, "context_tokens": context},
            "train": {**LOOP, "steps": 3, "seed": seed},
        }  # fmt: skip
        pretrain.run(build(pretrain.PretrainRecipe, recipe), quiet=True)

    make("base")
    make("other", seed=1)
    make("short", context=24)
    make("foreign", text="foreign.jsonl")
    return folder


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    votes = [vote(name, liked) for name in NAMES for liked in (True, False)]
    return {
        "pairs": write_rows(tmp_path / "pairs.jsonl", [pair(name) for name in NAMES]),
        "ties": write_rows(tmp_path / "ties.jsonl", [pair(name, tie=name < "d", margin=1.0) for name in NAMES]),
        "votes": write_rows(tmp_path / "votes.jsonl", votes),
        "uneven": write_rows(tmp_path / "uneven.jsonl", votes[::2] + votes[1:4:2]),  # 8 liked, 2 disliked
        "likes": write_rows(tmp_path / "likes.jsonl", votes[::2]),
        "dislikes": write_rows(tmp_path / "dislikes.jsonl", votes[1::2]),
        "one prompt": write_rows(tmp_path / "one.jsonl", [vote("ada", True), vote("ada", False)]),
    }


RUN = {
    "reward": (prefer.RewardRecipe, prefer.run_reward),
    "dpo": (prefer.DpoRecipe, prefer.run_dpo),
    "kto": (prefer.KtoRecipe, prefer.run_kto),
}


def run(stage: str, out: Path, models: Path, **recipe) -> tuple[Path, list[dict]]:
    """The last checkpoint and the log."""
    kind, work = RUN[stage]
    train = {**LOOP, "steps": 4, **recipe.pop("train", {})}
    made = build(kind, {"out": str(out), "parent": str(models / "base"), "train": train, **recipe})
    return work(made, quiet=True), read_jsonl(out / "metrics.jsonl")


# ------------------------------------------------------------------------------------------------- what they learn


def test_dpo_begins_at_exactly_ln_2_and_learns(models, files, tmp_path):
    last, log = run("dpo", tmp_path / "run", models, pairs=[files["pairs"]], train={"steps": 30})
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert log[-1]["loss"] < 0.6 and log[-1]["accuracy"] == 1.0
    assert load_checkpoint(last).card["data"]["reference"] == load_checkpoint(models / "base").id


@pytest.mark.parametrize(("loss", "first"), [("sigmoid", math.log(2)), ("ipo", 1 / (2 * 2.0) ** 2)])
def test_ties_keep_their_answers_together(models, files, tmp_path, loss, first):
    last, log = run("dpo", tmp_path / "run", models, pairs=[files["ties"]], loss=loss, beta=2.0, train={"steps": 30})
    assert log[0]["loss"] == pytest.approx(first, abs=1e-5)
    assert log[-1]["loss"] < first
    assert load_checkpoint(last).card["data"]["ties"] == 3
    # 5 of 8 pairs can be won; a tie counts half however the answers stand
    assert sum(row["accuracy"] for row in log[-8:]) / 8 == pytest.approx((5 + 1.5) / 8, abs=0.15)


def test_the_reward_model_reads_ties_and_margins(models, files, tmp_path):
    last, log = run("reward", tmp_path / "run", models, pairs=[files["ties"]], train={"steps": 30})
    assert log[-1]["loss"] < log[0]["loss"]
    data = load_checkpoint(last).card["data"]
    assert data["ties"] == 3 and data["margins"]


def test_a_fresh_reward_model_owes_its_parent_only_the_shape_and_the_tokens(models, files, tmp_path):
    told = {}
    for name, start in (("a", "base"), ("b", "other")):
        recipe = {
            "parent": str(models / start),
            "pairs": [files["pairs"]],
            "fresh": True,
            "train": {**LOOP, "steps": 4},
        }
        last = prefer.run_reward(build(prefer.RewardRecipe, {"out": str(tmp_path / name), **recipe}), quiet=True)
        told[name] = load_checkpoint(last)
    assert told["a"].files["model.safetensors"] == told["b"].files["model.safetensors"]
    assert told["a"].card["parent"] is None
    warm, _ = run("reward", tmp_path / "warm", models, pairs=[files["pairs"]])
    assert load_checkpoint(warm).files["model.safetensors"] != told["a"].files["model.safetensors"]
    with pytest.raises(ValueError, match="fresh with an adapter: random weights would stay frozen"):
        build(
            prefer.RewardRecipe, {"out": "x", "parent": "y", "pairs": ["z"], "fresh": True, "adapter": {"kind": "lora"}}
        )


def test_kto_begins_at_a_half_and_learns_both_classes(models, files, tmp_path, capsys):
    last, log = run("kto", tmp_path / "run", models, votes=[files["votes"]], train={"steps": 40})
    assert log[0]["loss"] == pytest.approx(0.5, abs=1e-6) and log[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert log[-1]["loss"] < 0.45
    late = log[-10:]
    liked = sum(row["liked_reward"] for row in late) / sum(row["liked"] for row in late)
    disliked = sum(row["disliked_reward"] for row in late) / sum(1 - row["liked"] for row in late)
    assert liked > disliked + 0.3 and all(row["kl"] >= 0 for row in log)
    data = load_checkpoint(last).card["data"]
    assert (data["votes"], data["liked"], data["desirable_weight"], data["undesirable_weight"]) == (16, 8, 1.0, 1.0)
    assert "8 liked with weight 1, 8 disliked with 1; balance 1.00" in capsys.readouterr().err


def test_kto_reads_pairs_as_votes(models, files, tmp_path):
    last, _ = run("kto", tmp_path / "run", models, votes=[files["ties"]])
    data = load_checkpoint(last).card["data"]
    assert (data["votes"], data["liked"]) == (10, 5)
    assert data["rejected"]["by_reason"] == {"tie: it says of neither answer whether it was liked": 3}


def test_the_rarer_class_is_weighed_up_and_said(models, files, tmp_path, capsys):
    last, log = run("kto", tmp_path / "run", models, votes=[files["uneven"]], train={"batch_tokens": 400, "steps": 1})
    data = load_checkpoint(last).card["data"]
    assert (data["desirable_weight"], data["undesirable_weight"]) == (1.0, 4.0)
    assert "8 liked with weight 1, 2 disliked with 4; balance 1.00, 1 to 1.33 is advised" in capsys.readouterr().err
    assert log[0]["loss"] == pytest.approx((8 * 1 + 2 * 4) / 2 / 10, abs=1e-6)  # one step holds all ten


@pytest.mark.parametrize(
    ("counts", "given", "weights"),
    [
        ((8, 2), (None, None), (1.0, 4.0)),
        ((2, 8), (None, None), (4.0, 1.0)),
        ((5, 5), (None, None), (1.0, 1.0)),
        ((8, 2), (1.5, None), (1.5, 6.0)),
        ((8, 2), (None, 2.0), (0.5, 2.0)),
        ((8, 2), (1.0, 1.0), (1.0, 1.0)),
        ((8, 0), (1.0, 1.0), (1.0, 1.0)),
    ],
)
def test_class_weights(counts, given, weights):
    assert prefer.class_weights(*counts, *given) == weights


# --------------------------------------------------------------------------------------------------------- reference


def test_another_reference_is_where_the_policy_is_held(models, files, tmp_path):
    for stage, data, start in (("dpo", "pairs", math.log(2)), ("kto", "votes", 0.5)):
        last, log = run(stage, tmp_path / stage, models, **{data: [files[data]]}, reference=str(models / "other"))
        card = load_checkpoint(last).card
        assert card["data"]["reference"] == load_checkpoint(models / "other").id != card["parent"]["id"]
        assert log[0]["loss"] != pytest.approx(start, abs=1e-4)


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_the_reference_is_scored_once_and_kept(models, files, tmp_path, stage, monkeypatch):
    data = {"dpo": {"pairs": [files["pairs"]]}, "kto": {"votes": [files["votes"]]}}[stage]
    run(stage, tmp_path / "run", models, **data)
    (column,) = (tmp_path / "run").glob("reference-*.safetensors")
    again = tmp_path / "again"
    again.mkdir()
    shutil.copy(column, again)
    monkeypatch.setattr(prefer, "column_of_logp", lambda *_: pytest.fail("scored again"))
    run(stage, again, models, **data)


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_a_reference_that_cannot_score_the_same_tokens_is_refused_before_any_work(models, files, tmp_path, stage):
    data = {"dpo": {"pairs": [files["pairs"]]}, "kto": {"votes": [files["votes"]]}}[stage]
    with pytest.raises(
        ValueError, match=r"reference \S+/foreign/\S+ has another tokenizer .* than the parent \S+/base/"
    ):
        run(stage, tmp_path / "run", models, **data, reference=str(models / "foreign"))
    with pytest.raises(ValueError, match=r"reference \S+/short/\S+ reads 24 tokens, the parent \S+/base/\S+ 48"):
        run(stage, tmp_path / "run", models, **data, reference=str(models / "short"))
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("file", "recipe", "said"),
    [
        ("likes", {}, "all 8 votes are liked: .*`fledge sft`, or set both desirable_weight and undesirable_weight"),
        ("dislikes", {"desirable_weight": 1.0}, "all 8 votes are disliked: add liked ones, or set both"),
        ("one prompt", {}, "all 2 votes have the same prompt"),
        ("votes", {"train": {"batch_tokens": 16}}, "train.batch_tokens = 16: a step of KTO would hold 1 vote"),
        ("votes", {"beta": 0.0}, "beta = 0.0: must be finite and > 0"),
        ("votes", {"undesirable_weight": -1.0}, "undesirable_weight = -1.0"),
        ("votes", {"votes": []}, "votes: empty; name at least one file"),
    ],
)
def test_votes_that_cannot_be_learnt_from_are_refused_before_any_work(models, files, tmp_path, file, recipe, said):
    with pytest.raises(ValueError, match=said):
        run("kto", tmp_path / "run", models, **{"votes": [files[file]], **recipe})
    assert not (tmp_path / "run").exists()


def test_one_class_is_trained_on_where_both_weights_say_so(models, files, tmp_path):
    _, log = run("kto", tmp_path / "run", models, votes=[files["likes"]], desirable_weight=1.0, undesirable_weight=1.0)
    assert all(row["liked"] == 1.0 for row in log)


def test_files_without_a_usable_row_are_refused(models, tmp_path):
    empty = write_rows(tmp_path / "rows.jsonl", [pair("ada", tie=True), {"text": "x"}])
    with pytest.raises(ValueError, match=r"(?s)0 usable votes in .*tie: it says of neither answer"):
        run("kto", tmp_path / "run", models, votes=[empty])


# ------------------------------------------------------------------------------------------------------------- resume


def test_kto_stopped_in_the_middle_resumes_bit_for_bit(models, files, tmp_path, monkeypatch):
    whole, wanted = run("kto", tmp_path / "whole", models, votes=[files["votes"]], train={"steps": 12})
    real, calls = ThumbSource.batch, []

    def stop_in_step_5(self, votes):
        calls.append(votes)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, votes)

    monkeypatch.setattr(ThumbSource, "batch", stop_in_step_5)
    with pytest.raises(Interrupted, match="stopped at step 5 of 12"):
        run("kto", tmp_path / "run", models, votes=[files["votes"]], train={"steps": 12})
    resume(ResumeOptions(run=str(tmp_path / "run")))
    assert len(calls) == 12
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl") == wanted
    ours, theirs = (load_checkpoint(path).model_tensors() for path in (tmp_path / "run", whole))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
