"""Steps that take lines out of a page: C4's, DCLM-Baseline's after RefinedWeb, and lines with phrases of a list.

A rejected page keeps its whole text, so that its sample shows what was judged.

Decisions and texts equal those of datatrove's C4QualityFilter with its sentence splitter swapped for this one, but for:
- sentences are counted by their marks (`. ` `? ` `。`), where datatrove as shipped asks spaCy; "e.g. this" is two;
- sentences, words and phrases are looked for before a [1] is cut out;
- lower case is ASCII's: the Kelvin sign is no k;
- terminal punctuation, where asked for, takes 。！？ and closing quotation marks too;
- words of a line are Han characters and words where most of a page is Han, and a page without a line left is rejected.
Against DCLM's code: words are counted by `fledge.curate.scan`, "Read more..." is meant literally (there each dot stands
for any character), and more than two newlines in a row stay.

Shapes: P pages, L lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from fledge.curate.pages import Kernel, for_language, judged
from fledge.curate.rule_settings import C4Rules, DclmLineRules, PhraseRules
from fledge.curate.scan import DIGIT, ENDING, IDEOGRAPH, SYMBOL, UPPER, Lines, Scan, blocks

_CITATION = re.compile(rb"\[(?:[0-9]*|edit|citation needed)\]")
_POLICY = (
    "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies",
    "使用條款", "使用条款", "服務條款", "服务条款", "隱私權政策", "隱私政策", "隐私政策", "隐私权政策",
)  # fmt: skip
_TERMINAL = np.array([ord(c) for c in ".?!\"'。！？”’」』"], np.uint32)
_CLOSING = np.array([ord(c) for c in "\"')]}”’」』）》"], np.uint32)
_WIDE = np.array([ord(c) for c in "。！？｡．"], np.uint32)
_COUNTER = re.compile(
    r"\W*\d[,.\d]*[kmb]?\s+(?:likes|shares|comments|retweets|reposts|quotes|bookmarks|upvotes|downvotes|downloads|views"
    r"|followers)\W*"
)
_CART, _MORE, _SIGN_IN = "items in cart", "read more...", "sign-in"

R = TypeVar("R")


class Edited(NamedTuple):
    """What an editing step makes of a block of pages."""

    texts: list[str]
    removed: np.ndarray  # [P] lines taken out, blank ones aside
    reason: np.ndarray  # [P] object: None keeps
    value: np.ndarray  # [P] float64


def c4_kernel(rules: Mapping[str, C4Rules]) -> Kernel:
    """A kernel that applies C4's rules by language and counts removed lines in the column c4_lines_removed (int32)."""
    return _editing_kernel(rules, "c4_lines_removed", _c4)


def dclm_lines_kernel(rules: Mapping[str, DclmLineRules]) -> Kernel:
    """A kernel that applies DCLM's line rules by language; column dclm_lines_removed (int32)."""
    return _editing_kernel(rules, "dclm_lines_removed", _dclm)


def boilerplate_kernel(rules: Mapping[str, PhraseRules]) -> Kernel:
    """A kernel that removes short lines with listed phrases by language; column boilerplate_lines_removed (int32)."""
    return _editing_kernel(rules, "boilerplate_lines_removed", _boilerplate)


def _editing_kernel(rules: Mapping[str, R], column: str, edit: Callable[[Scan, Sequence[str], R], Edited]) -> Kernel:
    def judge(pages: pa.Table) -> pa.Table:
        texts = pages["text"].to_pylist()
        languages = np.array([language or "" for language in pages["language"].to_pylist()], object)
        removed = np.zeros(len(pages), np.int32)
        reason, value = np.full(len(pages), None, object), np.full(len(pages), np.nan)
        for language in dict.fromkeys(languages.tolist()):
            settings = for_language(rules, language)
            if settings is None:
                continue
            rows = np.flatnonzero(languages == language)
            chosen = [texts[row] for row in rows]
            for first, end in blocks(chosen):
                block = rows[first:end]
                edited = edit(Scan(chosen[first:end]), chosen[first:end], settings)
                removed[block], reason[block], value[block] = edited.removed, edited.reason, edited.value
                for row, text in zip(block.tolist(), edited.texts, strict=True):
                    texts[row] = text
        place = pages.schema.get_field_index("text")
        pages = pages.set_column(place, pages.schema.field(place), pa.array(texts, pages.schema.field(place).type))
        if column in pages.column_names:
            pages = pages.drop_columns([column])
        pages = pages.append_column(column, pa.array(removed))
        return judged(pages, pa.array(reason, pa.string()), pa.array(value, pa.float64(), from_pandas=True))

    return judge


def _boilerplate(scan: Scan, texts: Sequence[str], rules: PhraseRules) -> Edited:
    lines = scan.lines
    kept = lines.end - lines.start > rules.longest_line
    kept |= ~_mentioning(scan, lines, _ascii(scan).lower(), texts, tuple(phrase.lower() for phrase in rules.phrases))
    reason, value = np.full(scan.pages, None, object), np.full(scan.pages, np.nan)
    new = _rebuilt(scan, texts, lines, lines.start, lines.end, kept, [])
    return _edited(scan, texts, new, lines, kept, reason, value)


def _c4(scan: Scan, texts: Sequence[str], rules: C4Rules) -> Edited:
    """The order of the tests is that of C4's code: a line that is removed first cannot reject its page."""
    lines, ascii_ = scan.split_lines, _ascii(scan)
    lower = ascii_.lower()
    here = np.where(lines.blank, 0, lines.shown - lines.visible)
    start, end = lines.visible, lines.visible + here
    cut = [match.span() for match in _CITATION.finditer(ascii_)] if rules.citations and b"]" in ascii_ else []
    gone = np.zeros(len(lines.end), bool)
    if rules.longest_word:
        runs = scan.spaced
        gone[_line_of(lines, runs.start[runs.end - runs.start > rules.longest_word])] = True
    if rules.terminal_punctuation:
        gone |= ~_terminated(scan, start, _without_citations(end, cut))
    if rules.words_per_line:
        gone |= _words_per_line(scan, lines) < rules.words_per_line
    rejected = np.zeros((2, len(gone)), bool)
    if rules.lorem_ipsum:
        rejected[0] = _mentioning(scan, lines, lower, texts, ("lorem ipsum",)) & ~gone
    if rules.javascript:
        gone |= _mentioning(scan, lines, lower, texts, ("javascript",))
    if rules.curly_bracket:
        rejected[1, _line_of(lines, np.flatnonzero(scan.code == 123))] = True
        rejected[1] &= ~gone
    if rules.policy:
        gone |= _mentioning(scan, lines, lower, texts, _POLICY)
    reason, value = np.full(scan.pages, None, object), np.full(scan.pages, np.nan)
    kept = ~gone
    if rules.sentences:
        sentences = scan.per_page(lines.page[kept], _sentences(scan, start[kept], end[kept]))
        few = sentences < rules.sentences
        reason[few], value[few] = f"sentences below {rules.sentences}", sentences[few]
    for row in np.flatnonzero(rejected.any(0))[::-1].tolist():  # the first such line of a page is written last
        reason[lines.page[row]] = "lorem ipsum" if rejected[0, row] else "curly bracket"
        value[lines.page[row]] = np.nan
    new = _rebuilt(scan, texts, lines, start, end, kept, cut)
    return _edited(scan, texts, new, lines, kept, reason, value)


def _edited(
    scan: Scan,
    texts: Sequence[str],
    new: list[str],
    lines: Lines,
    kept: np.ndarray,
    reason: np.ndarray,
    value: np.ndarray,
) -> Edited:
    reason[[not text and why is None for text, why in zip(new, reason, strict=True)]] = "no line left"
    chosen = [old if why else text for old, text, why in zip(texts, new, reason, strict=True)]
    return Edited(chosen, scan.per_page(lines.page[~kept & ~lines.blank]), reason, value)


def _ascii(scan: Scan) -> bytes:
    """One byte per code point, 255 for all beyond Latin-1, so that a place in the bytes is a place in the scan."""
    return np.minimum(scan.code, 255).astype(np.uint8).tobytes()


def _line_of(lines: Lines, places: np.ndarray) -> np.ndarray:
    return np.searchsorted(lines.end, places)


def _places(text: str | bytes, phrase: str | bytes) -> list[int]:
    found, at = [], text.find(phrase)
    while at >= 0:
        found.append(at)
        at = text.find(phrase, at + 1)
    return found


def _mentioning(scan: Scan, lines: Lines, lower: bytes, texts: Sequence[str], phrases: Sequence[str]) -> np.ndarray:
    """[L] lines that hold one of the phrases, in any case."""
    found = [place for phrase in phrases if phrase.isascii() for place in _places(lower, phrase.encode())]
    others = [phrase for phrase in phrases if not phrase.isascii()]
    if others and (scan.kind == IDEOGRAPH).any():
        joined = "\0".join(texts)
        found += [place for phrase in others for place in _places(joined, phrase)]
    mask = np.zeros(len(lines.end), bool)
    mask[_line_of(lines, np.array(found, np.int64))] = True
    return mask


def _words_per_line(scan: Scan, lines: Lines) -> np.ndarray:
    """[L] runs without white space; where Han characters make up most of the page, characters and words."""
    runs, words = scan.spaced, scan.words
    count = np.searchsorted(runs.start, lines.end) - np.searchsorted(runs.start, lines.start)
    han = scan.count(np.flatnonzero(scan.kind == IDEOGRAPH)) * 2 > scan.size
    if han.any():
        spoken = words.start[scan.kind[words.start] != SYMBOL]
        finer = np.searchsorted(spoken, lines.end) - np.searchsorted(spoken, lines.start)
        count = np.where(han[lines.page], finer, count)
    return count


def _without_citations(end: np.ndarray, cut: list[tuple[int, int]]) -> np.ndarray:
    """[L] where lines end once the citations at their ends are gone."""
    if not cut:
        return end
    begins, ends = (np.array(side) for side in zip(*cut, strict=True))
    while True:
        place = np.minimum(np.searchsorted(ends, end), len(ends) - 1)
        shorter = ends[place] == end
        if not shorter.any():
            return end
        end = np.where(shorter, begins[place], end)


def _terminated(scan: Scan, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """[L] whether a line ends in terminal punctuation, but not in an ellipsis."""
    last = [scan.code[np.maximum(end - back, 0)] for back in (1, 2, 3)]
    ellipsis = (last[0] == 46) & (last[1] == 46) & (last[2] == 46) & (end - start >= 3)
    return (end > start) & np.isin(last[0], _TERMINAL) & ~ellipsis


def _sentences(scan: Scan, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """[L] sentences of each stretch of code: one, and one for each mark with more after it; none where it is empty.

    A mark counts where white space follows it and closing brackets or quotation marks; a full-width one always."""
    mark = np.flatnonzero(scan.flags & ENDING)
    mark = mark[(scan.flags[mark + 1] & ENDING) == 0]  # the last of ?!
    after = mark + 1
    for _ in range(2):
        after = after + np.isin(scan.code[np.minimum(after, len(scan.code) - 1)], _CLOSING)
    parted = (scan.kind[after] == 0) | np.isin(scan.code[mark], _WIDE)
    after = after[parted]
    return np.where(end > start, 1 + np.searchsorted(after, end) - np.searchsorted(after, start, "right"), 0)


def _rebuilt(
    scan: Scan,
    texts: Sequence[str],
    lines: Lines,
    start: np.ndarray,
    end: np.ndarray,
    kept: np.ndarray,
    cut: list[tuple[int, int]],
) -> list[str]:
    """The kept lines [start, end) of each page, joined by newlines, without the spans of `cut` and outer white space."""
    code, rows = scan.code.copy(), np.flatnonzero(kept)
    change = np.zeros(len(code) + 1, np.int8)
    np.add.at(change, start[rows], 1)
    np.add.at(change, end[rows], -1)
    mask = np.cumsum(change[:-1], dtype=np.int8) > 0
    for first, last in cut:
        mask[first:last] = False
    followed = rows[:-1][lines.page[rows[1:]] == lines.page[rows[:-1]]]
    code[lines.end[followed]] = 10
    mask[lines.end[followed]] = True
    bounds = np.append(0, np.cumsum(mask))[np.append(scan.first, len(code))]
    text = code[mask].tobytes().decode("utf-32-le")
    new = [text[a:b].strip() for a, b in zip(bounds.tolist(), bounds[1:].tolist(), strict=False)]
    return [old if old == made else made for old, made in zip(texts, new, strict=True)]


def _dclm(scan: Scan, texts: Sequence[str], rules: DclmLineRules) -> Edited:
    lines = scan.lines
    length = np.maximum(lines.end - lines.start, 1)
    gone = np.zeros(len(length), bool)
    for flag, share in ((UPPER, rules.uppercase), (DIGIT, rules.digits)):
        places = np.flatnonzero(scan.flags & flag)
        gone |= (np.searchsorted(places, lines.end) - np.searchsorted(places, lines.start)) / length > share
    runs = _words_per_line(scan, lines)
    if rules.counters:
        gone |= _counters(scan, lines, runs)
    if rules.words_per_line:
        gone |= (runs < rules.words_per_line) & (lines.end > lines.start)
    cut, words = _phrases(scan, lines, runs, gone) if rules.phrases else ([], np.zeros(scan.pages, np.int64))
    spoken = scan.words.start[scan.kind[scan.words.start] != SYMBOL]
    per_line = np.searchsorted(spoken, lines.end) - np.searchsorted(spoken, lines.start)
    before = scan.per_page(lines.page, per_line)
    lost = (scan.per_page(lines.page[gone], per_line[gone]) + words) / np.maximum(before, 1)
    reason, value = np.full(scan.pages, None, object), np.full(scan.pages, np.nan)
    much = lost > rules.removed_words
    reason[much], value[much] = f"words removed above {rules.removed_words:g}", lost[much]
    new = _rebuilt(scan, texts, lines, lines.start, lines.end, ~gone, cut)
    return _edited(scan, texts, new, lines, ~gone, reason, value)


def _counters(scan: Scan, lines: Lines, runs: np.ndarray) -> np.ndarray:
    """[L] lines such as `3 likes`: of the few that begin with a digit or symbol and are short, those that match."""
    first = np.minimum(lines.visible, len(scan.code) - 1)
    opens = ((scan.flags[first] & DIGIT) > 0) | (scan.kind[first] == SYMBOL)
    mask = np.zeros(len(runs), bool)
    for row in np.flatnonzero(opens & ~lines.blank & (lines.shown - lines.visible <= 60)).tolist():
        mask[row] = _COUNTER.fullmatch(_text(scan, lines.start[row], lines.end[row]).lower()) is not None
    return mask


def _text(scan: Scan, start: int, end: int) -> str:
    return scan.code[start:end].tobytes().decode("utf-32-le")


def _phrases(scan: Scan, lines: Lines, runs: np.ndarray, gone: np.ndarray) -> tuple[list[tuple[int, int]], np.ndarray]:
    """(spans to cut out of lines of at most 10 words, words in them [P]); a line left blank is marked in `gone`."""
    lower, cut, words = _ascii(scan).lower(), [], np.zeros(scan.pages, np.int64)
    places = [(place, phrase) for phrase in (_CART, _MORE, _SIGN_IN) for place in _places(lower, phrase.encode())]
    for place, phrase in places:
        row = int(_line_of(lines, place))
        end, start = place + len(phrase), lines.start[row]
        inside = {_CART: True, _MORE: end == lines.end[row], _SIGN_IN: place == start}[phrase]
        if gone[row] or runs[row] > 10 or not inside:
            continue
        if phrase == _SIGN_IN:
            end += int(end < lines.end[row] and scan.kind[end] == 0)
        elif place > start and scan.kind[place - 1] == 0:
            place -= 1
        cut.append((place, end))
        rest = _text(scan, start, place) + _text(scan, end, lines.end[row])
        if rest.strip():
            words[lines.page[row]] += {_CART: 3, _MORE: 2, _SIGN_IN: 2}[phrase]
        else:
            gone[row] = True
    return cut, words
