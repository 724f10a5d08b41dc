// Requests, and input of pictures and sounds: files, paste, drop, camera and microphone.

const LARGEST = 1e6, RATE = 16000, SECONDS = 30;

// Response of the server as JSON; throws an Error with its one-line message if it refuses.
export async function ask(path, body, signal) {
  const options = body && { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  let answer;
  try {
    answer = await fetch(path, { ...options, signal });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error("The server does not answer.");
  }
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(found.error?.message ?? `The server failed (${answer.status}).`);
  return found;
}

const encoded = (blob) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(blob);
});

// A file as a part of the query: { kind, name, data (base64), url }. A large sound is cut to its beginning, if the browser can decode it.
export async function part(file) {
  const kind = file.type.startsWith("audio/") || /\.(wav|mp3|ogg|opus|flac|m4a|aac|aiff?)$/i.test(file.name ?? "") ? "audio" : "image";
  const smaller = kind === "audio" && file.size > LARGEST ? await toWav(file).catch(() => file) : file;
  return { kind, name: file.name ?? (kind === "audio" ? "recording" : "picture"), data: await encoded(smaller), url: URL.createObjectURL(smaller) };
}

// The first seconds of anything that the browser can play, as mono PCM, which every server can read.
async function toWav(file) {
  const whole = await new AudioContext().decodeAudioData(await file.arrayBuffer());
  const offline = new OfflineAudioContext(1, Math.ceil(Math.min(whole.duration, SECONDS) * RATE), RATE);
  const source = Object.assign(offline.createBufferSource(), { buffer: whole });
  source.connect(offline.destination);
  source.start();
  const samples = (await offline.startRendering()).getChannelData(0);
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const words = [["RIFF", 36 + 2 * samples.length], ["WAVE"], ["fmt ", 16, 0x10001, RATE, 2 * RATE, 0x100002], ["data", 2 * samples.length]];
  let at = 0;
  for (const [name, ...numbers] of words) {
    for (const letter of name) view.setUint8(at++, letter.charCodeAt(0));
    for (const number of numbers) { view.setUint32(at, number, true); at += 4; }
  }
  samples.forEach((value, i) => view.setInt16(44 + 2 * i, 32767 * Math.max(-1, Math.min(1, value)), true));
  return new File([view], "recording.wav", { type: "audio/wav" });
}

function choose(accept, capture) {
  return new Promise((resolve) => {
    const input = Object.assign(document.createElement("input"), { type: "file", accept, hidden: true });
    if (capture) input.capture = capture;
    input.onchange = () => { resolve(input.files[0]); input.remove(); };
    input.oncancel = () => { resolve(null); input.remove(); };
    document.body.append(input);
    input.click();
  });
}

// On a telephone, and where the page may not use the camera, use the system's camera dialog.
async function photograph() {
  const dialog = document.querySelector("#shutter"), video = dialog.querySelector("video");
  if (!navigator.mediaDevices || matchMedia("(pointer: coarse)").matches) return choose("image/*", "environment");
  video.srcObject = await navigator.mediaDevices.getUserMedia({ video: true });
  dialog.showModal();
  const taken = await new Promise((resolve) => {
    dialog.querySelector(".take").onclick = () => resolve(true);
    dialog.querySelector(".cancel").onclick = dialog.onclose = () => resolve(false);
  });
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  if (taken) canvas.getContext("2d").drawImage(video, 0, 0);
  video.srcObject.getTracks().forEach((track) => track.stop());
  dialog.close();
  return taken ? new File([await canvas.convertToBlob({ type: "image/jpeg" })], "photo.jpg", { type: "image/jpeg" }) : null;
}

let recorder = null;
async function record(button) {
  if (recorder) return recorder.stop();
  if (!navigator.mediaDevices) return choose("audio/*", "user");
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  recorder = new MediaRecorder(stream);
  button.setAttribute("aria-pressed", true);
  button.title = "Stop the recording and search";
  const stopped = new Promise((resolve) => { recorder.ondataavailable = (event) => resolve(event.data); });
  recorder.start();
  const limit = setTimeout(() => recorder.stop(), SECONDS * 1000);
  const blob = await stopped;
  clearTimeout(limit);
  stream.getTracks().forEach((track) => track.stop());
  recorder = null;
  button.setAttribute("aria-pressed", false);
  button.title = "Record a sound";
  return toWav(blob);
}

// Calls take(file) for every input, or fail(error).
export function listen(take, fail) {
  const byId = (id) => document.getElementById(id);
  const on = (id, get) => {
    byId(id).onclick = () => get(byId(id)).then((file) => file && take(file)).catch(fail);
  };
  on("picture", () => choose("image/*"));
  on("sound", () => choose("audio/*"));
  on("camera", photograph);
  on("microphone", record);
  addEventListener("paste", (event) => {
    const file = event.clipboardData.files[0];
    if (file) { event.preventDefault(); take(file); }
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
}
