// A card for each file, and the texts about a file that all views share. Text of a file is set as text, never as HTML.

export const KINDS = { image: "picture", audio: "sound", text: "text", video: "video" };

export function element(tag, properties = {}, ...children) {
  const { aria = {}, data = {}, ...rest } = properties;
  const made = Object.assign(document.createElement(tag), rest);
  for (const [name, value] of Object.entries(aria)) made.setAttribute(`aria-${name}`, value);
  Object.assign(made.dataset, data);
  made.append(...children.filter((child) => child !== null));
  return made;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `page/icons.svg#${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

export const nameOf = (file) => file.path.split(/\/|::/).pop().replace(/[\ud800-\udfff]/gu, "\ufffd") || file.path;

export const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

export const dateOf = (file) => {
  const date = new Date((file.date ?? NaN) * 1000);
  return isNaN(date) ? "" : date.toLocaleDateString(undefined, { year: "numeric", month: "short", day: "numeric" });
};

// The match of a hit: a word, the number, and an explanation of the number.
export function sureness(file) {
  if (file.match === null) return { word: "cosine", value: file.score, note: "cosine similarity of the file and the query" };
  const word = file.likelihood;
  const percent = Math.floor(100 * file.match);  // rounded up, it could contradict the word
  return { word, value: percent / 100, note: `${percent} of 100 unrelated queries score lower here` };
}

export function matchLine(file) {
  const { word, value, note } = sureness(file);
  const bar = element("span", { className: "bar", aria: { hidden: "true" } }, element("i"));
  bar.firstChild.style.width = `${100 * Math.max(0, value)}%`;
  return [element("span", { className: word, title: note }, element("b", {}, word), ` ${value.toFixed(2)}`), bar];
}

let player = null;  // the sound that is playing, and its button

function toggle(file, button, wave) {
  if (player?.button === button && !player.audio.paused) return player.audio.pause();
  if (player?.button !== button) {
    player?.audio.pause();
    player = { button, audio: new Audio(file.file) };
    const { audio } = player;
    audio.currentTime = file.start ?? 0;
    const draw = () => {
      button.replaceChildren(icon(audio.paused ? "play" : "pause"));
      button.setAttribute("aria-pressed", !audio.paused);
    };
    audio.onplay = audio.onpause = draw;
    audio.ontimeupdate = () => wave.style.setProperty("--at", `${100 * audio.currentTime / audio.duration}%`);
    audio.onended = () => wave.style.removeProperty("--at");
  }
  player.audio.play().catch(() => { button.title = "This browser cannot play this file"; });
}

export const silence = () => player?.audio.pause();

// Thumbnail of a file; for a text its beginning, which is passed to said().
export function well(file, said = () => {}) {
  const well = element("div", { className: `well ${file.kind}` });
  if (file.thumbnail) {
    const image = element("img", { src: file.thumbnail, alt: "", loading: "lazy", decoding: "async" });
    image.onerror = () => well.replaceChildren(element("span", { className: "gone" }, "cannot be shown now"));
    well.append(image);
  } else {
    const words = element("blockquote");
    well.append(words);
    fetch(file.file, { headers: { range: "bytes=0-400" } }).then((answer) => (answer.ok ? answer.text() : file.caption ?? ""))
      .then((text) => { words.textContent = text; said(text); }).catch(() => {});
  }
  return well;
}

// open(file) is called when a card is opened, like(file) when similar files are requested.
export function card(file, { open, like }) {
  const name = nameOf(file), kind = KINDS[file.kind] ?? file.kind, ranked = file.match !== null || file.score;
  const sure = ranked ? sureness(file) : null;
  const label = `${name}, ${kind}${sure ? `, ${sure.word} ${sure.value.toFixed(2)}` : ""}`;
  const tile = element("button", { type: "button", className: "tile", aria: { label } });
  const seen = well(file, (text) => tile.setAttribute("aria-label", `${label}: ${text}`));
  tile.append(seen);
  tile.onclick = () => open(file);
  const stamp = file.start != null ? clock(file.start) : file.duration ? clock(file.duration) : "";
  const sign = element("button", { type: "button", className: "sign", title: "More like this", aria: { label: `More like ${name}` } }, icon("like"));
  sign.onclick = () => like(file);
  const parts = [tile, sign];
  if (stamp) parts.push(element("span", { className: "stamp", aria: { hidden: "true" } }, stamp));
  if (file.kind === "audio") {
    const play = element("button", { type: "button", className: "play", aria: { label: `Play ${name}`, pressed: "false" } }, icon("play"));
    play.onclick = () => toggle(file, play, seen);
    parts.push(play);
  } else if (file.kind === "video") parts.push(element("span", { className: "play", aria: { hidden: "true" } }, icon("play")));
  const copies = file.copies?.length ? ` +${file.copies.length}` : "";
  const more = copies ? { title: `${file.copies.length} nearly the same` } : {};
  const caption = element("p", { className: "name", ...more }, name, element("span", {}, copies));
  const line = ranked ? element("p", { className: "match" }, ...matchLine(file)) : null;
  return element("li", { className: "card", data: { id: file.id } }, element("div", { className: "frame" }, ...parts), caption, line);
}
