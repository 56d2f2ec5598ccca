"""The coloured token view: what of a conversation the loss counts."""

import itertools
from collections.abc import Iterator
from typing import Any

from fledge.core.config import Settings
from fledge.core.log import say
from fledge.core.shown import Listing, as_html
from fledge.stages.common import open_model
from fledge.text.formats import Chat
from fledge.text.readers import Rejects, require_some
from fledge.text.segments import Segments, Tokens, Trainable, read_trainable, render_trainable
from fledge.text.template import LossOn, Rendered
from fledge.text.tokenizer import Tokenizer


class ShowOptions(Settings, frozen=True, kw_only=True):
    """Show which tokens of conversations are trained."""

    chats: str
    "Conversations in any accepted shape, template-free rows, or rows of tokens."
    model: str | None = None
    "Run or checkpoint whose tokenizer is used; None learns a small one from the file."
    loss_on: LossOn = "answers"
    "As of `fledge sft`: all answers, the last one only (last), or the questions too (all)."
    first: int = 5
    "Conversations to show."

    def problems(self) -> list[str]:
        return [] if self.first >= 1 else [f"first = {self.first}: must be at least 1"]


def token_view(tokenizer: Tokenizer, rendered: Rendered) -> Iterator[tuple[str, bool]]:
    """(token as text, trained) of each token, exactly as the loss counts it."""
    for token, weight in zip(*rendered, strict=True):
        yield tokenizer.token_text(token), weight > 0


def _tokenizer(options: ShowOptions, chats: list[Trainable]) -> Tokenizer:
    if options.model:
        return open_model(options.model).tokenizer
    if held := next((c.source for c in chats if isinstance(c, Tokens)), None):
        raise ValueError(f"{held} holds tokens: say with --model whose tokenizer made them")
    said = [m.content for c in chats if isinstance(c, Chat) for m in c.messages]
    return Tokenizer.train([*said, *(text for c in chats if isinstance(c, Segments) for text, _ in c.parts)], 1024)


class TokenView:
    """One conversation in tokens, trained ones green on dark, the rest dim; a token's edges are marked."""

    def __init__(self, name: str, tokens: list[tuple[str, bool]]):
        self.name, self.tokens = name, tokens

    def __repr__(self) -> str:
        trained = sum(trained for _, trained in self.tokens)
        return f"{self.name}: {trained} of {len(self.tokens)} tokens trained"

    def _repr_html_(self) -> str:
        return as_html(self)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text

        line = Text(no_wrap=True, overflow="ignore")
        for i, (text, trained) in enumerate(self.tokens):
            shade = (
                ("bold white on green4", "bold white on dark_green")[i % 2] if trained else ("grey62", "grey50")[i % 2]
            )
            # off a terminal colours vanish, so trained tokens carry brackets there
            line.append(text if console.is_terminal or not trained else f"[{text}]", shade)
        yield Text(repr(self), "bold", no_wrap=True, overflow="ignore")
        yield line
        yield Text("")


def run(options: ShowOptions) -> Listing[TokenView]:
    """The first conversations, shown as tokens."""
    from rich.console import Group

    rejects = Rejects()
    chats = list(itertools.islice(read_trainable(options.chats, rejects=rejects), options.first))
    require_some(len(chats), options.chats, rejects, "conversations")
    tokenizer = _tokenizer(options, chats)
    rendered = render_trainable(tokenizer, chats, options.loss_on)
    views = [TokenView(c.source, list(token_view(tokenizer, r))) for c, r in zip(chats, rendered, strict=True)]
    if rejects.total:
        say(rejects.summary())
    return Listing(views, lambda: Group(*views))
