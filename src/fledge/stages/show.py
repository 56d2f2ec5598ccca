"""The coloured token view: what of a conversation the loss counts."""

import itertools
from collections.abc import Iterator

from fledge.core.config import Settings
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


def run(options: ShowOptions) -> None:
    """Print the first conversations: trained tokens green on dark, the rest dim; a token's edges are marked."""
    from rich.console import Console
    from rich.text import Text

    rejects = Rejects()
    chats = list(itertools.islice(read_trainable([options.chats], rejects=rejects), options.first))
    require_some(len(chats), [options.chats], rejects, "conversations")
    tokenizer = _tokenizer(options, chats)
    out = Console(highlight=False)
    for chat, rendered in zip(chats, render_trainable(tokenizer, chats, options.loss_on), strict=True):
        line = Text()
        for i, (text, trained) in enumerate(token_view(tokenizer, rendered)):
            shade = (
                ("bold white on green4", "bold white on dark_green")[i % 2] if trained else ("grey62", "grey50")[i % 2]
            )
            # off a terminal colours vanish, so trained tokens carry brackets there
            line.append(text if out.is_terminal or not trained else f"[{text}]", shade)
        trained_tokens = sum(rendered.weights)
        out.print(
            Text(f"{chat.source}: {trained_tokens} of {len(rendered.tokens)} tokens trained", "bold"), soft_wrap=True
        )
        out.print(line, soft_wrap=True)
        out.print()
    if rejects.total:
        out.print(rejects.summary(), markup=False)
