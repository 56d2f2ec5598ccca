"""Decoding by the compiled loop (core/decode.cpp); torch_decoder.py is its slow twin.

Shapes: B rows, P prompts, A answers, n longest answer, S positions of a slot, N x K a weight matrix, V vocabulary.
"""

import ctypes
import itertools
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fledge.core import native
from fledge.core.model import Transformer
from fledge.generate.sampling import Sampling

_CHUNK_ROWS = 64  # most rows of a step: answers being written and prompts being read
_THREAD_SLOTS = (
    32  # answers a thread writes at once: the products are at full speed, and a small model's cache stays in L3
)
_TEAM_SLOTS = 4  # threads decode alone where each gets this many answers; below, they may share every product
_SHARED_WEIGHTS = 32 << 20  # rows x parameters of a step worth sharing: 5 L barriers cost more than they save below
_STEPS = 64  # between looks at the signals Python has received
_SUFFIX = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_pointer, _integer, _real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class _Model(ctypes.Structure):
    """struct Model of decode_model.h."""

    _fields_ = [
        *((n, _integer) for n in ("layers", "width", "heads", "kv_heads", "head_width", "ffn", "vocab")),
        ("eps", _real),
        *((n, _pointer) for n in ("embedding", "norm", "cos", "sin", "head", "parts")),
    ]


class _Store(ctypes.Structure):
    """struct Store of decode_model.h."""

    _fields_ = [("keys", _pointer), ("values", _pointer), ("positions", _integer)]


class _Job(ctypes.Structure):
    """struct Job of decode.cpp."""

    _fields_ = [
        *((n, _pointer) for n in ("prompts", "starts")),
        *((n, _integer) for n in ("answers", "samples", "longest")),
        *((n, _pointer) for n in ("limits", "uniforms", "stops")),
        ("temperature", _real),
        ("top_p", _real),
        *((n, _integer) for n in ("top_k", "slots", "chunk")),
        *((n, _pointer) for n in ("tokens", "logp", "lengths", "stopped")),
    ]


class _Writing(ctypes.Structure):
    """struct Writing of decode_slots.h."""

    _fields_ = [
        ("prompt", _pointer),
        *((n, _integer) for n in ("read", "limit")),
        ("uniforms", _pointer),
        ("temperature", _real),
        ("top_p", _real),
        ("top_k", _integer),
        *((n, _pointer) for n in ("tokens", "logp", "length", "stopped")),
    ]


class _Questions(ctypes.Structure):
    """struct Questions of decode_score.h."""

    _fields_ = [("list", _pointer), ("count", _integer), ("logp", _pointer), ("likeliest", _pointer)]


def useful_slots(slots: int) -> int:
    """As many of these slots as make decoding faster (XS of benchmarks/rollout.py: 32 slots 73,000 tokens/s, 128 49,000)."""
    return min(slots, _THREAD_SLOTS * torch.get_num_threads())


def _sharing(weights: int, rows: int) -> int:
    """How many threads should share the products of a step of so many rows with so many weights."""
    return torch.get_num_threads() if rows * weights >= _SHARED_WEIGHTS else 1


def _teams(weights: int, slots: int) -> tuple[int, int]:
    """(teams, threads) for so many answers at once: threads that decode alone, or one team that shares every product."""
    teams = max(1, min(torch.get_num_threads(), slots // _TEAM_SLOTS))
    return teams, torch.get_num_threads() if teams > 1 else _sharing(weights, slots)


def _up(n: int, to: int) -> int:
    return -(-n // to) * to


def _call(name: str, *arguments, restype=None):
    function = getattr(native.library("decode"), name)
    function.restype = restype
    return function(*arguments)


def serves(model: Transformer, dtype: torch.dtype) -> bool:
    """True where the compiled loop can decode this model: a compiler, float32 weights on the CPU, a causal plain model
    whose layers all see every position before and turn alike.
    """
    c = model.config
    return (
        dtype in _SUFFIX
        and c.causal
        and model.plain
        and (c.window is None or c.window >= c.context_tokens)
        and not c.no_rope_layers
        and c.local_rope_base is None
        and c.width % 2 == 0  # it reads bfloat16 in pairs
        and all(p.device.type == "cpu" and p.dtype == torch.float32 and p.is_contiguous() for p in model.parameters())
        and native.library("decode") is not None
    )


def draw_rows(logits: Tensor, sampling: Sampling, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """sampling.draw() by the compiled loop's own code: (token [B], logp [B]) of logits [B,V], so both draw the same."""
    rows, vocab = logits.shape
    tokens, logp = torch.empty(rows, dtype=torch.long), torch.empty(rows)
    logits, uniform = logits.float().contiguous(), uniform.contiguous()
    _call(
        "draw_rows", native.pointer(logits), _integer(rows), _integer(vocab), *_chooser(sampling),
        native.pointer(uniform), native.pointer(tokens), native.pointer(logp),
    )  # fmt: skip
    return tokens, logp


def _chooser(sampling: Sampling) -> tuple[ctypes.c_double, ctypes.c_int64, ctypes.c_double]:
    temperature = max(sampling.temperature, 1e-37) if sampling.temperature else 0.0  # a float32 that can be divided by
    return _real(temperature), _integer(sampling.top_k or 0), _real(sampling.top_p or 1.0)


class Packed:
    """The model's matrices in the layout of decode_math.h, made again when the numbers they are made of have changed."""

    def __init__(self):
        self._kept: dict[tuple[str, torch.dtype], tuple[int, Tensor]] = {}

    def get(self, name: str, weight: Tensor, dtype: torch.dtype, gated: bool = False) -> Tensor:
        """weight [N,K] float32 packed in dtype. Checked by content: 1 ms per 6M parameters, and nothing can slip by."""
        rows, depth = weight.shape
        mark = _call("fingerprint", native.pointer(weight), _integer(weight.numel()), restype=ctypes.c_uint64)
        found = self._kept.get((name, dtype))
        if found and found[0] == mark:
            return found[1]
        panels = -(-rows // 2 // 16) if gated else -(-rows // 32)
        packed = torch.empty(panels * _up(depth, 2) * 32, dtype=dtype)
        sizes = (_integer(rows), _integer(depth), _integer(gated))
        _call(f"pack_{_SUFFIX[dtype]}", native.pointer(weight), native.pointer(packed), *sizes)
        self._kept[name, dtype] = mark, packed  # a new tensor: a call in another thread goes on with the old one
        return packed


class NativeDecoder:
    """The model as the compiled loop sees it, for one call: weights packed, room for `slots` sequences of `positions`."""

    def __init__(self, model: Transformer, packed: Packed, dtype: torch.dtype, slots: int, positions: int):
        c, self.dtype = model.config, dtype
        self.suffix, self.vocab = _SUFFIX[dtype], c.vocab_size
        self.weights = sum(p.numel() for p in model.parameters())
        cos, sin = model.rotary(positions, torch.device("cpu"))
        head_name = "embedding" if model.unembedding is None else "unembedding"
        head = packed.get(head_name, model.head_weight, dtype)
        embedding = model.embedding_weight
        self._keep: list = [cos, sin, head, embedding, *model.parameters()]
        parts = []
        for i, layer in enumerate(model.layers):
            norm, qkv, bias, q_norm, k_norm, attention_out, ffn_norm, gate_up, down = layer.plain_parts()
            parts += [norm, packed.get(f"{i}.qkv", qkv, dtype), bias]
            parts += [q_norm, k_norm, packed.get(f"{i}.out", attention_out, dtype), ffn_norm]
            parts += [packed.get(f"{i}.gate_up", gate_up, dtype, gated=True), packed.get(f"{i}.down", down, dtype)]
        self._keep += parts
        self._parts = (_pointer * len(parts))(*(None if t is None else t.data_ptr() for t in parts))
        self.model = _Model(
            c.layers, c.width, c.heads, c.kv_heads, c.head_width, c.ffn_width, c.vocab_size, c.norm_eps,
            *(t.data_ptr() for t in (embedding, model.norm, cos, sin, head)), ctypes.addressof(self._parts),
        )  # fmt: skip
        room = _up(positions, 16)
        cells = slots * c.layers * c.kv_heads * room
        self.keys = torch.empty(cells * c.head_width, dtype=dtype)
        self.values = torch.empty(cells * _up(c.head_width, 16), dtype=dtype)
        self.store = _Store(self.keys.data_ptr(), self.values.data_ptr(), room)

    def forward(self, slots: np.ndarray, positions: np.ndarray, tokens: np.ndarray, wanted: np.ndarray) -> Tensor:
        """Feed tokens [B] at positions [B] of slots [B] (ascending within a slot); logits [wanted, V] of the rows of wanted [B]."""
        rows = np.ascontiguousarray(np.stack([slots, positions, tokens, wanted], 1), np.int64)
        logits = torch.empty(int(wanted.sum()), self.vocab)
        _call(
            f"forward_{self.suffix}", ctypes.byref(self.model), ctypes.byref(self.store), rows.ctypes.data_as(_pointer),
            _integer(len(rows)), native.pointer(logits), _integer(_CHUNK_ROWS), _integer(_sharing(self.weights, len(rows))),
        )  # fmt: skip
        return logits

    def score(self, rows: np.ndarray, starts: np.ndarray, questions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log p [Q] float32, nats, and whether it is the likeliest [Q], of tokens after rows: questions [Q,2] (row, token).

        rows [R,4] as forward() has them, the rows of piece p from starts[p] to starts[p + 1]; a piece keeps to slots of
        its own, and each has a thread. questions are sorted by row; a row is wanted if there is one about it.
        """
        rows, starts, questions = (np.ascontiguousarray(a, np.int64) for a in (rows, starts, questions))
        logp, likeliest = np.zeros(len(questions), np.float32), np.zeros(len(questions), bool)
        asked = _Questions(questions.ctypes.data, len(questions), logp.ctypes.data, likeliest.ctypes.data)
        threads = torch.get_num_threads() if len(starts) > 2 else _sharing(self.weights, len(rows))
        _call(
            f"score_{self.suffix}", ctypes.byref(self.model), ctypes.byref(self.store), rows.ctypes.data_as(_pointer),
            starts.ctypes.data_as(_pointer), _integer(len(starts) - 1), ctypes.byref(asked), _integer(_CHUNK_ROWS),
            _integer(threads),
        )  # fmt: skip
        return logp, likeliest

    def stops(self, stop_ids: Sequence[int]) -> Tensor:
        """[V] uint8: 1 = ends an answer."""
        stops = torch.zeros(self.vocab, dtype=torch.uint8)
        stops[[i for i in stop_ids if 0 <= i < self.vocab]] = 1
        return stops

    def run(
        self, prompts: Sequence[Sequence[int]], samples: int, sampling: Sampling, limits: Tensor, chance: Tensor | None,
        stop_ids: Sequence[int], slots: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """Answer every prompt `samples` times: tokens [A,n], logp [A,n], lengths [A], stopped [A] of Samples.

        limits [A] int64: most tokens of each answer; chance [A,n] float32, None if greedy.
        """
        answers, longest = len(limits), int(limits.max())
        flat = torch.from_numpy(np.fromiter(itertools.chain.from_iterable(prompts), np.int64))
        starts = torch.tensor([0, *itertools.accumulate(map(len, prompts))])
        stops = self.stops(stop_ids)
        tokens, logp = torch.full((answers, longest), -1), torch.zeros(answers, longest)
        lengths, stopped = torch.zeros(answers, dtype=torch.long), torch.zeros(answers, dtype=torch.bool)
        temperature, top_k, top_p = _chooser(sampling)
        job = _Job(
            flat.data_ptr(), starts.data_ptr(), answers, samples, longest, limits.data_ptr(),
            None if chance is None else chance.data_ptr(), stops.data_ptr(), temperature, top_p, top_k, slots, _CHUNK_ROWS,
            tokens.data_ptr(), logp.data_ptr(), lengths.data_ptr(), stopped.data_ptr(),
        )  # fmt: skip
        teams, threads = _teams(self.weights, slots)
        structs = [ctypes.byref(s) for s in (self.model, self.store, job)]
        run = _pointer(_call(f"run_new_{self.suffix}", *structs, _integer(teams), restype=_pointer))
        try:
            while _call(f"run_go_{self.suffix}", run, _integer(_STEPS), _integer(threads), restype=ctypes.c_int):
                pass
        finally:
            _call(f"run_free_{self.suffix}", run)
        return tokens, logp, lengths, stopped


class NativeBatch:
    """Prompts answered in step, by a caller that draws by itself: logits [B,V] after each step; rows leave as they finish."""

    def __init__(self, decoder: NativeDecoder, prompts: Sequence[Sequence[int]]):
        self.decoder, lengths = decoder, np.array([len(p) for p in prompts])
        self.slots, self.lengths = np.arange(len(prompts)), lengths
        positions = np.concatenate([np.arange(n) for n in lengths])
        tokens = np.fromiter(itertools.chain.from_iterable(prompts), np.int64)
        wanted = positions == np.repeat(lengths, lengths) - 1
        self.logits = decoder.forward(np.repeat(self.slots, lengths), positions, tokens, wanted)

    draw = staticmethod(draw_rows)

    def step(self, tokens: Tensor) -> None:
        """Append a token [B] to each row."""
        self.logits = self.decoder.forward(self.slots, self.lengths, tokens.numpy(), np.ones_like(self.slots))
        self.lengths = self.lengths + 1

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.slots, self.lengths = self.slots[rows.numpy()], self.lengths[rows.numpy()]


class NativeSlots:
    """What Live needs of the compiled loop: slots with a prompt, sampling, uniforms, limit and buffers of their own.

    A slot keeps what its cache holds when its answer has ended: a conversation that goes on is not read again. The
    numbers are the same either way, each position being computed alone.
    """

    def __init__(self, decoder: NativeDecoder, slots: int, stop_ids: Sequence[int]):
        self._decoder, self._stops = decoder, decoder.stops(stop_ids)
        self._length, self._stopped = np.zeros(slots, np.int64), np.zeros(slots, np.uint8)
        self._text = [np.zeros(0, np.int64)] * slots  # prompt and room for the answer
        self._logp = [np.zeros(0, np.float32)] * slots
        self._chance: list[Tensor | None] = [None] * slots
        self._given: dict[int, int] = {}  # tokens handed out of each busy slot
        self._read = [0] * slots  # length of its prompt
        structs = [ctypes.byref(decoder.model), ctypes.byref(decoder.store), native.pointer(self._stops)]
        self._session = _pointer(self._call("new", *structs, _integer(slots), _integer(_CHUNK_ROWS), restype=_pointer))
        freed = weakref.finalize(self, _call, f"live_free_{decoder.suffix}", self._session)
        freed.atexit = False  # the engine thread of a process that ends may be inside it

    def _call(self, name: str, *arguments, restype=None):
        return _call(f"live_{name}_{self._decoder.suffix}", *arguments, restype=restype)

    def _held(self, slot: int, prompt: np.ndarray) -> int:
        """How many positions of the prompt this slot's cache holds; the last is always read, for its logits."""
        fed = self._call("fed", self._session, _integer(slot), restype=ctypes.c_int64)
        known = self._text[slot][: min(fed, len(prompt) - 1)]
        differ = np.flatnonzero(known != prompt[: len(known)])
        return int(differ[0]) if len(differ) else len(known)

    def join(self, free: list[int], prompt: Sequence[int], sampling: Sampling, limit: int, chance: Tensor) -> int:
        """Start an answer of at most `limit` tokens, drawn by the uniforms of chance [limit], in one of the free slots.

        The slot taken, and taken out of `free`, is the one that holds most of the prompt, of equals the first.
        """
        tokens = np.array(prompt, np.int64)
        held = [self._held(slot, tokens) for slot in range(len(self._text))]
        slot = max(free, key=held.__getitem__)
        source = max(range(len(held)), key=lambda s: (held[s], s == slot))
        free.remove(slot)
        self._text[slot] = text = np.concatenate([tokens, np.zeros(limit, np.int64)])
        self._logp[slot], self._chance[slot] = logp, chance = np.zeros(limit, np.float32), chance.contiguous()
        self._length[slot] = self._stopped[slot] = 0
        self._given[slot], self._read[slot] = 0, len(tokens)
        temperature, top_k, top_p = _chooser(sampling)
        writing = _Writing(
            text.ctypes.data, len(tokens), limit, chance.data_ptr(), temperature, top_p, top_k,
            text.ctypes.data + tokens.nbytes, logp.ctypes.data, self._length[slot:].ctypes.data, self._stopped[slot:].ctypes.data,
        )  # fmt: skip
        sizes = (_integer(held[source]), _integer(source))
        self._call("join", self._session, _integer(slot), ctypes.byref(writing), *sizes)
        return slot

    def leave(self, slot: int) -> None:
        """Give its answer up."""
        self._call("leave", self._session, _integer(slot))
        del self._given[slot]

    def go(self, steps: int, seconds: float) -> list[tuple[int, list[int], list[float], str | None]]:
        """(slot, tokens, logp, finish) of every slot that got a token in at most so many steps or seconds."""
        if not self._given:
            return []
        teams, threads = _teams(self._decoder.weights, len(self._given))
        self._call("go", self._session, _integer(steps), _real(seconds), _integer(teams), _integer(threads))
        found = []
        for slot, given in list(self._given.items()):
            made, read, limit = int(self._length[slot]), self._read[slot], len(self._logp[slot])
            if made == given:
                continue
            finish = "stop" if self._stopped[slot] else "length" if made == limit else None
            tokens, logp = self._text[slot][read + given : read + made], self._logp[slot][given:made]
            found.append((slot, tokens.tolist(), logp.tolist(), finish))
            self._given[slot] = made
            if finish:
                del self._given[slot]
        return found
