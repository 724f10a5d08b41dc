// The page: the query, its address, the files found, and the file that is open.

import { card, moveByKeys } from "./cards.js";
import { ask, button, byId, element, icon } from "./elements.js";
import { nameOf } from "./files.js";
import { capitalized, countKinds, readFields, showFilters, showKinds, showValues } from "./filters.js";
import { listen, partsOf } from "./inputs.js";
import { Query, partOf } from "./query.js";
import { completeNames, hideNames, suggestNames } from "./suggestions.js";
import { showTimeline } from "./timeline.js";
import * as viewer from "./viewer.js";

const TOP = 40;  // files per request
const MOST = 10000;  // files that can be reached
const DELAY = 180;  // milliseconds after the last key press before a search starts
const PAUSE = 1500;  // milliseconds without a key press after which the back button returns to what was typed
const words = byId("words"), cards = byId("cards"), heading = byId("heading"), map = byId("map"), plane = byId("plane");

let query = new Query();
let files = [], compared = 0, hasMore = false, counts = {};
let serverHeading = null;  // line of the server above the files shown
let running = null;  // AbortController of the search that has not been answered
let searched = null;  // address of the query whose files are shown
let timer = 0, typedAt = -Infinity;

// Search again from the start, or for the next files; answers to an older query are dropped.
async function look(next = false) {
  clearTimeout(timer);
  if (next && (!hasMore || running)) return;
  running?.abort();
  const controller = running = new AbortController();
  cards.setAttribute("aria-busy", true);
  try {
    const offset = next ? files.length : 0;
    const answer = await search(offset, controller.signal);
    showAnswer(answer, offset);
  } catch (error) {
    if (error.name === "AbortError") return;
    fail(error);
    hasMore = false;  // otherwise the end of the list would request again at once
    if (!next) showFiles([], 0);
  }
  if (controller === running) running = null;
  cards.removeAttribute("aria-busy");
  if (map.ariaPressed === "true") drawMap().catch(fail);
  if (hasMore && byId("end").getBoundingClientRect().top < innerHeight + 600) look(true);
}

async function search(offset, signal) {
  if (query.isIncomplete) throw new Error("A picture or sound of this link is not here any more; add it again.");
  return ask("search", { ...query.request(), top: TOP, offset }, signal);
}

function showAnswer(answer, offset) {
  compared = answer.compared;
  hasMore = answer.hits.length === TOP && offset + TOP < MOST;
  showFiles(answer.hits, offset);
  if (offset) return;
  searched = query.address();
  scrollTo({ top: 0 });
  serverHeading = answer.heading;
  say(title());
  showHints(answer.hints, answer.suggestion);
  showTimeline(query.filters(), compared, between).then(countKinds).catch(fail);
}

function showFiles(hits, offset) {
  files = offset ? [...files, ...hits] : hits;
  const made = hits.map((file) => card(file, { open, like }));
  if (offset) cards.append(...made);
  else cards.replaceChildren(...made);
  byId("end").replaceChildren(...(files.length ? [] : nothing()));
}

function title() {
  const all = `${compared} ${compared === 1 ? "file" : "files"}`;
  if (!compared) return all;
  if (!query.isAsked()) return map.ariaPressed === "true" ? all : `${all}, newest first`;
  if (serverHeading) return capitalized(serverHeading);
  return `Nearest of ${all}`;
}

function say(text, isWrong = false) {
  heading.textContent = text;
  heading.className = isWrong ? "wrong" : "";
}

const fail = (error) => say(error.message, true);

// Lines about the query. The first is a link if there is a query that may be meant, { text, without }.
function showHints(lines, suggestion) {
  const others = suggestion ? lines.slice(1) : lines;
  const hints = others.map((line) => element("p", {}, capitalized(line)));
  if (suggestion) hints.unshift(proposal(suggestion));
  byId("hints").replaceChildren(...hints);
}

function proposal({ text, without }) {
  const link = button({ className: "link" }, without ? `“${text}” without “${without}”` : `“${text}”`);
  link.onclick = () => {
    query.words = text;
    if (without) query.fields.without = without;
    changed();
  };
  if (without) return element("p", {}, "The model cannot negate: search for ", link);
  return element("p", {}, "Did you mean ", link, "?");
}

function nothing() {
  if (!query.isFiltered()) return [Object.keys(counts).length ? "Nothing found." : "This index has no files yet."];
  const all = button({ className: "chip" }, "Clear the filters");
  all.onclick = () => {
    query.clearFilters();
    changed();
  };
  return ["No file matches these filters. ", all];
}

// Address of the page with this query, and with an open file if there is one.
function addressOf(file) {
  const params = new URLSearchParams(query.address());
  if (file) params.set("file", file.path.includes("\ufffd") ? file.id : file.path);
  return params.size ? `#${params}` : location.pathname;
}

// Show and search a query that has changed, as a new entry of the history or in place of the last one.
function changed(isNew = true) {
  if (isNew) typedAt = -Infinity;
  query.isIncomplete = false;
  history[isNew ? "pushState" : "replaceState"](null, "", addressOf());
  drawQuery();
  look();
}

// While words are typed the history keeps the last of them before each pause.
function typed() {
  const now = performance.now();
  const isNew = now - typedAt > PAUSE;
  changed(isNew);
  typedAt = now;
}

function soon() {
  clearTimeout(timer);
  timer = setTimeout(typed, DELAY);
}

// Show the query and the open file of the address.
async function fromAddress() {
  const params = new URLSearchParams(location.hash.slice(1));
  const path = params.get("file");
  params.delete("file");
  const next = Query.fromAddress(params);
  if (next.address() !== searched || next.isIncomplete) {
    query = next;
    typedAt = -Infinity;
    drawQuery();
    await Promise.all([look(), nameLikes()]);
  }
  if (!path && viewer.isOpen()) viewer.close();
  if (path) await openPath(path).catch(fail);
}

// Files of an address are numbers; their names and pictures are asked for.
async function nameLikes() {
  const named = query.parts.map((part) => (part.kind === "like" ? about(part.likes[0]).then(likePart) : part));
  const parts = await Promise.all(named).catch(() => null);  // the search says what is wrong
  if (!parts) return;
  query.parts = parts;
  drawQuery();
}

async function openPath(path) {
  const isShown = (file) => file.path === path || String(file.id) === path;
  const address = /^\d+$/.test(path) ? `files/${path}/about` : `lookup?path=${encodeURIComponent(path)}`;
  const file = files.find(isShown) ?? await ask(address);
  viewer.show(file, moves);
}

function drawQuery() {
  if (words.value.trim() !== query.words.trim()) words.value = query.words;
  byId("clear").hidden = !query.isAsked();
  byId("parts").replaceChildren(...query.parts.map(partChip));
  showFilters(query, changed);
}

function partChip(part) {
  const title = `Remove ${part.name} from the query`;
  const drop = button({ title, aria: { label: title } }, icon("close"));
  drop.onclick = () => {
    query.parts = query.parts.filter((other) => other !== part);
    changed();
    words.focus();
  };
  const sign = icon({ audio: "sound", text: "text" }[part.kind] ?? "picture");
  const picture = part.url ? element("img", { src: part.url, alt: "" }) : sign;
  picture.onerror = () => picture.replaceWith(sign);
  const seen = element("span", { className: "seen", title: part.name }, picture);
  return element("span", { className: "part" }, seen, drop);
}

const about = async (id) => files.find((file) => file.id === id) ?? ask(`files/${id}/about`);

const likePart = (file) =>
  partOf("like", nameOf(file), { likes: [file.id], url: file.kind === "audio" ? null : file.thumbnail });

// What the view of a file does with the page.
const moves = {
  step(file, by) {
    const place = files.findIndex(({ id }) => id === file.id);
    if (place > files.length - 5) look(true);
    return place < 0 ? null : files[place + by];
  },
  open(file) {
    history.replaceState(history.state, "", addressOf(file));
    viewer.show(file, moves);
  },
  closed() {
    if (history.state?.viewer) history.back();
    else history.replaceState(null, "", addressOf());
  },
  address: addressOf,
  filter(change) {
    viewer.close();
    leaveMap();
    change(query);
    changed();
  },
  like(file) {
    viewer.close();
    like(file);
  },
};

function open(file) {
  history.pushState({ viewer: true }, "", addressOf(file));
  viewer.show(file, moves);
}

function like(file) {
  query.words = "";
  query.parts = [likePart(file)];
  leaveMap();
  changed();
}

async function give(given) {
  query.parts = await partsOf(given);
  leaveMap();
  changed();
}

function between(after, before) {
  Object.assign(query.fields, { after, before });
  changed();
}

async function drawMap() {
  const { showMap } = await import("./map.js");
  const data = plane.data ??= await ask("points");
  const ids = query.isAsked() ? new Set(files.map(({ id }) => id)) : null;
  showMap(plane, data, (id) => about(id).then(open).catch(fail), ids);
}

function leaveMap() {
  if (map.ariaPressed === "true") map.click();
}

map.onclick = () => {
  const isOn = map.ariaPressed !== "true";
  map.ariaPressed = isOn;
  plane.hidden = !isOn;
  cards.hidden = byId("end").hidden = isOn;
  document.body.classList.toggle("mapped", isOn);
  if (searched !== null) say(title());
  if (isOn) drawMap().catch(fail);
};
byId("search").onsubmit = (event) => {
  event.preventDefault();
  hideNames();
  query.words = words.value;
  changed();
  if (matchMedia("(pointer: coarse)").matches) words.blur();
};
words.oninput = () => {
  query.words = words.value;
  byId("clear").hidden = !query.isAsked();
  soon();
  suggestNames();
};
byId("clear").onclick = () => {
  query.words = "";
  query.parts = [];
  delete query.fields.without;
  changed();
  words.focus();
};
readFields(() => query, soon);
completeNames({
  file(name) {
    query.words = name;
    changed();
  },
  folder(below) {
    query.words = "";
    query.fields.below = below;
    changed();
  },
});

function isDark() {
  if (localStorage.theme) return localStorage.theme === "dark";
  return matchMedia("(prefers-color-scheme: dark)").matches;
}
byId("theme").onclick = () => {
  document.documentElement.style.colorScheme = localStorage.theme = isDark() ? "light" : "dark";
};
document.documentElement.style.colorScheme = localStorage.theme ?? "";

moveByKeys(cards);
document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input, select");
  if (event.key === "/" && !isTyping && !document.querySelector("dialog[open]")) {
    event.preventDefault();
    words.focus();
  }
  if (event.key === "ArrowDown" && event.target === words) {
    event.preventDefault();
    cards.querySelector(".tile")?.focus();
  }
});
addEventListener("popstate", fromAddress);
new IntersectionObserver(([end]) => end.isIntersecting && look(true), { rootMargin: "800px" }).observe(byId("end"));
listen((given) => give(given).catch(fail), fail);
fromAddress();

function toggleKind(kind) {
  if (!query.kinds.delete(kind)) query.kinds.add(kind);
  changed();
}

function addValue(field, value) {
  query.values.push([field, value]);
  changed();
}

ask("about").then((index) => {
  counts = index.files;
  showKinds(counts, toggleKind);
  showFilters(query, changed);
  viewer.setRoots(index.roots);
  if (index.tasks.length) viewer.offerQuestions();
}).catch(fail);
ask("values").then((values) => {
  showValues(values, addValue);
  showFilters(query, changed);
}).catch(fail);
