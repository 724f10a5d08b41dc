// One file, large: a picture, a player that starts at the moment of the hit, or a text; classification by given labels.

import { KINDS, clock, dateOf, element, matchLine, nameOf, silence, sureness } from "./cards.js";
import { ask } from "./inputs.js";

const dialog = document.querySelector("#viewer"), one = (selector) => dialog.querySelector(selector);
let shown = null, around = null;

// around: { step(file, by) -> file or null, like(file) }
export function show(file, moves) {
  silence();
  [shown, around] = [file, moves];
  one(".stage").replaceChildren(large(file));
  one("#name").textContent = nameOf(file);
  const ranked = file.match !== null || file.score;
  one(".match").replaceChildren(...(ranked ? [...matchLine(file), element("small", {}, sureness(file).note)] : []));
  one("dl").replaceChildren(...facts(file).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  one(".original").href = file.file;
  one(".previous").hidden = !moves.step(file, -1);
  one(".next").hidden = !moves.step(file, 1);
  one(".ask p").textContent = "";
  one(".labels ul").replaceChildren();
  if (!dialog.open) {
    dialog.showModal();
    history.pushState({ viewer: true }, "");
  }
  one("#name").focus({ preventScroll: true });
  if (one(".labels input").value) classify();
}

function large(file) {
  const at = file.start ? `#t=${file.start}` : "";
  if (file.kind === "video" && file.playable) {
    const video = element("video", { src: file.file + at, poster: file.thumbnail, controls: true, autoplay: true, playsInline: true });
    video.setAttribute("aria-label", nameOf(file));
    return video;
  }
  if (file.kind === "audio") {
    const audio = element("audio", { src: file.file + at, controls: true, autoplay: true, aria: { label: nameOf(file) } });
    return element("div", { className: "heard" }, file.thumbnail ? element("img", { src: file.thumbnail, alt: "" }) : null, audio);
  }
  if (file.kind === "text") {
    const words = element("blockquote", { tabIndex: 0 });
    fetch(file.file).then((answer) => (answer.ok ? answer.text() : file.caption ?? "")).then((text) => { words.textContent = text; });
    return words;
  }
  const image = element("img", { src: `${file.thumbnail}&large=true`, alt: file.caption ?? nameOf(file) });
  image.style.backgroundImage = `url("${file.thumbnail}")`;  // thumbnail until the picture is loaded
  image.onload = () => { image.style.backgroundImage = ""; };
  return image;
}

function facts(file) {
  const size = file.size ? `${(file.size / (file.size < 1e6 ? 1e3 : 1e6)).toFixed(1)} ${file.size < 1e6 ? "kB" : "MB"}` : "";
  const found = [
    ["Kind", KINDS[file.kind] + (file.modality !== file.kind && file.modality ? `, found by its ${KINDS[file.modality]}` : "")],
    ["Position", file.start != null ? `${clock(file.start)} to ${clock(file.end ?? file.start)}` : ""],
    ["Caption", file.kind === "text" ? "" : file.caption], ["Date", dateOf(file)], ["Length", file.duration ? clock(file.duration) : ""],
    ["Pixels", file.width ? `${file.width} × ${file.height}` : ""], ["Size", size],
    ["Folder", file.path.slice(0, -nameOf(file).length).replace(/[\ud800-\udfff]/gu, "\ufffd")],
    ["Very similar", file.copies?.join(", ")], ...Object.entries(file.metadata ?? {}).map(([name, value]) => [name, String(value)]),
  ];
  return found.filter(([, value]) => value);
}

const step = (by) => {
  const next = shown && around.step(shown, by);
  if (next) show(next, around);
};
one(".previous").onclick = () => step(-1);
one(".next").onclick = () => step(1);
one(".close").onclick = () => dialog.close();
one(".like").onclick = () => { const [file, { like }] = [shown, around]; dialog.close(); like(file); };
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
dialog.addEventListener("click", (event) => { if (event.target === dialog || event.target === one(".stage")) dialog.close(); });
dialog.addEventListener("close", () => {
  one(".stage").replaceChildren();  // stops playback
  if (history.state?.viewer) history.back();
  document.querySelector(`.card[data-id="${shown?.id}"] .tile`)?.focus();
});
addEventListener("popstate", () => { if (dialog.open && !history.state?.viewer) dialog.close(); });

const labels = one(".labels input");
async function classify() {
  const [file, list] = [shown, one(".labels ul")];
  const names = labels.value.split(",").map((name) => name.trim()).filter(Boolean);
  if (!names.length) return list.replaceChildren();
  const answer = await ask("classify", { like: file.id, labels: names }).catch((error) => ({ error }));
  if (file !== shown) return;
  const rows = answer.error ? [element("li", {}, answer.error.message)] : answer.labels.slice(0, 8).map(({ label, probability }) => {
    const bar = element("span", { className: "bar", aria: { hidden: "true" } }, element("i"));
    bar.firstChild.style.width = `${100 * probability}%`;
    return element("li", {}, element("span", {}, label), bar, element("b", {}, probability.toFixed(2)));
  });
  list.replaceChildren(...rows);
}
one(".labels").onsubmit = (event) => event.preventDefault();
labels.onchange = classify;

export const offerQuestions = () => { one(".ask").hidden = false; };
one(".ask").onsubmit = async (event) => {
  event.preventDefault();
  const said = one(".ask p"), file = shown;
  said.textContent = "…";
  const answer = await ask("ask", { id: file.id, question: one(".ask input").value }).catch((error) => ({ text: error.message }));
  if (file === shown) said.textContent = answer.text;
};
