// The files as points of a plane, with panning and zooming.

import { element as made } from "./elements.js";
import { KINDS } from "./files.js";

const SIDE = 46, REACH = 16, LARGEST = 400;  // pixels of a picture, radius in pixels in which a point is hit, maximum zoom
const ROUND = 5000, NAMED = 1000, MOST = 150;  // points above which they are drawn as squares, without names; maximum of pictures drawn

// data: see map.py. open(id) is called when a point is clicked; found: ids of the files that are not faded.
export function showMap(place, data, open, found) {
  place.map ??= new PlaneMap(place, data);
  Object.assign(place.map, { open, isFound: ({ id }) => found?.has(id) ?? true });
  place.map.later();
}

class PlaneMap {
  fingers = new Map();  // positions of pointers that are down, by id
  width = 0;

  constructor(place, data) {
    this.points = data.points.map(([x, y, kind, name, folder, id], i) => ({
      x, y, name, id, kind: data.kinds[kind], folder: data.places[folder], caption: data.captions[i],
      small: ["image", "video"].includes(data.kinds[kind]) ? `files/${id}/thumbnail` : null,
    }));
    const about = `Map of ${this.points.length} files. Arrow keys pan, plus and minus zoom, Enter opens the file in the centre.`;
    this.canvas = made("canvas", { tabIndex: 0, role: "application", ariaLabel: about });
    this.context = this.canvas.getContext("2d");
    this.label = made("div", { className: "label", hidden: true });
    const acts = [["+", "Zoom in", () => this.zoom(1.6)], ["−", "Zoom out", () => this.zoom(1 / 1.6)], ["⌂", "Show all", () => this.home()]];
    const buttons = acts.map(([textContent, title, onclick]) => made("button", { type: "button", textContent, title, onclick }));
    place.append(this.canvas, this.label, made("div", { className: "zoom" }, ...buttons));
    this.keys = {
      "+": acts[0][2], "-": acts[1][2], 0: acts[2][2], Enter: () => this.choose(this.middle()),
      ArrowLeft: () => this.move(60, 0), ArrowRight: () => this.move(-60, 0), ArrowUp: () => this.move(0, 60), ArrowDown: () => this.move(0, -60),
    };
    this.canvas.onkeydown = (event) => this.pressed(event);
    this.canvas.onpointerdown = (event) => this.down(event);
    this.canvas.onpointermove = (event) => this.moved(event);
    this.canvas.onpointerup = this.canvas.onpointercancel = (event) => this.up(event);
    this.canvas.onwheel = (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 16 : 1) * 0.0015), event.offsetX, event.offsetY);
    };
    matchMedia("(prefers-color-scheme: dark)").onchange = () => this.later();
    new ResizeObserver(() => this.resize()).observe(this.canvas);
  }

  resize() {
    const { clientWidth: w, clientHeight: h } = this.canvas, first = !this.width;
    if (!w || !h) return;
    [this.width, this.height, this.canvas.width, this.canvas.height] = [w, h, w * devicePixelRatio, h * devicePixelRatio];
    this.context.scale(devicePixelRatio, devicePixelRatio);
    first ? this.home() : this.later();
  }

  home() {
    Object.assign(this, { scale: 0.9, left: 0.05 * this.width, top: 0.05 * this.height });
    this.later();
  }

  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const scale = Math.min(LARGEST, Math.max(0.5, this.scale * factor)), share = scale / this.scale;
    Object.assign(this, { left: x - (x - this.left) * share, top: y - (y - this.top) * share, scale });
    this.later();
  }

  move(x, y) {
    this.left += x;
    this.top += y;
    this.later();
  }

  later() {
    if (this.width && !this.waiting) this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.draw(); });
  }

  draw() {
    const { context, points } = this, colors = {}, shown = [];
    for (const kind of Object.keys(KINDS)) {  // colours of the current scheme, which a canvas does not read
      this.canvas.style.color = `var(--${kind})`;
      colors[kind] = getComputedStyle(this.canvas).color;
    }
    const radius = Math.min(6, Math.max(2, 60 / Math.sqrt(points.length)) * this.scale ** 0.3);
    const side = SIDE * Math.min(2.6, Math.max(1, this.scale ** 0.35));
    context.clearRect(0, 0, this.width, this.height);
    for (const point of [...points.filter((point) => !this.isFound(point)), ...points.filter(this.isFound)]) {
      const x = point.left = this.left + point.x * this.scale * this.width, y = point.top = this.top + point.y * this.scale * this.height;
      if (x < -side || y < -side || x > this.width + side || y > this.height + side) continue;
      if (this.isFound(point)) shown.push(point);
      context.globalAlpha = this.isFound(point) ? 0.85 : 0.15;
      context.fillStyle = colors[point.kind];
      context.beginPath();
      points.length > ROUND ? context.rect(x - radius, y - radius, 2 * radius, 2 * radius) : context.arc(x, y, radius, 0, 7);
      context.fill();
    }
    context.globalAlpha = 1;
    this.drawOver(this.marked ? [this.marked, ...shown] : shown, colors, side, radius);
    if (!this.marked) return;
    const { left: x, top: y } = this.marked, { offsetWidth: w, offsetHeight: h } = this.label, away = side / 2 + 10;
    this.label.style.left = `${Math.max(8, x + away + w > this.width ? x - away - w : x + away)}px`;
    this.label.style.top = `${Math.max(8, Math.min(y - h / 2, this.height - h - 8))}px`;
  }

  // Pictures and names that do not overlap.
  drawOver(points, colors, side, radius) {
    const { context } = this, boxes = [];
    const fits = (box) => boxes.every((o) => box[0] > o[2] || box[2] < o[0] || box[1] > o[3] || box[3] < o[1]) && boxes.push(box);
    context.font = "12px system-ui, sans-serif";
    for (const point of points) {
      const { left: x, top: y, name } = point;
      if (point.small && boxes.length < MOST && fits([x - side / 2, y - side / 2, x + side / 2, y + side / 2])) {
        point.image ??= Object.assign(new Image(), { onload: () => this.later(), src: point.small });
        const { naturalWidth: w, naturalHeight: h } = point.image, cut = Math.min(w, h);
        if (!w) continue;  // not loaded yet
        context.save();
        context.beginPath();
        context.roundRect(x - side / 2, y - side / 2, side, side, side / 6);
        context.lineWidth = point === this.marked ? 8 : 4;
        context.strokeStyle = colors[point.kind];
        context.clip();
        context.drawImage(point.image, (w - cut) / 2, (h - cut) / 2, cut, cut, x - side / 2, y - side / 2, side, side);
        context.stroke();
        context.restore();
      } else if (!point.small && points.length < NAMED) {
        const text = name.length > 22 ? `${name.slice(0, 22)}…` : name, long = context.measureText(text).width;
        const start = x + radius + 3 + long > this.width ? x - radius - 3 - long : x + radius + 3;
        context.fillStyle = colors[point.kind];
        if (fits([start, y - 8, start + long, y + 8])) context.fillText(text, start, y + 4);
      }
    }
  }

  nearest(x, y, reach) {
    let best = null;
    for (const point of this.points.filter(this.isFound)) {
      const distance = Math.hypot(point.left - x, point.top - y);
      if (distance < (reach ?? (point.image ? SIDE / 2 : REACH)) && !(distance >= best?.distance)) best = Object.assign(point, { distance });
    }
    return best;
  }

  middle() {
    return this.nearest(this.width / 2, this.height / 2, Infinity);
  }

  mark(point) {
    this.marked = point;
    this.label.hidden = !point;
    if (point) this.label.replaceChildren(made("b", {}, point.name), made("span", {}, point.caption ?? point.folder));
    this.later();
  }

  choose(point) {
    this.mark(point);
    if (point) this.open(point.id);
  }

  pressed(event) {
    if (!Object.hasOwn(this.keys, event.key)) return;
    event.preventDefault();
    this.keys[event.key]();
    this.mark(this.middle());
  }

  down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.dragged &&= this.fingers.size > 0;
    this.fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
  }

  moved(event) {
    const at = [event.offsetX, event.offsetY], before = this.fingers.get(event.pointerId);
    if (!before) return this.mark(this.nearest(...at));
    const [x, y] = [at[0] - before[0], at[1] - before[1]];
    this.dragged ||= Math.hypot(x, y) > 4;
    if (!this.dragged) return;
    const other = [...this.fingers].find(([id]) => id !== event.pointerId)?.[1];
    this.fingers.set(event.pointerId, at);
    if (!other) return this.move(x, y);
    const apart = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]);  // two fingers
    this.zoom(apart(at) / Math.max(1, apart(before)), (at[0] + other[0]) / 2, (at[1] + other[1]) / 2);
  }

  up(event) {
    this.fingers.delete(event.pointerId);
    if (event.type === "pointerup" && !this.dragged) this.choose(this.nearest(event.offsetX, event.offsetY));
  }
}
