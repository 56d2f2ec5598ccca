// The family tree: every model below the one it was raised from, with the votes that went in between.

import { get } from "./api.js";
import { h, name, put, set } from "./dom.js";
import { t } from "./i18n.js";
import { TABS } from "./runs.js";
import { empty, family, problem, segments, skeleton, stage_name } from "./ui.js";

const POLL_MS = 4000;
let view = null;

export function open(place) {
  view = { body: h("div.body"), timer: null, drawn: "" };
  set(
    place.main,
    h(
      "div.page.wide",
      null,
      h("div.head", null, h("h1", null, t("view.runs")), segments(t("view.runs"), TABS(), "#tree")),
      h("p.lead", null, t("tree.lead")),
      view.body,
    ),
  );
  set(view.body, skeleton(5));
  poll();
}

export function close() {
  clearTimeout(view.timer);
  view = null;
}

async function poll() {
  const mine = view;
  try {
    const told = await get("/api/tree");
    if (view !== mine) return;
    const now = JSON.stringify(told);
    if (now !== mine.drawn) draw(told);
    mine.drawn = now;
  } catch (error) {
    if (view === mine && !mine.drawn) set(mine.body, problem(error));
  }
  if (view === mine) mine.timer = setTimeout(poll, POLL_MS);
}

function draw(told) {
  if (!told.models.length) {
    set(view.body, empty("runs", t("tree.none"), t("tree.none.more")));
    return;
  }
  const known = new Set(told.models.map((m) => m.id));
  const children = new Map();
  for (const m of told.models) {
    const key = known.has(m.parent) && m.parent !== m.id ? m.parent : null;
    children.set(key, [...(children.get(key) || []), m]);
  }
  set(view.body, branch(children, null, new Set()));
}

/** A list of siblings, each with its children; a model is drawn once, whatever the data say. */
function branch(children, parent, seen) {
  const list = h("ul.tree");
  for (const m of children.get(parent) || []) {
    if (seen.has(m.id)) continue;
    seen.add(m.id);
    const below = children.has(m.id) && branch(children, m.id, seen);
    put(list, h("li", null, edge(m), node(m), below));
  }
  return list;
}

/** What came between parent and child: the data sets made from votes. */
function edge(m) {
  const made = (m.exports || []).filter((e) => e.rows);
  if (!made.length) return null;
  return h(
    "p.edge",
    null,
    made.map((e) =>
      h(
        "span.tag",
        null,
        `${String(e.format || "").toUpperCase()} · ${t("tree.rows", { n: e.rows, first: e.first_seq ?? "?", last: e.last_seq ?? "?" })}`,
      ),
    ),
  );
}

function node(m) {
  const votes = Object.values(m.votes || {}).reduce((sum, n) => sum + n, 0);
  return h(
    "div.node",
    { class: family(m.stage) },
    h("span.dot", { "aria-hidden": "true" }),
    h("b", null, name(m.name, 60)),
    h("span.dim", null, stage_name(m.stage), " · ", t("runs.step", { n: m.step })),
    votes > 0 && h("span.tag", null, t("tree.votes", { n: votes })),
    m.served && h("span.tag.served", null, t("tree.served")),
  );
}
