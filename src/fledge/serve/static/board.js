// The leaderboard: how strong each checkpoint is by people's choices, and how sure that is.

import { get } from "./api.js";
import { h, name, s, set } from "./dom.js";
import { number, percent, t } from "./i18n.js";
import { TABS } from "./runs.js";
import { empty, family, problem, segments, skeleton, stage_name, words } from "./ui.js";

let view = null;
let named = new Map(); // names of the models the page knows, by id

export function open(place) {
  named = new Map(place.me.models.map((m) => [m.id, m.name]));
  view = { body: h("div.body") };
  set(
    place.main,
    h(
      "div.page.wide",
      null,
      h("div.head", null, h("h1", null, t("view.runs")), segments(t("view.runs"), TABS(), "#board")),
      h("p.lead", null, t("board.lead")),
      view.body,
    ),
  );
  set(view.body, skeleton(5));
  load();
}

export function close() {
  view = null;
}

async function load() {
  const mine = view;
  try {
    const told = await get("/api/leaderboard");
    if (view === mine) draw(told);
  } catch (error) {
    if (view === mine) set(mine.body, problem(error, load));
  }
}

function draw(places) {
  const ranked = places.filter((p) => p.elo !== null);
  if (!ranked.length) {
    set(view.body, empty("rate", t("board.none"), words("board.none.more")));
    return;
  }
  const low = Math.min(...ranked.map((p) => p.elo_low));
  const high = Math.max(...ranked.map((p) => p.elo_high));
  const pad = (high - low || 100) * 0.05;
  const x = (v) => ((v - low + pad) / (high - low + 2 * pad)) * 100;
  const head = [
    "board.place",
    "board.model",
    "board.strength",
    "board.range",
    "board.pairs",
    "board.thumbs",
    "board.score",
  ];
  const rows = ranked.map((p, i) =>
    h(
      "tr",
      { class: family(p.stage) },
      h("td.place", null, i + 1),
      h(
        "th",
        { scope: "row" },
        h("span.dot", { "aria-hidden": "true" }),
        name(named.get(p.id) || p.name, 60),
        h("small", null, stage_name(p.stage)),
      ),
      h("td.strength", { "data-label": t("board.strength") }, h("b", null, number(Math.round(p.elo)))),
      h("td.range", null, interval(p, x)),
      h("td", { "data-label": t("board.pairs") }, t("board.record", { wins: p.wins, losses: p.losses, ties: p.ties })),
      h("td", { "data-label": t("board.thumbs") }, p.up === null ? "–" : percent(p.up)),
      h("td", { "data-label": t("board.score") }, p.score === null ? "–" : number(p.score)),
    ),
  );
  set(
    view.body,
    h(
      "div.card.scroll",
      null,
      h(
        "table.board",
        null,
        h(
          "thead",
          null,
          h(
            "tr",
            null,
            head.map((key) => h("th", { scope: "col" }, t(key))),
          ),
        ),
        h("tbody", null, rows),
      ),
    ),
    h("p.note", null, t("board.foot")),
  );
}

/** The estimate and its 95% interval on the scale all rows share. */
function interval(p, x) {
  const label = t("board.interval", { low: number(Math.round(p.elo_low)), high: number(Math.round(p.elo_high)) });
  const [a, b] = [`${x(p.elo_low)}%`, `${x(p.elo_high)}%`];
  return s(
    "svg.interval",
    { role: "img", "aria-label": label },
    s("title", null, label),
    s("line.scale", { x1: 0, x2: "100%", y1: 12, y2: 12 }),
    s("line.reach", { x1: a, x2: b, y1: 12, y2: 12 }),
    s("line.reach", { x1: a, x2: a, y1: 7, y2: 17 }),
    s("line.reach", { x1: b, x2: b, y1: 7, y2: 17 }),
    s("circle", { cx: `${x(p.elo)}%`, cy: 12, r: 5 }),
  );
}
