"""What alignment changed, token by token: the rank of each token of an answer under the model before (Lin et al. 2023,
"The Unlocking Spell on Base LLMs", section 2).

Both models read the identical token ids: prompt, then the answer so far. Shapes: B rows, T positions, N answer tokens,
V vocabulary.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec
import torch
from torch import Tensor

from fledge.core.checkpoint import sha256
from fledge.generate.engine import Completion, Engine
from fledge.generate.sampling import Sampling
from fledge.probe.reading import (
    Likely,
    Opened,
    check_context,
    float32_logits,
    in_float32,
    is_partial,
    likeliest,
    pieces,
)

Category = Literal["unshifted", "marginal", "shifted"]
CATEGORIES: tuple[Category, ...] = ("unshifted", "marginal", "shifted")
_MARGINAL_RANK = 3  # the last rank that is not shifted
_FORWARD_TOKENS = 4096  # positions of one forward pass
_LOGITS = 1 << 24  # numbers of one [N,V]


class TokenShift(msgspec.Struct):
    """One token of an answer."""

    id: int
    text: str
    "For people: control tokens by name, bytes that are no whole character as \\xe4."
    piece: str
    "What it adds to the text of the answer; a cut character stands with the token that completes it."
    partial: bool
    control: bool
    rank: int
    "1 + how many tokens are strictly likelier under the base; equals do not push it back."
    category: Category
    kl: float
    "KL(aligned || base) of the next-token distributions here, nats."
    p: float
    base_p: float
    top: list[Likely]
    base_top: list[Likely]


class Shift(msgspec.Struct):
    """One answer: its tokens and how many of each category."""

    tokens: list[TokenShift]
    shares: dict[str, float]


class OneStep(msgspec.Struct):
    """What the base writes by itself once the first shifted token of an answer has been put in its place."""

    tokens: list[int]
    "The answer up to that token, which is given, then the base's likeliest ones, as many as the answer has in all."
    given: int
    "How many of them were given: 0 where no token but the end is shifted, and the base wrote all of it."
    recovered: bool
    "Whether this is the answer, its end token apart."


def category_of(rank: int) -> Category:
    """unshifted: the base would have written it too; marginal: it was its second or third choice; else shifted."""
    return "unshifted" if rank == 1 else "marginal" if rank <= _MARGINAL_RANK else "shifted"


def require_same_tokens(aligned: Opened, base: Opened) -> None:
    """Raise ValueError where two models do not read the same tokens."""
    ours, theirs = (sha256(opened.tokenizer.json)[:12] for opened in (aligned, base))
    if ours != theirs:
        raise ValueError(
            f"{aligned.path} and {base.path} have different tokenizers ({ours}, {theirs}): shifts are told token by "
            "token; name the base model that this one was raised from"
        )


def greedy_answers(opened: Opened, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Completion]:
    """The model's likeliest-token answers, in float32; the end token is included."""
    engine = Engine(in_float32(opened.model), [opened.tokenizer.end, opened.tokenizer.eos], dtype=torch.float32)
    return engine.generate(prompts, Sampling(temperature=0.0, max_tokens=max_tokens))


def shares(categories: Sequence[Category]) -> dict[str, float]:
    """Share of each category; all 0 where there is no token."""
    found, total = Counter(categories), max(1, len(categories))
    return {name: found[name] / total for name in CATEGORIES}


@torch.no_grad()
def shifts(
    aligned: Opened,
    base: Opened,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    top: int = 5,
) -> list[Shift]:
    """How far each token of answers[i] to prompts[i] is from what `base` would write there, in float32, in batches.

    Prompts and answers are token ids; both models read exactly these. Raises ValueError for different tokenizers, an
    empty prompt or answer, and one that is longer than either context.
    """
    require_same_tokens(aligned, base)
    rows = list(zip(prompts, answers, strict=True))
    for number, (prompt, answer) in enumerate(rows):
        if not prompt or not answer:
            raise ValueError(f"row {number}: prompt and answer need at least one token each")
        for opened in (aligned, base):
            check_context(opened, [*prompt, *answer[:-1]], f"row {number} (prompt and answer)")
            check_context(opened, answer[-1:], f"the end of row {number}")
    found: dict[int, Shift] = {}
    for members in _alike([len(p) + len(a) for p, a in rows]):
        group = [rows[i] for i in members]
        found.update(zip(members, _scored(aligned, base, group, top), strict=True))
    return [found[i] for i in range(len(rows))]


def shift(
    aligned: Opened, base: Opened, prompt: Sequence[int], answer: Sequence[int], *, top: int = 5
) -> Shift:  # fmt: skip
    """`shifts` of one answer."""
    return shifts(aligned, base, [prompt], [answer], top=top)[0]


def one_step(
    base: Opened, prompts: Sequence[Sequence[int]], found: Sequence[Shift], *, words: bool = False
) -> list[OneStep]:
    """Answers with only their first shifted token given, continued greedily by `base` in float32.

    found: of `shifts` with these prompts. words: the rest of that token's word is given, too, for a small vocabulary
    cuts "It" in two. Where what follows is as the aligned model wrote it, one step was all that it changed. A control
    token that ends an answer is no part of it: a base need not know it.
    """
    bodies = [s.tokens[:-1] if s.tokens[-1].control else s.tokens for s in found]
    first = [next((i for i, t in enumerate(body) if t.category == "shifted"), -1) for body in bodies]
    ends = [_word_end(body, at) if words and at >= 0 else at + 1 for body, at in zip(bodies, first, strict=True)]
    written = [[t.id for t in body] for body in bodies]
    made = {i: ids[:end] for i, (ids, end) in enumerate(zip(written, ends, strict=True))}
    left = {i: len(ids) - end for i, (ids, end) in enumerate(zip(written, ends, strict=True)) if len(ids) > end}
    if left:
        told = greedy_answers(base, [[*prompts[i], *made[i]] for i in left], max(left.values()))
        made |= {i: [*made[i], *c.tokens[:count]] for (i, count), c in zip(left.items(), told, strict=True)}
    return [OneStep(made[i], ends[i], made[i] == ids) for i, ids in enumerate(written)]


def _word_end(tokens: Sequence[TokenShift], at: int) -> int:
    """One past the last token of the word, or the Chinese character, that tokens[at] belongs to."""
    end = at + 1
    while end < len(tokens):
        before, after = tokens[end - 1].piece[-1:], tokens[end].piece[:1]
        letters = before.isalpha() and after.isalpha() and not any("\u4e00" <= c <= "\u9fff" for c in before + after)
        if before and not letters:
            break
        end += 1
    return end


def _alike(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Row numbers in groups of like length: little padding, at most _FORWARD_TOKENS positions."""
    left = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while left:
        count = max(1, _FORWARD_TOKENS // lengths[left[0]])
        yield left[:count]
        left = left[count:]


def _states(opened: Opened, tokens: Tensor, where: Tensor) -> Tensor:
    """Final states [N,D] float32 at the flat positions `where` of tokens [B,T]."""
    model = in_float32(opened.model)
    device = model.embedding.device
    return model.hidden(tokens.to(device)).flatten(0, 1)[where.to(device)]


def _scored(
    aligned: Opened, base: Opened, rows: Sequence[tuple[Sequence[int], Sequence[int]]], top: int
) -> list[Shift]:
    tokenizer, longest = aligned.tokenizer, max(len(p) + len(a) for p, a in rows) - 1
    tokens = torch.full((len(rows), longest), tokenizer.pad)  # padding is later than every token that is read
    where: list[int] = []
    for row, (prompt, answer) in enumerate(rows):
        ids = [*prompt, *answer[:-1]]
        tokens[row, : len(ids)] = torch.tensor(ids)
        first = row * longest + len(prompt) - 1  # the position that predicts the answer's first token
        where += range(first, first + len(answer))
    written = torch.tensor([token for _, answer in rows for token in answer])  # [N]
    ours, theirs = (_states(opened, tokens, torch.tensor(where)) for opened in (aligned, base))
    parts, chunk = [], max(1, _LOGITS // tokenizer.vocab_size)
    for start in range(0, len(where), chunk):
        part = slice(start, start + chunk)
        parts += _compared(aligned, base, ours[part], theirs[part], written[part], top)
    made, result = iter(parts), []
    for _, answer in rows:
        shown = [next(made) for _ in answer]
        for token, piece in zip(shown, pieces(tokenizer, answer), strict=True):
            token.piece = piece
        result.append(Shift(shown, shares([t.category for t in shown])))
    return result


def _compared(
    aligned: Opened, base: Opened, ours: Tensor, theirs: Tensor, written: Tensor, top: int
) -> list[TokenShift]:  # fmt: skip
    """States [N,D] of both models where `written` [N] were written -> one TokenShift each, without its piece."""
    tokenizer = aligned.tokenizer
    logits = float32_logits(base.model, theirs)  # [N,V]
    there = written.to(logits.device)[:, None]
    rank = 1 + (logits > logits.gather(1, there)).sum(1)
    base_logp = torch.log_softmax(logits, -1).cpu()
    logp = torch.log_softmax(float32_logits(aligned.model, ours), -1).cpu()
    kl = (logp.exp() * (logp - base_logp)).sum(1).clamp_min(0.0)  # exact distributions: below 0 only by rounding
    p, base_p = (x.gather(1, written[:, None]).squeeze(1).exp().tolist() for x in (logp, base_logp))
    tops, base_tops = (likeliest(tokenizer, x, top) for x in (logp, base_logp))
    return [
        TokenShift(
            id=i, text=tokenizer.token_text(i), piece="", partial=is_partial(tokenizer, i),
            control=i in tokenizer.special_ids, rank=r, category=category_of(r), kl=k, p=q, base_p=b, top=t, base_top=u,
        )
        for i, r, k, q, b, t, u in zip(
            written.tolist(), rank.tolist(), kl.tolist(), p, base_p, tops, base_tops, strict=True
        )
    ]  # fmt: skip
