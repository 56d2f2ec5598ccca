"""The token view shows exactly what the loss counts."""

import json

import pytest
import torch

from fledge.core.objectives import weighted_nll
from fledge.core.shown import print_result
from fledge.stages.show import ShowOptions, run, token_view
from fledge.text.formats import Chat, Message, read_chats
from fledge.text.sources import ChatSource, Sequences
from fledge.text.template import render_chats
from fledge.text.tokenizer import SPECIALS, Tokenizer


@pytest.fixture(scope="module")
def chats(sentences) -> list[Chat]:
    made = []
    for n in range(8):
        turns = [Message("user", sentences[n][:20]), Message("assistant", sentences[n + 1][: 8 + n])]
        if n % 2:
            turns = [
                Message("system", "be kind"),
                *turns,
                Message("user", "<|end|>更多?"),
                Message("assistant", "好 🙂"),
            ]
        made.append(Chat(tuple(turns), f"test:{n}"))
    return made


def test_tokens_shown_as_trained_are_the_weighted_targets_of_the_sft_batch(chats, tokenizer):
    """Through the packed batch itself, conversation by conversation."""
    rendered = render_chats(tokenizer, chats)
    longest = max(len(r.tokens) for r in rendered)
    source = ChatSource(Sequences(rendered, longest), rows=8, length=longest - 1, seed=0, pad=tokenizer.pad)
    shown = {}
    for index, one in enumerate(rendered):
        view = list(token_view(tokenizer, one))
        assert [text for text, _ in view] == [tokenizer.token_text(t) for t in one.tokens]
        shown[index] = [text for text, trained in view if trained]
    batch = next(iter(source))
    found = {}
    for row, members in enumerate(source.packed(0)[:8]):
        for doc, index in enumerate(members):
            counted = (batch.doc[row] == doc) & (batch.weight[row] > 0)
            found[index] = [tokenizer.token_text(t) for t in batch.targets[row][counted].tolist()]
    assert found == {index: shown[index] for index in found} and len(found) >= 4
    assert batch.units == sum(map(len, found.values()))


def test_the_loss_moves_with_tokens_shown_as_trained_and_with_no_other(chats, tokenizer, make_model):
    """Not by the weights but by the gradient of the loss with respect to each token's logp."""
    (rendered,) = render_chats(tokenizer, chats[1:2])
    length = len(rendered.tokens) - 1
    batch = next(iter(ChatSource(Sequences([rendered], length + 1), rows=1, length=length, seed=0, pad=tokenizer.pad)))
    output = make_model(vocab_size=tokenizer.vocab_size, context_tokens=length)(batch)
    (gradient,) = torch.autograd.grad(weighted_nll(output, batch)[0], output.logp)
    trained = [trained for _, trained in token_view(tokenizer, rendered)]
    assert (gradient[0] != 0).tolist() == trained[1:] and not trained[0]


def test_what_is_trained_is_what_the_assistant_said_and_that_it_ended(chats, tokenizer):
    for chat, rendered in zip(chats, render_chats(tokenizer, chats), strict=True):
        said = "".join(m.content + "<|end|>" for m in chat.messages if m.role == "assistant")
        trained = [t for t, w in zip(*rendered, strict=True) if w]
        ours = b"".join(
            SPECIALS[tokenizer.end].encode() if t == tokenizer.end else tokenizer.token_bytes(t) for t in trained
        )
        assert ours.decode() == said


def test_off_a_terminal_trained_tokens_carry_brackets(chats, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    path = tmp_path / "chats.jsonl"
    rows = [{"messages": [{"role": m.role, "content": m.content} for m in c.messages]} for c in chats]
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows), "utf-8")
    print_result(run(ShowOptions(chats=str(path), first=3)))
    printed = capsys.readouterr().out

    read = list(read_chats([str(path)]))[:3]
    tokenizer = Tokenizer.train((m.content for c in read for m in c.messages), 1024)
    for chat, rendered in zip(read, render_chats(tokenizer, read), strict=True):
        view = list(token_view(tokenizer, rendered))
        line = "".join(f"[{text}]" if trained else text for text, trained in view)
        assert line in printed
        assert f"{chat.source}: {sum(t for _, t in view)} of {len(view)} tokens trained" in printed
    assert printed.count("tokens trained") == 3
