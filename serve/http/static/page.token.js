// The token of a server that requires one: entered once, stored for this tab only, sent with every request.

import { byId } from "./page.dom.js";

const KEY = "edgeline-token";

let known = null; // also if the browser has no storage for pages
try {
  known = sessionStorage.getItem(KEY);
} catch {}

function keep(token) {
  known = token;
  try {
    if (token === null) sessionStorage.removeItem(KEY);
    else sessionStorage.setItem(KEY, token);
  } catch {}
}

/** The headers that a request needs, with others of its own. */
export function withToken(headers = {}) {
  return known === null ? headers : { ...headers, Authorization: `Bearer ${known}` };
}

/** Ask for a token, because a request with these headers was rejected; the token in them is forgotten. */
export function askForToken(sent) {
  const form = byId("token");
  const rejected = known !== null;
  if (sent.Authorization !== withToken().Authorization) return; // another one was entered meanwhile
  keep(null);
  if (rejected || form.hidden) byId("token-hint").textContent = rejected ? "The server did not accept this token." : "";
  if (!form.hidden) return;
  form.hidden = false;
  byId("token-text").focus();
}

export function setupToken(onToken) {
  byId("token").addEventListener("submit", (event) => {
    event.preventDefault();
    const token = byId("token-text").value.trim();
    if (!/^[\x21-\x7e]+$/.test(token)) {
      byId("token-hint").textContent = "A token has only ASCII characters, and no spaces.";
      return;
    }
    keep(token);
    byId("token-text").value = "";
    byId("token").hidden = true;
    onToken();
  });
}
