// The files as points of a plane, to move about in. Drawn by the page, and by the file of `onepeace map` on its own.

const SIDE = 46, REACH = 16, LARGEST = 400, ROUND = 5000, MOST = 120;
const REACHES = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };

// data: see map.py. open(id) is called for a point that is clicked; found: the ids of the files that are not faded.
export function showMap(place, data, { open = null, found = null } = {}) {
  place.map ??= new PlaneMap(place, data);
  Object.assign(place.map, { open, found });
  place.map.later();
}

class PlaneMap {
  constructor(place, data) {
    this.points = data.points.map(([x, y, kind, name, folder, id], i) => ({
      x, y, name, id, kind: data.kinds[kind], folder: data.places[folder], link: data.links?.[i], caption: data.captions[i] ?? "",
      small: data.thumbnails ? data.thumbnails[i] : ["image", "video"].includes(data.kinds[kind]) ? `files/${id}/thumbnail` : undefined,
    }));
    const make = (tag, properties) => place.appendChild(Object.assign(document.createElement(tag), properties));
    this.canvas = make("canvas", { tabIndex: 0 });
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute("aria-label", `Map of ${this.points.length} files. Arrow keys move it, plus and minus zoom, Enter opens the file in the middle.`);
    this.card = make("div", { className: "label", hidden: true });
    this.context = this.canvas.getContext("2d");
    const zoom = make("div", { className: "zoom" });
    for (const [text, title, act] of [["+", "Zoom in", () => this.zoom(1.6)], ["−", "Zoom out", () => this.zoom(1 / 1.6)], ["⌂", "Show all", () => this.home()]]) {
      zoom.append(Object.assign(document.createElement("button"), { type: "button", textContent: text, title, onclick: act }));
    }
    this.fingers = new Map();
    this.canvas.onpointerdown = (event) => this.down(event);
    this.canvas.onpointermove = (event) => this.moved(event);
    this.canvas.onpointerup = this.canvas.onpointercancel = (event) => this.up(event);
    this.canvas.onwheel = (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 16 : 1) * 0.0015), event.offsetX, event.offsetY);
    };
    this.canvas.onkeydown = (event) => {
      if (REACHES[event.key]) this.move(...REACHES[event.key]);
      else if (event.key === "+") this.zoom(1.6);
      else if (event.key === "-") this.zoom(1 / 1.6);
      else if (event.key === "0") this.home();
      else if (event.key === "Enter") this.choose(this.nearest(this.width / 2, this.height / 2, Infinity));
      else return;
      event.preventDefault();
      if (event.key !== "Enter") this.mark(this.nearest(this.width / 2, this.height / 2, Infinity));
    };
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.later());
    new ResizeObserver(() => this.resize()).observe(this.canvas);
  }

  resize() {
    const [w, h] = [this.canvas.clientWidth, this.canvas.clientHeight];
    if (!w || !h) return;
    const first = !this.width;
    [this.width, this.height, this.canvas.width, this.canvas.height] = [w, h, w * devicePixelRatio, h * devicePixelRatio];
    this.context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    first ? this.home() : this.later();
  }

  home() {
    Object.assign(this, { scale: 0.9, left: 0.05 * this.width, top: 0.05 * this.height });
    this.later();
  }

  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const next = Math.min(LARGEST, Math.max(0.5, this.scale * factor)), share = next / this.scale;
    Object.assign(this, { left: x - (x - this.left) * share, top: y - (y - this.top) * share, scale: next });
    this.later();
  }

  move(x, y) {
    this.left += x;
    this.top += y;
    this.later();
  }

  later() {
    if (!this.waiting && this.width) requestAnimationFrame(() => { this.waiting = false; this.draw(); });
    this.waiting = Boolean(this.width);
  }

  draw() {
    const { context, width, height, points, found } = this, color = {};
    for (const kind of ["image", "audio", "text", "video"]) {  // as they are in this scheme, which a canvas does not know
      this.canvas.style.color = `var(--${kind})`;
      color[kind] = getComputedStyle(this.canvas).color;
    }
    const radius = Math.min(6, Math.max(2, 60 / Math.sqrt(points.length)) * this.scale ** 0.3);
    const side = SIDE * Math.min(2.6, Math.max(1, this.scale ** 0.35)), visible = [];
    context.clearRect(0, 0, width, height);
    for (const wanted of [false, true]) {  // what was found lies over the others
      for (const point of points) {
        if ((found?.has(point.id) ?? true) !== wanted) continue;
        const x = point.left = this.left + point.x * this.scale * width, y = point.top = this.top + point.y * this.scale * height;
        if (x < -side || y < -side || x > width + side || y > height + side) continue;
        if (wanted) visible.push(point);
        context.globalAlpha = wanted ? 0.85 : 0.15;
        context.fillStyle = color[point.kind];
        context.beginPath();
        points.length > ROUND ? context.rect(x - radius, y - radius, 2 * radius, 2 * radius) : context.arc(x, y, radius, 0, 7);
        context.fill();
      }
    }
    context.globalAlpha = 1;
    context.font = "12px system-ui, sans-serif";
    const boxes = [], fits = (box) => boxes.every((o) => box[0] > o[2] || box[2] < o[0] || box[1] > o[3] || box[3] < o[1]) && boxes.push(box);
    let loads = 0;
    for (const point of this.marked ? [this.marked, ...visible] : visible) {
      const { left: x, top: y } = point;
      context.fillStyle = color[point.kind];
      if (point.small) {
        const box = [x - side / 2, y - side / 2, x + side / 2, y + side / 2];
        if (boxes.length > MOST || !fits(box) || loads > MOST) continue;
        if (!point.image) { point.image = this.load(point); loads++; }
        const { naturalWidth: w, naturalHeight: h } = point.image;
        if (!w) continue;  // not here yet
        const cut = Math.min(w, h);
        context.beginPath();
        context.roundRect(box[0], box[1], side, side, side / 6);
        context.save();
        context.clip();
        context.drawImage(point.image, (w - cut) / 2, (h - cut) / 2, cut, cut, box[0], box[1], side, side);
        context.restore();
        context.lineWidth = point === this.marked ? 4 : 2;
        context.strokeStyle = color[point.kind];
        context.stroke();
      } else if (visible.length < 1000) {
        const text = point.name.length > 22 ? `${point.name.slice(0, 22)}…` : point.name, long = context.measureText(text).width;
        const start = x + radius + 3 + long > width ? x - radius - 3 - long : x + radius + 3;
        if (fits([start, y - 8, start + long, y + 8])) context.fillText(text, start, y + 4);
      }
    }
    if (!this.marked) return;
    const { left: x, top: y, kind } = this.marked, w = this.card.offsetWidth, h = this.card.offsetHeight;
    context.strokeStyle = color[kind];
    context.lineWidth = 2.5;
    context.beginPath();
    context.arc(x, y, radius + 5, 0, 7);
    if (!this.marked.small) context.stroke();
    this.card.style.left = `${Math.max(8, Math.min(width - w - 8, x + side / 2 + 10 + w > width ? x - side / 2 - 10 - w : x + side / 2 + 10))}px`;
    this.card.style.top = `${Math.max(8, Math.min(y - h / 2, height - h - 8))}px`;
  }

  load(point) {
    const image = new Image();
    image.onload = () => this.later();
    image.src = point.small;
    return image;
  }

  nearest(x, y, reach = REACH) {
    let best = null;
    for (const point of this.points) {
      const within = point.small && point.image?.naturalWidth ? SIDE / 2 : reach;
      const distance = Math.hypot(point.left - x, point.top - y);
      if (distance < Math.max(within, reach) && (this.found?.has(point.id) ?? true) && !(distance >= best?.distance)) best = Object.assign(point, { distance });
    }
    return best;
  }

  mark(point) {
    this.marked = point;
    this.card.hidden = !point;
    const line = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });
    if (point) this.card.replaceChildren(line("b", point.name), line("span", point.caption || point.folder));
    this.later();
  }

  choose(point) {
    if (!point) return;
    if (this.open) this.open(point.id);
    else if (point.link) window.open(point.link, "_blank", "noopener");
  }

  down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
    if (this.fingers.size === 1) this.dragged = false;
  }

  moved(event) {
    const at = [event.offsetX, event.offsetY], before = this.fingers.get(event.pointerId);
    if (!before) return this.mark(this.nearest(...at));
    const [dx, dy] = [at[0] - before[0], at[1] - before[1]];
    if (!this.dragged && Math.hypot(dx, dy) < 4) return;
    this.dragged = true;
    const other = [...this.fingers].find(([id]) => id !== event.pointerId)?.[1];
    this.fingers.set(event.pointerId, at);
    if (!other) return this.move(dx, dy);
    const apart = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]);
    this.zoom(apart(at) / Math.max(1, apart(before)), (at[0] + other[0]) / 2, (at[1] + other[1]) / 2);
  }

  up(event) {
    this.fingers.delete(event.pointerId);
    if (event.type === "pointerup" && !this.dragged) {
      const point = this.nearest(event.offsetX, event.offsetY);
      this.mark(point);
      this.choose(point);
    }
  }
}
