"""The page's routes: who I am, drafts as a stream, votes, conversations, pairs to rate, a new model while serving."""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec
import pytest
from live_server import OWNER_TOKEN, QUESTIONS, Served, new_vote, until

from fledge.core.checkpoint import load_checkpoint, resolve, save_checkpoint
from fledge.generate.chat import chat_engine
from fledge.generate.sampling import Sampling
from fledge.serve import service as service_module
from fledge.serve.command import ChatOptions, listen, run
from fledge.serve.rating import read_gold, read_prompts
from fledge.serve.serving import read_serving, write_serving
from fledge.stages.common import open_model
from fledge.text.messages import Message
from fledge.text.template import render_prompt


def cast(served: Served, who: str = "owner", **vote) -> httpx.Response:
    return served.client(who).post("/api/votes", json=new_vote(**vote))


# ---- who, and the page itself


def test_me_tells_who_is_asking_and_what_there_is(served: Served):
    told = served.client().get("/api/me").json()
    assert told["person"] == {"id": served.service.owner.id, "name": "owner", "role": "owner"}
    assert [(m["name"], m["stage"], m["default"], m["served"]) for m in told["models"]] == [
        ("aligned", "dpo", True, True),
        ("sft", "sft", False, True),
        ("base", "pretrain", False, False),
    ]
    assert told["models"][0]["id"] == load_checkpoint(served.run / "aligned").id
    assert told["compare"] and told["rate"] and told["views"] == {"next": True, "shift": True, "runs": True}
    rater = served.client("rater").get("/api/me").json()
    assert rater["person"] == {"id": "p_rater", "name": "rater", "role": "rater"} and not rater["views"]["runs"]
    assert [m["name"] for m in rater["models"]] == ["aligned", "sft"]


def test_the_page_and_only_its_own_files_are_handed_out(served: Served):
    page = served.client().get("/")
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    script = served.client().get("/static/api.js")
    assert script.status_code == 200 and script.headers["content-type"].startswith("text/javascript")
    for name in (
        "nothing.js",
        "..%2Fservice.py",
        "%2e%2e/service.py",
        "../service.py",
        ".hidden",
        "api.js%00",
        "a/b.js",
    ):
        assert served.client().get(f"/static/{name}").status_code == 404


# ---- drafts


def test_a_draft_is_stored_with_all_that_wrote_it_and_can_be_written_again(served: Served):
    question = "Please tell me   who you are, and tell me at length."
    got = served.ask(question, sampling={"temperature": 0.9, "top_p": 0.8, "max_tokens": 20, "seed": 7})
    assert got["events"][0] == {
        "conversation": got["conversation"],
        "title": "Please tell me who you are, and tell me ",
    }
    draft = served.service.store.draft(got["drafts"][0])
    opened = open_model(served.run / "aligned")
    assert (draft.checkpoint_id, draft.seed, draft.stream, draft.origin) == (opened.id, 7, 0, "model")
    assert draft.text == got["texts"].get(0, "") and draft.conversation_id == got["conversation"]
    engine, sampling = (
        chat_engine(opened.model, opened.tokenizer),
        Sampling(temperature=0.9, top_p=0.8, max_tokens=20, seed=7),
    )
    prompt = render_prompt(opened.tokenizer, [Message("user", question)])
    (again,) = engine.generate([prompt], sampling)
    assert (draft.tokens, draft.finish) == (again.tokens, again.finish)
    assert draft.logp == pytest.approx(sum(again.logp))
    decoding = served.service.store.decoding(draft.decoding_id)
    assert (decoding["temperature"], decoding["top_p"], decoding["max_tokens"]) == (0.9, 0.8, 20)
    assert decoding["engine"] == ("native" if engine.native else "torch")
    (checkpoint,) = [c for c in served.service.store.checkpoints() if c.id == opened.id]
    assert (checkpoint.stage, checkpoint.step, len(checkpoint.template_sha256)) == ("dpo", 1, 64)


@pytest.mark.parametrize("left", ["a", "b"])
def test_two_drafts_stand_blind_on_sides_drawn_by_lot(served: Served, monkeypatch: pytest.MonkeyPatch, left: str):
    monkeypatch.setattr("secrets.choice", lambda options: left if options == "ab" else options[0])
    got = served.ask("Who are you?", drafts=2)
    assert set(got["texts"]) <= {0, 1} and set(got["drafts"]) == {0, 1}
    assert not any(word in json.dumps(got["events"]) for word in ("aligned", "sft", "dpo", "checkpoint"))
    task = served.service.store.task(got["task"])
    assert (task.left, task.why, task.person_id) == (left, "compare", served.service.owner.id)
    assert [got["drafts"][0], got["drafts"][1]] == [task.left_draft, task.right_draft]
    names = {
        d: served.service.name_of_checkpoint(served.service.store.draft(d).checkpoint_id)
        for d in got["drafts"].values()
    }
    assert (names[task.draft_a], names[task.draft_b]) == ("aligned", "sft")
    answer = cast(served, kind="pair", task=got["task"], choice="left")
    assert answer.status_code == 201
    assert answer.json()["revealed"] == {"left": names[task.left_draft], "right": names[task.right_draft]}
    (stored,) = [v for v in served.service.store.votes() if v.task_id == got["task"]]
    assert stored.value == (1 if left == "a" else -1)


def test_without_another_model_two_drafts_are_two_streams_of_one_seed(serve: Callable, journey: Path, tmp_path: Path):
    shutil.copytree(journey / "sft", tmp_path / "sft")
    with serve(tmp_path / "sft", per_person=1) as served:  # one at a time: they are written one after the other
        got = served.ask("Who are you?", drafts=2, sampling={"max_tokens": 8})
        task = served.service.store.task(got["task"])
        a, b = (served.service.store.draft(d) for d in (task.draft_a, task.draft_b))
        assert task.why == "random" and (a.checkpoint_id, a.seed) == (b.checkpoint_id, b.seed)
        assert (a.stream, b.stream) == (0, 1) and a.tokens != b.tokens


def test_old_turns_are_dropped_and_said_so(served: Served):
    long = "a river " * 700
    messages = [{"role": r, "content": long} for r in ("user", "assistant")] * 2 + [{"role": "user", "content": "hi"}]
    with served.client().stream("POST", "/api/ask", json={"messages": messages}) as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line]
    assert [e["dropped_turns"] for e in events if "dropped_turns" in e] == [4]
    too_long = served.client().post("/api/ask", json={"messages": [{"role": "user", "content": "a river " * 5000}]})
    assert too_long.status_code == 400 and "the model has room for" in too_long.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"messages": []}, "1 to 512"),
        ({"messages": [{"role": "user", "content": "x"}] * 10_000}, "1 to 512"),
        ({"messages": [{"role": "user", "content": None}]}, "has no content"),
        ({"messages": [{"role": "user", "content": " "}]}, "has no content"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "not supported"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "take turns"),
        ({"messages": [{"role": "user", "content": "x\0y"}]}, "NUL"),
        ({"messages": [{"role": "user", "content": "x"}], "drafts": 3}, "1 or 2"),
        ({"messages": [{"role": "user", "content": "x"}], "sampling": {"temperature": -1}}, "from 0 to 100"),
        ({"messages": [{"role": "user", "content": "x"}], "sampling": {"max_tokens": 10**9}}, "from 1 to"),
        ({"messages": [{"role": "user", "content": "x"}], "sampling": {"seed": -1}}, "from 0 to"),
        ({"messages": [{"role": "user", "content": "x"}], "wizard": 1}, "wizard"),
    ],
)
def test_a_question_that_cannot_be_asked_names_what_is_wrong(served: Served, body: dict, said: str):
    answer = served.client().post("/api/ask", json=body)
    assert answer.status_code == 400 and said in answer.json()["error"]["message"]


def test_an_answer_the_client_stops_is_kept_as_far_as_it_was_written(served: Served, slow_engine: None):
    body = {"messages": [{"role": "user", "content": "Tell me all."}], "sampling": {"max_tokens": 2000, "seed": 3}}
    with served.client().stream("POST", "/api/ask", json=body) as answer:
        lines = answer.iter_lines()
        conversation = json.loads(next(line for line in lines if line)[6:])["conversation"]
        assert any('"text"' in line for line in lines)  # something was written, then we leave
    store, owner = served.service.store, served.service.owner.id
    held = until(lambda: (found := store.conversation(owner, conversation)) and found.drafts)
    assert [d.finish for d in held] == ["stopped"] and 0 < len(held[0].tokens) < 1000
    got = served.ask("And now?", conversation=conversation, sampling={"max_tokens": 2})  # it goes on at once
    assert got["conversation"] == conversation


# ---- votes


def test_votes_are_stored_once_and_told_apart(served: Served):
    got = served.ask("Who are you?", sampling={"max_tokens": 4})
    draft = got["drafts"][0]
    vote = new_vote("thumb", draft=draft, value=1, reasons=["clear"], comment="nice <b>")
    first, again = (served.client().post("/api/votes", json=vote) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json() == {"seq": first.json()["seq"], "id": vote["id"], "revealed": None}
    conflict = served.client().post("/api/votes", json=vote | {"value": -1})
    assert conflict.status_code == 409 and conflict.json()["error"]["code"] == "conflict"
    stored = served.service.store.vote(vote["id"])
    assert (stored.value, stored.comment, stored.reasons) == (1, "nice <b>", ["clear"])


def test_a_vote_that_breaks_a_rule_is_422_and_nothing_is_stored(served: Served):
    got = served.ask("Who are you?", drafts=2, sampling={"max_tokens": 4})
    draft, task, before = got["drafts"][0], got["task"], served.service.store.last_seq()
    wrong = [
        *(new_vote("score", draft=draft, value=value) for value in (6, -1, 2.5, True, "5", None)),
        new_vote("thumb", draft=draft, value=0),
        new_vote("pair", task=task, choice="a"),
        new_vote("pair", task=task, choice="left", value=1),
        new_vote("pair", task=task, choice="both_bad", draft=draft),
        new_vote("edit", draft=draft, text="  "),
        new_vote("edit", draft=draft, text="x\0"),
        new_vote("forget"),
        new_vote("thumb", draft=draft, value=1, comment="x" * 5000),
        new_vote("thumb", draft=draft, value=1, wizard=1),
        {**new_vote("thumb", draft=draft, value=1), "id": "1"},
        [],
    ]
    answers = [served.client().post("/api/votes", json=vote) for vote in wrong]
    assert [a.status_code for a in answers] == [422] * len(wrong)
    assert all(a.json()["error"]["type"] == "invalid_request_error" for a in answers)
    other = served.ask("Another?", sampling={"max_tokens": 4})["drafts"][0]
    mixed = cast(served, kind="thumb", task=task, draft=other, value=1)  # a draft of another prompt
    assert mixed.status_code == 422
    assert served.service.store.last_seq() == before


# ---- conversations


def test_a_conversation_comes_back_with_its_drafts_pairs_and_votes(served: Served):
    one = served.ask("Who are you?", who="rater", sampling={"max_tokens": 6})
    draft, conversation = one["drafts"][0], one["conversation"]
    edit = new_vote("edit", draft=draft, text="I am Fledge.")
    assert served.client("rater").post("/api/votes", json=edit).status_code == 201
    thumb = new_vote("thumb", draft=draft, value=-1)
    assert served.client("rater").post("/api/votes", json=thumb).status_code == 201
    assert cast(served, "rater", kind="retract", vote=thumb["id"]).status_code == 201
    messages = [
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "I am Fledge."},
        {"role": "user", "content": "Really?"},
    ]
    body = {"messages": messages, "conversation": conversation, "drafts": 2, "sampling": {"max_tokens": 6}}
    with served.client("rater").stream("POST", "/api/ask", json=body) as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line]
    task = events[-1]["task"]["id"]

    held = served.client("rater").get(f"/api/conversations/{conversation}").json()
    assert (held["id"], held["title"], len(held["turns"])) == (conversation, "Who are you?", 2)
    first, second = held["turns"]
    assert first["messages"] == messages[:1] and second["messages"] == messages
    assert [(d["origin"], d["text"], d["parent"]) for d in first["drafts"]] == [
        ("model", one["texts"].get(0, ""), None),
        ("human", "I am Fledge.", draft),
    ]
    assert [(v["kind"], v["draft"]) for v in first["votes"]] == [("edit", draft)]  # the thumb was withdrawn
    assert {d["side"] for d in second["drafts"]} == {"left", "right"} and second["task"] == task
    assert second["tasks"][0]["revealed"] is None and "aligned" not in json.dumps(held)
    assert cast(served, "rater", kind="pair", task=task, choice="right").json()["revealed"]
    (_, second) = served.client("rater").get(f"/api/conversations/{conversation}").json()["turns"]
    assert set(second["tasks"][0]["revealed"].values()) == {"aligned", "sft"}
    assert [(v["kind"], v["choice"]) for v in second["votes"]] == [("pair", "right")]
    listed = served.client("rater").get("/api/conversations").json()
    assert (listed[0]["id"], listed[0]["title"]) == (conversation, "Who are you?")
    assert isinstance(listed[0]["created_ms"], int)


def test_forgetting_blanks_ones_own_texts_only(served: Served):
    mine, theirs = served.ask("My secret is 42.", who="other"), served.ask("Hello there?", who="rater")
    assert served.client("other").post("/api/forget", json={"confirm": "yes"}).status_code == 400
    counts = served.client("other").post("/api/forget", json={"confirm": "forget me"})
    assert counts.status_code == 200 and sum(counts.json().values()) > 0
    assert served.client("other").get("/api/conversations").json() == []
    assert served.client("other").get(f"/api/conversations/{mine['conversation']}").status_code == 404
    assert served.service.store.draft(mine["drafts"][0]).text == ""
    assert served.client("rater").get(f"/api/conversations/{theirs['conversation']}").status_code == 200


# ---- pairs to rate


def test_rating_deals_each_prompt_and_gold_question_once(serve: Callable, journey: Path, tmp_path: Path):
    shutil.copytree(journey, tmp_path / "mine")
    prompts, gold = tmp_path / "prompts.jsonl", tmp_path / "gold.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": q}) + "\n" for q in QUESTIONS))
    gold.write_text(json.dumps({"prompt": "What is 1 + 1?", "good": "2", "bad": "11"}) + "\n")
    options = {"prompts": str(prompts), "gold": str(gold), "gold_share": 0.0, "sampling": Sampling(max_tokens=5)}
    with serve(tmp_path / "mine", **options) as served:
        rater, seen = served.client("rater"), []
        while (dealt := rater.get("/api/task")).status_code == 200:
            shown = dealt.json()
            assert rater.get("/api/task").json() == shown  # the same until it is judged
            task = served.service.store.task(shown["task"])
            assert [d["id"] for d in shown["drafts"]] == [task.left_draft, task.right_draft]
            texts = {d["id"]: d["text"] for d in shown["drafts"]}
            if task.why == "gold":
                assert texts[task.draft_a if task.expected == "a" else task.draft_b] == "2"
            assert cast(served, "other", kind="pair", task=shown["task"], choice="left").status_code == 404
            draft = shown["drafts"][0]["id"]
            assert cast(served, "other", kind="thumb", draft=draft, value=1).status_code == 404
            vote = cast(served, "rater", kind="pair", task=shown["task"], choice="same")
            names = {"file"} if task.why == "gold" else {"aligned"}
            assert vote.status_code == 201 and set(vote.json()["revealed"].values()) == names
            seen.append((shown["messages"][0]["content"], task.why))
        assert dealt.status_code == 204
        assert sorted(seen) == sorted([*((q, "random") for q in QUESTIONS), ("What is 1 + 1?", "gold")])
    with serve(tmp_path / "mine", **options) as served:  # a new server has not forgotten
        assert served.client("rater").get("/api/task").status_code == 204
        assert served.client("other").get("/api/task").status_code == 200


def test_a_prompt_without_two_different_answers_is_not_dealt(serve: Callable, journey: Path, tmp_path: Path):
    shutil.copytree(journey / "sft", tmp_path / "sft")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": q}) + "\n" for q in ("Who are you?", "long " * 4000, "a\0b")))
    with serve(tmp_path / "sft", prompts=str(prompts), sampling=Sampling(temperature=0.0, max_tokens=4)) as served:
        assert served.client("rater").get("/api/task").status_code == 204  # greedy: twice the same words
    with serve(tmp_path / "sft", prompts=str(prompts), sampling=Sampling(max_tokens=8)) as served:
        dealt = served.client("rater").get("/api/task").json()
        assert dealt["messages"][0]["content"] == "Who are you?"
        assert cast(served, "rater", kind="pair", task=dealt["task"], choice="same").status_code == 201
        assert served.client("rater").get("/api/task").status_code == 204


def test_gold_and_prompt_files_that_cannot_be_used_say_why(tmp_path: Path):
    path = tmp_path / "gold.jsonl"
    path.write_text(json.dumps({"prompt": "x", "good": "a", "bad": "a"}) + "\n" + json.dumps({"prompt": "x"}) + "\n")
    with pytest.raises(ValueError, match="0 usable gold questions") as told:
        read_gold(str(path))
    assert "two different answers" in str(told.value) and "no `good` field" in str(told.value)
    with pytest.raises(ValueError, match="0 usable prompts"):
        path.write_text(json.dumps({"text": "x"}) + "\n")
        read_prompts(str(path))


# ---- what only the owner sees


def test_the_owner_reads_the_summary_and_exports(served: Served):
    got = served.ask("Who are you?", sampling={"max_tokens": 6})
    cast(served, kind="edit", draft=got["drafts"][0], text="I am Fledge, a small model.")
    summary = served.client().get("/api/votes/summary")
    assert summary.status_code == 200 and isinstance(summary.json(), dict)
    export = served.client().get("/api/export", params={"format": "sft"})
    rows = [json.loads(line) for line in export.text.splitlines()]
    assert any("I am Fledge, a small model." in json.dumps(row) for row in rows)
    assert served.client().get("/api/export", params={"format": "wizard"}).status_code == 400


# ---- a new model while serving


def test_a_promoted_model_is_taken_into_service_and_open_answers_end_on_the_old(
    serve: Callable, journey: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow_engine: None
):
    shutil.copytree(journey, tmp_path / "mine")
    monkeypatch.setattr(service_module, "_FOLLOW_SECONDS", 0.05)
    old, new = (resolve(tmp_path / "mine" / name) for name in ("sft", "aligned"))
    write_serving(tmp_path / "mine", old, load_checkpoint(old).id)
    with serve(tmp_path / "mine") as served:
        default = lambda: next(m["name"] for m in served.client().get("/api/me").json()["models"] if m["default"])  # noqa: E731
        assert default() == "sft"
        body = {"messages": [{"role": "user", "content": "Go on."}], "sampling": {"max_tokens": 150, "seed": 1}}
        with served.client().stream("POST", "/api/ask", json=body) as answer:
            lines = answer.iter_lines()
            assert any('"text"' in line for line in lines)
            (tmp_path / "mine" / "serving.json").write_text("{")  # damaged: the old one stays
            time.sleep(0.2)
            assert default() == "sft"
            write_serving(tmp_path / "mine", new, load_checkpoint(new).id)
            until(lambda: default() == "aligned")
            events = [json.loads(line[6:]) for line in lines if line]
        (finish,) = [e for e in events if "finish" in e]
        assert served.service.store.draft(finish["id"]).checkpoint_id == load_checkpoint(old).id
        after = served.ask("And now?", sampling={"max_tokens": 3})
        assert served.service.store.draft(after["drafts"][0]).checkpoint_id == load_checkpoint(new).id
        named = served.client().post("/v1/completions", json={"model": "sft", "prompt": "x", "max_tokens": 1})
        assert named.status_code == 404 and "default, aligned" in named.json()["error"]["message"]


def test_serving_json_says_what_is_wrong_with_it(tmp_path: Path, journey: Path):
    assert read_serving(tmp_path) is None
    checkpoint = resolve(journey / "sft")
    write_serving(tmp_path, checkpoint, "f" * 64)
    assert (tmp_path / read_serving(tmp_path).checkpoint).resolve() == checkpoint.resolve()
    (tmp_path / "serving.json").write_text('{"checkpoint": 1}')
    with pytest.raises(ValueError, match=r"serving\.json is damaged .* delete it to serve"):
        read_serving(tmp_path)
    with pytest.raises(ValueError, match="is no checkpoint"):
        write_serving(tmp_path, tmp_path, "f" * 64)


# ---- the command


def test_what_cannot_be_served_is_refused_with_the_way_out(journey: Path, tmp_path: Path, make_model, tokenizer):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port {port} cannot be had .*: give --port \d+"):
            run(ChatOptions(run=str(journey), port=port))
    with pytest.raises(ValueError, match="is aligned itself"):
        run(ChatOptions(run=str(journey), port=0, compare=[str(journey / "aligned")]))
    with pytest.raises(ValueError, match="no checkpoint in"):
        run(ChatOptions(run=str(tmp_path), port=0))
    model = make_model(vocab_size=tokenizer.vocab_size, head="reward")
    card = {"stage": "reward", "parent": None, "model": msgspec.to_builtins(model.config)}
    save_checkpoint(
        tmp_path / "rm", 1, model=model.state_dict(), optimizer={}, state={}, card=card, tokenizer=tokenizer.json
    )
    with pytest.raises(ValueError, match="is a reward model"):
        run(ChatOptions(run=str(tmp_path / "rm"), port=0))
    assert ChatOptions(run="x", port=70000, gold_share=2, slots=0, token="short").problems().__len__() == 4


def test_the_listening_socket_sends_small_pieces_at_once(journey: Path):
    """asyncio turns Nagle's algorithm off only for sockets that are TCP by name; with it every answer waits 40 ms."""
    with listen(ChatOptions(run=str(journey), port=0)) as listening:
        assert listening.proto == socket.IPPROTO_TCP


def test_the_command_prints_one_address_and_ctrl_c_closes_it(journey: Path, tmp_path: Path):
    shutil.copytree(journey / "sft", tmp_path / "sft")
    code = (
        "from fledge.cli import _guarded; from fledge.serve.command import ChatOptions, run; import sys;"
        f"sys.exit(_guarded(lambda: run(ChatOptions(run={str(tmp_path / 'sft')!r}, port=0))))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
        env=os.environ | {"FLEDGE_TOKEN": OWNER_TOKEN},
    )  # fmt: skip
    try:
        url = child.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:") and url.endswith(f"/?token={OWNER_TOKEN}")
        with httpx.Client(follow_redirects=True) as client:
            until(lambda: client.get(url).status_code == 200)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=20)
    finally:
        child.kill()
    assert (child.returncode, out) == (0, "") and "Traceback" not in err
    assert OWNER_TOKEN not in err and "closed; every vote is stored" in err


def test_the_votes_of_a_checkpoint_lie_in_its_run(serve: Callable, journey: Path, tmp_path: Path):
    shutil.copytree(journey / "sft", tmp_path / "sft")
    with serve(resolve(tmp_path / "sft")) as served:
        assert served.client().get("/api/me").json()["models"][0]["name"] == "sft"
    assert (tmp_path / "sft" / "votes.sqlite3").exists()
    assert not (tmp_path / "sft" / "votes.sqlite3-wal").exists()  # closed: everything is in the one file


def test_the_terminal_chat_is_still_there(
    journey: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n/quit\n"))
    run(ChatOptions(run=str(journey / "sft"), terminal=True, system="Be brief.", sampling=Sampling(max_tokens=5)))
    assert capsys.readouterr().out.count("\n") >= 1
    assert not (journey / "sft" / "votes.sqlite3").exists()


def test_ids_of_votes_may_be_any_uuid(served: Served):
    draft = served.ask("Who are you?", sampling={"max_tokens": 2})["drafts"][0]
    seven = "0190163d-8694-739b-aea5-966c26f8ad91"
    for id in (str(uuid.uuid4()), str(uuid.uuid1()), seven):
        vote = new_vote("score", draft=draft, value=3) | {"id": id}
        assert served.client().post("/api/votes", json=vote).status_code == 201
