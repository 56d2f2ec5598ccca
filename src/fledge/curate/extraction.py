"""A web page to its main text, through resiliparse: paragraphs and lists stay, menus, scripts and styles do not.

The rules are those of Resiliparse (Bevendorff et al., Elastic ChatNoir, ECIR 2018), which DCLM also uses. One is worth
knowing: a <ul> fewer than four levels below <body> counts as a menu.
"""

from __future__ import annotations

import re
from itertools import accumulate

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import DOMException

from fledge.text.files import RowRejected

NO_TEXT = "no main text"
UNREADABLE = "web page that cannot be parsed"
NESTED = "web page nested too deeply"
SAMPLE_CHARS = 200
# the main text of n nested <div> takes n * n * 8 ns, of some mixtures n cubed: a page made for it would stop a crawl
DEEPEST = 512  # as in Chromium, which goes no deeper
# tags that stay open until they are closed, without <path .../> and, from scripts, `i<n;`
_NESTING = re.compile(
    r"<(/?)(?!(?:p|li|d[dt]|t[dhr]|tbody|thead|tfoot|col|option|optgroup|r[bpt]|html|head|body|br|hr|img|input|meta|link"
    r"|a|nobr|button|area|base|embed|param|source|track|wbr)[\s/>])[a-z][a-z0-9-]*(?:\s[^<>]*)?(?<!/)>",
    re.I,
)


def main_text(html: str, main: bool = True) -> str:
    """The text of a page, its main part where `main`. Raises RowRejected where there is none."""
    if html.count("<") > DEEPEST and _deepest(html) > DEEPEST:
        raise RowRejected(NESTED, html[:SAMPLE_CHARS])
    # browsers leave NUL out; the parser would put U+FFFD in its place
    try:
        text = extract_plain_text(html.replace("\0", ""), main_content=main, alt_texts=False).strip()
    except DOMException as error:
        raise RowRejected(UNREADABLE, str(error)) from error
    if not text:
        raise RowRejected(NO_TEXT, html[:SAMPLE_CHARS])
    return text


def _deepest(html: str) -> int:
    steps = (-1 if closing else 1 for closing in _NESTING.findall(html))
    return max(accumulate(steps, lambda depth, step: max(0, depth + step)), default=0)
