"""Every route times everybody: strangers get nothing, raters their own, and ids of others look like unknown ones."""

import uuid
from typing import Any

import pytest
from live_server import Served, new_vote

from fledge.serve.errors import LOST
from fledge.serve.guard import Guard

MESSAGES = [{"role": "user", "content": "Who are you?"}]


@pytest.fixture(scope="module")
def belongings(served: Served) -> dict[str, str]:
    """A conversation of the rater with a draft, a pair and a vote."""
    made = served.ask("Who are you?", who="rater", drafts=2, sampling={"max_tokens": 3})
    vote = new_vote("thumb", draft=made["drafts"][1], value=1)
    assert served.client("rater").post("/api/votes", json=vote).status_code == 201
    return {"conversation": made["conversation"], "draft": made["drafts"][0], "task": made["task"], "vote": vote["id"]}


# route -> (body or None for GET, statuses of rater, other rater, owner); {..} are the rater's belongings
ROUTES: dict[str, tuple[Any, tuple[int, int, int]]] = {
    "/": (None, (200, 200, 200)),
    "/static/{file}": (None, (200, 200, 200)),
    "/api/me": (None, (200, 200, 200)),
    "/api/ask": ({"messages": MESSAGES, "sampling": {"max_tokens": 1}}, (200, 200, 200)),
    "/api/ask?conversation": (
        {"messages": MESSAGES, "conversation": "{conversation}", "sampling": {"max_tokens": 1}},
        (200, 404, 404),
    ),
    "/api/votes?thumb": ({"kind": "thumb", "draft": "{draft}", "value": 1}, (201, 404, 404)),
    "/api/votes?score": ({"kind": "score", "draft": "{draft}", "value": 3}, (201, 404, 404)),
    "/api/votes?edit": ({"kind": "edit", "draft": "{draft}", "text": "x"}, (201, 404, 404)),
    "/api/votes?pair": ({"kind": "pair", "task": "{task}", "choice": "left"}, (201, 404, 404)),
    "/api/votes?retract": ({"kind": "retract", "vote": "{vote}"}, (201, 404, 404)),
    "/api/conversations": (None, (200, 200, 200)),
    "/api/conversations/{conversation}": (None, (200, 404, 404)),
    "/api/task": (None, (200, 200, 200)),
    "/api/forget": ({"confirm": "no"}, (400, 400, 400)),
    "/api/votes/summary": (None, (403, 403, 200)),
    "/api/export?format=dpo": (None, (403, 403, 200)),
    "/api/next": ({"text": "The"}, (200, 200, 200)),
    "/api/runs": (None, (403, 403, 200)),
    "/api/runs/sft": (None, (403, 403, 200)),
    "/api/tree": (None, (403, 403, 200)),
    "/api/leaderboard": (None, (403, 403, 200)),
    "/v1/models": (None, (200, 200, 200)),
    "/v1/chat/completions": ({"messages": MESSAGES, "max_tokens": 1}, (200, 200, 200)),
    "/v1/completions": ({"prompt": "The", "max_tokens": 1}, (200, 200, 200)),
}


def filled(value: Any, belongings: dict[str, str]) -> Any:
    if isinstance(value, str):
        return value.format(**belongings, file="api.js") if value.startswith("{") or "/{" in value else value
    if isinstance(value, dict):
        return {key: filled(inner, belongings) for key, inner in value.items()}
    return value


def call(served: Served, route: str, body: Any, who: str | None, belongings: dict[str, str]):
    path = filled(route, belongings)
    if body is None:
        return served.client(who).get(path)
    path, body = path.partition("?")[0], filled(body, belongings)
    if path == "/api/votes":
        body = {"id": str(uuid.uuid4()), **body}
    return served.client(who).post(path, json=body)


@pytest.mark.parametrize("route", ROUTES)
def test_each_route_for_each_person(served: Served, belongings: dict[str, str], route: str):
    body, expected = ROUTES[route]
    for who in ("other", "owner", None, "rater"):  # the rater last: retracting spends the vote
        status = 401 if who is None else expected[("rater", "other", "owner").index(who)]
        answer = call(served, route, body, who, belongings)
        assert answer.status_code == status, f"{who}: {answer.text}"
        if status == 404:
            assert answer.json()["error"]["message"] == LOST
        if status in (401, 403, 404):
            assert not any(id in answer.text for id in belongings.values())


def test_ids_of_others_and_ids_of_nobody_look_the_same(served: Served, belongings: dict[str, str]):
    nobody = {key: f"{value[0]}_{uuid.uuid4().hex}" for key, value in belongings.items()}
    for route in (r for r, (_, expected) in ROUTES.items() if expected[1] == 404):
        body = ROUTES[route][0]
        theirs, unknown = (call(served, route, body, "other", ids) for ids in (belongings, nobody))
        assert theirs.status_code == unknown.status_code == 404
        assert theirs.content == unknown.content


def test_the_matrix_names_every_route_there_is(served: Served):
    """A route that is added must be added above, with who may use it."""
    from fledge.serve.app import create_app
    from fledge.serve.guard import Hosts

    app = create_app(served.service, Hosts("127.0.0.1", 1))
    assert isinstance(app, Guard)
    served_paths = {route.path for route in app.app.routes}
    known = {route.partition("?")[0] for route in ROUTES} - {
        "/static/{file}",
        "/api/conversations/{conversation}",
        "/api/runs/sft",
    }
    dynamic = {"/static/{name:str}", "/api/conversations/{id:str}", "/api/runs/{name:path}", "/api/shift"}
    assert served_paths == known | dynamic


def test_a_rater_sees_no_draft_of_others_in_the_shift_view(served: Served, belongings: dict[str, str]):
    answers = {
        who: served.client(who).post("/api/shift", json={"draft": belongings["draft"]}) for who in ("other", "rater")
    }
    assert answers["other"].status_code == 404 and answers["other"].json()["error"]["message"] == LOST
    assert answers["rater"].status_code in (200, 403)


@pytest.mark.parametrize(
    "path", ["//api/export", "/api//export", "/api/./export", "/API/export", "/api/export/", "/static/../api/export"]
)
def test_no_spelling_of_a_path_gets_around_its_rules(served: Served, path: str):
    import socket

    port = int(served.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        head = f"GET {path}?format=dpo HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
        connection.sendall(f"{head}Authorization: Bearer {served.tokens['rater']}\r\n\r\n".encode())
        status = connection.recv(65536).split(b" ", 2)[1]
    assert status in (b"403", b"404")
