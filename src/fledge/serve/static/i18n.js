// The page's words in two languages, and numbers as each writes them.

import { en } from "./en.js";
import { zh } from "./zh.js";

const WORDS = { en, zh };
const TAGS = { en: "en", zh: "zh-Hant" };
const listeners = new Set();

function remembered(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

/** Keep a setting of this browser; where storage is closed it lasts until the page is closed. */
export function remember(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // nothing to do
  }
}

export { remembered };

let language = remembered("fledge.language") || (/^zh/i.test(navigator.language || "") ? "zh" : "en");
if (!WORDS[language]) language = "en";
document.documentElement.lang = TAGS[language];

export function current() {
  return language;
}

/** Change the language of the page at once; everything drawn asks again. */
export function speak(next) {
  language = next;
  document.documentElement.lang = TAGS[next];
  remember("fledge.language", next);
  for (const listener of listeners) listener(next);
}

export function onLanguage(listener) {
  listeners.add(listener);
}

/** The words of a key; {name} is replaced, and "key.one" is used where n is 1. A missing key is our own bug. */
export function t(key, values = {}) {
  const words = WORDS[language];
  const found = values.n === 1 && words[`${key}.one`] !== undefined ? words[`${key}.one`] : words[key];
  if (found === undefined) throw new Error(`no words for ${key} in ${language}`);
  return found.replace(/\{(\w+)\}/g, (whole, name) => {
    const value = values[name];
    if (value === undefined) return whole;
    return typeof value === "number" ? whole_number(value) : value;
  });
}

/** Whether there are words for a key: the server may name a stage or a state this page has never heard of. */
export function has(key) {
  return WORDS[language][key] !== undefined;
}

function whole_number(value) {
  return value.toLocaleString("en-US", { maximumFractionDigits: 0 });
}

/** 0.664, 12.3, 4,930: three significant digits. */
export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.0001 || size >= 1e7))
    return value.toExponential(1).replaceAll("-", "−").replace("e+", "e").replace(".0e", "e");
  if (Number.isInteger(value)) return value.toLocaleString("en-US").replace("-", "−");
  if (size < 1) return String(Number(value.toPrecision(3))).replace("-", "−");
  const digits = size >= 1000 ? 0 : size >= 100 ? 1 : 2;
  return value.toLocaleString("en-US", { maximumFractionDigits: digits }).replace("-", "−");
}

/** 81%, 3.2%, <0.1%: a share of 1. */
export function percent(share) {
  if (share === null || share === undefined || !Number.isFinite(share)) return "–";
  if (share > 0 && share < 0.0005) return "<0.1%";
  if (share > 0.9995 && share < 1) return ">99.9%";
  const digits = share < 0.1 || (share > 0.99 && share < 1) ? 1 : 0;
  return `${(share * 100).toFixed(digits)}%`.replace(".0%", "%");
}

/** "just now", "5 min ago", else the day. */
export function ago(ms) {
  const seconds = Math.max(0, (Date.now() - ms) / 1000);
  if (seconds < 60) return t("time.now");
  if (seconds < 3600) return t("time.minutes", { n: Math.floor(seconds / 60) });
  if (seconds < 86400) return t("time.hours", { n: Math.floor(seconds / 3600) });
  return new Date(ms).toLocaleDateString(language === "zh" ? "zh-TW" : "en-GB", {
    day: "numeric",
    month: "short",
    year: "numeric",
  });
}
