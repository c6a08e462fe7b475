// A model card's Markdown, the subset that cards use: headings, paragraphs, lists, tables, code, bold and emphasis.
// HTML, images and links are shown as text. A card is untrusted, so no pattern here takes more than linear
// time.

import { el } from "./page.dom.js";

const TABLE_LINE = /^\s*\|.*\|\s*$/;
const TABLE_RULE = /^\s*\|(\s*:?-+:?\s*\|)+\s*$/;
const HEADING = /^(#{1,6})\s+(.*)$/;
const ITEM = /^\s*(?:[-*+]|(\d+)[.)])\s+(.*)$/;
const FENCE = /^\s*(```|~~~)/;
const INLINE = /`([^`]+)`|\*\*([^*]+)\*\*|\*([^*\s][^*]*)\*/g;

export function showCard(place, text) {
  const lines = text.split(/\r?\n/);
  const blocks = [];
  while (lines.length) {
    const block = takeBlock(lines);
    if (block) blocks.push(block);
  }
  place.replaceChildren(...blocks);
}

/** Remove the lines of one block from the front; null for a blank one. */
function takeBlock(lines) {
  const [line] = lines;
  if (!line.trim()) return void lines.shift();
  if (FENCE.test(line)) return fenced(lines);
  if (HEADING.test(line)) return heading(lines.shift());
  if (TABLE_LINE.test(line) && TABLE_RULE.test(lines[1] ?? "")) return table(lines);
  if (ITEM.test(line)) return list(lines);
  const rest = takeWhile(
    lines,
    (next) => next.trim() && !FENCE.test(next) && !HEADING.test(next) && !ITEM.test(next) && !TABLE_LINE.test(next),
  );
  return el("p", { dir: "auto" }, ...inline((rest.length ? rest : [lines.shift()]).join(" ")));
}

function takeWhile(lines, isWanted) {
  const end = lines.findIndex((line) => !isWanted(line));
  return lines.splice(0, end < 0 ? lines.length : end);
}

function fenced(lines) {
  const [, fence] = FENCE.exec(lines.shift());
  const code = takeWhile(lines, (line) => !line.trim().startsWith(fence));
  lines.shift();
  return el("pre", { tabindex: "0" }, el("code", {}, code.join("\n")));
}

/** The page's own headings end at the second level, so a card's begin at the third. */
function heading(line) {
  const [, marks, text] = HEADING.exec(line);
  return el(`h${Math.min(6, marks.length + 2)}`, { dir: "auto" }, ...inline(text));
}

function list(lines) {
  const items = [];
  const isNumbered = ITEM.exec(lines[0])[1] !== undefined;
  while (lines.length && lines[0].trim()) {
    const item = ITEM.exec(lines[0]);
    if (!item && !items.length) break;
    if (item) items.push(item[2]);
    else items[items.length - 1] += ` ${lines[0].trim()}`;
    lines.shift();
  }
  return el(isNumbered ? "ol" : "ul", { dir: "auto" }, ...items.map((item) => el("li", {}, ...inline(item))));
}

function table(lines) {
  const [head, , ...body] = takeWhile(lines, (line) => TABLE_LINE.test(line)).map(cells);
  const isNamed = head.some((cell) => cell);
  const top = el(
    "thead",
    {},
    el("tr", {}, ...head.map((cell) => el(cell ? "th" : "td", cell ? { scope: "col" } : {}, ...inline(cell)))),
  );
  const rows = body.map((row) =>
    el("tr", {}, ...row.map((cell) => el("td", { dir: "auto", class: cell.length > 48 && "long" }, ...inline(cell)))),
  );
  const whole = el("table", {}, isNamed ? top : null, el("tbody", {}, ...rows));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of the card" }, whole);
}

const cells = (line) =>
  line
    .trim()
    .slice(1, -1)
    .split("|")
    .map((cell) => cell.trim());

function inline(text) {
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    const [whole, code, bold, emphasis] = match;
    parts.push(text.slice(end, match.index));
    parts.push(code ? el("code", {}, code) : bold ? el("strong", {}, bold) : el("em", {}, emphasis));
    end = match.index + whole.length;
  }
  parts.push(text.slice(end));
  return parts.filter((part) => part !== "");
}
