// The view to talk in: conversations at the side, turns in the middle, the box below.

import { get } from "./api.js";
import { composer, options } from "./composer.js";
import { h, name, plain, set } from "./dom.js";
import { t } from "./i18n.js";
import { choice_of, judge } from "./pair.js";
import { now, Talk } from "./talk.js";
import { draw_turn, grow_turn } from "./turns.js";
import { announce, button, empty, problem, Reader, skeleton } from "./ui.js";

let talk = null; // lives on while other views are looked at: an answer being written is not lost
let list = null; // conversations, newest first; null until known
let kept = ""; // what stood in the box when the view was left
let view = null;

export function open(place) {
  view = { ...place, log: h("div.log"), articles: new Map(), reader: new Reader(), pinned: true };
  const box = composer({ send: ask, stop: () => talk.stop() }, kept);
  view.box = box;
  set(place.main, h("h1.quiet", null, t("view.chat")), view.log, box.element);
  set(place.extra, button("plus", t("chat.new"), start_new, { compact: true }));
  view.log.addEventListener("scroll", () => {
    view.pinned = view.log.scrollHeight - view.log.scrollTop - view.log.clientHeight < 90;
  });
  side();
  refresh_list();
  move(place.rest);
}

export function close() {
  kept = view.box.area.value;
  view = null;
}

/** Another conversation of the same view. */
export function move(rest) {
  if (rest === "new") {
    fresh();
    history.replaceState(null, "", "#chat");
  } else if (rest && (!talk || talk.id !== rest)) {
    load(rest);
    return true;
  } else if (!rest && talk && talk.id) {
    history.replaceState(null, "", `#chat/${encodeURIComponent(talk.id)}`);
  }
  talk ??= new Talk(changed);
  draw();
  return true;
}

function fresh() {
  if (talk) talk.stop();
  talk = new Talk(changed);
}

function start_new() {
  fresh();
  history.replaceState(null, "", "#chat");
  document.body.classList.remove("drawer");
  view.main.inert = false;
  draw();
  view.box.area.focus();
}

async function load(id) {
  fresh();
  const mine = talk;
  set(view.log, h("div.turns", null, skeleton(2, "asked"), skeleton(4)));
  side();
  try {
    await mine.load(id);
    if (view && talk === mine) draw();
  } catch (error) {
    if (view && talk === mine)
      set(
        view.log,
        h(
          "div.turns",
          null,
          problem(error, () => load(id)),
        ),
      );
  }
}

async function refresh_list() {
  try {
    list = await get("/api/conversations");
    if (view) side();
  } catch (error) {
    if (view && list === null) set(view.slot, problem(error, refresh_list));
  }
}

/** The list at the side. */
function side() {
  const add = button("plus", t("chat.new"), start_new, { kind: "new" });
  const items = (list || []).map((c) => {
    const mine = talk && talk.id === c.id;
    const text = c.title ? name(c.title, 120) : t("chat.untitled");
    return h(
      "li",
      null,
      h(
        "a",
        {
          href: `#chat/${encodeURIComponent(c.id)}`,
          "aria-current": mine ? "page" : null,
          title: plain(c.title || "", 120),
        },
        text,
      ),
    );
  });
  const body = list === null ? skeleton(3) : items.length ? h("ul", null, items) : h("p.dim", null, t("chat.none"));
  set(view.slot, add, h("nav.list", { "aria-label": t("chat.list") }, h("h2", null, t("chat.list")), body));
}

function context(turn) {
  const last = talk.turns[talk.turns.length - 1] === turn;
  return { talk, last, why: view.me.views.shift, options, judged, article: (which) => view.articles.get(which) };
}

/** Everything anew: another conversation, or another language. */
function draw() {
  view.articles.clear();
  view.box.busy(talk.writing);
  title();
  if (!talk.turns.length) {
    set(view.log, welcome());
    return;
  }
  const articles = talk.turns.map((turn) => {
    const article = h("article.turn");
    view.articles.set(turn, article);
    draw_turn(article, turn, context(turn));
    return article;
  });
  set(view.log, h("div.turns", null, articles));
  side();
  bottom(true);
}

function title() {
  const text = talk.title ? plain(talk.title, 80) : t("view.chat");
  set(view.title, talk.title ? name(talk.title, 80) : text);
  document.title = `${text} · fledge`;
}

function welcome() {
  const model = view.me.models.find((m) => m.default);
  const tries = [1, 2, 3].map((i) =>
    h("button.try", { type: "button", onclick: () => ask(t(`chat.try.${i}`)) }, t(`chat.try.${i}`)),
  );
  const [before, after] = t("chat.hello.more").split("{model}");
  const hello = empty("chat", t("chat.hello"), [before, h("b", null, name(model.name, 60)), after]);
  hello.append(h("div.tries", { role: "group", "aria-label": t("chat.try") }, tries));
  return hello;
}

function ask(text) {
  if (talk.writing) return;
  talk.ask(text, options());
  view.pinned = true;
  bottom(true);
}

/** The conversation changed: `structure` false means only text grew. */
function changed(turn, structure) {
  if (!view) return;
  if (!view.articles.has(turn)) {
    draw();
    view.reader = new Reader();
    announce(t("chat.writing"));
    return;
  }
  const article = view.articles.get(turn);
  view.box.busy(talk.writing);
  const v = now(turn);
  if (v.drafts.length === 1) view.reader.hear(v.drafts[0].text, !talk.writing);
  if (structure) {
    draw_turn(article, turn, context(turn));
    if (!talk.writing) finished(turn);
  } else {
    grow_turn(article, turn);
    follow_address();
  }
  bottom(false);
}

function follow_address() {
  const hash = `#chat/${encodeURIComponent(talk.id)}`;
  if (talk.id && location.hash !== hash) {
    history.replaceState(null, "", hash);
    title();
    if (list && !list.some((c) => c.id === talk.id)) list = [{ id: talk.id, title: talk.title }, ...list];
    side();
  }
}

function finished(turn) {
  const v = now(turn);
  follow_address();
  if (v.error || v.told) return;
  v.told = true;
  if (v.drafts.length === 2 && v.task) {
    announce(t("chat.pair.done"));
    const idle =
      document.activeElement === document.body || (document.activeElement === view.box.area && !view.box.area.value);
    const first = view.articles.get(turn).querySelector(".verdicts button");
    if (idle && first) first.focus({ preventScroll: true });
  } else {
    announce(t(v.drafts.some((d) => d.finish === "stopped") ? "chat.stopped" : "chat.done"));
  }
}

/** After a verdict the next thing is to write on. */
function judged() {
  const keys = !window.matchMedia("(pointer: coarse)").matches; // a phone would cover the names with its keyboard
  if (view && keys && document.activeElement === document.body) view.box.area.focus({ preventScroll: true });
}

function bottom(force) {
  if (force || view.pinned)
    requestAnimationFrame(() => {
      if (view) view.log.scrollTop = view.log.scrollHeight;
    });
}

/** Keys of this view; `free` is false while someone types. */
export function key(event, free) {
  const turn = talk && talk.turns[talk.turns.length - 1];
  if (event.key === "Escape") {
    if (talk.writing) talk.stop();
    else if (document.activeElement === view.box.area) view.box.area.blur();
    else return false;
    return true;
  }
  if (!free) return false;
  if (event.key === "/") {
    view.box.area.focus();
    return true;
  }
  if (event.key === "n") {
    start_new();
    return true;
  }
  return turn !== undefined && !talk.writing && turn.versions.length > 0 && last_turn_key(event.key, turn);
}

function last_turn_key(pressed, turn) {
  const article = view.articles.get(turn);
  const choice = choice_of(pressed);
  if (choice) {
    return (
      null !==
      judge(now(turn), choice, () => {
        if (!view || !view.articles.has(turn)) return;
        draw_turn(view.articles.get(turn), turn, context(turn));
        judged();
        bottom(false);
      })
    );
  }
  const target = { r: ".do-again", e: ".do-edit", "+": ".thumb-up", "=": ".thumb-up", "-": ".thumb-down" }[pressed];
  const found = target && article.querySelector(target);
  if (found) found.click();
  return Boolean(found);
}
