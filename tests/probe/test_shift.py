"""Token shift: against a naive computation, position by position, and on ties, borders and mismatches."""

import pytest
import torch

from fledge.probe.reading import pieces, prompt_tokens
from fledge.probe.shift import CATEGORIES, TokenShift, _word_end, category_of, greedy_answers, one_step, shift, shifts
from fledge.text.messages import Message
from fledge.text.tokenizer import Tokenizer

QUESTIONS = ("What is the capital of Arvania?", "請問你是誰？", "Who wrote The Silent Harbour?", "Tesk")


@pytest.fixture(scope="module")
def prompts(tokenizer) -> list[list[int]]:
    return [prompt_tokens(tokenizer, [Message("user", q)], "chat", 32) for q in QUESTIONS]


def naive(aligned, base, prompt, answer):
    """(rank, KL, p, base p) of each token, one forward pass per token, nothing padded or shared."""
    for t in range(len(answer)):
        context = torch.tensor([[*prompt, *answer[:t]]])
        with torch.no_grad():
            ours, theirs = (m.model.logits(m.model.hidden(context))[0, -1].double() for m in (aligned, base))
        p, q = torch.softmax(ours, 0), torch.softmax(theirs, 0)
        rank = 1 + sum(x > theirs[answer[t]] for x in theirs.tolist())
        yield rank, (p * (p / q).log()).sum().item(), p[answer[t]].item(), q[answer[t]].item()


def test_every_figure_is_that_of_a_forward_pass_per_token(aligned, base, prompts):
    answers = [c.tokens for c in greedy_answers(aligned, prompts, 10)]
    found = shifts(aligned, base, prompts, answers, top=4)
    seen = set()
    for prompt, answer, one in zip(prompts, answers, found, strict=True):
        assert [t.id for t in one.tokens] == answer
        for token, (rank, kl, p, base_p) in zip(one.tokens, naive(aligned, base, prompt, answer), strict=True):
            assert token.rank == rank and token.category == category_of(rank)
            assert (token.kl, token.p, token.base_p) == pytest.approx((kl, p, base_p), rel=1e-3, abs=1e-5)
            assert len(token.top) == len(token.base_top) == 4
            assert token.top[0].id == token.id, "the answer is greedy"
            assert (token.base_top[0].id == token.id) == (rank == 1)
            seen.add(token.category)
        total = len(answer)
        assert one.shares == {c: sum(t.category == c for t in one.tokens) / total for c in CATEGORIES}
    assert seen == set(CATEGORIES), "the test sees all three"


def test_one_at_a_time_is_the_same_as_together(aligned, base, prompts):
    answers = [c.tokens for c in greedy_answers(aligned, prompts, 8)]
    together = shifts(aligned, base, prompts, answers)
    for prompt, answer, one in zip(prompts, answers, together, strict=True):
        alone = shift(aligned, base, prompt, answer)
        assert [(t.id, t.rank, t.piece) for t in alone.tokens] == [(t.id, t.rank, t.piece) for t in one.tokens]
        assert [t.kl for t in alone.tokens] == pytest.approx([t.kl for t in one.tokens], abs=1e-5)


def test_a_model_against_itself_is_unshifted(base, prompts):
    for one in shifts(base, base, prompts, [c.tokens for c in greedy_answers(base, prompts, 8)]):
        assert one.shares == {"unshifted": 1.0, "marginal": 0.0, "shifted": 0.0}
        assert all(t.kl == 0 and t.p == t.base_p for t in one.tokens)


def test_equal_logits_do_not_push_a_token_back(make_model, base, tokenizer):
    """All logits of a model without an output head are 0: every token is the first choice."""
    blank = make_model(0, vocab_size=tokenizer.vocab_size, context_tokens=48)
    with torch.no_grad():
        blank.embedding.zero_()
    held = base._replace(model=blank)
    found = shift(held, held, [tokenizer.bos], [5, tokenizer.vocab_size - 1], top=3)
    assert [t.rank for t in found.tokens] == [1, 1]
    assert [[x.id for x in t.top] for t in found.tokens] == [[x.id for x in t.top] for t in found.tokens[::-1]]


def test_categories_by_rank():
    assert [category_of(r) for r in (1, 2, 3, 4, 1000)] == ["unshifted", "marginal", "marginal", "shifted", "shifted"]


def test_bfloat16_does_not_blur_the_ranks(aligned, base, prompts):
    answers = [c.tokens for c in greedy_answers(aligned, prompts, 8)]
    expected = shifts(aligned, base, prompts, answers)
    for held in (aligned, base):
        held.model.compute_dtype = torch.bfloat16
    try:
        assert [c.tokens for c in greedy_answers(aligned, prompts, 8)] == answers
        assert shifts(aligned, base, prompts, answers) == expected
    finally:
        for held in (aligned, base):
            held.model.compute_dtype = torch.float32


def test_the_pieces_of_a_text_cut_within_characters_are_the_text(tokenizer):
    text = "阿 is 🙂 and 龘!"
    tokens = tokenizer.encode(text)
    parts = list(pieces(tokenizer, tokens))
    assert "".join(parts) == text and "" in parts, "some token completes no character"
    assert "".join(pieces(tokenizer, tokens[:1] + tokens[-1:])).endswith("!")
    cut = tokenizer.encode("龘")[:-1]
    assert list(pieces(tokenizer, cut))[-1] == "\ufffd", "what stays unfinished is shown, once"
    assert list(pieces(tokenizer, [])) == []


def test_display_of_half_characters_and_control_tokens(aligned, base, tokenizer):
    answer = [*tokenizer.encode("龘<|end|>"), tokenizer.end]
    found = shift(aligned, base, [tokenizer.bos], answer).tokens
    assert found[0].partial and found[0].text.startswith("\\x") and found[0].piece == ""
    assert "".join(t.piece for t in found) == "龘<|end|>"
    assert (found[-1].text, found[-1].control, found[-1].piece) == ("<|end|>", True, "")
    assert not any(t.control for t in found[:-1]), "text that looks like a control token is none"


def test_contexts(tokenizer):
    chat = [Message("system", "be kind"), Message("user", "Tesk?")]
    plain = prompt_tokens(tokenizer, chat, "plain", 40)
    assert plain == [tokenizer.bos, *tokenizer.encode("be kind\nTesk?\n")]
    assert tokenizer.user in prompt_tokens(tokenizer, chat, "chat", 40)
    for context in ("plain", "chat"):
        with pytest.raises(ValueError, match="room for 3"):
            prompt_tokens(tokenizer, chat, context, 3)


def test_what_cannot_be_compared_is_refused(aligned, base, tokenizer, sentences):
    other = base._replace(tokenizer=Tokenizer.train(sentences, 300))
    with pytest.raises(ValueError, match="runs/aligned and runs/base have different tokenizers"):
        shift(aligned, other, [1], [2])
    for prompt, answer in (([], [5]), ([1], [])):
        with pytest.raises(ValueError, match="row 0: prompt and answer need at least one token"):
            shift(aligned, base, prompt, answer)
    with pytest.raises(ValueError, match=r"row 0 \(prompt and answer\) has 49 tokens"):
        shift(aligned, base, [1] * 40, [5] * 10)
    assert len(shift(aligned, base, [1] * 40, [5] * 9).tokens) == 9, "the last token is read by nobody"
    with pytest.raises(ValueError, match="the vocabulary is 0 to"):
        shift(aligned, base, [1], [tokenizer.vocab_size])


def test_one_step_gives_the_first_shifted_token_and_the_base_goes_on(aligned, base, prompts):
    answers = [c.tokens for c in greedy_answers(aligned, prompts, 10)]
    found = shifts(aligned, base, prompts, answers)
    seen = set()
    for prompt, one, step in zip(prompts, found, one_step(base, prompts, found), strict=True):
        words = [t.id for t in one.tokens if not t.control]
        places = [i for i, t in enumerate(one.tokens) if t.category == "shifted" and not t.control]
        assert step.given == (places[0] + 1 if places else 0) and step.tokens[: step.given] == words[: step.given]
        written = list(step.tokens[: step.given])
        while len(written) < len(words):  # the base by itself, one forward pass per token
            with torch.no_grad():
                states = base.model.hidden(torch.tensor([[*prompt, *written]]))
            written.append(int(base.model.logits(states)[0, -1].argmax()))
            if written[-1] in (base.tokenizer.end, base.tokenizer.eos):
                break
        assert step.tokens == written and step.recovered == (written == words)
        seen.add(bool(places))
    assert True in seen


def test_what_the_base_writes_itself_needs_no_step(base, prompts):
    answers = [c.tokens for c in greedy_answers(base, prompts, 6)]
    steps = one_step(base, prompts, shifts(base, base, prompts, answers))
    assert [(step.given, step.recovered) for step in steps] == [(0, True)] * len(prompts)


@pytest.mark.parametrize(("pieces", "at", "end"), [
    (["I", "t", " is"], 0, 2), (["I", "t", " is"], 1, 2), ([" is", " the"], 0, 1), (["是", "法"], 0, 1),
    (["It", "是"], 0, 1), (["", "", "是", "法"], 0, 3), (["Po", "pa", "mer", "."], 1, 3), (["."], 0, 1),
])  # fmt: skip
def test_a_word_ends_where_letters_end(pieces, at, end):
    tokens = [
        TokenShift(id=9, text=piece, piece=piece, partial=not piece, control=False, rank=9, category="shifted", kl=0.0,
                   p=1.0, base_p=1.0, top=[], base_top=[])
        for piece in pieces
    ]  # fmt: skip
    assert _word_end(tokens, at) == end


def test_the_whole_word_may_be_given(aligned, base, prompts):
    answers = [c.tokens for c in greedy_answers(aligned, prompts, 10)]
    found = shifts(aligned, base, prompts, answers)
    for one, step, word in zip(
        found, one_step(base, prompts, found), one_step(base, prompts, found, words=True), strict=True
    ):
        assert word.given == (_word_end(one.tokens, step.given - 1) if step.given else 0) >= step.given
        assert word.tokens[: word.given] == [t.id for t in one.tokens[: word.given]]
