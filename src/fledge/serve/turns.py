"""A conversation as the page shows it again: turns of drafts, the pairs among them, and what the person said of them."""

from typing import Any

from fledge.feedback.records import JUDGEMENTS, Conversation, Draft, Task, Vote


def current(votes: list[Vote]) -> list[Vote]:
    """The votes that stand: neither replaced nor withdrawn."""
    replaced = {vote.supersedes for vote in votes}
    return [vote for vote in votes if vote.kind in JUDGEMENTS and vote.id not in replaced]


def choice_of(task: Task, vote: Vote) -> str:
    """A pair's value in the words of the page."""
    if vote.value == 0:
        return "both_bad" if vote.both_bad else "same"
    return "left" if (vote.value == 1) == (task.left == "a") else "right"


def conversation_view(held: Conversation, names: dict[str, dict[str, str]]) -> dict[str, Any]:
    """{id, title, created_ms, turns}; a turn is one prompt with all its drafts, in order of time.

    names: task -> {"left", "right"}, the models of the pairs that have been judged (the others stay blind).
    """
    turns: dict[str, list[Draft]] = {}
    for draft in held.drafts:
        turns.setdefault(draft.prompt_id, []).append(draft)
    votes = current(held.votes)
    return {
        "id": held.id,
        "title": held.title,
        "created_ms": held.created_ms,
        "turns": [_turn(drafts, held.tasks, votes, names) for drafts in turns.values()],
    }


def _turn(drafts: list[Draft], tasks: list[Task], votes: list[Vote], names: dict) -> dict[str, Any]:
    ids = {draft.id for draft in drafts}
    tasks = [task for task in tasks if task.draft_a in ids]
    sides = {}
    for task in tasks:
        sides |= {task.left_draft: "left", task.right_draft: "right"}
    by_task = {task.id: task for task in tasks}
    return {
        "messages": [{"role": m.role, "content": m.content} for m in drafts[0].messages],
        "drafts": [
            {
                "id": draft.id,
                "text": draft.text,
                "finish": draft.finish,
                "side": sides.get(draft.id),
                "origin": draft.origin,
                "parent": draft.parent_id,
                "created_ms": draft.created_ms,
            }
            for draft in drafts
        ],
        "task": tasks[-1].id if tasks else None,
        "tasks": [
            {"id": t.id, "left": t.left_draft, "right": t.right_draft, "revealed": names.get(t.id)} for t in tasks
        ],
        "votes": [_vote(v, by_task) for v in votes if v.draft_id in ids or v.task_id in by_task],
    }


def _vote(vote: Vote, tasks: dict[str, Task]) -> dict[str, Any]:
    pair = vote.kind == "pair"
    return {
        "id": vote.id,
        "kind": vote.kind,
        "draft": vote.draft_id,
        "task": vote.task_id,
        "value": None if pair else vote.value,
        "choice": choice_of(tasks[vote.task_id], vote) if pair else None,
        "edit": vote.edit_draft_id,
        "reasons": vote.reasons,
        "comment": vote.comment,
        "server_ms": vote.server_ms,
    }
