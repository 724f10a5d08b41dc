// The page: the query, the files found, and the file that is open.

import { KINDS, card, element, icon, nameOf } from "./cards.js";
import { ask, listen, part } from "./inputs.js";
import { offerQuestions, show } from "./viewer.js";

const TOP = 40, PAUSE = 180;  // files per request; milliseconds after the last key press before a search starts
const byId = (id) => document.getElementById(id);
const words = byId("words"), cards = byId("cards"), heading = byId("heading"), map = byId("map"), plane = byId("plane");
const fields = [...document.querySelectorAll(".popover [name]")];
const state = { parts: [], only: new Set() };  // a part: { kind, name, data, url } or { kind: "like", id, name, url }
let files = [], compared = 0, more = false, running = null, timer = 0, counts = {};

function query() {
  const body = {};
  if (words.value.trim()) body.text = words.value.trim();
  for (const given of state.parts) body[given.kind] = given.data ?? given.id;
  for (const { name, value } of fields.filter(({ value }) => value)) body[name] = value;
  if (state.only.size) body.only = [...state.only];
  return body;
}

const field = (name) => fields.find((each) => each.name === name);
const isAsked = () => words.value.trim() || state.parts.length || field("without").value;

// Search again from the start, or for the next files; answers to an older query are dropped.
async function look(next = false) {
  clearTimeout(timer);
  if (next && (!more || running)) return;
  running?.abort();
  const own = running = new AbortController();
  cards.setAttribute("aria-busy", true);
  try {
    const found = await ask("search", { ...query(), top: TOP, offset: next ? files.length : 0 }, own.signal);
    compared = found.compared;
    more = found.hits.length === TOP && (next ? files.length : 0) < 1e4;
    const added = found.hits;
    files = next ? [...files, ...added] : added;
    if (!next) scrollTo({ top: 0 });
    cards[next ? "append" : "replaceChildren"](...added.map((file) => card(file, { open, like })));
    if (!next) say(title(found));
    byId("end").replaceChildren(...(files.length ? [] : nothing()));
  } catch (error) {
    if (error.name === "AbortError") return;
    say(error.message, true);
    more = false;  // otherwise the end of the list would request again at once
    if (!next) { files = []; cards.replaceChildren(); }
  }
  if (own === running) running = null;
  cards.removeAttribute("aria-busy");
  if (map.ariaPressed === "true") drawMap().catch(fail);
  if (more && byId("end").getBoundingClientRect().top < innerHeight + 600) look(true);
}

function title(found) {
  const files = `${compared} ${compared === 1 ? "file" : "files"}`;
  if (!isAsked()) return `${files}, newest first`;
  if (found.heading) return found.heading[0].toUpperCase() + found.heading.slice(1);
  return `Nearest of ${files}`;
}

function say(text, wrong = false) {
  heading.textContent = text;
  heading.className = wrong ? "wrong" : "";
}
const fail = (error) => say(error.message, true);

function nothing() {
  const filtered = state.only.size || fields.some(({ value }) => value && value !== "match");
  if (!filtered) return [Object.keys(counts).length ? "Nothing found." : "This index has no files yet."];
  const all = element("button", { type: "button", className: "chip" }, "Clear the filters");
  all.onclick = () => { reset(); look(); };
  return ["No file matches these filters. ", all];
}

function reset() {
  state.only.clear();
  for (const each of fields) each.value = each.name === "sort" ? "match" : "";
  drawQuery();
}

const soon = () => {
  clearTimeout(timer);
  timer = setTimeout(changed, PAUSE);
};

// Put the texts and numbers of the query into the URL, for the back button and for sharing.
function changed(push = false) {
  const asked = new URLSearchParams();
  if (words.value.trim()) asked.set("q", words.value.trim());
  for (const { kind, id } of state.parts) if (kind === "like") asked.set("like", id);
  if (state.only.size) asked.set("only", [...state.only].join());
  for (const { name, value } of fields) if (value && value !== "match") asked.set(name, value);
  const address = asked.size ? `#${asked}` : location.pathname;
  history[push === true ? "pushState" : "replaceState"](null, "", address);
  seen = location.hash;
  drawQuery();
  look();
}

function fromAddress() {
  const asked = new URLSearchParams(location.hash.slice(1)), like = Number(asked.get("like"));
  words.value = asked.get("q") ?? "";
  state.only = new Set(asked.get("only")?.split(","));
  for (const each of fields) each.value = asked.get(each.name) ?? (each.name === "sort" ? "match" : "");
  state.parts = [];
  drawQuery();
  if (!like) return look();
  about(like).then((file) => { state.parts = [liked(file)]; drawQuery(); look(); }).catch(fail);
}

function drawQuery() {
  byId("clear").hidden = !isAsked();
  byId("parts").replaceChildren(...state.parts.map((given) => {
    const away = element("button", { type: "button", title: "Remove from the query", aria: { label: `Remove ${given.name} from the query` } }, icon("close"));
    away.onclick = () => { state.parts = []; changed(true); words.focus(); };
    const picture = given.kind === "audio" || !given.url ? icon("sound") : element("img", { src: given.url, alt: "" });
    return element("span", { className: "part" }, element("span", { className: "seen", title: given.name }, picture), away);
  }));
  for (const chip of byId("kinds").children) chip.setAttribute("aria-pressed", state.only.has(chip.dataset.kind));
  const set = (id, names) => byId(id).classList.toggle("set", names.some((name) => field(name).value && field(name).value !== "match"));
  set("date", ["after", "before"]);
  set("more", ["path", "without", "where", "sort"]);
}

// The previous (-1) or next (1) file in the list, if the given file is in it.
function step(file, by) {
  const at = files.findIndex(({ id }) => id === file.id);
  if (at > files.length - 5) look(true);
  return at < 0 ? null : files[at + by];
}
const open = (file) => show(file, { step, like });
const about = async (id) => files.find((file) => file.id === id) ?? ask(`files/${id}/about`);

function like(file) {
  words.value = "";
  state.parts = [liked(file)];
  leaveMap();
  changed(true);
}

const liked = (file) => ({ kind: "like", id: file.id, name: nameOf(file), url: file.kind === "audio" ? null : file.thumbnail });

async function give(file) {
  state.parts = [await part(file)];
  leaveMap();
  changed(true);
}

async function drawMap() {
  const { showMap } = await import("./map.js");
  const data = plane.data ??= await ask("points");
  const found = isAsked() ? new Set(files.map(({ id }) => id)) : null;
  showMap(plane, data, (id) => about(id).then(open).catch(fail), found);
}

function leaveMap() {
  if (map.ariaPressed === "true") map.click();
}

map.onclick = () => {
  const on = map.ariaPressed !== "true";
  map.ariaPressed = on;
  plane.hidden = !on;
  cards.hidden = byId("end").hidden = on;
  document.body.classList.toggle("mapped", on);
  if (on) drawMap().catch(fail);
};
byId("search").onsubmit = (event) => {
  event.preventDefault();
  changed(true);
  if (matchMedia("(pointer: coarse)").matches) words.blur();
};
words.oninput = () => { drawQuery(); soon(); };
byId("clear").onclick = () => {
  words.value = field("without").value = "";
  state.parts = [];
  changed(true);
  words.focus();
};
for (const each of fields) each.oninput = soon;
const scheme = () => localStorage.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
byId("theme").onclick = () => {
  document.documentElement.style.colorScheme = localStorage.theme = scheme() === "dark" ? "light" : "dark";
};
document.addEventListener("click", ({ target }) => {
  for (const popover of document.querySelectorAll(".popover[open]")) if (!popover.contains(target)) popover.open = false;
});
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, select");
  if (event.key === "Escape") for (const popover of document.querySelectorAll(".popover[open]")) popover.open = false;
  if (event.key === "/" && !typing && !document.querySelector("dialog[open]")) { event.preventDefault(); words.focus(); }
  if (event.target === words && event.key === "ArrowDown") { event.preventDefault(); cards.querySelector(".tile")?.focus(); }
});
let seen = location.hash;
addEventListener("popstate", () => {  // also fires when a file is closed, where nothing changes
  if (location.hash !== seen) fromAddress();
  seen = location.hash;
});

document.documentElement.style.colorScheme = localStorage.theme ?? "";
new IntersectionObserver(([end]) => end.isIntersecting && look(true), { rootMargin: "800px" }).observe(byId("end"));
listen((file) => give(file).catch(fail), fail);
fromAddress();
ask("about").then((about) => {
  counts = about.files;
  byId("kinds").replaceChildren(...Object.keys(KINDS).filter((kind) => counts[kind]).map((kind) => {
    const chip = element("button", { type: "button", className: `chip ${kind}`, data: { kind }, aria: { pressed: state.only.has(kind) } }, `${KINDS[kind][0].toUpperCase()}${KINDS[kind].slice(1)}s`, element("small", {}, ` ${counts[kind]}`));
    chip.onclick = () => { state.only.delete(kind) || state.only.add(kind); changed(true); };
    return chip;
  }));
  if (about.tasks.length) offerQuestions();
}).catch(fail);
