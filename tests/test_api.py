"""The command in Python: every verb, the same options and checks, light to import, rows in memory, the stub."""

import asyncio
import importlib
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import typing
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from api_runs import CHATS, LOOP, TEXTS, make_runs

import fledge
from fledge import api, api_stub
from fledge.cli import TABLE, TRAINING, main, parse
from fledge.core.adapters import AdapterConfig
from fledge.core.checkpoint import load_checkpoint
from fledge.core.config import TrainConfig, build
from fledge.core.log import Bar, read_jsonl
from fledge.core.shown import Listing
from fledge.notebook import rows as memory
from fledge.stages import evaluate
from fledge.stages.common import open_model

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(fledge.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory.mktemp("api") / "runs")


# ---- verbs


@pytest.mark.parametrize("verb", TABLE)
def test_every_verb_is_a_function_with_the_options_of_its_command(verb: str):
    name = api.python_name(verb)
    assert name.isidentifier() and name in api.__all__ and name in dir(api)
    function, entry = getattr(api, name), TABLE[verb]
    kind = getattr(importlib.import_module(f"fledge.{entry.module}"), entry.options)
    taken = inspect.signature(function).parameters
    fields = {f.name: f for f in msgspec.structs.fields(kind)}
    extra = {"recipe"} if "recipe" in entry.positional else set()
    extra |= {"track"} if verb in TRAINING else set()
    assert set(taken) == set(fields) | extra
    assert [p.name for p in taken.values() if p.kind is p.POSITIONAL_OR_KEYWORD] == list(entry.positional)
    for field in fields.values():
        assert (taken[field.name].default is inspect.Parameter.empty) is field.required
        if field.default is not msgspec.NODEFAULT:
            assert taken[field.name].default == field.default
        assert re.search(rf"^    {field.name}: .{{10}}", inspect.getdoc(function), re.MULTILINE), field.name
    assert f"`fledge {verb}` in Python" in function.__doc__


def test_names_of_keywords_and_dashes():
    assert (api.python_name("import"), api.python_name("best-of-n")) == ("import_model", "best_of_n")
    with pytest.raises(AttributeError, match="did you mean sft"):
        api.sfft  # noqa: B018
    assert not hasattr(api, "zzz")


def test_help_shows_signature_and_options():
    import pydoc

    told = pydoc.plain(pydoc.render_doc(api.dpo))
    assert re.search(r"^dpo\(recipe: .*= None, \*, out: str, parent: str", told, re.MULTILINE)
    assert "        beta2: AdamW's decay of the gradient's square. [0.95]" in told
    whole = pydoc.plain(pydoc.render_doc(api))
    assert "best_of_n(" in whole and "open_run(" in whole


def test_the_import_is_light_and_so_is_taking_a_verb():
    program = (
        "import sys; from fledge.api import sft, open_run, best_of_n; import fledge.api; dir(fledge.api); repr(sft); "
        "print(sorted({m.split('.')[0] for m in sys.modules} & set(sys.argv[1:])))"
    )
    heavy = ("torch", "numpy", "msgspec", "rich", "tokenizers", "tiktoken", "matplotlib", "pyarrow", "safetensors")
    done = subprocess.run([sys.executable, "-c", program, *heavy], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# ---- options


def captured(monkeypatch, verb: str) -> list:
    """The options that the functions of this verb's module are called with from now on."""
    entry = TABLE[verb]
    module, seen = importlib.import_module(f"fledge.{entry.module}"), []
    monkeypatch.setattr(module, entry.function, seen.append)
    return seen


@pytest.mark.parametrize(
    ("verb", "flags", "args", "given"),
    [
        ("sft", ["--out", "o", "--from", "p", "--chats", "c", "--chats", "d"], (), {"out": Path("o"), "parent": Path("p"), "chats": ["c", Path("d")]}),
        ("sft", ["--out", "o", "--from", "p", "--chats", "c", "--adapter.kind", "dora", "--adapter.rank", "4"], (), {"out": "o", "parent": "p", "chats": "c", "adapter": {"kind": "dora", "rank": 4}}),
        ("sft", ["--out", "o", "--from", "p", "--chats", "c", "--adapter", "lora"], (), {"out": "o", "parent": "p", "chats": "c", "adapter": "lora"}),
        ("dpo", ["--out", "o", "--from", "p", "--votes", "v", "--train.lr", "1e-4"], (), {"out": "o", "parent": "p", "votes": "v", "train": {"lr": 1e-4}}),
        ("pretrain", ["--out", "o", "--text", "t", "--train.steps", "5", "--heldout-every", "none"], (), {"out": "o", "text": ("t",), "train": {"steps": 5}, "heldout_every": None}),
        ("compare", ["a", "b", "--tasks", "x"], ("a", "b"), {"tasks": "x"}),
        ("export", ["r", "--to", "hf", "--out", "o"], ("r",), {"to": "hf", "out": "o"}),
        ("import", ["p", "--out", "o"], ("p",), {"out": "o"}),
        ("convert", ["a", "b", "--to", "text", "--out", "o.jsonl"], (["a", "b"],), {"to": "text", "out": "o.jsonl"}),
        ("best-of-n", ["--out", "o", "--from", "p", "--reward", "task", "--task", "gold"], (), {"out": "o", "parent": "p", "reward": "task", "task": "gold"}),
    ],
)  # fmt: skip
def test_arguments_are_the_flags(verb: str, flags: list[str], args: tuple, given: dict, monkeypatch):
    seen = captured(monkeypatch, verb)
    getattr(api, api.python_name(verb))(*args, **given)
    entry = TABLE[verb]
    kind = getattr(importlib.import_module(f"fledge.{entry.module}"), entry.options)
    assert seen == [parse(entry, kind, list(flags))]


def test_sections_are_dicts_or_settings_and_numbers_may_be_numpys(monkeypatch):
    import numpy

    seen = captured(monkeypatch, "sft")
    api.sft(out="o", parent="p", chats="c", train={"lr": 2e-4, "seed": 3}, epochs=2)
    api.sft(out="o", parent="p", chats="c", train={"lr": numpy.float32(2) * 0 + numpy.float64(2e-4), "seed": numpy.int64(3)}, epochs=numpy.float32(2))  # fmt: skip
    assert seen[0] == seen[1] and seen[0].train == TrainConfig(lr=2e-4, seed=3)
    api.sft(out="o", parent="p", chats="c", train=TrainConfig(lr=1e-5), adapter=AdapterConfig(kind="ia3"))
    assert seen[2].train == TrainConfig(lr=1e-5) and seen[2].adapter == AdapterConfig(kind="ia3")
    assert msgspec.json.decode(msgspec.json.encode(seen[1]))["train"]["seed"] == 3


def test_a_recipe_with_arguments_on_top(tmp_path: Path, monkeypatch):
    seen = captured(monkeypatch, "sft")
    (tmp_path / "r.toml").write_text('out = "o"\nparent = "p"\nchats = "c"\n[train]\nlr = 1e-5\nsteps = 9\n')
    for call in (
        api.sft(tmp_path / "r.toml", train={"steps": 2}),
        api.sft(recipe=tmp_path / "r.toml", train={"steps": 2}),
    ):
        assert call is None
    assert seen[0] == seen[1] and (seen[0].out, seen[0].train.lr, seen[0].train.steps) == ("o", 1e-5, 2)
    curated = captured(monkeypatch, "curate")
    api.curate("crawl", recipe="dclm")  # an option of that name is no file of settings
    assert (curated[0].inputs, curated[0].recipe) == (["crawl"], "dclm")


def test_what_is_wrong_is_told_at_once_as_one_value_error(tmp_path: Path):
    with pytest.raises(ValueError) as told:
        api.pretrain(out=tmp_path / "run", vocab_siez=3, train={"lr": -1.0, "step": 3}, model={"heads": 5.5})
    for part in (
        "did you mean vocab_size?", "did you mean train.steps?", "train.lr = -1.0: must be", "model.heads = 5.5", "text: required"
    ):  # fmt: skip
        assert part in str(told.value), told.value
    with pytest.raises(ValueError, match="--from and --parent are one setting"):
        api.dpo(out="o", parent="a", pairs="p", **{"from": "b"})
    with pytest.raises(TypeError, match="takes 1 positional arguments, 2 were given"):
        api.sft("recipe.toml", "more")
    with pytest.raises(TypeError, match="several values for run"):
        api.export("run", run="run", out="x")
    with pytest.raises(ValueError, match=r"chats = \[3\]: Expected"):
        api.sft(out="o", parent="p", chats=3)
    with pytest.raises(ValueError, match=r"none\.toml does not exist"):
        api.sft(tmp_path / "none.toml")
    with pytest.raises(ValueError, match="settings cannot be used"):
        api.sft(out=tmp_path / "run", chats=CHATS, train={"stepz": 1})
    assert list(tmp_path.iterdir()) == [], "nothing is written before the options are right"


def test_trackers_are_named_for_the_call_alone(monkeypatch):
    seen = []
    monkeypatch.setattr(
        importlib.import_module("fledge.stages.sft"), "run", lambda _: seen.append(os.environ.get("FLEDGE_TRACK"))
    )
    monkeypatch.delenv("FLEDGE_TRACK", raising=False)
    given = {"out": "o", "parent": "p", "chats": "c"}
    for track in ("tensorboard", ["tensorboard", "trackio"], [], None):
        api.sft(**given, track=track)
    assert seen == ["tensorboard", "tensorboard,trackio", "off", None] and "FLEDGE_TRACK" not in os.environ
    with pytest.raises(ValueError, match=r"^track: 'tensorbord' is no tracker"):
        api.sft(**given, track="tensorbord")
    with pytest.raises(ValueError, match="track: unknown key"):
        api.world(out="o", track="tensorboard")


# ---- rows in memory


def test_every_option_that_takes_rows_is_one_of_its_verb():
    for verb, names in memory.TAKES_ROWS.items():
        entry = TABLE[verb]
        fields = getattr(importlib.import_module(f"fledge.{entry.module}"), entry.options).__struct_fields__
        assert set(names) <= set(fields) and (verb in memory.READ or "out" in fields)
        assert "Data" in _stub_function(api.python_name(verb)), verb


def _stub_function(name: str) -> str:
    return re.search(rf"^def {name}\(.*$", api_stub.STUB.read_text("utf-8"), re.MULTILINE)[0]


def test_rows_in_memory_train_what_a_file_of_them_trains(runs: Path, tmp_path: Path):
    import datasets

    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in CHATS))
    table = datasets.Dataset.from_list(CHATS)
    given = {"list": CHATS, "table": table, "stream": table.to_iterable_dataset(), "file": file, "parts": [CHATS[:4], table.select(range(4, 8))]}  # fmt: skip
    weights = {}
    for name, chats in given.items():
        made = api.sft(out=tmp_path / name, parent=runs / "base", chats=chats, train=LOOP)
        weights[name] = (made / "model.safetensors").read_bytes()
    assert len(set(weights.values())) == 1
    (kept,) = (tmp_path / "table" / "given").iterdir()
    assert load_checkpoint(tmp_path / "table").card["recipe"]["chats"] == [str(kept)]
    assert [row["messages"] for row in read_jsonl(kept)] == [row["messages"] for row in CHATS]
    parts = load_checkpoint(tmp_path / "parts").card["recipe"]["chats"]
    assert [len(read_jsonl(Path(p))) for p in parts] == [4, 4]


def test_a_run_from_rows_in_memory_is_resumed_and_other_rows_are_refused(runs: Path, tmp_path: Path, monkeypatch):
    again = {"out": tmp_path / "run", "parent": runs / "base", "train": LOOP}
    first = api.sft(chats=CHATS, **again)
    assert api.sft(chats=list(CHATS), **again) == first, "the same rows are the same run"
    assert api.resume(tmp_path / "run") == first
    with pytest.raises(ValueError, match=r"holds another run; it differs in\n  recipe\.chats: "):
        api.sft(chats=CHATS[:5], **again)


def test_rows_that_no_file_can_hold(runs: Path, tmp_path: Path, capsys):
    import datasets

    odd = [*CHATS, {"messages": {1, 2}}, "no row"]
    api.sft(out=tmp_path / "list", parent=runs / "base", chats=odd, train=LOOP)
    assert "2 row that JSON cannot hold" in capsys.readouterr().err
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_list(CHATS)})
    with pytest.raises(ValueError, match=r"several splits, 'train': give one of them"):
        api.sft(out=tmp_path / "splits", parent=runs / "base", chats=splits, train=LOOP)
    with pytest.raises(ValueError, match="a list of several data sets"):
        api.convert([splits["train"], CHATS], to="messages", out=tmp_path / "x.jsonl")


def test_convert_and_show_read_rows_where_they_are(tmp_path: Path):
    done = api.convert([*CHATS, {"nothing": 1}], to="sharegpt", out=tmp_path / "out.jsonl")
    assert done.rows == 8 and done.rejects["total"] == 1
    assert read_jsonl(tmp_path / "out.jsonl")[0]["conversations"][0] == {"from": "human", "value": "who is ada"}
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]
    views = api.show(CHATS, first=2)
    assert len(views) == 2
    assert "".join(text for text, trained in views[0].tokens if trained) == "ada is here.<|end|>"


# ---- what comes back


def test_results_are_lists_that_show_themselves_and_print_nothing(runs: Path, capsys):
    found = api.runs(runs)
    assert [(r.folder.name, r.stage, r.state, r.step) for r in found] == [
        ("base", "pretrain", "done", 3), ("rm", "reward", "done", 3), ("sft", "sft", "done", 3)
    ]  # fmt: skip
    assert isinstance(found, Listing) and found._repr_html_().count("<tr>") == 4
    tree = api.lineage(runs)
    assert {Path(m.folder).name: m.stage for m in tree} == {"base": "pretrain", "sft": "sft", "rm": "reward"}
    assert "└── " in tree._repr_html_() and "└── " in repr(tree)
    html = api.show(CHATS[:1])._repr_html_()
    assert "background-color" in html and "&lt;|end|&gt;" in html and "<|end|>" not in html
    assert capsys.readouterr().out == ""
    assert main(["runs", str(runs)]) == 0
    printed = capsys.readouterr().out.rstrip().split("\n")
    assert [line.rstrip() for line in printed] == repr(found).split("\n") and len(printed) == 4


def test_eval_and_compare_give_their_figures(runs: Path, tmp_path: Path, capsys):
    pytest.importorskip("lm_eval")
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TEXTS[:6]))
    tasks = [f"bits:{tmp_path / 'held.jsonl'}"]
    results = [api.eval(runs / name, tasks=tasks, out=tmp_path / name / "eval") for name in ("base", "sft")]
    value = results[0][0].metrics["bits_per_byte"]["value"]
    expected = evaluate.bits_per_byte(
        open_model(runs / "base", precision="float32"), [row["text"] for row in TEXTS[:6]]
    )
    assert value == pytest.approx(expected, rel=0.2)
    (gain,) = [
        d for d in api.compare(tmp_path / "base" / "eval", tmp_path / "sft" / "eval") if d.metric == "bits_per_byte"
    ]
    assert gain.a == pytest.approx(value) and gain.documents == 6
    assert results[0]._repr_html_().startswith("<table>") and capsys.readouterr().out == ""


def test_the_page_is_served_where_an_event_loop_runs_as_in_a_notebook(runs: Path, capsys):
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port = trial.getsockname()[1]
    answered = []

    def visit() -> None:
        for _ in range(200):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=60) as page:
                page.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
                answered.append(page.recv(12))
                break
            time.sleep(0.1)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # as Ctrl-C: ends a wait, too

    async def cell() -> None:
        threading.Thread(target=visit).start()
        api.chat(runs / "sft", port=port, open=False)

    loop, before = asyncio.new_event_loop(), signal.signal(signal.SIGINT, signal.default_int_handler)
    try:  # a worker of the test runner would ignore it
        loop.run_until_complete(cell())
    finally:
        signal.signal(signal.SIGINT, before)
        loop.close()
    assert (
        answered and answered[0].startswith(b"HTTP/1.1") and "closed; every vote is stored" in capsys.readouterr().err
    )
    assert api.votes(runs / "sft").votes == 0


# ---- the stub and notebooks


def test_the_stub_is_current_and_loads():
    written = api_stub.STUB.read_text("utf-8")
    assert written == api_stub.stub(), "run `python -m fledge.api_stub`"
    space: dict = {"__name__": "stub"}
    exec(compile(f"from __future__ import annotations\n{written}", "api.pyi", "exec"), space)
    for name, verb in api.VERBS.items():
        entry = TABLE[verb]
        expected = [p.name for p in inspect.signature(getattr(api, name)).parameters.values()]
        twice = typing.get_overloads(SimpleNamespace(__module__="stub", __qualname__=name))
        written_as = [[*inspect.signature(function).parameters] for function in twice or [space[name]]]
        if "recipe" in entry.positional and "recipe" not in api.resolved(verb)[2].__struct_fields__:
            assert written_as == [expected[1:], expected], name
        else:
            assert written_as == [expected], name
    keys = space["TrainConfigDict"].__annotations__
    assert set(keys) == set(TrainConfig.__struct_fields__)
    build(TrainConfig, {"lr": 1e-3})


def test_the_bar_of_a_notebook_is_one_line_that_is_written_over(monkeypatch, capsys):
    from fledge.core import log

    updates = []

    class Line:
        def write(self, text: str) -> None:
            updates.append(text)

    monkeypatch.setattr(log, "NotebookLine", Line)
    monkeypatch.setattr(log.console(), "is_jupyter", True)
    bar = Bar("sft", steps=3)
    for step in (1, 2, 3):
        bar.update(step, 100, {"loss": 1.0})
    bar.close()
    assert updates[-1].startswith("sft: step 3/3  300 tokens") and capsys.readouterr().err == ""
