// Votes on their way to the store. A vote is kept in this browser until the server says it is committed, and is sent
// again under the same id after any failure, so that it arrives once: not zero times, and not twice.

import { Failure, post, uuid } from "./api.js";

const PREFIX = "fledge.vote.";
const LONGEST_WAIT_MS = 20000;

const memory = new Map(); // what storage would not take (private windows, full disks) lives as long as the page
const askers = new Map(); // id -> {resolve, reject} of whoever asked on this page
const listeners = new Set();
let person = "";
let running = false;
let timer = null;
let waitMs = 1000;

/** Call with the person's id before the first vote; votes left over from an earlier visit are sent at once. */
export function openQueue(id) {
  person = id;
  window.addEventListener("online", hurry);
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && hurry());
  flush();
}

/** Keep a vote and send it. Resolves with the server's answer; rejects only when the server refuses this vote. */
export function vote(content) {
  const entry = { person, body: { id: uuid(), client_ms: Date.now(), ...content } };
  const answered = new Promise((resolve, reject) => askers.set(entry.body.id, { resolve, reject }));
  answered.catch(() => {}); // a listener may come later, or not at all
  store(entry);
  hurry();
  return { id: entry.body.id, answered };
}

/** How many votes the server has failed to take so far; one that is merely on its way is not counted. */
export function waiting() {
  return timer === null ? 0 : pending().length;
}

/** listener(waiting()) after every change. */
export function onQueue(listener) {
  listeners.add(listener);
  listener(waiting());
}

function store(entry) {
  try {
    localStorage.setItem(PREFIX + entry.body.id, JSON.stringify(entry));
  } catch {
    memory.set(entry.body.id, entry);
  }
  tell();
}

function drop(id) {
  memory.delete(id);
  try {
    localStorage.removeItem(PREFIX + id);
  } catch {
    // it was never there
  }
  tell();
}

/** This person's votes, oldest first: a change of mind must be stored behind what it changes. */
function pending() {
  const found = [...memory.values()];
  try {
    for (let i = 0; i < localStorage.length; i += 1) {
      const key = localStorage.key(i);
      if (key.startsWith(PREFIX)) found.push(JSON.parse(localStorage.getItem(key)));
    }
  } catch {
    // storage is closed: memory has them all
  }
  const mine = found.filter((entry) => entry && entry.person === person);
  return mine.sort((a, b) => (a.body.id < b.body.id ? -1 : 1));
}

function hurry() {
  clearTimeout(timer);
  timer = null;
  waitMs = 1000;
  flush();
}

async function flush() {
  if (running) return;
  running = true;
  try {
    for (let entry = pending()[0]; entry; entry = pending()[0]) {
      if (!(await deliver(entry))) break;
    }
  } finally {
    running = false;
  }
  tell();
}

/** Whether to go on with the next one. */
async function deliver(entry) {
  const { id } = entry.body;
  const asker = askers.get(id);
  try {
    const stored = await post("/api/votes", entry.body);
    askers.delete(id);
    drop(id);
    waitMs = 1000;
    if (asker) asker.resolve(stored);
    return true;
  } catch (error) {
    const refused = error instanceof Failure && [400, 404, 409, 413, 422].includes(error.status);
    if (refused) {
      askers.delete(id);
      drop(id);
      if (asker) asker.reject(error);
      return true;
    }
    timer = setTimeout(hurryLater, waitMs);
    waitMs = Math.min(LONGEST_WAIT_MS, waitMs * 2);
    return false;
  }
}

function hurryLater() {
  timer = null;
  flush();
}

function tell() {
  for (const listener of listeners) listener(waiting());
}
