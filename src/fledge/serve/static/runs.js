// Every run of the folder: where it stands, its curves, what it writes. The trainer is a process of its own; this looks on.

import { get } from "./api.js";
import { chart } from "./charts.js";
import { h, name, plain, put, set, shown } from "./dom.js";
import { ago, has, number, t } from "./i18n.js";
import { empty, family, problem, segments, skeleton, stage_name, words } from "./ui.js";

const POLL_MS = 2000;
const ORDER = [
  "loss",
  "nll",
  "reward",
  "accuracy",
  "reward_gap",
  "kl",
  "entropy",
  "length",
  "chosen_shift",
  "rejected_shift",
  "grad_norm",
  "lr",
];

export const TABS = () => [
  ["#runs", t("runs.tab.curves")],
  ["#tree", t("runs.tab.tree")],
  ["#board", t("runs.tab.board")],
];

let view = null;

export function open(place) {
  view = {
    rest: place.rest,
    list: null,
    one: null,
    timer: null,
    sample: null,
    abort: new AbortController(),
    side: h("nav.runlist", { "aria-label": t("runs.list") }),
    body: h("div.run"),
    note: h("p.note.silent", { role: "status" }),
  };
  set(
    place.main,
    h(
      "div.page.wide",
      null,
      h("div.head", null, h("h1", null, t("view.runs")), segments(t("view.runs"), TABS(), "#runs")),
      view.note,
      h("div.split", null, view.side, view.body),
    ),
  );
  set(view.side, skeleton(5));
  set(view.body, skeleton(3));
  document.addEventListener("visibilitychange", awake);
  window.addEventListener("resize", redrawn);
  poll();
}

export function close() {
  clearTimeout(view.timer);
  view.abort.abort();
  document.removeEventListener("visibilitychange", awake);
  window.removeEventListener("resize", redrawn);
  view = null;
}

/** Another run of the same view. */
export function move(rest) {
  view.rest = rest;
  view.one = null;
  view.sample = null;
  draw_list();
  set(view.body, skeleton(3));
  clearTimeout(view.timer);
  poll();
  return true;
}

function awake() {
  if (document.visibilityState === "visible" && view) {
    clearTimeout(view.timer);
    poll();
  }
}

let resizing = null;
function redrawn() {
  clearTimeout(resizing);
  resizing = setTimeout(() => view && view.one && draw_run(), 120);
}

/** The run on show: the one of the address, else one that is running, else the newest. */
function shown_run() {
  return view.list.find((run) => run.name === view.rest) || view.list[0];
}

async function poll() {
  const mine = view;
  const asked = mine.rest;
  try {
    mine.list = (await get("/api/runs", mine.abort.signal)).sort(
      (a, b) => (b.state === "running") - (a.state === "running") || b.updated_ms - a.updated_ms,
    );
    if (view !== mine || mine.rest !== asked) return;
    draw_list();
    const run = shown_run();
    if (run) await follow(mine, run);
    set(mine.note);
  } catch (error) {
    if (error.name === "AbortError" || view !== mine) return;
    if (mine.one) set(mine.note, t("runs.waiting"));
    else set(mine.body, problem(error));
  }
  if (view === mine && mine.rest === asked && document.visibilityState === "visible")
    mine.timer = setTimeout(poll, POLL_MS);
}

/** Only what is new since the last look is asked for. */
async function follow(mine, run) {
  const known = mine.one && mine.one.name === run.name ? mine.one : null;
  const restarted = known && run.step < known.step;
  const after = known && !restarted && known.rows.length ? known.rows[known.rows.length - 1].step : 0;
  if (known && !restarted && known.updated_ms === run.updated_ms && known.state === run.state) return;
  const path = run.name.split("/").map(encodeURIComponent).join("/");
  const told = await get(`/api/runs/${path}?after=${after}`, mine.abort.signal);
  if (view !== mine) return;
  if (known && after) {
    told.rows = thinned([...known.rows, ...told.rows]);
    told.samples = [...known.samples, ...told.samples];
  }
  mine.one = told;
  draw_run();
}

function thinned(rows) {
  return rows.length <= 800 ? rows : rows.filter((_, i) => i % 2 === 0 || i === rows.length - 1);
}

function draw_list() {
  if (!view.list.length) {
    set(view.side);
    set(view.body, empty("runs", t("runs.none"), words("runs.none.more")));
    return;
  }
  const now = shown_run();
  const focused = view.side.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  set(
    view.side,
    h("h2.quiet", null, t("runs.list")),
    h(
      "ul",
      null,
      view.list.map((run) => h("li", null, item(run, run === now))),
    ),
  );
  const shown_now = `${now.name}`;
  if (view.scrolled !== shown_now)
    view.side.querySelector("[aria-current]").scrollIntoView({ block: "nearest", inline: "center" });
  view.scrolled = shown_now;
  if (focused) [...view.side.querySelectorAll("a")].find((a) => a.getAttribute("href") === focused)?.focus();
}

function item(run, now) {
  const done = h("span.so-far");
  done.style.width = `${Math.min(100, (100 * run.step) / (run.steps || Infinity)) || 0}%`;
  return h(
    "a",
    {
      href: `#runs/${run.name.split("/").map(encodeURIComponent).join("/")}`,
      class: `${family(run.stage)} ${run.state}`,
      "aria-current": now ? "true" : null,
    },
    h(
      "span.line",
      null,
      h("span.dot", { "aria-hidden": "true" }),
      name(run.name, 60),
      h("span.state", null, t(`runs.${run.state}`)),
    ),
    h("span.dim", null, stage_name(run.stage), " · ", steps(run)),
    run.state === "running" && run.steps && h("span.progress", { "aria-hidden": "true" }, done),
  );
}

function steps(run) {
  return run.steps && run.step < run.steps
    ? t("runs.step.of", { n: run.step, all: run.steps })
    : t("runs.step", { n: run.step });
}

function draw_run() {
  const run = view.one;
  const width = view.body.clientWidth || 700;
  const scroll = view.body.closest("main").scrollTop;
  const open = view.body.querySelector("details.table")?.open || false;
  const sampling = view.body.contains(document.activeElement) && document.activeElement.id === "sample-step";
  set(
    view.body,
    header(run),
    flags(run),
    run.rows.length ? charts(run, width) : h("p.hint", null, t("runs.norows")),
    samples(run),
    looks(run),
    run.rows.length > 0 && newest(run, open),
  );
  if (sampling) document.getElementById("sample-step")?.focus();
  view.body.closest("main").scrollTop = scroll;
}

function header(run) {
  return h(
    "header.run-head",
    { class: `${family(run.stage)} ${run.state}` },
    h("h2", null, h("span.dot", { "aria-hidden": "true" }), name(run.name, 80)),
    h(
      "p.dim",
      null,
      h("span.state", null, t(`runs.${run.state}`)),
      " · ",
      stage_name(run.stage),
      " · ",
      steps(run),
      " · ",
      t("runs.updated", { when: ago(run.updated_ms) }),
    ),
    run.state === "running" && h("p.dim", null, t("runs.live")),
    run.state === "interrupted" && h("p.dim", null, words("runs.resume")),
  );
}

function flags(run) {
  if (!run.flags.length) return null;
  return h(
    "section.flags",
    null,
    h("h3", null, t("runs.flags")),
    h(
      "ul",
      null,
      run.flags.map((flag) =>
        h(
          "li",
          null,
          h("span.dim", null, t("runs.step", { n: flag.step })),
          " ",
          h("span", { lang: "en" }, shown(String(flag.text).slice(0, 600))),
        ),
      ),
    ),
  );
}

/** Measures worth a chart: known ones first, those that never change and doubles of the loss left out. */
function measures(rows) {
  const keys = [...new Set(rows.flatMap((row) => Object.keys(row)))].filter(
    (key) => key !== "step" && key !== "tokens",
  );
  const moving = keys.filter((key) => {
    const values = rows.map((row) => row[key]).filter((v) => typeof v === "number" && Number.isFinite(v));
    const doubled = key === "nll" && rows.every((row) => row.nll === row.loss);
    return values.length > 0 && !doubled && (key === "loss" || values.some((v) => v !== values[0]));
  });
  const place = (key) => (ORDER.includes(key) ? ORDER.indexOf(key) : ORDER.length);
  return moving.sort((a, b) => place(a) - place(b)).slice(0, 13);
}

function called(key) {
  return has(`metric.${key}`) ? t(`metric.${key}`) : plain(key.replaceAll("_", " "), 60);
}

function charts(run, width) {
  const column = width > 640 ? (width - 16) / 2 : width;
  return h(
    "div.charts",
    null,
    measures(run.rows).map((key, i) => {
      const points = run.rows
        .filter((row) => typeof row[key] === "number" && Number.isFinite(row[key]))
        .map((row) => [row.step, row[key]]);
      return chart(called(key), points, {
        kind: family(run.stage),
        tall: i === 0,
        width: Math.max(260, Math.round((i === 0 ? width : column) - 34)),
      });
    }),
  );
}

/** What the model wrote at some step, with a slider over the steps. */
function samples(run) {
  if (!run.samples.length) return null;
  const last = run.samples.length - 1;
  const at = view.sample === null ? last : Math.min(view.sample, last);
  const body = h("div.samples");
  const out = h("output", { for: "sample-step" });
  const slider = h("input", {
    id: "sample-step",
    type: "range",
    min: 0,
    max: last,
    step: 1,
    value: at,
    "aria-label": t("runs.samples.at"),
    oninput: (event) => {
      view.sample = Number(event.target.value) === last ? null : Number(event.target.value);
      fill(Number(event.target.value));
    },
  });
  const fill = (i) => {
    const row = run.samples[i];
    set(out, t("runs.step", { n: row.step }));
    slider.setAttribute("aria-valuetext", t("runs.step", { n: row.step }));
    const pairs = row.samples || [];
    set(
      body,
      pairs.map((one) =>
        h(
          "div.sample",
          null,
          h("p.q", { dir: "auto" }, shown(String(one.prompt).slice(0, 2000))),
          h("p.a", { dir: "auto" }, shown(String(one.answer ?? one.text ?? "").slice(0, 4000))),
        ),
      ),
    );
  };
  fill(at);
  return h(
    "section.card",
    null,
    h("h3", null, t("runs.samples")),
    last > 0 && h("div.row.slide", null, slider, out),
    last === 0 && h("p.dim", null, out),
    body,
  );
}

function looks(run) {
  const scored = run.looks.filter((look) => look.scores);
  const keys = [...new Set(scored.flatMap((look) => Object.keys(look.scores)))];
  if (!scored.length) return null;
  return h(
    "section.card",
    null,
    h("h3", null, t("runs.looks")),
    h(
      "div.charts.inner",
      null,
      keys.map((key) => {
        const points = scored
          .filter((look) => Number.isFinite(look.scores[key]))
          .map((look) => [look.step, look.scores[key]]);
        return points.length > 0 && chart(called(key), points, { kind: family(run.stage), width: 300 });
      }),
    ),
  );
}

function newest(run, open) {
  const row = run.rows[run.rows.length - 1];
  const table = h(
    "table",
    null,
    h(
      "tbody",
      null,
      Object.entries(row).map(([key, value]) =>
        h(
          "tr",
          null,
          h("th", { scope: "row" }, key === "step" ? h("code", null, "step") : called(key)),
          h("td", null, typeof value === "number" ? number(value) : plain(String(value), 60)),
        ),
      ),
    ),
  );
  return put(h("details.table", { open }), h("summary", null, t("runs.table")), table);
}
