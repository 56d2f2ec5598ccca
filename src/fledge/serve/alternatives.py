"""Log-probs of written tokens and of their likeliest alternatives, from one forward pass of the model.

They are the model's own (temperature 1, nothing cut off), as OpenAI and vLLM tell them, not those of the sampling.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from fledge.stages.common import Parent
from fledge.text.tokenizer import Tokenizer


class Likely(NamedTuple):
    """A token of an answer."""

    token: int
    logp: float  # nats
    others: list[tuple[int, float]]  # the likeliest tokens there, likeliest first, the token itself possibly among them
    tokenizer: Tokenizer

    def text(self, token: int) -> str:
        return self.tokenizer.token_text(token)


@torch.inference_mode()
def likely(opened: Parent, prompt: Sequence[int], answer: Sequence[int], start: int, count: int) -> list[Likely]:
    """Tokens answer[start:], without control tokens, each with its `count` likeliest alternatives."""
    tokenizer = opened.tokenizer
    if start >= len(answer):
        return []
    context = torch.tensor([[*prompt, *answer[:-1]]], device=opened.model.embedding.device)
    hidden = opened.model.hidden(context)[0, len(prompt) - 1 + start :]  # [N,D], N = len(answer) - start
    logp = torch.log_softmax(opened.model.logits(hidden), -1)  # [N,V]
    best, where = logp.topk(min(count, logp.shape[-1]), -1)
    tokens = torch.tensor(list(answer[start:]), device=logp.device)
    own = logp.gather(-1, tokens[:, None]).squeeze(-1)
    rows = zip(answer[start:], own.tolist(), where.tolist(), best.tolist(), strict=True)
    return [
        Likely(token, logp, list(zip(ids, values, strict=True)), tokenizer)
        for token, logp, ids, values in rows
        if token not in tokenizer.special_ids
    ]


def seen_as_chat(tokens: Sequence[Likely]) -> dict[str, Any]:
    """`choices[].logprobs` of chat completions."""
    content = []
    for one in tokens:
        others = [_entry(one, token, logp) for token, logp in one.others]
        content.append({**_entry(one, one.token, one.logp), "top_logprobs": others})
    return {"content": content, "refusal": None}


def _entry(one: Likely, token: int, logp: float) -> dict[str, Any]:
    return {"token": one.text(token), "logprob": logp, "bytes": list(one.tokenizer.token_bytes(token))}


def seen_as_text(tokens: Sequence[Likely], offset: int) -> dict[str, Any]:
    """`choices[].logprobs` of completions; `offset`: characters of the answer before these tokens."""
    parts = [one.tokenizer.token_bytes(one.token) for one in tokens]
    # a character over several tokens counts from the one that completes it, as the stream tells it
    offsets = [offset + len(b"".join(parts[:n]).decode("utf-8", "ignore")) for n in range(len(parts))]
    return {
        "tokens": [one.text(one.token) for one in tokens],
        "token_logprobs": [one.logp for one in tokens],
        "top_logprobs": [{one.text(token): logp for token, logp in one.others} for one in tokens],
        "text_offset": offsets,
    }
