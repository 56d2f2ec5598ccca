"""Log-likelihood requests per second: ours and lm-evaluation-harness's own Hugging Face backend, on the same model.

A Llama of random weights and a byte-level vocabulary, imported as a user would. Requests are those of a multiple-choice
task: contexts of 40 to 160 words with four options of 1 to 8 words each, and single continuations (one to a context).
The sides take turns in one process; the harness has the best of several batch sizes, found before the turns. On a CPU the
figure is requests per CPU second of one thread, tokenising included; on CUDA per second of wall time. Scores are compared
request by request.

    python benchmarks/eval.py [--rounds 5] [--documents 64] [--shapes "S, 8k words"] [--device cuda] [--json FILE]
"""

import argparse
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
from fledge.interop.command import ModelImportOptions, import_model  # noqa: E402
from fledge.interop.lm_eval_model import FledgeLM  # noqa: E402

SHAPES = {  # width, layers, heads, key/value heads, feed-forward, vocabulary
    "S, 8k words": (256, 6, 8, 4, 704, 8192),
    "M, 32k words": (512, 8, 8, 4, 1408, 32768),
}
BATCH_SIZES = (1, 4, 16, 64)
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


def make_requests(documents: int, options: int) -> list[Instance]:
    """`documents` contexts with so many options each."""
    draw, vocabulary = random.Random(1), words(2000)

    def text(low: int, high: int) -> str:
        return " ".join(draw.choices(vocabulary, k=draw.randint(low, high)))

    found = []
    for n in range(documents):
        context = text(40, 160)
        for idx in range(options):
            arguments = (context, " " + text(1, 8))
            found.append(Instance(request_type="loglikelihood", doc={}, arguments=arguments, idx=idx, doc_id=n))
    return found


def clock(device: str) -> float:
    """CPU seconds of this process, or wall seconds after the GPU is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def seconds(lm: FledgeLM | HFLM, requests: list[Instance], device: str) -> tuple[float, list[tuple[float, bool]]]:
    start = clock(device)
    found = lm.loglikelihood(requests, disable_tqdm=True)
    return clock(device) - start, found


def measure(name: str, requests: list[Instance], ours: FledgeLM, theirs: HFLM, rounds: int, device: str) -> dict:
    """Median requests/s of both over the rounds, and the largest difference of a score."""
    few = requests[: max(1, len(requests) // 4)]
    tried = {}
    for size in BATCH_SIZES:
        theirs.batch_size_per_gpu = size
        tried[size] = min(seconds(theirs, few, device)[0] for _ in range(2))
    theirs.batch_size_per_gpu = best = min(tried, key=tried.get)
    seconds(ours, few, device)
    rates = {"ours": [], "lm_eval": []}
    for _ in range(rounds):
        taken, found = seconds(ours, requests, device)
        rates["ours"].append(len(requests) / taken)
        taken, wanted = seconds(theirs, requests, device)
        rates["lm_eval"].append(len(requests) / taken)
    apart = max(abs(a[0] - b[0]) for a, b in zip(found, wanted, strict=True))
    same = sum(a[1] == b[1] for a, b in zip(found, wanted, strict=True))
    ratios = [a / b for a, b in zip(rates["ours"], rates["lm_eval"], strict=True)]
    row = {
        "case": name, "requests": len(requests), "batch_size": best,
        **{side: statistics.median(values) for side, values in rates.items()}, "ratio": statistics.median(ratios),
        "least": min(ratios), "most": max(ratios), "largest_difference": apart, "greedy_alike": same,
    }  # fmt: skip
    print(
        f"{name:<32} ours {row['ours']:8.1f}/s   lm_eval (batch {best:>2}) {row['lm_eval']:8.1f}/s   "
        f"ratio {row['ratio']:.2f} ({row['least']:.2f} to {row['most']:.2f})   scores apart by {apart:.1e}, "
        f"greedy alike {same}/{len(requests)}",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES))
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
            for name, count in (("four options", 4), ("one continuation", 1)):
                asked = make_requests(options.documents, count)
                rows.append(measure(f"{shape}, {name}", asked, ours, theirs, options.rounds, options.device))
    if options.json:
        options.json.write_text(json.dumps({"device": options.device, "rows": rows}, indent=1))
    if any(row["largest_difference"] > CLOSE for row in rows):
        sys.exit(f"scores differ by more than {CLOSE}")


if __name__ == "__main__":
    main()
