// A card for each hit, and the keys by which one moves among them.

import { button, element, icon } from "./elements.js";
import { KINDS, clock, isRanked, matchLine, nameOf, reason, sureness } from "./files.js";

let player = null;  // the sound that is playing, and its button

function play(file, playButton, wave) {
  if (player?.button === playButton && !player.audio.paused) return player.audio.pause();
  if (player?.button !== playButton) {
    player?.audio.pause();
    player = { button: playButton, audio: playerOf(file, playButton, wave) };
  }
  player.audio.play().catch(() => { playButton.title = "This browser cannot play this file"; });
}

function playerOf(file, playButton, wave) {
  const audio = new Audio(file.file);
  audio.currentTime = file.start ?? 0;
  audio.onplay = audio.onpause = () => {
    playButton.replaceChildren(icon(audio.paused ? "play" : "pause"));
    playButton.setAttribute("aria-pressed", !audio.paused);
  };
  audio.ontimeupdate = () => wave.style.setProperty("--at", `${100 * audio.currentTime / audio.duration}%`);
  audio.onended = () => wave.style.removeProperty("--at");
  return audio;
}

export const silence = () => player?.audio.pause();

// In place of a file that is gone, has changed or cannot be read; address: where the server says why.
export function placeholder(file, address) {
  const line = element("span", {}, "cannot be shown");
  reason(address).then((text) => { line.textContent = text; });
  return element("div", { className: "gone" }, icon("gone"), line);
}

// Thumbnail of a file; for a text its beginning, which is passed to said().
export function well(file, said = () => {}) {
  const frame = element("div", { className: `well ${file.kind}` });
  if (file.thumbnail) {
    const image = element("img", { src: file.thumbnail, alt: "", loading: "lazy", decoding: "async" });
    image.onerror = () => frame.replaceChildren(placeholder(file, file.thumbnail));
    frame.append(image);
    return frame;
  }
  fetch(file.file, { headers: { range: "bytes=0-400" } }).then(async (response) => {
    if (!response.ok) throw new Error();
    const text = await response.text();
    frame.append(element("blockquote", {}, text));
    said(text);
  }).catch(() => frame.replaceChildren(placeholder(file, file.file)));
  return frame;
}

// open(file) is called when a card is opened, like(file) when similar files are requested.
export function card(file, { open, like }) {
  const name = nameOf(file);
  const ranked = isRanked(file);
  const label = labelOf(file);
  const tile = button({ className: "tile", aria: { label, keyshortcuts: file.kind === "audio" ? "m p" : "m" } });
  const thumbnail = well(file, (text) => tile.setAttribute("aria-label", `${label}: ${text}`));
  tile.append(thumbnail);
  tile.onclick = () => open(file);
  const likeButton = button({ className: "sign", title: "More like this (m)", tabIndex: -1 }, icon("like"));
  likeButton.ariaLabel = `More like ${name}`;
  likeButton.onclick = () => like(file);
  const frame = element("div", { className: "frame" }, tile, likeButton);
  const moment = file.start ?? file.duration;
  if (moment) frame.append(element("span", { className: "stamp", aria: { hidden: "true" } }, clock(moment)));
  if (file.kind === "audio") frame.append(playButtonOf(file, thumbnail));
  if (file.kind === "video") {
    frame.append(element("span", { className: "play", aria: { hidden: "true" } }, icon("play")));
  }
  const line = ranked ? element("p", { className: "match" }, ...matchLine(file)) : null;
  return element("li", { className: "card", data: { id: file.id } }, frame, nameLine(file), line);
}

function labelOf(file) {
  const label = `${nameOf(file)}, ${KINDS[file.kind] ?? file.kind}`;
  if (!isRanked(file)) return label;
  const { word, number } = sureness(file);
  const words = file.words?.length ? `, with the words ${file.words.join(", ")}` : "";
  return `${label}${words}, ${word} ${number}`;
}

function nameLine(file) {
  const line = element("p", { className: "name", title: file.path }, nameOf(file));
  const copies = file.copies?.length;
  if (copies) {
    line.append(element("span", {}, ` +${copies}`));
    line.title += `\n${copies} nearly the same`;
  }
  return line;
}

function playButtonOf(file, thumbnail) {
  const aria = { label: `Play ${nameOf(file)}`, pressed: "false" };
  const playButton = button({ className: "play", tabIndex: -1, aria }, icon("play"));
  playButton.onclick = () => play(file, playButton, thumbnail);
  return playButton;
}

// Keys on a card: arrows, Home and End move to others, "m" searches for similar files, "p" plays a sound.
export function moveByKeys(list) {
  list.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !event.target.matches(".tile")) return;
    const tiles = [...list.querySelectorAll(".tile")];
    const current = event.target.closest(".card");
    if (event.key === "m") current.querySelector(".sign").click();
    if (event.key === "p") current.querySelector("button.play")?.click();
    const next = tiles[target(event.key, tiles, tiles.indexOf(event.target))];
    if (!next) return;
    event.preventDefault();
    next.focus();
    next.scrollIntoView({ block: "nearest" });
  });
}

// Place of the tile that a key leads to.
function target(key, tiles, place) {
  const top = (tile) => Math.round(tile.getBoundingClientRect().top);
  const columns = tiles.filter((tile) => top(tile) === top(tiles[0])).length;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  if (key === "Home") return 0;
  if (key === "End") return tiles.length - 1;
  return key in steps ? place + steps[key] : undefined;
}
