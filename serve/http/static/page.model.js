// The description of the model: metrics, facts, classes, from GET /model; any part of it may be absent.

import { showCard } from "./page.card.js";
import { byId, count, el, isolated, percent } from "./page.dom.js";
import { showMatrix } from "./page.matrix.js";

const MAX_ROWS = 200;

export function showModel(model) {
  document.title = `${model.model} ${model.version} · edgeline`;
  byId("name").textContent = model.model;
  byId("version").textContent = `version ${model.version} · ${model.variant}`;
  byId("about").replaceChildren(
    ...figures(model),
    facts(model),
    ...model.remarks.map((remark) => el("p", { class: "quiet" }, remark)),
  );
  limitTopK(model.labels.length);
  section("matrix", model.evaluation, (place) => showMatrix(place, model));
  section("classes", true, (place) => showClasses(place, model.labels, model.evaluation?.classes));
  section("card", model.card, (place) => showCard(place, model.card));
}

function section(id, isThere, show) {
  byId(`${id}-section`).hidden = !isThere;
  if (isThere) show(byId(id));
}

/** Limit the choice of classes per answer to the number there are. */
function limitTopK(classes) {
  const choices = [...byId("top-k").options];
  for (const option of choices) option.hidden = option.disabled = Number(option.value) >= classes && option.value !== "1";
  const enough = choices.find((option) => Number(option.value) >= classes);
  if (enough) enough.hidden = enough.disabled = false;
  if (byId("top-k").selectedOptions[0]?.disabled && enough) enough.selected = true;
}

// Figures

function figures({ evaluation, metrics, variant, verification }) {
  const top1 = evaluation?.top1 ?? share(metrics.top1);
  const own = ownAccuracy(verification.accuracy);
  const shown = [];
  if (own && own.value !== top1?.value) shown.push(gauge(`Accuracy of ${variant}`, own));
  if (top1) shown.push(gauge(shown.length ? "Accuracy of the float32 model" : "Accuracy", top1));
  if (evaluation?.top5) shown.push(gauge("Top-5 accuracy", evaluation.top5));
  return shown.length ? shown : [el("p", { class: "quiet" }, "This artifact has no evaluation.")];
}

/** What the release gate measured of the served variant, or null; the evaluation is of the float32 model. */
function ownAccuracy(held) {
  const [low, high] = Array.isArray(held?.top1_interval) ? held.top1_interval : [];
  return share({ value: held?.top1, low, high, total: held?.images });
}

/** A share with its interval, if the value is one. */
function share(value) {
  const isShare = (number) => Number.isFinite(number) && number >= 0 && number <= 1;
  return [value?.value, value?.low, value?.high].every(isShare) && Number.isFinite(value.total) ? value : null;
}

function gauge(name, { value, low, high, correct, total }) {
  const band = el("div", { class: "band" });
  band.style.left = `${100 * low}%`;
  band.style.width = `${100 * (high - low)}%`;
  const mark = el("div", { class: "mark" });
  mark.style.left = `${100 * value}%`;
  const of = Number.isFinite(correct) ? `${count(correct)} of ${count(total)} test images` : `${count(total)} test images`;
  return el(
    "div",
    { class: "figure" },
    el("p", { class: "name" }, name, el("strong", {}, percent(value))),
    el("div", { class: "gauge", "aria-hidden": "true" }, band, mark),
    el("p", { class: "quiet" }, `${of}; 95 % interval ${percent(low)} to ${percent(high)}`),
  );
}

// Facts

function facts(model) {
  const { preprocess: spec, self_test, evaluation } = model;
  const rows = [
    ["Classes", count(model.labels.length)],
    ["Macro F1", evaluation && evaluation.macro_f1.toFixed(3)],
    ["Calibration error", evaluation && evaluation.calibration_error.toFixed(3)],
    ["Precision", model.precision],
    [
      "Input",
      `${spec.width} × ${spec.height} pixels, center crop ${percent(spec.crop_fraction).replace(".0", "")}, ${spec.interpolation}`,
    ],
    ["Published", day(model.created)],
    ["Self-test", self_test ? selfTestLine(self_test) : "not run"],
  ];
  const present = rows.filter(([, value]) => value != null);
  return el("dl", {}, ...present.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))]));
}

function day(time) {
  const date = new Date(time); // browsers do not parse every ISO 8601 time
  return Number.isNaN(date.valueOf()) ? time : date.toLocaleDateString("en", { dateStyle: "medium" });
}

function selfTestLine({ samples, max_difference, tolerance }) {
  const off = max_difference ? `off by ${max_difference.toPrecision(1)}` : "no difference";
  return `${count(samples)} golden samples, ${off} (${tolerance} allowed)`;
}

// Classes

const ORDERS = {
  "as in the model": () => 0,
  "worst F1 first": (a, b) => a.f1 - b.f1,
  "most test images first": (a, b) => b.support - a.support,
};

function showClasses(place, labels, reports) {
  const rows = labels.map((label, index) => ({ label, index, ...reports?.[index] }));
  const find = el("input", { type: "search", id: "classes-find", autocomplete: "off" });
  const order = el("select", { id: "classes-order" }, ...Object.keys(ORDERS).map((name) => el("option", {}, name)));
  const body = el("tbody");
  const status = el("p", { class: "quiet", role: "status" });
  const columns = reports ? ["", "Class", "Precision", "Recall", "F1", "Test images"] : ["", "Class"];
  const heads = columns.map((name) => (name ? el("th", { scope: "col" }, name) : el("td")));
  const table = el("table", { class: "classes" }, el("thead", {}, el("tr", {}, ...heads)), body);

  function fill() {
    const wanted = find.value.trim().toLocaleLowerCase();
    const matching = rows.filter(({ label }) => label.toLocaleLowerCase().includes(wanted)).sort(ORDERS[order.value]);
    body.replaceChildren(...matching.slice(0, MAX_ROWS).map((row) => classRow(row, reports)));
    status.textContent =
      matching.length > MAX_ROWS ? `The first ${MAX_ROWS} of ${count(matching.length)}; search for the others.` : "";
    if (!matching.length) status.textContent = "No class matches.";
  }
  find.addEventListener("input", fill);
  order.addEventListener("change", fill);
  fill();
  const controls = el(
    "div",
    { class: "controls" },
    labels.length > 10 ? el("label", {}, "Find ", find) : null,
    reports ? el("label", {}, "Order ", order) : null,
  );
  place.replaceChildren(
    controls,
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Classes" }, table),
    status,
  );
}

function classRow({ label, index, precision, recall, f1, support }, reports) {
  const cells = reports ? [percent(precision), percent(recall), f1.toFixed(3), count(support)] : [];
  return el(
    "tr",
    {},
    el("td", { class: "quiet" }, String(index)),
    el("th", { scope: "row" }, isolated(label)),
    ...cells.map((text) => el("td", { class: "number" }, text)),
  );
}
