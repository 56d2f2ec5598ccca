"""The terminal chat talks with models that write, and refuses those that only score."""

import io

import msgspec
import pytest

from fledge.core.checkpoint import save_checkpoint
from fledge.generate.chat import answer, chat_engine
from fledge.generate.sampling import Sampling
from fledge.serve.terminal import ChatOptions, run
from fledge.stages.common import open_model
from fledge.text.formats import Message


def saved(folder, make_model, tokenizer, **shape):
    model = make_model(vocab_size=tokenizer.vocab_size, **shape)
    card = {"stage": "test", "parent": None, "model": msgspec.to_builtins(model.config)}
    return save_checkpoint(
        folder, 1, model=model.state_dict(), optimizer={}, state={}, card=card, tokenizer=tokenizer.json
    )


def test_a_reward_model_is_not_made_to_talk(tmp_path, make_model, tokenizer):
    """Its weights fit a token head, so it would answer with noise."""
    path = saved(tmp_path / "reward", make_model, tokenizer, head="reward")
    with pytest.raises(ValueError, match="is a reward model: it scores answers and writes none"):
        run(ChatOptions(run=str(path)))


def test_lines_in_answers_out_and_a_new_conversation_forgets(tmp_path, make_model, tokenizer, monkeypatch, capsys):
    path = saved(tmp_path / "sft", make_model, tokenizer, spread=0.1)
    sampling = Sampling(temperature=0.0, max_tokens=6)
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\n/new\nhello\nhello\n/quit\nnever read\n"))
    run(ChatOptions(run=str(path), sampling=sampling))

    opened = open_model(path)
    engine, hello = chat_engine(opened.model, opened.tokenizer), [Message("user", "hello")]
    (first,) = answer(engine, opened.tokenizer, [hello], sampling)
    (second,) = answer(engine, opened.tokenizer, [[*hello, Message("assistant", first.text), *hello]], sampling)
    assert first.text != second.text
    shown = ["".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in a.text) for a in (first, first, second)]
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in shown)
