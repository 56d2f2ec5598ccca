"""datatrove 0.10 as the benchmarks run it: near-duplicates in its four stages, its heuristic filters, and its word tokeniser
swapped for a plain one (a Han character, a run of letters and digits, or a run of symbols is a word).

Documents come from memory, and files of its stages lie in a scratch folder, so neither reading nor writing text is timed.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import regex
import xxhash
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils.logging import logger
from datatrove.utils.text import TERMINAL_PUNCTUATION, split_into_parts
from datatrove.utils.word_tokenizers import WordTokenizer, load_word_tokenizer
from planted_pages import ROOT as ROOT  # puts src on the path

from fledge.curate.recipes import Recipe
from fledge.curate.variants import HAN

logger.remove()
LANGUAGES = {"en": "eng", "zh": "cmn"}  # datatrove's names; its "zho" and "zh" have no jieba


class PlainTokenizer(WordTokenizer):
    """The words of fledge.curate.scan and the sentences of fledge.curate.lines, for datatrove."""

    _han = "".join(f"\\U{first:08x}-\\U{end - 1:08x}" for first, end in HAN)
    _run = rf"[\p{{L}}\p{{N}}\p{{M}}\p{{Cf}}_--[{_han}]]"
    _words = regex.compile(rf"(?V1)[{_han}]|{_run}+(?:['’]{_run}+)*|(?:(?!{_run}|[{_han}])\S)+")
    _ends, _closing = f"[{re.escape(''.join(sorted(TERMINAL_PUNCTUATION)))}]", r"""["')\]}”’」』）》]{0,2}"""
    _sentences = re.compile(rf"[。！？｡．](?!{_ends}){_closing}|{_ends}(?!{_ends}){_closing}(?=\s)")

    def word_tokenize(self, text: str) -> list[str]:
        return self._words.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        return [text[first:end] for first, end in self.span_tokenize(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        ends = [found.end() for found in self._sentences.finditer(text)]
        if not ends or ends[-1] < len(text):
            ends.append(len(text))
        return list(zip([0, *ends[:-1]], ends, strict=True))


Words = WordTokenizer | str


def as_shipped(language: str) -> str:
    """datatrove's own tokeniser for "en" (spaCy) or "zh" (spaCy with jieba), loaded and warm."""
    load_word_tokenizer(LANGUAGES[language]).word_tokenize("warm 熱身")
    return LANGUAGES[language]


def documents(texts: Sequence[str]) -> Iterator[Document]:
    return (Document(text=text, id=str(number)) for number, text in enumerate(texts))


def _xxhash64(text: str) -> int:
    """datatrove's own hash; it passes strings, which xxhash 4 no longer takes."""
    return xxhash.xxh64_intdigest(text.encode())


def signatures(texts: Sequence[str], words: Words, scratch: Path) -> None:
    """Stage 1 alone, into `scratch`/signatures."""
    step = MinhashDedupSignature(str(scratch / "signatures"), MinhashConfig(), words)
    step._hash_func = _xxhash64
    step.run(documents(texts), 0, 1)


def near_duplicates(texts: Sequence[str], words: Words, scratch: Path) -> tuple[np.ndarray, list[int]]:
    """All four stages with datatrove's settings (14 bands of 8): (cluster [n], -1 where alone; numbers of the pages kept)."""
    config = MinhashConfig()
    signatures(texts, words, scratch)
    for rank in range(config.num_buckets):
        MinhashDedupBuckets(str(scratch / "signatures"), str(scratch / "buckets"), config=config).run(
            None, rank, config.num_buckets
        )
    MinhashDedupCluster(str(scratch / "buckets"), str(scratch / "remove"), config=config, save_cluster_id=True).run()
    kept = [int(d.id) for d in MinhashDedupFilter(str(scratch / "remove")).run(documents(texts), 0, 1)]
    cluster = np.full(len(texts), -1)
    path = scratch / "remove" / "000000.clusters"
    if path.exists():
        pairs = np.fromfile(path, np.uint32).reshape(-1, 2)
        cluster[pairs[:, 0]] = pairs[:, 1]
    return cluster, kept


# --- filters ---------------------------------------------------------------------------------------------------------


def _least(rules: dict, signal: str) -> float | None:
    bound = rules.get(signal, (-np.inf, np.inf))[0]
    return float(bound) if np.isfinite(bound) else None


def _most(rules: dict, signal: str) -> float | None:
    bound = rules.get(signal, (-np.inf, np.inf))[1]
    return float(bound) if np.isfinite(bound) else None


def repetition_filter(recipe: Recipe, language: str, words: Words) -> GopherRepetitionFilter:
    rules = recipe.rules["gopher_repetition"][language]
    return GopherRepetitionFilter(
        dup_line_frac=_most(rules, "duplicate_lines"),
        dup_para_frac=_most(rules, "duplicate_paragraphs"),
        dup_line_char_frac=_most(rules, "duplicate_line_characters"),
        dup_para_char_frac=_most(rules, "duplicate_paragraph_characters"),
        top_n_grams=tuple((n, bound) for n in (2, 3, 4) if (bound := _most(rules, f"top_{n}gram"))),
        dup_n_grams=tuple((n, bound) for n in range(5, 11) if (bound := _most(rules, f"duplicate_{n}grams"))),
        language=words,
    )


def quality_filter(recipe: Recipe, language: str, words: Words) -> GopherQualityFilter:
    rules = recipe.rules["gopher_quality"][language]
    return GopherQualityFilter(
        min_doc_words=_least(rules, "words"),
        max_doc_words=_most(rules, "words"),
        min_avg_word_length=_least(rules, "mean_word_length"),
        max_avg_word_length=_most(rules, "mean_word_length"),
        max_symbol_word_ratio=_most(rules, "hashes_per_word"),
        max_bullet_lines_ratio=_most(rules, "bullet_lines"),
        max_ellipsis_lines_ratio=_most(rules, "ellipsis_lines"),
        max_non_alpha_words_ratio=_least(rules, "words_with_letter"),
        min_stop_words=_least(rules, "stop_words"),
        stop_words=list(recipe.stop_words[language]),
        language=words,
    )


def c4_filter(recipe: Recipe, language: str, words: Words) -> C4QualityFilter:
    rules = recipe.c4[language]
    return C4QualityFilter(
        filter_no_terminal_punct=rules.terminal_punctuation,
        remove_citations=rules.citations,
        min_num_sentences=rules.sentences or -1,
        # it counts runs between spaces, so it would drop every Chinese line
        min_words_per_line=(rules.words_per_line or -1) if language == "en" else -1,
        max_word_length=rules.longest_word or -1,
        filter_lorem_ipsum=rules.lorem_ipsum,
        filter_javascript=rules.javascript,
        filter_curly_bracket=rules.curly_bracket,
        filter_policy=rules.policy,
        language=words,
    )


def fineweb_filter(recipe: Recipe, language: str, words: Words) -> FineWebQualityFilter:
    rules = recipe.rules["fineweb"][language]
    return FineWebQualityFilter(
        line_punct_thr=_least(rules, "ended_lines") or 0.0,
        short_line_length=10 if "very_short_lines" in rules else 30,
        short_line_thr=_most(rules, "very_short_lines" if "very_short_lines" in rules else "short_lines") or 1.0,
        char_duplicates_ratio=_most(rules, "copied_line_characters") or 1.0,
        new_line_ratio=_most(rules, "newlines_per_word") or np.inf,
        language=words,
    )


FILTERS: dict[str, Callable[[Recipe, str, Words], BaseFilter]] = {
    "gopher_repetition": repetition_filter,
    "gopher_quality": quality_filter,
    "c4": c4_filter,
    "fineweb": fineweb_filter,
}
"""Step of the recipe -> datatrove's filter with the recipe's bounds for a language."""


def forget_words() -> None:
    """Empty the cache of the words of the last few texts, as when other texts were in between."""
    split_into_parts.cache_clear()


def judge(filters: Sequence[BaseFilter], texts: Sequence[str]) -> list[tuple[int, str] | None]:
    """For each text, the first filter that rejects it and its reason, or None; later filters see what earlier ones edit."""
    found: list[tuple[int, str] | None] = []
    for document in documents(texts):
        outcome = None
        for number, one in enumerate(filters):
            answer = one.filter(document)
            kept, reason = answer if isinstance(answer, tuple) else (answer, "rejected")
            if not kept:
                outcome = number, reason
                break
        found.append(outcome)
    return found
