"""The one generation engine: token ids in, completions out.

Shapes: B rows, T positions of a prompt, S positions of the cache, L layers, K key/value heads, E head width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fledge.core.kernels import attention, rms_norm
from fledge.core.model import Transformer
from fledge.generate.sampling import Sampling, draw, uniforms

LogitRule = Callable[[Tensor, Tensor], Tensor]  # (logits [B,V], tokens made so far [B,n], -1 = none) -> logits [B,V]


@dataclass
class Completion:
    """What the engine gives back for one prompt."""

    tokens: list[int] = field(default_factory=list)  # sampled tokens, the end token included
    logp: list[float] = field(default_factory=list)  # of each, under the distribution really sampled from, nats
    sampled: list[bool] = field(default_factory=list)  # False = forced: weight 0 in training
    finish: str = "length"  # "stop": ended itself; "length": max_tokens or the context was reached


class Cache:
    """Keys and values [L,B,K,S,E] with a length per row; rows can be dropped as answers finish."""

    def __init__(self, model: Transformer, rows: int, positions: int, dtype: torch.dtype, device: torch.device):
        c = model.config
        shape = (c.layers, rows, c.kv_heads, positions, c.width // c.heads)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows."""
        self.keys, self.values = self.keys.index_select(1, rows), self.values.index_select(1, rows)
        self.lengths = self.lengths[rows]


class Engine:
    """Batched generation with a static cache. The weights are the model's own: no copy, always current."""

    def __init__(self, model: Transformer, stop_ids: Sequence[int], dtype: torch.dtype | None = None):
        """stop_ids: tokens that end an answer. dtype None: float32 on CPU (bfloat16 decodes slower there), else the model's."""
        self.model = model
        self.stop_ids = list(stop_ids)
        self.device = model.embedding.device
        self.dtype = dtype or (torch.float32 if self.device.type == "cpu" else model.compute_dtype)

    def _prefill(self, prompts: Sequence[Sequence[int]], room: int) -> tuple[Cache, Tensor]:
        """Run all prompts at once, padded on the right; returns the cache and the next-token logits [B,V]."""
        model, lengths = self.model, [len(p) for p in prompts]
        longest = max(lengths)
        cache = Cache(model, len(prompts), longest + room, self.dtype, self.device)
        tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
        tokens = tokens.to(self.device)
        rotary = model.rotary(longest, self.device)
        mask = model.mask(tokens, None, self.dtype)
        x = torch.nn.functional.embedding(tokens, model.embedding).to(self.dtype)
        for i, layer in enumerate(model.layers):
            q, k, v = layer.project(x, rotary)
            cache.keys[i, :, :, :longest], cache.values[i, :, :, :longest] = k, v
            x = layer.finish(
                x, attention(q, k, v, mask=mask, doc=None, causal=True)
            )  # padding is later than every real token
        cache.lengths = torch.tensor(lengths, device=self.device)
        last = x[torch.arange(len(prompts), device=self.device), cache.lengths - 1]
        return cache, model.logits(rms_norm(last, model.norm, model.config.norm_eps))

    def _step(self, cache: Cache, tokens: Tensor) -> Tensor:
        """Append one token [B] to each row and return the next logits [B,V]."""
        model, at = self.model, cache.lengths
        rows = torch.arange(len(tokens), device=self.device)
        reach = int(at.max()) + 1
        cos, sin = model.rotary(reach, self.device)
        rotary = (cos[at][:, None, None], sin[at][:, None, None])  # [B,1,1,E/2]: each row has its own position
        mask = torch.zeros(len(tokens), 1, 1, reach, dtype=self.dtype, device=self.device)
        mask.masked_fill_(torch.arange(reach, device=self.device) > at[:, None, None, None], -torch.inf)
        x = torch.nn.functional.embedding(tokens, model.embedding).to(self.dtype)[:, None]
        for i, layer in enumerate(model.layers):
            q, k, v = layer.project(x, rotary)
            cache.keys[i, rows, :, at], cache.values[i, rows, :, at] = k[:, :, 0], v[:, :, 0]
            keys, values = cache.keys[i, :, :, :reach], cache.values[i, :, :, :reach]
            y = attention(q, keys, values, mask=mask, doc=None, causal=False)
            x = layer.finish(x, y)
        cache.lengths = at + 1
        return model.logits(rms_norm(x[:, 0], model.norm, model.config.norm_eps))

    def _check(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        if problems := sampling.problems():
            raise ValueError("; ".join(problems))
        context = self.model.config.context_tokens
        for row, prompt in enumerate(prompts):
            if not prompt:
                raise ValueError(f"prompt {row} has no tokens: give at least one (the template starts with <|bos|>)")
            if len(prompt) >= context:
                raise ValueError(
                    f"prompt {row} has {len(prompt)} tokens, the model's context is {context}: shorten it or drop old turns"
                )

    @torch.inference_mode()
    def steps(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        rules: Sequence[LogitRule] = (),
        streams: Sequence[int] | None = None,
    ) -> Iterator[list[tuple[int, int, float, str | None]]]:
        """Yield, per decode step, (row, token, logp, finish or None) of every row still writing.

        streams: which random stream each row draws from; None numbers the rows.
        """
        self._check(prompts, sampling)
        context = self.model.config.context_tokens
        limits = torch.tensor([min(sampling.max_tokens, context - len(p)) for p in prompts])
        room = int(limits.max())
        chance = uniforms(sampling.seed, range(len(prompts)) if streams is None else streams, room).to(self.device)
        alive = torch.arange(len(prompts))
        made = torch.full((len(prompts), room), -1, dtype=torch.long, device=self.device)
        stops = torch.tensor(self.stop_ids, device=self.device)
        cache, logits = self._prefill(prompts, room)
        for n in range(room):
            live = alive.to(self.device)
            for rule in rules:
                logits = rule(logits, made[live, :n])
            token, logp = draw(logits, sampling, chance[live, n])
            made[live, n] = token
            stopped = torch.isin(token, stops).cpu()
            finished = stopped | (n + 1 >= limits[alive])
            finish = ["stop" if s else "length" if f else None for s, f in zip(stopped, finished, strict=True)]
            yield list(zip(alive.tolist(), token.tolist(), logp.tolist(), finish, strict=True))
            if bool(finished.all()):
                return
            if bool(finished.any()):
                keep = (~finished).nonzero().squeeze(1)
                alive, token = alive[keep], token[keep.to(self.device)]
                cache.keep(keep.to(self.device))
            logits = self._step(cache, token)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        rules: Sequence[LogitRule] = (),
        batch_rows: int = 128,
    ) -> list[Completion]:
        """Completions in the order of the prompts; prompts of like length share a batch."""
        self._check(prompts, sampling)  # all of them, before any work
        done = [Completion() for _ in prompts]
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(prompts), batch_rows):
            members = by_length[start : start + batch_rows]
            batch = [prompts[i] for i in members]
            for events in self.steps(batch, sampling, rules, streams=members):
                for row, token, logp, finish in events:
                    c = done[members[row]]
                    c.tokens.append(token)
                    c.logp.append(logp)
                    c.sampled.append(True)
                    c.finish = finish or c.finish
        return done
