"""The command: quick to start, helpful when misspelt, one message and exit code 2 for whatever a user can mend."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import fledge
from fledge.cli import TABLE, TRAINING, main
from fledge.core.checkpoint import load_checkpoint
from fledge.core.config import struct_of
from fledge.core.log import read_jsonl

HELP_CPU_SECONDS = 0.3
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(fledge.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
FLEDGE = [sys.executable, "-m", "fledge"]
CHATS = [
    {"messages": [{"role": "user", "content": f"who is {name}"}, {"role": "assistant", "content": f"{name} is here."}]}
    for name in ("ada", "bo", "cy", "di", "ed", "flo", "gus", "hal")
]


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/base and runs/sft, made by the verbs; relative names, so that lines stay short."""
    folder = tmp_path_factory.mktemp("cli")
    before = Path.cwd()
    os.chdir(folder)
    try:
        write_rows(folder / "text.jsonl", [{"text": f"ada and bo meet number {i} of the day"} for i in range(60)])
        write_rows(folder / "chats.jsonl", CHATS)
        loop = ["--train.batch_tokens", "256", "--train.threads", "1"]
        shape = ["--vocab_size", "280", "--model.size", "tiny", "--model.layers", "1", "--model.context_tokens", "48"]
        assert (
            main(["pretrain", "--out", "runs/base", "--text", "text.jsonl", "--train.steps", "4", *shape, *loop]) == 0
        )
        sft = ["sft", "--out", "runs/sft", "--parent", "runs/base", "--chats", "chats.jsonl", "--train.steps", "3"]
        assert main([*sft, *loop]) == 0
    finally:
        os.chdir(before)
    return folder


def run(arguments: list[str], folder: Path, given: str | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*FLEDGE, *arguments], cwd=folder, env=ENVIRONMENT, input=given, capture_output=True, text=True, timeout=120
    )


def refusal(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    """What a command says that ends with exit code 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and "Traceback" not in err
    return err


# ---- starting and helping


def test_help_takes_under_a_third_of_a_second_of_cpu():
    def cpu_seconds() -> float:
        child = subprocess.Popen([*FLEDGE, "--help"], env=ENVIRONMENT, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0
        return usage.ru_utime + usage.ru_stime

    best = min(cpu_seconds() for _ in range(3))
    print(f"fledge --help: {best:.3f} s of CPU")
    assert best < HELP_CPU_SECONDS


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["pretrian"], []])
def test_help_and_misspelt_verbs_load_nothing_heavy(arguments: list[str]):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fledge", *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    loaded = set(re.findall(r"\|\s+([\w.]+)$", done.stderr, re.MULTILINE))
    assert "fledge.cli" in loaded
    heavy = ("torch", "rich", "numpy", "msgspec", "tokenizers", "tiktoken", "matplotlib", "pyarrow", "safetensors")
    assert {name for name in loaded if name.split(".")[0] in heavy} == set()


def test_help_lists_every_verb(capsys: pytest.CaptureFixture):
    for arguments in (["--help"], ["-h"], ["help"], []):
        assert main(arguments) == 0
        shown = capsys.readouterr().out
        for name, verb in TABLE.items():
            assert re.search(rf"^  {name} +{re.escape(verb.help)}$", shown, re.MULTILINE)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == fledge.__version__


def _flags(kind: type[msgspec.Struct], prefix: str = "--") -> list[str]:
    found = []
    for field in msgspec.structs.fields(kind):
        inner = struct_of(field.type)
        found += _flags(inner, f"{prefix}{field.name}.") if inner else [prefix + field.name]
    return found


@pytest.mark.parametrize("name", TABLE)
def test_the_help_of_a_verb_names_every_field_with_a_sentence_and_its_default(name: str, capsys: pytest.CaptureFixture):
    verb = TABLE[name]
    kind = getattr(importlib.import_module(f"fledge.{verb.module}"), verb.options)
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: fledge {name} ")
    flags = _flags(kind)
    assert flags
    for flag in flags:
        row = re.search(rf"^  {re.escape(flag)} +(.+) \[(.*)\]$", shown, re.MULTILINE)
        assert row, f"{flag} is not told"
        assert len(row[1]) > 10, f"{flag} has no sentence"
    for flag in re.findall(r"^  (--\S+)", shown, re.MULTILINE):
        assert flag in flags or (flag == "--track" and name in TRAINING)
    assert main([name, "-h"]) == 0


# ---- misspelt and impossible


def test_an_unknown_verb(capsys: pytest.CaptureFixture):
    assert "did you mean `fledge pretrain`?" in refusal(["pretrian"], capsys)
    assert "`fledge --help` lists the verbs" in refusal(["zzzzzz"], capsys)


def test_an_unknown_flag(tmp_path: Path, capsys: pytest.CaptureFixture):
    start = ["pretrain", "--out", str(tmp_path / "run"), "--text", "docs"]
    for flag, meant in (
        ("--train.lerning_rate", None),
        ("--train.step", "train.steps"),
        ("--vocab_siez", "vocab_size"),
        ("--modle.width", "model"),
    ):
        said = refusal([*start, flag, "3"], capsys)
        assert f"{flag[2:].split('.')[0]}" in said and "unknown key" in said
        assert (f"did you mean {meant}?" if meant else "known keys: ") in said, said
    assert not (tmp_path / "run").exists()


def test_every_bad_setting_is_told_at_once_before_any_work(tmp_path: Path):
    """Unknown keys, wrong types and broken rules in one list."""
    bad = {
        "--train.lr": "-1", "--train.batch_tokens": "0", "--train.steps": "1000000000000000000", "--train.warmup": "1.5",
        "--train.threads": "two", "--model.heads": "5", "--train.stepz": "3", "--vocab_size": "3,000",
    }  # fmt: skip
    words = [w for pair in bad.items() for w in pair]
    done = run(["pretrain", "--out", "run", "--text", "nowhere", *words], tmp_path)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert f"error: {len(bad)} settings cannot be used:" in done.stderr, done.stderr
    for flag in bad:
        assert re.search(rf"^  {re.escape(flag[2:])}\b", done.stderr, re.MULTILINE), (flag, done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_values_keep_one_rule(tmp_path: Path, capsys: pytest.CaptureFixture):
    """TOML's: 1_000 and 1e-3 are numbers, 3,000 and "1e-3" in quotes are not; the message names key and type."""
    start = ["pretrain", "--out", str(tmp_path / "run"), "--text", str(tmp_path / "nowhere")]
    assert "train.seed" in refusal([*start, "--train.seed", str(2**70)], capsys)
    for flag, value, type_ in (
        ("--train.steps", "3,000", "int"),
        ("--train.lr", '"1e-3"', "float"),
        ("--train.compile", "no", "bool"),
        ("--train.steps", "2.5", "int"),
    ):
        said = refusal([*start, flag, value], capsys)
        assert flag[2:] in said and f"`{type_}" in said, said
    said = refusal([*start, "--train.steps", "1_000", "--train.lr", "1e-3"], capsys)
    assert "nowhere" in said, "the settings were good; the file is missing"


def test_a_word_that_is_no_option_and_a_recipe_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert "'words': unexpected" in refusal(["pretrain", "recipe.toml", "words"], capsys)
    assert f"recipe {tmp_path / 'none.toml'} does not exist" in refusal(["sft", str(tmp_path / "none.toml")], capsys)
    (tmp_path / "bad.toml").write_text("steps = = 3")
    assert "is not valid TOML" in refusal(["sft", str(tmp_path / "bad.toml")], capsys)
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    assert "is not valid TOML" in refusal(["sft", str(tmp_path / "bad.toml")], capsys)
    assert f"{tmp_path}: Is a directory" in refusal(["sft", str(tmp_path)], capsys)
    assert "required" in refusal(["chat"], capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        ["pretrain", "--out", "run", "--text", "x", "--train", "5", "--train.steps", "3"],
        ["pretrain", "--out", "run", "--text", "x", "--train.steps", "3", "--train", "5"],
        ["pretrain", "--out", "run", "--text", "x", "--train.steps.more", "3"],
        ["pretrain", "--out", "run", "--text", "x", "--train.device", "tpu"],
        ["pretrain", "--out", "run", "--text", "x", "--train.device", "cuda:99"],
        ["pretrain", "--out", "run", "--text", "x", "--train.seed", "-1"],
        ["pretrain", "--out", "run", "--text", "x", "--train.seed", str(2**70)],
        ["pretrain", "--out", "run", "--text", "x", "--model.width", "0"],
        ["pretrain", "--out", "run", "--text", "x", "--train.lr", "nan"],
        ["pretrain", "--out", "run", "--text", "x", "--text", "y", "--out", "z"],
        ["sft", "--out", "run", "--parent", "nowhere", "--chats", "x", "--epochs", "inf"],
        ["sft", "--out", "run", "--parent", "nowhere", "--chats", "x"],
        ["chat", "nowhere", "--sampling.temperature", "-1"],
        ["chat", "nowhere"],
        ["resume", "nowhere"],
        ["runs", "nowhere"],
        ["lineage", "nowhere"],
        ["show", "nowhere.jsonl"],
        ["pretrain", "--"],
        ["pretrain", "--=3"],
    ],
    ids=" ".join,
)
def test_no_bad_input_ends_in_a_traceback(arguments: list[str], tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    refusal(arguments, capsys)


def test_an_error_of_the_system_names_the_file(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(tmp_path)
    said = refusal(["pretrain", "--out", "run", "--text", "nowhere.txt"], capsys)
    assert "nowhere.txt" in said
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "recipe.json").write_text("{torn")
    for verb in ("runs", "lineage"):
        assert "recipe.json" in refusal([verb, "runs"], capsys)
    assert "recipe.json" in refusal(["resume", "runs/a"], capsys)


def test_what_to_type_after_an_interruption(tmp_path: Path, capsys: pytest.CaptureFixture):
    """A stage's own folder, or the journey it belongs to."""
    from fledge.cli import _guarded
    from fledge.core.train import Interrupted

    def stopped() -> None:
        raise Interrupted("stopped at step 3 of 9", tmp_path / "mine" / "base", [15])

    (tmp_path / "mine").mkdir()
    for typed in (tmp_path / "mine" / "base", tmp_path / "mine"):
        assert _guarded(stopped) == 143
        assert f"continue with `fledge resume {typed}`" in capsys.readouterr().err
        (tmp_path / "mine" / "recipe.json").write_text("{}")


# ---- other names of a setting


def test_from_and_votes_are_other_names_of_parent_and_pairs(models: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(models)
    rows = [{"prompt": f"who is {n}", "chosen": f"{n} is here.", "rejected": "no"} for n in ("ada", "bo", "cy")]
    votes = str(write_rows(tmp_path / "votes.jsonl", rows))
    for verb, field in (("dpo", "pairs"), ("reward", "pairs"), ("kto", "votes")):
        out = str(tmp_path / verb)
        assert main([verb, "--votes", votes, "--from", "runs/sft", "--out", out, "--train.steps", "1"]) == 0
        recipe = load_checkpoint(out).card["recipe"]
        assert (recipe["parent"], recipe[field]) == ("runs/sft", [votes])
    assert main(["kto", "--votes", votes, "--votes", votes, "--parent=runs/sft", "--out", str(tmp_path / "two")]) == 0
    assert load_checkpoint(tmp_path / "two").card["recipe"]["votes"] == [votes, votes]


def test_an_alias_serves_only_verbs_that_have_its_field(tmp_path: Path, capsys: pytest.CaptureFixture):
    told = refusal(["world", "--out", str(tmp_path / "run"), "--from", "y"], capsys)
    assert "from: unknown key" in told and "parent" not in told
    assert "votes: unknown key" in refusal(["sft", "--out", "run", "--from", "x", "--chats", "y", "--votes", "z"], capsys)
    assert "pairs: unknown key" in refusal(["kto", "--out", "run", "--from", "x", "--votes", "y", "--pairs", "z"], capsys)
    said = refusal(["dpo", "--out", "run", "--from", "a", "--parent", "b", "--votes", "y"], capsys)
    assert "--from and --parent are one setting: give it once" in said
    assert main(["dpo", "--help"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^  --parent .* Or --from\.", shown, re.MULTILINE)
    assert re.search(r"^  --pairs .* Or --votes\.", shown, re.MULTILINE)
    assert main(["kto", "--help"]) == 0
    assert "Or --votes" not in capsys.readouterr().out


# ---- recipes


def test_a_toml_recipe_with_the_command_line_on_top(models: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.toml").write_text(
        f'out = "run"\ntext = "{models / "text.jsonl"}"\nvocab_size = 280\n'
        '[model]\nsize = "tiny"\nlayers = 1\ncontext_tokens = 32\n'
        "[train]\nsteps = 9\nbatch_tokens = 128\nlr = 2e-3\nthreads = 1\n"
    )
    assert main(["pretrain", "base.toml", "--train.steps", "2", "--model.layers=2"]) == 0
    held = load_checkpoint("run")
    recipe = held.card["recipe"]
    assert held.step == 2 and len(read_jsonl(Path("run/metrics.jsonl"))) == 2
    assert (recipe["train"]["steps"], recipe["train"]["lr"], recipe["train"]["batch_tokens"]) == (2, 2e-3, 128)
    assert (recipe["model"]["layers"], recipe["text"]) == (2, [str(models / "text.jsonl")])


# ---- looking


def test_show_brackets_the_trained_tokens_off_a_terminal(models: Path, capsys: pytest.CaptureFixture):
    assert main(["show", str(models / "chats.jsonl"), "--first", "2"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    blocks = [b for b in shown.split("\n\n") if b.strip()]
    assert len(blocks) == 2
    for block, row in zip(blocks, CHATS, strict=False):
        head, line = block.strip().split("\n", 1)
        trained = re.findall(r"\[(.*?)\]", line)
        assert "".join(trained) == row["messages"][1]["content"] + "<|end|>"
        rest = re.sub(r"\[.*?\]", "", line)
        assert rest == f"<|bos|><|user|>{row['messages'][0]['content']}<|end|><|assistant|>"
        told, total = map(int, re.search(r"(\d+) of (\d+) tokens trained", head).groups())
        assert told == len(trained) < total


def test_show_with_the_tokenizer_of_a_run(models: Path, monkeypatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(models)
    assert main(["show", "chats.jsonl", "--model", "runs/sft", "--first", "1"]) == 0
    assert "[<|end|>]" in capsys.readouterr().out


def test_runs_and_lineage(models: Path, monkeypatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(models)
    assert main(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert table == {"runs/base": ["pretrain", "done", "4"], "runs/sft": ["sft", "done", "3"]}
    assert main(["lineage", "runs"]) == 0
    tree = capsys.readouterr().out
    base, sft = load_checkpoint("runs/base"), load_checkpoint("runs/sft")
    assert re.search(
        rf"── pretrain  runs/base  step 4  {base.id[:12]}\n +└── sft  runs/sft  step 3  {sft.id[:12]}", tree
    )
    assert main(["lineage", "runs/sft"]) == 0
    assert f"{base.id[:12]} (elsewhere)" in capsys.readouterr().out


def test_long_and_odd_folder_names_stay_whole_on_one_line(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    long = tmp_path / ("a [red]name[/] " * 8) / "run"
    shutil.copytree(models / "runs" / "base", long)
    for arguments in (["runs", str(long.parent)], ["lineage", str(long.parent)]):
        assert main(arguments) == 0
        assert str(long) in capsys.readouterr().out


def test_runs_of_an_interrupted_and_of_an_unstarted_run(models: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("half", "new"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "recipe.json").write_bytes((models / "runs/base/recipe.json").read_bytes())
    (tmp_path / "runs" / "half" / "checkpoints" / "step-0000003").mkdir(parents=True)
    (tmp_path / "runs" / "half" / "checkpoints" / ".step-0000009.tmp").mkdir()
    assert main(["runs"]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert table == [["runs/half", "pretrain", "interrupted", "3"], ["runs/new", "pretrain", "not", "started"]]


# ---- talking


def test_chat_answers_piped_lines_and_drops_old_turns_with_a_notice(models: Path):
    lines = [
        "hi",
        "",
        "who is ada",
        "and bo",
        "and cy",
        "and di",
        "/new",
        "ed",
        "x" * 400,
        "who",
        "/quit",
        "never read",
    ]
    done = run(["chat", "runs/sft", "--terminal", "--sampling.max_tokens", "6"], models, "\n".join(lines) + "\n")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "runs/sft" in done.stderr and "/new starts over" in done.stderr
    dropped = [int(n) for n in re.findall(r"the context is full: the oldest (\d+) messages were left out", done.stderr)]
    assert dropped and all(n % 2 == 0 for n in dropped), "question and answer leave together"
    assert "(a new conversation)" in done.stderr
    assert "the last message takes" in done.stderr, "a message longer than the context is told, and the chat goes on"
    answers = 7  # hi, ada, bo, cy, di, ed, who
    assert done.stdout.count("\n") >= answers
    assert "\x1b" not in done.stdout
    again = run(["chat", "runs/sft", "--terminal", "--sampling.max_tokens", "6"], models, "\n".join(lines) + "\n")
    assert again.stdout == done.stdout, "the same seed, the same answers"


def test_chat_ends_with_its_input_and_survives_bytes_that_are_no_text(models: Path):
    done = subprocess.run(
        [*FLEDGE, "chat", "runs/sft", "--terminal", "--sampling.max_tokens", "4"],
        cwd=models, env=ENVIRONMENT, input=b"hi\n\xff\xfe broken\nhi", capture_output=True, timeout=120,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr, done.stderr.decode("utf-8", "replace")
    assert done.stdout.count(b"\n") >= 1


def test_chat_with_a_base_model_says_what_it_is(models: Path, monkeypatch, capsys: pytest.CaptureFixture):
    import io

    monkeypatch.chdir(models)
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n"))
    assert main(["chat", "runs/base", "--terminal", "--sampling.max_tokens", "4", "--sampling.temperature", "0"]) == 0
    assert "this is a base model" in capsys.readouterr().err
