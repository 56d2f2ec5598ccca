// A conversation as data: turns, the versions of each answer, and what was voted on them. No elements here.

import { events, Failure, get } from "./api.js";

const NUL = "\u2400"; // the picture of NUL, which no store of text can hold
const HALF = /\p{Cs}/gu; // half a character, from text that was cut in its middle

/** Text a server takes. */
export function storable(text) {
  return text.replaceAll("\0", NUL).replace(HALF, "\ufffd");
}

/** One written answer. `edit` is the person's version, which the conversation goes on with. */
export function draft(known = {}) {
  return { id: null, text: "", finish: null, dropped: 0, thumb: null, score: null, edit: null, ...known };
}

/** One or two drafts written for the same question; two are judged as the task. */
function version(known = {}) {
  return {
    drafts: [],
    task: null,
    choice: null,
    vote: null,
    revealed: null,
    retracted: false,
    error: null,
    told: false, // whether its end was announced
    ready_ms: 0,
    ...known,
  };
}

/** The draft a conversation goes on with: the better one, the first where neither is. */
export function chosen(v) {
  return v.drafts[v.choice === "right" ? 1 : 0];
}

export function now(turn) {
  return turn.versions[turn.at];
}

export class Talk {
  /** changed(turn, structure) is called after every change; structure is false where only text grew. */
  constructor(changed) {
    this.changed = changed;
    this.id = null;
    this.title = "";
    this.turns = [];
    this.abort = null;
  }

  get writing() {
    return this.abort !== null;
  }

  /** Ask something new. */
  ask(text, options) {
    const turn = { ask: text, versions: [], at: 0 };
    this.turns.push(turn);
    return this.write(turn, options, false);
  }

  /** Another answer to the last question. */
  again(options) {
    const turn = this.turns[this.turns.length - 1];
    if (!turn || this.writing) return null;
    const broken = turn.versions.length && now(turn).error && !now(turn).drafts.some((d) => d.text);
    if (broken) turn.versions.pop();
    return this.write(turn, options, turn.versions.length > 0);
  }

  messages(turn) {
    const before = this.turns.slice(0, this.turns.indexOf(turn)).filter((t) => t.versions.length && chosen(now(t)));
    const said = before.flatMap((t) => {
      const d = chosen(now(t));
      return [
        { role: "user", content: t.ask },
        { role: "assistant", content: d.edit ?? d.text },
      ];
    });
    return [...said, { role: "user", content: turn.ask }].map((m) => ({ ...m, content: storable(m.content) }));
  }

  async write(turn, { two, sampling }, regenerate) {
    const v = version({ drafts: [draft(), ...(two ? [draft()] : [])] });
    turn.versions.push(v);
    turn.at = turn.versions.length - 1;
    this.abort = new AbortController();
    this.changed(turn, true);
    const body = {
      conversation: this.id,
      messages: this.messages(turn),
      drafts: v.drafts.length,
      sampling,
      regenerate,
    };
    let whole = false;
    try {
      for await (const event of events("/api/ask", body, this.abort.signal)) {
        whole = whole || event.done === true;
        this.hear(turn, v, event);
      }
      if (!whole) throw new Failure("offline");
    } catch (error) {
      if (error.name !== "AbortError") v.error = error;
      for (const d of v.drafts) d.finish ??= "stopped";
    } finally {
      this.abort = null;
    }
    v.ready_ms = Date.now();
    this.changed(turn, true);
    if (!whole && this.id) {
      await this.recover(v);
      this.changed(turn, true);
    }
    return v;
  }

  hear(turn, v, event) {
    if (event.conversation !== undefined) {
      this.id = event.conversation;
      this.title = event.title;
      this.changed(turn, false);
    } else if (event.draft !== undefined) {
      const d = v.drafts[event.draft];
      if (event.text !== undefined) d.text += event.text.replaceAll("\0", NUL); // as the store keeps it
      if (event.finish)
        Object.assign(d, { finish: event.finish, id: event.id ?? d.id, dropped: event.dropped_turns || 0 });
      this.changed(turn, Boolean(event.finish));
    } else if (event.done) {
      v.task = event.task ? event.task.id : null;
    }
  }

  stop() {
    if (this.abort) this.abort.abort();
  }

  /** After a stop or a broken line: ask the server under which ids it kept what had been written. */
  async recover(v) {
    for (const wait of [150, 400, 900, 1800]) {
      await new Promise((resolve) => setTimeout(resolve, wait));
      try {
        const kept = await get(`/api/conversations/${encodeURIComponent(this.id)}`);
        const known = new Set(
          this.turns
            .flatMap((turn) => turn.versions)
            .flatMap((each) => each.drafts)
            .map((d) => d.id),
        );
        const fresh = kept.turns.flatMap((turn) => turn.drafts).filter((d) => !known.has(d.id) && d.origin === "model");
        for (const d of v.drafts.filter((each) => !each.id)) {
          const same = fresh.findIndex((k) => k.text.startsWith(d.text));
          if (same >= 0) {
            const [found] = fresh.splice(same, 1);
            Object.assign(d, { id: found.id, text: found.text });
          }
        }
        if (v.drafts.every((d) => d.id)) return;
      } catch {
        // the server is away: the draft stays without buttons
      }
    }
  }

  /** Load what the server keeps. Raises Failure. */
  async load(id, signal) {
    const kept = await get(`/api/conversations/${encodeURIComponent(id)}`, signal);
    this.id = kept.id;
    this.title = kept.title;
    this.turns = turns_of(kept);
  }
}

/** Turns as the server keeps them: the drafts of one prompt are versions of one turn, those of a task one version. */
export function turns_of(kept) {
  const turns = kept.turns.map(turn_of).filter((turn) => turn.versions.length);
  kept.turns.forEach((entry, i) => {
    // a later question tells which version the conversation went on with
    const said = i > 0 && entry.messages.length > 1 && entry.messages[entry.messages.length - 2].content;
    const before = turns[i - 1];
    const at =
      said === false || !before ? -1 : before.versions.findIndex((v) => (chosen(v).edit ?? chosen(v).text) === said);
    if (at >= 0) before.at = at;
  });
  return turns;
}

function turn_of(entry) {
  const written = new Map(
    entry.drafts
      .filter((d) => d.origin !== "human")
      .map((d) => [d.id, draft({ id: d.id, text: d.text, finish: d.finish })]),
  );
  const in_pair = new Map(
    entry.tasks.flatMap((task) => [
      [task.left, task],
      [task.right, task],
    ]),
  );
  const versions = [];
  for (const [id, d] of written) {
    const task = in_pair.get(id);
    if (!task) versions.push(version({ drafts: [d], ready_ms: Date.now() }));
    else if (!versions.some((v) => v.task === task.id)) {
      versions.push(
        version({
          drafts: [written.get(task.left), written.get(task.right)],
          task: task.id,
          revealed: task.revealed,
          ready_ms: Date.now(),
        }),
      );
    }
  }
  for (const d of entry.drafts) {
    if (d.origin === "human" && written.has(d.parent)) written.get(d.parent).edit = d.text;
  }
  for (const vote of entry.votes) heed(versions, written, vote);
  return { ask: entry.messages[entry.messages.length - 1].content, versions, at: versions.length - 1 };
}

/** Bring one vote that stands onto what it was cast on. */
function heed(versions, written, vote) {
  const d = written.get(vote.draft);
  if (vote.kind === "pair") {
    const v = versions.find((each) => each.task === vote.task);
    if (v) Object.assign(v, { choice: vote.choice, vote: vote.id });
  } else if (d && vote.kind === "thumb") {
    d.thumb = { id: vote.id, value: vote.value, reasons: vote.reasons, comment: vote.comment };
  } else if (d && vote.kind === "score") {
    d.score = { id: vote.id, value: vote.value };
  }
}
