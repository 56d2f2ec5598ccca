"""What a round learns from: the family's older rows, shares of them, and questions nobody learnt an answer to."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from sums import LOOP, write_rows

from fledge.core.config import build
from fledge.feedback.records import NewDraft, NewVote
from fledge.feedback.store import Store, store_url
from fledge.stages import sft
from fledge.stages.common import open_model
from fledge.stages.improve import ImproveRecipe
from fledge.stages.improve_data import (
    ancestors,
    as_example,
    edit_pairs,
    first_of,
    held_out_prompts,
    replay_name,
    rows_of_stage,
    sources,
    world_of,
)
from fledge.tasks.base import user
from fledge.text.messages import Message


@pytest.fixture
def child(parent, tmp_path) -> Path:
    """A model that learnt from an export of votes and from rows learnt again, below the rounds of another run."""
    folder = tmp_path / "rounds" / "001"
    rows = [{"messages": [*user(f"{i}+1="), {"role": "assistant", "content": str(i + 1)}]} for i in range(1, 9)]
    (folder / "data").mkdir(parents=True)
    files = [write_rows(folder / "data" / name, rows) for name in ("sft.jsonl", replay_name("sft"))]
    (folder / "data" / "sft.jsonl.export.json").write_text("{}")
    recipe = {"out": str(folder / "sft"), "parent": parent, "chats": files, "train": {**LOOP, "steps": 1}}
    sft.run(build(sft.SftRecipe, recipe), quiet=True)
    return folder / "sft"


def test_a_family_goes_back_to_the_base(child, parent):
    found = ancestors(open_model(child))
    assert [a.card["stage"] for a in found] == ["sft", "sft", "pretrain"]
    assert found[1].path == open_model(parent).path
    assert first_of(found, child.parents[1]) == open_model(parent).path
    assert world_of(found) is None


def test_a_pruned_forebear_is_found_by_the_newest_of_its_run(child, parent, tmp_path):
    moved = shutil.copytree(child, tmp_path / "copy")
    card = next(moved.glob("checkpoints/*/card.json"))
    held = json.loads(card.read_bytes())
    held["parent"]["path"] = held["parent"]["path"].replace("step-0000100", "step-0000050")
    family = ancestors(SimpleNamespace(path=card.parent, card=held))
    assert family[1].path == open_model(parent).path


def test_a_family_whose_folder_is_gone_ends_there_and_says_so(child, tmp_path, capsys):
    card = {"stage": "sft", "parent": {"id": "x", "path": str(tmp_path / "gone/checkpoints/step-0000001")}}
    assert len(ancestors(SimpleNamespace(path=child, card=card))) == 1
    assert "no longer there: what was learnt before it cannot be replayed" in capsys.readouterr().err


def test_exports_and_what_a_model_was_raised_on_are_told_apart_and_replay_is_not_replayed(child):
    found = sources(ancestors(open_model(child)), "sft")
    assert [p.name for p in found.votes] == ["sft.jsonl"]
    assert [p.name for p in found.raised] == ["chats.jsonl"]
    assert sources(ancestors(open_model(child)), "kto") == ([], [])


def add(store: Store, prompt: str, answer: str, number: int, **vote) -> None:
    person = store.put_person("simulated", "somebody", "service", id="p_somebody")
    new = NewDraft(prompt=(Message("user", prompt),), text=answer, tokens=[1], finish="stop", person=person)
    id = f"{number:08x}-0000-4000-8000-000000000000"
    store.put_vote(person, NewVote(id=id, draft=store.put_draft(new), **vote))


@pytest.fixture
def store(tmp_path):
    """40 edits about forty questions."""
    with Store.open(store_url(tmp_path)) as opened:
        for i in range(40):
            add(opened, f"{i % 9 + 1}+{i // 9 + 1}=", "0", i, kind="edit", text=str(i % 9 + i // 9 + 2))
        yield opened


def options(**over) -> ImproveRecipe:
    return build(ImproveRecipe, {"run": "x", **over})


def test_shares_of_older_rows_are_counted_per_new_row(store, child):
    family, last = ancestors(open_model(child)), store.last_seq()
    rows = rows_of_stage(options(replay=0.1, base_replay=0.5), store, family, "sft", 0, last)
    new = len(rows.new.rows)
    assert 25 < new < 40, "one question in eight is set apart"
    assert (len(rows.older), len(rows.raised)) == (round(0.1 * new), round(0.5 * new))
    again = rows_of_stage(options(replay=0.1, base_replay=0.5), store, family, "sft", 0, last)
    assert rows.older == again.older and rows.raised == again.raised
    assert len(rows_of_stage(options(replay=5), store, family, "sft", 0, last).older) == 8, "all there are"
    none = rows_of_stage(options(replay=0, base_replay=0), store, family, "sft", 0, last)
    assert none.older == none.raised == []


def test_a_stage_with_few_rows_or_one_class_is_left_out_with_its_reason(store, parent):
    family = ancestors(open_model(parent))
    assert rows_of_stage(options(), store, family, "dpo", 0, 40).skipped == "0 rows from new votes, 20 are needed"
    for i in range(40, 80):
        add(store, f"{i}?", "good", i, kind="thumb", value=1)
    skipped = rows_of_stage(options(), store, family, "kto", 40, 80).skipped
    assert skipped.startswith("all ") and skipped.endswith("are liked, and KTO needs both")
    for i in range(80, 84):  # one of four at least is not set apart
        add(store, f"{i}!", "bad", i, kind="thumb", value=-1)
    assert rows_of_stage(options(), store, family, "kto", 0, store.last_seq()).skipped == ""


def test_edits_are_preferences_for_the_judge(store):
    rows = edit_pairs(store, 10, 40)
    assert len(rows) == 30 and rows[0]["rejected"][0]["content"] == "0" and rows[0]["chosen"] != rows[0]["rejected"]
    assert all(len(row["votes"]) == 1 for row in rows)


def test_questions_of_the_comparison_are_set_apart_or_never_voted_on(store, parent):
    family, plan = ancestors(open_model(parent)), SimpleNamespace(last_seq=40)
    rows = held_out_prompts(options(questions=30), store, plan, family)
    learnt = rows_of_stage(options(), store, family, "sft", 0, 40).new.rows
    taught = {json.dumps(row["messages"][:-1]) for row in learnt}
    asked = [json.dumps(row["prompt"]) for row in rows]
    assert len(asked) == len(set(asked)) and not taught & set(asked)
    assert {row["source"] for row in rows} == {"votes set apart", "chats it was raised on"}
    assert rows == held_out_prompts(options(questions=30), store, plan, family)
    assert len(held_out_prompts(options(questions=20), store, plan, family)) <= 20


def test_a_prompt_becomes_an_example_with_an_id_of_its_content():
    one, other = as_example(user("a")), as_example(user("b"))
    assert one.id != other.id and as_example(user("a")).id == one.id and one.prompt == user("a")
