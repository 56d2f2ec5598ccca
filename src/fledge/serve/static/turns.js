// One turn of a conversation on the page: what was asked, the answer or the two drafts, and their tools.

import { h, icon, put, set, shown } from "./dom.js";
import { t } from "./i18n.js";
import { markdown, prose } from "./markdown.js";
import { below, cards } from "./pair.js";
import { chosen, now } from "./talk.js";
import { button, problem, skeleton, toast } from "./ui.js";
import { tools } from "./votes.js";

const more = (n) => t("app.more", { n });

/** ctx: {talk, last, why, options(), focus()}; fills `article` with the turn's version on show. */
export function draw_turn(article, turn, ctx) {
  const v = now(turn);
  const again = () => draw_turn(article, turn, ctx);
  const asked = h(
    "div.ask",
    null,
    h("h2.quiet", null, t("chat.you")),
    h("div.bubble", { dir: "auto" }, shown(turn.ask.slice(0, 24000))),
  );
  const reply = h("div.reply", null, h("h2.quiet", null, t("chat.answer")));
  if (v.drafts.length === 2) draw_pair(reply, turn, v, ctx, again);
  else draw_single(reply, turn, v, ctx, again);
  if (v.error) reply.append(problem(v.error, ctx.last ? () => ctx.talk.again(ctx.options()) : null));
  set(article, asked, reply);
}

/** Only the text grew: put it into the elements that are there. */
export function grow_turn(article, turn) {
  const v = now(turn);
  const targets = article.querySelectorAll(".answer");
  v.drafts.forEach((d, i) => targets[i] && write(targets[i], d));
}

function write(target, d) {
  if (!d.text) return;
  if (!target.querySelector(".prose")) set(target, prose("", more));
  markdown(target.querySelector(".prose"), d.text, more);
}

/** The text of a draft with the notes that belong to it. */
function answer(d) {
  const target = h("div.answer", { "aria-busy": String(d.finish === null) });
  if (d.finish === null && !d.text) put(target, skeleton(3));
  else if (d.edit !== null) put(target, prose(d.edit, more));
  else if (d.text) put(target, prose(d.text, more));
  return h("div.body", null, target, notes(d));
}

function notes(d) {
  const found = [];
  if (d.edit !== null) {
    const original = h("details.original", null, h("summary", null, t("chat.earlier")), prose(d.text, more));
    found.push(h("div.note", null, h("span.tag", null, t("chat.edited")), original));
  }
  if (d.finish && d.finish !== "stopped" && !d.text && d.edit === null) found.push(h("p.note", null, t("chat.empty")));
  if (d.finish === "stopped") found.push(h("p.note", null, t("chat.stopped")));
  if (d.finish === "length") found.push(h("p.note", null, t("chat.cut")));
  if (d.dropped) found.push(h("p.note", null, t("chat.dropped", { n: d.dropped })));
  return found;
}

function draw_single(reply, turn, v, ctx, again) {
  const [d] = v.drafts;
  if (v.error && !d.text) {
    put(reply, pager(turn, ctx, again));
    return;
  }
  put(reply, answer(d));
  if (d.finish !== null) put(reply, tools(d, v.ready_ms, extras(turn, d, ctx, again), again));
}

function draw_pair(reply, turn, v, ctx, again) {
  if (v.error && !v.drafts.some((d) => d.text)) return;
  put(reply, cards(v, v.drafts.map(answer)));
  const ready = v.drafts.every((d) => d.finish !== null) && !(ctx.last && ctx.talk.writing);
  if (!ready) return;
  const changed = () => {
    again();
    ctx.judged(turn);
  };
  if (v.task) put(reply, below(v, changed));
  const settled = v.choice || v.retracted || !v.task;
  if (settled) put(reply, tools(chosen(v), v.ready_ms, extras(turn, chosen(v), ctx, again), again));
}

/** Buttons beside the votes. */
function extras(turn, d, ctx, again) {
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(d.edit ?? d.text);
      toast(t("chat.copied"));
    } catch {
      // the browser forbids it; the text can still be selected
    }
  };
  return [
    ctx.last &&
      button("again", t("chat.again"), () => ctx.talk.again(ctx.options()), { compact: true, kind: "do-again" }),
    button("copy", t("chat.copy"), copy, { compact: true }),
    ctx.why &&
      d.id &&
      h(
        "a.only.button",
        { href: `#shift/${encodeURIComponent(d.id)}`, "aria-label": t("chat.why"), title: t("chat.why") },
        icon("shift"),
      ),
    pager(turn, ctx, again),
  ];
}

function pager(turn, ctx, again) {
  const count = turn.versions.length;
  if (count < 2 || (ctx.last && ctx.talk.writing)) return null;
  const move = (by, kind) => () => {
    if (!turn.versions[turn.at + by]) return;
    turn.at += by;
    again();
    ctx.article(turn).querySelector(kind).focus();
  };
  const step = (what, label, by, kind) =>
    button(what, label, move(by, `.${kind}`), {
      compact: true,
      kind,
      "aria-disabled": String(!turn.versions[turn.at + by]),
    });
  return h(
    "span.pager",
    { role: "group", "aria-label": t("chat.version", { i: turn.at + 1, n: count }) },
    step("left", t("chat.previous"), -1, "earlier"),
    h("span.dim", { "aria-hidden": "true" }, `${turn.at + 1}/${count}`),
    step("right", t("chat.following"), 1, "later"),
  );
}
