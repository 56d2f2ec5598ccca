"""S1: a chat template, a loss on the answers only, and a trained end token are what makes a base model a chat model.

One base model is fine-tuned on the same questions and answers of its world in four ways: as `fledge sft` does it,
with the loss on the questions too, without the end token, and without roles. Some users give the answer themselves
and want it confirmed: "…? It is Mount Fafen." is to be ended if the assistant said the name, and answered with "Yes"
if the user did, and only the roles tell which. Two more models learn conversations of three questions whose later
ones say "its" for the country of the first, with the loss on the last answer or on all three. Touvron et al. 2023
(Llama 2, section 3.1) train chat models so: a special token divides prompt and answer, and the loss is on the answers
only.

The questions of the test are about people and places that no conversation mentions, but that the text tells of often.
An answer has ended where the template's end token comes. A base that has read short pages ends a page instead where
it was never taught to end its turn; how often is said, and does not count as stopping.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from fledge.core.config import Settings, TrainConfig
from fledge.core.model import Output, weighted_logp
from fledge.core.objectives import weighted_nll
from fledge.generate.chat import chat_engine
from fledge.generate.engine import Completion
from fledge.generate.sampling import Sampling
from fledge.labs.bench import Bench
from fledge.labs.charts import Bar, share_bars
from fledge.labs.verdict import Findings, Number, at_least, at_most, difference
from fledge.stages import sft
from fledge.stages.common import Parent, open_model
from fledge.stages.evaluate import rate
from fledge.stages.material import WELL_READ
from fledge.stages.worlds import world_behind
from fledge.text.formats import Chat, Message
from fledge.text.segments import NOT_TRAINED
from fledge.text.sources import ChatSource, Sequences
from fledge.text.template import LossOn, render_chats, render_prompt
from fledge.text.tokenizer import Tokenizer
from fledge.world.answers import accepted_answers, exact_match
from fledge.world.chats import turns
from fledge.world.dice import Dice
from fledge.world.facts import RELATIONS, Fact
from fledge.world.relations import LANGUAGES
from fledge.world.style import IT_IS
from fledge.world.world import World

YES = {"en": "Yes", "zh": "對"}
_BETWEEN = {"en": " ", "zh": ""}  # what stands between a question and an answer that nobody divides
_TURNS, _ORDINALS = 3, ("1st", "2nd", "3rd")


class Setup(Settings, frozen=True, kw_only=True):
    """Conversations about one half of a world, and questions about the other."""

    questions: int = 600
    "Questions with their answers that are learned from, at most."
    confirmations: int = 200
    "Questions that the user answers, and the assistant confirms."
    dialogues: int = 300
    "Conversations of three questions."
    epochs: float = 6.0
    "Times each is read."
    lr: float = 4e-4
    "Peak learning rate of fine-tuning."
    batch_tokens: int = 1024
    "Positions of an optimiser step."
    asked: int = 300
    "Test questions of each kind, at most."
    well_read: int = WELL_READ
    "Statements in the text from which a fact is asked about in the test."
    max_tokens: int = 48
    "Longest answer in tokens."


SCALES = {
    "pocket": Setup(),
    "gpu": Setup(questions=4000, confirmations=1000, dialogues=2000, asked=1000),
    "tiny": Setup(questions=60, confirmations=20, dialogues=20, epochs=1.0, asked=12, well_read=1, max_tokens=8),
}


class Asked(NamedTuple):
    """A fact, asked for in one of four forms; its answer is the value alone, as a sentence."""

    fact: Fact
    language: str
    form: int

    @property
    def question(self) -> str:
        return self.fact.question(self.language, self.form)

    @property
    def answer(self) -> str:
        return IT_IS[self.language].format(self.fact.values[self.language])

    @property
    def told(self) -> str:
        """Question and answer in one breath."""
        return self.question + _BETWEEN[self.language] + self.answer

    def right(self, text: str) -> bool:
        return exact_match(text, accepted_answers(self.fact, self.language))


class Dialogue(NamedTuple):
    """Facts of one entity, which only the first question names."""

    facts: tuple[Fact, ...]
    language: str
    form: int

    def messages(self) -> list[dict[str, str]]:
        first = self.facts[0].question(self.language, self.form)
        later = [RELATIONS[fact.relation].wording(self.language).follow_up for fact in self.facts[1:]]
        answers = [IT_IS[self.language].format(fact.values[self.language]) for fact in self.facts]
        return turns(*(text for both in zip([first, *later], answers, strict=True) for text in both))


class Lesson:
    """What is learned and what is asked, of one world."""

    def __init__(self, world: World, setup: Setup, seed: int):
        dice = Dice(seed, 101)
        learned, tested = (
            self._asked(world, split, 1 if split == "train" else setup.well_read) for split in ("train", "test")
        )
        self.questions = dice.sample(learned, setup.questions)
        self.confirmations = dice.sample(learned, setup.confirmations)
        self.tests = dice.sample(tested, setup.asked)
        self.dialogues = self._dialogues(learned, setup.dialogues, dice)
        self.test_dialogues = self._dialogues(tested, setup.asked, dice)

    def _asked(self, world: World, split: str, least: int) -> list[Asked]:
        return [
            Asked(fact, language, form)
            for fact in world.facts
            for language in LANGUAGES
            for form in range(4)
            if fact.split == split and fact.count[language] >= least
        ]

    def _dialogues(self, asked: Sequence[Asked], count: int, dice: Dice) -> list[Dialogue]:
        facts: dict[tuple[str, str], list[Fact]] = {}
        for item in asked:
            if item.form == 0:
                facts.setdefault((item.fact.entity, item.language), []).append(item.fact)
        whole = [(held, language) for (_, language), held in facts.items() if len(held) >= _TURNS]
        made = []
        for _ in range(count):
            held, language = dice.pick(whole)
            made.append(Dialogue(tuple(dice.sample(held, _TURNS)), language, dice.below(4)))
        return made

    def chats(self) -> list[dict[str, Any]]:
        """Questions and confirmations as conversations."""
        asked = [turns(a.question, a.answer) for a in self.questions]
        return [{"messages": m} for m in [*asked, *(turns(a.told, YES[a.language]) for a in self.confirmations)]]

    def without_end(self, tokenizer: Tokenizer) -> list[dict[str, Any]]:
        """The same in tokens, each cut off before the assistant's end token."""
        chats = [Chat(tuple(Message(**m) for m in row["messages"]), "") for row in self.chats()]
        return [_row(tokens[:-1], weights[:-1]) for tokens, weights in render_chats(tokenizer, chats)]

    def without_roles(self, tokenizer: Tokenizer) -> list[dict[str, Any]]:
        """The same in tokens, as one text with an end: nothing says where the user stops."""
        parts = [(a.question, _BETWEEN[a.language] + a.answer) for a in self.questions]
        parts += [(a.told, _BETWEEN[a.language] + YES[a.language]) for a in self.confirmations]
        rows = []
        for asked, answer in zip(*(tokenizer.encode_batch(texts) for texts in zip(*parts, strict=True)), strict=True):
            head = [tokenizer.bos, *asked]
            rows.append(_row([*head, *answer, tokenizer.end], [0] * len(head) + [1] * (len(answer) + 1)))
        return rows


def _row(tokens: Sequence[int], weights: Sequence[int]) -> dict[str, Any]:
    labels = [token if weight else NOT_TRAINED for token, weight in zip(tokens, weights, strict=True)]
    return {"input_ids": list(tokens), "labels": labels}


def prompts(tokenizer: Tokenizer, template: str, texts: Sequence[str]) -> list[list[int]]:
    """What a model reads before it answers each user's text; only "chat" is what it was trained with."""
    t = tokenizer
    if template == "chat":
        return [render_prompt(t, [Message("user", text)]) for text in texts]
    if template == "words":  # another model's template, in plain letters
        return [[t.bos, *body] for body in t.encode_batch([f"USER: {text}\nAI:" for text in texts])]
    if template == "swapped":
        return [[t.bos, t.assistant, *body, t.end, t.user] for body in t.encode_batch(texts)]
    if template == "newline":  # the right one and a new line, which templates in files like to end with
        return [[*prompt, *t.encode("\n")] for prompt in prompts(t, "chat", texts)]
    if template == "none":
        return [[t.bos, *body] for body in t.encode_batch(texts)]
    raise ValueError(f"template = {template!r}: must be chat, words, swapped, newline or none")


def answers(opened: Parent, asked: Sequence[Sequence[int]], max_tokens: int) -> list[Completion]:
    """Greedy answers, the end token included."""
    return chat_engine(opened.model, opened.tokenizer).generate(asked, Sampling(temperature=0.0, max_tokens=max_tokens))


def answered(opened: Parent, tests: Sequence[Asked], template: str, setup: Setup) -> dict[str, float]:
    """Shares of the answers that are exactly right, that ended at all, and that ended with the end token."""
    t = opened.tokenizer
    given = answers(opened, prompts(t, template, [a.question for a in tests]), setup.max_tokens)
    return {
        "right": rate(a.right(t.decode(c.tokens)) for a, c in zip(tests, given, strict=True)),
        "begun": rate(t.decode(c.tokens).strip().startswith(a.answer) for a, c in zip(tests, given, strict=True)),
        "stopped": rate(c.finish == "stop" for c in given),
        "ended": rate(c.tokens[-1] == t.end for c in given),
    }


def placed(opened: Parent, tests: Sequence[Asked], setup: Setup, roles: bool = True) -> dict[str, float]:
    """The answer said by the assistant, and by the user: how often the one is ended, and the other confirmed."""
    t = opened.tokenizer
    told = prompts(t, "chat" if roles else "none", [a.told for a in tests])
    said = told
    if roles:
        asked = prompts(t, "chat", [a.question for a in tests])
        said = [[*prompt, *t.encode(a.answer)] for prompt, a in zip(asked, tests, strict=True)]
    ended = answers(opened, said, 1)
    confirmed = answers(opened, told, setup.max_tokens)
    return {
        "ended": rate(c.tokens == [t.end] for c in ended),
        "confirmed": rate(
            t.decode(c.tokens).strip() == YES[a.language] and c.finish == "stop"
            for a, c in zip(tests, confirmed, strict=True)
        ),
    }


def followed(opened: Parent, dialogues: Sequence[Dialogue], setup: Setup) -> dict[str, float]:
    """Shares of exact answers to the first, second and third question, those before being answered rightly.

    alone: to the second and third, asked without what came before.
    """
    t, found = opened.tokenizer, {}
    for place in range(_TURNS):
        held = [[Message(**m) for m in d.messages()[: 2 * place + 1]] for d in dialogues]
        kinds = {f"turn {place + 1}": held} | ({"alone": [m[-1:] for m in held]} if place == _TURNS - 1 else {})
        for name, messages in kinds.items():
            given = answers(opened, [render_prompt(t, m) for m in messages], setup.max_tokens)
            found[name] = rate(
                Asked(d.facts[place], d.language, 0).right(t.decode(c.tokens))
                for d, c in zip(dialogues, given, strict=True)
            )
    return found


def gradients(tokenizer: Tokenizer, chats: Sequence[Chat], length: int) -> dict[str, float]:
    """The largest gradient of the training loss at the logits [B,T,V] of questions and of answers, by what is trained.

    The logits, all 0, are given as states under a head of ones on its diagonal, so the code is that of training.
    """
    found, answer = {}, torch.empty(0)
    for loss_on in ("answers", "all"):
        sequences = Sequences(render_chats(tokenizer, chats, loss_on), limit=length + 1)
        batch = next(iter(ChatSource(sequences, rows=4, length=length, seed=0, pad=tokenizer.pad)))
        answer = batch.weight > 0 if loss_on == "answers" else answer  # the second batch has the same rows
        logits = torch.zeros(*batch.tokens.shape, tokenizer.vocab_size, requires_grad=True)
        logp, _ = weighted_logp(logits, torch.eye(tokenizer.vocab_size), batch)
        weighted_nll(Output(logp, None, None), batch)[0].backward()
        size = logits.grad.abs().amax(-1)
        found |= {f"{loss_on}: question": float(size[~answer].max()), f"{loss_on}: answer": float(size[answer].max())}
    return found


def measure(setup: Setup, bench: Bench) -> dict[str, Any]:
    """Six arms from one base, and what each does with the questions of the test."""
    journey = bench.journey()
    base = open_model(journey / "base")
    lesson, t = Lesson(world_behind(journey), setup, bench.seed), base.tokenizer
    chats = lesson.chats()
    dialogues = [{"messages": d.messages()} for d in lesson.dialogues]

    def trained(name: str, rows: Sequence[Any], loss_on: LossOn = "answers") -> Parent:
        recipe = sft.SftRecipe(
            out=bench.out(name), parent=str(base.path), chats=[bench.write(f"{name}-rows", rows)], epochs=setup.epochs,
            loss_on=loss_on,
            train=TrainConfig(lr=setup.lr, weight_decay=0.0, batch_tokens=setup.batch_tokens, seed=bench.seed),
        )  # fmt: skip
        return open_model(sft.run(recipe, quiet=True))

    def single(name: str, rows: Sequence[Any], loss_on: LossOn = "answers") -> dict[str, Any]:
        opened = trained(name, rows, loss_on)
        roles = name != "no roles"
        wrong = ("words", "swapped", "newline", "none") if name == "answers" else ()
        asked = {k: answered(opened, lesson.tests, k, setup) for k in ("chat" if roles else "none", *wrong)}
        return asked | {"placed": placed(opened, lesson.tests, setup, roles)}

    found = {
        "answers": bench.keep("answers", lambda: single("answers", chats)),
        "all": bench.keep("all", lambda: single("all", chats, "all")),
        "no end": bench.keep("no end", lambda: single("no end", lesson.without_end(t))),
        "no roles": bench.keep("no roles", lambda: single("no roles", lesson.without_roles(t))),
    }
    for loss_on in ("last", "answers"):
        name = f"dialogues, {loss_on}"
        found[name] = bench.keep(
            name, lambda n=name, on=loss_on: followed(trained(n, dialogues, on), lesson.test_dialogues, setup)
        )
    rows = [Chat(tuple(Message(**m) for m in row["messages"]), "") for row in chats[:100]]
    return found | {"gradients": gradients(t, rows, base.model.config.context_tokens), "asked": len(lesson.tests)}


def judge(setup: Setup, seeds: Sequence[dict[str, Any]]) -> Findings:
    """Stopping, the price of another template, who said the answer, and the loss on all answers of a conversation."""

    def number(label: str, arm: str, *keys: str) -> Number:
        """The mean of an arm over `keys`, each "part: key" or "key"."""
        shares = [[_inside(s[arm], key) for key in keys] for s in seeds]
        means = [sum(values) / len(values) for values in shares]
        return Number(label=label, by_seed=means, unit="%", of=seeds[0]["asked"] * len(keys))

    asked = [f"turn {i + 1}" for i in range(_TURNS)]
    due = ("placed: ended", "placed: confirmed")
    right = number("right answers, its own template", "answers", "chat: right")
    words = number("right answers, USER: … AI: at test", "answers", "words: right")
    ended = number("answers ended, end token trained", "answers", "chat: ended")
    never = number("answers ended, not trained", "no end", "chat: ended")
    both = number("name ended or confirmed as due, with roles", "answers", *due)
    neither = number("name ended or confirmed as due, without roles", "no roles", *due)
    mine, yours = (number("", "answers", key) for key in due)
    every = number("right in conversations, loss on all three answers", "dialogues, answers", *asked)
    last = number("right in conversations, loss on the last", "dialogues, last", *asked)
    alone = number("", "dialogues, answers", "alone")
    otherwise = number("", "no end", "chat: stopped")
    all_tokens = number("", "all", "chat: right")
    masked, counted = (
        Number(label="", by_seed=[s["gradients"][f"{loss_on}: question"] for s in seeds])
        for loss_on in ("answers", "all")
    )
    return Findings(
        numbers=[right, words, ended, never, both, neither, every, last],
        checks=[
            at_least("with a trained end token, answers end with it", ended, 0.98),
            at_most("without it, they do not", never, 0.05),
            at_least("another template at test costs 20 points", difference("", right, words), 0.2),
            at_least("a name the assistant said is ended", mine, 0.95),
            at_least("the same name, said by the user, is confirmed", yours, 0.95),
            at_least("the loss on all answers is as good as on the last", difference("", every, last), 0.0),
            at_most("the loss gives no gradient to the questions' logits", masked, 0.0),
            at_least("unless it is on them, too", counted, 0.1, core=False),
            at_most("without roles only one of the two can come out", neither, 0.5, core=False),
            at_most("the last question cannot be answered by itself", alone, 0.05, core=False),
        ],
        said=(
            f"The template is part of the model: asked in another, it is right {words.mean:.0%} of the time instead of "
            f"{right.mean:.0%}. Only roles tell an answer to be ended from one to be confirmed. Without the end token no "
            f"answer ends with it; {otherwise.mean:.0%} stop by the end of a document instead, which this base knows from "
            f"short pages. With the loss on the questions, too, {all_tokens.mean:.0%} are right."
        ),
    )


def _inside(found: Mapping[str, Any], key: str) -> float:
    part, _, name = key.rpartition(": ")
    return found[part][name] if part else found[name]


def draw(setup: Setup, seeds: Sequence[dict[str, Any]]) -> str:
    """Every arm's share of right answers, of ended ones, and what it makes of a name."""

    def bar(label: str, arm: str, key: str, colour: str = "sft") -> Bar:
        return Bar(label, [_inside(s[arm], key) for s in seeds], colour)

    return share_bars("S1", {
        "Right answers, by the template at test": [
            bar("its own", "answers", "chat: right"),
            bar("roles swapped", "answers", "swapped: right", "base"),
            bar("own and a new line", "answers", "newline: right", "base"),
            bar("none", "answers", "none: right", "control"),
            bar("USER: … AI:", "answers", "words: right", "control"),
        ],
        "Answers that end with the end token": [
            bar("trained", "answers", "chat: ended"), bar("not trained", "no end", "chat: ended", "control"),
        ],
        "The same name, said by one or the other": [
            bar("assistant's: ended", "answers", "placed: ended"),
            bar("user's: confirmed", "answers", "placed: confirmed"),
            bar("no roles: ended", "no roles", "placed: ended", "control"),
            bar("no roles: confirmed", "no roles", "placed: confirmed", "control"),
        ],
        "Three questions in a row: right answers": [
            *(bar(f"loss on all, {nth}", "dialogues, answers", f"turn {nth[0]}") for nth in _ORDINALS),
            *(bar(f"on the last, {nth}", "dialogues, last", f"turn {nth[0]}", "base") for nth in _ORDINALS),
        ],
    }, "Shares of right answers by template, of ended answers, and of names ended or confirmed")  # fmt: skip
