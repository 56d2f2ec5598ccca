"""Requests per second of lm-evaluation-harness: ours and the harness's own Hugging Face backend, on the same model.

A Llama of random weights and a byte-level vocabulary, imported as a user would. Cases: a multiple-choice task (contexts of
40 to 160 words with four options of 1 to 8 words each), single continuations (one to a context, contexts of that, a short
and a long kind), whole texts (loglikelihood_rolling) and greedy answers of 32 tokens (generate_until). The sides take turns
in one process; the harness has the best of several batch sizes, found before the turns. Once more with its products by
oneDNN instead of MKL, which it cannot be asked for: what is left where MKL is as fast. On a CPU the figure is requests per
CPU second of one thread, tokenising included; on CUDA per second of wall time. Scores are compared request by request.

GFLOP/s: of the products each side makes (padding is not counted); the rates to hold them against are those of one product
of 512 rows, by either library, taken in every round.

    python benchmarks/eval.py [--rounds 5] [--documents 24] [--shapes "S, 8k words"] [--device cuda] [--json FILE]
"""

import argparse
import contextlib
import json
import logging
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from fledge.core import runtime

runtime.prepare_process()  # its settings must come before torch

import torch  # noqa: E402
import transformers  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402

from fledge.core.config import build  # noqa: E402
from fledge.generate.scoring import OneDNNProducts, Scored  # noqa: E402
from fledge.interop import lm_eval_model  # noqa: E402
from fledge.interop.command import ModelImportOptions, import_model  # noqa: E402
from fledge.interop.lm_eval_model import FledgeLM  # noqa: E402

SHAPES = {  # width, layers, heads, key/value heads, feed-forward, vocabulary
    "pocket, 4k words": (128, 4, 4, 4, 384, 4096),
    "S, 8k words": (256, 6, 8, 4, 704, 8192),
    "M, 32k words": (512, 8, 8, 4, 1408, 32768),
}
CASES = {  # kind of request, words of a context, options
    "four options": ("loglikelihood", (40, 160), 4),
    "one continuation": ("loglikelihood", (40, 160), 1),
    "one, short contexts": ("loglikelihood", (4, 24), 1),
    "one, long contexts": ("loglikelihood", (200, 300), 1),
    "whole texts": ("loglikelihood_rolling", (40, 300), 1),
    "answers of 32 tokens": ("generate_until", (20, 60), 1),
}
BATCH_SIZES = (1, 4, 16, 64)
LARGEST_LOGITS = 1 << 30  # bytes of one batch of the harness; larger ones only lost time and memory
CLOSE = 1e-4


def words(count: int) -> list[str]:
    """Invented words, the same in every run."""
    draw, letters = random.Random(0), "eeeaaiioounnttrrsslldcmphgbvfkyw"
    return ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(count)]


def make_folder(folder: Path, shape: tuple[int, ...]) -> None:
    """A Llama with random weights and a tokenizer of that many tokens."""
    width, layers, heads, kv_heads, ffn, vocab = shape
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=["<s>", "</s>"], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator([" ".join(words(80000))], trainer)
    kept = transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    kept.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocab, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, intermediate_size=ffn, max_position_embeddings=1024, bos_token_id=0,
        eos_token_id=1, initializer_range=0.05,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def make_requests(kind: str, documents: int, size: tuple[int, int], options: int) -> list[Instance]:
    """`documents` contexts of so many words, with so many options each."""
    draw, vocabulary = random.Random(1), words(2000)

    def text(low: int, high: int) -> str:
        return " ".join(draw.choices(vocabulary, k=draw.randint(low, high)))

    found = []
    for n in range(documents):
        context = text(*size)
        for idx in range(options):
            rest = {"loglikelihood": (" " + text(1, 8),), "generate_until": ({"until": ["\x00"], "max_gen_toks": 32},)}
            found.append(Instance(kind, doc={}, arguments=(context, *rest.get(kind, ())), idx=idx, doc_id=n))
    return found


def clock(device: str) -> float:
    """CPU seconds of this process, or wall seconds after the GPU is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def seconds(lm: FledgeLM | HFLM, requests: list[Instance], device: str) -> tuple[float, list]:
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stderr(nowhere),
    ):  # rolling has a bar that cannot be hidden
        start = clock(device)
        found = getattr(lm, requests[0].request_type)(requests, disable_tqdm=True)
        return clock(device) - start, found


def matmul_rates(device: str) -> tuple[float, float]:
    """GFLOP/s of a product of 512 rows: torch's own, and by oneDNN."""
    x, weight = torch.randn(512, 512, device=device), torch.randn(2816, 512, device=device)

    def rate() -> float:
        start = clock(device)
        for _ in range(10):
            torch.nn.functional.linear(x, weight)
        return 10 * 2 * 512 * 512 * 2816 / 1e9 / (clock(device) - start)

    with torch.inference_mode():
        own = max(rate() for _ in range(3))
        with OneDNNProducts():
            return own, max(rate() for _ in range(3))


def products(lm: FledgeLM, requests: list[Instance]) -> tuple[float, float] | None:
    """GFLOP of the matrix products that score these requests: by ours, and by the harness, which reads each by itself.

    None for answers.
    """
    if requests[0].request_type == "generate_until":
        return None
    model, read = lm.model, []
    kept, lm_eval_model.score = (
        lm_eval_model.score,
        lambda _, asked: read.extend(asked) or [Scored(0.0, True)] * len(asked),
    )
    getattr(lm, requests[0].request_type)(requests)
    lm_eval_model.score = kept
    texts = [((*context, *found)[:-1], len(context)) for context, found in read]
    first, deep = model.layers[0], len(model.layers)
    layer, qkv = 2 * sum(p.numel() for p in first.parameters() if p.ndim == 2), 2 * first.qkv.numel()
    head, look = 2 * model.head_weight.numel(), 4 * first.attention_out.shape[1]  # look: to see one position
    seen = {text[:n] for text, _ in texts for n in range(1, len(text) + 1)}  # each beginning is read once
    asked = {text[:n] for text, context in texts for n in range(context, len(text) + 1)}
    ours = sum((deep - 1) * (layer + look * len(text)) + qkv for text in seen)
    ours += sum(layer - qkv + look * len(text) + head for text in asked)
    theirs = sum(len(t) * (deep * (layer + look * (len(t) + 1) / 2) + head) for t, _ in texts)
    return ours / 1e9, theirs / 1e9


def batch_size(theirs: HFLM, requests: list[Instance], longest: int, device: str) -> int:
    """The fastest of the batch sizes for the harness."""
    tried, vocabulary = {}, theirs.model.config.vocab_size
    for size in BATCH_SIZES:
        if size == 1 or size * longest * vocabulary * 4 <= LARGEST_LOGITS:
            theirs.batch_size_per_gpu = size
            few = requests[: max(size, 12)]
            tried[size] = min(seconds(theirs, few, device)[0] for _ in range(2)) / len(few)
    return min(tried, key=tried.get)


def apart(ours: list, theirs: list) -> tuple[float, int]:
    """The largest difference of two scores, and how many are alike: greedy or not, or the same answer.

    Of whole texts relative to the score: the harness adds them up in float32.
    """
    pairs = list(zip(ours, theirs, strict=True))
    if isinstance(ours[0], str):
        return 0.0, sum(a == b for a, b in pairs)
    if isinstance(ours[0], float):
        return max(abs(a - b) / max(1.0, abs(b)) for a, b in pairs), len(pairs)
    return max(abs(a[0] - b[0]) for a, b in pairs), sum(a[1] == b[1] for a, b in pairs)


def measure(name: str, requests: list[Instance], ours: FledgeLM, theirs: HFLM, rounds: int, device: str) -> dict:
    """Median requests/s of both over the rounds, and the largest difference of a score."""
    longest = max(len(theirs.tok_encode(" ".join(map(str, r.args[:2])))) for r in requests)
    theirs.batch_size_per_gpu = best = batch_size(theirs, requests, longest, device)
    seconds(ours, requests, device)
    rates, peaks = {"ours": [], "lm_eval": [], "lm_eval_onednn": []}, []
    for _ in range(rounds):
        peaks.append(matmul_rates(device))
        taken, found = seconds(ours, requests, device)
        rates["ours"].append(len(requests) / taken)
        taken, wanted = seconds(theirs, requests, device)
        rates["lm_eval"].append(len(requests) / taken)
        with OneDNNProducts():
            rates["lm_eval_onednn"].append(len(requests) / seconds(theirs, requests, device)[0])
    ratios = {
        side: [a / b for a, b in zip(rates["ours"], rates[side], strict=True)] for side in ("lm_eval", "lm_eval_onednn")
    }
    difference, same = apart(found, wanted)
    row = {
        "case": name, "requests": len(requests), "batch_size": best,
        **{side: statistics.median(values) for side, values in rates.items()},
        "ratio": statistics.median(ratios["lm_eval"]), "least": min(ratios["lm_eval"]), "most": max(ratios["lm_eval"]),
        "ratio_onednn": statistics.median(ratios["lm_eval_onednn"]), "largest_difference": difference, "alike": same,
        "matmul_gflops": [statistics.median(values) for values in zip(*peaks, strict=True)],
    }  # fmt: skip
    if work := products(ours, requests):
        row["gflops"] = [w * row[side] / len(requests) for w, side in zip(work, ("ours", "lm_eval"), strict=True)]
    print(
        f"{name:<38} ours {row['ours']:8.1f}/s   lm_eval (batch {best:>2}) {row['lm_eval']:8.1f}/s   "
        f"ratio {row['ratio']:5.2f} ({row['least']:.2f} to {row['most']:.2f}), with oneDNN {row['ratio_onednn']:5.2f}   "
        f"apart {difference:.1e}, alike {same}/{len(requests)}   "
        + (f"GFLOP/s {row['gflops'][0]:.0f} and {row['gflops'][1]:.0f}, " if work else "")
        + "products {:.0f} and {:.0f}".format(*row["matmul_gflops"]),
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES))
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    rows = []
    for shape in options.shapes:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            make_folder(place / "hf", SHAPES[shape])
            import_model(build(ModelImportOptions, {"path": str(place / "hf"), "out": str(place / "run")}))
            ours = FledgeLM(run=str(place / "run"), device=options.device)
            theirs = HFLM(pretrained=str(place / "hf"), device=options.device, dtype="float32")
            for name in options.cases:
                kind, size, count = CASES[name]
                asked = make_requests(kind, options.documents, size, count)
                rows.append(measure(f"{shape}, {name}", asked, ours, theirs, options.rounds, options.device))
    if options.json:
        options.json.write_text(json.dumps({"device": options.device, "rows": rows}, indent=1))
    if any(row["largest_difference"] > CLOSE for row in rows):
        sys.exit(f"scores differ by more than {CLOSE}")


if __name__ == "__main__":
    main()
