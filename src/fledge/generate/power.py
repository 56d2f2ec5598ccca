"""Power sampling: whole answers from p^alpha, by Metropolis-Hastings on suffixes (Karan and Du 2025, algorithm 1).

Not the same as temperature 1/alpha, which sharpens one token at a time: p^alpha weighs a first token by all that may
follow it, and prefers one likely future to many unlikely ones.

An answer grows by blocks. Within the tokens it has, a step draws a cut uniformly, writes the rest anew at the proposal's
temperature, and takes it with probability

    min(1, p(new)^alpha q(old) / (p(old)^alpha q(new)) * len(old) / len(new))

where p and q are those of the whole suffixes, their end tokens included; the last factor belongs to the cut, which is
drawn from as many places as the answer has tokens. (The authors' code sums the old suffix only as far as the new one
goes and leaves that factor out, which favours short answers.) Shapes: B answers, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch

from fledge.core.config import Settings
from fledge.generate.engine import Engine
from fledge.generate.sampling import Sampling

_BATCH_ROWS = 64  # of one forward pass


class PowerSampling(Settings, frozen=True, kw_only=True):
    """How p^alpha is sampled."""

    alpha: float = 4.0
    "Exponent on the probability of a whole answer; 1 is the model itself."
    temperature: float | None = None
    "Temperature of the proposal; none is 1/alpha."
    steps: int = 10
    "Metropolis-Hastings steps after each block."
    blocks: int = 4
    "Blocks an answer grows by."
    max_tokens: int = 32
    "Longest answer in tokens."
    climb: bool = False
    "Take only what is likelier: a search for the likeliest answer instead of a sample."
    seed: int = 0
    "Seed of all draws."

    def problems(self) -> list[str]:
        found = [f"alpha = {self.alpha}: must be at least 1"] if self.alpha < 1 else []
        if self.temperature is not None and self.temperature <= 0:
            found.append(f"temperature = {self.temperature}: must be above 0; none is 1/alpha")
        if self.steps < 0:
            found.append(f"steps = {self.steps}: must be at least 0")
        if not 1 <= self.blocks <= self.max_tokens:
            found.append(f"blocks = {self.blocks}: must be between 1 and max_tokens = {self.max_tokens}")
        return found

    def proposal(self) -> float:
        """Temperature of the proposal."""
        return self.temperature or 1 / self.alpha


class Drawn(NamedTuple):
    """One answer from p^alpha."""

    tokens: list[int]  # the end token included
    logp: float  # nats under the model itself
    stopped: bool  # ended itself
    taken: float  # share of the steps whose proposal was taken
    written: int  # tokens sampled in all, proposals included


class Writer(Protocol):
    """A distribution over texts that can be sampled and scored: an engine's, or a table."""

    stop_ids: Sequence[int]

    def write(
        self, prefixes: Sequence[Sequence[int]], max_tokens: int, temperature: float, seed: int
    ) -> list[list[int]]:
        """A continuation of each prefix, up to a stop token (included) or max_tokens."""
        ...

    def logps(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], temperature: float
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Log-probabilities [n], [n] of each answer's tokens, at temperature 1 and at `temperature`; nats."""
        ...


class EngineWriter:
    """What an engine's model writes; both scores of a token come from one forward pass in float32."""

    def __init__(self, engine: Engine):
        self.engine, self.stop_ids = engine, engine.stop_ids

    def write(
        self, prefixes: Sequence[Sequence[int]], max_tokens: int, temperature: float, seed: int
    ) -> list[list[int]]:
        sampling = Sampling(temperature=temperature, max_tokens=max_tokens, seed=seed)
        return [completion.tokens for completion in self.engine.generate(prefixes, sampling)]

    @torch.inference_mode()
    def logps(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], temperature: float
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        model, found = self.engine.model, [(np.zeros(0), np.zeros(0))] * len(prompts)
        rows = sorted((i for i in range(len(prompts)) if answers[i]), key=lambda i: len(prompts[i]) + len(answers[i]))
        for start in range(0, len(rows), _BATCH_ROWS):
            batch = rows[start : start + _BATCH_ROWS]
            texts = [[*prompts[i], *answers[i]] for i in batch]
            longest = max(map(len, texts))
            tokens = torch.tensor([text + [0] * (longest - len(text)) for text in texts], device=self.engine.device)
            hidden = model.hidden(tokens[:, :-1])  # [B,T,D]
            for row, i in enumerate(batch):
                first, last = len(prompts[i]) - 1, len(texts[row]) - 1
                logits = model.logits(hidden[row, first:last]).float()  # [n,V]
                chosen = tokens[row, first + 1 : last + 1, None]
                plain, sharp = (
                    torch.log_softmax(scaled, -1).gather(1, chosen).squeeze(1).double().cpu().numpy()
                    for scaled in (logits, logits / temperature)
                )
                found[i] = plain, sharp
        return found


class _Chain:
    """The answers of all prompts, at once."""

    def __init__(self, writer: Writer, prompts: Sequence[Sequence[int]], how: PowerSampling):
        self.writer, self.prompts, self.how = writer, [list(p) for p in prompts], how
        self.dice, self.calls = np.random.default_rng([how.seed, 8]), 0
        self.answers: list[list[int]] = [[] for _ in prompts]
        self.scores = [(np.zeros(0), np.zeros(0))] * len(prompts)
        self.tries, self.taken, self.written = (np.zeros(len(prompts)) for _ in range(3))

    def ended(self, row: int) -> bool:
        return bool(self.answers[row]) and self.answers[row][-1] in self.writer.stop_ids

    def _propose(self, rows: Sequence[int], cuts: Sequence[int], length: int) -> list[list[int]]:
        """Each row's answer up to its cut, and then what is written anew up to `length` tokens in all."""
        kept = [self.answers[row][:cut] for row, cut in zip(rows, cuts, strict=True)]
        self.calls += 1
        seed = int(np.random.SeedSequence([self.how.seed, self.calls]).generate_state(1)[0])
        prefixes = [self.prompts[row] + head for row, head in zip(rows, kept, strict=True)]
        rests = self.writer.write(prefixes, length - min(cuts), self.how.proposal(), seed)
        # a longer sample cut short is a sample of that length
        found = [head + rest[: length - len(head)] for head, rest in zip(kept, rests, strict=True)]
        for row, answer, head in zip(rows, found, kept, strict=True):
            self.written[row] += len(answer) - len(head)
        return found

    def grow(self, length: int) -> None:
        """Answers that have not ended, up to `length` tokens."""
        rows = [row for row in range(len(self.prompts)) if not self.ended(row)]
        if not rows:
            return
        found = self._propose(rows, [len(self.answers[row]) for row in rows], length)
        scores = self.writer.logps([self.prompts[row] for row in rows], found, self.how.proposal())
        for row, answer, score in zip(rows, found, scores, strict=True):
            self.answers[row], self.scores[row] = answer, score

    def step(self, length: int) -> None:
        """One proposal for every answer, taken or not."""
        rows = range(len(self.prompts))
        cuts = [int(self.dice.integers(len(answer))) for answer in self.answers]
        found = self._propose(rows, cuts, length)
        scores = self.writer.logps(self.prompts, found, self.how.proposal())
        chance = np.log1p(-self.dice.random(len(rows)))  # of (0, 1], so that its log is finite
        for row, cut, answer, score in zip(rows, cuts, found, scores, strict=True):
            (old_p, old_q), (new_p, new_q) = ([s[cut:].sum() for s in both] for both in (self.scores[row], score))
            ratio = self.how.alpha * (new_p - old_p) + old_q - new_q + np.log(len(self.answers[row]) / len(answer))
            self.tries[row] += 1
            if (new_p > old_p) if self.how.climb else (chance[row] < ratio):
                self.answers[row], self.scores[row] = answer, score
                self.taken[row] += 1


def power_sample(writer: Writer, prompts: Sequence[Sequence[int]], how: PowerSampling) -> list[Drawn]:
    """An answer to each prompt from p^alpha, all chains side by side; exact in the limit of many steps.

    Raises ValueError for settings that break a rule and for what the writer cannot read (a prompt needs room for
    max_tokens in the model's context).
    """
    if problems := how.problems():
        raise ValueError("; ".join(problems))
    if not prompts:
        return []
    if isinstance(writer, EngineWriter):
        context, longest = writer.engine.model.config.context_tokens, max(map(len, prompts))
        if longest + how.max_tokens > context:
            raise ValueError(
                f"max_tokens = {how.max_tokens}: a prompt of {longest} tokens leaves {context - longest} of the model's "
                "context; shorten one of them"
            )
    chain = _Chain(writer, prompts, how)
    for block in range(1, how.blocks + 1):
        length = round(block * how.max_tokens / how.blocks)
        chain.grow(length)
        for _ in range(how.steps):
            chain.step(length)
    return [
        Drawn(answer, float(score[0].sum()), chain.ended(row), float(chain.taken[row] / max(1, chain.tries[row])),
              int(chain.written[row]))
        for row, (answer, score) in enumerate(zip(chain.answers, chain.scores, strict=True))
    ]  # fmt: skip
