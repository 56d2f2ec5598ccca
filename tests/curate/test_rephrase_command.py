"""`fledge rephrase` end to end: against an endpoint and a checkpoint, killed and continued, and read again."""

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest

from fledge.core.checkpoint import canonical_json, save_checkpoint
from fledge.core.config import build
from fledge.curate import rephrase_command
from fledge.curate.funnel import Funnel
from fledge.curate.rephrase import Passage, Rephrased
from fledge.curate.rephrase_command import RephraseOptions, Written, run, write_all
from fledge.curate.shards import Curated, write_manifest, write_shard
from fledge.curate.showing import show
from fledge.text.curated import read_manifest
from fledge.text.readers import read_documents

ENGLISH = "The river Tesk is {n} km long and flows past Belmora into the sea. Mira Kolden was born in Belmora in {n}."
CHINESE = "泰斯克河全長{n}公里，流過貝爾莫拉，然後入海。米拉·科爾登在貝爾莫拉住了很多年，她寫了《寂靜的港口》。"
GERMAN = "Der Fluss ist sehr lang und fließt durch die Stadt bis in das große Meer, Nummer {n}."


def pages(count: int) -> list[dict]:
    """Pages in three languages; every fourth is German, which has no prompt."""
    made = []
    for n in range(count):
        template, language = ((ENGLISH, "en"), (CHINESE, "zh-Hant"), (ENGLISH, "en"), (GERMAN, "de"))[n % 4]
        text = template.format(n=1000 + n)
        made.append({"text": text, "id": f"{n:016x}", "source": f"crawl/{n}.html", "url": None, "language": language})
    return made


@pytest.fixture
def curated(tmp_path) -> Path:
    """A curated folder of two shards."""
    folder, rows = tmp_path / "clean", pages(24)
    shards = [
        write_shard(folder / "data" / f"part-{k:05d}.parquet", [pa.Table.from_pylist(rows[12 * k : 12 * k + 12])])
        for k in range(2)
    ]
    write_manifest(folder, shards, facts={"stage": "test"})
    return folder


def passage_of(asked: str) -> str:
    return asked.split("\n\n", 1)[1]


def other_words(text: str) -> str:
    """As a rephraser would, without its wits: another word behind every third."""
    if text.isascii():
        words = text.split()
        return " ".join(w + " indeed" * (i % 3 == 2) for i, w in enumerate(words))
    return "".join(
        c + "呢" * (i % 3 == 2 and c not in "《寂靜的港口》0123456789·米拉科爾登貝莫") for i, c in enumerate(text)
    )


def options(folder: Path, out: Path, server=None, **over) -> RephraseOptions:
    given = {"inputs": [str(folder)], "out": str(out), "batch": 4, "concurrency": 2}
    return build(RephraseOptions, given | ({"endpoint": f"{server.url}#m"} if server else {}) | over)


def rows(folder: Path, rejected: bool = False) -> list[dict]:
    return [row for table in Curated.open(folder).tables(rejected=rejected) for row in table.to_pylist()]


def test_curated_text_through_an_endpoint(curated, tmp_path, endpoint, capfd):
    def answer(asked: str, number: int):
        text = passage_of(asked)
        if "1002" in text:
            return "I'm sorry, but I cannot rephrase this."
        if "1004" in text:
            return "Here is a paraphrase:\n" + other_words(text)
        if "1006" in text:
            return other_words(text).replace("Kolden", "Harlan") + " She was 33."
        if "1008" in text:
            return text
        if "1010" in text:
            choice = {"message": {"content": other_words(text)}, "finish_reason": "length"}
            return 200, {}, json.dumps({"choices": [choice]})
        return other_words(text)

    server, out = endpoint(answer), tmp_path / "synth"
    assert run(options(curated, out, server)) == out
    kept, lost = rows(out), rows(out, rejected=True)
    sent = [body["messages"][1]["content"] for _, _, body in server.requests]
    assert len(sent) == 18 and not any("Fluss" in text for text in sent), (
        "nobody is asked for a language without prompt"
    )
    assert all(("請把" in text) == ("公里" in text) for text in sent), "each is asked in its own language"

    assert len(kept) + len(lost) == 24
    assert Counter(row["reason"] for row in lost) == {
        "no prompt for its language": 6, "refusal": 1, "new numbers": 1, "copy of the passage": 1, "truncated": 1,
    }  # fmt: skip
    assert {row["step"] for row in lost} == {"language", "rephrase"}
    by_page = {row["of"]: row for row in kept}
    assert list(by_page) == sorted(by_page), "in the order of the pages"
    first, stripped = by_page[f"{0:016x}"], by_page[f"{4:016x}"]
    assert first["text"] == other_words(pages(1)[0]["text"]) and not first["stripped"]
    assert stripped["stripped"] and stripped["text"].startswith("The river")
    assert (first["source"], first["language"], first["style"]) == ("crawl/0.html", "en", "wiki")
    assert first["id"] != first["of"] and len({row["id"] for row in kept}) == len(kept)
    invented = next(row for row in lost if row["reason"] == "new numbers")
    assert invented["found"] == "33" and "Harlan" in invented["text"] and invented["passage"] == pages(7)[6]["text"]

    manifest = read_manifest(out)
    assert manifest.facts["rephraser"] == "endpoint m" and manifest.facts["options"]["style"] == "wiki"
    assert manifest.facts["inputs"][0]["sha256"] is not None
    funnel = msgspec.convert(manifest.facts["funnel"], Funnel)
    assert (funnel.came().pages, funnel.after("rephrase").pages, funnel.counted) == (24, 14, {"stripped": 1})
    assert not (out / "work").exists()
    assert "14 of 24 passages rephrased" in capfd.readouterr().err
    show(out)
    assert "[33] The river" in capfd.readouterr().out

    texts = [document.text for document in read_documents([str(out)])]
    assert texts == [row["text"] for row in kept], "every reader of text reads it, without the rejects"
    run(options(curated, out, server))
    assert len(server.requests) == 18, "finished: nothing is asked again"


def test_questions_and_long_pages(tmp_path, endpoint, sentences):
    """Plain text is cut into passages at sentence ends; their languages are found."""
    (tmp_path / "text").mkdir()
    for n in range(3):
        (tmp_path / "text" / f"{n}.txt").write_text(" ".join(s for s in sentences if s.isascii()) + f" Page {n}.")
    (tmp_path / "text" / "zh.txt").write_text("".join(s for s in sentences if not s.isascii()))

    def answer(asked: str, number: int) -> str:
        question = ("Question: ", "\nAnswer: ") if passage_of(asked).isascii() else ("問題：", "\n回答：")
        return question[0] + other_words(passage_of(asked)) + question[1] + passage_of(asked)[:9]

    server = endpoint(answer)
    run(options(tmp_path / "text", tmp_path / "qa", server, style="qa", chunk_tokens=30))
    kept = rows(tmp_path / "qa")
    assert {row["language"] for row in kept} == {"en", "zh-Hant"} and {row["style"] for row in kept} == {"qa"}
    assert len({row["of"] for row in kept}) == 4 < len(kept)
    assert all("multiple tags" in m or "多組" in m for m in (b["messages"][1]["content"] for *_, b in server.requests))
    few = endpoint(answer)
    run(options(tmp_path / "text", tmp_path / "few", few, style="qa", chunk_tokens=30, passages=3))
    assert len(few.requests) == 3


# ---- stopped and continued


def same_bytes(one: Path, other: Path) -> None:
    """Equal but for the recipe, the address and the folder's own name."""
    for name in sorted(p.relative_to(one) for p in one.rglob("*.parquet")):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    facts = [read_manifest(folder).facts for folder in (one, other)]
    assert facts[0]["funnel"] == facts[1]["funnel"]


def test_a_failure_in_the_middle_loses_one_batch_and_the_run_goes_on(curated, tmp_path, endpoint):
    good = endpoint(lambda asked, number: other_words(passage_of(asked)))
    run(options(curated, tmp_path / "whole", good))
    failing = endpoint(lambda asked, n: (404, {}, "gone") if n == 9 else other_words(passage_of(asked)))
    out = tmp_path / "cut"
    with pytest.raises(ValueError, match="HTTP 404"):
        run(options(curated, out, failing))
    assert not (out / "manifest.json").exists() and not (out / "data").exists()
    written = (out / "work" / "written.jsonl").read_bytes()
    assert written.count(b"\n") in (8, 12)

    (out / "work" / "written.jsonl").write_bytes(written + b'{"passage": {"id": "torn')  # as a kill leaves it
    again = endpoint(lambda asked, number: other_words(passage_of(asked)))
    run(options(curated, out, again, concurrency=3))
    done = sum(json.loads(line)["passage"]["language"] != "de" for line in written.splitlines())
    assert len(again.requests) == 18 - done, "what was written is not asked again, at another address of the same model"
    same_bytes(tmp_path / "whole", out)


def test_killed_at_any_moment_it_ends_as_if_nobody_had_disturbed_it(curated, tmp_path, endpoint):
    def slow(asked: str, number: int) -> str:
        time.sleep(0.05)
        return other_words(passage_of(asked))

    server = endpoint(slow)
    run(options(curated, tmp_path / "whole", server))
    asked_once, out = len(server.requests), tmp_path / "killed"
    log, kills = out / "work" / "written.jsonl", 0
    for lines in (4, 12):
        child = os.fork()
        if not child:
            try:
                run(options(curated, out, server))
            finally:
                os._exit(1)  # it was to be killed before
        while not (log.exists() and log.read_bytes().count(b"\n") >= lines):
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert kills == 2 and not (out / "manifest.json").exists()
    run(options(curated, out, server))
    same_bytes(tmp_path / "whole", out)
    assert len(server.requests) - asked_once <= 18 + 4 * kills, "each kill costs a batch at most"


def test_changed_input_another_model_and_another_recipe_are_refused(curated, tmp_path, endpoint):
    server, out = endpoint(lambda asked, n: (404, {}, "x") if n > 7 else other_words(passage_of(asked))), tmp_path / "o"
    with pytest.raises(ValueError, match="HTTP 404"):
        run(options(curated, out, server))
    with pytest.raises(ValueError, match=r"holds another run; it differs in\n.*style"):
        run(options(curated, out, server, style="easy"))
    with pytest.raises(ValueError, match=r"holds another run; it differs in\n.*endpoint"):
        run(options(curated, out, None, endpoint=f"{server.url}#other"))
    changed = pages(24)
    changed[1]["text"] += "了"
    shard = write_shard(curated / "data" / "part-00000.parquet", [pa.Table.from_pylist(changed)])
    write_manifest(curated, [shard], facts={})
    with pytest.raises(ValueError, match=r"written.jsonl line 2 .* the input changed since this began"):
        run(options(curated, out, server))


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "written.jsonl"
    asked = [Passage(f"{n:016x}", "p", "s", "en", "text") for n in range(3)]
    path.write_bytes(canonical_json(Written(asked[0], "a", "stop")) + b"\0\0\0\n")
    with pytest.raises(ValueError, match=r"written.jsonl line 2 is damaged .*: delete the file from that line on"):
        write_all(asked, lambda group: [Rephrased("b")] * len(group), path, 2)
    path.write_bytes(canonical_json(Written(asked[0], "a", "stop")))
    assert write_all(asked, lambda group: [Rephrased("b")] * len(group), path, 2) == 3
    with pytest.raises(ValueError, match="the input changed"):
        write_all(asked[:2], lambda group: [Rephrased("b")] * len(group), path, 2)


# ---- a checkpoint writes


@pytest.fixture
def checkpoint(tmp_path, make_model, tokenizer) -> str:
    model = make_model(spread=0.2, vocab_size=tokenizer.vocab_size, context_tokens=512)
    card = {"stage": "sft", "parent": None, "model": msgspec.to_builtins(model.config)}
    save_checkpoint(
        tmp_path / "sft", 1, model=dict(model.named_parameters()), optimizer={}, state={}, card=card,
        tokenizer=tokenizer.json,
    )  # fmt: skip
    return str(tmp_path / "sft")


def test_a_checkpoint_rephrases_and_a_resume_gives_the_same_bytes(curated, tmp_path, checkpoint, monkeypatch):
    """A random model: what it writes is rejected, which is what the checks are for."""
    own = {"model": checkpoint, "chunk_tokens": 40, "sampling": {"max_tokens": 24, "temperature": 1.0, "seed": 5}}
    loose = {"checks": {"shortest": 0.0, "longest": 100.0, "copied": None, "names": False, "numbers": False}}
    run(options(curated, tmp_path / "whole", **own, **loose))
    everything = rows(tmp_path / "whole") + rows(tmp_path / "whole", rejected=True)
    assert len(everything) > 24 and len({row["text"] for row in everything}) > 15
    assert read_manifest(tmp_path / "whole").facts["rephraser"].startswith("checkpoint ")

    write = rephrase_command.ModelRephraser.__call__
    calls = []

    def failing(self, asked):
        calls.append(len(asked))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(self, asked)

    monkeypatch.setattr(rephrase_command.ModelRephraser, "__call__", failing)
    with pytest.raises(KeyboardInterrupt):
        run(options(curated, tmp_path / "cut", **own, **loose))
    run(options(curated, tmp_path / "cut", **own, **loose))
    same_bytes(tmp_path / "whole", tmp_path / "cut")


def test_what_a_checkpoint_cannot_do_is_told_before_the_work(curated, tmp_path, checkpoint, make_model, tokenizer):
    with pytest.raises(
        ValueError, match=r"reads 512 tokens: .* an answer of 24 there is room for \d+, chunk_tokens is 300"
    ):
        run(options(curated, tmp_path / "a", model=checkpoint, sampling={"max_tokens": 24}))
    with pytest.raises(ValueError, match=r"room for 0, .* set a smaller sampling.max_tokens"):
        run(options(curated, tmp_path / "b", model=checkpoint, sampling={"max_tokens": 500}))
    model = make_model(seed=1, spread=0.2, vocab_size=tokenizer.vocab_size, context_tokens=512)
    own = {"model": checkpoint, "chunk_tokens": 40, "sampling": {"max_tokens": 8}}
    (tmp_path / "c" / "work").mkdir(parents=True)
    (tmp_path / "c" / "work" / "rephraser.json").write_text('"checkpoint of yesterday"')
    with pytest.raises(ValueError, match="was begun by checkpoint of yesterday, now checkpoint"):
        run(options(curated, tmp_path / "c", **own))
    assert model is not None


def test_impossible_settings_are_told_at_once(tmp_path):
    with pytest.raises(ValueError) as told:
        options(tmp_path, tmp_path, batch=0, chunk_tokens=0, checks={"copied": 3}, sampling={"top_k": 3})
    for part in ("model and endpoint: set one", "batch = 0", "chunk_tokens = 0", "checks.copied = 3"):
        assert part in str(told.value)
    with pytest.raises(ValueError, match="endpoint model: empty; write URL#MODEL"):
        options(tmp_path, tmp_path, endpoint="http://a/v1")
    with pytest.raises(ValueError, match=r"sampling.top_k: no endpoint takes it"):
        options(tmp_path, tmp_path, endpoint="http://a/v1#m", sampling={"top_k": 3})
    with pytest.raises(ValueError, match="style"):
        options(tmp_path, tmp_path, endpoint="http://a/v1#m", style="poem")


def test_nothing_to_rephrase(tmp_path, endpoint):
    (tmp_path / "empty.jsonl").write_text('{"text": " "}\n')
    with pytest.raises(ValueError, match=r"0 usable passages in .*empty.jsonl: 1 dropped:\n  1 blank"):
        run(options(tmp_path / "empty.jsonl", tmp_path / "out", endpoint(lambda asked, n: "x")))
