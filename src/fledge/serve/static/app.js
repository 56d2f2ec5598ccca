// The frame around the views: who is here, which view, language, theme, keys.

import { open_account } from "./account.js";
import { get } from "./api.js";
import * as board from "./board.js";
import * as chat from "./chat.js";
import { feather, h, icon, name, set } from "./dom.js";
import { current, onLanguage, remember, remembered, speak, t } from "./i18n.js";
import { key_pressed, open_help } from "./keys.js";
import * as next from "./next.js";
import { onQueue, openQueue, waiting } from "./queue.js";
import * as rate from "./rate.js";
import * as runs from "./runs.js";
import * as shift from "./shift.js";
import * as tree from "./tree.js";
import { announce, button, problem } from "./ui.js";

const VIEWS = { chat, rate, next, shift, runs, tree, board };
const TABS = ["chat", "rate", "next", "shift", "runs"];
const TAB_OF = { tree: "runs", board: "runs" };
const THEMES = ["auto", "light", "dark"];

let me = null;
let opened = null; // the view on screen
let frame = null; // parts of the shell that change

function route() {
  const [view, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  const known = VIEWS[view] && allowed(TAB_OF[view] || view) ? view : "chat";
  return { view: known, rest: known === view ? decoded(rest.join("/")) : "" };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return "";
  }
}

function allowed(tab) {
  if (tab === "chat") return true;
  return tab === "rate" ? me.rate : me.views[tab];
}

function tabs() {
  return TABS.filter(allowed).map((tab) =>
    h("li", null, h("a.tab", { href: `#${tab}`, "data-tab": tab }, icon(tab), h("span", null, t(`view.${tab}`)))),
  );
}

/** Draw the frame; the view inside is drawn by `show`. */
function draw() {
  const main = h("main", { id: "main", tabindex: "-1" });
  const slot = h("div.slot");
  const waiting = h("p.waiting", { role: "status" });
  const title = h("p.title");
  const extra = h("div.extra");
  const close = () => drawer(false);
  const side = h(
    "div.side",
    { id: "side" },
    h(
      "div.brand",
      null,
      h("a", { href: "#chat", "aria-label": "fledge" }, feather(), h("span", null, "fledge")),
      button("close", t("app.close"), close, { compact: true, kind: "phone" }),
    ),
    h("nav.views", { "aria-label": t("app.views") }, h("ul", null, tabs())),
    slot,
    h("div.foot", null, waiting, settings()),
  );
  const top = h(
    "header.top",
    null,
    button("menu", t("app.menu"), () => drawer(true), {
      compact: true,
      "aria-expanded": "false",
      "aria-controls": "side",
    }),
    title,
    extra,
  );
  const skip = h(
    "a.skip",
    {
      href: "#main",
      onclick: (event) => {
        event.preventDefault();
        main.focus();
      },
    },
    t("app.skip"),
  );
  set(
    document.getElementById("app"),
    skip,
    side,
    h("div.veil", { onclick: close }),
    top,
    main,
    h("nav.bottom", { "aria-label": t("app.views") }, h("ul", null, tabs())),
  );
  frame = { main, slot, waiting, title, extra, top, side };
}

function settings() {
  const theme = remembered("fledge.theme") || "auto";
  const turn = () => {
    const following = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    remember("fledge.theme", following);
    document.documentElement.dataset.theme = following;
    fresh_settings(".theme");
    announce(t(`app.theme.${following}`));
  };
  const other = current() === "en" ? "zh" : "en";
  return h(
    "div.settings",
    null,
    h(
      "button.link.who",
      { type: "button", title: t("account.title"), onclick: () => open_account(me) },
      me.person.name === "owner" ? t("app.owner") : name(me.person.name, 40),
    ),
    h(
      "button.only.language",
      {
        type: "button",
        lang: other === "zh" ? "zh-Hant" : "en",
        "aria-label": t("app.language.label"),
        onclick: () => speak(other),
      },
      t("app.language"),
    ),
    button(theme, t(`app.theme.${theme}`), turn, { compact: true, kind: "theme" }),
    button("help", t("app.help"), open_help, { compact: true }),
  );
}

function fresh_settings(focus) {
  frame.side.querySelector(".settings").replaceWith(settings());
  frame.side.querySelector(focus).focus();
}

/** The drawer on phones. */
function drawer(open) {
  document.body.classList.toggle("drawer", open);
  const menu = frame.top.querySelector("button");
  menu.setAttribute("aria-expanded", String(open));
  frame.main.inert = open;
  if (open) frame.side.querySelector("button.phone").focus();
  else if (frame.side.contains(document.activeElement)) menu.focus();
}

/** Put the view of the address on screen. */
function show(moved) {
  const { view, rest } = route();
  const tab = TAB_OF[view] || view;
  drawer(false);
  for (const link of document.querySelectorAll("a.tab")) {
    if (link.dataset.tab === tab) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (opened && opened.view === view && VIEWS[view].move && VIEWS[view].move(rest)) return;
  if (opened) VIEWS[opened.view].close();
  opened = { view };
  document.title = `${t(`view.${tab}`)} · fledge`;
  set(frame.title, t(`view.${tab}`));
  set(frame.main);
  set(frame.slot);
  set(frame.extra);
  frame.main.className = `in-${view}`;
  frame.main.scrollTop = 0;
  if (moved) frame.main.focus({ preventScroll: true });
  VIEWS[view].open({ main: frame.main, slot: frame.slot, extra: frame.extra, title: frame.title, me, rest });
}

function redraw() {
  const { view } = opened;
  VIEWS[view].close();
  opened = null;
  draw();
  tell_waiting(waiting());
  show(false);
  frame.side.querySelector(".language").focus();
}

function tell_waiting(count) {
  set(frame.waiting, count > 0 && t("vote.waiting", { n: count }));
}

async function start() {
  const app = document.getElementById("app");
  try {
    me = await get("/api/me");
  } catch (error) {
    set(app, h("main.boot", { id: "main" }, feather(), h("h1", null, "fledge"), problem(error, start)));
    return;
  }
  draw();
  openQueue(me.person.id);
  onQueue(tell_waiting);
  onLanguage(redraw);
  window.addEventListener("hashchange", () => show(true));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && document.body.classList.contains("drawer")) drawer(false);
    else key_pressed(event, opened && VIEWS[opened.view].key);
  });
  show(false);
}

start();
