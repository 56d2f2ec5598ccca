"""NaN, infinity and loss spikes: the step is not applied, its rows are kept, three in a row stop the run."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as load_tensors
from tiny_runs import ROWS, Run

from fledge.core.checkpoint import list_checkpoints, load_checkpoint
from fledge.core.objectives import weighted_nll
from fledge.core.train import _WINDOW, Guard, Interrupted

BAD = ("weight inf", "weight nan", "advantage nan", "advantage inf", "advantage -inf")


def finite(tensors: dict[str, torch.Tensor]) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("how", BAD)
def test_a_bad_step_is_not_applied_and_its_rows_are_kept(place: Path, how: str, optimizer: str):
    run = Run(place, {3: how, 6: how}, 8, optimizer=optimizer).go()
    assert [step for step in range(1, 9) if not run.changed(step)] == [3, 6]
    for step, row in run.rows.items():
        if step in (3, 6):
            assert row["skipped"] == "nonfinite" and row["ids"] == [100 * step + r for r in range(ROWS)]
        else:
            assert "skipped" not in row and math.isfinite(row["loss"])
    held = load_checkpoint(place)
    assert finite(held.model_tensors()) and finite(held.optimizer_tensors())
    # the optimiser has not seen the bad steps either: it counts six
    counts = {t.item() for n, t in held.optimizer_tensors().items() if n.endswith("/step")}
    assert counts == {6.0}


def test_a_gradient_that_is_not_finite_under_a_finite_loss_is_not_applied(place: Path):
    """The norm is judged too: a loss of 0 * inf slips past no one."""

    def objective(output, batch):
        loss, metrics = weighted_nll(output, batch)
        if batch.ids[0] == 300:
            loss = loss + (output.logp.sum() - output.logp.sum().detach()).abs().sqrt()  # value 0, slope infinite
        return loss, metrics

    run = Run(place, {}, 5).go(objective=objective)
    assert math.isfinite(run.rows[3]["loss"]) and run.rows[3]["skipped"] == "nonfinite"
    assert [step for step in range(1, 6) if not run.changed(step)] == [3]


def test_three_in_a_row_stop_the_run_and_name_rows_and_last_good_checkpoint(place: Path):
    run = Run(place, dict.fromkeys((7, 8, 9), "weight inf"), 20, save_seconds=1e-6)
    with pytest.raises(FloatingPointError) as caught:
        run.go()
    newest = list_checkpoints(place)[-1]
    message = str(caught.value)
    assert f"last good checkpoint: {newest}" in message and "at step 9" in message and "900, 901, 902, 903" in message
    assert [step for step in range(1, 10) if not run.changed(step)] == [7, 8, 9]
    for checkpoint in list_checkpoints(place):
        held = load_checkpoint(checkpoint)
        assert finite(held.model_tensors()) and finite(held.optimizer_tensors())
        assert all(torch.equal(t, run.after[6][n]) for n, t in held.model_tensors().items())
    assert [step for step, row in run.rows.items() if "skipped" in row] == [7, 8, 9], "told also when it stops"
    assert not (place / "done.json").exists()


def test_before_the_first_checkpoint_the_message_says_there_is_none(place: Path):
    with pytest.raises(FloatingPointError, match="last good checkpoint: none yet"):
        Run(place, dict.fromkeys((1, 2, 3), "advantage nan"), 9).go()


def test_two_in_a_row_then_a_good_one_go_on(place: Path):
    run = Run(place, dict.fromkeys((2, 3, 5, 6, 8), "advantage nan"), 9).go()
    assert [step for step in range(1, 10) if not run.changed(step)] == [2, 3, 5, 6, 8]


def test_the_count_of_bad_steps_is_in_the_checkpoint(place: Path):
    """Stopped after two bad steps, resumed, the third stops the run: an interruption forgives nothing."""
    spoiled = dict.fromkeys((4, 5, 6), "weight nan")
    with pytest.raises(Interrupted):
        Run(place, spoiled, 20).go(stop_at=5)
    assert load_checkpoint(place).state["bad_in_a_row"] == 2
    again = Run(place, spoiled, 20)
    with pytest.raises(FloatingPointError, match="at step 6"):
        again.go()
    assert 7 not in again.after


# ---- spikes: steps 1..150 are quiet (a loss of about ln 13), the spoiled one has 50 times the loss

QUIET = {"lr": 1e-5, "schedule": "constant"}


def test_a_spike_is_skipped_once_and_training_goes_on(place: Path):
    run = Run(place, {140: "spike 50"}, 150, **QUIET).go()
    assert [step for step in range(1, 151) if not run.changed(step)] == [140]
    spike = run.rows[140]
    assert spike["skipped"] == "spike" and spike["ids"] == [14000, 14001, 14002, 14003]
    assert spike["loss"] > 20 * run.rows[139]["loss"]


@pytest.mark.parametrize("stop_at", [139, 140, 100])
def test_a_run_interrupted_around_a_spike_equals_the_uninterrupted_one(place: Path, stop_at: int):
    """The window of the last 128 steps is in the checkpoint: a fresh one would let the spike through."""
    whole = Run(place / "whole", {140: "spike 50"}, 150, **QUIET).go()
    with pytest.raises(Interrupted):
        Run(place / "cut", {140: "spike 50"}, 150, **QUIET).go(stop_at=stop_at)
    assert load_checkpoint(place / "cut").step == stop_at
    cut = Run(place / "cut", {140: "spike 50"}, 150, **QUIET).go()
    for name in ("model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"):
        a, b = (list_checkpoints(r.out)[-1] / name for r in (whole, cut))
        assert a.read_bytes() == b.read_bytes(), name
    assert (place / "whole" / "metrics.jsonl").read_bytes() == (place / "cut" / "metrics.jsonl").read_bytes()
    assert "spike" in (place / "cut" / "metrics.jsonl").read_text()


def test_without_the_window_the_spike_would_pass(place: Path):
    """The control of the test above: an interruption that forgets the window changes the result."""
    with pytest.raises(Interrupted):
        Run(place, {140: "spike 50"}, 150, **QUIET).go(stop_at=139)
    run = Run(place, {140: "spike 50"}, 150, **QUIET)
    verdicts = []

    class Forgetful(Guard):
        window = property(lambda self: [], lambda self, value: None)

        def verdict(self, loss: float, norm: float) -> str:
            verdicts.append(super().verdict(loss, norm))
            return verdicts[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fledge.core.train.Guard", Forgetful)
        run.go()
    assert verdicts[0] == "apply"


def test_the_rule_can_be_turned_off_and_judges_nothing_before_its_window_is_full(place: Path):
    run = Run(place / "off", {140: "spike 50"}, 142, spike_sigma=None, **QUIET).go()
    assert run.changed(140)
    run = Run(place / "early", {_WINDOW: "spike 50"}, _WINDOW + 1, **QUIET).go()
    assert run.changed(_WINDOW)


def test_a_lasting_rise_is_not_skipped_for_ever():
    """Skipped values enter the window too, so that a new level becomes the usual one."""
    guard = Guard(8.0)
    for i in range(_WINDOW):
        assert guard.verdict(2.0 + 0.01 * (i % 7), 1.0) == "apply"
    skipped = [guard.verdict(4.0, 1.0) for _ in range(50)].count("spike")
    assert 1 <= skipped < 10


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_the_window_never_holds_a_value_that_is_not_finite(loss: float):
    guard = Guard(8.0)
    for _ in range(3):
        assert guard.verdict(loss, 1.0) == "nonfinite" and guard.verdict(1.0, loss) == "nonfinite"
    assert guard.window == [] and guard.bad_in_a_row == 6
    assert guard.verdict(1.0, 1.0) == "apply" and guard.bad_in_a_row == 0


def test_the_metrics_stay_json_when_a_loss_is_not_a_number(place: Path):
    Run(place, {2: "weight nan"}, 3).go()
    assert '"loss":null' in (place / "metrics.jsonl").read_text()
    assert load_tensors((list_checkpoints(place)[-1] / "model.safetensors").read_bytes())
