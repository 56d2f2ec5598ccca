"""`fledge rate` and `fledge export` as they are typed."""

import json
from pathlib import Path

import msgspec
import pytest
from polling import parent_of

from fledge.core.checkpoint import save_checkpoint
from fledge.core.config import build
from fledge.feedback import export_command, rate_command
from fledge.feedback.agreement import statistics
from fledge.feedback.export_command import ExportOptions, ImportOptions
from fledge.feedback.rate_command import RateOptions, open_rater
from fledge.feedback.raters import SelfRater
from fledge.feedback.simulated import Simulated
from fledge.feedback.store import Store, store_url
from fledge.tasks.catalog import open_task


def saved(folder: Path, model, tokenizer, stage: str) -> str:
    card = {"stage": stage, "parent": None, "model": msgspec.to_builtins(model.config)}
    tensors = dict(model.named_parameters())
    save_checkpoint(folder, 10, model=tensors, optimizer={}, state={}, card=card, tokenizer=tokenizer.json)
    return str(folder)


@pytest.fixture(scope="module")
def family(tmp_path_factory, make_model, tokenizer) -> dict[str, str]:
    """A chat model and a reward model, both random."""
    folder = tmp_path_factory.mktemp("family")
    shape = {"spread": 0.2, "vocab_size": tokenizer.vocab_size, "context_tokens": 96}
    return {
        "sft": saved(folder / "sft", make_model(**shape), tokenizer, "sft"),
        "reward": saved(folder / "reward", make_model(head="reward", **shape), tokenizer, "reward"),
    }


@pytest.fixture
def rate(family, tmp_path):
    """rate(rater, **options) -> what was collected, in a store of this test."""

    def call(rater: str, **over):
        given = {"run": family["sft"], "rater": rater, "count": 6, "store": str(tmp_path / "votes.db")}
        return rate_command.run(build(RateOptions, given | {"sampling": {"max_tokens": 8, "temperature": 1.0}} | over))

    return call


def stats(tmp_path):
    with Store.open(store_url(tmp_path, str(tmp_path / "votes.db")), read_only=True) as store:
        return statistics(store)


def test_gold_of_a_task(rate, tmp_path, capsys):
    found = rate("gold", task="arithmetic:1", noise=0.1)
    assert found.votes["thumb"] == found.votes["score"] == found.votes["edit"] == 6
    (person,) = stats(tmp_path).raters
    assert (person.kind, person.name) == ("simulated", "gold noise=0.1 bias=0 ties=0 seed=0")
    assert "new" in capsys.readouterr().err
    assert rate("gold", task="arithmetic:1", noise=0.1).new == 0


def test_gold_of_the_world_edits_with_ideal_answers(rate, tmp_path):
    rate("gold", task="gold:quick", kinds=["edit", "pair"])
    with Store.open(store_url(tmp_path, str(tmp_path / "votes.db")), read_only=True) as store:
        edits = [store.draft(v.edit_draft_id) for v in store.votes() if v.kind == "edit"]
    task = open_task("gold:quick")
    asked = {example.prompt[0]["content"]: example for example in task.examples("train")}
    scores = [task.score(asked[draft.messages[0].content], draft.text) for draft in edits]
    assert len(edits) == 6 and min(scores) >= 3


def test_own_prompts_own_rule_and_exact(rate, tmp_path):
    (tmp_path / "rules.py").write_text("def short(example, answer):\n    return len(answer) < 20\n")
    rows = [{"prompt": f"question {n}", "answer": "yes"} for n in range(5)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = str(tmp_path / "prompts.jsonl")
    rate(f"{tmp_path}/rules.py:short", prompts=prompts, kinds=["thumb,score"])
    rate("exact", prompts=prompts, kinds="edit")
    rule, exact = stats(tmp_path).raters
    assert (rule.kind, rule.kinds) == ("rule", {"score": 6, "thumb": 6})
    assert (exact.kind, exact.kinds) == ("simulated", {"edit": 6})


def test_a_reward_model_and_the_model_itself(rate, family, tmp_path):
    rate(family["reward"], task="arithmetic:1")
    rate("self", task="arithmetic:1")
    rate(family["reward"], task="arithmetic:1", noise=0.2)
    assert [r.kind for r in stats(tmp_path).raters] == ["reward", "self", "simulated"]
    assert {a.kind: a.raters for a in stats(tmp_path).agreement} == {"pair": 3, "thumb": 3, "score": 3}


def test_votes_lie_beside_the_run_unless_told_otherwise(family, tmp_path, make_model, tokenizer):
    run = saved(tmp_path / "run", make_model(vocab_size=tokenizer.vocab_size, context_tokens=96), tokenizer, "sft")
    options = {"run": run, "task": "arithmetic:1", "kinds": "thumb", "count": 2, "sampling": {"max_tokens": 4}}
    rate_command.run(build(RateOptions, options))
    assert (tmp_path / "run" / "votes.sqlite3").exists()


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"kinds": ["stars"]}, "kinds = stars: must be of pair, thumb, score, edit"),
        ({"noise": 1.2}, "noise = 1.2: must be a probability"),
        ({"position_bias": -1}, "position_bias = -1.0: must be a probability"),
        ({"tie_band": -0.1}, "tie_band = -0.1: must be at least 0"),
        ({"count": 0}, "count = 0: must be at least 1"),
        ({"rater": "self", "noise": 0.1}, "rater self: noise, position_bias and tie_band belong"),
        ({"task": "world", "prompts": ["x"]}, "task and prompts: set one of them"),
    ],
)
def test_what_cannot_be_used_is_said_before_any_work(over, message):
    with pytest.raises(ValueError, match=message):
        build(RateOptions, {"run": "nowhere", **over})


def test_unknown_raters_and_models_without_answers(rate, family, tmp_path):
    with pytest.raises(ValueError, match="no such reward and no such folder"):
        rate("golden", task="arithmetic:1")
    with pytest.raises(ValueError, match="is a reward model: it writes no answers"):
        rate("gold", run=family["reward"], task="arithmetic:1")
    with pytest.raises(ValueError, match="belongs to no journey through the embedded world"):
        rate("gold")
    assert not (tmp_path / "votes.db").exists()


def test_errors_need_no_gold(make_model, tokenizer):
    opened = parent_of(make_model(vocab_size=tokenizer.vocab_size), tokenizer)
    task = open_task("arithmetic:1")

    def named(**over):
        return open_rater(build(RateOptions, {"run": "x", "task": "arithmetic:1", **over}), task, opened)

    assert isinstance(named(rater="gold"), Simulated)
    assert named(rater="contains:x").kind == "rule"
    assert isinstance(named(rater="contains:x", position_bias=0.2), Simulated)
    assert isinstance(named(rater="self"), SelfRater)
    assert named(rater="judge:http://localhost:1#m", tie_band=0.0).kind == "judge"


# ---------------------------------------------------------------------------------------------------------------- export


def export(tmp_path, form: str, **over):
    given = {"run": str(tmp_path), "format": form, "out": str(tmp_path / f"{form}.jsonl")}
    return export_command.run(build(ExportOptions, given | {"store": str(tmp_path / "votes.db")} | over))


def test_export_says_what_it_wrote_and_left_out(rate, tmp_path, capsys):
    rate("gold", task="gold:quick", count=20)
    capsys.readouterr()
    written = export(tmp_path, "kto")
    said = capsys.readouterr().err
    assert f"{written.rows} rows from" in said and "up, " in said
    assert len((tmp_path / "kto.jsonl").read_bytes().splitlines()) == written.rows
    late = export(tmp_path, "kto", after=written.last_seq, out=str(tmp_path / "late.jsonl"))
    assert (late.rows, late.first_seq) == (0, written.last_seq + 1)


def test_kto_weights_balance_the_two_kinds(tmp_path, rate, capsys):
    rate("contains:never said", task="arithmetic:1", kinds="thumb", count=5)  # nothing contains it
    export(tmp_path, "kto")
    assert "0 up, 5 down: KTO needs both" in capsys.readouterr().err


def test_an_export_makes_no_store(tmp_path):
    with pytest.raises(ValueError, match="no votes yet"):
        export(tmp_path, "dpo")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"format": "csv"}, "format = 'csv'"),
        ({"after": -1}, "after = -1: must be at least 0"),
        ({"after": 5, "upto": 4}, "upto = 4: must be at least after, 5"),
        ({"split": "dev"}, "split = 'dev'"),
    ],
)
def test_export_options_are_checked(over, message):
    with pytest.raises(ValueError, match=message):
        build(ExportOptions, {"run": "x", "format": "dpo", "out": "y", **over})


def test_votes_come_back_from_elsewhere(rate, tmp_path, capsys):
    rate("gold", task="gold:quick", kinds="pair,score", count=8)
    for form in ("arena", "argilla"):
        export(tmp_path, form)
    given = {"run": str(tmp_path), "files": str(tmp_path / "arena.jsonl"), "store": str(tmp_path / "other.db")}
    rows = [json.loads(line) for line in (tmp_path / "arena.jsonl").read_text("utf-8").splitlines()]
    whole = [
        row for row in rows if all(row[side][-1]["content"].strip() for side in ("conversation_a", "conversation_b"))
    ]
    capsys.readouterr()
    assert export_command.take(build(ImportOptions, given)) == len(whole) > 0
    assert f"{len(whole)} new votes" in capsys.readouterr().err
    assert export_command.take(build(ImportOptions, given)) == 0
    back = given | {
        "files": [str(tmp_path / "argilla.jsonl")],
        "format": "argilla",
        "store": str(tmp_path / "votes.db"),
    }
    assert export_command.take(build(ImportOptions, back)) == 0, "they are known here"
    assert export_command.take(build(ImportOptions, back | {"store": given["store"]})) == 0, "their drafts are not"
    assert "unknown draft" in capsys.readouterr().err
