// Markdown of a model, as nodes. No links that lead out, no images, no HTML: those stay the text they are.

import { h, shown } from "./dom.js";

const LONGEST_CHARS = 24000; // beyond this the rest waits behind a button, so that a runaway answer cannot freeze the page
const LONGEST_INLINE = 8000;

/** Show `text` in `target`. Called again with a longer text it redraws only the blocks that changed. */
export function markdown(target, text, more = null) {
  const limit = target.dataset.all === "yes" ? Infinity : LONGEST_CHARS;
  const cut = text.length > limit;
  const parts = blocks(cut ? text.slice(0, limit) : text);
  const drawn = target.blocks || [];
  let same = 0;
  while (
    same < parts.length &&
    same < drawn.length &&
    drawn[same].source === parts[same].source &&
    drawn[same].kind === parts[same].kind
  )
    same += 1;
  while (target.childNodes.length > same) target.lastChild.remove();
  for (const part of parts.slice(same)) target.append(draw(part));
  target.blocks = parts;
  if (cut) target.append(rest(target, text, more));
}

function rest(target, text, more) {
  const press = () => {
    target.dataset.all = "yes";
    target.blocks = [];
    markdown(target, text, more);
  };
  return h("button.link", { type: "button", onclick: press }, more ? more(text.length - LONGEST_CHARS) : "…");
}

const FENCE = /^ {0,3}(```+|~~~+)\s*([\w+#.-]{0,20})[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(\S.*)$/;
const ITEM = /^(\s{0,8})([-*+•]|\d{1,9}[.)])\s+(\S.*)$/;
const QUOTE = /^ {0,3}>\s?(.*)$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;

/** Split into [{kind, source, ..}]; linear in the text. */
export function blocks(text) {
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  const found = [];
  let at = 0;
  while (at < lines.length) {
    const [block, next] = block_at(lines, at);
    if (block) found.push(block);
    at = next;
  }
  return found;
}

function block_at(lines, at) {
  const line = lines[at];
  if (!line.trim()) return [null, at + 1];
  const fence = FENCE.exec(line);
  if (fence) return fenced(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) return [{ kind: `h${Math.min(6, heading[1].length + 2)}`, source: heading[2] }, at + 1];
  if (RULE.test(line)) return [{ kind: "hr", source: "" }, at + 1];
  if (QUOTE.test(line)) return gathered(lines, at, "quote", (l) => QUOTE.test(l));
  const item = ITEM.exec(line);
  if (item) return gathered(lines, at, /\d/.test(item[2]) ? "ol" : "ul", (l) => ITEM.test(l) || /^\s{2,}\S/.test(l));
  const plain = (l) =>
    l.trim() && !FENCE.test(l) && !HEADING.test(l) && !QUOTE.test(l) && !ITEM.test(l) && !RULE.test(l);
  return gathered(lines, at, "p", plain);
}

function fenced(lines, at, fence) {
  let end = at + 1;
  while (end < lines.length && !lines[end].trimStart().startsWith(fence[1])) end += 1;
  return [{ kind: "pre", source: lines.slice(at + 1, end).join("\n"), language: fence[2] }, end + 1];
}

function gathered(lines, at, kind, belongs) {
  let end = at + 1;
  while (end < lines.length && belongs(lines[end])) end += 1;
  return [{ kind, source: lines.slice(at, end).join("\n") }, end];
}

function draw(block) {
  const { kind, source } = block;
  if (kind === "pre") return h("pre", { tabindex: "0" }, h("code", null, shown(source)));
  if (kind === "hr") return h("hr");
  if (kind === "ul" || kind === "ol") return list(kind, source);
  if (kind === "quote")
    return h(
      "blockquote",
      { dir: "auto" },
      inline(
        source
          .split("\n")
          .map((l) => QUOTE.exec(l)[1])
          .join("\n"),
      ),
    );
  return h(kind, { dir: "auto" }, inline(source));
}

/** Items two or more blanks further in are children of the item above. */
function list(kind, source) {
  const rows = [];
  for (const line of source.split("\n")) {
    const item = ITEM.exec(line);
    if (item) rows.push({ deep: item[1].length >= 2, number: parseInt(item[2], 10), text: item[3] });
    else if (rows.length) rows[rows.length - 1].text += `\n${line.trim()}`;
  }
  const top = h(kind, kind === "ol" && rows[0].number > 1 ? { start: rows[0].number } : null);
  for (const row of rows) {
    const element = h("li", { dir: "auto" }, inline(row.text));
    const parent = top.lastElementChild;
    if (!row.deep || !parent) {
      top.append(element);
    } else {
      if (!parent.querySelector("ul")) parent.append(h("ul"));
      parent.querySelector("ul").append(element);
    }
  }
  return top;
}

/** Bold, italic, struck and code inside a line. A scanner, not a pattern: its time is bounded for any text. */
export function inline(text, depth = 0) {
  if (text.length > LONGEST_INLINE || depth > 3) return shown(text);
  const nodes = [];
  let plain = "";
  let at = 0;
  const flush = () => {
    if (plain) nodes.push(...shown(plain));
    plain = "";
  };
  while (at < text.length) {
    const span = span_at(text, at);
    if (span) {
      flush();
      nodes.push(
        span.tag === "code" ? h("code", null, shown(span.inner)) : h(span.tag, null, inline(span.inner, depth + 1)),
      );
      at = span.end;
    } else if (text[at] === "\\" && /[\\`*_~#>!-]/.test(text[at + 1] || "")) {
      plain += text[at + 1];
      at += 2;
    } else {
      plain += text[at];
      at += 1;
    }
  }
  flush();
  return nodes;
}

const SPANS = [
  ["`", "code"],
  ["**", "strong"],
  ["__", "strong"],
  ["~~", "s"],
  ["*", "em"],
  ["_", "em"],
];

function span_at(text, at) {
  for (const [mark, tag] of SPANS) {
    if (!text.startsWith(mark, at)) continue;
    const start = at + mark.length;
    const end = text.indexOf(mark, start + 1);
    if (end < 0) continue;
    const inner = text.slice(start, end);
    const word = (character) => /[\p{L}\p{N}]/u.test(character || "");
    if (tag !== "code" && (/^\s|\s$/.test(inner) || inner.includes("\n\n"))) continue;
    if (mark[0] === "_" && (word(text[at - 1]) || word(text[end + mark.length]))) continue;
    return { tag, inner, end: end + mark.length };
  }
  return null;
}

/** An element that shows a model's text, contained so that no text can push the page about. */
export function prose(text, more) {
  const element = h("div.prose");
  if (text) markdown(element, text, more);
  return element;
}
