"""`fledge eval`: tasks without network, their files, and figures that follow from the documents."""

import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from evaluated import save_run
from lm_eval.tasks import TaskManager

from fledge.core.config import build
from fledge.generate.sampling import Sampling
from fledge.interop.eval_command import EvalOptions, TaskResult, file_of, folder_of, ratio_error, run
from fledge.stages.common import open_model
from fledge.stages.evaluate import ask, bits_per_byte
from fledge.tasks.catalog import open_task


@pytest.fixture(scope="module")
def place(tmp_path_factory, make_model, tokenizer, sentences) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    model = make_model(spread=0.15, vocab_size=tokenizer.vocab_size, context_tokens=96)
    save_run(folder / "run", model, tokenizer)
    (folder / "held.jsonl").write_text("".join(json.dumps({"text": s}) + "\n" for s in sentences))
    rows = [{"question": f"What is {n} + 1?", "answer": f"It is one more.\n#### {n + 1}"} for n in range(5)]
    for name in ("train.jsonl", "test.jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def evaluated(place: Path, *tasks: str, **over) -> dict[str, TaskResult]:
    given = {"run": str(place / "run"), "tasks": list(tasks), "device": "cpu"}
    return {result.task: result for result in run(build(EvalOptions, given | over))}


def test_the_world_as_choices_and_cloze(place, capsys):
    found = evaluated(place, "choices:world:quick,cloze:world:quick", limit=30)
    acc = found["choices:world:quick"].metrics["acc"]
    values = [d["acc"] for d in found["choices:world:quick"].documents]
    assert len(values) == 30 and acc["value"] == pytest.approx(np.mean(values)) and acc["higher_is_better"]
    assert acc["stderr"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(30))
    assert found["cloze:world:quick"].metrics.keys() == {"acc", "exact_match"}
    assert "cloze:world:quick" in repr(
        run(
            build(
                EvalOptions,
                {"run": str(place / "run"), "tasks": "cloze:world:quick", "limit": 2, "out": str(place / "two")},
            )
        )
    )
    for result in found.values():
        path = folder_of(place / "run") / file_of(result.task)
        assert msgspec.json.decode(path.with_name(path.name + ".json").read_bytes(), type=TaskResult) == result
    lines = path.with_name(path.name + ".samples.jsonl").read_text().splitlines()
    sample = json.loads(lines[0])
    assert len(lines) == 30 and len(sample["arguments"]) == 4 and sample["doc"]["gold"] in range(4)
    right = sample["doc"]["choices"][sample["doc"]["gold"]].strip()
    world = open_task("world:quick").world
    fact = next(f for f in world.facts if sample["doc"]["id"].startswith(f"{f.id}."))
    assert right in fact.values.values()


def test_chat_and_plain_ask_the_same_documents(place):
    chat = evaluated(place, "choices:world:quick", limit=10)["choices:world:quick"]
    plain = evaluated(place, "choices:world:quick", limit=10, chat=False, out=str(place / "plain"))[
        "choices:world:quick"
    ]
    assert (chat.asked["chat"], plain.asked["chat"]) == (True, False)
    assert [d["key"] for d in chat.documents] == [d["key"] for d in plain.documents]
    sample = json.loads((place / "plain" / f"{file_of(plain.task)}.samples.jsonl").read_text().splitlines()[0])
    context, option = sample["arguments"][0]
    assert context.startswith(("Question: ", "問題：")) and option.startswith(" ") == context.startswith("Question")


def test_bits_per_byte_are_ours(place, sentences):
    task = f"bits:{place / 'held.jsonl'}"
    figure = evaluated(place, task)[task].metrics["bits_per_byte"]
    opened = open_model(place / "run", device="cpu", precision="float32")
    assert figure["stderr"] > 0 and not figure["higher_is_better"]
    total = sum(len(s.encode()) for s in sentences)
    ends = bits_per_byte(opened, sentences)  # counts <eos> too, which the harness does not
    assert figure["value"] == pytest.approx(ends, rel=0.1) and figure["value"] < ends
    assert total > 500


def test_a_task_of_the_catalog_is_scored_by_itself(place):
    found = evaluated(place, "arithmetic:1", limit=8)["arithmetic:1"]
    task = open_task("arithmetic:1")
    asked = {e.id: e for e in task.examples("test")}
    examples = [asked[d["key"]] for d in found.documents]
    opened = open_model(place / "run", device="cpu", precision="float32")
    answers = ask(opened, examples, Sampling(temperature=0.0, max_tokens=48))
    assert [d["score"] for d in found.documents] == [
        task.score(e, a.text) for e, a in zip(examples, answers, strict=True)
    ]
    samples = (folder_of(place / "run") / f"{file_of('arithmetic:1')}.samples.jsonl").read_text().splitlines()
    assert [json.loads(s)["filtered_resps"][0] for s in samples] == [a.text for a in answers]


def test_gsm8k_from_files_with_examples_named_in_yaml(place):
    task = f"gsm8k:{place / 'train.jsonl'},{place / 'test.jsonl'}"
    (place / "tasks.yaml").write_text(f"tasks:\n  - {task}\n  - arithmetic:1\n")
    found = evaluated(place, str(place / "tasks.yaml"), shots=1, limit=3, chat=False)
    assert found.keys() == {task, "arithmetic:1"} and found[task].asked["shots"] == 1
    sample = json.loads((folder_of(place / "run") / f"{file_of(task)}.samples.jsonl").read_text().splitlines()[0])
    assert sample["arguments"][0][0].count("Question:") == 2 and "####" in sample["arguments"][0][0]


def test_the_error_of_a_ratio_is_that_of_its_documents():
    draw = np.random.default_rng(0)
    weight = draw.integers(50, 150, 400).astype(float)
    pairs = np.stack([-weight * draw.normal(1.2, 0.2, 400), weight], 1)
    picked = draw.integers(0, 400, (4000, 400))
    sums = pairs[picked].sum(1)
    drawn = -sums[:, 0] / sums[:, 1] / math.log(2)
    assert ratio_error("bits_per_byte", pairs) == pytest.approx(drawn.std(), rel=0.05)
    assert ratio_error("bits_per_byte", pairs[:1]) is None


def test_names_and_files():
    assert build(EvalOptions, {"run": "r"}).names() == ["choices:own", "cloze:own"]
    given = build(EvalOptions, {"run": "r", "tasks": "gsm8k:a.jsonl,b.jsonl,arc_easy,bits:x.txt"})
    assert given.names() == ["gsm8k:a.jsonl,b.jsonl", "arc_easy", "bits:x.txt"]
    assert file_of("arc_easy") == "arc_easy" and file_of("bits:a") != file_of("bits-a")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"limit": 0}, "limit = 0: must be at least 1"),
        ({"shots": -1}, "shots = -1"),
        ({"precision": "int8"}, "precision = 'int8'"),
        ({"tasks": "nothing.yaml"}, "nothing.yaml does not exist"),
        ({"tasks": "choices:mars"}, "world 'mars': write own"),
        ({"tasks": "choices:own"}, "belongs to no journey"),
        ({"tasks": "bits:gone.txt"}, "gone.txt"),
    ],
)
def test_wrong_settings_are_told(place, given, told):
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        run(build(EvalOptions, {"run": str(place / "run"), "device": "cpu"} | given))


def test_an_unknown_task_is_told_with_those_there_are(place, monkeypatch):
    without_defaults = TaskManager(include_defaults=False)  # reading the harness's own thousands takes 10 s
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda include_defaults: without_defaults)
    with pytest.raises(
        ValueError, match=r"no task 'arithmetik': .*need no network(.|\n)*choices:WORLD(.|\n)*arithmetic:3"
    ):
        evaluated(place, "arithmetik")
