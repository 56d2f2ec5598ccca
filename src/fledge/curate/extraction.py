"""A web page to its main text, through resiliparse: paragraphs and lists stay, menus, scripts and styles do not.

The rules are those of Resiliparse (Bevendorff et al., Elastic ChatNoir, ECIR 2018), which DCLM also uses. One is worth
knowing: a <ul> fewer than four levels below <body> counts as a menu.
"""

from __future__ import annotations

import re
from itertools import accumulate

from resiliparse.extract.html2text import extract_plain_text

from fledge.text.files import RowRejected

NO_TEXT = "no main text"
NESTED = "web page nested too deeply"
# the main text of n nested <div> takes n * n * 8 ns, so a page made for it would stop a crawl
DEEPEST = 1000
_NESTING = re.compile(r"<(/?)(?:div|article)\b", re.I)


def main_text(html: str, main: bool = True) -> str:
    """The text of a page, its main part where `main`. Raises RowRejected where there is none."""
    if len(html) > 5 * DEEPEST and _deepest(html) > DEEPEST:
        raise RowRejected(NESTED, html)
    # browsers leave NUL out; the parser would put U+FFFD in its place
    text = extract_plain_text(html.replace("\0", ""), main_content=main, alt_texts=False).strip()
    if not text:
        raise RowRejected(NO_TEXT, html)
    return text


def _deepest(html: str) -> int:
    steps = [-1 if closing else 1 for closing in _NESTING.findall(html)]
    # a page of fewer opening tags cannot be deep, and closing ones do not go below the ground
    return max(accumulate(steps, lambda depth, step: max(0, depth + step)), default=0) if len(steps) > DEEPEST else 0
