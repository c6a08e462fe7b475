// Elements and numbers. Text only ever becomes a text node, so labels, file names and cards may contain anything.

export const byId = (id) => document.getElementById(id);

/** An element with attributes and children. True sets an attribute without a value; false, null and undefined set none. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

/** Text whose writing direction is its own: a label, a file name. */
export const isolated = (text, attributes = {}) => el("bdi", attributes, text);

const SPACE = "\u00a0"; // a number and its unit stay on one line

/** A share as a percentage; only exactly 0 and 1 are shown as 0 % and 100 %. */
export function percent(share) {
  const number = share > 0 && share < 0.0005 ? "< 0.1" : share < 1 && share >= 0.9995 ? "> 99.9" : (100 * share).toFixed(1);
  return `${number} %`.replaceAll(" ", SPACE);
}

export const count = (number) => number.toLocaleString("en");

export function bytes(size) {
  if (size < 1000) return size + SPACE + "B";
  return size < 1e6 ? Math.round(size / 1e3) + SPACE + "kB" : (size / 1e6).toFixed(1) + SPACE + "MB";
}

export const milliseconds = (time) => (time < 9.95 ? time.toFixed(1) : count(Math.round(time))) + SPACE + "ms";

export const pause = (time_ms) => new Promise((done) => setTimeout(done, time_ms));
