"""Shards: the same bytes for the same pages, whole or not there, and a folder whose damage is named."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.curate.pages import BATCH_PAGES, PAGE
from fledge.curate.shards import (
    Curated,
    ShardWriter,
    aligned,
    characters,
    estimated_tokens,
    write_manifest,
    write_shard,
)
from fledge.text.readers import Rejects, read_documents


def pages(texts: list[str]) -> pa.Table:
    rows = [{"text": text, "id": str(i), "source": f"a:{i}", "language": "en"} for i, text in enumerate(texts)]
    return pa.Table.from_pylist(rows, PAGE)


def slowly(text: str) -> int:
    """estimated_tokens, character by character."""
    count, after_space = 0, True
    for character in text:
        han = 0x4000 <= ord(character) <= 0x9FFF
        space = ord(character) <= 0x20
        count += han or (after_space and not space)
        after_space = space
    return count


@given(st.lists(st.text(alphabet=st.sampled_from("ab 中文。\n\t😀é"), max_size=12), max_size=6))
def test_tokens_and_characters_are_those_of_a_plain_count(texts):
    column = pa.chunked_array([pa.array(texts, pa.large_string())])
    assert estimated_tokens(column).tolist() == [slowly(text) for text in texts]
    assert characters(column).tolist() == [len(text) for text in texts]
    assert estimated_tokens(column.slice(1)).tolist() == [slowly(text) for text in texts[1:]]


def test_equal_pages_give_equal_bytes_however_they_are_cut(tmp_path):
    table = pages([f"page number {i}" for i in range(3 * BATCH_PAGES)])
    whole = write_shard(tmp_path / "data" / "a.parquet", [table.slice(i, 1024) for i in range(0, len(table), 1024)])
    again = write_shard(tmp_path / "data" / "b.parquet", [table.slice(i, 256) for i in range(0, len(table), 256)])
    assert (whole.sha256, whole.bytes) == (again.sha256, again.bytes)
    assert (whole.pages, whole.tokens) == (len(table), 3 * len(table)) and whole.file == "data/a.parquet"
    assert pq.ParquetFile(tmp_path / "data" / "a.parquet").num_row_groups == 3
    assert pq.read_table(tmp_path / "data" / "a.parquet").equals(table)


def test_columns_that_a_table_lacks_are_null_and_others_are_our_bug():
    schema = pa.schema([*PAGE, ("quality", pa.float32())])
    assert aligned(pages(["x"]), schema)["quality"].to_pylist() == [None]
    with pytest.raises(AssertionError, match="quality"):
        aligned(pages(["x"]).append_column("quality", pa.array([0.5])), PAGE)


def test_a_writer_left_by_an_error_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), ShardWriter(tmp_path / "data" / "a.parquet", PAGE) as writer:
        writer.write(pages(["x"]))
        raise KeyError
    assert not os.listdir(tmp_path / "data")


@pytest.fixture
def folder(tmp_path):
    """Two shards, a rejected one, and what must not be read as text."""
    tmp_path = tmp_path / "all" / "clean"
    shards = [write_shard(tmp_path / "data" / f"part-{i}.parquet", [pages([f"text {i}", "other"])]) for i in range(2)]
    rejected = [write_shard(tmp_path / "rejected" / "part-0.parquet", [pages(["rubbish"])])]
    write_manifest(tmp_path, shards, rejected=rejected, facts={"recipe": "none"})
    (tmp_path / "notes.txt").write_text("not of the manifest")
    return tmp_path


def test_readers_take_the_kept_shards_alone(folder):
    texts = ["text 0", "other", "text 1", "other"]
    assert list(Curated.open(folder).texts()) == texts and Curated.open(folder).pages_count == 4
    rejects = Rejects()
    assert [document.text for document in read_documents(folder, rejects=rejects)] == texts
    assert [document.text for document in read_documents(folder.parent, rejects=rejects)] == texts  # one among others
    assert rejects.total == 0
    rejected = next(Curated.open(folder).tables(["text"], rejected=True))
    assert rejected["text"].to_pylist() == ["rubbish"]


def flip(path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["flipped", "swapped", "cut", "gone"])
def test_a_damaged_shard_is_named(folder, damage):
    path = folder / "data" / "part-1.parquet"
    if damage == "flipped":
        flip(path, path.stat().st_size // 2)
    elif damage == "swapped":  # for one of equal size
        path.write_bytes(path.read_bytes()[::-1])
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    else:
        path.unlink()
    for read in (lambda: list(Curated.open(folder).texts()), lambda: list(read_documents(folder))):
        with pytest.raises(ValueError, match=r"part-1\.parquet is (not the shard that was written|missing)"):
            read()


def test_a_manifest_of_another_version_or_none_is_an_error(folder):
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace("curated text 1", "curated text 2"))
    with pytest.raises(ValueError, match="its format is 'fledge curated text 2'"):
        list(read_documents(folder))
    manifest.unlink()
    with pytest.raises(ValueError, match="holds no curated text"):
        Curated.open(folder)
    (folder / "work").mkdir()
    (folder / "work" / "plan.json").write_text("{}")
    with pytest.raises(ValueError, match="is not finished: `fledge resume"):
        list(read_documents(folder))


def test_null_texts_count_nothing():
    column = pa.chunked_array([pa.array(["ab cd", None], pa.large_string())])
    assert np.array_equal(estimated_tokens(column), [2, 0]) and np.array_equal(characters(column), [5, 0])


def test_blocks_of_bytes_do_not_show_in_the_counts(monkeypatch):
    texts = ["one two  three", "", "中文 four", " five", "六", "seven eight"]
    column = pa.chunked_array([pa.array(texts, pa.large_string())])
    for block in range(1, 9):
        monkeypatch.setattr("fledge.curate.shards._BLOCK_BYTES", block)
        assert estimated_tokens(column).tolist() == [slowly(text) for text in texts]
