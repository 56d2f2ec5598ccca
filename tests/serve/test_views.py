"""The views through a real server: what they answer, who may see what, and that odd requests are told so."""

import shutil
import threading
import uuid
from http.client import HTTPConnection
from pathlib import Path

import msgspec
import pytest
from live_server import CONTEXT_TOKENS, Served

from fledge.core.checkpoint import canonical_json, run_lock
from fledge.probe.next_token import next_token
from fledge.probe.shift import greedy_answers, shift
from fledge.stages.common import open_model
from fledge.text.messages import Message
from fledge.text.template import fit_prompt, render_prompt

QUESTION = [{"role": "user", "content": "Who wrote The Silent Harbour?"}]


@pytest.fixture(scope="module")
def runs(served: Served) -> Path:
    """The served folder with recipes and logs, as trained runs have them."""
    for name, stage, parent in (("base", "pretrain", None), ("sft", "sft", "base"), ("aligned", "dpo", "sft")):
        folder = served.run / name
        recipe = {"out": str(folder), "parent": str(served.run / parent) if parent else None, "train": {"steps": 9}}
        (folder / "recipe.json").write_bytes(canonical_json({"stage": stage, "recipe": recipe}))
        rows = (msgspec.json.encode({"step": s, "loss": 1.0}) + b"\n" for s in range(1, 10))
        (folder / "metrics.jsonl").write_bytes(b"".join(rows))
    return served.run


@pytest.fixture(scope="module")
def opened(served: Served) -> dict:
    return {name: open_model(served.run / name) for name in ("base", "sft", "aligned")}


def post(served: Served, path: str, body: dict, who: str = "owner", status: int = 200) -> dict:
    answer = served.client(who).post(path, json=body)
    assert answer.status_code == status, answer.text[:500]
    return answer.json()


def ask(served: Served, who: str, **more) -> str:
    """A draft of `who`'s, answered by the served model; its id."""
    more = {"sampling": {"max_tokens": 8, "seed": 3}, **more}
    return served.ask(QUESTION[0]["content"], who, **more)["drafts"][0]


# ---- next token


def test_next_tokens_of_every_model_side_by_side(served, opened):
    found = post(served, "/api/next", {"text": "The river", "top": 5})
    assert [(m["name"], m["stage"]) for m in found["models"]] == [
        ("base", "pretrain"), ("sft", "sft"), ("aligned", "dpo")
    ]  # fmt: skip
    for model in found["models"]:
        expected = next_token(opened[model["name"]], text="The river", top=5)
        assert [t["id"] for t in model["tokens"]] == [t.id for t in expected.tokens]
        assert [t["p"] for t in model["tokens"]] == pytest.approx([t.p for t in expected.tokens], abs=1e-6)
        assert model["entropy"] == pytest.approx(expected.entropy, abs=1e-4)
        assert model["context"] == found["tokens"]
    tokenizer = opened["base"].tokenizer
    assert found["tokens"] == [tokenizer.bos, *tokenizer.encode("The river")] and found["text"] == "The river"
    assert found["shown"][0] == {"id": tokenizer.bos, "text": "<|bos|>", "partial": False, "control": True}


def test_a_clicked_token_is_read_back_exactly(served):
    found = post(served, "/api/next", {"text": "阿"})
    chosen = found["models"][0]["tokens"][3]
    longer = post(served, "/api/next", {"tokens": found["tokens"], "append": chosen["id"]})
    assert longer["tokens"] == [*found["tokens"], chosen["id"]]
    assert post(served, "/api/next", {"tokens": longer["tokens"]}) == longer
    assert longer["shown"][-1]["text"] == chosen["text"]


def test_next_token_of_an_answer_in_a_chat(served, opened):
    found = post(served, "/api/next", {"messages": QUESTION, "text": "Mira", "models": ["default", "aligned"]})
    assert [m["name"] for m in found["models"]] == ["aligned"], "a model named twice is asked once"
    tokenizer = opened["base"].tokenizer
    prompt = render_prompt(tokenizer, [Message("user", QUESTION[0]["content"])])
    assert found["tokens"] == [*prompt, *tokenizer.encode("Mira")]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"text": "a", "models": ["nobody"]}, 404, "no model 'nobody' to look into"),
        ({"text": "a", "models": []}, 400, "must be 1 to 3"),
        ({"text": "a", "top": 0}, 400, "top = 0: must be 1 to 50"),
        ({"text": "a", "top": 10**9}, 400, "must be 1 to 50"),
        ({"tokens": []}, 400, "has no tokens"),
        ({"tokens": [1, 10**30]}, 400, "the vocabulary is 0 to"),
        ({"tokens": [1], "append": -1}, 400, "the vocabulary is 0 to"),
        ({"tokens": [1], "text": "a"}, 400, "not both"),
        ({"tokens": ["a"]}, 400, "Expected `int`"),
        ({"text": "Tesk " * 3000}, 400, "the model reads"),
        ({"text": "x" * 30_000}, 400, "at most 20,000"),
        ({"text": "a\0b"}, 400, "NUL"),
        ({"messages": [], "text": "a"}, 400, "messages has 0 entries"),
        ({"messages": [{"role": "tool", "content": "a"}]}, 400, "role 'tool' is not supported"),
        ({"texts": "a"}, 400, "texts"),
    ],
)
def test_next_refuses_what_it_cannot_read(served, body, status, words):
    assert words in post(served, "/api/next", body, status=status)["error"]["message"]


# ---- shift


def test_shift_of_an_answer_written_now(served, opened):
    found = post(served, "/api/shift", {"prompt": QUESTION[0]["content"], "base": "base", "top": 3})
    prompt = render_prompt(opened["aligned"].tokenizer, [Message("user", QUESTION[0]["content"])])
    answer = greedy_answers(opened["aligned"], [prompt], 64)[0].tokens
    expected = shift(opened["aligned"], opened["base"], prompt, answer, top=3)
    assert (found["model"], found["base"], found["context"]) == ("aligned", "base", "chat")
    assert [(t["id"], t["rank"], t["category"]) for t in found["tokens"]] == [
        (t.id, t.rank, t.category) for t in expected.tokens
    ]
    assert [t["kl"] for t in found["tokens"]] == pytest.approx([t.kl for t in expected.tokens], abs=1e-4)
    assert found["shares"] == expected.shares and sum(found["shares"].values()) == pytest.approx(1)
    assert "".join(t["piece"] for t in found["tokens"]) == found["text"]
    plain = post(served, "/api/shift", {"prompt": QUESTION, "context": "plain"})
    assert plain["base"] == "base" and plain["context"] == "plain" and plain["tokens"] != found["tokens"]


def test_shift_of_a_given_answer(served, opened):
    found = post(served, "/api/shift", {"prompt": "Tesk?", "answer": "貝爾莫拉。", "model": "sft", "base": "base"})
    tokenizer = opened["sft"].tokenizer
    assert [t["id"] for t in found["tokens"]] == [*tokenizer.encode("貝爾莫拉。"), tokenizer.end]
    assert found["text"] == "貝爾莫拉。" and found["tokens"][-1]["control"]
    alone = post(served, "/api/shift", {"prompt": "Tesk?", "answer": "", "model": "sft", "base": "sft"})
    assert [t["text"] for t in alone["tokens"]] == ["<|end|>"] and alone["tokens"][0]["kl"] == 0


def test_shift_of_a_draft_is_that_of_its_very_tokens_and_does_not_tell_who_wrote_it(served, opened):
    draft = ask(served, "rater")
    stored = served.service.store.draft(draft)
    found = post(served, "/api/shift", {"draft": draft}, "rater")
    assert [t["id"] for t in found["tokens"]] == stored.tokens and "model" not in found and "base" not in found
    prompt = render_prompt(opened["aligned"].tokenizer, [Message("user", QUESTION[0]["content"])])
    expected = shift(opened["aligned"], opened["base"], prompt, stored.tokens)
    assert [t["rank"] for t in found["tokens"]] == [t.rank for t in expected.tokens]
    assert post(served, "/api/shift", {"draft": draft}, "owner") == found, "the owner sees every draft"


def test_a_draft_of_somebody_else_is_as_unknown_as_none(served):
    draft = ask(served, "rater")
    other = served.client("other").post("/api/shift", json={"draft": draft})
    unknown = served.client("other").post("/api/shift", json={"draft": "d_" + uuid.uuid4().hex})
    assert (other.status_code, other.content) == (unknown.status_code, unknown.content) and other.status_code == 404


def test_a_long_chat_is_cut_as_it_was_when_the_draft_was_written(served, opened):
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"Tesk {i} " * 20} for i in range(99)]
    draft = ask(served, "owner", messages=turns, sampling={"max_tokens": 900, "seed": 1})
    found = post(served, "/api/shift", {"draft": draft})
    tokenizer, messages = opened["aligned"].tokenizer, [Message(t["role"], t["content"]) for t in turns]
    prompt, dropped = fit_prompt(tokenizer, messages, CONTEXT_TOKENS - 900)
    assert dropped and prompt != fit_prompt(tokenizer, messages, CONTEXT_TOKENS - 64)[0]
    expected = shift(opened["aligned"], opened["base"], prompt, served.service.store.draft(draft).tokens)
    assert [t["rank"] for t in found["tokens"]] == [t.rank for t in expected.tokens]
    assert [t["p"] for t in found["tokens"]] == pytest.approx([t.p for t in expected.tokens], rel=1e-4)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "draft and prompt: give one of them"),
        ({"prompt": "a", "draft": "d_1"}, 400, "give one of them"),
        ({"draft": "d_1", "answer": "b"}, 400, "leave answer out"),
        ({"draft": "../../etc"}, 404, "no such"),
        ({"prompt": "a", "model": "../base"}, 404, "no model '../base'"),
        ({"prompt": "a", "base": "x" * 500}, 404, "no model 'xxx"),
        ({"prompt": "a", "context": "raw"}, 400, "context"),
        ({"prompt": "a", "top": 21}, 400, "top = 21: must be 1 to 20"),
        ({"prompt": ""}, 400, "has no content"),
        ({"prompt": "Tesk " * 3000}, 400, "has room for"),
        ({"prompt": "a", "answer": "Tesk " * 3000}, 400, "the models read"),
        ({"prompt": "a", "answer": "a\0"}, 400, "NUL"),
        ({"prompt": 3}, 400, "prompt"),
    ],
)
def test_shift_refuses_what_it_cannot_compare(served, body, status, words):
    assert words in post(served, "/api/shift", body, status=status)["error"]["message"]


# ---- runs


def test_the_list_of_runs_and_one_of_them(served, runs):
    listed = served.client().get("/api/runs").json()
    assert [(r["name"], r["stage"], r["state"], r["step"], r["steps"], r["parent"]) for r in listed] == [
        ("aligned", "dpo", "interrupted", 9, 9, "sft"),
        ("base", "pretrain", "interrupted", 9, 9, None),
        ("sft", "sft", "interrupted", 9, 9, "base"),
    ]
    with run_lock(runs / "sft"):
        assert served.client().get("/api/runs/sft").json()["state"] == "running"
    found = served.client().get("/api/runs/sft", params={"after": 6}).json()
    assert [row["step"] for row in found["rows"]] == [7, 8, 9] and found["name"] == "sft"
    shutil.copytree(runs / "sft", runs / "rounds" / "001" / "sft tuned #2")
    try:
        names = [r["name"] for r in served.client().get("/api/runs").json()]
        assert "rounds/001/sft tuned #2" in names
        inner = served.client().get("/api/runs/rounds/001/sft%20tuned%20%232").json()
        assert inner["name"] == "rounds/001/sft tuned #2"
    finally:
        shutil.rmtree(runs / "rounds")


@pytest.mark.parametrize(
    "name",
    [
        "nothing",
        "../secret",
        "..%2f..%2fsecret",
        "%2e%2e/secret",
        "sft/../base",
        "sft/checkpoints",
        "sft%00",
        "{top}/sft",
    ],
)
def test_only_listed_names_are_runs(served, runs, name):
    """Raw paths, as a client that does not tidy them sends them."""
    secret = runs.parent / "secret"
    secret.mkdir(exist_ok=True)
    shutil.copy(runs / "sft" / "recipe.json", secret)
    host, _, port = served.url.removeprefix("http://").partition(":")
    connection = HTTPConnection(host, int(port))
    path = f"/api/runs/{name.format(top=str(runs))}"
    connection.request("GET", path, headers={"Authorization": f"Bearer {served.tokens['owner']}"})
    answer = connection.getresponse()
    assert answer.status == 404 and "error" in msgspec.json.decode(answer.read())
    connection.close()


@pytest.mark.parametrize("after", ["x", "1e9", "-5", "9" * 40])
def test_odd_steps_are_no_fault_of_the_server(served, runs, after):
    assert served.client().get("/api/runs/sft", params={"after": after}).status_code in (200, 400)


def test_the_tree_joins_models_votes_and_exports(served, runs):
    draft = ask(served, "rater")
    vote = {"id": str(uuid.uuid4()), "kind": "thumb", "draft": draft, "value": 1}
    assert served.client("rater").post("/api/votes", json=vote).status_code == 201
    found = served.client().get("/api/tree").json()
    models = {m["name"]: m for m in found["models"]}
    assert models["sft"]["parent"] == models["base"]["id"] and models["aligned"]["parent"] == models["sft"]["id"]
    assert models["aligned"]["votes"]["thumb"] == 1 and models["base"]["votes"] == {}
    assert [models[n]["served"] for n in ("base", "sft", "aligned")] == [False, True, True]
    before = models["aligned"]["votes"]["thumb"]
    vote = {"id": str(uuid.uuid4()), "kind": "thumb", "draft": ask(served, "rater"), "value": -1}
    served.client("rater").post("/api/votes", json=vote)
    models = {m["name"]: m for m in served.client().get("/api/tree").json()["models"]}
    assert models["aligned"]["votes"]["thumb"] == before + 1, "kept figures follow the votes"
    board = served.client().get("/api/leaderboard").json()
    assert next(p for p in board if p["stage"] == "dpo")["thumbs"] == before + 1


# ---- who may see what


@pytest.mark.parametrize("path", ["/api/runs", "/api/runs/sft", "/api/runs/nothing", "/api/tree", "/api/leaderboard"])
def test_only_the_owner_sees_runs(served, runs, path):
    assert served.client("rater").get(path).status_code == 403
    assert served.client().get(path).status_code == (404 if path.endswith("nothing") else 200)


def test_raters_look_into_served_models_only(served):
    found = post(served, "/api/next", {"text": "The river"}, "rater")
    assert [m["name"] for m in found["models"]] == ["sft", "aligned"]
    assert (
        "no model 'base'"
        in post(served, "/api/next", {"text": "a", "models": ["base"]}, "rater", 404)["error"]["message"]
    )
    post(served, "/api/shift", {"prompt": "a", "model": "base"}, "rater", 404)
    assert post(served, "/api/shift", {"prompt": "a"}, "rater")["base"] == "base", "what they compare with is no secret"


def test_many_at_once_are_told_to_wait_and_nothing_is_stuck(served):
    codes, lock = [], threading.Lock()

    def one() -> None:
        code = served.client("other").post("/api/shift", json={"prompt": "Tesk?"}).status_code
        with lock:
            codes.append(code)

    threads = [threading.Thread(target=one) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(codes) == 12 and set(codes) <= {200, 429} and 200 in codes
    assert post(served, "/api/shift", {"prompt": "Tesk?"}, "other")["tokens"]
