"""S1: the rows of each arm in tokens, the gradients, and the whole at tiny."""

import msgspec
import pytest

from fledge.labs import s01_template as lab
from fledge.labs.bench import Bench
from fledge.labs.s01_template import SCALES, YES, Asked, Lesson, gradients, prompts
from fledge.stages.common import open_model
from fledge.text.formats import Chat, Message
from fledge.text.segments import NOT_TRAINED


@pytest.fixture(scope="module")
def tokenizer(little_journey):
    return open_model(Bench(little_journey, little_journey, 0, "tiny").journey() / "base").tokenizer


@pytest.fixture(scope="module")
def lesson(world) -> Lesson:
    return Lesson(world, SCALES["tiny"], 0)


def trained(row) -> list[int]:
    assert all(label in (token, NOT_TRAINED) for token, label in zip(row["input_ids"], row["labels"], strict=True))
    return [label for label in row["labels"] if label != NOT_TRAINED]


def test_the_test_is_about_what_no_conversation_mentions(lesson):
    learned = {a.fact.entity for a in [*lesson.questions, *lesson.confirmations]}
    learned |= {f.entity for d in lesson.dialogues for f in d.facts}
    tested = {a.fact.entity for a in lesson.tests} | {f.entity for d in lesson.test_dialogues for f in d.facts}
    assert learned and tested and not learned & tested
    assert len(lesson.questions) == 60 and len(lesson.tests) == 12
    assert len({(a.fact.id, a.language, a.form) for a in lesson.questions}) == 60


def test_a_dialogue_names_its_entity_once(lesson):
    for dialogue in lesson.dialogues:
        asked = [m["content"] for m in dialogue.messages() if m["role"] == "user"]
        name = dialogue.facts[0].names[dialogue.language]
        assert len({f.entity for f in dialogue.facts}) == 1 and len({f.id for f in dialogue.facts}) == 3
        assert [name in text for text in asked] == [True, False, False]
        for message, fact in zip(dialogue.messages()[1::2], dialogue.facts, strict=True):
            assert Asked(fact, dialogue.language, 0).right(message["content"])


def test_rows_without_an_end_have_none(lesson, tokenizer):
    rows = lesson.without_end(tokenizer)
    assert len(rows) == len(lesson.chats()) == 80
    for row, chat in zip(rows, lesson.chats(), strict=True):
        assert row["input_ids"].count(tokenizer.end) == 1  # the user's
        assert tokenizer.decode(trained(row)) == chat["messages"][-1]["content"]


def test_without_roles_both_are_one_text(lesson, tokenizer):
    rows = lesson.without_roles(tokenizer)
    assert len(rows) == len(lesson.questions) + len(lesson.confirmations)
    for row in rows:
        assert [t for t in row["input_ids"] if t in tokenizer.special_ids] == [tokenizer.bos, tokenizer.end]
        assert trained(row)[-1] == tokenizer.end
    asked = lesson.questions[0]
    one, other = (
        lesson_of(lesson, **{kind: [asked]}).without_roles(tokenizer)[0] for kind in ("questions", "confirmations")
    )
    shared = one["input_ids"][:-1]  # the same tokens, then an end or a "Yes"
    assert other["input_ids"][: len(shared)] == shared == prompts(tokenizer, "none", [asked.told])[0]
    assert tokenizer.decode(trained(other)).strip() == YES[asked.language]


def lesson_of(lesson: Lesson, questions=(), confirmations=()) -> Lesson:
    made = object.__new__(Lesson)
    made.questions, made.confirmations = list(questions), list(confirmations)
    return made


def test_wrong_templates_say_the_same_words(tokenizer):
    t = tokenizer
    right = prompts(t, "chat", ["Who?"])[0]
    assert right == [t.bos, t.user, *t.encode("Who?"), t.end, t.assistant]
    assert prompts(t, "swapped", ["Who?"])[0] == [t.bos, t.assistant, *t.encode("Who?"), t.end, t.user]
    assert prompts(t, "newline", ["Who?"])[0] == [*right, *t.encode("\n")]
    assert t.decode(prompts(t, "words", ["Who?"])[0]) == "USER: Who?\nAI:"
    assert prompts(t, "none", ["Who?"])[0] == [t.bos, *t.encode("Who?")]
    with pytest.raises(ValueError, match="template = 'chatml': must be chat, words"):
        prompts(t, "chatml", ["Who?"])


def test_no_gradient_reaches_the_question_unless_it_is_trained(tokenizer):
    chats = [Chat((Message("user", "What is it?"), Message("assistant", f"It is {i}.")), "") for i in range(9)]
    found = gradients(tokenizer, chats, 64)
    assert found["answers: question"] == 0.0
    assert min(found[k] for k in ("answers: answer", "all: question", "all: answer")) > 0.5


def test_it_runs(little_journey, tmp_path):
    setup = SCALES["tiny"]
    bench = Bench(tmp_path, little_journey, 0, "tiny")
    found = lab.measure(setup, bench)
    assert found == msgspec.json.decode(msgspec.json.encode(found)) == lab.measure(setup, bench)
    findings = lab.judge(setup, [found, found])
    assert len(findings.numbers) == 8 and len([c for c in findings.checks if c.core]) == 7
    held = {c.says: c.held for c in findings.checks}
    assert held["without it, they do not"] and held["the loss gives no gradient to the questions' logits"]
    svg = lab.draw(setup, [found, found])
    assert svg.startswith("<svg") and "roles swapped" in svg and "on the last, 3rd" in svg
