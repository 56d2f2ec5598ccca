// The box a message is written in, with the switch for two drafts and how the model writes.

import { fresh, grow, h, icon, set } from "./dom.js";
import { remember, remembered, t } from "./i18n.js";
import { button } from "./ui.js";

const FIELDS = [
  { key: "temperature", min: 0, max: 2, step: 0.1 },
  { key: "top_p", min: 0.05, max: 1, step: 0.05 },
  { key: "max_tokens", min: 1, max: 100000, step: 1 },
  { key: "seed", min: 0, max: 2147483647, step: 1 },
];

/** What the person set, kept in this browser; absent fields are the server's defaults. */
const chosen = read();
let two = remembered("fledge.two") === "yes";

function read() {
  try {
    const kept = JSON.parse(remembered("fledge.sampling") || "{}");
    return Object.fromEntries(
      FIELDS.map(({ key }) => [key, kept[key]]).filter(([, value]) => typeof value === "number"),
    );
  } catch {
    return {};
  }
}

/** {two, sampling} for the next question. */
export function options() {
  const some = Object.keys(chosen).length > 0;
  return { two, sampling: some ? { ...chosen } : null };
}

/** on.send(text) and on.stop(); returns {element, area, busy(writing)}. */
export function composer(on, kept = "") {
  const area = h("textarea", {
    rows: "1",
    "aria-label": t("chat.box"),
    placeholder: t("chat.placeholder"),
    value: kept,
    enterkeyhint: "send",
    maxlength: "200000",
  });
  const go = h("button.primary.go", { type: "button" });
  const panel = h("div.tune", { id: fresh("tune"), hidden: true });
  let writing = false;

  const submit = () => {
    if (writing) {
      on.stop();
    } else if (area.value.trim()) {
      const text = area.value;
      area.value = "";
      resize();
      on.send(text);
    }
  };
  const resize = () => {
    grow(area);
    if (!writing) go.classList.toggle("idle", !area.value.trim());
  };
  const busy = (now) => {
    writing = now;
    const label = t(now ? "chat.stop" : "chat.send");
    go.setAttribute("aria-label", label);
    go.title = label;
    go.classList.toggle("stop", now);
    set(go, icon(now ? "stop" : "send"));
    resize();
  };
  area.addEventListener("input", resize);
  area.addEventListener("keydown", (event) => {
    // Enter also ends a word of an input method: that one is no sending.
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
      event.preventDefault();
      if (!writing) submit();
    }
  });
  go.addEventListener("click", submit);
  busy(false);
  requestAnimationFrame(resize);

  const element = h(
    "div.composer",
    null,
    panel,
    h("div.box", null, area, h("div.row", null, switch_two(), tune(panel), h("span.spring"), go)),
    h("p.fine", null, t("chat.foot")),
  );
  return { element, area, busy };
}

function switch_two() {
  const toggle = h("input", {
    type: "checkbox",
    role: "switch",
    checked: two,
    onchange: (event) => {
      two = event.target.checked;
      remember("fledge.two", two ? "yes" : "no");
    },
  });
  return h("label.switch", { title: t("chat.two.more") }, toggle, h("span", null, t("chat.two")));
}

function tune(panel) {
  const open = button(
    "tune",
    t("chat.tune"),
    () => {
      panel.hidden = !panel.hidden;
      open.setAttribute("aria-expanded", String(!panel.hidden));
      if (!panel.hidden) {
        set(panel, ...fields(open));
        panel.querySelector("input").focus();
      }
    },
    {
      compact: true,
      "aria-expanded": "false",
      "aria-controls": panel.id,
      kind: Object.keys(chosen).length ? "set" : "",
    },
  );
  panel.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      panel.hidden = true;
      open.setAttribute("aria-expanded", "false");
      open.focus();
    }
  });
  return open;
}

function fields(open) {
  const store = () => {
    remember("fledge.sampling", JSON.stringify(chosen));
    open.classList.toggle("set", Object.keys(chosen).length > 0);
  };
  const rows = FIELDS.map(({ key, min, max, step }) => {
    const id = fresh(key);
    const input = h("input", {
      id,
      type: "number",
      inputmode: "decimal",
      min,
      max,
      step,
      value: chosen[key] ?? "",
      placeholder: t("chat.default"),
      oninput: (event) => {
        const value = event.target.valueAsNumber;
        if (Number.isFinite(value) && value >= min && value <= max) chosen[key] = value;
        else delete chosen[key];
        store();
      },
    });
    const note = key !== "max_tokens" ? h("small", { id: `${id}-note` }, t(`chat.${key}.more`)) : null;
    if (note) input.setAttribute("aria-describedby", note.id);
    return h("div.field", null, h("label", { for: id }, t(`chat.${key}`)), input, note);
  });
  const reset = () => {
    for (const { key } of FIELDS) delete chosen[key];
    store();
    for (const input of open.closest(".composer").querySelectorAll(".tune input")) input.value = "";
  };
  return [h("div.fields", null, rows), h("button.small", { type: "button", onclick: reset }, t("chat.reset"))];
}
