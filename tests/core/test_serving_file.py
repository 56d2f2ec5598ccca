"""RUN/serving.json: which checkpoint a run's name means once a model was promoted."""

import json

import pytest
import torch

from fledge.core.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    read_serving,
    resolve,
    save_checkpoint,
    write_serving,
)


def save(run, step):
    tensors = {"a": torch.full((2,), float(step))}
    return save_checkpoint(run, step, model=tensors, optimizer={}, state={}, card={"step": step})


@pytest.fixture
def run(tmp_path):
    """A run at step 3, and another model below it."""
    save(tmp_path / "run", 3)
    save(tmp_path / "run" / "rounds" / "001" / "kto", 9)
    return tmp_path / "run"


def test_without_the_file_the_newest_checkpoint_is_meant(run):
    assert read_serving(run) is None and resolve(run).name == "step-0000003"


def test_a_promoted_model_is_meant_by_the_run_and_stays_so_when_the_run_moves(run, tmp_path):
    promoted = list_checkpoints(run / "rounds/001/kto")[-1]
    write_serving(run, promoted, load_checkpoint(promoted).id)
    assert resolve(run) == run / "rounds/001/kto/checkpoints/step-0000009"
    assert load_checkpoint(run).step == 9
    run.rename(tmp_path / "elsewhere")
    assert load_checkpoint(tmp_path / "elsewhere").step == 9


def test_a_checkpoint_named_by_its_folder_is_itself(run):
    write_serving(run, list_checkpoints(run / "rounds/001/kto")[-1], load_checkpoint(run / "rounds/001/kto").id)
    own = list_checkpoints(run)[-1]
    assert resolve(own) == own


def test_what_is_not_the_checkpoint_that_was_promoted_is_refused(run):
    promoted = list_checkpoints(run / "rounds/001/kto")[-1]
    write_serving(run, promoted, "0" * 64)
    with pytest.raises(ValueError, match=r"names rounds/001/kto/.* where there is .*: restore that checkpoint"):
        resolve(run)
    (promoted / "MANIFEST.json").unlink()
    with pytest.raises(ValueError, match="where there is nothing: restore"):
        resolve(run)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"checkpoint": 3, "id": "x"}', '{"checkpoint": "x"}'])
def test_a_damaged_file_names_itself_and_the_way_out(run, text):
    (run / "serving.json").write_text(text)
    with pytest.raises(ValueError, match=r"serving.json is damaged .*restore it, or delete it"):
        resolve(run)


def test_only_checkpoints_are_served(run):
    with pytest.raises(ValueError, match="is no checkpoint"):
        write_serving(run, run / "rounds", "x")
    assert not (run / "serving.json").exists()


def test_the_file_is_small_and_readable(run):
    promoted = list_checkpoints(run / "rounds/001/kto")[-1]
    write_serving(run, promoted, load_checkpoint(promoted).id)
    held = json.loads((run / "serving.json").read_bytes())
    assert held == {"checkpoint": "rounds/001/kto/checkpoints/step-0000009", "id": load_checkpoint(promoted).id}
