"""The same decisions as datatrove, rule by rule, with its tokenisers swapped for ours; every difference is a known one."""

import random
from collections.abc import Callable

import pytest
import regex
from curate_pages import real, strange, table

from fledge.curate.lines import c4_kernel
from fledge.curate.recipes import Recipe, load_recipe_of
from fledge.curate.rule_settings import C4Rules
from fledge.curate.rules import kernel_of
from fledge.curate.variants import HAN

datatrove = pytest.importorskip("datatrove", reason="datatrove is not installed")
from datatrove.data import Document  # noqa: E402
from datatrove.pipeline.filters import (  # noqa: E402
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.utils.word_tokenizers import WordTokenizer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
_HAN = "".join(f"\\U{first:08x}-\\U{end - 1:08x}" for first, end in HAN)
_RUN = rf"[\p{{L}}\p{{N}}\p{{M}}\p{{Cf}}_--[{_HAN}]]"
_WORD = regex.compile(rf"(?V1)[{_HAN}]|{_RUN}+(?:['’]{_RUN}+)*|(?:(?!{_RUN}|[{_HAN}])\S)+")
_SENTENCE = regex.compile(
    r"""[。！？｡．](?![.!?。！？…])["')\]}”’」』）》]{0,2}|[.!?](?![.!?。！？])["')\]}”’」』）》]{0,2}(?=\s)"""
)
N_GRAMS = "duplicated_"


class PlainTokenizer(WordTokenizer):
    """Our words and sentences as regular expressions."""

    def word_tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        return [text[first:end] for first, end in self.span_tokenize(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        ends = [found.end() for found in _SENTENCE.finditer(text)]
        ends += [len(text)] * (not ends or ends[-1] < len(text))
        return list(zip([0, *ends[:-1]], ends, strict=True))


OFF_REPETITION = dict(
    dup_line_frac=None,
    dup_para_frac=None,
    dup_line_char_frac=None,
    dup_para_char_frac=None,
    top_n_grams=(),
    dup_n_grams=(),
)
OFF_QUALITY = dict(
    min_doc_words=None, max_doc_words=None, min_avg_word_length=None, max_avg_word_length=None,
    max_symbol_word_ratio=None, max_bullet_lines_ratio=None, max_ellipsis_lines_ratio=None,
    max_non_alpha_words_ratio=None, min_stop_words=None,
)  # fmt: skip
OFF_FINEWEB = dict(line_punct_thr=0, short_line_thr=2, char_duplicates_ratio=2, new_line_ratio=1e9)
STOP = ["the", "be", "to", "of", "and", "that", "have", "with"]


def _filter(kind: Callable, off: dict, **on):
    if kind is GopherQualityFilter:
        on["stop_words"] = STOP
    return kind(**{**off, **on}, language=PlainTokenizer())


RULES = {  # our signal -> bounds and datatrove's filter with only that rule on
    "duplicate_lines": lambda t: ([0, t], _filter(GopherRepetitionFilter, OFF_REPETITION, dup_line_frac=t)),
    "duplicate_paragraphs": lambda t: ([0, t], _filter(GopherRepetitionFilter, OFF_REPETITION, dup_para_frac=t)),
    "duplicate_line_characters": lambda t: ([0, t], _filter(GopherRepetitionFilter, OFF_REPETITION, dup_line_char_frac=t)),
    "duplicate_paragraph_characters": lambda t: (
        [0, t], _filter(GopherRepetitionFilter, OFF_REPETITION, dup_para_char_frac=t),
    ),
    **{
        f"top_{n}gram": lambda t, n=n: ([0, t], _filter(GopherRepetitionFilter, OFF_REPETITION, top_n_grams=((n, t),)))
        for n in (2, 3, 4)
    },
    "words": lambda t: ([int(t * 20), 10**9], _filter(GopherQualityFilter, OFF_QUALITY, min_doc_words=int(t * 20))),
    "mean_word_length": lambda t: (
        [20 * t, 21 * t],
        _filter(GopherQualityFilter, OFF_QUALITY, min_avg_word_length=20 * t, max_avg_word_length=21 * t),
    ),
    "words_with_letter": lambda t: ([1 - t, 1], _filter(GopherQualityFilter, OFF_QUALITY, max_non_alpha_words_ratio=1 - t)),
    "bullet_lines": lambda t: ([0, t], _filter(GopherQualityFilter, OFF_QUALITY, max_bullet_lines_ratio=t)),
    "ellipsis_lines": lambda t: ([0, t], _filter(GopherQualityFilter, OFF_QUALITY, max_ellipsis_lines_ratio=t)),
    "stop_words": lambda t: ([2, 99], _filter(GopherQualityFilter, OFF_QUALITY, min_stop_words=2)),
    "ended_lines": lambda t: ([t, 1], _filter(FineWebQualityFilter, OFF_FINEWEB, line_punct_thr=t)),
    "short_lines": lambda t: ([0, t], _filter(FineWebQualityFilter, OFF_FINEWEB, short_line_thr=t)),
    "copied_line_characters": lambda t: ([0, t], _filter(FineWebQualityFilter, OFF_FINEWEB, char_duplicates_ratio=t)),
    "newlines_per_word": lambda t: ([0, t], _filter(FineWebQualityFilter, OFF_FINEWEB, new_line_ratio=t)),
}  # fmt: skip


def decisions(peer, texts: list[str]) -> list[bool]:
    return [peer.filter(Document(text=text, id="0")) is True for text in texts]


def ours(bounds: dict[str, list[float]], texts: list[str], stop_words: dict | None = None) -> list[bool]:
    recipe = Recipe(name="x", paper="x", steps=["a"], rules={"a": {"*": bounds}}, stop_words=stop_words or {"*": STOP})
    return [reason is None for reason in kernel_of(recipe, "a")(table(texts, "en"))["reason"].to_pylist()]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [*strange(1500, seed=1), "\n\na\n\n", " a \n a ", "a\r\n- a\r\n", "a\n", "\na\n", "- a", "a ...  \n…\na…"]


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_alone_decides_alike_on_strange_texts(rule: str, texts: list[str]):
    kept = 0
    for threshold in (0.01, 0.1, 0.2, 0.3, 0.67, 0.9):
        bounds, peer = RULES[rule](threshold)
        theirs = decisions(peer, texts)
        assert ours({rule: bounds}, texts) == theirs
        kept += sum(theirs)
    assert 0 < kept < 6 * len(texts)


def test_hashes_and_ellipses_decide_alike(texts: list[str]):
    for threshold in (0.05, 0.1, 0.3):
        peer = _filter(GopherQualityFilter, OFF_QUALITY, max_symbol_word_ratio=threshold)
        bounds = {"hashes_per_word": [0, threshold], "ellipses_per_word": [0, threshold]}
        theirs = decisions(peer, texts)
        assert ours(bounds, texts) == theirs
        assert 0 < sum(theirs) < len(texts)


@pytest.mark.parametrize("n", range(5, 11))
def test_repeated_ngrams_reject_what_datatrove_rejects_and_more(n: int):
    """Ours is the union of the later copies as in the paper, theirs a greedy scan that finds part of it.

    Words of one length: datatrove joins the words of an n-gram, so that "1 23" and "12 3" are one."""
    rng, stricter = random.Random(n), 0
    words = [f"{number:04x}" for number in range(12)]
    many = [*real()["en"], *real()["zh-Hant"]]
    for _ in range(800):
        few = words[: rng.randrange(1, len(words))]
        many.append(" ".join(rng.choice(few) for _ in range(rng.randrange(1, 80))))
    for threshold in (0.02, 0.1, 0.2):
        peer = _filter(GopherRepetitionFilter, OFF_REPETITION, dup_n_grams=((n, threshold),))
        theirs, mine = decisions(peer, many), ours({f"duplicate_{n}grams": [0, threshold]}, many)
        assert not any(m and not t for m, t in zip(mine, theirs, strict=True))
        stricter += sum(t and not m for m, t in zip(mine, theirs, strict=True))
        assert 0 < sum(mine) < len(many)
    assert 0 < stricter < len(many) // 5


def _fineweb_filters(recipe: Recipe, language: str) -> dict:
    repetition, quality, fineweb = (
        recipe.rules[step][language] for step in ("gopher_repetition", "gopher_quality", "fineweb")
    )
    most = {signal: bounds[1] for signal, bounds in repetition.items()}
    return {
        "gopher_repetition": GopherRepetitionFilter(
            dup_line_frac=most["duplicate_lines"],
            dup_para_frac=most.get("duplicate_paragraphs"),
            dup_line_char_frac=most.get("duplicate_line_characters"),
            dup_para_char_frac=most.get("duplicate_paragraph_characters"),
            top_n_grams=[(n, most[f"top_{n}gram"]) for n in (2, 3, 4)],
            dup_n_grams=[(n, most[f"duplicate_{n}grams"]) for n in range(5, 11)],
            language=PlainTokenizer(),
        ),
        "gopher_quality": GopherQualityFilter(
            min_doc_words=quality["words"][0],
            max_doc_words=quality["words"][1],
            min_avg_word_length=quality["mean_word_length"][0],
            max_avg_word_length=quality["mean_word_length"][1],
            max_non_alpha_words_ratio=quality["words_with_letter"][0],
            stop_words=recipe.stop_words[language],
            language=PlainTokenizer(),
        ),
        "fineweb": FineWebQualityFilter(
            line_punct_thr=fineweb["ended_lines"][0],
            short_line_thr=fineweb.get("short_lines", (0, 999))[1],
            char_duplicates_ratio=fineweb["copied_line_characters"][1],
            new_line_ratio=fineweb["newlines_per_word"][1],
            language=PlainTokenizer(),
        ),
    }


@pytest.mark.parametrize("language", ["en", "zh-Hant"])
def test_the_recipe_fineweb_decides_alike_on_real_text(language: str):
    recipe, texts = load_recipe_of("fineweb"), real()[language]
    for step, peer in _fineweb_filters(recipe, language.split("-")[0]).items():
        found = kernel_of(recipe, step)(table(texts, language))["reason"].to_pylist()
        for text, reason, kept in zip(texts, found, decisions(peer, texts), strict=True):
            known = reason is not None and reason.startswith("duplicate ") and "grams" in reason
            assert (reason is None) == kept or (known and kept), (step, reason, text[:200])


def test_thresholds_of_the_recipe_are_datatroves_defaults():
    rules, peers = (
        load_recipe_of("fineweb").rules,
        (GopherRepetitionFilter(), GopherQualityFilter(), FineWebQualityFilter()),
    )
    repetition, quality, fineweb = peers
    english = {signal: bounds for step in rules.values() for signal, bounds in step.get("en", {}).items()}
    assert english["duplicate_lines"][1] == repetition.dup_line_frac
    assert english["duplicate_paragraphs"][1] == repetition.dup_para_frac
    assert english["duplicate_line_characters"][1] == repetition.dup_line_char_frac
    assert english["duplicate_paragraph_characters"][1] == repetition.dup_para_char_frac
    assert tuple((n, english[f"top_{n}gram"][1]) for n in (2, 3, 4)) == repetition.top_n_grams
    assert tuple((n, english[f"duplicate_{n}grams"][1]) for n in range(5, 11)) == repetition.dup_n_grams
    assert english["words"] == (quality.min_doc_words, quality.max_doc_words)
    assert english["mean_word_length"] == (quality.min_avg_word_length, quality.max_avg_word_length)
    assert english["hashes_per_word"][1] == english["ellipses_per_word"][1] == quality.max_symbol_word_ratio
    assert english["bullet_lines"][1] == quality.max_bullet_lines_ratio
    assert english["ellipsis_lines"][1] == quality.max_ellipsis_lines_ratio
    assert english["words_with_letter"][0] == quality.max_non_alpha_words_ratio
    assert english["stop_words"][0] == quality.min_stop_words
    assert english["ended_lines"][0] == fineweb.line_punct_thr
    assert english["short_lines"][1] == fineweb.short_line_threshold
    assert english["copied_line_characters"][1] == fineweb.char_duplicates_ratio
    assert english["newlines_per_word"][1] == fineweb.new_line_ratio


# ------------------------------------------------------------------------------------------------ lines


def c4_differences(texts: list[str], terminal: bool, sentences: int) -> list[tuple[str, str | None, str]]:
    """(text, our reason, their reason or text) where the decision or the text kept is not the same."""
    peer = C4QualityFilter(
        filter_no_terminal_punct=terminal, min_num_sentences=sentences or -1, language=PlainTokenizer()
    )
    rules = C4Rules(terminal_punctuation=terminal, sentences=sentences)
    found = c4_kernel({"*": rules})(table(texts, "en"))
    wrong = []
    for text, made, reason in zip(texts, found["text"].to_pylist(), found["reason"].to_pylist(), strict=True):
        document = Document(text=text, id="0")
        answer = peer.filter(document)
        kept = answer is True and document.text != ""  # datatrove keeps pages without a line
        if (reason is None) != kept or (kept and made != document.text):
            wrong.append((text, reason, document.text if kept else str(answer)))
    return wrong


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("sentences", [0, 5])
def test_c4_decides_and_edits_alike(terminal: bool, sentences: int):
    corners = [
        "Use [1][2] of\nfoo bar baz.[3]\nfoo bar baz. [3]\nfoo bar [edit] baz [citation needed]!\n",
        "a b c d\r\ne f g h.\x0cpage two is here.\u2028next one is here!\x85end of it all?",
        "lorem ipsum\nLorem  Ipsum dolor\nThis is lorem ipsum text.", "x { y z\njavascript { is here now",
        "javascript is {\nwe are here.", "We USE cookies here.\nTerms of Use apply here.\nthis is fine.",
        "w" * 1001 + " a b c.\n" + "w" * 1000 + " a b c.", "   \n\n  hello there you.  \n\n", "\n\n\n",
        'He said "hi there." Then he left... Or did he?! (Yes.) No.', "a b. c. d. e. f. g\n", "one two three.\n" * 7,
        "...\n... ... ...\nend of this one...\nend here…\n", "[1] [2] [3]\n[1]x [2]y [3]z.\n",
    ]  # fmt: skip
    assert not c4_differences([*corners, *real()["en"]], terminal, sentences)
    # sentences are counted before a citation is cut out, and the words of a line are characters where most are Han
    plain = [text for text in strange(2500, seed=3) if "[" not in text and not regex.search(r"\p{Han}", text)]
    assert not c4_differences(plain, terminal, sentences)


def test_sentences_of_the_shipped_splitter_differ_on_few_pages():
    pytest.importorskip("spacy", reason="datatrove's own sentence splitter needs spaCy")
    texts = real()["en"]
    shipped = decisions(C4QualityFilter(filter_no_terminal_punct=False), texts)
    found = c4_kernel({"en": C4Rules()})(table(texts, "en"))["reason"].to_pylist()
    assert sum((reason is None) != kept for reason, kept in zip(found, shipped, strict=True)) <= len(texts) // 20
