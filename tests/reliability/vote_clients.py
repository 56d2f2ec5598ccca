"""Clients that vote over HTTP as the page does: the same id again and again until the server has acknowledged it."""

import asyncio
import json
import random
import time
import uuid
from typing import Any, NamedTuple

from fledge.feedback.store import NewDraft, Store
from fledge.text.messages import Message

RETRY_SECONDS = 0.02
_WEIGHTS = "c" * 64


class Voter(NamedTuple):
    """One client: who it is and the votes it will send, one after the other."""

    person: str
    token: str
    votes: list[dict[str, Any]]


class Answer(NamedTuple):
    """What the server acknowledged, and how long the client had waited since it first sent the vote."""

    vote: dict[str, Any]
    seq: int
    status: int
    seconds: float


def prepare(store: Store, clients: int, votes_each: int, prompts: int = 10, seed: int = 7) -> list[Voter]:
    """People with tokens, answers in a conversation of each, comparisons, and the votes they will send."""
    chance = random.Random(seed)
    with store.transaction():
        store.put_checkpoint(_WEIGHTS, "sft", 1, "somewhere", None, "0" * 64, "0" * 64, {})
        return [_voter(store, chance, number, prompts, votes_each) for number in range(clients)]


def _voter(store: Store, chance: random.Random, number: int, prompts: int, count: int) -> Voter:
    token = f"token-{number:03}-" + "x" * 30
    person = store.put_person("person", f"client {number}", "rater", secret=token, id=f"p_{number:03}")
    talk = store.put_conversation(person, "load")
    drafts, tasks = [], []
    for n in range(prompts):
        pair = [
            store.put_draft(NewDraft(
                prompt=(Message("user", f"question {number} {n}"),), text=f"answer {side} of {n}", tokens=[n, side],
                finish="stop", person=person, checkpoint=_WEIGHTS, decoding={"temperature": 1.0}, seed=n, stream=side,
                conversation=talk,
            ))
            for side in range(2)
        ]  # fmt: skip
        drafts += pair
        tasks.append(store.put_task(person, *pair, chance.choice("ab"), "random"))
    return Voter(person, token, _votes(chance, drafts, tasks, count))


def _votes(chance: random.Random, drafts: list[str], tasks: list[str], count: int) -> list[dict[str, Any]]:
    """Votes of every kind with many changes of mind; a retract withdraws what then stands."""
    votes: list[dict[str, Any]] = []
    standing: dict[str, str] = {}
    while len(votes) < count:
        id, kind = (
            str(uuid.UUID(int=chance.getrandbits(128))),
            chance.choice(("thumb", "score", "pair", "edit", "retract")),
        )
        vote: dict[str, Any] = {
            "id": id,
            "kind": kind,
            "comment": f"because {len(votes)} 貝" if chance.random() < 0.3 else "",
        }
        if kind == "retract":
            if not standing:
                continue
            subject = chance.choice(sorted(standing))
            vote["vote"] = standing.pop(subject)
        elif kind == "pair":
            vote |= {
                "task": (subject := chance.choice(tasks)),
                "choice": chance.choice(("left", "right", "same", "both_bad")),
            }
            standing[subject] = id
        else:
            vote["draft"] = chance.choice(drafts)
            standing[f"{vote['draft']} {kind}"] = id
            if kind == "edit":
                vote["text"] = f"edited {len(votes)}"
            else:
                vote["value"] = chance.choice((-1, 1)) if kind == "thumb" else chance.randint(0, 5)
        votes.append(vote)
    return votes


class Connection:
    """One HTTP/1.1 connection kept open, as a browser keeps it."""

    def __init__(self, port: int, token: str):
        self._port, self._token = port, token
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """(status, JSON). Raises OSError or EOFError where the server is gone."""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            data = json.dumps(body).encode()
            head = (
                f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{self._port}\r\nauthorization: Bearer {self._token}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
            )
            writer.write(head.encode() + data)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
            length = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length:"))
            return int(lines[0].split()[1]), json.loads(await reader.readexactly(length))
        except (OSError, EOFError, asyncio.CancelledError):
            self.close()
            raise

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def send_all(voter: Voter, port: int, answers: list[Answer], pause=None) -> None:
    """Send every vote until it is acknowledged; `answers` grows by each. `pause()`: seconds to wait before each vote."""
    connection = Connection(port, voter.token)
    for vote in voter.votes:
        if pause is not None:
            await asyncio.sleep(pause())
        start = time.perf_counter()
        while True:
            try:
                status, body = await connection.post("/api/votes", vote)
            except (OSError, EOFError):
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if status in (200, 201):
                break
            assert status >= 500, (status, body, vote)  # a server about to die may fail; it must never refuse
            await asyncio.sleep(RETRY_SECONDS)
        answers.append(Answer(vote, body["seq"], status, time.perf_counter() - start))
    connection.close()
