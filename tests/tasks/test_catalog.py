"""Tasks by name, and the files of `fledge task`."""

import json
from pathlib import Path

import pytest

from fledge.cli import main
from fledge.tasks.arithmetic import Arithmetic
from fledge.tasks.catalog import CATALOG, open_lesson, open_task
from fledge.tasks.gsm8k import Gsm8k
from fledge.tasks.poem import Poem
from fledge.tasks.prompts import PromptFile
from fledge.tasks.strings import CountLetters, Reverse
from fledge.tasks.teach import Teach
from fledge.tasks.worked import WorkedSums
from fledge.tasks.world_tasks import WorldFacts
from fledge.text.formats import read_chats
from fledge.text.readers import Rejects, read_documents


@pytest.mark.parametrize(
    ("name", "kind", "held"),
    [
        ("arithmetic", Arithmetic, {"digits": 2, "operations": "+"}),
        ("arithmetic:3", Arithmetic, {"digits": 3, "operations": "+"}),
        ("arithmetic:2+-*", Arithmetic, {"digits": 2, "operations": "+-*"}),
        ("worked", WorkedSums, {"digits": 3, "operations": "+"}),
        ("worked:2", WorkedSums, {"digits": 2}),
        ("teach", Teach, {}),
        ("poem", Poem, {"lines": 8, "width": 7}),
        ("poem:4x5", Poem, {"lines": 4, "width": 5}),
        ("reverse", Reverse, {"lengths": (3, 6)}),
        ("reverse:4-8", Reverse, {"lengths": (4, 8)}),
        ("count:3-5", CountLetters, {"lengths": (3, 5)}),
        ("world:quick", WorldFacts, {}),
    ],
)
def test_names(name: str, kind: type, held: dict):
    task = open_task(name)
    assert type(task) is kind and {key: getattr(task, key) for key in held} == held
    train, test = task.examples("train"), task.examples("test")
    assert train and test and not {e.id for e in train} & {e.id for e in test}


def test_names_of_files(tmp_path: Path):
    for name in ("a", "b"):
        rows = [{"question": f"{name}{i}?", "answer": f"#### {i}", "prompt": f"{name}{i}"} for i in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    assert isinstance(open_task(f"gsm8k:{a}"), Gsm8k) and len(open_task(f"gsm8k:{a},{b}").examples("test")) == 20
    both = open_task(f"prompts:{a},{b}")
    assert isinstance(both, PromptFile) and sum(len(both.examples(s)) for s in ("train", "test")) == 40
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_task("gsm8k:nowhere.jsonl")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("arithmtic:3", "did you mean arithmetic\\?"), ("zzz", "no task 'zzz': The tasks are\n  arithmetic"),
        ("", "no task ''"), ("poem:8", "'8' is not understood; write poem, poem:4x5"), ("poem:", "not understood"),
        ("arithmetic:2/", "not understood"), ("arithmetic:9", "digits = 9"), ("poem:0x7", "0 lines"),
        ("reverse:9-3", "9 to 3"), ("teach:me", "'me' is not understood"), ("gsm8k", "write gsm8k:FILE"), ("world:slow", "not understood"),
    ],
)  # fmt: skip
def test_names_that_mean_nothing(name: str, said: str):
    with pytest.raises(ValueError, match=said):
        open_task(name)


def test_only_lessons_make_material():
    able = [name for name, entry in CATALOG.items() if entry.teaches]
    assert able == ["arithmetic", "worked", "poem", "reverse", "count"]
    for name in able:
        lesson = open_lesson(name)
        assert next(lesson.texts(1)) and next(lesson.chats(1))
    with pytest.raises(
        ValueError, match=r"'world:quick' makes no training material.*arithmetic, worked, poem, reverse, count"
    ):
        open_lesson("world:quick")


@pytest.mark.parametrize("name", ["arithmetic", "worked:2", "poem:4x5", "reverse", "count"])
def test_the_verb_writes_what_the_stages_read(name: str, tmp_path: Path, capsys):
    out = tmp_path / "deep" / "data"
    options = ["--texts", "30", "--chats", "20", "--wrong", "0.5"]
    assert main(["task", name, "--out", str(out), *options]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["chats.jsonl", "prompts.jsonl", "text.jsonl"]
    rejects, task = Rejects(), open_task(name)
    assert len(list(read_documents([out / "text.jsonl"], rejects=rejects))) == 30
    assert len(list(read_chats([out / "chats.jsonl"], rejects=rejects))) == 20
    prompts = PromptFile(out / "prompts.jsonl")
    assert rejects.total == prompts.rejects.total == 0
    found = {e.prompt[0]["content"]: e.answers for s in ("train", "test") for e in prompts.examples(s)}
    assert found == {e.prompt[0]["content"]: e.answers for e in task.examples("train")}
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert main(["task", name, "--out", str(out), *options]) == 0
    assert before == {p.name: p.read_bytes() for p in out.iterdir()}, "the same name, the same bytes"
    shown = capsys.readouterr()
    assert "text.jsonl: 30 rows" in shown.out + shown.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["arithmtic"], "did you mean arithmetic?"), (["world"], "makes no training material"),
        (["poem", "--wrong", "1.5"], "wrong = 1.5"), (["poem", "--texts", "0", "--chats", "0"], "2 settings"),
        ([], "name: required"),
    ],
)  # fmt: skip
def test_the_verb_refuses(arguments: list[str], said: str, tmp_path: Path, capsys):
    assert main(["task", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
