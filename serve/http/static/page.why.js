// Explanations: the photo with a class activation map as an overlay.

import { el, isolated } from "./page.dom.js";

const MAX_ALPHA = 190; // of 255, over the strongest region: the photo stays visible

/** A button, and the explanation that it shows. ask() returns the server's answer with its maps, or throws a one-line error. */
export function whyOf(preview, ask) {
  const button = el("button", { type: "button", class: "ask-why", "aria-expanded": "false" }, "Why?");
  const place = el("div", { class: "why" });
  button.addEventListener("click", async () => {
    if (place.firstChild) {
      place.replaceChildren();
      button.setAttribute("aria-expanded", "false");
      return;
    }
    button.disabled = true;
    try {
      place.replaceChildren(shown(preview, await ask()));
    } catch (error) {
      place.replaceChildren(el("p", { class: "problem", role: "alert" }, error.message));
    }
    button.disabled = false;
    button.setAttribute("aria-expanded", "true");
    button.focus();
  });
  return [button, place];
}

function shown(preview, { predictions, explanation }) {
  const picture = el("img", { src: preview, alt: "" });
  const overlay = el("canvas", { role: "img" });
  const [left, top, right, bottom] = explanation.region;
  Object.assign(overlay.style, {
    left: `${100 * left}%`,
    top: `${100 * top}%`,
    width: `${100 * (right - left)}%`,
    height: `${100 * (bottom - top)}%`,
  });
  const choice = el("select", {}, ...predictions.map(({ label }, index) => el("option", { value: index }, label)));
  // One scale for all classes shown; otherwise the least likely one would look as certain as the best.
  const most = Math.max(...predictions.flatMap(({ evidence }) => evidence.flat().map(Math.abs)), Number.MIN_VALUE);
  const paint = () => {
    const { label, evidence } = predictions[choice.value];
    draw(overlay, evidence, most);
    overlay.setAttribute("aria-label", `Regions for ${label}: ${inWords(evidence)}`);
  };
  choice.addEventListener("change", paint);
  paint();
  return el(
    "div",
    {},
    el("div", { class: "seen" }, picture, overlay),
    predictions.length > 1
      ? el("label", { class: "quiet" }, "Explained class: ", choice)
      : el("p", { class: "quiet" }, "Explained class: ", isolated(predictions[0].label)),
    el("p", { class: "quiet" }, "Orange regions support the class, blue ones oppose it. The model does not see what is outside the frame."),
  );
}

function draw(canvas, evidence, most) {
  [canvas.width, canvas.height] = [evidence[0].length, evidence.length];
  const image = new ImageData(canvas.width, canvas.height);
  evidence.flat().forEach((value, index) => {
    const color = value > 0 ? [255, 120, 0] : [0, 90, 255];
    image.data.set([...color, (MAX_ALPHA * Math.abs(value)) / most], 4 * index);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** The position of the strongest region, as text for screen readers. */
function inWords(evidence) {
  const values = evidence.flat();
  const strongest = values.indexOf(Math.max(...values));
  const [row, column] = [Math.floor(strongest / evidence[0].length), strongest % evidence[0].length];
  const third = (at, of, names) => names[Math.min(2, Math.floor((3 * (at + 0.5)) / of))];
  const vertical = third(row, evidence.length, ["top", "middle", "bottom"]);
  const horizontal = third(column, evidence[0].length, ["left", "center", "right"]);
  return `most at the ${vertical}, ${horizontal}`;
}
