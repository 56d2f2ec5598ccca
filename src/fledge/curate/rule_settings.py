"""Settings of the steps that edit lines, by paper."""

from __future__ import annotations

from fledge.core.config import Settings


class C4Rules(Settings, frozen=True, kw_only=True):
    """Lines and pages that C4 removes (Raffel et al. 2020, section 2.2, and tensorflow_datasets, c4_utils.py)."""

    terminal_punctuation: bool = False
    "Remove lines that do not end in . ? ! or a quotation mark, or end in an ellipsis; FineWeb leaves this rule out."
    words_per_line: int = 3
    "Fewest words of a line: runs without white space, in Chinese characters and words; 0 turns it off."
    longest_word: int = 1000
    "Longest run without white space in a line, in characters; 0 turns it off."
    citations: bool = True
    "Take Wikipedia's [1], [edit] and [citation needed] out of the lines."
    javascript: bool = True
    "Remove lines that mention javascript."
    policy: bool = True
    "Remove lines about cookies, terms of use and privacy policies."
    lorem_ipsum: bool = True
    "Reject pages that hold the printers' filler text."
    curly_bracket: bool = True
    "Reject pages that hold a {, which prose seldom does."
    sentences: int = 5
    "Fewest sentences of a page after its lines were removed; 0 turns it off."


class DclmLineRules(Settings, frozen=True, kw_only=True):
    """Lines that DCLM-Baseline removes (Li et al. 2024, appendix J; RefinedWeb: Penedo et al. 2023, appendix G.2)."""

    uppercase: float = 0.5
    "Largest share of upper-case characters in a line."
    digits: float = 0.999999
    "Largest share of digits in a line."
    counters: bool = True
    "Remove lines such as `3 likes`."
    words_per_line: int = 2
    "Fewest words of a line: runs without white space, in Chinese characters and words; 0 turns it off."
    phrases: bool = True
    "Take `items in cart`, a last `Read more...` and a first `Sign-in` out of lines of at most 10 words."
    removed_words: float = 0.05
    "Largest share of a page's words that may be removed before the page is rejected."


class PhraseRules(Settings, frozen=True, kw_only=True):
    """Lines that are a site's own, not the page's; of no paper."""

    phrases: list[str] = []
    "Remove short lines that hold one of these, in any case."
    longest_line: int = 60
    "Most characters of a line that is removed; longer ones may well say something."
