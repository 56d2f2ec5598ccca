"""`fledge power`: answers of a model sampled from p^alpha, beside its greedy ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fledge.core.durable import canonical_json, write_atomically
from fledge.core.log import say, visible
from fledge.generate.power import EngineWriter, PowerSampling, power_sample
from fledge.probe.reading import Context


class PowerOptions(PowerSampling, frozen=True, kw_only=True):
    """Sample whole answers from p^alpha: `fledge power RUN --prompts questions.jsonl --alpha 4`, or --text "Who ...?"."""

    run: str
    "Run or checkpoint that answers, also an imported one."
    prompts: list[str] = []
    "Questions: JSONL with prompt."
    text: str | None = None
    "One question instead."
    count: int = 100
    "Questions at most."
    context: Context = "chat"
    "What the model reads: chat is the template, plain the bare text and a new line."
    out: str | None = None
    "File for the answers as JSON lines; none only prints them."
    device: str = "auto"
    "auto, cpu, cuda or cuda:1."

    def problems(self) -> list[str]:
        found = super().problems() + [f"count = {self.count}: must be at least 1"] * (self.count < 1)
        if (self.text is None) == (not self.prompts):
            found.append('prompts and text: set one of them (--prompts questions.jsonl, or --text "...")')
        return found


def run(options: PowerOptions) -> list[dict[str, Any]]:
    """Sample, print and write; returns one row for each question, with its greedy answer."""
    from fledge.generate.chat import chat_engine
    from fledge.generate.sampling import Sampling
    from fledge.probe.reading import prompt_tokens
    from fledge.stages.common import open_model
    from fledge.stages.evaluate import messages_of, sample_of
    from fledge.tasks.prompts import PromptFile
    from fledge.text.messages import Message

    opened = open_model(options.run, device=options.device)
    if options.text is not None:
        conversations = [[Message("user", options.text)]]
    else:
        file = PromptFile(options.prompts)
        every = [*file.examples("train"), *file.examples("test")]
        conversations = [messages_of(e) for e in sample_of(every, options.count, options.seed)]
    room = opened.model.config.context_tokens - options.max_tokens
    prompts = [prompt_tokens(opened.tokenizer, messages, options.context, room) for messages in conversations]
    engine, decode = chat_engine(opened.model, opened.tokenizer), opened.tokenizer.decode
    drawn = power_sample(EngineWriter(engine), prompts, options)
    greedy = engine.generate(prompts, Sampling(temperature=0.0, max_tokens=options.max_tokens))
    rows = [
        {"prompt": messages[-1].content, "answer": decode(d.tokens), "logp": d.logp, "stopped": d.stopped, "taken": d.taken,
         "tokens_written": d.written, "greedy": decode(g.tokens)}
        for messages, d, g in zip(conversations, drawn, greedy, strict=True)
    ]  # fmt: skip
    for row in rows[:20]:
        say(visible(f"{row['prompt']}\n  power: {row['answer']}\n  greedy: {row['greedy']}"))
    if options.out:
        write_atomically(Path(options.out), b"".join(canonical_json(row) for row in rows))
    return rows
