// What a person can say about one answer: thumbs with reasons and a comment, a score, a better version.

import { fresh, grow, h, icon, put, set } from "./dom.js";
import { t } from "./i18n.js";
import { vote } from "./queue.js";
import { storable } from "./talk.js";
import { announce, button, problem } from "./ui.js";

const REASONS = {
  1: ["correct", "clear", "complete", "brief", "kind"],
  [-1]: ["wrong", "off_topic", "unclear", "too_long", "repeats", "harmful"],
};
const SETTLE_MS = 500; // arrow keys pass over scores on their way; only where they rest is sent

/** The row of tools under answer `d`; `extra` are buttons of the view, `changed` redraws the answer. */
export function tools(d, since, extra, changed) {
  const row = h("div.tools", { role: "group", "aria-label": t("vote.tools") });
  const under = h("div.under");
  const dwell = () => Math.max(0, Date.now() - since);
  put(
    row,
    thumb(d, 1, under, dwell),
    thumb(d, -1, under, dwell),
    score(d, under, dwell),
    button("edit", t("vote.edit"), () => edit(d, under, dwell, changed), {
      compact: true,
      kind: "do-edit",
      disabled: !d.id,
    }),
    extra,
  );
  return h("div.judge", null, row, under);
}

/** Send a vote; a refusal is shown in `under` and undone. */
function cast(content, under, undo) {
  const sent = vote(content);
  sent.answered.catch((error) => {
    undo();
    set(under, h("p.note", null, t("vote.refused")), problem(error));
  });
  return sent.id;
}

function thumb(d, value, under, dwell) {
  const up = value === 1;
  const pressed = Boolean(d.thumb && d.thumb.value === value);
  const label = t(up ? "vote.up" : "vote.down");
  const press = (event) => {
    const before = d.thumb;
    if (before && before.value === value) {
      cast({ kind: "retract", vote: before.id }, under, () => {});
      d.thumb = null;
      set(under);
      announce(t("vote.withdrawn"));
    } else {
      const id = cast({ kind: "thumb", draft: d.id, value, dwell_ms: dwell() }, under, () => {
        d.thumb = before;
        mark(event.target.closest(".tools"), d);
      });
      d.thumb = { id, value, reasons: [], comment: "" };
      set(under, reasons(d, under, dwell));
      under.scrollIntoView({ block: "nearest" });
      announce(t("vote.thanks"));
    }
    mark(event.currentTarget.closest(".tools"), d);
  };
  return button(up ? "up" : "down", label, press, {
    compact: true,
    kind: up ? "thumb-up" : "thumb-down",
    "aria-pressed": String(pressed),
    disabled: !d.id,
  });
}

function mark(row, d) {
  const now = d.thumb ? d.thumb.value : 0;
  row.querySelector(".thumb-up").setAttribute("aria-pressed", String(now === 1));
  row.querySelector(".thumb-down").setAttribute("aria-pressed", String(now === -1));
}

/** Why a thumb: chips and a comment, sent as a second vote that stands in for the first. */
function reasons(d, under, dwell) {
  const { value } = d.thumb;
  const picked = new Set(d.thumb.reasons);
  const title = fresh("why");
  const chip = (reason) =>
    h(
      "button.chip",
      {
        type: "button",
        "aria-pressed": String(picked.has(reason)),
        onclick: (event) => {
          if (!picked.delete(reason)) picked.add(reason);
          event.currentTarget.setAttribute("aria-pressed", String(picked.has(reason)));
        },
      },
      t(`vote.reason.${reason}`),
    );
  const comment = h("textarea", {
    rows: "1",
    maxlength: "1000",
    "aria-label": t("vote.comment"),
    placeholder: t("vote.comment.hint"),
    oninput: (event) => grow(event.target),
  });
  const close = () => {
    const row = under.closest(".judge").querySelector(value === 1 ? ".thumb-up" : ".thumb-down");
    set(under);
    row.focus();
  };
  const save = () => {
    const before = d.thumb;
    const content = {
      kind: "thumb",
      draft: d.id,
      value,
      reasons: [...picked],
      comment: storable(comment.value.trim()),
      dwell_ms: dwell(),
    };
    d.thumb = {
      ...content,
      id: cast(content, under, () => {
        d.thumb = before;
      }),
    };
    close();
    set(under, h("p.thanks", null, icon("check"), t("vote.thanks")));
    announce(t("vote.thanks"));
  };
  const keys = (event) => {
    if (event.key === "Escape") close();
    else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
    else return;
    event.stopPropagation();
  };
  return h(
    "div.why",
    { role: "group", "aria-labelledby": title, onkeydown: keys },
    h(
      "p",
      { id: title },
      t(value === 1 ? "vote.why.up" : "vote.why.down"),
      " ",
      h("span.dim", null, t("vote.optional")),
    ),
    h("div.chips", null, REASONS[value].map(chip)),
    comment,
    h(
      "div.row",
      null,
      h("button.primary.small", { type: "button", onclick: save }, t("app.save")),
      h("button.small", { type: "button", onclick: close }, t("app.close")),
    ),
  );
}

function score(d, under, dwell) {
  const group = fresh("score");
  let timer = null;
  const pick = (value) => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      const before = d.score;
      const id = cast({ kind: "score", draft: d.id, value, dwell_ms: dwell() }, under, () => {
        d.score = before;
      });
      d.score = { id, value };
      announce(`${t("vote.score.n", { n: value })}. ${t("vote.thanks")}`);
    }, SETTLE_MS);
  };
  const dot = (value) =>
    h(
      "label",
      null,
      h("input", {
        type: "radio",
        name: group,
        value: String(value),
        checked: Boolean(d.score && d.score.value === value),
        disabled: !d.id,
        "aria-label": t("vote.score.n", { n: value }),
        onchange: () => pick(value),
      }),
      h("span", { "aria-hidden": "true" }, value),
    );
  return h(
    "div.score",
    { role: "radiogroup", "aria-label": t("vote.score.label") },
    h("span.dim", { "aria-hidden": "true" }, t("vote.score")),
    [0, 1, 2, 3, 4, 5].map(dot),
  );
}

/** The answer as it should be: kept as an example, and the conversation goes on with it. */
export function edit(d, under, dwell, changed) {
  const area = h("textarea.edited", {
    "aria-label": t("vote.edit.label"),
    value: d.edit ?? d.text,
    maxlength: "60000",
    oninput: (event) => grow(event.target),
  });
  const leave = () => {
    set(under);
    changed();
  };
  const save = () => {
    const text = storable(area.value);
    if (!text.trim() || text === (d.edit ?? d.text)) return leave();
    const before = d.edit;
    cast({ kind: "edit", draft: d.id, text, dwell_ms: dwell() }, under, () => {
      d.edit = before;
    });
    d.edit = text;
    announce(t("vote.kept.edit"));
    return leave();
  };
  const keys = (event) => {
    if (event.key === "Escape") leave();
    else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  set(
    under,
    h(
      "div.editor",
      { onkeydown: keys },
      area,
      h("p.dim", null, t("vote.edit.more")),
      h(
        "div.row",
        null,
        h("button.primary.small", { type: "button", onclick: save }, t("app.save")),
        h("button.small", { type: "button", onclick: leave }, t("app.cancel")),
      ),
    ),
  );
  grow(area);
  area.focus();
  under.scrollIntoView({ block: "nearest" });
}
