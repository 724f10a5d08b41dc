// One file, large: a picture, a player that starts at the moment of the hit, or a text; its metadata as links that
// filter; classification by given labels.

import { placeholder, silence } from "./cards.js";
import { ask, button, byId, element } from "./elements.js";
import { KINDS, clock, dateOf, folderOf, isRanked, matchLine, nameOf, sizeOf, sureness } from "./files.js";
import { FACETS, capitalized } from "./filters.js";

const LABELS = 8, NEAR = 10;  // labels shown; kilometres around a place

const dialog = byId("viewer"), one = (selector) => dialog.querySelector(selector);
let shown = null, around = null;
let roots = [];  // paths of the indexed folders

export const setRoots = (paths) => { roots = paths; };

// around: { step(file, by) -> file or null, like(file), address(file), filter(change), closed() }
export function show(file, moves) {
  silence();
  shown = file;
  around = moves;
  one(".stage").replaceChildren(large(file));
  one("#name").textContent = nameOf(file);
  const note = isRanked(file) ? [...matchLine(file), element("small", {}, sureness(file).note)] : [];
  one(".match").replaceChildren(...note);
  one("dl").replaceChildren(...rows(file));
  one(".original").href = file.file;
  one(".address").href = moves.address(file);
  one(".previous").hidden = !moves.step(file, -1);
  one(".next").hidden = !moves.step(file, 1);
  one(".ask p").textContent = "";
  one(".labels ul").replaceChildren();
  if (!dialog.open) dialog.showModal();
  one("#name").focus({ preventScroll: true });
  if (one(".labels input").value) classify();
}

export const isOpen = () => dialog.open;
export const close = () => dialog.close();

// The content of a file, or a placeholder if it is gone or has changed.
function large(file) {
  const stage = contentOf(file);
  const player = stage.querySelector?.("audio") ?? stage;
  player.onerror = () => stage.replaceWith(placeholder(file, file.file));
  return stage;
}

function contentOf(file) {
  const moment = file.start ? `#t=${file.start}` : "";
  const player = { src: file.file + moment, controls: true, autoplay: true, aria: { label: nameOf(file) } };
  if (file.kind === "video" && file.playable) {
    return element("video", { ...player, poster: file.thumbnail, playsInline: true });
  }
  if (file.kind === "audio") {
    const wave = element("img", { src: file.thumbnail, alt: "" });
    return element("div", { className: "heard" }, wave, element("audio", player));
  }
  if (file.kind === "text") return textOf(file);
  const image = element("img", { src: `${file.thumbnail}&large=true`, alt: file.caption ?? nameOf(file) });
  image.style.backgroundImage = `url("${file.thumbnail}")`;  // thumbnail until the picture is loaded
  image.onload = () => { image.style.backgroundImage = ""; };
  return image;
}

function textOf(file) {
  const quote = element("blockquote", { tabIndex: 0 });
  fetch(file.file).then(async (response) => {
    if (!response.ok) throw new Error();
    quote.textContent = await response.text();
  }).catch(() => quote.replaceWith(placeholder(file, file.file)));
  return quote;
}

function rows(file) {
  return facts(file).flatMap(([name, ...values]) => [element("dt", {}, name), element("dd", {}, ...values)]);
}

// [name, texts or elements] of what is known about a file.
function facts(file) {
  const isFoundByPart = file.modality && file.modality !== file.kind;
  const kind = KINDS[file.kind] + (isFoundByPart ? `, found by its ${KINDS[file.modality]}` : "");
  const named = [
    ["Kind", kind],
    ["Position", file.start != null ? `${clock(file.start)} to ${clock(file.end ?? file.start)}` : ""],
    ["Caption", file.kind === "text" ? "" : file.caption],
    ["Date", dateOf(file)],
    ["Length", file.duration ? clock(file.duration) : ""],
    ["Pixels", file.width ? `${file.width} × ${file.height}` : ""],
    ["Size", sizeOf(file)],
    ["Folder", ...folderLinks(file)],
    ["Very similar", file.copies?.join(", ")],
    ...tagRows(file.tags ?? {}),
    ...Object.entries(file.metadata ?? {}).map(([name, value]) => [name, String(value)]),
  ];
  return named.filter(([, value]) => value);
}

// Each folder on the way to a file, as a link that leaves only the files in it.
function folderLinks(file) {
  const folder = folderOf(file);
  if (folder.includes("\ufffd")) return [folder];  // its bytes are no text, and cannot be sent
  const root = roots.find((path) => folder.startsWith(`${path}/`)) ?? "";
  const links = [];
  let end = root.lastIndexOf("/") + 1;  // the folders above the indexed one have the same files
  for (const [name, , separator] of folder.slice(end).matchAll(/(.*?)(\/|::)/g)) {
    end += name.length;
    const path = folder.slice(0, end - separator.length);
    links.push(path ? linkTo(name, `Only files in ${path}`, (query) => { query.fields.below = path; }) : name);
  }
  return links;
}

// What cameras, programs and people wrote into a file; a value that a chip can filter by is a link.
function tagRows(tags) {
  const rows = [];
  for (const [name, value] of Object.entries(tags)) {
    const field = name === "keywords" ? "keyword" : name;
    if (name === "latitude" || name === "longitude") continue;
    if (!(field in FACETS)) rows.push([capitalized(name), String(value)]);
    else rows.push([FACETS[field], ...listOf([value].flat().map((text) => valueLink(field, String(text))))]);
  }
  if (tags.latitude !== undefined) rows.push(["Taken at", placeLink(tags)]);
  return rows;
}

const listOf = (links) => links.flatMap((link, i) => (i ? [", ", link] : [link]));

const valueLink = (field, value) =>
  linkTo(value, `Only files with this ${field}`, (query) => { query.values.push([field, value]); });

function placeLink({ latitude, longitude }) {
  const place = `${latitude.toFixed(4)}, ${longitude.toFixed(4)}`;
  return linkTo(place, `Only files taken within ${NEAR} km`, (query) => { query.near = `${place}, ${NEAR}`; });
}

function linkTo(text, title, change) {
  const link = button({ className: "link", title }, text);
  link.onclick = () => around.filter(change);
  return link;
}

function step(by) {
  const next = shown && around.step(shown, by);
  if (next) around.open(next);
}

one(".previous").onclick = () => step(-1);
one(".next").onclick = () => step(1);
one(".close").onclick = () => dialog.close();
one(".like").onclick = () => around.like(shown);
one(".address").onclick = (event) => {
  event.preventDefault();
  const link = event.currentTarget;
  navigator.clipboard?.writeText(link.href).then(() => { link.textContent = "Copied"; });
  setTimeout(() => { link.textContent = "Copy the link"; }, 2000);
};
dialog.addEventListener("keydown", (event) => {
  if (event.target.matches("input, video, audio, blockquote")) return;
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
let touched = null;
one(".stage").addEventListener("touchstart", (event) => { touched = event.touches[0].clientX; }, { passive: true });
one(".stage").addEventListener("touchend", (event) => {
  const moved = event.changedTouches[0].clientX - touched;
  if (Math.abs(moved) > 60 && !event.target.matches("video, audio")) step(moved > 0 ? -1 : 1);
});
dialog.addEventListener("click", (event) => {
  if (event.target === dialog || event.target === one(".stage")) dialog.close();
});
dialog.addEventListener("close", () => {
  one(".stage").replaceChildren();  // stops playback
  around.closed();
  document.querySelector(`.card[data-id="${shown.id}"] .tile`)?.focus();
});

const labels = one(".labels input");

async function classify() {
  const file = shown;
  const list = one(".labels ul");
  const names = labels.value.split(",").map((name) => name.trim()).filter(Boolean);
  if (!names.length) return list.replaceChildren();
  let lines;
  try {
    const answer = await ask("classify", { like: file.id, labels: names });
    lines = answer.labels.slice(0, LABELS).map(labelLine);
  } catch (error) {
    lines = [element("li", {}, error.message)];
  }
  if (file === shown) list.replaceChildren(...lines);
}

function labelLine({ label, probability }) {
  const bar = element("span", { className: "bar", aria: { hidden: "true" } }, element("i"));
  bar.firstChild.style.width = `${100 * probability}%`;
  return element("li", {}, element("span", {}, label), bar, element("b", {}, probability.toFixed(2)));
}

one(".labels").onsubmit = (event) => event.preventDefault();
labels.onchange = classify;

export const offerQuestions = () => { one(".ask").hidden = false; };
one(".ask").onsubmit = async (event) => {
  event.preventDefault();
  const line = one(".ask p");
  const file = shown;
  line.textContent = "…";
  const question = one(".ask input").value;
  const answer = await ask("ask", { id: file.id, question }).catch((error) => ({ text: error.message }));
  if (file === shown) line.textContent = answer.text;
};
