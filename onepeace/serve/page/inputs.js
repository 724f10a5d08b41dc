// Files as parts of the query: chosen, pasted, dropped, photographed or recorded.

import { byId, element } from "./elements.js";
import { partOf } from "./query.js";

const MOST_FILES = 8;  // of one query
const LARGE_PICTURE = 4e6, SIDE = 2048;  // bytes above which one of several pictures is scaled down, and its side then
const LARGE_SOUND = 1e6, LARGE_VIDEO = 2e8;  // bytes above which a sound is cut, and the sound of a video is left out
const RATE = 16000, SECONDS = 30;  // of a sound that is cut
const SILENCE = 0.001;  // highest sample of a video's sound that is left out
const FRAMES = 6, FRAME_SIDE = 1024;  // pictures of a video that are sent, and their longer side
const LETTERS = 1000;  // of a text file; models read no more

const ENDINGS = {
  audio: /\.(wav|mp3|ogg|opus|flac|m4a|aac|aiff?)$/i,
  video: /\.(mp4|m4v|mov|webm|mkv|avi|3gp|mpe?g|wmv)$/i,
  text: /\.(txt|md|rst|text)$/i,
};

function kindOf(file) {
  const kind = file.type.split("/")[0];
  if (kind === "image" || kind === "audio" || kind === "video" || kind === "text") return kind;
  const byEnding = Object.keys(ENDINGS).find((name) => ENDINGS[name].test(file.name));
  const isUnknown = !file.type || file.type === "application/octet-stream";
  if (byEnding || isUnknown) return byEnding ?? "image";
  const ending = file.name.split(".").pop().toUpperCase();
  throw new Error(`${file.name} is a ${ending} file; search by a picture, a sound, a video or a text file.`);
}

// The parts of the query for some files; throws an Error for one that cannot be read.
export async function partsOf(files) {
  if (files.length > MOST_FILES) throw new Error(`${files.length} files; search by at most ${MOST_FILES} at once.`);
  const makers = { image: picturePart, audio: soundPart, video: videoPart, text: textPart };
  return Promise.all(files.map((file) => makers[kindOf(file)](file, files.length > 1)));
}

async function picturePart(file, isOneOfSeveral) {
  const isScaled = isOneOfSeveral && file.size > LARGE_PICTURE;
  const sent = isScaled ? await scaled(file).catch(() => file) : file;
  return partOf("image", file.name ?? "picture", { url: URL.createObjectURL(sent), images: [await encoded(sent)] });
}

// A large sound is cut to its beginning, if the browser can decode it.
async function soundPart(file) {
  const sent = file.size > LARGE_SOUND ? await wavOf(file).catch(() => file) : file;
  return partOf("audio", file.name ?? "recording", { sounds: [await encoded(sent)] });
}

async function textPart(file) {
  const text = (await file.slice(0, 8 * LETTERS).text()).trim();
  if (!text) throw new Error(`${file.name}: has no words.`);
  return partOf("text", file.name, { texts: [text.slice(0, LETTERS)] });
}

// Pictures from all over a video, and the beginning of its sound.
async function videoPart(file) {
  const blobs = await framesOf(file);
  const sound = file.size > LARGE_VIDEO ? null : await wavOf(file, SILENCE).catch(() => null);
  const images = await Promise.all(blobs.map(encoded));
  const sounds = sound ? [await encoded(sound)] : [];
  return partOf("video", file.name, { url: URL.createObjectURL(blobs[0]), images, sounds });
}

async function framesOf(file) {
  const video = element("video", { src: URL.createObjectURL(file), muted: true, playsInline: true, preload: "auto" });
  const event = (name) => new Promise((resolve, reject) => {
    video.addEventListener(name, resolve, { once: true });
    const fail = () => reject(new Error(`${file.name}: this browser cannot play it.`));
    video.addEventListener("error", fail, { once: true });
  });
  await event("loadeddata");
  const count = isFinite(video.duration) ? FRAMES : 1;
  const frames = [];
  for (let i = 0; i < count; i++) {
    if (count > 1) {
      const seeked = event("seeked");
      video.currentTime = video.duration * (i + 0.5) / count;
      await seeked;
    }
    frames.push(await drawn(video, video.videoWidth, video.videoHeight, FRAME_SIDE));
  }
  URL.revokeObjectURL(video.src);
  return frames;
}

async function scaled(file) {
  const bitmap = await createImageBitmap(file);
  return drawn(bitmap, bitmap.width, bitmap.height, SIDE);
}

// What a canvas can draw, as JPEG with a longer side of at most so many pixels.
function drawn(source, width, height, side) {
  const scale = Math.min(1, side / Math.max(width, height));
  const canvas = new OffscreenCanvas(Math.round(width * scale), Math.round(height * scale));
  canvas.getContext("2d").drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
}

// The content of a file in base64.
const encoded = (blob) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(blob);
});

// The first seconds of what the browser can play, as mono PCM, which every server can read; null if it is too quiet.
async function wavOf(file, silence = -1) {
  const whole = await new AudioContext().decodeAudioData(await file.arrayBuffer());
  const offline = new OfflineAudioContext(1, Math.ceil(Math.min(whole.duration, SECONDS) * RATE), RATE);
  const source = Object.assign(offline.createBufferSource(), { buffer: whole });
  source.connect(offline.destination);
  source.start();
  const samples = (await offline.startRendering()).getChannelData(0);
  if (samples.every((value) => Math.abs(value) <= silence)) return null;
  return new File([wavBytes(samples)], "recording.wav", { type: "audio/wav" });
}

function wavBytes(samples) {
  const size = 2 * samples.length;
  const view = new DataView(new ArrayBuffer(44 + size));
  const chunks = [["RIFF", 36 + size], ["WAVE"], ["fmt ", 16, 0x10001, RATE, 2 * RATE, 0x100002], ["data", size]];
  let at = 0;
  for (const [name, ...numbers] of chunks) {
    for (const letter of name) view.setUint8(at++, letter.charCodeAt(0));
    for (const number of numbers) {
      view.setUint32(at, number, true);
      at += 4;
    }
  }
  samples.forEach((value, i) => view.setInt16(44 + 2 * i, 32767 * Math.max(-1, Math.min(1, value)), true));
  return view;
}

// Files that the user chooses.
function choose(accept, capture) {
  return new Promise((resolve) => {
    const input = element("input", { type: "file", accept, hidden: true, multiple: !capture });
    if (capture) input.capture = capture;
    const end = () => {
      resolve([...input.files]);
      input.remove();
    };
    input.onchange = input.oncancel = end;
    document.body.append(input);
    input.click();
  });
}

// On a telephone, and where the page may not use the camera, use the system's camera dialog.
async function photograph() {
  const dialog = byId("shutter");
  const video = dialog.querySelector("video");
  if (!navigator.mediaDevices || matchMedia("(pointer: coarse)").matches) return choose("image/*", "environment");
  video.srcObject = await navigator.mediaDevices.getUserMedia({ video: true });
  dialog.showModal();
  const isTaken = await new Promise((resolve) => {
    dialog.querySelector(".take").onclick = () => resolve(true);
    dialog.querySelector(".cancel").onclick = dialog.onclose = () => resolve(false);
  });
  const blob = isTaken ? await drawn(video, video.videoWidth, video.videoHeight, SIDE) : null;
  video.srcObject.getTracks().forEach((track) => track.stop());
  dialog.close();
  return blob ? [new File([blob], "photo.jpg", { type: "image/jpeg" })] : [];
}

let recorder = null;

async function record(microphone) {
  if (recorder) {
    recorder.stop();
    return [];
  }
  if (!navigator.mediaDevices) return choose("audio/*", "user");
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  recorder = new MediaRecorder(stream);
  microphone.setAttribute("aria-pressed", true);
  microphone.title = "Stop the recording and search";
  const stopped = new Promise((resolve) => { recorder.ondataavailable = (event) => resolve(event.data); });
  recorder.start();
  const limit = setTimeout(() => recorder.stop(), SECONDS * 1000);
  const blob = await stopped;
  clearTimeout(limit);
  stream.getTracks().forEach((track) => track.stop());
  recorder = null;
  microphone.setAttribute("aria-pressed", false);
  microphone.title = "Record a sound";
  return [await wavOf(blob)];
}

// Call take(files) for every input, or fail(error).
export function listen(take, fail) {
  const some = (files) => { if (files.length) take(files); };
  const on = (id, get) => {
    byId(id).onclick = () => get(byId(id)).then(some).catch(fail);
  };
  on("picture", () => choose("image/*,video/*,text/plain,.md"));
  on("sound", () => choose("audio/*"));
  on("camera", photograph);
  on("microphone", record);
  addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (files.length) event.preventDefault();
    some(files);
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    some([...event.dataTransfer.files]);
  });
}
