"""How the page holds up: phones, dark, Chinese, screen readers, keyboards, and answers that try to break the layout."""

import json
import re
import time
from collections.abc import Callable

import pytest
from browsing import Visitor
from live_server import Served

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
LOOKS = {
    "light": {},
    "dark": {"color_scheme": "dark"},
    "zh": {"locale": "zh-TW"},
    "phone": PHONE,
    "phone-dark-zh": {**PHONE, "color_scheme": "dark", "locale": "zh-TW"},
    "wide": {"viewport": {"width": 1600, "height": 1000}},
}
VIEWS = ("chat", "rate", "next", "shift", "runs", "tree", "board")
CONTROLS = {"button", "link", "textbox", "searchbox", "combobox", "radio", "checkbox", "switch", "slider", "spinbutton"}


@pytest.fixture(scope="module", autouse=True)
def something_to_see(served: Served) -> None:
    """Curves in the runs, some judged pairs, a conversation."""
    for name, stage, parent in (("base", "pretrain", None), ("sft", "sft", "base"), ("aligned", "dpo", "sft")):
        folder = served.run / name
        recipe = {"out": str(folder), "parent": str(served.run / parent) if parent else None, "train": {"steps": 120}}
        (folder / "recipe.json").write_text(json.dumps({"stage": stage, "recipe": recipe}))
        rows = [
            {"step": n, "loss": 6 / n**0.4 + 0.1 * ((n * 7) % 5), "grad_norm": 1 + 9 / n, "lr": 1e-3 * (1 - n / 130)}
            for n in range(1, 121)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "done.json").write_text('{"step": 120}')
    for number in range(30):  # by someone who looks: the votes of those who do not are left out
        task = served.ask(f"Question {number}?", drafts=2, sampling={"seed": number})["task"]
        id = f"00000000-0000-4000-8000-{number:012d}"
        body = {"id": id, "kind": "pair", "task": task, "choice": ("left", "right")[number % 2], "dwell_ms": 2000}
        assert served.client().post("/api/votes", json=body).status_code == 201


def fill(me: Visitor, view: str) -> None:
    """Bring a view to where there is something to see."""
    me.go(view)
    if view == "chat":
        me.ask("Who wrote The Silent Harbour?")
        expect(me.page.locator(".tools")).to_have_count(1)
        me.page.locator(".thumb-down").click()
        me.page.locator(".composer .switch").click()
        me.ask("What is the capital of Arvania?")
        expect(me.page.locator(".verdicts button").first).to_be_enabled()
        me.page.locator(".verdicts button").first.click()
        expect(me.page.locator(".draft .by")).to_have_count(2)
    elif view == "rate":
        expect(me.page.locator(".verdicts button").first).to_be_enabled()
    elif view == "next":
        me.page.locator("textarea").fill("The capital of")
        expect(me.page.locator(".bar-row").first).to_be_visible()
    elif view == "shift":
        me.page.locator("#shift-prompt").fill("What is the capital of Arvania?")
        me.page.locator("#shift-prompt").press("Enter")
        me.page.locator("button.tok").nth(2).focus()
    else:
        shown = {"runs": ".chart", "tree": ".node", "board": ".interval"}[view]
        expect(me.page.locator(shown).first).to_be_visible()


@pytest.mark.parametrize("look", LOOKS)
def test_every_view_fits_and_every_control_has_a_name(visit: Callable[..., Visitor], look: str):
    me = visit(**LOOKS[look])
    for view in VIEWS:
        fill(me, view)
        me.snap(f"{view}-{look}")
        assert me.fits(), view
        assert me.page.locator("h1").count() == 1
        tree = me.context.new_cdp_session(me.page).send("Accessibility.getFullAXTree")["nodes"]
        controls = [n for n in tree if not n["ignored"] and n["role"]["value"] in CONTROLS]
        assert len(controls) > 5
        assert [n for n in controls if not n.get("name", {}).get("value", "").strip()] == []
        if "zh" in look:
            assert me.page.locator("html").get_attribute("lang") == "zh-Hant"


def test_the_keyboard_reaches_everything_in_reading_order(visit):
    me = visit()
    fill(me, "chat")
    script = "() => { const e = document.activeElement; return [e.tagName, e.getAttribute('aria-label') || e.innerText || e.placeholder || '']; }"
    me.page.evaluate("() => { document.activeElement.blur(); window.getSelection().removeAllRanges(); }")
    me.page.locator("body").click(position={"x": 5, "y": 400})
    me.page.evaluate("() => document.querySelector('.skip').focus()")
    seen = [me.page.evaluate(script)[1]]
    for _ in range(120):
        me.page.keyboard.press("Tab")
        now = me.page.evaluate(script)
        if now[0] == "BODY":
            break
        outlined = "() => { const e = document.activeElement; const s = getComputedStyle(e.matches('.score input') ? e.nextSibling : e); return s.outlineStyle !== 'none' || !!e.closest('.box'); }"
        assert me.page.evaluate(outlined), now
        seen.append(now[1].strip())
    order = ["Skip to the main part", "fledge", "Chat", "Rate", "Next token", "Changes", "Runs", "New chat", "Owner",
             "Good answer", "Bad answer", "0 of 5", "Edit", "Your message", "How it writes", "Send"]  # fmt: skip
    places = [seen.index(name) for name in order]
    assert places == sorted(places), seen
    me.page.evaluate("() => document.querySelector('.skip').focus()")
    me.page.keyboard.press("Enter")
    expect(me.page.locator("main")).to_be_focused()


def test_the_drawer_of_a_phone_opens_closes_and_gives_the_focus_back(visit):
    me = visit(**PHONE)
    menu = me.page.get_by_role("button", name="Menu")
    expect(me.page.get_by_role("button", name="New chat")).to_have_count(1)  # the one above; the drawer is shut
    menu.click()
    expect(me.page.locator(".side").get_by_role("button", name="Close")).to_be_focused()
    me.snap("drawer-phone")
    me.page.keyboard.press("Escape")
    expect(menu).to_be_focused()
    expect(menu).to_have_attribute("aria-expanded", "false")
    me.page.get_by_role("link", name="Runs").click()
    expect(me.page.locator(".chart").first).to_be_visible()


def test_language_and_theme_are_switched_at_once_and_remembered(visit, slow_engine):
    me = visit()
    me.long_answers()
    me.ask("Who are you?")
    expect(me.page.locator(".answer .prose")).to_be_visible()
    me.page.get_by_role("button", name="切換為中文").click()  # while an answer is being written
    before = len(me.page.locator(".answer .prose").inner_text())
    expect(me.page.get_by_role("button", name="停止")).to_be_visible()
    me.page.wait_for_timeout(300)
    assert len(me.page.locator(".answer .prose").inner_text()) > before
    me.page.get_by_role("button", name="停止").click()
    expect(me.page.get_by_role("button", name="好回答")).to_be_enabled()
    expect(me.page.locator("html")).to_have_attribute("lang", "zh-Hant")
    page_colour = "() => getComputedStyle(document.body).backgroundColor"
    light = me.page.evaluate(page_colour)
    me.page.get_by_role("button", name="外觀").click()
    me.page.get_by_role("button", name="外觀").click()
    dark = me.page.evaluate(page_colour)
    assert (light, dark) == ("rgb(250, 249, 246)", "rgb(21, 24, 27)")
    me.page.reload()
    expect(me.page.get_by_role("textbox", name="您的訊息")).to_be_visible()
    assert me.page.evaluate(page_colour) == dark


def test_nothing_moves_for_those_who_asked_for_that(visit):
    me = visit(reduced_motion="reduce")
    me.page.route("**/api/task", lambda route: None)  # never answered: skeletons stay
    me.go("rate")
    expect(me.page.locator(".bar").first).to_be_visible()
    assert me.page.locator(".bar").first.evaluate("(e) => getComputedStyle(e).animationName") == "none"


def test_shortcuts_rest_while_typing_and_can_be_switched_off(visit):
    me = visit()
    me.box().fill("")
    me.page.keyboard.type("n?r")
    assert me.box().input_value() == "n?r" and me.page.locator("dialog").count() == 0
    me.page.keyboard.press("Escape")
    me.page.keyboard.press("?")
    expect(me.page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
    me.snap("help-light")
    me.page.get_by_role("switch", name="Single-key shortcuts on").uncheck()
    me.page.keyboard.press("Escape")
    expect(me.page.locator("dialog")).to_have_count(0)
    me.page.keyboard.press("?")
    me.page.wait_for_timeout(200)
    assert me.page.locator("dialog").count() == 0


def test_enter_that_ends_a_word_of_an_input_method_sends_nothing(visit):
    me = visit()
    me.box().fill("你好")
    enter = "(e) => e.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', bubbles: true, cancelable: true, isComposing: true}))"
    me.box().evaluate(enter)
    me.page.wait_for_timeout(200)
    assert me.page.locator(".turn").count() == 0
    me.box().press("Shift+Enter")
    assert me.box().input_value() == "你好\n"


def test_the_account_shows_votes_and_forgets_only_after_a_second_yes(visit, served):
    who = visit("rater")
    who.ask("My secret")
    expect(who.page.locator(".tools")).to_have_count(1)
    who.page.locator(".who").click()
    dialog = who.page.get_by_role("dialog")
    assert dialog.get_by_role("link").count() == 0  # exports are the owner's
    dialog.get_by_role("button", name="Forget my texts").click()
    who.page.wait_for_timeout(200)
    assert "My secret" in json.dumps(served.client("rater").get("/api/conversations").json())
    dialog.get_by_role("button", name="Yes, forget them").click()
    expect(dialog.get_by_text("Your texts are gone.")).to_be_visible()
    assert "My secret" not in json.dumps(served.client("rater").get("/api/conversations").json())
    me = visit()
    me.page.locator(".who").click()
    expect(me.page.locator(".counts")).to_contain_text("Pairs")
    me.snap("account-light")
    with me.page.expect_download() as download:
        me.page.get_by_role("link", name="dpo").click()
    assert download.value.suggested_filename == "dpo.jsonl"


# ---- answers that try to break the layout

HARD = {
    "empty": "",
    "blank": "  \n\n \t ",
    "one long word": "W" * 30000,
    "very long": "word " * 60000,
    "many lines": "line\n" * 20000,
    "controls": "".join(map(chr, range(1, 32))) + "\x7f\x85 end",
    "right to left override": "\u202egnorw si siht\u202c and \u2066isolated \u2067text",
    "combining marks": "e" + "\u0301" * 100_000 + " after",
    "towers": ("Z" + "\u0300\u0301\u0302\u0303\u0304\u0305\u0306\u0307\u0308\u0309" * 5) * 300,
    "right to left": "مرحبا بالعالم " * 200,
    "markup of every kind": "# h\n\n> q\n\n- a\n  - b\n\n1. c\n\n```\n"
    + "x" * 3000
    + "\n```\n\n**b** _i_ `c` ~~s~~\n\n---",
    "unclosed": "**" * 20000 + "`" * 5000 + "_" * 5000 + "[" * 5000,
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈" * 500,
    "wide line of code": "```\n" + "code " * 4000 + "\n```",
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("look", ["light", "phone"])
def test_the_layout_holds(visit: Callable[..., Visitor], look: str, name: str):
    me, text = visit(**LOOKS[look]), HARD[name]
    pieces = [text[at : at + 1500] for at in range(0, len(text), 1500)]
    events = [{"conversation": "c_" + "0" * 32, "title": text[:40]}, *({"draft": 0, "text": piece} for piece in pieces)]
    events += [{"draft": 0, "finish": "stop", "id": "d_" + "0" * 32, "dropped_turns": 0}, {"done": True, "task": None}]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    me.page.route("**/api/ask", lambda r: r.fulfill(status=200, body=body, content_type="text/event-stream"))
    started = time.monotonic()
    me.ask("Go")
    expect(me.page.locator(".tools")).to_have_count(1, timeout=10000)
    me.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert time.monotonic() - started < 8
    assert me.fits()
    boxes = [me.page.locator(s).first.bounding_box() for s in (".body", ".tools", ".composer")]
    body_box, tools, composer = boxes
    assert body_box["y"] + body_box["height"] <= tools["y"] + 1 and composer["height"] > 50
    assert body_box["x"] >= 0 and body_box["x"] + body_box["width"] <= me.page.viewport_size["width"]
    if name in ("controls", "combining marks", "towers", "right to left override"):
        me.snap(f"hard-{name.replace(' ', '-')}-{look}")
        assert me.page.locator(".prose .ctl").count() > 0
        assert not re.search(r"[\u202a-\u202e\u2066-\u2069\x01-\x08]", me.page.locator(".prose").inner_text())
    if name == "empty":
        expect(me.page.get_by_text("without writing anything")).to_be_visible()
    if name == "very long":
        more = me.page.get_by_role("button", name=re.compile("^Show all"))
        assert len(me.page.locator(".prose").inner_text()) < 30000
        more.click()
        assert len(me.page.locator(".prose").inner_text()) > 290_000
        assert me.fits()
