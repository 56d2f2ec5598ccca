"""Rows of Arrow files, of data sets in memory and on disk: the same rows as from a .jsonl file, or an error that names it."""

import gzip
import json
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pytest

from fledge.text.formats import Chat, Pair, read_chats, read_pairs
from fledge.text.messages import Message
from fledge.text.readers import Rejects, read_documents, read_rows

CHAT = {"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]}
U, A = "user", "assistant"


def said(*turns: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(role, content) for role, content in turns)


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def arrow(path: Path, rows: list[dict], stream: bool, batch: int = 100) -> Path:
    table = pyarrow.Table.from_pylist(rows)
    new = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)
    return path


# --- tables ---


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "file"])
@pytest.mark.parametrize("ending", ["arrow", "feather", "arrow.gz"])
def test_arrow_files_of_both_layouts(tmp_path, stream, ending):
    rows = [{**CHAT, "id": n} for n in range(600)]
    path = arrow(tmp_path / "a.arrow", rows, stream, batch=400)
    if ending.endswith(".gz"):
        (tmp_path / "b.arrow.gz").write_bytes(gzip.compress(path.read_bytes()))
    found = list(read_chats(path.rename(tmp_path / f"b.{ending}") if "gz" not in ending else tmp_path / "b.arrow.gz"))
    assert [c.messages for c in found] == [said((U, "1+1?"), (A, "2"))] * 600
    assert found[-1].source == f"{tmp_path}/b.{ending}:600"


def test_a_table_gives_only_the_columns_asked_for(tmp_path):
    path = arrow(tmp_path / "a.arrow", [{"text": "a", "other": 1}], stream=False)
    read = {"encoding": None, "skip_bad": None, "rejects": Rejects()}
    assert list(read_rows(path, columns=frozenset({"text"}), **read)) == [(f"{path}:1", {"text": "a"})]
    assert list(read_rows(path, columns=frozenset(), **read)) == [(f"{path}:1", {"text": "a", "other": 1})]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "file"])
def test_a_cut_or_strange_arrow_file_is_an_error_that_names_it(tmp_path, stream):
    whole = arrow(tmp_path / "whole.arrow", [CHAT] * 600, stream, batch=50).read_bytes()
    for size in (0, 4, len(whole) // 2):
        path = tmp_path / f"cut{size}.arrow"
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"cut{size}\.arrow: not a whole Arrow file, after [\d,]+ good rows"):
            list(read_chats(path))
    (tmp_path / "old.feather").write_bytes(b"FEA1" + whole[4:])
    with pytest.raises(ValueError, match="Feather version 1"):
        list(read_chats(tmp_path / "old.feather"))


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "file"])
def test_offsets_that_lead_out_of_an_arrow_file_are_an_error(tmp_path, stream):
    """To read such a string would be to read what lies behind the buffer."""
    path = arrow(tmp_path / "bad.arrow", [{"text": "abc"}, {"text": "defg"}, {"text": "hijkl"}], stream)
    whole, offsets = path.read_bytes(), struct.pack("<4i", 0, 3, 7, 12)
    assert whole.count(offsets) == 1
    path.write_bytes(whole.replace(offsets, struct.pack("<4i", 0, 2**31 - 16, 7, 12)))
    with pytest.raises(ValueError, match=r"bad\.arrow: not a whole Arrow file, after 0 good rows .*offset"):
        list(read_documents(path))


def test_a_large_arrow_batch_is_not_held_as_python_objects(tmp_path):
    rows = [{"text": f"{n:07d}" * 30} for n in range(20_000)]
    path = arrow(tmp_path / "a.arrow", rows, stream=True, batch=len(rows))
    del rows
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_documents(path)) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 1_500_000
    finally:
        tracemalloc.stop()


# --- data sets of `datasets`, and rows in memory ---


def test_datasets_are_read_in_place_of_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "no", "margin": None} for n in range(3)]
    data = datasets.Dataset.from_list(rows)
    wanted = [Pair(said((U, f"{n}?")), "yes", "no", f"Dataset:{n + 1}") for n in range(3)]
    assert list(read_pairs(data)) == list(read_pairs(data.with_format("numpy"))) == wanted
    assert [p.prompt for p in read_pairs(data.to_iterable_dataset())] == [p.prompt for p in wanted]
    assert [d.text for d in read_documents(datasets.Dataset.from_dict({"text": ["a", " "]}))] == ["a"]
    with pytest.raises(
        ValueError, match=r"DatasetDict holds several splits, 'train', 'test': give one of them, as data\["
    ):
        read_pairs(datasets.DatasetDict(train=data, test=data))


def test_a_saved_data_set_is_its_tables(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list([CHAT] * 5)
    data.save_to_disk(tmp_path / "saved", num_shards=2)
    rejects = Rejects()
    found = list(read_chats(tmp_path / "saved", rejects=rejects))
    assert len(found) == 5 and found[0].source.endswith("data-00000-of-00002.arrow:1") and rejects.total == 0
    datasets.DatasetDict(train=data, test=data).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match=r"several splits of one data set: name one of them: .*splits/train, .*/test"):
        list(read_chats(tmp_path / "splits"))
    assert len(list(read_chats(tmp_path / "splits" / "test"))) == 5
    (tmp_path / "saved" / "state.json").write_text('{"_data_files": [{"filename": "../../secret.arrow"}]}')
    with pytest.raises(ValueError, match=r"state\.json cannot be used .*not in this folder"):
        list(read_chats(tmp_path / "saved"))


def test_rows_in_memory():
    found = list(read_chats([CHAT, {"question": "a", "answer": "b"}]))
    assert found == [Chat(said((U, "1+1?"), (A, "2")), "rows:1"), Chat(said((U, "a"), (A, "b")), "rows:2")]
    rejects = Rejects()
    bad = [CHAT, {"text": float("nan")}, {"text": "\ud800"}, {"text": {1, 2}}, 7]
    assert len(list(read_chats(bad, rejects=rejects))) == 1
    assert rejects.counts == {"row that JSON cannot hold": 4}
    with pytest.raises(ValueError, match="no path given"):
        read_chats([])


def test_datasets_is_not_imported_to_read_a_file(tmp_path):
    path = write(tmp_path / "a.jsonl", [CHAT])
    code = "import sys; from fledge.text.formats import read_chats; print(len(list(read_chats(sys.argv[1]))), sys.modules.keys())"
    shown = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("1 ") and "'fledge.text.given'" in shown
    assert not any(f"'{heavy}'" in shown for heavy in ("datasets", "pyarrow", "torch"))
