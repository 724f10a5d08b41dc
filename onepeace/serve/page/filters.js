// The chips: kinds of files, dates, values of their metadata, and the filters in force, each with a button to drop it.

import { byId, button, element, icon } from "./elements.js";
import { KINDS } from "./files.js";

// Fields of conditions whose values are chips.
export const FACETS = {
  camera: "Camera", lens: "Lens", keyword: "Keyword", place: "Place", artist: "Artist", album: "Album", genre: "Genre",
};
const fields = [...document.querySelectorAll(".popover [name]")];

export const capitalized = (text) => text[0].toUpperCase() + text.slice(1);

let counted = null;  // numbers of files by kind that the other filters leave

// Show the numbers of files by kind in the chips; null leaves them as they are.
export function countKinds(numbers) {
  counted = numbers ?? counted;
  if (!counted) return;
  for (const chip of byId("kinds").children) chip.lastChild.textContent = ` ${counted[chip.dataset.kind] ?? 0}`;
}

// A chip for each kind of file in the index; chosen(kind) is called when one is clicked.
export function showKinds(counts, chosen) {
  const kinds = Object.keys(KINDS).filter((kind) => counts[kind]);
  byId("kinds").replaceChildren(...kinds.map((kind) => {
    const count = element("small", {}, ` ${counts[kind]}`);
    const chip = button({ className: `chip ${kind}`, data: { kind } }, `${capitalized(KINDS[kind])}s`, count);
    chip.onclick = () => chosen(kind);
    return chip;
  }));
  countKinds(null);
}

// A list of the most frequent values of each field, { camera: [["X100V", 12], ...] }.
export function showValues(values, chosen) {
  const named = Object.keys(FACETS).filter((field) => values[field]?.length);
  byId("values").replaceChildren(...named.map((field) => {
    const choices = values[field].map(([value, count]) => {
      const choice = button({}, element("span", {}, value), element("small", {}, String(count)));
      choice.onclick = () => {
        choice.closest("details").open = false;
        chosen(field, value);
      };
      return choice;
    });
    const summary = element("summary", { className: "chip" }, FACETS[field]);
    const list = element("div", {}, ...choices);
    return element("details", { className: "popover choices", data: { field } }, summary, list);
  }));
}

// Show a query in the fields, the chips and the list of filters in force; changed() is called when one is dropped.
export function showFilters(query, changed) {
  for (const field of fields) {
    const value = query.fields[field.name] ?? (field.name === "sort" ? "match" : "");
    if (document.activeElement !== field) field.value = value;
  }
  for (const chip of byId("kinds").children) chip.setAttribute("aria-pressed", query.kinds.has(chip.dataset.kind));
  for (const list of byId("values").children) {
    const isSet = query.values.some(([field]) => field === list.dataset.field);
    list.firstChild.classList.toggle("set", isSet);
  }
  const isSet = (...names) => names.some((name) => query.fields[name]);
  byId("date").classList.toggle("set", isSet("after", "before"));
  byId("more").classList.toggle("set", isSet("path", "without", "where", "sort"));
  const chips = inForce(query).map(([label, drop]) => droppable(label, () => {
    drop();
    changed();
  }));
  byId("active").replaceChildren(...chips);
  byId("active").hidden = !chips.length;
}

// [label, function that drops it] of each filter that no pressed chip shows.
function inForce(query) {
  const drop = (...names) => () => { for (const name of names) delete query.fields[name]; };
  const { after, before, below, path, without, where } = query.fields;
  const filters = [];
  if (below) filters.push([`in ${below.split(/\/|::/).filter(Boolean).pop() ?? below}`, drop("below")]);
  if (after || before) filters.push([periodOf(after, before), drop("after", "before")]);
  if (path) filters.push([path, drop("path")]);
  if (where) filters.push([where, drop("where")]);
  if (without) filters.push([`without ${without}`, drop("without")]);
  for (const value of query.values) {
    const others = query.values.filter((other) => other !== value);
    filters.push([`${FACETS[value[0]] ?? capitalized(value[0])}: ${value[1]}`, () => { query.values = others; }]);
  }
  if (query.near) filters.push([`within ${query.near.split(",").pop().trim()} km`, () => { query.near = ""; }]);
  return filters;
}

// "2024", "May 2024", "1 May 2024", or both ends.
function periodOf(after, before) {
  const date = (text, style) => new Date(`${text}T12:00`).toLocaleDateString(undefined, { timeZone: "UTC", ...style });
  const whole = { year: "numeric", month: "short", day: "numeric" };
  if (!before) return `from ${date(after, whole)}`;
  if (!after) return `before ${date(before, whole)}`;
  const days = (Date.parse(before) - Date.parse(after)) / 864e5;
  if (days === 1) return date(after, whole);
  if (after.endsWith("-01-01") && (days === 365 || days === 366)) return date(after, { year: "numeric" });
  const isMonth = after.endsWith("-01") && before.endsWith("-01") && days < 32;
  if (isMonth) return date(after, { year: "numeric", month: "long" });
  const last = new Date(Date.parse(before) - 864e5).toISOString().slice(0, 10);
  return `${date(after, whole)} to ${date(last, whole)}`;
}

function droppable(label, drop) {
  const title = `Drop this filter: ${label}`;
  const chip = button({ className: "chip set", title }, element("span", {}, label), icon("close"));
  chip.onclick = drop;
  return chip;
}

// Read the fields of the popovers into a query when they change.
export function readFields(query, changed) {
  for (const field of fields) {
    field.oninput = () => {
      const value = field.name === "sort" && field.value === "match" ? "" : field.value.trim();
      if (value) query().fields[field.name] = value;
      else delete query().fields[field.name];
      changed();
    };
  }
}

// A popover near the right edge opens to the left of its chip.
document.addEventListener("toggle", ({ target }) => {
  if (!target.matches(".popover[open]") || getComputedStyle(target).position === "static") return;
  const list = target.lastElementChild;
  list.style.left = "";
  list.style.left = `${Math.min(0, document.documentElement.clientWidth - list.getBoundingClientRect().right)}px`;
}, true);

// A popover closes by a click elsewhere and by Escape.
document.addEventListener("click", ({ target }) => {
  for (const popover of document.querySelectorAll(".popover[open]")) {
    if (!popover.contains(target)) popover.open = false;
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const popover of document.querySelectorAll(".popover[open]")) popover.open = false;
});
