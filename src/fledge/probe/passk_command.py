"""`fledge passk`: how often one of k sampled answers is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fledge.core.config import Settings
from fledge.core.durable import canonical_json, write_atomically
from fledge.core.log import say
from fledge.probe.pass_at_k import curve
from fledge.probe.reading import Context


class PasskOptions(Settings, frozen=True, kw_only=True):
    """Sample answers and estimate pass@k: `fledge passk RUN --task world --samples 64`."""

    run: str
    "Run or checkpoint that answers, also an imported one."
    task: str | None = None
    "Built-in task whose held-out questions are answered and scored."
    prompts: list[str] = []
    "Own questions instead: JSONL with prompt and answer, compared exactly."
    samples: int = 64
    "Answers to each question."
    count: int = 200
    "Questions at most."
    temperature: float = 1.0
    "Temperature of the samples."
    max_tokens: int = 64
    "Longest answer in tokens."
    context: Context = "chat"
    "What the model reads: chat is the template, plain the bare text and a new line."
    threshold: float = 1.0
    "Score from which an answer counts as right."
    out: str | None = None
    "File for the figures as JSON; none only prints them."
    device: str = "auto"
    "auto, cpu, cuda or cuda:1."
    seed: int = 0
    "Seed of the samples and of the choice of questions."

    def problems(self) -> list[str]:
        low = [n for n in ("samples", "count", "max_tokens") if getattr(self, n) < 1]
        found = [f"{name} = {getattr(self, name)}: must be at least 1" for name in low]
        if (self.task is None) == (not self.prompts):
            found.append("task and prompts: set one of them (--task world, or --prompts questions.jsonl)")
        return found


def run(options: PasskOptions) -> dict[str, Any]:
    """Sample, score and print pass@k for k = 1, 2, 4, ...; returns the figures."""
    from fledge.generate.chat import chat_engine
    from fledge.generate.sampling import Sampling
    from fledge.probe.reading import prompt_tokens
    from fledge.stages.common import open_model
    from fledge.stages.evaluate import messages_of, sample_of
    from fledge.tasks.catalog import open_task
    from fledge.tasks.prompts import PromptFile, exact

    opened = open_model(options.run, device=options.device)
    if options.task:
        task = open_task(options.task)
        every, score = list(task.examples("test")), task.score
    else:
        file = PromptFile(options.prompts)
        every, score = [*file.examples("train"), *file.examples("test")], exact
    asked = sample_of(every, options.count, options.seed)
    room = opened.model.config.context_tokens - options.max_tokens
    prompts = [prompt_tokens(opened.tokenizer, messages_of(e), options.context, room) for e in asked]
    sampling = Sampling(temperature=options.temperature, max_tokens=options.max_tokens, seed=options.seed)
    engine = chat_engine(opened.model, opened.tokenizer)
    done = engine.generate(prompts, sampling, samples=options.samples)
    flags = [
        score(asked[row // options.samples], opened.tokenizer.decode(c.tokens)) >= options.threshold
        for row, c in enumerate(done)
    ]
    correct = [sum(flags[i * options.samples : (i + 1) * options.samples]) for i in range(len(asked))]
    passed = curve(correct, options.samples)
    for k, share in passed.items():
        say(f"pass@{k}: {share:.1%}")
    result = {
        "model": {"id": opened.id, "path": str(opened.path)}, "questions": len(asked), "samples": options.samples,
        "temperature": options.temperature, "context": options.context, "pass": {str(k): p for k, p in passed.items()},
        "correct": {e.id: c for e, c in zip(asked, correct, strict=True)},
    }  # fmt: skip
    if options.out:
        write_atomically(Path(options.out), canonical_json(result))
    return result
