"""Samples per CPU second of whole steps, ours and TRL's trainers, side by side in one process: SFT, DPO, KTO, reward, GRPO.

Same shape, tokens, samples per step, dtype policy (float32 weights, bfloat16 products), optimiser and allocator settings. A
step is the whole period of each loop: drawing and padding the batch, forward, backward, clipping, optimiser, its own
bookkeeping; logging and saving are off. The two alternate, one thread, with a bfloat16 matrix product timed around each turn
as the calibration. SFT: 16 conversations of 10 to 70 words a step (TRL pads them, ours packs them). DPO and reward: 8 pairs;
KTO: 16 votes; answers of about 57 tokens, prompts of about 29. GRPO: 8 answers of at most 64 tokens to each of 4 prompts, sampled
at temperature 1, scored by the number of different words, no KL (TRL's default).

Both sides have scored the reference before the clock starts (TRL: precompute_ref_log_probs, its faster mode); --as-shipped
adds TRL's default, which runs the reference beside the policy.

    python benchmarks/preference.py [--rounds 5] [--only dpo --only kto] [--as-shipped] [--json FILE]
"""

import argparse
import copy
import itertools
import json
import logging
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false", HF_DATASETS_DISABLE_PROGRESS_BARS="1")

from fledge.core import runtime  # noqa: F401, I001  (its settings must come before torch)

import torch

from fledge.core import native
from fledge.core.config import TrainConfig
from fledge.core.model import ModelConfig, Transformer
from fledge.core.objectives import dpo, kto, reward_pairs, weighted_nll
from fledge.core.policy import policy_gradient
from fledge.core.train import train
from fledge.generate.rollout import RolloutConfig, Rollouts
from fledge.stages.common import Parent
from fledge.stages.prefer import column_of_logp, pair_source, reference_logp, thumb_source
from fledge.text.formats import Chat, Message, Pair, Thumb
from fledge.text.sources import ChatSource, Sequences
from fledge.text.template import JINJA, render_chats, render_prompt
from fledge.text.tokenizer import SPECIALS, Tokenizer

VOCAB, CONTEXT, WARM, STEPS = 4096, 256, 3, 8
SHAPES = {"XS": (128, 4, 4, 352), "S": (256, 6, 4, 704)}  # width, layers, heads, feed-forward
KINDS = ("sft", "dpo", "kto", "reward", "grpo")
LR = 1e-5


def toy(count: int = 256) -> tuple[Tokenizer, list[Chat], list[Pair]]:
    """Made-up words, a tokenizer of 4,096 learnt from them, chats of 10 to 70 words and pairs of 44 (57 tokens)."""
    draw = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "or", "is")]
    lexicon = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(6000)]
    frequency = [1 / (rank + 40) for rank in range(len(lexicon))]

    def words(number: int) -> str:
        return " ".join(draw.choices(lexicon, frequency, k=number))

    tokenizer = Tokenizer.train([words(200) for _ in range(1500)], VOCAB)
    chats, pairs = [], []
    for n in range(count):
        prompt = (Message("user", words(22)),)
        chats.append(Chat((*prompt, Message("assistant", words(draw.randint(10, 70)))), str(n)))
        pairs.append(Pair(prompt, words(44), words(44), str(n)))
    return tokenizer, chats, pairs


def distinct_words(texts: list[str], **_) -> list[float]:
    """The reward of GRPO on both sides."""
    return [float(len(set(text.split()))) for text in texts]


def periods(times: list[float]) -> list[float]:
    """Seconds from the end of one step to the end of the next, after the warm-up."""
    return [b - a for a, b in itertools.pairwise(times[WARM - 1 :])]


# ------------------------------------------------------------------------------------------------------------- ours


def our_turn(kind: str, shape: tuple, tokenizer: Tokenizer, chats: list[Chat], pairs: list[Pair]) -> Callable[[], list]:
    """A function that trains WARM + STEPS steps and returns (samples, CPU seconds) of each step after the warm-up."""
    width, layers, heads, ffn = shape
    model = Transformer(
        ModelConfig(
            size="pocket", vocab_size=VOCAB, width=width, layers=layers, heads=heads, ffn_width=ffn, tied=True,
            context_tokens=CONTEXT, head="reward" if kind == "reward" else "tokens",
        )
    ).initialise(0)  # fmt: skip
    model.compute_dtype = torch.bfloat16
    parent = Parent(model, tokenizer, "", Path(), {})
    if kind == "sft":
        sequences = Sequences(render_chats(tokenizer, chats), limit=CONTEXT + 1)
        rows = round(16 * (len(sequences.tokens) / len(chats)) / CONTEXT)
        source = ChatSource(sequences, rows=rows, length=CONTEXT, seed=0, pad=tokenizer.pad)
        objective = weighted_nll
    elif kind == "kto":
        votes = [Thumb(p.prompt, a, liked, p.source) for p in pairs for a, liked in ((p.chosen, True), (p.rejected, False))]
        source, objective = thumb_source(parent, votes), kto()
        source.votes_per_step = 16
        source.set_reference(
            *(column_of_logp(model, sequences, tokenizer.pad) for sequences in (source.sequences, source.mismatched))
        )
    elif kind == "grpo":
        prompts = [render_prompt(tokenizer, p.prompt) for p in pairs]
        settings = RolloutConfig(prompts_per_update=4, group_size=8, max_tokens=64, kl="off", cut_penalty=0.0)
        source = Rollouts(model, tokenizer, prompts, lambda _, answers: distinct_words(answers), settings)
        objective = policy_gradient(clip=(0.2, 0.2))
    else:
        source = pair_source(parent, pairs, read="end" if kind == "reward" else "answers")
        source.pairs_per_step = 8
        objective = reward_pairs if kind == "reward" else dpo()
        if kind == "dpo":
            source.ref_logp = reference_logp(model, source)
    config = TrainConfig(steps=WARM + STEPS, lr=LR, precision="bfloat16", device="cpu", threads=1, save_seconds=1e9)

    def turn() -> list[tuple[float, float]]:
        times, samples = [], []

        class Counted:  # the source, with the samples of each step counted
            def __iter__(self):
                for batch in source:
                    packed = kind == "sft"
                    rows = float(len(batch.tokens)) / batch.rows_per_unit
                    samples.append(float((batch.doc.amax(1) + 1).sum()) if packed else rows)
                    yield batch

            state_dict, load_state_dict = source.state_dict, source.load_state_dict

        def hook(_) -> None:
            times.append(time.process_time())

        with tempfile.TemporaryDirectory() as folder:
            train(model, Counted(), objective, config, out=Path(folder), card={}, hooks=[hook])
        return list(zip(samples[WARM:], periods(times), strict=True))

    return turn


# ------------------------------------------------------------------------------------------------------------ theirs


def their_turn(
    kind: str, shape: tuple, tokenizer: Tokenizer, chats: list[Chat], pairs: list[Pair], precompute: bool
) -> Callable[[], list]:
    """The same for TRL's trainer of that kind."""
    import datasets
    import transformers
    import trl

    width, layers, heads, ffn = shape
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.slow, bos_token=SPECIALS[1], eos_token=SPECIALS[6], pad_token=SPECIALS[0]
    )
    words.chat_template = JINJA
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
        intermediate_size=ffn, max_position_embeddings=CONTEXT, tie_word_embeddings=True, attn_implementation="sdpa",
        pad_token_id=tokenizer.pad, num_labels=1,
    )  # fmt: skip
    common = {
        "output_dir": tempfile.mkdtemp(), "max_steps": WARM + STEPS, "learning_rate": LR, "use_cpu": True, "bf16": True,
        "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no", "max_length": CONTEXT,
        "gradient_checkpointing": False, "dataloader_pin_memory": False,
    }  # fmt: skip

    def plain(messages) -> list[dict]:
        return [{"role": m.role, "content": m.content} for m in messages]

    def said(text: str) -> list[dict]:
        return [{"role": "assistant", "content": text}]

    rows = [{"prompt": plain(p.prompt), "chosen": said(p.chosen), "rejected": said(p.rejected)} for p in pairs]
    # votes in random order, as ours draws them: TRL's KTO reads them as they come
    votes = [{"prompt": r["prompt"], "completion": r[k], "label": k == "chosen"} for r in rows for k in ("chosen", "rejected")]
    random.Random(1).shuffle(votes)
    talks = [{"prompt": plain(c.messages[:-1]), "completion": plain(c.messages[-1:])} for c in chats]
    if kind == "grpo":
        for name in ("gradient_checkpointing", "max_length"):
            common.pop(name)
    asked = [{"prompt": row["prompt"]} for row in rows]
    sampling = {"num_generations": 8, "max_completion_length": 64, "temperature": 1.0, "per_device_train_batch_size": 32}

    def scored(completions, **_) -> list[float]:
        return distinct_words([c[0]["content"] for c in completions])

    seqcls = kind == "reward"
    model = (transformers.LlamaForSequenceClassification if seqcls else transformers.LlamaForCausalLM)(config)
    held = {} if precompute or kind in ("sft", "reward", "grpo") else {"ref_model": copy.deepcopy(model)}
    ahead = {"precompute_ref_log_probs": precompute}
    trainer_kind, arguments, data = {
        "sft": lambda: (trl.SFTTrainer, trl.SFTConfig(per_device_train_batch_size=16, **common), talks),
        "dpo": lambda: (trl.DPOTrainer, trl.DPOConfig(per_device_train_batch_size=8, **ahead, **common), rows),
        "kto": lambda: (trl.KTOTrainer, trl.KTOConfig(per_device_train_batch_size=16, **ahead, **common), votes),
        "reward": lambda: (trl.RewardTrainer, trl.RewardConfig(per_device_train_batch_size=8, **common), rows),
        "grpo": lambda: (trl.GRPOTrainer, trl.GRPOConfig(gradient_checkpointing=False, **sampling, **common), asked),
    }[kind]()
    held |= {"reward_funcs": [scored]} if kind == "grpo" else {}
    times: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_, **__) -> None:
            times.append(time.process_time())

    trainer = trainer_kind(
        model=model, args=arguments, train_dataset=datasets.Dataset.from_list(data), processing_class=words,
        callbacks=[Clock()], **held,
    )  # fmt: skip

    def turn() -> list[tuple[float, float]]:
        times.clear()
        trainer.train()
        return [(float(arguments.per_device_train_batch_size), seconds) for seconds in periods(times)]

    return turn


# ----------------------------------------------------------------------------------------------------------- compare


def peak() -> float:
    """GFLOP/s of a bfloat16 matrix product, the calibration."""
    a, b = (torch.randn(1024, 1024, dtype=torch.bfloat16) for _ in range(2))
    start = time.process_time()
    for _ in range(10):
        a @ b
    return 10 * 2.0 * 1024**3 / (time.process_time() - start) / 1e9


def rate(steps: list[tuple[float, float]]) -> float:
    return sum(samples for samples, _ in steps) / sum(seconds for _, seconds in steps)


def compare(name: str, kind: str, data: tuple, rounds: int, precompute: bool) -> dict:
    """Alternate the two for `rounds` turns; medians, extremes and the ratio turn by turn."""
    ours, theirs = our_turn(kind, SHAPES[name], *data), their_turn(kind, SHAPES[name], *data, precompute)
    ours(), theirs()
    turns = []
    for _ in range(rounds):
        before = peak()
        mine = rate(ours())
        between = peak()
        turns.append((mine, rate(theirs()), statistics.fmean((before, between, peak()))))
    ratios = [mine / other for mine, other, _ in turns]
    middle = [statistics.median(column) for column in zip(*turns, strict=True)]
    return {
        "shape": name, "stage": kind, "reference": "scored before" if precompute else "beside the policy",
        "ours": middle[0], "theirs": middle[1], "ratio": statistics.median(ratios),
        "ratio_min": min(ratios), "ratio_max": max(ratios), "peak_gflops": middle[2],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", choices=KINDS)
    parser.add_argument("--shape", action="append", choices=list(SHAPES))
    parser.add_argument("--as-shipped", action="store_true", help="also TRL's default, the reference beside the policy")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    data = toy()
    import trl

    kernels = "native" if native.library() else "torch"
    print(f"torch {torch.__version__}, trl {trl.__version__}, {kernels} kernels, unit: samples per CPU second\n")
    print("| shape | stage | TRL's reference | ours | TRL | ratio (min..max) | GFLOP/s |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for name in options.shape or SHAPES:
        for kind in options.only or KINDS:
            modes = [True] + [False] * (options.as_shipped and kind in ("dpo", "kto"))
            for precompute in modes:
                r = compare(name, kind, data, options.rounds, precompute)
                rows.append(r)
                shown = r["reference"] if kind in ("dpo", "kto") else "none"
                print(
                    f"| {name} | {kind} | {shown} | {r['ours']:.1f} | {r['theirs']:.1f} | {r['ratio']:.2f} "
                    f"({r['ratio_min']:.2f}..{r['ratio_max']:.2f}) | {r['peak_gflops']:,.0f} |",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
