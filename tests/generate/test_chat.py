"""Answers to conversations: what overflows is dropped and said, and streaming writes what answering writes."""

import pytest

from fledge.generate.chat import Answer, answer, chat_engine, continue_text, stream
from fledge.generate.sampling import Sampling
from fledge.text.formats import Message
from fledge.text.template import render_prompt


@pytest.fixture(scope="module")
def engine(make_model, tokenizer):
    return chat_engine(make_model(spread=0.1, vocab_size=tokenizer.vocab_size, context_tokens=96), tokenizer)


def talk(count: int) -> list[Message]:
    """`count` turns ending with the user's."""
    return [Message(("user", "assistant")[(n + count + 1) % 2], f"turn {n} of the talk") for n in range(count)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_streaming_writes_what_answering_writes(engine, tokenizer, temperature):
    for seed in range(4):
        sampling = Sampling(temperature=temperature, max_tokens=20, seed=seed)
        *pieces, last = stream(engine, tokenizer, talk(1), sampling)
        assert isinstance(last, Answer) and "".join(pieces) == last.text
        assert [last] == answer(engine, tokenizer, [talk(1)], sampling)


def test_a_character_cut_off_at_the_end_of_the_stream_is_shown_as_such(engine, tokenizer):
    cut = 0
    for seed in range(30):
        sampling = Sampling(temperature=1.5, max_tokens=2, seed=seed)
        *pieces, last = stream(engine, tokenizer, talk(1), sampling)
        assert [last] == answer(engine, tokenizer, [talk(1)], sampling)
        cut += pieces[-1] == "\ufffd"  # what finish() leaves
    assert cut > 0


def test_an_answer_is_the_text_of_what_the_engine_wrote_after_the_prompt(engine, tokenizer):
    sampling = Sampling(temperature=1.0, max_tokens=20, seed=3)
    (done,) = engine.generate([render_prompt(tokenizer, talk(1))], sampling)
    assert answer(engine, tokenizer, [talk(1)], sampling) == [Answer(tokenizer.decode(done.tokens), done.finish, 0)]


def test_dropped_turns_are_counted_per_conversation(engine, tokenizer):
    room = 96 - 20
    assert len(render_prompt(tokenizer, talk(9))) > room > len(render_prompt(tokenizer, talk(1)))
    found = answer(engine, tokenizer, [talk(1), talk(9)], Sampling(max_tokens=20))
    assert found[0].dropped_turns == 0
    dropped = found[1].dropped_turns
    kept = talk(9)[dropped:]
    assert dropped > 0 and dropped % 2 == 0 and len(render_prompt(tokenizer, kept)) <= room
    *_, streamed = stream(engine, tokenizer, talk(9), Sampling(max_tokens=20))
    assert streamed.dropped_turns == dropped


def test_a_long_answer_leaves_half_the_context_to_the_conversation(engine, tokenizer):
    """max_tokens beyond the context must not drop every turn."""
    (found,) = answer(engine, tokenizer, [talk(3)], Sampling(max_tokens=10_000))
    assert len(render_prompt(tokenizer, talk(3))) <= 48 and found.dropped_turns == 0


def test_the_end_of_an_answer_and_of_a_document_both_stop(engine, tokenizer):
    assert sorted(engine.stop_ids) == sorted([tokenizer.end, tokenizer.eos])


def test_a_base_model_continues_from_the_start_of_a_document(engine, tokenizer):
    sampling = Sampling(temperature=1.0, max_tokens=8, seed=1)
    (done,) = engine.generate([[tokenizer.bos, *tokenizer.encode("The river")]], sampling)
    (found,) = continue_text(engine, tokenizer, ["The river"], sampling)
    assert found == Answer(tokenizer.decode(done.tokens), done.finish, 0)


def test_several_samples_of_a_text_stand_in_a_row(engine, tokenizer):
    sampling = Sampling(temperature=1.0, max_tokens=8, seed=1)
    found = continue_text(engine, tokenizer, ["The river", "A hill"], sampling, 3)
    prompts = [[tokenizer.bos, *tokenizer.encode(text)] for text in ("The river", "A hill")]
    done = engine.generate(prompts, sampling, samples=3)
    assert [a.text for a in found] == [tokenizer.decode(c.tokens) for c in done] and len(set(found[:3])) > 1
