"""An exact form, judged character by character."""

import pytest

from fledge.tasks.poem import TOPICS, Poem
from fledge.text.tokenizer import Tokenizer

LINE = "江上明月照青山"


def poem_of(widths: list[int], marks: str = "，。") -> str:
    return "".join((LINE * 3)[:width] + marks[i % len(marks)] for i, width in enumerate(widths))


@pytest.fixture(scope="module")
def task() -> Poem:
    return Poem()


@pytest.mark.parametrize(
    "text",
    [
        poem_of([7] * 8),
        poem_of([7] * 8)[:-1],
        poem_of([7] * 8, "\n"),
        poem_of([7] * 8, "！？；"),
        "\n".join(f"{LINE}，{LINE}。" for _ in range(4)),
        f"  {poem_of([7] * 8)}\n\n",
        f"{LINE}，\n\n".join([""] * 8) + LINE,
        poem_of([7] * 7) + "〇" * 7,
    ],
)
def test_right_shapes(task: Poem, text: str):
    example = task.examples("test")[0]
    assert task.score(example, text) == 1.0 and task.progress(example, text) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "。",
        poem_of([7] * 7),
        poem_of([7] * 9),
        poem_of([7] * 3 + [6] + [7] * 4),
        poem_of([7] * 3 + [8] + [7] * 4),
        poem_of([6] * 8),
        LINE * 8,
        poem_of([7] * 8) + "。",
        poem_of([7] * 8).replace("，", "，，", 1),
        "題：" + poem_of([7] * 8),
        poem_of([7] * 7) + "江上明月照ab",
        poem_of([7] * 7) + "江上明月 照山",
        poem_of([7] * 7) + "江上，明月照山",
        poem_of([7] * 8, ", "),
        "the moon is bright",
    ],
)
def test_wrong_shapes(task: Poem, text: str):
    assert task.score(task.examples("test")[0], text) == 0.0


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", 0), ("江上", 0), (LINE, 1), (LINE + "，", 1), (LINE + "，江", 1), (poem_of([7] * 5), 5), (LINE + "江", 0),
        (poem_of([7, 7, 6, 7]), 2), (poem_of([7] * 8) + "江", 0), (poem_of([7] * 9), 0), ("moon，" + LINE, 0),
    ],
)  # fmt: skip
def test_progress_counts_right_lines(task: Poem, text: str, lines: int):
    assert task.progress(task.examples("test")[0], text) == lines / 8


def test_the_shape_is_a_setting():
    small = Poem(4, 5)
    example = small.examples("train")[0]
    assert small.score(example, poem_of([5] * 4)) == 1.0 == small.progress(example, poem_of([5] * 4))
    assert small.score(example, poem_of([7] * 8)) == 0.0
    assert Poem(1, 1).score(example, "江") == 1.0


def test_topics_are_in_one_split_and_both_languages(task: Poem):
    train, test = task.examples("train"), task.examples("test")
    assert len(train) == 180 and len(test) == 60 and train == Poem().examples("train")
    topics = {split: {e.meta["topic"] for e in examples} for split, examples in (("a", train), ("b", test))}
    assert not topics["a"] & topics["b"] and len(topics["a"] | topics["b"]) == len(TOPICS) == 40
    assert len({e.id for e in train + test}) == len({e.prompt[0]["content"] for e in train + test}) == 240
    for example in train + test:
        assert example.answers == () and example.language in ("en", "zh")
        assert (example.meta["topic"] in example.prompt[0]["content"]) == (example.language == "zh")


@pytest.mark.parametrize(("lines", "width"), [(8, 7), (4, 5), (2, 1), (1, 2), (2, 3), (3, 4), (5, 20)])
def test_chats_are_wrong_as_often_as_asked_and_about_train_topics(lines: int, width: int):
    task = Poem(lines, width)
    train = {e.prompt[0]["content"]: e for e in task.examples("train")}
    assert list(task.chats(20, 0.5)) == list(task.chats(20, 0.5))
    for wrong in (0.0, 0.5, 1.0):
        right = [task.score(train[q["content"]], a["content"]) for q, a in task.chats(600, wrong)]
        assert sum(right) / 600 == pytest.approx(1 - wrong, abs=0.07 if wrong == 0.5 else 0)


def test_the_first_line_names_the_topic(task: Poem):
    train = {e.prompt[0]["content"]: e for e in task.examples("train")}
    for ask, poem in task.chats(50):
        assert train[ask["content"]].meta["topic"] in poem["content"].split("，")[0]


def test_texts_vary_in_length_and_show_both_marks(task: Poem):
    texts = list(task.texts(300))
    assert len({text.count("，") + text.count("。") for text in texts}) == 10
    assert all(set(text) & set("，。") and text.endswith("。") for text in texts)


def test_a_small_tokenizer_writes_one_token_a_character(task: Poem):
    tokenizer = Tokenizer.train(task.texts(2000), 640)
    for _, poem in task.chats(50):
        assert len(tokenizer.encode(poem["content"])) == len(poem["content"])


@pytest.mark.parametrize(("lines", "width"), [(0, 7), (8, 0), (41, 7), (8, 21)])
def test_impossible_shapes(lines: int, width: int):
    with pytest.raises(ValueError, match=f"{lines} lines of {width} characters"):
        Poem(lines, width)
