// Names of files and folders that complete what is typed in the box, as the list of a combobox.

import { ask, byId, element, icon } from "./elements.js";

const SHORTEST = 2, FILES = 5, FOLDERS = 3;  // letters from which names are asked for; names shown

const box = byId("words"), list = byId("names");
let running = null, choose = null;

// taken: { file(name), folder(path) } are called with what is chosen.
export function completeNames(taken) {
  choose = (option) => {
    hideNames();
    if (option.dataset.folder) taken.folder(option.dataset.folder);
    else taken.file(option.dataset.name);
  };
}

export async function suggestNames() {
  running?.abort();
  const words = box.value.trim();
  if (words.length < SHORTEST) return hideNames();
  running = new AbortController();
  try {
    const names = await ask(`names?q=${encodeURIComponent(words.slice(0, 200))}`, null, running.signal);
    if (document.activeElement === box) show(names, words);
  } catch (error) {
    if (error.name !== "AbortError") hideNames();  // the search says what is wrong
  }
}

export function hideNames() {
  running?.abort();
  list.hidden = true;
  box.setAttribute("aria-expanded", false);
  box.removeAttribute("aria-activedescendant");
}

function show({ files, folders }, words) {
  const options = [
    ...folders.slice(0, FOLDERS).map(({ name, path }) => optionOf("folder", name, path, { folder: path })),
    ...files.slice(0, FILES).map(({ name, path, kind }) => optionOf(kind, name, path, { name })),
  ];
  const isComplete = options.length === 1 && options[0].dataset.name === words;
  if (!options.length || isComplete) return hideNames();
  options.forEach((option, i) => { option.id = `name-${i}`; });
  list.replaceChildren(...options);
  list.hidden = false;
  box.setAttribute("aria-expanded", true);
  box.removeAttribute("aria-activedescendant");
}

function optionOf(kind, name, path, data) {
  const sign = { folder: "folder", image: "picture", video: "play", audio: "sound", text: "text" }[kind];
  const above = path.split("/").filter(Boolean).slice(-3, -1).join("/");
  const children = [icon(sign), element("span", {}, name), element("small", {}, above)];
  return element("li", { role: "option", title: path, data, aria: { selected: "false" } }, ...children);
}

function move(step) {
  const options = [...list.children];
  const place = options.findIndex((option) => option.ariaSelected === "true");
  const next = options[(place + step + options.length) % options.length];
  if (place < 0 && step < 0) return mark(options, options.at(-1));
  mark(options, place < 0 ? options[0] : next);
}

function mark(options, marked) {
  for (const option of options) option.ariaSelected = String(option === marked);
  box.setAttribute("aria-activedescendant", marked.id);
}

// Before the keys of the page, which leave out what is handled here.
box.addEventListener("keydown", (event) => {
  if (list.hidden) return;
  const marked = list.querySelector("[aria-selected=true]");
  if (event.key === "ArrowDown" || event.key === "ArrowUp") move(event.key === "ArrowDown" ? 1 : -1);
  else if (event.key === "Escape") hideNames();
  else if (event.key === "Enter" && marked) choose(marked);
  else return;
  event.preventDefault();
  event.stopPropagation();
});
box.addEventListener("blur", hideNames);
list.addEventListener("pointerdown", (event) => {
  event.preventDefault();  // keeps the focus in the box
  const option = event.target.closest("li");
  if (option) choose(option);
});
