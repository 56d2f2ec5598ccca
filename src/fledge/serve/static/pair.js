// Two drafts side by side without names, the four verdicts on them, and the names afterwards.

import { h, icon, name } from "./dom.js";
import { t } from "./i18n.js";
import { vote } from "./queue.js";
import { announce, problem } from "./ui.js";

export const CHOICES = ["left", "right", "same", "both_bad"];

/** The verdict a key stands for, or null. */
export function choice_of(key) {
  return CHOICES[["1", "2", "3", "4"].indexOf(key)] || null;
}

/** Two cards; `drawn` are their contents, v has choice and revealed. */
export function cards(v, drawn) {
  return h(
    "div.pair",
    null,
    drawn.map((content, i) => {
      const side = CHOICES[i];
      const best = v.choice === side;
      const by = v.revealed && v.revealed[side];
      return h(
        "section.card.draft",
        {
          class: best ? "best" : v.choice && CHOICES.indexOf(v.choice) < 2 ? "other" : "",
          "aria-label": t("pair.draft", { n: i + 1 }),
        },
        h(
          "header",
          null,
          h("h3", null, t("pair.draft", { n: i + 1 })),
          by && h("span.by", null, name(by, 60)),
          best && h("span.mark", null, icon("check"), h("span", null, t("pair.best"))),
        ),
        content,
      );
    }),
  );
}

/** The four verdicts; choose(choice) is called once. */
export function verdicts(choose, disabled = false) {
  const press = (choice) => () => choose(choice);
  return h(
    "div.verdicts",
    { role: "group", "aria-label": t("pair.question") },
    h("p", null, t("pair.question")),
    h(
      "div.row",
      null,
      CHOICES.map((choice, i) =>
        h(
          "button",
          {
            type: "button",
            disabled,
            "data-choice": choice,
            "aria-keyshortcuts": String(i + 1),
            onclick: press(choice),
          },
          h("kbd", { "aria-hidden": "true" }, i + 1),
          h("span", null, t(`pair.${choice}`)),
        ),
      ),
    ),
  );
}

/** Send the verdict on version v; changed() redraws once now and once when the names are known.
 *  Returns a promise of the server's answer, null where the pair is not to be judged (any more). */
export function judge(v, choice, changed) {
  if (!v.task || v.choice || v.retracted) return null;
  const sent = vote({ kind: "pair", task: v.task, choice, dwell_ms: Math.max(0, Date.now() - v.ready_ms) });
  Object.assign(v, { choice, vote: sent.id });
  announce(t(`pair.said.${choice}`));
  changed();
  sent.answered.then(
    (stored) => {
      v.revealed = stored.revealed;
      if (v.revealed)
        announce(
          [1, 2]
            .map((n) => `${t("pair.draft", { n })} ${t("pair.by", { model: v.revealed[CHOICES[n - 1]] })}`)
            .join(", "),
        );
      changed();
    },
    (error) => {
      Object.assign(v, { choice: null, vote: null, refused: error });
      changed();
    },
  );
  return sent.answered;
}

/** Withdraw the verdict. The names have been seen, so the pair is not judged again. */
export function take_back(v, changed) {
  vote({ kind: "retract", vote: v.vote });
  Object.assign(v, { choice: null, vote: null, retracted: true });
  announce(t("pair.back.done"));
  changed();
}

/** What stands below the two cards: the question, or the verdict. */
export function below(v, changed) {
  if (v.retracted) return h("p.note", null, t("pair.back.done"));
  if (v.refused) return problem(v.refused);
  if (!v.choice) return verdicts((choice) => judge(v, choice, changed), !v.task);
  return h(
    "p.said",
    null,
    icon("check"),
    h("span", null, t(`pair.said.${v.choice}`)),
    h("button.link", { type: "button", onclick: () => take_back(v, changed) }, t("pair.back")),
  );
}
