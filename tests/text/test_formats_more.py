"""Shapes of other projects beyond plain chats and pairs: read right, or dropped for the reason that is true of them."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from fledge.tasks.prompts import PromptFile
from fledge.text.formats import Chat, Thumb, read_chats, read_pairs, read_thumbs
from fledge.text.messages import Message
from fledge.text.prompt_rows import Prompt, read_prompts
from fledge.text.readers import Rejects
from fledge.text.segments import Segments, Tokens, read_trainable, render_trainable
from fledge.text.stepwise import Steps, read_steps
from fledge.text.template import render
from fledge.text.tokenizer import Tokenizer

S, U, A = "system", "user", "assistant"
CHAT = {"messages": [{"role": U, "content": "1+1?"}, {"role": A, "content": "2"}]}
TOOL = {"name": "add", "parameters": {"type": "object"}}


def said(*turns: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(role, content) for role, content in turns)


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def why_not(read, source, **options) -> tuple[str, str]:
    rejects = Rejects()
    assert list(read(source, rejects=rejects, **options)) == []
    ((reason, (sample,)),) = rejects.as_dict()["samples"].items()
    return reason, sample["sample"]


# --- tools and reasoning ---


def called(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


CALL = called("add", '{"a": 1, "b": 1}')
RESULT = "<tool_response>\n2\n</tool_response>"
ASKED = {"role": U, "content": "1+1?"}
OPENAI_CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 1}'}}
TOOL_ROWS = {
    "OpenAI": {
        "messages": [
            ASKED, {"role": A, "content": None, "tool_calls": [OPENAI_CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "2"}, {"role": A, "content": "It is 2."},
        ]
    },
    "arguments as an object, as a table holds it": {
        "messages": [
            {**ASKED, "tool_calls": None},
            {"role": A, "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1, "b": 1, "c": None}}}]},
            {"role": "tool", "content": "2", "tool_calls": None}, {"role": A, "content": "It is 2."},
        ]
    },
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "1+1?"},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1, "b": 1}}'},
            {"from": "observation", "value": "2"}, {"from": "gpt", "value": "It is 2."},
        ]
    },
    "older OpenAI": {
        "messages": [
            ASKED, {"role": A, "content": None, "function_call": {"name": "add", "arguments": '{"a": 1, "b": 1}'}},
            {"role": "function", "name": "add", "content": "2"}, {"role": A, "content": "It is 2."},
        ]
    },
}  # fmt: skip


@pytest.mark.parametrize("row", TOOL_ROWS.values(), ids=TOOL_ROWS)
def test_tool_calls_are_rejected_or_written_out(tmp_path, row):
    path = write(tmp_path / "a.jsonl", [row])
    reason, _ = why_not(read_chats, path)
    assert "not supported as" in reason and "fledge convert --tools text" in reason
    (chat,) = read_chats(path, tools="text")
    assert chat.messages == said((U, "1+1?"), (A, CALL), (U, RESULT), (A, "It is 2."))


@pytest.mark.parametrize("tools", [[TOOL], [{"type": "function", "function": TOOL}], json.dumps([TOOL])])
@pytest.mark.parametrize("place", ["row", "message", "row with system", "system apart"])
def test_signatures_of_tools_end_the_system_message(tmp_path, tools, place):
    system = {"role": S, "content": "Be brief."}
    messages = [system] if place in ("message", "row with system") else []
    row = {"messages": [*messages, *CHAT["messages"]]}
    if place == "message":
        row["messages"][0] = {**system, "tools": tools}
    else:
        row["tools"] = tools
    if place == "system apart":
        row["system"] = "Be brief."
    path = write(tmp_path / "a.jsonl", [row])
    assert "tools" in why_not(read_chats, path)[0]
    (chat,) = read_chats(path, tools="text")
    text = chat.messages[0].content
    signature = json.dumps({"type": "function", "function": TOOL})
    assert chat.messages[0].role == S and chat.messages[1:] == said((U, "1+1?"), (A, "2"))
    assert text.startswith("# Tools\n" if place == "row" else "Be brief.\n\n# Tools\n")
    assert f"\n<tools>\n{signature}\n</tools>\n" in text and text.endswith("</tool_call>")


def test_tools_of_a_pair_stand_before_both_answers(tmp_path):
    row = {
        "prompt": "1+1?",
        "chosen": [{"role": A, "tool_calls": [OPENAI_CALL]}],
        "rejected": [{"role": A, "content": "3"}],
    }
    (pair,) = read_pairs(write(tmp_path / "a.jsonl", [{**row, "tools": [TOOL]}]), tools="text")
    assert (pair.chosen, pair.rejected) == (CALL, "3")
    assert pair.prompt[0].role == S and pair.prompt[1:] == said((U, "1+1?"))
    talk = [ASKED, {"role": A, "content": "3"}]
    row = {"chosen": [ASKED, {"role": A, "tool_calls": [OPENAI_CALL]}], "rejected": talk, "tools": [TOOL]}
    (implicit,) = read_pairs(write(tmp_path / "b.jsonl", [row]), tools="text")
    assert (implicit.prompt, implicit.chosen) == (pair.prompt, pair.chosen)


def test_reasoning_several_calls_and_several_results(tmp_path):
    second = {"function": {"name": "now", "arguments": {}}}
    messages = [
        ASKED,
        {"role": A, "reasoning_content": "\nhm\n", "content": "Wait.", "tool_calls": [OPENAI_CALL, second]},
        {"role": "tool", "content": "2"}, {"role": "tool", "content": [{"type": "text", "text": "noon"}]},
        {"role": A, "content": "2 at noon"},
    ]  # fmt: skip
    (chat,) = read_chats(write(tmp_path / "a.jsonl", [{"messages": messages}]), tools="text")
    first = f"<think>\nhm\n</think>\n\nWait.\n{CALL}\n{called('now', '{}')}"
    assert chat.messages[1:] == said(
        (A, first), (U, f"{RESULT}\n<tool_response>\nnoon\n</tool_response>"), (A, "2 at noon")
    )


def test_nanochat_parts_are_a_call_and_its_result(tmp_path):
    parts = [("text", "Let me see. "), ("python", "1+1"), ("python_output", "2"), ("text", "It is 2.")]
    content = [{"type": kind, "text": text} for kind, text in parts]
    path = write(tmp_path / "a.jsonl", [{"messages": [ASKED, {"role": A, "content": content}]}])
    assert why_not(read_chats, path)[0].startswith("content part that is not text; `fledge convert --tools text`")
    (chat,) = read_chats(path, tools="text")
    call = called("python", '{"code": "1+1"}')
    assert chat.messages == said((U, "1+1?"), (A, f"Let me see. \n{call}"), (U, RESULT), (A, "It is 2."))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": A, "tool_calls": [{"function": {"name": "add", "arguments": "{torn"}}]}, "arguments that is no JSON"),
        ({"role": A, "tool_calls": [{"function": {"arguments": {}}}]}, "wrong field type"),
        ({"role": A, "tool_calls": [{"function": {"name": "a", "arguments": "[1]"}}]}, "wrong field type"),
        ({"role": A, "tool_calls": ["add"]}, "wrong field type"),
        ({"role": A, "content": [{"type": "image_url"}], "reasoning_content": "x"}, "content part that is not text"),
        ({"role": A, "content": [{"type": "python", "text": 1}]}, "wrong field type"),
        ({"from": "function_call", "value": "add(1)"}, "a tool call that is no JSON"),
        ({"role": A, "content": "x", "tools": "{torn"}, "tools that is no JSON"),
    ],
)
def test_unusable_tools(tmp_path, message, reason):
    path = write(tmp_path / "a.jsonl", [{"messages": [ASKED, message]}])
    assert why_not(read_chats, path, tools="text")[0] == reason


def test_rows_that_say_nothing_of_tools_read_the_same_under_either_policy(tmp_path):
    rows = [{**CHAT, "tools": empty} for empty in (None, [], "", "[]")] + [{"instruction": "a", "output": "b"}]
    path = write(tmp_path / "a.jsonl", rows)
    assert list(read_chats(path)) == list(read_chats(path, tools="text")) and len(list(read_chats(path))) == 5


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}])
def test_a_message_that_must_not_be_trained_is_not_trained_in_silence(tmp_path, mark):
    row = {"messages": [ASKED, {"role": A, "content": "2", **mark}]}
    assert why_not(read_chats, write(tmp_path / "a.jsonl", [row]))[0].startswith("message marked as not trained")
    harmless = {"messages": [{**ASKED, **mark}, {"role": A, "content": "2", "weight": 1, "train": True}]}
    assert len(list(read_chats(write(tmp_path / "b.jsonl", [harmless])))) == 1


# --- logs of votes ---


def state(*texts: str | None, offset: int = 0) -> dict:
    roles = ("USER", "ASSISTANT")
    turns = [[roles[n % 2], text] for n, text in enumerate(texts)]
    return {"template_name": "vicuna", "system_message": "S", "roles": roles, "messages": turns, "offset": offset}


def log(kind: str, *states: dict) -> dict:
    event = {"tstamp": 1.5, "type": kind, "ip": "10.0.0.1"}
    if len(states) == 1:
        return {**event, "model": "m", "state": states[0]}
    return {**event, "models": ["a", "b"], "states": list(states)}


def test_the_log_of_fastchat(tmp_path):
    one, other = state("few", "shot", "1+1?", "2", offset=2), state("1+1?", "3")
    rows = [
        log("upvote", one), log("downvote", other), log("leftvote", one, other), log("rightvote", one, other),
        log("tievote", one, other), log("bothbad_vote", one, other), log("chat", one), log("flag", one),
        log("share", one, other), log("upvote", state("1+1?", None)),
    ]  # fmt: skip
    path = write(tmp_path / "2024-01-01-conv.json.jsonl", rows)
    prompt = said((U, "1+1?"))
    rejects = Rejects()
    assert [(t.prompt, t.answer, t.liked) for t in read_thumbs(path, rejects=rejects)] == [
        (prompt, "2", True), (prompt, "3", False),
        (prompt, "2", True), (prompt, "3", False), (prompt, "3", True), (prompt, "2", False),
    ]  # fmt: skip
    assert (
        rejects.counts["entry of a log that is no vote"] == 2 and rejects.counts["turn of a log that is not text"] == 1
    )
    assert [(p.chosen, p.rejected, p.tie) for p in read_pairs(path)] == [
        ("2", "3", False), ("3", "2", False), ("2", "3", True), ("2", "3", True)
    ]  # fmt: skip
    assert [c.messages for c in read_chats(path)] == [said((U, "1+1?"), (A, "2"))]


@pytest.mark.parametrize(
    ("preference", "wanted"),
    [
        ("a-is-better", ("2", "3", False)),
        ("a-is-slightly-better", ("2", "3", False)),
        ("b-is-slightly-better", ("3", "2", False)),
        ("b-is-better", ("3", "2", False)),
        ("tie", ("2", "3", True)),
    ],
)
def test_records_of_open_instructs_human_eval(tmp_path, preference, wanted):
    row = {"prompt": "1+1?", "completion_a": "2", "completion_b": "3", "evaluator": "x", "preference": preference}
    (pair,) = read_pairs(write(tmp_path / "a.jsonl", [row]))
    assert (pair.chosen, pair.rejected, pair.tie) == wanted and pair.prompt == said((U, "1+1?"))


def test_unusable_logs(tmp_path):
    for row, reason in (
        (log("leftvote", state("a", "b"), state("c", "d")), "chosen and rejected have different prompts"),
        (
            {**log("leftvote", state("a", "b"), state("a", "c")), "states": [{}]},
            "battle that is not between two models",
        ),
        ({**log("upvote", state("a", "b")), "state": {"messages": [["a"]]}}, "wrong field type"),
        (
            {"prompt": "a", "completion_a": "b", "completion_b": "c", "preference": "?"},
            "preference is not a-is-better, ",
        ),
    ):
        read = read_thumbs if row.get("type") == "upvote" else read_pairs
        assert why_not(read, write(tmp_path / "a.jsonl", [row]))[0].startswith(reason)


# --- prompts to practise on ---

QUESTION = [{"role": U, "content": "1+1?"}]
PROMPT_ROWS = {
    "text": ({"prompt": "1+1?", "answer": 2, "level": 3}, ("2",), {"level": 3}),
    "verl": (
        {"data_source": "gsm8k", "prompt": QUESTION, "ability": "math", "extra_info": {"index": 1},
         "reward_model": {"style": "rule", "ground_truth": "2"}},
        ("2",), {"data_source": "gsm8k", "ability": "math", "extra_info": {"index": 1}},
    ),
    "open-instruct": ({"messages": QUESTION, "ground_truth": ["2"], "dataset": "gsm8k"}, ("2",), {"dataset": "gsm8k"}),
    "minimind": ({"conversations": [*QUESTION, {"role": A, "content": ""}]}, (), {}),
    "sharegpt": ({"conversations": [{"from": "human", "value": "1+1?"}]}, (), {}),
    "alpaca": ({"instruction": "1+1?", "input": "", "answers": ["2", "two"]}, ("2", "two"), {}),
    "question": ({"question": "1+1?", "answer": "2"}, ("2",), {}),
}  # fmt: skip


@pytest.mark.parametrize(("row", "answers", "meta"), PROMPT_ROWS.values(), ids=PROMPT_ROWS)
def test_prompts_of_every_shape(tmp_path, row, answers, meta):
    path = write(tmp_path / "a.jsonl", [row])
    assert list(read_prompts(path)) == [Prompt(said((U, "1+1?")), answers, f"{path}:1", meta)]
    (example,) = PromptFile(path).examples("train")
    assert (example.prompt, example.answers, example.meta) == (QUESTION, answers, meta)
    table = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), table)
    assert list(read_prompts(table)) == [Prompt(said((U, "1+1?")), answers, f"{table}:1", meta)]


def test_unusable_prompts(tmp_path):
    for row, reason in (
        ({"text": "a"}, "no `prompt` field"),
        ({"question": "a", "answer": "1+1\n#### 2"}, "answer with its working (gsm8k)"),
        ({"messages": [{"role": A, "content": "a"}]}, "no user or assistant messages"),
        ({"prompt": "a", "tools": [TOOL]}, "row with tools"),
    ):
        assert why_not(read_prompts, write(tmp_path / "a.jsonl", [row]))[0].startswith(reason)


# --- judged steps ---


def test_stepwise_rows(tmp_path):
    row = {"prompt": "1+1+1?", "completions": ["1+1 is 2", "2+1 is 4"], "labels": [True, False]}
    path = write(tmp_path / "a.jsonl", [row])
    (steps,) = read_steps(path)
    assert steps == Steps(said((U, "1+1+1?")), ("1+1 is 2", "2+1 is 4"), (True, False), f"{path}:1")
    assert steps.whole() == Thumb(steps.prompt, "1+1 is 2\n2+1 is 4", False, steps.source)
    for change, reason in (
        ({"labels": [True]}, "not one label for each step"),
        ({"labels": [1, 0]}, "wrong field type"),
        ({"completions": ["a", " "]}, "empty step"),
        ({"completions": [], "labels": []}, "no step"),
        ({"prompt": None}, "no prompt"),
        ({"completions": None}, "prompt without an answer, not a stepwise row"),
    ):
        assert why_not(read_steps, write(tmp_path / "b.jsonl", [{**row, **change}]))[0] == reason


# --- template-free rows and rows of tokens ---


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["Hello there, hi. goodbye farewell 1+1 is 2"] * 4, 300)


def test_segments_train_what_they_say(tmp_path, tokenizer):
    parts = [("Hello\n", True), ("", True), ("goodbye <|end|>", False), ("farewell", True)]
    row = {"segments": [{"text": text, "label": label} for text, label in parts]}
    (item,) = found = list(read_trainable(write(tmp_path / "a.jsonl", [row])))
    assert item.parts == (parts[0], parts[2], parts[3])
    ((tokens, weights),) = render_trainable(tokenizer, found)
    assert tokens[0] == tokenizer.bos and tokens[-1] == tokenizer.eos and len(tokens) == len(weights)
    assert tokenizer.end not in tokens, "text never becomes a control token"
    assert tokenizer.decode(tokens[1:-1]) == "Hello\ngoodbye <|end|>farewell"
    trained = [t for t, w in zip(tokens, weights, strict=True) if w]
    assert trained == [*tokenizer.encode("Hello\n"), *tokenizer.encode("farewell"), tokenizer.eos]
    row["segments"][-1]["label"] = False
    ((_, weights),) = render_trainable(tokenizer, list(read_trainable(write(tmp_path / "a.jsonl", [row]))))
    assert weights[-1] == 0 and sum(weights) == len(tokenizer.encode("Hello\n"))


def test_tokens_are_taken_as_they_are(tmp_path, tokenizer):
    ids = [tokenizer.bos, *tokenizer.encode("hi."), tokenizer.end]
    row = {"input_ids": [*ids, tokenizer.pad], "labels": [-100, *ids[1:], -100], "attention_mask": [1] * len(ids) + [0]}
    items = list(read_trainable(write(tmp_path / "a.jsonl", [row, CHAT])))
    assert isinstance(items[0], Tokens) and isinstance(items[1], Chat)
    rendered = render_trainable(tokenizer, items)
    assert rendered[0] == (ids, [0] + [1] * (len(ids) - 1))
    assert rendered[1] == render(tokenizer, items[1].messages)
    strange = Tokens((1, tokenizer.vocab_size), (0, 1), "a.jsonl:3")
    with pytest.raises(ValueError, match=rf"a\.jsonl:3: token {tokenizer.vocab_size}, but the tokenizer has"):
        render_trainable(tokenizer, [strange])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"segments": [{"text": "a", "label": False}]}, "no segment to train on"),
        ({"segments": [{"text": "", "label": True}]}, "no segment to train on"),
        ({"segments": [{"text": "a"}]}, "segment without text or label"),
        ({"segments": [{"text": "a", "label": 1}]}, "wrong field type"),
        ({"segments": "a"}, "wrong field type"),
        ({"input_ids": [1, 2], "labels": [1]}, "input_ids and labels of different lengths"),
        ({"input_ids": [1, 2]}, "wrong field type"),
        ({"input_ids": [1, 2], "labels": [-100, 3]}, "a label that is neither its token nor -100"),
        ({"input_ids": [1, 2], "labels": [1, -100]}, "no token to train on"),
        ({"input_ids": [1, True], "labels": [1, True]}, "wrong field type"),
        ({"input_ids": [-1, 2], "labels": [-1, 2]}, "a label that is neither its token nor -100"),
        ({"input_ids": [], "labels": []}, "no token to train on"),
        ({"text": "a"}, "plain text row, not a chat"),
    ],
)
def test_unusable_segments_and_tokens(tmp_path, row, reason):
    assert why_not(read_trainable, write(tmp_path / "a.jsonl", [row]))[0] == reason


def test_they_are_no_chats(tmp_path):
    for row, reason in (
        ({"segments": [{"text": "a", "label": True}]}, "template-free row, not a chat"),
        ({"input_ids": [1], "labels": [1]}, "row of tokens, not a chat"),
        ({"prompt": "a", "completions": [{"model": "m", "completion": "b"}]}, "answers without a vote, not a chat"),
    ):
        assert why_not(read_chats, write(tmp_path / "a.jsonl", [row]))[0] == reason
    assert isinstance(next(read_trainable([{"segments": [{"text": "a", "label": True}]}])), Segments)
