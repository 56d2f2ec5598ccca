"""Which pair a rater sees next: prompts from a file, with gold questions among them that rate the raters."""

import asyncio
import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from fledge.core.log import say
from fledge.feedback.chain import digest, prompt_json
from fledge.feedback.store import Store
from fledge.tasks.prompts import PromptFile
from fledge.text.files import Row, RowRejected
from fledge.text.messages import Message, check_content, check_order, read_turns, text_field
from fledge.text.readers import Rejects, keys_seen, read_rows, require_some


class Gold(msgspec.Struct, frozen=True):
    """A question whose better answer is known."""

    prompt: tuple[Message, ...]
    good: str
    bad: str


def read_prompts(path: str) -> list[tuple[Message, ...]]:
    """Every prompt of a file, as `tasks.prompts.PromptFile` reads it. Raises ValueError where none is usable."""
    found = PromptFile(path)
    if found.rejects.total:
        say(f"{path}: {found.rejects.summary()}")
    examples = [*found.examples("train"), *found.examples("test")]
    prompts = [tuple(Message(m["role"], m["content"]) for m in example.prompt) for example in examples]
    usable = [prompt for prompt in prompts if not any("\0" in message.content for message in prompt)]
    if len(usable) < len(prompts):
        say(
            f"{path}: {len(prompts) - len(usable)} prompts with NUL characters, which the store cannot hold, are left out"
        )
    return list({prompt_id(prompt): prompt for prompt in usable}.values())


def read_gold(path: str) -> list[Gold]:
    """Rows {"prompt": text or messages, "good": text, "bad": text}. Raises ValueError where none is usable."""
    rejects, found = Rejects(), []
    for source, row in read_rows(
        path, encoding=None, skip_bad=None, rejects=rejects, columns=frozenset({"prompt", "good", "bad"})
    ):
        try:
            found.append(_gold(row))
        except RowRejected as error:
            rejects.add(source, error.reason, error.sample or keys_seen(row))
    require_some(len(found), path, rejects, "gold questions ({prompt, good, bad})")
    if rejects.total:
        say(f"{path}: {rejects.summary()}")
    return found


def _gold(row: Row) -> Gold:
    if missing := [key for key in ("prompt", "good", "bad") if row.get(key) is None]:
        raise RowRejected(f"no `{missing[0]}` field")
    prompt = read_turns(row["prompt"], "user", "prompt")
    check_order(prompt)
    check_content(prompt)
    good, bad = text_field(row, "good"), text_field(row, "bad")
    if prompt[-1].role != "user":
        raise RowRejected("prompt does not end with a user message")
    if not good.strip() or not bad.strip() or good == bad:
        raise RowRejected("good and bad must be two different answers, neither of them empty")
    return Gold(tuple(prompt), good, bad)


def prompt_id(prompt: Sequence[Message]) -> str:
    """As the store names it: sha256 of the canonical messages."""
    return digest(prompt_json(prompt))


class Rating:
    """Deals tasks. A person sees each gold question once, and each prompt once per served model."""

    def __init__(self, prompts: list[tuple[Message, ...]], gold: list[Gold], gold_share: float):
        self.prompts = {prompt_id(prompt): prompt for prompt in prompts}
        self.gold = {prompt_id(question.prompt): question for question in gold}
        self.gold_share = gold_share
        self.open: dict[
            str, dict[str, Any]
        ] = {}  # person -> task not voted on; "key": its (prompt, checkpoint or None)
        self._judged: dict[str, set[tuple[str, str | None]]] = {}  # person -> (prompt id, checkpoint id or None)
        self._turns: dict[str, asyncio.Lock] = {}
        self._random = random.SystemRandom()

    def __bool__(self) -> bool:
        return bool(self.prompts or self.gold)

    def known(self, person: str) -> bool:
        """Whether `learn` has been called for this person."""
        return person in self._judged

    def learn(self, person: str, store: Store) -> None:
        """Read from the store what the person has judged before."""
        found: set[tuple[str, str | None]] = set()
        for vote in store.current_votes():
            if vote.person_id == person and vote.task_id is not None and (task := store.task(vote.task_id)):
                draft = store.draft(task.draft_a)
                found.add((task.prompt_id, draft.checkpoint_id if draft else None))
        self._judged.setdefault(person, set()).update(found)

    def choose(self, person: str, checkpoint: str) -> Gold | tuple[Message, ...] | None:
        """A gold question with probability `gold_share`, else the next prompt in this person's own order; None: done."""
        judged = self._judged[person]
        gold = [id for id in self.gold if (id, None) not in judged]
        plain = [id for id in self.prompts if (id, checkpoint) not in judged]
        if gold and (not plain or self._random.random() < self.gold_share):
            return self.gold[min(gold, key=_order(person))]
        return self.prompts[min(plain, key=_order(person))] if plain else None

    def turn(self, person: str) -> asyncio.Lock:
        """Held while a task is dealt to this person."""
        return self._turns.setdefault(person, asyncio.Lock())

    def judged(self, person: str, prompt: Sequence[Message], checkpoint: str | None) -> None:
        """Never deal this prompt to this person again, as long as this model is served."""
        self._judged[person].add((prompt_id(prompt), checkpoint))

    def voted(self, person: str, task: str) -> None:
        """The person's open task has been judged."""
        shown = self.open.get(person)
        if shown is not None and shown["task"] == task:
            self.judged(person, *shown["key"])
            del self.open[person]


def _order(person: str) -> Callable[[str], str]:
    return lambda id: hashlib.sha256(f"{person} {id}".encode()).hexdigest()
