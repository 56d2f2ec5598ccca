"""`fledge improve` on a model that adds badly: what a round leaves behind, what it refuses, and when it promotes."""

import json
import shutil
import uuid
from pathlib import Path

import pytest
from sums import LOOP, asked, write_rows

from fledge.core.checkpoint import read_serving, resolve, sha256, write_serving
from fledge.core.config import build
from fledge.core.shown import print_result
from fledge.feedback.collecting import collect
from fledge.feedback.raters import UNIT, RewardRater
from fledge.feedback.records import NewVote
from fledge.feedback.rules import TaskReward
from fledge.feedback.simulated import Simulated, accepted_ideal
from fledge.feedback.store import Store, store_url
from fledge.generate.sampling import Sampling
from fledge.resume import ResumeOptions, resume
from fledge.stages import improve, improve_verdict, pretrain
from fledge.stages.common import open_model
from fledge.stages.history import LineageOptions, family, lineage
from fledge.stages.improve import ImproveRecipe
from fledge.stages.prefer import RewardRecipe, run_reward
from fledge.tasks.catalog import open_task

KINDS = ("pair", "thumb", "score", "edit")
GENTLE = {"quiet": True, "gentle": False}


class Near:
    """Sums by how far off an answer is: 1 for the right one, 0 from ten off and for what is no number."""

    @staticmethod
    def score(example, answer: str) -> float:
        return max(0.0, 1 - abs(int(answer) - int(example.answers[0])) / 10) if answer.isdecimal() else 0.0


class Sevens:
    """Somebody who likes a seven in an answer: easily learnt."""

    @staticmethod
    def score(example, answer: str) -> float:
        return float("7" in answer)


def vote(run: Path, count: int = 60, seed: int = 1, kinds=KINDS, gold=None, ideal=accepted_ideal) -> None:
    """Votes by somebody who knows sums, or by another, on the served model's own answers."""
    rater = Simulated(gold or Near(), 0.0, scales=UNIT, ideal=ideal)
    with Store.open(store_url(run)) as store:
        examples = open_task("arithmetic:1").examples("train")[:30]  # the others are left to be asked about
        collect(store, open_model(run), rater, examples, kinds, count, seed, Sampling(temperature=1.0, max_tokens=4))


@pytest.fixture(scope="session")
def voted(parent: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that adds badly, with 60 votes of each kind."""
    run = tmp_path_factory.mktemp("voted") / "sft"
    shutil.copytree(parent, run)
    vote(run)
    return run


@pytest.fixture
def run(voted: Path, tmp_path: Path) -> Path:
    shutil.copytree(voted, tmp_path / "sft")
    return tmp_path / "sft"


@pytest.fixture
def bare(parent: str, tmp_path: Path) -> Path:
    """The same model without votes."""
    shutil.copytree(parent, tmp_path / "bare")
    return tmp_path / "bare"


@pytest.fixture
def sevens(parent: str, tmp_path: Path) -> Path:
    """The model with 60 votes of each kind by somebody who likes sevens."""
    shutil.copytree(parent, tmp_path / "sevens")
    vote(tmp_path / "sevens", gold=Sevens(), ideal=lambda example, subject: "7")
    return tmp_path / "sevens"


def judging(folder: Path, parent: str, better: str, worse: str) -> str:
    """A reward model that scores answers with the digit `better` above those with `worse`."""
    rows = [
        {"prompt": e.prompt, "chosen": f"{lead}{better}", "rejected": f"{lead}{worse}"}
        for e in open_task("arithmetic:1").examples("train") for lead in ("", "1")
    ]  # fmt: skip
    recipe = {
        "out": str(folder / "reward"), "parent": parent, "pairs": [write_rows(folder / "pairs.jsonl", rows)],
        "epochs": 12, "train": {**LOOP, "lr": 3e-3, "batch_tokens": 1024},
    }  # fmt: skip
    run_reward(build(RewardRecipe, recipe), quiet=True)
    return recipe["out"]


@pytest.fixture(scope="session")
def knowing(parent: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return judging(tmp_path_factory.mktemp("for"), parent, "7", "2")


@pytest.fixture(scope="session")
def loathing(parent: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return judging(tmp_path_factory.mktemp("against"), parent, "2", "7")


STRONG = {"sft": {"lr": 3e-3, "epochs": 12.0}, "dpo": {"lr": 1e-5}, "kto": {"lr": 1e-5}}


def recipe(run: Path, **over) -> ImproveRecipe:
    given = {"questions": 40, "answers": 2, "reward": {"epochs": 1.0, "batch_tokens": 512}, "batch_tokens": 512}
    return build(ImproveRecipe, given | {"run": str(run)} | over)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# ------------------------------------------------------------------------------------------------------ what a round is


@pytest.fixture(scope="session")
def round_one(voted: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    run = tmp_path_factory.mktemp("round") / "sft"
    shutil.copytree(voted, run)
    return run, improve.run(recipe(run), **GENTLE)


def test_a_round_goes_from_votes_over_exports_to_a_model_of_the_served_one(round_one):
    run, result = round_one
    folder = run / "rounds" / "001"
    plan = json.loads((folder / "plan.json").read_bytes())
    served = open_model(resolve(plan["served"]))
    assert plan["served_id"] == served.id and (plan["after_seq"], plan["first_seq"], plan["last_seq"]) == (0, 1, 240)
    assert plan["votes"] == {"edit": 60, "pair": 60, "score": 60, "thumb": 60}
    chain = [open_model(folder / stage) for stage in ("sft", "dpo", "kto")]
    assert [m.card["parent"]["id"] for m in chain] == [served.id, chain[0].id, chain[1].id]
    assert result["new"] == {"checkpoint": str(chain[2].path), "id": chain[2].id}
    with Store.open(store_url(run), read_only=True) as store:
        known = {v.id for v in store.votes()}
        for stage in ("sft", "dpo", "kto", "pairs"):
            path = folder / "data" / f"{stage}.jsonl"
            rows = rows_of(path)
            assert rows and all(row["votes"] and known.issuperset(row["votes"]) for row in rows)
            assert sha256(path.read_bytes()) in {e.id for e in store.exports()}


def test_the_verdict_follows_from_the_figures(round_one):
    run, result = round_one
    wins, accuracy = result["win_rate"], result["judge"]["accuracy"]
    better = wins["interval"][0] > 0.5 and accuracy["value"] > 0.55 and accuracy["interval"][0] > 0.5
    assert result["promoted"] == (better and result["regression"] is None) == (result["why_not"] == [])
    assert (read_serving(run) is not None) == result["promoted"]
    assert result == json.loads((run / "rounds/001/result.json").read_bytes())
    answers = rows_of(run / "rounds/001/answers.jsonl")
    assert len(answers) == wins["count"] and {row["points"] for row in answers} <= {0.0, 0.5, 1.0}
    assert sum(row["points"] for row in answers) / len(answers) == pytest.approx(wins["value"])


def test_no_question_of_the_comparison_was_learnt_from_in_the_round(round_one):
    run, result = round_one
    data = run / "rounds" / "001" / "data"
    asked_about = {json.dumps(row["prompt"]) for row in rows_of(data / "prompts.jsonl")}
    for name in ("sft", "dpo", "kto"):
        new = rows_of(data / f"{name}.jsonl")
        learnt = {json.dumps(row["prompt"] if "prompt" in row else row["messages"][:-1]) for row in new}
        assert not learnt & asked_about
    assert result["questions"]["votes set apart"] >= 1


def test_the_family_tree_shows_model_from_export_from_votes(round_one, capsys):
    run, _ = round_one
    models = {Path(m.folder).name: m for m in family(run)}
    assert {"sft", "dpo", "kto", "judge-1", "judge-4"} <= set(models)
    (export,) = models["dpo"].exports
    data = run / "rounds" / "001" / "data"
    assert export.id == sha256((data / "dpo.jsonl").read_bytes()) and export.rows == len(rows_of(data / "dpo.jsonl"))
    print_result(lineage(LineageOptions(run=str(run))))
    printed = capsys.readouterr().out
    assert f"{export.rows} rows for dpo ({export.id[:12]})" in printed and "of the votes 1 to 240" in printed


def test_the_same_round_again_is_the_same_bytes(round_one, run):
    first, _ = round_one
    improve.run(recipe(run), **GENTLE)
    for name in ("sft/checkpoints", "dpo/checkpoints", "kto/checkpoints", "judge-2/checkpoints"):
        one, other = (sorted((r / "rounds/001" / name).glob("*/model.safetensors"))[-1] for r in (first, run))
        assert one.read_bytes() == other.read_bytes(), name
    for name in ("data/sft.jsonl", "data/dpo.jsonl", "data/kto-replay.jsonl", "data/prompts.jsonl", "answers.jsonl"):
        assert (first / "rounds/001" / name).read_bytes() == (run / "rounds/001" / name).read_bytes(), name


def test_resume_finishes_a_round_and_finds_a_finished_one_done(run, monkeypatch, capsys):
    monkeypatch.setattr(improve, "judge_round", lambda *_: (_ for _ in ()).throw(RuntimeError("power cut")))
    with pytest.raises(RuntimeError, match="power cut"):
        improve.run(recipe(run), **GENTLE)
    monkeypatch.undo()
    vote(run, count=10, seed=9)  # people go on voting: the round keeps to its plan
    resume(ResumeOptions(run=str(run / "rounds" / "001")))
    result = json.loads((run / "rounds/001/result.json").read_bytes())
    assert result["votes"]["last_seq"] == 240
    resume(ResumeOptions(run=str(run / "rounds" / "001")))
    assert "nothing to do" in capsys.readouterr().err
    assert json.loads((run / "rounds/001/result.json").read_bytes()) == result


# --------------------------------------------------------------------------------------------------- promoted, next round


def test_a_better_model_is_served_and_the_next_round_replays_its_votes(sevens, knowing):
    result = improve.run(recipe(sevens, **STRONG, judge=knowing), **GENTLE)
    assert result["promoted"], result
    assert resolve(sevens) == Path(result["new"]["checkpoint"]) and open_model(sevens).id == result["new"]["id"]
    last = next(s for s in ("kto", "dpo", "sft") if not result["stages"][s]["skipped"])
    assert [m.folder for m in family(sevens) if m.served] == [str(sevens / "rounds/001" / last)]

    with pytest.raises(ValueError, match="no votes since round 001: `fledge chat`"):
        improve.run(recipe(sevens, **STRONG, judge=knowing), **GENTLE)
    assert not (sevens / "rounds" / "002").exists()

    vote(sevens, seed=2, kinds=("thumb",))  # by somebody who knows sums
    second = improve.run(recipe(sevens, **STRONG, judge=knowing, min_rows=10), **GENTLE)
    plan = json.loads((sevens / "rounds/002/plan.json").read_bytes())
    seen = result["votes"]["last_seq"]
    assert (plan["after_seq"], plan["first_seq"], plan["served_id"]) == (seen, seen + 1, result["new"]["id"])
    assert "rows from new votes, 10 are needed" in second["stages"]["sft"]["skipped"]
    taken = second["stages"]["kto"]
    assert taken["replayed_votes"] == min(taken["rows"], result["stages"]["kto"]["rows"]) > 0
    old = {json.dumps(r["completion"]) for r in rows_of(sevens / "rounds/001/data/kto.jsonl")}
    assert all(json.dumps(r["completion"]) in old for r in rows_of(sevens / "rounds/002/data/kto-replay.jsonl"))


def test_a_kill_between_the_promotion_and_its_record_changes_nothing(sevens, knowing, monkeypatch):
    def killed(*given):
        write_serving(*given)
        raise RuntimeError("killed")

    monkeypatch.setattr(improve, "write_serving", killed)
    with pytest.raises(RuntimeError, match="killed"):
        improve.run(recipe(sevens, **STRONG, judge=knowing), **GENTLE)
    served = read_serving(sevens)
    assert served and not (sevens / "rounds/001/result.json").exists()
    monkeypatch.undo()
    result = improve.run(recipe(sevens, **STRONG, judge=knowing), **GENTLE)
    assert result["promoted"] and result["new"]["id"] == served.id == read_serving(sevens).id
    assert result["old"]["id"] == json.loads((sevens / "rounds/001/plan.json").read_bytes())["served_id"] != served.id


def test_a_refused_round_leaves_the_old_model_and_its_votes_count_again(sevens, loathing):
    before = resolve(sevens)
    result = improve.run(recipe(sevens, **STRONG, judge=loathing), **GENTLE)
    assert not result["promoted"] and result["why_not"][0].startswith("win rate")
    assert resolve(sevens) == before and read_serving(sevens) is None

    with pytest.raises(ValueError, match=r"nothing new since .*001, whose model was refused"):
        improve.run(recipe(sevens, **STRONG, judge=loathing), **GENTLE)
    assert not (sevens / "rounds" / "002").exists()
    improve.run(recipe(sevens, **STRONG | {"sft": {"lr": 1e-5}}, judge=loathing), **GENTLE)  # another setting
    assert json.loads((sevens / "rounds/002/plan.json").read_bytes())["after_seq"] == 0


def test_own_questions_guard_against_forgetting(run, knowing, tmp_path):
    rows = [{"question": f"{a}+1=", "answer": "99"} for a in range(1, 9)]  # nobody answers these: nothing can be lost
    kept = improve.run(
        recipe(run, judge=knowing, regression=write_rows(tmp_path / "questions.jsonl", rows)), **GENTLE
    )["regression"]  # fmt: skip
    assert (kept["measure"], kept["old"], kept["new"], kept["count"]) == ("own questions answered", 0.0, 0.0, 8)
    assert kept["ok"]


def test_text_held_out_when_the_base_was_trained_guards_too(run, knowing, monkeypatch):
    monkeypatch.setattr(improve_verdict, "heldout_texts", lambda base: ["1+1=2", "2+2=4"])
    lost = improve.run(recipe(run, judge=knowing, sft={"lr": 0.3}), **GENTLE)
    kept = lost["regression"]
    assert kept["measure"] == "bits per byte of held-out text" and kept["count"] == 2
    assert kept["new"] > 1.01 * kept["old"] and not kept["ok"] and not lost["promoted"]
    assert any(why.startswith("bits per byte of held-out text") and "+1% is allowed" in why for why in lost["why_not"])


def test_small_losses_do_not_add_up_over_rounds(sevens, knowing, monkeypatch):
    monkeypatch.setattr(improve_verdict, "heldout_texts", lambda base: ["1+1=2", "2+2=4"])
    monkeypatch.setattr(improve_verdict, "MOST_LOSS", 1e9)
    first = improve.run(recipe(sevens, **STRONG, judge=knowing), **GENTLE)
    assert first["promoted"]
    vote(sevens, seed=2, kinds=("thumb",))
    second = improve.run(recipe(sevens, **STRONG, judge=knowing, min_rows=10), **GENTLE)
    assert second["regression"]["old"] == first["regression"]["old"], "of the model before the first round"


def test_own_prompts_are_asked_instead(run, knowing, tmp_path):
    result = improve.run(recipe(run, judge=knowing, prompts=[asked(tmp_path / "own.jsonl", 25)]), **GENTLE)
    assert result["questions"]["own prompts"] >= 1 and "chats it was raised on" not in result["questions"]


# -------------------------------------------------------------------------------------------------------- what is refused


def test_without_votes_nothing_is_made(bare):
    with pytest.raises(ValueError, match="nowhere is no folder: name the run"):
        improve.run(recipe(bare / "nowhere"), **GENTLE)
    with pytest.raises(ValueError, match="no votes yet; `fledge chat`"):
        improve.run(recipe(bare), **GENTLE)
    Store.open(store_url(bare)).close()
    with pytest.raises(ValueError, match="no votes yet: `fledge chat`"):
        improve.run(recipe(bare), **GENTLE)
    assert not (bare / "rounds" / "001").exists()


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"min_votes": 500}, "240 votes yet, 500 are needed"),
        ({"min_rows": 1000}, "too few to learn from:\n  sft: .* rows from new votes, 1000 are needed"),
        ({"judge": "gold"}, "not raised in the embedded world"),
        ({"judge": "nowhere"}, "'nowhere': must be auto, gold, the folder of a reward model"),
        ({"out": "elsewhere"}, "out = elsewhere: a round is .*rounds/NUMBER"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(run, over, said):
    with pytest.raises(ValueError, match=said):
        improve.run(recipe(run, **over), **GENTLE)
    assert [p.name for p in (run / "rounds").iterdir()] == ["lock"]


def test_too_few_choices_for_a_judge_are_told_before_training(bare):
    vote(bare, kinds=("thumb", "score", "edit"), count=40)
    with pytest.raises(ValueError, match=r"there are .* of the 40 it needs: collect choices"):
        improve.run(recipe(bare), **GENTLE)


def test_thumbs_of_one_kind_alone_teach_nothing(bare):
    class Nice:
        score = staticmethod(lambda example, answer: 1.0)

    rater = RewardRater(TaskReward(Nice(), "nice"), scales=UNIT)
    with Store.open(store_url(bare)) as store:
        examples = open_task("arithmetic:1").examples("train")[:30]  # the others are left to be asked about
        collect(store, open_model(bare), rater, examples, ("thumb",), 60, 1, Sampling(max_tokens=4))
    with pytest.raises(ValueError, match=r"kto: all .* are liked, and KTO needs both"):
        improve.run(recipe(bare, judge="nowhere"), **GENTLE)


def test_a_base_model_is_refused(bare, tmp_path):
    model = {"size": "tiny", "layers": 1, "context_tokens": 48}
    text = write_rows(tmp_path / "text.jsonl", [{"text": f"{a}+{b}={a + b}"} for a in range(9) for b in range(9)])
    base = {
        "out": str(tmp_path / "base"),
        "text": [text],
        "vocab_size": 280,
        "model": model,
        "train": {**LOOP, "steps": 2},
    }
    pretrain.run(build(pretrain.PretrainRecipe, base), quiet=True)
    Store.open(store_url(tmp_path / "base")).close()
    with pytest.raises(ValueError, match="serves a pretrain model: improve needs one that answers"):
        improve.run(recipe(tmp_path / "base"), **GENTLE)


def test_another_recipe_in_an_unfinished_round_is_refused(run, monkeypatch):
    monkeypatch.setattr(improve, "train_stages", lambda *_: (_ for _ in ()).throw(RuntimeError("power cut")))
    with pytest.raises(RuntimeError):
        improve.run(recipe(run), **GENTLE)
    with pytest.raises(ValueError, match=r"recipe.seed: 0 there, 5 now"):
        improve.run(recipe(run, seed=5), **GENTLE)


def test_withdrawn_votes_are_not_learnt_from(run):
    with Store.open(store_url(run)) as store:
        edits = [v for v in store.current_votes() if v.kind == "edit"]
        person = edits[0].person_id
        for gone in edits[:15]:
            store.put_vote(person, NewVote(id=str(uuid.uuid4()), kind="retract", vote=gone.id))
    improve.run(recipe(run), **GENTLE)
    learnt = {id for row in rows_of(run / "rounds/001/data/sft.jsonl") for id in row["votes"]}
    assert learnt and not learnt & {v.id for v in edits[:15]}


def test_settings_are_checked_all_at_once():
    with pytest.raises(ValueError) as told:
        build(ImproveRecipe, {"run": "x", "replay": -1, "questions": 3, "dpo": {"lr": -1.0}, "min_votes": 0})
    for part in ("dpo.lr = -1.0", "replay = -1", "questions = 3: must be at least 20", "min_votes = 0"):
        assert part in str(told.value)
