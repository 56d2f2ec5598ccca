// Curves as SVG, drawn by hand: one measure to a chart, the raw figures pale behind their running mean.

import { h, s, set } from "./dom.js";
import { number, t } from "./i18n.js";

const LEFT = 46;
const RIGHT = 10;
const TOP = 8;
const BOTTOM = 24;

/** About `count` round numbers from low to high. */
export function ticks(low, high, count) {
  const span = high - low || Math.abs(high) || 1;
  const rough = span / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((m) => m >= rough) || rough;
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step)
    found.push(Math.abs(at) < step / 1e6 ? 0 : at);
  return found;
}

/** Mean of each point's neighbours, as many on the left as on the right, so that a falling curve does not lag behind. */
export function smooth(points) {
  return boxed(boxed(points));
}

function boxed(points) {
  const half = Math.round(points.length / 70);
  const sums = [0];
  for (const [, y] of points) sums.push(sums[sums.length - 1] + y);
  return points.map(([x], i) => {
    const reach = Math.min(half, i, points.length - 1 - i);
    return [x, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)];
  });
}

/** The range of y that is worth showing: a first spike does not press the rest flat. */
function range(points) {
  const values = points.map(([, y]) => y).sort((a, b) => a - b);
  const at = (share) => values[Math.min(values.length - 1, Math.floor(share * values.length))];
  let [low, high] = values.length > 40 ? [at(0.002), at(0.985)] : [values[0], values[values.length - 1]];
  low = Math.min(low, ...points.slice(-5).map(([, y]) => y));
  high = Math.max(high, ...points.slice(-5).map(([, y]) => y));
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  const pad = (high - low) * 0.06;
  return [low >= 0 && low < high * 0.35 ? 0 : low - pad, high + pad];
}

/** A figure of one measure. points: [step, value]; kind: colour class; tall: the first of a page. */
export function chart(title, points, { kind = "", tall = false, width = 480 } = {}) {
  const height = tall ? 250 : 150;
  const figure = h("figure.chart", { class: `${kind} ${tall ? "tall" : ""}` });
  const value = h("span.value");
  const [first, last] = [points[0], points[points.length - 1]];
  const label = t("runs.chart", {
    what: title,
    first: number(first[1]),
    from: first[0],
    last: number(last[1]),
    to: last[0],
  });
  const [low, high] = range(points);
  const x_low = Math.min(first[0], 0);
  const x_high = Math.max(last[0], 1);
  const x = (step) => LEFT + ((step - x_low) / (x_high - x_low || 1)) * (width - LEFT - RIGHT);
  const y = (v) => TOP + (1 - (v - low) / (high - low)) * (height - TOP - BOTTOM);
  const path = (line) => line.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
  const grid = ticks(low, high, tall ? 5 : 3).map((v) =>
    s(
      "g",
      null,
      s("line.grid", { x1: LEFT, x2: width - RIGHT, y1: y(v), y2: y(v) }),
      s("text", { x: LEFT - 8, y: y(v) + 3.5, "text-anchor": "end" }, short(v)),
    ),
  );
  const steps = ticks(x_low, x_high, Math.max(2, Math.floor(width / 75))).filter((v) => Number.isInteger(v));
  const below = steps.map((v) =>
    s("text", { x: x(v), y: height - 6, "text-anchor": x(v) > width - 30 ? "end" : "middle" }, short(v)),
  );
  const cursor = s("g.cursor", null, s("line", { y1: TOP, y2: height - BOTTOM }), s("circle", { r: 4 }));
  const svg = s(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    grid,
    below,
    s(
      "svg",
      { width, height: height - BOTTOM + 2, overflow: "hidden", "aria-hidden": "true" },
      points.length > 2 && s("path.raw", { d: path(points) }),
      s("path.mean", { d: path(points.length > 8 ? smooth(points) : points) }),
    ),
    points.length < 9 && points.map(([a, b]) => s("circle.few", { cx: x(a), cy: y(b), r: 3 })),
    s("circle.end", {
      cx: x(last[0]),
      cy: y(points.length > 8 ? smooth(points)[points.length - 1][1] : last[1]),
      r: 3.5,
    }),
    cursor,
  );
  const rest = () => {
    set(value, number(last[1]));
    cursor.classList.remove("on");
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const step =
      x_low + ((((event.clientX - box.left) / box.width) * width - LEFT) / (width - LEFT - RIGHT)) * (x_high - x_low);
    const near = nearest(points, step);
    cursor.classList.add("on");
    cursor.firstChild.setAttribute("x1", x(near[0]));
    cursor.firstChild.setAttribute("x2", x(near[0]));
    cursor.lastChild.setAttribute("cx", x(near[0]));
    cursor.lastChild.setAttribute("cy", y(near[1]));
    set(value, h("span.dim", null, t("runs.step", { n: near[0] })), " ", number(near[1]));
  });
  svg.addEventListener("pointerleave", rest);
  rest();
  return set(figure, h("figcaption", null, h("span", null, title), value), svg);
}

function nearest(points, step) {
  let [low, high] = [0, points.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < step) low = middle;
    else high = middle;
  }
  return step - points[low][0] < points[high][0] - step ? points[low] : points[high];
}

function short(v) {
  const size = Math.abs(v);
  if (size >= 1e6) return `${number(v / 1e6)}M`;
  if (size >= 1e4) return `${number(v / 1e3)}k`;
  return number(v)
    .replace(/(\.\d*?)0+$/, "$1")
    .replace(/\.$/, "");
}
