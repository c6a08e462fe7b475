// The page of `edgeline label`. Decisions are sent one after the other, and the next photo is shown when one is on the disk.

const ROWS = 200; // classes that are listed at once
const PREDICTED_KEYS = 9;
const LETTERS = "abcdefghijklmnopqrstuvwxyz";
const PRELOADED = 4;

const $ = (id) => document.getElementById(id);
const percent = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 0 });

let classes = [];
let queue = []; // undecided photos; the first is shown
let total = 0;
let history = []; // photos decided on this page, the newest last
let choices = []; // the listed classes: {label, key, share}
let marked = 0;
let busy = Promise.resolve();
const loaded = new Map(); // photo number -> image that the browser has fetched

const url = (photo) => `photo/${photo.number}`;

// Requests

async function post(path, body) {
  const reply = await fetch(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
  const answer = await reply.json();
  if (!reply.ok) throw Object.assign(new Error(answer.error), { status: reply.status });
  return answer;
}

function inTurn(work) {
  busy = busy.then(work).catch((error) => {
    const unreachable = error instanceof TypeError;
    problem(unreachable ? "The server does not answer: is `edgeline label` still running? The last decision was not saved." : error.message);
  });
  return busy;
}

function problem(message) {
  $("problem").hidden = !message;
  $("problem").textContent = message ?? "";
}

// Decisions

function decide(body, said) {
  const photo = queue[0];
  if (!photo) return;
  return inTurn(async () => {
    if (queue[0] !== photo) return; // a second key for a photo that has just been decided
    let note = said;
    try {
      const answer = await post("decide", { photo: photo.number, ...body });
      classes = answer.classes ?? classes;
      history.push(photo);
    } catch (error) {
      if (error.status !== 409 && error.status !== 410) throw error;
      note = error.message; // decided in another window, or replaced by the server
    }
    problem(null);
    queue.shift();
    await show(note);
  });
}

const choose = (label) => decide({ label }, `Saved as ${label}.`);
const none = () => decide({ none: true }, "Saved as none of these.");

function skip() {
  inTurn(async () => {
    if (!queue.length) return;
    queue.push(queue.shift());
    await show(queue.length > 1 ? "Skipped; it comes again at the end." : "This is the last photo.");
  });
}

function undo() {
  inTurn(async () => {
    const photo = history.at(-1);
    if (!photo) return;
    await post("undo", { photo: photo.number });
    history.pop();
    problem(null);
    queue.unshift(photo);
    await show("The last decision is taken back.");
  });
}

// What is shown

function preload() {
  const near = [...queue.slice(0, PRELOADED), ...history.slice(-1)];
  for (const number of [...loaded.keys()]) if (!near.some((photo) => photo.number === number)) loaded.delete(number);
  for (const photo of near) {
    if (loaded.has(photo.number)) continue;
    const image = new Image();
    image.src = url(photo);
    loaded.set(photo.number, image);
  }
}

async function show(said = "") {
  const photo = queue[0];
  const decided = total - queue.length;
  $("count").textContent = `${decided} of ${total}`;
  $("progress").value = total ? decided / total : 1;
  $("work").hidden = !photo;
  $("done").hidden = Boolean(photo);
  for (const id of ["undo", "undo-last"]) $(id).disabled = !history.length;
  if (!photo) {
    document.body.dataset.photo = "";
    $("announcement").textContent = `${said} Every photo is decided.`;
    $("done-heading").focus();
    return;
  }
  preload();
  $("find").value = "";
  $("name").textContent = photo.name;
  $("photo").alt = `Photo ${photo.name}`;
  $("photo").src = url(photo);
  list();
  const [best] = photo.predictions;
  $("announcement").textContent = `${said} ${best ? `Predicted: ${best[0]}, ${percent.format(best[1])}.` : ""} ${decided} of ${total}.`;
  if (document.activeElement !== $("name")) $("name").focus({ preventScroll: true });
  try {
    await $("photo").decode();
  } catch {
    problem(`${photo.name} cannot be shown; skip it, or repair the file.`);
  }
  document.body.dataset.photo = String(photo.number);
}

function listed(photo, wanted) {
  const shares = new Map(photo.predictions);
  const few = classes.length <= PREDICTED_KEYS + LETTERS.length;
  let all;
  if (few) {
    const own = (label) => /^[0-9a-z]$/i.test(label); // a class called 7 has the key 7
    const taken = classes.filter(own).map((label) => label.toLowerCase());
    const free = [...`123456789${LETTERS}`].filter((key) => !taken.includes(key));
    all = classes.map((label) => ({ label, key: own(label) ? label.toLowerCase() : free.shift() ?? "" }));
  } else {
    const first = photo.predictions.map(([label]) => label).filter((label) => classes.includes(label)).slice(0, PREDICTED_KEYS);
    const others = classes.filter((label) => !first.includes(label));
    all = [...first, ...others].map((label, at) => ({ label, key: at < first.length ? String(at + 1) : "" }));
  }
  if (wanted) {
    const starts = all.filter((each) => each.label.toLowerCase().startsWith(wanted));
    const others = all.filter((each) => !starts.includes(each) && each.label.toLowerCase().includes(wanted));
    all = [...starts.sort((a, b) => (b.label.toLowerCase() === wanted) - (a.label.toLowerCase() === wanted)), ...others];
  }
  return all.map((each) => ({ ...each, share: shares.get(each.label) }));
}

function list() {
  const photo = queue[0];
  if (!photo) return;
  const typed = $("find").value.trim();
  const found = listed(photo, typed.toLowerCase());
  choices = found.slice(0, ROWS);
  $("none").querySelector("kbd").textContent = classes.includes("0") ? "-" : "0";
  marked = typed ? 0 : choices.findIndex((each) => each.label === photo.predictions[0]?.[0]);
  $("classes").replaceChildren(...choices.map(row));
  const exact = classes.some((label) => label.toLowerCase() === typed.toLowerCase());
  $("add").hidden = !typed || exact;
  $("add").textContent = `Add the class “${typed}” (Shift+Enter)`;
  const rest = found.length - choices.length;
  $("more").hidden = !rest;
  $("more").textContent = rest ? `and ${rest} more: type to find them` : "";
  mark(marked);
}

function row({ label, key, share }, at) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.addEventListener("click", () => choose(label));
  if (key) button.append(Object.assign(document.createElement("kbd"), { textContent: key.toUpperCase() }));
  button.append(Object.assign(document.createElement("bdi"), { textContent: label, title: label }));
  if (share >= 0.005) button.append(Object.assign(document.createElement("span"), { textContent: percent.format(share) }));
  button.dataset.at = String(at);
  item.append(button);
  return item;
}

function mark(at) {
  marked = choices.length ? at : -1;
  for (const button of $("classes").querySelectorAll("button")) {
    const here = Number(button.dataset.at) === marked;
    button.setAttribute("aria-current", String(here));
    if (here) button.scrollIntoView({ block: "nearest" });
  }
}

function move(step) {
  if (!choices.length) return;
  mark(marked < 0 ? (step > 0 ? 0 : choices.length - 1) : (marked + step + choices.length) % choices.length);
  $("announcement").textContent = choices[marked].label;
}

function accept() {
  if (marked >= 0) choose(choices[marked].label);
}

function addTyped() {
  const typed = $("find").value.trim();
  if (typed) choose(typed);
}

// Keys

const COMMANDS = {
  Enter: accept,
  ArrowDown: () => move(1),
  ArrowUp: () => move(-1),
  ArrowRight: skip,
  " ": skip,
  ArrowLeft: undo,
  Backspace: undo,
  0: none, // unless a class is called 0
  "-": none,
  "/": () => $("find").focus(),
  "+": () => $("find").focus(),
};

function typing(event) {
  if (event.key === "Escape") {
    $("find").value = "";
    list();
    $("name").focus();
  } else if (event.key === "Enter") {
    const typed = $("find").value.trim();
    if (marked >= 0 && !event.shiftKey) accept();
    else if (typed) addTyped();
  } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    move(event.key === "ArrowDown" ? 1 : -1);
  } else {
    return;
  }
  event.preventDefault();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.target === $("find")) return typing(event);
  if (event.target instanceof HTMLButtonElement && (event.key === "Enter" || event.key === " ")) return; // presses it
  if (!queue.length && !["ArrowLeft", "Backspace"].includes(event.key)) return;
  const chosen = choices.find((each) => each.key === event.key.toLowerCase() && each.key !== "");
  if (event.repeat && (chosen || event.key === "Enter")) return; // a key that is held down decides one photo
  if (chosen) choose(chosen.label);
  else if (COMMANDS[event.key]) COMMANDS[event.key]();
  else if (event.key.length === 1 && event.key.trim()) return $("find").focus(); // the letter goes into the field
  else return;
  event.preventDefault();
});

$("find").addEventListener("input", list);
$("add").addEventListener("click", addTyped);
$("none").addEventListener("click", none);
$("skip").addEventListener("click", skip);
for (const id of ["undo", "undo-last"]) $(id).addEventListener("click", undo);

inTurn(async () => {
  const reply = await fetch("state");
  const state = await reply.json();
  if (!reply.ok) throw new Error(state.error);
  ({ classes, total, photos: queue } = state);
  $("labels").textContent = state.labels;
  $("command").textContent = `edgeline retrain --data PHOTOS --labels ${state.labels}`;
  await show();
});
