// The list of predictions: newest first, bounded; photos are sent a few at a time, once the model is ready.

import { byId, bytes, el, isolated, milliseconds, percent } from "./page.dom.js";
import { askForToken, withToken } from "./page.token.js";
import { whyOf } from "./page.why.js";

export const MAX_RESULTS = 20;
const AT_ONCE = 2;
const STAGES = { queue: "waiting", decode: "decoding", preprocess: "preprocessing", infer: "inference" };

export class Results {
  /** onAnswer(answer) is called with every prediction; onTrouble() if the server could not respond. */
  constructor({ onAnswer, onTrouble }) {
    this.maxBytes = Infinity;
    this.explains = false; // whether the model supports explanations
    this.list = byId("results");
    this.entries = []; // newest first
    this.paused = true;
    this.onAnswer = onAnswer;
    this.onTrouble = onTrouble;
    byId("clear").addEventListener("click", () => {
      [...this.entries].forEach((entry) => this.remove(entry));
      byId("files").focus();
    });
  }

  /** Add photos in the given order; the oldest ones are removed from the list. */
  add(files) {
    for (const file of files.slice(0, MAX_RESULTS)) {
      const entry = { file, state: "waiting", abort: new AbortController(), preview: URL.createObjectURL(file) };
      entry.item = this.#item(entry);
      this.entries.unshift(entry);
      this.list.prepend(entry.item);
      this.#wait(entry);
    }
    this.entries.slice(MAX_RESULTS).forEach((entry) => this.remove(entry));
    byId("results-bar").hidden = !this.entries.length;
    this.#pump();
  }

  remove(entry) {
    entry.abort.abort();
    URL.revokeObjectURL(entry.preview);
    clearInterval(entry.clock);
    entry.item.remove();
    this.entries = this.entries.filter((other) => other !== entry);
    byId("results-bar").hidden = !this.entries.length;
  }

  isWaiting() {
    return this.entries.some((entry) => entry.state === "waiting");
  }

  hold() {
    this.paused = true;
    this.entries.filter((entry) => entry.state === "waiting").forEach((entry) => this.#wait(entry));
  }

  release() {
    this.paused = false;
    this.#pump();
  }

  #pump() {
    if (this.paused) return;
    const running = this.entries.filter((entry) => entry.state === "running").length;
    const waiting = this.entries.filter((entry) => entry.state === "waiting").reverse();
    waiting.slice(0, Math.max(0, AT_ONCE - running)).forEach((entry) => this.#run(entry));
  }

  async #run(entry) {
    entry.state = "running";
    this.#progress(entry);
    const outcome = await classify(entry.file, this.maxBytes, entry.abort.signal);
    clearInterval(entry.clock);
    if (entry.abort.signal.aborted) {
      // removed meanwhile
    } else if (outcome.code === "loading" || outcome.code === "unauthorized") {
      this.hold();
      this.#wait(entry);
      this.onTrouble();
    } else {
      entry.state = "done";
      if (outcome.answer) {
        const why = this.explains ? whyOf(entry.preview, () => explained(entry, outcome.answer)) : [];
        this.#show(entry, answerOf(outcome, why));
        const [best] = outcome.answer.predictions;
        announce(`${entry.file.name}: ${best.label}, ${percent(best.probability)}`);
        this.onAnswer(outcome.answer);
      } else {
        this.#show(entry, this.#failure(entry, outcome));
        announce(`${entry.file.name}: ${outcome.error}`);
        if (outcome.again) this.onTrouble();
      }
    }
    this.#pump();
  }

  #wait(entry) {
    entry.state = "waiting";
    this.#show(entry, el("p", { class: "quiet" }, this.paused ? "Waiting for the server." : "Queued."));
  }

  #progress(entry) {
    const line = el("p", { class: "quiet working" }, "Classifying …");
    this.#show(entry, line);
    const started = performance.now();
    entry.clock = setInterval(() => {
      line.textContent = `Classifying … ${Math.round((performance.now() - started) / 1000)} s`;
    }, 1000);
  }

  #failure(entry, { error, again }) {
    const retry = el("button", { type: "button" }, "Try again");
    retry.addEventListener("click", () => {
      this.#wait(entry);
      this.#pump();
    });
    return el("div", {}, el("p", { class: "problem" }, error), again ? retry : null);
  }

  #item(entry) {
    const { file } = entry;
    const image = el("img", { class: "thumb", src: entry.preview, alt: "", decoding: "async" });
    image.addEventListener("error", () =>
      image.replaceWith(el("div", { class: "thumb none", "aria-hidden": "true" }, "no preview")),
    );
    const close = el("button", { type: "button", class: "remove", "aria-label": `Remove ${file.name}` }, "×");
    close.addEventListener("click", () => {
      const next = entry.item.nextElementSibling ?? entry.item.previousElementSibling;
      this.remove(entry);
      (next?.querySelector(".remove") ?? byId("files")).focus();
    });
    const head = el(
      "p",
      { class: "file" },
      isolated(file.name, { title: file.name }),
      el("span", { class: "quiet" }, bytes(file.size)),
    );
    return el("li", { class: "result" }, image, el("div", { class: "details" }, head, el("div", { class: "outcome" })), close);
  }

  #show(entry, content) {
    entry.item.dataset.state = entry.state;
    entry.item.querySelector(".outcome").replaceChildren(content);
  }
}

/** Send one photo. Returns {answer, total_ms, stages}, or {error, code, again}: one line, and whether a retry may help. */
async function classify(file, maxBytes, signal, more = "") {
  if (file.size > maxBytes) {
    return { error: `This file has ${bytes(file.size)}, the server's limit is ${bytes(maxBytes)}.` };
  }
  const type = file.type.startsWith("image/") ? file.type : "application/octet-stream";
  const headers = withToken({ "Content-Type": type });
  const request = { method: "POST", headers, body: file, signal };
  const started = performance.now();
  try {
    const reply = await fetch(`predict?top_k=${byId("top-k").value}${more}`, request);
    const body = await reply.json().catch(() => ({ error: `The server returned status ${reply.status} without a message.` }));
    const total_ms = performance.now() - started;
    if (body.code === "unauthorized") askForToken(headers);
    if (reply.ok && body.predictions) return { answer: body, total_ms, stages: stagesOf(reply.headers.get("Server-Timing")) };
    return { error: String(body.error), code: body.code, again: reply.status === 429 || reply.status >= 500 };
  } catch {
    return { error: "The server did not respond; it may have stopped, or the file can no longer be read.", again: true };
  }
}

/** `decode;dur=12.3, infer;dur=4` as [["decode", 12.3], ["infer", 4]]. */
function stagesOf(header) {
  const found = (header ?? "").matchAll(/([\w!#$%&'*+.^`|~-]+)[^,]*?;\s*dur\s*=\s*"?([\d.]+)/g);
  return [...found]
    .map(([, name, time]) => [name, Number(time)])
    .filter(([name, time]) => name !== "total" && Number.isFinite(time));
}

/** Request the explanation of a prediction; throws one line on failure, or if another version has replaced the model. */
async function explained({ file, abort }, prediction) {
  const { answer, error } = await classify(file, Infinity, abort.signal, "&explain=cam");
  if (!answer) throw new Error(error);
  if (answer.model !== prediction.model || answer.version !== prediction.version || answer.variant !== prediction.variant) {
    throw new Error(`${answer.model} ${answer.version} has replaced version ${prediction.version}, which made this prediction; send the photo again.`);
  }
  return answer;
}

function answerOf({ answer, total_ms, stages }, why) {
  const bars = answer.predictions.map(({ label, probability }) => {
    const bar = el("div", { class: "bar", "aria-hidden": "true" }, el("div"));
    bar.firstChild.style.width = `${100 * probability}%`;
    return el(
      "li",
      {},
      isolated(label, { class: "label", title: label }),
      el("span", { class: "share" }, percent(probability)),
      bar,
    );
  });
  const parts = stages.map(([name, time]) => `${STAGES[name] ?? name} ${milliseconds(time)}`);
  const timing = [`Answered in ${milliseconds(total_ms)}`, ...parts].join(" · ");
  return el("div", {}, el("ol", { class: "bars" }, ...bars), el("p", { class: "quiet timing" }, timing), ...why);
}

/** Announce a text to screen readers. */
function announce(text) {
  byId("announcement").textContent = text;
}
