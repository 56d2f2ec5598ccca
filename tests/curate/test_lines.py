"""What the editing steps take out and what they leave, in English and in Chinese."""

import re

import pytest
from curate_pages import real, strange, table

from fledge.curate.lines import boilerplate_kernel, c4_kernel, dclm_lines_kernel
from fledge.curate.rule_settings import C4Rules, DclmLineRules, PhraseRules

COUNTER = re.compile(
    r"^\W*\d(?:,|\.|\d)*(?:K|k|M|m|B|b)?\s+(?:likes|shares|comments|retweets|reposts|quotes|bookmarks|upvotes|downvotes"
    r"|downloads|views|followers)\W*$"
)


def edited(kernel, text: str, language: str = "en") -> tuple[str, str | None]:
    found = kernel(table([text], language)).to_pylist()[0]
    return found["text"], found["reason"]


# ------------------------------------------------------------------------------------------------ C4


def c4(text: str, language: str = "en", **rules) -> tuple[str, str | None]:
    return edited(c4_kernel({"*": C4Rules(**{"sentences": 0} | rules)}), text, language)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("one two three\nfour five\nsix seven eight", "one two three\nsix seven eight"),
        ("please enable JavaScript now\nthis one stays here", "this one stays here"),
        ("read our Privacy Policy here\r\nthis one stays here\r\n", "this one stays here"),
        ("a claim that stands.[12] Next [edit] one[citation needed]", "a claim that stands. Next  one"),
        ("  padded line is trimmed  \n\n\nthe next one follows", "padded line is trimmed\nthe next one follows"),
        (f"{'x' * 1001} two three\n{'x' * 1000} two three", f"{'x' * 1000} two three"),
        ("caf\u00e9 \U0001f600 na\u00efve\nok", "caf\u00e9 \U0001f600 na\u00efve"),
    ],
)
def test_lines_that_c4_removes(text: str, left: str):
    assert c4(text) == (left, None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("this is Lorem Ipsum text", "lorem ipsum"), ("if (x) { y(); }", "curly bracket"),
        ("two words\nlorem ipsum", "no line left"),  # the line was gone before it could reject the page
        ("a b { c\nd lorem ipsum e", "curly bracket"), ("d lorem ipsum e\na b { c", "lorem ipsum"), ("", "no line left"),
        ("One is here. Two is here.", "sentences below 3"),
    ],
)  # fmt: skip
def test_pages_that_c4_rejects_keep_their_text(text: str, reason: str):
    assert c4(text, sentences=3) == (text, "sentences below 3" if reason == "no line left" else reason)
    assert c4(text, sentences=0)[1] == (None if reason == "sentences below 3" else reason)


def test_values_and_counts_are_columns_beside_the_reason():
    pages = table(["We use cookies here. No.\n\nOne is this. And two! Three? Four.", "A b c. D e f."], "en")
    found = c4_kernel({"en": C4Rules()})(pages)
    assert found["c4_lines_removed"].to_pylist() == [1, 0]
    assert found["reason"].to_pylist() == ["sentences below 5"] * 2
    assert found["value"].to_pylist() == [4.0, 2.0]
    assert found["text"].to_pylist() == pages["text"].to_pylist()


def test_chinese_lines_are_counted_in_characters_and_sentences_by_their_marks():
    text = "首頁\n他說：「好的。」我走了！你呢？\n請閱讀我們的隱私權政策。\n天黑了……"
    left = "他說：「好的。」我走了！你呢？\n天黑了……"
    assert c4(text, "zh-Hant", sentences=4) == (left, None)
    assert c4(text, "zh-Hant", sentences=5)[1] == "sentences below 5"
    assert c4(text, "zh-Hant", terminal_punctuation=True) == ("他說：「好的。」我走了！你呢？", None)


def test_languages_without_rules_pass_untouched():
    text = "two words\n{ lorem ipsum"
    found = c4_kernel({"en": C4Rules()})(table([text, text], ["de", "en"]))
    assert found["text"].to_pylist()[0] == text
    assert found["reason"].to_pylist() == [None, "lorem ipsum"]


# ------------------------------------------------------------------------------------------------ DCLM


def slow_dclm(text: str) -> tuple[str, bool]:
    """DCLM's modifiers one after the other, as its code has them, without the phrases; whether too much is gone."""
    words = lambda lines: sum(len(re.findall(r"[^\W_]\w*(?:['’]\w+)*", line)) for line in lines)  # noqa: E731
    before = text.split("\n")
    lines = [line for line in before if not line or sum(c.isupper() for c in line) / len(line) <= 0.5]
    lines = [line for line in lines if not line or sum(c.isdigit() for c in line) / len(line) <= 0.999999]
    lines = [line for line in lines if not COUNTER.search(line.lower())]
    lines = [line for line in lines if len(line.split()) >= 2 or not line]
    return "\n".join(lines).strip(), words(before) - words(lines) > 0.05 * words(before)


def dclm(text: str, **rules) -> tuple[str, str | None]:
    return edited(dclm_lines_kernel({"*": DclmLineRules(**rules)}), text)


def test_dclms_lines_are_those_of_its_code():
    parts = [
        "SHOUTED WORDS here",
        "12345",
        "3 likes",
        "(1,234k Views)",
        "one",
        "",
        "A b",
        "two words",
        "12 34",
        "5 views of it",
    ]
    texts = ["\n".join(parts[(n * k + k) % len(parts)] for k in range(n % 23)) for n in range(300)]
    texts += [text for text in real()["en"] if "sign-in" not in text.lower()]
    found = dclm_lines_kernel({"*": DclmLineRules(removed_words=1)})(table(texts, "en")).to_pylist()
    strict = dclm_lines_kernel({"*": DclmLineRules()})(table(texts, "en")).to_pylist()
    rejected = 0
    for text, row, judged in zip(texts, found, strict, strict=True):
        left, much = slow_dclm(text)
        assert (row["text"], row["reason"]) == ((left, None) if left else (text, "no line left"))
        if text.isascii() and "_" not in text:
            assert (judged["reason"] == "words removed above 0.05") == much
            rejected += much
    assert 0 < rejected < len(texts)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("There are 3 Items in cart today\nthe text is here", "There are 3 today\nthe text is here"),
        ("items in cart\nthe text is here", "the text is here"),
        ("A long story Read more...\nthe text is here", "A long story\nthe text is here"),
        ("Read more... of it\nthe text is here", "Read more... of it\nthe text is here"),
        ("Sign-in to the site\nthe text is here", "to the site\nthe text is here"),
        ("Please sign-in to it\nthe text is here", "Please sign-in to it\nthe text is here"),
        ("one two three four five six seven eight items in cart\nhere it is", "one two three four five six seven eight items in cart\nhere it is"),
    ],
)  # fmt: skip
def test_phrases_are_cut_out_of_short_lines(text: str, left: str):
    assert dclm(text, removed_words=1) == (left, None)
    assert dclm(text, removed_words=1, phrases=False) == (text, None)


def test_a_page_that_loses_too_many_words_is_rejected_whole():
    text = "\n".join(["the text goes on and on"] * 10 + ["LOUD WORDS"])
    assert dclm(text) == ("\n".join(["the text goes on and on"] * 10), None)
    found = dclm_lines_kernel({"*": DclmLineRules()})(table([text + "\nMORE OF THEM"], "en")).to_pylist()[0]
    assert found["reason"] == "words removed above 0.05" and found["value"] == pytest.approx(5 / 65)
    assert found["text"] == text + "\nMORE OF THEM" and found["dclm_lines_removed"] == 2


# ------------------------------------------------------------------------------------------------ phrases


def test_short_lines_with_a_phrase_go_and_long_ones_stay():
    kernel = boilerplate_kernel(
        {"en": PhraseRules(phrases=["Log in"]), "zh": PhraseRules(phrases=["廣告"], longest_line=5)}
    )
    long = "You have to log in before the library lets you read what it says in the book."
    pages = table(
        [f"LOG IN here\n\n{long}\nfine", "log in", "廣告在這\n有些廣告是好看的\n好", "Log in"],
        ["en", "en", "zh-Hant", "fr"],
    )
    found = kernel(pages)
    assert found["text"].to_pylist() == [f"{long}\nfine", "log in", "有些廣告是好看的\n好", "Log in"]
    assert found["reason"].to_pylist() == [None, "no line left", None, None]
    assert found["boilerplate_lines_removed"].to_pylist() == [1, 1, 1, 0]


@pytest.mark.parametrize("kernel", [c4_kernel({"*": C4Rules()}), dclm_lines_kernel({"*": DclmLineRules()})])
def test_a_page_is_edited_alike_alone_and_in_a_batch(kernel):
    texts = [*strange(80, seed=11), "", "\n", "word\n" * 80_000, *strange(20, seed=12)]
    together = kernel(table(texts, "en")).drop_columns(["id", "source"]).to_pylist()
    alone = [kernel(table([text], "en")).drop_columns(["id", "source"]).to_pylist()[0] for text in texts]
    assert repr(together) == repr(alone)
