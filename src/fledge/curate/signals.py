"""Signals: figures of a page that the published rules put bounds on, measured once for a whole batch.

Definitions follow the code that made the datasets: Gopher's and FineWeb's as datatrove counts them, DCLM's as its own
code does, where the two differ under one name in the papers (see `SIGNALS`). The tokenisation is that of
`fledge.curate.scan` for all: with another one, keep rates change more than with other thresholds.

Equal to datatrove 0.10 with its tokeniser swapped for this one, but for:
- duplicate_5grams .. duplicate_10grams are the union of all later copies, as in the paper ("taking care not to count
  characters in overlapping n-grams more than once"); datatrove scans greedily and finds at most as much, so it keeps
  some pages that are rejected here, never the reverse;
- two n-grams are equal when their words are; datatrove joins the words first, so "1 23" and "12 3" are one there;
- a page without a word has the share 0 where datatrove divides by zero or takes the mean of nothing.
Equal to DCLM's code with its word splitter swapped, but for:
- stop words are counted among the words, so that "the," is one; DCLM compares what stands between white space;
- a word is punctuation when all its characters are, in DCLM when its first one is no letter or digit (_x).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa

from fledge.curate.pages import for_language
from fledge.curate.repetition import compressed, copied_segments, dclm_ngram_shares, ngram_shares, periodic_shares
from fledge.curate.scan import ENDING, LETTER, PLAIN, Lines, Scan, blocks, text_hash

SIGNALS: dict[str, str] = {
    "characters": "Characters.",
    "words": "Words that are not punctuation only (Gopher, table A1).",
    "mean_word_length": "Characters per such word; 0 without one.",
    "words_with_letter": "Share of all words, punctuation too, with a letter.",
    "hashes_per_word": "# per word, all words counted.",
    "ellipses_per_word": "... and … per word, all words counted.",
    "bullet_lines": "Share of lines whose first visible character is • or -.",
    "ellipsis_lines": "Share of lines that end in ... or ….",
    "stop_words": "Different stop words of the page's language.",
    "duplicate_lines": "Share of lines that an earlier line of the page equals (empty lines are none).",
    "duplicate_line_characters": "Share of the characters in such lines.",
    "duplicate_paragraphs": "Share of paragraphs, parted by empty lines, that an earlier one equals.",
    "duplicate_paragraph_characters": "Share of the characters in such paragraphs.",
    "top_2gram": "Share of the characters in the most frequent 2-gram of words; of equals the first.",
    "top_3gram": "The same for 3-grams.",
    "top_4gram": "The same for 4-grams.",
    "duplicate_5grams": "Share of the characters in 5-grams of words that occurred before in the page.",
    "duplicate_6grams": "The same for 6-grams.",
    "duplicate_7grams": "The same for 7-grams.",
    "duplicate_8grams": "The same for 8-grams.",
    "duplicate_9grams": "The same for 9-grams.",
    "duplicate_10grams": "The same for 10-grams.",
    "ended_lines": "Share of lines, blank ones aside, whose last character ends a sentence (FineWeb).",
    "short_lines": "Share of such lines with at most 30 characters (FineWeb).",
    "very_short_lines": "Share of such lines with at most 10 characters, for Chinese.",
    "copied_line_characters": "Characters of such lines that an earlier one equals, over all but newlines (FineWeb).",
    "newlines_per_word": "Newlines per word, all words counted (FineWeb).",
    "mean_run_length": "Characters per run without white space (DCLM's words of word_length_filter).",
    "runs_without_letter": "Share of such runs without a letter (DCLM).",
    "symbols_per_run": "#, ..., . . . and … per such run, together (DCLM).",
    "stop_word_count": "Stop words of the page's language, repeats counted, in any case (DCLM).",
    "bulleted_lines": "Share of lines, blank ones aside, that begin with ●, •, * or - (DCLM).",
    "trailing_lines": "Share of such lines that end in ..., . . . or … (DCLM).",
    "repeated_lines": "Share of lines, blank ones aside, that occur twice or more, every copy counted (DCLM).",
    "repeated_line_characters": "The same by characters.",
    "repeated_paragraphs": "The same for paragraphs.",
    "repeated_paragraph_characters": "The same by characters.",
    "repeated_2gram": "Share of the words' characters in the most frequent 2-gram that repeats; of equals the longest.",
    "repeated_3gram": "The same for 3-grams.",
    "repeated_4gram": "The same for 4-grams.",
    "repeated_5grams": "Share of the words' characters in 5-grams that occur twice or more, every copy counted (DCLM).",
    "repeated_6grams": "The same for 6-grams.",
    "repeated_7grams": "The same for 7-grams.",
    "repeated_8grams": "The same for 8-grams.",
    "repeated_9grams": "The same for 9-grams.",
    "repeated_10grams": "The same for 10-grams.",
    "compressed": "Bytes after zlib, level 1, per byte of text; 1 below 200 bytes.",
    "periodic": "Share of the characters in spans where 1 to 13 characters repeat 32 times or more.",
    "longest_periodic": "Characters of the longest such span.",
}

Measured = dict[str, np.ndarray]


def signals(pages: pa.Table, names: Sequence[str], stop_words: Mapping[str, Sequence[str]]) -> pa.Table:
    """`pages` with a float32 column for each of `names`, in place of one of that name.

    stop_words: language or family -> its words. Raises ValueError for a name that is no signal.
    """
    if unknown := [name for name in names if name not in SIGNALS]:
        raise ValueError(f"signals {', '.join(unknown)}: unknown; known: {', '.join(SIGNALS)}")
    texts = pages["text"].to_pylist()
    languages = pages["language"].to_pylist()
    wanted = set(names)
    groups = [measure for measure, measured in _GROUPS.items() if wanted & set(measured)]
    parts: list[Measured] = []
    for first, end in blocks(texts):
        scan, found = Scan(texts[first:end]), {}
        for measure in groups:
            found |= measure(scan)
        if wanted & {"stop_words", "stop_word_count"}:
            found |= _stop_word_signals(scan, languages[first:end], stop_words)
        parts.append(found)
    if "compressed" in wanted:
        ratio = compressed(pages["text"])
    for name in names:
        column = ratio if name == "compressed" else np.concatenate([part[name] for part in parts] or [np.zeros(0)])
        if name in pages.column_names:
            pages = pages.drop_columns([name])
        pages = pages.append_column(name, pa.array(column.astype(np.float32)))
    return pages


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0 where there is no whole."""
    return part / np.maximum(whole, 1)


def _holding(scan: Scan, flag: int, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """[W] which of the words code[start:end] hold a character with the flag."""
    found = (scan.flags[start] & flag) > 0
    rest = np.flatnonzero(~found & (end - start > 1))
    if len(rest):
        sums = np.cumsum((scan.flags & flag) > 0, dtype=np.int32)
        found[rest] = sums[end[rest] - 1] > sums[start[rest]]
    return found


def _stretches(places: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """(first place, length) of the stretches of ascending places that are `step` apart."""
    begins = np.flatnonzero(np.diff(places, prepend=-9) != step)
    return places[begins], np.diff(begins, append=len(places))


def _ellipses(scan: Scan) -> np.ndarray:
    """[P] how many ... (none overlapping) and …."""
    first, length = _stretches(np.flatnonzero(scan.code == 46), 1)
    long = length >= 3
    page = np.searchsorted(scan.last, first[long])
    return scan.per_page(page, length[long] // 3) + scan.count(np.flatnonzero(scan.code == 0x2026))


def _ends_in_ellipsis(scan: Scan, shown: np.ndarray) -> np.ndarray:
    """[L] whether the visible text that ends before `shown` ends in ... or …; garbage for blank lines."""
    tail = [scan.code[np.maximum(shown - back, 0)] for back in (1, 2, 3)]
    return (tail[0] == 0x2026) | ((tail[0] == 46) & (tail[1] == 46) & (tail[2] == 46))


def _word_signals(scan: Scan) -> Measured:
    words = scan.words
    length = words.end - words.start
    plain = _holding(scan, PLAIN, words.start, words.end)
    letter = _holding(scan, LETTER, words.start, words.end)
    all_words = np.diff(words.first)
    count = scan.per_page(words.page[plain])
    return {
        "characters": scan.size,
        "words": count,
        "mean_word_length": _share(scan.per_page(words.page[plain], length[plain]), count),
        "words_with_letter": _share(scan.per_page(words.page[letter]), all_words),
        "hashes_per_word": _share(scan.count(np.flatnonzero(scan.code == 35)), all_words),
        "ellipses_per_word": _share(_ellipses(scan), all_words),
        "newlines_per_word": _share(scan.count(scan.newline), all_words),
    }


def _split_line_signals(scan: Scan) -> Measured:
    lines = scan.split_lines
    blank = lines.blank
    last = np.append(lines.page[1:] != lines.page[:-1], True)
    count = scan.per_page(lines.page) - scan.per_page(lines.page[last & (lines.start == lines.end)])
    first = scan.code[np.minimum(lines.visible, len(scan.code) - 1)]
    bullet = ~blank & ((first == 0x2022) | (first == 45))
    return {
        "bullet_lines": _share(scan.per_page(lines.page[bullet]), count),
        "ellipsis_lines": _share(scan.per_page(lines.page[~blank & _ends_in_ellipsis(scan, lines.shown)]), count),
    }


def _line_signals(scan: Scan) -> Measured:
    lines = scan.lines
    blank, length = lines.blank, lines.end - lines.start
    page = lines.page[~blank]
    count, size = scan.per_page(page), length[~blank]
    ended = (scan.flags[lines.end[~blank] - 1] & ENDING) > 0
    return {
        "ended_lines": _share(scan.per_page(page[ended]), count),
        "short_lines": _share(scan.per_page(page[size <= 30]), count),
        "very_short_lines": _share(scan.per_page(page[size <= 10]), count),
    }


def _stop_word_signals(scan: Scan, languages: Sequence[str], stop_words: Mapping[str, Sequence[str]]) -> Measured:
    different, count = np.zeros(scan.pages, np.int64), np.zeros(scan.pages, np.int64)
    for language in dict.fromkeys(languages):
        listed = for_language(stop_words, language or "")
        if not listed:
            continue
        spelled, exact, word = _stop_hashes(tuple(listed))
        hashes = scan.word_hashes
        likely = np.flatnonzero(_first_bits(spelled)[hashes >> np.uint64(48)])
        place = np.minimum(np.searchsorted(spelled, hashes[likely]), len(spelled) - 1)
        found = spelled[place] == hashes[likely]
        likely, place = likely[found], place[found]
        page = scan.words.page[likely]
        own = np.fromiter((given == language for given in languages), bool, scan.pages)
        count += np.where(own, scan.per_page(page), 0)
        once = np.zeros((scan.pages, len(listed)), bool)
        once[page[exact[place]], word[place][exact[place]]] = True
        different += np.where(own, once.sum(1), 0)
    return {"stop_words": different, "stop_word_count": count}


@lru_cache(maxsize=64)
def _stop_hashes(words: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(hashes of all spellings, ascending; which are spelled as listed; number of the word), each [S]."""
    spellings = {
        text_hash(form): (form == word, number)
        for number, word in enumerate(words)
        for form in (word.upper(), word.capitalize(), word)
    }
    hashes = np.array(sorted(spellings), np.uint64)
    exact, number = zip(*(spellings[int(value)] for value in hashes), strict=True)
    return hashes, np.array(exact), np.array(number)


def _first_bits(hashes: np.ndarray) -> np.ndarray:
    """bool [65536]: which values the first 16 bits take; rules most words out at once."""
    table = np.zeros(1 << 16, bool)
    table[hashes >> np.uint64(48)] = True
    return table


def _duplicate_signals(scan: Scan) -> Measured:
    """Gopher's lines and paragraphs as datatrove splits them: at runs of newlines, and at runs of two or more."""
    lines, whole = scan.lines, np.maximum(scan.size, 1)
    written = lines.end > lines.start
    start, end, page = lines.start[written], lines.end[written], lines.page[written]
    later, _ = copied_segments(page, scan.hashes(start, end))
    size = (end - start)[later]
    # A page that begins or ends with a newline has an empty line there, and two of them are copies.
    opens = ~written[np.searchsorted(lines.page, np.arange(scan.pages))] & (scan.size > 0)
    closes = ~written[np.searchsorted(lines.page, np.arange(scan.pages), "right") - 1] & (scan.size > 0)
    count = scan.per_page(page) + opens + closes
    seen = ~lines.blank[written][later]  # FineWeb leaves lines of white space out
    starts, ends, of = _paragraphs(scan, lines)
    again, _ = copied_segments(of, scan.hashes(starts, ends))
    return {
        "duplicate_lines": _share(scan.per_page(page[later]) + (opens & closes), count),
        "duplicate_line_characters": scan.per_page(page[later], size) / whole,
        "copied_line_characters": _share(
            scan.per_page(page[later][seen], size[seen]), scan.size - scan.count(scan.newline)
        ),
        "duplicate_paragraphs": _share(scan.per_page(of[again]), scan.per_page(of)),
        "duplicate_paragraph_characters": scan.per_page(of[again], (ends - starts)[again]) / whole,
    }


def _paragraphs(scan: Scan, lines: Lines) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(start, end, page) of the runs of lines that are not empty, in pages without their outer white space."""
    opening = np.searchsorted(lines.page, np.arange(scan.pages))
    closing = np.searchsorted(lines.page, np.arange(scan.pages), "right") - 1
    start = np.maximum(lines.start, lines.visible[opening][lines.page])
    end = np.minimum(lines.end, lines.shown[closing][lines.page])
    inside = end > start
    joined = inside[1:] & inside[:-1] & (lines.page[1:] == lines.page[:-1])
    begins, stops = inside.copy(), inside.copy()
    begins[1:] &= ~joined
    stops[:-1] &= ~joined
    return start[begins], end[stops], lines.page[begins]


def _dclm_signals(scan: Scan) -> Measured:
    runs, lines = scan.spaced, scan.lines
    count = np.diff(runs.first)
    letter = _holding(scan, LETTER, runs.start, runs.end)
    dot = scan.code == 46
    spread = np.flatnonzero(dot[:-4] & dot[2:-2] & dot[4:] & (scan.code[1:-3] == 32) & (scan.code[3:-1] == 32))
    first, length = _stretches(spread, 2)
    symbols = scan.count(np.flatnonzero(scan.code == 35)) + _ellipses(scan)
    symbols = symbols + scan.per_page(np.searchsorted(scan.last, first), -(-length // 3))
    visible = ~lines.blank
    start, end, page = lines.visible[visible], lines.shown[visible], lines.page[visible]
    bullet = np.isin(scan.code[start], [0x25CF, 0x2022, 42, 45])
    trailing = _ends_in_ellipsis(scan, end)
    trailing |= np.isin(end - 5, spread) & (end - 5 >= start)
    number = scan.per_page(page)
    return {
        "mean_run_length": _share(scan.per_page(runs.page, runs.end - runs.start), count),
        "runs_without_letter": _share(scan.per_page(runs.page[~letter]), count),
        "symbols_per_run": _share(symbols, count),
        "bulleted_lines": _share(scan.per_page(page[bullet]), number),
        "trailing_lines": _share(scan.per_page(page[trailing]), number),
    }


def _dclm_repetition(scan: Scan) -> Measured:
    """Repeated lines and paragraphs as DCLM's repetition_filter counts them; a page of one segment has none."""
    lines, runs, found = scan.lines, scan.spaced, {}
    visible = ~lines.blank
    begin, stop, of = _paragraphs(scan, lines)
    begin = np.append(runs.start, len(scan.code))[np.searchsorted(runs.start, begin)]
    stop = np.append(runs.end, 0)[np.searchsorted(runs.start, stop) - 1]
    there = begin < stop
    segments = {
        "line": (lines.visible[visible], lines.shown[visible], lines.page[visible]),
        "paragraph": (begin[there], stop[there], of[there]),
    }
    for name, (start, end, page) in segments.items():
        _, copied = copied_segments(page, scan.hashes(start, end))
        size = end - start
        found[f"repeated_{name}s"] = _share(scan.per_page(page[copied]), scan.per_page(page))
        found[f"repeated_{name}_characters"] = _share(
            scan.per_page(page[copied], size[copied]), scan.per_page(page, size)
        )
    return found


_N = range(5, 11)
_GROUPS: dict[Callable[[Scan], Measured], tuple[str, ...]] = {
    _word_signals: (
        "characters", "words", "mean_word_length", "words_with_letter", "hashes_per_word", "ellipses_per_word",
        "newlines_per_word",
    ),
    _split_line_signals: ("bullet_lines", "ellipsis_lines"),
    _line_signals: ("ended_lines", "short_lines", "very_short_lines"),
    _duplicate_signals: (
        "duplicate_lines", "duplicate_line_characters", "copied_line_characters", "duplicate_paragraphs",
        "duplicate_paragraph_characters",
    ),
    ngram_shares: ("top_2gram", "top_3gram", "top_4gram", *(f"duplicate_{n}grams" for n in _N)),
    _dclm_signals: ("mean_run_length", "runs_without_letter", "symbols_per_run", "bulleted_lines", "trailing_lines"),
    _dclm_repetition: (
        "repeated_lines", "repeated_line_characters", "repeated_paragraphs", "repeated_paragraph_characters",
    ),
    dclm_ngram_shares: ("repeated_2gram", "repeated_3gram", "repeated_4gram", *(f"repeated_{n}grams" for n in _N)),
    periodic_shares: ("periodic", "longest_periodic"),
}  # fmt: skip
"What is measured together, and the signals it gives."
