"use strict";
{
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const points = data.points.map(([x, y, kind, name, folder, link], i) => ({
    x, y, name, link, kind: data.kinds[kind], title: data.titles[kind], folder: data.folders[folder],
    caption: data.captions[i] ?? "", thumbnail: data.thumbnails[i], shown: true, found: true,
  }));
  const canvas = byId("map"), context = canvas.getContext("2d"), card = byId("card"), words = byId("words");
  const SIDE = 44, REACH = 14, LARGEST = 400;
  const ROUND = 5000;  // more points are squares, which are drawn faster
  const NAMED = 1000, LONGEST = 24;  // points from which on none is named; letters of a name
  let scale = 0.92, left = 0, top = 0;  // a point is drawn at left + x * scale * width, top + y * scale * height
  let width = 1, height = 1, marked = null, pinned = false, waiting = false;

  function draw() {
    waiting = false;
    const style = getComputedStyle(document.documentElement);
    const color = Object.fromEntries(data.kinds.map((kind) => [kind, style.getPropertyValue("--" + kind) || "gray"]));
    const radius = Math.min(6, Math.max(2.2, 60 / Math.sqrt(points.length)) * scale ** 0.3);
    const side = SIDE * Math.min(2.5, Math.max(1, scale ** 0.35));
    context.clearRect(0, 0, width, height);
    const visible = [];
    for (const found of [false, true]) {  // those that are looked for lie over the others
      for (const point of points) {
        if (!point.shown || point.found !== found) continue;
        const x = point.left = left + point.x * scale * width, y = point.top = top + point.y * scale * height;
        if (x < -side || y < -side || x > width + side || y > height + side) continue;
        if (found) visible.push(point);
        context.globalAlpha = found ? 0.8 : 0.12;
        context.fillStyle = color[point.kind];
        if (points.length > ROUND) {
          context.fillRect(x - radius, y - radius, 2 * radius, 2 * radius);
          continue;
        }
        context.beginPath();
        context.arc(x, y, radius, 0, 7);
        context.fill();
      }
    }
    context.globalAlpha = 1;
    context.font = "12px system-ui, sans-serif";
    const boxes = [];  // of pictures and names, none over another
    const fits = (box) => boxes.every((other) =>
      box[0] > other[2] || box[2] < other[0] || box[1] > other[3] || box[3] < other[1]) && boxes.push(box);
    for (const point of marked ? [marked, ...visible] : visible) {
      const { left: x, top: y, name, thumbnail } = point;
      context.fillStyle = color[point.kind];
      if (thumbnail) {
        const { naturalWidth: w, naturalHeight: h } = point.image ??= pictureOf(point);
        const share = side / Math.max(w, h) * 0.94, [right, below] = [w * share / 2, h * share / 2];
        const box = [x - right - 1.5, y - below - 1.5, x + right + 1.5, y + below + 1.5];
        if (!w || !fits(box)) continue;  // not decoded yet, or no place
        context.fillRect(box[0], box[1], box[2] - box[0], box[3] - box[1]);
        context.drawImage(point.image, x - right, y - below, 2 * right, 2 * below);
      } else if (visible.length < NAMED) {
        const label = name.length > LONGEST ? name.slice(0, LONGEST) + "\u2026" : name;
        const long = context.measureText(label).width, away = radius + 3;
        const start = x + away + long > width ? x - away - long : x + away;
        if (fits([start, y - 8, start + long, y + 8])) context.fillText(label, start, y + 4);
      }
    }
    if (!marked) return;
    context.strokeStyle = color[marked.kind];
    context.lineWidth = 2.5;
    context.beginPath();
    context.arc(marked.left, marked.top, radius + 5, 0, 7);
    context.stroke();
    const x = marked.left, y = marked.top, w = card.offsetWidth, h = card.offsetHeight;
    card.style.left = Math.max(8, x + 28 + w > width ? x - 28 - w : x + 28) + "px";
    card.style.top = Math.max(8, Math.min(y - h / 2, height - h - 8)) + "px";
  }

  function later() {
    if (!waiting) requestAnimationFrame(draw);
    waiting = true;
  }

  function pictureOf(point) {
    const image = new Image();
    image.onload = later;
    image.src = point.thumbnail;
    return image;
  }

  function element(tag, properties) {
    return Object.assign(document.createElement(tag), properties);
  }

  // What is known of a point; every text of a file as text, never as HTML.
  function mark(point, pin = false) {
    marked = point;
    pinned = pin;
    card.hidden = !point;
    card.className = pin ? "pinned" : "";
    card.replaceChildren();
    if (point) {
      if (point.thumbnail) card.append(element("img", { src: point.thumbnail, alt: "" }));
      card.append(element("div", { textContent: point.title, className: "badge " + point.kind }));
      const link = { href: point.link, target: "_blank", rel: "noopener" };
      card.append(element(point.link ? "a" : "div", { textContent: point.name, className: "name", ...(point.link && link) }));
      card.append(element("div", { textContent: point.folder, className: "folder" }));
      if (point.caption) card.append(element("blockquote", { textContent: point.caption }));
      const plays = pin && point.link && !/^https?:/.test(point.link) && ["audio", "video"].includes(point.kind);
      if (plays) card.append(element(point.kind, { controls: true, preload: "none", src: point.link }));
    }
    later();
  }

  function nearest(x, y) {
    let best = null, least = REACH;
    for (const point of points) {
      const distance = Math.hypot(point.left - x, point.top - y);
      if (point.shown && point.found && distance < least) [best, least] = [point, distance];
    }
    return best;
  }

  function zoom(factor, x = width / 2, y = height / 2) {
    const next = Math.min(LARGEST, Math.max(0.5, scale * factor));
    left = x - (x - left) * next / scale;
    top = y - (y - top) * next / scale;
    scale = next;
    later();
  }

  function move(x, y) {
    left += x;
    top += y;
    later();
  }

  function home() {
    scale = 0.92;
    left = 0.04 * width;
    top = 0.04 * height;
    later();
  }

  function choose() {
    const wanted = words.value.trim().toLowerCase();
    const hidden = [...document.querySelectorAll("input[data-kind]:not(:checked)")].map((box) => box.dataset.kind);
    for (const point of points) {
      point.shown = !hidden.includes(point.kind);
      point.found = (point.name + "\n" + point.folder + "\n" + point.caption).toLowerCase().includes(wanted);
    }
    byId("found").textContent = wanted && points.filter((point) => point.shown && point.found).length + " found";
    mark(null);
  }

  function resize() {
    const ratio = devicePixelRatio, [w, h] = [canvas.clientWidth, canvas.clientHeight];
    left *= w / width;
    top *= h / height;
    [width, height, canvas.width, canvas.height] = [w, h, Math.round(w * ratio), Math.round(h * ratio)];
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    later();
  }

  let from = null, moved = false;  // where the map is held
  canvas.addEventListener("pointerdown", (event) => {
    from = [event.offsetX, event.offsetY];
    moved = false;
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const at = [event.offsetX, event.offsetY];
    if (from && (moved || Math.hypot(at[0] - from[0], at[1] - from[1]) > 3)) {
      moved = true;
      move(at[0] - from[0], at[1] - from[1]);
      from = at;
    } else if (!from && !pinned) {
      const point = nearest(...at);
      if (point !== marked) mark(point);
    }
  });
  canvas.addEventListener("pointerup", (event) => {
    if (from && !moved) mark(nearest(event.offsetX, event.offsetY), true);
    from = null;
  });
  canvas.addEventListener("pointercancel", () => { from = null; });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.deltaMode ? 16 : 1) * 0.0015), event.offsetX, event.offsetY);
  }, { passive: false });
  const KEYS = {
    ArrowLeft: () => move(60, 0), ArrowRight: () => move(-60, 0), ArrowUp: () => move(0, 60), ArrowDown: () => move(0, -60),
    "+": () => zoom(1.6), "-": () => zoom(1 / 1.6), 0: home, Escape: () => mark(null),
  };
  canvas.addEventListener("keydown", (event) => {
    if (!Object.hasOwn(KEYS, event.key)) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  byId("in").onclick = KEYS["+"];
  byId("out").onclick = KEYS["-"];
  byId("home").onclick = home;
  words.oninput = choose;
  for (const box of document.querySelectorAll("input[data-kind]")) box.onchange = choose;
  new ResizeObserver(resize).observe(canvas);
  resize();
  home();
}
