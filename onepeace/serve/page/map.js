// The files as points of a plane, with panning and zooming.

import { button, element } from "./elements.js";
import { KINDS } from "./files.js";

const SIDE = 46;  // pixels of a picture
const REACH = 16;  // radius in pixels in which a point is hit
const SMALLEST = 0.5, LARGEST = 400;  // limits of the zoom
const ROUND = 5000, NAMED = 1000;  // points above which they are drawn as squares, and without names
const MOST = 150;  // maximum of pictures drawn
const LONGEST_NAME = 22;  // characters

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
      x, y, name, id,
      kind: data.kinds[kind],
      folder: data.places[folder],
      caption: data.captions[i],
      small: ["image", "video"].includes(data.kinds[kind]) ? `files/${id}/thumbnail` : null,
    }));
    const keys = "Arrow keys pan, plus and minus zoom, Enter opens the file in the centre.";
    const ariaLabel = `Map of ${this.points.length} files. ${keys}`;
    this.canvas = element("canvas", { tabIndex: 0, role: "application", ariaLabel });
    this.context = this.canvas.getContext("2d");
    this.label = element("div", { className: "label", hidden: true });
    const buttons = [
      button({ textContent: "+", title: "Zoom in", onclick: () => this.zoom(1.6) }),
      button({ textContent: "−", title: "Zoom out", onclick: () => this.zoom(1 / 1.6) }),
      button({ textContent: "⌂", title: "Show all", onclick: () => this.home() }),
    ];
    place.append(this.canvas, this.label, element("div", { className: "zoom" }, ...buttons));
    this.keys = {
      "+": () => this.zoom(1.6),
      "-": () => this.zoom(1 / 1.6),
      0: () => this.home(),
      Enter: () => this.choose(this.middle()),
      ArrowLeft: () => this.move(60, 0),
      ArrowRight: () => this.move(-60, 0),
      ArrowUp: () => this.move(0, 60),
      ArrowDown: () => this.move(0, -60),
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
    const { clientWidth, clientHeight } = this.canvas;
    if (!clientWidth || !clientHeight) return;
    const isFirst = !this.width;
    this.width = clientWidth;
    this.height = clientHeight;
    this.canvas.width = clientWidth * devicePixelRatio;
    this.canvas.height = clientHeight * devicePixelRatio;
    this.context.scale(devicePixelRatio, devicePixelRatio);
    if (isFirst) this.home();
    else this.later();
  }

  home() {
    Object.assign(this, { scale: 0.9, left: 0.05 * this.width, top: 0.05 * this.height });
    this.later();
  }

  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const scale = Math.min(LARGEST, Math.max(SMALLEST, this.scale * factor));
    const share = scale / this.scale;
    this.left = x - (x - this.left) * share;
    this.top = y - (y - this.top) * share;
    this.scale = scale;
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
    const radius = Math.min(6, Math.max(2, 60 / Math.sqrt(this.points.length)) * this.scale ** 0.3);
    const side = SIDE * Math.min(2.6, Math.max(1, this.scale ** 0.35));
    const colors = this.colors();
    this.context.clearRect(0, 0, this.width, this.height);
    const faded = this.points.filter((point) => !this.isFound(point));
    for (const point of faded) this.drawPoint(point, colors, radius, side, 0.15);
    const shown = this.points.filter(this.isFound).filter((point) => this.drawPoint(point, colors, radius, side, 0.85));
    this.context.globalAlpha = 1;
    this.drawOver(this.marked ? [this.marked, ...shown] : shown, colors, side, radius);
    if (this.marked) this.placeLabel(side);
  }

  // Colours of the current scheme by kind, which a canvas does not read.
  colors() {
    const colors = {};
    for (const kind of Object.keys(KINDS)) {
      this.canvas.style.color = `var(--${kind})`;
      colors[kind] = getComputedStyle(this.canvas).color;
    }
    return colors;
  }

  // Draw a point where it is now; returns whether it is in view.
  drawPoint(point, colors, radius, side, alpha) {
    const { context } = this;
    const x = point.left = this.left + point.x * this.scale * this.width;
    const y = point.top = this.top + point.y * this.scale * this.height;
    if (x < -side || y < -side || x > this.width + side || y > this.height + side) return false;
    context.globalAlpha = alpha;
    context.fillStyle = colors[point.kind];
    context.beginPath();
    if (this.points.length > ROUND) context.rect(x - radius, y - radius, 2 * radius, 2 * radius);
    else context.arc(x, y, radius, 0, 7);
    context.fill();
    return true;
  }

  // Put the label beside the marked point, where there is room.
  placeLabel(side) {
    const { left, top } = this.marked;
    const { offsetWidth, offsetHeight, style } = this.label;
    const distance = side / 2 + 10;
    const isRight = left + distance + offsetWidth <= this.width;
    const x = isRight ? left + distance : left - distance - offsetWidth;
    const y = Math.min(top - offsetHeight / 2, this.height - offsetHeight - 8);
    style.left = `${Math.max(8, x)}px`;
    style.top = `${Math.max(8, y)}px`;
  }

  // Pictures and names that do not overlap.
  drawOver(points, colors, side, radius) {
    const boxes = [];
    const isApart = (box, other) => box[0] > other[2] || box[2] < other[0] || box[1] > other[3] || box[3] < other[1];
    const fits = (box) => boxes.every((other) => isApart(box, other)) && boxes.push(box);
    this.context.font = "12px system-ui, sans-serif";
    for (const point of points) {
      const { left, top } = point;
      const half = side / 2;
      if (point.small && boxes.length < MOST && fits([left - half, top - half, left + half, top + half])) {
        this.drawPicture(point, colors[point.kind], side);
      } else if (!point.small && this.points.length < NAMED) {
        this.drawName(point, colors[point.kind], radius, fits);
      }
    }
  }

  // The middle of a picture, as a square; it is drawn again once it is loaded.
  drawPicture(point, color, side) {
    const { context } = this;
    point.image ??= Object.assign(new Image(), { onload: () => this.later(), src: point.small });
    const { naturalWidth, naturalHeight } = point.image;
    if (!naturalWidth) return;
    const cut = Math.min(naturalWidth, naturalHeight);
    const [x, y] = [point.left - side / 2, point.top - side / 2];
    context.save();
    context.beginPath();
    context.roundRect(x, y, side, side, side / 6);
    context.lineWidth = point === this.marked ? 8 : 4;
    context.strokeStyle = color;
    context.clip();
    context.drawImage(point.image, (naturalWidth - cut) / 2, (naturalHeight - cut) / 2, cut, cut, x, y, side, side);
    context.stroke();
    context.restore();
  }

  drawName({ left, top, name }, color, radius, fits) {
    const text = name.length > LONGEST_NAME ? `${name.slice(0, LONGEST_NAME)}…` : name;
    const width = this.context.measureText(text).width;
    const isRight = left + radius + 3 + width <= this.width;
    const start = isRight ? left + radius + 3 : left - radius - 3 - width;
    this.context.fillStyle = color;
    if (fits([start, top - 8, start + width, top + 8])) this.context.fillText(text, start, top + 4);
  }

  // The point nearest to a place on the canvas, within a distance.
  nearest(x, y, reach) {
    let best = null;
    let shortest = Infinity;
    for (const point of this.points.filter(this.isFound)) {
      const distance = Math.hypot(point.left - x, point.top - y);
      const limit = reach ?? (point.image ? SIDE / 2 : REACH);
      if (distance >= limit || distance >= shortest) continue;
      best = point;
      shortest = distance;
    }
    return best;
  }

  middle() {
    return this.nearest(this.width / 2, this.height / 2, Infinity);
  }

  mark(point) {
    this.marked = point;
    this.label.hidden = !point;
    if (point) {
      const place = point.caption ?? point.folder;
      this.label.replaceChildren(element("b", {}, point.name), element("span", {}, place));
    }
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
    const position = [event.offsetX, event.offsetY];
    const before = this.fingers.get(event.pointerId);
    if (!before) return this.mark(this.nearest(...position));
    const [x, y] = [position[0] - before[0], position[1] - before[1]];
    this.dragged ||= Math.hypot(x, y) > 4;
    if (!this.dragged) return;
    this.fingers.set(event.pointerId, position);
    const other = [...this.fingers].find(([id]) => id !== event.pointerId)?.[1];
    if (!other) return this.move(x, y);
    const distance = (finger) => Math.hypot(finger[0] - other[0], finger[1] - other[1]);
    const factor = distance(position) / Math.max(1, distance(before));
    this.zoom(factor, (position[0] + other[0]) / 2, (position[1] + other[1]) / 2);
  }

  up(event) {
    this.fingers.delete(event.pointerId);
    if (event.type === "pointerup" && !this.dragged) this.choose(this.nearest(event.offsetX, event.offsetY));
  }
}
