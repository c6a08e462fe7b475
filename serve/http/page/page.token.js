// The token of a server that wants one: asked for once, kept for this tab alone, sent with every request.

import { byId } from "./page.dom.js";

const KEY = "edgeline-token";

/** The headers that a request needs, with others of its own. */
export function withToken(headers = {}) {
  const token = sessionStorage.getItem(KEY);
  return token ? { ...headers, Authorization: `Bearer ${token}` } : headers;
}

/** Ask for a token. One that was sent already was not taken, and is forgotten. */
export function askForToken() {
  const form = byId("token");
  const refused = sessionStorage.getItem(KEY) !== null;
  sessionStorage.removeItem(KEY);
  if (refused || form.hidden) byId("token-hint").textContent = refused ? "The server does not know this token." : "";
  if (!form.hidden) return;
  form.hidden = false;
  byId("token-text").focus();
}

export function setupToken(onToken) {
  byId("token").addEventListener("submit", (event) => {
    event.preventDefault();
    const token = byId("token-text").value.trim();
    if (!/^[\x21-\x7e]+$/.test(token)) {
      byId("token-hint").textContent = "A token has no blanks and no letters beyond ASCII.";
      return;
    }
    sessionStorage.setItem(KEY, token);
    byId("token-text").value = "";
    byId("token").hidden = true;
    onToken();
  });
}
