// What all views say about a file of the index.

import { element } from "./elements.js";

export const KINDS = { image: "picture", audio: "sound", text: "text", video: "video" };

const REPLACED = /[\ud800-\udfff]/gu;  // bytes of a name that are no text

export const nameOf = (file) => file.path.split(/\/|::/).pop().replace(REPLACED, "\ufffd") || file.path;

// Start of the paths of all files in the same folder or shard.
export const folderOf = (file) => file.path.slice(0, file.path.length - file.path.split(/\/|::/).pop().length);

export const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

export function dateOf(file) {
  const date = new Date((file.date ?? NaN) * 1000);
  return isNaN(date) ? "" : date.toLocaleDateString(undefined, { year: "numeric", month: "short", day: "numeric" });
}

export function sizeOf(file) {
  if (!file.size) return "";
  return file.size < 1e6 ? `${(file.size / 1e3).toFixed(1)} kB` : `${(file.size / 1e6).toFixed(1)} MB`;
}

export const isRanked = (file) => file.match !== null || Boolean(file.score);

// The match of a hit: a word, the share of its bar, the number of a word that has one, and what the number means.
export function sureness(file) {
  if (file.match === null) {
    const note = "cosine similarity of the file and the query";
    return { word: "cosine", share: file.score, number: file.score.toFixed(2), note };
  }
  const percent = Math.floor(100 * file.match);  // rounded up, it could contradict the word
  const hasNumber = ["likely", "possible"].includes(file.likelihood);
  const number = hasNumber ? (percent / 100).toFixed(2) : "";
  return { word: file.likelihood, share: file.match, number, note: `${percent} of 100 unrelated queries score lower here` };
}

// Words of the query that stand in the name, caption or metadata of the file; then its match as a word and a bar.
export function matchLine(file) {
  const { word, share, number, note } = sureness(file);
  const line = (file.words ?? []).map((text) => element("mark", { title: "a word of this file" }, text));
  if (file.rare) line.push(element("span", { title: "first, as few files have these words" }, "rare"));
  const bar = element("span", { className: "bar", aria: { hidden: "true" } }, element("i"));
  bar.firstChild.style.width = `${100 * Math.max(0, share)}%`;
  line.push(element("span", { className: word, title: note }, element("b", {}, word), number && ` ${number}`), bar);
  return line;
}

// Why a file of the index is not shown: the server compares it with what was indexed.
export async function reason(address) {
  const response = await fetch(address, { headers: { range: "bytes=0-0" } }).catch(() => null);
  if (!response) return "the server does not answer";
  if (response.status === 404) return "no longer there";
  if (response.status === 410) return "changed since it was indexed";
  return "cannot be shown";
}
