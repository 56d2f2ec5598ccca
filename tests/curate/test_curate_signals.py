"""Signals equal slow twins written for one page at a time, whatever the batch; words and languages are told apart."""

import random
import re
import zlib
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from curate_pages import real, strange, table

from fledge.curate.scan import _CHUNK, BLOCK, Scan, character_flags
from fledge.curate.signals import SIGNALS, signals

STOP = {"en": ["the", "and", "with"], "zh": ["的", "人"]}
ELLIPSES = ("...", ". . .", "…")


def measured(texts: list[str], names: list[str], language: str | list[str] = "en") -> list[dict[str, float]]:
    return signals(table(texts, language), names, STOP).select(names).to_pylist()


def words_of(text: str) -> list[str]:
    scan = Scan([text])
    return [text[start:end] for start, end in zip(scan.words.start, scan.words.end, strict=True)]


def share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def repeated(segments: list[str], characters: bool) -> float:
    """DCLM, content_filters.py, repetition_filter with granularity line or paragraph."""
    size = len if characters else (lambda segment: 1)
    found = Counter(segments)
    return share(sum(size(s) * n for s, n in found.items() if n > 1), sum(map(size, segments)))


def repeated_ngram(words: list[str], n: int) -> float:
    """The same with granularity 2 to 4."""
    found = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    times = max(found.values(), default=0)
    if times < 2:
        return 0.0
    longest = max(sum(map(len, gram)) for gram, count in found.items() if count == times)
    return times * longest / sum(map(len, words))


def covered(words: list[str], n: int, every: bool) -> int:
    """Characters in n-grams that occurred before (with `every`: that occur twice), each word counted once."""
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    count, seen, inside = Counter(grams), set(), set()
    for i, gram in enumerate(grams):
        if count[gram] > 1 if every else gram in seen:
            inside.update(range(i, i + n))
        seen.add(gram)
    return sum(len(words[i]) for i in inside)


def periodic_characters(text: str) -> tuple[int, int]:
    inside, longest = set(), 0
    for period in range(1, 14):
        for found in re.finditer(rf"(?s)(?=(.{{{period}}})\1{{31,}})", text):
            start = found.start()
            end = start + 32 * period
            while end < len(text) and text[end] == text[end - period]:
                end += 1
            inside.update(range(start, end))
            longest = max(longest, end - start)
    return len(inside), longest


def slow(text: str) -> dict[str, float]:
    words, runs, lines = words_of(text), text.split(), [line.strip() for line in text.split("\n") if line.strip()]
    plain = [word for word in words if word[0].isalnum() or character_flags()[ord(word[0])] & 3 != 2]
    paragraphs = [part.strip() for part in re.split("\n\n", text) if part.strip()]
    letters = sum(map(len, plain))
    inside, longest = periodic_characters(text)
    size = len(text.encode())
    figures = {
        "characters": len(text),
        "mean_run_length": share(sum(map(len, runs)), len(runs)),
        "runs_without_letter": share(sum(not any(c.isalpha() for c in run) for run in runs), len(runs)),
        "symbols_per_run": share(sum(text.count(symbol) for symbol in ("#", *ELLIPSES)), len(runs)),
        "bulleted_lines": share(sum(line.startswith(("●", "•", "*", "-")) for line in lines), len(lines)),
        "trailing_lines": share(sum(line.endswith(ELLIPSES) for line in lines), len(lines)),
        "very_short_lines": share(sum(len(line) <= 10 for line in text.split("\n") if line.strip()), len(lines)),
        "stop_word_count": sum(word.lower() in STOP["en"] for word in words),
        "repeated_lines": repeated(lines, False),
        "repeated_line_characters": repeated(lines, True),
        "repeated_paragraphs": repeated(paragraphs, False),
        "repeated_paragraph_characters": repeated(paragraphs, True),
        "periodic": share(inside, len(text)),
        "longest_periodic": longest,
        "compressed": len(zlib.compress(text.encode(), 1)) / size if size >= 200 else 1.0,
    }
    figures |= {f"repeated_{n}gram": repeated_ngram(plain, n) for n in (2, 3, 4)}
    figures |= {f"repeated_{n}grams": share(covered(plain, n, True), letters) for n in range(5, 11)}
    return figures | {f"duplicate_{n}grams": share(covered(words, n, False), len(text)) for n in range(5, 11)}


def periodic_texts(count: int) -> list[str]:
    rng, texts = random.Random(4), []
    for _ in range(count):
        beats = ["".join(rng.choice("mM ") for _ in range(rng.randrange(1, 16))) for _ in range(3)]
        texts.append("\n".join(beat * rng.randrange(25, 60) for beat in beats))
    return texts


def test_signals_equal_their_slow_twins():
    texts = [*strange(700, seed=5), *strange(40, seed=6, longest=400), *periodic_texts(60)]
    texts += ["word\n\n  \n\nword\n\nother\n \nword", ". . . a\nb . . .\n. .\n. ...", "a . . . . ."]
    texts += [*real()["en"][::4], *real()["zh-Hant"][::4]]
    expected = [slow(text) for text in texts]
    for text, found, right in zip(texts, measured(texts, list(expected[0])), expected, strict=True):
        wrong = {
            name: (found[name], right[name]) for name in right if found[name] != pytest.approx(right[name], rel=1e-6)
        }
        assert not wrong, text[:300]
    for name in expected[0]:
        assert len({round(figures[name], 6) for figures in expected}) > 2, f"{name} is never put to the test"


def test_every_signal_is_told_in_a_sentence_and_can_be_measured():
    found = signals(table(["The end. The end.", ""], "en"), list(SIGNALS), STOP)
    assert all(str(found.schema.field(name).type) == "float" for name in SIGNALS)
    assert all(np.isfinite(found[name].to_numpy()).all() for name in SIGNALS)
    assert all(sentence.endswith((".", ").")) for sentence in SIGNALS.values())
    with pytest.raises(ValueError, match="signals wrods: unknown; known: characters, words"):
        signals(table([""], "en"), ["wrods"], STOP)


def test_a_page_has_the_same_signals_alone_in_a_batch_and_in_another_block():
    texts = [*strange(60, seed=7), "", "\n", "m" * 3000, "word " * (BLOCK // 4), "的人" * 50, *strange(10, seed=8)]
    together = measured(texts, list(SIGNALS))
    assert together == [measured([text], list(SIGNALS))[0] for text in texts]
    assert together[::-1] == measured(texts[::-1], list(SIGNALS))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop – it's “fine”.", ["Don't", "stop", "–", "it's", "“", "fine", "”."]),
        ("well-known foo_bar x2", ["well", "-", "known", "foo_bar", "x2"]),
        ("他說：好的。OK嗎", ["他", "說", "：", "好", "的", "。", "OK", "嗎"]),
        ("カタカナ 한국어 e\u0301t\u00e9", ["カタカナ", "한국어", "e\u0301t\u00e9"]),
        ("'quoted' don''t", ["'", "quoted", "'", "don", "''", "t"]),
        ("3.14 1,000", ["3", ".", "14", "1", ",", "000"]), ("\U00020000\U0001f600", ["\U00020000", "\U0001f600"]),
        ("soft\u00adhyphen\u200bjoined", ["soft\u00adhyphen\u200bjoined"]), ("", []), (" \n", []), ("\0\0", ["\0\0"]),
    ],
)  # fmt: skip
def test_words(text: str, words: list[str]):
    assert words_of(text) == words


def test_flags_of_characters_are_pythons():
    flags = character_flags()
    for code in (*range(0x3000), *range(0x1F000, 0x1F100), 0x4E00, 0xAC00, 0xFF21, 0x20000, 0x10FFFF):
        character = chr(code)
        found = [bool(flags[code] & bit) for bit in (4, 64, 128)]
        assert found == [character.isalpha(), character.isupper(), character.isdigit()], hex(code)
        assert (flags[code] & 3 == 0) == character.isspace()
        assert bool(flags[code] & 32) == (len(f"a{character}a".splitlines()) == 2)


def test_stop_words_are_those_of_the_pages_language():
    texts = ["the and the 的 人", "The AND the", "的 人 the and", "the and", "的人"]
    languages = ["en", "en", "zh-Hant", "de", "zh"]
    found = measured(texts, ["stop_words", "stop_word_count"], languages)
    assert [(row["stop_words"], row["stop_word_count"]) for row in found] == [(2, 3), (1, 3), (2, 2), (0, 0), (2, 2)]


def test_measuring_again_replaces_the_column():
    pages = signals(table(["one two"], "en"), ["words"], STOP)
    pages = signals(pages.set_column(0, "text", [["one"]]), ["words"], STOP)
    assert pages["words"].to_pylist() == [1] and pages.column_names.count("words") == 1


def test_signals_of_slices_chunks_and_narrow_strings_are_the_same():
    texts = [*strange(50, seed=13, longest=200), "m" * 500, "嗯" * 300]
    whole = signals(table(texts, "en"), list(SIGNALS), STOP).select(list(SIGNALS))
    pages = table(texts, "en")
    parts = pa.concat_tables([pages.slice(0, 20), pages.slice(20, 0), pages.slice(20)])
    narrow = pages.set_column(0, "text", pages["text"].cast(pa.string()))
    for other in (parts, narrow):
        assert signals(other, list(SIGNALS), STOP).select(list(SIGNALS)).equals(whole)
    assert signals(pages.slice(10, 7), list(SIGNALS), STOP).select(list(SIGNALS)).equals(whole.slice(10, 7))


@pytest.mark.parametrize("characters", [1, _CHUNK - 1, _CHUNK, _CHUNK + 1, 2 * _CHUNK - 1, 3 * _CHUNK])
def test_hashes_of_blocks_that_just_fill_a_chunk(characters):
    """And one character less or more; the separator after the page counts."""
    scan = Scan([("ab" * (2 * _CHUNK))[: characters - 1]])
    assert len(scan.code) == characters
    start = np.arange(0, characters - 2, 2)
    hashes = scan.hashes(start, start + 2)
    assert len(hashes) == (characters - 1) // 2 and len(set(hashes.tolist())) == (characters > 1)
