// Pair after pair, by keyboard: read, press 1 to 4, the next one comes.

import { get } from "./api.js";
import { h, plain, set, shown } from "./dom.js";
import { t } from "./i18n.js";
import { prose } from "./markdown.js";
import { cards, choice_of, judge, take_back, verdicts } from "./pair.js";
import { announce, button, empty, problem, skeleton, words } from "./ui.js";

let view = null;
let count = 0; // rated since the page was opened
let last = null; // the version judged before this one

export function open(place) {
  view = { main: place.main, now: null, body: h("div.body"), past: h("div.past") };
  set(
    place.main,
    h("div.page", null, h("h1", null, t("view.rate")), h("p.lead", null, t("rate.lead")), view.body, view.past),
  );
  past();
  following();
}

export function close() {
  view = null;
}

/** Fetch and show the next pair. */
async function following() {
  const mine = view;
  waiting();
  try {
    const task = await get("/api/task");
    if (view === mine) show(task);
  } catch (error) {
    if (view === mine) set(mine.body, problem(error, following));
  }
}

function waiting() {
  view.now = null;
  set(
    view.body,
    h("p.dim", null, t("rate.making")),
    h("div.pair", null, h("div.card", null, skeleton(4)), h("div.card", null, skeleton(4))),
  );
}

function show(task) {
  if (!task) {
    set(
      view.body,
      empty("rate", t("rate.none"), words("rate.none.more"), h("a.button.primary", { href: "#chat" }, t("rate.chat"))),
    );
    return;
  }
  const v = {
    task: task.task,
    drafts: task.drafts,
    choice: null,
    vote: null,
    revealed: null,
    retracted: false,
    ready_ms: Date.now(),
  };
  view.now = v;
  const said = task.messages.map((m) =>
    h(
      "div.ask",
      { class: m.role },
      h("h3.dim", null, t(`rate.${m.role}`)),
      h("div.bubble", { dir: "auto" }, shown(m.content.slice(0, 24000))),
    ),
  );
  set(
    view.body,
    h("section.asked", { "aria-label": t("rate.asked") }, said),
    cards(
      v,
      v.drafts.map((d) =>
        h("div.body", null, d.text ? prose(d.text, (n) => t("app.more", { n })) : h("p.note", null, t("chat.empty"))),
      ),
    ),
    verdicts(choose),
  );
  announce(t("pair.question"));
  const first = view.body.querySelector(".verdicts button");
  if (document.activeElement === document.body || document.activeElement === view.main)
    first.focus({ preventScroll: true });
}

function choose(choice) {
  const mine = view;
  const v = mine && mine.now;
  const answered = v && judge(v, choice, past);
  if (!answered) return;
  count += 1;
  last = v;
  mine.main.focus({ preventScroll: true });
  waiting();
  past();
  const next = () => view === mine && following();
  answered.then(next, next); // until this verdict is stored the server would deal the same pair again
}

/** How many so far, and what became of the last one. */
function past() {
  if (!view) return;
  const undo = button(
    "undo",
    t("rate.undo"),
    () => {
      take_back(last, past);
      last = null;
      past();
    },
    { kind: "link" },
  );
  const names = last &&
    last.choice &&
    last.revealed &&
    last.revealed.left !== last.revealed.right && {
      said: t(`pair.said.${last.choice}`),
      left: plain(last.revealed.left, 60),
      right: plain(last.revealed.right, 60),
    };
  set(
    view.past,
    count > 0 && h("p.dim", null, t("rate.count", { n: count })),
    last && last.choice && h("p.dim", null, names && h("bdi", null, t("rate.last", names)), undo),
  );
}

export function key(event, free) {
  const choice = free && choice_of(event.key);
  if (!choice || !view.now) return false;
  choose(choice);
  return true;
}
