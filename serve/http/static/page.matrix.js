// The confusion matrix: a table if it is small, else a picture with the most common mistakes next to it.

import { count, el, isolated, percent } from "./page.dom.js";

const MAX_TABLE_CLASSES = 24;
const MAX_MISTAKES = 12;
const PICTURE_PX = 480;

let drawAgain = () => {}; // the picture takes its colors from the page
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAgain());

/** Show the model's `confusion`: cells of [true, predicted, images] by class index, those of no images left out. */
export function showMatrix(place, { labels, evaluation, precision }) {
  const cells = evaluation.confusion;
  const support = new Array(labels.length).fill(0);
  for (const [truth, , images] of cells) support[truth] += images;
  const parts = { labels, cells, support };
  drawAgain = () => {};
  const wrong = cells.filter(([truth, predicted]) => truth !== predicted);
  const wrongImages = wrong.reduce((sum, [, , images]) => sum + images, 0);
  const total = support.reduce((sum, images) => sum + images, 0);
  const mistaken = `${count(total)} test images, ${wrongImages ? count(wrongImages) : "none"} of them misclassified`;
  const lead = el("p", { class: "quiet" }, mistaken, precision === "float32" ? "." : ", with the model in float32.");
  const whole = labels.length <= MAX_TABLE_CLASSES ? table(parts) : picture(parts);
  place.replaceChildren(lead, el("div", { class: "overview" }, whole, mistakes(parts, wrong) ?? ""));
}

function table({ labels, cells, support }) {
  const images = new Map(cells.map(([truth, predicted, number]) => [truth * labels.length + predicted, number]));
  const heads = labels.map((label) => el("th", { scope: "col", title: label }, isolated(label)));
  const rows = labels.map((label, truth) => {
    const row = el("tr", {}, el("th", { scope: "row", title: label }, isolated(label)));
    labels.forEach((other, predicted) => {
      const number = images.get(truth * labels.length + predicted) ?? 0;
      const share = support[truth] ? number / support[truth] : 0;
      const title = `${label} predicted as ${other}: ${count(number)} of ${count(support[truth])}, ${percent(share)}`;
      const cell = el("td", { class: truth === predicted ? "right" : "wrong", title }, number ? count(number) : "");
      if (number) cell.style.setProperty("--share", `${Math.round(25 + 75 * share)}%`);
      row.append(cell);
    });
    return row;
  });
  const corner = el("td", { class: "corner quiet" }, "true ↓ predicted →");
  const grid = el(
    "table",
    { class: labels.length > 5 ? "matrix upright" : "matrix" },
    el("caption", { class: "unseen" }, "Rows: the true class. Columns: the predicted class. Cells: test images."),
    el("thead", {}, el("tr", {}, corner, ...heads)),
    el("tbody", {}, ...rows),
  );
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Confusion matrix" }, grid);
}

function picture({ labels, cells, support }) {
  const canvas = el("canvas", {
    role: "img",
    "aria-label": `The matrix of ${labels.length} classes as a picture; the table next to it lists the mistakes`,
  });
  const caption = el("p", { class: "quiet reading" }, "Rows: the true class. Columns: the predicted class.");
  const at = new Map(cells.map((cell) => [cell[0] * labels.length + cell[1], cell]));
  const side = PICTURE_PX * Math.max(1, Math.round(window.devicePixelRatio));
  canvas.width = canvas.height = side;
  const step = side / labels.length;

  function draw() {
    const colors = getComputedStyle(document.documentElement);
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, side, side);
    for (const [truth, predicted, images] of cells) {
      const share = images / support[truth];
      context.globalAlpha = 0.45 + 0.55 * share;
      context.fillStyle = colors.getPropertyValue(truth === predicted ? "--right-dot" : "--wrong-dot");
      const size = Math.max(step, side / 200); // a single mistake among a thousand classes is still seen
      context.fillRect(predicted * step, truth * step, size, size);
    }
  }
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const index = (offset, length) => Math.min(labels.length - 1, Math.max(0, Math.floor((offset / length) * labels.length)));
    const truth = index(event.clientY - box.top, box.height);
    const predicted = index(event.clientX - box.left, box.width);
    const images = at.get(truth * labels.length + predicted)?.[2] ?? 0;
    caption.replaceChildren(
      isolated(labels[truth]),
      " predicted as ",
      isolated(labels[predicted]),
      `: ${count(images)} of ${count(support[truth])}`,
    );
  });
  drawAgain = draw;
  draw();
  return el("div", { class: "picture" }, canvas, caption);
}

function mistakes({ labels, support }, wrong) {
  const common = [...wrong].sort((a, b) => b[2] - a[2]).slice(0, MAX_MISTAKES);
  if (!common.length) return null;
  const rows = common.map(([truth, predicted, images]) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, isolated(labels[truth])),
      el("td", { class: "label" }, isolated(labels[predicted])),
      el("td", { class: "number" }, `${count(images)} of ${count(support[truth])}`),
    ),
  );
  const heads = ["True class", "Predicted", "Images"].map((name) => el("th", { scope: "col" }, name));
  const body = el(
    "table",
    { class: "classes" },
    el("caption", {}, "Most common mistakes"),
    el("thead", {}, el("tr", {}, ...heads)),
    el("tbody", {}, ...rows),
  );
  return el("div", { class: "scroll mistakes" }, body);
}
