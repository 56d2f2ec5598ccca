"""Any shape to any other and back; what a shape cannot hold is counted with its reason, and nothing else is lost."""

import gzip
import json
import os
from pathlib import Path

import msgspec
import pyarrow.ipc
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fledge.core.config import build
from fledge.tasks.prompts import PromptFile
from fledge.text.convert import ANY_KIND, convert, converted_rows
from fledge.text.convert_command import ConvertOptions, run
from fledge.text.formats import Chat, Pair, Thumb, read_chats, read_pairs, read_thumbs, to_row
from fledge.text.messages import Message
from fledge.text.prompt_rows import read_prompts
from fledge.text.readers import Rejects, read_documents
from fledge.text.writing import write_rows

in_one_folder = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
S, U, A = "system", "user", "assistant"
PROMPT = (Message(S, "Be brief."), Message(U, "a"), Message(A, "b"), Message(U, "1+1?"))
CHAT, SHORT = Chat((*PROMPT, Message(A, "2")), ""), Chat(PROMPT[1:3], "")
PAIR, TIE = Pair(PROMPT, "2", "3", "", 0.5), Pair(PROMPT, "2", "3", "", tie=True)
UP, DOWN = Thumb(PROMPT, "2", True, ""), Thumb(PROMPT, "3", False, "")
STEPS = {"prompt": "1+1+1?", "completions": ["2", "3"], "labels": [True, True]}
READ = {Chat: read_chats, Pair: read_pairs, Thumb: read_thumbs}

content = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip)
prompts = st.builds(
    lambda system, turns, last: (
        *(Message(S, text) for text in system),
        *(Message(r, t) for pair in turns for r, t in zip((U, A), pair, strict=True)),
        Message(U, last),
    ),
    st.lists(content, max_size=1),
    st.lists(st.tuples(content, content), max_size=2),
    content,
)
margins = st.none() | st.floats(allow_nan=False, allow_infinity=False)
items = st.one_of(
    st.builds(lambda prompt, text: Chat((*prompt, Message(A, text)), ""), prompts, content),
    st.builds(lambda prompt, text, liked: Thumb(prompt, text, liked, ""), prompts, content, st.booleans()),
    st.builds(lambda prompt, text, margin: Pair(prompt, text, f"{text}!", "", margin), prompts, content, margins),
)


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def read_back(path: Path, kind: type) -> list:
    rejects = Rejects()
    found = list(READ[kind](path, rejects=rejects))
    assert rejects.total == 0, rejects.summary()
    return [msgspec.structs.replace(item, source="") for item in found]


def turned(rows: list[dict], to: str, **options) -> tuple[list[dict], dict[str, int]]:
    rejects = Rejects()
    return list(converted_rows(rows, to, rejects=rejects, **options)), rejects.counts


# --- round trips ---


@in_one_folder
@given(item=items, first=st.sampled_from(ANY_KIND), second=st.sampled_from(ANY_KIND))
def test_what_a_row_says_survives_any_two_conversions(tmp_path, item, first, second):
    start = write(tmp_path / "a.jsonl", [to_row(item)])
    for number, shape in enumerate((first, second)):
        next_file = tmp_path / f"{number}.jsonl"
        done = convert(start, shape, next_file)
        assert (done.rows, done.left_out, done.rejects["total"]) == (1, {}, 0)
        assert read_back(next_file, type(item)) == [item]
        start = next_file


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst", "ndjson", "json", "json.gz", "parquet", "arrow"])
@pytest.mark.parametrize("shape", ANY_KIND)
def test_every_kind_of_file(tmp_path, shape, ending):
    for kind, found in (
        (Chat, [CHAT, SHORT] * 700),
        (Pair, [PAIR, msgspec.structs.replace(PAIR, margin=None)]),
        (Thumb, [UP, DOWN]),
    ):
        out = tmp_path / f"{kind.__name__}.{ending}"
        done = convert([to_row(item) for item in found], shape, out)
        assert done.rows == len(found) and read_back(out, kind) == found
        again = tmp_path / f"again.{ending}"
        convert(out, shape, again)
        assert again.read_bytes() == out.read_bytes(), "equal rows give equal bytes"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        f"{n}.{ending}" for n in ("Chat", "Pair", "Thumb", "again")
    )


def test_shapes_as_other_projects_write_them():
    def shaped(item, to):
        return turned([to_row(item)], to)[0][0]

    talk = [{"role": m.role, "content": m.content} for m in PROMPT]
    human = [
        {"from": f, "value": v} for f, v in (("system", "Be brief."), ("human", "a"), ("gpt", "b"), ("human", "1+1?"))
    ]
    two, three = ({"role": A, "content": text} for text in "23")
    alpaca = {"instruction": "1+1?", "input": "", "system": "Be brief.", "history": [["a", "b"]]}
    assert shaped(CHAT, "messages") == {"messages": [*talk, two]}
    assert shaped(CHAT, "sharegpt") == {"conversations": [*human, {"from": "gpt", "value": "2"}]}
    assert shaped(CHAT, "alpaca") == {**alpaca, "output": "2"}
    assert shaped(SHORT, "alpaca") == {"instruction": "a", "input": "", "output": "b"}
    assert shaped(CHAT, "prompt-completion") == {"prompt": talk, "completion": [two]}
    assert shaped(PAIR, "messages") == {"chosen": [*talk, two], "rejected": [*talk, three], "margin": 0.5}
    assert shaped(PAIR, "sharegpt") == {
        "conversations": human, "chosen": {"from": "gpt", "value": "2"}, "rejected": {"from": "gpt", "value": "3"}, "margin": 0.5,
    }  # fmt: skip
    assert shaped(PAIR, "alpaca") == {**alpaca, "chosen": "2", "rejected": "3", "margin": 0.5}
    explicit = {"prompt": talk, "chosen": [two], "rejected": [three]}
    assert shaped(PAIR, "prompt-completion") == shaped(PAIR, "dpo") == {**explicit, "margin": 0.5}
    assert shaped(TIE, "pairs") == {**explicit, "tie": True}
    assert shaped(DOWN, "messages") == {"messages": [*talk, three], "kto_tag": False}
    assert shaped(DOWN, "alpaca") == {**alpaca, "output": "3", "kto_tag": False}
    assert shaped(DOWN, "kto") == {"prompt": talk, "completion": [three], "label": False}
    assert shaped(DOWN, "prompts") == {"prompt": talk}


# --- what cannot be held ---

ROWS = {
    "chat": to_row(CHAT), "vote": to_row(UP), "pair": to_row(PAIR), "tie": to_row(TIE), "steps": STEPS,
    "prompt": {"prompt": "1+1?", "answer": "2", "level": 3}, "text": {"text": "a"},
    "segments": {"segments": [{"text": "a", "label": True}]}, "tokens": {"input_ids": [1, 2], "labels": [1, 2]},
    "two answers": {"prompt": "1+1?", "completions": [{"model": "m", "completion": "2"}]},
}  # fmt: skip
SAME = dict.fromkeys(("chat", "vote", "pair", "steps"), 1)
HELD = {
    **dict.fromkeys(ANY_KIND, SAME),
    "dpo": {"pair": 1}, "pairs": {"pair": 1, "tie": 1}, "kto": {"vote": 1, "pair": 2, "steps": 1},
    "prompts": dict.fromkeys(("chat", "vote", "pair", "tie", "steps", "prompt", "two answers"), 1), "text": {"text": 1},
}  # fmt: skip


@pytest.mark.parametrize("to", HELD)
@pytest.mark.parametrize("name", ROWS)
def test_the_whole_table_of_what_holds_what(name, to):
    rows, reasons = turned([ROWS[name]], to)
    assert len(rows) == HELD[to].get(name, 0)
    assert sum(reasons.values()) == (not rows)


@pytest.mark.parametrize(
    ("name", "to", "reason"),
    [
        ("chat", "dpo", "one answer, not two to choose from"),
        ("chat", "kto", "answer without a vote"),
        ("tie", "dpo", "tie: only `--to pairs` holds it"),
        ("tie", "alpaca", "tie: only `--to pairs` holds it"),
        ("tie", "kto", "tie: it says of neither answer whether it was liked"),
        ("prompt", "messages", "prompt without an answer: only `--to prompts` holds it"),
        ("two answers", "dpo", "answers without a vote: only `--to prompts` holds it"),
        ("text", "messages", "plain text row, not a chat"),
        ("segments", "sharegpt", "template-free row, which says nothing of who speaks: `fledge sft` reads it as it is"),
        ("chat", "text", "no `text` field"),
    ],
)
def test_reasons(name, to, reason):
    assert turned([ROWS[name]], to) == ([], {reason: 1})


def test_what_a_row_loses_is_counted(tmp_path):
    def lost(rows, to, **options):
        return convert(rows, to, tmp_path / "out.jsonl", **options).left_out

    assert lost([to_row(PAIR), to_row(UP)], "prompts") == {"answers of models": 2}
    assert lost([to_row(CHAT), {"messages": to_row(CHAT)["messages"][:-1]}], "prompts") == {"answers of models": 1}
    assert lost([to_row(PAIR), to_row(TIE)], "kto") == {"margins": 1}, "a rejected row loses nothing"
    assert lost([STEPS], "kto") == {"judgements of single steps": 1}
    assert lost([to_row(PAIR), to_row(UP), to_row(CHAT)], "messages", take="liked") == {
        "rejected answers": 1,
        "votes": 1,
    }
    assert lost([to_row(PAIR), to_row(UP), to_row(CHAT)], "messages") == {}


def test_liked_answers_become_conversations():
    rows, reasons = turned([to_row(i) for i in (PAIR, UP, DOWN, CHAT, TIE)], "messages", take="liked")
    assert rows == [to_row(CHAT)] * 3
    assert reasons == {"answer that was not liked": 1, "tie: no answer is the better one": 1}
    with pytest.raises(ValueError, match=r"take = 'liked' makes conversations, to = 'kto': must be one of messages, "):
        converted_rows([], "kto", take="liked")


def test_prompts_keep_answers_and_the_columns_no_shape_knows(tmp_path):
    verl = {
        "data_source": "gsm8k", "prompt": [{"role": U, "content": "1+1?"}], "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "2"}, "extra_info": {"index": 1},
    }  # fmt: skip
    rows = [verl, {"messages": [{"role": U, "content": "2+2?"}], "ground_truth": ["4", "four"], "dataset": "sums"}]
    for ending in ("jsonl", "parquet"):
        out = tmp_path / f"p.{ending}"
        convert(rows, "prompts", out)
        found, wanted = ([msgspec.structs.replace(p, source="") for p in read_prompts(x)] for x in (out, rows))
        known = [msgspec.structs.replace(p, meta={k: v for k, v in p.meta.items() if v is not None}) for p in found]
        assert known == wanted
        again = PromptFile(out).examples("train")
        assert [(e.answers, e.meta.get("dataset")) for e in again] == [(("2",), None), (("4", "four"), "sums")]


def test_text_is_also_read_from_plain_files(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("one\n")
    write(tmp_path / "in" / "b.jsonl", [{"text": "two"}, {"text": " "}])
    rejects = Rejects()
    convert(tmp_path / "in", "text", tmp_path / "out.parquet", rejects=rejects)
    assert [d.text for d in read_documents(tmp_path / "out.parquet")] == ["one\n", "two"]
    assert rejects.counts == {"blank": 1}
    rows, reasons = turned([{"body": "three"}, {"body": 3}], "text", rename={"body": "text"})
    assert rows == [{"text": "three"}] and reasons == {"wrong field type": 1}


def test_columns_under_other_names(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"input": "1+1?", "label": "2"}, {"input": "a", "prompt": "b", "label": "c"}])
    rows, reasons = turned(path, "prompts", rename={"input": "prompt", "label": "answer"})
    assert rows == [{"prompt": [{"role": U, "content": "1+1?"}], "answer": "2"}]
    assert reasons == {"both input and prompt, which input was to be renamed to": 1}
    table = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"query": "1+1?", "response": "2", "other": 1}]), table)
    assert turned(table, "messages", rename={"query": "prompt", "response": "completion"}) == ([
        {"messages": [{"role": U, "content": "1+1?"}, {"role": A, "content": "2"}]}
    ], {})  # fmt: skip


def test_tools_are_written_out_on_request(tmp_path):
    messages = [{"role": U, "content": "a"}, {"role": A, "content": "b", "reasoning_content": "c"}]
    assert turned([{"messages": messages}], "messages")[0] == []
    (row,), _ = turned([{"messages": messages}], "messages", tools="text")
    assert row["messages"][1]["content"] == "<think>\nc\n</think>\n\nb"
    out = tmp_path / "out.jsonl"
    convert([row], "alpaca", out)
    assert len(list(read_chats(out))) == 1, "what was written out is read by everything"


def test_votes_are_converted_without_the_addresses_of_people(tmp_path):
    state = {"messages": [["USER", "1+1?"], ["ASSISTANT", "2"]], "offset": 0}
    path = write(
        tmp_path / "log.jsonl", [{"tstamp": 1, "type": "upvote", "model": "m", "state": state, "ip": "10.1.2.3"}]
    )
    convert(path, "kto", tmp_path / "kto.jsonl")
    assert b"10.1.2.3" not in (tmp_path / "kto.jsonl").read_bytes()
    assert [t.liked for t in read_thumbs(tmp_path / "kto.jsonl")] == [True]


# --- files ---


def test_rows_are_streamed(tmp_path):
    seen = []

    def rows():
        for number in range(5000):
            seen.append(number)
            yield {"text": "x" * 1000}

    class Slow:
        """Looks how far the writer has come while rows are still being made."""

        def __iter__(self):
            for row in rows():
                if len(seen) == 5000:
                    (spool,) = tmp_path.glob(".out.jsonl.*.tmp")
                    assert spool.stat().st_size > 4_000_000
                yield row

    write_rows(tmp_path / "out.jsonl", Slow())
    assert len(seen) == 5000 and (tmp_path / "out.jsonl").stat().st_size > 5_000_000


@pytest.mark.parametrize("ending", ["jsonl", "json.gz", "parquet", "arrow"])
def test_a_failure_leaves_what_was_there(tmp_path, ending):
    out = tmp_path / f"out.{ending}"
    out.write_bytes(b"before")
    with pytest.raises(ValueError, match=r"0 usable rows in .*: 1 dropped:\n.*answer without a vote"):
        convert([to_row(CHAT)], "kto", out)
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps(to_row(CHAT)) + "\n{torn\n")
    with pytest.raises(ValueError, match="1 broken line"):
        convert(broken, "messages", out)
    assert out.read_bytes() == b"before" and sorted(os.listdir(tmp_path)) == ["broken.jsonl", f"out.{ending}"]
    assert convert(broken, "messages", out, skip_bad=1).rows == 1


def test_a_table_has_one_type_a_column(tmp_path):
    rows = [{"prompt": "a", "level": 1}, {"prompt": "b", "level": "two"}]
    with pytest.raises(
        ValueError, match=r"out\.parquet: column 'level' holds values that no one type .*: write \.jsonl"
    ):
        convert(rows, "prompts", tmp_path / "out.parquet")
    assert convert(rows, "prompts", tmp_path / "out.jsonl").rows == 2
    big = [{"prompt": "a", "level": 2**60 + 1}, {"prompt": "b", "level": 0.5}]
    with pytest.raises(ValueError, match=r"column 'level' holds values"):
        convert(big * 600, "prompts", tmp_path / "out.arrow")
    late = [{"prompt": f"{n}"} for n in range(2000)] + [{"prompt": "late", "level": 0.5}]
    assert convert(late, "prompts", tmp_path / "out.parquet").rows == 2001
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet")["level"].to_pylist()[-2:] == [None, 0.5]


def test_packed_files_are_really_packed(tmp_path):
    for ending, unpack in (
        ("gz", gzip.decompress),
        ("zst", lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data)),
    ):
        convert([to_row(CHAT)], "messages", tmp_path / f"a.jsonl.{ending}")
        assert json.loads(unpack((tmp_path / f"a.jsonl.{ending}").read_bytes())) == to_row(CHAT)
    convert([to_row(CHAT)], "messages", tmp_path / "a.arrow")
    with pyarrow.ipc.open_file(tmp_path / "a.arrow") as file:
        assert file.read_all().num_rows == 1


@pytest.mark.parametrize("place", ["in.jsonl", "folder/out.jsonl"])
def test_the_output_must_not_be_read(tmp_path, place):
    (tmp_path / "folder").mkdir()
    path = write(tmp_path / "in.jsonl", [to_row(CHAT)])
    with pytest.raises(ValueError, match=r"is read itself, as .*; write to another file outside"):
        convert([path, tmp_path / "folder"], "messages", tmp_path / place)


# --- the command ---


def options(**given) -> ConvertOptions:
    return build(ConvertOptions, {"inputs": "a.jsonl", "to": "messages", "out": "b.jsonl", **given})


def test_the_command(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [to_row(PAIR), to_row(UP), to_row(TIE), {"other": 1}])
    report = tmp_path / "report.json"
    done = run(options(inputs=[str(path)], to="kto", out=str(tmp_path / "b.parquet"), report=str(report)))
    assert done.rows == 3 and [t.liked for t in read_thumbs(tmp_path / "b.parquet")] == [True, False, True]
    said = capsys.readouterr().err
    assert "3 rows" in said and "not held: 1 margins" in said and "2 dropped" in said and "unknown shape" in said
    held = json.loads(report.read_text())
    assert held["rows"] == 3 and held["left_out"] == {"margins": 1} and held["rejects"]["total"] == 2
    run(options(inputs=str(path), to="prompts", out=str(tmp_path / "p.jsonl"), rename=["other=prompt"]))


@pytest.mark.parametrize(
    ("given", "trouble"),
    [
        ({"out": "b.csv"}, r"out = b\.csv: must end with \.jsonl"),
        ({"out": "b.parquet.gz"}, r"out = b\.parquet\.gz: must end with"),
        ({"to": "mesages"}, "to = 'mesages'"),
        ({"take": "liked", "to": "dpo"}, "take = liked makes conversations: to = dpo"),
        ({"rename": ["input"]}, "rename = 'input': must be THEIRS=OURS"),
        ({"rename": ["a=b", "a=c"]}, "a name stands there twice"),
        ({"inputs": []}, "inputs: none"),
        ({"tools": "drop"}, "tools = 'drop'"),
    ],
)
def test_settings_that_cannot_be_used(given, trouble):
    with pytest.raises(ValueError, match=trouble):
        options(**given)


def test_unknown_words_from_python_are_refused():
    for name in ("to", "take", "tools"):
        with pytest.raises(ValueError, match=f"{name} = 'x': must be one of "):
            converted_rows([], **{"to": "messages", name: "x"})
