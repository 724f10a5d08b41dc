// Elements of the document, and requests to the server. Text of a file is set as text, never as HTML.

export const byId = (id) => document.getElementById(id);

// An element with properties, aria- and data- attributes, and children; null children are left out.
export function element(tag, properties = {}, ...children) {
  const { aria = {}, data = {}, ...rest } = properties;
  const made = Object.assign(document.createElement(tag), rest);
  for (const [name, value] of Object.entries(aria)) made.setAttribute(`aria-${name}`, value);
  Object.assign(made.dataset, data);
  made.append(...children.filter((child) => child !== null));
  return made;
}

export const button = (properties, ...children) => element("button", { type: "button", ...properties }, ...children);

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `page/icons.svg#${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

// Response of the server as JSON; throws an Error in one line if it refuses, or cannot be reached.
export async function ask(path, body, signal) {
  const options = { signal };
  if (body) {
    options.method = "POST";
    options.headers = { "content-type": "application/json" };
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error("The server does not answer.");
  }
  const content = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(content.error?.message ?? `The server failed (${response.status}).`);
  return content;
}
