"""How the report looks and how text and numbers get into it: escaping, number formats, tables, one style sheet."""

import html
import math
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

ABSENT = "–"
_JOINERS = "\u200c\u200d"  # part of ordinary Persian words and of emoji
_HIDDEN = {"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"}  # controls, direction overrides, surrogates, private use


def shown(text: Any, limit_chars: int = 700) -> str:
    """Foreign text as inert HTML: markup escaped, characters that hide or reorder text written out, long text cut."""
    text = str(text)
    parts = []
    for character in text[:limit_chars]:
        if character in "\n\t" or character in _JOINERS or unicodedata.category(character) not in _HIDDEN:
            parts.append(html.escape(character))
        else:
            code = ord(character)
            name = f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
            parts.append(f'<span class="ctl">{name}</span>')
    if len(text) > limit_chars:
        parts.append(f'<span class="dim"> … {len(text) - limit_chars:,} more characters</span>')
    return "".join(parts)


def isolated(text: Any, limit_chars: int = 700) -> str:
    """`shown` inside its own direction, so that right-to-left text cannot rearrange the line around it."""
    return f"<bdi>{shown(text, limit_chars)}</bdi>"


def dig(value: Any, *keys: str) -> Any:
    """value[k1][k2]..., None as soon as a level is absent or null."""
    for key in keys:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def entry(journey: dict[str, Any], name: str) -> dict[str, Any]:
    """What journey.json says of one model; empty when there is no such model."""
    paths = {"control": ("controls", "sft_from_scratch"), "reward": ("reward_model",)}
    return dig(journey, *paths.get(name, ("stages", name))) or {}


def number(value: float | None, digits: int = 2) -> str:
    """1.93; a dash for what was not measured."""
    return ABSENT if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def signed(value: float) -> str:
    """+0.41, −1.97 with a real minus sign."""
    return f"{value:+.2f}".replace("-", "−")


def whole(value: float | None) -> str:
    """60,000."""
    return number(value, 0)


def percent(value: float | None) -> str:
    """81%; one more digit where rounding would claim exactly none or exactly all."""
    if value is None or not math.isfinite(value):
        return ABSENT
    if 0 < value < 0.0005 or 0.9995 < value < 1:
        return "&lt;0.1%" if value < 0.5 else "&gt;99.9%"
    digits = 1 if 0 < value < 0.01 or 0.99 < value < 1 else 0
    return f"{value * 100:.{digits}f}%"


def large(value: float | None) -> str:
    """1.07 million."""
    if value is None:
        return ABSENT
    for scale, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= 0.9995 * scale:
            return f"{value / scale:.3g}\u00a0{word}"
    return whole(value)


def duration(seconds: float | None) -> str:
    """6 min 52 s."""
    if seconds is None:
        return ABSENT
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def byte_size(value: float | None) -> str:
    """1.23 GB."""
    if value is None:
        return ABSENT
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= 0.9995 * scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.0f} bytes"


def plural(count: float, word: str) -> str:
    """ "1 pair", "2,000 pairs"."""
    return f"{whole(count)} {word}{'' if count == 1 else 's'}"


def well_sampled(buckets: Sequence[dict[str, Any]], model: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The first and the last bucket whose share of right answers means something: 30 questions or more."""
    known = [b for b in buckets if (b.get("questions") or 0) >= 30 and b.get(model) is not None]
    return (known[0], known[-1]) if len(known) > 1 else None


def heading(english: str, chinese: str, level: int = 2) -> str:
    return f'<h{level}>{english} <span class="zh" lang="zh-Hant">{chinese}</span></h{level}>'


def section(english: str, chinese: str, *parts: str) -> str:
    """A headed section, or nothing when there is nothing in it."""
    body = "\n".join(part for part in parts if part)
    return f"<section>\n{heading(english, chinese)}\n{body}\n</section>\n" if body else ""


def paragraph(sentences: Iterable[str], kind: str = "") -> str:
    text = " ".join(s for s in sentences if s)
    return f'<p class="{kind}">{text}</p>' if text else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, kind: str = "") -> str:
    """Cells are HTML already; the first column is each row's heading, the others are figures."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "\n".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    thead = f"<thead><tr>{top}</tr></thead>" if head else ""
    return (
        f'<div class="scroll"><table class="{kind}" style="--figures: {max(1, len(head) - 1)}">{thead}<tbody>\n{body}\n</tbody></table></div>'
        if rows
        else ""
    )


def figure(title: str, chinese: str, svg: str, sentence: str) -> str:
    """A chart with its title above and the one sentence that says what it shows below."""
    return f"<figure>{heading(title, chinese, 3)}\n{svg}\n<figcaption>{sentence}</figcaption></figure>" if svg else ""


def page(title: str, body: str) -> bytes:
    """The whole file: nothing is fetched, no script runs."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    ).encode()


STYLE = """
:root { color-scheme: light dark;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "Noto Sans TC", "PingFang TC",
    "Microsoft JhengHei", "Noto Sans CJK TC", sans-serif;
  --mono: ui-monospace, "SF Mono", "Cascadia Mono", Consolas, "Noto Sans Mono", monospace;
  --page: #faf9f6; --card: #ffffff; --ink: #23272c; --dim: #626a72; --line: #dfdcd4; --soft: #f1efe9;
  --text: #626a72; --base: #96651a; --sft: #2666a8; --aligned: #18765a; --control: #737a82; --reward: #87479c; }
@media (prefers-color-scheme: dark) { :root {
  --page: #15181b; --card: #1d2125; --ink: #e4e2dd; --dim: #9ca3aa; --line: #353b41; --soft: #262b30;
  --text: #9ca3aa; --base: #dcab55; --sft: #78b0ea; --aligned: #58c79f; --control: #98a0a8; --reward: #c991da; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); font: 1rem/1.6 var(--sans); }
main { max-width: 62.5rem; margin: 0 auto; padding: 3.5rem 1.25rem 4rem; }
h1, h2, h3, h4, p, figure, ul, ol, dl, dd, pre { margin: 0; padding: 0; }
h1 { font-size: clamp(1.9rem, 5vw, 2.7rem); line-height: 1.15; letter-spacing: -0.02em; font-weight: 700; }
h2 { font-size: 1.45rem; line-height: 1.3; letter-spacing: -0.01em; margin-bottom: 0.6rem; }
h3 { font-size: 1rem; line-height: 1.4; margin-bottom: 0.35rem; }
.zh { color: var(--dim); font-size: 0.72em; font-weight: 400; letter-spacing: 0.04em; margin-left: 0.3em; white-space: nowrap; }
h1 .zh { display: block; font-size: 0.45em; margin: 0.5rem 0 0; }
section { margin-top: 3.75rem; }
.eyebrow { color: var(--dim); font-size: 0.85rem; margin-bottom: 0.7rem; }
.lead { font-size: 1.13rem; line-height: 1.6; margin-top: 0.9rem; max-width: 52rem; border-left: 3px solid var(--own); padding-left: 1rem; }
h1 + .lead { margin-top: 1.6rem; } sup { line-height: 0; font-size: 0.75em; }
.text { max-width: 44rem; } .text + .text { margin-top: 0.9rem; }
.dim, .note { color: var(--dim); } .note { font-size: 0.88rem; max-width: 44rem; margin-top: 0.75rem; }
.flag { border-left: 3px solid var(--base); padding: 0.15rem 0 0.15rem 0.8rem; margin-top: 1.2rem; font-size: 0.95rem; }
.ctl { font: 0.78em var(--mono); color: var(--reward); border: 1px solid currentColor; border-radius: 3px; padding: 0 0.2em; }
b, strong { font-weight: 650; font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
.chart * { stroke-linejoin: round; stroke-linecap: butt; }
.picture { margin-top: 1.4rem; } .picture text { fill: var(--ink); font-family: var(--sans); }
.picture .small { fill: var(--dim); } .narrow { display: none; margin-inline: auto; }
.ask { background: var(--card); border: 1px solid var(--line); border-radius: 10px; margin-top: 1rem; break-inside: avoid; }
.ask > header { padding: 0.75rem 1rem; } .ask .q { font-weight: 650; font-size: 1.05rem; overflow-wrap: anywhere; }
.ask .meta { color: var(--dim); font-size: 0.84rem; overflow-wrap: anywhere; }
.three { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); }
.cell { padding: 0.65rem 1rem 0.9rem; border-top: 3px solid var(--own); min-width: 0; overflow: hidden; }
.cell h4 { display: flex; justify-content: space-between; gap: 0.5rem; font-size: 0.82rem; font-weight: 600; color: var(--own); }
.cell .mark { color: var(--ink); font-weight: 500; white-space: nowrap; }
.said { white-space: pre-wrap; overflow-wrap: anywhere; margin-top: 0.2rem; unicode-bidi: isolate; }
.base { --own: var(--base); } .sft { --own: var(--sft); } .aligned { --own: var(--aligned); }
.control { --own: var(--control); } .reward { --own: var(--reward); } .source { --own: var(--dim); }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 1rem; margin-top: 1.2rem; }
figure, .tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 0.9rem 1rem 1rem; min-width: 0;
  break-inside: avoid; }
figcaption, .tile p { color: var(--dim); font-size: 0.9rem; line-height: 1.5; margin-top: 0.5rem; } figcaption b { color: var(--ink); }
.grid > .tile:last-child:nth-child(odd) { grid-column: 1 / -1; }
.scroll { overflow-x: auto; margin-top: 1.1rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.94rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 0.45rem 0.6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child { text-align: left; padding-left: 0; } td:last-child, th:last-child { padding-right: 0; }
thead th { font-size: 0.84rem; font-weight: 600; color: var(--dim); vertical-align: bottom; }
tbody th { font-weight: 500; } tbody th small { display: block; color: var(--dim); font-weight: 400; line-height: 1.4; max-width: 26rem; }
.tile th, .tile td { padding-block: 0.27rem; } .tile .scroll { margin-top: 0.4rem; } .tile th:first-child { white-space: nowrap; }
table.facts th { color: var(--dim); font-weight: 400; width: 11rem; } table.facts td { text-align: left; overflow-wrap: anywhere; }
table.reasons small { display: block; } table.reasons :is(td, th):nth-child(2) { text-align: left; overflow-wrap: anywhere; }
.tree, .tree ul { list-style: none; } .tree { margin-top: 0.6rem; }
.tree ul { margin-left: 0.55rem; padding-left: 1.1rem; border-left: 2px solid var(--line); }
.tree > ul { border: 0; padding: 0; margin: 0; } .tree li { padding: 0.2rem 0; overflow-wrap: anywhere; } code, pre { font-family: var(--mono); font-size: 0.88em; }
.plain { padding-left: 1.1rem; margin-top: 0.8rem; font-size: 0.94rem; }
pre { background: var(--soft); border-radius: 8px; padding: 0.8rem 1rem; margin-top: 0.6rem; white-space: pre-wrap; overflow-wrap: anywhere; }
footer { margin-top: 3.5rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--dim); font-size: 0.85rem; }
@media (max-width: 40rem) { main { padding-top: 2rem; } .lead { font-size: 1.08rem; } section { margin-top: 2.75rem; }
  h2 .zh { display: block; margin: 0.1rem 0 0; } .wide { display: none; } .narrow { display: block; } .three { grid-template-columns: 1fr; }
  .chart text { font-size: 10px !important; } figure, .tile { padding-inline: 0.75rem; }
  table { font-size: 0.88rem; } th:not(:first-child), td:not(:last-child) { padding-inline: 0.2rem; } table.facts th { width: 7.5rem; }
  .scores thead th:first-child { display: none; } .scores th small { max-width: none; } .scores :is(thead, tbody) { display: block; }
  .scores tr { display: grid; grid-template-columns: repeat(var(--figures), 1fr); border-bottom: 1px solid var(--line); }
  .scores tr :is(th, td) { border: 0; text-align: center; } .scores thead th { align-self: end; }
  .scores tbody th { grid-column: 1 / -1; padding-bottom: 0; }
  .scores tbody tr th { text-align: left; } }
@media print { :root { --page: #fff; --card: #fff; --ink: #111; --dim: #555; --line: #ccc; --soft: #f3f3f3; --text: #555;
    --base: #96651a; --sft: #2666a8; --aligned: #18765a; --control: #737a82; --reward: #87479c; }
  body { font-size: 10.5pt; } main { padding: 0; max-width: none; } section { margin-top: 1.6rem; } h2, h3 { break-after: avoid; break-inside: avoid; }
  .text:has(+ .grid, + .picture, + .ask) { break-after: avoid; } .cell h4 { font-size: 0.72rem; }
  .grid { grid-template-columns: 1fr 1fr; } .three { grid-template-columns: repeat(3, 1fr); } .wide { display: block; } .narrow { display: none; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; } }
"""
