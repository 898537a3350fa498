// Keys: a tree whose folders are read as they are opened, one key with its history, and a live tail.

import { button, bytes, count, h } from "./dom.js";

const MOST_OPEN = 8; // folders that are read again with each refresh
const MOST_LINES = 200;

const levels = new Map(); // what is known of each level, by the path of its prefix
let root = ""; // the path of the prefix that the tree begins with
let chosen = ""; // the path of the key that is shown
let tail = null; // { label, lines, error, stop }

const level = (prefix) => levels.get(prefix) || { entries: [], next: null, open: false };

async function read(api, prefix, start = "") {
  const found = await api("keys", start ? { prefix, start } : { prefix });
  const before = start ? level(prefix).entries : [];
  levels.set(prefix, { entries: [...before, ...found.entries], next: found.next || null, open: true, pages: start ? level(prefix).pages + 1 : 1 });
}

/** What is shown of a value: text, or bytes in hexadecimal. */
function value(of) {
  const note = [bytes(of.size), of.hex !== undefined ? "binary, in hexadecimal" : "", of.cut ? "cut here" : ""].filter(Boolean).join(", ");
  return [h("pre", { class: "data" }, of.hex !== undefined ? of.hex : of.text), h("p", { class: "pairs" }, note)];
}

function brief(of) {
  const text = of.hex !== undefined ? of.hex : of.text;
  return `${text}${of.cut ? ` \u2026 (${bytes(of.size)})` : ""}`;
}

// Paths are percent-encoded bytes, and are sent as they are. Only these are read from the address of the page.
const safe = (path) => (/^(?:[A-Za-z0-9_.~/-]|%[0-9A-Fa-f]{2})*$/.test(path) ? path : encodeURIComponent(path));

/** The folders between the beginning of the tree and a key. */
function above(key) {
  const folders = [];
  if (key.startsWith(root)) {
    for (let end = key.indexOf("/", root.length); end >= 0 && folders.length < MOST_OPEN; end = key.indexOf("/", end + 1)) folders.push(key.slice(0, end + 1));
  }
  return folders;
}

function branch(prefix, depth) {
  const { entries, next, open } = level(prefix);
  if (!open) return null;
  const items = entries.map((each) => {
    if (each.folder) {
      const opened = level(each.path).open;
      const mark = h("span", { class: "mark", "aria-hidden": "true" }, opened ? "\u25be" : "\u25b8");
      return h("li", { "data-key": each.path, role: "none" },
        h("button", { type: "button", role: "treeitem", "aria-expanded": String(opened), "aria-selected": "false", "data-does": "folder", "data-told": JSON.stringify({ prefix: each.path }) }, mark, h("span", { class: "mono data" }, each.key)),
        opened ? h("ul", { role: "group" }, branch(each.path, depth + 1)) : null);
    }
    return h("li", { "data-key": each.path, role: "none" },
      h("button", { type: "button", role: "treeitem", "aria-selected": String(each.path === chosen), "data-does": "key", "data-told": JSON.stringify({ key: each.path }) },
        h("span", { class: "mark" }), h("span", { class: "mono data" }, each.key || "(the folder\u2019s own name)"), h("span", { class: "version", title: `version ${each.version}, changed at revision ${each.mod_revision}` }, `v${each.version}`)));
  });
  if (next) items.push(h("li", { role: "none" }, h("button", { type: "button", "data-does": "next-page", "data-told": JSON.stringify({ prefix, start: next }) }, h("span", { class: "mark" }), h("span", { class: "soft" }, "more\u2026"))));
  return items;
}

function detail(key) {
  if (!key) return h("section", { class: "sheet detail" }, h("p", { class: "soft" }, "Choose a key to see its value and its history."));
  if (key.error) return h("section", { class: "sheet detail" }, h("h2", { class: "mono data" }, key.name), h("p", { class: "soft" }, key.error));
  const pair = (name, of) => h("span", {}, `${name} `, h("span", {}, of));
  const ends = { created: "That is all: the key was created there.", compacted: "What was before is compacted.", more: "Older versions are not shown." };
  const older = key.history.map((each) => h("li", { "data-key": each.mod_revision }, h("span", { class: "soft" }, `v${each.version}`), h("span", { class: "soft" }, count(each.mod_revision)), h("span", { class: "mono data" }, brief(each.value))));
  return h("section", { class: "sheet detail" },
    h("h2", { class: "mono data" }, key.key),
    h("div", { class: "pairs" }, pair("version", key.version), pair("created at", count(key.create_revision)), pair("changed at", count(key.mod_revision)),
      key.lease ? h("span", {}, "lease ", h("a", { class: "mono", href: `#/leases?id=${key.lease}` }, key.lease)) : null),
    h("h3", {}, "Value"), value(key.value),
    h("h3", {}, "Versions before"), h("ul", { class: "log" }, older), h("p", { class: "pairs" }, ends[key.end]),
    h("div", { class: "row" }, button("Follow this key", "follow", { key: key.path, label: key.key })));
}

function tailSheet() {
  if (!tail) return null;
  const lines = tail.lines.map((each) => h("li", { "data-key": each.number }, h("span", { class: each.type === "delete" ? "warn" : "soft" }, each.type), h("span", { class: "soft" }, count(each.revision)), h("span", { class: "mono data" }, each.key, each.value ? ` = ${brief(each.value)}` : "")));
  return h("section", { class: "sheet detail", id: "tail", "aria-label": "Live tail" },
    h("div", { class: "row" }, h("h2", {}, "Changes of ", h("span", { class: "mono data" }, tail.label || "all keys")), h("span", { class: "spring" }), button("Stop", "unfollow")),
    tail.error ? h("p", { class: "bad" }, tail.error) : h("p", { class: "pairs" }, tail.lines.length ? `${count(tail.seen)} so far, the newest first` : "Nothing has changed since."),
    h("ul", { class: "log", "aria-live": "off" }, lines));
}

export const keys = {
  title: "Keys",
  async load(api, known, query) {
    const prefix = safe(query.get("prefix") || "");
    if (prefix !== root) levels.clear();
    const other = chosen !== safe(query.get("key") || "");
    [root, chosen] = [prefix, safe(query.get("key") || "")];
    await read(api, root);
    if (other) for (const folder of above(chosen)) if (!level(folder).open) await read(api, folder);
    const open = [...levels.keys()].filter((each) => each !== root && level(each).open && level(each).pages === 1);
    await Promise.all(open.slice(0, MOST_OPEN).map((each) => read(api, each)));
    let key = null;
    if (chosen) key = await api("key", { key: chosen }).catch((error) => ([403, 404].includes(error.status) ? { error: error.message, name: chosen } : Promise.reject(error)));
    return { key };
  },
  render({ key }) {
    const shown = branch(root, 0);
    return [
      h("div", { class: "head" }, h("h1", {}, "Keys"), h("div", { class: "actions row" }, button("Follow changes", "follow", { prefix: root, label: decode(root) }))),
      h("form", { class: "row", "data-form": "prefix" },
        h("input", { name: "prefix", type: "search", placeholder: "Begin with a prefix, such as jobs/", "aria-label": "Prefix", autocomplete: "off", spellcheck: "false", id: "prefix" }), h("button", {}, "Show")),
      h("div", { class: "panes", style: null },
        h("div", { class: "sheet tree" }, shown.length ? h("ul", { role: "tree", "aria-label": "Keys" }, shown) : h("div", { class: "empty" }, h("p", {}, root ? "No key begins with this prefix." : "There is no key yet."))),
        h("div", {}, detail(key), tailSheet())),
    ];
  },
  leave() {
    if (tail) tail.stop();
    tail = null;
  },
};

function decode(path) {
  try {
    return decodeURIComponent(path);
  } catch {
    return path; // not UTF-8
  }
}

const encode = (text) => encodeURIComponent(text).replace(/%2F/g, "/").replace(/[!'()*]/g, (each) => `%${each.charCodeAt(0).toString(16).toUpperCase()}`);
const address = (prefix, key) => `#/keys?prefix=${encodeURIComponent(prefix)}${key ? `&key=${encodeURIComponent(key)}` : ""}`;

/** What the buttons of this view do. */
export const does = {
  async folder({ prefix }, { api, redraw }) {
    if (level(prefix).open) levels.set(prefix, { ...level(prefix), open: false });
    else await read(api, prefix);
    redraw();
  },
  async "next-page"({ prefix, start }, { api, redraw }) {
    await read(api, prefix, start);
    redraw();
  },
  key({ key }) {
    location.hash = address(root, key);
  },
  prefix(fields) {
    location.hash = address(encode(fields.prefix), "");
  },
  unfollow(told, { redraw }) {
    keys.leave();
    redraw();
  },
  follow({ key, prefix, label }, { stream, redraw }) {
    keys.leave();
    const abort = new AbortController();
    const mine = (tail = { label, lines: [], seen: 0, error: "", stop: () => abort.abort() });
    const take = (change) => {
      if (tail !== mine) return;
      if (change.error) mine.error = change.error;
      else if (change.type) {
        mine.seen += 1;
        mine.lines.unshift({ ...change, number: mine.seen });
        mine.lines.length = Math.min(mine.lines.length, MOST_LINES);
      } else return;
      redraw();
    };
    stream("tail", key === undefined ? { prefix } : { key }, take, abort.signal).then(
      () => take({ error: "The tail has ended." }),
      (error) => abort.signal.aborted || take({ error: error.message }),
    );
    redraw();
  },
};
