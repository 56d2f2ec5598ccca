"""The same command and seed give the same bytes; looking on changes nothing; other data or another recipe is refused."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from support import FLEDGE, Trainers, assert_same_run, command_line, loop, pretrain_recipe, result_of, write_texts
from tiny_runs import Run

from fledge.core.checkpoint import list_checkpoints, load_checkpoint
from fledge.core.objectives import weighted_nll
from fledge.core.train import Interrupted

STEPS = 60


@pytest.fixture(scope="module")
def whole(memory: Path, trainers: Trainers, text: Path) -> Path:
    trainers.run("stage", memory / "same", verb="pretrain", recipe=pretrain_recipe(text, STEPS))
    return memory / "same" / "run"


def weights(run: Path) -> dict[str, bytes]:
    """The files of the last checkpoint that do not tell the recipe, and the loss curve."""
    kept = ("model.safetensors", "optimizer.safetensors", "state.json", "tokenizer.json", "metrics.jsonl")
    return {name: data for name, data in result_of(run).items() if name.endswith(kept)}


def refused(trainers: Trainers, folder: Path, verb: str, recipe: dict, quick: bool = True) -> str:
    arguments = command_line(verb, recipe)[len(FLEDGE) :]
    ended = trainers.wait(trainers.start("command", folder, arguments=arguments))
    assert (ended.code, ended.step) == (2, 0) and "Traceback" not in ended.said, ended.said
    return ended.said


def test_the_same_command_twice(trainers: Trainers, whole: Path, place: Path, text: Path):
    trainers.run("stage", place, verb="pretrain", recipe=pretrain_recipe(text, STEPS))
    assert_same_run(whole, place / "run")
    for name in ("tokenizer.json", "tokens.bin", "offsets.bin", "store.json"):
        assert (whole / "data" / name).read_bytes() == (place / "run" / "data" / name).read_bytes()


def test_another_seed_gives_other_weights(trainers: Trainers, whole: Path, place: Path, text: Path):
    """The control: the comparison can fail."""
    trainers.run("stage", place, verb="pretrain", recipe=pretrain_recipe(text, STEPS, seed=1))
    one, other = weights(whole), weights(place / "run")
    assert one["step-0000060/model.safetensors"] != other["step-0000060/model.safetensors"]
    assert one["metrics.jsonl"] != other["metrics.jsonl"]


def test_evaluating_sampling_and_logging_between_steps_change_nothing(
    trainers: Trainers, whole: Path, place: Path, text: Path
):
    ended = trainers.run("observed_stage", place, verb="pretrain", recipe=pretrain_recipe(text, STEPS))
    assert "looked 8 times" in ended.said and "observed: step 56/60" in ended.said
    assert_same_run(whole, place / "run")


def test_the_live_line_and_its_timing_change_nothing(trainers: Trainers, place: Path, text: Path):
    """The 20 timed steps before a longer run are taken on a copy."""
    recipe = pretrain_recipe(text, 110)
    for name, quiet in (("loud", False), ("quiet", True)):
        ended = trainers.run("stage", place / name, verb="pretrain", recipe=recipe, quiet=quiet)
        assert ("20-step timing" in ended.said) != quiet
    assert_same_run(place / "loud" / "run", place / "quiet" / "run")


@pytest.mark.parametrize("over", [{"save_seconds": 0.001}, {"save_seconds": 600.0}])
def test_how_often_is_saved_changes_nothing(trainers: Trainers, whole: Path, place: Path, text: Path, over: dict):
    trainers.run("stage", place, verb="pretrain", recipe=pretrain_recipe(text, STEPS, **over))
    assert weights(whole) == weights(place / "run")


def test_each_later_stage_twice(trainers: Trainers, grown: Path, place: Path):
    parent = str(grown / "sft")
    for verb, key, file in (
        ("sft", "chats", "chats.jsonl"),
        ("reward", "pairs", "pairs.jsonl"),
        ("dpo", "pairs", "pairs.jsonl"),
    ):
        recipe = {"out": verb, "parent": parent, key: [str(grown / file)], "train": loop(20)}
        for name in ("one", "two"):
            trainers.run("stage", place / name, verb=verb, recipe=recipe)
        assert_same_run(place / "one" / verb, place / "two" / verb)


def test_resume_of_a_finished_run_does_nothing(trainers: Trainers, whole: Path):
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in whole.rglob("*") if p.is_file()}
    ended = trainers.run("resume", whole.parent, run="run")
    assert ended.step == 0 and "pretrain done, nothing to do" in ended.said
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in whole.rglob("*") if p.is_file()} == before


def test_the_same_command_on_a_finished_run_does_nothing(trainers: Trainers, whole: Path, text: Path):
    before = result_of(whole)
    assert trainers.run("stage", whole.parent, verb="pretrain", recipe=pretrain_recipe(text, STEPS)).step == 0
    assert result_of(whole) == before


@pytest.mark.parametrize("stop_at", [1, 7])
def test_random_numbers_drawn_inside_a_step_go_on_where_they_were(place: Path, stop_at: int):
    """Torch's generator is part of the checkpoint: an objective that draws, as dropout does, resumes exactly."""

    def noisy(output, batch):
        loss, metrics = weighted_nll(output._replace(logp=output.logp * (torch.rand(output.logp.shape) > 0.3)), batch)
        return loss, metrics

    whole = Run(place / "whole", {}, 12).go(objective=noisy)
    with pytest.raises(Interrupted):
        Run(place / "cut", {}, 12).go(objective=noisy, stop_at=stop_at)
    torch.rand(1000)  # what else the process may have drawn
    cut = Run(place / "cut", {}, 12).go(objective=noisy)
    assert result_of(whole.out, recipe=False) == result_of(cut.out, recipe=False)


# ---- what must be refused


def test_another_recipe_in_the_same_folder_is_refused_listing_the_differences(
    trainers: Trainers, whole: Path, text: Path
):
    recipe = pretrain_recipe(text, STEPS, lr=0.002)
    recipe["model"] |= {"width": 96, "heads": 6}
    before = result_of(whole)
    said = refused(trainers, whole.parent, "pretrain", recipe)
    for line in (
        "recipe.model.width: None there, 96 now",
        "recipe.model.heads: None there, 6 now",
        "recipe.train.lr: 0.004 there, 0.002 now",
    ):
        assert line in said
    assert said.count(" there, ") == 3 and "Choose another --out" in said and "fledge resume run" in said
    assert result_of(whole) == before


def test_another_stage_in_the_same_folder_is_refused(trainers: Trainers, grown: Path, place: Path):
    shutil.copytree(grown / "base", place / "run")
    recipe = {"out": "run", "parent": str(grown / "base"), "chats": [str(grown / "chats.jsonl")], "train": loop(5)}
    assert "stage: 'pretrain' there, 'sft' now" in refused(trainers, place, "sft", recipe)


def _interrupt(trainers: Trainers, folder: Path, verb: str, recipe: dict) -> Path:
    """A run killed in the middle, with a checkpoint."""
    trainers.kill("stage", folder, verb=verb, recipe=recipe, step=20, after_seconds=0)
    run = folder / recipe["out"]
    assert list_checkpoints(run)
    return run


def _resume_refused(trainers: Trainers, run: Path) -> str:
    before = {c: load_checkpoint(c).id for c in list_checkpoints(run)}
    ended = trainers.wait(trainers.start("command", run.parent, arguments=["resume", run.name]))
    assert (ended.code, ended.step) == (2, 0) and "Traceback" not in ended.said, ended.said
    assert {c: load_checkpoint(c).id for c in list_checkpoints(run)} == before
    return ended.said


@pytest.mark.parametrize(("verb", "key"), [("sft", "chats"), ("dpo", "pairs"), ("reward", "pairs")])
def test_data_of_equal_size_changed_after_a_checkpoint_is_refused(
    trainers: Trainers, grown: Path, place: Path, verb: str, key: str
):
    data = place / "data.jsonl"
    shutil.copy(grown / f"{key}.jsonl", data)
    recipe = {"out": "run", "parent": str(grown / "sft"), key: [str(data)], "train": loop(60, save_seconds=0.01)}
    run = _interrupt(trainers, place, verb, recipe)
    rows = data.read_text().splitlines(keepends=True)
    rows[5], rows[6] = rows[6], rows[5]  # the same bytes in another order
    data.write_text("".join(rows))
    assert data.stat().st_size == (grown / f"{key}.jsonl").stat().st_size
    said = _resume_refused(trainers, run)
    assert "the data changed since the checkpoint" in said and "restore the data" in said
    shutil.copy(grown / f"{key}.jsonl", data)
    trainers.run("resume", place, run="run")


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.bin", "tokenizer.json"])
def test_a_changed_token_store_is_refused(trainers: Trainers, place: Path, text: Path, name: str):
    run = _interrupt(trainers, place, "pretrain", pretrain_recipe(text, 200, save_seconds=0.01))
    path = run / "data" / name
    data = path.read_bytes()
    if name == "tokenizer.json":  # another vocabulary of equal size that still reads
        changed = data.replace(b'"#"', b'"@@"').replace(b'"@"', b'"#"').replace(b'"@@"', b'"@"')
    else:
        changed = data[:8] + data[16:24] + data[16:]
    assert changed != data and len(changed) == len(data)
    path.write_bytes(changed)
    said = _resume_refused(trainers, run)
    assert str(Path("run", "data")) in said
    assert ("tokenizer" if name == "tokenizer.json" else "is damaged") in said
    path.write_bytes(data)
    trainers.run("resume", place, run="run")


def test_the_text_may_change_once_it_is_tokenized(trainers: Trainers, whole: Path, place: Path, text: Path):
    """The store holds what is read, so that a run goes on by the text it began with."""
    changing = place / "text.jsonl"
    shutil.copy(text, changing)
    recipe = pretrain_recipe(changing, STEPS)
    trainers.kill("stage", place / "cut", verb="pretrain", recipe=recipe, step=20, after_seconds=0)
    write_texts(changing, seed=9)
    trainers.run("resume", place / "cut", run="run")
    assert weights(place / "cut" / "run") == weights(whole)


def test_a_parent_that_trained_on_is_refused(trainers: Trainers, grown: Path, place: Path):
    """DPO interrupted, its parent trained further, DPO resumed: another reference would be measured against."""
    parent = place / "sft"
    recipe = {
        "out": "sft",
        "parent": str(grown / "base"),
        "chats": [str(grown / "chats.jsonl")],
        "train": loop(200, save_seconds=0.01),
    }
    trainers.kill("stage", place, verb="sft", recipe=recipe, step=10, after_seconds=0)
    dpo = {
        "out": "run",
        "parent": str(parent),
        "pairs": [str(grown / "pairs.jsonl")],
        "train": loop(60, save_seconds=0.01),
    }
    run = _interrupt(trainers, place, "dpo", dpo)
    old = load_checkpoint(parent).id
    trainers.kill("resume", place, run="sft", step=60, after_seconds=0)
    new = load_checkpoint(parent).id
    assert new != old
    said = _resume_refused(trainers, run)
    assert old[:12] in said and new[:12] in said and str(parent) in said


def test_resume_from_another_working_folder_is_refused_where_it_would_train_elsewhere(
    trainers: Trainers, place: Path, text: Path
):
    run = _interrupt(trainers, place / "here", "pretrain", pretrain_recipe(text, 200, save_seconds=0.01))
    ended = trainers.wait(trainers.start("command", place / "there", arguments=["resume", str(run)]))
    assert (ended.code, ended.step) == (2, 0)
    assert f"started as --out run, which from here is {place / 'there' / 'run'}" in ended.said
    assert os.listdir(place / "there") == []


def test_a_recipe_edited_after_a_checkpoint_is_refused_listing_the_difference(
    trainers: Trainers, place: Path, text: Path
):
    run = _interrupt(trainers, place, "pretrain", pretrain_recipe(text, 200, save_seconds=0.01))
    held = (run / "recipe.json").read_text()
    (run / "recipe.json").write_text(held.replace('"weight_decay":0.1', '"weight_decay":0.3'))
    said = _resume_refused(trainers, run)
    assert "train.weight_decay: 0.1 there, 0.3 now" in said and said.count(" there, ") == 1
    (run / "recipe.json").write_text(held.replace('"weight_decay"', '"weight_decaz"'))
    assert "recipe.json" in _resume_refused(trainers, run)
    (run / "recipe.json").write_text(held)
    trainers.run("resume", place, run="run")


def test_a_cut_log_is_refused(trainers: Trainers, place: Path, text: Path):
    run = _interrupt(trainers, place, "pretrain", pretrain_recipe(text, 200, save_seconds=0.01))
    log = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(log[:100])
    said = _resume_refused(trainers, run)
    assert "metrics.jsonl has 100 bytes" in said
    assert (run / "metrics.jsonl").read_bytes() == log[:100]


def test_a_tokenizer_that_does_not_fit_the_embedding_is_refused_with_both_numbers(
    trainers: Trainers, grown: Path, place: Path
):
    from fledge.core.checkpoint import save_checkpoint
    from fledge.stages.common import open_model
    from fledge.text.tokenizer import Tokenizer

    found = load_checkpoint(grown / "base")
    other = Tokenizer.train(["some other words"], 270)
    save_checkpoint(
        place / "base", 1, model=found.model_tensors(), optimizer={}, state={}, card=found.card, tokenizer=other.json
    )
    with pytest.raises(ValueError, match=f"tokenizer has {other.vocab_size} tokens, the embedding 300 rows"):
        open_model(place / "base")
    assert json.loads((grown / "base" / "recipe.json").read_text())["recipe"]["vocab_size"] == 300
