// The query: words, files and filters, as the body of a request and as the part of an address after "#".

// A part of the query: { kind, name, url: of its picture or null, images, sounds: base64, texts, likes: numbers }.
export const partOf = (kind, name, rest) =>
  ({ kind, name, url: null, images: [], sounds: [], texts: [], likes: [], ...rest });

const kept = new Map();  // parts with content of files, by the keys that stand for them in addresses

const FIELDS = ["after", "before", "path", "without", "where", "sort", "below"];

export class Query {
  words = "";
  parts = [];
  kinds = new Set();
  fields = {};  // by name, see FIELDS
  values = [];  // [field, value] of each condition chosen by a chip, such as ["camera", "X100V"]
  near = "";  // "latitude, longitude, kilometres"
  isIncomplete = false;  // its address names files that this window does not have

  isAsked() {
    return Boolean(this.words.trim() || this.parts.length || this.fields.without);
  }

  isFiltered() {
    const filters = FIELDS.filter((name) => name !== "without" && name !== "sort" && this.fields[name]);
    return Boolean(this.kinds.size || filters.length || this.values.length || this.near);
  }

  clearFilters() {
    this.kinds.clear();
    this.fields = this.fields.without ? { without: this.fields.without } : {};
    this.values = [];
    this.near = "";
  }

  allOf(name) {
    return this.parts.flatMap((part) => part[name]);
  }

  // Filters as the server takes them.
  filters() {
    const body = {};
    for (const name of ["after", "before", "path", "below"]) {
      if (this.fields[name]) body[name] = this.fields[name];
    }
    if (this.kinds.size) body.only = [...this.kinds];
    const where = this.values.map(([field, value]) => `${field} == ${JSON.stringify(value)}`);
    if (this.near) where.push(`near(${this.near}*km)`);
    if (this.fields.where) where.push(this.fields.where);
    if (where.length) body.where = where;
    return body;
  }

  // Body of a request to /search.
  request() {
    const images = this.allOf("images");
    const body = {
      text: [this.words.trim(), ...this.allOf("texts")].filter(Boolean),
      image: images,
      audio: this.allOf("sounds"),
      like: this.allOf("likes"),
      ...this.filters(),
    };
    if (this.fields.without) body.without = this.fields.without;
    if (this.fields.sort) body.sort = this.fields.sort;
    // The frames of a video count together as much as its sound.
    if (this.parts.some(({ kind }) => kind === "video")) body.weights = { image: 1 / images.length };
    return body;
  }

  address() {
    const params = new URLSearchParams();
    if (this.words.trim()) params.set("q", this.words.trim());
    for (const part of this.parts) addPart(params, part);
    if (this.kinds.size) params.set("only", [...this.kinds].join());
    for (const name of FIELDS) if (this.fields[name]) params.set(name, this.fields[name]);
    for (const value of this.values) params.append("value", value.join("="));
    if (this.near) params.set("near", this.near);
    return params.toString();
  }

  static fromAddress(address) {
    const params = new URLSearchParams(address);
    const query = new Query();
    query.words = params.get("q") ?? "";
    query.kinds = new Set(params.get("only")?.split(","));
    for (const name of FIELDS) if (params.has(name)) query.fields[name] = params.get(name);
    query.values = params.getAll("value").filter((value) => value.includes("=")).map(splitOnce);
    query.near = params.get("near") ?? "";
    query.parts = [
      ...params.getAll("like").map((id) => partOf("like", `file ${id}`, { likes: [Number(id)] })),
      ...params.getAll("text").filter((value) => value.includes("=")).map(textPart),
      ...params.getAll("part").map((key) => kept.get(key)).filter(Boolean),
    ];
    query.isIncomplete = params.getAll("part").some((key) => !kept.has(key));
    return query;
  }
}

function splitOnce(text) {
  const place = text.indexOf("=");
  return [text.slice(0, place), text.slice(place + 1)];
}

function textPart(value) {
  const [name, text] = splitOnce(value);
  return partOf("text", name, { texts: [text] });
}

function addPart(params, part) {
  for (const id of part.likes) params.append("like", id);
  for (const text of part.texts) params.append("text", `${part.name.replaceAll("=", "-")}=${text}`);
  if (!part.images.length && !part.sounds.length) return;
  part.key ??= `${Date.now().toString(36)}-${kept.size}`;  // of no other window
  kept.set(part.key, part);
  params.append("part", part.key);
}
