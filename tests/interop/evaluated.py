"""What the tests of evaluation share: a run of ours, and requests as the harness makes them."""

from pathlib import Path

import msgspec
from lm_eval.api.instance import Instance

from fledge.core.checkpoint import save_checkpoint
from fledge.core.model import Transformer
from fledge.text.tokenizer import Tokenizer


def save_run(run: Path, model: Transformer, tokenizer: Tokenizer, **card) -> Path:
    card = {"stage": "sft", "parent": None, "model": msgspec.to_builtins(model.config), "recipe": {}, **card}
    return save_checkpoint(
        run, 1, model=model.state_dict(), optimizer={}, state={}, card=card, tokenizer=tokenizer.json
    )


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=a, idx=0) for a in arguments]
