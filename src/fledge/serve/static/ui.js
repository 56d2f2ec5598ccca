// Small things every view uses: saying something aloud, problems with their remedy, empty states, skeletons.

import { Failure } from "./api.js";
import { fresh, h, icon, shown } from "./dom.js";
import { has, t } from "./i18n.js";
import { inline } from "./markdown.js";

const KEPT = 4; // announcements; older ones have been read

/** Say something to screen readers: additions to the log are read in turn, also the same words twice. */
export function announce(text) {
  const log = document.getElementById("announcer");
  log.append(h("p", null, shown(text)));
  while (log.childNodes.length > KEPT) log.firstChild.remove();
}

/** Feeds streamed text to screen readers sentence by sentence: not word by word, and not all at the end. */
export class Reader {
  constructor() {
    this.said = 0;
  }

  hear(text, finished = false) {
    const rest = text.slice(this.said);
    const found = finished ? [rest] : /^[\s\S]*[.!?。！？\n]/u.exec(rest);
    if (!found || !found[0].trim() || (!finished && found[0].length < 60)) return;
    this.said += found[0].length;
    announce(found[0].slice(0, 2000));
  }
}

/** Words with `code` in them, as nodes. */
export function words(key, values) {
  return inline(t(key, values));
}

/** What went wrong and what to do; the server's own sentence is kept apart, for it is in English. */
export function problem(error, retry = null) {
  const kind = error instanceof Failure ? error.kind : "server";
  const detail = error instanceof Failure ? error.detail : String(error);
  return h(
    "div.problem",
    { role: "alert" },
    icon("warn"),
    h(
      "div",
      null,
      h("p", null, words(`error.${kind}`)),
      detail &&
        kind !== "key" &&
        h(
          "details",
          null,
          h("summary", null, t("app.details")),
          h("p", { lang: "en", dir: "auto" }, shown(detail.slice(0, 600))),
        ),
      retry && h("button.small", { type: "button", onclick: retry }, icon("again"), t("app.retry")),
    ),
  );
}

/** Grey lines where text will be. */
export function skeleton(lines = 3, kind = "") {
  const widths = ["w90", "w75", "w60", "w85", "w40"];
  const bars = Array.from({ length: lines }, (_, i) => h(`span.bar.${widths[i % widths.length]}`));
  return h("div.skeleton", { class: kind, role: "status", "aria-label": t("app.loading") }, bars);
}

/** A friendly nothing: what this is for and what to do. */
export function empty(what, title, text, ...actions) {
  return h(
    "div.empty",
    null,
    icon(what),
    h("h2", null, title),
    h("p", null, text),
    actions.length > 0 && h("div.actions", null, actions),
  );
}

/** A button with a drawing and words; `compact` keeps the words for screen readers and the tooltip only. */
export function button(what, label, onclick, { compact = false, kind = "", ...rest } = {}) {
  const props = {
    type: "button",
    onclick,
    class: kind,
    ...(compact ? { "aria-label": label, title: label } : {}),
    ...rest,
  };
  return h(compact ? "button.only" : "button.with", props, icon(what), !compact && h("span", null, label));
}

/** The stage of a model in words; stages this page has never heard of keep their own name. */
export function stage_name(stage) {
  return has(`stage.${stage}`) ? t(`stage.${stage}`) : String(stage);
}

const FAMILY = { pretrain: "base", base: "base", sft: "sft", reward: "reward" };

/** The colour class of a stage: base, sft, aligned or reward. */
export function family(stage) {
  return FAMILY[stage] || "aligned";
}

/** Tabs of a view as links; `now` is the chosen one. */
export function segments(label, items, now) {
  return h(
    "nav.segments",
    { "aria-label": label },
    items.map(([href, text]) => h("a", { href, "aria-current": href === now ? "page" : null }, text)),
  );
}

let timer = null;
/** A short line at the bottom that goes away by itself. */
export function toast(text) {
  const old = document.querySelector(".toast");
  if (old) old.remove();
  document.body.append(h("p.toast", { "aria-hidden": "true" }, text));
  announce(text);
  clearTimeout(timer);
  timer = setTimeout(() => document.querySelector(".toast")?.remove(), 3500);
}

/** A window over the page; closing it gives the focus back. */
export function dialog(kind, title, ...children) {
  const back = document.activeElement;
  const id = fresh("title");
  const element = h(
    "dialog",
    { class: kind, "aria-labelledby": id },
    h(
      "header",
      null,
      h("h2", { id }, title),
      button("close", t("app.close"), () => element.close(), { compact: true }),
    ),
    children,
  );
  element.addEventListener("close", () => {
    element.remove();
    if (back instanceof HTMLElement) back.focus();
  });
  element.addEventListener("click", (event) => event.target === element && element.close());
  document.body.append(element);
  element.showModal();
  return element;
}
