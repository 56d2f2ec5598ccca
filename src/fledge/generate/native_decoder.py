"""Decoding by the compiled loop (core/decode.cpp); torch_decoder.py is its slow twin.

Shapes: B rows, P prompts, A answers, n longest answer, S positions of a slot, N x K a weight matrix, V vocabulary.
"""

import ctypes
import itertools
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


def useful_slots(slots: int) -> int:
    """As many of these slots as make decoding faster (XS of benchmarks/rollout.py: 32 slots 73,000 tokens/s, 128 49,000)."""
    return min(slots, _THREAD_SLOTS * torch.get_num_threads())


def _sharing(model: Transformer, rows: int) -> int:
    """How many threads should share the products of a step of so many rows."""
    weights = sum(p.numel() for p in model.parameters())
    return torch.get_num_threads() if rows * weights >= _SHARED_WEIGHTS else 1


def _up(n: int, to: int) -> int:
    return -(-n // to) * to


def _call(name: str, *arguments, restype=None):
    function = getattr(native.library("decode"), name)
    function.restype = restype
    return function(*arguments)


def serves(model: Transformer, dtype: torch.dtype) -> bool:
    """True where the compiled loop can decode this model: a compiler, float32 weights on the CPU, a causal model."""
    return (
        dtype in _SUFFIX
        and model.config.causal
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
        self.suffix, self.vocab, self.transformer = _SUFFIX[dtype], c.vocab_size, model
        head_width = c.width // c.heads
        cos, sin = model.rotary(positions, torch.device("cpu"))
        head_name = "embedding" if model.unembedding is None else "unembedding"
        head = packed.get(head_name, model.head_weight, dtype)
        self._keep: list = [cos, sin, head, *model.parameters()]
        parts = []
        for i, layer in enumerate(model.layers):
            parts += [layer.attention_norm, packed.get(f"{i}.qkv", layer.qkv, dtype), layer.qkv_bias]
            parts += [layer.q_norm, layer.k_norm, packed.get(f"{i}.out", layer.attention_out, dtype), layer.ffn_norm]
            parts += [
                packed.get(f"{i}.gate_up", layer.gate_up, dtype, gated=True),
                packed.get(f"{i}.down", layer.down, dtype),
            ]
        self._keep += parts
        self._parts = (_pointer * len(parts))(*(None if t is None else t.data_ptr() for t in parts))
        self.model = _Model(
            c.layers, c.width, c.heads, c.kv_heads, head_width, c.ffn_width, c.vocab_size, c.norm_eps,
            *(t.data_ptr() for t in (model.embedding, model.norm, cos, sin, head)), ctypes.addressof(self._parts),
        )  # fmt: skip
        room = _up(positions, 16)
        cells = slots * c.layers * c.kv_heads * room
        self.keys = torch.empty(cells * head_width, dtype=dtype)
        self.values = torch.empty(cells * _up(head_width, 16), dtype=dtype)
        self.store = _Store(self.keys.data_ptr(), self.values.data_ptr(), room)

    def forward(self, slots: np.ndarray, positions: np.ndarray, tokens: np.ndarray, wanted: np.ndarray) -> Tensor:
        """Feed tokens [B] at positions [B] of slots [B] (ascending within a slot); logits [wanted, V] of the rows of wanted [B]."""
        rows = np.ascontiguousarray(np.stack([slots, positions, tokens, wanted], 1), np.int64)
        logits = torch.empty(int(wanted.sum()), self.vocab)
        _call(
            f"forward_{self.suffix}", ctypes.byref(self.model), ctypes.byref(self.store), rows.ctypes.data_as(_pointer),
            _integer(len(rows)), native.pointer(logits), _integer(_CHUNK_ROWS), _integer(_sharing(self.transformer, len(rows))),
        )  # fmt: skip
        return logits

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
        stops = torch.zeros(self.vocab, dtype=torch.uint8)
        stops[[i for i in stop_ids if 0 <= i < self.vocab]] = 1
        tokens, logp = torch.full((answers, longest), -1), torch.zeros(answers, longest)
        lengths, stopped = torch.zeros(answers, dtype=torch.long), torch.zeros(answers, dtype=torch.bool)
        temperature, top_k, top_p = _chooser(sampling)
        job = _Job(
            flat.data_ptr(), starts.data_ptr(), answers, samples, longest, limits.data_ptr(),
            None if chance is None else chance.data_ptr(), stops.data_ptr(), temperature, top_p, top_k, slots, _CHUNK_ROWS,
            tokens.data_ptr(), logp.data_ptr(), lengths.data_ptr(), stopped.data_ptr(),
        )  # fmt: skip
        teams = max(1, min(torch.get_num_threads(), slots // _TEAM_SLOTS))
        threads = torch.get_num_threads() if teams > 1 else _sharing(self.transformer, slots)
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
