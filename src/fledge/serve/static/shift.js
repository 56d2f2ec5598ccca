// What alignment changed: an answer token by token, by how far down each stood in the base model's own list.

import { post } from "./api.js";
import { fresh, grow, h, name, plain, set, shown } from "./dom.js";
import { number, percent, t } from "./i18n.js";
import { visible } from "./next.js";
import { storable } from "./talk.js";
import { announce, empty, problem, skeleton, stage_name, words } from "./ui.js";

const KINDS = ["unshifted", "marginal", "shifted"];

let view = null;
const form = { prompt: "", answer: "", model: "", base: "", context: "chat" };

export function open(place) {
  const models = place.me.models;
  const bases = models.filter((m) => m.stage === "pretrain");
  view = { result: h("div.result") };
  set(
    place.main,
    h(
      "div.page",
      null,
      h("h1", null, t("shift.title")),
      h("p.lead", null, t("shift.lead")),
      models.length > 1 && asking(models, bases),
      view.result,
    ),
  );
  if (models.length < 2 || !bases.length) set(view.result, empty("shift", t("shift.title"), words("shift.needs")));
  else if (place.rest) compare({ draft: place.rest });
  else set(view.result, beginning());
}

export function close() {
  view = null;
}

/** The form: a question, an answer if one is at hand, and the two models. */
function asking(models, bases) {
  const tuned = models.filter((m) => m.stage !== "pretrain");
  form.model = tuned.some((m) => m.name === form.model)
    ? form.model
    : (tuned.find((m) => m.default) || tuned[tuned.length - 1] || models[0]).name;
  form.base = models.some((m) => m.name === form.base) ? form.base : (bases[0] || models[0]).name;
  const field = (key, hint, rows) =>
    h(
      "div.field",
      null,
      h("label", { for: `shift-${key}` }, t(`shift.${key}`)),
      h("textarea", {
        id: `shift-${key}`,
        rows,
        maxlength: "8000",
        placeholder: t(hint),
        value: form[key],
        oninput: (event) => {
          form[key] = event.target.value;
          grow(event.target);
        },
        onkeydown: (event) => {
          if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
            event.preventDefault();
            go();
          }
        },
      }),
    );
  const pick = (key, among) =>
    h(
      "div.field",
      null,
      h("label", { for: `shift-${key}` }, t(`shift.${key}`)),
      h(
        "select",
        {
          id: `shift-${key}`,
          onchange: (event) => {
            form[key] = event.target.value;
          },
        },
        among.map(([value, text]) => h("option", { value, selected: value === form[key] }, text)),
      ),
    );
  const named = models.map((m) => [m.name, `${plain(m.name, 40)} · ${stage_name(m.stage)}`]);
  const contexts = ["chat", "plain"].map((value) => [value, t(`shift.context.${value}`)]);
  return h(
    "form.ask-shift.card",
    {
      onsubmit: (event) => {
        event.preventDefault();
        go();
      },
    },
    field("prompt", "shift.prompt.hint", "1"),
    field("answer", "shift.answer.hint", "1"),
    h(
      "div.row",
      null,
      pick("model", named),
      pick("base", named),
      pick("context", contexts),
      h("button.primary", { type: "submit" }, t("shift.go")),
    ),
  );
}

/** Before the first question. */
function beginning() {
  const ask = (text) => () => {
    form.prompt = text;
    document.getElementById("shift-prompt").value = text;
    go();
  };
  const tries = [1, 2, 3].map((i) =>
    h("button.try", { type: "button", onclick: ask(t(`chat.try.${i}`)) }, t(`chat.try.${i}`)),
  );
  return h(
    "div.empty",
    null,
    h("p", null, t("shift.empty")),
    h("div.tries", { role: "group", "aria-label": t("chat.try") }, tries),
  );
}

function go() {
  if (!form.prompt.trim()) {
    document.getElementById("shift-prompt").focus();
    return;
  }
  compare({
    prompt: storable(form.prompt),
    answer: form.answer.trim() ? storable(form.answer) : null,
    model: form.model,
    base: form.base,
    context: form.context,
  });
}

async function compare(body) {
  const mine = view;
  set(mine.result, h("div.card", null, skeleton(4)));
  try {
    const told = await post("/api/shift", { ...body, top: 5 });
    if (view === mine) draw(told);
  } catch (error) {
    if (view === mine)
      set(
        mine.result,
        problem(error, () => compare(body)),
      );
  }
}

function draw(told) {
  if (!told.tokens.some((token) => !token.control)) {
    set(view.result, h("p.hint", null, t("shift.nothing")));
    return;
  }
  const inspector = h("div.inspector.card", { "aria-live": "polite" }, h("p.dim", null, t("shift.pick")));
  const label = fresh("shift");
  const tokens = told.tokens.map((token, i) =>
    token_button(token, i, (button) => inspect(inspector, token, button, told)),
  );
  const line = h("div.tokens", { role: "toolbar", "aria-labelledby": label, onkeydown: rove }, tokens);
  set(
    view.result,
    h("section.card", null, h("h2", { id: label }, t("shift.result")), shares(told.shares), line),
    inspector,
  );
  if (window.innerWidth < 832) view.result.scrollIntoView({ block: "start" });
  announce(KINDS.map((kind) => `${t(`shift.${kind}`)} ${percent(told.shares[kind])}`).join(", "));
}

/** One bar for the whole answer, which is the legend too. */
function shares(found) {
  const bar = h(
    "div.stack",
    { "aria-hidden": "true" },
    KINDS.map((kind) => {
      const part = h(`span.${kind}`);
      part.style.flexGrow = String(found[kind]);
      return found[kind] > 0 && part;
    }),
  );
  const legend = KINDS.map((kind) =>
    h(
      "li",
      null,
      h(`span.key.${kind}`, { "aria-hidden": "true" }),
      h("b", null, t(`shift.${kind}`)),
      " ",
      percent(found[kind]),
      h("small", null, t(`shift.${kind}.more`)),
    ),
  );
  return h("div.shares", null, bar, h("ul", null, legend));
}

function token_button(token, i, look) {
  const label = `${plain(token.text, 40)}: ${t(`shift.${token.category}`)}, ${t("shift.rank", { n: token.rank })}`;
  const inner = token.control
    ? h("span.control", null, plain(token.text, 24))
    : token.piece
      ? shown(token.piece)
      : h("span.blank", null, "·");
  return h(
    `button.tok.${token.category}`,
    {
      type: "button",
      tabindex: i ? "-1" : "0",
      "aria-label": label,
      onpointerenter: (event) => look(event.currentTarget),
      onfocus: (event) => look(event.currentTarget),
      onclick: (event) => look(event.currentTarget),
    },
    inner,
  );
}

/** Arrow keys walk along the answer. */
function rove(event) {
  const all = [...event.currentTarget.querySelectorAll(".tok")];
  const at = all.indexOf(document.activeElement);
  const to = {
    ArrowRight: at + 1,
    ArrowDown: at + 1,
    ArrowLeft: at - 1,
    ArrowUp: at - 1,
    Home: 0,
    End: all.length - 1,
  }[event.key];
  if (to === undefined || !all[to]) return;
  event.preventDefault();
  for (const each of all) each.tabIndex = -1;
  all[to].tabIndex = 0;
  all[to].focus();
}

/** Both distributions at one token. */
function inspect(inspector, token, button, told) {
  for (const each of button.parentNode.querySelectorAll(".on")) each.classList.remove("on");
  button.classList.add("on");
  const most = Math.max(0.01, ...token.top.map((x) => x.p), ...token.base_top.map((x) => x.p));
  set(
    inspector,
    h(
      "header",
      null,
      h("span.tok", { class: token.category }, visible(token)),
      h("b", null, t(`shift.${token.category}`)),
      h("span.dim", null, t("shift.rank", { n: token.rank })),
      h("span.dim", null, t("shift.kl", { n: number(token.kl) })),
    ),
    h(
      "div.both",
      null,
      side(told.base ? name(told.base, 40) : t("shift.base"), token.base_top, token, "base", most, token.base_p),
      side(told.model ? name(told.model, 40) : t("shift.model"), token.top, token, "aligned", most, token.p),
    ),
  );
}

function side(title, top, token, kind, most, own) {
  const rows = top.some((x) => x.id === token.id)
    ? top
    : [...top.slice(0, -1), { id: token.id, text: token.text, p: own }];
  return h(
    "div",
    { class: kind },
    h("h3", null, title),
    h(
      "ol.bars",
      null,
      rows.map((x) => {
        const fill = h("span.fill");
        fill.style.width = `${Math.max(0.5, (x.p / most) * 100)}%`;
        return h(
          "li.bar-row",
          { class: x.id === token.id ? "same" : "" },
          h("span.token", null, visible(x)),
          h("span.track", null, fill),
          h("span.share", null, percent(x.p)),
        );
      }),
    ),
  );
}
