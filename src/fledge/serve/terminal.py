"""Chat in the terminal with the newest model of a run."""

import sys

import msgspec

from fledge.core.config import Settings
from fledge.core.log import console, say
from fledge.generate.chat import Answer, chat_engine, stream
from fledge.generate.sampling import Sampling
from fledge.stages.common import open_model
from fledge.text.formats import Message


class ChatOptions(Settings, frozen=True, kw_only=True):
    """Talk with the newest model of a run."""

    run: str
    "A run, a stage's folder or a checkpoint."
    system: str | None = None
    "A system message, kept when old turns are dropped."
    sampling: Sampling = Sampling()
    "How tokens are drawn."

    def problems(self) -> list[str]:
        return self.sampling.problems()


_HELP = "/new starts over, /quit leaves; an empty line does nothing"


def run(options: ChatOptions) -> None:
    """Read lines from stdin until it ends; answers stream to stdout."""
    opened = open_model(options.run)
    if opened.card["model"]["head"] == "reward":  # open_model gave it a token head
        raise ValueError(
            f"{opened.path} is a reward model: it scores answers and writes none; chat with sft or aligned"
        )
    tokenizer, engine = opened.tokenizer, chat_engine(opened.model, opened.tokenizer)
    stage = opened.card["stage"]
    say(f"{opened.path}  ({stage}, {opened.id[:12]})\n{_HELP}")
    if stage == "pretrain":
        say("this is a base model: it goes on writing and was never taught to answer or to stop")
    history = [Message("system", options.system)] if options.system else []
    messages, turn = list(history), 0
    while (line := _ask()) is not None:
        line = line.strip()
        if line == "/quit":
            return
        if line == "/new":
            messages, turn = list(history), turn + 1
            say("(a new conversation)")
        elif line:
            sampling = msgspec.structs.replace(options.sampling, seed=options.sampling.seed + turn)
            turn += 1
            try:
                answer = _speak(engine, tokenizer, [*messages, Message("user", line)], sampling)
            except ValueError as error:
                say(str(error))
                continue
            messages += [Message("user", line), Message("assistant", answer)]


def _ask() -> str | None:
    try:
        return console().input("[bold]you[/]  ") if sys.stdin.isatty() else (sys.stdin.readline() or None)
    except (EOFError, KeyboardInterrupt):
        return None


def _speak(engine, tokenizer, messages, sampling) -> str:
    """Print the answer as it is written; control characters of the model are shown, not obeyed."""
    for piece in stream(engine, tokenizer, messages, sampling):
        if isinstance(piece, Answer):
            print(flush=True)
            if piece.dropped_turns:
                say(f"(the context is full: the oldest {piece.dropped_turns} messages were left out)")
            if piece.finish == "length":
                say("(cut off: the longest answer was reached; --sampling.max_tokens sets it)")
            return piece.text
        visible = "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in piece)
        print(visible, end="", flush=True)
    raise AssertionError("stream() always ends with an Answer")
