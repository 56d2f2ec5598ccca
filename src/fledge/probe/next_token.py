"""The distribution over the next token: a language model is a classifier whose classes are the tokens."""

import math
from collections.abc import Sequence

import msgspec
import torch

from fledge.probe.reading import Likely, Opened, check_context, float32_logits, in_float32, likeliest
from fledge.text.messages import Message
from fledge.text.template import answer_beginning, render_prompt
from fledge.text.tokenizer import Tokenizer


class Next(msgspec.Struct):
    """What a model expects after a context."""

    tokens: list[Likely]
    rest: float
    "Probability of all tokens that are not listed."
    entropy: float
    "Of the whole distribution, in nats: 0 is certain, ln V knows nothing."


def context_tokens(
    tokenizer: Tokenizer,
    *,
    text: str = "",
    messages: Sequence[Message] | None = None,
    tokens: Sequence[int] | None = None,
) -> list[int]:
    """The exact context in token ids: `tokens` themselves, or <bos> and `text`, or a chat whose answer begins `text`.

    Text is encoded as it stands. Where it ends within a word or with a space, its last token is one that seldom stands
    there in training text ("the cap" is not the first tokens of "the capital"), and the distribution is that of a text
    really cut there. So end it with a whole word, without the space that the next token carries itself; and to go on
    with a token of the distribution send `tokens` back with its id appended: encoding the longer text anew may cut it
    differently. Raises ValueError where both tokens and text or messages are given.
    """
    if tokens is not None:
        if text or messages:
            raise ValueError("tokens and text or messages: give the ids or the words, not both")
        return list(tokens)
    if messages is None:
        return [tokenizer.bos, *tokenizer.encode(text)]
    return [*render_prompt(tokenizer, messages), *answer_beginning(tokenizer, text)]


@torch.no_grad()
def next_token(
    opened: Opened,
    *,
    text: str = "",
    messages: Sequence[Message] | None = None,
    tokens: Sequence[int] | None = None,
    top: int = 12,
) -> Next:
    """The `top` likeliest next tokens after a context (see `context_tokens`), in float32 at temperature 1.

    Raises ValueError for an empty context, one beyond the model's, and ids outside the vocabulary.
    """
    context = context_tokens(opened.tokenizer, text=text, messages=messages, tokens=tokens)
    check_context(opened, context, "the text")
    model = in_float32(opened.model)
    hidden = model.hidden(torch.tensor([context], device=model.embedding.device))  # [1,T,D]
    logp = torch.log_softmax(float32_logits(model, hidden[:, -1]), -1)  # [1,V]: only the last position is asked for
    found = likeliest(opened.tokenizer, logp, top)[0]
    entropy = -float((logp.exp() * logp).nan_to_num(0.0).sum())
    return Next(found, max(0.0, 1.0 - math.fsum(t.p for t in found)), max(0.0, entropy))
