"""Answers that join and leave at any time, each as if it were alone (continuous batching).

Letters: S slots, n longest answer.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch

from fledge.generate.engine import Engine
from fledge.generate.native_decoder import NativeDecoder, NativeSlots
from fledge.generate.sampling import Sampling, uniforms
from fledge.generate.torch_decoder import TorchSlots


class Written(NamedTuple):
    """What one answer has got since the last call."""

    key: int
    tokens: list[int]
    logp: list[float]  # of each token, under the distribution really sampled from, nats
    finish: str | None  # "stop": ended itself; "length": max_tokens or the context was reached; None: goes on


class Live:
    """Up to `slots` answers written together, with the engine's weights as they are when this is made.

    Each answer is Engine.sample([prompt], sampling, streams=[stream])'s, whatever shares the batch: bit for bit in the
    compiled loop; in torch operations, whose products round differently for other numbers of rows, token for token
    but for near ties.
    """

    @torch.inference_mode()
    def __init__(self, engine: Engine, slots: int, positions: int | None = None):
        """positions: longest prompt and answer together; None takes the model's context, which needs the most memory."""
        if slots < 1:
            raise ValueError(f"slots = {slots}: must be at least 1")
        self._engine, self._context = engine, min(engine.model.config.context_tokens, positions or sys.maxsize)
        decoder = engine.decoder(slots, self._context)
        make = NativeSlots if isinstance(decoder, NativeDecoder) else TorchSlots
        self._slots = make(decoder, slots, engine.stop_ids)
        self._free = list(range(slots))
        self._slot: dict[int, int] = {}  # of each key
        self._key: dict[int, int] = {}  # of each busy slot

    @property
    def free(self) -> int:
        """Slots without an answer."""
        return len(self._free)

    @property
    def busy(self) -> int:
        """Answers being written."""
        return len(self._slot)

    def add(self, key: int, prompt: Sequence[int], sampling: Sampling, stream: int = 0) -> None:
        """Start an answer. Raises ValueError for a bad prompt or sampling, a key in use, or no free slot."""
        self._engine.check([prompt], sampling)
        if len(prompt) >= self._context:
            raise ValueError(f"the prompt has {len(prompt)} tokens, there are {self._context} positions: give more")
        if key in self._slot:
            raise ValueError(f"key {key} is being written: choose another, or remove it first")
        if not self._free:
            raise ValueError(f"all {self.busy} slots are busy: wait until `free` is not 0")
        limit = min(sampling.max_tokens, self._context - len(prompt))
        slot = self._slots.join(self._free, prompt, sampling, limit, uniforms(sampling.seed, [stream], limit)[0])
        self._slot[key], self._key[slot] = slot, key

    def remove(self, key: int) -> None:
        """Give an answer up. Raises ValueError for a key that is not being written."""
        if key not in self._slot:
            raise ValueError(f"key {key} is not being written")
        self._slots.leave(self._slot[key])
        self._release(key)

    def _release(self, key: int) -> None:
        slot = self._slot.pop(key)
        del self._key[slot]
        self._free.append(slot)

    @torch.inference_mode()
    def go(self, steps: int, seconds: float = float("inf")) -> list[Written]:
        """At most `steps` steps, or as many as about `seconds` allow but at least one; what each answer got by them.

        The call is cut short when an answer gets its first token. An answer that ends leaves its slot.
        """
        found = [Written(self._key[s], *written) for s, *written in self._slots.go(steps, seconds)]
        for written in found:
            if written.finish:
                self._release(written.key)
        return found
