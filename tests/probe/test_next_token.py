"""The next-token view: the model's own distribution at the last position, and contexts in exact ids."""

import math

import pytest
import torch

from fledge.probe.next_token import context_tokens, next_token
from fledge.text.messages import Message


def naive(held, tokens: list[int]) -> torch.Tensor:
    """Probabilities [V] of the next token by the plain forward pass."""
    with torch.no_grad():
        return torch.softmax(held.model.logits(held.model.hidden(torch.tensor([tokens])))[0, -1], -1)


def test_it_is_the_distribution_of_the_forward_pass(base, tokenizer):
    found = next_token(base, text="The river Tesk", top=7)
    p = naive(base, [tokenizer.bos, *tokenizer.encode("The river Tesk")])
    expected = sorted(range(len(p)), key=lambda i: (-p[i].item(), i))[:7]
    assert [t.id for t in found.tokens] == expected
    assert [t.p for t in found.tokens] == pytest.approx([p[i].item() for i in expected], abs=1e-6)
    assert found.rest == pytest.approx(1 - p[expected].sum().item(), abs=1e-5)
    assert found.entropy == pytest.approx(-(p * p.log()).sum().item(), abs=1e-4)
    assert 0 < found.entropy < math.log(tokenizer.vocab_size)


def test_a_clicked_token_goes_on_exactly_where_encoding_anew_would_cut_differently(base, tokenizer):
    start = tokenizer.encode("Who wrote The Sil")
    whole = tokenizer.encode("Who wrote The Silent")
    assert whole[: len(start)] != start, "the longer text is cut elsewhere"
    chosen = tokenizer.encode("ent")[0]
    context = [tokenizer.bos, *start, chosen]
    p = naive(base, context)
    assert next_token(base, tokens=context, top=1).tokens[0].p == pytest.approx(p.max().item(), abs=1e-6)
    assert context_tokens(tokenizer, tokens=context) == context
    assert context_tokens(tokenizer, text="Who wrote The Silent") == [tokenizer.bos, *whole]


def test_as_the_answer_of_a_chat(tokenizer):
    asked = [Message("user", "請問你是誰？")]
    found = context_tokens(tokenizer, messages=asked, text="我是")
    question = [tokenizer.user, *tokenizer.encode("請問你是誰？"), tokenizer.end, tokenizer.assistant]
    assert found == [tokenizer.bos, *question, *tokenizer.encode("我是")]
    assert context_tokens(tokenizer, messages=asked, text="<|end|>")[len(question) + 1 :] == tokenizer.encode("<|end|>")


def test_a_model_that_computes_in_bfloat16_is_read_in_float32_and_left_as_it_was(base, tokenizer):
    expected = next_token(base, text="The capital")
    base.model.compute_dtype = torch.bfloat16
    try:
        found = next_token(base, text="The capital")
        assert base.model.compute_dtype is torch.bfloat16
    finally:
        base.model.compute_dtype = torch.float32
    assert found == expected


def test_half_characters_are_shown_as_their_bytes_and_marked(base, tokenizer):
    found = next_token(base, text="阿", top=tokenizer.vocab_size).tokens
    by_id = {t.id: t for t in found}
    assert len(by_id) == tokenizer.vocab_size and sum(t.p for t in found) == pytest.approx(1.0, abs=1e-5)
    byte = next(t for t in found if tokenizer.token_bytes(t.id) == b"\xe4")
    assert byte.partial and byte.text == "\\xe4"
    whole = by_id[tokenizer.encode("首")[0]]
    assert (whole.partial, whole.text) == (False, "首") or whole.partial
    assert by_id[tokenizer.end].text == "<|end|>" and not by_id[tokenizer.end].partial


def test_what_cannot_be_read_is_refused(base, tokenizer):
    with pytest.raises(ValueError, match="49 tokens, the model reads 48"):
        next_token(base, tokens=[tokenizer.bos] * 49)
    assert next_token(base, tokens=[tokenizer.bos] * 48).tokens
    with pytest.raises(ValueError, match=f"the vocabulary is 0 to {tokenizer.vocab_size - 1}"):
        next_token(base, tokens=[tokenizer.bos, tokenizer.vocab_size])
    with pytest.raises(ValueError, match="no tokens"):
        next_token(base, tokens=[])
    with pytest.raises(ValueError, match="not both"):
        next_token(base, tokens=[1], text="a")
