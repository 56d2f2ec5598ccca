"""Passages at sentence ends, the prompts in the page's language, and the two kinds of rephrasers."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.curate.rephrase import (
    ONLY_THIS,
    PROMPTS,
    STYLES,
    SYSTEM,
    EndpointRephraser,
    ModelRephraser,
    Passage,
    Rephrased,
    cut,
    estimate,
    has_prompt,
    messages,
    passages,
)
from fledge.generate.endpoint import EndpointConfig
from fledge.generate.sampling import Sampling

TEXT = (
    'The capital of Arvania is Belmora, a city. It was founded in 1987! "Yes," he said. "It was."\n\n'
    "阿凡尼亞的首都是貝爾莫拉。「好嗎？」她說，然後走了；他也走了。\nThe end"
)


def passage(text: str, language: str = "en", id: str = "00000000000000aa") -> Passage:
    return Passage(id, "page", "crawl/a.txt", language, text)


# ---- passages


def test_passages_end_where_sentences_do():
    assert cut(TEXT, 14) == [
        "The capital of Arvania is Belmora, a city.",
        ' It was founded in 1987! "Yes," he said.',
        ' "It was."\n',
        "\n阿凡尼亞的首都是貝爾莫拉。",
        "「好嗎？」她說，然後走了；",
        "他也走了。\nThe end",
    ]
    assert cut(TEXT, 1000) == [TEXT] and cut("", 5) == []
    for most in (16, 30):
        for piece in cut(TEXT, most)[:-1]:
            assert piece.rstrip()[-1] in '.!"。」；', piece


@given(
    text=st.text(alphabet="ab1 .!?,\n\"'。！？，「」漢字é\u0301🙂", max_size=300),
    most=st.integers(1, 40),
)
def test_nothing_is_lost_and_no_passage_is_too_long(text: str, most: int):
    pieces = cut(text, most)
    assert "".join(pieces) == text
    assert all(size <= most for size in estimate(pieces))
    assert all(pieces)


def test_the_tokens_of_a_model_are_counted_where_there_is_one(tokenizer, make_model):
    writer = ModelRephraser(
        make_model(vocab_size=tokenizer.vocab_size, context_tokens=512), tokenizer, "wiki", Sampling(max_tokens=8)
    )
    for piece in cut(TEXT * 5, 20, writer.count):
        assert len(tokenizer.encode(piece)) <= 20


def test_a_passage_knows_its_page_and_has_an_id_of_its_own():
    made = list(passages("page", "crawl/a.txt:3", "en", TEXT, "wiki", 20))
    assert len(made) > 3 and {(p.of, p.source, p.language) for p in made} == {("page", "crawl/a.txt:3", "en")}
    assert all(p.text == p.text.strip() != "" for p in made)
    ids = [p.id for p in made]
    assert len(set(ids)) == len(ids) and all(len(id) == 16 and int(id, 16) >= 0 for id in ids)
    assert ids == [p.id for p in passages("page", "another/place", "en", TEXT, "wiki", 20)]
    for other in (("page2", TEXT, "wiki"), ("page", TEXT, "qa"), ("page", TEXT.replace("a", "e"), "wiki")):
        assert ids[0] not in [p.id for p in passages(other[0], "s", "en", other[1], other[2], 20)]
    same_twice = list(passages("page", "s", "en", "One two. One two. One two.", "wiki", 3))
    assert len({p.id for p in same_twice}) == 3, "the place is part of the id"


# ---- prompts


@pytest.mark.parametrize("language", ["en", "zh-Hant", "zh-Hans"])
@pytest.mark.parametrize("style", STYLES)
def test_the_prompt_is_in_the_language_of_the_page(language, style):
    system, user = messages(passage("THE TEXT", language), style)
    assert (system["role"], user["role"]) == ("system", "user") and system["content"] == SYSTEM[language]
    assert user["content"] == f"{PROMPTS[language][style]} {ONLY_THIS[language]}\n\nTHE TEXT"
    assert user["content"].isascii() == (language == "en")


def test_the_papers_words_are_in_the_prompts():
    """Maini et al. 2024, appendix G."""
    english = PROMPTS["en"]
    assert "high quality English language as in sentences on Wikipedia" in english["wiki"]
    assert "extremely simple sentences that a toddler will understand" in english["easy"]
    assert "very terse and abstruse language that only an erudite scholar will understand" in english["hard"]
    assert 'conversational format with multiple tags of "Question:" followed by "Answer:"' in english["qa"]


def test_languages_without_a_prompt():
    assert [has_prompt(code) for code in ("en", "zh-Hant", "zh-Hans", "zh", "fr", "und", "")] == [True] * 3 + [
        False
    ] * 4


# ---- a checkpoint writes


def writer(make_model, tokenizer, **sampling) -> ModelRephraser:
    model = make_model(spread=0.2, vocab_size=tokenizer.vocab_size, context_tokens=512)
    return ModelRephraser(model, tokenizer, "easy", Sampling(**{"max_tokens": 12, "temperature": 1.0} | sampling))


def test_each_passage_draws_from_its_own_stream_whatever_else_is_asked(make_model, tokenizer, sentences):
    write = writer(make_model, tokenizer)
    asked = [passage(s, "en" if s.isascii() else "zh-Hant", f"{n:016x}") for n, s in enumerate(sentences[:6])]
    together = write(asked)
    assert len({one.text for one in together}) > 1 and {one.finish for one in together} <= {"stop", "length"}
    assert write(asked[3:]) + write(asked[:3]) == together[3:] + together[:3]
    again = passage(asked[0].text, id="ffffffffffffffff")
    assert write([again])[0].text != together[0].text, "the id is the seed"
    assert write([]) == []


def test_what_does_not_fit_the_context_is_said_and_not_cut(make_model, tokenizer, sentences):
    write = writer(make_model, tokenizer, max_tokens=20)
    long = passage(" ".join(sentences[:3]) * 10)
    assert write([long, passage(sentences[0])])[0] == Rephrased("", "no room")
    room = write.room_tokens()
    assert 0 < room < 512 - 20
    fitting = cut(" ".join(sentences), room, write.count)
    asked = [passage(text, "zh-Hant", f"{n:016x}") for n, text in enumerate(fitting)]
    assert all(one.finish != "no room" for one in write(asked))


# ---- an endpoint writes


def at(server, **settings) -> EndpointRephraser:
    given = {"url": server.url, "model": "m", "backoff_seconds": 0.0, "retries": 1, "concurrency": 3} | settings
    return EndpointRephraser(EndpointConfig(**given), "wiki")


def body(**message) -> tuple[int, dict, str]:
    finish = message.pop("finish", "stop")
    return 200, {}, json.dumps({"choices": [{"message": message, "finish_reason": finish}]})


def test_an_endpoint_is_asked_with_the_whole_prompt_and_its_ends_are_told_apart(endpoint):
    replies = {
        "one": "fine", "two": body(content="cut of", finish="length"), "three": body(content=None, refusal="I won't"),
        "four": (400, {}, "too long"), "five": body(content=""), "six": body(content="bad", finish="content_filter"),
        "seven": (200, {}, "<html>"),
    }  # fmt: skip

    def answer(text: str, number: int):
        time.sleep(0.01)
        return replies[text.rsplit("\n\n", 1)[1]]

    server = endpoint(answer)
    found = at(server)([passage(word) for word in replies])
    assert found == [
        Rephrased("fine"), Rephrased("cut of", "length"), Rephrased("I won't", "refusal"), Rephrased("", "unanswered"),
        Rephrased(""), Rephrased("bad", "refusal"), Rephrased("", "unanswered"),
    ]  # fmt: skip
    sent = server.requests[0][2]["messages"]
    assert [m["role"] for m in sent] == ["system", "user"] and sent[0]["content"] == SYSTEM["en"]
    assert 1 < server.most <= 3


def test_an_endpoint_that_answers_nothing_is_an_error_and_no_pile_of_rejects(endpoint):
    server = endpoint(lambda text, n: (400, {}, "no such model"))
    write = at(server)
    assert all(one.finish == "unanswered" for one in write([passage("a")] * 15))
    with pytest.raises(ValueError, match=r"16 passages in a row were not answered, last: .*no such model"):
        write([passage("a")])
    with pytest.raises(ValueError, match="HTTP 401"):
        at(endpoint(lambda text, n: (401, {}, "key")))([passage("a")] * 3)
    with pytest.raises(ConnectionError, match="did not answer 2 times"):
        at(endpoint(lambda text, n: (503, {}, "busy")))([passage("a")])
    with pytest.raises(ValueError, match=r"endpoint url = 'host'.*; endpoint model: empty"):
        EndpointRephraser(EndpointConfig(url="host", model=""), "wiki")
