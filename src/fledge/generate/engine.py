"""The one generation engine: token ids in, completions out.

Shapes: B rows, R answers, n longest answer, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fledge.core.model import Transformer
from fledge.generate.native_decoder import NativeBatch, NativeDecoder, Packed, serves, useful_slots
from fledge.generate.sampling import Sampling, uniforms
from fledge.generate.torch_decoder import DecodesItself, TorchBatch, TorchDecoder, TorchRun

LogitRule = Callable[[Tensor, Tensor], Tensor]  # (logits [B,V], tokens made so far [B,n], -1 = none) -> logits [B,V]


@dataclass
class Completion:
    """What the engine gives back for one prompt."""

    tokens: list[int] = field(default_factory=list)  # sampled tokens, the end token included
    logp: list[float] = field(default_factory=list)  # of each, under the distribution really sampled from, nats
    sampled: list[bool] = field(default_factory=list)  # False = forced: weight 0 in training
    finish: str = "length"  # "stop": ended itself; "length": max_tokens or the context was reached


class Samples(NamedTuple):
    """Answers as tensors on the CPU, where a list per answer would cost more than writing it."""

    tokens: Tensor  # [R,n] int64, -1 after an answer's end; the sampled end token is included
    logp: Tensor  # [R,n] float32 under the distribution really sampled from, nats; 0 after the end
    lengths: Tensor  # [R] int64
    stopped: Tensor  # [R] bool: ended itself (False: cut off by max_tokens or the context)


class Engine:
    """Batched generation from the model's own weights, as they are at the time of the call."""

    def __init__(
        self,
        model: Transformer,
        stop_ids: Sequence[int],
        dtype: torch.dtype | None = None,
        native: bool | None = None,
    ):
        """stop_ids: tokens that end an answer. native None: the compiled loop where it serves; False: torch operations.

        dtype of weights, products and cache; None: the model's compute_dtype, but float32 in torch operations on a CPU
        (bfloat16 decodes slower there). Raises ValueError for a model that is not causal, and for native=True where the
        compiled loop cannot serve.
        """
        if not model.config.causal:
            raise ValueError(
                "model.causal = False: a model that sees both ways fills in masked tokens, it cannot write one after another; "
                "take a causal model"
            )
        self.model = model
        self.stop_ids = list(stop_ids)
        self.device = model.embedding.device
        self._asked_dtype, self._asked_native, self._packed = dtype, native, Packed()
        if native and not self.native:
            raise ValueError(
                "native = True: needs a C++ compiler and a causal model with float32 weights on the CPU, of a kind that "
                "native_decoder.serves() names; set None"
            )

    @property
    def native(self) -> bool:
        """True where the compiled loop decodes."""
        return self._asked_native is not False and serves(self.model, self._asked_dtype or self.model.compute_dtype)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights, products and cache while decoding."""
        if self._asked_dtype is None and self.device.type == "cpu" and not self.native:
            return torch.float32
        return self._asked_dtype or self.model.compute_dtype

    def check(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        """Raise ValueError for a prompt that this model cannot answer, or sampling that breaks a rule."""
        if problems := sampling.problems():
            raise ValueError("; ".join(problems))
        context, vocab = self.model.config.context_tokens, self.model.config.vocab_size
        for row, prompt in enumerate(prompts):
            if not prompt:
                raise ValueError(f"prompt {row} has no tokens: give at least one (the template starts with <|bos|>)")
            if len(prompt) >= context:
                raise ValueError(
                    f"prompt {row} has {len(prompt)} tokens, the model's context is {context}: shorten it or drop old turns"
                )
            if min(prompt) < 0 or max(prompt) >= vocab:
                raise ValueError(
                    f"prompt {row} has token {min(prompt)} or {max(prompt)}: the vocabulary is 0 to {vocab - 1}"
                )

    def decoder(self, slots: int, positions: int) -> NativeDecoder | TorchDecoder:
        """The weights as they are now, with room for `slots` sequences of `positions`."""
        if self.native:
            return NativeDecoder(self.model, self._packed, self.dtype, slots, positions)
        if isinstance(self.model, DecodesItself):
            return self.model.decoder(self.dtype, slots, positions)
        return TorchDecoder(self.model, self.dtype, slots, positions)

    def _limits(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Tensor:
        """Most tokens [P] each prompt can be answered with."""
        context = self.model.config.context_tokens
        return torch.tensor([min(sampling.max_tokens, context - len(p)) for p in prompts], dtype=torch.long)

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
        self.check(prompts, sampling)
        limits = self._limits(prompts, sampling)
        room, longest = int(limits.max()), max(len(p) for p in prompts)
        chance = uniforms(sampling.seed, range(len(prompts)) if streams is None else streams, room).to(self.device)
        alive = torch.arange(len(prompts))
        made = torch.full((len(prompts), room), -1, dtype=torch.long, device=self.device)
        stops = torch.tensor(self.stop_ids, device=self.device)
        decoder = self.decoder(len(prompts), longest + room)
        batch = (NativeBatch if isinstance(decoder, NativeDecoder) else TorchBatch)(decoder, prompts)
        for n in range(room):
            live, logits = alive.to(self.device), batch.logits
            for rule in rules:
                logits = rule(logits, made[live, :n])
            token, logp = batch.draw(logits, sampling, chance[live, n])
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
                batch.keep(keep.to(self.device))
            batch.step(token)

    @torch.inference_mode()
    def _stepwise(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        rules: Sequence[LogitRule],
        streams: np.ndarray,
        slots: int,
    ) -> Samples:
        """sample() one step at a time, so that rules see the logits: prompts of like length share a batch."""
        rows, longest = len(prompts), int(self._limits(prompts, sampling).max())
        tokens, logp = torch.full((rows, longest), -1), torch.zeros(rows, longest)
        lengths, stopped = torch.zeros(rows, dtype=torch.long), torch.zeros(rows, dtype=torch.bool)
        by_length = sorted(range(rows), key=lambda i: len(prompts[i]))
        for start in range(0, rows, slots):
            members = by_length[start : start + slots]
            batch = self.steps([prompts[i] for i in members], sampling, rules, streams=streams[members].tolist())
            for n, events in enumerate(batch):
                row = torch.tensor([members[e[0]] for e in events])
                tokens[row, n], logp[row, n] = (
                    torch.tensor([e[1] for e in events]),
                    torch.tensor([e[2] for e in events]),
                )
                lengths[row], stopped[row] = n + 1, torch.tensor([e[3] == "stop" for e in events])
        return Samples(tokens, logp, lengths, stopped)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        samples: int = 1,
        rules: Sequence[LogitRule] = (),
        streams: Sequence[int] | None = None,
        slots: int = 128,
    ) -> Samples:
        """Answer every prompt `samples` times; row p * samples + j is answer j of prompt p.

        Row r draws from stream (seed, streams[r]), default r. At most `slots` answers are written at a time; as one
        ends, the next takes its slot. A prompt is read once for all its answers that are written together.
        """
        self.check(prompts, sampling)  # all of them, before any work
        if samples < 1 or slots < 1:
            raise ValueError(f"samples = {samples}, slots = {slots}: both must be at least 1")
        rows = len(prompts) * samples
        if streams is not None and len(streams) != rows:
            raise ValueError(f"streams has {len(streams)} numbers for {rows} answers: give one per answer, or None")
        if not rows:
            nothing = torch.zeros(0, 0)
            return Samples(nothing.long(), nothing, torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.bool))
        own = np.arange(rows) if streams is None else np.asarray(streams)
        if rules:
            found = self._stepwise([p for p in prompts for _ in range(samples)], sampling, rules, own, slots)
        else:
            found = self._sample(prompts, sampling, samples, own, min(slots, rows))
        longest = int(found.lengths.max())
        found = Samples(found.tokens[:, :longest], found.logp[:, :longest], found.lengths, found.stopped)
        return Samples(
            *(t.clone() for t in found)
        )  # outside inference mode: training may save them for its backward pass

    @torch.inference_mode()
    def _sample(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, samples: int, streams: np.ndarray, slots: int
    ) -> Samples:
        per_prompt = self._limits(prompts, sampling)
        limits, native = per_prompt.repeat_interleave(samples), self.native
        positions = max(len(p) + n for p, n in zip(prompts, per_prompt.tolist(), strict=True))
        chance = (
            uniforms(sampling.seed, streams.tolist(), int(limits.max())) if sampling.temperature or not native else None
        )
        slots = useful_slots(slots) if native else slots
        decoder = self.decoder(slots, positions)
        if isinstance(decoder, NativeDecoder):
            return Samples(*decoder.run(prompts, samples, sampling, limits, chance, self.stop_ids, slots))
        return Samples(*TorchRun(decoder, prompts, samples, sampling, limits, chance, self.stop_ids, slots).run())

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        samples: int = 1,
        rules: Sequence[LogitRule] = (),
        batch_rows: int = 128,
    ) -> list[Completion]:
        """Completions in the order of the prompts (of each, `samples` in a row), at most batch_rows written at a time."""
        found = self.sample(prompts, sampling, samples=samples, rules=rules, slots=batch_rows)
        return [
            Completion(tokens[:n], logp[:n], [True] * n, "stop" if stopped else "length")
            for tokens, logp, n, stopped in zip(*(t.tolist() for t in found), strict=True)
        ]
