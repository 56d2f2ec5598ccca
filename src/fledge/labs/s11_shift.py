"""S11: fine-tuning changes few tokens of an answer: how it begins, and that it ends. What it says is the base's own.

Each token of a fine-tuned model's greedy answer is ranked by its base, which reads the identical tokens (Lin et al.
2023, section 2): its first choice (unshifted), its second or third (marginal), or none of them (shifted).

What the claim takes for granted has to be so here, too. The base must know its text, so it reads it longer than the
base of a quick journey does, and in a vocabulary as large as makes a token of "It", as Llama 2's is: of two halves
the second is shifted, too, and with the first alone given a base does not go on as the answer does. It must be able
to read the context, as Llama 2 reads "[INST]": a question is a line of text, its answer the next, and only the end
token is new. It must have read words such as those of the answers: they are the world's plain ones. One arm each
shows what becomes of it otherwise: answers with courtesies and chatter, which the base's text has nowhere, and a
template whose tokens the base has never read. DPO goes on from the latter, on pairs whose better answer is plain. The
control learns the same from random weights. All questions are about people and places that no conversation mentions.

End tokens are shifted in every arm, for no base has read them; the comparison with random weights leaves them out.
How long the base reads, its vocabulary and the learning rates were chosen on seed 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from fledge.core.config import Settings, TrainConfig
from fledge.labs.bench import Bench
from fledge.labs.verdict import Findings, Number, at_least, at_most, ratio
from fledge.probe.reading import Context, Opened, prompt_tokens
from fledge.probe.shift import Shift, TokenShift, greedy_answers, one_step, shares, shifts
from fledge.probe.shift_command import summary
from fledge.stages import pretrain, sft
from fledge.stages.common import Parent, open_model, read_recipe
from fledge.stages.evaluate import messages_of, rate, sample_of
from fledge.stages.material import WELL_READ
from fledge.stages.panels import Line, Panel, panel_chart
from fledge.stages.prefer import DpoRecipe, run_dpo
from fledge.stages.worlds import world_behind
from fledge.tasks.base import Example
from fledge.tasks.prompts import PromptFile
from fledge.text.segments import NOT_TRAINED
from fledge.text.tokenizer import Tokenizer
from fledge.world.answers import exact_match, named
from fledge.world.facts import bare
from fledge.world.questions import in_all_forms
from fledge.world.world import World

_PLACES = 10  # of an answer, in the chart
_FEWEST = 20  # tokens behind a point of it
_UNSHIFTED = "77.7% (Llama 2 chat); 82.4% (Vicuna); 82.2% (Mistral)"


class Setup(Settings, frozen=True, kw_only=True):
    """Models raised from one base, and questions to all of them; at full, real checkpoints and prompts."""

    asked: int = 300
    "Test questions, at most."
    well_read: int = WELL_READ
    "Statements in the text from which a fact is asked about."
    tokens: int = 4_500_000
    "Tokens of the journey's text that the base reads."
    vocab_size: int = 3072
    "Vocabulary of the base; of half as many, a word such as It would be two tokens."
    epochs: float = 6.0
    "Times the conversations are read."
    lr: float = 4e-4
    "Peak learning rate of fine-tuning."
    lr_scratch: float = 1e-3
    "The same from random weights, which need the larger steps of a first training."
    epochs_dpo: float = 3.0
    "Times the pairs are read."
    lr_dpo: float = 7e-5
    "Peak learning rate of DPO."
    batch_tokens: int = 1024
    "Positions of an optimiser step of fine-tuning."
    max_tokens: int = 48
    "Longest answer in tokens."
    model: str | None = None
    "At full: the aligned model, a run or checkpoint."
    base: str | None = None
    "At full: the model it was raised from."
    control: str | None = None
    "At full: another model to be compared with the base, such as an SFT model of another base with this tokenizer."
    data: list[str] = []
    "At full: files of prompts, JSONL with prompt."
    context: Context = "chat"
    "At full: what all models read, chat or plain."

    def problems(self) -> list[str]:
        needed = {"model": self.model, "base": self.base, "data": self.data}
        missing = [name for name, value in needed.items() if not value]
        if missing and (len(missing) < len(needed) or self.control):
            return [f"{', '.join(missing)}: not set; real checkpoints are compared by model, base and data together"]
        return []


SCALES = {
    "pocket": Setup(),
    "gpu": Setup(asked=1000, tokens=24_000_000),
    "full": Setup(asked=1000, max_tokens=256),
    "tiny": Setup(asked=12, well_read=1, tokens=81_920, vocab_size=800, epochs=1.0, epochs_dpo=1.0, max_tokens=12),
}


def questions(world: World, setup: Setup, seed: int) -> list[Example]:
    """Held-out facts that the text states often, asked for in four forms."""
    found = in_all_forms((f for f in world.facts if f.split == "test"), world.pools, setup.well_read)
    return sample_of(found, setup.asked, seed)


def name_tokens(shift: Shift, values: Sequence[str]) -> list[bool]:
    """Which tokens of an answer belong to one of these values, as they stand in its text (case does not count)."""
    text = "".join(t.piece for t in shift.tokens).casefold()
    spans = [(at, at + len(key)) for key in map(str.casefold, values) if (at := text.find(key)) >= 0]
    found, end = [], 0
    for token in shift.tokens:
        start, end = end, end + len(token.piece)
        last = max(end, start + 1)  # bytes of a character stand where it ends up
        found.append(not token.control and any(start < high and low < last for low, high in spans))
    return found


def look(
    aligned: Opened, base: Opened, asked: Sequence[Example], setup: Setup, context: Context = "chat"
) -> dict[str, Any]:
    """The figures of `fledge shift` for the answers to these questions, with those of the names in them."""
    tokenizer = aligned.tokenizer
    room = min(m.model.config.context_tokens for m in (aligned, base)) - setup.max_tokens
    prompts = [prompt_tokens(tokenizer, messages_of(e), context, room) for e in asked]
    written = greedy_answers(aligned, prompts, setup.max_tokens)
    found = shifts(aligned, base, prompts, [c.tokens for c in written], top=1)
    steps, words = (one_step(base, prompts, found, words=whole) for whole in (False, True))
    alone = greedy_answers(base, prompts, setup.max_tokens)
    texts, continued, own = ([tokenizer.decode(c.tokens) for c in each] for each in (written, steps, alone))
    choices = [tuple(e.meta.get("choices", ())) for e in asked]
    values = [named(text, held) for text, held in zip(texts, choices, strict=True)]
    names, form = [], []
    for shift, held in zip(found, values, strict=True):
        for token, inside in zip(shift.tokens, name_tokens(shift, [bare(v) for v in held]), strict=True):
            (names if inside else form).append(token)

    def same_name(others: Sequence[str]) -> float | None:
        return rate(bool(v) and named(text, c) == v for v, text, c in zip(values, others, choices, strict=True))

    told = summary(found, [e.kind for e in asked])
    return {
        "tokens": told["tokens"], "shares": told["shares"], "shares_without_end": told["shares_without_end"],
        "start_or_end": told["shifted_at_start_or_end"], "names": _figures(names), "form": _figures(form),
        "recovered": rate(step.recovered for step in steps), "recovered_name": same_name(continued),
        "recovered_word": rate(step.recovered for step in words), "kl": told["kl"],
        "alone_name": same_name(own), "stopped": rate(c.finish == "stop" for c in written),
        "right": rate(exact_match(text, e.answers) for e, text in zip(asked, texts, strict=True)),
        "places": _places(found), "by_position": told["by_position"], "most_shifted": told["most_shifted"][:8],
        "shown": [[[t.text, t.rank] for t in shift.tokens] for shift in found[:: max(1, len(found) // 6)]],
    }  # fmt: skip


def _figures(tokens: Sequence[TokenShift]) -> dict[str, Any]:
    return {"tokens": len(tokens)} | shares([t.category for t in tokens])


def _places(found: Sequence[Shift]) -> list[list[float]]:
    """[place from 1, share of its tokens that are shifted], end tokens apart, as far as there are enough of them."""
    rows = []
    for place in range(_PLACES):
        there = [s.tokens[place] for s in found if len(s.tokens) > place and not s.tokens[place].control]
        if len(there) >= min(_FEWEST, len(found)):
            rows.append([place + 1, shares([t.category for t in there])["shifted"]])
    return rows


def measure(setup: Setup, bench: Bench) -> dict[str, Any]:
    """Raise the models and look at each beside the base."""
    if setup.model or bench.scale == "full":
        return _real(setup, bench)
    journey = bench.journey()
    world = world_behind(journey)
    asked = questions(world, setup, bench.seed)
    base = _raise_base(journey, setup, bench)
    files = _material(world, base.tokenizer, bench)

    def tuned(name: str, rows: str, lr: float = setup.lr, fresh: bool = False) -> Parent:
        recipe = sft.SftRecipe(
            out=bench.out(name), parent=str(base.path), chats=[files[rows]], epochs=setup.epochs, fresh=fresh,
            train=_loop(setup, bench, lr),
        )  # fmt: skip
        return open_model(sft.run(recipe, quiet=True))

    def preferred() -> Parent:
        recipe = DpoRecipe(
            out=bench.out("dpo"), parent=bench.out("template"), pairs=[files["pairs"]], epochs=setup.epochs_dpo,
            beta=0.1, nll_weight=0.5, train=_loop(setup, bench, setup.lr_dpo),
        )  # fmt: skip
        return open_model(run_dpo(recipe, quiet=True))

    made = {
        "sft": lambda: look(tuned("sft", "text"), base, asked, setup, "plain"),
        "scratch": lambda: look(tuned("scratch", "text", setup.lr_scratch, fresh=True), base, asked, setup, "plain"),
        "new words": lambda: look(tuned("new words", "styled"), base, asked, setup, "plain"),
        "template": lambda: look(tuned("template", "chats"), base, asked, setup),
        "dpo": lambda: look(preferred(), base, asked, setup),
    }
    return {name: bench.keep(name, make) for name, make in made.items()} | {"asked": len(asked)}


def _loop(setup: Setup, bench: Bench, lr: float) -> TrainConfig:
    return TrainConfig(lr=lr, weight_decay=0.0, batch_tokens=setup.batch_tokens, seed=bench.seed)


def _raise_base(journey: Path, setup: Setup, bench: Bench) -> Parent:
    """A base by the recipe of the journey's, on the same text, which it reads longer and in larger tokens."""
    recipe = msgspec.convert(read_recipe(journey / "base")["recipe"], pretrain.PretrainRecipe)
    train = msgspec.structs.replace(recipe.train, steps=None)
    longer = msgspec.structs.replace(
        recipe, out=bench.out("base"), tokens=setup.tokens, vocab_size=setup.vocab_size, train=train
    )
    return open_model(pretrain.run(longer, quiet=True))


def _material(world: World, tokenizer: Tokenizer, bench: Bench) -> dict[str, str]:
    """Files: plain conversations, the same as text, text in other styles, and pairs whose better answer is plain."""
    facts = [c for c in world.chats() if c["kind"] in ("fact", "two_turn")]
    plain = [c["messages"] for c in facts if c["style"] == "plain"]
    styled = [c["messages"] for c in facts if c["style"] != "plain"][: len(plain)]
    pairs = [p for p in world.pairs() if p["kind"] == "fact" and p["styles"][0] == "plain"]
    rows = {
        "chats": [{"messages": m} for m in plain], "pairs": pairs, "text": _as_text(tokenizer, plain),
        "styled": _as_text(tokenizer, styled),
    }  # fmt: skip
    return {name: bench.write(name, held) for name, held in rows.items()}


def _as_text(tokenizer: Tokenizer, chats: Sequence[list[dict[str, str]]]) -> list[dict[str, list[int]]]:
    """The first question of each as a line of text, and its answer; the end token is the only new one."""
    asked = tokenizer.encode_batch([m[0]["content"] + "\n" for m in chats])
    answers = tokenizer.encode_batch([m[1]["content"] for m in chats])
    rows = []
    for question, answer in zip(asked, answers, strict=True):
        head, told = [tokenizer.bos, *question], [*answer, tokenizer.end]
        rows.append({"input_ids": head + told, "labels": [NOT_TRAINED] * len(head) + told})
    return rows


def _real(setup: Setup, bench: Bench) -> dict[str, Any]:
    """The same figures for checkpoints that are there already; what is a name in an answer is not known of them."""
    if not setup.model or not setup.base:
        raise ValueError(
            "model, base and data are not set: at full, give --set.model RUN --set.base RUN --set.data PROMPTS"
        )
    task = PromptFile(setup.data)
    every = [msgspec.structs.replace(e, meta={}) for split in ("train", "test") for e in task.examples(split)]
    asked = sample_of(every, setup.asked, bench.seed)
    models = {"sft": setup.model} | ({"scratch": setup.control} if setup.control else {})
    base = open_model(setup.base)
    found = {
        name: bench.keep(name, lambda p=path: look(open_model(p), base, asked, setup, setup.context))
        for name, path in models.items()
    }
    return found | {"asked": len(asked)}


def judge(setup: Setup, seeds: Sequence[dict[str, Any]]) -> Findings:
    """How much is unshifted, where the shifted tokens are, what they are, against random weights; and the one step."""
    unshifted = _number(seeds, "tokens unshifted", "sft", "shares", "unshifted", paper=_UNSHIFTED)
    shifted = _number(seeds, "tokens shifted", "sft", "shares", "shifted", paper="7.8%; 4.8%; 5.2%")
    place = _number(seeds, "of the shifted, first two of an answer or its end", "sft", "start_or_end")
    step = _number(seeds, "answers the base writes once given their first shifted token", "sft", "recovered")
    step = msgspec.structs.replace(step, of=seeds[0]["asked"])
    numbers = [unshifted, shifted, place, step]
    checks = [
        at_least("most tokens are the base's own first choice", unshifted, 0.6),
        at_least("half of the shifted ones are the first two of an answer or its end", place, 0.5),
        at_least("given the first shifted token, the base writes half of the answers", step, 0.5),
    ]
    if all("scratch" in s for s in seeds):
        scratch, own = (_number(seeds, "", arm, "shares_without_end", "shifted") for arm in ("scratch", "sft"))
        more = ratio("random weights shift more often, ends apart", scratch, own)
        numbers.append(more)
        checks.append(at_least("a model that is not from this base shifts three times as many", more, 3.0))
    if not all("dpo" in s for s in seeds):
        return Findings(numbers=numbers, checks=checks, said=_found(unshifted, shifted, place, step))
    names = _number(seeds, "tokens of names shifted", "sft", "names", "shifted")
    form = _number(seeds, "other tokens and ends shifted", "sft", "form", "shifted")
    dpo = _number(seeds, "tokens unshifted, DPO, by a new template", "dpo", "shares", "unshifted")
    checks += [
        at_most("names are the base's own", names, 0.05),
        at_least("how they are put is not", form, 0.4),
        at_least("after DPO, too, most tokens are the base's own", dpo, 0.6, core=False),
    ]
    word, alone = (_number(seeds, "", "sft", key) for key in ("recovered_word", "alone_name"))
    template, new = (_number(seeds, "", arm, "shares", "unshifted") for arm in ("template", "new words"))
    return Findings(
        numbers=[unshifted, shifted, names, form, *numbers[2:], dpo],
        checks=checks,
        said=(
            f"{_found(unshifted, shifted, place, step)} With the whole word it writes {word.mean:.0%}; left alone, it comes "
            f"to the same name in {alone.mean:.0%}. By a template of tokens that the base never read, {template.mean:.0%} "
            f"are unshifted; where answers are full of words that it never read, {new.mean:.0%}."
        ),
    )


def _number(seeds: Sequence[dict[str, Any]], label: str, arm: str, *keys: str, paper: str | None = None) -> Number:
    """A share of an arm; 0 where it is of nothing, as of the shifted tokens where none is shifted."""
    values = [s[arm][keys[0]] if len(keys) == 1 else s[arm][keys[0]][keys[1]] for s in seeds]
    return Number(label=label, by_seed=[v or 0.0 for v in values], unit="%", paper=paper)


def _found(unshifted: Number, shifted: Number, place: Number, step: Number) -> str:
    return (
        f"{unshifted.mean:.0%} of the tokens are what the base would have written, {shifted.mean:.0%} are shifted, and "
        f"of these {place.mean:.0%} begin an answer or end it. Given the first of them, the base writes {step.mean:.0%} of "
        "the answers itself."
    )


def draw(setup: Setup, seeds: Sequence[dict[str, Any]]) -> str:
    """Share of tokens shifted, by their place in the answer, for each arm."""
    arms = {
        "scratch": ("from scratch", "control", (0, (1.2, 1.3)), "s"), "new words": ("new words", "base", "-", "D"),
        "sft": ("SFT", "sft", "-", "o"), "dpo": ("DPO", "aligned", (0, (5, 1.5)), "^"),
    }  # fmt: skip
    lines = []
    for arm, (label, colour, dash, marker) in arms.items():
        found: dict[float, list[float]] = {}
        for x, y in (point for s in seeds if arm in s for point in s[arm]["places"]):
            found.setdefault(x, []).append(y)
        held = sorted(found.items())
        band = [(x, min(ys), max(ys)) for x, ys in held]
        points = [(x, sum(ys) / len(ys)) for x, ys in held]
        lines.append(Line(label, points, colour, dash=dash, marker=marker, band=band))
    return panel_chart(
        "S11", [Panel("tokens shifted, end tokens apart", lines, percent=True, height=1.7)],
        "Share of tokens that are shifted by their place in the answer", over="place in the answer", direct=True,
    )  # fmt: skip
