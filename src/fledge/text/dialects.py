"""Logs of votes that other projects write, turned into the rows that `formats` reads.

FastChat's log (serve/gradio_web_server.py, serve/gradio_block_arena_*.py), one line an event:

    {tstamp, type: upvote | downvote, model, state, ip}                                    a vote on the last answer
    {tstamp, type: leftvote | rightvote | tievote | bothbad_vote, models, states, ip}      a pair
    {tstamp, type: chat, model, state, ip}                                                 a chat

open-instruct's human_eval (app.py; its tasks are {prompt, completions: [{model, completion}, {model, completion}]}):

    {prompt, completion_a, completion_b, preference: a-is-better | a-is-slightly-better | tie | ...}    a pair

Only the conversation and the vote are taken: names of models, addresses of people and comments stay behind.
"""

from __future__ import annotations

from fledge.text.files import Row, RowRejected, brief
from fledge.text.messages import typed

_VOTES = {"upvote": True, "downvote": False}
_BATTLES = {"leftvote": "model_a", "rightvote": "model_b", "tievote": "tie", "bothbad_vote": "tie (bothbad)"}
_PREFERENCES = {
    "a-is-better": "model_a", "a-is-slightly-better": "model_a", "tie": "tie",
    "b-is-slightly-better": "model_b", "b-is-better": "model_b",
}  # fmt: skip

COLUMNS = frozenset({"type", "state", "states", "completion_a", "completion_b", "preference"})


def plain_row(row: Row) -> Row:
    """`row`, or the row that formats reads in its place where it is a line of such a log. Raises RowRejected."""
    kind = row.get("type")
    if "states" in row and isinstance(kind, str):
        if kind not in _BATTLES:
            raise RowRejected("entry of a log that is no vote", f"type is {brief(kind)}")
        states = typed(row["states"], list, "states")
        if len(states) != 2:
            raise RowRejected("battle that is not between two models", f"{len(states)} states")
        one, other = (_conversation(state) for state in states)
        return {"conversation_a": one, "conversation_b": other, "winner": _BATTLES[kind]}
    if "state" in row and isinstance(kind, str):
        if kind != "chat" and kind not in _VOTES:
            raise RowRejected("entry of a log that is no vote", f"type is {brief(kind)}")
        said = {"messages": _conversation(row["state"])}
        return said if kind == "chat" else {**said, "label": _VOTES[kind]}
    if "completion_a" in row and "completion_b" in row and "preference" in row:
        return _human_eval(row)
    return row


def _conversation(state: object) -> list[Row]:
    """The turns after `offset`, as FastChat's own exporter takes them (serve/monitor/clean_battle_data.py)."""
    state = typed(state, dict, "state")
    offset = typed(state.get("offset", 0), int, "offset")
    turns = typed(state.get("messages"), list, "messages of state")[max(0, offset) :]
    said = []
    for index, turn in enumerate(turns):
        if not isinstance(turn, list) or len(turn) != 2:
            raise RowRejected("wrong field type", f"a turn of state is {brief(turn)}, not [role, text]")
        if not isinstance(turn[1], str):  # a picture beside the text, or an answer that never came
            raise RowRejected("turn of a log that is not text", brief(turn[1]))
        said.append({"role": ("user", "assistant")[index % 2], "content": turn[1]})
    return said


def _human_eval(row: Row) -> Row:
    preference = row["preference"]
    if preference not in _PREFERENCES:
        raise RowRejected(f"preference is not {', '.join(_PREFERENCES)}", f"preference is {brief(preference)}")
    winner = _PREFERENCES[preference]
    names = ("completion_b", "completion_a") if winner == "model_b" else ("completion_a", "completion_b")
    sides = {"chosen": row[names[0]], "rejected": row[names[1]]}
    return {"prompt": row.get("prompt"), **sides} | ({"tie": True} if winner == "tie" else {})
