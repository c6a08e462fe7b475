// Readiness of the server, and the ways to add photos. Predictions are in page.results.js.

import { setupCamera } from "./page.camera.js";
import { byId, pause } from "./page.dom.js";
import { showModel } from "./page.model.js";
import { MAX_RESULTS, Results } from "./page.results.js";
import { askForToken, setupToken, withToken } from "./page.token.js";

const ASK_AGAIN_MS = 1000;
const LOOK_AGAIN_MS = 15000; // another version may have been published
const PATIENCE_MS = 10000;

let shown = null; // the model that the page describes
let lookNow = () => {}; // ends the pause between two checks of the server

const results = new Results({
  onAnswer: (answer) => {
    if (shown && (answer.version !== shown.version || answer.model !== shown.model)) refreshModel();
  },
  onTrouble: () => lookNow(),
});

// Readiness

async function ask(path) {
  const headers = withToken();
  const reply = await fetch(path, { headers, signal: AbortSignal.timeout(PATIENCE_MS) });
  const body = await reply.json();
  if (body.code === "unauthorized") askForToken(headers);
  return { ok: reply.ok, body };
}

async function readiness() {
  try {
    const { ok, body } = await ask("readyz");
    if (ok) return { ready: true, kind: "ready", text: "Ready" };
    if (body.code === "loading") return { ready: false, kind: "waiting", text: "The model is loading …" };
    return { ready: false, kind: "failed", text: `Not ready: ${body.error}` };
  } catch {
    return { ready: false, kind: "failed", text: "The server does not respond" };
  }
}

/** Load the description of the model; returns false if a token is needed. */
async function refreshModel() {
  try {
    const { ok, body } = await ask("model");
    if (body.code === "unauthorized") return false;
    if (!ok) throw new Error(body.error);
    const isNew = !shown || JSON.stringify(body) !== JSON.stringify(shown);
    shown = body;
    results.maxBytes = body.max_bytes;
    results.explains = body.explains;
    if (isNew) showModel(body);
  } catch (error) {
    if (!shown) byId("about").textContent = `The description of the model could not be loaded: ${error.message}`;
  }
  return true;
}

async function watch() {
  for (;;) {
    const { ready, kind, text } = await readiness();
    const status = byId("status");
    if (status.textContent !== text) status.textContent = text; // announced by screen readers only when it changes
    status.dataset.kind = kind;
    if (ready) {
      // Without a valid token every request is rejected, so photos wait for one.
      if (await refreshModel()) results.release();
      else results.hold();
    } else {
      results.hold();
    }
    await Promise.race([pause(ready ? LOOK_AGAIN_MS : ASK_AGAIN_MS), new Promise((now) => (lookNow = now))]);
    while (document.hidden && !results.isWaiting()) {
      await new Promise((seen) => document.addEventListener("visibilitychange", seen, { once: true }));
    }
  }
}

// Ways to add photos

function notice(text) {
  const place = byId("notice");
  place.hidden = !text;
  place.textContent = text;
}

function take(files) {
  notice(files.length > MAX_RESULTS ? `Only the first ${MAX_RESULTS} of these ${files.length} files are used.` : "");
  results.add(files);
}

byId("files").addEventListener("change", (event) => {
  take([...event.target.files]);
  event.target.value = ""; // so that the same photo can be chosen again
});

function dropped(transfer) {
  const items = [...transfer.items].filter((item) => item.kind === "file");
  const files = items.filter((item) => !item.webkitGetAsEntry?.()?.isDirectory).map((item) => item.getAsFile());
  take(files.filter(Boolean));
  if (files.length < items.length) notice("Folders cannot be opened here; drop the photos in it instead.");
  else if (!files.length) notice("That was a link or text, not a file; save the picture first, then drop it.");
}

let depth = 0; // dragging over a child leaves its parent
const highlight = (change) => {
  depth = Math.max(0, depth + change);
  document.body.classList.toggle("dragging", depth > 0);
};
window.addEventListener("dragenter", () => highlight(1));
window.addEventListener("dragleave", () => highlight(-1));
window.addEventListener("dragover", (event) => event.preventDefault());
window.addEventListener("drop", (event) => {
  event.preventDefault(); // or the browser would open the file in place of this page
  highlight(-depth);
  dropped(event.dataTransfer);
});

window.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) {
    event.preventDefault();
    take(files);
  } else if (!event.target.closest?.("input")) {
    notice("There is no image in the clipboard.");
  }
});

setupToken(() => lookNow());
setupCamera({ onPhoto: (file) => take([file]), notice });
watch();
