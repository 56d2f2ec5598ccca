"""Rate, next token, what changed and runs in a real browser, on a real server; a real trainer that nobody can stop by
closing the page."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from live_server import QUESTIONS, Served

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect


def votes(served: Served, since: int, count: int) -> list:
    until = time.monotonic() + 10
    while len(found := list(served.service.store.votes(after_seq=since))) < count and time.monotonic() < until:
        time.sleep(0.02)
    return found


# ---- rate


def test_pairs_are_rated_one_after_another_by_keyboard(visit, served):
    since = served.service.store.last_seq()
    me = visit("other")
    me.page.keyboard.press("g")
    me.page.keyboard.press("r")
    expect(me.page.get_by_role("heading", name="Rate")).to_be_visible()
    seen = []
    for key in "1342":
        group = me.page.get_by_role("group", name="Which draft is better?")
        expect(group.get_by_role("button").first).to_be_focused()
        question = me.page.locator(".asked .bubble").inner_text()
        assert question not in seen
        seen.append(question)
        if key == "1":
            me.snap("rate-light")
        me.page.keyboard.press(key)
        expect(me.page.locator(".past")).to_contain_text("rated in this sitting")
        expect(me.page.locator(".asked .bubble").or_(me.page.locator(".empty"))).not_to_have_text(question)
    expect(me.page.get_by_role("heading", name="Nothing left to rate")).to_be_visible()
    me.snap("rate-done-light")
    assert set(seen) == {*QUESTIONS, "What is 1 + 1?"}
    found = votes(served, since, 4)
    sides = []
    for vote in found:
        task = served.service.store.task(vote.task_id)
        side = {1: "left" if task.left == "a" else "right", -1: "left" if task.left == "b" else "right"}
        sides.append("both_bad" if vote.both_bad else side.get(vote.value, "same"))
    assert sides == ["left", "same", "both_bad", "right"]
    me.page.get_by_role("button", name="Take the last one back").click()
    assert [v.kind for v in votes(served, since, 5)] == ["pair"] * 4 + ["retract"]


# ---- next token


def test_next_tokens_side_by_side_and_a_click_goes_on_with_exactly_that_token(visit, served):
    me = visit()
    me.go("next")
    me.snap("next-empty-light")
    asked: list[dict] = []
    me.page.on("request", lambda r: asked.append(r.post_data_json) if r.url.endswith("/api/next") else None)
    me.page.get_by_role("textbox", name="The beginning of a sentence").fill("The capital of ")
    columns = me.page.locator(".column")
    expect(columns).to_have_count(3)
    assert columns.locator(".stage").all_inner_texts() == ["Base", "SFT", "Aligned (DPO)"]
    shares = [float(t.strip("<>%")) for t in columns.first.locator("button .share").all_inner_texts()]
    assert shares == sorted(shares, reverse=True) and len(shares) == 10
    widths = columns.first.locator(".fill").evaluate_all("(all) => all.map((e) => e.getBoundingClientRect().width)")
    assert widths == sorted(widths, reverse=True) and widths[0] > 0
    me.snap("next-light")
    expected = served.client().post("/api/next", json={"text": "The capital of", "top": 10}).json()
    clicked = expected["models"][1]["tokens"][2]
    columns.nth(1).locator("button.bar-row").nth(2).click()
    expect(me.page.get_by_role("button", name="Take the last token back")).to_be_enabled()
    expect(me.page.locator(".columns")).to_have_attribute("aria-busy", "false")
    assert asked[-1] == {"tokens": expected["tokens"], "append": clicked["id"], "top": 10}
    after = served.client().post("/api/next", json={"tokens": expected["tokens"], "append": clicked["id"]}).json()
    assert me.page.get_by_role("textbox").input_value() == after["text"]
    columns.first.locator("button.bar-row").first.focus()
    me.page.keyboard.press("Enter")  # by keyboard too
    expect(me.page.locator(".columns")).to_have_attribute("aria-busy", "false")
    for _ in range(2):
        me.page.get_by_role("button", name="Take the last token back").click()
    assert me.page.get_by_role("textbox").input_value() == "The capital of "
    expect(me.page.get_by_role("button", name="Take the last token back")).to_be_disabled()


# ---- what changed


def test_an_answer_coloured_token_by_token_with_both_distributions(visit, served):
    me = visit()
    me.go("shift")
    me.page.get_by_label("Question").fill("Who wrote The Silent Harbour?")
    me.page.get_by_label("Answer").fill("It was Mira Kolden.")
    me.page.get_by_role("button", name="Compare").click()
    tokens = me.page.locator("button.tok")
    expect(tokens.first).to_be_visible()
    body = {"prompt": "Who wrote The Silent Harbour?", "answer": "It was Mira Kolden.", "top": 5}
    found = served.client().post("/api/shift", json=body).json()
    assert tokens.count() == len(found["tokens"])
    for token, element in zip(found["tokens"], tokens.all(), strict=True):
        assert token["category"] in element.get_attribute("class").split()
    tokens.first.focus()
    me.page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    inspector = me.page.locator(".inspector")
    expect(inspector).to_contain_text(f"choice {found['tokens'][1]['rank']:,} of the base model")
    expect(inspector.locator(".bars")).to_have_count(2)
    tokens.nth(2).hover()
    expect(inspector).to_contain_text(f"choice {found['tokens'][2]['rank']:,} of the base model")
    expect(inspector.locator(".same")).to_have_count(2)  # the token itself stands in both lists
    me.snap("shift-light")

    me.go("chat")
    me.ask("Who are you?")
    me.page.get_by_role("link", name="What alignment changed here").click()
    expect(tokens.first).to_be_visible()
    assert re.search(r"#shift/d_[0-9a-f]{32}$", me.page.url)


# ---- runs


@pytest.fixture
def trainer(served: Served, tmp_path: Path):
    """`fledge pretrain` in a process of its own, slow enough to be watched; ended if a test fails."""
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"The river {n} flows to the sea at {n * 7} km, past the city." for n in range(400)))
    code = (
        "import sys, time\n"
        "from fledge.core import train\n"
        "from fledge.cli import main\n"
        "real = train.StepEvent\n"
        "def slow(*args, **named):\n"
        "    time.sleep(0.03)\n"
        "    return real(*args, **named)\n"
        "train.StepEvent = slow\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    out = served.run / "live"
    command = [
        sys.executable, "-c", code, "pretrain", "--text", str(text), "--out", str(out), "--model.size", "tiny",
        "--model.context_tokens", "64", "--train.steps", "600", "--train.batch_tokens", "256", "--train.threads", "1",
        "--vocab_size", "300",
    ]  # fmt: skip
    with open(tmp_path / "log.txt", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    process.log = tmp_path / "log.txt"
    yield process
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
        process.wait()
    shutil.rmtree(out, ignore_errors=True)


def step_of(me) -> int:
    return int(re.search(r"step ([\d,]+)", me.page.locator(".run-head").inner_text())[1].replace(",", ""))


def grown(me, than: int) -> int:
    until = time.monotonic() + 30
    while (now := step_of(me)) <= than and time.monotonic() < until:
        me.page.wait_for_timeout(100)
    assert now > than
    return now


def test_a_live_run_is_shown_again_after_reload_and_closing_the_page_stops_nothing(visit, served, trainer):
    me = visit()
    me.go("runs/live")
    try:
        expect(me.page.locator(".run-head")).to_contain_text("running", timeout=60000)
        expect(me.page.get_by_role("img", name=re.compile("^Loss: "))).to_be_visible(timeout=30000)
    except AssertionError as error:
        raise AssertionError(trainer.log.read_text()[-2000:]) from error
    first = grown(me, step_of(me))
    me.snap("runs-live-light")
    me.page.reload()
    expect(me.page.get_by_role("img", name=re.compile("^Loss: "))).to_be_visible()
    second = grown(me, first)
    expect(me.page.get_by_text("closing it stops nothing")).to_be_visible()
    me.page.close()
    assert trainer.poll() is None
    before = len((served.run / "live" / "metrics.jsonl").read_bytes())
    deadline = time.monotonic() + 20
    while len((served.run / "live" / "metrics.jsonl").read_bytes()) <= before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len((served.run / "live" / "metrics.jsonl").read_bytes()) > before

    again = visit()
    again.go("runs/live")
    expect(again.page.locator(".run-head")).to_be_visible()
    assert step_of(again) >= second
    os.kill(trainer.pid, signal.SIGKILL)
    trainer.wait()
    expect(again.page.locator(".run-head")).to_contain_text("interrupted", timeout=10000)
    expect(again.page.locator(".run-head")).to_contain_text("fledge resume")


def test_a_finished_run_shows_its_curves_samples_and_red_flags(visit, served):
    run = served.run / "rounds" / "001" / "dpo"
    run.mkdir(parents=True)
    recipe = {"stage": "dpo", "recipe": {"out": str(run), "parent": str(served.run / "sft"), "train": {"steps": 300}}}
    (run / "recipe.json").write_text(json.dumps(recipe))
    rows = [{"step": n, "loss": 0.7 / n**0.5, "accuracy": 1 - 1 / n, "lr": 1e-4, "tokens": 512} for n in range(1, 301)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 301, "lo')
    samples = [
        {"step": n, "steps": 300, "samples": [{"prompt": "Who are you?", "text": f"answer {n}"}]} for n in (1, 150, 300)
    ]
    (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    (run / "flags.json").write_text(json.dumps([{"step": 200, "text": "answers grew: length is being rewarded"}]))
    (run / "done.json").write_text('{"step": 300}')
    me = visit()
    me.go("runs")
    link = me.page.get_by_role("link", name="rounds/001/dpo")
    expect(link).to_contain_text("done")
    link.click()
    expect(me.page.get_by_role("img", name="Loss: 0.7 at step 1, 0.0404 at step 300")).to_be_visible()
    expect(me.page.get_by_role("img", name=re.compile("^Pairs ordered right"))).to_be_visible()
    assert me.page.get_by_role("img").count() == 2  # what never changes has no chart
    expect(me.page.get_by_text("length is being rewarded")).to_be_visible()
    expect(me.page.get_by_text("answer 300")).to_be_visible()
    slider = me.page.get_by_role("slider", name="Sample at step")
    slider.focus()
    me.page.keyboard.press("ArrowLeft")
    expect(me.page.get_by_text("answer 150")).to_be_visible()
    me.page.wait_for_timeout(2500)  # a poll later it is still there, and the focus too
    expect(me.page.get_by_text("answer 150")).to_be_visible()
    expect(slider).to_be_focused()
    me.snap("runs-light")


def test_the_family_tree_and_the_leaderboard_tell_of_votes(visit, served):
    for number in range(12):
        told = served.ask(f"Question {number}?", drafts=2, sampling={"seed": number})
        body = {"kind": "pair", "task": told["task"], "choice": ("left", "right", "same")[number % 3]}
        id = f"00000000-0000-4000-8000-{number:012d}"
        answer = served.client().post("/api/votes", json={"id": id, "dwell_ms": 2000, **body})
        assert answer.status_code == 201, answer.text
    me = visit()
    me.go("tree")
    nodes = me.page.locator(".node")
    expect(nodes.filter(has_text="base")).to_have_count(1)
    assert me.page.locator(".tree .tree .tree .node").filter(has_text="aligned").count() == 1  # base > sft > aligned
    expect(nodes.filter(has_text="aligned")).to_contain_text("served now")
    expect(nodes.filter(has_text="sft")).to_contain_text("votes")
    me.snap("tree-light")
    me.page.get_by_role("link", name="Leaderboard").click()
    rows = me.page.locator("table.board tbody tr")
    expect(rows).to_have_count(2)
    places = served.client().get("/api/leaderboard").json()
    for place, row in zip(places, rows.all(), strict=True):
        expect(row).to_contain_text(f"{round(place['elo']):,}")
        low, high = (f"{round(place[key]):,}".replace("-", "\N{MINUS SIGN}") for key in ("elo_low", "elo_high"))
        expect(row.get_by_role("img", name=f"{low} to {high}")).to_be_visible()
    me.snap("leaderboard-light")


def test_a_rater_sees_no_runs(visit):
    me = visit("rater")
    assert me.page.locator(".side .views a").all_inner_texts() == ["Chat", "Rate", "Next token", "Changes"]
    me.go("runs")
    expect(me.page.get_by_role("heading", name="What shall we talk about?")).to_be_visible()
