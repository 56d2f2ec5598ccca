"""Memorisation: verbatim recall, and the adversarial compression ratio (ACR) of Schwarzschild et al. 2024 (2404.15146).

    recall     what greedy decoding writes after the beginning of a text, against the text
    compress   the shortest prompt found that makes greedy decoding write the whole text: ACR = its tokens / the prompt's;
               above 1 the model holds the text in less than the text itself says

The shortest prompt is looked for as in the paper's MiniPrompt: from a length, one shorter after each success, some longer
and with more steps after each failure. A prompt of one token is looked for among all tokens, so there the answer is exact;
longer ones by greedy coordinate gradient (GCG, Zou et al. 2023): the gradient at the one-hot prompt names good
replacements, a sample of them is tried, the best is taken even if it is worse. What is not found may still be there: ACR is a
lower bound, and `found` says whether there was a prompt at all.
Shapes: R restarts, C candidates, n prompt tokens, y target tokens, T = 1 + n + y - 1 positions, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import torch
from torch import Tensor
from torch.nn import functional

from fledge.core.config import Settings
from fledge.core.model import Transformer
from fledge.generate.engine import Engine
from fledge.generate.sampling import Sampling
from fledge.generate.scoring import Asked, score
from fledge.probe.reading import float32_logits, in_float32

Ids = Sequence[int]


def edit_distance(a: Sequence[object], b: Sequence[object]) -> int:
    """Fewest insertions, deletions and replacements that make `a` into `b` (Levenshtein 1966); characters or tokens."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def rouge_l(a: Sequence[object], b: Sequence[object]) -> float:
    """F1 of the longest common subsequence (Lin 2004, section 3), from 0 to 1."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    return 2 * row[-1] / max(1, len(a) + len(b))


class Recall(msgspec.Struct, frozen=True):
    """What a model wrote after the beginning of a text."""

    written: list[int]
    "Tokens it wrote, at most as many as the text has left."
    exact: bool
    "Whether they are the text's."
    prefix: int
    "Tokens that are the text's before the first that is not."
    distance: float
    "Edit distance in tokens over the longer length: 0 where exact."
    rouge_l: float
    "F1 of the longest common subsequence of tokens."


class Search(Settings, frozen=True, kw_only=True):
    """How hard a prompt is looked for; the paper's own values are start 5, step 5, top 250, candidates 100, steps 200."""

    start: int = 5
    "Length of prompt that is tried first, in tokens; 1 is tried before it where that is exhaustive."
    step: int = 5
    "Tokens more after a failure."
    longest: float = 5.0
    "Prompts are tried up to this many times the text's length; where none is found, ACR is said to be 1 over this."
    growth: float = 1.2
    "Steps are multiplied by this after a failure."
    top: int = 64
    "Replacements named by the gradient, for each token of the prompt."
    candidates: int = 64
    "Replacements tried in a step, for each restart."
    steps: int = 60
    "Steps of a search."
    restarts: int = 3
    "Searches from different prompts, side by side."
    seed: int = 0
    "Seed of prompts and replacements."

    def problems(self) -> list[str]:
        low = [n for n in ("start", "step", "top", "candidates", "steps", "restarts") if getattr(self, n) < 1]
        found = [f"{name} = {getattr(self, name)}: must be at least 1" for name in low]
        found += [
            f"{n} = {getattr(self, n)}: must be at least 1" for n in ("longest", "growth") if getattr(self, n) < 1
        ]
        return found + [f"seed = {self.seed}: must be at least 0"] * (self.seed < 0)


class Compressed(msgspec.Struct, frozen=True):
    """The shortest prompt that was found."""

    ratio: float
    "Tokens of the text for each of the prompt; 1 / Search.longest where no prompt was found."
    prompt: list[int]
    "Tokens after <bos>; empty where none was found."
    found: bool
    "Whether a prompt was found: not found is no proof that there is none."
    tried: list[int]
    "Lengths in the order they were tried."


def recall(model: Transformer, bos: int, texts: Sequence[Ids], begin: int) -> list[Recall]:
    """Greedy continuation of the first `begin` tokens of each text, against the rest of it.

    Raises ValueError for a text that has no more than `begin` tokens, or does not fit the model's context.
    """
    _check(model, texts)
    if begin < 0 or (short := [i for i, t in enumerate(texts) if len(t) <= begin]):
        raise ValueError(f"begin = {begin}: must be at least 0 and less than each text's tokens ({short[:3] or 'all'})")
    rests = [list(text[begin:]) for text in texts]
    engine = Engine(in_float32(model), stop_ids=[])
    prompts = [[bos, *text[:begin]] for text in texts]
    written = engine.generate(prompts, Sampling(temperature=0.0, max_tokens=max(map(len, rests), default=1)))
    return [_recalled(told.tokens[: len(rest)], rest) for told, rest in zip(written, rests, strict=True)]


def _recalled(written: list[int], rest: list[int]) -> Recall:
    same = next(
        (i for i, (a, b) in enumerate(zip(written, rest, strict=False)) if a != b), min(len(written), len(rest))
    )
    far = edit_distance(written, rest) / max(len(written), len(rest))
    return Recall(written, written == rest, same, far, rouge_l(written, rest))


def one_token_prompt(model: Transformer, bos: int, target: Ids, allowed: Sequence[int]) -> int | None:
    """The token after which greedy decoding writes `target`, the likeliest if there are several; None if there is none.

    All `allowed` tokens are tried; only those that lead to the first token of the target are read further.
    """
    first = [s.greedy for s in score(model, [Asked([bos, v], target[:1]) for v in allowed])]
    left = [v for v, good in zip(allowed, first, strict=True) if good]
    scored = [
        (s.logp, v)
        for s, v in zip(score(model, [Asked([bos, v], target) for v in left]), left, strict=True)
        if s.greedy
    ]
    return max(scored)[1] if scored else None


class Gcg:
    """Searches for a prompt of a given length, `restarts` of them side by side."""

    def __init__(self, model: Transformer, bos: int, target: Ids, allowed: Sequence[int], search: Search):
        self.model, self.search, self.bos = in_float32(model), search, bos
        self.device = model.embedding.device
        self.target = torch.tensor(list(target), device=self.device)
        self.allowed = torch.tensor(list(allowed), device=self.device)
        self.dice = torch.Generator().manual_seed(search.seed)  # on the CPU, so that devices draw alike

    def _rows(self, prompts: Tensor) -> Tensor:
        """[B,n] -> [B,T]: <bos>, the prompt, and the target but for its last token."""
        rows = len(prompts)
        start = torch.full((rows, 1), self.bos, device=self.device)
        return torch.cat((start, prompts, self.target[:-1].expand(rows, -1)), 1)

    def _loss(self, hidden: Tensor) -> Tensor:
        """States [R,T,D] -> nats [R] of the target in the mean."""
        wanted = self.target.expand(len(hidden), -1)
        states = hidden[:, -len(self.target) :]
        logits = float32_logits(self.model, states.float().flatten(0, 1)).view(*states.shape[:2], -1)
        return functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none").mean(1)

    def gradient(self, prompts: Tensor) -> Tensor:
        """[R,n,A]: how the loss changes, to first order, with the weight of each allowed token at each place."""
        leaves: list[Tensor] = []

        def catch(block: torch.nn.Module, given: tuple) -> tuple:
            leaves.append(given[0].detach().requires_grad_())
            return leaves[0], *given[1:]

        hook = self.model.layers[0].register_forward_pre_hook(catch)
        try:
            with torch.enable_grad():
                loss = self._loss(self.model.hidden(self._rows(prompts)))
                (slope,) = torch.autograd.grad(loss.sum(), leaves)
        finally:
            hook.remove()
        rows = self.model.embed(self.allowed, torch.float32).detach()  # scaled as the model reads them
        return slope[:, 1 : 1 + prompts.shape[1]].float() @ rows.T

    def losses(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """[B,n] -> loss [B] in nats per token and success [B], on the CPU."""
        target = self.target.tolist()
        scored = score(self.model, [Asked([self.bos, *prompt], target) for prompt in prompts.tolist()])
        return torch.tensor([-s.logp / len(target) for s in scored]), torch.tensor([s.greedy for s in scored])

    def _candidates(self, prompts: Tensor) -> Tensor:
        """[R,C,n]: each prompt with one token replaced by one of the `top` that the gradient names there."""
        restarts, length = prompts.shape
        top = min(self.search.top, len(self.allowed))
        named = self.allowed[self.gradient(prompts).topk(top, largest=False).indices]  # [R,n,top]
        shape = restarts, self.search.candidates
        place = torch.randint(length, shape, generator=self.dice).to(self.device)
        which = torch.randint(top, shape, generator=self.dice).to(self.device)
        restart = torch.arange(restarts, device=self.device)[:, None]
        tried = prompts[:, None].repeat(1, self.search.candidates, 1)
        return tried.scatter(2, place[..., None], named[restart, place, which][..., None])

    def run(self, length: int, steps: int) -> list[int] | None:
        """A prompt of this length after which greedy decoding writes the target; None if none was found."""
        drawn = torch.randint(len(self.allowed), (self.search.restarts, length), generator=self.dice)
        prompts = self.allowed[drawn.to(self.device)]
        for _ in range(steps):
            tried = self._candidates(prompts)
            loss, good = self.losses(tried.flatten(0, 1))
            if good.any():
                return tried.flatten(0, 1)[int(good.nonzero()[0])].tolist()
            best = loss.view(tried.shape[:2]).argmin(1).to(self.device)
            prompts = tried[torch.arange(len(tried), device=self.device), best]
        return None


def compress(
    model: Transformer, bos: int, target: Ids, allowed: Sequence[int], search: Search | None = None
) -> Compressed:
    """The shortest prompt found among `allowed` tokens after which greedy decoding writes `target`.

    Raises ValueError where the target is empty or too long, a setting breaks a rule, or the model is not one of ours.
    """
    search = search or Search()
    if problems := search.problems():
        raise ValueError("; ".join(problems))
    if not isinstance(model, Transformer):
        raise ValueError(f"{type(model).__name__}: prompts are searched by the gradient of a model of our families")
    _check(model, [target])
    one, tried = one_token_prompt(in_float32(model), bos, target, allowed), [1]
    if one is not None:
        return Compressed(float(len(target)), [one], True, tried)
    gcg, best = Gcg(model, bos, target, allowed, search), None
    most = min(int(search.longest * len(target)), model.config.context_tokens - len(target))
    length, steps = min(max(2, search.start), max(2, most)), float(search.steps)
    while 2 <= length <= most and length not in tried:
        tried.append(length)
        prompt = gcg.run(length, round(steps))
        if prompt is not None:
            best, length = prompt, length - 1
        elif best is not None:
            break  # one longer has been found
        else:
            length, steps = length + search.step, steps * search.growth
    if best is None:
        return Compressed(1 / search.longest, [], False, tried)
    return Compressed(len(target) / len(best), best, True, tried)


def _check(model: Transformer, texts: Sequence[Ids]) -> None:
    context = model.config.context_tokens
    if wrong := [i for i, text in enumerate(texts) if not 1 <= len(text) < context]:
        raise ValueError(
            f"text {wrong[0]} has {len(texts[wrong[0]])} tokens: must be 1 to {context - 1}, the model reads {context}"
        )
