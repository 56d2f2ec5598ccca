"""SliCK: the table of categories, what stands in a prompt, answers read up to their end, and the command on a small model."""

import json
from types import SimpleNamespace

import pytest

from fledge.cli import main
from fledge.core.config import build
from fledge.probe import knowledge as module
from fledge.probe.knowledge import Asking, Known, Question, category_of, few_shot, is_right, knowledge
from fledge.probe.knowledge_command import KnowledgeOptions, read_questions

CAPITALS = [Question(f"capital of {n}?", (f"city {n}",), "capital") for n in "abcdefg"]
RIVERS = [Question(f"river of {n}?", (f"stream {n}",), "river") for n in "abcde"]


def test_the_categories_are_those_of_the_table():
    assert [category_of(*p) for p in ((1.0, 1.0), (1.0, 0.2), (0.1, 0.0), (0.9, 1.0), (0.0, 0.01), (0.0, 0.0))] == [
        "HighlyKnown", "HighlyKnown", "MaybeKnown", "MaybeKnown", "WeaklyKnown", "Unknown"]  # fmt: skip
    assert is_right(" City A.", ["town", "city a"]) and not is_right("city ab", ["city a"])


def test_a_prompt_has_examples_of_the_relation_and_not_the_answer():
    twin = Question("seat of a?", ("City A",), "capital")  # another question with the same answer
    texts = few_shot(CAPITALS[:2], [*CAPITALS, *RIVERS, twin], Asking(prompts=6))
    assert [len(t) for t in texts] == [6, 6] and len(set(texts[0])) > 1
    for text in texts[0]:
        assert text.count("Q: ") == 5 and text.endswith("Q: capital of a?\nA:")
        assert "city a" not in text.casefold() and "river" not in text
    assert few_shot(CAPITALS[:1], [], Asking(shots=0, prompts=1)) == [["Q: capital of a?\nA:"]]
    with pytest.raises(ValueError, match=r"3 examples of the relation 'river'.*4 shots"):
        few_shot(RIVERS[:1], RIVERS[:4], Asking())


def test_greedy_and_sampled_shares(monkeypatch):
    """A model that is greedily right where the first example is about b, and right in every fourth sample."""
    calls = []

    def told(engine, tokenizer, prompts, sampling, samples):
        calls.append((len(prompts), samples, sampling.temperature))
        prompts = [p for p in prompts for _ in range(samples)]
        right = [
            p.startswith("Q: capital of b?") if sampling.temperature == 0 else i % 4 == 0 for i, p in enumerate(prompts)
        ]
        name = [p[-5] for p in prompts]  # "... of a?\nA:"
        return [SimpleNamespace(text=f" City {n}\nQ: more" if ok else " no") for ok, n in zip(right, name, strict=True)]

    monkeypatch.setattr(module, "continue_text", told)
    monkeypatch.setattr(module, "chat_engine", lambda *_: None)
    opened = SimpleNamespace(model=None, tokenizer=None)
    found = knowledge(opened, CAPITALS[:1] + CAPITALS[2:3], CAPITALS, Asking(prompts=8, samples=4))
    assert calls == [(16, 1, 0.0), (16, 4, 0.5)]
    starts = [sum(t.startswith("Q: capital of b?") for t in texts) / 8
              for texts in few_shot(CAPITALS[:1] + CAPITALS[2:3], CAPITALS, Asking(prompts=8))]  # fmt: skip
    assert [k.greedy for k in found] == starts and [k.sampled for k in found] == [0.25, 0.25]
    assert all(k == Known(k.greedy, k.sampled, category_of(k.greedy, k.sampled)) for k in found)


def test_wrong_settings_and_rows_are_told(tmp_path):
    with pytest.raises(ValueError, match="something after the answer"):
        build(Asking, {"form": "{question} {answer}"})
    with pytest.raises(ValueError, match="data: empty"):
        build(KnowledgeOptions, {"run": "r", "data": []})
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "a?", "answer": ["b", "c"], "relation": "r"}\n{"question": "d?", "answer": 3}\n')
    with pytest.raises(ValueError, match="a row needs question and answer"):
        read_questions([str(path)])
    path.write_text('{"question": "a?", "answer": ["b", "c"], "relation": "r"}\n')
    assert read_questions([str(path)]) == [Question("a?", ("b", "c"), "r")]


def test_the_command(tmp_path, capsys):
    from fledge.core.model import Shape
    from fledge.stages import pretrain

    texts = [f"{q.question} {q.answers[0]}. " for q in CAPITALS] * 6
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    recipe = build(pretrain.PretrainRecipe, {
        "out": str(tmp_path / "base"), "text": [str(tmp_path / "text.jsonl")], "vocab_size": 300,
        "train": {"steps": 3, "batch_tokens": 256, "threads": 1, "precision": "float32"},
    })  # fmt: skip
    recipe = type(recipe)(**{f: getattr(recipe, f) for f in recipe.__struct_fields__ if f != "model"},
                          model=Shape(size="tiny", layers=1, context_tokens=128))  # fmt: skip
    pretrain.run(recipe, quiet=True)
    data, out = tmp_path / "q.jsonl", tmp_path / "known.jsonl"
    data.write_text("".join(
        json.dumps({"question": q.question, "answer": q.answers[0], "relation": q.relation}) + "\n" for q in CAPITALS
    ))  # fmt: skip
    words = ["--prompts", "2", "--samples", "2", "--max_tokens", "4", "--count", "3", "--form", "{question} {answer}. "]
    main(["knowledge", str(tmp_path / "base"), "--data", str(data), "--out", str(out), *words])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 3 and {"category", "p_greedy", "p_sampled"} <= set(rows[0])
    assert "HighlyKnown" in capsys.readouterr().out
