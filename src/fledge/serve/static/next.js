// What comes next: an unfinished sentence, and every model's probabilities for the token after it.

import { post } from "./api.js";
import { grow, h, name, plain, set } from "./dom.js";
import { number, percent, t } from "./i18n.js";
import { storable } from "./talk.js";
import { announce, button, empty, family, problem, skeleton, stage_name } from "./ui.js";

const PAUSE_MS = 220;
const TOP = 10;

let text = ""; // as typed; kept while other views are looked at
let steps = []; // tokens clicked after it: {tokens: the exact ids before it, append: its id}
let found = null; // the newest answer of the server
let view = null;
let timer = null;
let asked = 0;

export function open(place) {
  const area = h("textarea.sentence", {
    rows: "1",
    "aria-label": t("next.box"),
    placeholder: t("next.placeholder"),
    value: shown_text(),
    maxlength: "4000",
    oninput: typed,
  });
  const back = button("undo", t("next.back"), step_back, { kind: "link" });
  const clear = button("close", t("next.clear"), start_over, { kind: "link" });
  const note = h("p.note", { hidden: true }, t("next.unsure.more"));
  view = { area, back, clear, note, columns: h("div.columns", { "aria-live": "off" }) };
  set(
    place.main,
    h(
      "div.page",
      null,
      h("h1", null, t("view.next")),
      h("p.lead", null, t("next.lead")),
      h("div.box.sentence", null, area, h("div.row", null, back, clear)),
      view.columns,
      note,
    ),
  );
  grow(area);
  buttons();
  if (!text && !window.matchMedia("(pointer: coarse)").matches) area.focus({ preventScroll: true });
  if (found) draw();
  else if (text) ask();
  else nothing();
}

export function close() {
  clearTimeout(timer);
  view = null;
}

function shown_text() {
  return steps.length && found ? found.text : text;
}

function begin(words) {
  [text, steps] = [words, []];
  show_text();
  buttons();
  ask();
}

function buttons() {
  view.back.disabled = steps.length === 0;
  view.clear.disabled = !text && !steps.length;
}

function nothing() {
  found = null;
  const tries = [1, 2, 3].map((i) =>
    h("button.try", { type: "button", onclick: () => begin(t(`next.try.${i}`)) }, t(`next.try.${i}`)),
  );
  set(
    view.columns,
    h(
      "div.empty",
      null,
      h("p", null, t("next.empty")),
      h("div.tries", { role: "group", "aria-label": t("chat.try") }, tries),
    ),
  );
  view.note.hidden = true;
}

/** Typing begins a new text: tokens clicked before become part of it. */
function typed(event) {
  text = event.target.value;
  steps = [];
  grow(event.target);
  buttons();
  clearTimeout(timer);
  timer = setTimeout(ask, PAUSE_MS);
}

async function ask() {
  asked += 1;
  const mine = asked;
  if (!text.trim() && !steps.length) {
    nothing();
    return;
  }
  if (!found)
    set(
      view.columns,
      [1, 2, 3].map(() => h("div.card", null, skeleton(6))),
    );
  view.columns.setAttribute("aria-busy", "true");
  try {
    const told = await post("/api/next", body());
    if (!view || mine !== asked) return;
    found = told;
    if (steps.length) show_text();
    draw();
  } catch (error) {
    if (view && mine === asked) set(view.columns, problem(error, ask));
  } finally {
    if (view) view.columns.setAttribute("aria-busy", "false");
  }
}

/** The exact tokens once one was clicked; before that the text, without blanks that belong to the next token. */
function body() {
  const last = steps[steps.length - 1];
  return last ? { ...last, top: TOP } : { text: storable(text.replace(/ +$/, "")), top: TOP };
}

function draw() {
  if (!found.models.length) {
    set(view.columns, empty("next", t("view.next"), t("next.none")));
    return;
  }
  view.note.hidden = false;
  const most = Math.max(...found.models.flatMap((m) => m.tokens.map((token) => token.p)), 0.01);
  set(
    view.columns,
    found.models.map((m) => column(m, most)),
  );
}

function column(model, most) {
  const bits = number(model.entropy / Math.LN2);
  const title = h(
    "header",
    null,
    h("h2", null, name(model.name, 40)),
    h("span.stage", null, stage_name(model.stage)),
    h(
      "span.dim.unsure",
      { title: t("next.unsure.more"), "aria-label": t("next.unsure.label", { bits }) },
      t("next.unsure", { bits }),
    ),
  );
  const bars = model.tokens.map((token) => h("li", null, bar(token, most)));
  const rest = 1 - model.tokens.reduce((sum, token) => sum + token.p, 0);
  return h(
    "section.card.column",
    { class: family(model.stage), "aria-label": plain(model.name, 40) },
    title,
    h("ol.bars", null, bars),
    rest > 0.0005 && h("p.rest", null, h("span", null, t("next.rest")), h("span", null, percent(rest))),
  );
}

function bar(token, most) {
  const fill = h("span.fill");
  fill.style.width = `${Math.max(0.5, (token.p / most) * 100)}%`;
  return h(
    "button.bar-row",
    {
      type: "button",
      "data-token": token.id,
      "aria-label": t("next.token", { token: spoken(token), share: percent(token.p) }),
      onclick: () => go_on(token),
      onpointerenter: () => alike(token.id),
      onfocus: () => alike(token.id),
      onpointerleave: () => alike(null),
      onblur: () => alike(null),
    },
    h("span.token", null, visible(token)),
    h("span.track", null, fill),
    h("span.share", null, percent(token.p)),
  );
}

/** The same token in the other columns lights up. */
function alike(id) {
  for (const row of view.columns.querySelectorAll(".bar-row"))
    row.classList.toggle("same", id !== null && row.dataset.token === String(id));
}

/** A token as people can see it: blanks and line ends are drawn. */
export function visible(token) {
  const parts = plain(token.text, 24)
    .split(/([ \n\t])/)
    .filter((part) => part !== "");
  const marks = { "\n": "↵", "\t": "⇥" };
  return h(
    "bdi",
    { class: token.control ? "control" : "" },
    parts.map((part) =>
      part === " " ? h("span.space", null, " ") : marks[part] ? h("span.blank", null, marks[part]) : part,
    ),
  );
}

function spoken(token) {
  return plain(token.text, 40)
    .replaceAll("\n", ` ${t("next.newline")} `)
    .replace(/^ +$/, t("next.space"));
}

function go_on(token) {
  steps.push({ tokens: found.tokens, append: token.id });
  announce(plain(token.text, 40));
  buttons();
  ask();
}

function step_back() {
  steps.pop();
  if (!steps.length) show_text();
  buttons();
  ask();
}

function start_over() {
  [text, steps] = ["", []];
  show_text();
  buttons();
  ask();
  view.area.focus();
}

function show_text() {
  view.area.value = shown_text();
  grow(view.area);
}
