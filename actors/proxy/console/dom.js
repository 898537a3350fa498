// Elements, made in one way: what comes from the cluster becomes text, never markup. And how figures are written.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children: elements, or anything else, which becomes text. */
export function h(tag, attributes = {}, ...children) {
  const svg = tag === "svg" || tag === "polyline";
  const element = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

/** Make an element's children equal to these, changing as little as possible: focus, selection and scrolling stay. */
export function show(parent, ...children) {
  const wanted = children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
  wanted.forEach((child, at) => {
    const there = parent.childNodes[at];
    const node = child instanceof Node ? child : document.createTextNode(String(child));
    if (there === undefined) parent.append(node);
    else morph(there, node);
  });
  while (parent.childNodes.length > wanted.length) parent.lastChild.remove();
}

function morph(there, node) {
  const other = there.nodeType !== node.nodeType || there.nodeName !== node.nodeName;
  if (other || (there.dataset && there.dataset.key !== node.dataset.key)) {
    there.replaceWith(node);
    return;
  }
  if (there.nodeType === Node.TEXT_NODE) {
    if (there.data !== node.data) there.data = node.data;
    return;
  }
  for (const { name } of [...there.attributes]) if (!node.hasAttribute(name)) there.removeAttribute(name);
  for (const { name, value } of [...node.attributes]) {
    if (there.getAttribute(name) !== value) there.setAttribute(name, value);
  }
  show(there, [...node.childNodes]);
}

/** A button that asks for something by name; `app.js` has what each does. */
export function button(label, does, told = {}, kind = "") {
  return h("button", { type: "button", class: kind, "data-does": does, "data-told": JSON.stringify(told) }, label);
}

export function bytes(number) {
  let size = number, unit = 0;
  while (size >= 1024 && unit < 4) [size, unit] = [size / 1024, unit + 1];
  return `${size >= 10 || unit === 0 ? Math.round(size) : size.toFixed(1)} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
}

export function count(number) {
  return Number(number).toLocaleString("en");
}

export function duration(seconds) {
  const s = Math.max(0, seconds);
  if (s < 120) return `${Math.round(s)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  return s < 172800 ? `${(s / 3600).toFixed(1)} h` : `${(s / 86400).toFixed(1)} d`;
}

/** For how long something has been so, with the moment as a tooltip; an em dash if that is not known. */
export function since(at, word = "") {
  if (!at) return "\u2014";
  const when = new Date(at * 1000);
  return h("time", { datetime: when.toISOString(), title: when.toLocaleString() }, `${duration(Date.now() / 1000 - at)}${word}`);
}

/** A line of the last figures. */
export function spark(figures) {
  const most = Math.max(1e-9, ...figures);
  const points = figures.map((each, at) => `${(at * 100) / Math.max(1, figures.length - 1)},${17 - (each / most) * 16}`);
  const line = h("polyline", { points: points.join(" "), fill: "none", stroke: "currentColor", "stroke-width": "1.5", "vector-effect": "non-scaling-stroke" });
  return h("svg", { class: "spark", viewBox: "0 0 100 18", preserveAspectRatio: "none", "aria-hidden": "true" }, line);
}

/** A table: columns are [heading, class, cell of a row]. */
export function table(columns, rows, { key, mark } = {}) {
  const head = h("tr", {}, columns.map(([name, kind]) => h("th", { class: kind, scope: "col" }, name)));
  const body = rows.map((row) => {
    const cells = columns.map(([name, kind, cell]) => h("td", { class: kind, "data-label": name || null }, cell(row)));
    return h("tr", { class: mark ? mark(row) : null, "data-key": key ? key(row) : null }, cells);
  });
  return h("table", {}, h("thead", {}, head), h("tbody", {}, body));
}
