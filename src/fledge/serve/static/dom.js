// Elements without markup strings: whatever reaches the page goes through text nodes, so no text can become a tag.

const SVG = "http://www.w3.org/2000/svg";

/** h("button.primary", {onclick, "aria-label": ..}, children): null and false children are left out. */
export function h(name, props, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  return fill(element, props, children);
}

/** The same for SVG. */
export function s(name, props, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElementNS(SVG, tag);
  if (classes.length) element.setAttribute("class", classes.join(" "));
  return fill(element, props, children);
}

function fill(element, props, children) {
  for (const [key, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "class") element.setAttribute("class", `${element.getAttribute("class") || ""} ${value}`.trim());
    else if (key === "value" || key === "checked" || key === "disabled") element[key] = value;
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  put(element, ...children);
  return element;
}

/** Append children: nodes, strings, lists of them; null and false are left out. */
export function put(element, ...children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

/** Replace everything inside. */
export function set(element, ...children) {
  element.replaceChildren();
  return put(element, ...children);
}

// What hides or reorders text: controls, direction overrides, surrogates, unassigned and private characters.
// Joiners belong to ordinary Persian words and to emoji.
const HIDDEN = /(?![\n\t\u200c\u200d])[\p{Cc}\p{Cf}\p{Cs}\p{Cn}\p{Co}\p{Zl}\p{Zp}]/u;
const HIDDEN_RUN = /((?:(?![\n\t\u200c\u200d])[\p{Cc}\p{Cf}\p{Cs}\p{Cn}\p{Co}\p{Zl}\p{Zp}])+)/u;
const MARKS = /(\p{M}{6})(\p{M}+)/gu; // no script puts more marks on one letter

function code(character) {
  const point = character.codePointAt(0);
  const digits = point.toString(16);
  if (point < 256) return `\\x${digits.padStart(2, "0")}`;
  return point < 65536 ? `\\u${digits.padStart(4, "0")}` : `\\U${digits.padStart(8, "0")}`;
}

function written(run) {
  const all = [...run];
  const shown = all.slice(0, 12).map(code).join("");
  return all.length > 12 ? `${shown}… ×${all.length}` : shown;
}

/** Foreign text as nodes: characters that hide or reorder are written out, towers of accents are cut. */
export function shown(text) {
  const calm = String(text)
    .replace(/\r\n/g, "\n")
    .replace(MARKS, (_, kept, rest) => `${kept}\u0000+${[...rest].length}\u0000`);
  if (!HIDDEN.test(calm)) return [document.createTextNode(calm)];
  return calm
    .split(/(\u0000\+\d+\u0000)/u)
    .flatMap((part) => {
      const cut = /^\u0000(\+\d+)\u0000$/u.exec(part);
      if (cut) return [h("span.ctl", null, `${cut[1]} ◌́`)];
      return part.split(HIDDEN_RUN).map((piece) => (HIDDEN.test(piece) ? h("span.ctl", null, written(piece)) : piece));
    })
    .filter((piece) => piece !== "")
    .map((piece) => (piece instanceof Node ? piece : document.createTextNode(piece)));
}

/** The same as a string, for labels and options; cut to `limit` characters. */
export function plain(text, limit = 200) {
  const calm = String(text)
    .replace(MARKS, "$1…")
    .slice(0, limit * 4);
  const told = calm
    .split(HIDDEN_RUN)
    .map((piece) => (HIDDEN.test(piece) ? written(piece) : piece))
    .join("");
  return told.length > limit ? `${told.slice(0, limit - 1)}…` : told;
}

/** Foreign text on one line, in its own direction. */
export function name(text, limit = 200) {
  return h("bdi", null, plain(String(text).replace(/\s+/g, " "), limit));
}

const ICONS = {
  chat: "M4 5.5h16v11H10l-4.5 3.5v-3.5H4z",
  rate: "M4 5h7v14H4zM13 5h7v14h-7zM6.5 11.5l1.2 1.2 1.8-2.2",
  next: "M4 6h9M4 12h15M4 18h5",
  shift: "M4 7h16M4 12h5M11.5 12H20M4 17h9M15.5 17H20",
  runs: "M4 4v16h16M7.5 8c1.5 6 4 7.5 11.5 8",
  plus: "M12 5v14M5 12h14",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  up: "M7 11v9H4v-9zM7 11l4-7.5c1.6 0 2.6 1.2 2.2 2.9L12.5 9.5H19c1 0 1.7 1 1.4 2l-1.9 7c-.2.9-1 1.5-1.9 1.5H7",
  down: "M17 13V4h3v9zM17 13l-4 7.5c-1.6 0-2.6-1.2-2.2-2.9l.7-3.1H5c-1 0-1.7-1-1.4-2l1.9-7C5.700 4.600 6.500 4 7.400 4H17",
  edit: "M5 19h3.5L19 8.500 15.500 5 5 15.500zM13 7.500l3.500 3.500",
  again: "M19 12a7 7 0 1 1-2.200-5.100M19 4v4h-4",
  copy: "M9 9h10v10H9zM15 9V5H5v10h4",
  check: "M5 12.500l4.500 4.500L19 7.500",
  close: "M6 6l12 12M18 6L6 18",
  menu: "M4 7h16M4 12h16M4 17h16",
  tune: "M4 8h9M17 8h3M4 16h3M11 16h9M15 5.800v4.400M9 13.800v4.400",
  help: "M9 9.500a3 3 0 1 1 4.300 2.700c-.9.500-1.300 1-1.300 2M12 17.500v.01M12 3.500a8.500 8.500 0 1 0 0 17 8.500 8.500 0 0 0 0-17z",
  light:
    "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 3v1.500M12 19.500V21M3 12h1.500M19.500 12H21M5.600 5.600l1.100 1.100M17.300 17.300l1.100 1.100M5.600 18.400l1.100-1.100M17.300 6.700l1.100-1.100",
  dark: "M19 14.500A7.500 7.500 0 0 1 9.500 5a7.500 7.500 0 1 0 9.500 9.500z",
  auto: "M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16",
  two: "M4 5h6.500v14H4zM13.500 5H20v14h-6.500z",
  left: "M14.500 6l-6 6 6 6",
  right: "M9.500 6l6 6-6 6",
  undo: "M8 5L4 9l4 4M4 9h10a5 5 0 0 1 0 10h-4",
  globe:
    "M12 3.500a8.500 8.500 0 1 0 0 17 8.500 8.500 0 0 0 0-17zM3.500 12h17M12 3.500c5 5 5 12 0 17M12 3.500c-5 5-5 12 0 17",
  warn: "M12 4l9 16H3zM12 10v4.500M12 17.300v.01",
};

/** A line drawing of 24 units, hidden from screen readers: the control around it carries the words. */
export function icon(what) {
  return s(
    "svg.icon",
    { viewBox: "0 0 24 24", "aria-hidden": "true", focusable: "false" },
    s("path", { d: ICONS[what] }),
  );
}

/** The mark of the page: a feather. */
export function feather() {
  return s(
    "svg.feather",
    { viewBox: "0 0 32 32", "aria-hidden": "true", focusable: "false" },
    s("path.vane", { d: "M27 4C15 4.500 8 10 7.500 20.500L10 23c9.500-.4 16.500-7.500 17-19z" }),
    s("path.quill", { d: "M5 28C8.500 21 13.500 15.500 20 11.500" }),
  );
}

/** Grow a textarea with its text, between CSS's min-height and max-height. */
export function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

let counter = 0;
/** An id for aria-labelledby and for=. */
export function fresh(stem) {
  counter += 1;
  return `${stem}-${counter}`;
}
