"""Generated tokens per second, ours and Hugging Face's LlamaForCausalLM.generate, side by side in one process.

Same shape, prompts of 64 tokens, 192 new tokens each, no end token, sampling at temperature 1. The sides take turns, with a
float32 matrix product timed before each turn as the calibration. On a CPU the figure is tokens per CPU second of one
thread, reading the prompts included; on CUDA it is tokens per second of wall time. transformers runs in the best of its
modes (dynamic or static cache, float32 or bfloat16), found once per case before the turns.

Whole steps of GRPO against TRL are in preference.py.

    python benchmarks/rollout.py [--device cuda] [--rounds 5] [--json FILE]
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

from fledge.core import runtime

runtime.prepare_process()  # its settings must come before torch

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from fledge.core.model import ModelConfig, Transformer  # noqa: E402
from fledge.generate.engine import Engine  # noqa: E402
from fledge.generate.sampling import Sampling  # noqa: E402

VOCAB, PROMPT, NEW = 4096, 64, 192
SHAPES = {"XS": (128, 4, 4, 352), "S": (256, 6, 4, 704)}  # width, layers, heads, feed-forward
GPU_SHAPES = {"base": (768, 12, 12, 2048)}
BATCHES = (1, 32)
Work = Callable[[], None]


def clock(device: torch.device) -> float:
    """CPU seconds of this process, or wall seconds after the GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def rate(work: Work, amount: float, device: torch.device) -> float:
    start = clock(device)
    work()
    return amount / (clock(device) - start)


def calibration(device: torch.device) -> float:
    """FLOP/s of a square float32 matrix product."""
    size = 4096 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    return rate(lambda: [a @ b for _ in range(5)], 10.0 * size**3, device)


# ------------------------------------------------------------------------------------------------------- generation


def our_modes(shape: tuple, prompts: Tensor) -> dict[str, Work]:
    """Our ways of writing NEW tokens after each prompt."""
    width, layers, heads, ffn = shape
    config = ModelConfig(
        size="pocket",
        vocab_size=VOCAB,
        width=width,
        layers=layers,
        heads=heads,
        ffn_width=ffn,
        context_tokens=PROMPT + NEW,
        tied=True,
    )
    model = Transformer(config).initialise(0).to(prompts.device).eval()
    asked, sampling = prompts.tolist(), Sampling(temperature=1.0, max_tokens=NEW)

    def ours(native: bool | None, dtype: torch.dtype) -> Work:
        engine = Engine(model, [], dtype=dtype, native=native)

        def work() -> None:
            lengths = engine.sample(asked, sampling).lengths
            assert bool((lengths == NEW).all())

        return work

    bf16, f32 = torch.bfloat16, torch.float32
    if prompts.device.type == "cuda":
        return {"torch bfloat16": ours(False, bf16), "torch float32": ours(False, f32)}
    native = (
        {"native bfloat16": ours(True, bf16), "native float32": ours(True, f32)} if Engine(model, []).native else {}
    )
    return {**native, "torch float32": ours(False, f32)}


def their_modes(shape: tuple, prompts: Tensor) -> dict[str, Work]:
    """transformers' ways: static and dynamic cache, float32 and bfloat16 weights."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    width, layers, heads, ffn = shape
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
        intermediate_size=ffn, max_position_embeddings=PROMPT + NEW, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
        attn_implementation="sdpa",
    )  # fmt: skip
    seen = torch.ones_like(prompts)

    def theirs(cache: str | None, dtype: torch.dtype) -> Work:
        model = LlamaForCausalLM(config).to(prompts.device, dtype).eval()
        settings = GenerationConfig(
            max_new_tokens=NEW, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=None, pad_token_id=0,
            cache_implementation=cache, disable_compile=True,
        )  # fmt: skip

        @torch.inference_mode()
        def work() -> None:
            made = model.generate(prompts, attention_mask=seen, generation_config=settings)
            assert made.shape == (len(prompts), PROMPT + NEW)

        return work

    kinds = [(c, d) for d in (torch.float32, torch.bfloat16) for c in (None, "static")]
    return {f"{c or 'dynamic'} {str(d).removeprefix('torch.')}": theirs(c, d) for c, d in kinds}


def compare_generation(name: str, shape: tuple, rows: int, device: torch.device, rounds: int) -> list[dict]:
    """Each of our modes and their best one in turns; medians, extremes and the ratio turn by turn."""
    torch.manual_seed(0)
    prompts = torch.randint(0, VOCAB, (rows, PROMPT), device=device)
    ours, theirs, amount = our_modes(shape, prompts), their_modes(shape, prompts), float(rows * NEW)
    for work in (*ours.values(), *theirs.values()):
        work()  # warm-up: packing, allocation, lazy imports
    best = max(theirs, key=lambda mode: rate(theirs[mode], amount, device))
    turns = []
    for _ in range(rounds):
        turn = {"matmul": calibration(device), "theirs": rate(theirs[best], amount, device)}
        turns.append(turn | {mode: rate(work, amount, device) for mode, work in ours.items()})
    rows_out = []
    for mode in ours:
        ratios = [t[mode] / t["theirs"] for t in turns]
        rows_out.append({
            "shape": name, "batch": rows, "ours_mode": mode, "their_mode": best,
            "ours": statistics.median(t[mode] for t in turns), "theirs": statistics.median(t["theirs"] for t in turns),
            "ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
            "matmul_gflops": statistics.median(t["matmul"] for t in turns) / 1e9,
        })  # fmt: skip
    return rows_out


def generation(device: torch.device, rounds: int) -> list[dict]:
    """The generation table, printed row by row."""
    print("| shape | batch | our mode | ours | transformers | its mode | ratio (min..max) | GFLOP/s |")
    print("|---|---|---|---|---|---|---|---|")
    found = []
    for name, shape in (GPU_SHAPES | SHAPES if device.type == "cuda" else SHAPES).items():
        for rows in BATCHES:
            for r in compare_generation(name, shape, rows, device, rounds):
                found.append(r)
                print(
                    f"| {name} | {rows} | {r['ours_mode']} | {r['ours']:,.0f} | {r['theirs']:,.0f} | {r['their_mode']} | {r['ratio']:.2f} "
                    f"({r['ratio_min']:.2f}..{r['ratio_max']:.2f}) | {r['matmul_gflops']:,.0f} |",
                    flush=True,
                )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = runtime.choose_device(options.device)
    torch.set_num_threads(1)
    where = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{where}, torch {torch.__version__}, unit: tokens per {'' if device.type == 'cuda' else 'CPU '}second\n")
    found = generation(device, options.rounds)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
