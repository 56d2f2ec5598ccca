"""Tokens per second of one training step, ours and Hugging Face's LlamaForCausalLM, side by side in one process.

Same shape, batch, dtype policy (float32 weights, bfloat16 products), AdamW and allocator settings; the two alternate, with a
bfloat16 matrix product timed before each turn as the calibration. On a CPU the figure is tokens per CPU second of one thread;
on CUDA it is tokens per second of wall time. eager: both without torch.compile. best: transformers under torch.compile
against our fastest mode, which is eager with compiled kernels on a CPU and torch.compile on CUDA.

    python benchmarks/train.py [--device cuda] [--rounds 5] [--best] [--json FILE]
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from fledge.core import runtime  # noqa: I001  (its settings must come before torch)

import torch
from torch import Tensor

from fledge.core import native
from fledge.core.batch import Batch
from fledge.core.model import ModelConfig, Transformer
from fledge.core.objectives import weighted_nll
from fledge.core.optim import Optimizer

VOCAB = 4096
SHAPES = {  # width, layers, heads, feed-forward, tokens per row, rows
    "XS": (128, 4, 4, 352, 128, 32),
    "S": (256, 6, 4, 704, 256, 16),
}
GPU_SHAPES = {"base": (768, 12, 12, 2048, 1024, 16)}  # 98M with this vocabulary: small shapes only measure launches


def clock(device: torch.device) -> float:
    """CPU seconds of this process, or wall seconds after the GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def rate(work: Callable[[], None], amount: float, device: torch.device, repeats: int) -> float:
    start = clock(device)
    for _ in range(repeats):
        work()
    return amount * repeats / (clock(device) - start)


def calibration(device: torch.device, dtype: torch.dtype) -> Callable[[], float]:
    """FLOP/s of a square matrix product."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return lambda: rate(lambda: a @ b, 2.0 * size**3, device, 10)


def our_step(shape: tuple, tokens: Tensor, dtype: torch.dtype, compiled: bool) -> tuple[Callable[[], None], float]:
    width, layers, heads, ffn, length, rows = shape
    config = ModelConfig(
        size="pocket", vocab_size=VOCAB, width=width, layers=layers, heads=heads, ffn_width=ffn, context_tokens=length, tied=True
    )
    model = Transformer(config).initialise(0).to(tokens.device)
    model.compute_dtype = dtype
    optimizer = Optimizer(model, lr=1e-4)
    step_model = torch.compile(model, dynamic=False) if compiled else model
    batch = Batch(
        tokens=tokens[:, :-1], targets=tokens[:, 1:].contiguous(),
        weight=torch.ones(rows, length, device=tokens.device), units=float(rows * length),
    )  # fmt: skip

    def step() -> None:
        loss, _ = weighted_nll(step_model(batch), batch)
        (loss / batch.units).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(1e-4)
        optimizer.zero_grad()

    return step, config.flops_per_token()


def their_step(shape: tuple, tokens: Tensor, dtype: torch.dtype, compiled: bool) -> Callable[[], None]:
    from transformers import LlamaConfig, LlamaForCausalLM

    width, layers, heads, ffn, length, _ = shape
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
        intermediate_size=ffn, max_position_embeddings=length, tie_word_embeddings=True, attn_implementation="sdpa",
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(tokens.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    step_model = torch.compile(model, dynamic=False) if compiled else model
    inputs = tokens[:, :-1].contiguous()

    def step() -> None:
        with torch.autocast(tokens.device.type, dtype, enabled=dtype != torch.float32):
            loss = step_model(input_ids=inputs, labels=inputs, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def compare(name: str, shape: tuple, device: torch.device, dtype: torch.dtype, mode: str, rounds: int) -> dict:
    """Alternate the two for `rounds` turns; medians, extremes, the ratio pair by pair, and the share of the product's rate."""
    *_, length, rows = shape
    torch.manual_seed(0)
    tokens = torch.randint(0, VOCAB, (rows, length + 1), device=device)
    ours, flops = our_step(shape, tokens, dtype, mode == "best" and device.type == "cuda")
    theirs, measure = their_step(shape, tokens, dtype, mode == "best"), calibration(device, dtype)
    for step in (ours, theirs):
        for _ in range(4):
            step()
    positions, repeats = rows * length, 20 if device.type == "cuda" else 6
    turns = []
    for _ in range(rounds):
        peak = measure()
        mine = rate(ours, positions, device, repeats)
        peak = statistics.fmean((peak, measure()))
        turns.append({"peak": peak, "ours": mine, "theirs": rate(theirs, positions, device, repeats)})
    median = {k: statistics.median(t[k] for t in turns) for k in ("peak", "ours", "theirs")}
    ratios = [t["ours"] / t["theirs"] for t in turns]
    return {
        "shape": name, "mode": mode, "dtype": str(dtype).removeprefix("torch."),
        "ours": median["ours"], "theirs": median["theirs"],
        "ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
        "utilisation": statistics.median(t["ours"] * flops / t["peak"] for t in turns),
        "their_utilisation": statistics.median(t["theirs"] * flops / t["peak"] for t in turns),
        "peak_gflops": median["peak"] / 1e9,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--best", action="store_true", help="also compare our best mode against its best, torch.compile")
    parser.add_argument("--float32", action="store_true", help="also compare in float32")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = runtime.choose_device(options.device)
    torch.set_num_threads(1)
    shapes = GPU_SHAPES | SHAPES if device.type == "cuda" else SHAPES
    where = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    kernels = "native" if device.type == "cpu" and native.library() else "torch"
    print(f"{where}, torch {torch.__version__}, {kernels} kernels, unit: tokens per {'' if device.type == 'cuda' else 'CPU '}second\n")
    print("| shape | mode | dtype | ours | transformers | ratio (min..max) | share of matmul rate | theirs | GFLOP/s |")
    print("|---|---|---|---|---|---|---|---|---|")
    rows = []
    for name, shape in shapes.items():
        for dtype in [torch.bfloat16] + [torch.float32] * options.float32:
            for mode in ["eager"] + ["best"] * options.best:
                r = compare(name, shape, device, dtype, mode, options.rounds)
                rows.append(r)
                print(
                    f"| {name} | {r['mode']} | {r['dtype']} | {r['ours']:,.0f} | {r['theirs']:,.0f} | {r['ratio']:.2f} "
                    f"({r['ratio_min']:.2f}..{r['ratio_max']:.2f}) | {r['utilisation']:.0%} | {r['their_utilisation']:.0%} "
                    f"| {r['peak_gflops']:,.0f} |",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
