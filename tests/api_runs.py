"""Tiny runs that Python makes of rows in memory."""

from pathlib import Path

from fledge import api

NAMES = ("ada", "bo", "cy", "di", "ed", "flo", "gus", "hal")
TEXTS = [{"text": f"ada and bo meet number {i} of the day"} for i in range(60)]
CHATS = [
    {"messages": [{"role": "user", "content": f"who is {n}"}, {"role": "assistant", "content": f"{n} is here."}]}
    for n in NAMES
]
PAIRS = [{"prompt": f"who is {n}", "chosen": f"{n} is here.", "rejected": "no"} for n in NAMES]
SHAPE = {"size": "tiny", "layers": 1, "context_tokens": 48}
LOOP = {"steps": 3, "batch_tokens": 256, "threads": 1}


def make_runs(folder: Path) -> Path:
    """`folder` with base, sft and rm, a reward model."""
    base = api.pretrain(out=folder / "base", text=TEXTS, vocab_size=280, model=SHAPE, train=LOOP)
    sft = api.sft(out=folder / "sft", parent=base, chats=CHATS, train=LOOP)
    api.reward(out=folder / "rm", parent=sft, pairs=PAIRS, train=LOOP)
    return folder
