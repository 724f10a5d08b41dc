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

// The match of a hit: a word, the number, and an explanation of the number.
export function sureness(file) {
  if (file.match === null) {
    return { word: "cosine", value: file.score, note: "cosine similarity of the file and the query" };
  }
  const percent = Math.floor(100 * file.match);  // rounded up, it could contradict the word
  return { word: file.likelihood, value: percent / 100, note: `${percent} of 100 unrelated queries score lower here` };
}

// Words of the query that stand in the name, caption or metadata of the file; then its match as a word and a bar.
export function matchLine(file) {
  const { word, value, note } = sureness(file);
  const words = (file.words ?? []).map((text) => element("mark", { title: "a word of this file" }, text));
  const bar = element("span", { className: "bar", aria: { hidden: "true" } }, element("i"));
  bar.firstChild.style.width = `${100 * Math.max(0, value)}%`;
  const match = element("span", { className: word, title: note }, element("b", {}, word), ` ${value.toFixed(2)}`);
  return [...words, match, bar];
}

// Why a file of the index is not shown: the server compares it with what was indexed.
export async function reason(address) {
  const response = await fetch(address, { headers: { range: "bytes=0-0" } }).catch(() => null);
  if (!response) return "the server does not answer";
  if (response.status === 404) return "no longer there";
  if (response.status === 410) return "changed since it was indexed";
  return "cannot be shown";
}
