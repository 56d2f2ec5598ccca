// Who is here, what has been voted, taking the votes along, and being forgotten.

import { get, post } from "./api.js";
import { h, name, set } from "./dom.js";
import { has, t } from "./i18n.js";
import { announce, button, dialog, problem, skeleton } from "./ui.js";

const FORMATS = ["dpo", "kto", "sft", "pairs", "prompts", "arena", "argilla"];

export function open_account(me) {
  const body = h("div.account", null, me.person.role === "owner" && [votes(), exported()], forgotten());
  dialog("account", me.person.name === "owner" ? t("app.owner") : name(me.person.name, 60), body);
}

function votes() {
  const out = h("div", null, skeleton(2));
  get("/api/votes/summary").then(
    (told) => {
      const kinds = Object.entries(told.kinds).filter(([, n]) => n > 0);
      set(
        out,
        kinds.length
          ? h(
              "dl.counts",
              null,
              kinds.map(([kind, n]) =>
                h("div", null, h("dt", null, has(`kind.${kind}`) ? t(`kind.${kind}`) : kind), h("dd", null, String(n))),
              ),
            )
          : h("p.dim", null, t("account.none")),
      );
    },
    (error) => set(out, problem(error)),
  );
  return h("section", null, h("h3", null, t("account.votes")), out);
}

function exported() {
  return h(
    "section",
    null,
    h("h3", null, t("account.export")),
    h("p.dim", null, t("account.export.more")),
    h(
      "div.row",
      null,
      FORMATS.map((format) =>
        h("a.button.small", { href: `/api/export?format=${format}`, download: `${format}.jsonl` }, format),
      ),
    ),
  );
}

function forgotten() {
  const place = h("div.row");
  const ask = () => set(place, button("warn", t("account.forget"), sure, { kind: "small" }));
  const sure = () => {
    set(
      place,
      h("b", null, t("account.sure")),
      h("button.primary.small", { type: "button", onclick: go }, t("account.yes")),
      h("button.small", { type: "button", onclick: ask }, t("app.cancel")),
    );
    place.querySelector("button").focus();
  };
  const go = async () => {
    try {
      await post("/api/forget", { confirm: "forget me" });
      set(place, h("p.dim", null, t("account.forgotten")));
      announce(t("account.forgotten"));
      setTimeout(() => {
        // every view may still show what is gone now
        location.hash = "#chat";
        location.reload();
      }, 1500);
    } catch (error) {
      set(place, problem(error, go));
    }
  };
  ask();
  return h("section", null, h("h3", null, t("account.privacy")), h("p.dim", null, t("account.privacy.more")), place);
}
