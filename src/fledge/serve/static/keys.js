// Single-key shortcuts, and the list of them. They rest while someone types, and can be switched off.

import { h } from "./dom.js";
import { remember, remembered, t } from "./i18n.js";
import { dialog } from "./ui.js";

const GO = { c: "#chat", r: "#rate", n: "#next", w: "#shift", u: "#runs" };
let going = 0; // when g was pressed

export function shortcuts_on() {
  return remembered("fledge.keys") !== "off";
}

/** Whether a key belongs to what has the focus. */
export function typing(target) {
  return (
    target instanceof HTMLElement &&
    (target.isContentEditable || ["INPUT", "TEXTAREA", "SELECT"].includes(target.tagName)) &&
    !["checkbox", "radio", "button"].includes(target.type)
  );
}

/** view_key(event) of the view on screen is asked first; it returns true for a key it took. */
export function key_pressed(event, view_key) {
  if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]"))
    return;
  const free = !typing(event.target) && shortcuts_on();
  if (free && Date.now() - going < 1200 && GO[event.key]) {
    going = 0;
    event.preventDefault();
    location.hash = GO[event.key];
    return;
  }
  if (view_key && view_key(event, free)) {
    event.preventDefault();
    return;
  }
  if (!free) return;
  if (event.key === "g") {
    going = Date.now();
  } else if (event.key === "?") {
    event.preventDefault();
    open_help();
  } else if (event.key === "n") {
    event.preventDefault();
    location.hash = "#chat/new";
  }
}

const LIST = [
  [
    "help.anywhere",
    [
      ["n", "help.new"],
      ["?", "help.help"],
    ],
  ],
  ["help.views", Object.entries(GO).map(([key, hash]) => [`g ${key}`, `view.${hash.slice(1)}`])],
  [
    "help.chat",
    [
      ["/", "help.write"],
      ["Enter", "help.send"],
      ["Esc", "help.stop"],
      ["r", "help.again"],
      ["e", "help.edit"],
      ["+ −", "help.up"],
    ],
  ],
  [
    "help.pair",
    [
      ["1", "help.1"],
      ["2", "help.2"],
      ["3", "help.3"],
      ["4", "help.4"],
    ],
  ],
];

export function open_help() {
  const toggle = h("input", {
    type: "checkbox",
    role: "switch",
    checked: shortcuts_on(),
    onchange: (event) => remember("fledge.keys", event.target.checked ? "on" : "off"),
  });
  const lists = LIST.map(([title, rows]) =>
    h(
      "section",
      null,
      h("h3", null, t(title)),
      h(
        "dl",
        null,
        rows.map(([key, words]) =>
          h(
            "div",
            null,
            h(
              "dt",
              null,
              key.split(" ").map((k) => h("kbd", null, k)),
            ),
            h("dd", null, t(words)),
          ),
        ),
      ),
    ),
  );
  dialog(
    "help",
    t("help.title"),
    h("div.lists", null, lists),
    h("label.switch", null, toggle, h("span", null, t("help.off"))),
  );
}
