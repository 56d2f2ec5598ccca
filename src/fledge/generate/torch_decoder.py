"""Decoding in plain torch operations: the path of CUDA, and the slow twin of the compiled loop.

Shapes: B rows or slots, A answers, n longest answer, L layers, K key/value heads, G query heads of each, E head width,
S positions of the cache, V vocabulary.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fledge.core.kernels import attention
from fledge.core.model import Transformer
from fledge.generate.sampling import Sampling, draw

_LOOK_STEPS = {"cpu": 1, "cuda": 8}  # steps between looks at who has stopped: a look waits for the device


class DecodesItself(nn.Module):
    """A model that is not core.model.Transformer and brings a decoder of its own, with what TorchDecoder has."""

    def decoder(self, dtype: torch.dtype, slots: int, positions: int):
        """Room for `slots` sequences of `positions`."""
        raise NotImplementedError


class TorchDecoder:
    """A static cache of `slots` sequences of at most `positions`, and the step that appends a token to each."""

    def __init__(self, model: Transformer, dtype: torch.dtype, slots: int, positions: int):
        self.model, self.dtype, self.device = model, dtype, model.embedding.device
        c = model.config
        self.virtual = 0 if model.adapter is None else model.adapter.virtual  # learned positions before every prompt
        positions += self.virtual
        self.kv_heads, self.size, self.positions = c.kv_heads, c.head_width, positions
        shape = (c.layers, slots * c.kv_heads, positions, self.size)
        self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=self.device) for _ in range(2))
        self.hidden = torch.full((slots * c.kv_heads, positions, 1), -torch.inf, dtype=dtype, device=self.device)
        self.at = torch.zeros(slots, dtype=torch.long, device=self.device)  # [B] positions a slot has filled
        self.rotary = model.rotaries(positions, self.device)  # of each kind of layer
        self.turns = {  # [S,E] each: x cos + (x's halves swapped) sin
            kind: (torch.cat((cos, cos), 1), torch.cat((-sin, sin), 1)) for kind, (cos, sin) in self.rotary.items()
        }
        self.plain = model.plain
        self.kinds = [(layer.positions, layer.windowed, layer.scale) for layer in model.layers]
        self.layers = [[self._cast(w) for w in layer.plain_parts()] for layer in model.layers if self.plain]
        self.norm, self.head = self._cast(model.norm), self._cast(model.head_weight)
        self.embedding = model.embedding_weight

    def _cast(self, weight: Tensor | None) -> Tensor | None:
        return None if weight is None else weight.to(self.dtype)  # the weights themselves if they are of this dtype

    def prefill(self, prompts: Sequence[Sequence[int]], slots: Tensor, which: Tensor) -> Tensor:
        """Read prompts, padded on the right, and give slots [B] the prompts of which [B]; next-token logits [B,V]."""
        model, longest = self.model, max(map(len, prompts))
        tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
        tokens, lengths = tokens.to(self.device), torch.tensor([len(p) for p in prompts]).to(self.device)
        x = model.embed(tokens, self.dtype)
        if self.virtual:
            x, rotary, masks = model.adapter.lead(model, x, None)
            longest, lengths = longest + self.virtual, lengths + self.virtual
        else:
            rotary, masks = model.rotaries(longest, self.device), model.masks(tokens, None, self.dtype)
        for i, layer in enumerate(model.layers):
            q, k, v = layer.project(x, rotary[layer.positions])
            if "prefix" in layer.adapters:
                k, v = layer.adapters["prefix"](k, v)
            for cache, new in ((self.keys[i], k), (self.values[i], v)):
                cache.view(-1, self.kv_heads, self.positions, self.size)[slots, :, :longest] = new[which]
            # padding is later than every real token
            y = attention(q, k, v, mask=masks[layer.windowed], doc=None, causal=True)
            x = layer.finish(x, y)
        last = x[torch.arange(len(prompts), device=self.device), lengths - 1 - longest + x.shape[1]]
        self.at[slots] = lengths[which]
        seen = torch.arange(self.positions, device=self.device) < lengths[which, None]
        hidden = self.hidden.view(-1, self.kv_heads, self.positions)
        hidden[slots] = torch.zeros(seen.shape, dtype=self.dtype, device=self.device).masked_fill_(~seen, -torch.inf)[
            :, None
        ]
        return model.logits(model.final_norm(last))[which]

    def step(self, tokens: Tensor, reach: int) -> Tensor:
        """Append a token [B] to each slot; next logits [B,V] float32. reach: no slot has more text after it."""
        reach = min(reach + self.virtual, self.positions)
        rows, eps, at = len(tokens), self.model.config.norm_eps, self.at
        width, size, kv = self.model.config.width, self.size, self.kv_heads
        place = (torch.arange(rows * kv, device=self.device).view(rows, kv) * self.positions + at[:, None]).flatten()
        self.hidden.view(-1).index_fill_(0, place, 0.0)
        hidden = self._hidden(reach)
        if not self.plain:
            return self._step_by_blocks(tokens, place, hidden)
        turns = {kind: (cos[at][:, None], sin[at][:, None]) for kind, (cos, sin) in self.turns.items()}  # [B,1,E]
        x = functional.embedding(tokens, self.embedding).to(self.dtype)  # [B,D]
        for i, (norm, qkv, bias, q_norm, k_norm, out, ffn_norm, gate_up, down) in enumerate(self.layers):
            positions, windowed, scale = self.kinds[i]
            heads = functional.linear(functional.rms_norm(x, (width,), norm, eps), qkv, bias).view(rows, -1, size)
            looking, v = heads.split((heads.shape[1] - kv, kv), 1)  # queries and keys [B,H+K,E], values [B,K,E]
            if q_norm is not None:
                q, k = looking.split((looking.shape[1] - kv, kv), 1)
                q, k = functional.rms_norm(q, (size,), q_norm, eps), functional.rms_norm(k, (size,), k_norm, eps)
                looking = torch.cat((q, k), 1)
            q, k = self._turn(looking, *turns[positions]).split((looking.shape[1] - kv, kv), 1)
            y = self._look(i, place, q, k, v, hidden[windowed], scale)
            x = torch.addmm(x, y.view(rows, -1), out.t())
            gate, up = functional.linear(functional.rms_norm(x, (width,), ffn_norm, eps), gate_up).chunk(2, -1)
            x = torch.addmm(x, functional.silu(gate).mul_(up), down.t())
        return functional.linear(functional.rms_norm(x, (width,), self.norm, eps), self.head).float()

    def _hidden(self, reach: int) -> tuple[Tensor, Tensor]:
        """What to add to the scores [B*K,reach,G] of layers that see everything, and of windowed ones."""
        full, window = self.hidden[:, :reach], self.model.config.window
        if window is None:
            return full, full
        at = self.at[:, None].clamp(max=reach - 1)  # an idle slot may be further; seeing nothing would make it NaN
        gone = torch.arange(reach, device=self.device) <= at - window  # [B,reach]
        return full, full.masked_fill(gone.repeat_interleave(self.kv_heads, 0)[..., None], -torch.inf)

    def _look(self, i: int, place: Tensor, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, scale: float) -> Tensor:
        """Write keys and values [B,K,E] of layer i to the cache; what queries [B,H,E] find there: [B*K,G,E]."""
        size, reach = self.size, hidden.shape[1]
        self.keys[i].view(-1, size).index_copy_(0, place, k.reshape(-1, size))
        self.values[i].view(-1, size).index_copy_(0, place, v.reshape(-1, size))
        keys, values = self.keys[i, :, :reach], self.values[i, :, :reach]  # [B*K,reach,E]
        q = q.reshape(len(place), -1, size).transpose(1, 2)
        scores = torch.baddbmm(hidden, keys, q, alpha=scale)  # [B*K,reach,G]: keys first reads memory in order
        return torch.bmm(torch.softmax(scores.transpose(1, 2), -1), values)

    def _step_by_blocks(self, tokens: Tensor, place: Tensor, hidden: tuple[Tensor, Tensor]) -> Tensor:
        """step() for any kind of block, by the model's own code."""
        model, rows, at = self.model, len(tokens), self.at
        rotary = {kind: (cos[at, None, None], sin[at, None, None]) for kind, (cos, sin) in self.rotary.items()}
        x = model.embed(tokens[:, None], self.dtype)  # [B,1,D]
        for i, layer in enumerate(model.layers):
            q, k, v = (part.squeeze(2) for part in layer.project(x, rotary[layer.positions]))
            y = self._look(i, place, q, k, v, hidden[layer.windowed], 1.0)  # project() has scaled the queries
            x = layer.finish(x, y.view(rows, -1, 1, self.size))
        return model.logits(model.final_norm(x[:, 0]))

    @staticmethod
    def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate x [B,heads,E] (rotate_heads of kernels.py)."""
        return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)

    def keep(self, slots: Tensor) -> None:
        """Keep only these slots."""
        rows = (slots[:, None] * self.kv_heads + torch.arange(self.kv_heads, device=self.device)).flatten()
        self.keys, self.values = self.keys.index_select(1, rows), self.values.index_select(1, rows)
        self.hidden, self.at = self.hidden[rows], self.at[slots]


class TorchBatch:
    """Prompts answered in step, by a caller that draws by itself: logits [B,V] after each step; rows leave as they finish."""

    draw = staticmethod(draw)

    def __init__(self, decoder: TorchDecoder, prompts: Sequence[Sequence[int]]):
        self.decoder, self.reach = decoder, max(map(len, prompts))
        every = torch.arange(len(prompts), device=decoder.device)
        self.logits = decoder.prefill(prompts, every, every)

    def step(self, tokens: Tensor) -> None:
        """Append a token [B] to each row."""
        self.reach += 1
        self.logits = self.decoder.step(tokens, self.reach)
        self.decoder.at += 1

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.decoder.keep(rows)


class TorchRun:
    """Answers A prompts x samples in the slots of a decoder; everything about a slot stays on the device.

    A slot without an answer writes to row A of the results, which nobody reads.
    """

    def __init__(
        self, decoder: TorchDecoder, prompts: Sequence[Sequence[int]], samples: int, sampling: Sampling, limits: Tensor,
        chance: Tensor, stop_ids: Sequence[int], slots: int,
    ):  # fmt: skip
        """limits [A] int64: most tokens of each answer; chance [A,n] float32."""
        device, self.answers, longest = decoder.device, len(limits), int(limits.max())
        self.decoder, self.prompts, self.samples, self.sampling = decoder, prompts, samples, sampling
        self.limits = functional.pad(limits, (0, 1), value=1).to(device)
        self.chance = functional.pad(chance, (0, 0, 0, 1)).to(device)
        self.stops = torch.tensor(stop_ids, dtype=torch.long, device=device)
        self.tokens = torch.full((self.answers + 1, longest), -1, device=device)
        self.logp = torch.zeros(self.answers + 1, longest, device=device)
        self.lengths = torch.zeros(self.answers + 1, dtype=torch.long, device=device)
        self.stopped = torch.zeros(self.answers + 1, dtype=torch.bool, device=device)
        self.answer = torch.full((slots,), self.answers, device=device)  # [B] which answer a slot writes
        self.made, self.token = torch.zeros_like(self.answer), torch.zeros_like(self.answer)
        self.reach = torch.zeros(slots, dtype=torch.long)  # on the host: at least the positions each slot has filled
        self.next = 0

    def run(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """tokens [A,n], logp [A,n], lengths [A], stopped [A] of Samples, on the CPU."""
        decoder, step = self.decoder, 0
        every = _LOOK_STEPS.get(decoder.device.type, 8)
        while True:
            if step % every == 0 and not self._refill():
                break
            step += 1
            self.reach = (self.reach + 1).clamp_(max=decoder.positions)
            logits = decoder.step(self.token, int(self.reach.max()))
            decoder.at += self.answer < self.answers
            self._append(slice(None), logits)
        return tuple(t[: self.answers].cpu() for t in (self.tokens, self.logp, self.lengths, self.stopped))

    def _refill(self) -> bool:
        """Free slots take the answers that wait, a few at a time; with none waiting the batch shrinks. False: all done."""
        busy = (self.answer < self.answers).cpu()
        waiting, total = self.answers - self.next, len(busy)
        while waiting and total - int(busy.sum()) >= min(waiting, max(1, total // 8)):
            slots = (~busy).nonzero().squeeze(1)[:waiting]
            answers = torch.arange(self.next, self.next + len(slots))
            self.next += len(slots)
            asked, which = (answers // self.samples).unique_consecutive(return_inverse=True)
            prompts = [self.prompts[p] for p in asked.tolist()]
            self.reach[slots] = torch.tensor([len(p) for p in prompts])[which]
            there = slots.to(self.decoder.device)
            logits = self.decoder.prefill(prompts, there, which.to(self.decoder.device))
            self.answer[there], self.made[there] = answers.to(self.decoder.device), 0
            self._append(there, logits)
            busy, waiting = (self.answer < self.answers).cpu(), self.answers - self.next
        self.reach[~busy] = 0
        if 0 < int(busy.sum()) <= total // 2:
            kept = busy.nonzero().squeeze(1)
            there = kept.to(self.decoder.device)
            self.decoder.keep(there)
            self.reach = self.reach[kept]
            self.answer, self.made, self.token = self.answer[there], self.made[there], self.token[there]
        return bool(busy.any())

    def _append(self, slots: Tensor | slice, logits: Tensor) -> None:
        """Draw a token for each of these slots and write it down."""
        answer, made = self.answer[slots], self.made[slots]
        token, logp = draw(logits, self.sampling, self.chance[answer, made])
        self.tokens[answer, made], self.logp[answer, made] = token, logp
        made = made + 1
        stop = torch.isin(token, self.stops)
        self.lengths[answer], self.stopped[answer] = made, stop
        ended = stop | (made >= self.limits[answer])
        self.token[slots] = token
        self.answer[slots] = answer.masked_fill(ended, self.answers)
        self.made[slots] = made.masked_fill(ended, 0)


class TorchSlots:
    """What Live needs of a decoder whose slots each have their own sampling; NativeSlots' slow twin."""

    def __init__(self, decoder: TorchDecoder, slots: int, stop_ids: Sequence[int]):
        self.decoder, self.stops = decoder, frozenset(stop_ids)
        self.answers: dict[
            int, tuple[list[int], Sampling, int, Tensor]
        ] = {}  # by slot: prompt, sampling, limit, chance
        self.made = [0] * slots
        self.reach = [0] * slots  # positions that a busy slot has filled
        self.token = torch.zeros(slots, dtype=torch.long)

    def join(self, free: list[int], prompt: Sequence[int], sampling: Sampling, limit: int, chance: Tensor) -> int:
        """Start an answer of at most `limit` tokens, drawn by the uniforms of chance [limit]; the slot taken from `free`."""
        slot = free.pop()
        self.answers[slot] = list(prompt), sampling, limit, chance
        self.made[slot] = self.reach[slot] = 0
        return slot

    def leave(self, slot: int) -> None:
        del self.answers[slot]

    def go(self, steps: int, seconds: float) -> list[tuple[int, list[int], list[float], str | None]]:
        """(slot, tokens, logp, finish) of every slot that got a token in at most so many steps or seconds."""
        end, found = time.monotonic() + seconds, {}
        for _ in range(steps):
            if not self.answers:
                break
            fresh = [slot for slot in self.answers if not self.made[slot]]
            if fresh:
                self._draw(fresh, self._read(fresh), found)
            else:
                self._draw(list(self.answers), self._step(), found)
            if fresh or time.monotonic() >= end:
                break
        return [(slot, *written) for slot, written in found.items()]

    def _read(self, slots: list[int]) -> Tensor:
        """Read the prompts of these slots; logits [B,V]."""
        prompts, device = [self.answers[slot][0] for slot in slots], self.decoder.device
        for slot, prompt in zip(slots, prompts, strict=True):
            self.reach[slot] = len(prompt)
        there = torch.tensor(slots, device=device)
        return self.decoder.prefill(prompts, there, torch.arange(len(slots), device=device))

    def _step(self) -> Tensor:
        """Feed every busy slot its last token; logits [B,V] of them."""
        busy, device = torch.tensor(list(self.answers)), self.decoder.device
        for slot in self.answers:
            self.reach[slot] += 1
        logits = self.decoder.step(self.token.to(device), max(self.reach[slot] for slot in self.answers))
        self.decoder.at[busy.to(device)] += 1
        return logits[busy.to(device)]

    def _draw(self, slots: list[int], logits: Tensor, found: dict[int, list]) -> None:
        """Append a token to each of these slots; rows of like sampling are drawn together."""
        alike: dict[tuple, list[int]] = {}
        for row, slot in enumerate(slots):
            s = self.answers[slot][1]
            alike.setdefault((s.temperature, s.top_k, s.top_p), []).append(row)
        for rows in alike.values():
            members = [slots[row] for row in rows]
            chance = torch.stack([self.answers[slot][3][self.made[slot]] for slot in members]).to(logits.device)
            token, logp = draw(logits[rows], self.answers[members[0]][1], chance)
            for slot, t, p in zip(members, token.tolist(), logp.tolist(), strict=True):
                self._append(slot, t, p, found)

    def _append(self, slot: int, token: int, logp: float, found: dict[int, list]) -> None:
        self.made[slot] += 1
        self.token[slot] = token
        tokens, logps, _ = written = found.setdefault(slot, [[], [], None])
        tokens.append(token)
        logps.append(logp)
        if token in self.stops or self.made[slot] >= self.answers[slot][2]:
            written[2] = "stop" if token in self.stops else "length"
            del self.answers[slot]
