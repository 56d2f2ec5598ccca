"""The chat in a real browser: streaming, stopping, two blind drafts by keyboard, every kind of vote, and reloading."""

import json
import re
import time
from collections.abc import Callable, Iterator

import pytest
from browsing import Visitor
from live_server import Served

from fledge.feedback.records import Vote
from fledge.generate.live import Live

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine takes its time, so that a stream can be watched and stopped."""
    go = Live.go

    def slow(self, *args, **named):
        time.sleep(0.05)
        return go(self, 1)

    monkeypatch.setattr(Live, "go", slow)


@pytest.fixture
def me(visit: Callable[..., Visitor]) -> Iterator[Visitor]:
    yield visit()


def votes(served: Served, since: int = 0) -> list[Vote]:
    return list(served.service.store.votes(after_seq=since))


def voted(served: Served, since: int, kind: str, count: int = 1) -> list[Vote]:
    """The votes of one kind after `since`, once there are `count`."""
    until = time.monotonic() + 10
    while len(found := [v for v in votes(served, since) if v.kind == kind]) < count and time.monotonic() < until:
        time.sleep(0.02)
    assert len(found) == count
    return found


def answered(me: Visitor, count: int = 1) -> None:
    expect(me.page.locator(".tools")).to_have_count(count)


def texts(me: Visitor) -> list[str]:
    return me.page.locator(".answer").all_inner_texts()


def test_a_question_is_answered_piece_by_piece_and_announced(me, served, slowly):
    expect(me.page.get_by_role("heading", name="What shall we talk about?")).to_be_visible()
    me.snap("chat-empty-light")
    me.ask("Who wrote The Silent Harbour?")
    stop = me.page.get_by_role("button", name="Stop")
    expect(stop).to_be_visible()
    lengths = set()
    while stop.is_visible():
        lengths.add(sum(map(len, texts(me))))
    answered(me)
    assert len(lengths) > 3  # it grew on the way
    expect(me.page.get_by_role("button", name="Send")).to_be_visible()
    expect(me.page.locator("#announcer")).to_contain_text("The answer is complete.")
    expect(me.page.get_by_role("link", name="Who wrote The Silent Harbour?")).to_have_attribute("aria-current", "page")
    assert re.search(r"#chat/c_[0-9a-f]{32}$", me.page.url)


def test_stop_keeps_what_was_written_and_it_can_be_judged(me, served, slowly):
    since = served.service.store.last_seq()
    me.long_answers()
    me.ask("Tell me a long story")
    expect(me.page.locator(".answer .prose")).to_be_visible()
    me.page.keyboard.press("Escape")  # the focus is in the box
    expect(me.page.locator(".note")).to_have_text("Stopped here.")
    up = me.page.get_by_role("button", name="Good answer")
    expect(up).to_be_enabled()
    up.click()
    (vote,) = voted(served, since, "thumb")
    draft = served.service.store.draft(vote.draft_id)
    assert draft.finish == "stopped" and 0 < len(draft.tokens) < 1500
    assert served.ask("Who are you?")["texts"]  # the engine goes on


def test_two_drafts_are_judged_blind_by_keyboard_alone(me, served):
    since = served.service.store.last_seq()
    page = me.page
    names = {m["name"] for m in served.client().get("/api/me").json()["models"] if m["served"]}
    assert len(names) == 2
    me.box().focus()
    page.keyboard.press("Tab")  # to the switch
    page.keyboard.press("Space")
    page.keyboard.press("Shift+Tab")
    page.keyboard.type("What is the capital of Arvania?")
    page.keyboard.press("Enter")
    choices = page.get_by_role("group", name="Which draft is better?")
    expect(choices.get_by_role("button").first).to_be_focused()  # the next thing to do
    blind = page.locator("main").inner_text()
    assert not any(re.search(rf"\b{re.escape(name)}\b", blind) for name in names)
    me.snap("pair-blind-light")
    page.keyboard.press("2")
    expect(page.locator(".draft .by")).to_have_count(2)
    assert set(page.locator(".draft .by").all_inner_texts()) == names
    expect(page.locator(".draft").nth(1)).to_contain_text("You chose this one")
    me.snap("pair-voted-light")

    (vote,) = voted(served, since, "pair")
    task = served.service.store.task(vote.task_id)
    assert vote.value == (1 if task.left == "b" else -1)  # the right one won
    right = served.service.store.draft(task.draft_b if task.left == "a" else task.draft_a)
    assert page.locator(".draft .by").nth(1).inner_text() == served.service.name_of_checkpoint(right.checkpoint_id)
    assert vote.dwell_ms is not None and vote.dwell_ms >= 0

    me.page.keyboard.type("And then?")  # the focus is back in the box
    page.keyboard.press("Enter")
    expect(page.locator(".verdicts")).to_be_visible()
    followed = served.service.store.draft(voted_on(served))
    assert [m.role for m in followed.messages] == ["user", "assistant", "user"]
    assert followed.messages[1].content == right.text  # the better draft goes on

    page.keyboard.press("4")
    expect(page.locator(".said").last).to_contain_text("You found both bad.")
    assert voted(served, since, "pair", 2)[1].both_bad
    page.get_by_role("button", name="Take it back").last.click()
    (retract,) = voted(served, since, "retract")
    assert retract.supersedes == voted(served, since, "pair", 2)[1].id


def voted_on(served: Served) -> str:
    """The newest draft of the owner's newest conversation."""
    store, owner = served.service.store, served.service.owner.id
    newest = max(store.conversations(owner), key=lambda c: c.created_ms)
    return store.conversation(owner, newest.id).drafts[-1].id


def test_thumbs_with_reasons_and_a_comment_then_a_change_of_mind(me, served):
    since = served.service.store.last_seq()
    me.ask("Hello")
    answered(me)
    me.page.get_by_role("button", name="Bad answer").click()
    why = me.page.get_by_role("group", name=re.compile("What was wrong"))
    why.get_by_role("button", name="Too long").click()
    why.get_by_role("button", name="Wrong", exact=True).click()
    why.get_by_role("textbox", name="Comment").fill("It should greet me <b>kindly</b> 你好")
    me.snap("thumbs-reasons-light")
    why.get_by_role("button", name="Save").click()
    expect(me.page.get_by_text("Thank you, saved.").first).to_be_visible()
    first, second = voted(served, since, "thumb", 2)
    assert (first.value, first.reasons) == (-1, [])  # kept at once, before anyone gives reasons
    assert (second.value, second.supersedes) == (-1, first.id)
    assert second.reasons == ["too_long", "wrong"] and second.comment == "It should greet me <b>kindly</b> 你好"

    me.page.get_by_role("button", name="Good answer").click()
    third = voted(served, since, "thumb", 3)[2]
    assert (third.value, third.supersedes) == (1, second.id)
    me.page.get_by_role("button", name="Good answer").click()  # pressed again: withdrawn
    (retract,) = voted(served, since, "retract")
    assert retract.supersedes == third.id
    expect(me.page.get_by_role("button", name="Good answer")).to_have_attribute("aria-pressed", "false")


def test_a_score_by_arrow_keys_is_one_vote(me, served):
    since = served.service.store.last_seq()
    me.ask("Hello")
    answered(me)
    me.page.get_by_role("radio", name="0 of 5").focus()
    me.page.keyboard.press("Space")
    for _ in range(4):
        me.page.keyboard.press("ArrowRight")  # passes 1, 2 and 3
    (vote,) = voted(served, since, "score")
    assert vote.value == 4
    me.page.wait_for_timeout(700)
    assert len(voted(served, since, "score")) == 1


def test_an_edited_answer_is_kept_and_the_conversation_goes_on_with_it(me, served):
    since = served.service.store.last_seq()
    me.ask("What is the capital of Arvania?")
    answered(me)
    written = served.service.store.draft(voted_on(served))
    me.box().press("Escape")
    me.page.keyboard.press("e")
    box = me.page.get_by_role("textbox", name="The answer as it should be")
    expect(box).to_be_focused()
    box.fill("It is **Belmora**.")
    me.snap("edit-light")
    box.press("Control+Enter")
    expect(me.page.locator(".answer strong")).to_have_text("Belmora")
    expect(me.page.get_by_text("Edited by you")).to_be_visible()
    (vote,) = voted(served, since, "edit")
    edited = served.service.store.draft(vote.edit_draft_id)
    assert (edited.text, edited.origin, edited.parent_id) == ("It is **Belmora**.", "human", written.id)

    me.ask("Where does it lie?")
    answered(me, 2)
    assert served.service.store.draft(voted_on(served)).messages[1].content == "It is **Belmora**."


def test_write_again_gives_versions_to_leaf_through(me, served):
    me.ask("Who are you?")
    answered(me)
    (first,) = texts(me)
    me.box().press("Escape")
    me.page.keyboard.press("r")
    expect(me.page.get_by_role("group", name="Version 2 of 2")).to_be_visible()
    (second,) = texts(me)
    assert first != second
    me.page.get_by_role("button", name="Previous version").click()
    assert texts(me) == [first]
    expect(me.page.get_by_role("button", name="Previous version")).to_be_focused()
    store, owner = served.service.store, served.service.owner.id
    held = store.conversation(owner, max(store.conversations(owner), key=lambda c: c.created_ms).id)
    assert len(held.drafts) == 2 and len({d.prompt_id for d in held.drafts}) == 1


def test_reloading_shows_the_conversation_with_its_votes(me, served):
    since = served.service.store.last_seq()
    me.ask("Who are you?")
    answered(me)
    me.page.get_by_role("button", name="Good answer").click()
    me.page.get_by_role("radio", name="3 of 5").check()
    voted(served, since, "score")
    me.page.locator(".composer .switch").click()
    me.ask("And what do you like?")
    expect(me.page.locator(".verdicts button").first).to_be_enabled()
    me.page.keyboard.press("3")
    expect(me.page.locator(".draft .by")).to_have_count(2)
    before = (texts(me), me.page.locator(".bubble").all_inner_texts(), me.page.locator(".draft .by").all_inner_texts())
    me.page.reload()
    expect(me.page.locator(".draft .by")).to_have_count(2)
    after = (texts(me), me.page.locator(".bubble").all_inner_texts(), me.page.locator(".draft .by").all_inner_texts())
    for shown, again in zip(before, after, strict=True):
        assert shown == again
    expect(me.page.get_by_role("button", name="Good answer").first).to_have_attribute("aria-pressed", "true")
    expect(me.page.get_by_role("radio", name="3 of 5").first).to_be_checked()
    expect(me.page.locator(".said")).to_contain_text("You found them the same.")
    me.page.keyboard.press("n")
    expect(me.page.get_by_role("heading", name="What shall we talk about?")).to_be_visible()
    me.page.locator(".list a").first.click()
    expect(me.page.locator(".draft .by")).to_have_count(2)


def test_another_view_meanwhile_loses_nothing(me, served, slowly):
    me.long_answers()
    me.ask("Tell me about the river")
    expect(me.page.locator(".answer .prose")).to_be_visible()
    me.go("next")
    expect(me.page.get_by_role("heading", name="Next token")).to_be_visible()
    me.go("chat")
    expect(me.page.locator(".answer .prose")).to_be_visible()
    me.page.get_by_role("button", name="Stop").click()
    answered(me)


def test_settings_of_the_sampling_are_sent(me, served):
    me.page.get_by_role("button", name="How it writes").click()
    me.page.get_by_label("Temperature").fill("0")
    me.page.get_by_label("Longest answer, tokens").fill("3")
    me.page.get_by_label("Seed").fill("7")
    me.snap("settings-light")
    me.page.keyboard.press("Escape")
    expect(me.page.get_by_role("button", name="How it writes")).to_be_focused()
    me.ask("Who are you?")
    answered(me)
    expect(me.page.get_by_text("Cut off: the longest answer was reached.")).to_be_visible()
    draft = served.service.store.draft(voted_on(served))
    decoding = served.service.store.decoding(draft.decoding_id)
    assert (decoding["temperature"], decoding["max_tokens"], draft.seed) == (0.0, 3, 7)


def test_errors_are_told_in_words_with_the_remedy_and_the_question_stays(me, served):
    refused = json.dumps({"error": {"message": "too many answers at once: 4", "type": "rate_limit_error"}})
    me.page.route("**/api/ask", lambda route: route.fulfill(status=429, body=refused, content_type="application/json"))
    me.ask("Who are you?")
    alert = me.page.get_by_role("alert")
    expect(alert).to_contain_text("Wait for one to finish")
    expect(me.page.locator(".bubble")).to_have_text("Who are you?")
    me.snap("error-light")
    me.page.unroute("**/api/ask")
    alert.get_by_role("button", name="Try again").click()
    answered(me)
    assert me.page.get_by_role("alert").count() == 0 and me.page.locator(".turn").count() == 1


def test_without_a_key_the_page_says_what_to_do(me):
    refused = json.dumps({"error": {"message": "no valid token", "type": "authentication_error"}})
    me.page.route("**/api/me", lambda route: route.fulfill(status=401, body=refused, content_type="application/json"))
    me.page.reload()
    expect(me.page.get_by_role("alert")).to_contain_text("Open the full address that fledge chat printed")
    me.page.unroute("**/api/me")
    me.page.get_by_role("button", name="Try again").click()
    expect(me.page.get_by_role("heading", name="What shall we talk about?")).to_be_visible()
