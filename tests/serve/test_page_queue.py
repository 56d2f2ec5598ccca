"""Votes on a bad line: kept in the browser, sent again under the same id, stored once and in order."""

import json
import time
from collections.abc import Callable

import pytest
from browsing import Visitor
from live_server import Served

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect


def answered(visit: Callable[..., Visitor]) -> Visitor:
    me = visit()
    me.ask("Who are you?")
    expect(me.page.get_by_role("button", name="Good answer")).to_be_enabled()
    return me


def queued(me: Visitor) -> list[dict]:
    """Bodies of the votes that wait in this browser."""
    script = "() => Object.entries(localStorage).filter(([k]) => k.startsWith('fledge.vote.')).map(([, v]) => v)"
    return [json.loads(entry)["body"] for entry in me.page.evaluate(script)]


def empty(me: Visitor) -> bool:
    """Whether nothing waits any more, as soon as the server's answer has come back."""
    until = time.monotonic() + 10
    while queued(me) and time.monotonic() < until:
        me.page.wait_for_timeout(20)
    return not queued(me)


def stored(served: Served, since: int, count: int) -> list:
    until = time.monotonic() + 20
    while len(found := list(served.service.store.votes(after_seq=since))) < count and time.monotonic() < until:
        time.sleep(0.05)
    return found


def test_votes_cast_while_the_server_is_away_arrive_once_and_in_order(visit, served):
    me = answered(visit)
    since = served.service.store.last_seq()
    tried: list[str] = []
    me.page.route("**/api/votes", lambda route: (tried.append(route.request.post_data_json["id"]), route.abort()))
    me.page.get_by_role("button", name="Good answer").click()
    expect(me.page.get_by_role("button", name="Good answer")).to_have_attribute("aria-pressed", "true")
    me.page.get_by_role("button", name="Bad answer").click()
    expect(me.page.get_by_text("2 votes are waiting for the server.")).to_be_visible()
    me.snap("votes-waiting-light")
    first, second = sorted(queued(me), key=lambda body: body["client_ms"])
    assert (first["value"], second["value"]) == (1, -1) and first["id"] < second["id"]
    assert served.service.store.last_seq() == since

    me.page.reload()  # a page that was closed meanwhile
    expect(me.page.get_by_text("2 votes are waiting for the server.")).to_be_visible()
    assert len(queued(me)) == 2
    me.page.unroute("**/api/votes")
    me.page.evaluate("() => window.dispatchEvent(new Event('online'))")
    found = stored(served, since, 2)
    assert [(v.id, v.value) for v in found] == [(first["id"], 1), (second["id"], -1)]
    assert found[1].supersedes == first["id"]
    assert len(tried) > 2 and set(tried) == {first["id"]}  # the second waits behind the first
    expect(me.page.get_by_text("votes are waiting")).to_have_count(0)
    assert empty(me)


def test_an_answer_lost_on_the_way_back_is_no_second_vote(visit, served):
    """The server has stored it, the browser does not know: sent again, it is the same row."""
    me = answered(visit)
    since = served.service.store.last_seq()
    statuses: list[int] = []

    def lose(route) -> None:
        if statuses:
            answer = route.fetch()
            statuses.append(answer.status)
            route.fulfill(response=answer)
        else:
            statuses.append(route.fetch().status)
            route.abort()

    me.page.route("**/api/votes", lose)
    me.page.get_by_role("button", name="Good answer").click()
    expect(me.page.get_by_text("One vote is waiting for the server.")).to_be_visible()
    expect(me.page.get_by_text("One vote is waiting for the server.")).to_have_count(0)
    assert statuses == [201, 200]
    assert len(stored(served, since, 1)) == 1


def test_a_vote_the_server_refuses_is_told_of_and_does_not_block_the_next(visit, served):
    me = answered(visit)
    since = served.service.store.last_seq()
    refusal = json.dumps({"error": {"message": "there is no such draft", "type": "not_found_error"}})
    me.page.route(
        "**/api/votes", lambda route: route.fulfill(status=404, body=refusal, content_type="application/json"), times=1
    )
    me.page.get_by_role("button", name="Good answer").click()
    expect(me.page.get_by_role("alert")).to_be_visible()
    expect(me.page.get_by_text("The server did not take this vote.")).to_be_visible()
    expect(me.page.get_by_role("button", name="Good answer")).to_have_attribute("aria-pressed", "false")
    me.page.get_by_role("button", name="Bad answer").click()
    assert [v.value for v in stored(served, since, 1)] == [-1]
    expect(me.page.get_by_role("button", name="Bad answer")).to_have_attribute("aria-pressed", "true")
    assert empty(me)


def test_votes_of_another_person_in_the_same_browser_wait_for_that_person(visit, served):
    me = answered(visit)
    since = served.service.store.last_seq()
    me.page.route("**/api/votes", lambda route: route.abort())
    me.page.get_by_role("button", name="Good answer").click()
    expect(me.page.get_by_text("One vote is waiting for the server.")).to_be_visible()
    me.page.unroute("**/api/votes")
    me.page.goto(f"{served.url}/?token={served.tokens['rater']}")
    expect(me.page.get_by_role("heading", name="What shall we talk about?")).to_be_visible()
    me.page.wait_for_timeout(500)
    assert served.service.store.last_seq() == since and len(queued(me)) == 1
    me.page.goto(f"{served.url}/?token={served.tokens['owner']}")
    (vote,) = stored(served, since, 1)
    assert vote.person_id == served.service.owner.id


def test_ids_are_uuids_of_rising_order_even_within_a_millisecond(visit):
    me = visit()
    script = "async () => { const { uuid } = await import('/static/api.js'); return Array.from({length: 500}, uuid); }"
    made = me.page.evaluate(script)
    assert made == sorted(made) and len(set(made)) == 500
    assert all(len(one) == 36 and one[14] == "7" and one[19] in "89ab" for one in made)
